from __future__ import annotations

import json

import pytest
from test_planner import planned

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.errors import PlanError, ResourceError
from medseg.planning.editing import edit_plans, largest_batch, largest_window
from medseg.planning.memory import same_cost, training_memory
from medseg.plans import Plan
from medseg.preconditions import check_wishes


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, ...]:
    """3d and 2d for a small GPU."""
    return planned(Machine("cuda", 1.0), shape=(64, 96, 96), cases=100)


def by_name(plans: tuple[Plan, ...]) -> dict[str, Plan]:
    return {plan.name: plan for plan in plans}


def test_every_configuration_that_has_the_field_is_edited(plans: tuple[Plan, ...]) -> None:
    edited = edit_plans(plans, {"training.seed": "7", "inference.overlap": "0.25"})
    for before, after in zip(plans, edited, strict=True):
        assert (after.training.seed, after.inference.overlap) == (7, 0.25)
        assert after.reasons["training.seed"] == "set by hand (--edit training.seed=7)"
        assert after.memory == before.memory
        assert Plan.parse(json.loads(after.to_json()), "again") == after
    assert edit_plans(plans, {}) == plans


def test_a_field_may_name_its_configuration(plans: tuple[Plan, ...]) -> None:
    before, after = by_name(plans), by_name(edit_plans(plans, {"2d.training.seed": "7"}))
    assert (before["3d"], after["2d"].training.seed) == (after["3d"], 7)


def test_memory_is_measured_again_where_the_cost_changes(plans: tuple[Plan, ...]) -> None:
    before, after = by_name(plans), by_name(edit_plans(plans, {"training.batch_size": "1"}))
    for name, plan in after.items():
        assert plan.training.batch_size == 1
        assert plan.memory.training == pytest.approx(training_memory(plan), abs=0.01)
        assert plan.memory.training != before[name].memory.training
        assert plan.reasons["memory.training"] != before[name].reasons["memory.training"]
        assert not same_cost(plan, before[name])


def test_what_does_not_fit_says_what_would(plans: tuple[Plan, ...]) -> None:
    with pytest.raises(ResourceError) as caught:
        edit_plans(plans, {"3d.training.batch_size": "64"})
    (problem,) = caught.value.problems
    assert problem.where == "--edit, configuration '3d'"
    assert problem.expected == "at most 1 GiB (--memory)"
    asked = by_name(plans)["3d"].edited({"training.batch_size": "64"})
    batch, window = largest_batch(asked), largest_window(asked)
    assert problem.fix.startswith(f"The largest that fits is training.batch_size={batch} with this window")
    fitting = asked.edited({"training.batch_size": str(batch)})
    beyond = asked.edited({"training.batch_size": str(batch + 1)})
    assert training_memory(fitting) <= 1 < training_memory(beyond)
    if window:
        assert f"window={list(window)} with this batch" in problem.fix
        assert training_memory(asked.edited({"window": json.dumps(window)})) <= 1


def test_a_window_that_is_too_large_says_the_largest(plans: tuple[Plan, ...]) -> None:
    with pytest.raises(
        ResourceError, match=r"The largest that fits is .*window=\[\d+, \d+, \d+\] with this batch. It needs --memory \d"
    ) as caught:
        edit_plans(plans, {"3d.window": "[96, 160, 160]"})
    window = json.loads(caught.value.problems[0].fix.partition("window=")[2].partition("]")[0] + "]")
    fitting = by_name(edit_plans(plans, {"3d.window": json.dumps(window)}))["3d"]
    assert fitting.memory.training <= 1


def test_all_that_is_wrong_at_once(plans: tuple[Plan, ...]) -> None:
    edits = {"training.sed": "1", "memory.budget": "3", "3d.nothing": "1", "recommended": "true", "window": "[30, 30, 30]"}
    with pytest.raises(PlanError) as caught:
        edit_plans(plans, edits)
    text = str(caught.value)
    assert "no field 'training.sed' in a plan; did you mean 'seed'?; found 'training.sed=1'" in text
    assert "this field is not for editing; found 'memory.budget=3'. Pass --memory and --device" in text
    assert "no field 'nothing' in a plan" in text
    assert "'recommended=true'. Choose a configuration" in text
    assert "configuration '3d', --edit: window [30, 30, 30] is not a multiple of the network's total stride" in text
    assert "configuration '2d', --edit: " in text


