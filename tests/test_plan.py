"""Plans: kept units to kept indices, JSON there and back, and every kind of malformed JSON refused at its place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actprune.axes.capture import Graph, capture
from actprune.axes.expr import kept_indices
from actprune.errors import PlanError
from actprune.plan import SCHEMA, Plan, make_plan
from nets import NETS, build


@cache
def graph_of(name: str) -> Graph:
    return capture(*build(name))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    graph = graph_of(draw(st.sampled_from([*NETS])))
    kept = {
        group.name: draw(st.sets(st.integers(0, group.width - 1), min_size=1))
        for group in graph.groups
        if draw(st.booleans())
    }
    return make_plan(graph, kept, method="by hand", budget={"macs": 0.5}, seed=draw(st.integers()))


# ---- what a plan says


def test_units_become_indices() -> None:
    """Channels 1 and 3 of 4, in a flatten of (C, 3, 3) and in one of (3, 3, C)."""
    slowest = make_plan(graph_of("channel_slowest"), {"conv": [3, 1, 3]})
    assert slowest.widths == {"conv": 2}
    assert indices(slowest, "conv.weight") == [[1, 3], None, None, None]
    assert indices(slowest, "fc.weight") == [None, [*range(9, 18), *range(27, 36)]]
    assert slowest.shape("fc.weight") == (5, 18)
    fastest = make_plan(graph_of("channel_fastest"), {"conv": [1, 3]})
    assert indices(fastest, "fc.weight") == [None, [4 * place + unit for place in range(9) for unit in (1, 3)]]
    assert indices(fastest, "fc.bias") == []


def test_groups_and_channels_within_them() -> None:
    """8 channels are 2 groups of 4: keep the second group, and channels 0 and 2 within."""
    plan = make_plan(graph_of("grouped"), {"conv1#1": [0, 2], "conv1#2": [1]})
    assert indices(plan, "conv1.weight")[0] == [4, 6]
    assert indices(plan, "conv2.weight")[:2] == [[6, 7, 8, 9, 10, 11], [0, 2]]
    assert indices(plan, "conv3.weight")[1] == [6, 7, 8, 9, 10, 11]


def indices(plan: Plan, tensor: str) -> list[list[int] | None]:
    return [None if index is None else index.tolist() for index in plan.indices(tensor)]


def test_groups_that_are_not_named_stay_whole() -> None:
    plan = make_plan(graph_of("chain"), {"fc2": [0]})
    assert plan.widths == {"fc1": 8, "fc2": 1}
    assert indices(plan, "fc1.weight") == [None, None]
    assert make_plan(graph_of("chain"), {}).kept == {}


def test_notes_are_added_to() -> None:
    plan = make_plan(graph_of("chain"), {}, method="l2").with_note(budget=0.5)
    assert plan.note == {"method": "l2", "budget": 0.5}


@pytest.mark.parametrize("units", [(2, 0), {0, 2}, np.array([0, 2]), torch.tensor([2, 0]), iter([0, 2])])
def test_units_may_come_in_any_form(units: Any) -> None:
    assert make_plan(graph_of("chain"), {"fc1": units}).groups["fc1"].kept == (0, 2)


@pytest.mark.parametrize(
    ("kept", "problem", "got"),
    [
        ({"fc9": [0]}, "There is no group named 'fc9'.", "'fc9'"),
        ({"fc1": []}, "Group 'fc1' would keep an impossible set of units.", "0 units: []"),
        ({"fc1": [0, 8]}, "Group 'fc1' would keep an impossible set of units.", "2 units: [0, 8]"),
        ({"fc1": [-1]}, "Group 'fc1' would keep an impossible set of units.", "1 units: [-1]"),
        ({"fc1": [0.5]}, "Group 'fc1' is given a unit that is no number.", "0.5, a float"),
        ({"fc1": [True] * 8}, "Group 'fc1' is given a unit that is no number.", "True, a bool"),
        ({"fc1": np.ones(8, dtype=bool)}, "Group 'fc1' is given a unit that is no number.", "a bool"),
        ({"fc1": torch.ones(8) > 0}, "Group 'fc1' is given a unit that is no number.", "tensor(True), a Tensor"),
    ],
)
def test_impossible_plans(kept: dict[str, Any], problem: str, got: str) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(graph_of("chain"), kept)
    assert caught.value.problem == problem
    assert got in str(caught.value.got)
    assert str(caught.value.where).startswith("plan")
    assert caught.value.expected and caught.value.hint


def test_an_unknown_group_is_told_the_known_ones() -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(graph_of("chain"), {"fc9": [0]})
    assert caught.value.expected == "one of fc1, fc2"


# ---- JSON


@given(plans())
def test_json_there_and_back(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest
    assert again.to_json() == plan.to_json()


@given(plans())
def test_indices_agree_with_widths_and_shapes(plan: Plan) -> None:
    for name, axes in plan.dims.items():
        assert plan.shape(name) == tuple(len(kept_indices(axis, plan.kept)) for axis in axes)
        for index, width in zip(plan.indices(name), plan.shape(name), strict=True):
            assert index is None or (len(index) == width and np.all(np.diff(index) > 0))


def test_the_digest_is_the_same_before_and_after_a_file() -> None:
    """Numbers as keys of a note become text, which sorts otherwise."""
    plan = make_plan(graph_of("chain"), {"fc1": [0]}, sensitivity={"fc1": {2: 0.5, 10: 0.1}})
    assert Plan.from_json(plan.to_json()).digest == plan.digest


def test_a_plan_is_shown_in_a_line_and_may_be_a_key() -> None:
    graph = graph_of("chain")
    plan = make_plan(graph, {"fc1": [0, 2]})
    units = sum(group.width for group in graph.groups)
    stay = units - graph["fc1"].width + 2
    assert repr(plan) == f"Plan({plan.model}: {stay} of {units} units stay, in {len(graph.groups)} groups)"
    assert repr(graph) == f"Graph({plan.model}: {units} units in {len(graph.groups)} groups)"
    assert {plan: "here"}[make_plan(graph, {"fc1": [2, 0]})] == "here"


def test_the_digest_follows_the_content() -> None:
    graph = graph_of("chain")
    some = [make_plan(graph, {"fc1": [0]}), make_plan(graph, {"fc1": [1]}), make_plan(graph, {"fc1": [0]}, seed=1)]
    assert len({plan.digest for plan in some}) == 3


def test_only_plans_of_normed_weights_say_so() -> None:
    """The digest of the others is in the weights that were saved with them."""
    assert "normed" not in json.loads(make_plan(graph_of("chain"), {}).to_json())


def test_the_schema_is_versioned() -> None:
    assert json.loads(make_plan(graph_of("chain"), {}).to_json())["schema"] == SCHEMA == "actprune.plan/1"


@cache
def example() -> dict[str, Any]:
    """A plan with products (conv1) and a leaf that stands alone (fc3)."""
    return json.loads(make_plan(graph_of("lenet"), {"conv1": [0, 2], "fc2": range(10)}).to_json())


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(key)


def group(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["groups"]["conv1"].update(fields)


def axis(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["dims"].update({"fc1.weight": [value, [16, 5]]})


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "another schema": (lambda data: data.update(schema="actprune.plan/2"), "", "plan/2"),
    "no schema": (without("schema"), "", "null"),
    "no groups": (without("groups"), "", "dims"),
    "no dims": (without("dims"), "", "groups"),
    "no aliases": (without("aliases"), "", "groups"),
    "no architecture": (without("architecture"), "", "groups"),
    "no model": (without("model"), "", "groups"),
    "no note": (without("note"), "", "groups"),
    "groups in an array": (lambda data: data.update(groups=[]), ": groups", "[]"),
    "a group in an array": (lambda data: data["groups"].update(conv1=[1, 6]), ": groups/conv1", "[1, 6]"),
    "a group without units": (lambda data: data["groups"]["conv1"].pop("kept"), ": groups/conv1", "key, width"),
    "a group without a width": (lambda data: data["groups"]["conv1"].pop("width"), ": groups/conv1", "kept, key"),
    "units in a text": (group(kept="024"), ": groups/conv1/kept", '"024"'),
    "a unit in a text": (group(kept=[0, "2"]), ": groups/conv1/kept/1", '"2"'),
    "half a unit": (group(kept=[0.5]), ": groups/conv1/kept/0", "0.5"),
    "a boolean unit": (group(kept=[True]), ": groups/conv1/kept/0", "true"),
    "no unit": (group(kept=[]), ": groups/conv1/kept", "0 units"),
    "units out of order": (group(kept=[2, 0]), ": groups/conv1/kept", "[2, 0]"),
    "a unit twice": (group(kept=[2, 2]), ": groups/conv1/kept", "[2, 2]"),
    "a unit outside": (group(kept=[0, 6]), ": groups/conv1/kept", "[0, 6]"),
    "a negative unit": (group(kept=[-1, 0]), ": groups/conv1/kept", "[-1, 0]"),
    "a width in a text": (group(width="6"), ": groups/conv1/width", '"6"'),
    "a key of null": (group(key=None), ": groups/conv1/key", "null"),
    "a key twice": (lambda data: group(key=data["groups"]["conv2"]["key"])(data), ": groups", "twice"),
    "dims in an array": (lambda data: data.update(dims=[]), ": dims", "[]"),
    "dims of a tensor in an object": (lambda data: data["dims"].update(x={"a": 1}), ": dims/x", '{"a": 1}'),
    "an axis of three numbers": (axis([1, 2, 3]), ": dims/fc1.weight/0", "[1, 2, 3]"),
    "an axis in a text": (axis("16"), ": dims/fc1.weight/0", '"16"'),
    "an axis of another kind": (axis({"sum": [[1, 2], [3, 4]]}), ": dims/fc1.weight/0", "sum"),
    "an axis of two kinds": (axis({"product": [], "concat": []}), ": dims/fc1.weight/0", "concat"),
    "an empty axis": (axis({}), ": dims/fc1.weight/0", "[]"),
    "a product of one": (axis({"product": [[16, 99]]}), ": dims/fc1.weight/0/product", "1"),
    "a product of nothing": (axis({"product": None}), ": dims/fc1.weight/0/product", "null"),
    "half a size": (axis({"concat": [[1.5, 98], [2, 99]]}), ": dims/fc1.weight/0/concat/0/0", "1.5"),
    "a size below nothing": (axis([-2, 99]), ": dims/fc1.weight", "impossible size"),
    "aliases in an array": (lambda data: data.update(aliases=[]), ": aliases", "[]"),
    "aliases in a text": (lambda data: data["aliases"].update({"fc1.weight": "fc1"}), ": aliases/fc1.weight", "fc1"),
    "an alias of null": (lambda data: data["aliases"].update({"fc1.weight": [None]}), ": aliases/fc1.weight/0", "null"),
    "a model of null": (lambda data: data.update(model=None), ": model", "null"),
    "an architecture in a number": (lambda data: data.update(architecture=7), ": architecture", "7"),
    "a note in a text": (lambda data: data.update(note="by hand"), ": note", "by hand"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_plans(kind: str) -> None:
    change, place, got = MALFORMED[kind]
    data = copy.deepcopy(example())
    change(data)
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(data), "run/plan.json")
    assert caught.value.where == f"run/plan.json{place}"
    assert got in str(caught.value.got)
    assert caught.value.expected and caught.value.hint


def test_a_size_that_is_not_its_groups() -> None:
    data = copy.deepcopy(example())
    key = data["groups"]["conv1"]["key"]
    data["dims"]["conv1.weight"][0] = [7, key]
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(data))
    assert caught.value.where == "plan.json: dims/conv1.weight/0"
    assert (caught.value.expected, caught.value.got) == ("a size of 6, as its group has", "7")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a": ' * 100_000, "9" * 5000, '{"schema": "actprune.plan/1",}']
)
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text, "run/plan.json")
    assert (caught.value.where, caught.value.expected) == ("run/plan.json", "JSON")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"plan"'])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert caught.value.expected == f'"schema": "{SCHEMA}"'


def test_axes_nested_too_deep() -> None:
    deep: Any = [2, 99]
    for _ in range(400):
        deep = {"concat": [deep, [1, 98]]}
    data = copy.deepcopy(example())
    data["dims"]["fc1.weight"] = [deep, [16, 5]]
    try:
        Plan.from_json(json.dumps(data))
    except PlanError as error:
        assert error.where == "plan.json"
