from __future__ import annotations

import json

import pytest
import torch
from synthetic import make_plan

from medseg import registry
from medseg.case import Batch
from medseg.device import Machine
from medseg.errors import PlanError
from medseg.models.base import find_network
from medseg.planning.explain import unexplained
from medseg.planning.pretext import pretext_plan
from medseg.plans import Plan
from medseg.tasks.base import find_objective, find_pretext, find_task
from medseg.tasks.masked import HEAD, HIDDEN, Masked, MaskedSettings


@pytest.fixture(scope="module")
def base():
    return make_plan()


@pytest.fixture(scope="module")
def plan(base):
    return pretext_plan(base, "masked")


def drawn(plan, seed=0, count=3):
    torch.manual_seed(seed)
    image = torch.randn(count, 1, *plan.window)
    batch = Batch(image)
    return Masked(plan), batch


def test_the_plan_differs_in_what_is_learned_only(base, plan):
    assert (plan.task, plan.target.kind, plan.training.foreground, plan.training.networks, plan.recommended) == (
        "masked",
        "masked",
        0,
        1,
        False,
    )
    assert (plan.window, plan.space, plan.network, plan.data) == (base.window, base.space, base.network, base.data)
    assert plan.prepared_digest() == base.prepared_digest()  # cases are prepared once
    assert plan.trained_digest() != base.trained_digest()
    assert 0 < plan.memory.training < base.memory.budget
    assert not unexplained(plan)
    assert Plan.parse(json.loads(plan.to_json()), "x") == plan
    assert {path for path in plan.reasons if path.startswith("target")} == {"target.kind", "target.block", "target.ratio"}


@pytest.mark.parametrize("name", registry.networks.names())
@pytest.mark.parametrize("window", [(64, 64, 64), (96, 128), (40, 56, 40)])
def test_blocks_are_the_networks_strides_within_bounds(base, name, window):
    configured = find_network(name).configure(window, (1.0,) * len(window), Machine("cpu", 8))
    changed = base.model_copy(update={"window": configured.window, "network": configured.settings})
    target, _ = Masked.target(changed)
    assert len(target.block) == len(configured.window)
    for size, block in zip(configured.window, target.block, strict=True):
        assert 2 <= block <= 16
        assert size // block >= 4


def test_the_hippocampus_window_of_40_by_56_by_40_has_blocks_of_8(base):
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    changed = base.edited({"window": "[40, 56, 40]", "network.strides": json.dumps(strides)})
    assert Masked.target(changed)[0] == MaskedSettings(block=(8, 8, 8), ratio=0.6)


def test_every_window_hides_its_share_of_whole_blocks(plan):
    task, batch = drawn(plan)
    hidden = task.targets(batch)[HIDDEN]
    assert hidden.shape == (3, 1, *plan.window)
    block = plan.target.block
    grid = [-(-n // b) for n, b in zip(plan.window, block, strict=True)]
    corners = hidden[:, 0, :: block[0], :: block[1], :: block[2]]
    assert corners.shape[1:] == tuple(grid)
    assert (corners.flatten(1).sum(1) == round(0.6 * corners[0].numel())).all()
    whole = corners
    for axis, (size, edge) in enumerate(zip(plan.window, block, strict=True), 1):
        whole = whole.repeat_interleave(edge, axis).narrow(axis, 0, size)
    assert torch.equal(whole, hidden[:, 0])
    assert not torch.equal(hidden[0], hidden[1])


def test_hidden_voxels_are_zero_in_the_input_and_the_target_is_the_image(plan):
    task, batch = drawn(plan)
    inputs, targets = task.inputs(batch), task.targets(batch)
    hidden = targets[HIDDEN].expand_as(inputs)
    assert (inputs[hidden] == 0).all()
    assert torch.equal(inputs[~hidden], batch.image[~hidden])
    assert targets[HEAD] is batch.image
    assert torch.equal(task.targets(batch)[HIDDEN], targets[HIDDEN])  # one mask for a batch


def test_the_mask_follows_the_seed_alone(plan):
    masks = []
    for seed in (7, 7, 8):
        task, batch = drawn(plan)
        torch.manual_seed(seed)
        masks.append(task.targets(batch)[HIDDEN])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_only_hidden_voxels_count_and_coarser_maps_are_compared_with_means(plan):
    task, batch = drawn(plan)
    targets = task.targets(batch)
    image, hidden = targets[HEAD], targets[HIDDEN]
    wrong = torch.where(hidden, image, image + 100)
    assert float(task.loss({HEAD: [wrong]}, targets)["reconstruction"]) == 0
    assert float(task.loss({HEAD: [torch.where(hidden, image + 2, image)]}, targets)["reconstruction"]) == pytest.approx(4, rel=1e-5)
    half = torch.nn.functional.avg_pool3d(image, 2)
    assert float(task.loss({HEAD: [image, half]}, targets)["reconstruction"]) == pytest.approx(0, abs=1e-6)
    assert float(task.loss({HEAD: [image, half + 3]}, targets)["reconstruction"]) == pytest.approx(9 / 3, rel=1e-4)  # shares 2/3 and 1/3
    zero = float(task.loss({HEAD: [torch.zeros_like(image)]}, targets)["reconstruction"])
    assert zero == pytest.approx(1, abs=0.02)  # what a network that knows nothing gets: the variance


def test_tasks_and_objectives_are_told_apart(base, plan):
    assert find_objective("masked") is Masked
    assert find_pretext("masked") is Masked
    with pytest.raises(PlanError, match=r"'masked' is no task.*predict no labels.*--init PRETRAINED"):
        find_task("masked")
    with pytest.raises(PlanError, match=r"'semantic' is a task, which needs annotations; expected one of masked\. Train it"):
        find_pretext("semantic")
    with pytest.raises(PlanError, match="'masked' is no task"):
        pretext_plan(plan, "masked")
    with pytest.raises(PlanError, match="unknown name"):
        pretext_plan(base, "contrastive")


def test_impossible_settings():
    with pytest.raises(ValueError, match="block must be positive"):
        MaskedSettings(block=(0, 4), ratio=0.5)
    with pytest.raises(ValueError, match="less than 1"):
        MaskedSettings(block=(4, 4), ratio=1.0)
