"""Kill `actprune prune` with SIGKILL at random moments until it is through, and compare with an undisturbed run.

python tests/kill_and_resume.py 30 [METHOD]
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = ("weights.safetensors", "plan.json")


def prune(folder: Path, out: str, kill_after: float | None, method: str) -> float:
    """Seconds of one call, that is killed after some time or ends by itself."""
    code = "import torch; torch.set_num_threads(1); from actprune.cli.main import main; main()"
    words = ["prune", "recipe.py", "--method", method, "--keep", "macs=50%", "--out", out, "--resume"]
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, stdout=-3, stderr=-3) as process:
        try:
            assert process.wait(kill_after) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    return time.perf_counter() - started


def same_after(kills: int, folder: Path, method: str = "flap") -> int:
    """How many of so many runs, each killed once at a random moment and resumed, end as the undisturbed one."""
    seconds = prune(folder, "whole", None, method)
    whole = [(folder / "whole" / name).read_bytes() for name in FILES]
    moments, equal = random.Random(0), 0
    for n in range(kills):
        out = f"run{n}"
        prune(folder, out, moments.uniform(0.3, 1.0) * seconds, method)
        if not (folder / out).exists():
            prune(folder, out, None, method)
        equal += [(folder / out / name).read_bytes() for name in FILES] == whole
        assert not (folder / f"{out}.unfinished").exists() or (folder / out).exists()
    return equal


if __name__ == "__main__":
    from actprune.cli.init import init

    wanted = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        init(Path(place) / "recipe.py", "cnn")
        print(f"{same_after(wanted, Path(place), *sys.argv[2:3])} of {wanted} end with the same {' and '.join(FILES)}")
