"""The Keras demo over several seeds beside the PyTorch one: `python benchmarks/keras_demo.py [--seeds 5]`.

Writes `benchmarks/results/keras_demo.json`, one row per seed, budget and stage, and a Markdown table that compares the
means with those of `benchmarks/results/main_job.json`. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from main_job import RESULTS, STAGES, rows_of

from actprune.demo.keras_job import run

NAMES = dict(zip(STAGES, ("dense", "L2 norm, same widths", "ours, no fine-tune", "ours, 3 epochs"), strict=True))

BUDGETS = ["macs=50%", "params=10%"]

Row = dict[str, Any]


def table(keras: list[Row], torch: list[Row]) -> str:
    """Mean accuracies in percent over the seeds that both have, and their difference in points."""
    lines = ["| budget | seeds | network | PyTorch | Keras | Keras − PyTorch |", "|---|---|---|---|---|---|"]
    for keep in dict.fromkeys(row["keep"] for row in keras):
        seeds = {row["seed"] for row in keras if row["keep"] == keep}
        seeds &= {row["seed"] for row in torch if row["keep"] == keep}
        for stage, name in NAMES.items():
            found = [
                [100 * r["accuracy"] for r in rows if r["keep"] == keep and r["stage"] == stage and r["seed"] in seeds]
                for rows in (torch, keras)
            ]
            if seeds and all(found):
                means = [f"{statistics.mean(one):.2f} ± {statistics.pstdev(one):.2f}" for one in found]
                gap = statistics.mean(found[1]) - statistics.mean(found[0])
                lines.append(f"| {keep} | {len(seeds)} | {name} | {' | '.join(means)} | {gap:+.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", action="append")
    parser.add_argument("--data", type=Path, help="folder with MNIST as IDX files or mnist.npz")
    options = parser.parse_args()
    path = RESULTS / "keras_demo.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    rival: list[Row] = json.loads((RESULTS / "main_job.json").read_text())["rows"]
    for seed in range(options.seeds):
        for keep in options.keep or BUDGETS:
            if not any(row["seed"] == seed and row["keep"] == keep for row in rows):
                rows += rows_of(seed, keep, run, options.data)
                command = f"python benchmarks/keras_demo.py --seeds {options.seeds}"
                path.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    found = table(rows, rival)  # what the PyTorch demo gives may be newer
    path.with_suffix(".md").write_text(found)
    sys.stdout.write(found)


if __name__ == "__main__":
    main()
