"""How far apart outputs are: the choice by the last op, and numbers that can be checked by hand."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actprune.data.samples import Calibration
from actprune.data.take import fit, take
from actprune.distance import choose, divergence, normalised_error, resolve
from actprune.errors import PlanError
from actprune.graph.output_kinds import output_kind
from actprune.graph.program import Program
from actprune.graph.run import run_all
from actprune.graph.trace import trace
from actprune.pipeline import prune
from nets import build


class Ends(nn.Module):
    """Four features through a linear layer and then `end`."""

    def __init__(self, end: Callable[[Tensor], object], outputs: int = 3) -> None:
        super().__init__()
        self.fc, self.end = nn.Linear(4, outputs), end

    def forward(self, x: Tensor) -> object:
        return self.end(self.fc(x))


def same(x: Tensor) -> Tensor:
    return x


ENDS: dict[str, tuple[str, Callable[[Tensor], object], int, tuple[int, ...]]] = {
    "linear": ("logits", same, 3, (5, 4)),
    "flatten": ("logits", lambda x: x[:, :, None].flatten(1), 3, (5, 4)),
    "softmax": ("probabilities", lambda x: x.softmax(1), 3, (5, 4)),
    "softmax, last": ("probabilities", lambda x: F.softmax(x, -1), 3, (5, 4)),
    "log_softmax": ("log_probabilities", lambda x: F.log_softmax(x, 1), 3, (5, 4)),
    "softmax over samples": ("values", lambda x: x.softmax(0), 3, (5, 4)),
    "log_softmax over samples": ("values", lambda x: F.log_softmax(x, 0), 3, (5, 4)),
    "one column": ("values", same, 1, (5, 4)),
    "sigmoid": ("values", torch.sigmoid, 3, (5, 4)),
    "vector": ("values", lambda x: x.sum(1), 3, (5, 4)),
    "three dimensions": ("values", same, 3, (5, 2, 4)),
    "two outputs": ("values", lambda x: (x, x + 1), 3, (5, 4)),
    "a constant beside": ("logits", lambda x: (x, None, 3), 3, (5, 4)),
}
"""Name → what the output is; how the network ends; its outputs; the shape of a batch."""


@cache
def program(name: str) -> Program:
    _, end, outputs, shape = ENDS[name]
    torch.manual_seed(0)
    return trace(Ends(end, outputs).eval(), torch.randn(shape))


@pytest.mark.parametrize("name", ENDS)
def test_the_last_op_tells_what_the_output_is(name: str) -> None:
    assert output_kind(program(name)) == ENDS[name][0]


@pytest.mark.parametrize(("classes", "kind"), [(11, "logits"), (7, "values")])
def test_a_logit_for_every_word(classes: int, kind: str) -> None:
    """Three dimensions, the last as long as the table of words."""
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, classes)).eval()
    found = trace(model, torch.randint(11, (5, 3)))
    assert output_kind(found) == kind
    data = fit(found, found.example[0]).batches
    dense = run_all(found, data)
    assert choose(found)(dense, [(out[0] + torch.arange(classes),) for out in dense]) > 1e-3


@pytest.mark.parametrize(("heads", "kind"), [(1, "logits"), (2, "values")])
def test_steps_of_a_loop_are_logits_where_one_layer_gives_all(heads: int, kind: str) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.heads = nn.Embedding(11, 4), nn.ModuleList(nn.Linear(4, 11) for _ in range(heads))

        def forward(self, words: Tensor) -> Tensor:
            return torch.stack([self.heads[t % heads](self.words(words[:, t])) for t in range(3)], 1)

    assert output_kind(trace(Steps().eval(), torch.randint(11, (5, 3)))) == kind


def test_steps_of_numbers_are_values() -> None:
    """As of a forecaster, which one layer gives one after the other."""

    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.head(x[:, t]) for t in range(3)], 1)

    assert output_kind(trace(Forecaster().eval(), torch.randn(5, 3, 4))) == "values"


class Translating(nn.Module):
    """Gives what its encoder has made as well, as the encoder-decoders of Hugging Face do."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both, self.words = both, nn.Embedding(11, 4)
        self.encode, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 11)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        read = self.encode(self.words(words))
        return self.head(read.tanh()), read if self.both else self.other(self.words(words))


