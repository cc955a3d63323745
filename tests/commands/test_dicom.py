"""`medseg inspect` and `medseg convert`: what they print, write and refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseg.commands import main
from medseg.io.images import read_image, read_label, write_label
from tests.io.dicom.phantoms import PATIENT, UID_ROOT, grid_of, write_series

Cli = Callable[..., tuple[int, str, str]]
SHAPE = (5, 7, 6)
ARRAY = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
SECRETS = (*PATIENT.values(), "Zebulon", "PLANTED", UID_ROOT)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli(*arguments)`: exit code, stdout and stderr of `medseg`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    from medseg.commands import console

    monkeypatch.setattr(console, "style", console.Style())
    return run


def _study(folder: Path) -> None:
    write_series(folder / "ct", ARRAY, grid_of(SHAPE, "sagittal"), series="2", SeriesDescription="Thorax Zebulon 20200102 soft")
    files = write_series(folder / "gap", ARRAY, grid_of(SHAPE), series="3")
    files[2].unlink()
    (folder / "notes.txt").write_text("nothing " * 30)


def test_inspect_tells_what_is_usable_and_no_identifier(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _study(tmp_path)
    code, out, err = cli("inspect", tmp_path)
    assert code == 0
    assert "5x7x6" in out
    assert "voxels zyx" in out
    assert "mm zyx" in out
    assert "sagittal RIP" in out
    assert "1 file is no DICOM" in out
    assert "series 3, " in err
    assert "cannot be used: " in err
    assert "a slice is missing; found 4 slices with a gap after slice 2 (6 mm), expected 5 slices, 3 mm apart" in err
    code, text, _ = cli("inspect", tmp_path, "--json")
    found = json.loads(text)
    assert [(one["series"], one["usable"], one["files"]) for one in found["volumes"]] == [(2, True, 5), (3, False, 4)]
    told = (out + err + text).replace("Thorax Zebulon", "")
    assert not [secret for secret in SECRETS if secret in told.replace('"O"', "") and len(secret) > 1]


def test_uids_are_told_on_request(tmp_path: Path, cli: Cli) -> None:
    write_series(tmp_path, ARRAY, grid_of(SHAPE))
    _, text, _ = cli("inspect", tmp_path, "--json", "--uids")
    assert json.loads(text)["volumes"][0]["series_uid"].startswith(UID_ROOT)


def test_convert_writes_what_can_be_read(tmp_path: Path, cli: Cli) -> None:
    _study(tmp_path / "in")
    code, out, err = cli("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1
    assert "ok 1 of 2 volumes written" in out
    assert "a slice is missing" in err
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "002_ct_Thorax_soft.nii.gz"  # without the name and the date
    image = read_image(file)
    assert np.array_equal(image.array[0], ARRAY)
    assert image.grid.distance(grid_of(SHAPE, "sagittal")) < 1e-3
    assert image.array.dtype == np.int16
    before = file.read_bytes()
    code, _, err = cli("convert", tmp_path / "in", "-o", tmp_path / "out")
    assert (code, "exists already" in err) == (2, True)
    assert cli("convert", tmp_path / "in", "-o", tmp_path / "out", "--overwrite")[0] == 1
    assert file.read_bytes() == before


def test_time_series_keep_their_interval(tmp_path: Path, cli: Cli) -> None:
    for t in range(3):
        write_series(tmp_path / "in" / str(t), ARRAY + t, grid_of(SHAPE), "MR", SeriesInstanceUID="2.25.1", FrameOfReferenceUID="2.25.2",
                     SOPInstanceUID=lambda z, t=t: f"2.25.3.{t}.{z}", AcquisitionDate="20200101", AcquisitionTime=f"1200{t * 2:02d}.5")  # fmt: skip
    assert cli("convert", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    (file,) = (tmp_path / "out").iterdir()
    image: Any = nib.load(file)
    assert image.shape == (6, 7, 5, 3)
    assert image.header.get_zooms()[3] == 2.0
    assert image.header.get_xyzt_units() == ("mm", "sec")


def test_pet_is_suv_or_raw(tmp_path: Path, cli: Cli) -> None:
    tracer = Dataset()
    tracer.RadionuclideTotalDose = "1e8"
    tags = {"Units": "BQML", "DecayCorrection": "ADMIN", "PatientWeight": "50", "RadiopharmaceuticalInformationSequence": [tracer]}
    write_series(tmp_path / "in", ARRAY, grid_of(SHAPE), "PT", **tags)
    write_series(tmp_path / "lacking", ARRAY, grid_of(SHAPE), "PT", Units="BQML")
    cli("convert", tmp_path / "in", "-o", tmp_path / "suv")
    cli("convert", tmp_path / "in", "-o", tmp_path / "raw", "--pet", "raw")
    values = {name: read_image(next((tmp_path / name).iterdir())).array for name in ("suv", "raw")}
    assert np.allclose(values["suv"], ARRAY * 5e-4)
    assert np.array_equal(values["raw"][0], ARRAY)
    code, _, err = cli("convert", tmp_path / "lacking", "-o", tmp_path / "none")
    assert code == 2
    assert "PET cannot become SUV; found not stated: PatientWeight, RadionuclideTotalDose" in err
    assert not (tmp_path / "none").exists()


def test_label_map_there_and_back(tmp_path: Path, cli: Cli) -> None:
    write_series(tmp_path / "in", ARRAY, grid_of(SHAPE, "oblique"))
    assert cli("convert", tmp_path / "in", "-o", tmp_path / "nifti")[0] == 0
    labels = (np.arange(ARRAY.size).reshape(SHAPE) % 3).astype(np.uint8)
    image = next((tmp_path / "nifti").iterdir())
    write_label(tmp_path / "mask.nii.gz", labels, image)
    classes = ("--class", "a=1", "--class", "b=2")
    done_with = ("convert", tmp_path / "mask.nii.gz", "--reference", tmp_path / "in", *classes, "-o")
    done = cli(*done_with, tmp_path / "in" / "seg.dcm")
    assert done[0] == 0, done
    assert "(for `medseg convert` in a file, with --terms)" in " ".join((done[1] + done[2]).split())
    terms = {name: {"category": {"value": "1", "meaning": "X"}, "type": {"value": str(i), "meaning": "Y"}} for i, name in enumerate("ab")}
    (tmp_path / "terms.json").write_text(json.dumps({"classes": terms}))
    done = cli(*done_with, tmp_path / "coded.dcm", "--terms", tmp_path / "terms.json")
    assert done[0] == 0, done
    assert "SNOMED" not in done[1] + done[2]
    segments = dcmread(tmp_path / "coded.dcm").SegmentSequence
    assert [one.SegmentedPropertyTypeCodeSequence[0].CodeValue for one in segments] == ["0", "1"]
    code, _, _ = cli("convert", tmp_path / "in", "-o", tmp_path / "back")
    assert code == 0
    files = sorted(file.name for file in (tmp_path / "back").iterdir())
    assert files == ["001_ct_phantom_1.nii.gz", "001_ct_phantom_1_seg.json", "001_ct_phantom_1_seg.nii.gz"]
    assert np.array_equal(read_label(tmp_path / "back" / files[2]).array[0], labels)
    assert json.loads((tmp_path / "back" / files[1]).read_text()) == {"1": "a", "2": "b"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "nowhere"), "does not exist"),
        (("inspect", "text"), "holds no DICOM image; found 1 files that are no DICOM, 0 DICOM files without images"),
        (("convert", "text", "-o", "out"), "holds no DICOM image"),
        (("convert", "text", "-o", "out", "--pet", "x"), "--pet: no such unit; found 'x', expected suv or raw"),
        (("inspect", "text", "--tilt", "x"), "--tilt: no such choice; found 'x', expected resample or refuse"),
        (("convert", "text", "-o", "out", "--terms", "t.json"), "--terms: has no meaning without --reference"),
        (("convert", "text", "-o", "out", "--format", "seg"), "--format: has no meaning without --reference"),
    ],
)
def test_wrong_input(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    Path("text", "a.txt").write_text("words " * 40)
    code, _, err = cli(*arguments)
    assert code == 2
    assert said in err
    assert not Path("out").exists()
