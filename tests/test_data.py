"""Calibration data: whatever users iterate over becomes equal batches, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import actprune as ap
from actprune.data.parts import needed
from actprune.data.samples import Calibration, Samples
from actprune.data.take import first_batch, fit, take
from actprune.errors import DataError
from actprune.graph.program import Program
from actprune.graph.trace import trace

X = torch.arange(40, dtype=torch.float32).reshape(10, 4)
Y = torch.arange(10)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Masked(nn.Module):
    """Two keyword inputs and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(ids * mask) * scale


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(a + b)


def says(error: DataError, *words: str) -> None:
    """The message has all four parts, and these words."""
    text = str(error)
    for label in ("expected: ", "got: ", "where: ", "next: "):
        assert label in text, text
    for word in words:
        assert word in text, text


def only(samples: Samples) -> Tensor:
    (leaf,) = samples.leaves
    return leaf


# ---- every form of data


@pytest.mark.parametrize(
    "batches",
    [
        [X[:4], X[4:8], X[8:]],
        [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])],
        [[X[:4], Y[:4]], [X[4:8], Y[4:8]], [X[8:], Y[8:]]],
        [((X[:4],), Y[:4]), ((X[4:8],), Y[4:8]), ((X[8:],), Y[8:])],
        [{"x": X[:4], "label": Y[:4]}, {"x": X[4:8], "label": Y[4:8]}, {"x": X[8:], "label": Y[8:]}],
        [({"x": X[:4]}, Y[:4]), ({"x": X[4:8]}, Y[4:8]), ({"x": X[8:]}, Y[8:])],
        [(X[:4].numpy(), Y[:4].numpy()), (X[4:8].numpy(), Y[4:8].numpy()), (X[8:].numpy(), Y[8:].numpy())],
        DataLoader(TensorDataset(X, Y), batch_size=4),
    ],
    ids=["tensor", "tuple", "list", "nested tuple", "dict with extra keys", "tuple of dict", "numpy", "ragged loader"],
)
def test_every_form_of_batch_gives_the_same_samples(batches: Any) -> None:
    samples = take(Net(), batches, 100)
    assert torch.equal(only(samples), X)
    assert (samples.count, samples.batch_size, samples.batched) == (10, 4, (True,))
    args, kwargs = samples.example()
    assert torch.equal(next(iter((*args, *kwargs.values()))), X[:4])


def test_one_tensor_holds_all_samples() -> None:
    assert torch.equal(only(take(Net(), X, 100)), X)
    assert torch.equal(only(take(Net(), X.numpy(), 100)), X)  # type: ignore[arg-type]


def test_a_generator_is_read_only_as_far_as_needed() -> None:
    read: list[int] = []

    def batches() -> Iterator[Tensor]:
        for i in range(0, 10, 2):
            read.append(i)
            yield X[i : i + 2]

    samples = take(Net(), batches(), 3)
    assert torch.equal(only(samples), X[:3])
    assert read == [0, 2]


def test_the_calibration_size_cuts_the_last_batch() -> None:
    samples = take(Net(), [X[:4], X[4:8]], 6)
    assert (samples.count, samples.batch_size) == (6, 4)
    assert torch.equal(only(samples), X[:6])


def test_a_first_batch_larger_than_the_calibration_size() -> None:
    samples = take(Net(), [X], 3)
    assert (samples.count, samples.batch_size) == (3, 3)


def test_empty_batches_are_passed_over_also_at_the_start() -> None:
    samples = take(Net(), [X[:0], X[:4], X[:0], X[4:8]], 100)
    assert (samples.count, samples.batch_size) == (8, 4)


def test_forward_says_how_to_call_the_model() -> None:
    seen: list[str] = []

    def forward(model: Any, batch: Any) -> Any:
        seen.append(type(model.fc).__name__)  # attributes are the model's own
        return model(ids=batch["deep"]["x"], mask=batch["m"], scale=2.0).sum()

    batches = [{"deep": {"x": X[i : i + 5]}, "m": torch.ones(5, 1)} for i in (0, 5)]
    samples = take(Masked(), batches, 100, forward)
    args, kwargs = samples.example()
    assert args == ()
    assert list(kwargs) == ["ids", "mask", "scale"]
    assert torch.equal(kwargs["ids"], X[:5])
    assert kwargs["scale"] == 2.0
    assert seen == ["Linear", "Linear"]


