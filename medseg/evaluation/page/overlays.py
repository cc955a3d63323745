"""Pictures of single cases: the image with the reference's outline and the prediction over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medseg.dataset import Labels
from medseg.errors import ImageError
from medseg.evaluation.page.outline import outline
from medseg.evaluation.pairing import Pair, read_pair
from medseg.geometry import Reorient
from medseg.io.images import read_stack

LARGEST = 640  # pixels along a side of a picture; finer images are thinned out
MARGIN = 0.45  # of the structure's box on every side: enough surroundings to judge, close enough to see


@dataclass(frozen=True)
class View:
    """One slice.

    Attributes:
        title: the plane and the slice.
        width, height: in mm (or pixels of a photograph).
        picture: PNG as data URI, or empty where there is no image.
        size: columns and rows of the picture; outlines are in these units.
        reference, predicted: SVG path per class, empty where the class is not in the slice.
    """

    title: str
    width: float
    height: float
    picture: str
    size: tuple[int, int]
    reference: tuple[str, ...]
    predicted: tuple[str, ...]


def views(case: Pair, images: Sequence[Path], labels: Labels) -> tuple[View, ...]:
    """The slices with most foreground: one per plane in 3D (axial, coronal, sagittal, as a radiologist looks at them), the image in 2D.

    Args:
        case: prediction and reference.
        images: the case's image files; the first channel is shown, or the colours of a colour image. May be empty.
        labels: the classes.

    Raises:
        ImageError: the image has another shape than the reference.
    """
    prediction, truth = read_pair(case, labels)
    step = truth.grid.canonical()
    grid = step.grid(truth.grid)
    arrays = [
        step.apply(np.stack([np.isin(labels.semantic(a.array[0]), one.values) for one in labels.classes])) for a in (truth, prediction)
    ]
    photo = photo_of(images, truth.grid.shape, step)
    occupied: NDArray[np.bool_] = np.any(arrays[0] | arrays[1], axis=0)
    box = box_of(occupied)
    cropped = [a[(slice(None), *box)] for a in arrays]
    if photo is not None:
        photo = gray_or_colour(photo[(slice(None), *box)])
    if len(grid.shape) == 2:
        return (_view("", photo, cropped[0], cropped[1], grid.spacing),)
    found = []
    for axis, plane in enumerate(("axial", "coronal", "sagittal")):
        index = int(np.argmax(occupied[box].sum(axis=tuple(a for a in range(3) if a != axis))))
        spacing = tuple(s for a, s in enumerate(grid.spacing) if a != axis)
        title = f"{plane} {box[axis].start + index + 1} of {grid.shape[axis]}"
        cut = [np.take(a, index, axis=axis + 1) for a in cropped]
        picture = None if photo is None else np.take(photo, index, axis=axis + 1)
        if plane != "axial":  # superior is up
            cut, picture = [a[:, ::-1] for a in cut], None if picture is None else picture[:, ::-1]
        found.append(_view(title, picture, cut[0], cut[1], spacing))
    return tuple(found)


def photo_of(images: Sequence[Path], shape: tuple[int, ...], step: Reorient) -> NDArray[Any] | None:
    """The first channel `(1, *shape)`, or the colours `(3, *shape)`, in canonical orientation; None without images. Raises ImageError as `views`."""
    if not images:
        return None
    image = read_stack(list(images))
    if image.grid.shape != shape:
        raise ImageError.of(
            "image and reference have different shapes",
            where=str(images[0]),
            found=" x ".join(map(str, image.grid.shape)),
            expected=" x ".join(map(str, shape)),
            fix="Pass the images that the references were drawn on.",
        )
    colour = image.array.shape[0] == 3 and image.array.dtype == np.uint8
    return step.apply(image.array if colour else image.array[:1])


def box_of(occupied: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of the foreground with a margin; the whole case where there is none."""
    box = []
    for axis in range(occupied.ndim):
        there = np.flatnonzero(occupied.any(axis=tuple(a for a in range(occupied.ndim) if a != axis)))
        low, high = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, occupied.shape[axis])
        margin = max(8, round(MARGIN * (high - low)))
        box.append(slice(max(0, low - margin), min(occupied.shape[axis], high + margin)))
    return tuple(box)


def gray_or_colour(values: NDArray[Any]) -> NDArray[np.uint8]:
    """`(1 or 3, *shape)` to bytes; gray values are spread between the 0.5 and 99.5 % percentiles."""
    if values.shape[0] == 3:
        return values.astype(np.uint8)
    low, high = np.percentile(values.astype(np.float32), [0.5, 99.5])
    shades: NDArray[np.uint8] = (np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 255).astype(np.uint8)
    return shades


def _view(
    title: str, picture: NDArray[np.uint8] | None, truth: NDArray[np.bool_], predicted: NDArray[np.bool_], spacing: tuple[float, ...]
) -> View:
    rows, columns = truth.shape[1:]
    thin = max(1, -(-max(rows, columns) // LARGEST))
    truth, predicted = truth[:, ::thin, ::thin], predicted[:, ::thin, ::thin]
    return View(
        title,
        width=columns * spacing[1],
        height=rows * spacing[0],
        picture="" if picture is None else png(picture),
        size=(truth.shape[2], truth.shape[1]),
        reference=tuple(outline(m) for m in truth),
        predicted=tuple(outline(m) for m in predicted),
    )


def png(picture: NDArray[np.uint8]) -> str:
    """`(1 or 3, rows, columns)` as a data URI, of at most `LARGEST` pixels along a side."""
    rows, columns = picture.shape[1:]
    thin = max(1, -(-max(rows, columns) // LARGEST))
    size = (-(-columns // thin), -(-rows // thin))
    array = np.ascontiguousarray(picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0))
    image = Pillow.fromarray(array)
    if image.size != size:
        image = image.resize(size, Pillow.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def choose(means: NDArray[np.float64]) -> tuple[tuple[str, int], ...]:
    """Which cases to show by a similarity of each: best, median and worst, each case once; undefined cases never."""
    order = [int(i) for i in np.argsort(means, kind="stable")[::-1] if not np.isnan(means[i])]
    wanted: Mapping[str, int] = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    chosen: dict[int, str] = {}
    for name, rank in wanted.items():
        if order:
            chosen.setdefault(order[rank], name)
    return tuple((name, index) for index, name in chosen.items())
