"""`python -m benchmarks.method NAME … --data FOLDER`: measures what the method is worth; goes on where it stopped.

Writes `NAME.json` and `NAME.md` under `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.method import lenet5, lenet300, resnet56, stories
from benchmarks.method.rows import Rows

NAMES = ("lenet5", "lenet300", "resnet56", "stories")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=list(NAMES), metavar="NAME")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets and weights")
    parser.add_argument("--fashion", type=Path, help="the folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=5, help="of LeNet-5 (5)")
    parser.add_argument("--long", action="store_true", help="the fine-tunes and seeds that take hours, too")
    options = parser.parse_args()
    command = " ".join(["python -m benchmarks.method", *sys.argv[1:]])
    for name in options.names:
        rows = Rows(name, command)
        try:
            if name == "lenet5":
                lenet5.measure(rows, options.data / "mnist.npz", options.seeds)
            elif name == "lenet300":
                lenet300.measure(rows, options.fashion or options.data)
            elif name == "resnet56":
                resnet56.measure(rows, options.data, long=options.long)
            else:
                stories.measure(rows, options.data)
        finally:
            tables = {"lenet5": lenet5, "lenet300": lenet300, "resnet56": resnet56, "stories": stories}[name].tables
            rows.write(tables(rows))


if __name__ == "__main__":
    main()
