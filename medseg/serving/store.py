"""The node's folder: received images and results of studies that are not delivered yet.

    STORE/queue.sqlite                     see `medseg.serving.queue`
    STORE/incoming/                        images while they are written
    STORE/studies/<study>/images/<instance>.dcm
    STORE/studies/<study>/results/         what the prediction wrote
    STORE/removed/                         what is being deleted

Studies and instances are named by digests of their UIDs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from medseg.errors import ResourceError
from medseg.serving.queue import Queue, State

SUFFIX = ".dcm"


class Store:
    """The files of a node. What a row of the queue says of files is changed with them, within `Queue.together`."""

    def __init__(self, folder: Path, queue: Queue) -> None:
        self.folder = folder
        self.queue = queue
        self._incoming = folder / "incoming"
        self._removed = folder / "removed"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients
        for part in (self._incoming, self._removed, folder / "studies"):
            part.mkdir(parents=True, exist_ok=True)

    def images(self, key: str) -> Path:
        """The folder of a study's images."""
        return self.folder / "studies" / key / "images"

    def results(self, key: str) -> Path:
        """The folder of a study's results."""
        return self.folder / "studies" / key / "results"

    def free(self) -> int:
        """Bytes that are free on the file system."""
        return shutil.disk_usage(self.folder).free

    def keep(self, study: str, instance: str, caller: str, data: bytes) -> None:
        """Put an image beside the others of its study; when this returns, it is on the disk and in the queue.

        Raises:
            ResourceError: the disk is full.
        """
        target = self.images(study) / f"{instance}{SUFFIX}"
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self.queue.together():
                new = not (target.is_file() and target.stat().st_size == len(data) and target.read_bytes() == data)
                if new:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(name, target)
                    _sync(target.parent)
                self.queue.arrived(study, instance, caller, len(data), new)
        except (OSError, sqlite3.Error) as error:
            raise ResourceError.of(
                "an image cannot be stored", found=getattr(error, "strerror", None) or str(error), fix="Free disk space."
            ) from None
        finally:
            Path(name).unlink(missing_ok=True)

    def finish(self, key: str, keep: bool) -> bool:
        """The study is delivered: its files go, unless `keep`. False where images have come meanwhile, and it starts again."""
        with self.queue.together():
            done = self.queue.finish(key)
            moved = self._put_away(key) if done and not keep else None
        _delete(moved)
        return done

    def forget(self, key: str) -> None:
        """Remove a study that was set aside, with its files. Raises UsageError where it is not aside."""
        with self.queue.together():
            self.queue.forget(key)
            moved = self._put_away(key)
        _delete(moved)

    def recover(self, keep: bool) -> int:
        """After a start: files and rows agree again, whatever the process was doing when it ended. Returns how many studies were running."""
        for part in (self._incoming, self._removed):
            for left in part.iterdir():
                _delete(left)
        running = self.queue.recover()
        for folder in sorted((self.folder / "studies").iterdir()):
            study = self.queue.find(folder.name)
            images = [path for path in (folder / "images").glob(f"*{SUFFIX}") if path.is_file()] if (folder / "images").is_dir() else []
            if study is None:  # written, but not in the queue when the process ended
                for path in images:
                    self.queue.arrived(folder.name, path.stem, "", path.stat().st_size)
            elif study.state == State.done and not keep:
                _delete(folder)
        return running

    def clear_results(self, key: str) -> Path:
        """An empty folder for results."""
        folder = self.results(key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _put_away(self, key: str) -> Path | None:
        folder = self.folder / "studies" / key
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
