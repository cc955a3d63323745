"""DICOM files where they lie: in folders, as single files, in zip archives, listed by a DICOMDIR.

Files need no suffix and no preamble. What is no DICOM is told from what is DICOM and broken by its first bytes.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from pydicom import Dataset, config, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import ImageError, Problem, UsageError
from medseg.io.dicom.volume import Source

# pydicom would warn of odd values, and log them with their content: names and identifiers. What matters of them is judged here.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

LARGE = 2**33  # bytes that a member of an archive may take unpacked; more is a mistake or an attack


def walk(paths: Iterable[Path]) -> Iterator[Source]:
    """Every file below the paths, sorted within each; archives are looked into, hidden files are passed over.

    Raises:
        UsageError: a path that does not exist.
        ImageError: an archive that cannot be opened.
    """
    for path in paths:
        if path.is_dir():
            for folder, inner, names in os.walk(path):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                for name in sorted(names):
                    file = Path(folder, name)
                    if not name.startswith(".") and file.is_file():  # a pipe would never end
                        yield from _file(file)
        elif path.is_file():
            yield from _file(path)
        else:
            raise UsageError.of("does not exist", where=str(path), expected="a folder, a DICOM file, a zip archive or a DICOMDIR")


def _file(path: Path) -> Iterator[Source]:
    if path.suffix.lower() != ".zip":
        yield Source(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda one: one.filename)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error):
        yield Source(path)  # read as a file it says what it is
        return
    for info in members:
        name = info.filename
        if not info.is_dir() and not name.startswith("__MACOSX/") and not name.rsplit("/", 1)[-1].startswith("."):
            yield Source(path, name)


def listed(directory: Path) -> tuple[list[Path], list[Problem]]:
    """The files that a DICOMDIR lists, and what is said of those that are missing; paths are relative to it, upper or lower case."""
    try:
        records = read_dataset(Source(directory)).get("DirectoryRecordSequence") or ()
    except ImageError as error:
        return [], list(error.problems)
    files: list[Path] = []
    missing: list[str] = []
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        file = _existing(directory.parent, names)
        if file is None:
            missing.append("/".join(names))
        else:
            files.append(file)
    if not missing:
        return files, []
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    what = "files are missing that the DICOMDIR lists" if len(missing) > 1 else "a file is missing that the DICOMDIR lists"
    return files, [Problem(what, str(directory), f"{len(missing)} of {len(missing) + len(files)}: {shown}", fix="Copy the whole medium.")]


def _existing(folder: Path, names: Sequence[str]) -> Path | None:
    if any(name in ("", ".", "..") or "/" in name or "\\" in name for name in names):
        return None  # a directory of a medium points below itself only
    for changed in (
        names,
        [name.lower() for name in names],
        [f"{name}.dcm" if i == len(names) - 1 else name for i, name in enumerate(names)],
    ):
        if (file := folder.joinpath(*changed)).is_file():
            return file
    return None


@lru_cache(maxsize=4)
def _archive(path: Path, size: int, modified: int) -> zipfile.ZipFile:
    """An archive that stays open: its table of contents is read once, not once per file."""
    return zipfile.ZipFile(path)


def open_source(source: Source, whole: bool = True) -> IO[bytes]:
    """The bytes of a file; those of an archive's member are unpacked as they are read where not the `whole` of them is wanted.

    Raises OSError, zipfile.BadZipFile and what decompression raises.
    """
    if not source.member:
        return source.path.open("rb")
    seen = source.path.stat()
    archive = _archive(source.path, seen.st_size, seen.st_mtime_ns)
    info = archive.getinfo(source.member)
    if info.file_size > LARGE:
        raise OSError(f"{info.file_size} bytes unpacked")
    return io.BytesIO(archive.read(info)) if whole else archive.open(info)


def looks_like_dicom(source: Source) -> bool:
    """Whether the first bytes are those of DICOM: the mark after the preamble, or an element of a group that files begin with.

    Raises:
        ImageError: the file cannot be opened.
    """
    try:
        with open_source(source, whole=False) as file:
            start = file.read(132)
    except Exception as error:
        raise _refused(source, error) from None
    if start[128:132] == b"DICM":
        return True
    if len(start) < 8:
        return False
    # Without preamble a file begins with group 2 or 8, in either byte order, and a length or a value representation that makes sense.
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", start[:8])
        explicit = start[4:6].isalpha() and start[4:6].isupper()
        if group in (0x0002, 0x0008) and element <= 0x2112 and (explicit or length < 2**16):
            return True
    return False


def read_dataset(source: Source, pixels: bool = False, tags: Sequence[Any] | None = None) -> Dataset:
    """A DICOM file, without its pixels unless they are asked for.

    Args:
        source: the file.
        pixels: with pixel data.
        tags: only these elements of the uppermost level; None reads all.

    Raises:
        ImageError: no such file, no DICOM, or damaged beyond use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values are judged by those who use them
        try:
            with open_source(source) as file:
                data = dcmread(cast(Any, file), stop_before_pixels=not pixels, force=True, specific_tags=cast(Any, tags))
        except Exception as error:  # pydicom raises whatever the bytes provoke
            raise _refused(source, error) from None
    if "TransferSyntaxUID" not in data.file_meta:
        # Without a file header pydicom has guessed the encoding; decoders want it by name.
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return data


def _refused(source: Source, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        refusal = ImageError.of("the file does not exist", where=str(source), fix="Check the path, or restore the file.")
    else:
        refusal = ImageError.of(
            "is damaged, or no DICOM file",
            where=str(source),
            found=(error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {str(error)[:200]}",
            fix="Export or download it again.",
        )
    assert isinstance(refusal, ImageError)
    return refusal
