"""Batched intensity changes of normalised windows `(N, C, *window)`; parameters are `(N,)` tensors with a neutral value for "no change"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseg.imaging.warp import MODES

SMALL = 1e-6


def spread(values: Tensor, like: Tensor) -> Tensor:
    """`(N,)` to `(N, 1, ...)` so that it multiplies `like`."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def mix_channels(image: Tensor, weights: Tensor) -> Tensor:
    """Each channel becomes a weighted sum of all: `weights` `(N, C, C)`, a row for each new channel."""
    return (weights.to(image) @ image.flatten(2)).view_as(image)


def change_contrast(image: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Multiply by `factor` about each channel's mean, then add `offset`."""
    mean = image.mean(_spatial(image), keepdim=True)
    return (image - mean) * spread(factor, image) + mean + spread(offset, image)


def change_gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """A power curve over each channel's range; mean and standard deviation are kept, so only the curve's shape changes."""
    axes = _spatial(image)
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    std, mean = torch.std_mean(image, axes, keepdim=True)
    curved = ((image - low) / (high - low + SMALL)).clamp_min(SMALL).pow(spread(exponent, image))
    new_std, new_mean = torch.std_mean(curved, axes, keepdim=True)
    return torch.where(spread(exponent, image) == 1, image, (curved - new_mean) / (new_std + SMALL) * std + mean)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur of each window with its own `sigma` in samples, one axis after the other."""
    radius = max(1, int(torch.ceil(3 * sigma.max())))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    n, channels, *window = image.shape
    result = image
    for axis in range(2, image.ndim):
        # The axis goes last; every window of the batch is a group of a 1D convolution.
        moved = result.movedim(axis, -1)
        flat = moved.reshape(1, n, -1, moved.shape[-1]).movedim(2, 0).reshape(-1, n, moved.shape[-1])
        padded = functional.pad(flat, (radius, radius), mode="replicate")
        smooth = functional.conv1d(padded, kernels[:, None], groups=n)
        result = smooth.movedim(1, 0).reshape(moved.shape).movedim(-1, axis)
    return result.reshape(n, channels, *window)


def coarsen(image: Tensor, resolution: float) -> Tensor:
    """Simulate an image taken at a lower resolution: fewer samples by nearest neighbour, then linear interpolation back."""
    window = tuple(image.shape[2:])
    small = tuple(max(1, round(n * resolution)) for n in window)
    return functional.interpolate(
        functional.interpolate(image, size=small, mode="nearest-exact"), size=window, mode=MODES[len(window)], align_corners=False
    )


def _spatial(image: Tensor) -> tuple[int, ...]:
    return tuple(range(2, image.ndim))
