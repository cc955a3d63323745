"""How a model meets DICOM: which series is which channel, and what its classes are called in the terms of the field.

`RUN/dicom.json` holds this where somebody chose it; what it leaves out follows from the names of channels and classes.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from medseg.record import Record


class Term(Record):
    """A coded concept, for example `(69536005, SCT, Head)`."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(default="SCT", min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


Byte = Annotated[int, Field(ge=0, le=255)]


class SegmentTerms(Record):
    """What a class is: SNOMED CT category and type as in DICOM PS3.16 CID 7150 and CID 7151, side of the body, recommended colour.

    Attributes:
        category: for example `(123037004, SCT, Anatomical Structure)`.
        type: for example `(10200004, SCT, Liver)`.
        region: where in the body, of what may be anywhere: a tumour, vessels.
        modifier: for example `(7771000, SCT, Left)`; of the region where there is one, else of the type.
        color: red, green, blue.
    """

    category: Term
    type: Term
    region: Term | None = None
    modifier: Term | None = None
    color: tuple[Byte, Byte, Byte] | None = None


class SeriesRule(Record):
    """Which series serves as a channel.

    Attributes:
        modality: DICOM modalities, one of which the series must have; empty for any.
        include: regular expressions, all of which must be found in the texts of the series (description, protocol, sequence, image type),
            whatever the case of letters. The key of a volume, as `medseg inspect` shows it, is that volume alone.
        exclude: regular expressions none of which may be found in them.
        number: Series Number; None for any.
        b_value: diffusion weighting in s/mm2 (`medseg inspect` tells them); of a series with several, the volume that has it. None for any.
    """

    seldom = ("number", "b_value")

    modality: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    number: int | None = None
    b_value: float | None = Field(default=None, ge=0)

    @field_validator("include", "exclude")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
        return patterns


class DicomSettings(Record):
    """What somebody chose about a model and DICOM.

    Attributes:
        series: channel name -> rule.
        classes: class name -> terms.
    """

    series: dict[str, SeriesRule] = Field(default_factory=dict)
    classes: dict[str, SegmentTerms] = Field(default_factory=dict)


NOTHING_CHOSEN = DicomSettings()
