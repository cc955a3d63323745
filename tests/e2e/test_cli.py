"""The command line as users call it, in processes of their own, on the shipped sample."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def medseg(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python cli.py ...` and check the exit code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_what_predicts_imports_no_format() -> None:
    """A small image takes less long to predict than the libraries of other formats to import."""
    script = "import sys, medseg.inference.predictor\nprint('HEAVY', sorted({'pydicom', 'SimpleITK', 'nibabel', 'monai', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """The help must be quick: no library that takes long to import."""
    script = (
        "import sys; sys.argv = ['medseg', '--help']\n"
        "from medseg.commands import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'monai', 'lightning', 'mlflow', 'scipy', 'SimpleITK', 'nibabel', 'pydantic', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    for verb in (
        "demo",
        "verify",
        "plan",
        "explain",
        "preprocess",
        "train",
        "pretrain",
        "predict",
        "evaluate",
        "compare",
        "select",
        "run",
        "inspect",
        "convert",
        "dicom",
        "doctor",
        "tasks",
        "schema",
    ):
        assert verb in done.stdout


def test_unknown_dataset_is_one_clear_error(tmp_path: Path) -> None:
    done = medseg("verify", tmp_path / "nowhere", code=2)
    assert "error" in done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in medseg("verify", tmp_path / "nowhere", "--debug", code=1).stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--time", "soon"), ("--set", "training.batch"), ("--set", "training.batchsize=2"), ("--set", "training.batch_size=0")],
)
def test_wrong_options(option: str, value: str, planned: Path, tmp_path: Path) -> None:
    done = medseg("train", planned / "3d.json", "-o", tmp_path / "run", option, value, code=2)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, cases: Callable[[Path, int], Path]) -> Path:
    """Plans of twelve cases, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    cases(folder / "data", 10)
    medseg("plan", folder / "data", "-o", folder / "plans", "--memory", 4)
    return folder / "plans"


def test_steps_one_by_one(planned: Path, tmp_path: Path, sample: Path) -> None:
    """plan, explain, preprocess, train, predict, evaluate; every verb's --json is JSON and every result is where it should be."""
    plan = planned / "3d.json"
    why = json.loads(medseg("explain", plan, "--json").stdout)
    assert {"window", "training.batch_size", "network.strides"} <= {d["field"] for d in why}
    assert all(d["reason"] for d in why)
    assert json.loads(medseg("preprocess", plan, "--json").stdout)["cases"] == 10
    small = ["--set", "training.steps=3", "--set", "training.batch_size=2"]
    trained = json.loads(medseg("train", plan, "-o", tmp_path / "run", "--epochs", 2, *small, "--json").stdout)
    assert trained["epochs"] == 2
    image = sample / "imagesTr" / "hippocampus_001.nii.gz"
    medseg("predict", tmp_path / "run", image, "-o", tmp_path / "out")
    written = nib.load(tmp_path / "out" / "hippocampus_001.nii.gz")
    assert np.array_equal(written.affine, nib.load(image).affine)
    assert written.shape == nib.load(image).shape
    scores = json.loads(medseg("evaluate", tmp_path / "out", sample, "-o", tmp_path / "report", "--json").stdout)
    assert list(scores["classes"]) == ["Anterior", "Posterior"]
    assert (tmp_path / "report" / "index.html").read_text().startswith("<!doctype html>")


def test_run_and_run_again(tmp_path: Path, cases: Callable[[Path, int], Path]) -> None:
    """`run` does everything; called again it finds everything done; another plan in the same folder is refused."""
    data = cases(tmp_path / "data", 10)
    arguments = ["run", data, "-o", tmp_path / "run", "--epochs", 1, "--memory", 4, "--set", "training.steps=2", "--json"]
    first = json.loads(medseg(*arguments).stdout)
    assert first["evaluation"]["classes"]
    weights = (tmp_path / "run" / "fold_0" / "network_0.safetensors").read_bytes()
    second = json.loads(medseg(*arguments).stdout)
    assert second["evaluation"] == first["evaluation"]
    assert (tmp_path / "run" / "fold_0" / "network_0.safetensors").read_bytes() == weights
    assert "another plan" in medseg(*arguments, "--set", "training.seed=9", code=2).stderr
    decisions = {one["field"]: one for one in json.loads(medseg("explain", tmp_path / "run", "--json").stdout)}
    assert "set by hand" in decisions["training.steps"]["reason"]
    done = medseg("evaluate", tmp_path / "run" / "held_out", data, "-o", tmp_path / "again", "--run", tmp_path / "run")
    assert "trained on" not in done.stdout + done.stderr
    medseg("predict", tmp_path / "run", data / "imagesTr", "-o", tmp_path / "all")
    done = medseg("evaluate", tmp_path / "all", data, "-o", tmp_path / "trained", "--run", tmp_path / "run")
    assert "the model has trained on 8 of these 10 cases" in " ".join((done.stdout + done.stderr).split())


