"""PET as standardised uptake values by body weight: activity divided by the injected dose per gram of body.

The rules are those of the Quantitative Imaging Biomarkers Alliance, "SUV vendor-neutral pseudo-code" (happy and robust path):
https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pydicom import Dataset

from medseg.errors import ImageError, Problem
from medseg.io.dicom.groups import moment, number, seconds, text

PET_CLASSES = ("1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1")
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
TIMES = ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "ActualFrameDuration",
         "RadiopharmaceuticalInformationSequence", (0x0009, 0x0010), (0x0009, 0x100D))  # fmt: skip
"""What `scan_start` looks at."""
RAW = "Read it as stored (--pet raw), or repair the header."
DAY = 86400.0
LIVES = 10  # half-lives after which nothing is left to be measured: a date that long ago is a wrong one


def is_uptake(header: Dataset) -> bool:
    """Whether a file is a PET image whose values have a unit that becomes SUV."""
    return text(header.get("SOPClassUID")) in PET_CLASSES and _units(header) in ("BQML", "CNTS", "GML")


def uptake_problems(header: Dataset) -> tuple[Problem, ...]:
    """Why the values of a PET image are not read as SUV by body weight; empty where they are, and for other images."""
    if not is_uptake(header):
        kind = text(header.get("SOPClassUID"))
        if kind not in PET_CLASSES and (text(header.get("Modality")) != "PT" or kind.startswith(SECONDARY)):
            return ()
        found = f"units {_units(header)}" if _units(header) else "no units"
        return (Problem("is PET whose values do not become SUV; they are read as stored", found=found, expected="BQML, CNTS or GML"),)
    try:
        uptake_factor(header, "", scan_start([header]))
    except ImageError as error:
        return error.problems
    return ()


def scan_start(headers: Iterable[Dataset]) -> float | None:
    """The moment to which the activity of all images of a series is corrected, in seconds; None where no header tells.

    It is the time of the series. Where that is later than the first acquisition, the series was made after the scan, for example by a
    workstation, and the earliest moment of which an image speaks counts. Images of several beds have one start.
    """
    headers = list(headers)
    series = [t for header in headers if (t := seconds(header.get("SeriesDate"), header.get("SeriesTime"))) is not None]
    acquired = [t for header in headers if (t := _acquired(header)) is not None]
    if not acquired or (series and min(series) <= min(acquired)):
        return min(series, default=None)
    return min(t for header in headers if (t := _told_start(header)) is not None)


def uptake_factor(header: Dataset, where: str, start: float | None) -> float:
    """By what rescaled values are multiplied to be SUV (g/ml).

    Args:
        header: of an image.
        where: for error texts.
        start: of the scan, one for all images of a volume; see `scan_start`.

    Raises:
        ImageError: an element that it takes is missing; all that are.
    """
    units = _units(header)
    if units == "GML":
        kind = text(header.get("SUVType"))
        if kind not in ("", "BW"):
            error = ImageError.of("PET is SUV, but not by body weight", where=where, found=f"SUV Type {kind}", expected="BW", fix=RAW)
            assert isinstance(error, ImageError)
            raise error
        return 1.0
    activity = 1.0
    if units == "CNTS":
        factor = number(_private(header, 0x00))
        if factor:
            return factor
        activity = number(_private(header, 0x09)) or 0.0
        if not activity:
            raise _missing(where, ["the factor from counts to SUV, private element (7053,1000) of Philips"])
    weight = number(header.get("PatientWeight"))
    tracer = _tracer(header)
    dose = number(tracer.get("RadionuclideTotalDose"))
    correction = text(header.get("DecayCorrection"))
    missing = [name for name, value in (("PatientWeight", weight), ("RadionuclideTotalDose", dose)) if not value or value <= 0]
    if correction not in ("START", "ADMIN"):
        missing.append(f"DecayCorrection START or ADMIN (is '{correction or 'missing'}')")
    decay = 1.0
    if correction == "START":
        life = number(tracer.get("RadionuclideHalfLife"))
        wait = _wait(start, tracer, life or 0.0)
        if not life or life <= 0:
            missing.append("RadionuclideHalfLife")
        elif wait is None:
            missing.append("the times of injection (RadiopharmaceuticalStartTime) and of the scan (SeriesTime, AcquisitionTime)")
        else:
            decay = 2.0 ** (-wait / life)
    if missing or weight is None or dose is None:
        raise _missing(where, missing)
    return activity * weight * 1000.0 / (dose * decay)


def _missing(where: str, names: list[str]) -> ImageError:
    error = ImageError.of("PET cannot become SUV", where=where, found="not stated: " + ", ".join(names), fix=RAW)
    assert isinstance(error, ImageError)
    return error


def _units(header: Dataset) -> str:
    return text(header.get("Units"))


def _tracer(header: Dataset) -> Dataset:
    items = header.get("RadiopharmaceuticalInformationSequence")
    return items[0] if items else Dataset()


def _private(header: Dataset, element: int) -> Any:
    try:
        return header.private_block(0x7053, "Philips PET Private Group")[element].value
    except KeyError:
        return None


def _wait(start: float | None, tracer: Dataset, life: float) -> float | None:
    """Seconds from injection to the moment to which activity is corrected: the start of the scan."""
    if start is None:
        return None
    injected = moment(tracer.get("RadiopharmaceuticalStartDateTime"))
    clock = seconds(None, tracer.get("RadiopharmaceuticalStartTime"))
    if injected is not None and 0 <= start - injected < max(DAY, LIVES * life):
        return start - injected
    if clock is not None and clock <= start % DAY:
        return start % DAY - clock
    if clock is not None and clock > start % DAY:
        return start % DAY + DAY - clock  # over midnight
    return None


def _acquired(header: Dataset) -> float | None:
    return seconds(header.get("AcquisitionDate") or header.get("SeriesDate"), header.get("AcquisitionTime"))


def _told_start(header: Dataset) -> float | None:
    """What one image says of the start of its scan where the time of the series is not to be trusted."""
    acquired = _acquired(header)
    ge = _ge_scan(header)
    if acquired is None or ge is not None:
        return ge
    reference, duration = number(header.get("FrameReferenceTime")), number(header.get("ActualFrameDuration"))
    life = number(_tracer(header).get("RadionuclideHalfLife")) or 0.0
    if reference and duration and life > 0:
        rate = math.log(2) / life
        length = duration / 1000
        average = math.log(rate * length / -math.expm1(-rate * length)) / rate
        return acquired - reference / 1000 + average
    return acquired


def _ge_scan(header: Dataset) -> float | None:
    try:
        return moment(header.private_block(0x0009, "GEMS_PETD_01")[0x0D].value)
    except KeyError:
        return None
