"""The main job: what the seed describes, on real MNIST, from data to run folder.

    load → train (or take the cached dense network) → evaluate → statistics → guide → plan → compensate → cut → prove →
    evaluate → SGD fine-tune → evaluate once on the test set → run folder

Decisions look only at the training split and its validation part; the test set is touched at the very end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from actprune.allocation.budget import Keep, read_keep
from actprune.allocation.cost import cost
from actprune.artifacts.checkpoint import check_output, save
from actprune.compensation.refit import compensate
from actprune.demo.lenet5 import Split, accuracy, dense_checkpoint, minibatches, tensors
from actprune.demo.mnist import cache_folder, load_mnist
from actprune.errors import PlanError
from actprune.guidance.ranking import guide
from actprune.latency.bench import Bench
from actprune.methods import ALLOCATIONS, known, method
from actprune.pipeline import prune
from actprune.plan import Plan, make_plan
from actprune.recovery.sgd import SGD
from actprune.report.measure import state_bytes
from actprune.report.record import Report, Stage
from actprune.result import Result
from actprune.rewrite import Rewrite
from actprune.surgery.slicing import cut

CALIBRATION, CALIBRATION_BATCH = 8192, 256
"""Training images (without labels) that statistics and refits see, and how many of them are one batch."""

FOLDER = Path("runs/lenet5-mnist")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What `actprune demo` can be asked for.

    Attributes:
        keep: the budget; None where `max_drop` decides alone.
        max_drop: percentage points of validation accuracy that may be lost.
        method, allocation, threshold: as in `prune`.
        finetune_epochs: passes over the training split; 0 for none.
        epochs: of the dense training.
        seed: of the dense training and of everything after it.
        data: a folder with MNIST as IDX files or `mnist.npz`; None: cached, else fetched.
        out: the run folder.
        overwrite: replace an earlier run folder.
        device: "cpu", "cuda", …
        cache: where the data and dense networks are kept; None: the user's cache folder.
    """

    keep: Keep = "macs=50%"
    max_drop: float | None = None
    method: str = "sgd-ap"
    allocation: str | None = None
    threshold: float | None = None
    finetune_epochs: int = 3
    epochs: int = 5
    seed: int = 0
    data: Path | None = None
    out: Path = FOLDER
    overwrite: bool = False
    device: str = "cpu"
    cache: Path | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """The finished run."""

    result: Result
    report: Report
    folder: Path


def run(options: Options, progress: Progress | None = None) -> Outcome:
    """Do the main job and write its run folder.

    Raises:
        ActpruneError: with what to do; nothing is written then.
    """
    tell = progress or (lambda stage, done, total: None)
    check_output(options.out, overwrite=options.overwrite)
    check(options)
    started = time.perf_counter()
    split = tensors(load_mnist(options.data, options.cache))
    loaded = time.perf_counter()
    dense, trained = dense_checkpoint(
        split,
        seed=options.seed,
        epochs=options.epochs,
        cache=options.cache or cache_folder(),
        device=options.device,
        progress=lambda done, total, text: tell("train", done, total),
    )
    ready = time.perf_counter()
    result = prune(
        dense,
        split.train.images[:CALIBRATION].split(CALIBRATION_BATCH),
        evaluate=lambda model: accuracy(model, split.validation.images, split.validation.labels),
        finetune=_finetune(split, options),
        progress=progress,
        **how_to_prune(options),
    )
    tell("test", 0, 1)
    report = tested(result, dense, lambda m: accuracy(m, split.test.images, split.test.labels), options, cut)
    seconds = {"load": loaded - started, "train" if trained else "load dense": ready - loaded}
    report = replace(report, seconds={**{k: round(v, 3) for k, v in seconds.items()}, **report.seconds})
    tell("test", 1, 1)
    folder = save(options.out, result.model, result.plan, report.to_data(), overwrite=options.overwrite)
    return Outcome(result, report, folder)


def how_to_prune(options: Options) -> dict[str, Any]:
    """What the options say of `prune`, whatever the framework."""
    return {
        "keep": options.keep,
        "max_drop": None if options.max_drop is None else options.max_drop / 100,
        "method": options.method,
        "allocation": options.allocation,
        "threshold": options.threshold,
        "calibration_size": CALIBRATION,
        "seed": options.seed,
    }


def check(options: Options) -> None:
    """What can be known to be wrong before anything is loaded or trained."""
    method(options.method)
    if options.allocation is not None:
        known(options.allocation, ALLOCATIONS, "allocation")
    if options.keep is not None and not isinstance(options.keep, Mapping):
        read_keep(options.keep)
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a device that this machine lacks
        raise PlanError(
            "The device can't be used.",
            expected="cpu, or a device that torch finds on this machine",
            got=f"{options.device!r}: {str(error).splitlines()[0]}",
            where="device",
            hint="leave the device out to run on the CPU",
        ) from error


def _finetune(split: Split, options: Options) -> SGD | None:
    if options.finetune_epochs == 0:
        return None
    generator = torch.Generator().manual_seed(options.seed)
    loader = minibatches(split.train.images, split.train.labels, 64, generator)
    return SGD(loader, loss=F.cross_entropy, lr=0.05, epochs=options.finetune_epochs)


def tested(
    result: Result,
    dense: Any,
    test: Callable[[Any], float],
    options: Options,
    make: Callable[[Any, Plan, Rewrite], Any],
) -> Report:
    """The report with test accuracies, and the L2 norm at the same widths beside ours.

    Args:
        test: model → accuracy on the test set.
        make: (dense model, plan, rewrite) → the cut model.
    """

    def stage(model: Any, stage: Stage) -> Stage:
        return replace(stage, accuracy=test(model), validation=stage.accuracy)

    report, small = result.report, result.before_finetune or result.model
    rivals: dict[str, Stage] = {}
    if options.method != "l2":
        rivals["L2 norm"] = _rival(result, dense, test, make)
    return replace(
        report,
        dense=stage(dense, report.dense),
        pruned=stage(small, report.pruned),
        finetuned=None if report.finetuned is None else stage(result.model, report.finetuned),
        rivals=rivals,
    )


def _rival(
    result: Result, dense: Any, test: Callable[[Any], float], make: Callable[[Any, Plan, Rewrite], Any]
) -> Stage:
    """The same widths by L2 norm of the filters, without compensation."""
    graph = result.graph
    ranked = guide(graph, None, method="l2")
    plan = make_plan(graph, ranked.supports(result.plan.widths))
    model = make(dense, plan, compensate(graph, plan, (), method=None))
    counted = cost(graph, plan.widths)
    return Stage(
        test(model),
        counted.params,
        counted.macs,
        state_bytes(model),
        Bench(graph.program).models([model], quick=True)[0],
    )
