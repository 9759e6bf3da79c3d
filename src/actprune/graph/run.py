"""The interpreter: runs a Program node by node on given inputs.

A candidate network is the program plus *overrides*: other tensors under the same names. Statistics observe this
interpreter, sensitivity and correction compare two runs of it, the proof runs it in float64. There are no
forward hooks anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from actprune.errors import CaptureError, DataError
from actprune.graph.ambience import users_modes
from actprune.graph.lift import IN_FLOAT64, lift
from actprune.graph.narrow import in_float32, slow_product
from actprune.graph.program import Batch, Program, place
from actprune.mapped import let_go

Observer = Callable[[Node, tuple[Any, ...], Any], None]
"""Called after every ATen call with the node, its positional arguments as values, and its result."""


def _hardsigmoid(x: Tensor) -> Tensor:
    """With a second derivative where one may be asked for; the op has none."""
    return torch.nn.functional.relu6(x + 3) / 6 if x.requires_grad else torch.ops.aten.hardsigmoid.default(x)


_INSTEAD: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.hardsigmoid.default: _hardsigmoid,
}
"""Op → what gives the same. A kernel may lay its result out in memory otherwise than the recorded one did (attention
under `sdpa_kernel`), hence the reshape."""


def run(
    program: Program,
    batch: Batch,
    overrides: Mapping[str, Tensor] | None = None,
    *,
    lifted: bool = False,
    observe: Observer | None = None,
    grad: bool = False,
    native: bool = False,
) -> tuple[Any, ...]:
    """The flat outputs of `program` on one flat batch (see `Program.flatten`).

    Args:
        overrides: tensor name → what to use instead of the model's own tensor.
        lifted: compute in float64 on the CPU.
        observe: sees every call; values are freed after their last use, so it must not need them later.
        grad: let autograd record the calls, for overrides that require gradients.
        native: make every call as the model does, also where another way is quicker (see `actprune.graph.narrow`).
    """
    values: dict[Node, Any] = dict(bound_values(program, batch, overrides or {}, lifted))
    dying = last_uses(program.nodes)
    with torch.set_grad_enabled(grad):
        for node in program.nodes:
            if node.op == "call_function":
                args, kwargs = arguments(node, values)
                values[node] = call(node, args, kwargs, lifted, native)
                if observe is not None:
                    observe(node, args, values[node])
            elif node.op == "output":
                return tuple(values[out] if isinstance(out, Node) else out for out in program.outputs)
            for dead in dying.get(node, ()):
                let_go((values.pop(dead, None),))
    return ()


def run_batch(program: Program, batch: Batch, number: int, observe: Observer | None = None) -> tuple[Any, ...]:
    """The same for calibration batch `number`, counted from 0, by the model's own tensors.

    Raises:
        CaptureError: a call that was recorded in one run can't be made again, not even with the first batch.
        DataError: a call can't be made with a batch behind the first: the graph holds a size that is another one there.
    """
    waiting = iter([node for node in program.nodes if node.op == "call_function"])
    here = [next(waiting, None)]

    def made(node: Node, args: tuple[Any, ...], value: Any) -> None:
        here[0] = None  # an error of the observer is none of this call
        if observe is not None:
            observe(node, args, value)
        here[0] = next(waiting, None)

    try:
        return run(program, batch, observe=made)
    except (IndexError, RuntimeError) as error:
        node = here[0]
        if node is None or isinstance(error, torch.OutOfMemoryError) or (number == 0 and program.source != "real"):
            raise
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        where = f"calibration batch {number + 1}, {place(node)}"
        if number == 0:
            raise CaptureError(
                "The captured calls don't run again.",
                expected="sizes that depend neither on values nor on random numbers: they were recorded in one run",
                got=got,
                where=where,
                hint="capture the part of the model whose sizes are always the same, or switch off what draws them",
            ) from error
        raise DataError(
            "A calibration batch does not fit the captured graph.",
            expected="the sizes of the first batch, on which the graph was captured, in every call",
            got=got,
            where=where,
            hint="how many rows the data picks (x[mask], nonzero) may differ between batches, but not where the number "
            "becomes a size: write rows.view(-1, …) and torch.ones_like(rows), or calibrate on one batch",
        ) from error


LayerObserver = Callable[[int, Node, tuple[Any, ...], Any], None]
"""The same, with the number of the batch first."""


def run_by_layers(
    program: Program, batches: Sequence[Batch], observe: LayerObserver, until: Node, done: Callable[[Node], None]
) -> None:
    """Run several batches through one call after another, so that each of the program's tensors is read once.

    Args:
        until: the last call that is made.
        done: told of each call once all batches are through.
    """
    values: dict[Node, list[Any]] = {}
    for batch in batches:
        for node, value in bound_values(program, batch, {}):
            values.setdefault(node, []).append(value)
    dying = last_uses(program.nodes)
    with torch.no_grad():
        for node in program.nodes:
            if node.op == "call_function":
                made = values.setdefault(node, [])
                for i in range(len(batches)):
                    args, kwargs = arguments(node, {source: values[source][i] for source in node.all_input_nodes})
                    value = call(node, args, kwargs)
                    observe(i, node, args, value)
                    made.append(value if node is not until else None)
                done(node)
                if node is until:
                    return
            for dead in dying.get(node, ()):
                let_go(values.pop(dead, ())[:1])


def bound_values(
    program: Program, batch: Batch, overrides: Mapping[str, Tensor], lifted: bool = False
) -> Iterator[tuple[Node, Any]]:
    """What each placeholder stands for: an input of the batch, a tensor of the model, its override, or a subgraph."""
    given = dict(zip(program.inputs, batch, strict=True))
    for node in program.nodes:
        if node.op == "placeholder":
            name = program.bindings.get(node.name)
            value = given[node.name] if name is None else overrides.get(name, program.tensors[name])
            # a parameter is lifted where it is used, so that only one at a time is held in float64
            yield node, lift(value) if lifted and name is None else value
        elif node.op == "get_attr":
            yield node, program.subgraphs[node.name]


def arguments(node: Node, values: Mapping[Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_arg(node.args, values.__getitem__), dict(map_arg(node.kwargs, values.__getitem__))  # type: ignore[arg-type]


def call(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], lifted: bool = False, native: bool = False
) -> Any:
    """One ATen call."""
    slow = None if lifted or native else slow_product(node, args)
    if slow is not None:
        return in_float32(node, args, kwargs, slow)
    if not lifted:
        return _INSTEAD.get(node.target, node.target)(*args, **kwargs)
    target: Any = IN_FLOAT64.get(node.target, node.target)
    return lift(target(*lift(args), **lift(dict(kwargs))))


def last_uses(order: Iterable[Node]) -> dict[Node, list[Node]]:
    """Node → the values that it reads and that no later one of these reads."""
    last = {source: node for node in order for source in node.all_input_nodes}
    dying: dict[Node, list[Node]] = {}
    for source, node in last.items():
        dying.setdefault(node, []).append(source)
    return dying


def run_all(
    program: Program, batches: Iterable[Batch], overrides: Mapping[str, Tensor] | None = None
) -> list[tuple[Any, ...]]:
    """The outputs of every batch."""
    return [run(program, batch, overrides) for batch in batches]


def called(network: nn.Module, program: Program, batch: Batch) -> tuple[Any, ...]:
    """The flat outputs of a network itself, on the flat inputs of its program."""
    args, kwargs = pytree.tree_unflatten(list(batch), program.in_spec)
    with users_modes():
        return tuple(pytree.tree_leaves(network(*args, **kwargs)))
