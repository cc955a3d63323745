"""Depth, kernels and memory of nnU-Net's networks: pure functions of window and spacing.

`medseg.models.topology` has the same rule as medseg's networks use it; here it is to the letter, with its treatment of odd sizes.
Source: nnU-Net 2.8.1, `experiment_planners/network_topology.py`; dynamic-network-architectures 0.4.4, `compute_conv_feature_map_size` of
`PlainConvUNet` and `ResidualEncoderUNet`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.interop.nnunet.presets import Network, Preset

SMALLEST_MAP = 4  # voxels that are left along each pooled axis
CLOSE = 2  # spacings that differ by less than this factor are treated alike
FIRST_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}  # by number of axes


@dataclass(frozen=True)
class Pooling:
    """Stages of a network from full resolution to the bottleneck.

    Attributes:
        strides: of each stage; the first is all ones.
        kernels: of each stage.
        divisor: product of the strides along each axis.
        window: the window with each axis rounded up to a multiple of its divisor.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    divisor: tuple[int, ...]
    window: tuple[int, ...]


def pooling(spacing: Sequence[float], size: Sequence[float]) -> Pooling:
    """Halve the axes that are large enough and not much coarser than the finest of these, as often as that goes.

    Args:
        spacing: millimetres per axis.
        size: voxels per axis; a median of an even number of cases may end in a half.
    """
    axes = range(len(size))
    mm, left = list(spacing), list(size)
    kernel, divisor = [1] * len(size), [1] * len(size)
    strides, kernels = [(1,) * len(size)], []
    while halved := _halved(mm, left):
        for a in axes:
            # A wide kernel along a coarse axis would mix slices that are far apart; once the axes are close it stays wide.
            if mm[a] / min(mm) < CLOSE:
                kernel[a] = 3
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in halved else 1 for a in axes))
        for a in halved:
            mm[a] *= 2
            left[a] = math.ceil(left[a] / 2)
            divisor[a] *= 2
    window = tuple(math.ceil(n / d) * d for n, d in zip(size, divisor, strict=True))
    return Pooling(tuple(strides), (*kernels, (3,) * len(size)), tuple(divisor), window)


def _halved(mm: list[float], left: list[float]) -> list[int]:
    """The axes that the next stage halves; none at the bottleneck."""
    large = [a for a, n in enumerate(left) if n >= 2 * SMALLEST_MAP]
    finest = min((mm[a] for a in large), default=0)
    close = [a for a in large if mm[a] / finest < CLOSE]
    # A single axis is not halved to the last: nnU-Net leaves it 6 voxels or more.
    return [] if len(close) == 1 and left[close[0]] < 3 * SMALLEST_MAP else close


def features(stages: int, axes: int) -> tuple[int, ...]:
    """Channels of each stage: doubled from stage to stage up to a limit, which keeps the weights of 3D networks in bounds."""
    return tuple(min(MOST_FEATURES[axes], FIRST_FEATURES * 2**s) for s in range(stages))


def feature_map_values(pool: Pooling, preset: Preset, outputs: int) -> int:
    """Values of all feature maps that one window leaves behind in training, which memory is taken to be proportional to.

    Counted are the outputs of all convolutions and of the last stage's head (nnU-Net plans without deep supervision); `outputs` is the
    number of its channels.
    """
    stages = len(pool.strides)
    widths = features(stages, len(pool.window))
    size, total = list(pool.window), 0
    for s, (stride, width) in enumerate(zip(pool.strides, widths, strict=True)):
        size = [n // k for n, k in zip(size, stride, strict=True)]
        one = width * math.prod(size)
        # A residual block has two; one more is the stem in the first stage, and the shortcut that changes the size in all others.
        convolutions = preset.encoder[s] if preset.network is Network.plain else 2 * preset.encoder[s] + 1
        if s < stages - 1:
            convolutions += preset.decoder + 1  # and the upsampling
        total += convolutions * one
    return total + (outputs * math.prod(pool.window) if stages > 1 else 0)
