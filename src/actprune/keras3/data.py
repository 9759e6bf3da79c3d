"""Calibration data as Keras users hold it: arrays, (x, y), dicts of arrays, `PyDataset`, `tf.data`, loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actprune.data.batches import chunk
from actprune.data.parts import parted
from actprune.data.take import SIZE
from actprune.errors import DataError
from actprune.keras3.backend import keras_on_torch
from actprune.keras3.inputs import has_own_call, side_by_side


class Batches:
    """Calibration data for a Keras model as batches that the engine takes; as often as the data can be iterated over.

    A tuple (x, y) or (x, y, weights) of arrays is what `fit` takes: all samples. A dict of arrays holds all samples
    under the names of the inputs. Everything else is an iterable of batches; of a tuple or list the first element is
    the input, or the first ones where the model has several, see `parted`.
    """

    def __init__(self, data: Any, model: Any) -> None:
        self.data, self.model = data, model
        self.free = has_own_call(model)  # its inputs have no names, and any dtypes
        self.dtypes = {} if self.free else {tensor.name: tensor.dtype for tensor in model.inputs}
        self.inputs = side_by_side(model) if self.free else len(self.dtypes)

    def __iter__(self) -> Iterator[Any]:
        for batch in _batches(self.data, self.inputs):
            yield self._batch(batch)

    def _batch(self, batch: Any) -> Any:
        """(inputs, labels) of tensors: one input, a tuple of them in the model's order, or a dict of them."""
        x, rest = parted(batch, self.inputs) if isinstance(batch, tuple | list) else (batch, ())
        if self.free:
            inputs: Any = keras_on_torch().tree.map_structure(_free, tuple(x) if isinstance(x, list) else x)
        elif isinstance(x, Mapping):
            known = {name: x[name] for name in self.dtypes if name in x}
            if len(known) < len(self.dtypes):
                raise DataError(
                    f"A calibration batch lacks inputs of {self.model.name}.",
                    expected=f"a dict with {', '.join(self.dtypes)}",
                    got=", ".join(map(str, x)),
                    where="calibration",
                    hint="name the entries like the Input layers of the model",
                )
            inputs = {name: _tensor(value, self.dtypes[name]) for name, value in known.items()}
        elif isinstance(x, tuple | list) and len(x) != len(self.dtypes):
            raise DataError(
                f"A calibration batch has another number of inputs than {self.model.name}.",
                expected=f"{len(self.dtypes)}: {', '.join(self.dtypes)}",
                got=f"{len(x)}",
                where="calibration",
                hint="pass arrays, one for each input, in the order of model.inputs",
            )
        elif isinstance(x, tuple | list):
            inputs = tuple(_tensor(value, dtype) for value, dtype in zip(x, self.dtypes.values(), strict=True))
        else:
            inputs = _tensor(x, next(iter(self.dtypes.values())))
        return (inputs, *(_label(label) for label in rest[:1] if label is not None))


def _batches(data: Any, inputs: int) -> Iterable[Any]:
    keras = keras_on_torch()
    if hasattr(data, "to_numpy") and hasattr(data, "iloc"):  # a table of pandas, which `fit` takes as well
        data = data.to_numpy()
    iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if isinstance(data, str | bytes | np.generic) or not iterable:
        raise DataError(
            "This is no calibration data.",
            expected="arrays, (x, y), a dict of arrays, or an iterable of batches",
            got=repr(data)[:100],
            where="calibration",
            hint="pass what fit takes; numpy.load(path)[name] reads an array of an .npz",
        )
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(data.num_batches or 1 << 62))
    several = inputs > 1 and isinstance(data, tuple) and any(_are_arrays(one, inputs) for one in data[:1])
    whole = several or (isinstance(data, tuple) and len(data) in (2, 3) and not isinstance(data[0], tuple))
    if inputs > 1 and _are_arrays(data, inputs):
        return _split((data,))  # without labels: one array alone is no batch for such a model
    if whole or isinstance(data, Mapping) or _is_array(data):
        return _split(data)
    return data


def _split(data: Any) -> Iterator[Any]:
    """All samples → batches of which as few samples as can be are left over."""
    count = len(_first(data))
    size = chunk(min(count, SIZE))
    for start in range(0, count, size):
        yield _sliced(data, slice(start, start + size))


def _first(data: Any) -> Any:
    while isinstance(data, Mapping | tuple | list):
        data = next(iter(data.values() if isinstance(data, Mapping) else data))
    return data


def _sliced(data: Any, part: slice) -> Any:
    if isinstance(data, Mapping):
        return {name: _sliced(value, part) for name, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(None if value is None else _sliced(value, part) for value in data)
    return data[part]


def _label(value: Any) -> Any:
    """Numbers as a tensor; labels of several outputs, and those that are none, as they are."""
    if isinstance(value, Mapping) or (isinstance(value, tuple | list) and not all(map(np.isscalar, value))):
        return value
    found = value if isinstance(value, Tensor) else np.array(value)
    return value if isinstance(found, np.ndarray) and found.dtype.kind not in "biufc" else _tensor(value)


def _are_arrays(value: Any, count: int) -> bool:
    """Whether it is a list of so many arrays with as many samples."""
    return (
        isinstance(value, tuple | list)
        and len(value) == count
        and all(_is_array(one) and one.ndim > 0 for one in value)
        and len({len(one) for one in value}) == 1
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _free(value: Any) -> Tensor:
    """As Keras takes what it is called on: floats as single ones."""
    found = _tensor(value)
    return found.float() if found.is_floating_point() else found


def _tensor(value: Any, dtype: str | None = None) -> Tensor:
    """A tensor of anything that NumPy can read, of the dtype that the model's input has."""
    found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    return found if dtype is None else found.to(getattr(torch, dtype))
