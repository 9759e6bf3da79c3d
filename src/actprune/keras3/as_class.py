"""A functional model of the user's own class that no config makes: a smaller one gets the class and its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actprune.keras3.copied import Copying


class Unwritten:
    """Mixed into the class of such a model: what its own config would make has the old sizes."""

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(f"the config of {type(self).__name__} does not make it again")


def of_same_class(made: Any, model: Any, copying: Copying) -> Any:
    """`made`, connected as `model` is, with the methods of its class and what its attributes hold of its own layers."""
    kind: Any = next(kind for kind in type(model).__mro__ if Unwritten not in kind.__mro__)
    keras_attributes = vars(made).keys() | made._modules.keys()
    made.__class__ = type(kind.__name__, (Unwritten, kind), {"__module__": kind.__module__})
    copying.made |= {id(old): new for old, new in _pairs(model, made)}
    for name, value in [*vars(model).items(), *model._modules.items()]:
        if name not in keras_attributes and not name.startswith("_"):
            vars(made)[name] = copying.value(value)  # behind the back of Keras, which tracks the layers already
    return made


def _pairs(model: Any, made: Any) -> Iterator[tuple[Any, Any]]:
    """What is called in both, and the symbolic tensors between."""
    yield model, made
    yield from zip(model._operations, made._operations, strict=True)
    for depth, nodes in model._nodes_by_depth.items():
        for old, new in zip(nodes, made._nodes_by_depth[depth], strict=True):
            yield from zip(old.outputs, new.outputs, strict=True)
