"""The captured graph as a module with smaller tensors: for models whose own class can't be repaired.

Every size in the graph is rewritten as the axes predict it, the batch size is read from the input, and parameters keep
their names. The module trains (batch norms follow its mode) and exports like any other. What it loses is the class:
there is no dropout in it, and branches other than those of the capture are gone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from actprune.axes.capture import Graph
from actprune.axes.expr import Axis, Leaf, Product, blocks, leaves, place_after, size
from actprune.axes.twins import OPS
from actprune.graph.program import named_as, op_name
from actprune.plan import Plan
from actprune.rewrite import Rewrite, kept_units
from actprune.surgery.batch_sizes import BatchSizes, batch_sizes
from actprune.surgery.graph_names import check_names, with_keywords
from actprune.surgery.resized import RESIZED
from actprune.surgery.signature import calling
from actprune.surgery.tensors import held_in, sliced, tensor_slots

ATEN = torch.ops.aten


def as_graph(model: nn.Module, graph: Graph, plan: Plan, rewrite: Rewrite | None = None) -> GraphModule:
    """The network that `plan` leaves of `graph`, as a module of its own.

    Args:
        model: the dense model that was captured; left as it is.
        rewrite: dense-shaped tensors to slice instead of the model's own.

    Returns:
        A module that is called like `model`, with the model's names for its tensors. Any batch size will do where the
        capture had two samples or more. `torch.export` takes the arguments of a graph in the order of its `forward`,
        whatever their names: give them in that order, all of them.

    Raises:
        UnsupportedModelError: a module of the model has the name of an attribute of every graph ("graph", "meta").
    """
    check_names(sorted(graph.program.held), graph.program.model_name)
    return Builder(model, graph, plan, rewrite).build()


def with_values(network: nn.Module, graph: Graph, plan: Plan, names: Sequence[str]) -> GraphModule:
    """The same for looking inside a network that was cut by `plan`: it holds the very tensors of that network.

    Returns:
        A module from the flat inputs of a batch to a list: the flat outputs, then the results of the calls `names`.

    Raises:
        KeyError: the network lacks a tensor of the graph.
    """
    builder = Builder(network, graph, plan, None)
    builder.given = {name: held_in(slot) for name, slot in tensor_slots(network).items()}
    return builder.build(names).eval()


class Builder:
    """Copies the program node by node into a new graph."""

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan, rewrite: Rewrite | None) -> None:
        self.model, self.captured, self.plan = model, graph, plan
        self.program = graph.program
        self.overrides = rewrite.tensors if rewrite is not None else {}
        self.kept = kept_units(graph, plan)
        self.widths = {key: len(units) for key, units in self.kept.items()}
        self.root = nn.Module()
        self.graph = FxGraph()
        self.values: dict[Node, Any] = {}
        self.paths: dict[str, str] = {}
        self.batches: dict[int, Any] = {}
        self.given: Mapping[str, Tensor] | None = None
        self.numbers: BatchSizes | None = None

    def build(self, inside: Sequence[str] | None = None) -> GraphModule:
        """The module; one that returns the results of the calls `inside`, too, is called with flat inputs."""
        nodes = {node.name: node for node in self.program.nodes if node.op == "placeholder"}
        for placeholder in self.program.inputs:  # one for each leaf of the arguments
            self.values[nodes[placeholder]] = self.graph.placeholder(placeholder)
        for name, axis in self.captured.batches:  # their sizes are read from the inputs when the module runs
            self.batches[axis.key] = self.graph.call_function(ATEN.sym_size.int, (self.values[nodes[name]], 0))
        if self.batches and self.given is None:
            self.numbers = batch_sizes(self.model, self.program)
        for node in self.program.nodes:
            if node.op == "placeholder" and node not in self.values:
                self.values[node] = self._held(self.program.bindings[node.name])
            elif node.op == "get_attr":
                self.root.add_module(node.name, self.program.subgraphs[node.name])
                self.values[node] = self.graph.get_attr(node.name)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        for name in sorted(self.program.held - self.paths.keys()):  # what no call reads: a state dict still fits
            self.graph.get_attr(self._tensor(name))  # else the module would not have it
        outputs = [self.values[out] if isinstance(out, Node) else out for out in self.program.outputs]
        if inside is None:
            self.graph.output(outputs)
            self.graph.set_codegen(calling(self.model, self.program))
        else:
            calls = {node.name: node for node in self.program.nodes}
            self.graph.output([*outputs, *(self.values[calls[name]] for name in inside)])
        for read in self.batches.values():
            if not read.users:
                self.graph.erase_node(read)
        self.graph.on_generate_code(lambda _: with_keywords)
        made = GraphModule(self.root, self.graph, class_name=f"{self.program.model_name}Graph")
        return made.train(self.model.training)

    def _held(self, name: str) -> Any:
        """What stands for a tensor; None for a mask, which the cut makes needless, and a number for a mere gain."""
        mask = self.captured.masks.get(name)
        if mask is None:
            return self.graph.get_attr(self._tensor(name))
        return None if mask.ones.dim() else float(mask.values(self.kept, lifted=True))

    def _tensor(self, name: str) -> str:
        """Give the module a tensor of the model, sliced; its path."""
        if name in self.paths:
            return self.paths[name]
        path = name if name in self.program.held else f"constants.{name.replace('.', '_')}"
        if self.given is not None:  # nobody asks for the names
            path = f"constants.{len(self.paths)}"
        if name in self.program.held and self.given is not None:
            new = self.given[name]
        elif name in self.program.held:
            source = self.overrides.get(name, self.program.tensors[name])
            new = sliced(source, self.plan.indices(name)).to(self.program.tensors[name].dtype)
        else:
            new = self.program.tensors[name].detach().clone()
        self.paths[name] = path
        where = self.root
        *parents, last = path.split(".")
        for parent in parents:
            if parent not in where._modules:
                where.add_module(parent, nn.Module())
            where = where.get_submodule(parent)
        if name in self.program.parameters:
            own = new if isinstance(new, nn.Parameter) else nn.Parameter(new, self.program.tensors[name].requires_grad)
            where.register_parameter(last, own)
        else:
            where.register_buffer(last, new, persistent=name in self.program.persistent)
        return path

    def _call(self, node: Node) -> Any:
        if node.target is ATEN.mul.Tensor and any(self.values[a] is None for a in node.all_input_nodes):
            return self.values[cast("Node", node.args[0])]  # a mask
        target: Any = OPS.get(
            node.target, node.target
        )  # of the entries that stay an op itself makes what its twin does
        given = {name: value for name, value in node.kwargs.items() if target is node.target or name != "masks"}
        args, kwargs = (map_arg(a, self.values.__getitem__) for a in (node.args, given))
        found = RESIZED.get(op_name(node).removeprefix("aten.").partition(".")[0])
        if found is not None:
            resized, arguments = found(self, node, named_as(target, node))
            target = OPS.get(resized, resized)
            arguments = map_arg(arguments, lambda n: self.values.get(n, n))
            arguments = self._sized(arguments, node, lambda call: named_as(call.target, call))
            schema = target._schema.arguments
            args = tuple(arguments[a.name] for a in schema if not a.kwarg_only)
            kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        else:
            args, kwargs = self._sized(args, node, lambda n: n.args), self._sized(kwargs, node, lambda n: n.kwargs)
        made = self.graph.call_function(target, cast("Any", args), cast("Any", kwargs))
        made.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
        return made

    def _sized(self, made: Any, node: Node, arguments: Callable[[Node], Any]) -> Any:
        """With the numbers that are batch sizes, beyond what the axes tell."""
        others = self.numbers.others.get(node.name) if self.numbers is not None else None
        if self.numbers is None or others is None:
            return made
        seen, first = tuple(map(arguments, others)), next(iter(self.batches.values()))
        return self.numbers.followed(made, arguments(node), seen, first, self.graph.call_function)

    # -- sizes, for the table in `resized` ---------------------------------------------------------

    def size(self, axis: Axis) -> Any:
        """The size of an axis after the cut: a number, or a node that computes it from the batch size."""
        if self.batches.keys().isdisjoint(leaf.key for leaf in leaves(axis)):
            return size(axis, self.widths)
        if isinstance(axis, Leaf):
            return self.batches[axis.key]
        op = operator.mul if isinstance(axis, Product) else operator.add
        parts = [self.size(part) for part in axis.parts]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.call_function(op, (total, part))
        return total

    def dims(self, node: Any, result: int | None = None) -> tuple[Axis, ...]:
        found = self.captured.sizes(node.name)
        return found if isinstance(found, tuple) else found[result or 0]

    def results(self, node: Node) -> int:
        found = self.captured.sizes(node.name)
        return len(found) if isinstance(found, list) else 1

    def bound(self, axis: Axis, place: Any) -> Any:
        """A bound of a slice after the cut."""
        return place_after(axis, place, self.kept) if isinstance(place, int) else place

    def groups(self, axis: Axis, count: int) -> int:
        """How many of the outermost `count` groups of an axis remain."""
        return blocks(axis, size(axis) // count, self.widths)
