"""Upsampling has two ways, torch's own and a matrix product, which must not differ."""

from __future__ import annotations

import pytest
import torch

from medseg.models.blocks import upsample, upsampling

CASES = [((3,), None), ((2, 1), torch.channels_last), ((1, 2, 2), torch.channels_last_3d), ((2, 2, 2), torch.channels_last_3d)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("stride", "layout"), CASES)
def test_values_and_gradients_are_those_of_a_transposed_convolution(
    stride: tuple[int, ...], layout: torch.memory_format | None, bias: bool
) -> None:
    torch.manual_seed(0)
    layer, x = upsampling(5, 3, stride, bias=bias).double(), torch.randn(2, 5, *(4, 3, 6)[: len(stride)], dtype=torch.float64)
    if layout is not None:
        layer, x = layer.to(memory_format=layout), x.to(memory_format=layout)  # type: ignore[call-overload]
    x.requires_grad_()
    expected, found = layer(x), upsample(layer, x)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    if layout is not None:
        assert found.is_contiguous(memory_format=layout)
    factor = torch.randn_like(expected)
    inputs = (x, *layer.parameters())
    for a, b in zip(*(torch.autograd.grad(out, inputs, factor) for out in (found, expected)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_its_values() -> None:
    torch.manual_seed(0)
    layer = upsampling(2, 3, (1, 2), bias=True).double()
    assert torch.autograd.gradcheck(lambda x: upsample(layer, x), torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True))


def test_the_gradient_of_a_concatenation_comes_through() -> None:
    """It is a part of a larger array, and so not contiguous."""
    torch.manual_seed(0)
    layer, x = upsampling(4, 2, (2, 2)), torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    gradients = []
    for way in (layer, lambda values: upsample(layer, values)):
        layer.zero_grad()
        larger = way(x)
        (torch.cat([larger, 2 * larger], 1) ** 2).sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-5)


def test_predictions_stay_those_of_the_layer_to_the_bit() -> None:
    torch.manual_seed(0)
    layer, x = upsampling(4, 2, (2, 2, 2), bias=True), torch.randn(1, 4, 3, 4, 5)
    with torch.no_grad():
        assert torch.equal(upsample(layer, x), layer(x))


def test_autocast_gives_its_type() -> None:
    layer, x = upsampling(4, 2, (2, 2, 2)), torch.randn(1, 4, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert upsample(layer, x).dtype == torch.bfloat16
