"""Files that deploy: `model.onnx` and `model.pt2`, for any batch size, each executed and compared first."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from actprune.artifacts.files import new_file
from actprune.errors import ArtifactError
from actprune.graph.keep import copied
from actprune.graph.program import holds_samples
from actprune.graph.quiet import unwarned
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.trace import call_arguments
from actprune.proof.difference import relative_error
from actprune.proof.trial import first_samples

TOLERANCE = 1e-4
"""Relative error of the outputs in float32."""

Outputs = list[Tensor]


def export(model: nn.Module, example_inputs: Any, path: str | Path) -> Path:
    """Write a model as the ending of `path` says: `.onnx` (runs in onnxruntime) or `.pt2` (`torch.export.load`).

    The first dimension of the first input is taken to be the batch, which may then have any size; so may that of any
    other input, as far as the model lets it (the edges of a graph may be a matrix of two rows).

    Args:
        model: in any mode; it is exported as in eval mode, and left as it was.
        example_inputs: as for `capture`, of two samples or more.

    Raises:
        ArtifactError: another ending, a model that the exporter can't take, or a file whose outputs differ from the
            model's, on these inputs or on a part of them; nothing is written then.
    """
    place = Path(path)
    if place.suffix not in FORMATS:
        raise _failed(place, f"a name that ends in {' or '.join(FORMATS)}", repr(place.suffix), "choose one of them")
    plain = copied(model).eval()
    args, kwargs = call_arguments(plain, example_inputs)
    # of a graph, torch.export takes them in the order of the graph's inputs, whatever their names
    kwargs = {name: kwargs[name] for name in inspect.signature(plain.forward).parameters if name in kwargs} | kwargs
    if "use_cache" in kwargs and hasattr(plain, "config"):  # torch.export has no shapes for what **kwargs takes
        plain.config.use_cache = kwargs.pop("use_cache")  # pyright: ignore[reportAttributeAccessIssue]
    write, run = FORMATS[place.suffix]
    with torch.no_grad(), unwarned(), new_file(place) as scratch:
        try:
            write(plain, args, kwargs, scratch)
            for count in (None, 1):
                some = _samples(args, kwargs, count)
                if count is None or _runs(plain, *_samples(args, kwargs, count)):
                    expected, found = _tensors(plain(*some[0], **some[1])), run(scratch, *some)
                    _check_same(expected, found, place)
        except ArtifactError:
            raise
        except Exception as error:  # whatever an exporter or a runtime raises
            got = _told(error)
            raise _failed(place, "a model that can be exported for any batch size", got, _hint(got)) from error
    return place


def _samples(args: Any, kwargs: Any, count: int | None) -> Any:
    """Copies of the arguments with so many of the samples, or all. Some may hold none, such as the edges of a graph."""
    given = (args, kwargs)
    return pytree.tree_map_only(
        Tensor, Tensor.clone, given if count is None else first_samples(given, _batch(given), count)
    )


def _runs(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether the model itself takes them: of a graph's nodes none may be missing that an edge ends at."""
    try:
        model(*args, **kwargs)
    except Exception:  # whatever a model raises
        return False
    return True


def _batch(given: Any) -> int:
    """The number of samples: the first dimension of the first input that has one."""
    return next((len(x) for x in pytree.tree_leaves(given) if isinstance(x, Tensor) and x.dim()), 1)


def _told(error: BaseException) -> str:
    """What an exporter says in the end, which it wraps in advice of its own."""
    chain = [error]
    while (below := chain[-1].__cause__) is not None:
        chain.append(below)
    lines = [f"{type(one).__name__}: {_COLOURS.sub('', str(one)).strip()[:200]}" for one in chain]
    return lines[0] if len(lines) == 1 else "; ".join(dict.fromkeys((lines[1], lines[-1])))


def _hint(got: str) -> str:
    return next((hint for pattern, hint in _HINTS if re.search(pattern, got)), _OTHERWISE)


def _check_same(expected: Outputs, found: Outputs, path: Path) -> None:
    error = relative_error(expected, found)
    if error > TOLERANCE:
        hint = "export in float32, without channels_last, and report it where that does not help"
        raise _failed(path, f"outputs as of the model, to {TOLERANCE:g}", f"a relative error of {error:.1e}", hint)


def _dynamic(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """For every argument by its name, what `**kwargs` takes as one of them, the dimension that may have any size."""
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    batch = _batch(given)

    def first(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return None
        return {0: Dim.DYNAMIC if holds_samples(value, batch) else Dim.AUTO}

    return pytree.tree_map(first, dict(given))


def _write_pt2(model: nn.Module, args: Any, kwargs: Mapping[str, Any], path: Path) -> None:
    shapes = _dynamic(model, args, kwargs)
    program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=shapes, strict=False)
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_pt2(path: Path, args: Any, kwargs: Mapping[str, Any]) -> Outputs:
    with path.open("rb") as file:
        return _tensors(torch.export.load(file).module()(*args, **kwargs))


def _write_onnx(model: nn.Module, args: Any, kwargs: Mapping[str, Any], path: Path) -> None:
    shapes = _dynamic(model, args, kwargs)
    names = model.input_names if isinstance(model, Rebuilt) and not kwargs else None
    program = torch.onnx.export(
        model, args, kwargs=dict(kwargs), dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
        input_names=names or None,
    )  # fmt: skip
    if program is None:
        raise RuntimeError("the exporter gave no program")
    program.save(str(path))


def _run_onnx(path: Path, args: Any, kwargs: Mapping[str, Any]) -> Outputs:
    import onnxruntime  # pyright: ignore[reportMissingImports]  # of the extra "onnx"

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given = [leaf.detach().cpu().numpy() for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    names = [one.name for one in session.get_inputs()]
    return [torch.as_tensor(out) for out in session.run(None, dict(zip(names, given, strict=True)))]


def _tensors(value: Any) -> Outputs:
    return [leaf.detach().cpu() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


FORMATS: dict[str, tuple[Callable[..., None], Callable[..., Outputs]]] = {
    ".onnx": (_write_onnx, _run_onnx),
    ".pt2": (_write_pt2, _run_pt2),
}


_OTHERWISE = 'export the graph form, form="graph", or the part of the model that the exporter follows'

_OWN_CLASS = (
    "put the model into a module whose forward returns a plain tuple or dict; a dataclass can also be registered, "
    'torch.export.register_dataclass(Out, serialized_type_name="Out")'
)

_HINTS = (
    (r"ModuleNotFoundError|No module named", "pip install 'actprune[onnx]'"),
    (r"ONNX function|translating node", "ONNX, or what writes it, lacks that call: export to .pt2 instead"),
    (r"regist", _OWN_CLASS),
    (r"SyntaxError", "torch.export writes no module that is called by a word of Python (in, class): rename it"),
    (r"specialized|static shape", f"write x.shape[0] for len(x), and no batch size as a number; else {_OTHERWISE}"),
)
"""What an exporter says, as a pattern → what to do."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _failed(path: Path, expected: str, got: str, hint: str) -> ArtifactError:
    return ArtifactError(f"{path.name} is not written.", expected=expected, got=got, where=str(path), hint=hint)
