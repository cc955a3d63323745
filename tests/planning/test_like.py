"""Plans for the network of a model (`--like`)."""

from __future__ import annotations

import pytest
from synthetic import make_dataset, make_fingerprint_of, make_plan

from medseg.dataset import Channel, LabelClass, Labels, Modality, Split
from medseg.device import Machine
from medseg.domains.grid.settings import GridSettings
from medseg.errors import PlanError, ResourceError, UsageError
from medseg.planning.explain import unexplained
from medseg.planning.planner import make_plans
from medseg.planning.pretext import pretext_plan
from medseg.steps import planned
from medseg.training.start import Source
from medseg.workspace import Workspace

SIDES = Labels(
    classes=(LabelClass(name="left lung", values=(1,)), LabelClass(name="right lung", values=(2,)), LabelClass(name="mass", values=(3,)))
)
CPU = Machine("cpu", 8.0)
REASON = "As in the model 'made up 3d' (--like), so that its weights fit."


@pytest.fixture(scope="module")
def model():
    return make_plan(shape=(36, 50, 35), spacing=(1.5, 1.2, 1.2))


def plans(like, labels=SIDES, ndim=3, machine=CPU, shape=(80, 120, 100), spacing=(3.0, 0.8, 0.8), channels=None, modality=Modality.mr):
    dataset = make_dataset(labels, ndim, modality=modality)
    fingerprint = make_fingerprint_of(dataset, shape[-ndim:], spacing[-ndim:])
    if channels:
        two = tuple(Channel(name=name, modality=kind) for name, kind in channels)
        values = fingerprint.intensities * len(two)
        cases = tuple(c.model_copy(update={"channels": c.channels * len(two)}) for c in fingerprint.cases)
        fingerprint = fingerprint.model_copy(update={"channels": two, "intensities": values, "cases": cases})
        dataset = dataset.model_copy(update={"channels": two})
    return make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=machine, like=like)


def test_network_window_and_grid_are_the_models_and_the_rest_is_the_datasets(model):
    fresh = {p.name: p for p in plans(None)}
    (plan,) = plans(model)
    assert fresh["3d"].window != model.window
    assert fresh["3d"].space.spacing != model.space.spacing
    assert (plan.name, plan.recommended) == ("3d", True)
    assert (plan.window, plan.network) == (model.window, model.network)
    assert (plan.space.axes, plan.space.spacing, plan.space.crop) == (model.space.axes, model.space.spacing, model.space.crop)
    assert plan.data.labels == SIDES
    assert len(plan.target.frequencies) == 4
    for field in (
        "window",
        "space.axes",
        "space.spacing",
        "space.crop",
        "space.channels.0",
        "network.kind",
        "network.features",
        "network.skip",
    ):
        assert plan.reasons[field] == REASON
    assert not unexplained(plan)
    assert plan.inference == fresh["3d"].inference
    assert 0 < plan.memory.training < plan.memory.budget


def test_weights_fit_although_a_fresh_plan_has_another_network(model, tmp_path):
    from medseg.models.weights import save_weights
    from medseg.tasks.base import find_task

    folder = tmp_path / "model"
    model.save(folder / "plan.json")
    save_weights(folder / "fold_0" / "network_0.safetensors", find_task("semantic")(model).network().state_dict(), model.trained_digest())
    (plan,) = plans(model)
    moved = Source.open(folder, plan, 0, Split(train=("a",), val=())).origin.transferred
    assert moved.share > 0.99
    assert set(moved.fresh.values()) == {"the source has no output left lung, right lung, mass, so all of the head begin alike"}


def test_a_pre_trained_model_will_do(model):
    (plan,) = plans(pretext_plan(model, "masked"))
    assert (plan.task, plan.window, plan.network) == ("semantic", model.window, model.network)


def test_intensities_follow_the_channels_name(model):
    ct = make_plan(shape=(36, 50, 35))
    scale = {"scheme": "fixed", "low": -100.0, "high": 300.0, "mean": 80.0, "std": 40.0}
    space = GridSettings.model_validate(ct.space.model_dump() | {"channels": [scale]})
    ct = ct.model_copy(
        update={"space": space, "data": ct.data.model_copy(update={"channels": (Channel(name="Scan", modality=Modality.ct),)})}
    )
    (plan,) = plans(ct, channels=[("pet", Modality.pet), ("scan", Modality.ct)])
    assert [c.scheme.value for c in plan.space.channels] == ["zscore", "fixed"]
    assert plan.space.channels[1] == space.channels[0]
    assert plan.reasons["space.channels.1"] == REASON
    assert plan.reasons["space.channels.0"].startswith("Channel 'pet'")
    (plan,) = plans(ct, channels=[("other", Modality.ct)])  # the only channel of both, of one kind
    assert plan.space.channels == space.channels
    (plan,) = plans(ct, channels=[("other", Modality.mr)])
    assert plan.space.channels[0].scheme.value == "zscore"


def test_models_of_other_names_are_matched_by_the_axes_of_their_window(model):
    (plan,) = plans(model.model_copy(update={"name": "3d_fullres"}))
    assert (plan.name, plan.window) == ("3d", model.window)
    slices = next(p for p in plans(None, labels=model.data.labels) if p.name == "2d")
    (plan,) = plans(slices)
    assert (plan.name, plan.window, plan.space.spacing[0]) == ("2d", slices.window, None)


def test_impossible_likeness(model):
    with pytest.raises(
        PlanError, match=r"dimensions of a case: this dataset cannot be planned like the model; found 3 in 'made up 3d', expected 2"
    ):
        plans(model, ndim=2)
    with pytest.raises(
        PlanError, match=r"--like, --init, dimensions of a case: .*found 2 in 'made up 2d', expected 3, as in dataset 'made up'"
    ):
        plans(make_plan(ndim=2))
    with pytest.raises(PlanError, match=r"--like, --init, domain: .*found points in 'made up 3d', expected grid"):
        plans(model.model_copy(update={"domain": "points"}))
    with pytest.raises(PlanError, match=r"found windows of 3 axes in 'made up 3d', expected as many as in one of 2d \(2\)"):
        plans(model, shape=(3, 120, 100))
    cascade = model.model_copy(update={"previous": "3d_low"})
    with pytest.raises(PlanError, match=r"its second stage alone; found 'made up 3d', which takes the prediction of '3d_low'\. Choose"):
        plans(cascade)
    with pytest.raises(
        PlanError, match=r"takes the prediction of another, which images alone do not give; found '3d_low'\. Pre-train with"
    ):
        pretext_plan(cascade, "masked")
    with pytest.raises(ResourceError, match=r"does not fit the memory.*The smallest budget in which a configuration fits is --memory \d"):
        plans(model, machine=Machine("cpu", 0.2))


@pytest.mark.parametrize("network", ["segresnet", "swinunetr"])
def test_another_network_contradicts_a_model(model, tmp_path, network):
    dataset = make_dataset()
    with pytest.raises(
        UsageError, match=r"a model brings its own network; found another network or planner, expected 'unet'\. Drop --network"
    ):
        planned(dataset, make_fingerprint_of(dataset), Workspace(tmp_path), None, network, CPU, like=model)
