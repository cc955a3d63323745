"""Case folders at prediction: channels by the roles they had in training, on the grid of the reference."""

from __future__ import annotations

import numpy as np
import pytest
from thresholding import thresholding
from world import centres, oblique, save

from medseg.dataset import Channel, Modality
from medseg.errors import UsageError
from medseg.geometry import Grid
from medseg.inference.inputs import find_cases, left_aside, resampled
from medseg.io.images import read_header, read_label
from medseg.progress import Silent

CT = oblique((9, 20, 21), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), 0.2)
PET = oblique((10, 8, 7), (3.0, 4.0, 4.0), (-3.0, -2.0, -1.0))


def channels(*names):
    return tuple(Channel(name=name, modality=Modality.other) for name in names)


MODEL = channels("CT", "PET")


def patient(root, case="S_9", prefix="", names=("CT", "PET"), labels=True):
    for name in names:
        grid = PET if name == "PET" else CT
        near = np.linalg.norm(centres(grid) - np.array([8.0, 8.0, 12.0]), axis=-1) < 7
        save(root / case / f"{prefix}{name}_image.nii.gz", grid, np.where(near, 90, 10).astype(np.int16))
        if labels:
            save(root / case / f"{prefix}{name}_mask.nii.gz", grid, near.astype(np.uint8))
    return root / case


def found(inputs, model=MODEL):
    return {case.id: [path.name for path in case.images] for case in find_cases(inputs, model)}


@pytest.mark.parametrize("labels", [True, False])
def test_by_role_in_the_order_of_the_model(tmp_path, labels):
    one = patient(tmp_path, labels=labels)
    patient(tmp_path, "S_10", "S_10_", labels=labels)
    assert found([one]) == {"S_9": ["CT_image.nii.gz", "PET_image.nii.gz"]}
    both = {"S_9": ["PET_image.nii.gz", "CT_image.nii.gz"], "S_10": ["S_10_PET_image.nii.gz", "S_10_CT_image.nii.gz"]}
    assert found([tmp_path], channels("pet", "ct")) == both
    assert found([tmp_path / "S_9", tmp_path / "S_10"], channels("pet", "ct")) == both


def test_channels_that_are_missing(tmp_path):
    patient(tmp_path, "a", names=("CT", "T2"))
    patient(tmp_path, "b", names=("PET",))
    patient(tmp_path, "c")
    with pytest.raises(UsageError) as caught:
        find_cases([tmp_path], MODEL)
    one, two = map(str, caught.value.problems)
    assert one == (
        f"{tmp_path / 'a'}: has no PET; found CT (CT_image.nii.gz), T2 (T2_image.nii.gz), expected one file for each of CT, PET, as the "
        "model was trained on. Add, rename or remove files, or use a model for these channels."
    )
    assert two.startswith(f"{tmp_path / 'b'}: has no CT; found PET")
    save(tmp_path / "c" / "CT.nii", CT, np.ones(CT.shape))
    with pytest.raises(UsageError, match="has several CT; found"):
        find_cases([tmp_path / "c"], MODEL)


def test_images_of_no_channel_are_left_aside_and_said(tmp_path):
    folder = patient(tmp_path, names=("CT", "PET", "T2"))
    assert found([folder], channels("CT")) == {"S_9": ["CT_image.nii.gz"]}
    cases = find_cases([tmp_path], MODEL)
    assert (
        str(left_aside(cases, MODEL))
        == "1 of 1 cases: images that the model has no channel for are left aside; found T2, expected CT, PET."
    )
    assert left_aside(find_cases([patient(tmp_path / "x")], MODEL), MODEL) is None


def test_folders_of_scans_stay_what_they_were(tmp_path):
    for name in ("ct", "x", "y_seg"):
        save(tmp_path / "scans" / f"{name}.nii.gz", CT, np.ones(CT.shape))
    assert sorted(found([tmp_path / "scans"], channels("ct"))) == ["ct", "x", "y_seg"]
    save(tmp_path / "new" / "image.nii.gz", CT, np.ones(CT.shape))
    assert sorted(found([tmp_path / "new"], channels("image"))) == ["image"]
    whole = save(tmp_path / "all" / "ct.nii.gz", CT, np.ones((2, *CT.shape)))
    assert found([whole.parent]) == {"ct": ["ct.nii.gz"]}


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def test_a_prediction_lies_on_the_grid_of_the_reference(plan_channels, tmp_path):
    data = plan_channels.data.model_copy(update={"channels": MODEL})
    model, heard = thresholding(plan_channels.model_copy(update={"data": data})), Heard()
    result = model.predict(patient(tmp_path / "in"), tmp_path / "out", progress=heard)
    assert not result.failures
    (warning,) = (line for line in heard.said if line.startswith("warning"))
    assert warning.startswith("warning: channel PET: lies on another grid than the reference channel 'CT' and is resampled onto it when")
    assert "found 1 of 1 cases; of the reference's field of view PET at least " in warning
    label = read_label(tmp_path / "out" / "S_9.nii.gz")
    assert label.grid.distance(read_header(tmp_path / "in/S_9/CT_image.nii.gz").grid) == 0
    truth = read_label(tmp_path / "in/S_9/CT_mask.nii.gz").array
    assert 2 * (label.array & truth).sum() / (label.array.sum() + truth.sum()) > 0.8
    turned = data.model_copy(update={"channels": MODEL[::-1]})
    other = thresholding(plan_channels.model_copy(update={"data": turned}))
    other.predict(tmp_path / "in", tmp_path / "out", progress=heard)
    assert read_label(tmp_path / "out" / "S_9.nii.gz").grid.shape == PET.shape


def test_a_file_is_warned_about_in_the_log(plan_channels, tmp_path, caplog):
    folder = patient(tmp_path)
    thresholding(plan_channels).predict_file([folder / "CT_image.nii.gz", folder / "PET_image.nii.gz"])
    assert "is resampled onto it when a case is read" in caplog.text


def test_what_lies_on_one_grid_is_not_warned_about(tmp_path):
    for name in ("CT", "PET"):
        save(tmp_path / "a" / f"{name}.nii.gz", Grid.plain((4, 5, 6)), np.ones((4, 5, 6)))
    cases = find_cases([tmp_path / "a"], MODEL)
    assert resampled(cases, MODEL) is None
    (tmp_path / "a" / "PET.nii.gz").write_bytes(b"")
    assert resampled(cases, MODEL) is None
