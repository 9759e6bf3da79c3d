"""Random networks of all kinds: each is cut by a random plan, proved, and checked a second time without the proof.

`make fuzz` runs thousands of them; here are a few, the same ones on every run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import random_trial
from actprune.plan import Plan
from actprune.proof.check import Proof
from actprune.rewrite import Rewrite
from actprune.surgery.slicing import cut
from random_blocks import ANYWHERE, ROWS
from random_maps import MAPS, RESIZE
from random_nets import AROUND, Net, Random, Step, inputs, leaves, nets, numbered_net, smaller
from random_tokens import BRIDGES, LENGTHEN, TOKENS

CHAIN = Net("rows", (6,), 2, (Step("layer", 8), Step("layer", 5)))


def check(net: Net) -> None:
    outcome = random_trial.attempt(net)
    assert outcome.state in ("proved", "refused"), outcome.reason
    assert outcome.state == "proved" or outcome.reason


@settings(max_examples=8)
@given(nets())
def test_drawn_networks(net: Net) -> None:
    """Few: what Hypothesis draws next resembles what it drew before. But these are made smaller where they fail."""
    check(net)


@pytest.mark.parametrize("number", [*range(10), *(pytest.param(n, marks=pytest.mark.long) for n in range(10, 26))])
def test_numbered_networks(number: int) -> None:
    check(numbered_net(2, number, most=3))


def every_step(steps: tuple[Step, ...]) -> Iterator[str]:
    for step in steps:
        yield step.op
        yield from every_step(step.body)


def test_every_block_is_drawn_and_runs() -> None:
    seen: set[str] = set()
    for index in range(700):
        net = numbered_net(1, index)
        seen.update(every_step(net.steps))
        if index < 100:
            with torch.no_grad():
                outputs = leaves(random_trial.call(Random(net).eval(), inputs(net, net.batch)))
            assert outputs and all(bool(torch.isfinite(out).all()) for out in outputs)
    assert seen == {*ANYWHERE, *ROWS, *MAPS, *RESIZE, *TOKENS, *LENGTHEN, *BRIDGES, *AROUND}


def test_a_network_is_what_its_description_says() -> None:
    net = numbered_net(0, 3)
    assert net == numbered_net(0, 3) != numbered_net(0, 4)
    assert eval(repr(net), {"Net": Net, "Step": Step}) == net
    a, b = Random(net).state_dict(), Random(net).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_smaller_networks() -> None:
    net = CHAIN._replace(steps=(Step("layer"), Step("residual", body=(Step("scale"), Step("dropout")))), batch=3)
    found = list(smaller(net))
    assert net._replace(steps=net.steps[:1]) in found
    assert net._replace(steps=(net.steps[0], Step("scale"), Step("dropout"))) in found
    assert net._replace(steps=(net.steps[0], Step("residual", body=(Step("dropout"),)))) in found
    assert net._replace(batch=2) in found


# ---- the checks find what they are for


def mixed_up(model: nn.Module, plan: Plan, rewrite: Rewrite | None = None) -> nn.Module:
    """A cut with the columns of the last layer in the wrong order."""
    small: Any = cut(model, plan, rewrite)
    with torch.no_grad():
        small.head.weight.copy_(small.head.weight.flip(1))
    return small


def believing(*args: Any, **more: Any) -> Proof:
    return Proof(True, 0.0, 0.0, 0.0, 0.0, 0, 0)


def test_a_wrong_cut_that_the_proof_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_trial, "cut", mixed_up)
    outcome = random_trial.attempt(CHAIN)
    assert (outcome.state, outcome.reason.partition(":")[0]) == ("wrong", "the proof fails, yet no group is at fault")


def test_a_wrong_cut_that_the_proof_believes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_trial, "cut", mixed_up)
    monkeypatch.setattr(random_trial, "verify", believing)
    outcome = random_trial.attempt(CHAIN)
    assert outcome.state == "wrong"
    assert outcome.reason.startswith("eager in float64 against the dense program with zero columns: ")


def test_a_cut_that_can_not_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(model: nn.Module, plan: Plan) -> nn.Module:
        return cut(model, plan).requires_grad_(False)

    monkeypatch.setattr(random_trial, "cut", frozen)
    outcome = random_trial.attempt(CHAIN)
    assert outcome.state == "wrong"
    assert outcome.reason.startswith("another batch size in training: RuntimeError: ")


def test_a_cut_that_changes_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(model: nn.Module, plan: Plan) -> nn.Module:
        small = copy.deepcopy(cut(model, plan))
        with torch.no_grad():
            next(model.parameters()).mul_(1.0001)
        return small

    monkeypatch.setattr(random_trial, "cut", careless)
    monkeypatch.setattr(random_trial, "verify", believing)
    outcome = random_trial.attempt(CHAIN)
    assert (outcome.state, outcome.reason) == ("wrong", "the dense model is not as it was")


def test_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_trial, "capture", lambda model, inputs: 1 / 0)
    outcome = random_trial.attempt(CHAIN)
    assert (outcome.state, outcome.reason) == ("wrong", "ZeroDivisionError: division by zero (<lambda>)")


def test_a_network_without_anything_to_cut_is_refused() -> None:
    outcome = random_trial.attempt(Net("rows", (6,), 2, (Step("scale"),)))
    assert (outcome.state, outcome.reason, outcome.groups) == ("refused", "nothing can be cut", 0)
