"""Files that deploy: `model.onnx` and `model.pt2`, for any batch size, each executed and compared first."""

from __future__ import annotations

import inspect
import warnings
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
from actprune.graph.rebuilt import Rebuilt
from actprune.graph.trace import call_arguments
from actprune.proof.compare import relative_error

TOLERANCE = 1e-4
"""Relative error of the outputs in float32."""

Outputs = list[Tensor]


def export(model: nn.Module, example_inputs: Any, path: str | Path) -> Path:
    """Write a model as the ending of `path` says: `.onnx` (runs in onnxruntime) or `.pt2` (`torch.export.load`).

    The first dimension of every input is taken to be the batch, which may then have any size.

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
    with torch.no_grad(), new_file(place) as scratch:
        try:
            write(plain, args, kwargs, scratch)
            for part in (slice(None), slice(0, 1)):
                some = pytree.tree_map_only(Tensor, lambda x, part=part: x[part].clone(), (args, kwargs))
                expected, found = _tensors(plain(*some[0], **some[1])), run(scratch, *some)
                _check_same(expected, found, place)
        except ArtifactError:
            raise
        except Exception as error:  # whatever an exporter or a runtime raises
            got = f"{type(error).__name__}: {str(error)[:300]}"
            hint = _OWN_CLASS if "regist" in got else _OTHERWISE
            raise _failed(place, "a model that can be exported for any batch size", got, hint) from error
    return place


def _check_same(expected: Outputs, found: Outputs, path: Path) -> None:
    error = relative_error(expected, found)
    if error > TOLERANCE:
        hint = "export in float32, without channels_last, and report it where that does not help"
        raise _failed(path, f"outputs as of the model, to {TOLERANCE:g}", f"a relative error of {error:.1e}", hint)


def _dynamic(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """For every argument by its name, what `**kwargs` takes as one of them, the dimension that may have any size."""
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(lambda x: {0: Dim.DYNAMIC} if isinstance(x, Tensor) and x.dim() else None, dict(given))


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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch 2.13 on itself
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


_OTHERWISE = 'install actprune[onnx] for ONNX; else export the graph form, form="graph"'

_OWN_CLASS = (
    "put the model into a module whose forward returns a plain tuple or dict; a dataclass can also be registered, "
    'torch.export.register_dataclass(Out, serialized_type_name="Out")'
)


def _failed(path: Path, expected: str, got: str, hint: str) -> ArtifactError:
    return ArtifactError(f"{path.name} is not written.", expected=expected, got=got, where=str(path), hint=hint)
