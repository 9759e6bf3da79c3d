"""One measurement in a process of its own: `python -m benchmarks.coverage.child JOB.json ROW.json`.

A process can be ended when it takes too long, gives its peak memory, and takes nobody with it where it crashes. It
writes its row after every stage, so that the parent knows how far it got.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actprune.memory import peak_bytes

OUT_OF_MEMORY, OUT_OF_TIME = 77, 78
"""Exit codes of a process that ended itself at a limit."""


def main(job_file: str, row_file: str) -> None:
    """The job: {"what", "suite", "model", "eval_folder", "memory_gb", "seconds"}; the row comes by a rename."""
    job, out = json.loads(Path(job_file).read_text()), Path(row_file)
    _watch(job["memory_gb"], job["seconds"])
    warnings.filterwarnings("ignore")
    folder = Path(job["eval_folder"]) if job["eval_folder"] else None
    from benchmarks.coverage.suites import build
    from benchmarks.coverage.words import said

    def save(row: dict[str, Any]) -> None:
        _write(out, {**row, "peak_gb": round(peak_gb(), 3)})

    started = time.perf_counter()
    row: dict[str, Any] = {"ok": False, "failure": None, "stage": "build"}
    save(row)
    try:
        case = build(job["suite"], job["model"], folder)
        row = _measurement(job["what"], job, folder)(case, save)
    except Exception as error:  # a model that can't be built is a row too
        row |= {"failure": f"{row['stage']}: {said(error)}"}
    row["total_seconds"] = round(time.perf_counter() - started, 2)
    save(row)


def _measurement(what: str, job: dict[str, Any], folder: Path | None) -> Callable[..., dict[str, Any]]:
    if what == "ours":
        from benchmarks.coverage.measure import measure

        return measure
    if what == "quality" and folder is not None:
        from benchmarks.coverage.quality import quality

        return lambda case, save: quality(job["model"], folder, save)
    from benchmarks.coverage.rival import rival

    return lambda case, save: rival(case, helped=what == "helped", save=save)


def peak_gb() -> float:
    """The largest resident memory of this process until now, in 2³⁰ bytes."""
    return (peak_bytes() or 0) / 2**30


def _watch(limit_gb: float, seconds: float) -> None:
    """End this process once it holds more or has worked longer, or once its parent is gone. An address-space limit
    would also count what torch only reserves, a wall clock what other processes do."""
    parent = os.getppid()
    threads = int(os.environ.get("OMP_NUM_THREADS", "") or os.cpu_count() or 1)

    def watch() -> None:
        while peak_gb() < limit_gb and os.getppid() == parent:
            if time.process_time() > seconds * threads:
                os._exit(OUT_OF_TIME)
            time.sleep(0.1)
        os._exit(OUT_OF_MEMORY)

    threading.Thread(target=watch, daemon=True).start()


def _write(path: Path, row: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(row))
    part.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
