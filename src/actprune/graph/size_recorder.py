"""Records every size that a forward pass gives to a call, while the model is captured: see `sizes`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import sys
import types
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import torch
import torch.fx.traceback as annotations
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from actprune.graph.attending import OF_ANY_WIDTH
from actprune.graph.decisions import Decisions
from actprune.graph.frames import definer, holder_of, is_kerass, is_librarys, owner_of, span_of, users_line
from actprune.graph.named_sizes import Key, Named
from actprune.graph.number_tensors import NumberTensors
from actprune.graph.numbers import Expr, TracedInt, compared, expression, plain
from actprune.graph.older import in_words_of_today, true_types
from actprune.graph.rebuilt import LINE, Rebuilt, running
from actprune.graph.size_arguments import LIKE, given_sizes
from actprune.graph.sizes import CALL, INSISTS, Place, Sizes, SizeUse
from actprune.graph.traced_attributes import (
    Attributes,
    Owners,
    is_builtin,
    traced_attributes,
    traced_roots,
    uncached_einops,
)
from actprune.graph.traced_int import traced_int
from actprune.graph.traced_range import traced_range
from actprune.hints import hint_for

_KERAS_ALIKE = {"reshape", "broadcast_to", "zeros", "ones", "full"}
"""Functions of `keras.ops` that hand on the sizes that they are given to torch's of the same name."""


