"""DICOM files where they lie: in folders, as single files, in zip archives, listed by a DICOMDIR.

Files need no suffix and no preamble. What is no DICOM is told from what is DICOM and broken by its first bytes.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from pydicom import Dataset, dcmread
from pydicom.tag import BaseTag

from medseg.errors import ImageError, MedsegError, UsageError
from medseg.io.dicom.volume import Source

LARGE = 2**33  # bytes that a member of an archive may take unpacked; more is a mistake or an attack


def walk(paths: Iterable[Path]) -> Iterator[Source]:
    """Every file below the paths, sorted within each; archives are looked into, hidden files are passed over.

    Raises:
        UsageError: a path that does not exist.
    """
    for path in paths:
        if path.is_dir():
            for folder, inner, names in os.walk(path):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith("."):
                        yield from _file(Path(folder, name))
        elif path.is_file():
            yield from _file(path)
        else:
            raise UsageError.of("does not exist", where=str(path), expected="a folder, a DICOM file, a zip archive or a DICOMDIR")


def _file(path: Path) -> Iterator[Source]:
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        yield Source(path)
        return
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda one: one.filename):
            name = info.filename
            if not info.is_dir() and not name.startswith("__MACOSX/") and not name.rsplit("/", 1)[-1].startswith("."):
                yield Source(path, name)


@lru_cache(maxsize=4)
def _archive(path: Path, size: int, modified: int) -> zipfile.ZipFile:
    """An archive that stays open: its table of contents is read once, not once per file."""
    return zipfile.ZipFile(path)


def open_source(source: Source) -> IO[bytes]:
    """The bytes of a file. Raises OSError, zipfile.BadZipFile and what decompression raises."""
    if not source.member:
        return source.path.open("rb")
    seen = source.path.stat()
    archive = _archive(source.path, seen.st_size, seen.st_mtime_ns)
    info = archive.getinfo(source.member)
    if info.file_size > LARGE:
        raise OSError(f"{info.file_size} bytes unpacked")
    return io.BytesIO(archive.read(info))


def read_dataset(source: Source, pixels: bool = False, tags: Sequence[BaseTag | int | str] | None = None) -> Dataset:
    """A DICOM file, without its pixels unless they are asked for.

    Args:
        source: the file.
        pixels: with pixel data.
        tags: only these elements of the uppermost level; None reads all.

    Raises:
        ImageError: no such file, no DICOM, or truncated beyond use.
    """
    try:
        with open_source(source) as file:
            return dcmread(cast(Any, file), stop_before_pixels=not pixels, force=True, specific_tags=cast(Any, tags))
    except FileNotFoundError:
        raise ImageError.of("the file does not exist", where=str(source), fix="Check the path, or restore the file.") from None
    except (MedsegError, MemoryError):
        raise
    except Exception as error:  # pydicom raises whatever the bytes provoke
        raise ImageError.of(
            "is no DICOM file, or a damaged one",
            where=str(source),
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="Export or download it again.",
        ) from None
