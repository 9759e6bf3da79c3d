"""A recurrent call taken apart, layer by layer and direction by direction: what each weight reads at every step.

In front of the gates stand W_ih x_t + b_ih and W_hh h_{t−1} + b_hh, linear in the input and in the hidden state; where
there is a projection, h_t = W_hr (o_t ∘ tanh c_t).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from actprune.graph.program import named_arguments, op_name, shape

INTO, BACK, INTO_BIAS, BACK_BIAS, PROJECTION = range(5)
"""The places of W_ih, W_hh, their biases and W_hr in `Part.params`."""

WEIGHTS = (INTO, BACK, PROJECTION)

Params = tuple[Tensor | None, ...]
"""The five tensors of a part; None for those that it lacks."""

States = Sequence[Tensor]
"""Initial states (N, H) of a part: h, and c of an LSTM."""


@dataclass(frozen=True, eq=False)
class Part:
    """One layer in one direction, or one cell. All its values are (N, T, …), in the order in which it takes the steps.

    Attributes:
        op: the ATen call.
        nodes: what gives each of the five parameters in the graph.
        params: their values.
        backward: whether it begins at the last step.
    """

    op: Any
    nodes: tuple[Node | None, ...]
    params: Params
    backward: bool

    @property
    def kind(self) -> str:
        """ "lstm", "gru", "rnn_tanh" or "rnn_relu"."""
        return str(self.op).split(".")[1].removesuffix("_cell")

    def __call__(self, x: Tensor, states: States, params: Params | None = None) -> Tensor:
        """(N, T, H) the hidden states after every step of x (N, T, I)."""
        held = self.params if params is None else params
        if _is_cell(self.op):
            result = self.op(x[:, 0], list(states) if len(states) > 1 else states[0], *held[:PROJECTION])
            return (result[0] if isinstance(result, tuple) else result)[:, None]
        op = getattr(torch.ops.aten, self.kind).input  # also of a packed call, whose samples are padded here
        stacked = [state[None].contiguous() for state in states]
        given, biases = [tensor for tensor in held if tensor is not None], held[INTO_BIAS] is not None
        return op(x, stacked if len(stacked) > 1 else stacked[0], given, biases, 1, 0.0, False, False, True)[0]

    def before(self, states: States, hidden: Tensor) -> Tensor:
        """(N, T, H) the hidden states before every step, which W_hh reads."""
        return torch.cat([states[0][:, None], hidden[:, :-1]], 1)

    def cells(self, x: Tensor, states: States, hidden: Tensor, params: Params | None = None) -> Tensor:
        """(N, T, H) o ∘ tanh c after every step, which the projection of an LSTM reads."""
        held = self.params if params is None else params
        gates = preactivation(x, held, INTO) + preactivation(self.before(states, hidden), held, BACK)
        i, f, g, o = gates.chunk(4, -1)
        added, forget = i.sigmoid() * g.tanh(), f.sigmoid()
        cell, found = states[1], list[Tensor]()
        for step in range(x.shape[1]):
            cell = forget[:, step] * cell + added[:, step]
            found.append(cell)
        return o.sigmoid() * torch.stack(found, 1).tanh()

    def reads(self, x: Tensor, states: States, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The place of every weight, and the rows (N, T, columns) that it is multiplied with."""
        yield INTO, x
        yield BACK, self.before(states, hidden)
        if self.params[PROJECTION] is not None:
            yield PROJECTION, self.cells(x, states, hidden)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A recurrent call on one batch.

    Attributes:
        x: (N, T, I) its input.
        layers: the parts of every layer, one per direction.
        states: of every part, in the same order.
        lengths: (N,) the steps of every sample of a packed call, which are the first ones of every part; what stands
            behind them says nothing. None: all have T.
    """

    x: Tensor
    layers: tuple[tuple[Part, ...], ...]
    states: tuple[States, ...]
    lengths: Tensor | None = None

    @property
    def there(self) -> Tensor | None:
        """(N, T) whether a sample has that step; None: every one."""
        return None if self.lengths is None else _there(self.lengths, self.x.shape[1])

    def steps(self) -> Iterator[tuple[Part, Tensor, States, Tensor]]:
        """Every part with its input, its initial states and its hidden states."""
        x, states = self.x, iter(self.states)
        for layer in self.layers:
            found: list[Tensor] = []
            for part in layer:
                own, start = turned(part, x, self.lengths), next(states)
                found.append(part(own, start))
                yield part, own, start, found[-1]
            x = joined(layer, found, self.lengths)


def is_recurrent(node: Node) -> bool:
    """Whether a call is one that `unroll` takes apart."""
    return op_name(node).startswith(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"))


def is_cell(node: Node) -> bool:
    """Whether a recurrent call takes one step."""
    return _is_cell(node.target)


def input_of(node: Node) -> Node:
    """What gives the input of a recurrent call: x, or the rows of packed samples."""
    own = named_arguments(node)
    return own["data"] if "batch_sizes" in own else own["input"]


def unroll(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Unrolled:
    """A recurrent call on the arguments of one batch."""
    own = named_arguments(node)
    given = own | dict(zip(own, args, strict=False)) | dict(kwargs or {})
    x, lengths, held = *_padded(given), given["hx"]
    states = [held] if isinstance(held, Tensor) else list(held)
    if is_cell(node):
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        part = Part(node.target, (*(own[n] for n in names), None), (*(given[n] for n in names), None), False)
        return Unrolled(x[:, None], ((part,),), (tuple(states),))
    directions, count = 2 if given["bidirectional"] else 1, int(given["num_layers"])
    each, biased = len(given["params"]) // (count * directions), bool(given["has_biases"])
    parts = [
        Part(
            node.target,
            _five(own["params"][i * each : (i + 1) * each], biased),
            _five(given["params"][i * each : (i + 1) * each], biased),
            i % directions == 1,
        )
        for i in range(count * directions)
    ]
    layers = tuple(tuple(parts[i : i + directions]) for i in range(0, len(parts), directions))
    starts = tuple(tuple(state[i] for state in states) for i in range(len(parts)))
    return Unrolled(x if given.get("batch_first", True) else x.transpose(0, 1), layers, starts, lengths)


def batch_dim(node: Node) -> int | None:
    """The dimension of a recurrent call's input that holds the samples; None where they are packed."""
    own = named_arguments(node)
    if "batch_sizes" in own:
        return None
    return 0 if is_cell(node) or own["batch_first"] else 1


