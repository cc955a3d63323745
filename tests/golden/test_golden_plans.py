"""Golden plans: a changed plan is a decision that a commit must explain.

To accept a change: `python tests/golden/test_golden_plans.py` rewrites the files; read the difference before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from measured import DATASETS, MEASURED
from published import FOLDER, Published, written

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.fingerprint import Fingerprint
from medseg.planning.planner import make_plans
from medseg.plans import Plan

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "plans" / "golden"
MACHINES = {"cpu8": Machine("cpu", 8.0), **{f"cuda{n}": Machine("cuda", float(n)) for n in (4, 8, 12, 24, 40, 80)}}
CONFIGURATIONS = {
    "hippocampus": {"2d", "3d"},
    "ct_100": {"2d", "3d", "3d_low", "3d_cascade"},
    "prostate": {"2d", "3d"},
    "brain_tumour": {"2d", "3d"},
    "retina": {"2d"},
    "hippocampus_200": {"2d", "3d"},
    "ms_lesions": {"2d", "3d"},
    "sarcoma": {"2d", "3d"},
    "polyps": {"2d"},
    "vessels": {"2d"},
}
REAL = {name: Published.load(MEASURED / f"{name}.json") for name in DATASETS}  # for two machines only: a plan takes a second


def machines(name: str) -> dict[str, Machine]:
    return {m: MACHINES[m] for m in ("cpu8", "cuda24")} if name in REAL else MACHINES


def planned(dataset: Dataset, fingerprint: Fingerprint, machine: Machine) -> tuple[Plan, ...]:
    return make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=machine)


def check(name: str, dataset: Dataset, fingerprint: Fingerprint) -> None:
    for machine_name, machine in machines(name).items():
        plans = planned(dataset, fingerprint, machine)
        assert {p.name for p in plans} == CONFIGURATIONS[name]
        for plan in plans:
            assert plan.to_json() == (GOLDEN / f"{name}_{machine_name}_{plan.name}.json").read_text(encoding="utf-8")
            assert plan.memory.training <= machine.memory


def test_sample_plans_are_golden(dataset: Dataset, fingerprint: Fingerprint) -> None:
    check("hippocampus", dataset, fingerprint)


@pytest.mark.parametrize("name", written())
def test_plans_of_published_fingerprints_are_golden(name: str) -> None:
    published = Published.load(FOLDER / f"{name}.json")
    assert published == written()[name]
    check(name, published.dataset(), published.full())


@pytest.mark.parametrize("name", REAL)
def test_plans_of_measured_fingerprints_are_golden(name: str) -> None:
    check(name, REAL[name].dataset(), REAL[name].full())


def test_every_golden_plan_is_made_by_a_test() -> None:
    assert {p.stem for p in GOLDEN.glob("*.json")} == {
        f"{n}_{m}_{c}" for n, names in CONFIGURATIONS.items() for m in machines(n) for c in names
    }


def test_same_dataset_same_plan(dataset: Dataset, fingerprint: Fingerprint) -> None:
    machine = MACHINES["cpu8"]
    assert [p.to_json() for p in planned(dataset, fingerprint, machine)] == [p.to_json() for p in planned(dataset, fingerprint, machine)]


if __name__ == "__main__":
    from medseg.io.layouts.base import open_dataset
    from medseg.planning.fingerprinting import make_fingerprint

    sample = open_dataset(ROOT / "datasets" / "hippocampus")
    datasets = {name: (one.dataset(), one.full()) for name, one in {**written(), **REAL}.items()}
    datasets["hippocampus"] = sample, make_fingerprint(sample, "grid", cache=None, workers=1)
    for name, (of_dataset, measured) in datasets.items():
        for machine_name, machine in machines(name).items():
            for one in planned(of_dataset, measured, machine):
                one.save(GOLDEN / f"{name}_{machine_name}_{one.name}.json")
