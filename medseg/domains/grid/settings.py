"""The `space` section of a plan over regular grids."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from medseg.plans import SpaceSection
from medseg.record import Record

SAME_SPACING = 0.05  # share by which spacings differ without a word: augmentation zooms by far more


class Scheme(StrEnum):
    """How a channel's intensities are normalised."""

    fixed = "fixed"  # clip to [low, high], if these are given, then (x - mean) / std with numbers of the whole dataset (CT, RGB)
    zscore = "zscore"  # each case's own mean and standard deviation
    masked = "masked"  # as zscore, but inside the nonzero body only; outside is 0
    spread = "spread"  # each case's own median to 0, and its 1st to 99.8th percentile 4 apart
    range = "range"  # each case's own lowest value to 0 and its highest to 1


class Orientation(StrEnum):
    """How the axes of a case lie in the body before they are put in the order of `axes`."""

    canonical = "canonical"  # nearest to superior, posterior, left
    ras = "ras"  # nearest to superior, anterior, right, as readers that call this RAS do
    file = "file"  # as they are stored: for models that saw their images so


class Interpolation(StrEnum):
    """How a case changes its grid, and its maps back. Images are resampled by cubic splines, maps linearly.

    Across slices that are too thick for a spline, images take their nearest neighbour.
    """

    smooth = "smooth"  # slices are thick when 3 times coarser than every other axis; maps go back linearly along all axes
    nnunet = "nnunet"  # as nnU-Net: thick when 3 times coarser than any axis; splines stay within the range of their slice or
    #                    image; across thick slices maps, too, take their nearest neighbour, and they are rounded to 16 bits


class Blending(StrEnum):
    """How overlapping windows are summed up, each weighted by a Gaussian."""

    centred = "centred"  # the Gaussian peaks in the middle of a window; 32-bit sums
    nnunet = "nnunet"  # to the last bit as nnU-Net: it peaks at the sample after the middle of even windows; 16-bit sums, for each network


class Normalization(Record):
    """Normalisation of one channel. `low`, `high`, `mean` and `std` belong to the scheme `fixed` only, which clips where it has bounds."""

    scheme: Scheme
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = (self.low, self.high, self.mean, self.std)
        if self.scheme is Scheme.fixed:
            if self.mean is None or self.std is None or (self.low is None) != (self.high is None):
                raise ValueError("the scheme 'fixed' needs mean and std, and low and high or neither")
            if self.low is not None and self.high is not None and self.low >= self.high:
                raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        elif any(n is not None for n in numbers):
            raise ValueError(f"low, high, mean and std belong to the scheme 'fixed', not to '{self.scheme}'")
        return self


