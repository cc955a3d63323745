"""`medseg plan --preset nnunet`: for datasets of medseg, and for nnU-Net's fingerprints without images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from synthetic import make_dataset, make_fingerprint_of

from medseg.commands import main
from medseg.device import Machine
from medseg.errors import ResourceError, UsageError
from medseg.interop.nnunet import planning
from medseg.interop.nnunet.planning import Presets
from medseg.planning.explain import unexplained
from medseg.plans import Plan
from medseg.tasks.base import find_task

GOLDEN = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())
MACHINE = Machine("cpu", 8.0)


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run


def test_plans_of_the_sample(dataset, fingerprint, tmp_path):
    flat, volume = Presets("nnunet", out=tmp_path)(dataset, fingerprint, MACHINE)
    assert (flat.name, flat.recommended, volume.name, volume.recommended) == ("2d", False, "3d_fullres", True)
    assert (volume.window, volume.training.batch_size, volume.space.spacing) == ((40, 56, 40), 2, (1.0, 1.0, 1.0))
    assert (volume.data.digest, volume.data.labels, volume.space.orientation) == (fingerprint.digest, dataset.labels, "ras")
    assert (volume.memory.budget, volume.memory.device) == (8.0, "cpu")
    theirs = json.loads((tmp_path / "nnUNetPlans.json").read_text())
    assert theirs["configurations"]["3d_fullres"]["patch_size"] == [40, 56, 40]
    assert theirs["configurations"]["3d_fullres"]["batch_size"] == 2


def test_volumes_that_a_window_sees_little_of_get_a_cascade(dataset, fingerprint):
    plans = {plan.name: plan for plan in Presets("nnunet", memory=1.0)(dataset, large(fingerprint), MACHINE)}
    assert [plan.name for plan in plans.values() if plan.recommended] == ["3d_fullres"]
    low, full, cascade = (plans[name] for name in ("3d_lowres", "3d_fullres", "3d_cascade_fullres"))
    assert cascade.previous == "3d_lowres"
    assert low.previous == full.previous == ""
    assert unexplained(cascade) == ()
    assert cascade.space.model_copy(update={"prior": None}) == full.space
    assert find_task(cascade.task)(cascade).channels == find_task(full.task)(full).channels + 2
    assert low.space.spacing[0] > 1.5 * full.space.spacing[0]


def test_a_preset_that_does_not_fit_says_what_would(dataset, fingerprint):
    with pytest.raises(ResourceError) as caught:
        Presets("nnunet", 8)(dataset, fingerprint, Machine("cpu", 0.1))
    flat, volume = caught.value.problems
    assert str(flat).startswith("configuration '2d': what this preset plans does not fit; found 0.1")
    assert str(volume).startswith("configuration '3d_fullres': what this preset plans does not fit; found 0.")
    end = "GiB for a window of 40 x 56 x 40 and a batch of 2, expected at most 0.1 GiB. "
    assert str(volume).endswith(
        f"{end}Plan with --memory 1 for a larger device, the smallest with which it fits, or without --preset, where medseg plans for this one."
    )
    assert len(Presets("nnunet", 1)(dataset, fingerprint, Machine("cpu", 1))) == 2


def test_a_preset_that_aims_at_more_than_there_is():
    """Its default is 8 GB; aimed at the 2 GiB that there are, it fits."""
    dataset = make_dataset(ndim=2)
    fingerprint = make_fingerprint_of(dataset, (1024, 1024), (1.0, 1.0))
    with pytest.raises(ResourceError) as caught:
        Presets("nnunet")(dataset, fingerprint, Machine("cuda", 2))
    assert {p.fix for p in caught.value.problems} == {
        "Plan with --memory 2, for what there is, or without --preset, where medseg plans for this one."
    }
    assert [p.where for p in caught.value.problems] == [f"configuration '{name}'" for name in ("2d",)]


def test_configurations_of_a_preset_that_do_not_fit_are_left_out(dataset, fingerprint):
    least = max(p.memory.training for p in Presets("nnunet")(dataset, fingerprint, MACHINE))
    (flat,) = Presets("nnunet")(dataset, fingerprint, Machine("cpu", least - 0.01))
    assert (flat.name, flat.recommended) == ("2d", True)
    assert flat.reasons["recommended"] == (
        f"nnU-Net's first choice of those that fit; left out, because it needs more than {least - 0.01:g} GiB: 3d_fullres ({least:g} GiB)."
    )


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["group"] in ("given", "slice", "anisotropic", "huge")], ids=lambda c: c["group"])
def test_a_folder_without_images_gives_nnunets_own_file(case, tmp_path, run):
    folder = tmp_path / case["name"]
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(case["dataset"]))
    (folder / "dataset_fingerprint.json").write_text(json.dumps(case["fingerprint"]))
    out = tmp_path / "out"
    assert run("plan", "--preset", "nnunet", "--nnunet-fingerprint", folder, "--format", "nnunet", "-o", out) == 0
    assert json.loads((out / "nnUNetPlans.json").read_text()) == case["plans"]
    wanted = case["plans"]["configurations"]
    assert {file.stem for file in out.glob("*.json")} == {*wanted, "nnUNetPlans"}
    for name, theirs in wanted.items():
        theirs = {**wanted.get(theirs.get("inherits_from"), {}), **theirs}
        plan = Plan.load(out / f"{name}.json")
        assert (plan.previous, plan.space.prior is None) == (theirs.get("previous_stage", ""), "previous_stage" not in theirs)
        assert (list(plan.window), plan.training.batch_size) == (theirs["patch_size"], theirs["batch_size"])
        assert [list(k) for k in plan.network.kernels] == theirs["architecture"]["arch_kwargs"]["kernel_sizes"]
        assert [list(s) for s in plan.network.strides] == theirs["architecture"]["arch_kwargs"]["strides"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error pass either a dataset or --nnunet-fingerprint; found neither, expected one of them."),
        (["DATA", "--preset", "nnunet", "--nnunet-fingerprint", "X"], "error pass either a dataset or --nnunet-fingerprint; found both"),
        (["DATA", "--preset", "five"], "error --preset: no such preset; found 'five', expected nnunet, nnunet-resenc-m, nnunet-resenc-l"),
        (["DATA", "--format", "nnunet"], "error these options do not go together; found no --preset, expected --preset with"),
        (["DATA", "--preset", "nnunet", "--network", "unet2"], "found --preset, --network, expected --preset with"),
        (["DATA", "--preset", "nnunet", "--format", "monai"], "error --format: no such format; found 'monai', expected nnunet."),
    ],
)
def test_options_that_contradict_each_other(arguments, message, tmp_path, capsys, run):
    assert run("plan", *arguments, "-o", tmp_path / "out") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert not (tmp_path / "out").exists()


def test_no_such_preset():
    with pytest.raises(UsageError, match="no such preset"):
        Presets("nnunet-xxl")


def test_a_cascade_whose_first_stage_does_not_fit_is_left_out(dataset, fingerprint, monkeypatch):
    plans = {plan.name: plan for plan in Presets("nnunet", memory=1.0)(dataset, large(fingerprint), MACHINE)}

    def measured(plan, gib):
        return plan.model_copy(update={"memory": plan.memory.model_copy(update={"training": gib})})

    gib = {"2d": 0.5, "3d_lowres": 3.0, "3d_fullres": 1.0, "3d_cascade_fullres": 1.0}
    made = tuple(measured(plans[name], gib[name]) for name in plans)
    monkeypatch.setattr(planning, "plans_of", lambda theirs, described: made)
    found = Presets("nnunet")(dataset, large(fingerprint), Machine("cpu", 2.0))
    assert {plan.name for plan in found} == {"2d", "3d_fullres"}
    left = "left out, because it needs more than 2 GiB: 3d_lowres (3 GiB), 3d_cascade_fullres (as 3d_lowres is its first stage)."
    assert all(plan.reasons["recommended"].endswith(left) for plan in found)
    only = tuple(plan for plan in made if plan.name in ("3d_lowres", "3d_cascade_fullres"))
    monkeypatch.setattr(planning, "plans_of", lambda theirs, described: only)
    with pytest.raises(ResourceError) as caught:
        Presets("nnunet")(dataset, large(fingerprint), Machine("cpu", 2.0))
    assert [problem.where for problem in caught.value.problems] == ["configuration '3d_lowres'"]


def large(fingerprint):
    """The same cases with voxels four times as fine."""

    def finer(case):
        return case.model_copy(update={name: tuple(4 * n for n in getattr(case, name)) for name in ("shape", "cropped")})

    return fingerprint.model_copy(update={"cases": tuple(finer(case) for case in fingerprint.cases)})
