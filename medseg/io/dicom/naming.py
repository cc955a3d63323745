"""Names for volumes that people recognise and that tell nobody's identity."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.errors import ImageError
from medseg.io.dicom.volume import Scan, Volume

GENERIC = re.compile(
    r"(dicom|dcm|images?|img|series|study|studies|data|ct|mr|pt|pet|scans?|im|input|se\d+|st\d+|pa\d+)[-_ ]?\d*", re.IGNORECASE
)
UID = re.compile(r"\d+(\.\d+){3,}|[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
WORD = re.compile(r"(?<![A-Za-z0-9])(?:[A-Za-z][A-Za-z0-9]*|\d{1,3})(?![A-Za-z0-9])")
LONGEST = 40
MOST = 10**5  # larger numbers of series may be dates or numbers of patients
NAMED = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyID")


def case_name(volume: Volume, scan: Scan) -> str:
    """What a case of this volume is called: the user's own name of its folder or file, with the number of the series where volumes share it.

    Names that are UIDs, or say nothing (`DICOM`, `images`, `Study1`), give way to that of the folder above, and only follow it where that
    is shared; without any, the key is the name.
    """
    own = _users_name(volume)
    rivals = [other for other in scan.volumes if _users_name(other) == own]
    if len(rivals) < 2:
        return own
    number = volume.series.number
    numbers = [other.series.number for other in rivals]
    if number is not None and numbers.count(number) == 1:
        return f"{own}_s{number}"
    folder = _folder_name(volume)
    if folder != own and not UID.search(folder) and [_folder_name(other) for other in rivals].count(folder) == 1:
        return f"{own}_{_clean(folder)}"
    return f"{own}_{volume.key}" if own != volume.key else own


def case_names(cases: Sequence[Sequence[Volume]], scan: Scan) -> list[str]:
    """What cases of one volume or of several are called, each differently: several by the folder that holds them all."""
    if all(len(case) == 1 for case in cases):
        return [case_name(case[0], scan) for case in cases]
    whole = [
        replace(case[0], folder=common_folder(case), frames=tuple(stack for volume in case for stack in volume.frames)) for case in cases
    ]
    return [case_name(volume, Scan(tuple(whole))) for volume in whole]


def common_folder(volumes: Iterable[Volume]) -> Path:
    """The deepest folder, or archive, that holds them all."""
    return Path(os.path.commonpath([volume.folder.absolute() for volume in volumes]))


def _users_name(volume: Volume) -> str:
    sources = volume.sources
    candidates = []
    if len(sources) == 1:
        name = sources[0].member.rsplit("/", 1)[-1] or sources[0].path.name
        candidates.append(re.sub(r"\.(dcm|dicom|ima)$", "", name, flags=re.IGNORECASE))
    candidates.append(_folder_name(volume))
    candidates += [parent.name for parent in list(volume.folder.absolute().parents)[:2]]
    for name in candidates:
        if name and not UID.search(name) and not GENERIC.fullmatch(name) and not name.isdigit():
            return _clean(name)
    return volume.key


def _folder_name(volume: Volume) -> str:
    return volume.folder.stem if volume.folder.suffix.lower() == ".zip" else volume.folder.name


def _clean(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def file_stems(volumes: Sequence[Volume]) -> list[str]:
    """Stems of files for volumes: number and modality of the series and harmless words of its description; the key's beginning where two are equal."""
    stems = [_stem(volume) for volume in volumes]
    counts = Counter(stem.lower() for stem in stems)
    return [stem if counts[stem.lower()] == 1 else f"{stem}_{volume.key[:8]}" for stem, volume in zip(stems, volumes, strict=True)]


def _stem(volume: Volume) -> str:
    number = volume.series.number
    words = harmless(volume.series.description or volume.series.protocol, _identifying(volume))
    kind = volume.series.modality.lower() or "image"
    start = f"{number:03d}_{kind}" if number is not None and 0 <= number < MOST else kind
    return re.sub(r"[^\w-]", "", "_".join([start, *words]))[:LONGEST].rstrip("_")


def harmless(description: str, secrets: Iterable[str]) -> list[str]:
    """The words of a description that are no part of an identifier: no long numbers, nothing that the secrets hold."""
    hidden = {part.lower() for secret in secrets for part in re.split(r"[^A-Za-z0-9]+", secret) if len(part) > 1}
    return [word for word in WORD.findall(description) if word.lower() not in hidden and not re.search(r"\d{4}", word)]


def _identifying(volume: Volume) -> list[str]:
    # pydicom takes longer to import than a small image that is no DICOM to predict
    from medseg.io.dicom.groups import text
    from medseg.io.dicom.reading.sources import read_dataset

    try:
        header = read_dataset(volume.sources[0], tags=list(NAMED))
    except ImageError:
        return [volume.series.description]  # nothing is known, so nothing is told
    return [text(header.get(name)) for name in NAMED]
