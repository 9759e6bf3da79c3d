"""A Hugging Face folder as a model whose weights stay in its files, read layer by layer as they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actprune.errors import ActpruneError, ArtifactError
from actprune.shards import open_weights

_HINT = "pass a folder that save_pretrained of transformers or of actprune wrote, whole"


def open_pretrained(folder: str | Path, cls: Any = None) -> nn.Module:
    """The model of a Hugging Face folder, which may be larger than memory: its weights are mapped, not read.

    `prune` takes it as any other model. Statistics, refits, slicing and the proof then hold one layer at a time, what
    they make goes to disk (the folder of temporary files: TMPDIR), and `result.save_pretrained` writes shards. On a
    CPU, and read-only: train a copy.

    Args:
        folder: with `config.json` and `model.safetensors`, or an index and the files that it names.
        cls: the class of transformers; None: the one that the configuration names.

    Raises:
        ArtifactError: a file is missing or damaged, or the tensors are not those of the class.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise _not_open(path, "a Hugging Face folder with config.json", "no such file")
    hub = transformers("open_pretrained")
    try:
        config = hub.AutoConfig.from_pretrained(path, local_files_only=True)
        named = (getattr(config, "architectures", None) or [""])[0]
        made = cls or getattr(hub, named, None)
        if made is None:
            raise _not_open(path, "a class that transformers exports", named or "no class in the configuration")
        with _without_memory():
            model = made(config)
        state = open_weights(path)
        said = model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        if (path / "generation_config.json").is_file():
            model.generation_config = hub.GenerationConfig.from_pretrained(path, local_files_only=True)
    except ActpruneError:
        raise
    except Exception as error:  # whatever a class of transformers raises
        got = f"{type(error).__name__}: {str(error)[:300]}"
        raise _not_open(path, "a configuration and the weights of its class", got) from error
    absent = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if absent or said.unexpected_keys:
        got = f"no {absent[0]}" if absent else f"{said.unexpected_keys[0]}, which it has not"
        raise _not_open(path, f"the tensors of {type(model).__name__}", got)
    return model.eval()


def transformers(where: str) -> Any:
    """The package.

    Raises:
        ArtifactError: it is not installed.
    """
    try:
        import transformers as package  # pyright: ignore[reportMissingImports]  # no extra brings it
    except ImportError as error:
        raise ArtifactError(
            "Hugging Face folders need transformers.",
            expected="the package transformers",
            got=str(error),
            where=where,
            hint="pip install transformers",
        ) from error
    return package


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters of modules that are made meanwhile are put on the meta device as they are registered; buffers, such as
    the frequencies of rotary embeddings, which no file holds, are real. (So does accelerate's `init_empty_weights`.)"""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _not_open(path: Path, expected: str, got: str) -> ArtifactError:
    return ArtifactError("The model can't be opened.", expected=expected, got=got, where=str(path), hint=_HINT)
