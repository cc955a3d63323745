"""DICOM as input: from folders, files, archives and volumes to cases of series that serve as the model's channels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.dataset import CaseFiles, Channel
from medseg.errors import Problem, UsageError
from medseg.io.dicom.choice import Study, choose, shown
from medseg.io.dicom.naming import case_names, common_folder
from medseg.io.dicom.rules import rules_of
from medseg.io.dicom.settings import NOTHING_CHOSEN, DicomSettings
from medseg.io.dicom.volume import SUFFIX, Other, Scan, Volume
from medseg.io.images import SUFFIXES
from medseg.progress import Progress, Silent

SILENT = Silent()
SHOWN = 8  # volumes named in an error
ARCHIVE = ".zip"
TIFF = (".tif", ".tiff")  # may begin as DICOM, too, and be TIFF for all that
MAGIC = 132  # bytes after which a DICOM file has said that it is one


@dataclass(frozen=True)
class Studies:
    """What lies in DICOM inputs, and what of it a model takes.

    Attributes:
        studies: with a choice each.
        broken: files that are no image because they are damaged.
        inputs: what was looked into.
        beside: images of other formats in folders with DICOM files.
    """

    studies: tuple[Study, ...]
    broken: tuple[Other, ...]
    inputs: tuple[Path, ...]
    beside: tuple[Path, ...] = ()

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """All volumes."""
        return tuple(volume for study in self.studies for volume in study.volumes)

    def cases(self, damaged: bool = False) -> tuple[CaseFiles, ...]:
        """The cases, with the files of each channel.

        Args:
            damaged: also cases of which a volume is damaged, beside others: they cannot be read, which is told when their turn comes.

        Raises:
            UsageError: a study lacks channels, or it is not clear what serves as them; or nothing is left at all. All problems at once.
        """
        chosen = [case for study in self.studies for case in study.cases]
        beside = [case for study in self.studies for case in study.damaged] if damaged and chosen else []
        problems = [problem for study in self.studies if not (beside and study.damaged) for problem in study.problems]
        chosen += beside
        if not chosen and not problems:
            problems = self._nothing()
        if problems:
            raise UsageError(problems)
        parts = {volume.whole for case in chosen for volume in case if volume.whole != volume.key}
        names = case_names(chosen, Scan(tuple(volume for volume in self.volumes if volume.key not in parts)))
        return tuple(CaseFiles(id=name, images=tuple(v.path for v in case), group=name) for case, name in zip(chosen, names, strict=True))

    def _nothing(self) -> list[Problem]:
        """Why there is no case at all: what is wrong with series that would serve, and why the others do not."""
        unusable = [_placed(problem, volume) for volume in self.volumes for problem in volume.errors]
        broken = [problem for other in self.broken for problem in other.problems]
        told = [f"{shown(volume)} {study.told(volume)}" for study in self.studies for volume in study.volumes if not volume.errors]
        if not told:
            return [*unusable, *broken] or [Problem("no DICOM image", ", ".join(map(str, self.inputs)), expected="series of images")]
        more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        where = str(common_folder(self.volumes))
        first = next(volume for volume in self.volumes if not volume.errors)
        fix = (
            "Write rules for series into dicom.json of the model (`medseg dicom`), or name one for one call of `medseg predict` by its key: "
            f"--series {first.key}."
        )
        return [*unusable, *broken, Problem("no series that the model can use", where, "; ".join(told[:SHOWN]) + more, fix=fix)]

    @property
    def taken(self) -> tuple[Volume, ...]:
        """The volumes of the cases."""
        return tuple(volume for study in self.studies for volume in study.volumes if study.serves(volume))

    def oddities(self) -> tuple[str, ...]:
        """What is odd about the volumes that are taken."""
        return tuple(str(_placed(problem, volume)) for volume in self.taken for problem in volume.warnings)

    def warnings(self) -> tuple[str, ...]:
        """What is odd about the volumes that are taken, and which are not."""
        said = list(self.oddities())
        said += [str(_placed(problem, volume)) for volume in self.volumes for problem in volume.errors]
        said += [str(problem) for other in self.broken for problem in other.problems]
        used = {key for volume in self.taken for key in (volume.key, volume.whole)}
        aside = sum(not volume.errors and volume.key not in used for volume in self.volumes)
        if aside:
            does = "volume does not serve as a channel and is" if aside == 1 else "volumes do not serve as a channel and are"
            said.append(f"{aside} DICOM {does} left aside; --dry-run tells why")
        if self.beside:
            names = ", ".join(path.name for path in self.beside[:SHOWN]) + (", ..." if len(self.beside) > SHOWN else "")
            said.append(f"images of other formats beside DICOM files are left aside: {names}; name them to predict on them")
        return tuple(said)


def _placed(problem: Problem, volume: Volume) -> Problem:
    """A problem of a volume that does not say where it is."""
    return problem if problem.where else replace(problem, where=shown(volume))


def find_studies(
    paths: Sequence[Path], channels: tuple[Channel, ...], settings: DicomSettings = NOTHING_CHOSEN, ndim: int | None = None,
    progress: Progress = SILENT,
) -> Studies:  # fmt: skip
    """Look into DICOM inputs, all together: a study may be spread over several.

    Args:
        paths: folders, files, archives, DICOMDIRs, or names of volumes.
        channels: of the model.
        settings: which series serve as which channels, where somebody chose it.
        ndim: dimensions of the model's cases.
        progress: told while headers are read.

    Raises:
        UsageError: a path that does not exist.
        ImageError: a volume of that name does not exist.
    """
    from medseg.io.dicom.reading.reader import find_volume, scan

    found = scan([path for path in paths if not path.name.endswith(SUFFIX)], progress)
    named = [find_volume(path) for path in paths if path.name.endswith(SUFFIX)]
    volumes = {volume.path.absolute(): volume for volume in (*named, *found.volumes)}
    studies = choose(volumes.values(), channels, rules_of(channels, settings), ndim)
    folders = sorted({volume.folder for volume in volumes.values() if volume.folder.is_dir()})
    files = [file for folder in folders for file in sorted(folder.iterdir()) if _other_format(file) and not file.name.startswith(".")]
    taken = {source.path.absolute() for volume in volumes.values() for source in volume.sources}
    beside = tuple(file for file in files if file.absolute() not in taken)
    return Studies(studies, tuple(other for other in found.others if other.problems), tuple(paths), beside)


def is_dicom(path: Path) -> bool:
    """Whether an input is DICOM: the name of a volume, a file or archive of no other format, or a folder with DICOM files.

    In a folder with images of other formats only its own files are looked at, not those of folders within it.
    """
    if path.name.endswith(SUFFIX):
        return True
    if path.is_file():
        return _says_so(path) or path.suffix.lower() == ARCHIVE or (path.suffix.lower() not in TIFF and _marked(path))
    if not path.is_dir():
        return False
    files = [child for child in path.iterdir() if child.is_file() and not child.name.startswith(".")]
    if any(_says_so(file) for file in files):
        return True
    return not any(_other_format(file) for file in files) and dicom_within(path) is not None


def dicom_within(folder: Path, archives: bool = True) -> Path | None:
    """The first file in a folder, or in folders within it, that is DICOM or may hold some as an archive; None where there is none."""
    for root, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for file in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            if _says_so(file) or (archives and file.suffix.lower() == ARCHIVE):
                return file
    return None


def _says_so(path: Path) -> bool:
    """Whether a file's first bytes, or its name, say that it is DICOM; without a preamble only a suffix of DICOM does."""
    if _other_format(path):
        return False
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    return _marked(path)


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(MAGIC)[128:] == b"DICM"
    except OSError:
        return False


def _other_format(path: Path) -> bool:
    return path.name.lower().endswith(tuple(suffix for suffix in SUFFIXES if suffix != SUFFIX))
