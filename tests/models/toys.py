"""Discs and balls, and a small backbone with a pyramid of three levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from medseg.models.blocks import ConvBlock, convolution
from medseg.models.detection import Level, Truth

Ball = tuple[tuple[float, ...], float, int]  # centre, radius, class


class Backbone(nn.Module):
    """Maps at strides of 2, 4, 8 as `pyramid`, and a dense head."""

    def __init__(self, axes: int, width: int = 16, channels: int = 16) -> None:
        super().__init__()
        kernel = (3,) * axes
        self.enter = ConvBlock(1, width, kernel, (2,) * axes)
        self.down = nn.ModuleList(ConvBlock(width, width, kernel, (2,) * axes) for _ in range(2))
        self.out = nn.ModuleList(convolution(width, channels, (1,) * axes, bias=True) for _ in range(3))
        self.dense = convolution(width, 4, (1,) * axes, bias=True)

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        maps = [self.enter(image)]
        for down in self.down:
            maps.append(down(maps[-1]))
        for s in (1, 0):
            maps[s] = maps[s] + nn.functional.interpolate(maps[s + 1], size=maps[s].shape[2:], mode="nearest")
        return {"pyramid": [out(one) for out, one in zip(self.out, maps, strict=True)], "classes": [self.dense(maps[0])]}


def levels(axes: int, size: float = 6.0) -> tuple[Level, ...]:
    return tuple(Level((stride,) * axes, ((size * stride / 2,) * axes,)) for stride in (2, 4, 8))


def painted(window: tuple[int, ...], windows: list[list[Ball]], places: int) -> tuple[Tensor, Truth]:
    """Images `(N, 1, *window)` with noise, as bright as the class, and their objects in so many places; those without a voxel are left out."""
    axes, count = len(window), len(windows)
    grid = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in window), indexing="ij"))
    codes = np.zeros((count, *window), np.int32)
    boxes, classes = np.zeros((count, places, 2 * axes), np.float32), np.zeros((count, places), np.int64)
    names = np.zeros((count, places), np.int32)
    for n, balls in enumerate(windows):
        for number, (centre, radius, kind) in enumerate(balls, 1):
            inside = np.square(grid - np.reshape(centre, (-1, *(1,) * axes))).sum(0) <= radius**2
            codes[n][inside] = kind << 16 | number
        for j, code in enumerate(np.unique(codes[n][codes[n] > 0])):
            where = np.argwhere(codes[n] == code)
            boxes[n, j] = *where.min(0), *(where.max(0) + 1)
            classes[n, j], names[n, j] = code >> 16, code
    noise = np.random.default_rng(0).normal(size=codes.shape) * 0.1
    image = torch.from_numpy(((codes >> 16) + noise)[:, None].astype(np.float32))
    return image, Truth(*map(torch.from_numpy, (boxes, classes, names, codes)))
