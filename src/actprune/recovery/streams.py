"""Random numbers of a fine-tune: one stream for its data, the same on every rank, and others for what the model draws.

So a loader draws the same order whatever the model does meanwhile, a rank draws dropout of its own, and a fine-tune
that goes on from a checkpoint needs the state at the beginning of the epoch alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def states(loader: Iterable[Any]) -> dict[str, Any]:
    """The random states that loading draws from, as JSON values: Python's, NumPy's, torch's, and the loader's own."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "loader": [one.get_state().tolist() for one in _generators(loader)],
    }


def put_states(loader: Iterable[Any], told: dict[str, Any]) -> None:
    """Go on from what `states` gave."""
    version, words, gauss = told["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = told["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(torch.tensor(told["torch"], dtype=torch.uint8))
    for one, state in zip(_generators(loader), told["loader"], strict=True):
        one.set_state(torch.tensor(state, dtype=torch.uint8))


def _generators(loader: Iterable[Any]) -> list[torch.Generator]:
    """Those that a data loader and its sampler were given."""
    samplers = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    inner = getattr(samplers[2], "sampler", None)
    found = [getattr(one, "generator", None) for one in (*samplers, inner)]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
