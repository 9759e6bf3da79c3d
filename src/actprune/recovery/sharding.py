"""A training whose parameters, gradients and momentum are sharded over the ranks, block by block.

`fully_shard` of torch, known as FSDP2 (Zhao et al. 2023, PyTorch FSDP): the parameters of a block are gathered while it
runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from actprune.distributed import Ranks
from actprune.errors import DataError
from actprune.graph.keep import copied
from actprune.recovery.parallel import LossOf, Training, group_of


class Sharded(Training):
    """Trains a sharded copy of the model, which stays as it is."""

    def __init__(self, model: nn.Module, loss: LossOf, ranks: Ranks) -> None:
        _check_shardable(model)
        super().__init__(copied(model), loss, ranks)
        group: Any = group_of(model, ranks) or dist.group.WORLD
        mesh = DeviceMesh.from_group(group, next(model.parameters()).device.type)
        for block in blocks(self.model):
            fully_shard(block, mesh=mesh)
        self._root: Any = fully_shard(self.module, mesh=mesh)

    def collecting(self, more: bool) -> AbstractContextManager[Any]:
        self._root.set_requires_gradient_sync(not more)
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()

    def part(self, held: Tensor, whole: Tensor) -> Tensor:
        own = super().part(held, whole)
        if not isinstance(held, DTensor):
            return own
        return distribute_tensor(own, held.device_mesh, held.placements, src_data_rank=None)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The entries of module lists (blocks of a transformer), the outermost, that share no parameter with the rest."""
    found: list[nn.Module] = []
    within: set[nn.Module] = set()
    for held in model.modules():
        for block in held if isinstance(held, nn.ModuleList) else ():
            if block not in within and type(block).forward is not nn.Module.forward and _owns(model, block):
                found.append(block)
                within.update(block.modules())
    return found


def _owns(model: nn.Module, block: nn.Module) -> bool:
    """Whether all parameters of a block, at least one, are its alone."""
    inside, own = set(block.modules()), set(block.parameters())
    others = {p for module in model.modules() if module not in inside for p in module.parameters(recurse=False)}
    return bool(own) and not own & others


def _check_shardable(model: nn.Module) -> None:
    single = next((name for name, p in model.named_parameters() if p.dim() == 0), None)
    if single is not None:
        raise DataError(
            "FSDP can't shard a parameter that is a single number.",
            expected="parameters with at least one dimension",
            got=f"{single} of shape ()",
            where='SGD(strategy="fsdp")',
            hint='take strategy="ddp", or give the parameter the shape (1,)',
        )
