"""Plans of tiny datasets, one per kind of input."""

from __future__ import annotations

import pytest
from thresholding import tiny_plan

from medseg.plans import Plan


@pytest.fixture(scope="session")
def plan3d(tmp_path_factory) -> Plan:
    return tiny_plan(tmp_path_factory.mktemp("tiny3d"), (12, 14, 10), "3d")


@pytest.fixture(scope="session")
def plan2d(tmp_path_factory) -> Plan:
    return tiny_plan(tmp_path_factory.mktemp("tiny2d"), (24, 20), "2d")


@pytest.fixture(scope="session")
def plan_channels(tmp_path_factory) -> Plan:
    return tiny_plan(tmp_path_factory.mktemp("tinyc"), (12, 14, 10), "3d", channels=2)
