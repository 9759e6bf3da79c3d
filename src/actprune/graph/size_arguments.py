"""Which sizes a call is given, and what each is the size of: one small reading for every way to write them."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

from torch import Tensor
from torch.utils import _pytree as pytree

from actprune.graph.numbers import TracedFloat, TracedInt

_RESULT = {*"view reshape expand broadcast_to zeros ones empty rand randn new new_zeros new_ones new_empty".split()}
FULL = {"full", "new_full"}
_REPEAT = {"repeat", "tile"}
NUMBER = {"tensor", "as_tensor"}
"""Functions that make a tensor of a number, which no cut may change."""

LIKE: dict[str, Any] = {"view_as": Tensor.view, "reshape_as": Tensor.reshape, "expand_as": Tensor.expand}
"""Methods that are given a tensor for its shape → those that are given the shape."""

Found: TypeAlias = "tuple[int, int, Any, tuple[Any, ...]]"
"""(slot, number of slots, value, role) with calls' own results and arguments left out of the role."""


def given_sizes(name: str, args: Any, kwargs: Any, result: Any) -> list[Found]:
    """The sizes among the arguments of a call of the function `name`."""
    if name == "normal" and (len(args) == 3 or "size" in kwargs):  # a mean and a deviation stand in front of the sizes
        args, name = args[2:], "randn"
    if name in _RESULT | FULL | _REPEAT and isinstance(result, Tensor):
        return _shape_of_result(name, args, kwargs, result)
    if name in NUMBER and args and isinstance(args[0], TracedInt):
        return [(0, 1, args[0], ("fixed",))]
    if name == "repeat_interleave" and any(isinstance(n, int) for n in (*args[1:2], kwargs.get("repeats"))):
        return _interleaved(*args, **kwargs)
    if name == "unflatten":
        dim, sizes = (*args[1:], *kwargs.values())[:2]
        dim %= args[0].dim()
        return [(i, len(sizes), n, ("size", 0, dim + i)) for i, n in enumerate(sizes) if n != -1]
    if name in ("split", "split_with_sizes"):
        return _split(args, kwargs)
    if name == "narrow":
        dim, start, length = (*args[1:], *kwargs.values())[:3]
        dim %= args[0].dim()
        found: list[Found] = [(1, 3, start, ("bound", dim))] if isinstance(start, int) else []
        return [*found, (2, 3, length, ("size", 0, dim))]
    if name in ("layer_norm", "rms_norm") and len(args) > 1 and isinstance(result, Tensor):
        sizes, rank = list(args[1]), result.dim()
        first = rank - len(sizes)
        return [(i, len(sizes), n, ("size", 0, first + i)) for i, n in enumerate(sizes) if isinstance(n, int)]
    if name == "__getitem__":
        return _bounds(args[0], args[1])
    if name == "pad":
        return _pads(args, kwargs)
    if name.startswith("sym_"):
        return []  # what a tracer asks of strides, as for `Variable(torch.zeros(…))`: given to nothing of the class
    if name.startswith("max_unpool"):
        return _unpooled(args, kwargs, result)
    groups = _groups(name, args, kwargs)
    if groups is not None:
        return [(-1, 0, groups, ("groups", 1))]
    traced = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, TracedInt | TracedFloat)]
    return [(-1, 0, value, ("fixed",)) for value in traced]


GROUPS = {"conv1d": 6, "conv2d": 6, "conv3d": 6, "group_norm": 1}
"""Functions that divide channels into groups → which argument says into how many."""


def _groups(name: str, args: Any, kwargs: Any) -> int | None:
    """The number of groups of a grouped convolution or norm."""
    place = GROUPS.get(name)
    if place is None or not args:
        return None
    given = args[place] if len(args) > place else kwargs.get("groups", kwargs.get("num_groups"))
    return given if isinstance(given, int) and given > 1 else None


def _shape_of_result(name: str, args: Any, kwargs: Any, result: Tensor) -> list[Found]:
    given = list(args[1:] if args and isinstance(args[0], Tensor) else args)
    given = given or [value for key, value in kwargs.items() if key in ("size", "shape", "sizes", "repeats")]
    if given and isinstance(given[0], tuple | list):
        given = list(given[0])
    elif name in FULL:
        return []
    sizes = [n for n in given if isinstance(n, int)]
    if len(sizes) != len(given) or len(sizes) != result.dim():
        return []
    several = _several(args[0], len(sizes)) if name in _REPEAT else {}
    return [
        (i, len(sizes), n, ("times", several[i]) if i in several else ("size", 0, i))
        for i, n in enumerate(sizes)
        if n != -1
    ]


