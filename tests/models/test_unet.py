from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F  # noqa: N812

from medseg.device import Machine
from medseg.models.base import Head
from medseg.models.blocks import InstanceNorm, memory_format
from medseg.models.unet import UNetFamily, UNetSettings


def settings(**changes: object) -> UNetSettings:
    base: dict[str, object] = {
        "features": (4, 6, 8),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "encoder": (0, 1, 1),
        "decoder": (1, 1),
        "residual": False,
        "skip": "add",
        "deep_supervision": 0,
    }
    return UNetSettings.model_validate(base | changes)


HEADS = (Head("a", 3), Head("b", 1))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("skip", ["add", "concat"])
@pytest.mark.parametrize("supervised", [0, 1])
def test_shapes_per_head_and_level(residual: bool, skip: str, supervised: int) -> None:
    network = UNetFamily.build(settings(residual=residual, skip=skip, deep_supervision=supervised), 2, HEADS)
    image = torch.randn(2, 2, 4, 12, 16)
    trained = network.train()(image)
    assert {k: [tuple(t.shape) for t in v] for k, v in trained.items()} == {
        "a": [(2, 3, 4, 12, 16), (2, 3, 4, 6, 8)][: supervised + 1],
        "b": [(2, 1, 4, 12, 16), (2, 1, 4, 6, 8)][: supervised + 1],
    }
    assert [len(v) for v in network.eval()(image).values()] == [1, 1]
    sum(t.float().mean() for maps in trained.values() for t in maps).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("window", [(32,), (24, 40), (16, 24, 16)])
def test_one_to_three_axes(window: tuple[int, ...]) -> None:
    configured = UNetFamily.configure(window, (1.0,) * len(window), Machine("cuda", 8))
    network = UNetFamily.build(configured.settings, 1, (Head("a", 2),)).eval()
    assert network(torch.zeros(1, 1, *configured.window))["a"][0].shape == (1, 2, *configured.window)


def test_every_setting_has_a_reason() -> None:
    for machine in (Machine("cpu", 8), Machine("cuda", 8)):
        configured = UNetFamily.configure((40, 56, 40), (1, 1, 1), machine)
        assert set(configured.reasons) == set(UNetSettings.model_fields)


def test_first_outputs_are_the_prior() -> None:
    torch.manual_seed(0)
    network = UNetFamily.build(settings(), 1, (Head("a", 2, prior=(-0.05, -3.0)),)).eval()
    output = network(torch.randn(4, 1, 4, 16, 16))["a"][0]
    assert output.mean((0, 2, 3, 4)).tolist() == pytest.approx([-0.05, -3.0], abs=0.8)
    assert 0.1 < output.std() < 3


def test_instance_norm_is_torchs_and_keeps_memory_format() -> None:
    layer = InstanceNorm(5)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    x = torch.randn(3, 5, 4, 6, 5).contiguous(memory_format=torch.channels_last_3d)
    expected = F.instance_norm(x, weight=layer.weight, bias=layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_memory_is_channels_last_but_not_on_apple() -> None:
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert [memory_format(cpu, axes) for axes in (1, 2, 3)] == [torch.contiguous_format, torch.channels_last, torch.channels_last_3d]
    assert {memory_format(mps, axes) for axes in (1, 2, 3)} == {torch.contiguous_format}
    assert memory_format(torch.device("cuda", 1), 3) == torch.channels_last_3d


def test_samples_of_a_batch_do_not_mix() -> None:
    network = UNetFamily.build(settings(), 1, HEADS).train()
    images = torch.randn(2, 1, 4, 16, 16)
    together = network(images)["a"][0]
    alone = torch.cat([network(image[None])["a"][0] for image in images])
    torch.testing.assert_close(together, alone)


def test_check_names_what_is_wrong() -> None:
    assert UNetFamily.check(settings(), (4, 12, 16)) == ""
    assert "2 axes but the network has 3" in UNetFamily.check(settings(), (12, 16))
    assert "[5, 12, 16] is not a multiple of the network's total stride [2, 4, 4]; [4, 12, 16] and [6, 12, 16] are" in UNetFamily.check(
        settings(), (5, 12, 16)
    )
    assert "one voxel at the bottleneck" in UNetFamily.check(settings(), (2, 4, 4))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features": (4, 6)}, "strides has 3 entries; 2 features ask for 2"),
        ({"decoder": (1, 1, 1)}, "decoder has 3 entries"),
        ({"strides": ((2, 1, 1), (1, 2, 2), (2, 2, 2))}, "full resolution"),
        ({"kernels": ((2, 3, 3), (3, 3, 3), (3, 3, 3))}, "kernels must be odd"),
        ({"kernels": ((3, 3), (3, 3), (3, 3))}, "same number of axes"),
        ({"features": (4, 0, 8)}, "must be positive"),
        ({"encoder": (0, -1, 1)}, "cannot be negative"),
        ({"deep_supervision": 2}, "at most 1 with 3 stages; found 2"),
        ({"width": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        settings(**changes)
