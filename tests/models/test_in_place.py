"""Inference takes shorter ways than training: the same to the bit, or to rounding."""

from __future__ import annotations

import pytest
import torch

from medseg.device import Machine
from medseg.models.base import Head
from medseg.models.blocks import InstanceNorm, convolution, pointwise, upsampling
from medseg.models.composed import Composed, worth
from medseg.models.nnunet import NnUNet, NnUNetFamily, NnUNetSettings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "layout"), [((3, 5, 4, 6, 7), torch.channels_last_3d), ((2, 5, 6, 7), torch.channels_last)])
def test_normalisation_in_inference_is_equal_to_the_bit(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = InstanceNorm(5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        x = (3 * torch.randn(shape) + 1).to(dtype).to(memory_format=layout)
        expected = norm(x)
    with torch.inference_mode():
        found = norm(x.clone(memory_format=torch.preserve_format))
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)
    assert found.dtype == dtype


@pytest.mark.parametrize("axes", [2, 3])
def test_a_pointwise_convolution_is_a_product(axes: int) -> None:
    torch.manual_seed(0)
    layer, x = convolution(4, 3, (1,) * axes, bias=True), torch.randn(2, 4, *(6, 7, 5)[:axes])
    with torch.no_grad():
        assert torch.allclose(pointwise(layer, x), layer(x), atol=1e-5)


def test_a_pointwise_convolution_is_not_rounded() -> None:
    """Outputs of 16 bits would make ties of close calls."""
    torch.manual_seed(0)
    layer, x = convolution(4, 3, (1, 1, 1), bias=True), torch.randn(1, 4, 5, 6, 7).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = pointwise(layer, x)
    assert found.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, layer(x.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("stride", "kernel"),
    [
        *(((2, 2, 2), (3, 3, 3)), ((1, 2, 2), (3, 3, 3)), ((2, 2, 2), (1, 3, 3)), ((1, 2, 2), (1, 3, 3)), ((2, 2), (3, 3)), ((2,), (3,))),
        *(((2, 2, 2), (5, 5, 5)), ((1, 2, 2), (7, 5, 3)), ((1, 1), (7, 7)), ((3, 2), (5, 7)), ((1,), (3,)), ((2,), (7,))),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_composed_convolutions_differ_by_a_constant(stride: tuple[int, ...], kernel: tuple[int, ...], size: int) -> None:
    """At the rim, too, where the bias of the first ends with the volume."""
    torch.manual_seed(0)
    wide, narrow, skips, out, axes = 6, 4, 3, 5, len(stride)
    up, conv = upsampling(wide, narrow, stride, bias=True), convolution(narrow + skips, out, kernel, bias=True)
    with torch.no_grad():
        up.bias.normal_()  # type: ignore[operator,union-attr]
        conv.bias.normal_()  # type: ignore[operator,union-attr]
        x = torch.randn(2, wide, *(size + 1, size + 2, size + 3)[:axes])
        spread = up(x)
        skip = torch.randn(2, skips, *spread.shape[2:])
        expected = conv(torch.cat([spread, skip], 1))
        composed = Composed(up.weight, up.bias, conv.weight, torch.float32)  # type: ignore[arg-type]
        difference = (composed(x, skip) - expected).flatten(2)
    torch.testing.assert_close(difference, difference[:1, :, :1].expand_as(difference), atol=2e-5, rtol=0)
    assert not composed.state_dict()


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_frozen_network_is_the_same_network(kernel: int, size: int) -> None:
    """With kernels that reach farther than the coarsest maps, too."""
    torch.manual_seed(0)
    settings = NnUNetSettings(
        features=(8, 16, 32),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels=((kernel,) * 3,) * 3,
        residual=False,
        encoder=(1, 1, 1),
        decoder=(1, 1),
        deep_supervision=0,
        precision="half",
    )
    network = NnUNetFamily.build(settings, 1, (Head("classes", 3),)).eval()
    assert isinstance(network, NnUNet)
    for layer in network.up:
        torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    with torch.inference_mode():
        image = torch.randn(2, 1, 4 * size, 8, 12)
        expected = network(image)["classes"][0]
        network.freeze(torch.float32)
        found = network(image)["classes"][0]
    assert len(network.composed) == 2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_composing_is_worth_it_where_all_axes_are_halved() -> None:
    def found(stride: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
        up, conv = upsampling(64, 32, stride), convolution(64, 32, kernel)
        return worth(up.weight, conv.weight)  # type: ignore[arg-type]

    assert found((2, 2, 2), (3, 3, 3))
    assert not found((2, 2), (3, 3))
    assert not found((1, 2, 2), (1, 3, 3))
    assert not found((1, 2, 2), (3, 3, 3))


def test_a_frozen_network_predicts_the_same_in_16_bits() -> None:
    """To within rounding: no farther from 32 bits than the network as it was trained."""
    torch.manual_seed(0)
    settings = NnUNetSettings(
        features=(16, 32, 64),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 3,
        residual=False,
        encoder=(1, 1, 1),
        decoder=(2, 1),
        deep_supervision=0,
        precision="half",
    )
    network = NnUNetFamily.build(settings, 1, (Head("classes", 3),)).eval()
    assert isinstance(network, NnUNet)
    for layer in network.up:
        torch.nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode():
        exact = network(image)["classes"][0]
        with torch.autocast("cpu", torch.bfloat16):
            before = network(image)["classes"][0]
            NnUNetFamily.freeze(network, torch.device("cpu"), torch.bfloat16)
            after = network(image)["classes"][0]
    assert len(network.composed) == 2
    far, near = ((one - exact).abs().mean() for one in (before, after))
    assert 0 < near < 1.1 * far


def test_what_is_computed_in_32_bits_is_not_composed() -> None:
    settings = NnUNetFamily.configure((16, 16, 16), (1.0, 1.0, 1.0), Machine("cpu", 8)).settings
    for precision, device, dtype in (("full", "cpu", torch.bfloat16), ("half", "cpu", None), ("half", "meta", torch.bfloat16)):
        network = NnUNetFamily.build(settings.model_copy(update={"precision": precision}), 1, (Head("classes", 2),))
        NnUNetFamily.freeze(network, torch.device(device), dtype)
        assert isinstance(network, NnUNet)
        assert not network.composed
