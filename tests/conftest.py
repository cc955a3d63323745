"""Fixtures over the shipped sample: real data, small enough for every test run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.fingerprint import Fingerprint
from medseg.plans import Plan

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "datasets" / "hippocampus"

# How long examples take, and take to make, says more of the machine than of the code.
settings.register_profile("medseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("medseg")


@pytest.fixture(scope="session")
def sample() -> Path:
    """The shipped dataset, 24 cases."""
    return SAMPLE


def copy_cases(target: Path, count: int) -> Path:
    """A copy of the first `count` cases of the sample."""
    description = json.loads((SAMPLE / "dataset.json").read_text())
    description["training"] = description["training"][:count]
    for pair in description["training"]:
        for name in pair.values():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SAMPLE / name, target / name)
    (target / "dataset.json").write_text(json.dumps(description))
    return target


@pytest.fixture(scope="session")
def cases() -> Callable[[Path, int], Path]:
    """`cases(folder, n)` copies the first `n` cases of the sample into a dataset of their own."""
    return copy_cases


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """The sample as a record."""
    from medseg.io.layouts.base import open_dataset

    return open_dataset(SAMPLE)


@pytest.fixture(scope="session")
def fingerprint(dataset: Dataset) -> Fingerprint:
    """The sample's fingerprint."""
    from medseg.planning.fingerprinting import make_fingerprint

    return make_fingerprint(dataset, "grid", cache=None, workers=1)


@pytest.fixture(scope="session")
def plans(dataset: Dataset, fingerprint: Fingerprint) -> tuple[Plan, ...]:
    """The sample's plans for a CPU with 8 GiB."""
    from medseg.planning.planner import make_plans

    return make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=Machine("cpu", 8))


def lacking(what: str) -> NoReturn:
    """The test is skipped for want of something, or fails where MEDSEG_REQUIRE_SERVICES is set."""
    (pytest.fail if os.environ.get("MEDSEG_REQUIRE_SERVICES") else pytest.skip)(f"{what} is not installed")
    raise AssertionError


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """`program(name)` finds an external program. Without it the test ends as `lacking` says."""

    def find(name: str) -> Path:
        beside = Path(sys.executable).with_name(name)  # programs that pip has installed
        found = str(beside) if beside.is_file() else shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
        if found is None:
            lacking(name)
        return Path(found)

    return find
