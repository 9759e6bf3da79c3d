"""Recurrent networks: every layer and direction of a call has hidden units of its own, and equally many of them stay.

One number, `hidden_size`, counts them all. The rows of a weight are its gates times the hidden units. Cutting a unit
leaves the others as they are: it only stands in sums, those of the weights that read it. A state is a stack with a
slice for each layer and direction (see `stacks`); where one is read as a whole, by other calls than another recurrent
one, all its slices have the same units.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from actprune.axes.call import Call, rule
from actprune.axes.expr import Axis, concat, size
from actprune.axes.site import Dims
from actprune.axes.stacks import Stack
from actprune.graph.program import op_name

_ZEROS = ("aten.zeros.", "aten.new_zeros.")


@rule(
    "aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input",
    "aten.lstm.data", "aten.gru.data", "aten.rnn_tanh.data", "aten.rnn_relu.data",
)  # fmt: skip
def recurrent(call: Call) -> list[Dims]:
    """input (T, N, I), (N, T, I) or packed (steps, I), hx (layers · directions, N, H) → (…, directions · H), states."""
    source = call.axes(call.values[0])
    states: list[Node] = [call["hx"]] if isinstance(call["hx"], Node) else list(call["hx"])
    call.freeze(source[1 if call["batch_first"] else 0], "stepped through")
    directions = 2 if call["bidirectional"] else 1
    weights = _weights(call, len(call["params"]) // (int(call["num_layers"]) * directions))
    units = [_hidden(call, own) for own in weights]
    inner, rows = source[-1], source[:-1]
    for start in range(0, len(weights), directions):
        layer = range(start, start + directions)
        for i in layer:
            _layer(call, weights[i], inner, *units[i], rows)
        inner = concat(units[i][1] for i in layer)
    results: list[Dims] = []
    for i, state in enumerate(states):
        own = [hidden if i else given for hidden, given in units]  # cells stand in front of a projection
        call.counts(own)
        stack, batch = _given(call, state, own)
        results.append((stack, batch, call.algebra.resolve(own[0])))
        _stack(call, 1 + i, [(stack, batch, axis) for axis in own])
    return [(*rows, inner), *results]


def _given(call: Call, state: Node, units: Sequence[Axis]) -> tuple[Axis, Axis]:
    """The axes of layers and of samples of an initial state, whose slices get these units. Zeros have any."""
    given = call.stack(state)
    if given is not None and given.dim == 0 and len(given.slices) == len(units):
        layers, batch, _ = given.slices[0]
        for dims, own in zip(given.slices, units, strict=True):
            call.unify(dims[-1], own)
    else:
        layers, batch, axis = call.axes(state)
        for own in units[:1] if _is_zero(state) else units:
            call.unify(axis, own)
    call.freeze(layers, "stacked layers")
    return layers, batch


def _is_zero(state: Node) -> bool:
    return state.op == "call_function" and op_name(state).startswith(_ZEROS)


def _stack(call: Call, result: int, slices: Sequence[Dims]) -> None:
    """Say of a state that its slices have these axes."""
    for user in call.node.users if len(slices) > 1 else ():
        if user.target is operator.getitem and user.args[1] == result:
            call.inference.stacks[user] = Stack(0, slices)


def _weights(call: Call, count: int) -> list[list[Any]]:
    """Per layer and direction: input weight, hidden weight, their biases if any, the projection if any."""
    params = list(call["params"])
    return [params[i : i + count] for i in range(0, len(params), count)]


def _hidden(call: Call, own: list[Any]) -> tuple[Axis, Axis]:
    """The hidden units of a layer in one direction, and those that it gives on: others where there is a projection."""
    given = call.axes(own[1])[1]
    projected = len(own) % 2 == 1
    return (call.axes(own[-1])[1] if projected else given), given


def _layer(call: Call, own: list[Any], inner: Axis, hidden: Axis, given: Axis, rows: Dims) -> None:
    """Tie one layer in one direction to its input and the units, and note what it reads and makes.

    Args:
        own: its parameters.
        inner: the axis of its input.
        rows: the samples and steps.
    """
    into, back, *rest = own
    call.unify(call.axes(into)[1], inner)
    call.unify(call.axes(back)[1], given)
    for value in (into, back, *rest[:2][: len(rest) // 2 * 2]):
        gates, units = call.algebra.split(
            call.axes(value)[0], [size(call.axes(value)[0]) // size(hidden), size(hidden)], call.where
        )
        call.freeze(gates, "gates")
        call.unify(units, hidden)
    biases = rest[:2] if len(rest) > 1 else (None, None)
    for weight, bias in zip((into, back), biases, strict=True):
        call.site("recurrent", weight, bias, in_dim=1, out_dim=0)
        call.macs([*rows, *call.axes(weight)])
    if len(own) % 2:
        projection = call.axes(own[-1])
        call.unify(projection[0], given)
        call.unify(projection[1], hidden)
        call.site("recurrent", own[-1], None, in_dim=1, out_dim=0)
        call.macs([*rows, *projection])


@rule("aten._pack_padded_sequence")
def packed(call: Call) -> list[Dims]:
    """input (T, N, I) or (N, T, I) → the steps of all samples (steps, I), and how many samples take each step (T,)."""
    *_, units = call.axes(call["input"])
    return [(_count(call, 0), units), (_count(call, 1),)]


@rule("aten._pad_packed_sequence")
def padded(call: Call) -> list[Dims]:
    """data (steps, I) → (T, N, I) or (N, T, I), and how long each sample is (N,)."""
    steps, units = call.axes(call["data"])
    call.freeze(steps, "stepped through")
    first, second, _ = call.node.meta["val"][0].shape
    return [(*(call.fixed(int(n), "stepped through") for n in (first, second)), units), (_count(call, 1),)]


def _count(call: Call, result: int) -> Axis:
    return call.fixed(int(call.node.meta["val"][result].shape[0]), "stepped through")


@rule("aten.lstm_cell")
def lstm_cell(call: Call) -> list[Dims]:
    """input (N, I), states (N, H) and (N, H) → two new states."""
    return [_cell(call, list(call["hx"]))] * 2


@rule("aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def cell(call: Call) -> Dims:
    return _cell(call, [call["hx"]])


def _cell(call: Call, states: list[Node]) -> Dims:
    *rows, inner = call.axes(call["input"])
    hidden = call.axes(call["w_hh"])[1]
    own = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    _layer(call, own, inner, hidden, hidden, tuple(rows))
    for state in states:
        call.unify(call.axes(state)[-1], hidden)
    return (*rows, call.algebra.resolve(hidden))
