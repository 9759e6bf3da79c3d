"""The arguments of `prune` as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from actprune.artifacts.journal import Journal
from actprune.distance import DISTANCES
from actprune.distributed import ALONE, Ranks
from actprune.errors import DataError
from actprune.forms import FORMS
from actprune.graph.rebuilt import name_of
from actprune.graph.trace import check_ready
from actprune.keras3.backend import is_keras
from actprune.keras3.bridge import as_batches, check_keras, on_network, training_of
from actprune.keras3.network import KerasNetwork
from actprune.mapped import any_mapped
from actprune.methods import ALLOCATIONS, COMPENSATIONS, Method, known
from actprune.methods import method as preset
from actprune.settings import Settings


def as_network(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `prune` as the engine takes them: for a Keras model its network, and what is given that one."""
    model = given["model"]
    if not is_keras(model):
        check_ready(model)
        _check_weights(model)
        return given
    check_keras(given["form"], given["inplace"])
    data = given["calibration"]
    return {
        **given,
        "model": KerasNetwork(model),
        "calibration": as_batches(data, model) if given["forward"] is None else data,
        "evaluate": on_network(given["evaluate"]),
        "finetune": training_of(given["finetune"]),
    }


def _check_weights(model: nn.Module) -> None:
    empty = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if empty is not None:
        raise DataError(
            f"{name_of(model)} has no weights.",
            expected="parameters with values",
            got=f"{empty} on the meta device",
            where="model",
            hint="load the weights first; actprune.open_pretrained opens a folder without reading them",
        )


def settings_of(given: Mapping[str, Any], journal: Journal | None = None, ranks: Ranks = ALONE) -> Settings:
    """The arguments of `prune`, checked as far as can be told from each alone."""
    budgeted = given["keep"] is not None or given["max_drop"] is not None
    protect, name, distance = given["protect"], given["method"], given["distance"]
    checked = {
        "method": _checked_method(name, _allocation(given), given["compensate"], budgeted),
        "name": name,
        "protect": tuple(protect if isinstance(protect, Iterable) and not isinstance(protect, str) else (protect,)),
        "form": known(given["form"], FORMS, "form"),
        "distance": distance if callable(distance) else known(distance, DISTANCES, "distance"),
        "journal": journal,
        "ranks": ranks,
        "progress": given["progress"] if ranks.first else None,
    }
    chosen: dict[str, Any] = {key.name: checked.get(key.name, given.get(key.name)) for key in fields(Settings)}
    return Settings(**chosen)


def _allocation(given: Mapping[str, Any]) -> str | None:
    """Of a model that lies in files no width is tried by running it, unless that is asked for: the method's own
    sensitivity would read all of it for every candidate."""
    large = any_mapped(given["model"].parameters())
    if given["allocation"] is None and large and preset(given["method"]).allocation != "natural":
        return "uniform"
    return given["allocation"]


def _checked_method(name: str, allocation: str | None, compensate: str | None, budgeted: bool) -> Method:
    chosen = preset(name)
    if chosen.allocation == "natural" and budgeted:  # natural widths know of no budget
        chosen = replace(chosen, allocation="uniform")
    if allocation is not None:
        chosen = replace(chosen, allocation=known(allocation, ALLOCATIONS, "allocation"))
    if compensate is not None:
        chosen = replace(chosen, compensate=known(compensate, COMPENSATIONS, "compensation"))
    return chosen
