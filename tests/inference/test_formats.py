"""Predictions in several formats at once: what is written, refused, known and continued; and DICOM inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from thresholding import Threshold, blobs, thresholding, write_nifti

from medseg.errors import PlanError, UsageError
from medseg.inference.predictor import Predictor
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.settings import DicomSettings, SegmentTerms, Term
from medseg.io.images import read_image, read_label
from medseg.progress import Silent
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (8, 10, 9)
FORMATS = ("seg", "nifti")


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def series(folder: Path, seed=0, orientation="axial", **tags):
    values = np.where(blobs(SHAPE, seed), 70, 10).astype(np.int16)
    write_series(folder, values, grid_of(SHAPE, orientation, (1.0, 1.0, 1.0)), "CT", **tags)
    return values == 70


def files(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_dicom_comes_back_as_a_segmentation_of_the_same_voxels(plan3d, tmp_path, orientation):
    mask = series(tmp_path / "in" / "thorax", orientation=orientation)
    done = thresholding(plan3d).predict(tmp_path / "in", tmp_path / "out", formats=())
    assert files(tmp_path / "out") == ["predictions.json", "thorax.seg.dcm"]
    assert done.cases[0].files == {"seg": (Path("thorax.seg.dcm"),)}
    found = dcmread(tmp_path / "out" / "thorax.seg.dcm")
    source = {dcmread(path).SOPInstanceUID: dcmread(path).InstanceNumber - 1 for path in (tmp_path / "in" / "thorax").iterdir()}
    again = np.zeros(SHAPE, bool)
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        again[source[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]] = pixels
    assert np.array_equal(again, mask)


def test_the_same_labels_as_on_a_nifti_copy(plan3d, tmp_path):
    series(tmp_path / "thorax", orientation="oblique")
    (volume,) = scan(tmp_path / "thorax").volumes
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.grid.affine[:, [2, 1, 0, 3]]
    write_nifti(tmp_path / "copy.nii.gz", read_image(volume.path).array[0].T, affine)
    model = thresholding(plan3d)
    model.predict([tmp_path / "thorax", tmp_path / "copy.nii.gz"], tmp_path / "out", formats=["nifti"])
    one, other = (nib.load(tmp_path / "out" / name) for name in ("thorax.nii.gz", "copy.nii.gz"))
    assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)


def test_each_case_gets_what_suits_its_image(plan3d, tmp_path):
    series(tmp_path / "thorax")
    write_nifti(tmp_path / "plain.nii", np.where(blobs(SHAPE), 70, 10).astype(np.int16))
    thresholding(plan3d).predict([tmp_path / "thorax", tmp_path / "plain.nii"], tmp_path / "out", formats=())
    assert files(tmp_path / "out") == ["plain.nii", "predictions.json", "thorax.seg.dcm"]


def test_label_maps_are_written_unless_something_else_is_asked_for(plan3d, tmp_path):
    """What medseg itself goes on with."""
    mask = series(tmp_path / "thorax")
    done = thresholding(plan3d).predict(tmp_path / "thorax", tmp_path / "out")
    assert done.cases[0].file == Path("thorax.nii.gz")
    assert np.array_equal(read_label(tmp_path / "out" / "thorax.nii.gz").array[0], mask)


def test_all_that_cannot_be_written_is_told_at_once_and_nothing_is_predicted(plan3d, tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.where(blobs(SHAPE), 70, 10).astype(np.int16))
    with pytest.raises(UsageError) as caught:
        thresholding(plan3d).predict(tmp_path, tmp_path / "out", formats=["seg", "nifti"])
    assert [Path(problem.where).name for problem in caught.value.problems] == ["a.nii.gz", "b.nii.gz"]
    assert all(problem.what == "is no DICOM series, so no DICOM object can refer to it" for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PlanError, match="Did you mean 'nifti'"):
        thresholding(plan3d).predict(tmp_path, tmp_path / "out", formats=["nifty"])


def test_pictures_are_not_nifti(plan2d, tmp_path):
    Image.fromarray(np.where(blobs((24, 20)), 70, 10).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a\.png: a picture cannot be written as NIfTI; found an image in 2D, shape 24 x 20"):
        thresholding(plan2d).predict(tmp_path / "a.png", tmp_path / "out", formats=["nifti"])


def test_finished_cases_are_known_by_all_their_files(plan3d, tmp_path):
    series(tmp_path / "thorax")
    out, model = tmp_path / "out", thresholding(plan3d)
    assert model.predict(tmp_path / "thorax", out, formats=FORMATS).skipped == 0
    assert model.predict(tmp_path / "thorax", out, formats=FORMATS).skipped == 1
    (out / "thorax.seg.dcm").unlink()
    assert model.predict(tmp_path / "thorax", out, formats=FORMATS).skipped == 0
    (out / "thorax.seg.dcm").write_bytes(b"other")
    assert model.predict(tmp_path / "thorax", out, formats=FORMATS).skipped == 0
    assert model.predict(tmp_path / "thorax", out, formats=["nifti"]).skipped == 0
    assert model.predict(tmp_path / "thorax", out, formats=["nifti"]).skipped == 1
    entries = json.loads((out / "predictions.json").read_text())
    assert entries["cases"][0]["files"] == {"nifti": ["thorax.nii.gz"]}
    assert entries["claimed"] == ["thorax.seg.dcm"]  # of the earlier call: still medseg's
    assert model.predict(tmp_path / "thorax", out, formats=FORMATS).skipped == 0


def test_terms_that_were_chosen_make_other_objects(plan3d, tmp_path):
    series(tmp_path / "thorax")
    out, plain = tmp_path / "out", thresholding(plan3d)
    organ = SegmentTerms(category=Term(value="123037004", meaning="Anatomical Structure"), type=Term(value="10200004", meaning="Liver"))
    name = plan3d.data.labels.names[0]
    chosen = Predictor(plan3d, (Threshold(),), plain.ensemble.device, dicom=DicomSettings(classes={name: organ}))
    plain.predict(tmp_path / "thorax", out, formats=["seg"])
    before = dcmread(out / "thorax.seg.dcm")
    assert chosen.predict(tmp_path / "thorax", out, formats=["seg"]).skipped == 0
    after = dcmread(out / "thorax.seg.dcm")
    assert after.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert before.SOPInstanceUID != after.SOPInstanceUID
    assert chosen.predict(tmp_path / "thorax", out, formats=["seg"]).skipped == 1
    labels = [one.predict(tmp_path / "thorax", tmp_path / "labels", formats=["labels"]).skipped for one in (plain, chosen)]
    assert labels == [0, 1]


def test_probabilities_go_where_they_can(plan3d, tmp_path):
    series(tmp_path / "thorax")
    thresholding(plan3d).predict(tmp_path / "thorax", tmp_path / "out", formats=["seg", "nifti"], probabilities=True)
    assert files(tmp_path / "out") == [
        "predictions.json",
        "probabilities/thorax.nii.gz",
        "thorax.nii.gz",
        "thorax.probabilities.dcm",
        "thorax.seg.dcm",
    ]


def test_files_of_a_series_are_inputs(plan3d, tmp_path):
    """Also with --overwrite: a segmentation called like one of them replaces nothing."""
    series(tmp_path / "thorax")
    first = tmp_path / "thorax" / "1_000.dcm"
    first.rename(tmp_path / "thorax" / "thorax.seg.dcm")
    before = {path: path.read_bytes() for path in (tmp_path / "thorax").iterdir()}
    with pytest.raises(UsageError, match=r"overwrite their own inputs; found thorax\.seg\.dcm"):
        thresholding(plan3d).predict(tmp_path / "thorax", tmp_path / "thorax", formats=["seg"], overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "thorax").iterdir()} == before


def test_folders_archives_and_names_of_volumes(plan3d, tmp_path):
    for i, name in enumerate(("p1", "p2")):
        series(tmp_path / "in" / name / "ct", i)
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "in" / "p1")
    model = thresholding(plan3d)
    both = model.predict(tmp_path / "in", tmp_path / "a", formats=["nifti"])
    assert [case.id for case in both.cases] == ["p1", "p2"]
    zipped = model.predict(tmp_path / "archive.zip", tmp_path / "b", formats=["nifti"])
    assert [case.id for case in zipped.cases] == ["archive"]
    (volume,) = scan(tmp_path / "in" / "p2").volumes
    named = model.predict(volume.path, tmp_path / "c", formats=["nifti"])
    assert [case.id for case in named.cases] == ["p2"]
    arrays = [read_label(tmp_path / name).array for name in ("a/p1.nii.gz", "b/archive.nii.gz", "a/p2.nii.gz", "c/p2.nii.gz")]
    assert np.array_equal(arrays[0], arrays[1])
    assert np.array_equal(arrays[2], arrays[3])


def test_several_series_in_one_folder(plan3d, tmp_path):
    for number in "12":
        series(tmp_path / "thorax", int(number), series=number)
    model = thresholding(plan3d)
    assert [case.id for case in model.predict(tmp_path / "thorax", tmp_path / "out").cases] == ["thorax_s1", "thorax_s2"]
    one = model.with_series(["2"]).predict(tmp_path / "thorax", tmp_path / "one", progress=(heard := Listening()))
    assert [case.id for case in one.cases] == ["thorax_s2"]
    assert heard.said[:-1] == ["warning: 1 DICOM volume does not serve as a channel and is left aside; --dry-run tells why"]


def test_what_lies_beside_dicom(plan3d, tmp_path):
    """Pictures and label maps beside a series are not predicted on; and a folder of images with a text file is no DICOM."""
    series(tmp_path / "thorax")
    write_nifti(tmp_path / "thorax" / "mask.nii.gz", np.zeros(SHAPE, np.uint8))
    heard = Listening()
    done = thresholding(plan3d).predict(tmp_path / "thorax", tmp_path / "out", progress=heard)
    assert [case.id for case in done.cases] == ["thorax"]
    assert "warning: images of other formats beside DICOM files are left aside: mask.nii.gz; name them to predict on them" in heard.said
    (tmp_path / "plain").mkdir()
    write_nifti(tmp_path / "plain" / "a.nii.gz", np.where(blobs(SHAPE), 70, 10).astype(np.int16))
    (tmp_path / "plain" / "readme.txt").write_text("x" * 500)
    assert [case.id for case in thresholding(plan3d).predict(tmp_path / "plain", tmp_path / "other").cases] == ["a"]


def test_what_cannot_be_used_is_told(plan3d, tmp_path):
    series(tmp_path / "in" / "good")
    series(tmp_path / "in" / "broken")
    for number in (2, 3, 5):
        (tmp_path / "in" / "broken" / f"1_{number:03d}.dcm").unlink()
    heard = Listening()
    done = thresholding(plan3d).predict(tmp_path / "in", tmp_path / "out", progress=heard)
    assert [case.id for case in done.cases] == ["good"]
    assert any("slices lie unevenly" in text for text in heard.said)
    with pytest.raises(UsageError, match=r"slices lie unevenly; found distances of 1 to 3 mm"):
        thresholding(plan3d).predict(tmp_path / "in" / "broken", tmp_path / "out")
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(UsageError, match=r"text\.dcm"):
        thresholding(plan3d).predict(tmp_path / "text.dcm", tmp_path / "out")


def test_a_damaged_slice_is_a_failed_case_and_the_others_go_on(plan3d, tmp_path):
    for i, name in enumerate(("a", "b")):
        series(tmp_path / "in" / name, i)
    path = tmp_path / "in" / "a" / "1_004.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    done = thresholding(plan3d).predict(tmp_path / "in", tmp_path / "out", formats=())
    assert [case.id for case in done.cases] == ["b"]
    assert not any("Traceback" in text for failure in done.failures for text in failure.problems)


def test_channels_find_their_series_and_are_brought_to_the_reference(plan_channels, tmp_path):
    data = plan_channels.data.model_copy(
        update={
            "channels": tuple(c.model_copy(update={"name": n}) for c, n in zip(plan_channels.data.channels, ("T2", "ADC"), strict=True))
        }
    )
    plan = plan_channels.model_copy(update={"data": data})
    fine, coarse = grid_of((8, 20, 18), "axial", (2.0, 1.0, 1.0)), grid_of((8, 10, 9), "axial", (2.0, 2.0, 2.0))
    mask = blobs(fine.shape)
    where = {"StudyInstanceUID": "2.25.9901", "FrameOfReferenceUID": "2.25.9902"}
    write_series(
        tmp_path / "s" / "adc",
        np.full(coarse.shape, 9, np.int16) + blobs(coarse.shape),
        coarse,
        "MR",
        "7",
        SeriesDescription="ADC",
        **where,
    )
    write_series(tmp_path / "s" / "t2", np.where(mask, 70, 10).astype(np.int16), fine, "MR", "4", SeriesDescription="t2_tse_tra", **where)
    heard = Listening()
    done = thresholding(plan).predict(tmp_path / "s", tmp_path / "out", progress=heard)
    assert [case.id for case in done.cases] == ["s"]
    assert np.array_equal(read_label(tmp_path / "out" / "s.nii.gz").array[0], mask)
    assert any("channel ADC: lies on another grid than the reference channel 'T2'" in text for text in heard.said)
    shutil.rmtree(tmp_path / "s" / "adc")
    with pytest.raises(UsageError, match="no series serves as channel 'ADC'"):
        thresholding(plan).predict(tmp_path / "s", tmp_path / "out")
