"""The second tracer, for what export refuses: the model runs once on real tensors, and its calls are recorded.

Branches on values, sizes read from tensors and masks are followed as the example takes them, so the graph is
specialised to it. Where Python code reads a whole tensor (`.numpy()`, `.tolist()`) what it computes from that
can't be seen: a call without a rule is left there, which freezes the axes of what was read.
"""

from __future__ import annotations

import contextlib
import gc
import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import compress, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from actprune.graph.call_stacks import short_call_stacks
from actprune.graph.keep import kept_buffers
from actprune.graph.names import Names
from actprune.graph.outputs import register_containers
from actprune.graph.program import op_name, place, shape
from actprune.graph.rebuilt import running
from actprune.graph.size_recorder import Recorder, recording
from actprune.graph.traced import MadeKnown, Refused, Traced

_IDLE = set(
    "_set_grad_enabled _enter_autocast _exit_autocast"
    " aten.item.default aten._assert_async.default aten._assert_async.msg".split()
)
"""Calls that compute nothing here: gradients and autocast are off, what was read is a number by now, and the checks
held."""


def recorded(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Names,
    *,
    whole: bool = True,
    last: bool = True,
) -> Traced:
    """Trace the call `model(*args, **kwargs)` by running it once.

    Args:
        whole: note calls as they are made, so that one `linear` stays one node. Otherwise what autograd and vmap make
            of them: there, gradients that the forward pass takes are calls like any others.
        last: go on where the outputs are of a class that pytree knows only now, as of one that each call makes anew.

    Raises:
        Refused: the outputs hide tensors where nobody can compare them.
        MadeKnown: that is so, and `last` is not.
        Exception: whatever the model or the tracer raises.
    """
    flat, spec = pytree.tree_flatten((args, kwargs))
    positions = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
    tensors = [flat[i].clone() for i in positions]  # the model may write into its inputs
    returned: list[Any] = []
    out_spec = pytree.tree_structure(())

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        nonlocal out_spec
        whole = list(flat)
        for i, tensor in zip(positions, given, strict=True):
            whole[i] = tensor
        inner_args, inner_kwargs = pytree.tree_unflatten(whole, spec)
        outputs = model(*inner_args, **inner_kwargs)
        if register_containers(outputs) and not last:
            raise MadeKnown
        leaves, out_spec = pytree.tree_flatten(outputs)
        returned[:] = leaves
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    recorder: Recorder | None = None
    with (
        kept_buffers(model, parameters=True),
        _module_paths(model),
        _fused_calls(allowed=whole),
        _tensors_since() as made,
        short_call_stacks(),
    ):
        tracer = make_fx(
            call, tracing_mode="real", pre_dispatch=whole, record_stack_traces=True, _error_on_data_dependent_ops=False
        )
        try:
            with recording(model) if running(model) else contextlib.nullcontext() as recorder:
                module = tracer(*tensors)
        except MadeKnown:
            raise
        except Exception:  # recording may be in the way; else the same is raised again
            recorder = None
            module = tracer(*tensors)
        _check_seen(module, names, made)
    _tidy(module)
    inputs = _every_input(module.graph, flat)
    bindings, constants = _bound(module, names)
    _return_all(module.graph, returned)
    return Traced(module.graph, module, inputs, bindings, constants, out_spec, "real", recorder)


@contextlib.contextmanager
def _tensors_since() -> Iterator[Callable[[], Iterable[Tensor]]]:
    """What it gives finds the tensors that were made within. The collector, asked to leave aside all that there is
    already, knows the others; to list every tensor of the process before a run would take longer than the run.

    What the caller has set aside (a server does, before it forks) stays so: nothing could tell it from the rest.
    """
    if gc.get_freeze_count():
        before = [*_known_to_collector()]
        known = {*map(id, before)}
        yield lambda: [tensor for tensor in _known_to_collector() if id(tensor) not in known]
        return
    gc.freeze()
    try:
        yield _known_to_collector
    finally:
        gc.unfreeze()


def _known_to_collector() -> Iterable[Tensor]:
    """Objects may be millions: none of them is looked at by a line of Python."""
    kinds, objects = _with_subclasses(Tensor), gc.get_objects()
    return compress(objects, map(kinds.__contains__, map(type, objects)))


def _with_subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_with_subclasses, type.__subclasses__(kind)))