def test_the_order_of_keys_may_differ_between_batches() -> None:
    ones = torch.ones(2, 4)
    samples = take(Masked(), [{"ids": X[:2], "mask": ones}, {"mask": ones, "ids": X[2:4]}], 100)
    assert torch.equal(samples.example()[1]["ids"], X[:2])
    assert torch.equal(samples.leaves[0], X[:4])


def test_an_input_without_a_batch_dimension_is_passed_as_it_is() -> None:
    samples = take(Masked(), [{"ids": X[:3], "mask": torch.tensor([[1.0, 0, 1, 0]])}], 100)
    assert samples.batched == (True, False)
    assert torch.equal(samples.batch(1, 2)[0], X[1:2])
    assert torch.equal(samples.batch(1, 2)[1], torch.tensor([[1.0, 0, 1, 0]]))


# ---- what can't be taken


@pytest.mark.parametrize("nothing", [[], [X[:0]], iter(()), [()]], ids=["list", "no samples", "used up", "empty tuple"])
def test_no_data(nothing: Any) -> None:
    with pytest.raises(DataError, match="empty") as error:
        take(Net(), nothing, 100)
    says(error.value, "where: calibration", "used up")


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("abc", ["can't be iterated over", "got: 'abc'", "load what lies there"]),
        ([("label", X)], ["of no kind that actprune knows", "got: str"]),
        ([(["a", "b"], X)], ["no tensor with a batch dimension", "got: str, str"]),
        ([torch.tensor(1.0)], ["no tensor with a batch dimension", "got: Tensor"]),
        (3, ["can't be iterated over", "got: int", "[batch]"]),
        ([{"image": X}], ["No key of the batch", "keys among x", "got: image"]),
        ([X[:4], X[4:, :3]], ["do not fit together", "shape (4,) and float32", "got: shape (3,) and float32"]),
        ([X[:4], X[4:].double()], ["do not fit together", "got: shape (4,) and float64"]),
        ([X[:4], {"x": X[4:]}], ["do not fit together", "got: TreeSpec"]),
    ],
    ids=["str", "str in tuple", "strings", "scalar", "not iterable", "keys", "shapes", "dtypes", "structure"],
)
def test_what_is_no_batch_is_refused(calibration: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as error:
        take(Net(), calibration, 100)
    says(error.value, *words)


def test_inputs_of_unequal_batch_sizes() -> None:
    good = {"ids": X[:4], "mask": torch.ones(4, 4)}
    with pytest.raises(DataError, match="do not fit together") as error:
        take(Masked(), [good, {"ids": X[:4], "mask": torch.ones(3, 4)}], 100)
    says(error.value, "4 samples in every input", "got: 3 in input 1")


def test_an_input_without_a_batch_dimension_keeps_its_shape() -> None:
    with pytest.raises(DataError, match="which holds no samples") as error:
        take(Masked(), [{"ids": X[:3], "mask": torch.ones(1, 4)}, {"ids": X[:3], "mask": torch.ones(1, 1)}], 100)
    says(error.value, "input 1", "shape (1, 4)", "got: shape (1, 1)")


def test_an_input_without_a_batch_dimension_may_change() -> None:
    masks = torch.ones(1, 4), torch.tensor([[0.0, 1, 1, 1]])
    taken = take(Masked(), [{"ids": X[:3], "mask": own} for own in masks], 100)
    assert taken.as_they_came and taken.count == 6
    assert all(torch.equal(taken.batch(i, i + 3)[1], own) for i, own in zip((0, 3), masks, strict=True))


def test_a_setting_must_not_change_between_batches() -> None:
    def forward(model: Any, batch: Any) -> Any:
        return model(batch, torch.ones(1, 4), float(batch[0, 0]))

    with pytest.raises(DataError, match="input 2"):
        take(Masked(), [X[:4], X[4:8]], 100, forward)


def test_forward_without_a_call() -> None:
    with pytest.raises(DataError, match="did not call the model") as error:
        take(Net(), [X], 100, lambda model, batch: model.forward(batch))
    says(error.value, "where: forward", "model(…)")


def test_no_samples_asked_for() -> None:
    with pytest.raises(DataError, match="no number of calibration samples") as error:
        take(Net(), [X], 0)
    says(error.value, "calibration_size", "got: 0")


# ---- against a captured program


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(Net(), X[:4])


@pytest.fixture(scope="module")
def masked() -> Program:
    return trace(Masked(), {"ids": X[:4], "mask": torch.ones(4, 4), "label": Y[:4]})


def test_batches_of_any_size_become_those_of_the_capture(program: Program) -> None:
    data = fit(program, [X[:3], X[3:9], X[9:]])
    assert (data.samples, data.left_over, len(data.batches)) == (8, 2, 2)
    assert torch.equal(torch.cat([batch[0] for batch in data.batches]), X[:8])


@pytest.mark.parametrize(
    ("samples", "batch"), [(10, 10), (32, 32), (33, 32), (40, 20), (600, 30), (601, 30), (2048, 32), (5000, 32)]
)
def test_samples_in_one_tensor_make_batches_that_leave_few_over(samples: int, batch: int) -> None:
    """More than half of 32 in each. Of 5000 only the first 2048 are taken."""
    found = take(Net(), torch.zeros(samples, 4), 2048)
    assert (found.batch_size, found.count) == (batch, min(samples, 2048))


class Table:
    """What of a table of pandas is looked at; iterating over it gives the names of its columns."""

    def __init__(self, values: Tensor) -> None:
        self.iloc, self.values = values, values

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.values.shape[1]))

    def to_numpy(self) -> Any:
        return self.values.numpy()