@pytest.mark.parametrize(("both", "kind"), [(True, "logits"), (False, "values")])
def test_what_logits_are_computed_from_is_no_output_of_its_own(both: bool, kind: str) -> None:
    found = trace(Translating(both).eval(), torch.randint(11, (5, 3)))
    assert output_kind(found) == kind


def ending(size: float) -> nn.Module:
    torch.manual_seed(0)
    model = Ends(same)
    with torch.no_grad():
        model.fc.weight *= size
    return model.eval()


@pytest.mark.parametrize(("size", "found"), [(20.0, "kl"), (0.5, "mse")])
def test_outputs_that_are_sure_of_nothing_are_values(size: float, found: str) -> None:
    x = torch.randn(64, 4)
    seen = trace(ending(size), x[:8])
    data = fit(seen, x.split(8))
    assert resolve(seen, "auto", data) == found
    assert resolve(seen, "kl", data) == "kl"
    assert resolve(seen, "mse", data) == "mse"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.randn(64, 3), "mse"),
        (torch.eye(3)[torch.arange(64) % 3] + torch.tensor([0.0, 0.0, 1.0]), "mse"),  # several classes at a time
        (torch.eye(3)[torch.arange(64) % 3].long() | torch.tensor([0, 0, 1]), "mse"),
        ((torch.eye(3)[torch.arange(64) % 3].bool() | torch.tensor([False, False, True])).numpy(), "mse"),
        (torch.eye(3)[torch.arange(64) % 3], "kl"),  # one class
        (torch.eye(3)[torch.arange(64) % 3].long(), "kl"),
        (torch.rand(64, 3).softmax(1).bfloat16(), "kl"),
        (torch.eye(4)[torch.arange(64) % 4][:, :3], "kl"),  # some of no class
        (torch.randn(64, 3).numpy(), "mse"),
        (np.array([list("abc")] * 64), "kl"),
        (torch.randn(64, 3).to_sparse(), "kl"),
        ([["a", "b", "c"]] * 64, "kl"),
        (torch.randn(64, 2), "kl"),  # of another shape
        (torch.arange(64) % 3, "kl"),
        (torch.randn(64), "kl"),
    ],
)
def test_labels_that_are_values_tell_a_regression(labels: Any, found: str) -> None:
    """Outputs far apart look like logits that are sure."""
    x = torch.randn(64, 4)
    model = ending(20.0)
    seen = trace(model, x[:8])
    parts = (
        [labels] if isinstance(labels, Tensor) and labels.is_sparse else [labels[i : i + 8] for i in range(0, 64, 8)]
    )
    data = list(zip(x.split(64 // len(parts)), parts, strict=True))
    samples = take(model, data, 64)
    assert resolve(seen, "auto", fit(seen, data)) == found
    assert resolve(seen, "auto", fit(seen, samples)) == found
    assert pickle.loads(pickle.dumps(samples)).valued == samples.valued
    assert fit(seen, data).part([0, 1]).valued == samples.valued
    assert take(model, x, 64).valued is None
    assert take(model, [{"x": x, "labels": labels}], 64).valued == samples.valued
    assert take(model, data, 64, lambda net, batch: net(batch[0])).valued is None


def test_a_run_goes_by_its_labels() -> None:
    model, x = ending(20.0), torch.randn(64, 4)
    body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), model).eval()
    for labels, found in ((torch.randn(64, 3), "mse"), (torch.zeros(64, dtype=torch.long), "kl")):
        report = prune(body, list(zip(x.split(8), labels.split(8), strict=True)), keep="params=80%").report
        assert report.calibration["distance"] == found


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("classes", [2, 50])
def test_a_trained_classifier_gives_logits(classes: int, optimizer: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, classes))
    centres, steps = 4 * torch.randn(classes, 16), optimizer(model.parameters(), lr=0.01 if classes == 2 else 0.02)
    for _ in range(150):
        labels = torch.randint(classes, (256,))
        loss = F.cross_entropy(model(centres[labels] + torch.randn(256, 16)), labels, label_smoothing=0.1)
        steps.zero_grad()
        loss.backward()
        steps.step()
    x = centres[torch.randint(classes, (64,))] + torch.randn(64, 16)
    seen = trace(model.eval(), x[:8])
    assert resolve(seen, "auto", fit(seen, x.split(8))) == "kl"