@contextlib.contextmanager
def _module_paths(model: nn.Module) -> Iterator[None]:
    """Note in every node the modules that it was called in, as export does."""
    paths = {id(module): path for path, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    stack: list[tuple[str, str]] = []

    def note() -> None:
        fx_traceback.current_meta["nn_module_stack"] = {str(i): place for i, place in enumerate(stack)}

    def enter(module: nn.Module, args: Any) -> None:
        outer = stack[-1][0] if stack else ""
        stack.append((paths.get(id(module), outer), f"{type(module).__module__}.{type(module).__qualname__}"))
        note()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()
        note()

    with fx_traceback.preserve_node_meta():
        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _fused_calls(*, allowed: bool) -> Iterator[None]:
    """Below autograd an LSTM of MKL-DNN's would be recorded, which can't run in float64, and attentions of a device's,
    which no rule knows; without them both are products."""
    if allowed:
        yield
        return
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = before


def _check_seen(module: GraphModule, names: Names, made: Callable[[], Iterable[Tensor]]) -> None:
    """A constant of the graph is the model's, existed before the run, or was written down as numbers.

    Any other one was computed where no call could be recorded, and depends on who knows what.
    """
    unseen: dict[int, Node] = {}
    for node in module.graph.nodes:
        value = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and names.canonical("", value) == "":
            users = (user for user in node.users if op_name(user) != "aten.lift_fresh_copy.default")
            unseen |= {id(value): user for user in islice(users, 1)}
    new = {id(tensor) for tensor in made()} if unseen else set[int]()
    for user in (user for number, user in unseen.items() if number in new):
        raise Refused(f"what {place(user)} reads is computed out of sight (an extension, say)")


def read_by_python(value: Tensor) -> Tensor:
    """Stands in a graph where `.numpy()` or `.tolist()` was called. No rule knows it, so it freezes."""
    return value


def _tidy(module: GraphModule) -> None:
    """Remove what computes nothing and what nobody uses; put `read_by_python` where a whole tensor was read."""
    graph, idle = module.graph, _of_idle_layers(module)
    computed: set[Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
    for node in reversed(list(graph.nodes)):
        name = op_name(node)
        # `.numpy()` and `.tolist()` call it, and little else; of an arange they may
        if name == "aten.resolve_neg.default" and shape(node) and node in computed:
            with graph.inserting_after(node):
                read = graph.call_function(read_by_python, (node.args[0],))
            read.meta = dict(node.meta)
        if name in ("aten.resolve_neg.default", "aten.resolve_conj.default"):
            node.replace_all_uses_with(node.args[0])
        unused = not node.users and _is_pure(node) and node not in idle
        if name in _IDLE or unused:
            graph.erase_node(node)


def _of_idle_layers(module: GraphModule) -> set[Node]:
    """Calls on the way from parameters that no result depends on. The class makes them all the same, as export knows:
    the last block of a WaveNet adds to a stream that nothing reads any more, and both sides have to fit."""
    live: set[Node] = set()
    for node in reversed(module.graph.nodes):
        if node in live or not (node.op == "placeholder" or _is_pure(node)):
            live.update((node, *node.all_input_nodes))
    read = {node.target for node in live if node.op == "get_attr"}
    idle: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            own = isinstance(getattr(module, str(node.target), None), nn.Parameter)
            reached = own and node.target not in read
        else:
            reached = node not in live and not idle.isdisjoint(node.all_input_nodes)
        if reached:
            idle.add(node)
    return {node for node in idle if node.op != "get_attr"}


def _is_pure(node: Node) -> bool:
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _return_all(graph: Graph, leaves: list[Any]) -> None:
    """The output gets the constants back that stand between its tensors."""
    output = graph.output_node()
    tensors = iter(cast("tuple[Node, ...]", output.args[0]))
    output.args = (tuple(next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves),)


def _every_input(graph: Graph, flat: list[Any]) -> tuple[str, ...]:
    """One placeholder per flat input, also for those that are not tensors."""
    found = [node for node in graph.nodes if node.op == "placeholder"]
    tensors, last = iter(found), found[-1]
    names: list[str] = []
    for value in flat:
        if isinstance(value, Tensor):
            node = next(tensors)
        else:
            with graph.inserting_after(last):
                node = graph.placeholder("constant")
            node.meta["val"] = value
        names.append(node.name)
    return tuple(names)


def _bound(module: GraphModule, names: Names) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Tensors come as attributes of the graph's module: each becomes a placeholder, the model's under its name."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    placeholders: dict[str, Node] = {}
    constants: dict[str, Tensor] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        value = getattr(module, str(node.target), None)
        if not isinstance(value, Tensor):
            continue  # a subgraph
        name = names.canonical(f"{node.target} of the forward pass", value)
        if name not in names.tensors:
            constants[name] = value.detach()
        if name not in placeholders:
            with graph.inserting_after(last):
                placeholders[name] = graph.placeholder("tensor")
            placeholders[name].meta = dict(node.meta)
        node.replace_all_uses_with(placeholders[name])
        graph.erase_node(node)
    return {node.name: name for name, node in placeholders.items()}, constants
