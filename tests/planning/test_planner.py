from __future__ import annotations

import re

import pytest
from synthetic import REGIONS, TWO, make_dataset, make_fingerprint_of

from medseg.dataset import Labels, Modality, Split, Splits
from medseg.device import Machine
from medseg.errors import PlanError, ResourceError
from medseg.planning import rules
from medseg.planning.explain import explain, unexplained
from medseg.planning.memory import Cost, measured_cost
from medseg.planning.planner import make_plans
from medseg.plans import Plan


def planned(
    machine: Machine,
    labels: Labels = TWO,
    ndim: int = 3,
    shape: tuple[int, ...] = (36, 50, 35),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    cases: int = 20,
    modality: Modality = Modality.mr,
) -> tuple[Plan, ...]:
    dataset = make_dataset(labels, ndim, cases, modality)
    fingerprint = make_fingerprint_of(dataset, shape[-ndim:], spacing[-ndim:])
    return make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=machine)


SCENES = {
    "hippocampus": {"shape": (36, 50, 35), "cases": 200},
    "abdomen": {"shape": (120, 512, 512), "spacing": (2.5, 0.78, 0.78), "modality": Modality.ct},
    "tumour": {"shape": (155, 240, 240), "labels": REGIONS},
    "thick slices": {"shape": (10, 256, 256), "spacing": (8.0, 1.4, 1.4)},
    "photographs": {"shape": (528, 622), "spacing": (1.0, 1.0), "ndim": 2, "modality": Modality.rgb},
}


@pytest.mark.parametrize(
    ("scene", "kind"),
    [("hippocampus", "cpu"), ("abdomen", "cpu"), ("photographs", "cpu"), ("thick slices", "cuda"), ("tumour", "cuda")],
)
def test_plans_of_many_scenes(scene: str, kind: str) -> None:
    machine = Machine(kind, 10.0)
    plans = planned(machine, **SCENES[scene])
    assert sum(p.recommended for p in plans) == 1
    for plan in plans:
        assert plan.memory.training <= machine.memory
        assert plan.training.batch_size >= 2
        assert unexplained(plan) == ()
        assert all(reason[0] == reason[0].upper() and reason.endswith(".") for reason in plan.reasons.values())
        assert Plan.parse(plan.model_dump(mode="json"), "again") == plan


def test_memory_of_large_batches_is_what_would_be_measured() -> None:
    plan = planned(Machine("cuda", 8.0), shape=(64, 64), spacing=(1.0, 1.0), ndim=2, cases=400)[0]
    assert plan.training.batch_size > 12
    assert plan.memory.training == pytest.approx(measured_cost(plan).memory, rel=0.01, abs=0.01)


def test_same_input_same_bytes() -> None:
    first, second = (planned(Machine("cpu", 8.0), shape=(64, 64), spacing=(1.0, 1.0), ndim=2) for _ in range(2))
    assert [p.to_json() for p in first] == [p.to_json() for p in second]


def test_less_memory_means_smaller_window_or_batch() -> None:
    sizes = []
    for memory in (8.0, 1.0):
        plan = next(p for p in planned(Machine("cuda", memory), shape=(64, 96, 96), cases=100) if p.recommended)
        assert plan.memory.training <= memory
        sizes.append(plan.training.batch_size * plan.window[0] * plan.window[1] * plan.window[2])
    assert sizes[0] > sizes[1]


def test_cpu_windows_are_bounded_by_work() -> None:
    plan = next(p for p in planned(Machine("cpu", 64.0), shape=(155, 240, 240)) if p.recommended)
    assert "Tflop" in plan.reasons["window"]
    assert plan.training.batch_size == 2
    assert plan.memory.training < 4


def test_nothing_fits() -> None:
    with pytest.raises(
        ResourceError, match=r"3d: the smallest window does not fit the memory; found .* GiB.* expected at most 0.01 GiB"
    ) as error:
        planned(Machine("cuda", 0.01))
    assert [p.where for p in error.value.problems] == ["3d", "2d"]
    (fix,) = {p.fix for p in error.value.problems}
    assert re.fullmatch(r"The smallest budget in which a configuration fits is --memory 0\.\d+ \('2d'\)\.", fix)
    least = float(fix.split("--memory ")[1].split()[0])
    assert [p.name for p in planned(Machine("cuda", least))] == ["2d"]
    with pytest.raises(ResourceError):
        planned(Machine("cuda", least - 0.01))


def test_what_does_not_fit_is_named() -> None:
    plans = planned(Machine("cuda", 0.12))
    assert [p.name for p in plans] == ["2d"]
    assert plans[0].recommended
    assert "left out, because the smallest window needs more than 0.12 GiB: 3d (0." in plans[0].reasons["recommended"]


@pytest.mark.parametrize("name", ["task", "domain", "network"])
def test_unknown_names(name: str) -> None:
    dataset = make_dataset()
    names = {"task": "semantic", "domain": "grid", "network": "unet"} | {name: "unett"}
    with pytest.raises(PlanError, match=r"unknown name in .medseg|unknown network"):
        make_plans(dataset, make_fingerprint_of(dataset), **names, machine=Machine("cpu", 8.0))