def samples_of(node: Node, batch_size: int) -> int:
    """How many sequences a recurrent call has in a batch of so many samples: packed ones are as many. Time may come
    first, and a batch be a single sequence."""
    dim = batch_dim(node)
    return batch_size if dim is None else shape(input_of(node))[dim]


def turned(part: Part, x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (N, T, …) in the order of a part's steps; its own inverse."""
    if not part.backward or lengths is None:
        return x.flip(1) if part.backward else x
    there = _there(lengths, x.shape[1])
    steps = torch.arange(x.shape[1], device=x.device)
    places = torch.where(there, lengths[:, None] - 1 - steps, steps)
    return x.take_along_dim(places.view(*places.shape, *[1] * (x.dim() - 2)), 1)


def joined(layer: Sequence[Part], hidden: Sequence[Tensor], lengths: Tensor | None) -> Tensor:
    """What a layer gives on: the hidden states of its directions beside each other."""
    return torch.cat([turned(part, own, lengths) for part, own in zip(layer, hidden, strict=True)], -1)


def _padded(given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The input of a call, and the lengths of samples that are packed: the longest first, then (N, T, I)."""
    if "batch_sizes" not in given:
        return given["input"], None
    x, lengths = pad_packed_sequence(PackedSequence(given["data"], given["batch_sizes"]), batch_first=True)
    return x, lengths.to(x.device)


def _there(lengths: Tensor, steps: int) -> Tensor:
    """(N, steps) whether a sample has that step."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def preactivation(rows: Tensor, params: Params, place: int) -> Tensor:
    """(N, T, outputs) a weight times its rows, with its bias."""
    weight, bias = params[place], None if place == PROJECTION else params[place + INTO_BIAS]
    if weight is None:
        raise ValueError("the part has no such weight")
    return F.linear(rows, weight, bias)


def _five(held: Sequence[Any], biased: bool) -> tuple[Any, ...]:
    """Where there is a projection it comes last."""
    into, back, *rest = held
    biases = tuple(rest[:2]) if biased else (None, None)
    return (into, back, *biases, rest[-1] if len(rest) % 2 else None)


def _is_cell(op: Any) -> bool:
    return "_cell" in str(op)
