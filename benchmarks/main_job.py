"""The main job over five seeds: `python benchmarks/main_job.py [--seeds 5] [--keep macs=50% --keep params=10%]`.

Writes `benchmarks/results/main_job.json`, one row per seed, budget and stage, and a Markdown table beside it. A run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actprune.demo.main_job import Options, Outcome, run

RESULTS = Path(__file__).parent / "results"
STAGES = ("dense", "L2 norm", "pruned", "finetuned")


def rows_of(
    seed: int, keep: str, run: Callable[[Options], Outcome] = run, data: Path | None = None
) -> list[dict[str, Any]]:
    """One run of the demo as rows.

    Args:
        run: the demo, on PyTorch or on Keras.
        data: a folder with MNIST; None: cached, else fetched.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Options(keep=keep, seed=seed, data=data, out=Path(folder) / "run")).report
    seconds = time.perf_counter() - started
    stages = {"dense": report.dense, **report.rivals, "pruned": report.pruned, "finetuned": report.finetuned}
    return [
        {
            "seed": seed,
            "keep": keep,
            "method": "l2" if name == "L2 norm" else "sgd-ap",
            "stage": name,
            "accuracy": stage.accuracy,
            "params": stage.params,
            "macs": stage.macs,
            "widths": {group.name: group.after for group in report.groups},
            "proof": report.proof["max_rel_error"],
            "seconds": round(seconds, 1),
            "seconds_by_stage": dict(report.seconds),
            "versions": dict(report.versions),
        }
        for name, stage in stages.items()
        if stage is not None
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, one line per budget."""
    columns = (
        "budget",
        "seeds",
        "dense",
        "L2 norm, same widths",
        "ours, no fine-tune",
        "ours, 3 epochs",
        "params",
        "MACs",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for keep in dict.fromkeys(row["keep"] for row in rows):
        cells = []
        for stage in STAGES:
            found = [100 * row["accuracy"] for row in rows if row["keep"] == keep and row["stage"] == stage]
            cells.append(f"{statistics.mean(found):.2f} ± {statistics.pstdev(found):.2f}")
        own = [row for row in rows if row["keep"] == keep and row["stage"] == "pruned"]
        params, macs = (round(statistics.mean(row[key] for row in own)) for key in ("params", "macs"))
        lines.append(f"| {keep} | {len(own)} | {' | '.join(cells)} | {params:,} | {macs:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", action="append")
    arguments = parser.parse_args()
    path = RESULTS / "main_job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for keep in arguments.keep or ["macs=50%", "params=10%"]:
        for seed in range(arguments.seeds):
            if not any(row["seed"] == seed and row["keep"] == keep for row in rows):
                rows += rows_of(seed, keep)
                command = "python benchmarks/main_job.py " + " ".join(sys.argv[1:])
                path.write_text(json.dumps({"command": command.strip(), "rows": rows}, indent=1) + "\n")
                path.with_suffix(".md").write_text(table(rows))
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
