"""Which tensor of the model a weight is, when it reaches a call: transposed, reshaped, computed from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch.fx import Node

from actprune.graph.program import op_name, shape

_MAYBE_ALIKE = ("aten.reshape.", "aten.view.", "aten._unsafe_view.", "aten.expand.")
"""Calls that may leave every dimension as it is."""

_JOINING = ("aten.reshape.", "aten.view.", "aten._unsafe_view.", "aten.flatten.")
"""Calls that may make one dimension of several."""

_ROUNDED = ("aten.fake_quantize_per_", "aten.fused_moving_avg_obs_fake_quant.")
"""Calls that leave entries about what they are, and those of zero at zero."""

_COPIED = ("aten.to.", "aten._to_copy.", "aten.type_as.", "aten.clone.", "aten.contiguous.")
"""Copies, and casts between types of floats: `F.linear(x, self.weight.to(x.dtype))`."""


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """The tensors of the state dict that a program reads.

    Attributes:
        names: placeholder → name of its tensor.
    """

    names: dict[Node, str] = field(default_factory=dict[Node, str])

    def find(self, value: Any) -> tuple[str, list[int]] | None:
        """The tensor of the state dict that `value` is: its name, and which dimension of it each dim is.

        Transposes are seen through, and reshapes and expansions that do no more than one, as those that `matmul` makes
        of its operands below autograd; and fake quantisation, copies, other types of floats.
        """
        if not isinstance(value, Node):
            return None
        if value in self.names:
            return self.names[value], list(range(len(shape(value))))
        if op_name(value).startswith(_ROUNDED):
            return self.find(value.args[0])
        if op_name(value).startswith(_COPIED) and _is_float(value) and _is_float(value.args[0]):
            return self.find(value.args[0])
        if op_name(value).startswith(_MAYBE_ALIKE):
            return self._alike(value)
        turned = _turned(value)
        below = self.find(value.args[0]) if turned is not None else None
        return None if below is None or turned is None else (below[0], [below[1][d] for d in turned])

    def _alike(self, value: Node) -> tuple[str, list[int]] | None:
        """Of a reshape that only moves dimensions of size 1, as that of Keras's depthwise kernels (h, w, C, 1)."""
        below = self.find(value.args[0])
        before, after = shape(value.args[0]), shape(value)
        if below is None or len(before) != len(after) or [n for n in before if n > 1] != [n for n in after if n > 1]:
            return None
        wide, narrow = ([d for d, n in enumerate(before) if (n > 1) is is_wide] for is_wide in (True, False))
        return below[0], [below[1][wide.pop(0) if n > 1 else narrow.pop(0)] for n in after]

    def joined(self, value: Any) -> tuple[str, list[tuple[int, ...]]] | None:
        """A matrix each of whose two dimensions is several of a stored tensor, one behind the other, as one.

        So `canonical` has a projection that contracts heads and their size at once, and one that makes them; and so
        a class may give a linear layer several numbers for each unit (`w.view(len(w), -1)`).

        Returns:
            (name of the tensor, its dimensions for each of the matrix), or None.
        """
        if not isinstance(value, Node) or len(shape(value)) != 2:
            return None
        turned = _turned(value)
        if turned is not None:
            below = self.joined(value.args[0])
            return None if below is None else (below[0], [below[1][d] for d in turned])
        found = self.find(value.args[0]) if op_name(value).startswith(_JOINING) else None
        if found is None or found[1] != sorted(found[1]):
            return None
        sizes = shape(value.args[0])
        first = next((k for k in range(1, len(sizes)) if (prod(sizes[:k]), prod(sizes[k:])) == shape(value)), None)
        return None if first is None else (found[0], [tuple(range(first)), tuple(range(first, len(sizes)))])

    def flattened(self, value: Any) -> tuple[str, list[int]] | None:
        """A stored tensor that `value` is as one vector: the bias of such a projection."""
        reshape = isinstance(value, Node) and op_name(value).startswith("aten.reshape.") and len(shape(value)) == 1
        return self.find(value.args[0]) if reshape else None

    def made_of(self, value: Any) -> tuple[str, list[int]] | None:
        """The tensor of the state dict that a value may be computed from, entry by entry, as `find` gives it.

        Calls are seen through by shape alone, transposes as what they are: whether dimensions are really the same ones
        the axes know.
        """
        order = list(range(len(shape(value)))) if isinstance(value, Node) else []
        while isinstance(value, Node):
            found = self.find(value)
            if found is not None:
                return found[0], [found[1][d] for d in order]
            if (turned := _turned(value)) is not None:
                order, value = [turned[d] for d in order], value.args[0]
            else:
                value = next((n for n in value.all_input_nodes if shape(n) == shape(value)), None)
        return None

    def made_alone(self, value: Any) -> bool:
        """Whether a value is computed from tensors of the state dict and numbers alone, as one matrix of several."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop()
            if node in self.names:
                continue
            if not isinstance(node, Node) or node.op != "call_function":
                return False
            waiting += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
        return not self.names.keys().isdisjoint(seen)


def _is_float(node: Any) -> bool:
    return isinstance(node, Node) and node.meta["val"].is_floating_point()


def _turned(node: Node) -> list[int] | None:
    """Which dimension of its argument each one of a transpose or permute is; None for any other call."""
    base = op_name(node).split(".")[1] if op_name(node).startswith("aten.") else ""
    order = list(range(len(shape(node))))
    match base:
        case "permute":
            dims: Any = node.args[1]
            return [int(d) % len(order) for d in dims]
        case "transpose" | "mT":
            pair: Any = node.args[1:3] or (-2, -1)
            a, b = (int(d) % len(order) for d in pair)
            order[a], order[b] = order[b], order[a]
            return order
        case "t" | "numpy_T":
            return order[::-1]
        case _:
            return None