def _several(source: Tensor, rank: int) -> dict[int, int]:
    """Dimension of a result of `repeat` → that of its source, where this has several entries.

    One entry, or a dimension that is new, is repeated as often as the size of the result says, whatever the source is:
    an input of the model as well, of which nothing is recorded.
    """
    entries: list[Any] = list(source.shape)
    return {dim + rank - len(entries): dim for dim, n in enumerate(entries) if not (isinstance(n, int) and n == 1)}


def repeats(result: tuple[int, ...] | None, source: tuple[int, ...] | None, dim: int, times: Any) -> bool:
    """Whether a result is so many times its source along that dimension of the source, as far as both are known."""
    if not result or not source:
        return True
    return result[dim + len(result) - len(source)] == source[dim] * times


def _unpooled(args: Any, kwargs: Any, result: Tensor) -> list[Found]:
    """The sizes of space: those of samples and channels (`unpool(x, places, output_size=y.size())`) are not read."""
    given = kwargs.get("output_size", args[5] if len(args) > 5 else args[2])
    rank = result.dim() - 2
    sizes: list[Any] = list(cast("Any", given))[-rank:] if isinstance(given, tuple | list) else []
    return [(-1, 0, n, ("size", 0, 2 + i)) for i, n in enumerate(sizes) if isinstance(n, TracedInt)]


def _interleaved(input: Tensor, repeats: int, dim: int | None = None, *, output_size: int | None = None) -> list[Found]:
    """How often each entry along a dimension stands in a row, and how many there are then; of all dimensions in a row
    only those of a list are known."""
    if dim is None and input.dim() != 1:
        return [(0, 0, repeats, ("fixed",))] if isinstance(repeats, TracedInt) else []
    dim = 0 if dim is None else dim % input.dim()
    found: list[Found] = [(0, 0, repeats, ("times", dim))]
    return found if output_size is None else [*found, (1, 0, output_size, ("size", 0, dim))]


def _split(args: Any, kwargs: Any) -> list[Found]:
    names = ("split_size", "split_size_or_sections", "split_sizes")
    sizes = args[1] if len(args) > 1 else next((kwargs[n] for n in names if n in kwargs), None)
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    dim %= args[0].dim()
    if isinstance(sizes, int):
        return [(0, 1, sizes, ("size", 0, dim))]
    parts: list[Any] = list(sizes or ())
    return [(i, len(parts), n, ("size", i, dim)) for i, n in enumerate(parts) if isinstance(n, int)]


def _pads(args: Any, kwargs: Any) -> list[Found]:
    """How many entries are put in front of a dimension and behind it; the last dimension comes first."""
    pads = args[1] if len(args) > 1 else kwargs["pad"]
    found: list[Found] = []
    for i, n in enumerate(pads):
        dim = args[0].dim() - 1 - i // 2
        first = args[0].shape[dim] + pads[i - 1] if i % 2 else 0
        if isinstance(n, int) and n > 0:
            found.append((i, len(pads), n, ("part", 0, dim, int(first), int(first + n))))
    return found


def _bounds(tensor: Tensor, index: Any) -> list[Found]:
    """The bounds of the slices in `x[…]`: slots count all of them, start before stop."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Tensor | list) for item in items):
        return []
    taken = sum(isinstance(item, int | slice) and not isinstance(item, bool) for item in items)
    found: list[Found] = []
    dim = 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            dim += tensor.dim() - taken
        elif isinstance(item, slice):
            for side, bound in enumerate((item.start, item.stop)):
                if isinstance(bound, int) and bound != 0:
                    # with a step, the start chooses one of the entries that lie in a row: no place among units
                    role = ("fixed",) if item.step not in (None, 1) and not side else ("bound", dim)
                    found.append((2 * position + side, 2 * len(items), bound, role))
            dim += 1
        elif isinstance(item, int):
            dim += 1
    return found
