"""A training step by several processes: each takes its share of every batch, and the gradient is that of the whole.

DDP: every rank holds the model, and gradients are averaged (Li et al. 2020, PyTorch Distributed). FSDP: see
`actprune.recovery.sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.artifacts.files import content_digest
from actprune.data.parts import needed
from actprune.distributed import Ranks
from actprune.errors import DataError
from actprune.joining import joined
from actprune.recovery.batches import samples

T = TypeVar("T")

LossOf = Callable[[nn.Module, Any], Tensor]
"""(model, batch) → scalar, a mean over the samples of the batch."""


def across(device: torch.device, work: Callable[[Ranks], T]) -> T:
    """Do `work` on every rank, which may call the others meanwhile by the ranks that it is given.

    Those have a group of their own, which is closed when `work` ends: a rank that fails frees those that wait for it.
    """

    def connected() -> T:
        with joined(device) as ranks:
            return work(ranks)

    with joined(device) as watched:
        return watched.together(connected)


class Training:
    """The training of a model by one process; also what those of several share.

    Attributes:
        model: whose parameters are trained.
        ranks: the processes.
    """

    def __init__(self, model: nn.Module, loss: LossOf, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.module: nn.Module = _Loss(model, loss)

    def backward(self, batches: Sequence[Any]) -> float:
        """Leave the gradient of the mean loss over all samples of some batches; returns that loss.

        A rank without a sample of a batch runs two others of it with the weight 0: DDP and FSDP wait for every rank.
        """
        several, inputs = self.ranks.world > 1 or len(batches) > 1, needed(self.model)
        sizes = [samples(batch, inputs) for batch in batches] if several else [1]
        value = 0.0
        for i, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            own = self.ranks.shard(size)
            part = rows(batch, own or range(min(size, 2)), size) if self.ranks.world > 1 else batch
            weight = len(own) / sum(sizes)
            with self.collecting(i + 1 < len(batches)):
                loss = self.module(part)
                (loss * (weight * self.ranks.world)).backward()  # for DDP and FSDP divide by the number of ranks
            value += weight * float(loss.detach()) if own else 0.0
        return float(self.ranks.sum_(torch.tensor(value, dtype=torch.float64)))

    def collecting(self, more: bool) -> AbstractContextManager[Any]:
        """While gradients add up, before those of the last batch of a step are sent."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, a buffer or a momentum, of all ranks."""
        return tensor.detach()

    def part(self, held: Tensor, whole: Tensor) -> Tensor:
        """What this rank holds of a whole tensor, where it holds `held` now."""
        return whole.to(held.device, held.dtype)

    def state(self) -> dict[str, Tensor]:
        """The state dict of the model, whole, on every rank."""
        state: Mapping[str, Any] = self.model.state_dict(keep_vars=True)
        return {name: self.whole(held) for name, held in state.items() if isinstance(held, Tensor)}

    @torch.no_grad()
    def put(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for name, held in self.model.state_dict(keep_vars=True).items():
            if isinstance(held, Tensor):
                held.copy_(self.part(held, state[name]))


class _Loss(nn.Module):
    """A model within the function that is differentiated: for DDP and FSDP a step is one call of it, whatever the
    function calls of the model."""

    def __init__(self, model: nn.Module, loss: LossOf) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


class _Replicated(Training):
    def __init__(self, model: nn.Module, loss: LossOf, ranks: Ranks) -> None:
        from torch.nn.parallel import DistributedDataParallel  # it takes a second to import

        super().__init__(model, loss, ranks)
        self.module = DistributedDataParallel(
            self.module, process_group=group_of(model, ranks), forward_sync_buffers=False, find_unused_parameters=True
        )

    def collecting(self, more: bool) -> AbstractContextManager[Any]:
        return self.module.no_sync() if more else nullcontext()  # type: ignore[operator]


@contextmanager
def _alone(model: nn.Module, loss: LossOf, ranks: Ranks) -> Iterator[Training]:
    yield Training(model, loss, ranks)


@contextmanager
def _ddp(model: nn.Module, loss: LossOf, ranks: Ranks) -> Iterator[Training]:
    yield _Replicated(model, loss, ranks)


@contextmanager
def _fsdp(model: nn.Module, loss: LossOf, ranks: Ranks) -> Iterator[Training]:
    """A sharded copy is trained; its values are put into the model at the end."""
    from actprune.recovery.sharding import Sharded  # torch's part takes seconds to import

    sharded = Sharded(model, loss, ranks)
    yield sharded
    Training(model, loss, ranks).put(sharded.state())


STRATEGIES: dict[str, Callable[[nn.Module, LossOf, Ranks], AbstractContextManager[Training]]] = {
    "ddp": _ddp,
    "fsdp": _fsdp,
}
"""How several processes train one model."""


def training_by(strategy: str | None, model: nn.Module, loss: LossOf, ranks: Ranks) -> AbstractContextManager[Training]:
    """The training of a model, which has the trained values on every rank when the block ends without an error."""
    return (_alone if ranks.world == 1 else STRATEGIES[strategy or "ddp"])(model, loss, ranks)


def group_of(model: nn.Module, ranks: Ranks) -> Any:
    """The processes' group for what is where the model is; None for the one that they were started with."""
    return ranks.group if next(model.parameters()).device.type == "cpu" else None


# ---- shares of batches


def check_same_batch(batch: Any, ranks: Ranks) -> None:
    """That every rank has rank 0's batch, of which it takes its share.

    Raises:
        DataError: on every rank, where one has another.
    """
    if ranks.world == 1:
        return
    own = content_digest((str(i), leaf) for i, leaf in enumerate(pytree.tree_leaves(batch)))
    same = own == ranks.from_first(lambda: own)
    if not ranks.least_(torch.tensor([int(same)])):
        raise DataError(
            "The loaders of the processes do not give the same batches.",
            expected="the same batch in every process, which takes its share of it",
            got="rank 0's batch" if same else "another batch than rank 0's",
            where=f"SGD.loader, rank {ranks.rank} of {ranks.world}",
            hint="pass the whole loader in every process, without a DistributedSampler or accelerate's prepare, and "
            "with a seed for whatever it draws by itself",
        )


def rows(value: Any, own: range, size: int) -> Any:
    """Some samples of a batch of `size`; what is no tensor of that many rows is left as it is."""

    def part(x: Tensor) -> Tensor:
        return x[own.start : own.stop] if x.dim() and x.shape[0] == size else x

    return pytree.tree_map_only(Tensor, part, value)