def test_a_table_and_a_dict_of_tensors_hold_all_samples() -> None:
    x = torch.arange(240.0).reshape(60, 4)
    found = take(Net(), Table(x), 2048)  # type: ignore[arg-type]
    assert (found.batch_size, found.count) == (30, 60) and torch.equal(found.leaves[0], x)
    named = take(Masked(), {"ids": x.numpy(), "mask": torch.ones(60, 4), "scale": 2.0, "label": "unused"}, 2048)
    assert (named.batch_size, named.count) == (30, 60)
    kwargs = named.inputs
    assert torch.equal(kwargs["ids"], x[:30]) and kwargs["scale"] == 2.0
    assert take(Net(), {"x": x}, 2048).inputs["x"].shape == (30, 4)


def test_a_dict_of_tensors_of_several_lengths_is_refused() -> None:
    with pytest.raises(DataError, match="not of one number") as caught:
        take(Masked(), {"ids": torch.zeros(60, 4), "mask": torch.ones(1, 4)}, 2048)
    assert "ids: 60, mask: 1" in str(caught.value) and "[batch]" in str(caught.value)
    assert take(Net(), Table(torch.zeros(60, 4, dtype=torch.float64)), 2048).leaves[0].dtype == torch.float32  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [X, X.numpy(), [X[:5], X[5:]], Table(X)])
def test_the_first_batch_is_a_batch(data: Any) -> None:
    (x,) = first_batch(Net(), data)
    assert x.shape in ((10, 4), (5, 4))


def test_samples_and_calibrations_are_taken_as_they_are(program: Program) -> None:
    samples = take(Net(), [(X, Y)], 100)
    data = fit(program, samples)
    assert (data.samples, data.left_over) == (8, 2)
    assert fit(program, data) is data


def test_the_default_size_and_another_one(program: Program) -> None:
    assert fit(program, torch.zeros(3000, 4)).samples == 2048
    assert fit(program, torch.zeros(3000, 4), 10).samples == 8


def test_keys_in_another_order_and_more_of_them(masked: Program) -> None:
    (batch,) = fit(masked, [{"label": Y[:4], "mask": torch.zeros(4, 4), "ids": X[:4]}]).batches
    assert torch.equal(batch[0], X[:4])
    assert torch.equal(batch[1], torch.zeros(4, 4))


def test_nested_tuples_are_several_inputs() -> None:
    program = trace(Pair(), (X[:4], X[:4]))
    (batch,) = fit(program, [((X[:4], X[4:8]), Y[:4])]).batches
    assert torch.equal(batch[1], X[4:8])
    with pytest.raises(DataError, match="structure"):
        fit(program, [(X[:4], None)])


def test_a_model_that_needs_two_inputs_takes_them_from_a_flat_batch() -> None:
    """As a `TensorDataset` of (a, b, labels) gives them."""
    for batch in ((X[:4], X[4:8], Y[:4]), [X[:4], X[4:8], Y[:4]], ((X[:4], X[4:8]), Y[:4])):
        taken = take(Pair(), [batch], 8, labels=True)
        assert taken.labels is not None
        assert torch.equal(taken.labels, Y[:4])
        assert torch.equal(taken.leaves[1], X[4:8])
        (known,) = fit(trace(Pair(), (X[:4], X[:4])), [batch]).batches
        assert torch.equal(known[1], X[4:8])
    with pytest.raises(DataError, match="no labels") as error:
        take(Pair(), [(X[:4], X[4:8])], 8, labels=True)
    says(error.value, "got: none")