def test_batch_rule() -> None:
    cost = Cost(memory=1.0, flops=int(2e9), parameters=10)
    assert rules.most_windows((10, 10), 40_000, cost, Machine("cuda", 8))[0] == 20  # 5 % of the data
    assert rules.most_windows((10, 10), 10**9, cost, Machine("cuda", 8))[0] == rules.LARGEST_BATCH
    busy = Cost(memory=1.0, flops=int(5e10), parameters=10)
    most, why = rules.most_windows((10, 10), 10**9, busy, Machine("cpu", 8))
    assert most == 4
    assert "busy" in why
    most, why = rules.most_windows((10, 10), 100, cost, Machine("cuda", 8))
    assert most == 2
    assert why.startswith("the smallest batch, because one window gives gradients that depend too much on it; it holds 200.0% of the ")
    assert "dataset's 100 voxels, and beyond 5% a larger one would overfit" in why
    most, why = rules.most_windows((10, 10), 10**9, Cost(memory=1.0, flops=int(5e11), parameters=10), Machine("cpu", 8))
    assert most == 2
    assert "it takes 0.5 Tflop per step; from 0.1 Tflop per step on this kind of device is busy" in why
    exact = rules.most_windows((10, 10), 4_000, cost, Machine("cuda", 8))
    assert exact == (2, "more than 5% of the dataset's 4,000 voxels in one batch would overfit")


@pytest.mark.parametrize(
    ("patients", "folds", "why"),
    [
        (200, 5, "each of 5 models trains on about 80% of the cases"),
        (5, 5, "about 80%"),
        (4, 4, "as many as there are patients (4)"),
        (2, 2, "as many as there are patients (2)"),
        (1, 2, "--fold none"),
    ],
)
def test_folds_rule(patients: int, folds: int, why: str) -> None:
    found = rules.cross_validation(make_dataset(cases=patients))
    assert (found.count, found.share) == (folds, 1 - 1 / folds)
    assert why.lower() in found.why.lower()


def test_folds_of_the_user() -> None:
    ids = [case.id for case in make_dataset(cases=10).cases]
    folds = (
        Split(train=tuple(ids[:8]), val=tuple(ids[8:])),
        Split(train=tuple(ids[:4]), val=tuple(ids[4:])),
        Split(train=(ids[0],), val=(ids[1],)),
    )
    for count, share in ((1, "80%"), (2, "60%"), (3, "43%")):
        dataset = make_dataset(cases=10).model_copy(update={"splits": Splits(folds=folds[:count], source="mine.json")})
        found = rules.cross_validation(dataset)
        assert (found.count, found.why) == (count, f"As mine.json says: each model trains on {share} of the cases.")
    plans = make_plans(dataset, make_fingerprint_of(dataset), task="semantic", domain="grid", network="unet", machine=Machine("cpu", 8.0))
    assert {plan.training.folds for plan in plans} == {3}
    assert {plan.reasons["training.folds"] for plan in plans} == {"As mine.json says: each model trains on 43% of the cases."}


def test_folds_are_of_patients_not_of_cases() -> None:
    dataset = make_dataset(ndim=2, cases=12)
    cases = tuple(case.model_copy(update={"group": f"patient {i % 3}"}) for i, case in enumerate(dataset.cases))
    dataset = dataset.model_copy(update={"cases": cases})
    (plan,) = make_plans(
        dataset,
        make_fingerprint_of(dataset, (64, 64), (1.0, 1.0)),
        task="semantic",
        domain="grid",
        network="unet",
        machine=Machine("cpu", 8.0),
    )
    assert plan.training.folds == 3
    assert "as there are patients (3)" in plan.reasons["training.folds"]
    assert plan.reasons["inference.mirror"]
    assert plan.reasons["inference.overlap"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return next(p for p in planned(Machine("cpu", 8.0)) if p.recommended)


def test_explain_covers_every_decision_in_order(plan: Plan) -> None:
    fingerprint = make_fingerprint_of(make_dataset())
    decisions = explain(plan)
    fields = [d.field for d in decisions]
    assert len(set(fields)) == len(fields)
    assert fields[0] == "window"
    assert fields[-1] == "recommended"
    assert set(plan.reasons) <= set(fields)
    assert all(d.reason for d in decisions)
    assert next(d for d in decisions if d.field == "window").value == str(list(plan.window))
    evidence = explain(plan, fingerprint)[: -len(decisions)]
    assert [e.field for e in evidence] == [
        "data.cases",
        "data.shape",
        "data.spacing",
        "data.channels.scan",
        "data.classes.anterior",
        "data.classes.posterior",
    ]
    assert evidence[0].value == "20"
    assert "median 50" in evidence[1].value


def test_edits_are_explained(plan: Plan) -> None:
    edited = plan.edited({"training.seed": "7"})
    assert next(d for d in explain(edited) if d.field == "training.seed").reason == "set by hand (--set training.seed=7)"


def test_values_set_by_hand_to_what_most_plans_have_are_explained(plan: Plan) -> None:
    """They are not written into the file, but their reason is."""
    edited = plan.edited({"space.blending": "centred", "target.focal": "0"})
    assert {d.field: d.value for d in explain(edited) if "by hand" in d.reason} == {"space.blending": '"centred"', "target.focal": "0.0"}
    assert Plan.parse(edited.model_dump(mode="json"), where="here") == edited
