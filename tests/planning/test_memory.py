from __future__ import annotations

import gc

import pytest
import torch
from synthetic import REGIONS, TWO, make_plan

from medseg.case import Batch
from medseg.device import autocast_dtype
from medseg.errors import PlanError
from medseg.planning.memory import AVERAGED, GIB, STATES, UNSEEN, _measured, training_cost, training_memory
from medseg.planning.shadows import LiveStorage
from medseg.plans import Plan
from medseg.tasks.semantic import Semantic


def with_batch(plan: Plan, size: int) -> Plan:
    return plan.edited({"training.batch_size": str(size)})


def test_live_storage_follows_views_and_releases() -> None:
    with LiveStorage() as live:
        a = torch.zeros(1000)
        assert live.now == 4000
        b = a + 1
        view = b.view(10, 100)
        assert live.now == 8000
        del b
        assert live.now == 8000  # the view keeps it
        del view
        assert live.now == 4000
        assert live.peak == 8000
        a.add_(1)
        assert live.now == 4000


@pytest.mark.parametrize("labels", [TWO, REGIONS])
def test_fake_step_costs_what_a_real_step_costs(labels) -> None:
    """The same step with real tensors, followed in the same way, has the same peak to a per cent."""
    plan = with_batch(make_plan(labels, ndim=2, shape=(1, 64, 64)), 2)
    task = Semantic(plan)
    gc.collect()
    with LiveStorage() as live:
        network = task.network().train()
        weights = list(network.parameters())
        kept = [torch.zeros_like(w) for w in weights for _ in range(STATES[plan.training.optimizer] + AVERAGED)]
        batch = Batch(torch.zeros(2, 1, *plan.window), torch.zeros(2, *plan.window, dtype=torch.int16))
        targets = task.targets(batch)
        loss = torch.stack(list(task.loss(network(task.inputs(batch)), targets).values())).sum()
        loss.backward()
        assert len(kept) == 3 * len(weights)
    factor, share = UNSEEN["cpu"]
    assert (training_memory(plan) - share) * GIB / factor == pytest.approx(live.peak, rel=0.01)


def test_cost_grows_with_batch_and_window_and_shrinks_with_precision() -> None:
    plan = make_plan(ndim=2, shape=(1, 64, 64))
    two, four = training_cost(with_batch(plan, 2)), training_cost(with_batch(plan, 4))
    assert four.flops == 2 * two.flops
    assert two.parameters == four.parameters == sum(p.numel() for p in Semantic(plan).network().parameters())
    assert two.memory < four.memory < 2 * two.memory

    def net(memory: float, device: str) -> float:
        factor, share = UNSEEN[device]
        return (memory - share) / factor

    on_gpu, on_apple = (
        Plan.parse({**plan.model_dump(mode="json"), "memory": {"budget": 8, "training": 0, "device": device}}, "test")
        for device in ("cuda", "mps")
    )
    assert training_memory(with_batch(on_gpu, 4)) < four.memory
    assert autocast_dtype(torch.device("mps")) is None
    assert training_memory(with_batch(on_apple, 4)) == pytest.approx(net(four.memory, "cpu") * UNSEEN["mps"][0])  # it trains in float32


def test_flops_of_one_convolution_count() -> None:
    """A network of one stage with no blocks: one 3x3 convolution and the head, forward and weight gradient, and the head's input gradient."""
    plan = with_batch(make_plan(ndim=2, shape=(1, 64, 64)), 1)
    window, width = plan.window, 4
    edited = Plan.parse(
        {
            **plan.model_dump(mode="json"),
            "network": {
                "kind": "unet",
                "features": [width],
                "strides": [[1, 1]],
                "kernels": [[3, 3]],
                "encoder": [0],
                "decoder": [],
                "residual": False,
                "skip": "add",
                "deep_supervision": 0,
            },
            "reasons": {},
        },
        "test",
    )
    voxels = window[0] * window[1]
    convolution, head = 2 * 9 * width * voxels, 2 * width * 3 * voxels
    assert training_cost(edited).flops == 2 * convolution + 3 * head


def test_nothing_is_allocated() -> None:
    """A window of 1024^3 is measured like any other: it would need terabytes."""
    large = make_plan(ndim=2, shape=(1, 64, 64)).edited({"window": "[65536, 65536]", "training.batch_size": "1"})
    assert training_memory(large) > 100


class Reading(torch.nn.Module):
    """Reads a number back from a tensor, while it is built or in its forward pass."""

    def __init__(self, forward: bool) -> None:
        super().__init__()
        self.reads = forward
        self.conv = torch.nn.Conv2d(1, 3, round(torch.linspace(1, 3, 3)[-1].item()), padding=1)

    def forward(self, image: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        scale = image.mean().item() if self.reads else 1.0
        return {"segmentation": [scale * self.conv(image)]}


def test_networks_may_read_numbers_while_they_are_built_but_not_later(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = with_batch(make_plan(ndim=2, shape=(1, 64, 64)), 2)
    monkeypatch.setattr(Semantic, "network", lambda task: Reading(forward=False))
    first = plan.edited({"window": "[64, 128]"})
    assert training_cost(first).parameters == 30
    monkeypatch.setattr(Semantic, "network", lambda task: Reading(forward=True))
    with pytest.raises(
        PlanError, match=r"network 'unet' of task 'semantic': a training step cannot be measured, because it decides by the va"
    ):
        training_cost(plan.edited({"window": "[128, 64]"}))
    _measured.cache_clear()


def test_weights_take_no_memory_and_no_random_numbers() -> None:
    plan = with_batch(make_plan(ndim=2, shape=(1, 64, 64)), 1)
    before = torch.random.get_rng_state()
    training_cost(plan.edited({"window": "[96, 64]"}))
    assert torch.equal(torch.random.get_rng_state(), before)
