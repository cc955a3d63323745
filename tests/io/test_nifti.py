"""NIfTI: geometry to the bit, and every damaged file refused with the right words."""

import gzip
import struct
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ImageError
from medseg.geometry import Grid
from medseg.io.images import read_header, read_image, read_label, write_label, write_maps

RNG = np.random.default_rng(0)


def save(path, data, affine=None, **fields):
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path, offset, fmt, *values):
    """Change bytes of the header as a damaged file would have them."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    struct.pack_into(fmt, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


PIXDIM, QFORM, SFORM, SROW, DIM = 76, 252, 254, 280, 40


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_and_world_are_those_of_nibabel_in_lps(tmp_path, suffix):
    affine = np.array([[0, 0, 2.5, -7], [-0.5, 0, 0, 3], [0, 1.25, 0, 11], [0, 0, 0, 1.0]])
    data = RNG.integers(0, 1000, (4, 5, 6)).astype(np.int16)
    image = read_image(save(tmp_path / f"a{suffix}", data, affine))
    assert image.array.dtype == np.int16
    assert image.array.flags.writeable
    np.testing.assert_array_equal(image.array, data.T[None])
    for x, y, z in [(0, 0, 0), (3, 4, 5), (1, 2, 3)]:
        ras = affine @ [x, y, z, 1]
        np.testing.assert_allclose(image.grid.world((z, y, x)), [-ras[0], -ras[1], ras[2]])
    assert image.grid.spacing == (2.5, 1.25, 0.5)


@pytest.mark.parametrize(
    ("shape", "expected", "channels"),
    [
        ((4, 5), (5, 4), 1),
        ((4, 5, 6), (6, 5, 4), 1),
        ((4, 5, 1), (1, 5, 4), 1),
        ((4, 5, 6, 3), (6, 5, 4), 3),
        ((4, 5, 1, 3), (1, 5, 4), 3),
        ((4, 5, 6, 1), (6, 5, 4), 1),
        ((4, 5, 1, 1, 3), (5, 4), 3),
        ((4, 5, 6, 1, 3), (6, 5, 4), 3),
    ],
)
def test_which_axes_are_space_and_which_channels(tmp_path, shape, expected, channels):
    data = RNG.normal(size=shape).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", data)
    header, image = read_header(path), read_image(path)
    assert (header.shape, header.channels) == (expected, channels)
    assert image.array.shape == (channels, *expected)
    assert image.grid == header.grid
    flat = data.reshape(*(n for n in expected[::-1]), channels)
    np.testing.assert_array_equal(image.array, flat.transpose(*range(len(expected) + 1)[::-1]))


def test_scaling_is_applied_and_whole_numbers_stay_exact(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
    patch(path, 112, "<ff", 2.0, -1024.0)
    image = read_image(path)
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array[0].T.ravel(), np.arange(24) * 2.0 - 1024)
    assert read_label(path).array.dtype == np.int16


def test_colour_voxels_are_three_channels(tmp_path):
    rgb = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["G"], rgb["B"] = 1, 2, np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), path)
    image = read_image(path)
    assert read_header(path).channels == 3
    np.testing.assert_array_equal(image.array[2], rgb["B"].T)
    assert (image.array[0] == 1).all()


def test_big_endian_and_nifti2(tmp_path):
    data = RNG.normal(size=(3, 4, 5)).astype(">f4")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    nib.save(nib.Nifti1Image(data, np.diag([1, 2, 3, 1.0]), header), tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(data.astype("<f4"), np.diag([1, 2, 3, 1.0])), tmp_path / "two.nii.gz")
    for name in ("big.nii", "two.nii.gz"):
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.array[0], data.T)
        assert image.array.dtype == np.float32
        write_label(tmp_path / f"out_{name}", (image.array[0] > 0).astype(np.int64), tmp_path / name)
        again = nib.load(tmp_path / f"out_{name}")
        np.testing.assert_array_equal(np.asarray(again.dataobj), data > 0)
        np.testing.assert_array_equal(again.affine, nib.load(tmp_path / name).affine)


def test_micrometres_become_millimetres(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), np.diag([5, 5, 50, 1.0]), xyzt_units=3)
    assert read_header(path).grid.spacing == pytest.approx((0.05, 0.005, 0.005))


angles = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=40)
@given(
    angles,
    angles,
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(0.2, 7)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
    st.sampled_from([(1, 1), (2, 0), (0, 1), (4, 2), (0, 0)]),
    st.sampled_from([(3, 4, 5), (3, 4), (3, 4, 1), (3, 4, 5, 2)]),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_a_prediction_has_the_geometry_of_its_image_to_the_bit(a, b, order, flips, spacing, origin, codes, shape, suffix):
    rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (rz @ rx)[:, order] @ np.diag(np.array(flips) * spacing)
    affine[:3, 3] = origin
    with tempfile.TemporaryDirectory() as folder:
        source, label, maps = (Path(folder) / f"{name}{suffix}" for name in ("image", "label", "maps"))
        image = nib.Nifti1Image(np.zeros(shape, np.int16), affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"made by test"
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
        nib.save(image, source)
        grid = read_header(source).grid
        values = RNG.integers(0, 3, grid.shape)
        write_label(label, values, source)
        write_maps(maps, np.stack([values, values + 0.5]), source)
        before, after, many = nib.load(source), nib.load(label), nib.load(maps)
        np.testing.assert_array_equal(before.affine, after.affine)
        if any(codes) or len(shape) > 2:  # without codes nibabel makes up the third axis of 2D images by the number of dimensions
            np.testing.assert_array_equal(before.affine, many.affine)
        assert after.shape == shape[:3]
        for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                      "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "descrip"):  # fmt: skip
            assert before.header[field].tobytes() == after.header[field].tobytes(), field
        np.testing.assert_array_equal(np.asarray(after.dataobj).T, values)
        assert after.get_data_dtype() == np.uint8
        again = read_image(maps)
        np.testing.assert_array_equal(again.array, np.stack([values, values + 0.5]).astype(np.float32))
        assert again.grid == grid
        assert read_label(label).grid == grid


def test_same_prediction_same_bytes(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.float32))
    values = RNG.integers(0, 2, (5, 4, 3))
    write_label(tmp_path / "x.nii.gz", values, path)
    write_label(tmp_path / "y.nii.gz", values, path)
    assert (tmp_path / "x.nii.gz").read_bytes() == (tmp_path / "y.nii.gz").read_bytes()
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_scaling_of_the_image_does_not_reach_the_labels(tmp_path):
    path = patch(save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16)), 112, "<ff", 3.0, 7.0)
    write_label(tmp_path / "x.nii", np.full((5, 4, 3), 2), path)
    assert (np.asarray(nib.load(tmp_path / "x.nii").dataobj) == 2).all()


def test_a_new_header_comes_from_the_grid(tmp_path):
    from medseg.io.nifti import Nifti

    grid = Grid((4, 3, 2), np.array([[0, 0.6, 1.6, 5], [0, -0.8, 1.2, -6], [3.0, 0, 0, 7], [0, 0, 0, 1]]) @ np.diag([1, 1, -1, 1.0]))
    Nifti().write(tmp_path / "a.nii.gz", np.zeros((1, 4, 3, 2), np.uint8), grid, None)
    np.testing.assert_allclose(read_header(tmp_path / "a.nii.gz").grid.affine, grid.affine, atol=1e-6)
    loaded = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(loaded.get_qform(), loaded.get_sform(), atol=1e-5)


# What is refused.


def refused(path, *words):
    with pytest.raises(ImageError) as caught:
        read_image(path)
    (problem,) = caught.value.problems
    assert str(path) in problem.where
    for word in words:
        assert word in str(problem), str(problem)
    return problem


@pytest.fixture
def volume(tmp_path):
    return save(tmp_path / "a.nii.gz", RNG.normal(size=(20, 20, 20)).astype(np.float32))


def test_truncated_gzip(volume):
    volume.write_bytes(volume.read_bytes()[:-500])
    assert refused(volume, "is truncated or damaged").fix


def test_gzip_cut_within_the_header(volume):
    volume.write_bytes(volume.read_bytes()[:60])
    refused(volume, "is truncated or damaged")


def test_damaged_gzip(volume):
    content = bytearray(volume.read_bytes())
    content[len(content) // 2] ^= 0xFF
    volume.write_bytes(bytes(content))
    refused(volume, "is truncated or damaged")


def test_wrong_checksum(volume):
    content = bytearray(volume.read_bytes())
    content[-6] ^= 0xFF
    volume.write_bytes(bytes(content))
    refused(volume, "is truncated or damaged", "CRC")


def test_truncated_plain(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((20, 20, 20), np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "is truncated or damaged", "found 31900 of 32000 bytes of voxels")


def test_a_header_that_promises_too_much_takes_no_memory(volume):
    refused(patch(volume, DIM, "<4h", 3, 30000, 30000, 30000), "is truncated or damaged", "promises")


def test_plain_nifti_named_gz(tmp_path):
    path = save(tmp_path / "b.nii", np.zeros((3, 3, 3), np.uint8)).rename(tmp_path / "b.nii.gz")
    assert "Rename it to .nii" in refused(path, "is not gzip-compressed", "an uncompressed NIfTI file", "expected gzip data").fix


def test_text_named_gz(tmp_path):
    path = tmp_path / "b.nii.gz"
    path.write_text("<html>login</html>")
    refused(path, "is not gzip-compressed", "3c 68 74 6d")


def test_gzip_named_nii(volume):
    refused(volume.rename(volume.with_suffix("")), "is not a NIfTI file", "rename it to .nii.gz")


def test_empty_file(tmp_path):
    path = tmp_path / "b.nii"
    path.write_bytes(b"")
    refused(path, "is not a NIfTI file", "an empty file")


def test_missing_file(tmp_path):
    refused(tmp_path / "none.nii.gz", "the file does not exist")


def test_half_of_a_pair(tmp_path):
    path = patch(save(tmp_path / "a.nii", np.zeros((3, 3, 3), np.uint8)), 344, "<4s", b"ni1\0")
    refused(path, "one half of a NIfTI pair")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_spacing(volume, value):
    refused(patch(volume, PIXDIM + 8, "<f", value), "spacing is impossible", "positive millimetres")


def test_unused_spacing_may_be_zero(tmp_path):
    path = patch(save(tmp_path / "a.nii", np.zeros((3, 4), np.uint8)), PIXDIM + 12, "<f", 0.0)
    assert read_image(path).grid.spacing == (1, 1)


def test_singular_affine(volume):
    refused(patch(volume, SROW, "<12f", 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0), "spacing is impossible")
    refused(patch(volume, SROW, "<12f", 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0), "affine is singular", "independent axes")


def test_nan_in_affine(volume):
    refused(patch(volume, SROW, "<f", float("nan")), "the affine holds NaN")


def test_impossible_quaternion(volume):
    patch(volume, QFORM, "<hh", 1, 0)
    refused(patch(volume, 256, "<3f", 1.0, 1.0, 1.0), "the orientation (qform) in the header is impossible")


def test_sform_counts_and_the_difference_is_a_warning(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.diag([1, 1, 1, 1.0]))
    image.set_sform(np.diag([1, 1, 1, 1.0]), 1)
    image.set_qform(np.array([[1, 0, 0, 9.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), 1)
    nib.save(image, tmp_path / "a.nii")
    header = read_header(tmp_path / "a.nii")
    assert header.grid.origin == (0, 0, 0)
    assert header.native.warnings == ("sform and qform differ by 9 mm at the far corner; the sform counts",)


def test_complex_voxels(tmp_path):
    refused(save(tmp_path / "a.nii", np.zeros((3, 3, 3), np.complex64)), "no real numbers", "complex64")


def test_time_series_of_vectors(tmp_path):
    refused(save(tmp_path / "a.nii", np.zeros((3, 3, 3, 2, 3), np.float32)), "has a shape that is no image", "3 x 3 x 3 x 2 x 3")
