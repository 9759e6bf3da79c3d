"""The suites: names of models, and a small builder for each suite.

The names are plain data, so that listing them costs nothing; a suite's library is imported when a model is built.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage.suites import evaluated, keras_models, timm_models, torchvision_models, transformers_models
from benchmarks.coverage.suites.case import Case
from benchmarks.coverage.suites.weights import redraw

SUITES = ("torchvision", "timm", "transformers", "keras", "eval")


def names(suite: str, eval_folder: Path | None = None) -> list[str]:
    """The models of a suite, in the order they are measured; no `eval` model without its folder."""
    if suite == "eval":
        return list(evaluated.FILES) if eval_folder is not None else []
    return {
        "torchvision": torchvision_models.names,
        "timm": timm_models.names,
        "transformers": transformers_models.names,
        "keras": keras_models.names,
    }[suite]()


def build(suite: str, name: str, eval_folder: Path | None = None, seed: int = 0) -> Case:
    """One model with weights drawn anew (pretrained ones stay as they are) and a maker of inputs for it."""
    if suite == "eval":
        if eval_folder is None:
            raise ValueError("the models of suite 'eval' need --eval-folder")
        return evaluated.build(name, eval_folder)
    builders = {
        "torchvision": torchvision_models.build,
        "timm": timm_models.build,
        "transformers": transformers_models.build,
        "keras": keras_models.build,
    }
    case = builders[suite](name)
    redraw(case.model, seed)
    return case
