"""A picture of a prediction as a secondary capture, for viewers that show neither segmentations nor structure sets.

A few slices, as they are stored, each with the outlines of the classes in their colours and a legend. No text of the patient is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.dataset import CaseFiles, Labels
from medseg.errors import Problem
from medseg.geometry import Array, Grid
from medseg.io.dicom.contours import outlines
from medseg.io.dicom.reading.reader import find_volume, read_voxels
from medseg.io.dicom.terms import class_terms
from medseg.io.dicom.volume import Volume
from medseg.io.dicom.writing.objects import DicomExport, image_reference, new_object
from medseg.io.dicom.writing.origin import Origin, array_digest, origin_of
from medseg.io.dicom.writing.segmentation import save
from medseg.io.exports import Maker, Result

STORAGE = "1.2.840.10008.5.1.4.1.1.7.4"  # Multi-frame True Color Secondary Capture
NUMBER = 96  # of the series, after that of the images
SLICES = 9  # at most
SIZE = 512  # pixels of the longer side of a slice
LINE = 16  # pixels of a line of text
FILLED = 0.2  # opacity within outlines
WINDOW = (1.0, 99.0)  # percentiles of the values of a slice that become black and white
PAPER, INK = (0, 0, 0), (255, 255, 255)

Color = tuple[int, int, int]


@final
class Preview(DicomExport):
    """`<id>.preview.dcm`."""

    name: ClassVar[str] = "preview"
    summary: ClassVar[str] = "DICOM secondary capture: pictures of up to nine slices with outlines and a legend"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(f"{files.id}.preview.dcm"),)

    def warnings(self, files: CaseFiles, labels: Labels, maker: Maker) -> tuple[Problem, ...]:
        """See `Export.warnings`; a picture needs no codes."""
        return origin_of(find_volume(files.images[0])).filled

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        data = preview(result, origin_of(find_volume(result.files.images[0])))
        save(data, out / self.targets(result.files, probabilities=False)[0])


def preview(result: Result, origin: Origin) -> Dataset:
    """The pictures of a prediction as an object, not yet written. Raises ImageError for pixels that cannot be read."""
    labels = np.asarray(result.semantic)
    volume = origin.volume
    flat = labels if labels.ndim == 3 else labels[None]
    chosen = key_slices(flat, result.labels)
    colors = {name: terms.color or INK for name, terms in class_terms(result.labels, result.maker.settings, result.maker.model).items()}
    frames = [
        picture(pixels, flat[z], f"slice {z + 1} of {len(flat)}", volume.grid, result.labels, colors)
        for z, pixels in zip(chosen, _pixels(volume, chosen), strict=True)
    ]
    uid = origin.uid("preview", result.maker.version, result.maker.digest, *result.labels.names, array_digest(labels))
    data = new_object(origin, result.maker, STORAGE, ExplicitVRLittleEndian, uid, "OT", NUMBER, "preview")
    stack = np.stack(frames)
    values = {
        "ConversionType": "WSD",
        "ImageType": ["DERIVED", "SECONDARY"],
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "LossyImageCompression": "00",
        "DerivationDescription": "Outlines of an automatic segmentation drawn on slices; not reviewed",
        "Laterality": "",
        "PatientOrientation": "",
        "ContentDate": data.InstanceCreationDate,
        "ContentTime": data.InstanceCreationTime,
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "Rows": stack.shape[1],
        "Columns": stack.shape[2],
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "NumberOfFrames": len(stack),
        "FrameIncrementPointer": 0x00182001,
        "PageNumberVector": list(range(1, len(stack) + 1)),
    }
    for keyword, value in values.items():
        setattr(data, keyword, value)
    del data.PositionReferenceIndicator  # pictures lie in no frame of reference
    sources = {
        (f.sop_uid, f.index): image_reference(f, numbered=True) for f in (origin.slices[z] for z in chosen if z < len(origin.slices))
    }
    data.SourceImageSequence = list(sources.values())
    raw = stack.tobytes()
    data.add_new(0x7FE00010, "OB", raw + b"\0" * (len(raw) % 2))
    return data


def key_slices(labels: Array, classes: Labels) -> list[int]:
    """Slices that show a prediction: the largest of each class, then others spread over all that hold any; the middle one where none does."""
    flat = labels.reshape(len(labels), -1)
    areas = {one.name: np.isin(flat, one.values).sum(axis=1) for one in classes.classes}
    chosen = dict.fromkeys(int(area.argmax()) for area in areas.values() if area.any())
    present = np.flatnonzero(np.any([area > 0 for area in areas.values()], axis=0))
    if not len(present):
        return [len(labels) // 2]
    for z in np.rint(np.linspace(present[0], present[-1], SLICES)).astype(int).tolist():
        if len(chosen) < SLICES:
            chosen[int(present[np.abs(present - z).argmin()])] = None
    return sorted(list(chosen)[:SLICES])


def _pixels(volume: Volume, chosen: Sequence[int]) -> list[Array]:
    """The chosen slices, `(Y, X)` or in colour `(3, Y, X)`; only these are read, unless a tilt needs its neighbours."""
    if volume.grid.ndim == 2:
        array = read_voxels(replace(volume, frames=volume.frames[:1], times=volume.times[:1]))
        return [array[0] if volume.samples == 1 else array]
    if volume.tilted is not None:
        array = read_voxels(volume)[: volume.samples]
        return [array[0, z] if volume.samples == 1 else array[:, z] for z in chosen]
    frames = (tuple(volume.frames[0][z] for z in chosen),)
    grid = Grid((len(chosen), *volume.grid.shape[1:]), volume.grid.affine)
    array = read_voxels(replace(volume, frames=frames, times=volume.times[:1], grid=grid))
    return [array[0, i] if volume.samples == 1 else array[:, i] for i in range(len(chosen))]


def picture(pixels: Array, labels: Array, title: str, grid: Grid, classes: Labels, colors: Mapping[str, Color]) -> NDArray[np.uint8]:
    """One slice `(Y, X)`, or `(3, Y, X)`, with outlines and legend, as `(rows, columns, 3)`."""
    rows, columns = grid.spacing[-2:]
    height, width = labels.shape[0] * rows, labels.shape[1] * columns
    scale = SIZE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(_gray(pixels)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    drawing = ImageDraw.Draw(shade := Image.new("RGBA", size))
    factor = np.array([size[1] / labels.shape[0], size[0] / labels.shape[1]])
    for one in classes.classes:
        for polygon in outlines(np.isin(labels, one.values)):
            points = [(float(x), float(y)) for y, x in (polygon + 0.5) * factor - 0.5]
            drawing.polygon(points, fill=(*colors[one.name], round(255 * FILLED)))
            drawing.line([*points, points[0]], fill=(*colors[one.name], 255), width=2)
    image.paste(shade, mask=shade.getchannel("A"))
    return np.asarray(_framed(image, title, grid, classes, colors))


def _gray(pixels: Array) -> NDArray[np.uint8]:
    """Values as 8 bits: the middle 98 % of a slice between black and white; colours as they are."""
    if pixels.ndim == 3:
        return np.asarray(np.moveaxis(pixels, 0, -1), dtype=np.uint8)
    values = np.nan_to_num(np.asarray(pixels, dtype=np.float64))
    low, high = np.percentile(values, WINDOW)
    return np.asarray(np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255, dtype=np.uint8)


def _framed(image: Image.Image, title: str, grid: Grid, classes: Labels, colors: Mapping[str, Color]) -> Image.Image:
    """The picture, letters for the sides of the body at its edges, and below it title and legend."""
    font = ImageFont.load_default(LINE - 4)
    width = max(image.width, SIZE // 2)
    places, x, y = [], 0, LINE + 4
    for name in classes.names:
        wide = round(font.getlength(name)) + 2 * LINE
        if x and x + wide > width:
            x, y = 0, y + LINE
        places.append((x, y))
        x += wide
    sheet = Image.new("RGB", (width, image.height + y + LINE + 4), PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    drawing = ImageDraw.Draw(sheet)
    drawing.text((4, image.height + 2), f"{title}; automatic segmentation, not reviewed", INK, font)
    for name, (x, y) in zip(classes.names, places, strict=True):
        top = image.height + y
        drawing.rectangle((x + 4, top + 2, x + LINE - 2, top + LINE - 4), fill=colors[name])
        drawing.text((x + LINE + 2, top), name, INK, font)
    if grid.ndim == 3:
        left, up = (_side(-grid.direction[:, axis]) for axis in (2, 1))
        drawing.text((4, image.height // 2), left, INK, font)
        drawing.text((width // 2, 2), up, INK, font)
    return sheet


def _side(direction: NDArray[np.float64]) -> str:
    """To which side of the body a direction in LPS points."""
    axis = int(np.abs(direction).argmax())
    return ("LPH" if direction[axis] > 0 else "RAF")[axis]
