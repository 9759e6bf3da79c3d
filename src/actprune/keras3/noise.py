"""Keras seeds a generator for every call that draws numbers, with a count that it keeps: no tracer follows that, and
no proof can draw the same again. So in the network's own calls it draws from torch's, which every stage seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actprune.keras3.threads import across_threads


@across_threads
@contextmanager
def torchs_generator() -> Iterator[None]:
    """Within it, what Keras draws comes from torch's generator."""
    from keras.src.backend.torch import random  # there is no public way in

    seeded = random.torch_seed_generator
    random.torch_seed_generator = lambda seed: None  # as Keras does where there are no values
    try:
        yield
    finally:
        random.torch_seed_generator = seeded