NAMES = "the name of a configuration is also that of files and folders; expected letters, digits"


@pytest.mark.parametrize("field", ["name", "previous"])
@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "a..b", ".hidden", "3d.", "con", "NUL.json", "Com1", "a b", "3d\n"])
def test_names_of_configurations_are_no_paths(plans: tuple[Plan, ...], field: str, name: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(plans[0].model_dump(mode="json") | {field: name}, "plan.json")
    assert str(caught.value).startswith(f"plan.json, field '{field}': {NAMES}")
    assert f"found {json.dumps(name)}" in str(caught.value)


@pytest.mark.parametrize("name", ["3d", "3d_cascade-v2.1", "2D", "console", "nulls"])
def test_other_names_of_configurations_are_free(plans: tuple[Plan, ...], name: str) -> None:
    assert Plan.parse(plans[0].model_dump(mode="json") | {"name": name}, "plan.json").name == name


def test_an_empty_name_is_none(plans: tuple[Plan, ...]) -> None:
    with pytest.raises(PlanError, match="field 'name': the name of a configuration is also that of files"):
        Plan.parse(plans[0].model_dump(mode="json") | {"name": ""}, "plan.json")


def test_a_configuration_that_the_dataset_has_not(plans: tuple[Plan, ...]) -> None:
    with pytest.raises(PlanError) as caught:
        edit_plans(plans, {"3d_low.window": "[8, 8, 8]"})
    expected = ", ".join(plan.name for plan in plans)
    assert str(caught.value).startswith(
        f"--edit: no configuration '3d_low' of this dataset; found '3d_low.window=[8, 8, 8]', expected one of {expected}"
    )


def test_no_advice_to_have_more_memory_than_there_is(plans: tuple[Plan, ...]) -> None:
    with pytest.raises(ResourceError) as caught:
        edit_plans(plans, {"3d.training.batch_size": "1000000"})
    assert "The largest that fits is training.batch_size=" in str(caught.value)
    assert "It needs --memory" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            {"4d.window": "[1, 2, 3]"},
            "--edit: no configuration '4d'; found '4d.window=[1, 2, 3]', expected one of 3d, 3d_low, 3d_cascade, 2d",
        ),
        ({"3d.window": "[40, 56]"}, "--edit: not a window of '3d'; found '3d.window=[40, 56]', 2 numbers, expected 3, one for each axis"),
        ({"2d.window": "[8, 8, 8]"}, "--edit: not a window of '2d'; found '2d.window=[8, 8, 8]', 3 numbers, expected 2, one for each axis"),
        ({"trainin.seed": "1"}, "--edit, field 'trainin"),
    ],
)
def test_edits_that_no_configuration_takes(dataset: Dataset, edit: dict[str, str], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_wishes(dataset, (), edit, None, "unet", prefixed=True)
    assert str(caught.value).startswith(words)
    assert len(caught.value.problems) == 1
    check_wishes(dataset, (), {"3d.window": "[40, 56, 40]", "window": "[40, 56]", "2d.window": "[40, 56]"}, None, "unet", prefixed=True)


def test_fields_of_a_part_that_has_several_kinds(dataset: Dataset) -> None:
    """Before there is a plan nobody knows which kind it is; the plan's own part then decides."""
    check_wishes(dataset, (), {"target.head.offset": "2", "training.batch_size": "3"}, "instance", "unet", prefixed=True)
    with pytest.raises(PlanError, match=r"field 'training.batch_size'.*found 0"):
        check_wishes(dataset, (), {"target.head.offset": "2", "training.batch_size": "0"}, "instance", "unet", prefixed=True)
