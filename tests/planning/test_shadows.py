"""Tensors without values behave as those with values do: shapes, types, layouts, gradients, memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medseg.planning.shadows import LiveStorage, Shadow, Shadows, UnknownValueError, shadowed


def seen(value: torch.Tensor) -> tuple[object, ...]:
    return tuple(value.shape), value.stride(), value.dtype, value.device.type, value.requires_grad


def operations(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    labels = (y[:, 0] > 0).long()
    view = x.permute(0, 2, 3, 1)
    grown = torch.zeros(3)
    grown.unsqueeze_(0)
    summed = torch.zeros_like(x)
    summed.add_(x.detach()).mul_(2)
    return [
        x + y,
        view * 2,
        view.contiguous(),
        (x > 0),
        x.half().float().double(),
        torch.cat([x, y], 1),
        functional.one_hot(labels, 4),
        torch.arange(4)[labels],
        functional.interpolate(x, scale_factor=2, mode="nearest"),
        functional.max_pool2d(x, 2),
        torch.einsum("nchw,nchw->n", x, y),
        functional.softmax(x.flatten(2), 2) @ y.flatten(2).transpose(1, 2),
        functional.scaled_dot_product_attention(x, y, y),
        x.split(1, 1)[0],
        x.new_zeros(3, 4),
        torch.tensor([1.0, 2.0])[:, None] * x.mean((1, 2, 3)),
        grown,
        summed,
        functional.layer_norm(x, x.shape[1:]),
        functional.group_norm(x, 1),
    ]


def test_results_are_those_of_real_tensors() -> None:
    def made() -> list[torch.Tensor]:
        return operations(torch.zeros(2, 2, 8, 6, requires_grad=True), torch.ones(2, 2, 8, 6))

    real = [seen(one) for one in made()]
    for _ in range(2):  # the second time from what was remembered
        with Shadows():
            assert [seen(one) for one in made()] == real


def test_what_was_remembered_is_counted_again() -> None:
    def peaks() -> tuple[int, int, int]:
        with Shadows() as shadows:
            kept = operations(torch.zeros(2, 2, 8, 6, requires_grad=True), torch.ones(2, 2, 8, 6))
            held = shadows.now
            del kept
        return held, shadows.peak, shadows.flops

    assert peaks() == peaks()


def test_equal_numbers_of_other_types_are_other_questions() -> None:
    with Shadows():
        whole = torch.zeros(2, dtype=torch.int32)
        assert [(whole + other).dtype for other in (1, 1.0, True, 1)] == [torch.int32, torch.float32, torch.int32, torch.int32]


def test_what_is_changed_in_place_is_returned_itself() -> None:
    with Shadows():
        for _ in range(2):
            image, other = torch.zeros(2, 3), torch.ones(2, 3)
            assert image.add_(other) is image
            view = image.view(6).add_(1)
            assert view.shape_only.untyped_storage()._cdata == image.shape_only.untyped_storage()._cdata
            assert image.t_() is image
            assert image.shape == (3, 2)


@pytest.mark.parametrize("half", [False, True])
def test_a_step_takes_what_it_takes_under_fake_tensors(half: bool) -> None:
    """Peak bytes, live bytes and FLOPs as PyTorch's own modes count them, with autocasting and without."""

    def network() -> nn.Module:
        block = [nn.Conv2d(1, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2)]
        return nn.Sequential(*block, nn.BatchNorm2d(8), nn.GELU(), nn.ConvTranspose2d(8, 3, 2, stride=2), nn.Flatten(), nn.LazyLinear(5))

    def step(model: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(model(torch.zeros(2, 1, 16, 16)), torch.zeros(2, dtype=torch.long))
        loss.backward()

    first = network()
    first(torch.zeros(2, 1, 16, 16))  # gives the lazy layer its size
    shadows = Shadows()
    shadowed(first, shadows)
    with shadows:
        step(first)
    second = network()
    second(torch.zeros(2, 1, 16, 16))
    fake = FakeTensorMode()
    for module in second.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            setattr(module, name, fake.from_tensor(tensor))
    with fake, LiveStorage() as live:
        for tensor in (*second.parameters(), *second.buffers()):
            live.follow(tensor)
        with FlopCounterMode(display=False) as counter:
            step(second)
    assert (shadows.peak, shadows.now, shadows.flops) == (live.peak, live.now, counter.get_total_flops())
    assert all(isinstance(weight.grad, Shadow) for weight in first.parameters())


def test_shared_weights_stay_shared() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    shadows = Shadows()
    weights = shadowed(network, shadows)
    assert network[0].weight is network[1].weight
    assert len(weights) == 3
    assert all(isinstance(weight, nn.Parameter) and weight.requires_grad for weight in weights)
    assert shadows.now == 4 * (9 + 3 + 3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: bool(x.any()),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_values_are_unknown(ask) -> None:
    with Shadows(), pytest.raises(UnknownValueError):
        ask(torch.zeros(4, 4))


def test_constants_keep_their_values_until_they_meet_a_shadow() -> None:
    with Shadows() as shadows:
        five = torch.tensor([2, 3]).sum().item()
        image = torch.zeros(five, 4)
        scaled = image * torch.tensor(2.0)
        assert isinstance(scaled, Shadow)
        assert shadows.now >= 2 * 4 * 5 * 4
    assert scaled.shape == (5, 4)


def test_shadows_are_of_no_use_outside() -> None:
    with Shadows():
        image = torch.zeros(3)
    with pytest.raises(RuntimeError, match="tensors without values"):
        _ = image + 1


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from medseg.planning.shadows import Shadows, shadowed\n"
        "network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU())\n"
        "shadows = Shadows()\n"
        "shadowed(network, shadows)\n"
        "with shadows:\n"
        "    (network(torch.zeros(1, 1, 5, 5, 5)) - 1).log_softmax(1).clamp_min(0).sum().backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
