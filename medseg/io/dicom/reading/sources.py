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
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from pydicom import Dataset, config, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import ImageError, Problem, UsageError
from medseg.io.dicom.groups import text, whole
from medseg.io.dicom.volume import Source

# pydicom would warn of odd values, and log them with their content: names and identifiers. What matters of them is judged here.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

HEADER = 2**28  # bytes that the header of a file may take; more is a mistake or an attack
FIRST = 2**22  # bytes of a deflated file that are inflated at first; few headers take more
PIECE = 2**20  # bytes that are inflated at a time
DENSEST = 1040  # bytes that deflation makes of one
SHRINK = 20_000  # bytes that a codec makes of one; none makes more
ELEMENT = 8  # bytes at least before the value of an element, or of an item
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
SIZE = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated")


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


class _Bounded(io.BufferedReader):
    """A file of which no more than `most` bytes are read, those that are skipped not counted; packed ones are unpacked meanwhile."""

    def __init__(self, raw: Any, most: int) -> None:
        super().__init__(raw)
        self._most = self._left = most

    @property
    def name(self) -> str:
        """Of the file, where it has one."""
        return str(getattr(self.raw, "name", ""))

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes. Raises OSError beyond the bound, and _IsDeflatedError for all that is left."""
        if size is None or size < 0:
            raise _IsDeflatedError  # this is what pydicom asks for in order to inflate it
        self._left -= size
        if self._left < 0:
            raise _too_much(self._most)
        return super().read(size)

    def inflated(self, most: int) -> tuple[bytes, bool]:
        """What is left, inflated, no more than `most` bytes of it; and whether this is all."""
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        parts: list[bytes] = []
        while most > 0 and not engine.eof:
            packed = engine.unconsumed_tail or super().read(PIECE)
            if not packed:
                raise zlib.error("the deflated data end too early")
            parts.append(engine.decompress(packed, most))
            most -= len(parts[-1])
        return b"".join(parts), engine.eof


class _Beginning(io.BytesIO):
    """The beginning of something larger."""

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes. Raises OSError where there are more than are here."""
        found = super().read(size)
        if size is None or len(found) < size:
            raise _too_much(len(self.getbuffer()))
        return found


class _IsDeflatedError(Exception):
    """A file is of the deflated transfer syntax."""


def _too_much(most: int) -> OSError:
    return OSError(f"more than {most} bytes")


def open_source(source: Source) -> IO[bytes]:
    """The bytes of a file; those of an archive's member are unpacked as they are read.

    Raises OSError, zipfile.BadZipFile and what decompression raises.
    """
    if not source.member:
        return cast(IO[bytes], source.path.open("rb", buffering=0))
    return _archive_of(source).open(source.member)


def _archive_of(source: Source) -> zipfile.ZipFile:
    seen = source.path.stat()
    return _archive(source.path, seen.st_size, seen.st_mtime_ns)


def held_bytes(source: Source) -> int:
    """Bytes that a file has at most, those of an archive's member unpacked. Raises OSError where it is gone."""
    if not source.member:
        return source.path.stat().st_size
    member = _archive_of(source).getinfo(source.member)
    return min(member.file_size, (member.compress_size + 1) * DENSEST)


def looks_like_dicom(source: Source) -> bool:
    """Whether the first bytes are those of DICOM: the mark after the preamble, or an element of a group that files begin with.

    Raises:
        ImageError: the file cannot be opened.
    """
    try:
        with open_source(source) as file:
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
    try:
        most = HEADER
        if pixels and source.member:
            most = _room(read_dataset(source, tags=(*SIZE, "PhotometricInterpretation")))
        elif pixels:
            most += 2 * source.path.stat().st_size  # some bytes are read twice
        with open_source(source) as file:
            return _parsed(file, tags, most, pixels)
    except ImageError:  # of the header
        raise
    except Exception as error:  # pydicom raises whatever the bytes provoke
        raise _refused(source, error) from None


def promised_bytes(header: Dataset) -> int:
    """Bytes that the pixels of a file take where they are not compressed."""
    size = 1
    for keyword in SIZE:
        size *= max(whole(header.get(keyword)) or 1, 0)
    if text(header.get("PhotometricInterpretation")) == "YBR_FULL_422":
        size = size * 2 // 3
    return size // 8


def pixels_missing(header: Dataset, source: Source) -> int:
    """Bytes that a file is too short for the pixels that its header promises; 0 or less where it may hold them.

    Args:
        header: as `read_dataset` gives it, without pixels.
        source: the file.
    """
    held = held_bytes(source)
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        return promised_bytes(header) + ELEMENT - held + int(getattr(header, "pixels_at", 0))
    if syntax == DeflatedExplicitVRLittleEndian:
        return promised_bytes(header) - held * DENSEST
    return max(promised_bytes(header) // SHRINK, (whole(header.get("NumberOfFrames")) or 1) * ELEMENT) - held  # each frame is an item


def _room(header: Dataset) -> int:
    """Bytes that an unpacked file may take together with its pixels: what its header promises, if there is memory for it."""
    import psutil

    return min(2 * promised_bytes(header) + HEADER, int(psutil.virtual_memory().available))  # some bytes are read twice


def _parsed(file: IO[bytes], tags: Sequence[Any] | None, most: int, pixels: bool) -> Dataset:
    """See `read_dataset`. Raises whatever the bytes provoke, and OSError for more than `most` bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values are judged by those who use them
        bounded = _Bounded(file, most)
        try:
            data = _read(bounded, tags, pixels)
            data.pixels_at = bounded.tell()  # how long the header is; for `pixels_missing`
        except _IsDeflatedError:
            data = _plain(bounded, tags, most, pixels)
        finally:
            bounded.detach()  # otherwise it would close the file
    if "TransferSyntaxUID" not in data.file_meta:
        # Without a file header pydicom has guessed the encoding; decoders want it by name.
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return data


def _read(file: Any, tags: Sequence[Any] | None, pixels: bool) -> Dataset:
    return dcmread(file, stop_before_pixels=not pixels, force=True, specific_tags=cast(Any, tags))


def _plain(file: _Bounded, tags: Sequence[Any] | None, most: int, pixels: bool) -> Dataset:
    """A deflated file that stands where its data set begins. pydicom would inflate all of it at once, however large it is."""
    start = file.tell()
    file.seek(0)
    # Now it is plain: the name of the syntax becomes that of plain data, filled with zeros.
    deflated, plain = (uid.encode() for uid in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian))
    head = io.BufferedReader.read(file, start).replace(deflated, plain.ljust(len(deflated), b"\0"))
    limits = [min(FIRST, most), most]
    if pixels:
        file.seek(start)
        limits = [_room(_plain(file, (*SIZE, "PhotometricInterpretation"), HEADER, pixels=False))]
    for limit in limits:
        file.seek(start)
        content, whole_file = file.inflated(limit)
        try:
            data = _read((io.BytesIO if whole_file else _Beginning)(head + content), tags, pixels)
        except OSError:
            continue
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return data
    raise _too_much(limits[-1])


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
