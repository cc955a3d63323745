"""nnU-Net's cascades: import, prediction, export, planning, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from test_nnunet_folder import model_folder, refusal, set_in, write_case
from typer.testing import CliRunner

from medseg.answers import explain
from medseg.case import Batch
from medseg.commands import app
from medseg.domains.grid.settings import PriorChanges
from medseg.errors import ModelError
from medseg.inference.predictor import Predictor
from medseg.interop.nnunet.checkpoint import read_checkpoint
from medseg.interop.nnunet.folder import Exported, export_model, import_model
from medseg.models.nnunet import NnUNet
from medseg.planning.explain import unexplained
from medseg.plans import Plan
from medseg.tasks.base import find_task

LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
NAME = "nnUNetTrainer__nnUNetPlans__{}"


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Path]:
    """Both model folders of a cascade, beside each other as nnU-Net puts them, with two folds each."""
    return {name: model_folder(tmp_path / "models" / NAME.format(name), (0, 1), recorded="cascade", stage=name) for name in (LOW, CASCADE)}


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return " ".join(done.output.split())


def test_import_and_predict_gives_nnunets_segmentation(stages: dict[str, Path], tmp_path: Path) -> None:
    """By the command line, of one fold; the first stage, too, is the model that nnU-Net has."""
    expected = {name: write_case(tmp_path / name, "cascade", name) for name in (LOW, CASCADE)}
    run = tmp_path / "run"
    assert f"fold 0, with {LOW} before it" in invoke("import", "nnunet", stages[CASCADE], "-o", run, "--folds", 0)
    for model, name in ((run / "previous", LOW), (run, CASCADE)):
        invoke("predict", model, tmp_path / name, "-o", tmp_path / "out" / name)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / name / "case.nii.gz")))
        assert len(np.unique(expected[name])) == 3
        assert (found == expected[name]).mean() > 0.999
    assert (expected[LOW] != expected[CASCADE]).any()


def test_what_an_imported_cascade_is(stages: dict[str, Path], tmp_path: Path) -> None:
    plan, folds = import_model(stages[CASCADE], tmp_path / "run")
    assert folds == (0, 1)
    assert (plan.name, plan.previous, plan.space.prior) == (CASCADE, LOW, PriorChanges())
    earlier = Plan.load(tmp_path / "run" / "previous" / "plan.json")
    assert (earlier.name, earlier.previous, earlier.space.prior, earlier.space.spacing) == (LOW, "", None, (5.0, 1.6, 1.5))
    assert find_task(plan.task)(plan).channels == find_task(earlier.task)(earlier).channels + 2
    assert unexplained(plan) == unexplained(earlier) == ()
    assert {"previous", "space.prior"} <= set(plan.reasons) - set(earlier.reasons)
    assert "provenance.json" in {p.name for p in (tmp_path / "run" / "previous").iterdir()}
    both = Predictor.load(tmp_path / "run", device="cpu")
    assert both.previous is not None
    assert [len(one.ensemble.networks) for one in (both, both.previous)] == [2, 2]


def test_the_stage_before_may_lie_elsewhere(stages: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    stages[LOW].rename(moved)
    text = refusal(stages[CASCADE], tmp_path / "run")
    assert f"'{CASCADE}' is a cascade, and the model of the stage before it is missing" in text
    assert str(stages[LOW]) in text
    assert f"Pass it with --previous, or train '{LOW}' with nnU-Net first." in text
    invoke("import", "nnunet", stages[CASCADE], "-o", tmp_path / "run", "--previous", moved)
    assert Plan.load(tmp_path / "run" / "previous" / "plan.json").name == LOW


def test_a_renamed_cascade_needs_the_option(stages: dict[str, Path], tmp_path: Path) -> None:
    renamed = stages[CASCADE].rename(tmp_path / "mine")
    assert f"no folder is named as that of '{CASCADE}'" in refusal(renamed, tmp_path / "run")
    assert import_model(renamed, tmp_path / "run", previous=stages[LOW])[0].previous == LOW


def test_a_stage_before_of_another_kind_is_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert f"'{LOW}' is no cascade, so it has no stage before" in refusal(stages[LOW], run, previous=stages[LOW])
    assert "the stages of this cascade need each other" in refusal(stages[CASCADE], run, previous=stages[CASCADE])
    other = model_folder(tmp_path / "other", (0, 1))
    assert f"found a model of '3d_fullres', expected '{LOW}'" in refusal(stages[CASCADE], run, previous=other)


def test_a_stage_before_of_other_data_is_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((stages[LOW] / "dataset.json").read_text())
    content["labels"] = {"background": 0, "one": [1, 2, 3], "two": [2, 3], "three": 3}  # as many outputs, so the weights fit
    (stages[LOW] / "dataset.json").write_text(json.dumps(content | {"regions_class_order": [1, 2, 3]}))
    text = refusal(stages[CASCADE], tmp_path / "run")
    assert "the stage before was trained with other label values; found [1, 2, 3], expected [1, 2]" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda low: shutil.rmtree(low / "fold_1"), ["the fold is missing", "fold_1", LOW, "--folds 0."]),
        (lambda low: (low / "plans.json").unlink(), ["plans.json", LOW, "cannot be read"]),
        (lambda low: (low / "fold_0" / "checkpoint_final.pth").write_bytes(b""), ["is no readable checkpoint", LOW]),
    ],
)
def test_damage_to_the_stage_before_is_named(
    stages: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(stages[LOW])
    text = refusal(stages[CASCADE], tmp_path / "run")
    assert all(word in text for word in words), text


def test_problems_of_both_stages_at_once(tmp_path: Path) -> None:
    for name in (LOW, CASCADE):

        def change(plans: dict[str, Any], name: str = name) -> None:
            for one in plans["configurations"].values():
                one["normalization_schemes"] = [f"{name}Norm", "ZScoreNormalization"]

        model_folder(tmp_path / NAME.format(name), plans=change, recorded="cascade", stage=name)
    text = refusal(tmp_path / NAME.format(CASCADE), tmp_path / "run")
    assert f"{LOW}Norm" in text
    assert f"{CASCADE}Norm" in text


def test_labels_resampled_otherwise_are_refused(tmp_path: Path) -> None:
    for name in (LOW, CASCADE):
        change = set_in("resampling_fn_seg_kwargs", {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None})
        model_folder(tmp_path / NAME.format(name), plans=change, recorded="cascade", stage=name)
    assert "'resampling_fn_seg_kwargs'" in refusal(tmp_path / NAME.format(CASCADE), tmp_path / "run")
    assert import_model(tmp_path / NAME.format(LOW), tmp_path / "run")[0].name == LOW  # whose prediction resamples none


def test_half_is_for_all_stages(stages: dict[str, Path], tmp_path: Path) -> None:
    plan, _ = import_model(stages[CASCADE], tmp_path / "run", half=True)
    before = Plan.load(tmp_path / "run" / "previous" / "plan.json")
    assert [one.network.precision for one in (plan, before)] == ["half", "half"]
    assert "--half" in plan.reasons["network.precision"]
    Predictor.load(tmp_path / "run", "cpu")  # the weights belong to the plan
    assert import_model(stages[CASCADE], tmp_path / "full")[0].network.precision == "full"


@pytest.mark.parametrize(("options", "precision", "reason"), [((), "full", "As nnU-Net on a CPU"), (("--half",), "half", "import --half")])
def test_it_is_told_in_which_precision_a_model_computes(
    stages: dict[str, Path], tmp_path: Path, options: tuple[str, ...], precision: str, reason: str
) -> None:
    """By the plan and by `explain`, of every stage; and networks do as they say."""
    run = tmp_path / "run"
    invoke("import", "nnunet", stages[CASCADE], "-o", run, *options)
    for stage in (run, run / "previous"):
        plan = Plan.load(stage / "plan.json")
        assert plan.network.precision == precision
        (decision,) = (one for one in explain(stage) if one.field == "network.precision")
        assert decision.value == f'"{precision}"'
        assert reason in decision.reason
        assert f'network.precision = "{precision}"' in invoke("explain", stage)
    model = Predictor.load(run, "cpu")
    assert model.previous is not None
    for member in (model, model.previous):
        for network in member.ensemble.networks:
            assert isinstance(network, NnUNet)
            seen: set[torch.dtype] = set()
            network.encoder[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.add(output.dtype))
            member.ensemble.dtype = torch.bfloat16  # as on a CPU that is faster with it
            window = torch.randn(1, len(member.plan.data.channels), *member.plan.window)
            prior = torch.zeros(1, *member.plan.window, dtype=torch.int16) if member.previous else None
            member.ensemble.runner(())(Batch(window, None, prior))
            assert seen == {torch.float32 if precision == "full" else torch.bfloat16}


def test_export_gives_back_what_was_imported(stages: dict[str, Path], tmp_path: Path) -> None:
    plan, _ = import_model(stages[CASCADE], tmp_path / "run")
    exported = export_model(tmp_path / "run", tmp_path / "out")
    assert exported == tuple(Exported(tmp_path / "out" / NAME.format(name), ("0", "1")) for name in (LOW, CASCADE))
    for (name, original), stage in zip(stages.items(), exported, strict=True):
        for fold in stage.folds:
            old, new = (read_checkpoint(root / f"fold_{fold}" / "checkpoint_final.pth") for root in (original, stage.folder))
            assert new.configuration == name
            assert all(torch.equal(old.weights[key], new.weights[key]) for key in old.weights)
    again, _ = import_model(exported[1].folder, tmp_path / "again")
    different = {"data", "reasons"}
    assert again.model_dump(exclude=different) == plan.model_dump(exclude=different)


def test_the_commands_after_an_export(stages: dict[str, Path], tmp_path: Path) -> None:
    import_model(stages[CASCADE], tmp_path / "run", folds=(1,))
    text = invoke("export", tmp_path / "run", "-o", tmp_path / "out", "--format", "nnunet").replace("'", "")
    program = "nnUNetv2_predict_from_modelfolder -m"
    assert f"Next: {program} {tmp_path / 'out' / NAME.format(LOW)} -f 1 -i IMAGES -o STAGE_1" in text
    assert f"{program} {tmp_path / 'out' / NAME.format(CASCADE)} -f 1 -i IMAGES -o OUT -prev_stage_predictions STAGE_1" in text


def test_obstacles_of_both_stages_at_once(stages: dict[str, Path], tmp_path: Path) -> None:
    import_model(stages[CASCADE], tmp_path / "run")
    for file, value in ((tmp_path / "run" / "plan.json", 0.25), (tmp_path / "run" / "previous" / "plan.json", 0.75)):
        plan = Plan.load(file)
        plan.model_copy(update={"inference": plan.inference.model_copy(update={"overlap": value})}).save(file)
    with pytest.raises(ModelError) as caught:
        export_model(tmp_path / "run", tmp_path / "out")
    assert "0.25" in str(caught.value)
    assert "0.75" in str(caught.value)
    assert not (tmp_path / "out").exists()
