"""Read and write images of every supported format, chosen by suffix.

Arrays are `(C, Z, Y, X)` or `(C, Y, X)`, grids are LPS millimetres. Colour images have three channels; transparency is dropped and the
colours stay as stored. Photographs (png, jpg, bmp) have spacing 1, whatever print resolution they name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from medseg.case import Case
from medseg.dataset import CaseFiles, Labels, ObjectForm
from medseg.errors import ImageError, Problem
from medseg.geometry import Array
from medseg.io.coco.labels import SUFFIX as COCO
from medseg.io.coco.labels import files_of
from medseg.io.dicom.volume import LABELS
from medseg.io.dicom.volume import SUFFIX as SERIES
from medseg.io.format import Format, Header, Image, Native, numbers, smallest_integer
from medseg.io.grids import Placement, grid_problems, nearest, place, resample
from medseg.io.objects import encode
from medseg.record import write_atomic
from medseg.scratch import IN_MEMORY, Scratch, copy

FORMATS = {".nii.gz": "nifti", ".nii": "nifti", ".nrrd": "itk", ".mha": "itk", ".mhd": "itk", ".png": "raster", ".jpg": "raster",
           ".jpeg": "raster", ".bmp": "raster", ".tif": "tiff", ".tiff": "tiff", SERIES: "dicom",
           LABELS: "dicom labels", COCO: "coco"}  # fmt: skip

COLOURED = (".png", ".bmp")  # pictures whose label maps may hold numbers as colours

SUFFIXES: tuple[str, ...] = tuple(FORMATS)
"""Every suffix that can be read, lower case."""


@cache
def _load(kind: str) -> Format:
    """The format, whose library is imported only when a file of it comes along."""
    if kind == "nifti":
        from medseg.io.nifti import Nifti

        return Nifti()
    if kind == "itk":
        from medseg.io.itk import Itk

        return Itk()
    if kind == "dicom":
        from medseg.io.dicom.reading.format import Dicom

        return Dicom()
    if kind == "dicom labels":
        from medseg.io.dicom.reading.labels import DicomLabels

        return DicomLabels()
    if kind == "coco":
        from medseg.io.coco.labels import CocoLabels

        return CocoLabels()
    if kind == "tiff":
        from medseg.io.tiff import Tiff

        return Tiff()
    from medseg.io.raster import Raster

    return Raster()


def image_suffix(path: Path) -> str:
    """The image suffix as the file name has it (`.nii.gz`, `.PNG`), or empty where it is none that can be read."""
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return path.name[-len(suffix) :]
    return ""


def image_stem(path: Path) -> str:
    """The file name without its image suffix: `a.b.nii.gz` gives `a.b`."""
    suffix = image_suffix(path)
    return path.name[: len(path.name) - len(suffix)] if suffix else path.stem


def files_behind(path: Path) -> tuple[Path, ...]:
    """The files that an image is read from: itself, or those of a DICOM volume or of a COCO annotation (none where it is not there any more)."""
    if path.name.endswith(COCO):
        return files_of(path)
    if not path.name.endswith(SERIES):
        return (path,)
    from medseg.io.dicom.reading.reader import find_volume

    try:
        return tuple(dict.fromkeys(source.path for source in find_volume(path).sources))
    except ImageError:
        return ()


def label_suffix(path: Path) -> str:
    """The suffix under which a label map for this image is written: its own; `.png` for JPEG, which would change the values; `.nii.gz` for
    DICOM."""
    suffix = image_suffix(path)
    return ".nii.gz" if suffix == SERIES else ".png" if suffix.lower() in (".jpg", ".jpeg") else suffix


def map_suffix(path: Path) -> str:
    """The suffix under which float maps for this image are written: its own; `.tif` for photographs, which hold no floats; `.nii.gz` for
    DICOM."""
    suffix = image_suffix(path)
    return ".nii.gz" if suffix == SERIES else ".tif" if suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp") else suffix


def is_present(path: Path) -> bool:
    """Whether an image is where its path says. DICOM volumes and annotations are no files; whether they exist, their headers tell."""
    return path.name.endswith((SERIES, LABELS, COCO)) or path.is_file()


def read_header(path: Path, label: bool = False) -> Header:
    """The header of an image, without its voxels.

    Raises:
        ImageError: no such file, unknown format, or a header that makes no sense.
    """
    return _format(path).header(path, label)


def read_image(path: Path, scratch: Scratch = IN_MEMORY) -> Image:
    """One image with all its channels; a large one lies in `scratch`.

    Raises:
        ImageError: as `read_header`, and for truncated or damaged voxels.
    """
    return _format(path).read(path, scratch=scratch)


def read_stack(paths: Sequence[Path], scratch: Scratch = IN_MEMORY, read: Callable[[Path, Scratch], Image] = read_image) -> Image:
    """The channels of all files, in order, on the grid of the first; those on another grid are resampled onto it (see `grids.place`).

    `read` may take the place of `read_image` where files have been read before.

    Raises:
        ImageError: a file cannot be read, or lies elsewhere than the first; all problems at once.
    """
    if len(paths) == 1:
        return read(paths[0], scratch)
    problems: list[Problem] = []
    images: list[Image] = []
    moved: list[bool] = []
    for i, path in enumerate(paths):
        try:
            images.append(read(path, scratch))
        except ImageError as error:
            problems += error.problems
            if i == 0:
                break  # there is nothing to compare the others with
            continue
        image, first = images[-1], images[0]
        placement = place(path, image.grid, image.native, paths[0], first.grid, first.native) if i else Placement()
        problems += placement.problems
        moved.append(placement.coverage is not None)
    if problems:
        raise ImageError(problems)
    first = images[0]
    channels = [len(image.array) for image in images]
    kinds = [np.dtype(np.float32) if away else image.array.dtype for image, away in zip(images, moved, strict=True)]
    stack = scratch.zeros((sum(channels), *first.grid.shape), np.result_type(*kinds))
    for image, away, stop in zip(images, moved, itertools.accumulate(channels), strict=True):
        for channel, target in zip(image.array, stack[stop - len(image.array) : stop], strict=True):
            if away:
                resample(channel, image.grid, first.grid, target)
            else:
                copy(channel, target)
    fields = tuple(image.grid if away else None for image, away in zip(images, moved, strict=True) for _ in image.array)
    return Image(stack, first.grid, first.native, fields)


def read_annotation(path: Path, labels: Labels) -> Image:
    """A label map as it is in memory: with codes where there are things. Raises ImageError as `read_label`, and for objects that cannot be coded."""
    return _coded(path, labels, labels.objects)


def read_prediction(path: Path, labels: Labels, form: ObjectForm | None = None) -> Image:
    """As `read_annotation`, of a label map that a prediction was written to; by another program, where there is a `form`."""
    return _coded(path, labels, form or labels.given)


def _coded(path: Path, labels: Labels, form: ObjectForm) -> Image:
    image = read_label(path, colours=bool(labels.things) and form == "codes")
    return Image(encode(image.array[0], labels, form, path)[None], image.grid, image.native)


def read_label(path: Path, colours: bool = False) -> Image:
    """A label map as its file holds it, one channel of integers; floats that are exactly integers become integers.

    With `colours`, those of a picture stand for one number each (`raster.joined`), as `write_label` writes large ones.

    Raises:
        ImageError: as `read_image`, and for JPEG, colour, several channels, or values that are no integers.
    """
    if image_suffix(path).lower() in (".jpg", ".jpeg"):
        raise ImageError.of(
            "a label map is stored as JPEG, which changes values",
            where=str(path),
            expected="a lossless format",
            fix="Threshold or round it once, and save it as PNG.",
        )
    image = _format(path).read(path, label=True)
    array = image.array
    if colours and array.shape[0] == 3 and array.dtype == np.uint8:
        from medseg.io.raster import joined

        array = joined(array)[None]
    if array.shape[0] == 3 and np.array_equal(array[0], array[1]) and np.array_equal(array[0], array[2]):
        array = array[:1]  # gray, stored as colour
    if array.shape[0] != 1:
        raise ImageError.of(
            "a label map has several channels",
            where=str(path),
            found=f"{array.shape[0]} channels",
            expected="1",
            fix="Store one integer per voxel (not colours, not one-hot).",
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype.kind == "f":
        array = _whole(path, array)
    return Image(array, image.grid, image.native)


def _whole(path: Path, array: Array) -> Array:
    with np.errstate(invalid="ignore"):
        wrong = ~(np.isfinite(array) & (np.rint(array) == array))
    if wrong.any():
        example = array[wrong][0]
        raise ImageError.of(
            "label values are not whole numbers",
            where=str(path),
            found=f"{float(example):.6g} and others, {int(wrong.sum())} voxels of type {array.dtype.name}",
            expected="integers",
            fix="Probability maps need a threshold; resampled labels need nearest-neighbour interpolation.",
        )
    limit = 2.0**53
    if np.abs(array).max(initial=0) > limit:
        raise ImageError.of("label values are too large", where=str(path), found=f"{float(np.abs(array).max()):.6g}", expected="integers")
    return array.astype(smallest_integer(array))


def write_label(path: Path, array: Array, like: Path, colours: bool = False, numbered: bool = False) -> None:
    """Write a label map `(*shape)`, atomically, in the smallest integer type, on the grid of `like`.

    Between files of one format the geometry is copied to the bit; otherwise it goes through `Grid`. With `colours` the numbers of a picture are
    colours, which `read_label` can join again; `numbered` are numbers of objects, in 16 bits however few there are: all files of a folder
    are alike.

    Raises:
        ImageError: the format cannot hold labels, or the shape is not that of `like`.
        ResourceError: the path cannot be written.
    """
    if image_suffix(path).lower() in (".jpg", ".jpeg"):
        raise ImageError.of("JPEG would change label values", where=str(path), expected=label_suffix(path), fix="Write PNG.")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise ImageError.of("label values are not whole numbers", where=str(path), found=array.dtype.name, expected="integers")
    if colours and image_suffix(path).lower() in COLOURED and array.max(initial=0) < 2**24:
        from medseg.io.raster import coloured

        _write(path, coloured(array), like)
        return
    kind = np.dtype(np.uint16) if numbered and array.max(initial=0) < 2**16 else smallest_integer(array)
    _write(path, array[None].astype(kind, copy=False), like)


def write_maps(path: Path, array: Array, like: Path) -> None:
    """Write float maps `(K, *shape)` as one float32 file with K channels, atomically, on the grid of `like` (see `write_label`).

    Raises:
        ImageError: the format holds no floats (photographs: see `map_suffix`), or the shape is not that of `like`.
        ResourceError: the path cannot be written.
    """
    if map_suffix(path) != image_suffix(path):
        raise ImageError.of("the format holds no floats", where=str(path), found=image_suffix(path), expected=map_suffix(path))
    _write(path, array.astype(np.float32, copy=False), like)


def _write(path: Path, array: Array, like: Path) -> None:
    target, source = _format(path), _format(like)
    grid = source.header(like).grid
    if array.shape[1:] != grid.shape:
        raise ImageError.of(
            "a prediction does not have the shape of its image",
            where=str(path),
            found=numbers(array.shape[1:]),
            expected=f"{numbers(grid.shape)} as {like}",
        )
    write_atomic(path, lambda temporary: target.write(temporary, array, grid, like if source is target else None))


def read_case(
    files: CaseFiles,
    with_label: bool = True,
    scratch: Scratch = IN_MEMORY,
    image_of: Callable[[Path, Scratch], Image] = read_image,
    label_of: Callable[[Path], Image] | None = None,
    labels: Labels | None = None,
) -> Case:
    """A case on its native grid, with an empty trail.

    Args:
        with_label: False leaves the label file unread; the prediction of an earlier stage is an input and always read.
        scratch: where the image lies; the label stays in memory.
        image_of, label_of: in place of `read_image` and `read_annotation`, where files have been read before.
        labels: what values mean; without them no class is a thing. What an earlier stage predicted is read as class values alone.

    Raises:
        ImageError: files that cannot be read or lie on different grids; all problems at once.
    """
    problems: list[Problem] = []
    image: Image | None = None
    label: Image | None = None
    try:
        image = read_stack(files.images, scratch, image_of)
    except ImageError as error:
        problems += error.problems
    if with_label and files.label is not None:
        try:
            label = label_of(files.label) if label_of is not None else _of_file(files.label, labels, read_annotation)
        except ImageError as error:
            problems += error.problems
        if image is not None and label is not None:
            wrong = grid_problems(files.label, label.grid, label.native, files.images[0], image.grid, image.native, "label")
            if wrong and files.resample_label and label.grid.ndim == image.grid.ndim:
                label = Image(nearest(label, image.grid), image.grid, image.native)
            else:
                problems += wrong
    prior: Image | None = None
    if files.prior is not None:
        try:
            prior = _of_file(files.prior, labels, read_prediction)
        except ImageError as error:
            problems += error.problems
        if image is not None and prior is not None:
            problems += grid_problems(
                files.prior, prior.grid, prior.native, files.images[0], image.grid, image.native, "earlier prediction"
            )
    if problems:
        raise ImageError(problems)
    assert image is not None
    return Case(
        files.id,
        image.array,
        None if label is None else label.array[0],
        image.grid,
        prior=None if prior is None else prior.array[0] if labels is None else labels.semantic(prior.array[0]),
        fields=image.fields,
    )


def _of_file(path: Path, labels: Labels | None, read: Callable[[Path, Labels], Image]) -> Image:
    return read_label(path) if labels is None else read(path, labels)


def _format(path: Path) -> Format:
    kind = FORMATS.get(image_suffix(path).lower())
    if kind is None:
        raise ImageError.of(
            "is in no format that can be read", where=str(path), found=path.suffix or "no suffix", expected=", ".join(SUFFIXES)
        )
    return _load(kind)


__all__ = [
    "SUFFIXES",
    "Header",
    "Image",
    "Native",
    "files_behind",
    "image_stem",
    "image_suffix",
    "is_present",
    "label_suffix",
    "map_suffix",
    "read_annotation",
    "read_case",
    "read_header",
    "read_image",
    "read_label",
    "read_prediction",
    "read_stack",
    "write_label",
    "write_maps",
]
