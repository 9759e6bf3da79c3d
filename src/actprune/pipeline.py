"""`prune`: from a trained model to a smaller one, proved; a run of its stages is in `actprune.stages`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actprune.allocation.budget import Keep
from actprune.allocation.cost import cost
from actprune.arguments import as_network, settings_of
from actprune.data.calls import Forward
from actprune.distance import Distance
from actprune.distributed import Ranks
from actprune.graph.keep import undisturbed
from actprune.in_place import check_replaceable, not_in_place
from actprune.joining import joined
from actprune.keras3.bridge import keras_result
from actprune.keras3.network import KerasNetwork
from actprune.latency.bench import Latency
from actprune.latency.table import measure_latency
from actprune.memory import MemoryLimit
from actprune.plan import Plan
from actprune.prediction import Prediction
from actprune.recovery.distill import Distill
from actprune.recovery.sgd import SGD
from actprune.result import Result
from actprune.run_folder import check_unfinished, on_disk, open_journal
from actprune.settings import Evaluate, Progress
from actprune.stages import Run
from actprune.stats.gradients import Loss
from actprune.stats.statistics import Stats
from actprune.surgery.slicing import cut


def prune(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    keep: Keep | Plan = None,
    max_drop: float | None = None,
    evaluate: Evaluate | None = None,
    recover: Distill | None = None,
    finetune: SGD | Callable[[nn.Module], Any] | None = None,
    method: str = "sgd-ap",
    allocation: str | None = None,
    compensate: str | None = None,
    batchnorm: bool | str = "auto",
    protect: Sequence[str] = (),
    round_to: int | str = 1,
    equal_widths: bool = False,
    latency: Latency | None = None,
    calibration_size: int = 2048,
    forward: Forward | None = None,
    distance: str | Distance = "auto",
    threshold: float | None = None,
    loss: Loss | None = None,
    norms: bool | str = "auto",
    form: str = "class",
    inplace: bool = False,
    confidence: int | str = 0,
    memory_limit: MemoryLimit = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Cut a trained model to a budget, prove the cut, and give back the same class, smaller.

    Where the cut of a plan can't be proved after all, the groups at fault are frozen and the plan is made again, as
    often as it takes.

    Args:
        model: any module that `torch.export` takes, or a Keras 3 model on the torch backend (docs/keras.md). It is left
            as it was (modes, dtype, hooks, random state), also when an error is raised, unless `inplace`.
        calibration: any iterable of batches: a tensor is the input; of a tuple or list the first element is, as
            in a loader of (x, y), or as many first ones as `forward` can't do without, as in (a, b, y) or ((a, b), y);
            a dict holds keyword arguments, others than the model's are dropped. What an input named `attention_mask` or
            `key_padding_mask` marks as padding is no data (`actprune.stats.padding`).
        keep: the budget: "macs=50%", "params=10%", "bytes=25%", "latency=50%" (measured), "units=70%" (of every
            group, at least one), an amount ("params=500K", "macs=1.5G", "bytes=256KB", "latency=5ms"), a bare
            number (fraction of MACs), a `Budget`, or explicit widths {group name or pattern: units}, or a `Plan`, whose
            units are kept as they are.
            None with `max_drop`: the smallest network within it; None without: the natural widths of the guide.
        max_drop: how much the metric of `evaluate` may fall before any fine-tune, in its units (0.005 is half a point
            of 0–1). With a budget as well, more than the budget is kept where it would lose more; the report says so.
        evaluate: model → metric on validation data, higher is better. Needed for `max_drop`; otherwise it enables
            the correction loop. It gets networks of the user's own class, in eval mode, and may move them
            (`model.to("cuda")`): they are put back.
        recover: a `Distill`: gradient steps towards the dense network's outputs on the calibration inputs, without
            labels, before any fine-tune. The network before is kept where held-out samples or `evaluate` prefer it.
        finetune: an `SGD`, or any callable that trains the model it is given (and may return another). Where `evaluate`
            says that this made it worse, or the loss of an `SGD` becomes NaN or infinite, the network before it is
            returned; the report says so. What it moves (`model.to("cuda")`, `model.bfloat16()`) comes back trained, on
            its device and in its precision.
        method: a preset of criterion, compensation and allocation: see `actprune.METHODS`.
        allocation: "sensitivity", "uniform", "layerwise", "spatial" or "global" instead of the method's.
        compensate: "reconstruct", "least_squares", "ridge_map", "bias" or "none" instead of the method's.
        batchnorm: re-estimate BatchNorm statistics: True, False, or "auto", where held-out samples say it helps.
        protect: patterns of module paths (as in `fnmatch`) whose own units all stay.
        round_to: widths become multiples of it, for hardware that likes them; "auto": of 1, 4, 8 or 16, as the
            network's own shapes are fastest.
        equal_widths: one width for all groups that have one place in repeated blocks (`layers.*.mlp.up_proj`), as a
            configuration with one number for all layers has it. Widths given in `keep` stay as they are.
        latency: a `Latency`: the device and the batch size whose milliseconds are meant, in a budget and in the report.
            Without it, those of the calibration batches where the model is.
        calibration_size: samples taken from `calibration`, once.
        forward: `forward(model, batch)`, where a batch isn't called as above. Only the arguments of its call of the
            model are noted; what it returns is ignored: `model(**batch).logits` says the same as `model(**batch)`.
        distance: how outputs are compared: "auto", "kl", "mse", or a function of two lists, the outputs of the dense
            network and of another one, a tuple of tensors for each batch → a number ≥ 0.
        threshold: for method "filter".
        loss: for the methods "taylor" and "sgd-ap-fisher": (outputs as the model returns them, labels) → scalar, the
            labels being what stands behind the inputs in every calibration tuple, or "labels" in a dict. Without it,
            the loss of the model's own predictions (`actprune.stats.gradients`), which needs no labels.
        norms: which axes that a norm or a mean runs over may be cut: "auto", what lies within a branch (the hidden
            layer in front of a norm, the queries of an attention); True, streams as well (the width of a transformer);
            False, none. Their statistics are then those of the units that stay, so the network changes even where
            nothing else is lost: for the width of a transformer plan a fine-tune.
        form: "class", or "graph" for the captured graph as a module (`as_graph`): nothing is frozen then because the
            class can't follow it, but there is no dropout and no branch of training. "auto": the class, unless it can
            carry cuts of less than half of the parameters that the graph could be cut in; the report says which.
        inplace: change `model` itself, once everything is proved; only in the form "class".
        confidence: so many resamples of the calibration data tell, in the report, which units other data would have
            kept as well (`actprune.confidence`); each takes as long as the guide. 0: none; "auto": 5 if that is quick.
        memory_limit: what statistics may take, and what refits may hold of the samples: "4GB", bytes, or None for a
            quarter of what the machine or the container has. Where they would take more, statistics have fewer folds
            and refits fewer samples; the report says so, and what the process held at most.
        seed: of everything random (the method "random", the redrawn weights of the proof).
        save_to: write a run folder there at the end; checked before any work. Until then every stage leaves its result
            in `save_to` + ".unfinished", and begins with the same random state (`seed`).
        resume: go on from what an interrupted run with the same model, data and settings left there, if there is any:
            the end is the same, byte for byte. A run that is finished is refused: `load` reads it.
        progress: called with (stage, done, total).

    Raises:
        CaptureError, UnsupportedModelError, BudgetError, PlanError, DataError, ArtifactError: see their texts; each
            says what was expected, what was given, where, and what to do.
        EquivalenceError: the proof failed; nothing is returned or changed.
    """
    return pruned(as_network(locals()))  # the arguments: nothing else has a name yet


