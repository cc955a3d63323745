"""Which files make a case: by their headers first, then by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thresholding import blobs, thresholding, write_nifti

from medseg.dataset import CaseFiles, Channel, Modality
from medseg.errors import UsageError
from medseg.inference.inputs import chosen, find_cases
from tests.io.dicom.phantoms import grid_of, write_series

COLOURS = tuple(Channel(name=name, modality=Modality.rgb) for name in ("red", "green", "blue"))
GRAY = (Channel(name="gray", modality=Modality.gray),)


def picture(path: Path, bands: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (6, 5, 3) if bands == 3 else (6, 5)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def found(inputs, channels=COLOURS):
    return {case.id: [path.name for path in case.images] for case in find_cases(inputs, channels)}


def test_colours_in_one_file_need_no_siblings(tmp_path):
    """nnU-Net's colour images: one file `_0000` per case, with all channels."""
    for name in ("c0", "c1"):
        picture(tmp_path / f"{name}_0000.png")
    expected = {"c0": ["c0_0000.png"], "c1": ["c1_0000.png"]}
    assert found([tmp_path]) == expected
    assert found([tmp_path / "c0_0000.png", tmp_path / "c1_0000.png"]) == expected


@pytest.mark.parametrize("channels", [COLOURS, GRAY])
def test_numbered_frames_are_cases_of_their_own(tmp_path, channels):
    names = [f"frame_{i:04d}" for i in range(3)]  # as many as there are colours
    for name in names:
        picture(tmp_path / f"{name}.png", len(channels))
    assert found([tmp_path], channels) == {name: [f"{name}.png"] for name in names}
    for name in names:
        assert found([tmp_path / f"{name}.png"], channels) == {name: [f"{name}.png"]}


def test_channels_in_files_of_their_own(tmp_path):
    for i in range(3):
        picture(tmp_path / f"a_{i:04d}.png", 1)
    whole = {"a": ["a_0000.png", "a_0001.png", "a_0002.png"]}
    assert found([tmp_path]) == whole
    assert found([tmp_path / "a_0001.png"]) == whole
    (tmp_path / "a_0002.png").unlink()
    with pytest.raises(UsageError, match=r"a_0000\.png: has the wrong number of channel files; found a_0000\.png, a_0001\.png, expected"):
        find_cases([tmp_path / "a_0001.png"], COLOURS)


def test_one_case_in_two_formats(tmp_path):
    picture(tmp_path / "a_0000.png", 1)
    picture(tmp_path / "a_0000.bmp", 1)
    with pytest.raises(UsageError, match="two inputs have the same case id"):
        find_cases([tmp_path], GRAY)


def test_cases_of_a_dataset_are_taken_as_they_are(plan_channels, tmp_path):
    images = [write_nifti(tmp_path / "in" / name, np.where(blobs((8, 9, 10)), 70, 10).astype(np.int16)) for name in ("x.nii", "y.nii")]
    case = CaseFiles(id="patient", images=tuple(images), group="patient")
    model = thresholding(plan_channels)
    for given in (case, [case]):
        (entry,) = model.predict(given, tmp_path / "out").cases
        assert (entry.id, entry.file) == ("patient", Path("patient.nii"))
    both = np.stack([blobs((8, 9, 10)) * 60, blobs((8, 9, 10)) * 50], axis=-1).astype(np.int16)
    write_nifti(tmp_path / "colour" / "c0_0000.nii.gz", both)
    result = model.predict([tmp_path / "colour", case], tmp_path / "out")
    assert [entry.id for entry in result.cases] == ["c0", "patient"]
    assert not result.failures
    with pytest.raises(UsageError, match="two inputs have the same case id"):
        model.predict([case, case.model_copy(update={"images": case.images[::-1]})], tmp_path / "out")


def test_dicom_within_a_folder_of_other_images_is_not_left_aside_silently(tmp_path):
    write_nifti(tmp_path / "in" / "x.nii", np.where(blobs((8, 9, 10)), 70, 10).astype(np.int16))
    write_series(tmp_path / "in" / "study" / "ct", np.zeros((3, 5, 4), np.int16), grid_of((3, 5, 4)))
    found = chosen([tmp_path / "in"], GRAY)
    assert [case.id for case in found.cases()] == ["x"]
    (warning,) = found.warnings()
    assert warning == f"DICOM beside images of other formats is left aside: {tmp_path / 'in' / 'study' / 'ct'}; name it to predict on it"
    assert chosen([tmp_path / "in" / "x.nii"], GRAY).warnings() == ()
