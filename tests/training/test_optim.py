from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg.models.detection.heads import AnchorHead
from medseg.plans import Optimizer, TrainingPlan
from medseg.training.optim import Muon, make_optimizer, orthogonalise, schedule

torch.set_num_threads(1)  # threads cost more than they bring on tensors this small

PLAN = TrainingPlan(
    batch_size=2,
    steps=10,
    epochs=2,
    optimizer=Optimizer.muon,
    learning_rate=0.02,
    weight_decay=0,
    warmup=0.01,
    clip=12,
    ema=0.03,
    foreground=0.33,
    network_steps=1000,
    networks=1,
    folds=5,
    seed=0,
)


@pytest.mark.parametrize("shape", [(16, 200), (200, 16), (24, 24), (1, 30)])
def test_orthogonalised_singular_values_are_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise([torch.randn(shape) * 1e-4])[0])
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_orthogonalise_keeps_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(12, 40)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise([matrix])[0] @ vh.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.03


def test_matrices_together_are_as_each_alone():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((12, 40), (40, 12), (12, 12), (5, 300), (12, 90))]
    for alone, together in zip(matrices, orthogonalise(matrices), strict=True):
        torch.testing.assert_close(together, orthogonalise([alone])[0], atol=1e-3, rtol=0)


def test_zero_gradient_gives_a_zero_update():
    assert torch.equal(orthogonalise([torch.zeros(8, 30)])[0], torch.zeros(8, 30))


def test_the_adam_part_is_adamw():
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = Muon([{"params": mine, "weight_decay": 0.1, "lr": 1e-2}])
    reference = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(7):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_muon_takes_inner_convolutions_only():
    network = nn.Sequential(nn.Conv3d(1, 32, 3), nn.BatchNorm3d(32), nn.Conv3d(32, 32, 3), nn.Conv3d(32, 3, 1))
    optimizer = make_optimizer(network, PLAN)
    orthogonal = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    assert orthogonal == {id(network[2].weight)}  # not the stem, the norm, the head
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))
    assert [g["peak"] for g in optimizer.param_groups] == [0.02, pytest.approx(0.002), pytest.approx(0.002)]


@pytest.mark.parametrize("anchors", [1, 3, 9])
def test_muon_leaves_last_layers_to_adam_however_many_anchors_they_tell_of(anchors):
    head = AnchorHead(32, 2, anchors, 5)
    optimizer = make_optimizer(head, PLAN)
    orthogonal = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    assert orthogonal == {id(head.conv.weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimiser_fits_and_decays_no_bias(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1))
    plan = PLAN.model_copy(update={"optimizer": name, "learning_rate": 0.03, "weight_decay": 0.01})
    optimizer = make_optimizer(network, plan)
    assert all(g["weight_decay"] == (0.01 if g["params"][0].ndim > 1 else 0) for g in optimizer.param_groups)
    x = torch.randn(4, 4, 8, 8)
    y = (x[:, 0] > 0).long()
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@given(st.floats(0, 1), st.floats(0, 0.5))
def test_schedule_stays_between_zero_and_one(progress, warmup):
    assert 0 <= schedule(progress, warmup) <= 1


def test_schedule_rises_then_falls_to_zero():
    assert schedule(0, 0.1) == 0
    assert schedule(0.05, 0.1) == pytest.approx(0.5)
    assert schedule(0.1, 0.1) == 1
    assert schedule(0.55, 0.1) == pytest.approx(0.5)
    assert math.isclose(schedule(1, 0.1), 0, abs_tol=1e-12)
    assert schedule(0, 0) == 1


@pytest.mark.parametrize("shape", [(16, 5, 3, 3, 3), (20, 32)])
def test_muon_steps_alike_whatever_the_layout_of_weights(shape):
    torch.manual_seed(0)
    weight, gradient = torch.randn(shape), torch.randn(shape)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last_3d if len(shape) == 5 else torch.contiguous_format):
        parameter = nn.Parameter(weight.clone().to(memory_format=layout))
        parameter.grad = gradient.clone().to(memory_format=layout)
        Muon([{"params": [parameter], "orthogonal": True, "lr": 0.1}]).step()
        assert parameter.is_contiguous(memory_format=layout)
        found.append(parameter.detach().contiguous())
    assert torch.allclose(*found, atol=2e-3)
    momentum = gradient.lerp(0.05 * gradient, 0.95).flatten(1)  # bfloat16 in its last product
    assert torch.allclose(
        found[0], weight - 0.1 * max(1, shape[0] / weight[0].numel()) ** 0.5 * orthogonalise([momentum])[0].view(shape), atol=2e-3
    )
