"""Inference takes shorter ways than training: the same to the bit, or to rounding."""

from __future__ import annotations

import pytest
import torch

from medseg.models.blocks import InstanceNorm, convolution, pointwise


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
