"""`medseg predict` on DICOM, and `medseg dicom`, within this process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medseg.commands import console, main
from medseg.dataset import Channel, Modality
from medseg.device import Machine
from medseg.errors import ImageError
from medseg.io.dicom.settings import DicomSettings
from medseg.io.images import read_header
from medseg.models.weights import save_weights
from medseg.planning.planner import make_plans
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.workspace import Provenance, RunFolder
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (12, 20, 18)


@pytest.fixture
def cli(monkeypatch, capsys):
    """`cli(*arguments)`: exit code, stdout and stderr."""
    for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(console, "style", console.Style())

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def model(root: Path, plan: Plan) -> Path:
    """A model folder whose network is as it was initialised."""
    folder = RunFolder(root)
    plan.save(folder.plan_file)
    Provenance(
        medseg="0", python="0", torch="0", device="cpu", dataset="d", dataset_digest="0", plan_digest="0", seed=0, created="now"
    ).save(folder.provenance_file)
    save_weights(folder.fold(0) / "network_0.safetensors", find_task(plan.task)(plan).network().state_dict(), plan.trained_digest())
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset, fingerprint) -> dict[int, Path]:
    """Models of one and of two channels, by their number."""
    (plan, *_) = (
        p
        for p in make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=Machine("cpu", 2))
        if p.name == "3d"
    )
    two = (Channel(name="T2", modality=Modality.mr), Channel(name="ADC", modality=Modality.mr))
    space = plan.space.model_copy(update={"channels": plan.space.channels * 2})
    both = plan.model_copy(update={"data": plan.data.model_copy(update={"channels": two}), "space": space})
    root = tmp_path_factory.mktemp("models")
    return {1: model(root / "one", plan), 2: model(root / "two", both)}


@pytest.fixture
def study(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    where = {"StudyInstanceUID": "2.25.9901", "FrameOfReferenceUID": "2.25.9902"}
    for number, text in (("3", "localizer"), ("4", "t2_tse_tra"), ("5", "t2_tse_sag"), ("7", "ep2d_ADC")):
        array = rng.integers(0, 900, SHAPE).astype(np.int16)
        write_series(tmp_path / "visit" / text, array, grid_of(SHAPE), "MR", number, SeriesDescription=text, **where)
    return tmp_path / "visit"


def test_dry_run_shows_the_choice_and_predicts_nothing(cli, runs, study, tmp_path):
    code, out, err = cli("predict", runs[2], study, "--dry-run", "--series", "T2=4")
    told = " ".join((out + err).split())
    assert code == 0, told
    assert "serves as T2" in told
    assert "serves as ADC" in told
    assert "ok 1 case would be predicted: visit" in told
    code, out, err = cli("predict", runs[2], study, "--dry-run")
    assert code == 2
    assert "several series could serve as channel 'T2'; found series 4 't2_tse_tra'" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visit"]
    code, out, err = cli("predict", runs[2], study, "--dry-run", "--series", "T2=4", "--json")
    (case,) = json.loads(out)["cases"]
    assert [Path(path).parent.name for path in case["images"]] == ["t2_tse_tra", "ep2d_ADC"]


def test_what_is_odd_about_a_volume_is_said(cli, runs, tmp_path):
    write_series(tmp_path / "cut", np.arange(360, dtype=np.int16).reshape(1, 20, 18), grid_of((1, 20, 18)), "MR", "3")
    for ending in (("--dry-run",), ("-o", tmp_path / "out", "--device", "cpu")):
        code, out, err = cli("predict", runs[1], tmp_path / "cut", *ending)
        assert code == 0, err
        assert "): is a single slice." in " ".join((out + err).split())


def test_a_damaged_series_is_a_failed_case(cli, runs, study, tmp_path):
    """The model takes every MR series that is no localizer; of one a slice is lost."""
    series = study / "t2_tse_sag"
    sorted(series.iterdir())[5].unlink()
    out = tmp_path / "out"
    code, _, err = cli("predict", runs[1], study, "-o", out, "--device", "cpu", "--format", "labels")
    told = " ".join(err.split())
    assert code == 1, told
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["ep2d_ADC.nii.gz", "t2_tse_tra.nii.gz"]
    assert "5_004.dcm: a slice is missing" in told
    (failure,) = json.loads((out / "predictions.json").read_text())["failures"]
    assert failure["id"] == "t2_tse_sag"
    code, told, _ = cli("predict", runs[1], study, "--dry-run")
    assert code == 0
    assert "2 cases would be predicted: ep2d_ADC, t2_tse_tra" in " ".join(told.split())
    assert cli("predict", runs[1], study, "-o", tmp_path / "objects", "--device", "cpu", "--format", "seg,sr")[0] == 1
    assert len(list((tmp_path / "objects").rglob("*.dcm"))) == 4
    assert cli("predict", runs[1], series, "-o", tmp_path / "alone", "--device", "cpu")[0] == 2


def test_an_archive_that_was_cut(cli, runs, study, tmp_path):
    whole = Path(shutil.make_archive(str(tmp_path / "study"), "zip", study)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    for verb in (("predict", runs[1], tmp_path / "cut.zip", "--dry-run"), ("inspect", tmp_path / "cut.zip")):
        _, _, err = cli(*verb)
        assert "cut.zip: is not a whole zip archive. It was cut, or is something else: get it again." in err
        assert "no DICOM image" not in err


def test_dicom_under_a_wrong_suffix(cli, runs, study, tmp_path):
    file = shutil.copy(next((study / "t2_tse_tra").iterdir()), tmp_path / "slice.jpg")
    code, _, err = cli("predict", runs[1], file, "--dry-run")
    assert code == 0, err
    assert "slice.jpg" not in err
    with pytest.raises(ImageError, match=r"slice\.jpg: is DICOM under a wrong suffix. Rename it to .dcm."):
        read_header(Path(file))


def test_predict_in_formats(cli, runs, study, tmp_path):
    code, out, err = cli(
        "predict",
        runs[2],
        study,
        "-o",
        tmp_path / "out",
        "--series",
        "T2=tra",
        "--format",
        "nifti,seg",
        "--format",
        "sr",
        "--device",
        "cpu",
    )
    assert code == 0, out + err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"visit.nii.gz", "visit.seg.dcm", "visit.sr.dcm", "predictions.json"}
    code, out, err = cli("predict", runs[1], study / "t2_tse_tra", "-o", tmp_path / "one", "--device", "cpu")
    assert code == 0, out + err
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"t2_tse_tra.seg.dcm", "predictions.json"}


def test_wrong_usage(cli, runs, study, tmp_path):
    code, _, err = cli("predict", runs[1], study)
    assert (code, err) == (2, "error -o: no folder for the predictions. Name one, or look first with --dry-run.\n")
    code, _, err = cli("predict", runs[1], study, "-o", tmp_path / "out", "--format", "sge")
    assert code == 2
    formats = "coco, detections, labelmap, labels, nifti, panoptic, preview, rtstruct, seg, sr, table"
    assert err == f"error --format: unknown format; found 'sge', expected one of {formats}. Did you mean 'seg'?\n"
    code, _, err = cli("predict", "none", "dimse://PACS@127.0.0.1:9/1.2", "-o", tmp_path / "out", "--format", "bogus")
    assert (code, err) == (
        2,
        f"error --format: unknown format; found 'bogus', expected one of {formats}.\n",
    )
    code, _, err = cli("predict", runs[2], study, "-o", tmp_path / "out", "--series", "FLAIR=2")
    assert code == 2
    assert "--series: the model has no channel 'FLAIR'; found 'FLAIR=2', expected CHANNEL=SERIES with one of T2, ADC" in err
    code, _, err = cli("predict", "dimse://PACS@127.0.0.1:9/1.2", runs[1], "--dry-run")
    assert (code, err) == (2, "error RUN: the model comes first, then what to predict on; expected medseg predict RUN ADDRESS -o OUT.\n")
    assert not (tmp_path / "out").exists()


def test_rules_and_terms_as_a_file(cli, runs, study, tmp_path):
    file = runs[2] / "dicom.json"
    code, out, err = cli("dicom", runs[2])
    assert code == 0, err
    shown = DicomSettings.parse(json.loads(out), "screen")
    assert list(shown.series) == ["T2", "ADC"]
    assert list(shown.classes) == ["Anterior", "Posterior"]
    assert cli("dicom", runs[2], "-o", file)[0] == 0
    assert DicomSettings.load(file) == shown
    code, _, err = cli("dicom", runs[2], "-o", file)
    assert (code, "exists already" in err) == (2, True)
    changed = json.loads(file.read_text())
    changed["series"]["T2"]["include"] = ["t2", "sag"]
    file.write_text(json.dumps(changed))
    try:
        code, out, err = cli("predict", runs[2], study, "--dry-run", "--json")
        assert [Path(path).parent.name for path in json.loads(out)["cases"][0]["images"]] == ["t2_tse_sag", "ep2d_ADC"]
        folder = RunFolder(runs[2])
        digest = folder.digest()
        assert file in folder.files()
        folder.copy(tmp_path / "copy")
        assert (tmp_path / "copy" / "dicom.json").read_bytes() == file.read_bytes()
        changed["series"]["T3"] = {}
        file.write_text(json.dumps(changed))
        assert folder.digest() != digest
        code, _, err = cli("predict", runs[2], study, "-o", tmp_path / "out")
        assert code == 2
        assert "the model has no such channel; found 'T3', expected one of T2, ADC" in err
    finally:
        file.unlink()


def test_defaults_written_out_and_results_in_the_study_change_no_uid(cli, runs, study, tmp_path):
    def uid(out):
        code, told, err = cli("predict", runs[1], study / "t2_tse_tra", "-o", out, "--device", "cpu")
        assert code == 0, err
        return dcmread(out / "t2_tse_tra.seg.dcm").SOPInstanceUID, told

    first, _ = uid(tmp_path / "first")
    file = runs[1] / "dicom.json"
    assert cli("dicom", runs[1], "-o", file)[0] == 0
    try:
        shutil.copy(tmp_path / "first" / "t2_tse_tra.seg.dcm", study / "t2_tse_tra")
        assert uid(tmp_path / "second")[0] == first
        assert ", 1 of them from before" in " ".join(uid(tmp_path / "first")[1].split())
        changed = json.loads(file.read_text())
        changed["classes"]["Anterior"]["type"] = {"value": "10200004", "meaning": "Liver"}
        file.write_text(json.dumps(changed))
        assert uid(tmp_path / "third")[0] != first
    finally:
        file.unlink()
