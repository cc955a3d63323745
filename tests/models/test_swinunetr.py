from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from synthetic import make_dataset, make_fingerprint_of

from medseg import workflow
from medseg.case import Batch
from medseg.device import Machine
from medseg.models.base import Head
from medseg.models.swinunetr import STRIDE, SwinUNETRFamily, SwinUNETRSettings
from medseg.planning.memory import training_memory
from medseg.planning.planner import make_plans
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.training.optim import make_optimizer

CPU = Machine("cpu", 8.0)


@pytest.mark.parametrize(
    ("asked", "spacing", "given"),
    [
        ((40, 56, 40), (1.0, 1.0, 1.0), (64, 64, 64)),
        ((96, 128), (1.0, 1.0), (96, 128)),
        ((32, 32), (1.0, 1.0), (32, 64)),
        ((20, 32, 32), (3.0, 0.5, 0.5), (64, 32, 32)),
    ],
)
def test_windows_are_what_the_network_takes(asked, spacing, given) -> None:
    configured = SwinUNETRFamily.configure(asked, spacing, CPU)
    assert configured.window == given
    assert SwinUNETRFamily.check(configured.settings, given) == ""


def test_impossible_windows_say_why() -> None:
    settings = SwinUNETRFamily.configure((64, 64), (1.0, 1.0), CPU).settings
    assert "not a multiple of the network's total stride 32" in SwinUNETRFamily.check(settings, (64, 48))
    assert "one voxel at the bottleneck" in SwinUNETRFamily.check(settings, (STRIDE, STRIDE))
    assert SwinUNETRFamily.check(settings, (64, 64, 64)) == "the window has 3 axes but the network has 2"


def test_it_starts_at_the_prior() -> None:
    settings = SwinUNETRSettings(axes=2, width=12, blocks=(1, 1, 1, 1), attention=4)
    network = SwinUNETRFamily.build(settings, 1, (Head("a", 2, (-3.0, 1.0)), Head("b", 1)))
    torch.nn.init.zeros_(network.network.out.conv.conv.weight)
    outputs = network(torch.zeros(1, 1, 64, 32))
    assert outputs["a"][0][0, :, 0, 0].tolist() == [-3.0, 1.0]
    assert outputs["b"][0].unique().tolist() == [0.0]


@pytest.fixture(scope="module")
def plan() -> Plan:
    dataset = make_dataset(ndim=2)
    fingerprint = make_fingerprint_of(dataset, (64, 64), (1.0, 1.0))
    (plan,) = make_plans(dataset, fingerprint, task="semantic", domain="grid", network="swinunetr", machine=CPU)
    return plan


def test_it_is_planned_by_the_same_measure(plan: Plan) -> None:
    assert (plan.network.kind, plan.window) == ("swinunetr", (64, 64))
    assert plan.memory.training == pytest.approx(training_memory(plan), rel=0.01, abs=0.01)
    assert plan.reasons["network.width"].startswith("12 channels: a quarter of the paper's 48")


def test_it_learns_and_predicts(plan: Plan) -> None:
    """A few real steps of the plan's loss and optimiser bring the loss of one batch down, in channels-last memory under autocast."""
    torch.manual_seed(0)
    task = find_task(plan.task)(plan)
    network = task.network().to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, plan.training)
    label = torch.zeros(2, 64, 64, dtype=torch.int16)
    label[:, 8:32, 8:32], label[:, 40:60, 40:60] = 1, 2
    batch = Batch(label[:, None].float() + 0.1 * torch.randn(2, 1, 64, 64), label)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(task.inputs(batch).contiguous(memory_format=torch.channels_last))
        loss = torch.stack(list(task.loss(outputs, task.targets(batch)).values())).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        (predicted,) = network.eval()(batch.image).values()
    assert [tuple(m.shape) for m in predicted] == [(2, 3, 64, 64)]


def test_it_goes_through_the_whole_pipeline(cases: Callable[[Path, int], Path], tmp_path: Path) -> None:
    data = cases(tmp_path / "data", 4)
    edits = {"training.steps": "2", "training.batch_size": "2"}
    done = workflow.run(
        data,
        tmp_path / "run",
        network="swinunetr",
        configuration="2d",
        epochs=1,
        folds=(None,),
        edits=edits,
        memory=4,
        device="cpu",
        workers=1,
    )
    assert Plan.load(done.model / "plan.json").network.kind == "swinunetr"
    image = sorted((data / "imagesTr").iterdir())[0]
    predicted = workflow.predict(done.model, [image], tmp_path / "out", device="cpu")
    assert [(case.id, predicted.failures) for case in predicted.cases] == [(image.name.removesuffix(".nii.gz"), ())]


def test_torchvision_is_not_needed() -> None:
    script = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from medseg.models.swinunetr import *\n"
        "SwinUNETRFamily.build(SwinUNETRSettings(axes=2, width=12, blocks=(1, 1, 1, 1), attention=4), 1, (Head('a', 2),))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
