"""Measures model after model, each in processes of its own, and remembers every finished one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache import Cache
from benchmarks.coverage.child import OUT_OF_MEMORY, OUT_OF_TIME
from benchmarks.coverage.words import plain

ROOT = Path(__file__).parents[2]

Row = dict[str, Any]
Key = tuple[str, str]
"""(suite, model)."""

KEY = ("suite", "model")


@dataclass(frozen=True)
class Limits:
    """Of one process: resident memory in 2³⁰ bytes, and seconds of the processor with all the threads it may use.

    On an idle machine these are at most those of the wall clock; on a busy one they stay what they are. The wall clock
    ends a process that waits for something: after `PATIENCE` times as long.
    """

    seconds: float
    memory_gb: float = 14.0


PATIENCE = 5


OURS, RIVAL, QUALITY = Limits(300.0), Limits(60.0), Limits(3600.0)


def run_all(
    wanted: Iterable[Key],
    cache: Cache,
    one: Callable[[Key, Row | None], Row | None],
    tell: Callable[[str], None],
    jobs: int = 1,
) -> None:
    """Measure what the cache lacks.

    Args:
        one: (suite, model) and its row of an earlier run, or None → its new row, or None where the old one is complete.
    """
    wanted, lock = list(wanted), threading.Lock()
    counted = itertools.count(1)

    def finish(key: Key) -> None:
        row = one(key, cache.rows.get(key))
        with lock:
            if row is not None:
                cache.add(row)
            known = "" if row else " (measured before)"
            tell(f"[{next(counted)}/{len(wanted)}] {line_of(key, cache.rows[key])}{known}")

    if jobs == 1:  # an interrupt then ends the running process too
        for key in wanted:
            finish(key)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(finish, key) for key in wanted]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # what runs is finished, what waits is not started
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def line_of(key: Key, row: Row) -> str:
    """One line of progress."""
    parts = [f"{'/'.join(key)}: {'ok' if row['ok'] else 'FAILED'}"]
    if "params_left" in row:
        parts.append(f"{row['params_left']:.1%} of the parameters left")
    parts.append(f"{row.get('total_seconds', 0):.0f} s, {row.get('peak_gb', 0):.1f} GB")
    if row.get("heads_groups"):
        parts.append(f"heads {'ok' if row.get('heads_ok') else 'failed'}")
    parts += [f"{name} {'ok' if row[name]['ok'] else 'failed'}" for name in ("quick", "helped") if row.get(name)]
    if row.get("failure"):
        parts.append(row["failure"][:200])
    return ", ".join(parts)


def measure_one(key: Key, old: Row | None, rivals: bool, eval_folder: Path | None, ours: Limits = OURS) -> Row | None:
    """The row of a model with its rival columns; what `old` has is not measured again."""
    wanted = ["quick", "helped"] if rivals and key[0] != "keras" else []  # Torch-Pruning takes no Keras model
    wanted += ["quality"] if key[0] == "eval" and rivals else []
    missing = [name for name in wanted if not (old or {}).get(name)]
    if old is not None and not missing:
        return None
    row = old or {"suite": key[0], "model": key[1], **in_process("ours", key, ours, eval_folder)}
    limits = {"quality": QUALITY}
    return {**row, **{name: in_process(name, key, limits.get(name, RIVAL), eval_folder) for name in missing}}


def in_process(what: str, key: Key, limits: Limits, eval_folder: Path | None = None) -> Row:
    """What a child process finds; where it is ended or crashes, what it had found and why it ended."""
    job = {
        "what": what,
        "suite": key[0],
        "model": key[1],
        "eval_folder": str(eval_folder) if eval_folder else None,
        "memory_gb": limits.memory_gb,
        "seconds": limits.seconds,
    }
    with tempfile.TemporaryDirectory() as folder:
        job_file, row_file, log = (Path(folder) / name for name in ("job.json", "row.json", "log.txt"))
        job_file.write_text(json.dumps(job))
        command = [sys.executable, "-m", "benchmarks.coverage.child", str(job_file), str(row_file)]
        started = time.perf_counter()
        with log.open("w") as output:
            ended = _ended(command, PATIENCE * limits.seconds, output)
        row: Row = json.loads(row_file.read_text()) if row_file.exists() else {"ok": False, "stage": "start"}
        row.setdefault("total_seconds", round(time.perf_counter() - started, 2))
        if ended != 0:
            last = plain(log.read_text(errors="replace"))[-300:]
            reason = {
                None: f"more than {PATIENCE * limits.seconds:g} s of the wall clock",
                OUT_OF_TIME: f"more than {limits.seconds:g} s",
                OUT_OF_MEMORY: f"more than {limits.memory_gb:g} GB",
            }.get(ended, f"the process ended with {ended}: {last}")
            row |= {"ok": False, "failure": f"{row.get('stage', 'start')}: {reason}"}
        return row


def _ended(command: list[str], seconds: float, output: Any) -> int | None:
    """The exit code, or None where the time was over."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*_paths(), os.environ.get("PYTHONPATH")]))}
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            timeout=seconds,
            check=False,
            start_new_session=True,  # an interrupt from the terminal is no failure of the model
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _paths() -> list[str]:
    """The repository, for `benchmarks`; `actprune` comes from where this process has it."""
    import actprune

    return [str(ROOT), str(Path(actprune.__file__).parents[1])]