@pytest.mark.parametrize(("name", "found"), [("softmax", "kl"), ("log_softmax", "kl"), ("sigmoid", "mse")])
def test_where_the_last_op_says_it_outputs_are_not_looked_at(name: str, found: str) -> None:
    assert resolve(program(name), "auto", Calibration((), 0)) == found


@pytest.mark.parametrize("name", ENDS)
def test_equal_outputs_have_no_distance_and_others_do(name: str) -> None:
    found = program(name)
    batches = fit(found, [found.example[0], found.example[0] + 1]).batches
    dense, cut = (run_all(found, batches, {"fc.weight": found.tensors["fc.weight"] * gain}) for gain in (1, 0.5))
    for distance in ("auto", "mse"):
        assert choose(found, distance)(dense, dense) == pytest.approx(0, abs=1e-12)
        assert choose(found, distance)(dense, cut) > 1e-5
    assert (choose(found) is normalised_error) == (ENDS[name][0] == "values")
    assert choose(found, "mse") is normalised_error


def test_a_callable_is_taken_as_it_is() -> None:
    def own(dense: object, cut: object) -> float:
        return 42.0

    assert choose(program("linear"), own) is own


def test_an_unknown_name() -> None:
    with pytest.raises(PlanError, match="no distance named 'kll'") as error:
        choose(program("linear"), "kll")
    for words in ("expected: one of auto, kl, mse", "got: 'kll'", "where: distance", "did you mean 'kl'?"):
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["one column", "vector"])
def test_no_divergence_between_single_numbers(name: str) -> None:
    with pytest.raises(PlanError, match="no distributions") as error:
        choose(program(name), "kl")
    for words in ("expected: ", "two classes", "got: shape (5", 'where: distance="kl"', 'distance="mse"'):
        assert words in str(error.value)


# ---- the divergence


def test_the_divergence_by_hand() -> None:
    """Logits 4 log p at T = 4 are the distribution p: KL((¾, ¼) ‖ (½, ½)) = ¾ log 1.5 + ¼ log 0.5."""
    p, q = (torch.tensor([row]).log() * 4 for row in ([0.75, 0.25], [0.5, 0.5]))
    expected = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert divergence([(p,)], [(q,)]) == pytest.approx(expected, rel=1e-6)
    # the mean over the rows of all batches, of which here one in three is equal
    assert divergence([(p,), (torch.cat([q, p]),)], [(q,), (torch.cat([q, q]),)]) == pytest.approx(2 / 3 * expected)


def test_logits_probabilities_and_their_logarithms_say_the_same() -> None:
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    expected = divergence([(a,)], [(b,)])
    assert divergence([(a.softmax(1),)], [(b.softmax(1),)], "probabilities") == pytest.approx(expected, rel=1e-4)
    assert divergence([(a.log_softmax(1),)], [(b.log_softmax(1),)], "log_probabilities") == pytest.approx(
        expected, rel=1e-4
    )
    assert divergence([(a + 7,)], [(b - 3,)]) == pytest.approx(expected, rel=1e-4)


def test_a_probability_of_zero_is_no_infinite_distance() -> None:
    sure, unsure = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    found = divergence([(unsure,)], [(sure,)], "probabilities")
    q = 1 / (1 + exp(log(1e-12) / 4))  # 1e-12 stands for 0, tempered
    assert found == pytest.approx(0.5 * log(0.5 / q) + 0.5 * log(0.5 / (1 - q)), rel=1e-6)


