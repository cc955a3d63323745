"""The small networks of detectors: for every cell of a pyramid, for every region, and for masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.models.blocks import SLOPE, convolution, pointwise, upsample, upsampling

FINER = 4  # times fewer channels on the whole grid of a mask: all that is left there is to draw it, at a third of a training step otherwise
FEWEST_CHANNELS = 8
CALM = 0.01  # first weights of what is decided: at first anchors are boxes, and classes are alike


class AnchorHead(nn.Module):
    """What is said about each anchor: one convolution and a pointwise one, shared by all levels of a pyramid.

    Without normalisation: it would make something of windows in which there is nothing.
    """

    def __init__(self, channels: int, axes: int, anchors: int, numbers: int) -> None:
        """For maps of `channels` along `axes`, with so many `anchors` per cell, about each of which so many `numbers` are said."""
        super().__init__()
        self.numbers = numbers
        self.conv = convolution(channels, channels, (3,) * axes, bias=True)
        self.say = decision(convolution(channels, anchors * numbers, (1,) * axes, bias=True))

    def seen(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What the convolution makes of each map `(N, C, *spatial)`."""
        return [F.leaky_relu(self.conv(one), SLOPE, inplace=True) for one in maps]

    def said(self, seen: Sequence[Tensor]) -> Tensor:
        """`(N, A, numbers)` float32 about what was seen, anchors in the order of `anchor_boxes`."""
        rows = [pointwise(self.say, one).movedim(1, -1) for one in seen]
        return torch.cat([one.reshape(len(one), -1, self.numbers) for one in rows], 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """`(N, A, numbers)` float32 of maps `(N, C, *spatial)`."""
        return self.said(self.seen(maps))


class RegionHead(nn.Module):
    """Class and box of regions: two layers on the values of a grid over each."""

    def __init__(self, channels: int, cells: int, width: int, classes: int, axes: int) -> None:
        """For grids `(channels, *cells)` and `classes` kinds of things; a box is of no kind, so few examples are enough."""
        super().__init__()
        self.classes = classes
        self.first = dense(channels * cells**axes, width)
        self.second = dense(width, width)
        self.say = decision(nn.Linear(width, classes + 1 + 2 * axes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(R, 1 + K)`, background first, and `(R, 2 d)` for `decode`, in float32, of grids `(R, C, *cells)`."""
        x = F.leaky_relu(self.first(x.movedim(1, -1).flatten(1)), SLOPE, inplace=True)
        x = F.leaky_relu(self.second(x), SLOPE, inplace=True)
        with torch.autocast(x.device.type, enabled=False):
            said = self.say(x.float())
        return said[:, : self.classes + 1], said[:, self.classes + 1 :]


class MaskHead(nn.Module):
    """The outline of the object in a region: convolutions on half the grid, then the whole grid.

    One mask whatever the class: where the outline of an object runs does not depend on what it is called, a rare class learns it from the others, and
    He et al. 2017 find it nearly as good as one per class.
    """

    def __init__(self, channels: int, axes: int) -> None:
        """For grids of `channels`."""
        super().__init__()
        self.blocks = nn.ModuleList(convolution(channels, channels, (3,) * axes, bias=True) for _ in range(2))
        fine = max(FEWEST_CHANNELS, channels // FINER)
        self.up = upsampling(channels, fine, (2,) * axes, bias=True)
        self.say = decision(convolution(fine, 1, (1,) * axes, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(R, m ** d)` float32 of grids `(R, C, *(m / 2,) * d)`."""
        for block in self.blocks:
            x = F.leaky_relu(block(x), SLOPE, inplace=True)
        x = F.leaky_relu(upsample(self.up, x), SLOPE, inplace=True)
        return pointwise(self.say, x).flatten(1)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose outputs are about as large as its inputs (He et al. 2015)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)
    return layer


def decision(layer: nn.Module) -> nn.Module:
    """A last layer that has no opinion yet, and is told to optimisers as one (`last`)."""
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    layer.last = True  # type: ignore[assignment]  # modules hold any value
    nn.init.normal_(layer.weight, std=CALM)
    nn.init.zeros_(layer.bias)
    return layer