def pruned(given: Mapping[str, Any], known_stats: Stats | None = None, teacher: nn.Module | None = None) -> Result:
    """What `prune` does, with its arguments as the engine takes them; they may hold `Samples` instead of batches.

    Args:
        known_stats: statistics that were gathered for this model and data before.
        teacher: what recovery and fine-tune aim at; None: the model that is pruned.
    """
    save_to, resume, inplace = given["save_to"], given["resume"], given["inplace"]
    if inplace and given["form"] != "class":
        raise not_in_place(given["form"])
    with ranks_of(given) as ranks, open_journal(ranks, save_to, resume) as journal:
        job = Run(given["model"], settings_of(given, journal, ranks), known_stats, teacher=teacher)
        begun = resume and journal is not None and journal.folder.exists()
        on_disk(ranks, save_to, lambda path: check_unfinished(path, resume, begun))
        with undisturbed(job.model):
            result = returned(job(given["calibration"], given["calibration_size"], given["forward"]))
        if inplace:
            ranks.together(lambda: check_replaceable(result))
        on_disk(ranks, save_to, lambda path: result.save(path, overwrite=begun and path.exists()))
        if journal is not None:
            journal.remove()
    if inplace:
        cut(given["model"], result.plan, result.rewrite, inplace=True)
        given["model"].load_state_dict(result.model.state_dict())
        result = replace(result, model=given["model"])
    return result


def predict(model: nn.Module, calibration: Iterable[Any], **arguments: Any) -> Prediction:
    """What `prune` with these arguments would do, without doing it: nothing is cut, trained or written.

    Where a cut turns out later not to be provable, `prune` makes its plan again, so it may differ from this one.

    Args:
        arguments: those of `prune`, of which `recover`, `finetune`, `inplace`, `save_to` and `resume` are not used.
    """
    given = arguments_of(model, calibration, arguments)
    with ranks_of(given) as ranks, open_journal(ranks, None, False) as journal:
        job = Run(given["model"], settings_of(given, journal, ranks))

        with undisturbed(job.model):
            plan, captured = job.decide(given["calibration"], given["calibration_size"], given["forward"])
            graph = captured.graph

            def milliseconds() -> list[float]:
                table = measure_latency(job.model, graph, bench=captured.bench)
                return [table({}), table(plan.widths)]

            before, after = cost(graph), cost(graph, plan.widths)
            return Prediction(plan, before, after, *ranks.from_first(milliseconds))


def arguments_of(model: nn.Module, calibration: Iterable[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of `prune`; `TypeError` where it has no argument of such a name."""
    bound = inspect.signature(prune).bind(model, calibration, **arguments)
    bound.apply_defaults()
    return as_network(bound.arguments)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse whatever can be told to be wrong of the arguments of `prune` before there is a model."""
    settings_of(arguments_of(nn.Identity(), (), arguments)).budget()


def returned(result: Result) -> Result:
    """The result as the caller gets it: with Keras models, where one was given."""
    return keras_result(result) if isinstance(result.model, KerasNetwork) else result


def ranks_of(given: Mapping[str, Any]) -> AbstractContextManager[Ranks]:
    """The processes of the run, see `actprune.distributed`."""
    device = next((p.device for p in given["model"].parameters()), torch.device("cpu"))
    return joined(device)
