"""Golden plans: a changed plan is a decision that a commit must explain.

To accept a change: `python tests/golden/test_golden_plans.py` rewrites the files; read the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.fingerprint import Fingerprint
from medseg.planning.planner import make_plans
from medseg.plans import Plan

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "plans" / "golden"
MACHINES = {"cpu8": Machine("cpu", 8.0), "cuda8": Machine("cuda", 8.0)}


def planned(dataset: Dataset, fingerprint: Fingerprint, machine: Machine) -> tuple[Plan, ...]:
    return make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=machine)


@pytest.mark.parametrize("name", MACHINES)
def test_sample_plans_are_golden(name: str, dataset: Dataset, fingerprint: Fingerprint) -> None:
    plans = planned(dataset, fingerprint, MACHINES[name])
    assert {p.name for p in plans} == {"2d", "3d"}
    for plan in plans:
        assert plan.to_json() == (GOLDEN / f"hippocampus_{name}_{plan.name}.json").read_text(encoding="utf-8")


def test_same_dataset_same_plan(dataset: Dataset, fingerprint: Fingerprint) -> None:
    machine = MACHINES["cpu8"]
    assert [p.to_json() for p in planned(dataset, fingerprint, machine)] == [p.to_json() for p in planned(dataset, fingerprint, machine)]


if __name__ == "__main__":
    from medseg.io.layouts.base import open_dataset
    from medseg.planning.fingerprinting import make_fingerprint

    sample = open_dataset(ROOT / "datasets" / "hippocampus")
    measured = make_fingerprint(sample, "grid", cache=None, workers=1)
    for machine_name, machine in MACHINES.items():
        for one in planned(sample, measured, machine):
            one.save(GOLDEN / f"hippocampus_{machine_name}_{one.name}.json")
