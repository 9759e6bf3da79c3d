"""A Llama-shaped model that lies in files, pruned within a memory limit: `python -m benchmarks.large_model --depths`.

Each row is pruned by a process of its own, so that its peak memory is what the operating system says of it. Another one
makes the model before, shard by shard, and has stock transformers load what `save_pretrained` wrote.

    python -m benchmarks.large_model --depths                      12, 24 and 48 layers of width 192: some minutes
    python -m benchmarks.large_model --layers 24 --width 2048      1.3 B parameters, 64 × 512 tokens: hours on two cores

Heads stay, for the configuration of a Llama wants a width that is a multiple of their number; 55 % of the inner units
are then 70 % of a block's parameters. Seconds of a block are set against its floor: the products of one dense and one
cut forward pass of the block, and all Gram matrices that compensation uses, on the same rows with the same threads,
measured right afterwards. Rows that `benchmarks/results/large.json` has are not measured again. With `--scratch FOLDER`
an interrupted row goes on behind its last finished stage; the peak is then that of all stages that were finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from benchmarks.coverage.suites.case import declare_torchvision_ops
from torch import Tensor

import actprune as ap
from actprune.graph.program import module_path
from actprune.mapped import let_go, on_disk
from actprune.memory import peak_bytes
from actprune.report.measure import PACKAGES, versions
from actprune.shards import write_shards

RESULTS = Path(__file__).parent / "results" / "large.json"
KEYS = ("layers", "width", "inner", "vocabulary", "samples", "length", "batch", "limit", "keep", "method")

Row = dict[str, Any]
Marks = dict[str, tuple[float, float]]
"""Number of a block → (seconds, seconds of the processors) when it was reached."""


def hub() -> Any:
    import transformers  # pyright: ignore[reportMissingImports]

    return transformers


def configuration(row: Row) -> Any:
    return hub().LlamaConfig(
        vocab_size=row["vocabulary"], hidden_size=row["width"], intermediate_size=row["inner"],
        num_hidden_layers=row["layers"], num_attention_heads=row["width"] // row["head"],
        num_key_value_heads=row["width"] // row["head"], max_position_embeddings=2048, use_cache=False,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


# -- one row ------------------------------------------------------------------------------


def make(row: Row, folder: Path) -> None:
    """Random weights on disk, tensor by tensor."""
    config = configuration(row)
    with torch.device("meta"):
        shapes = hub().LlamaForCausalLM(config).state_dict()
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, held in shapes.items():
        scale = held.shape[-1] ** -0.5
        value = torch.ones(held.shape) if held.dim() == 1 else scale * torch.randn(held.shape)
        state[name] = on_disk(value.bfloat16())
        let_go((state[name],))
    folder.mkdir(parents=True)
    write_shards(folder, state, 10**9)
    config.save_pretrained(folder)


def prune(row: Row, folder: Path) -> Row:
    """The row's figures; the smaller model is in `folder` + "-small"."""
    figures = Figures(folder / "figures.json")
    model = ap.open_pretrained(folder)
    figures.found.setdefault("peak_mb_before", _peak_mb())
    shape = (row["samples"], row["length"])
    tokens = torch.randint(0, row["vocabulary"], shape, generator=torch.Generator().manual_seed(1))
    result = ap.prune(
        model, [{"input_ids": x} for x in tokens.split(row["batch"])], keep=row["keep"], equal_widths=True,
        method=row["method"], memory_limit=row["limit"], calibration_size=row["samples"],
        protect=("*self_attn*",), progress=figures.progress, resume=True,
        save_to=folder.with_name(folder.name + "-run"),
    )  # fmt: skip
    result.save_pretrained(folder.with_name(folder.name + "-small"))
    dense, small = (_of_blocks(net) for net in (model, result.model))
    figures.keep()
    kept = json.loads((folder.with_name(folder.name + "-small") / "config.json").read_text())
    least = floor(row, kept["intermediate_size"], kept["num_attention_heads"])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "block_parameters_kept": round(small / dense, 4),
        "proved": result.proof.passed,
        "proof_seconds": round(result.proof.seconds, 1),
        **figures.found,
        "notes": list(result.report.notes),
        "kept": {"inner": kept["intermediate_size"], "heads": kept["num_attention_heads"]},
        "floor_seconds": least[0],
        "floor_cpu_seconds": least[1],
    }


