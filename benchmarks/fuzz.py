"""Random networks by seed and number: each cut by a random plan, proved, and checked again without the proof.

Run `python benchmarks/fuzz.py 2000`, or `make fuzz N=2000`; `--seed` draws others. Writes
`benchmarks/results/fuzz.json` every few networks and goes on where it was stopped, unless the code has changed. A wrong
result is printed with the smallest network that shows it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import actprune as ap

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "fuzz.json"
EVERY = 20
"""Networks between two writes."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut and check random networks.")
    parser.add_argument("count", type=int, nargs="?", default=2000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random_nets, random_trial = _generator()
    data = _begun(arguments.seed)
    while data["networks"] < arguments.count:
        index = data["networks"]
        net = random_nets.numbered_net(arguments.seed, index)
        _note(data, index, net, random_trial.attempt(net))
        if data["networks"] % EVERY == 0 or data["networks"] == arguments.count:
            _write(data)
            sys.stderr.write(
                f"\r{data['networks']} of {arguments.count}: {data['proved']} proved, {_wrong(data)} wrong"
            )
            sys.stderr.flush()
    sys.stdout.write(f"\n{_summary(data)}\n")
    for row in data["wrong"]:
        sys.stdout.write(f"\n{row['reason']}\nseed {arguments.seed}, number {row['number']}, made smaller:\n")
        sys.stdout.write(f"{_shrunk(random_nets.numbered_net(arguments.seed, row['number']))!r}\n")
    return 1 if data["wrong"] else 0


def _generator() -> tuple[Any, Any]:
    """`random_nets` and `random_trial`, which live with the tests."""
    if (tests := str(ROOT / "tests")) not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module("random_nets"), importlib.import_module("random_trial")


def _begun(seed: int) -> dict[str, Any]:
    """The results so far, of this seed and this code; else none."""
    versions = {"actprune": ap.__version__, "torch": metadata.version("torch")}
    fresh: dict[str, Any] = {
        "seed": seed, "versions": versions, "code": _code(), "networks": 0, "proved": 0, "refused": {}, "wrong": [],
        "groups": 0, "groups_lost": 0, "lost": {}, "seconds": 0.0, "longest_seconds": 0.0,
    }  # fmt: skip
    if not RESULT.exists():
        return fresh
    found = json.loads(RESULT.read_text())
    same = all(found.get(name) == fresh[name] for name in ("seed", "versions", "code"))
    return found if same else fresh


def _code() -> str:
    """SHA-256 of the engine and the generator."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").glob("random_*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _note(data: dict[str, Any], number: int, net: Any, outcome: Any) -> None:
    """Add one network to the counts. Sizes in reasons are left out, so that like goes with like."""
    data["networks"] += 1
    if outcome.state == "proved":
        data["proved"] += 1
    elif outcome.state == "refused":
        data["refused"] = dict((Counter(data["refused"]) + Counter([_alike(outcome.reason)])).most_common())
    else:
        data["wrong"].append({"number": number, "reason": outcome.reason, "network": repr(net)})
    lost = outcome.lost or {}
    data["groups"] += outcome.groups
    data["groups_lost"] += len(lost)
    data["lost"] = dict((Counter(data["lost"]) + Counter(map(_alike, lost.values()))).most_common())
    data["seconds"] = round(data["seconds"] + outcome.seconds, 2)
    data["longest_seconds"] = round(max(data["longest_seconds"], outcome.seconds), 2)


def _alike(reason: str) -> str:
    reason = re.sub(r"\[[\d, -]*\]|\([\d, -]*\)", "…", reason.partition("follow a cut here: ")[2] or reason)
    reason = re.sub(r"at blocks[.\w]*, ", "at a block, ", reason)
    return re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "n", reason)[:160]


def _write(data: dict[str, Any]) -> None:
    """All or nothing: a run may be stopped at any time."""
    RESULT.parent.mkdir(exist_ok=True)
    new = RESULT.with_suffix(".new")
    new.write_text(json.dumps(data, indent=1) + "\n")
    new.replace(RESULT)


def _wrong(data: dict[str, Any]) -> int:
    return len(data["wrong"])


def _summary(data: dict[str, Any]) -> str:
    refused = "\n".join(f"  {count:>6}  {reason}" for reason, count in data["refused"].items())
    return (
        f"{data['networks']} networks of seed {data['seed']} in {data['seconds']:.0f} s: {data['proved']} proved, "
        f"{_wrong(data)} wrong, {sum(data['refused'].values())} refused\n{refused}\n"
        f"{data['groups']} groups, {data['groups_lost']} of them frozen since the class could not follow"
    )


def _shrunk(net: Any, most_seconds: float = 300) -> Any:
    """The smallest network found that is still wrong."""
    random_nets, random_trial = _generator()

    def wrong(candidate: Any) -> bool:
        try:
            return random_trial.attempt(candidate).state == "wrong"
        except Exception:  # this one can't be built
            return False

    end = time.monotonic() + most_seconds
    while time.monotonic() < end:
        found = next((candidate for candidate in random_nets.smaller(net) if wrong(candidate)), None)
        if found is None:
            break
        net = found
    return net


if __name__ == "__main__":
    sys.exit(main())
