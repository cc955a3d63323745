"""A PACS, a sender, and studies to send."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
from orthanc import PLUGIN, PLUGIN_FOLDERS, Orthanc, find_plugin

from tests.conftest import lacking
from tests.io.dicom.phantoms import grid_of, write_series


@pytest.fixture(scope="session")
def running_orthanc(program, tmp_path_factory) -> Iterator[Orthanc]:
    executable, plugin = program("Orthanc"), find_plugin()
    if plugin is None:
        lacking(f"{PLUGIN}, the DICOMweb plugin of Orthanc, in {', '.join(PLUGIN_FOLDERS)}")
    one = Orthanc(executable, plugin, tmp_path_factory.mktemp("orthanc"))
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture(scope="session")
def server() -> BaseContext:
    """Processes are forked by a server that has imported what they need, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recipes"])
    return context


@pytest.fixture(autouse=True)
def fast_workers(server, monkeypatch) -> None:
    """Worker processes start in no time."""
    monkeypatch.setattr("medseg.serving.worker.START", server)


@pytest.fixture
def orthanc(running_orthanc) -> Iterator[Orthanc]:
    """An Orthanc that holds nothing."""
    running_orthanc.clear()
    return running_orthanc


@pytest.fixture
def make_study(tmp_path) -> Callable[..., list[Path]]:
    """`make_study(name, slices=3, **tags)` writes an MR study; its UIDs follow from the name."""

    def make(name: str, slices: int = 3, **tags: object) -> list[Path]:
        array = np.random.default_rng(0).integers(0, 200, (slices, 12, 10)).astype(np.int16)
        return write_series(tmp_path / "made" / name, array, grid_of(array.shape), "MR", **tags)

    return make
