"""Ensembles of configurations: a 2D and a 3D model of one dataset of volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predictor import save_run, scans
from thresholding import Threshold, blobs, tiny_plan, write_nifti

from medseg import workflow
from medseg.domains.grid.settings import PriorChanges
from medseg.errors import ModelError
from medseg.inference.candidates import Candidates
from medseg.inference.inputs import find_cases
from medseg.inference.ledger import Entries
from medseg.inference.predictor import Predictor
from medseg.tasks.cleaning import Cleaning
from medseg.workspace import RunFolder

IMAGE = np.random.default_rng(0).normal(size=(1, 9, 12, 11)).astype(np.float32)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return tiny_plan(tmp_path_factory.mktemp("flat"), (12, 14, 10), "2d")


@pytest.fixture
def runs(plan3d, flat, tmp_path) -> tuple[Path, Path, Path]:
    """An ensemble of 3d and 2d, two folds each, and its members alone."""
    deep, thin = save_run(tmp_path / "deep", plan3d, (0, 1)), save_run(tmp_path / "thin", flat, (0, 1))
    both = shutil.copytree(deep, tmp_path / "both")
    shutil.copytree(thin, both / "partners" / "2d")
    return both, deep, thin


def cleaned(plan, *rules):
    return plan.model_copy(update={"target": plan.target.model_copy(update={"cleaning": rules})})


def test_an_ensemble_is_the_mean_of_its_members(runs, plan3d):
    both, deep, thin = (Predictor.load(run, "cpu") for run in runs)
    parts = [one.predict_array(IMAGE, probabilities=True) for one in (deep, thin)]
    together = both.predict_array(IMAGE, probabilities=True)
    mean = (parts[0].probabilities.astype(np.float64) + parts[1].probabilities) / 2
    assert np.array_equal(together.probabilities, mean.astype(np.float16))
    assert np.array_equal(together.labels, mean.argmax(0))
    assert not np.array_equal(together.labels, parts[0].labels)
    assert not np.array_equal(together.labels, parts[1].labels)
    alone = both.predict_array(IMAGE)
    assert alone.probabilities is None
    assert np.array_equal(alone.labels, together.labels)
    # A fold is that fold of every member.
    one, deep, thin = (Predictor.load(run, "cpu", folds=[1]) for run in runs)
    mean = sum(part.predict_array(IMAGE, probabilities=True).probabilities.astype(np.float64) for part in (deep, thin)) / 2
    assert np.array_equal(one.predict_array(IMAGE).labels, mean.argmax(0))
    shutil.rmtree(runs[0] / "partners" / "2d" / "fold_1")
    with pytest.raises(ModelError, match=r"2d.fold_1: this fold has not been trained; expected one of fold_0"):
        Predictor.load(runs[0], "cpu", folds=[1])


@pytest.mark.parametrize("root", ["low", "cascade"])
def test_a_member_that_is_also_the_stage_before_another_predicts_once(plan3d, tmp_path, monkeypatch, root):
    """What a cascade takes is that member's label map, finished by what the stage itself has learned."""
    low = save_run(tmp_path / "low", plan3d, (0,))
    labels = plan3d.data.labels
    prior = plan3d.space.model_copy(update={"prior": PriorChanges()})
    plan = plan3d.model_copy(update={"name": "cascade", "previous": plan3d.name, "space": prior})
    cascade = save_run(tmp_path / "cascade", plan, (0,))
    shutil.copytree(low, cascade / "previous")
    cleaned(plan3d, Cleaning(cls=labels.names[0], smallest=1e9)).save(cascade / "previous" / "plan.json")  # learned there, and only there
    names = (low, cascade) if root == "low" else (cascade, low)
    whole = shutil.copytree(names[0], tmp_path / "whole")
    shutil.copytree(names[1], whole / "partners" / names[1].name)
    model = Predictor.load(whole, "cpu")
    parts = [Predictor.load(one, "cpu").predict_array(IMAGE, probabilities=True) for one in names]
    expected = (parts[0].probabilities.astype(np.float64) + parts[1].probabilities) / 2
    stitched: list[str] = []
    real = Predictor._stitched

    def counted(self, *arguments, **options):
        stitched.append(self.plan.name)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "_stitched", counted)
    together = model.predict_array(IMAGE, probabilities=True)
    assert stitched == [plan3d.name, "cascade"]
    assert np.array_equal(together.probabilities, expected.astype(np.float16))


def test_what_was_learned_is_the_root_s(runs, plan3d, flat):
    """Rules of the root finish the ensemble's label map, and no others; weights do not change with them."""
    everything = Cleaning(cls="", smallest=1e9)  # removes all there is
    assert Predictor.load(runs[0], "cpu").predict_array(IMAGE).labels.any()
    cleaned(flat, everything).save(runs[0] / "partners" / "2d" / "plan.json")
    assert Predictor.load(runs[0], "cpu").predict_array(IMAGE).labels.any()
    keys = [Predictor.load(runs[0], "cpu").key]
    cleaned(plan3d, everything).save(runs[0] / "plan.json")
    assert not Predictor.load(runs[0], "cpu").predict_array(IMAGE).labels.any()
    raw = Predictor.load(runs[0], "cpu", learned=False)
    assert raw.predict_array(IMAGE).labels.any()
    keys += [Predictor.load(runs[0], "cpu").key, raw.key]
    assert keys[0] == keys[2] != keys[1]


