from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_plan

from medseg import answers
from medseg.device import Machine
from medseg.planning.difference import difference
from medseg.plans import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(ndim=2, shape=(1, 64, 64))


def test_equal_plans_differ_in_nothing(plan: Plan) -> None:
    assert difference(plan, plan) == ()
    assert difference(plan, plan.model_copy(update={"reasons": {}})) == ()


def test_both_values_and_both_reasons(plan: Plan) -> None:
    other = plan.edited({"training.seed": "7", "space.augmentation.rotation": "5", "window": "[128, 64]"})
    changes = {c.field: c for c in difference(plan, other)}
    assert list(changes) == ["window", "space.augmentation.rotation", "training.seed"]
    seed = changes["training.seed"]
    assert (seed.section, seed.first, seed.second) == ("training", "0", "7")
    assert seed.first_reason == plan.reasons["training.seed"]
    assert seed.second_reason == "set by hand (--set training.seed=7)"
    rotation = changes["space.augmentation.rotation"]
    assert rotation.first_reason == plan.reasons["space.augmentation"]  # what contains the field has the reason
    assert (changes["window"].first, changes["window"].second) == ("[64, 64]", "[128, 64]")


def test_fields_of_another_network(plan: Plan, tmp_path: Path) -> None:
    other = make_plan(ndim=2, shape=(1, 64, 64), machine=Machine("cuda", 8.0))
    fields = {c.field for c in difference(plan, other)}
    assert {"network.features", "network.skip", "memory.device"} <= fields
    resnet = {"kind": "segresnet", "axes": 2, "width": 16, "blocks": [1, 2]}
    changed = Plan.parse({**plan.model_dump(mode="json"), "network": resnet, "reasons": {}}, "test")
    changes = {c.field: c for c in difference(plan, changed)}
    assert (changes["network.kind"].first, changes["network.kind"].second) == ('"unet"', '"segresnet"')
    assert (changes["network.features"].second, changes["network.width"].first) == (None, None)
    for name, one in (("a", plan), ("b", changed)):
        one.save(tmp_path / f"{name}.json")
    assert answers.difference(tmp_path / "a.json", tmp_path / "b.json") == difference(plan, changed)
