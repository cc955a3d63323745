"""Prepared cases on disk: uncompressed, memory-mapped, each written whole or not at all.

<folder>/<case id>/image.npy      (C, *shape) float16 or float32
                   label.npy      (*shape) smallest integer type
                   prior.npy      (*shape) smallest integer type; what an earlier stage predicted
                   locations.npy  (n, d) int32, the entries one after another
                   meta.json      native grid, trail, digest
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg.case import Case, PreparedCase
from medseg.errors import DatasetError, MedsegError, ResourceError
from medseg.geometry import Array, Grid, Shape, Step
from medseg.io.format import smallest_integer
from medseg.record import Record

HALF = 60000.0  # float16 ends at 65504
META = "meta.json"


class StoredCase(Record):
    """`meta.json` of a prepared case: `affine` by rows, `counts` the number of locations of each entry (see `Domain.locations`)."""

    format: int = Field(default=2, ge=2, le=2)  # what an earlier version prepared is prepared again
    id: str
    digest: str
    native: Shape
    affine: tuple[tuple[float, ...], ...]
    trail: tuple[Step, ...]
    counts: tuple[int, ...]
    labelled: bool
    staged: bool = False


class Store:
    """A folder of prepared cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, case: Case, native: Grid, locations: Sequence[NDArray[np.int32]], digest: str) -> None:
        """Add or replace a case, atomically.

        Args:
            case: prepared; the image finite, in float16 range where it is to be stored as float16.
            native: the grid of its files.
            locations: voxel indices `(n, d)`, as `Domain.locations` gives them.
            digest: of whatever the prepared case depends on; `has` compares it.

        Raises:
            DatasetError: the prepared image holds NaN or Inf.
            ResourceError: the folder cannot be written or the disk is full; nothing half-written is left.
        """
        peak = float(np.abs(case.image).max(initial=0))
        if not np.isfinite(peak):
            raise DatasetError.of("the prepared image holds NaN or infinite values", where=f"case '{case.id}'", fix="Run `medseg verify`.")
        meta = StoredCase(
            id=case.id,
            digest=digest,
            native=native.shape,
            affine=tuple(tuple(float(v) for v in row) for row in native.affine),
            trail=case.trail,
            counts=tuple(len(points) for points in locations),
            labelled=case.label is not None,
            staged=case.prior is not None,
        )
        target = self.folder / _folder_name(case.id)
        temporary = self.folder / f".{os.getpid()}.partial.{target.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            np.save(temporary / "image.npy", np.ascontiguousarray(case.image, dtype=np.float16 if peak < HALF else np.float32))
            for name, values in (("label", case.label), ("prior", case.prior)):
                if values is not None:
                    np.save(temporary / f"{name}.npy", np.ascontiguousarray(values, dtype=smallest_integer(values)))
            points = np.concatenate(
                [np.asarray(p, np.int32).reshape(-1, native.ndim) for p in locations] or [np.zeros((0, native.ndim), np.int32)]
            )
            np.save(temporary / "locations.npy", points)
            (temporary / META).write_text(meta.to_json(), encoding="utf-8", newline="\n")
            if target.exists():
                shutil.rmtree(target)  # a folder cannot be replaced in one step; without it, `has` says no
            os.replace(temporary, target)
        except OSError as error:
            raise ResourceError.of(
                "a prepared case cannot be written",
                where=str(target),
                found=error.strerror or str(error),
                fix="Free disk space, or choose another folder.",
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left of cases they were writing; living ones keep their own."""
        if not self.folder.is_dir():
            return
        for left in self.folder.glob(".*.partial.*"):
            pid = left.name.removeprefix(".").partition(".partial.")[0]
            if pid.isdigit() and (int(pid) == os.getpid() or not _lives(int(pid))):
                shutil.rmtree(left, ignore_errors=True)

    def has(self, case_id: str, digest: str) -> bool:
        """Whether the case is there, whole, and made from what `digest` says."""
        try:
            return self.meta(case_id).digest == digest
        except MedsegError:
            return False

    def meta(self, case_id: str) -> StoredCase:
        """Everything but the arrays. Raises PlanError where it cannot be read."""
        return StoredCase.load(self.folder / _folder_name(case_id) / META)

    def counts(self, case_id: str) -> tuple[int, ...]:
        """How many locations a case has of each entry, without reading an array. Raises as `read`."""
        folder = self.folder / _folder_name(case_id)
        try:
            return self.meta(case_id).counts
        except MedsegError as error:
            raise _unreadable(folder, error) from None

    def read(self, case_id: str) -> PreparedCase:
        """A case whose arrays are memory-mapped, read-only.

        Raises:
            DatasetError: the case is not in the store, or damaged.
            ResourceError: this process has too many files open.
        """
        folder = self.folder / _folder_name(case_id)
        try:
            meta = self.meta(case_id)
            image = _map(folder / "image.npy")
            label = _map(folder / "label.npy") if meta.labelled else None
            prior = _map(folder / "prior.npy") if meta.staged else None
            points = np.load(folder / "locations.npy", allow_pickle=False)
        except (MedsegError, OSError, ValueError, EOFError) as error:
            raise _unreadable(folder, error) from None
        ends = np.cumsum(meta.counts, dtype=np.int64)
        locations = tuple(points[end - n : end] for end, n in zip(ends, meta.counts, strict=True))
        return PreparedCase(case_id, image, label, locations, Grid(meta.native, np.array(meta.affine)), meta.trail, prior)

    def ids(self) -> tuple[str, ...]:
        """Ids of all whole cases, sorted."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".") and (p / META).is_file()))


def _folder_name(case_id: str) -> str:
    if case_id in ("", ".", "..") or case_id.startswith(".") or any(c in case_id for c in '/\\:*?"<>|'):
        raise DatasetError.of(
            "a case id cannot be a folder name", where=f"case '{case_id}'", expected='no leading dot and none of / \\ : * ? " < > |'
        )
    return case_id


def _unreadable(folder: Path, error: Exception) -> MedsegError:
    if _out_of_descriptors(error):
        return ResourceError.of(
            "cannot be opened: too many files are open",
            where=str(folder),
            fix="Raise the limit of open files, for example with `ulimit -n 4096`.",
        )
    return DatasetError.of(
        "a prepared case is missing or damaged", where=str(folder), found=str(error), fix="Run `medseg preprocess` again."
    )


def _out_of_descriptors(error: BaseException | None) -> bool:
    """Whether the limit of open files is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__context__
    return False


def _map(path: Path) -> Array:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.asarray(array) if array.size == 0 else array


def _lives(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))