def test_keys_hold_the_weights_of_all_members(runs):
    both, deep, thin = (Predictor.load(run, "cpu") for run in runs)
    assert len({both.key, deep.key, thin.key}) == 3
    assert both.key == deep.joined([thin]).key == thin.joined([deep]).key
    weights = RunFolder(runs[0]).partner("2d").weights()[0]
    shutil.copyfile(RunFolder(runs[2]).weights()[1], weights)
    assert Predictor.load(runs[0], "cpu").key != both.key


def test_finished_cases_of_an_ensemble_are_kept(runs, tmp_path):
    folder = scans(tmp_path / "in", 2)
    model = Predictor.load(runs[0], "cpu")
    assert model.predict(folder, tmp_path / "out", mirror=False).skipped == 0
    assert model.predict(folder, tmp_path / "out", mirror=False).skipped == 2
    assert Predictor.load(runs[1], "cpu").predict(folder, tmp_path / "out", mirror=False).skipped == 0


def test_members_are_of_one_dataset(plan3d, plan_channels, plan2d):
    model = Predictor(plan3d, (Threshold(),), torch.device("cpu"))
    with pytest.raises(ModelError) as caught:
        model.joined([Predictor(plan_channels, (Threshold(),), torch.device("cpu"))])
    assert "a member of the ensemble has other channels" in str(caught.value)
    with pytest.raises(ModelError, match="a member of the ensemble has other dimensions; found 2, expected 3, as in plan '3d'"):
        model.joined([Predictor(plan2d, (Threshold(),), torch.device("cpu"))])


def test_a_small_memory_changes_nothing(runs):
    large, small = (Predictor.load(runs[0], "cpu", memory=memory).predict_array(IMAGE, probabilities=True) for memory in (8.0, 1e-6))
    assert np.array_equal(large.labels, small.labels)
    assert np.array_equal(large.probabilities, small.probabilities)


def test_all_files_of_an_ensemble(runs):
    root = runs[0]
    for folder in (root, root / "partners" / "2d"):
        (folder / "provenance.json").write_text("{}")
    found = [file.relative_to(root).as_posix() for file in RunFolder(root).files()]
    own = ["plan.json", "provenance.json", "fold_0/network_0.safetensors", "fold_1/network_0.safetensors"]
    assert found == own + [f"partners/2d/{name}" for name in own]
    RunFolder(root).copy(root.parent / "copy")
    assert Predictor.load(root.parent / "copy", "cpu").key == Predictor.load(root, "cpu").key


def test_predict_says_what_is_averaged(runs, tmp_path):
    class Lines:
        lines: list[str] = []  # noqa: RUF012

        def say(self, message):
            self.lines.append(message)

        def track(self, items, total, what):
            yield from items

        def update(self, *arguments, **named):
            pass

    scan = write_nifti(tmp_path / "a.nii.gz", np.where(blobs((8, 9, 10)), 70, 10).astype(np.int16))
    workflow.predict(runs[0], [scan], tmp_path / "out", device="cpu", progress=Lines())
    assert Lines.lines[0] == "averaging 4 networks of 2 configurations (3d: fold_0, fold_1; 2d: fold_0, fold_1)"


def test_candidates_are_predicted_as_each_would_alone(runs, tmp_path):
    """Label maps equal those of the models alone and together, and are taken for finished by them."""
    folder = scans(tmp_path / "in", 3)
    members = {name: Predictor.load(run, "cpu") for name, run in zip(("3d", "2d"), runs[1:], strict=True)}
    cases = find_cases([folder], members["3d"].plan.data.channels)
    folders = {("3d",): tmp_path / "c" / "3d", ("2d",): tmp_path / "c" / "2d", ("2d", "3d"): tmp_path / "c" / "2d+3d"}
    seen = []
    for name, member in members.items():
        real = member.alone
        member.alone = lambda *arguments, real=real, name=name, **options: (seen.append(name), real(*arguments, **options))[1]
    with Candidates(folders, cases) as contest:
        contest.predict(members, cases[0])
    assert seen == ["3d", "2d"]  # each once
    with Candidates(folders, cases) as contest:
        entries = [contest.predict(members, files) for files in cases]
    assert seen == ["3d", "2d"] * 3
    assert all(entry.seconds > 0 for one in entries for entry in one.values())
    for candidate, run in zip((("2d", "3d"), ("3d",), ("2d",)), runs, strict=True):
        result = Predictor.load(run, "cpu").predict(folder, folders[candidate])
        assert result.skipped == 3
        assert [case.source for case in result.cases] == [one[candidate].source for one in entries]
        fresh = Predictor.load(run, "cpu").predict(folder, tmp_path / "fresh" / "+".join(candidate))
        assert [case.content for case in fresh.cases] == [case.content for case in result.cases]
    assert len(Entries.load(folders[("2d",)] / "predictions.json").cases) == 3
