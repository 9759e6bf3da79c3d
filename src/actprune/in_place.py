"""A result that takes the place of the caller's own model."""

from __future__ import annotations

from torch import Tensor, nn

from actprune.errors import DataError
from actprune.result import Result


def not_in_place(form: str) -> DataError:
    return DataError(
        "A graph is a module of its own: it can't take the place of the model.",
        expected='form="class" with inplace=True',
        got=f"form={form!r}",
        where="prune(form=…, inplace=True)",
        hint="leave inplace out, and use the model that prune returns",
    )


def check_replaceable(result: Result) -> None:
    """That the fine-tuned weights fit into the caller's own model, once it is cut."""
    cut_model = result.model if result.before_finetune is None else result.before_finetune
    expected, got = map(_shapes, (cut_model, result.model))
    if expected != got:
        name = min(expected.items() ^ got.items())[0]
        raise DataError(
            "The fine-tuned model can't replace the caller's.",
            expected=f"{name} of shape {expected[name]}" if name in expected else f"no tensor named {name}",
            got=f"shape {got[name]}" if name in got else "no such tensor",
            where="finetune, with inplace=True",
            hint="let finetune train the model that it is given and return None, or leave inplace out",
        )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a state dict, which may hold extra state besides."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