class Figures:
    """What is measured of a row, in a file that is written after every stage: an interrupted row goes on with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: Row = json.loads(path.read_text()) if path.exists() else {}
        self.blocks: dict[str, Marks] = {}
        self.began: dict[str, float] = {}
        _watch(self.blocks)

    def progress(self, stage: str, done: int, total: int) -> None:
        """For `prune`: the seconds of a stage are those of all processes that finished it."""
        if done == 0:
            self.began[stage] = time.perf_counter()
        if done == total and stage in self.began:
            stages = self.found.setdefault("seconds_of_stages", {})
            stages[stage] = round(stages.get(stage, 0.0) + time.perf_counter() - self.began[stage], 1)
            self.found["seconds"] = round(sum(stages.values()), 1)
            self.found.setdefault("peak_mb_behind_stages", {})[stage] = _peak_mb()
            self.keep()

    def keep(self) -> None:
        for clock, name in enumerate(("seconds_of_blocks", "cpu_seconds_of_blocks")):
            of_stage = self.found.setdefault(name, {})
            for stage, marks in self.blocks.items():
                each = _each(marks, clock)
                of_stage[stage] = max(of_stage.get(stage, []), each, key=len)
        self.found["peak_mb"] = max(self.found.get("peak_mb", 0), _peak_mb())
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.found))
        scratch.replace(self.path)


def load(folder: Path) -> Row:
    """What stock transformers makes of the result."""
    model = hub().AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8)[None]).logits
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    return {"loaded": type(model).__name__, "finite": bool(logits.isfinite().all()), "files": files}


def floor(row: Row, kept_inner: int, kept_heads: int) -> list[float]:
    """Seconds, and seconds of the processors, of one block's least work on all rows: see above.

    In float32, the quickest dtype where bfloat16 is slow.
    """
    torch.manual_seed(0)
    width, inner, heads = row["width"], row["inner"], row["width"] // row["head"]
    rows = row["batch"] * row["length"]
    x = torch.randn(rows, width)

    def passed(inner: int, heads: int) -> list[tuple[Tensor, list[Tensor]]]:
        """The inputs of each product, and the results that are made of them."""
        wide = heads * row["head"]
        made = [F.linear(x, w) for w in weights[f"qkv{wide}"]]
        q, k, v = (t.view(row["batch"], row["length"], heads, -1).transpose(1, 2) for t in made)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, wide)
        o = F.linear(mixed, weights[f"o{wide}"][0])
        gate, up = (F.linear(x, w) for w in weights[f"up{inner}"])
        product = F.silu(gate) * up
        return [
            (x, made),
            (mixed, [o]),
            (x, [gate, up]),
            (product, [F.linear(product, weights[f"down{inner}"][0])]),
        ]

    weights: dict[str, list[Tensor]] = {}
    for i, h in ((inner, heads), (kept_inner, kept_heads)):
        wide = h * row["head"]
        weights[f"qkv{wide}"] = list(torch.randn(3, wide, width))
        weights[f"o{wide}"] = [torch.randn(width, wide)]
        weights[f"up{i}"] = list(torch.randn(2, i, width))
        weights[f"down{i}"] = [torch.randn(width, i)]

    def work() -> None:
        passed(inner, heads)
        for given, made in passed(kept_inner, kept_heads):
            given.T @ given
            for out in made:
                out.T @ given

    with torch.no_grad():
        work()
        times = [_seconds(work) for _ in range(3)]
    batches = row["samples"] / row["batch"]
    return [round(sorted(each)[1] * batches, 3) for each in zip(*times, strict=True)]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _watch(blocks: dict[str, Marks]) -> None:
    """Note when the first layer of each block is reached, in the stages that go through them."""
    from actprune.compensation import walk
    from actprune.guidance import ranking
    from actprune.stats import collect

    def note(stage: str, path: str) -> None:
        found, marks = re.search(r"layers\.(\d+)\.", f"{path}."), blocks.setdefault(stage, {})
        if found or any(key.isdigit() for key in marks):  # what comes before the first block is none of it
            marks.setdefault(found[1] if found else "behind", _now())
        blocks[stage]["end"] = _now()

    def patched(owner: Any, name: str, stage: str, path: Callable[..., str]) -> None:
        own = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            note(stage, path(*args))
            made = own(*args, **kwargs)
            blocks[stage]["end"] = _now()
            return made

        setattr(owner, name, call)

    patched(walk.Walk, "_refit", "refit", lambda _, site, *__: site.module)
    patched(ranking, "_group_guide", "guide", lambda ask, _: ask.group.name)
    patched(collect._Collector, "put_aside", "statistics", lambda _, node: module_path(node))


def _each(marks: Marks, clock: int) -> list[float]:
    """Seconds of every block: from its first mark to that of what follows."""
    numbers = sorted(int(key) for key in marks if key.isdigit())
    ends = [marks.get(str(i + 1), marks.get("behind", marks["end"])) for i in numbers]
    return [round(end[clock] - marks[str(i)][clock], 2) for i, end in zip(numbers, ends, strict=True)]


def _peak_mb() -> int:
    return round((peak_bytes() or 0) / 1e6)


def _of_blocks(model: Any) -> int:
    return sum(p.numel() for p in model.model.layers.parameters())


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    started = _now()
    work()
    seconds, processors = (end - start for start, end in zip(started, _now(), strict=True))
    return seconds, processors


# -- all of them -----------------------------------------------------------------------------------


def measured(row: Row, scratch: Path, kept: bool) -> Row:
    """One row; what is measured is so in a process of its own.

    Args:
        kept: leave what it wrote where it is interrupted, for a run that goes on.
    """
    name = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]
    folder = scratch / f"{row['layers']}-{row['width']}-{name}"
    small, run = (folder.with_name(folder.name + ending) for ending in ("-small", "-run"))
    try:
        if not (folder / "config.json").exists():  # which is written last
            shutil.rmtree(folder, ignore_errors=True)
            make(row, folder)
        words = [sys.executable, "-m", "benchmarks.large_model", "--row", json.dumps(row), str(folder)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        found = {**json.loads(str(done.stdout).splitlines()[-1]), **load(small)}
        kept = False  # it is finished
    finally:
        if not kept:
            for path in (folder, small, run):
                shutil.rmtree(path, ignore_errors=True)
    # of the processors' seconds: other work shares the machine
    mean = {stage: sum(each) / max(len(each), 1) for stage, each in found["cpu_seconds_of_blocks"].items()}
    least = found["floor_cpu_seconds"]
    found |= {"refit_by_floor": round(mean["refit"] / least, 2), "all_by_floor": round(sum(mean.values()) / least, 2)}
    command = "python -m benchmarks.large_model " + " ".join(sys.argv[1:])
    about = {"command": command, "threads": torch.get_num_threads(), "versions": versions((*PACKAGES, "transformers"))}
    return {**row, **found, **about}


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", action="store_true", help="12, 24 and 48 layers of a small width")
    for name, default in (
        ("layers", 24), ("width", 2048), ("inner", 0), ("head", 64), ("vocabulary", 32000), ("samples", 64),
        ("length", 512), ("batch", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit", default="4GB")
    parser.add_argument("--keep", default="units=55%")
    parser.add_argument("--method", default="sgd-ap")
    parser.add_argument("--scratch", type=Path, help="where the model and finished stages are kept")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def rows_of(options: argparse.Namespace) -> list[Row]:
    row = {key: getattr(options, key) for key in (*KEYS, "head")}
    row["inner"] = row["inner"] or -(-row["width"] * 8 // 3 // 64) * 64
    if not options.depths:
        return [row]
    small = {
        "width": 192, "inner": 512, "head": 64, "vocabulary": 1000, "samples": 16, "length": 64, "batch": 2,
        "method": "greedy", "limit": "200MB",
    }  # fmt: skip
    return [{**row, **small, "layers": layers} for layers in (12, 24, 48)]


def main() -> None:
    options = asked()
    warnings.simplefilter("ignore")
    declare_torchvision_ops()
    if options.row:
        row, folder = options.row
        print(json.dumps(prune(json.loads(row), Path(folder))))
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for row in rows_of(options):
        if any(all(old.get(key) == row[key] for key in KEYS) for old in known):
            continue
        with tempfile.TemporaryDirectory(prefix="actprune-large-") as scratch:
            known.append(measured(row, options.scratch or Path(scratch), options.scratch is not None))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        told = {
            key: known[-1][key] for key in ("layers", "width", "peak_mb", "seconds", "refit_by_floor", "all_by_floor")
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