class Augmentation(Record):
    """Random changes of training windows. Each is drawn for each window on its own; a probability of 0 turns it off."""

    seldom: ClassVar[tuple[str, ...]] = ("colour", "colour_size")

    mirror: tuple[int, ...] = Field(default=(), description="Window axes flipped with probability 0.5 each.")
    spatial: float = Field(default=0.7, ge=0, le=1, description="Probability of each rotation and scaling.")
    rotation: float = Field(default=15.0, ge=0, le=180, description="Largest angle in degrees about each axis.")
    in_plane: bool = Field(default=False, description="Rotate and deform only within the last two axes (anisotropic windows).")
    scale: float = Field(default=0.15, ge=0, lt=1, description="Largest log zoom, the same for all axes.")
    stretch: float = Field(default=0.075, ge=0, lt=1, description="Largest additional log zoom of each axis alone.")
    shift: float = Field(default=2.0, ge=0, description="Largest shift in samples along each axis.")
    elastic: float = Field(default=0.5, ge=0, le=1, description="Probability of an elastic deformation.")
    elastic_size: float = Field(default=1.5, ge=0, description="Largest standard deviation of the elastic displacement in samples.")
    elastic_cell: float = Field(default=10.0, gt=1, description="Samples between the control points of the elastic deformation.")
    contrast: float = Field(default=0.5, ge=0, le=1, description="Probability of a change of contrast about the mean.")
    contrast_size: float = Field(default=0.3, ge=0, lt=2, description="Largest log factor of the contrast.")
    brightness: float = Field(default=0.5, ge=0, le=1, description="Probability of a change of brightness.")
    brightness_size: float = Field(default=0.3, ge=0, description="Largest brightness offset in standard deviations.")
    gamma: float = Field(default=0.4, ge=0, le=1, description="Probability of a gamma curve; mean and deviation are kept.")
    gamma_size: float = Field(default=0.35, ge=0, lt=2, description="Largest log exponent.")
    colour: float = Field(
        default=0, ge=0, le=1, description="Probability that each channel takes something of the others; what is grey stays so."
    )
    colour_size: float = Field(default=1.0, ge=0, le=1, description="Largest share of the others, and itself, mixed at random.")
    noise: float = Field(default=0.3, ge=0, le=1, description="Probability of Gaussian noise.")
    noise_size: float = Field(default=0.15, ge=0, description="Largest standard deviation of the noise.")
    blur: float = Field(default=0.1, ge=0, le=1, description="Probability of a Gaussian blur.")
    blur_size: tuple[float, float] = Field(default=(0.5, 1.0), description="Smallest and largest sigma in samples.")
    coarse: float = Field(default=0.1, ge=0, le=1, description="Probability of a simulated lower resolution.")
    coarse_size: tuple[float, float] = Field(default=(0.5, 1.0), description="Smallest and largest resolution relative to the window's.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.blur_size[0] <= self.blur_size[1] <= 8:
            raise ValueError(f"blur_size must rise within 0 to 8, got {list(self.blur_size)}")
        if not 0 < self.coarse_size[0] <= self.coarse_size[1] <= 1:
            raise ValueError(f"coarse_size must rise within 0 to 1, got {list(self.coarse_size)}")
        return self


class PriorChanges(Record):
    """Random damage to what an earlier stage predicted, so that the network does not learn to copy it."""

    change: float = Field(default=0.4, ge=0, le=1, description="Probability that a class grows, shrinks, opens or closes.")
    change_size: int = Field(default=4, ge=1, le=32, description="By so many samples at most.")
    lose: float = Field(default=0.2, ge=0, le=1, description="Probability that a box around one of its voxels is emptied.")
    lose_size: float = Field(default=0.5, gt=0, le=1, description="Largest side of that box as a fraction of the window.")


def _near(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else abs(one - other) <= SAME_SPACING * max(one, other)


def _mm(spacing: tuple[float | None, ...]) -> str:
    return " x ".join("as is" if s is None else f"{s:.4g}" for s in spacing)


class GridSettings(SpaceSection):
    """How cases become prepared arrays, and how windows of them are varied in training."""

    seldom: ClassVar[tuple[str, ...]] = ("orientation", "interpolation", "blending", "prior")

    kind: Literal["grid"] = "grid"
    axes: tuple[int, ...] = Field(description="Order of the oriented axes (z, y, x) in prepared arrays; the coarsest comes first.")
    spacing: tuple[float | None, ...] = Field(description="Target spacing in mm along the prepared axes; null leaves an axis as it is.")
    crop: bool = Field(description="Whether cases are cropped to the box of voxels that are not zero in every channel.")
    channels: tuple[Normalization, ...] = Field(min_length=1, description="Normalisation of each channel.")
    augmentation: Augmentation = Field(default=Augmentation(), description="Random changes of training windows.")
    prior: PriorChanges | None = Field(
        default=None, description="Random damage to the prediction of the previous configuration. Written where there is one."
    )
    orientation: Orientation = Field(
        default=Orientation.canonical,
        description="Orientation before `axes` are put in order: superior, posterior, left (canonical); superior, anterior, right (ras); or "
        "as stored (file). Written where it is not canonical.",
    )
    interpolation: Interpolation = Field(
        default=Interpolation.smooth,
        description="How grids change: smooth, or nnunet, which is nnU-Net's way to the voxel (splines do not overshoot, and maps go back by "
        "nearest neighbour across thick slices). Written where it is not smooth.",
    )
    blending: Blending = Field(
        default=Blending.centred,
        description="How windows are summed up: weighted by a Gaussian that peaks in their middle (centred), or with nnU-Net's Gaussian and "
        "its 16-bit sums (nnunet). Written where it is not centred.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"axes must be a permutation of 0 to {len(self.axes) - 1}, got {list(self.axes)}")
        if len(self.spacing) != len(self.axes):
            raise ValueError(f"spacing has {len(self.spacing)} values for {len(self.axes)} axes")
        if any(s is not None and s <= 0 for s in self.spacing):
            raise ValueError(f"spacing must be positive, got {list(self.spacing)}")
        return self

    def unlike(self, source: Self, channels: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """See `SpaceSection.unlike`: target spacing, beyond a few per cent, and how channels are normalised."""
        here, there = self.spacing, source.spacing
        told = []
        if not all(_near(a, b) for a, b in zip(reversed(here), reversed(there), strict=False)):
            told.append(f"the target spacing is {_mm(here)} mm, the source's {_mm(there)} mm")
        for name, (place, other) in channels.items():
            scheme, theirs = self.channels[place].scheme, source.channels[other].scheme
            if scheme is not theirs:
                told.append(f"channel '{name}' is normalised by '{scheme}', in the source by '{theirs}'")
        return tuple(told)

    def preparation_key(self) -> str:
        """See `preparing`."""
        return self.preparing().to_json()

    def preparing(self) -> Self:
        """What a prepared case depends on: random changes happen in training and blending in prediction, so plans that differ in them share
        prepared cases."""
        return self.model_copy(update={"augmentation": Augmentation(), "prior": None, "blending": Blending.centred})
