"""`python -m benchmarks.method NAME … --data FOLDER`: measures what the method is worth; goes on where it stopped.

Writes `NAME.json` and `NAME.md` under `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.command import command
from benchmarks.method import ablation, caffe, cost, encoder, lenet5, lenet300, resnet56, speed, stories
from benchmarks.method.rows import Rows

BENCHMARKS: dict[str, tuple[ModuleType, Callable[[Rows, Any], None]]] = {
    "lenet5": (lenet5, lambda rows, given: lenet5.measure(rows, given.data / "mnist.npz", given.seeds)),
    "ablation": (ablation, lambda rows, given: ablation.measure(rows, given.data)),
    "caffe": (caffe, lambda rows, given: caffe.measure(rows, given.data / "mnist.npz")),
    "cost": (cost, lambda rows, given: cost.measure(rows, given.data)),
    "lenet300": (lenet300, lambda rows, given: lenet300.measure(rows, given.fashion or given.data)),
    "resnet56": (resnet56, lambda rows, given: resnet56.measure(rows, given.data, long=given.long)),
    "encoder": (encoder, lambda rows, given: encoder.measure(rows, given.encoder, given.data)),
    "speed": (speed, lambda rows, given: speed.measure(rows, given.data)),
    "stories": (stories, lambda rows, given: stories.measure(rows, given.data)),
}
"""Name → its module, and how it is run with the options."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all where none is given")
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets and weights")
    parser.add_argument("--fashion", type=Path, help="the folder with the IDX files of Fashion-MNIST")
    parser.add_argument("--encoder", type=Path, help="the folder of all-MiniLM-L6-v2 (its benchmark is left out else)")
    parser.add_argument("--seeds", type=int, default=5, help="of LeNet-5 (5)")
    parser.add_argument("--long", action="store_true", help="the fine-tunes and seeds that take hours, too")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before, here or elsewhere")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}: choose of {', '.join(BENCHMARKS)}")
    left_out = [] if options.encoder else ["encoder"]
    for name in options.names or [name for name in BENCHMARKS if name not in left_out]:
        rows = Rows(name, command("benchmarks.method"), again=options.again)
        module, measure = BENCHMARKS[name]
        try:
            measure(rows, options)
        finally:
            rows.write(module.tables(rows))


if __name__ == "__main__":
    main()
