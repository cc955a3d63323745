"""DICOM segmentations as label maps on the grid of the images that they annotate (PS3.3 A.51 and A.90).

Frames may come in any order, be missing where they are empty, and lie along any axis of the images; they must lie on their voxels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.groups import find, number, text, vector, whole
from medseg.io.dicom.reading.pixels import frames_of
from medseg.io.dicom.reading.reader import read_dataset, usable
from medseg.io.dicom.volume import Source, Volume
from medseg.io.format import Image, Native, smallest_integer
from medseg.io.grids import nearest

OFF = 0.1  # of a voxel: how far a frame's pixels may lie from the voxels that they label
CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@dataclass(frozen=True)
class Header:
    """What a segmentation is about.

    Attributes:
        kind: BINARY, FRACTIONAL or LABELMAP.
        names: segment number -> label; a background that is described is left out.
        series: Series Instance UIDs that it refers to.
        world: Frame of Reference UID; empty where it has none.
    """

    kind: str
    names: dict[int, str]
    series: tuple[str, ...]
    world: str


@dataclass(frozen=True)
class Segmented:
    """A segmentation on the grid of a volume.

    Attributes:
        maps: label maps `(*volume.grid.shape)`; several where segments overlap, each segment in one of them.
        names: value -> label of the segment.
    """

    maps: tuple[Array, ...]
    names: dict[int, str]


@dataclass(frozen=True)
class _Place:
    """Where a frame lies in an array: `array.transpose(axes)[slice]`, from `start` on, flipped or not along rows and columns."""

    axes: tuple[int, ...]
    slice: int
    start: tuple[int, int]
    flips: tuple[bool, bool]


def segmentation_header(source: Source) -> Header:
    """What a segmentation is about, without its pixels.

    Raises:
        ImageError: no segmentation, or one of a kind that is not read.
    """
    return _header(read_dataset(source), source)


def read_segmentation(source: Source, volume: Volume, threshold: float | None = None) -> Segmented:
    """A segmentation on the grid of a volume.

    Args:
        source: the file.
        volume: images that it annotates.
        threshold: share from which on a voxel belongs to a segment that is stored in fractions.

    Raises:
        ImageError: a volume with errors; no segmentation, a damaged one, one of other images or on other voxels, or fractions without a threshold.
    """
    usable(volume)
    data = read_dataset(source, pixels=True)
    header = _header(data, source)
    _check_reference(header, volume, source)
    acquired = volume.tilted or volume.grid
    groups = data.get("PerFrameFunctionalGroupsSequence") or ()
    count = whole(data.get("NumberOfFrames")) or 1
    if groups and len(groups) != count:
        raise _broken(source, f"{len(groups)} functional groups for {count} frames", "one for each frame")
    places = [_place(data, index, volume, acquired, source) for index in range(count)]
    stored = _stored(data, count, source)
    if header.kind == "LABELMAP":
        maps: list[Array] = [np.zeros(acquired.shape, np.uint16)]
        for index, place in enumerate(places):
            _paste(maps[0], place, stored(index), source)
        padding = whole(data.get("PixelPaddingValue"))
        if padding and padding not in header.names:
            maps[0][maps[0] == padding] = 0
        strange = sorted(set(np.unique(maps[0]).tolist()) - header.names.keys() - {0})
        if strange:
            raise _broken(source, f"values {', '.join(map(str, strange[:8]))} that no segment describes", "only numbers of segments")
    else:
        maps = _by_segment(data, header, places, _masks(data, header, stored, threshold, source), acquired, source)
    if volume.tilted is not None:
        maps = [nearest(Image(one[None], acquired, Native("DICOM", one.dtype.name, True)), volume.grid)[0] for one in maps]
    return Segmented(tuple(one.astype(smallest_integer(one)) for one in maps), header.names)


def _header(data: Dataset, source: Source) -> Header:
    if text(data.get("SOPClassUID")) not in CLASSES:
        kind = data.get("SOPClassUID")
        raise ImageError.of(
            "is no DICOM segmentation",
            where=str(source),
            found=getattr(kind, "name", "") or "no SOP class",
            expected="Segmentation Storage",
        )
    if "TotalPixelMatrixRows" in data or data.get("TotalPixelMatrixOriginSequence"):
        raise ImageError.of(
            "is a segmentation of tiled microscopy, which is not read",
            where=str(source),
            found=f"a matrix of {data.get('TotalPixelMatrixRows')} x {data.get('TotalPixelMatrixColumns')} pixels in tiles",
            expected="a segmentation of volumes or single images",
        )
    kind = text(data.get("SegmentationType"))
    if kind not in KINDS:
        raise _broken(source, f"Segmentation Type '{kind}'", ", ".join(KINDS))
    names: dict[int, str] = {}
    for item in data.get("SegmentSequence") or ():
        value = whole(item.get("SegmentNumber"))
        if value is None or value < 0 or value in names:
            raise _broken(source, f"Segment Number '{item.get('SegmentNumber')}'", "a number for each segment, once")
        names[value] = text(item.get("SegmentLabel")) or f"segment {value}"
    names.pop(0, None)
    if not names:
        raise _broken(source, "no segment", "at least one item in Segment Sequence")
    series = tuple(text(item.get("SeriesInstanceUID")) for item in data.get("ReferencedSeriesSequence") or ())
    return Header(kind, names, series, text(data.get("FrameOfReferenceUID")))


def _check_reference(header: Header, volume: Volume, source: Source) -> None:
    if volume.series.uid in header.series or (header.world and header.world == volume.series.world):
        return
    if not header.series and not header.world:
        return  # it says nothing; positions or references of its frames will tell
    raise ImageError.of(
        "annotates other images",
        where=str(source),
        found="another series and frame of reference",
        expected=f"those of {volume.path}",
        fix="Read it with the images that it was made on.",
    )


def _stored(data: Dataset, count: int, source: Source) -> Callable[[int], Array]:
    """The stored values of a frame, `(rows, columns)`, by its number; frames that are not compressed are taken from the file as needed."""
    rows, columns = whole(data.get("Rows")), whole(data.get("Columns"))
    bits = whole(data.get("BitsAllocated"))
    if not rows or not columns or bits not in (1, 8, 16):
        raise _broken(source, f"frames of {rows} x {columns} pixels with {bits} bits", "Rows, Columns, and 1, 8 or 16 bits")
    if "PixelData" not in data:
        raise _broken(source, "no pixels", f"{count} frames")
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is not None and syntax.is_compressed:
        try:
            decoded = list(frames_of(data, list(range(count)), str(source)))
        except ImageError as error:
            raise _broken(source, str(error), f"{count} frames that can be decoded") from None
        if len(decoded) != count:
            raise _broken(source, f"{len(decoded)} frames of pixels", str(count))
        return decoded.__getitem__
    big = syntax is not None and not syntax.is_little_endian
    pixels = np.frombuffer(data.PixelData, np.uint8)
    size = rows * columns
    needed = math.ceil(count * size * bits / 8)
    if len(pixels) < needed:
        raise _broken(source, f"{len(pixels)} bytes of pixels", f"{needed} for {count} frames")
    if big and bits != 16 and data["PixelData"].VR == "OW":  # words are swapped, whatever they hold
        pixels = pixels[: len(pixels) // 2 * 2].view(np.uint16).byteswap().view(np.uint8)

    def packed(index: int) -> Array:
        start = index * size
        unpacked = np.unpackbits(pixels[start // 8 : math.ceil((start + size) / 8)], bitorder="little")
        return unpacked[start % 8 :][:size].reshape(rows, columns)

    def plain(index: int) -> Array:
        kind = np.dtype(np.uint8 if bits == 8 else ">u2" if big else "<u2")
        return pixels[index * size * kind.itemsize :][: size * kind.itemsize].view(kind).reshape(rows, columns)

    return packed if bits == 1 else plain


def _masks(
    data: Dataset, header: Header, stored: Callable[[int], Array], threshold: float | None, source: Source
) -> Callable[[int], NDArray[np.bool_]]:
    if header.kind == "BINARY":
        return lambda index: stored(index) != 0
    most = number(data.get("MaximumFractionalValue")) or 255.0

    def mask(index: int) -> NDArray[np.bool_]:
        frame = stored(index)
        if threshold is None and not np.isin(frame, (0, most)).all():
            raise ImageError.of(
                "holds fractions, not masks",
                where=str(source),
                found=f"{text(data.get('SegmentationFractionalType')).lower() or 'values'} between 0 and 1",
                expected="a threshold, for example 0.5",
                fix="Say from which share on a voxel belongs to its segment.",
            )
        return np.asarray(frame >= (0.5 if threshold is None else threshold) * most)

    return mask


def _by_segment(
    data: Dataset, header: Header, places: Sequence[_Place], mask: Callable[[int], NDArray[np.bool_]], acquired: Grid, source: Source
) -> list[Array]:
    """Label maps in which no segment hides another: a segment goes into the first map where it overlaps none."""
    frames: dict[int, list[int]] = defaultdict(list)
    for index in range(len(places)):
        identified = find(data, index, "ReferencedSegmentNumber", "SegmentIdentificationSequence")
        value = whole(identified)
        if value is None and len(header.names) == 1:
            value = next(iter(header.names))
        if value not in header.names:
            raise _broken(source, f"frame {index + 1} of segment '{identified}'", "a number of Segment Sequence")
        assert value is not None
        frames[value].append(index)
    kind = np.uint8 if max(header.names) < 256 else np.uint16
    maps = [np.zeros(acquired.shape, kind)]
    for value in sorted(frames):
        own = [(places[i], mask(i)) for i in frames[value]]
        for one in maps:
            if not any(_overlaps(one, place, inside) for place, inside in own):
                break
        else:
            one = np.zeros(acquired.shape, kind)
            maps.append(one)
        for place, inside in own:
            _paste(one, place, np.where(inside, kind(value), kind(0)), source)
    return maps


def _place(data: Dataset, index: int, volume: Volume, acquired: Grid, source: Source) -> _Place:
    """Where a frame lies, by its position; without one, by the image that it was derived from."""
    position = vector(find(data, index, "ImagePositionPatient", "PlanePositionSequence"), 3)
    axes = vector(find(data, index, "ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    spacing = vector(find(data, index, "PixelSpacing", "PixelMeasuresSequence"), 2)
    size = whole(data.get("Rows")) or 0, whole(data.get("Columns")) or 0
    if acquired.ndim == 2 or position is None or axes is None or spacing is None:
        return _place_of_source(data, index, volume, acquired, size, source)
    matrix = np.linalg.inv(acquired.affine)
    start = (matrix @ [*position, 1])[:3]
    steps = np.stack([matrix[:3, :3] @ np.multiply(axes[3:], spacing[0]), matrix[:3, :3] @ np.multiply(axes[:3], spacing[1])])
    whole_steps, whole_start = np.rint(steps), np.rint(start)
    ends = start + steps[0] * (size[0] - 1) + steps[1] * (size[1] - 1)
    whole_ends = whole_start + whole_steps[0] * (size[0] - 1) + whole_steps[1] * (size[1] - 1)
    unit = (np.abs(whole_steps).sum(axis=1) == 1).all() and np.abs(whole_steps).sum(axis=0).max() == 1
    if not unit or np.abs(start - whole_start).max() > OFF or np.abs(ends - whole_ends).max() > OFF:
        raise ImageError.of(
            "lies on other voxels than its images",
            where=str(source),
            found=f"frame {index + 1} begins at voxel {', '.join(f'{v:.3g}' for v in start)}, its pixels take "
            f"{' and '.join(f'{np.linalg.norm(v):.3g}' for v in steps)} voxels",
            expected=f"pixels on the voxels of {volume.path}",
            fix="Resample it onto its images with the program that wrote it.",
        )
    along = [int(np.abs(step).argmax()) for step in whole_steps]
    across = 3 - sum(along)
    flips = [bool(step.sum() < 0) for step in whole_steps]
    low = [
        int(whole_start[axis]) - (n - 1 if flip else 0) for axis, flip, n in zip(along, flips, size, strict=True)
    ]  # where the frame begins once it is flipped
    return _Place((across, *along), int(whole_start[across]), (low[0], low[1]), (flips[0], flips[1]))


def _place_of_source(data: Dataset, index: int, volume: Volume, acquired: Grid, size: tuple[int, int], source: Source) -> _Place:
    derived = find(data, index, "SourceImageSequence", "DerivationImageSequence") or ()
    if not derived and acquired.ndim == 2:
        derived = data.get("SourceImageSequence") or ()
    wanted = {(text(one.get("ReferencedSOPInstanceUID")), whole(one.get("ReferencedFrameNumber"))) for one in derived}
    instances = {uid for uid, frame in wanted if frame is None}
    for z, frame in enumerate(volume.frames[0]):
        own = None if frame.index is None else frame.index + 1
        if (frame.sop_uid, own) in wanted or frame.sop_uid in instances:
            if size != acquired.shape[-2:]:
                break
            return _Place((0, 1, 2), z if acquired.ndim == 3 else 0, (0, 0), (False, False))
    raise ImageError.of(
        "does not lie on these images",
        where=str(source),
        found=f"frame {index + 1} of {size[0]} x {size[1]} pixels, without a position",
        expected=f"a reference to an image of {volume.path} with {acquired.shape[-2]} x {acquired.shape[-1]} pixels",
    )


def _window(array: Array, place: _Place, frame: Array) -> tuple[Array, Array, int]:
    """The part of `array` that a frame covers, the part of the frame that lies in it, and how many voxels it sets elsewhere."""
    solid = array if array.ndim == 3 else array[None]
    turned = solid.transpose(place.axes)
    frame = np.flip(frame, tuple(axis for axis, flip in enumerate(place.flips) if flip))
    if not 0 <= place.slice < turned.shape[0]:
        return turned[:0, 0], frame[:0], int(np.count_nonzero(frame))
    plane = turned[place.slice]
    low = [max(0, start) for start in place.start]
    high = [min(n, start + m) for start, n, m in zip(place.start, plane.shape, frame.shape, strict=True)]
    inner = tuple(slice(a - start, max(a, b) - start) for a, b, start in zip(low, high, place.start, strict=True))
    part = frame[inner]
    lost = int(np.count_nonzero(frame)) - int(np.count_nonzero(part))
    return plane[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))], part, lost


def _overlaps(array: Array, place: _Place, mask: NDArray[np.bool_]) -> bool:
    target, part, _ = _window(array, place, mask)
    return bool((target[part] != 0).any()) if part.size else False


def _paste(array: Array, place: _Place, values: Array, source: Source) -> None:
    target, part, lost = _window(array, place, values)
    if lost:
        raise ImageError.of(
            "marks voxels outside of its images", where=str(source), found=f"{lost} in one frame", expected="all within the images"
        )
    np.copyto(target, part, where=part != 0, casting="unsafe")


def _broken(source: Source, found: str, expected: str) -> ImageError:
    error = ImageError.of(
        "is a damaged DICOM segmentation", where=str(source), found=found, expected=expected, fix="Export or download it again."
    )
    assert isinstance(error, ImageError)
    return error
