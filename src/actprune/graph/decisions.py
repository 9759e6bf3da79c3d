"""Which tensors of a recording hold numbers of the class alone, and end as a yes or no or as numbers again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class Decisions:
    """What is computed from such tensors, call by call.

    Args:
        found: a tensor → the call that gave it and which of its results it is; None of the network's own tensors.
    """

    def __init__(self, found: Callable[[Tensor], tuple[int, int] | None]) -> None:
        self._found = found
        self._readers: dict[int, set[int]] = {}
        self._ends: set[int] = set()
        self._beyond: set[int] = set()

    def note(self, call: int, name: str, given: Any, result: Any) -> None:
        """Which calls read the tensors of which, as far as these hold numbers of the class alone.

        They are followed until they meet the network's own tensors, are written somewhere, or become numbers again.
        """
        read = [self._found(value) for value in pytree.tree_leaves(given) if isinstance(value, Tensor)]
        for key in filter(None, read):
            self._readers.setdefault(key[0], set()).add(call)
        if isinstance(result, bool):
            self._ends.add(call)
        written = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in given[1]
        met = any(key is None or key[0] in self._beyond for key in read)
        if written or met or not all(isinstance(value, Tensor | bool) for value in pytree.tree_leaves(result)):
            self._beyond.add(call)

    def note_number(self, tensor: Tensor) -> None:
        """What was read of a tensor is a number that has a record of its own."""
        if (key := self._found(tensor)) is not None:
            self._ends.add(key[0])

    def are_all(self, call: int) -> bool:
        """Whether all that is computed from the result of a call ends as such a number, or as a yes or no, by which the
        class branches.

        A heuristic may put sizes into a tensor to choose a kernel. The proof sees a branch that changes with them.
        """
        seen, waiting = set[int](), [call]
        while waiting:
            now = waiting.pop()
            readers = self._readers.get(now, set[int]())
            if now in self._beyond or not (readers or now in self._ends):
                return False
            seen.add(now)
            waiting += readers - seen
        return True
