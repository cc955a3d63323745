"""The node's folder: received images and results of studies, until some time after they are delivered.

    STORE/queue.sqlite                     see `medseg.serving.ledger`
    STORE/incoming/                        images while they come in
    STORE/studies/<study>/images/<instance>.dcm
    STORE/studies/<study>/results/         what the prediction wrote
    STORE/removed/                         what is being deleted

Studies and instances are named by digests of their UIDs.
"""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from medseg.errors import ResourceError
from medseg.serving.ledger import State
from medseg.serving.queue import Queue

LOG = logging.getLogger(__name__)
SUFFIX = ".dcm"
PRIVATE = 0o700  # images of patients: whatever the umask, and also where somebody else has made the folder
ABANDONED = 600.0  # seconds after which a file that nothing is added to belongs to an association that broke


class Store:
    """The files of a node. What a row of the queue says of files is changed with them, within `Queue.together`."""

    def __init__(self, folder: Path, queue: Queue, forever: bool = False) -> None:
        """The files of a node; with `forever` those of delivered studies are not deleted where room is wanted."""
        self.folder = folder
        self.queue = queue
        self.incoming = folder / "incoming"
        self._forever = forever
        self._removed = folder / "removed"
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        self._studies = folder / "studies"
        folder.chmod(PRIVATE)
        for part in (self.incoming, self._removed, self._studies):
            part.mkdir(exist_ok=True, mode=PRIVATE)
            part.chmod(PRIVATE)

    def images(self, key: str) -> Path:
        """The folder of a study's images."""
        return self._studies / key / "images"

    def results(self, key: str) -> Path:
        """The folder of a study's results."""
        return self._studies / key / "results"

    def free(self) -> int:
        """Bytes that are free on the file system."""
        return shutil.disk_usage(self.folder).free

    def keep(self, study: str, instance: str, caller: str, file: Path) -> None:
        """Move an image beside the others of its study; when this returns, it is on the disk and in the queue.

        Args:
            study: digest of its study.
            instance: digest of the image.
            caller: title of its sender.
            file: the image, on the file system of this folder; it may be left where an equal one is there.

        Raises:
            ResourceError: the disk is full.
        """
        target = self.images(study) / f"{instance}{SUFFIX}"
        try:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            size = file.stat().st_size
            equal = target.is_file() and filecmp.cmp(file, target, shallow=False)
            if not equal:  # first of all: if the rest fails, the image is new when it comes again
                self.queue.lost(study, instance)
            with self.queue.together():  # others wait meanwhile: nothing here takes long
                new = not (equal and target.is_file() and self.queue.holds(study, instance))
                if new:
                    self._make(target.parent)
                    os.replace(file, target)
                self.queue.arrived(study, instance, caller, size, new)
            for folder in (target.parent, target.parent.parent, self._studies):
                _sync(folder)
        except (OSError, sqlite3.Error) as error:
            raise ResourceError.of(
                "an image cannot be stored", found=getattr(error, "strerror", None) or str(error), fix="Free disk space."
            ) from None

    def finish(self, key: str, keep: bool) -> bool:
        """The study is delivered: its files go, unless `keep`. False where images have come meanwhile, and it starts again."""
        with self.queue.together():
            done = self.queue.finish(key)
        if done and not keep:
            self._empty(key)
        return done

    def expire(self, seconds: float) -> None:
        """Delete the files of studies that were delivered so long ago, and what associations that broke have left."""
        for key in self.queue.kept(time.time() - seconds):
            self._empty(key)
        for left in self.incoming.iterdir():
            try:
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
            except OSError:  # it has just been taken away
                continue

    def make_room(self, wanted: int) -> bool:
        """Whether so many bytes are free, if need be without the files of delivered studies, the first that was delivered first."""
        if self.free() >= wanted:
            return True
        for key in () if self._forever else self.queue.kept():
            LOG.warning("study %s: its images are deleted to make room; if more come later, the study must be sent whole again", key)
            self._empty(key)
            if self.free() >= wanted:
                return True
        return False

    def _empty(self, key: str) -> None:
        with self.queue.together():
            moved = self._put_away(key) if self.queue.emptied(key) else None
        _delete(moved)

    def forget(self, key: str) -> None:
        """Remove a study that was set aside, with its files. Raises UsageError where it is not aside."""
        with self.queue.together():
            self.queue.forget(key)
            moved = self._put_away(key)
        _delete(moved)

    def recover(self) -> int:
        """After a start: files and rows agree again, whatever the process was doing when it ended. Returns how many studies were running."""
        for part in (self.incoming, self._removed):
            for left in part.iterdir():
                _delete(left)
        running = self.queue.recover()
        keys = {folder.name for folder in self._studies.iterdir()} | {study.key for study in self.queue.studies()}
        for key in sorted(keys):
            study = self.queue.find(key)
            if study is not None and study.state == State.done and not study.instances:
                folder = self._studies / key
                _delete(folder if folder.is_dir() else None)
                continue
            files = {path.stem: path for path in self.images(key).glob(f"*{SUFFIX}") if path.is_file()} if self.images(key).is_dir() else {}
            rows = self.queue.images(key)
            for instance in sorted(rows - files.keys()):
                self.queue.lost(key, instance)
            for instance in sorted(files.keys() - rows):  # written, but not in the queue when the process ended
                self.queue.arrived(key, instance, "", files[instance].stat().st_size)
        for key in self.queue.kept():
            if not self.images(key).is_dir():
                self.queue.emptied(key)
        return running

    def clear_results(self, key: str) -> Path:
        """An empty folder for results."""
        folder = self.results(key)
        shutil.rmtree(folder, ignore_errors=True)
        self._make(folder)
        return folder

    def _make(self, folder: Path) -> None:
        """A part of a study's folder, readable for its owner only."""
        for one in (folder.parent, folder):
            one.mkdir(exist_ok=True, mode=PRIVATE)

    def _put_away(self, key: str) -> Path | None:
        folder = self._studies / key
        if not folder.is_dir():
            return None
        moved = self._removed / f"{key}-{uuid.uuid4().hex}"
        os.replace(folder, moved)
        return moved


def _delete(path: Path | None) -> None:
    if path is None:
        return
    delete: Callable[[Path], object] = shutil.rmtree if path.is_dir() else Path.unlink
    delete(path)


def _sync(folder: Path) -> None:
    """A new name in a folder survives a power failure; Windows does that by itself and cannot open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
