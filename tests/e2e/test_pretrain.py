"""Pre-training and fine-tuning as users call them, on the shipped sample: the command line, within this process."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from medseg.commands import console, main
from medseg.training.past import Past
from medseg.training.train import TrainingResult

FEW = ["--epochs", 1, "--set", "training.steps=1", "--set", "training.folds=2", "--workers", 1]


def medseg(*arguments: object, code: int = 0) -> str:
    """What `medseg ARGUMENTS` prints; checks its exit code."""
    out, failed = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(out):
        patched.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        patched.setattr(console, "style", console.Style())
        for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):  # `main` sets them for its process
            patched.setenv(name, "test")
        patched.setenv("COLUMNS", "200")
        try:
            main()
        except SystemExit as end:
            failed = int(end.code or 0)
    assert failed == code, out.getvalue()
    return " ".join(out.getvalue().split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, cases: Callable[[Path, int], Path], sample: Path) -> Path:
    """A folder with `data` (six labelled cases, two without a label), `plans`, and `pre`, pre-trained on these and two further images."""
    folder = tmp_path_factory.mktemp("pretrain")
    data = cases(folder / "data", 8)
    described = json.loads((data / "dataset.json").read_text())
    *labelled, one, two = described["training"]
    for pair in (one, two):
        (data / pair["label"]).unlink()
    (data / "dataset.json").write_text(json.dumps(described | {"training": labelled, "test": [one["image"], two["image"]]}))
    pairs = json.loads((sample / "dataset.json").read_text())["training"][10:12]
    (folder / "more").mkdir()
    for pair in pairs:
        shutil.copy(sample / pair["image"], folder / "more")
    medseg("plan", data, "-o", folder / "plans", "--memory", 4, "--workers", 1)
    done = medseg("pretrain", folder / "plans" / "3d.json", folder / "more", "-o", folder / "pre", *FEW)
    assert "pre-trains on the images of 10 cases" in done
    assert "Next: medseg train" in done
    finished = TrainingResult.load(folder / "pre" / "fold_none" / "state" / "finished.json")
    assert (finished.metric, finished.score, finished.networks) == ("", None, 1)
    return folder


def test_a_pre_trained_model_predicts_nothing_but_can_be_explained(planned: Path) -> None:
    image = next((planned / "more").iterdir())
    said = medseg("predict", planned / "pre", image, "-o", planned / "out", code=2)
    assert "'masked' is no task: it learns from images alone" in said
    assert "--init PRETRAINED" in said
    assert "target.block = [8, 8, 8] 8x8x8: what one sample of the network's coarsest maps sees" in medseg("explain", planned / "pre")
    for arguments in (("train", planned / "pre" / "plan.json", *FEW), ("plan", planned / "data", "--task", "masked", "--workers", 1)):
        assert "is no task" in medseg(*arguments, "-o", planned / "wrong", code=2)
    assert "needs annotations" in medseg(
        "pretrain", planned / "plans" / "3d.json", "--objective", "semantic", "-o", planned / "wrong", code=2
    )
    assert not (planned / "wrong" / "plan.json").exists()
    clash = planned / "clash" / "hippocampus_001.nii.gz"
    clash.parent.mkdir()
    shutil.copy(image, clash)
    assert "the same case id" in medseg("pretrain", planned / "plans" / "3d.json", clash, "-o", planned / "wrong", *FEW, code=2)


def test_train_from_it_go_on_and_be_tracked(planned: Path) -> None:
    plan, run = planned / "plans" / "3d.json", planned / "run"
    done = medseg("train", plan, "-o", run, "--init", planned / "pre", *FEW)
    said = done
    assert "begins with Hippocampus 3d (masked), fold_none (one network): 99.9 % of the parameters are transferred" in said
    assert "fresh heads.segmentation.0.weight and 1 more the source has no such tensor" in said
    assert "also of the cases left out here, but not on their annotations" in said
    origin = json.loads((run / "init.json").read_text())
    assert origin["transferred"]["share"] > 0.99
    assert str(planned) not in (run / "init.json").read_text()
    database = sqlite3.connect(planned / "plans" / "mlflow.db")
    tags = dict(database.execute("select key, value from tags where key like 'medseg.init%'").fetchall())
    database.close()
    assert tags["medseg.init"] == "Hippocampus 3d (masked)"
    assert tags["medseg.init_weights"] == origin["weights_digest"]
    weights = load_file(run / "fold_0" / "network_0.safetensors")
    before = load_file(planned / "pre" / "fold_none" / "network_0.safetensors")
    shared = [name for name in weights if name in before and weights[name].ndim > 1]
    assert shared
    for name in shared:  # two steps away
        assert np.corrcoef(weights[name].flatten(), before[name].flatten())[0, 1] > 0.5
    medseg("train", plan, "-o", run, "--resume", *FEW)
    assert "once more: --init MODEL" in medseg("train", plan, "-o", run, "--fold", 1, *FEW, code=2)
    assert "began with other weights" in medseg("train", plan, "-o", run, "--fold", 1, "--init", run, *FEW, code=2)
    medseg("predict", run, next((planned / "more").iterdir()), "-o", planned / "predicted")


def test_run_with_other_classes_plans_like_the_model(planned: Path, cases: Callable[[Path, int], Path], tmp_path: Path) -> None:
    data = cases(tmp_path / "data", 6)
    arguments = ["run", data, "-o", tmp_path / "run", "--init", planned / "pre", "--class", "both=1,2", "--memory", 3, *FEW]
    assert "cases left out of training: 3 cases" in medseg(*arguments)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["reasons"]["window"].startswith("As in the model 'Hippocampus 3d' (--like)")
    assert plan["network"] == json.loads((planned / "pre" / "plan.json").read_text())["network"]


def test_wrong_models(planned: Path, tmp_path: Path) -> None:
    plan = planned / "plans" / "3d.json"
    train = ["train", plan, "-o", tmp_path / "run", *FEW, "--init"]
    assert "is not a trained model" in medseg(*train, planned / "data", code=2)
    shutil.copytree(planned / "pre", tmp_path / "damaged")
    file = tmp_path / "damaged" / "fold_none" / "network_0.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be read as a weights file" in medseg(*train, tmp_path / "damaged", code=2)
    flat = medseg("train", planned / "plans" / "2d.json", "-o", tmp_path / "run", *FEW, "--init", planned / "pre", code=2)
    assert "axes of a window: the networks are different; found 3 in '3d' of Hippocampus, expected 2 as in plan '2d'" in flat
    assert not (tmp_path / "run").exists()
    rng = np.random.default_rng(0)
    for index in range(4):
        for folder, array in (("images", rng.integers(0, 255, (40, 40))), ("labels", rng.integers(0, 2, (40, 40)))):
            (tmp_path / "flat" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "flat" / folder / f"case{index}.png")
    said = medseg("plan", tmp_path / "flat", "-o", tmp_path / "plans", "--like", planned / "pre", "--workers", 1, code=2)
    assert "dimensions of a case: this dataset cannot be planned like the model; found 3 in 'Hippocampus 3d', expected 2" in said
    said = medseg("plan", planned / "data", "-o", tmp_path / "p", "--like", planned / "pre", "--preset", "nnunet", code=2)
    assert "do not go together" in said


def test_it_reads_no_label_nor_cases_kept_for_testing_and_goes_on_with_its_images_alone(
    planned: Path, cases: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    data = cases(tmp_path / "data", 6)
    names = [Path(pair["image"]).name.split(".")[0] for pair in json.loads((data / "dataset.json").read_text())["training"]]
    one, two, apart = names[:2], names[2:4], names[4:]
    (data / "splits_final.json").write_text(json.dumps([{"train": one, "val": two}, {"train": two, "val": one}]))
    medseg("plan", data, "-o", tmp_path / "plans", "--memory", 4, "--workers", 1)
    plan = tmp_path / "plans" / "3d.json"
    for pair in json.loads((data / "dataset.json").read_text())["training"]:
        (data / pair["label"]).write_bytes(b"no image")
    pretrain = ["pretrain", plan, "-o", tmp_path / "pre", *FEW]
    said = medseg(*pretrain)
    assert "pre-trains on the images of 4 cases" in said
    assert "leaves alone 2 cases in none of the folds" in said
    (past,) = Past.load(tmp_path / "pre" / "fold_none" / "past.json").trainings
    assert (past.cases, past.annotated) == (tuple(sorted(names[:4])), False)
    (store,) = (tmp_path / "plans" / "prepared").iterdir()
    assert sorted(folder.name for folder in store.iterdir()) == sorted(names[:4])
    assert not list(store.rglob("label.npy"))
    named = data / next(pair["image"] for pair in json.loads((data / "dataset.json").read_text())["training"] if apart[0] in pair["image"])
    assert "is already trained" in medseg("pretrain", plan, named, "-o", tmp_path / "pre", "--resume", *FEW)  # named or not
    kept = (tmp_path / "pre" / "images.json").read_text()
    assert not any(name in kept for name in names)
    for more in ([], ["--resume"]):
        said = medseg("pretrain", plan, planned / "more", "-o", tmp_path / "pre", *more, *FEW, code=2)
        assert "was pre-trained on other images; found now 6 cases, digest" in said
        assert "expected 4 cases, digest" in said
    assert (tmp_path / "pre" / "images.json").read_text() == kept
    image = data / "imagesTr" / f"{names[0]}.nii.gz"
    shutil.copy(next((planned / "more").iterdir()), image)
    assert "was pre-trained on other images" in medseg(*pretrain, "--resume", code=2)