class Recorder(TorchFunctionMode):
    """Notes every call inside one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = 0
        self.attributes: Attributes = {}
        self.owners: Owners = {}
        self._uses: list[SizeUse] = []
        self._slicing: dict[int, int] = {}  # number of a use that bounds a slice -> its call
        self._seen: dict[tuple[Key | str, int], int] = {}  # (tensor, dimension) -> a size that was read off it
        self._known: dict[int, tuple[Key, weakref.ref[Tensor]]] = {}
        self._came_from: dict[int, Key] = {}
        self._decisions = Decisions(self._found)
        self._numbers = NumberTensors(self._decisions.note_number)
        self._instead: tuple[str, Place] | None = None
        self._through: str | None = None
        self._parameters: dict[int, str] | None = None
        self._rebuilt = isinstance(model, Rebuilt)
        modules = running(model)
        self._hinted = {path for path, module in modules.items() if hint_for(module) is not None}
        self._layers = {path for path, module in modules.items() if is_builtin(module)}
        self._paths = {id(vars(module)): path for path, module in modules.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == Tensor.shape.__get__:  # type: ignore[attr-defined]
            return self._traced_shape(args[0], func(*args))
        if name == "size" and func == Tensor.size:
            result = func(*args, **kwargs)
            return self._traced_shape(args[0], result, *args[1:], *kwargs.values())
        if name in ("numel", "nelement") and args:
            return functools.reduce(operator.mul, self._traced_shape(args[0], args[0].shape), 1)
        if name in ("item", "tolist") and (numbers := self._numbers.read(args[0])) is not None:
            return numbers
        if name == "__getitem__":
            args = (args[0], self._numbers.within(args[1]))
        if name == "repeat_interleave":
            args = self._numbers.times(args)
        if name in LIKE and len(args) == 2:
            func, name = LIKE[name], LIKE[name].__name__
            args = (args[0], self._traced_shape(args[1], args[1].shape))
        args = true_types(name, args)
        if func in OF_ANY_WIDTH and (found := self._of_any_width(func, args, kwargs)) is not NotImplemented:
            return found
        self.calls += 1
        call = self.calls
        with annotations.annotate({CALL: call, LINE: users_line(sys._getframe(1)) if self._rebuilt else None}):
            result = func(*args, **kwargs)
        self._decisions.note(call, name, (args, kwargs), result)
        self._note_results(call, args, result)
        self._numbers.note(name, args, result)
        for slot, count, value, role in given_sizes(name, args, kwargs, result):
            self._note(call, name, slot, count, value, role, args)
        return result

    def _of_any_width(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of a function that insists on the sizes of its weights, by the one that takes any.

        `NotImplemented` where that does not take the arguments, and in torch's own modules, which surgery adapts.
        """
        place = self._place()
        if "/torch/" in place.code.co_filename or self._instead is not None:
            return NotImplemented
        self._instead = func.__name__, place
        try:
            with self:
                result = OF_ANY_WIDTH[func](*args, **kwargs)
        finally:
            self._instead = None
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        weights = [value for name, value in given.items() if name.endswith("weight") and isinstance(value, Tensor)]
        for key, weight in ((self._key(weight), weight) for weight in weights if result is not NotImplemented):
            for d, n in enumerate(weight.shape if key is not None else ()):
                self._uses.append(SizeUse(n, n, ("size", key, d), func.__name__, INSISTS, -1, place))
        return result

    def _traced_shape(self, tensor: Tensor, shape: Any, *dim: int) -> Any:
        key = self._key(tensor)
        if key is None or any(not isinstance(n, int) for n in tensor.shape):
            return shape
        self._seen |= {(key, d): n for d, n in enumerate(tensor.shape)}
        if dim:
            return TracedInt(shape, ("shape", key, dim[0] % tensor.dim()))
        return torch.Size([TracedInt(n, ("shape", key, d)) for d, n in enumerate(shape)])

    def _key(self, tensor: Tensor) -> Any:
        """(call, output) of a computed tensor, or "@" and the name of a parameter."""
        known = self._found(tensor)
        if known is not None:
            return known
        if self._parameters is None:
            named = [*self.model.named_parameters(), *self.model.named_buffers()]
            self._parameters = {id(held): name for name, held in named}
        name = self._parameters.get(id(tensor))
        return None if name is None else f"@{name}"

    def _note_results(self, call: int, args: Any, result: Any) -> None:
        several = cast("list[Any]", result) if isinstance(result, tuple | list) else [result]
        first = next((a for a in pytree.tree_leaves(args) if isinstance(a, Tensor)), None)
        source = self._found(first) if first is not None else None
        if source is not None:
            self._came_from[call] = source
        for i, value in enumerate(several):
            if isinstance(value, Tensor):
                self._known[id(value)] = ((call, i), weakref.ref(value))

    def _found(self, tensor: Tensor) -> Key | None:
        """Which result this tensor is; a number may have been that of another one before."""
        known = self._known.get(id(tensor))
        return known[0] if known is not None and known[1]() is tensor else None

    def _note(self, call: int, op: str, slot: int, count: int, value: Any, role: tuple[Any, ...], args: Any) -> None:
        kind, *rest = role
        if kind in ("size", "part"):
            role = (kind, (call, rest[0]), *rest[1:])
        elif kind in ("bound", "times", "groups"):
            source = self._key(args[0])
            role = ("times", (call, 0), source, rest[0]) if kind == "times" else (kind, source, rest[0])
            if source is None and kind == "times":  # of an input, which stays as it is: the size of the result, then
                dim = rest[0] + max(count - args[0].dim(), 0)
                role, slot, value = ("size", (call, 0), dim), -1, value * args[0].shape[rest[0]]
            elif source is None:
                role = ("fixed", (call, 0))
        elif kind == "fixed":
            role = ("fixed", (call, 0))
        place = self._place()
        if self._instead is not None:
            (op, place), slot, count = self._instead, -1, -1
        elif self._through is not None and (self._through != op or op not in _KERAS_ALIKE):
            op, slot, count = self._through, -1, 0  # what the user's code gives is something else
        if place.module in self._hinted:
            return
        if place.module in self._layers and isinstance(expression(value), int):
            return  # of an attribute of the layer: surgery sets those by its tensors (the initial state of an LSTM)
        if kind == "bound":
            self._slicing[len(self._uses)] = call
        self._uses.append(SizeUse(plain(value), expression(value), role, op, slot, count, place))

    def note_equal(self, difference: Expr) -> None:
        """Two numbers that the user's class found to be equal (`assert x.shape[1] == self.channels`)."""
        if is_librarys(sys._getframe(2)):
            return
        place = self._place()
        if place.module not in self._hinted:
            self._uses.append(SizeUse(0, difference, ("equal", None), "==", -1, 0, place))

    def note_rounds(self, rounds: TracedInt) -> None:
        """Of a loop over parts of a dimension, whose step is a size."""
        if (place := self._place()).module not in self._hinted:
            self._uses.append(SizeUse(plain(rounds), expression(rounds), ("fixed", None), "range", -1, 0, place))

    def _place(self) -> Place:
        """The nearest frame of the user's, and the module that it runs for."""
        inner: FrameType = sys._getframe(3)
        self._through = None
        while is_librarys(inner) and inner.f_back is not None:
            self._through = inner.f_code.co_name if is_kerass(inner) else None
            inner = inner.f_back  # a function of torch's own that is written in Python, such as `torch.split`
        span, frame = span_of(inner), definer(inner)
        code, between = frame.f_code, list[FrameType]()
        while (owner := owner_of(frame)) is None:
            between.append(frame)
            if frame.f_back is None:
                return Place(None, code, (), span)
            frame = definer(frame.f_back)
        path = self._paths.get(id(vars(owner)))  # the tracer's stand-ins share their module's attributes
        callers = [frame, *reversed(between)]
        holder, first = next(((name, i) for i, f in enumerate(callers) if (name := holder_of(owner, f))), (None, 0))
        return Place(path, code, tuple(f.f_code for f in callers[first:-1]), span, holder)

    def result(self, graph: Graph) -> Sizes:
        """The record, with nodes of the captured graph in the place of call numbers; the graph gets plain numbers."""
        for node in graph.nodes:
            node.args, node.kwargs = map_aggregate(node.args, plain), map_aggregate(node.kwargs, plain)
        named = Named(graph, self._came_from, self._seen)
        uses = (
            named.use(use, self._slicing.get(i))
            for i, use in enumerate(self._uses)
            if use.role[0] != "fixed" or use.role[1] is None or not self._decisions.are_all(use.role[1][0])
        )
        return Sizes(tuple(use for use in uses if use is not None), dict(self.attributes), dict(self.owners))


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Record the forward pass of `model` inside this context; its attributes are put back, also after an error."""
    recorder = Recorder(model)
    original = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with recorder:  # inside the tracer's own mode, so that ours sees the call first
            return original.forward(self, *args, **kwargs)

    # a subclass, not an attribute: the tracer calls it on a stand-in for the model that knows modules by their names
    space = {"forward": functools.wraps(original.forward)(forward), "__module__": original.__module__}
    with (
        traced_attributes(model, recorder.attributes, recorder.owners),
        uncached_einops(),
        traced_roots(),
        traced_int(model),
        traced_range(model, recorder.note_rounds),
        compared(recorder.note_equal),
        in_words_of_today(),
        annotations.preserve_node_meta(),
    ):
        model.__class__ = types.new_class(original.__name__, (original,), exec_body=lambda body: body.update(space))
        try:
            yield recorder
        finally:
            model.__class__ = original
