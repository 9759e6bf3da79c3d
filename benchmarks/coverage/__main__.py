"""`python -m benchmarks.coverage`: measures every model of the suites and writes `benchmarks/results/coverage.*`.

A run that was interrupted goes on where it stopped; `--fresh` starts anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # also for `python benchmarks/coverage`

from benchmarks.cache import Cache
from benchmarks.command import command
from benchmarks.coverage.runner import KEY, OURS, Key, Limits, measure_one, run_all
from benchmarks.coverage.suites import SUITES, names
from benchmarks.coverage.tables import RIVALS, markdown

from actprune.report.measure import versions

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "keras", "torch-pruning")


def main() -> None:
    options = _parser().parse_args()
    folder = options.eval_folder.resolve() if options.eval_folder else None
    wanted = [
        (suite, name)
        for suite in options.suite or SUITES
        for name in names(suite, folder)
        if not options.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only)
    ]
    results = RESULTS / "coverage.json"
    known = json.loads(results.read_text())["models"] if results.exists() else []
    cache = Cache(RESULTS / ".coverage" / "models.jsonl", KEY, options.fresh, known)
    limits = Limits(options.seconds, OURS.memory_gb)

    def one(key: Key, old: dict[str, Any] | None) -> dict[str, Any] | None:
        row = measure_one(key, None if options.again else old, options.rivals, folder, limits)
        return row and {**{name: old[name] for name in RIVALS if old and name in old}, **row}  # theirs stays as it was

    run_all(wanted, cache, one, lambda line: _say(sys.stderr, line), options.jobs)
    rows = [cache.rows[suite, name] for suite in SUITES for name in names(suite, folder) if (suite, name) in cache.rows]
    measured = {(row["suite"], row["model"]) for row in rows}
    rows += [row for key, row in cache.rows.items() if key not in measured and key[0] == "eval"]
    table = markdown(rows)
    data = {"command": command("benchmarks.coverage"), "versions": versions(PACKAGES)}
    RESULTS.mkdir(exist_ok=True)
    results.write_text(json.dumps({**data, "models": rows}, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text(table)
    _say(sys.stdout, table.split("\n## ")[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this suite; may be repeated")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="only models that match; may be repeated")
    parser.add_argument("--eval-folder", type=Path, metavar="FOLDER", help="where the pretrained models of `eval` are")
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True, help="measure Torch-Pruning")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--again", action="store_true", help="measure the chosen models again, keep the others")
    parser.add_argument("--seconds", type=float, default=OURS.seconds, help="time limit of one model (300)")
    parser.add_argument("--jobs", type=int, default=1, help="models measured at once")
    return parser


def _say(stream: Any, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