def test_the_divergence_of_sequences_is_over_all_positions() -> None:
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert divergence([(a,)], [(b,)]) == pytest.approx(divergence([(a.flatten(0, 1),)], [(b.flatten(0, 1),)]))
    assert choose(program("three dimensions"), "kl")([(a,)], [(a,)]) == 0


# ---- the squared error


def test_the_squared_error_by_hand() -> None:
    """Column means 2 and 0, variation 1 + 1 + 4 + 4 = 10; errors 1 and 2², sum 5."""
    a, b = torch.tensor([[1.0, 2.0], [3.0, -2.0]]), torch.tensor([[2.0, 2.0], [3.0, 0.0]])
    assert normalised_error([(a,)], [(b,)]) == pytest.approx(0.5)
    assert normalised_error([(a[:1],), (a[1:],)], [(b[:1],), (b[1:],)]) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2), (2, 3, 4, 5)], ids=str)
def test_the_mean_output_is_at_distance_one(shape: tuple[int, ...]) -> None:
    a = torch.randn(shape)
    assert normalised_error([(a,)], [(a.mean(0).expand(shape),)]) == pytest.approx(1, rel=1e-5)


def test_several_outputs_weigh_alike() -> None:
    a, b = torch.randn(8, 3), 100 * torch.randn(8, 2)
    flags = torch.ones(8, dtype=torch.bool)
    dense = [(a, b, None, flags, 3)]
    cut = [(a, b.mean(0).expand(8, 2), None, ~flags, 3)]
    assert normalised_error(dense, cut) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("a", [torch.tensor([[3.0, 4.0]]), torch.tensor(5.0), torch.full((3, 1), 2.0)], ids=str)
def test_outputs_that_do_not_vary_are_measured_by_their_size(a: Tensor) -> None:
    assert normalised_error([(a,)], [(a,)]) == 0
    assert normalised_error([(a,)], [(0 * a,)]) == pytest.approx(1)


def test_whole_numbers_are_compared_one_by_one() -> None:
    assert normalised_error([(torch.tensor([1, 1]), None)], [(torch.tensor([0, 1]), None)]) == 0.5
    assert normalised_error([(None, 3)], [(None, 3)]) == 0


def test_complex_numbers_are_compared_as_two() -> None:
    a = torch.tensor([[1 + 1j], [3 + 1j]])
    assert normalised_error([(a,)], [(a + 1j,)]) == pytest.approx(1)
    assert normalised_error([(a,)], [(a,)]) == 0


def test_the_distance_of_a_net_with_two_outputs() -> None:
    model, inputs = build("two_inputs")
    found = trace(model, inputs)
    dense = run_all(found, fit(found, [(inputs,)]).batches)
    cut = run_all(found, fit(found, [(inputs,)]).batches, {"head.weight": torch.zeros(2, 9)})
    assert choose(found)(dense, cut) > 0.5


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (lambda z, t: z / 3, "logits"),
        (lambda z, t: 30 * torch.tanh(z / 30), "logits"),
        (lambda z, t: t * z, "logits"),
        (lambda z, t: z * z, "values"),
        (lambda z, t: t / z, "values"),
        (lambda z, t: torch.sigmoid(z), "values"),
        (lambda z, t: z.view(-1, 5, 2).softmax(-1), "probabilities"),
        (lambda z, t: z.view(-1, 5, 2).log_softmax(2), "log_probabilities"),
        (lambda z, t: z.view(-1, 5, 2).softmax(1), "values"),
    ],
)
def test_logits_behind_a_scale_and_probabilities_of_any_rank(of: Any, kind: str) -> None:
    """A temperature or a soft cap leaves them logits."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(6, 10), nn.Parameter(torch.tensor(5.0))

        def forward(self, x: Tensor) -> Tensor:
            return of(self.head(x), self.scale)

    assert output_kind(trace(Net().eval(), torch.randn(4, 6))) == kind
