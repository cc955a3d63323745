"""Predictions lie on their input's own grid, to the last bit, and the labels are where the structure is."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from thresholding import blobs, thresholding, write_nifti

from medseg.geometry import Grid

QUICK = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


@st.composite
def affines(draw):
    """Every orientation that scanners and converters write: RAS, LPS, permuted, oblique; anisotropic, with any origin."""
    signs = draw(st.sampled_from([(1, 1, 1), (-1, -1, 1), *itertools.product((1, -1), repeat=3)]))
    order = draw(st.permutations((0, 1, 2)))
    matrix = np.eye(3)[:, list(order)] * np.array(signs)
    angles = draw(st.sampled_from([(0, 0, 0), (10, -20, 30), (44, 3, -7)]) | st.tuples(*[st.floats(-180, 180)] * 3))
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    spacing = draw(st.tuples(*[st.floats(0.3, 5)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ matrix * np.array(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@QUICK
@given(affine=affines(), shape=st.tuples(*[st.integers(2, 17)] * 3), crop=st.booleans(), sform=st.integers(0, 4), qform=st.integers(0, 4))
def test_volumes_keep_affine_and_header(plan3d, affine, shape, crop, sform, qform):
    mask = blobs(shape)
    image = nib.Nifti1Image(np.where(mask, 70, 10).astype(np.int16), affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units("mm", "sec")
    plan = plan3d.edited({"space.crop": str(crop).lower()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        nib.save(image, path)
        result = thresholding(plan).predict(path, Path(folder) / "out", mirror=False)
        assert not result.failures
        source, output = nib.load(path), nib.load(Path(folder) / "out" / "scan.nii.gz")
        assert output.shape == source.shape
        assert output.affine.tobytes() == source.affine.tobytes()
        for field in GEOMETRY:
            assert output.header[field].tobytes() == source.header[field].tobytes(), field
        assert np.array_equal(np.asarray(output.dataobj), mask)


@QUICK
@given(
    spacing=st.tuples(*[st.floats(0.1, 3)] * 2),
    flips=st.tuples(*[st.sampled_from((1, -1))] * 2),
    shape=st.tuples(*[st.integers(3, 40)] * 2),
)
def test_flat_images_keep_affine(plan2d, spacing, flips, shape):
    mask = blobs(shape)
    affine = np.diag([spacing[0] * flips[0], spacing[1] * flips[1], 1.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        path = write_nifti(Path(folder) / "photo.nii", np.where(mask, 70, 10).astype(np.float32), affine)
        assert not thresholding(plan2d).predict(path, Path(folder) / "out").failures
        source, output = nib.load(path), nib.load(Path(folder) / "out" / "photo.nii")
        assert output.shape == source.shape == shape
        assert output.affine.tobytes() == source.affine.tobytes()
        assert np.array_equal(np.asarray(output.dataobj), mask)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_files_keep_geometry(plan3d, tmp_path, suffix):
    mask = blobs((9, 8, 13))
    image = sitk.GetImageFromArray(np.where(mask, 70, 10).astype(np.int16))
    image.SetSpacing((0.7, 0.7, 3.3))
    image.SetOrigin((-11.25, 4.5, 1e3))
    image.SetDirection(Rotation.from_euler("xyz", (10, 20, -30), degrees=True).as_matrix().ravel().tolist())
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path))
    assert not thresholding(plan3d).predict(path, tmp_path / "out").failures
    source, output = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out" / path.name))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        # NRRD stores spacing times direction, which ITK splits again: the last bit of a double is not ours to keep there.
        assert np.allclose(getattr(output, get)(), getattr(source, get)(), rtol=0 if suffix == ".mha" else 1e-15, atol=0)
    assert np.array_equal(sitk.GetArrayFromImage(output), mask)


@pytest.mark.parametrize(("name", "written"), [("a.png", "a.png"), ("a.jpg", "a.png"), ("a.tif", "a.tif")])
def test_photographs(plan2d, tmp_path, name, written):
    mask = np.zeros((40, 32), bool)
    mask[8:24, 8:16] = True  # whole 8 x 8 blocks: JPEG keeps them
    Image.fromarray(np.where(mask, 200, 20).astype(np.uint8)).save(tmp_path / name)
    result = thresholding(plan2d).predict(tmp_path / name, tmp_path / "out", probabilities=True)
    assert not result.failures
    assert result.cases[0].file == Path(written)
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / written)), mask)
    assert (tmp_path / "out" / "probabilities" / "a.tif").is_file()


def test_resampling_and_back(plan3d, tmp_path):
    """On another spacing the rim may move by a voxel, the structure may not."""
    mask = np.zeros((20, 24, 16), bool)
    mask[5:15, 6:18, 4:12] = True
    path = write_nifti(tmp_path / "scan.nii.gz", np.where(mask, 70, 10).astype(np.int16), np.diag([-1.0, 1.5, 0.8, 1.0]))
    plan = plan3d.edited({"space.spacing": "[1.2, 1.2, 1.2]"})
    thresholding(plan).predict(path, tmp_path / "out")
    found = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj) > 0
    assert found[mask].all()
    assert not found[~ndimage.binary_dilation(mask, np.ones((3, 3, 3)))].any()


def test_arrays(plan3d):
    mask = blobs((7, 9, 11))
    affine = np.diag([0.5, -2.0, 1.0, 1.0])
    prediction = thresholding(plan3d).predict_array(np.where(mask, 70, 10)[None], Grid(mask.shape, affine), probabilities=True)
    assert np.array_equal(prediction.labels, mask)
    assert prediction.probabilities.shape == (2, *mask.shape)
    assert np.allclose(prediction.probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
    assert np.array_equal(prediction.probabilities[1] > 0.5, mask)


def test_outside_of_the_crop_is_background(plan3d):
    image = np.zeros((1, 16, 16, 16), np.float32)
    image[0, 4:9, 5:12, 6:10] = 10
    image[0, 5:7, 6:9, 7:9] = 90
    prediction = thresholding(plan3d.edited({"space.crop": "true"})).predict_array(image, probabilities=True)
    assert np.array_equal(prediction.labels, image[0] > 50)
    assert np.array_equal(prediction.probabilities[:, 0, 0, 0], [1, 0])
