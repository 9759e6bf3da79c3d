"""Running a model the way its users do: a forward pass in eval mode, one step of training."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.graph.trace import call_arguments


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that `model` gives in eval mode."""
    args, kwargs = call_arguments(model, inputs)
    model.eval()
    with torch.no_grad():
        return tensors_in(model(*args, **kwargs))


def train_step(model: nn.Module, inputs: Any) -> None:
    """Forward and backward in train mode, and a step along the gradient.

    Raises:
        ValueError: no output depends on a parameter, or no parameter received a gradient.
    """
    args, kwargs = call_arguments(model, inputs)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    outputs = [out for out in tensors_in(model(*args, **kwargs)) if out.requires_grad]
    if not outputs:
        raise ValueError("no output depends on a parameter")
    sum((out.float().pow(2).mean() for out in outputs), torch.tensor(0.0)).backward()
    gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter received a gradient")
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.sub_(gradient, alpha=1e-6)
    model.zero_grad(set_to_none=True)
    model.eval()


def reloaded(network: Any, inputs: Any) -> None:
    """Save a Keras model, load it with plain Keras, and compare.

    Raises:
        ValueError: the outputs differ.
    """
    import keras

    with tempfile.TemporaryDirectory() as folder:
        network.model.save(f"{folder}/small.keras")
        other = keras.models.load_model(f"{folder}/small.keras")
    with torch.no_grad():
        a, b = (model(inputs, training=False) for model in (network.model, other))
    if not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
        raise ValueError(f"the loaded model gives other outputs, by {float((a - b).abs().max()):.1e}")


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a structure of outputs; objects that are no known structure (caches) are passed over."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
