"""A case in memory, on its way from file to network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Array, Grid, Shape, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        id: case id.
        image: `(C, *shape)`; any real dtype as read, float after preparation.
        label: `(*shape)` integer voxel values as in the file (not class indices), or None.
        grid: where the arrays lie now.
        trail: the steps from the native grid to `grid`, in order.
    """

    id: str
    image: Array
    label: Array | None
    grid: Grid
    trail: tuple[Step, ...] = ()


@dataclass(frozen=True)
class PreparedCase:
    """A prepared case as the store gives it: arrays may be memory-mapped, windows are read on demand.

    Attributes:
        image: `(C, *shape)` float16 or float32, normalised, on the target spacing.
        label: `(*shape)` integer voxel values, or None.
        locations: for each foreground class, sampled voxel indices `(n, d)` int32, for foreground oversampling (may be empty).
        native: the grid of the files.
        trail: the steps from the native grid to the prepared one.
    """

    id: str
    image: Array
    label: Array | None
    locations: tuple[NDArray[np.int32], ...]
    native: Grid
    trail: tuple[Step, ...]

    @property
    def shape(self) -> Shape:
        """Spatial shape on the prepared grid."""
        return tuple(int(n) for n in self.image.shape[1:])


@dataclass
class Batch:
    """Windows on the device.

    Attributes:
        image: `(N, C, *window)`.
        label: `(N, *window)` int16 voxel values; None in inference.
        extra: further named tensors that wrappers add (prompts, text), first axis N.
    """

    image: Tensor
    label: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
