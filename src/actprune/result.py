"""What `prune` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from actprune.artifacts.checkpoint import save
from actprune.artifacts.pretrained import save_pretrained
from actprune.axes.capture import Graph
from actprune.deployment import fold
from actprune.guidance.confidence import RESAMPLES, Confidence, confidence
from actprune.guidance.guide import Guide
from actprune.plan import Plan
from actprune.proof.check import Proof
from actprune.report.card import card
from actprune.report.record import Report
from actprune.rewrite import Rewrite
from actprune.stats.statistics import Stats


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` gives back.

    Attributes:
        model: the user's own class, smaller (fine-tuned, if that was asked for); or the graph form, if that was.
        plan: which units stay.
        proof: that the cut is right; of the network before any gradient step.
        report: all figures; `print(result.report)` is a table.
        before_finetune: the cut and compensated network before any gradient step, where `model` was trained further;
            None where there was no such step, or where `evaluate` preferred the network before.
        graph, stats, guide, rewrite: what the stages found.
    """

    model: nn.Module
    plan: Plan
    proof: Proof
    report: Report
    before_finetune: nn.Module | None
    graph: Graph
    stats: Stats | None
    guide: Guide
    rewrite: Rewrite

    def __repr__(self) -> str:
        """In one line; `print(result.report)` says all."""
        dense, final = self.report.dense, self.report.final
        return (
            f"Result({self.report.model}: {dense.params:,} → {final.params:,} parameters, "
            f"{dense.macs:,} → {final.macs:,} MACs, {'proved' if self.proof.passed else 'not proved'})"
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `weights.safetensors`, `plan.json` and `report.json` into a new folder, all or nothing.

        Raises:
            ArtifactError: the folder exists (and isn't to be overwritten), or can't be written.
        """
        return save(folder, self.model, self.plan, self.report.to_data(), overwrite=overwrite)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder with a model card, for `from_pretrained` of stock transformers.

        A configuration has one number for all layers of a kind: prune with `equal_widths=True`.

        Raises:
            ArtifactError: the folder exists, or no configuration has these widths; the message says which.
        """
        text = card(self.report, self.plan, "transformers")
        return save_pretrained(self.model, self.plan, self._example(), folder, text)

    def confidence(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Confidence]:
        """Group name → would other calibration data have kept the same units? See `actprune.confidence`."""
        return confidence(self.graph, self.stats, self.guide, self.plan.widths, resamples=resamples, seed=seed)

    def fold(self, *, channels_last: bool | str = "auto") -> nn.Module:
        """A copy of `model` for deployment: BatchNorm folded, in the memory layout that is fastest; see `fold`.

        Raises:
            EquivalenceError: its class can't be folded.
        """
        return fold(self.model, self._example(), channels_last=channels_last)

    def _example(self) -> Any:
        """The batch that was captured."""
        program = self.graph.program
        args, kwargs = pytree.tree_unflatten(list(program.example), program.in_spec)
        return kwargs or args
