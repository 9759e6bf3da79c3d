"""`fold`: a network as it is deployed, without BatchNorm and in the memory layout that is fastest.

In eval mode a BatchNorm multiplies each channel by a number and adds another one. Behind a convolution or a linear
layer whose outputs nothing else reads, both go into its weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils import _pytree as pytree

from actprune.errors import DataError, EquivalenceError
from actprune.graph.keep import copied
from actprune.graph.program import Program, named_arguments, op_name, shape
from actprune.graph.rebuilt import name_of
from actprune.graph.trace import call_arguments, trace
from actprune.latency.timing import side_by_side
from actprune.proof.difference import relative_error

TOLERANCE = 1e-4
"""Relative error of the outputs in the network's own precision; in float32 it is of the order of 1e-6."""

FASTER = 0.97
"""Channels last has to save so much to be chosen."""

SECONDS = 1.0
"""Spent on each layout."""

_CONVOLUTIONS = tuple(f"aten.{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Of exactly these classes: one derived of them may do more, such as an activation."""


@dataclass(frozen=True)
class Pair:
    """A BatchNorm and the layer in front of it, which nothing else reads.

    Attributes:
        layer, norm: their calls.
        weight: name of the layer's weight; bias: of its bias, or None.
        held: names of running mean, running variance, gain and shift of the norm; the last two may be None.
    """

    layer: Node
    norm: Node
    weight: str
    bias: str | None
    held: tuple[str | None, ...]


def fold(model: nn.Module, example_inputs: Any, *, channels_last: bool | str = "auto") -> nn.Module:
    """A copy for deployment, in eval mode, that computes the same: BatchNorm folded, the layout chosen.

    A BatchNorm goes where it stands behind a convolution or a linear layer alone, called once, and, unless the model is
    a captured graph (`as_graph`), where both are torch's own modules; `nn.Identity` takes its place. All others stay.

    Args:
        model: left as it was.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments: the model is captured
            and checked on them, and the layout is timed.
        channels_last: whether images lie channels last in memory; "auto": if that is measured to be faster.

    Raises:
        CaptureError: the model can't be captured with these inputs.
        DataError: `channels_last` is none of these.
        EquivalenceError: the copy computes something else, as where a class reads its norm's tensors itself.
        UnsupportedModelError: it is a Keras model (`actprune.fold`).
    """
    if channels_last not in (True, False, "auto"):
        raise DataError(
            "The layout is unknown.",
            expected='True, False or "auto"',
            got=repr(channels_last),
            where="fold(channels_last=…)",
            hint='"auto" measures which layout is faster',
        )
    folded = copied(model).eval()
    args, kwargs = call_arguments(folded, example_inputs)
    with torch.no_grad():
        if isinstance(folded, fx.GraphModule) and any(_is_norm(node) for node in folded.graph.nodes):
            _fold_graph(folded)
        else:
            _fold_modules(folded, trace(folded, example_inputs))
        _check_same(model, folded, args, kwargs)
        return _laid_out(folded, args, kwargs, channels_last)


def pairs(graph: fx.Graph, name_of: Callable[[Node], str | None]) -> Iterator[Pair]:
    """The foldable norms of a graph of ATen calls.

    Args:
        name_of: node → the tensor of the model that it stands for, or None.
    """

    def named(value: Any) -> str | None:
        """Of a tensor that this call alone reads."""
        return name_of(value) if isinstance(value, Node) and len(value.users) == 1 else None

    for node in graph.nodes:
        if not _is_norm(node):
            continue
        norm = named_arguments(node)
        layer = norm["input"]
        if not _is_layer(layer) or len(layer.users) > 1 or norm["training"] is True:
            continue
        given = named_arguments(layer)
        weight, bias = named(given["weight"]), named(given["bias"])
        held = tuple(named(norm[key]) for key in ("running_mean", "running_var", "weight", "bias"))
        missing = [given["bias"] is not None and bias is None, norm["weight"] is not None and held[2] is None]
        if weight is None or None in held[:2] or any([*missing, norm["bias"] is not None and held[3] is None]):
            continue
        yield Pair(layer, node, weight, bias, held)


def _is_norm(node: Node) -> bool:
    return op_name(node) == "aten.batch_norm.default"


def _is_layer(node: Any) -> bool:
    """A convolution, or a linear layer whose outputs lie where a BatchNorm takes channels to be."""
    if not isinstance(node, Node):
        return False
    op = op_name(node).rpartition(".")[0]
    transposed = op.startswith("aten.conv_transpose") and named_arguments(node)["groups"] > 1
    return (op in _CONVOLUTIONS and not transposed) or op == "aten.linear"


def _fused(pair: Pair, of: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the norm in it, computed in float64."""

    def wide(name: str | None) -> Any:
        return None if name is None else of(name).double()

    weight, bias = wide(pair.weight), wide(pair.bias)
    mean, var, gain, shift = map(wide, pair.held)
    eps, op = named_arguments(pair.norm)["eps"], op_name(pair.layer)
    if op.startswith("aten.linear"):
        new = fuse_linear_bn_weights(weight, bias, mean, var, eps, gain, shift)
    else:
        new = fuse_conv_bn_weights(weight, bias, mean, var, eps, gain, shift, "transpose" in op)
    kept = of(pair.weight)
    return new[0].to(kept.dtype), new[1].to(kept.dtype)


def _fold_modules(model: nn.Module, program: Program) -> None:
    """In the user's class: the norm's module becomes `nn.Identity`."""

    def alone(node: Node) -> str | None:
        name = program.bindings.get(node.name)
        return name if name is not None and len(program.aliases[name]) == 1 else None

    for pair in list(pairs(program.graph, alone)):
        layer, norm = (_owner(model, name) for name in (pair.weight, str(pair.held[0])))
        plain_linear = not isinstance(layer, nn.Linear) or len(shape(pair.layer)) == 2
        own = pair.weight.endswith(".weight") and isinstance(layer, _LAYERS) and type(norm) in _NORMS
        if not own or not plain_linear or (pair.bias is None) is not (layer.bias is None):
            continue
        weight, bias = _fused(pair, program.tensors.__getitem__)
        trainable = layer.weight.requires_grad
        layer.weight, layer.bias = nn.Parameter(weight, trainable), nn.Parameter(bias, trainable)
        model.set_submodule(str(pair.held[0]).rpartition(".")[0], nn.Identity())


def _owner(model: nn.Module, tensor: str) -> Any:
    return model.get_submodule(tensor.rpartition(".")[0])


def _fold_graph(model: fx.GraphModule) -> None:
    """In a captured graph: the norm's call goes."""
    for pair in list(pairs(model.graph, lambda node: str(node.target) if node.op == "get_attr" else None)):
        if op_name(pair.layer).startswith("aten.linear") and len(shape(pair.layer)) != 2:
            continue
        weight, bias = _fused(pair, partial(_tensor, model))
        owner, name = _owner(model, pair.weight), pair.weight.rpartition(".")[2]
        trainable = getattr(owner, name).requires_grad
        setattr(owner, name, nn.Parameter(weight, trainable))
        added = f"{name.removesuffix('weight')}bias" if pair.bias is None else pair.bias.rpartition(".")[2]
        setattr(owner, added, nn.Parameter(bias, trainable))
        if pair.bias is None:
            with model.graph.inserting_before(pair.layer):
                path = f"{pair.weight.rpartition('.')[0]}.{added}".lstrip(".")
                pair.layer.update_arg(2, model.graph.get_attr(path))
        pair.norm.replace_all_uses_with(pair.layer)
        model.graph.erase_node(pair.norm)
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()


def _tensor(model: nn.Module, name: str) -> Tensor:
    return getattr(_owner(model, name), name.rpartition(".")[2])


def _check_same(model: nn.Module, folded: nn.Module, args: Any, kwargs: Any) -> None:
    reference = copied(model).eval()
    sides = [pytree.tree_leaves(network(*args, **kwargs)) for network in (reference, folded)]
    error = relative_error(*([x for x in side if isinstance(x, Tensor) and x.is_floating_point()] for side in sides))
    if error > TOLERANCE:
        raise EquivalenceError(
            f"{name_of(model)} computes something else once its BatchNorms are folded.",
            expected=f"a relative error of at most {TOLERANCE:g}",
            got=f"{error:.1e}",
            where="fold",
            hint="a class that reads the tensors of its norms itself can't be folded; the captured graph "
            '(form="graph") can',
        )


def _laid_out(model: nn.Module, args: Any, kwargs: Any, channels_last: bool | str) -> nn.Module:
    """`model` with its kernels channels last, or as it is."""
    if channels_last is False or not any(p.dim() == 4 for p in model.parameters()):
        return model
    moved: nn.Module = copied(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if channels_last is True:
        return moved
    device = next(model.parameters()).device
    calls = [partial(network, *args, **kwargs) for network in (model, moved)]
    plain, last = side_by_side(calls, SECONDS, device)
    return moved if last < FASTER * plain else model
