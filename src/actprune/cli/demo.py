"""`actprune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actprune.cli.options import LogJson
from actprune.errors import PlanError
from actprune.methods import known

if TYPE_CHECKING:
    from rich.table import Table

    from actprune.demo.main_job import Outcome


FRAMEWORKS = ("torch", "keras")


def demo(
    keep: Annotated[
        str | None, typer.Option(help="Budget: macs=50%, params=10%, bytes=25% or units=70%.", show_default="macs=50%")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Percentage points of accuracy that may be lost; the smallest network within."),
    ] = None,
    method: Annotated[str, typer.Option(help="Method: sgd-ap, l2, flap, activation, filter, …")] = "sgd-ap",
    allocation: Annotated[
        str | None,
        typer.Option(help="sensitivity, uniform, layerwise, spatial or global.", show_default="the method's"),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="For --method filter: smaller weights count as zero.")] = None,
    finetune_epochs: Annotated[int, typer.Option(min=0, help="Epochs of the SGD fine-tune.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the dense training.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the training and of everything after it.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder with MNIST as IDX files or mnist.npz.", show_default="fetched, cached")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/lenet5-mnist"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    framework: Annotated[str, typer.Option(help="torch, or keras for the seed's own script on Keras 3.")] = "torch",
    log_json: LogJson = False,
) -> None:
    """Train LeNet-5 on MNIST, cut it, prove the cut, fine-tune, and report.

    The second run starts at pruning: the dense network is cached.

    Example: actprune demo --keep params=10% --finetune-epochs 1
    """
    budget = keep
    if keep is None and max_drop is None and threshold is None:
        budget = "macs=50%"
    if method == "filter" and threshold is None:  # told at once, not after minutes of training
        raise PlanError(
            "Method 'filter' needs a threshold.",
            expected="--threshold",
            got="none",
            where="--method filter",
            hint="--threshold 0.01, say: smaller weights count as zero",
        )
    from actprune.cli.progress import progress_of
    from actprune.demo.main_job import Options

    if known(framework, FRAMEWORKS, "framework") == "keras":
        from actprune.demo.keras_job import run
    else:
        from actprune.demo.main_job import run
    options = Options(
        keep=budget, max_drop=max_drop, method=method, allocation=allocation, threshold=threshold,
        finetune_epochs=finetune_epochs, epochs=epochs, seed=seed, data=data, out=out, overwrite=overwrite,
        device=device,
    )  # fmt: skip
    with progress_of(log_json) as progress:
        outcome = run(options, progress)
    _show(outcome)


def _show(outcome: Outcome) -> None:
    from actprune.cli.console import console_of
    from actprune.report.table import tables

    console = console_of()
    console.print(_guide(outcome))
    console.print(tables(outcome.report))
    rounds = outcome.report.rounds
    accepted = sum(bool(one["accepted"]) for one in rounds)
    console.print(f"correction: {len(rounds)} rounds on the validation split, {accepted} accepted")
    total = sum(outcome.report.seconds.values())
    console.print(f"{total:.0f} s in all: " + ", ".join(f"{k} {v:.1f}" for k, v in outcome.report.seconds.items()))
    console.print(f"written to {outcome.folder}")


def _guide(outcome: Outcome) -> Table:
    """The pruning guide: LASSO factor of every unit at the layer's natural width, largest first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="pruning guide", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("group")
    table.add_column("natural width", justify="right")
    table.add_column("LASSO β of every unit, largest first")
    for row in outcome.report.groups:
        if row.guide is not None:
            table.add_row(row.name, f"{row.natural} of {row.before}", _bars(list(row.guide)))
    return table


def _bars(values: list[Any], most: int = 50) -> str:
    ranked = sorted(map(float, values), reverse=True)
    if len(ranked) > most:
        ranked = [ranked[i * len(ranked) // most] for i in range(most)]
    top = max(*ranked, 1e-30)
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, round(8 * value / top))] for value in ranked)
