"""What a reader of a report must know besides its figures. Each note is a small function of what there is to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from actprune.allocation.budget import Amount, Budget
from actprune.attempt import Attempt
from actprune.axes.capture import Graph
from actprune.axes.groups import Group
from actprune.axes.masks import masked_call
from actprune.captured import Captured, Ranked
from actprune.data_notes import data_notes, some, unlike_outputs
from actprune.graph.program import module_path, op_name
from actprune.graph.rebuilt import Rebuilt
from actprune.guidance.blocks import by_blocks
from actprune.mapped import any_mapped
from actprune.recovery.sgd import SGD
from actprune.settings import Settings
from actprune.stats.room import folds_on_disk, folds_within

FORMS = {
    "class": "The network is of the class that was given.",
    "graph": "The network is the captured graph as a module, without dropout and the branches of training.",
}
"""What the report says of the form that was not a matter of course."""

SLOW, NO_FASTER = 1.3, 0.95
"""Latency is told to be too high at so many times the share of MACs that stays, and at this share of the dense one."""

ENOUGH_ROWS = 10
"""Calibration rows per column below which a refit is said to have had too few."""


@dataclass(frozen=True, eq=False)
class Told:
    """What notes are made of.

    Attributes:
        macs: share of the dense network's that is left.
        dense: metric of the dense network, where there is one.
        dense_ms, final_ms: milliseconds of the dense network and of the one that is returned, if they were measured.
        resampled: whether the ranking could be drawn again from other calibration data.
    """

    settings: Settings
    captured: Captured
    ranked: Ranked
    attempt: Attempt
    budget: Budget | None
    macs: float
    dense_ms: float | None
    final_ms: float | None
    dense: float | None
    resampled: bool

    @property
    def fits(self) -> Collection[Mapping[str, Any]]:
        """What the refit did with every consumer."""
        return self.attempt.rewrite.record.get("consumers", {}).values()

    @property
    def graph(self) -> Graph:
        return self.captured.graph


def notes(told: Told) -> tuple[str, ...]:
    """All that apply, in the order in which they are shown."""
    return tuple(note for of in NOTES for note in of(told))


def of_latency(budget: Budget | None) -> bool:
    """Whether milliseconds were asked for."""
    return budget is not None and budget.cost == "latency"


def _form(told: Told) -> Iterator[str]:
    if told.settings.form != "class":
        yield FORMS[told.captured.form.name]


def _data(told: Told) -> Iterator[str]:
    yield from data_notes(told.captured)


def _unlike(told: Told) -> Iterator[str]:
    if told.settings.method.statistics and (found := unlike_outputs(told.captured)):
        yield (
            f"One layer gives outputs of unlike scale, standard deviations of {found[0]:.2g} to {found[1]:.2g}: the "
            "largest decide. Where all count alike, divide its weight and bias by these, and multiply behind it."
        )


def _budget(told: Told) -> Iterator[str]:
    given, drop, budget = told.settings.budget(), told.settings.max_drop, told.budget
    if budget is None:
        return
    if isinstance(given, Amount) and budget.keep == 1:
        yield f"The dense network is within {given} as it is."
    reached = told.attempt.decided.plan.note.get("budget")
    if drop is not None and reached != str(budget):
        yield f"{budget} would lose more than max_drop={drop:g}: {reached}."


def _drop(told: Told) -> Iterator[str]:
    """A drop in points, where the metric is a share, forbids nothing."""
    drop, dense = told.settings.max_drop, told.dense
    if drop is not None and dense is not None and 0 < dense <= drop:
        yield (
            f"max_drop={drop:g} is as much as the dense network's metric ({dense:.4g}): it forbids nothing. A drop is "
            "in units of the metric: 0.005 is half a point of an accuracy from 0 to 1."
        )


def _worse(told: Told) -> Iterator[str]:
    for step, before, after in told.attempt.worse:
        yield f"The {step} made the metric worse ({before:.4g} → {after:.4g}): the network before it is returned."


def _diverged(told: Told) -> Iterator[str]:
    if (what := told.attempt.diverged) is not None:
        yield f"The fine-tune diverged ({what}): the network before it is returned. A lower learning rate may help."


def _one_batch(told: Told) -> Iterator[str]:
    record = told.attempt.rewrite.record
    judged = told.settings.method.allocation == "sensitivity" or told.settings.recover is not None
    if len(told.captured.data.batches) == 1 and (judged or record.keys() & {"batchnorm", "blocks", "logits"}):
        yield (
            "All calibration samples came as one batch, so that none could be held out: what is said of held-out ones "
            "is said of these. Several smaller batches can be told apart."
        )


def _recovery(told: Told) -> Iterator[str]:
    if (done := told.attempt.recovery) is not None:
        inside = f", which compared {done.values} values inside, too" if done.values else ""
        yield (
            f"The recovery took {done.steps} steps{inside}; on held-out calibration samples the distance to "
            f"the dense network went from {done.distance_before:.4g} to {done.distance_after:.4g}."
        )


def _processes(told: Told) -> Iterator[str]:
    tune, world = told.settings.finetune, told.settings.ranks.world
    if isinstance(tune, SGD) and world > 1:
        yield f"Fine-tuned by {world} processes ({tune.strategy}), each with the whole dense network as teacher."


def _room(told: Told) -> Iterator[str]:
    """What the memory limit took from the statistics."""
    if told.ranked.stats is None:
        return
    whole = folds_on_disk if any_mapped(told.captured.model.parameters()) else folds_within
    wanted, found = whole(told.graph), {name: len(parts) for name, parts in told.ranked.stats.sites.items()}
    fewer = sum(0 < found.get(name, 0) < count for name, count in wanted.items())
    none = len(wanted.keys() - found.keys())
    if fewer or none:
        of = f"of {len(wanted)} consumers"
        yield f"By the memory limit, {fewer} {of} had statistics in fewer folds, and {none} had none."


def _products(told: Told) -> Iterator[str]:
    """Readers that are no layer for each of their matrices: an `einsum` of three operands, a bilinear form."""
    products = (g for g in _cut(told) if g.consumers and all(site.kind == "product" for site in g.consumers))
    blind = [group.name for group in products]
    if blind and told.settings.method.statistics:
        yield (
            f"What reads {some(blind, 3)} is a product of a form that no layer has (three operands, a bilinear form): "
            "those units were ranked by weights alone, and the products are not refitted."
        )


def _computed(told: Told) -> Iterator[str]:
    """Layers that mask what they read: a refit of a weight would have to be undone into what `forward` makes it of."""
    graph, cut = told.graph, [group.key for group in _cut(told)]
    layers = {n.name: n for n in graph.program.nodes if op_name(n).startswith(("aten.linear.", "aten.conv"))}
    masked = [masked_call(name) for name, mask in graph.masks.items() if mask.touches(cut)]
    made = list(dict.fromkeys(module_path(layers[call]) for call in masked if call in layers))
    if made and told.settings.method.statistics:
        yield (
            f"The weights of {some(made, 3)} are computed in forward, as by a spectral norm: what they read was "
            "ranked by weights alone, and they are not refitted. Where it is one, much better is to take it off, "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), and to put it on again after the cut."
        )


def _cut(told: Told) -> list[Group]:
    """The groups that lose units."""
    plan = told.attempt.decided.plan.groups
    return [group for group in told.graph.groups if len(plan[group.name].kept) < group.width]


def _approximate(told: Told) -> Iterator[str]:
    guide = told.ranked.guide
    wide = sum("greedy" in own.orders and by_blocks(guide.problems[name]) for name, own in guide.groups.items())
    if wide and told.ranked.stats is not None:
        yield f"The greedy order of {wide} wide groups is approximate: units were removed several at a time."


def _fewer_samples(told: Told) -> Iterator[str]:
    used = told.attempt.rewrite.record.get("samples", told.captured.data.samples)
    if used < told.captured.data.samples:
        yield f"Refits used {used} of {told.captured.data.samples} calibration samples, by the memory limit."


def _not_refitted(told: Told) -> Iterator[str]:
    if left := [fit for fit in told.fits if "left" in fit]:
        yield f"{len(left)} of {len(told.fits)} consumers were not compensated: {left[0]['module']} {left[0]['left']}."


def _blocks(told: Told) -> Iterator[str]:
    blocks = told.attempt.rewrite.record.get("blocks", {}).values()
    if nearer := [block["left"] for block in blocks if block["left"] < 1]:
        share = sum(nearer) / len(nearer)
        yield (
            f"{len(nearer)} of {len(blocks)} blocks of layers were fitted as a whole: on held-out calibration "
            f"samples, {share:.1%} of a refit's squared error is left on average."
        )
    if failed := [block for block in blocks if "failed" in block]:
        yield (
            f"{len(failed)} of {len(blocks)} blocks of layers could not be fitted as a whole: "
            f"{failed[0]['module']}: {failed[0]['failed']}"
        )


def _recurrent(told: Told) -> Iterator[str]:
    left = {(fit["module"], fit["as_a_whole"]) for fit in told.fits if "as_a_whole" in fit}
    if left:
        layers = "recurrent layer was" if len(left) == 1 else "recurrent layers were"
        yield (
            f"{len(left)} {layers} fitted through all of their time: on held-out calibration samples, "
            f"{sum(share for _, share in left) / len(left):.1%} of a refit's squared error is left on average."
        )
    if failed := {fit["module"]: fit["failed"] for fit in told.fits if "failed" in fit}:
        module, reason = next(iter(failed.items()))
        yield f"Recurrent layers that could not be fitted through all of their time: {len(failed)}. {module}: {reason}"


def _logits(told: Told) -> Iterator[str]:
    if last := told.attempt.rewrite.record.get("logits"):
        yield (
            f"The last layer, {last['module']}, was fitted to the dense network's probabilities: in a trial, "
            f"their divergence on calibration samples that it had not seen went from {last['held_before']:.3g} to "
            f"{last['held_after']:.3g} nats."
        )


def _few_rows(told: Told) -> Iterator[str]:
    refitted = [fit for fit in told.fits if "rows" in fit]
    few = sum(fit["rows"] < ENOUGH_ROWS * fit["columns"] for fit in refitted)
    if few:
        rows = f"fewer than {ENOUGH_ROWS} calibration rows per column"
        yield f"{few} of {len(refitted)} refitted layers had {rows}: more samples would help."


def _sure(told: Told) -> Iterator[str]:
    asked = told.settings.confidence
    cut = bool(told.attempt.decided.plan.kept)
    if isinstance(asked, Integral) and asked > 0 and cut and not told.resampled:  # type: ignore[operator]
        yield (
            f"How sure the ranking is can't be told: that of {told.settings.name} is no matter of the folds of the "
            "calibration data, or there is one fold."
        )


def _speed(told: Told) -> Iterator[str]:
    """What is to be said of the shares of the dense latency and MACs that were reached."""
    if told.final_ms is None or told.dense_ms is None:
        return
    latency, about = told.final_ms / told.dense_ms, told.captured.bench.about()
    where = f"batches of {about['batch_size']} on {about['device']} with {about['threads']} threads"
    if of_latency(told.budget):
        yield f"Latency is {latency:.1%} of the dense network's ({where})."
    elif told.macs < 1 and latency > min(SLOW * told.macs, NO_FASTER):
        norms = any(op_name(node).startswith("aten.batch_norm") for node in told.graph.program.nodes)
        foldable = norms and not isinstance(told.captured.model, Rebuilt)
        folds = ", and result.fold() takes BatchNorm out of the way" if foldable else ""
        yield (
            f"Fewer MACs, but hardly faster: MACs are {told.macs:.0%} of the dense network's, latency is {latency:.0%} "
            f'({where}). keep="latency=50%" aims at milliseconds, round_to="auto" at widths that suit the machine'
            f"{folds}."
        )


NOTES: tuple[Callable[[Told], Iterator[str]], ...] = (
    _form, _data, _unlike, _one_batch, _budget, _drop, _worse, _diverged, _recovery,
    _processes, _room, _products, _computed, _approximate, _fewer_samples, _not_refitted, _blocks, _recurrent, _logits,
    _few_rows, _sure, _speed,
)  # fmt: skip
