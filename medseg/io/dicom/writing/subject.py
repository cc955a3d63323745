"""A prediction together with the images that it lies on: what DICOM objects about it have in common, names above all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ImageError
from medseg.geometry import Array
from medseg.io.dicom.reading.reader import find_volume
from medseg.io.dicom.settings import SegmentTerms, Term
from medseg.io.dicom.terms import class_terms
from medseg.io.dicom.writing.origin import Origin, array_digest, origin_of
from medseg.io.exports import Result

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Subject:
    """What an object is about.

    Attributes:
        result: what was predicted.
        origin: of the first image of the case, on which the prediction lies.
    """

    result: Result
    origin: Origin

    @classmethod
    def of(cls, result: Result) -> Subject:
        """Of a prediction on a DICOM series.

        Raises:
            ImageError: there is no such series, nothing can be placed on it, or it has another shape than the prediction.
        """
        origin = origin_of(find_volume(result.files.images[0]))
        if result.semantic.shape != origin.volume.grid.shape:
            raise ImageError.of(
                "a prediction does not have the shape of its images",
                where=str(origin.volume.path),
                found=" x ".join(map(str, result.semantic.shape)),
                expected=" x ".join(map(str, origin.volume.grid.shape)),
            )
        return cls(result, origin)

    @cached_property
    def digest(self) -> str:
        """Of all that decides what is said about the images: medseg, which names itself in the object, model, classes, voxels."""
        labels, maker = self.result.labels, self.result.maker
        return "|".join([maker.version, maker.model, maker.digest, labels.to_json(), array_digest(self.result.semantic)])

    @cached_property
    def terms(self) -> dict[str, SegmentTerms]:
        """Class name -> what it is."""
        return class_terms(self.result.labels, self.result.maker.settings, self.result.maker.model)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes; segment `k + 1` is class `k`."""
        return self.result.labels.names

    def uid(self, *parts: str) -> str:
        """A UID that follows from the images, the prediction and `parts`."""
        return self.origin.uid(self.digest, *parts)

    def tracking_uid(self, name: str) -> str:
        """What the finding of a class in these images is called in all objects about it."""
        return self.uid("tracking", name)

    def tracking_id(self, name: str) -> str:
        """The same for people."""
        return cut(f"{self.result.maker.model} {name}")

    @cached_property
    def boxes(self) -> dict[int, Box]:
        """Voxel value -> the smallest box that holds all voxels with it."""
        from scipy import ndimage

        found = ndimage.find_objects(self.result.semantic)
        return {value: box for value, box in enumerate(found, 1) if box is not None}

    def box(self, index: int) -> Box | None:
        """The smallest box that holds a class; None where no voxel does."""
        boxes = [self.boxes[value] for value in set(self.result.labels.classes[index].values) & self.boxes.keys()]
        if not boxes:
            return None
        return tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in zip(*boxes, strict=True))

    def mask(self, index: int, labels: Array) -> NDArray[np.bool_]:
        """The voxels of a class, regions included, in (a part of) a label map."""
        values = self.result.labels.classes[index].values
        return labels == values[0] if len(values) == 1 else np.isin(labels, values)


def cut(text: str, length: int = 64) -> str:
    """A text as long as DICOM allows, without what it must not hold."""
    return "".join(c for c in text if c.isprintable() and c != "\\")[:length].strip() or "unnamed"


def coded(term: Term) -> Any:
    """A term as highdicom's code."""
    from highdicom.sr import CodedConcept

    return CodedConcept(term.value, term.scheme, term.meaning)
