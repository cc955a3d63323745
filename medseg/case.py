"""A case in memory, on its way from file to network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Array, Grid, Shape, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        id: case id.
        image: `(C, *shape)`; any real dtype as read, float after preparation.
        label: `(*shape)` integer voxel values as in the file (not class indices), codes where classes are things (`Labels`); or None.
        grid: where the arrays lie now.
        trail: the steps from the native grid to `grid`, in order.
        prior: `(*shape)` integer voxel values that an earlier stage predicted, a further input of the network; or None.
        fields: for each channel, the grid it was resampled from when it was read, None where that was the native one. Beyond it there are
            no measured values. Empty: none was resampled.
    """

    id: str
    image: Array
    label: Array | None
    grid: Grid
    trail: tuple[Step, ...] = ()
    prior: Array | None = None
    fields: tuple[Grid | None, ...] = ()

    def field(self, channel: int) -> Grid | None:
        """The grid that a channel was resampled from, or None."""
        return self.fields[channel] if self.fields else None


@dataclass(frozen=True)
class PreparedCase:
    """A prepared case as the store gives it: arrays may be memory-mapped, windows are read on demand.

    Attributes:
        image: `(C, *shape)` float16 or float32, normalised, on the target spacing.
        label: `(*shape)` integer voxel values, or None.
        locations: voxel indices `(n, d)` int32 to centre windows on: of each foreground class and, where labels have an ignore value, of
            annotated voxels (`Domain.locations`); none without a label.
        native: the grid of the files.
        trail: the steps from the native grid to the prepared one.
        prior: `(*shape)` integer voxel values that an earlier stage predicted, or None.
    """

    id: str
    image: Array
    label: Array | None
    locations: tuple[NDArray[np.int32], ...]
    native: Grid
    trail: tuple[Step, ...]
    prior: Array | None = None

    @property
    def shape(self) -> Shape:
        """Spatial shape on the prepared grid."""
        return tuple(int(n) for n in self.image.shape[1:])


class Window(NamedTuple):
    """One training window: image `(C, *source)` float32, label and (where the case has one) prior `(*source)`; both `Labels.dtype`, the prior int16."""

    image: NDArray[np.float32]
    label: NDArray[np.int16 | np.int32]
    prior: NDArray[np.int16] | None = None


@dataclass
class Batch:
    """Windows on the device.

    Attributes:
        image: `(N, C, *window)`.
        label: `(N, *window)` voxel values, `Labels.dtype`; None in inference.
        prior: `(N, *window)` int16 voxel values that an earlier stage predicted; None where the plan has none.
        extra: further named tensors that wrappers add (prompts, text), first axis N.
    """

    image: Tensor
    label: Tensor | None = None
    prior: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same windows on another device."""

        def moved(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        extra = {name: values.to(device) for name, values in self.extra.items()}
        return Batch(self.image.to(device), moved(self.label), moved(self.prior), extra)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.image)

    def __getitem__(self, part: slice) -> Batch:
        """Some of the windows."""
        label, prior = (None if values is None else values[part] for values in (self.label, self.prior))
        return Batch(self.image[part], label, prior, {name: values[part] for name, values in self.extra.items()})
