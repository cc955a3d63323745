"""Identifiers that are planted in DICOM files are found nowhere but in DICOM files: not in models, logs, MLflow, reports, or on the screen."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from medseg.commands import main
from medseg.dataset import CaseFiles, LabelClass, Labels
from medseg.io.dicom.reading.reader import scan
from medseg.io.exports import Maker, Result, find_export
from medseg.io.images import read_header
from medseg.prediction import Prediction
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (12, 20, 18)
WORDS = {
    "InstitutionName": "Secretia Clinic",
    "InstitutionAddress": "Hidden Lane 99",
    "OperatorsName": "Operatrix^Olga",
    "PerformingPhysicianName": "Physicus^Paula",
    "OtherPatientIDs": "OTHERID-8822",
    "PatientAddress": "Nowhere Road 7",
    "PatientComments": "commented secretly",
    "AccessionNumber": "ACCESS-7733",
    "StudyID": "STUDYID-66",
}
KEYWORDS = (*WORDS, "PatientName", "PatientID", "PatientBirthDate", "ReferringPhysicianName")
LABELS = Labels(classes=(LabelClass(name="liver", values=(1,)),))


def study(folder: Path, seed: int, annotated: bool = True) -> None:
    """A CT series and its segmentation."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 5:14, 4 + seed % 3 : 12] = 1
    image = (mask * 100 + rng.integers(0, 50, SHAPE)).astype(np.int16)
    write_series(folder / "ct", image, grid_of(SHAPE, "axial", (2.0, 1.0, 1.0)), "CT", PatientID=f"PLANTED-{seed}4711", **WORDS)
    if annotated:
        (volume,) = scan(folder / "ct").volumes
        files = CaseFiles(id="label", images=(volume.path,), group="g")
        result = Result(files, Prediction("label", mask), read_header(volume.path).grid, LABELS, Maker("by hand", "1", "00"))
        find_export("seg").write(result, folder)


def secrets(folder: Path) -> set[str]:
    """Every identifier in the DICOM files below a folder: names by their parts, and all UIDs of instances, not those of the standard."""
    found: set[str] = set()
    for path in folder.rglob("*.dcm"):
        for element in dcmread(path, stop_before_pixels=True).iterall():
            if element.VR == "UI" and isinstance(element.value, UID) and not element.value.startswith("1.2.840.10008"):
                found.add(str(element.value))
            elif element.keyword in KEYWORDS:
                found |= {part for part in str(element.value).split("^") if part}
    return found


def told(text: bytes, words: set[str]) -> list[str]:
    lower = text.lower()
    return [word for word in words if word.lower().encode() in lower]


@pytest.fixture
def medseg(monkeypatch, capsys, caplog):
    """`medseg(*arguments)`: the exit code and everything that was shown or logged."""
    for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "test")

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        caplog.clear()
        with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert int(ended.value.code or 0) == code, out + err
        return out + err + caplog.text

    return run


def test_identifiers_stay_in_dicom(medseg, tmp_path):
    data, new, work = tmp_path / "data", tmp_path / "new", tmp_path / "work"
    for number in range(6):
        study(data / f"case{number}", number)
    study(new / "fine", 7, annotated=False)
    study(new / "truncated", 8, annotated=False)
    study(new / "gap", 9, annotated=False)
    broken = new / "truncated" / "ct" / "1_005.dcm"
    broken.write_bytes(broken.read_bytes()[:-300])
    for number in (4, 6, 7):
        (new / "gap" / "ct" / f"1_{number:03d}.dcm").unlink()
    planted = secrets(data) | secrets(new)
    assert len(planted) > 100
    assert {"Planted", "Zebulon", "PLANTED-74711", "19010203", "Secretia Clinic", "ACCESS-7733"} <= planted
    work.mkdir()
    tiny = ["--epochs", 1, "--memory", 2, "--device", "cpu", "--workers", 1, "--set", "training.steps=1", "--set", "training.folds=2"]
    heard = [
        medseg("inspect", new),
        medseg("verify", data, "--workers", 1),
        medseg("run", data, "-o", work / "run", *tiny),
        medseg("predict", work / "run", new, "-o", work / "dry", "--dry-run"),
        medseg("predict", work / "run", new, "-o", work / "out", "--format", "seg,rtstruct,sr,preview,nifti", "--device", "cpu", code=1),
        medseg("predict", work / "run", new / "gap", "-o", work / "none", "--device", "cpu", code=2),
        medseg("predict", work / "run", data, "-o", work / "labels", "--format", "labels", "--device", "cpu"),
        medseg("evaluate", work / "labels", data, "-o", work / "report", "--run", work / "run", "--workers", 1),
        medseg("dicom", work / "run"),
    ]
    for text in heard:
        assert told(text.encode(), planted) == []
    assert (work / "run" / "report" / "index.html").is_file()
    assert (work / "run" / "workspace" / "mlflow.db").is_file()
    written = [path for path in work.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert len(written) > 20
    assert {str(path): found for path in written if (found := told(path.read_bytes(), planted))} == {}
    assert [str(path) for path in work.rglob("*") if told(path.name.encode(), planted)] == []
    assert told(b"".join(path.read_bytes() for path in (work / "out").glob("*.dcm")), planted)  # the objects know their patient
    shutil.rmtree(data)
    assert told(medseg("run", data, "-o", work / "run", *tiny, code=2).encode(), planted) == []


def test_the_sieve_finds_what_it_looks_for(tmp_path):
    study(tmp_path / "s", 1)
    words = secrets(tmp_path)
    assert told(b"patient zebulon, olga", words) in (["Zebulon", "Olga"], ["Olga", "Zebulon"])
    assert not any(re.fullmatch(r"1\.2\.840\.10008\..*", word) for word in words)
