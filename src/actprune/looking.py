"""The stages before a budget is looked at: capture → axes → stats → guide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from actprune.artifacts.journal import GUIDE, STATISTICS
from actprune.axes.capture import Graph
from actprune.captured import Captured, Ranked
from actprune.compensation.room import check_room
from actprune.data.calls import Forward
from actprune.data.rebatch import rebatched
from actprune.data.samples import Calibration, Samples
from actprune.data.take import fit, take
from actprune.distance import choose, objective, resolve
from actprune.errors import DataError
from actprune.forms import Form, capture_form
from actprune.graph.digest import digest
from actprune.graph.rebuilt import name_of
from actprune.graph.run import run_batch
from actprune.guidance.guide import Guide
from actprune.guidance.ranking import guide, questions_of
from actprune.keeping import given_digests
from actprune.latency.bench import Bench, Latency
from actprune.ledger import Ledger
from actprune.mapped import any_mapped
from actprune.proof.elsewhere import elsewhere
from actprune.recovery.sgd import SGD
from actprune.settings import Settings
from actprune.stats.across import collect_across
from actprune.stats.collect import collect
from actprune.stats.gradients import wants_labels
from actprune.stats.statistics import Stats


@dataclass(frozen=True, eq=False)
class Looking:
    """What these stages are told.

    Attributes:
        asks: the settings that samples and statistics serve.
        sweep: those of the runs of a sweep, also of the finished ones; empty otherwise.
        known_stats: statistics that another process has gathered for this model and data.
    """

    model: nn.Module
    settings: Settings
    ledger: Ledger
    sweep: Sequence[Settings] = ()
    known_stats: Stats | None = None

    @property
    def asks(self) -> Sequence[Settings]:
        return self.sweep or (self.settings,)

    def metric(self, model: nn.Module) -> float | None:
        """What `evaluate` says, on rank 0."""
        return self.settings.ranks.from_first(lambda: self.settings.metric(model))

    def capture(self, calibration: Iterable[Any] | Samples, size: int, forward: Forward | None) -> Captured:
        """The samples, and the model captured on a batch of them."""
        ranks, labels = self.settings.ranks, labelled(self.asks)
        with self.ledger.stage("capture"):
            samples = ranks.together(lambda: take(self.model, calibration, size, forward, labels))
            if self.settings.journal is not None:
                given = ranks.together(lambda: given_digests(self.model, samples, size))
                self.ledger.begin(given, self.sweep)
            captured = ranks.together(lambda: self._captured(samples))
            if ranks.world > 1:  # a digest of the whole program is no work for a process that is alone
                graph = captured.graph
                widths = {group.name: group.width for group in graph.groups}
                ranks.check_same({"form": captured.form.name, "program": digest(graph.program), "groups": widths})
        return captured

    def _captured(self, came: Samples) -> Captured:
        asked, samples = self.settings, rebatched(self.model, came)
        form, inputs = self._form(samples)
        # branches and sizes of a run are those of a batch, and of fused samples no other number can be timed
        if samples is not came and (form.graph.program.source == "real" or form.graph.batch is None):
            samples = came
            form, inputs = self._form(came)
        program = form.graph.program
        check_room(form.graph, asked.memory_limit)
        latency = asked.latency or Latency()
        if samples is not came and latency.batch is None:
            latency = replace(latency, batch=came.batch_size)
        bench = Bench(program, latency)
        data = fit(program, samples)
        choose(program, asked.distance)  # an unknown one is refused before the work
        if any(one.recover is not None for one in self.asks):
            objective(program, asked.distance)  # and outputs that nothing can be trained by
        # statistics are gathered of every batch, and see by themselves
        for tune in {id(one.finetune): one.finetune for one in self.asks}.values():
            if isinstance(tune, SGD) and not any_mapped(self.model.parameters()):
                tune.check_on(self.model)
        _check_finite(self.model, form.graph, data, 1 if all(one.method.statistics for one in self.asks) else None)
        distance, others = resolve(program, asked.distance, data), elsewhere(self.model, program, data.batches)
        return Captured(self.model, form, inputs, data, bench, distance, others)

    def _form(self, samples: Samples) -> tuple[Form, Any]:
        """The captured form, and the batch that it was captured with: copies, for a model may write into its inputs."""
        asked = self.settings
        inputs: Any = pytree.tree_map_only(Tensor, Tensor.clone, samples.inputs)
        return capture_form(self.model, inputs, asked.form, norms=asked.norms, seed=asked.seed), inputs

    def rank(self, captured: Captured) -> Ranked:
        """Gather what the groups are ranked by, and rank them."""
        with self.ledger.stage("capture"):
            proving = self.settings.ranks.together(lambda: captured.form.few(self.model, captured.inputs))
        with self.ledger.stage("statistics"):
            gathered = self.gather(captured)
        return Ranked(proving, gathered, *self._guided(captured.graph, gathered))

    def rank_again(self, captured: Captured, ranked: Ranked) -> Ranked:
        """By another method, with the statistics that there are."""
        stats, found = self._guided(captured.graph, ranked.gathered)
        return replace(ranked, stats=stats, guide=found)

    def gather(self, captured: Captured) -> Stats | None:
        """The statistics, where any method asks for some. By all ranks, each of its share of the batches, where rank 0
        does not have them from an earlier run."""
        if not any(one.method.statistics for one in self.asks):
            return None
        if self.known_stats is not None and not self.ledger.frozen:
            return self.known_stats
        ranks, keeping, name = self.settings.ranks, self.ledger.keeping, self.ledger.name("statistics")

        def collected(data: Calibration | None = None, **part: int) -> Stats:
            return self._collected(captured.graph, captured.data if data is None else data, **part)

        if ranks.world == 1:
            return keeping.of_first(name, STATISTICS, collected)
        return keeping.of_all(name, STATISTICS, lambda: collect_across(ranks, captured.data, collected))

    def _collected(self, graph: Graph, data: Calibration, **part: int) -> Stats:
        """Of all batches, or of some: then `collect` has to know of which."""
        asked = self.settings
        measures = dict.fromkeys(name for one in self.asks for name in one.method.measures)
        return collect(graph, data, measures=measures, loss=asked.loss, memory_limit=asked.memory_limit, **part)

    def _guided(self, graph: Graph, gathered: Stats | None) -> tuple[Stats | None, Guide]:
        """The guide of the method, and the statistics that it is made of."""
        asked, ledger = self.settings, self.ledger
        stats = gathered if asked.method.statistics else None

        def look() -> Guide:
            return guide(graph, stats, method=asked.name, threshold=asked.threshold, seed=asked.seed)

        with ledger.stage("guide"):
            if asked.journal is None:
                return stats, look()
            groups = ledger.keeping.of_first(ledger.name(f"guide{ledger.ranking}"), GUIDE, lambda: look().groups)
            asks = questions_of(graph, stats, asked.name)
            return stats, Guide(asked.name, groups, asks, asked.threshold)


def labelled(asks: Iterable[Settings]) -> bool:
    """Whether samples have to come with labels."""
    return any(wants_labels(asked.method.measures, asked.loss) for asked in asks)


def _check_finite(model: nn.Module, graph: Graph, data: Calibration, most: int | None) -> None:
    """That the outputs of the first batches are finite, of so many at most; of networks that lie in files, of one."""
    large = any_mapped(model.parameters())
    for number, batch in enumerate(data.batches[: 1 if large else most]):
        outputs = [out for out in run_batch(graph.program, batch, number) if isinstance(out, Tensor)]
        if all(bool(out.isfinite().all()) for out in outputs):
            continue
        collect(graph, data.part([number]))  # it names the first layer that is at fault
        if any(bool(out.isnan().any()) or not bool(out.isfinite().any()) for out in outputs):
            raise DataError(
                f"{name_of(model)} does not give finite outputs.",
                expected="finite outputs on the calibration data",
                got="NaN or infinite values",
                where=f"calibration batch {number + 1}",
                hint="look for NaN or infinite entries in the calibration data and in the weights; every layer gives "
                "finite values, so that it may be what stands behind the last one",
            )
