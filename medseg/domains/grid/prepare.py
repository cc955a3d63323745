"""From the native grid and intensities to those a network sees, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case
from medseg.domains.grid.settings import GridSettings, Interpolation, Normalization, Orientation, Scheme
from medseg.errors import DatasetError
from medseg.geometry import Crop, Grid, Reorient, Resample, Shape, Step
from medseg.imaging.crop import bounding_box, nonzero
from medseg.imaging.normalize import body_mask, standardise, to_range, to_spread, zscore
from medseg.imaging.resample import coarse_axis, resample_image, resample_label, thick_axis
from medseg.io.grids import field_of_view
from medseg.prediction import FoundObjects
from medseg.scratch import IN_MEMORY, Scratch, copy

LARGEST = 2**33  # prepared voxels; above it the spacing is wrong rather than the image large


def prepare_case(case: Case, settings: GridSettings, scratch: Scratch = IN_MEMORY) -> Case:
    """Reorient, crop, normalise, resample; each geometric step goes on the trail. Slab by slab, with large arrays in `scratch`.

    Raises:
        DatasetError: the case does not fit the settings (dimensions, channels), or its spacing would make it impossibly large.
    """
    _fits(case, settings)
    reorient = _orient(case.grid, settings)
    steps: list[Step] = [reorient]
    grid, image = reorient.grid(case.grid), reorient.apply(case.image)
    maps = {name: reorient.apply(values) for name, values in (("label", case.label), ("prior", case.prior)) if values is not None}

    inside = nonzero(image, scratch) if settings.crop or any(c.scheme is Scheme.masked for c in settings.channels) else None
    if settings.crop and inside is not None and (box := bounding_box(inside)):
        crop = Crop(start=tuple(a for a, _ in box), shape=tuple(b - a for a, b in box), source=grid.shape)
        if crop.shape != crop.source:
            steps.append(crop)
            grid, image, inside = crop.grid(grid), crop.apply(image), crop.apply(inside)
            maps = {name: crop.apply(values) for name, values in maps.items()}

    normal = scratch.zeros(image.shape, np.float32)
    as_nnunet = settings.interpolation is Interpolation.nnunet
    asked = any(c.scheme is Scheme.masked for c in settings.channels) or (as_nnunet and maps)
    body = body_mask(inside, as_nnunet) if inside is not None and asked else None
    if as_nnunet and body is not None and "prior" in maps:
        body |= maps["prior"] != 0  # nnU-Net takes for body whatever the earlier stage found
    for k, (channel, how, out) in enumerate(zip(image, settings.channels, normal, strict=True)):
        source = case.field(k)
        _normalise(channel, how, body, out, None if source is None else field_of_view(source, grid, scratch))
    image = normal

    shape = prepared_shape(grid, settings)
    if shape != grid.shape:
        if int(np.prod(shape)) > LARGEST:
            raise DatasetError.of(
                f"resampling from {_mm(grid.spacing)} mm to {_mm(settings.spacing)} mm gives an impossibly large image",
                where=f"case '{case.id}'",
                found=f"{list(shape)} voxels",
                fix="Correct the spacing in the file's header.",
            )
        resample, apart = _resampling(grid, shape, settings)
        steps.append(resample)
        image = resample_image(image, shape, apart, scratch=scratch, clip=as_nnunet)
        maps = {name: resample_label(values, shape, apart, body if as_nnunet else None) for name, values in maps.items()}
        grid = resample.grid(grid)
    maps = {name: np.ascontiguousarray(values) for name, values in maps.items()}
    return Case(case.id, np.ascontiguousarray(image), maps.get("label"), grid, (*case.trail, *steps), maps.get("prior"))


def _resampling(grid: Grid, shape: Shape, settings: GridSettings) -> tuple[Resample, int | None]:
    """The step to the prepared grid, and the axis along which the image takes its nearest neighbour."""
    step = Resample(source=grid.shape, shape=shape)
    if settings.interpolation is Interpolation.nnunet:
        target = _target(grid, settings)
        return step.model_copy(update={"thick": thick_axis(target, grid.spacing)}), thick_axis(grid.spacing, target)
    apart = coarse_axis(grid.spacing)
    return step, apart if apart is not None else coarse_axis(step.grid(grid).spacing)


def prepared_shape(grid: Grid, settings: GridSettings) -> Shape:
    """Voxels along each prepared axis; at least one."""
    return tuple(
        n if target is None else max(1, round(spacing / target * n))
        for n, spacing, target in zip(grid.shape, grid.spacing, settings.spacing, strict=True)
    )


def spacing_on(grid: Grid, settings: GridSettings) -> tuple[float, ...]:
    """Target spacing in mm along the prepared axes of a case on a native grid."""
    return _target(_orient(grid, settings).grid(grid), settings)


def _target(grid: Grid, settings: GridSettings) -> tuple[float, ...]:
    return tuple(has if wanted is None else wanted for has, wanted in zip(grid.spacing, settings.spacing, strict=True))


def extent(grid: Grid, settings: GridSettings) -> Shape:
    """Voxels along each prepared axis of a case on a native grid that is not cropped."""
    return prepared_shape(_orient(grid, settings).grid(grid), settings)


def restore_array(array: NDArray[Any], trail: tuple[Step, ...], fill: float = 0, scratch: Scratch = IN_MEMORY) -> NDArray[Any]:
    """Undo cropping and orientation of an array `(..., *shape)` at native spacing; outside the crop is `fill`."""
    for step in reversed(trail):
        if isinstance(step, Crop) and step.shape != step.source:
            whole = scratch.zeros((*array.shape[: array.ndim - len(step.shape)], *step.source), array.dtype)
            if fill != 0:
                whole[...] = fill
            copy(array, step.apply(whole))
            array = whole
        elif isinstance(step, Reorient):
            array = step.undo(array)
    if array.flags.c_contiguous:
        return array
    result = scratch.zeros(array.shape, array.dtype)
    copy(array, result)
    return result


def restore_objects(found: FoundObjects, trail: tuple[Step, ...]) -> FoundObjects:
    """The same of objects at native spacing."""
    for step in reversed(trail):
        if isinstance(step, Crop):
            found = found.moved(step)
        elif isinstance(step, Reorient):
            found = found.turned(step)
    return found


def _orient(grid: Grid, settings: GridSettings) -> Reorient:
    """To the plan's orientation, then the plan's order of axes, as one step."""
    if settings.orientation is Orientation.file:
        return Reorient(axes=settings.axes, flips=(False,) * grid.ndim)
    canonical = grid.canonical()
    # Posterior and left against anterior and right; images of two axes have no orientation.
    turned = (False, True, True) if settings.orientation is Orientation.ras and grid.ndim == 3 else (False,) * grid.ndim
    flips = tuple(flip != turn for flip, turn in zip(canonical.flips, turned, strict=True))
    return Reorient(axes=tuple(canonical.axes[a] for a in settings.axes), flips=tuple(flips[a] for a in settings.axes))


def _normalise(
    channel: NDArray[Any],
    how: Normalization,
    body: NDArray[np.bool_] | None,
    out: NDArray[np.float32],
    measured: NDArray[np.bool_] | None,
) -> None:
    if how.scheme is Scheme.fixed:
        assert how.mean is not None
        assert how.std is not None
        standardise(channel, how.mean, how.std, how.low, how.high, out=out)
    elif how.scheme is Scheme.range:
        to_range(channel, out=out)
    elif how.scheme is Scheme.spread:
        to_spread(channel, out=out, measured=measured)
    else:
        zscore(channel, body if how.scheme is Scheme.masked else None, out=out, measured=measured)


def _fits(case: Case, settings: GridSettings) -> None:
    where = f"case '{case.id}'"
    if case.grid.ndim != len(settings.axes):
        raise DatasetError.of(
            "the case has the wrong number of dimensions", where=where, found=f"{case.grid.ndim}D", expected=f"{len(settings.axes)}D"
        )
    if len(case.image) != len(settings.channels):
        raise DatasetError.of(
            "the case has the wrong number of channels", where=where, found=str(len(case.image)), expected=str(len(settings.channels))
        )


def _mm(spacing: tuple[float | None, ...]) -> str:
    return " x ".join("as is" if s is None else f"{s:.4g}" for s in spacing)