class Padded(nn.Module):
    """Takes its inputs as one tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, lengths = given
        return self.out(self.first(x).relu()) / lengths[:, None]


def test_a_tuple_is_the_one_argument_where_there_is_but_one() -> None:
    batch = ((X[:4], torch.arange(1, 5)), Y[:4] % 2)
    model = Padded().eval()
    result = ap.prune(model, [batch] * 4, keep="units=50%", finetune=ap.SGD([batch], nn.functional.cross_entropy))
    assert result.model.first.out_features == 3
    (known,) = fit(trace(model, (batch[0],)), [batch]).batches
    assert torch.equal(known[1], batch[0][1])


def test_what_a_model_can_do_without_may_be_labels() -> None:
    class Maybe(Pair):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return super().forward(a, a)

    assert len(take(Maybe(), [(X[:4], Y[:4])], 8).leaves) == 1
    assert needed(Pair()) == 2
    assert needed(nn.MultiheadAttention(4, 1)) == 3
    assert needed(nn.LSTM(4, 4)) == needed(Maybe()) == 1


def test_too_few_samples(program: Program) -> None:
    with pytest.raises(DataError, match="fewer calibration samples") as error:
        fit(program, [X[:3]])
    says(error.value, "at least 4", "got: 3", "smaller batch")


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (torch.zeros(4, 5), "samples of shape (5,) and float32"),
        (torch.zeros(4, 4, 4), "samples of shape (4, 4) and float32"),
        (torch.zeros(4, 4, dtype=torch.float64), "samples of shape (4,) and float64"),
    ],
)
def test_another_shape_than_at_capture(program: Program, batch: Tensor, found: str) -> None:
    with pytest.raises(DataError, match="captured shape") as error:
        fit(program, [batch])
    says(error.value, "expected: samples of shape (4,) and float32", f"got: {found}", "input 0 of Net")


def test_another_setting_than_at_capture() -> None:
    captured = trace(Masked(), {"ids": X[:4], "mask": torch.ones(4, 4), "scale": 2.0})
    fit(captured, [{"ids": X[:4], "mask": torch.ones(4, 4), "scale": 2.0}])
    with pytest.raises(DataError, match="captured shape") as error:
        fit(captured, [{"ids": X[:4], "mask": torch.ones(4, 4), "scale": 3.0}])
    says(error.value, "expected: 2.0", "got: 3.0")


def test_a_key_that_the_capture_had_is_missing(masked: Program) -> None:
    with pytest.raises(DataError, match="structure") as error:
        fit(masked, [{"ids": X[:4]}])
    says(error.value, "Masked")


def test_keys_that_the_capture_did_not_have(program: Program, masked: Program) -> None:
    with pytest.raises(DataError, match="captured with") as error:
        fit(masked, [{"image": X[:4]}])
    says(error.value, "Masked", "keys among ids, mask", "got: image")
    with pytest.raises(DataError) as error:
        fit(program, [{"x": X[:4]}])
    says(error.value, "a tensor or a tuple, as at capture")


# ---- parts of a calibration set


def calibration(batches: int) -> Calibration:
    return Calibration(tuple((torch.full((4, 1), float(i)),) for i in range(batches)), 4 * batches, 1)


@pytest.mark.parametrize(("samples", "expected"), [(1, 1), (4, 1), (11, 2), (12, 3), (1000, 5)])
def test_a_subset_is_the_first_batches(samples: int, expected: int) -> None:
    subset = calibration(5).subset(samples)
    assert [float(batch[0][0]) for batch in subset.batches] == list(range(expected))
    assert subset.samples == 4 * expected


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("batches", [2, 3, 4, 5, 8, 13])
def test_a_holdout_parts_the_batches(batches: int, share: float) -> None:
    rest, held = calibration(batches).holdout(share)
    seen = sorted(float(batch[0][0]) for part in (rest, held) for batch in part.batches)
    assert seen == list(range(batches))
    assert len(held.batches) == min(max(1, round(batches * share)), batches - 1)
    assert (rest.samples, held.samples) == (4 * len(rest.batches), 4 * len(held.batches))


def test_one_batch_is_held_out_from_itself() -> None:
    whole = calibration(1)
    assert whole.holdout() == (whole, whole)
