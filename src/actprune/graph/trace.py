"""Model → Program: through `torch.export`, else by recording a run on real tensors.

In-place calls are turned into their pure twins where they can be (`graph/purify.py`). The model is left as it was:
modes, hooks, buffers, cached attributes, random state.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from actprune.errors import CaptureError
from actprune.graph.ambience import uncast
from actprune.graph.arguments import added, call_arguments
from actprune.graph.caches import kept_caches
from actprune.graph.canonical import make_canonical
from actprune.graph.chance import without_chance
from actprune.graph.covering import covered_as_channels
from actprune.graph.data_calls import DataCalls
from actprune.graph.dropping import NothingDropped
from actprune.graph.export import exported
from actprune.graph.flexible import written_out
from actprune.graph.inline import inline
from actprune.graph.keep import ONE_AT_A_TIME, apart, kept_buffers, kept_modes, refresh
from actprune.graph.names import Names, unsliced
from actprune.graph.noise import drop_noise
from actprune.graph.program import Program, architecture, op_name, place
from actprune.graph.purify import make_pure, writers
from actprune.graph.quiet import quiet
from actprune.graph.real import recorded
from actprune.graph.rebuilt import Rebuilt, name_of
from actprune.graph.refusal import float_types, one_batch, refusal
from actprune.graph.remembered import remembered
from actprune.graph.sizes import Sizes
from actprune.graph.traced import MadeKnown, Refused, Traced
from actprune.graph.under_masks import written_as_choices
from actprune.graph.weight_norm import fold_weight_norms

__all__ = ["call_arguments", "check_ready", "trace"]


def trace(model: nn.Module, example_inputs: Any, *, training: bool = False, like: Program | None = None) -> Program:
    """Capture `model` as it computes on `example_inputs`.

    Args:
        model: any module that runs on them.
        example_inputs: a tensor (the one argument), a tuple or list (positional arguments) or a dict
            (keyword arguments; keys that are not in the signature of `forward` are dropped). Arguments may be
            nested, and some of them may be numbers, strings or None.
        training: capture the branches of training mode instead of those of eval mode.
        like: a program of the same class: the way that it was captured is tried first.

    Raises:
        CaptureError: the inputs are not tensors, or the model does not run on them.
    """
    check_ready(model)
    args, kwargs = call_arguments(model, example_inputs)
    flat, in_spec = pytree.tree_flatten((args, kwargs))
    flat = [value.detach() if isinstance(value, Tensor) else value for value in flat]
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if not tensors:
        raise CaptureError(
            f"{name_of(model)} was given no tensor to be captured with.",
            expected="a tensor, a tuple of tensors or a dict of tensors",
            got=type(example_inputs).__name__,
            where="example_inputs",
            hint=one_batch(example_inputs),
        )
    names = Names(model, like.held if like is not None else ())
    # what a forward pass draws (masks of a spectrogram, a layer to leave out) is the same in every capture: a dropout
    # would take as many random numbers as it has entries, fewer in a cut network
    with ONE_AT_A_TIME, apart(0), kept_modes(model), kept_buffers(model), torch.no_grad(), uncast(), NothingDropped():
        refresh(model, training)
        for module in model.modules():
            module.training = training
        args, kwargs = pytree.tree_unflatten(flat, in_spec)
        traced, tracer = _traced(model, args, kwargs, names, like.tracer if like is not None else 0)
        every = names.every(set(traced.bindings.values()))
        fixed = _in_known_form(traced, model, names, every, training)
        statistics = _statistics(model, args, kwargs, names, fixed, like)
        normed, weights = fold_weight_norms(traced.graph, traced.bindings, {**every, **traced.constants})
        covered_as_channels(traced.graph)
    graph = traced.graph
    _note_modules(graph, model)
    return Program(
        graph=graph,
        tensors={**every, **traced.constants, **weights},
        aliases={name: names.all_names(name) for name in {**every, **traced.constants}},
        bindings=traced.bindings,
        parameters=frozenset(name for name in every if isinstance(every[name], nn.Parameter)),
        held=frozenset(every) - fixed | statistics,
        statistics=statistics,
        persistent=frozenset(
            name for name in every if any(alias in names.persistent for alias in names.all_names(name))
        ),
        inputs=traced.inputs,
        kwarg_names=tuple(kwargs),
        in_spec=in_spec,
        out_spec=traced.out_spec,
        example=tuple(flat),
        batch_size=next((int(value.shape[0]) for value in tensors if value.dim() > 0), 1),
        model_name=name_of(model),
        architecture=architecture(model.state_dict()),
        sizes=_sizes(model, traced, graph),
        subgraphs={node.name: node.meta["subgraph"] for node in graph.nodes if node.op == "get_attr"},
        source=traced.source,
        tracer=tracer,
        added={name: value for name, value in added(model).items() if kwargs.get(name, value) is value},
        normed=normed,
    )


def _in_known_form(
    traced: Traced, model: nn.Module, names: Names, every: Mapping[str, Tensor], training: bool
) -> frozenset[str]:
    """Write a fresh graph in the calls that the later stages know: pure ones, without noise.

    Returns:
        The names of tensors that stay as they are, whatever is cut.
    """
    graph, bindings = traced.graph, traced.bindings
    _claim_names(graph)
    inline(graph, traced.module)
    caches = {bindings[node.name] for node in writers(graph) if node.name in bindings}
    fixed = frozenset(name for name in names.plain if name in every and names.is_fixed(name, name in caches))
    drop_noise(graph)
    if training:
        without_chance(graph)
    make_pure(graph)
    written_as_choices(graph)
    if not isinstance(model, Rebuilt):
        return fixed
    held = {node: name for node, name in bindings.items() if name in names.tensors}
    statistics = {n for n, name in held.items() if not isinstance(names.tensors[name], nn.Parameter)}
    make_canonical(graph, statistics, set(held))
    return fixed | model.uncut()


def _statistics(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Names, fixed: frozenset[str],
    like: Program | None,
) -> frozenset[str]:  # fmt: skip
    """Those of the fixed tensors that are so for their numbers alone, which training computes; where a program of the
    same class has them all, it tells."""
    known = frozenset(name for name in fixed & names.plain.keys() if not names.is_fixed(name, True))
    if not known:
        return known
    if like is not None and known <= like.tensors.keys():
        return known & like.statistics
    return known & remembered(model, args, kwargs)


def _claim_names(graph: Graph) -> None:
    """Export renames the inputs behind the graph's back: no node that is made later may take a name of theirs."""
    graph._graph_namespace._used_names.update(node.name for node in graph.nodes)  # pyright: ignore[reportPrivateUsage]


