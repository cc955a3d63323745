"""What a detector says of windows: a fixed number of slots, each for one object, packed in one tensor that goes the way of any output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def slot_channels(axes: int, mask: int) -> int:
    """The numbers in one slot: score, class, a box with `axes` axes, and a mask of `mask` cells along each of them."""
    return 2 + 2 * axes + int(mask**axes)


@dataclass(frozen=True)
class Slots:
    """Objects that were found in windows of `d` axes; N windows with S slots each.

    Attributes:
        scores: `(N, S)` confidence, 0..1.
        classes: `(N, S)` int64, 1..K; 0 says that the slot is empty, its score then is 0.
        boxes: `(N, S, 2 d)` lower corner, then upper corner, in voxels of the window; voxel i covers [i, i + 1].
        masks: `(N, S, *(m,) * d)` probabilities 0..1 in the centres of `m` equal cells of the box along each axis.
    """

    scores: Tensor
    classes: Tensor
    boxes: Tensor
    masks: Tensor

    @property
    def axes(self) -> int:
        """Axes of the windows."""
        return self.boxes.shape[-1] // 2

    def pack(self) -> Tensor:
        """`(N, S, slot_channels)` float32: score, class, box, mask in C order."""
        parts = (self.scores[..., None], self.classes[..., None], self.boxes, self.masks.flatten(2))
        return torch.cat([part.float() for part in parts], -1)

    @classmethod
    def unpack(cls, packed: Tensor, axes: int, mask: int) -> Self:
        """The inverse of `pack`, without copies but of the classes.

        Args:
            packed: `(N, S, slot_channels(axes, mask))`.
            axes: of the windows.
            mask: cells of masks along each axis.
        """
        if packed.ndim != 3 or packed.shape[-1] != slot_channels(axes, mask):
            raise ValueError(f"slots of {axes} axes and {mask} cells have {slot_channels(axes, mask)} numbers, got {tuple(packed.shape)}")
        end = 2 + 2 * axes
        masks = packed[..., end:].reshape(*packed.shape[:2], *(mask,) * axes)
        return cls(packed[..., 0], packed[..., 1].round().long(), packed[..., 2:end], masks)

    def mirrored(self, axes: Sequence[int], window: Sequence[int]) -> Self:
        """The same objects where windows of this size are mirrored along some of their axes."""
        if not axes:
            return self
        count = self.axes
        lower, upper = self.boxes[..., :count].clone(), self.boxes[..., count:].clone()
        for axis in axes:
            ends = window[axis] - upper[..., axis], window[axis] - lower[..., axis]
            lower[..., axis], upper[..., axis] = ends
        masks = self.masks.flip([axis - count for axis in axes])
        return type(self)(self.scores, self.classes, torch.cat([lower, upper], -1), masks)
