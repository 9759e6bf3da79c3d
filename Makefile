# The environment is .venv. All it needs is Python 3.11 or newer, make and a package registry.

PYTHON ?= python3
ARGS ?=
N ?= 2000
# The benchmarks, too, need what the examples need.
TEST_EXTRAS ?= demo,dev,examples
# Test processes: one a core, at most four, for each imports torch.
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
# The pinned versions; a wheel with a local tag, such as a CPU build of torch, satisfies its pin too. Python compiles what
# is imported; pip would compile all of torch and transformers.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: help demo test tests test-long lint bench bench-long coverage growth scaling large exports fuzz docs clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter, ARGS="..." is handed on to the demo and to pytest.'

demo: $(VENV)/.stamp-demo ## prune LeNet-5 on MNIST from start to end
	$(BIN)/actprune demo --overwrite $(ARGS)

test: $(VENV)/.stamp-dev ## lint and run the tests, side by side
	@$(MAKE) --no-print-directory -j2 lint tests

tests: $(VENV)/.stamp-dev ## run every test but the long ones
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal -m "not long" $(ARGS)

test-long: $(VENV)/.stamp-dev ## run the tests that those leave out (minutes)
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal -m long $(ARGS)

lint: $(VENV)/.stamp-dev ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/.stamp-dev ## measure the figures of the README; with DATA=folder those of the method too (NAMES="lenet5 …": some)
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/torchvision_nets.py
	$(if $(DATA),$(BIN)/python -m benchmarks.method $(NAMES) --data $(DATA),@echo 'DATA=folder measures the method as well')

bench-long: $(VENV)/.stamp-dev ## the fine-tunes of ResNet-56 and further seeds (many hours; goes on where it stopped; DATA=folder)
	$(BIN)/python -m benchmarks.method resnet56 --long --data $(DATA)

coverage: $(VENV)/.stamp-dev ## measure torchvision, timm and transformers beside Torch-Pruning (hours; goes on where it stopped)
	$(INSTALL) --no-deps torch-pruning
	$(BIN)/python -m benchmarks.coverage $(ARGS)

growth: $(VENV)/.stamp-dev ## measure how seconds and memory grow with depth and width (minutes)
	$(BIN)/python benchmarks/growth.py

scaling: $(VENV)/.stamp-dev ## compare runs of several processes and interrupted sweeps (an hour)
	$(BIN)/python benchmarks/several_processes.py
	$(BIN)/python benchmarks/sweeps.py
	$(BIN)/python benchmarks/finetune_processes.py

large: $(VENV)/.stamp-dev ## prune models that lie in files: does peak memory grow with depth? (LARGE="--layers 24 --width 2048": 1.3 B, hours)
	$(BIN)/python -m benchmarks.large_model $(or $(LARGE),--depths)

exports: $(VENV)/.stamp-dev ## export pruned networks to ONNX and pt2, compare and time them (minutes)
	$(BIN)/python -m benchmarks.exports $(NAMES)

fuzz: $(VENV)/.stamp-dev ## cut and check N random networks (N=2000)
	$(BIN)/python benchmarks/fuzz.py $(N)

docs: $(VENV)/.stamp-demo ## build the documentation as a site, into build/site
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean: ## remove the environment, build outputs and caches (not runs/)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first: by far the largest download, it is then already there if a later step has to be repeated.
$(VENV)/.stamp-demo: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "actprune needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "Name a newer one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[demo]'
	@touch $@

# torchvision and timm only lend their networks to the tests, hence without the compiled operators' demands on torch.
$(VENV)/.stamp-dev: $(VENV)/.stamp-demo
	$(INSTALL) -e '.[$(TEST_EXTRAS)]'
	$(INSTALL) --no-deps torchvision timm
	@touch $@
