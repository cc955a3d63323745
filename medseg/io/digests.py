"""Digests of files, remembered: a file that did not change is not read again to learn its content."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from medseg.dataset import CaseFiles, case_digest, file_digest
from medseg.errors import PlanError
from medseg.io.coco import labels as coco
from medseg.io.dicom.volume import LABELS
from medseg.io.dicom.volume import SUFFIX as SERIES
from medseg.record import Record

FRESH = 2 * 10**9
"""Nanoseconds. A file that was written so shortly ago may be written once more within the same tick of the file system's clock (2 s on
FAT), so it is not remembered."""


class KnownFile(Record):
    """What was true of a file when its digest was computed. Names neither file nor patient.

    Attributes:
        size: bytes.
        modified: nanoseconds, as the file system says.
        changed: nanoseconds; unlike `modified`, copying and archiving programs cannot set it back (on Windows: time of creation).
        digest: of the content.
    """

    size: int
    modified: int
    changed: int
    digest: str


def image_digest(path: Path) -> str:
    """See `medseg.dataset.file_digest`; that of a DICOM volume is of the contents of all its files, in the order of slices.

    Raises:
        ImageError: a file does not exist, or cannot be read.
    """
    return Digests().file(path)


@dataclass(frozen=True)
class Digests:
    """Digests of files and cases, one small record per file in `folder`, so processes can share it; None remembers nothing."""

    folder: Path | None = None

    @classmethod
    def of_cache(cls, cache: Path | None) -> Digests:
        """The digests within a workspace's cache folder."""
        return cls(None if cache is None else cache / "files")

    def file(self, path: Path) -> str:
        """See `medseg.dataset.file_digest`; from the folder while the file's path, size and times are the same.

        Raises:
            ImageError: the file does not exist, or cannot be read.
            ResourceError: `folder` cannot be written.
        """
        if path.name.endswith(SERIES):
            return self._series(path)
        if path.name.endswith(LABELS):
            from medseg.io.dicom.reading.labels import label_digest

            return label_digest(path, self.file)
        if path.name.endswith(coco.SUFFIX):
            return coco.label_digest(path, self.file)
        if self.folder is None:
            return file_digest(path)
        try:
            seen = path.stat()
        except OSError:
            return file_digest(path)  # says what is wrong with it
        key = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).hexdigest()
        entry = self.folder / key[:2] / f"{key}.json"
        known = _known(entry)
        if known is not None and (known.size, known.modified, known.changed) == (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns):
            return known.digest
        digest = file_digest(path)
        if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) > FRESH:
            KnownFile(size=seen.st_size, modified=seen.st_mtime_ns, changed=seen.st_ctime_ns, digest=digest).remember(entry)
        return digest

    def _series(self, path: Path) -> str:
        from medseg.io.dicom.reading.reader import find_volume

        # Of an archive the whole is taken: its members cannot change without it.
        volume = find_volume(path)
        files = dict.fromkeys(source.path for source in volume.sources)
        return hashlib.blake2b("/".join([volume.key, *(self.file(file) for file in files)]).encode(), digest_size=8).hexdigest()

    def case(self, files: CaseFiles) -> str:
        """See `medseg.dataset.case_digest`."""
        return case_digest(files, self.file)


def _known(entry: Path) -> KnownFile | None:
    if not entry.is_file():
        return None
    try:
        return KnownFile.load(entry)
    except PlanError:
        return None  # damaged, or of another version: computed again and overwritten