def test_colour_images_in_nnunet_names(tmp_path: Path) -> None:
    """2D RGB, all channels in one file called `_0000`, ignore value and case ids with numbers: through `run` and `predict`."""
    rng = np.random.default_rng(0)
    for index in range(8):
        label = np.zeros((48, 64), np.uint8)
        label[8 : 20 + index, 10:40] = 1
        image = rng.integers(0, 80, (48, 64, 3)).astype(np.uint8) + 120 * label[..., None]
        for folder, name, array in (("imagesTr", f"frame_{index:04}_0000.png", image), ("labelsTr", f"frame_{index:04}.png", label)):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "d" / folder / name)
    described = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "numTraining": 8,
        "file_ending": ".png",
    }
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(described))
    arguments = ["--epochs", 1, "--memory", 2, "--set", "training.steps=2", "--json"]
    done = json.loads(medseg("run", tmp_path / "d", "-o", tmp_path / "run", *arguments).stdout)
    assert list(done["evaluation"]["classes"]) == ["polyp"]
    medseg("predict", tmp_path / "run", tmp_path / "d" / "imagesTr" / "frame_0003_0000.png", "-o", tmp_path / "out")
    with Image.open(tmp_path / "out" / "frame_0003.png") as written:
        assert written.size == (64, 48)


def test_folds_all_and_none(tmp_path: Path, cases: Callable[[Path, int], Path]) -> None:
    """Cross-validation reports on every case and is tracked as one parent; `none` works with as few as four cases."""
    data = cases(tmp_path / "data", 4)
    few = ["--epochs", 1, "--memory", 4, "--set", "training.steps=1", "--json"]
    crossed = json.loads(
        medseg("run", data, "-o", tmp_path / "all", "--folds", "all", "--configuration", "3d", "--set", "training.folds=2", *few).stdout
    )
    assert len(crossed["evaluation"]["cases"]) == 4
    assert sorted(p.name for p in (tmp_path / "all").glob("fold_*")) == ["fold_0", "fold_1"]
    database = sqlite3.connect(tmp_path / "all" / "workspace" / "mlflow.db")
    parents = database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    distinct = database.execute("select count(distinct value) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    database.close()
    assert (parents, distinct) == (2, 1)
    whole = json.loads(medseg("run", data, "-o", tmp_path / "none", "--folds", "none", *few).stdout)
    assert whole["evaluation"] is None
    assert (tmp_path / "none" / "fold_none" / "network_0.safetensors").is_file()


def test_nothing_of_others_is_overwritten(planned: Path, tmp_path: Path, cases: Callable[[Path, int], Path]) -> None:
    """A workspace in the dataset, a run of another dataset, and a plan larger than memory: refused before anything is written."""
    data = cases(tmp_path / "data", 6)
    before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    assert "among the files of the dataset" in medseg("plan", data, "-o", data, code=2).stderr
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before
    (planned.parent / "run").mkdir()
    shutil.copytree(planned, planned.parent / "run" / "workspace")
    other = json.loads((data / "dataset.json").read_text()) | {"name": "Other"}
    (data / "dataset.json").write_text(json.dumps(other))
    assert "another dataset" in medseg("run", data, "-o", planned.parent / "run", "--time", "5s", code=2).stderr
    huge = medseg("train", planned / "3d.json", "-o", tmp_path / "huge", "--set", "window=[1600, 1600, 1600]", "--epochs", 1, code=2)
    assert "more memory than the plan allows" in huge.stderr
    assert not (tmp_path / "huge").exists()
    assert "contradict" in medseg("run", data, "-o", tmp_path / "new", "--time", "5s", "--epochs", 1, code=2).stderr
    assert "'5x'" in medseg("run", data, "-o", tmp_path / "new", "--folds", "5x", code=2).stderr
    assert not (tmp_path / "new").exists()


def test_errors_are_json_too(tmp_path: Path) -> None:
    done = medseg("verify", tmp_path / "nowhere", "--json", "--quiet", code=2)
    assert "no such folder" in done.stderr
    assert json.loads(done.stdout)["error"][0]["where"].endswith("nowhere")