def _note_modules(graph: Graph, model: nn.Module) -> None:
    """Every call notes the modules that it stands in, by their paths in the model: those of a class made from one of
    torch's own under the latter, for a rule knows no other."""
    stock = {
        path: found
        for path, module in model.named_modules(remove_duplicate=False)
        if (found := next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))) is not nn.Module
    }
    for node in graph.nodes:
        stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        if stack:
            node.meta["nn_module_stack"] = {
                key: (path, f"{own.__module__}.{own.__qualname__}" if (own := stock.get(path)) else cls)
                for key, (path, cls) in ((key, (unsliced(path, model), cls)) for key, (path, cls) in stack.items())
            }


def _sizes(model: nn.Module, traced: Traced, graph: Graph) -> Sizes:
    """The sizes that the forward pass, or a model's description, writes down."""
    recorded = traced.recorder.result(graph) if traced.recorder is not None else Sizes()
    return model.written(graph, recorded) if isinstance(model, Rebuilt) else recorded


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Names, first: int, *, last: bool = False
) -> tuple[Traced, int]:
    """By export, else by a run on real tensors, the last time below autograd and vmap; and the number of that tracer.

    What a class in the outputs holds may be known only after a run: export, which takes it from then on, is tried
    once more, so that this capture is what the next one will be.
    """
    reasons: dict[str, Exception] = {}
    run, below = (partial(recorded, whole=whole, last=last) for whole in (True, False))
    tracers = enumerate((("torch.export", _exported), ("recording a run", run), ("recording a run", below)))
    for number, (name, tracer) in sorted(tracers, key=lambda found: (found[0] < first, found[0])):
        try:
            with kept_buffers(model), kept_caches(model), quiet(), written_out(), DataCalls():
                traced = tracer(model, args, kwargs, names)
                _check_flat(traced.graph)
                return traced, number
        except MadeKnown:
            return _traced(model, args, kwargs, names, first, last=True)
        except Exception as error:  # a tracer raises whatever the model raises, and more
            reasons.setdefault(name, error)
            if number == first and (own := _own_error(model, args, kwargs)) is not None:
                reasons.setdefault("recording a run", own)  # as the other tracers would find, for more time
                break
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    raise refusal(model, tensors, reasons) from reasons["recording a run"]


def _own_error(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What a call of the model itself raises."""
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    try:
        with kept_buffers(model, parameters=True), quiet():
            model(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _check_flat(graph: Graph) -> None:
    """Between the calls that open and close a vmap or a jvp tensors are not what they seem; a run below shows them."""
    for node in graph.nodes:
        if getattr(node.target, "__module__", "") == "torch._functorch.predispatch":
            raise Refused(f"{op_name(node).strip('_')} at {place(node)} is a step of torch.func")


def check_ready(model: nn.Module) -> None:
    """A lazy layer gets its sizes at the first call, which would change the model; compiled code keeps its sizes."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CaptureError(
            "This is no model.",
            expected="an instance of torch.nn.Module",
            got=f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__,
            where="model",
            hint="keras.models.load_model(path) reads it"
            if isinstance(model, str) and model.endswith(".keras")
            else "make an instance of the class, and load its weights, first",
        )
    if any(base.__module__.partition(".")[0] == "keras" for base in type(model).__mro__):
        raise CaptureError(
            "The stages take a Keras model as the engine sees it.",
            expected="a KerasNetwork, or a torch module",
            got=f"the Keras model {type(model).__name__}",
            where="model",
            hint="from actprune.keras3.network import KerasNetwork; capture, cut and verify KerasNetwork(model); prune "
            "and load take the model itself",
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            raise CaptureError(
                f"{name_of(model)} can't be cut: it holds TorchScript.",
                expected="modules of Python classes",
                got=f"{type(module).__name__} of {module.original_name}",
                where=path or "model",
                hint="pass the module that it was scripted or traced from",
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise CaptureError(
                f"{name_of(model)} has a lazy layer that was never called.",
                expected="parameters with shapes",
                got=f"{name} is uninitialised",
                where="model",
                hint="call the model once on a batch of inputs before it is captured",
            )


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Names) -> Traced:
    """Export follows some calls on inputs of another type that do not run: where they may be, the model is called."""
    floats = float_types(model.parameters())
    given = float_types(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    looked_up = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())
    if len(floats) == 1 and (given - floats or not (given or looked_up)):
        model(*pytree.tree_map_only(Tensor, Tensor.clone, args), **pytree.tree_map_only(Tensor, Tensor.clone, kwargs))
    return exported(model, args, kwargs, names)
