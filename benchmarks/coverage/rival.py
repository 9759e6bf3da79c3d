"""Torch-Pruning 1.6.1 on one model: as the quick start of its README uses it, and with the help its examples give.

A run counts where the pruned model does what it is for: forward in eval mode, a training step, another batch size,
with fewer than 0.9 of the parameters. Whether it computes the right thing is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.coverage.attention import heads, stated
from benchmarks.coverage.exercise import outputs_of, tensors_in, train_step
from benchmarks.coverage.measure import BATCH, ENOUGH, OTHER_BATCH
from benchmarks.coverage.suites.case import Case
from benchmarks.coverage.words import said
from torch import Tensor, nn

from actprune.graph.trace import call_arguments

Row = dict[str, Any]

RATIO = 0.3

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

PROJECTIONS = """
qkv query key value q k v to_q to_k to_v q_proj k_proj v_proj q_lin k_lin v_lin query_proj key_proj value_proj
qkv_proj c_attn query_key_value
""".split()


def rival(case: Case, helped: bool, save: Callable[[Row], None] = lambda row: None) -> Row:
    """The row of one run; an error ends it, with the stage it came from."""
    row: Row = {"ok": False, "failure": None, "stage": "prune"}
    save(row)
    try:
        _rival(case, helped, row, save)
    except Exception as error:  # whatever the model or Torch-Pruning raises is a result here
        row["failure"] = f"{row['stage']}: {said(error)}"
    row["ok"] = row["failure"] is None
    return row


def _rival(case: Case, helped: bool, row: Row, save: Callable[[Row], None]) -> None:
    import torch_pruning as tp

    model, inputs = case.model, case.inputs(BATCH)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    before = sum(p.numel() for p in model.parameters())
    shapes = [tuple(out.shape) for out in outputs_of(model, inputs)]
    model.train()  # as it comes from its constructor: some classes keep tables that they made in eval mode
    ignored: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    more: dict[str, Any] = {}
    if helped:
        ignored += output_layers(model, inputs)
        more = {"num_heads": heads_of(model), "output_transform": tensors_in}
    started = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        **more,
    )
    pruner.step()
    row["seconds"] = round(time.perf_counter() - started, 2)
    row["params_left"] = round(sum(p.numel() for p in model.parameters()) / before, 4)
    if helped:
        _tell_attention(model, pruner.num_heads)
    row["stage"] = "forward"
    save(row)
    row["same_outputs"] = shapes == [tuple(out.shape) for out in outputs_of(model, inputs)]
    row["stage"] = "train_step"
    train_step(model, inputs)
    row["stage"] = "other_batch"
    outputs_of(model, case.inputs(OTHER_BATCH))
    row["stage"] = "parameters"
    if row["params_left"] >= ENOUGH:
        raise AssertionError(f"{row['params_left']:.1%} are left")


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The layers whose widths are those of the outputs, and what is added to them: from the outputs backwards through
    the autograd graph to the first linear layer or convolution on every path."""
    made: dict[Any, nn.Module] = {}
    kept: list[Any] = []  # holds the nodes, so that none of them is freed and its place taken by another

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.grad_fn is not None:
            made[out.grad_fn] = module
            kept.append(out.grad_fn)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, LAYERS)]
    args, kwargs = call_arguments(model, inputs)
    try:
        with torch.enable_grad():
            outputs = tensors_in(model.eval()(*args, **kwargs))
    finally:
        for hook in hooks:
            hook.remove()
    found: list[nn.Module] = []
    seen: set[Any] = set()
    waiting: list[Any] = [out.grad_fn for out in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.append(made[node])
        else:
            waiting += [following for following, _ in node.next_functions]
    return list(dict.fromkeys(found))


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Projection (or nn.MultiheadAttention) → its number of heads, keys and values of grouped queries their own."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        number = heads(module)
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
        elif number > 1:
            shared = stated(module, ("num_key_value_heads",)) or number
            for name, layer in module.named_children():
                if name in PROJECTIONS and isinstance(layer, LAYERS):
                    found[layer] = shared if name in ("k_proj", "v_proj") else number
    return found


def _tell_attention(model: nn.Module, known: dict[nn.Module, int]) -> None:
    """The sizes that attention modules keep beside their projections, as Torch-Pruning's examples set them."""
    for module in model.modules():
        for name, layer in module.named_children():
            if name in ("k_proj", "v_proj") or layer not in known or not isinstance(layer, nn.Linear):
                continue
            fused = 3 if name in ("qkv", "qkv_proj", "c_attn", "query_key_value") else 1
            width = layer.out_features // fused
            for attribute, value in (
                ("head_dim", width // known[layer]),
                ("attention_head_size", width // known[layer]),
                ("head_size", width // known[layer]),
                ("all_head_size", width),
                ("attn_dim", width),
            ):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, value)
