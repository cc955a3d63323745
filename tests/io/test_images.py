"""Formats other than NIfTI, labels, stacks and cases."""

import mmap
import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image as Pillow

from medseg import scratch
from medseg.dataset import CaseFiles
from medseg.errors import ImageError, ResourceError
from medseg.geometry import Grid
from medseg.io.images import (
    image_stem,
    image_suffix,
    label_suffix,
    map_suffix,
    read_case,
    read_header,
    read_image,
    read_label,
    read_stack,
    write_label,
    write_maps,
)
from medseg.scratch import Scratch

RNG = np.random.default_rng(1)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def itk(path, array, spacing=(0.7, 0.8, 2.5), origin=(-31.25, 17.1, 1 / 3), direction=OBLIQUE):
    vector = array.ndim > len(spacing)
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a.nii.gz", "a", ".nii.gz"),
        ("a.b.NII.GZ", "a.b", ".NII.GZ"),
        ("a.nii", "a", ".nii"),
        ("x_0000.nrrd", "x_0000", ".nrrd"),
        ("x.tar.gz", "x.tar", ""),
        (".png", ".png", ""),
        ("v1.2.jpeg", "v1.2", ".jpeg"),
    ],
)
def test_stem_and_suffix(tmp_path, name, stem, suffix):
    assert (image_stem(tmp_path / name), image_suffix(tmp_path / name)) == (stem, suffix)


def test_suffixes_of_what_is_written(tmp_path):
    assert label_suffix(tmp_path / "a.jpg") == ".png"
    assert label_suffix(tmp_path / "a.nii.gz") == ".nii.gz"
    assert map_suffix(tmp_path / "a.png") == ".tif"
    assert map_suffix(tmp_path / "a.mha") == ".mha"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_itk_formats_keep_geometry_to_the_bit(tmp_path, suffix):
    data = RNG.integers(-5, 900, (4, 5, 6)).astype(np.int16)
    source = itk(tmp_path / f"a{suffix}", data)
    image = read_image(source)
    np.testing.assert_array_equal(image.array[0], data)
    assert image.grid.spacing == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_allclose(image.grid.world((0, 0, 2)), np.array([-31.25, 17.1, 1 / 3]) + 1.4 * np.array([0.8, 0.6, 0]))
    values = RNG.integers(0, 4, image.grid.shape)
    write_label(tmp_path / f"label{suffix}", values, source)
    write_maps(tmp_path / f"maps{suffix}", np.stack([values] * 3) / 4, source)
    first, label, maps = (sitk.ReadImage(str(tmp_path / f"{n}{suffix}")) for n in ("a", "label", "maps"))
    for other in (label, maps):
        assert (other.GetSpacing(), other.GetOrigin(), other.GetDirection()) == (
            first.GetSpacing(),
            first.GetOrigin(),
            first.GetDirection(),
        )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), values)
    assert label.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(read_image(tmp_path / f"maps{suffix}").array, np.stack([values] * 3).astype(np.float32) / 4)
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_itk_vectors_and_4d_are_channels(tmp_path):
    data = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
    image = read_image(itk(tmp_path / "v.nrrd", data))
    np.testing.assert_array_equal(image.array, np.moveaxis(data, -1, 0))
    four = sitk.GetImageFromArray(np.moveaxis(data, -1, 0), isVector=False)
    sitk.WriteImage(four, str(tmp_path / "f.mha"))
    np.testing.assert_array_equal(read_image(tmp_path / "f.mha").array, np.moveaxis(data, -1, 0))
    assert read_header(tmp_path / "f.mha").channels == 2


def test_itk_refusals(tmp_path):
    path = itk(tmp_path / "a.mha", np.zeros((4, 5, 6), np.int16))
    whole = path.read_bytes()
    for old, new, words in [
        (rb"ElementSpacing = \S+", b"ElementSpacing = 0", ("spacing",)),
        (rb"ElementSpacing = \S+", b"ElementSpacing = -1", ("spacing",)),
        (rb"NDims = 3", b"NDims = x", ("damaged",)),
    ]:
        path.write_bytes(re.sub(old, new, whole))
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert any(word in str(caught.value).lower() for word in words), caught.value
        assert str(path) in str(caught.value)
    path.write_bytes(whole[: whole.index(b"LOCAL") + 20])
    with pytest.raises(ImageError, match="truncated, damaged"):
        read_image(path)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "none.nrrd")


def test_between_formats_the_world_stays(tmp_path):
    source = itk(tmp_path / "a.nrrd", np.zeros((4, 5, 6), np.int16))
    grid = read_header(source).grid
    values = RNG.integers(0, 2, (4, 5, 6))
    for name in ("b.nii.gz", "b.mha"):
        write_label(tmp_path / name, values, source)
        again = read_label(tmp_path / name)
        assert again.grid.distance(grid) < 1e-4
        np.testing.assert_array_equal(again.array[0], values)
    write_label(tmp_path / "c.nrrd", values, tmp_path / "b.nii.gz")
    assert read_label(tmp_path / "c.nrrd").grid.distance(grid) < 1e-4


# Photographs.


def test_photographs(tmp_path):
    rgb = RNG.integers(0, 255, (5, 7, 3)).astype(np.uint8)
    Pillow.fromarray(rgb).save(tmp_path / "rgb.png")
    Pillow.fromarray(np.dstack([rgb, np.full((5, 7), 9, np.uint8)])).save(tmp_path / "rgba.png")
    Pillow.fromarray(rgb[..., 0]).save(tmp_path / "gray.bmp")
    Pillow.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("rgb.png", "rgba.png"):
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image.array, np.moveaxis(rgb, -1, 0))
        assert image.grid == Grid.plain((5, 7))
        assert not image.native.spaced
        assert read_header(tmp_path / name).channels == 3
    np.testing.assert_array_equal(read_image(tmp_path / "gray.bmp").array, rgb[None, ..., 0])
    deep = read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(deep.array[0], rgb[..., 0].astype(np.uint16) * 257)
    assert read_header(tmp_path / "deep.png").dtype == deep.array.dtype.name == "uint16"


def test_palettes_are_indices_in_labels_and_colours_in_images(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Pillow.fromarray(indices, mode=None).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label(tmp_path / "p.png").array[0], indices)
    assert read_image(tmp_path / "p.png").array[:, 0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_is_not_stretched_in_labels(tmp_path, bits):
    import struct
    import zlib

    values = [[0, 1, 1, 0], [1, 0, 1, 1]] if bits == 1 else [[0, 1, 2, 3], [3, 2, 1, 0]]
    width = -(-4 * bits // 8)
    packed = ["".join(f"{v:0{bits}b}" for v in row).ljust(8 * width, "0") for row in values]
    rows = b"".join(b"\0" + int(row, 2).to_bytes(width, "big") for row in packed)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert read_label(tmp_path / "a.png").array[0].tolist() == values


def test_16_bit_colour_png_is_refused_because_it_would_lose_bits(tmp_path):
    Pillow.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[25] = 2
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(ImageError, match="16-bit colour PNG cannot be read without loss"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_photographs(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    noise = RNG.integers(0, 255, (64, 64)).astype(np.uint8)
    if suffix == ".tif":
        tifffile.imwrite(path, noise)
    else:
        Pillow.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "truncated or damaged" in str(caught.value)
    path.write_text("this is no image")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_label_png_holds_65535_at_most(tmp_path):
    Pillow.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "a.png")
    write_label(tmp_path / "b.png", np.array([[0, 300, 65535], [1, 2, 3]]), tmp_path / "a.png")
    assert read_label(tmp_path / "b.png").array[0].tolist() == [[0, 300, 65535], [1, 2, 3]]
    with pytest.raises(ImageError, match="expected 2D, values 0 to 65535"):
        write_label(tmp_path / "c.png", np.full((2, 3), 70000), tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"expected \.png"):
        write_label(tmp_path / "c.jpg", np.zeros((2, 3), int), tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"holds no floats"):
        write_maps(tmp_path / "c.png", np.zeros((1, 2, 3)), tmp_path / "a.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    write_maps(tmp_path / "m.tif", np.full((2, 2, 3), 0.25), tmp_path / "a.png")
    assert read_image(tmp_path / "m.tif").array.shape == (2, 2, 3)


# TIFF.


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((5, 6), "YX", (1, 5, 6)),
        ((4, 5, 6), "ZYX", (1, 4, 5, 6)),
        ((4, 2, 5, 6), "ZCYX", (2, 4, 5, 6)),
        ((2, 5, 6), "CYX", (2, 5, 6)),
    ],
)
def test_imagej_stacks_with_spacing(tmp_path, shape, axes, expected):
    data = RNG.integers(0, 60000, shape).astype(np.uint16)
    metadata = {"axes": axes, "unit": "um", **({"spacing": 2.0} if "Z" in axes else {})}
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, resolution=(4, 2), metadata=metadata)
    image = read_image(tmp_path / "a.tif")
    assert image.array.shape == expected
    wanted = np.moveaxis(data, 1, 0) if axes == "ZCYX" else data.reshape(expected)
    np.testing.assert_array_equal(image.array, wanted)
    assert image.native.spaced
    assert image.grid.spacing == pytest.approx((0.002, 0.0005, 0.00025)[-image.grid.ndim :])
    values = RNG.integers(0, 300, image.grid.shape)
    write_label(tmp_path / "b.tif", values, tmp_path / "a.tif")
    label = read_label(tmp_path / "b.tif")
    np.testing.assert_array_equal(label.array[0], values)
    assert label.grid.distance(image.grid) < 1e-6


def test_plain_tiff_has_no_spacing_and_colour_is_channels(tmp_path):
    data = RNG.integers(0, 255, (5, 6, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", data, photometric="rgb", resolution=(300, 300), resolutionunit="INCH")
    image = read_image(tmp_path / "a.tiff")
    np.testing.assert_array_equal(image.array, np.moveaxis(data, -1, 0))
    assert (image.native.spaced, image.grid.spacing) == (False, (1, 1))
    write_label(tmp_path / "b.tiff", np.ones((5, 6), int), tmp_path / "a.tiff")
    assert not read_label(tmp_path / "b.tiff").native.spaced


def pictures(folder):
    """Files of every kind that a large picture may be stored in, and the channels that they hold."""
    colour = RNG.integers(0, 255, (40, 32, 3)).astype(np.uint8)
    deep = RNG.integers(0, 60000, (40, 32)).astype(np.uint16)
    planes = np.moveaxis(colour, -1, 0)
    tifffile.imwrite(folder / "plain.tif", colour, photometric="rgb")
    tifffile.imwrite(folder / "planar.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(folder / "tiled.tif", colour, photometric="rgb", compression="deflate", tile=(16, 16))
    tifffile.imwrite(folder / "strips.tif", deep, compression="deflate", rowsperstrip=3, byteorder=">")
    tifffile.imwrite(folder / "bits.tif", deep > 30000)
    Pillow.fromarray(colour).save(folder / "colour.png")
    Pillow.fromarray(np.dstack([colour, colour[..., :1]])).save(folder / "clear.png")
    Pillow.fromarray(np.dstack([colour[..., 0], colour[..., 1]])).save(folder / "gray.png")
    Pillow.fromarray(deep).save(folder / "deep.png")
    Pillow.fromarray(deep > 30000).save(folder / "bits.png")
    Pillow.fromarray(colour).save(folder / "colour.bmp")
    return {
        **dict.fromkeys(("plain.tif", "planar.tif", "tiled.tif", "colour.png", "clear.png", "colour.bmp"), planes),
        **dict.fromkeys(("strips.tif", "deep.png"), deep[None]),
        **dict.fromkeys(("bits.tif", "bits.png"), (deep > 30000)[None].astype(np.uint8)),
        "gray.png": planes[:1],
    }


@pytest.mark.parametrize("limit", [0, 2**20])
def test_large_pictures_go_slab_by_slab_into_files(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(scratch, "CHUNK", 100)
    for name, expected in pictures(tmp_path).items():
        array = read_image(tmp_path / name, Scratch(limit)).array
        assert array.dtype == expected.dtype, name
        assert array.dtype.isnative
        np.testing.assert_array_equal(array, expected, err_msg=name)
        owner = array
        while getattr(owner, "base", None) is not None and not isinstance(owner, mmap.mmap):
            owner = owner.base
        assert isinstance(owner, mmap.mmap) == (limit == 0), name


def test_lzw_tiff(tmp_path):
    data = RNG.integers(0, 255, (5, 6)).astype(np.uint8)
    Pillow.fromarray(data).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array[0], data)


def test_time_series_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 5, 6), np.uint8), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ImageError, match="axes TZYX of 2 x 3 x 5 x 6"):
        read_image(tmp_path / "a.tif")


# Labels.


def nifti(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def test_whole_floats_become_integers_and_others_are_refused(tmp_path):
    path = nifti(tmp_path / "a.nii", np.array([0, 1, 2, 300], np.float64).reshape(2, 2, 1))
    assert read_label(path).array.dtype == np.int16
    nifti(path, np.array([0, 1, 2, 1.5], np.float32).reshape(2, 2, 1))
    with pytest.raises(
        ImageError, match=r"label values are not whole numbers; found 1\.5 and others, 1 voxels of type float32, expected integers"
    ):
        read_label(path)
    nifti(path, np.array([0, 1, 2, np.nan], np.float32).reshape(2, 2, 1))
    with pytest.raises(ImageError, match="not whole numbers; found nan"):
        read_label(path)


def test_label_colours_and_jpeg(tmp_path):
    gray = RNG.integers(0, 3, (4, 4)).astype(np.uint8)
    Pillow.fromarray(np.dstack([gray] * 3)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_label(tmp_path / "gray.png").array[0], gray)
    Pillow.fromarray(np.dstack([gray, gray, gray + 1])).save(tmp_path / "colour.png")
    with pytest.raises(ImageError, match="a label map has several channels; found 3 channels, expected 1"):
        read_label(tmp_path / "colour.png")
    Pillow.fromarray(gray).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="JPEG, which changes values"):
        read_label(tmp_path / "a.jpg")


def test_unknown_format(tmp_path):
    with pytest.raises(ImageError, match=r"is in no format that can be read; found \.txt, expected \.nii\.gz"):
        read_header(tmp_path / "a.txt")


# Stacks and cases.


def moved(x):
    affine = np.eye(4)
    affine[0, 3] = x
    return affine


def test_stack_checks_every_channel(tmp_path):
    first = nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8))
    same = nifti(tmp_path / "b.nii", np.ones((3, 4, 5), np.float32), moved(0.05))
    far = nifti(tmp_path / "c.nii", np.ones((3, 4, 5), np.uint8), moved(9.2))
    flat = nifti(tmp_path / "d.nii", np.ones((3, 4), np.uint8))
    stack = read_stack([first, same])
    assert stack.array.shape == (2, 5, 4, 3)
    assert stack.grid == read_header(first).grid
    with pytest.raises(ImageError) as caught:
        read_stack([first, far, flat, tmp_path / "none.nii"])
    one, two, three = map(str, caught.value.problems)
    assert "nothing of it overlaps; found x -11.2 to -9.2" in one
    assert "other dimensions" in two
    assert "does not exist" in three


def test_case_with_label_on_another_grid(tmp_path):
    image = nifti(tmp_path / "i.nii", RNG.normal(size=(6, 7, 8)))
    values = RNG.integers(0, 3, (6, 7, 8)).astype(np.uint8)
    label = nifti(tmp_path / "l.nii", values[::-1].copy(), np.diag([-1, 1, 1, 1.0]) @ moved(-5))
    files = CaseFiles(id="a", images=(image,), label=label, group="a")
    with pytest.raises(ImageError, match=r"the label's affine differs .* --resample-labels"):
        read_case(files)
    assert read_case(files, with_label=False).label is None
    case = read_case(files.model_copy(update={"resample_label": True}))
    np.testing.assert_array_equal(case.label, values.T)
    assert case.trail == ()


def test_resampled_label_is_that_of_itk(tmp_path):
    image = itk(tmp_path / "i.mha", np.zeros((9, 8, 7), np.float32), (1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    label = itk(tmp_path / "l.mha", RNG.integers(0, 5, (4, 5, 6)).astype(np.uint8), (1.3, 1.7, 2.2), (0.3, 0.2, 0.1))
    case = read_case(CaseFiles(id="a", images=(image,), label=label, group="a", resample_label=True))
    wanted = sitk.Resample(
        sitk.ReadImage(str(label)), sitk.ReadImage(str(image)), sitk.Transform(), sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8
    )
    inside = np.asarray(sitk.GetArrayFromImage(wanted))
    np.testing.assert_array_equal(case.label, inside)


def test_photograph_labels_need_only_the_shape(tmp_path):
    image = tmp_path / "i.tif"
    tifffile.imwrite(image, np.zeros((4, 5), np.uint8), imagej=True, resolution=(10, 10), metadata={"unit": "mm"})
    Pillow.fromarray(np.ones((4, 5), np.uint8)).save(tmp_path / "l.png")
    case = read_case(CaseFiles(id="a", images=(image,), label=tmp_path / "l.png", group="a"))
    assert case.label.sum() == 20
    assert case.grid.spacing == pytest.approx((0.1, 0.1))


def test_shape_of_a_prediction_is_checked_and_nothing_is_left(tmp_path):
    image = nifti(tmp_path / "i.nii", np.zeros((3, 4, 5)))
    with pytest.raises(ImageError, match=r"shape of its image; found 3 x 4 x 5, expected 5 x 4 x 3"):
        write_label(tmp_path / "out.nii", np.zeros((3, 4, 5), int), image)
    with pytest.raises(ImageError, match="not whole numbers; found float64"):
        write_label(tmp_path / "out.nii", np.zeros((5, 4, 3)), image)
    assert [p.name for p in tmp_path.iterdir()] == ["i.nii"]


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    image = nifti(tmp_path / "i.nii", np.zeros((3, 4, 5)))
    with pytest.raises(ResourceError, match="cannot be written"):
        write_label(image / "out.nii", np.zeros((5, 4, 3), int), image)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.tif"])
def test_large_images_lie_in_a_file(tmp_path, name):
    data = RNG.integers(-100, 100, (8, 9, 10)).astype(np.int16)
    if name.endswith(("nii", "gz")):
        nifti(tmp_path / name, data.T.copy())
    elif name.endswith("mha"):
        itk(tmp_path / name, data)
    else:
        tifffile.imwrite(tmp_path / name, data, imagej=False, metadata={"axes": "ZYX"})
    small, large = read_image(tmp_path / name), read_image(tmp_path / name, Scratch(100))
    base = large.array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.base
    assert isinstance(base, mmap.mmap)
    np.testing.assert_array_equal(small.array[0], data)
    np.testing.assert_array_equal(large.array, small.array)
    stacked = read_stack([tmp_path / name] * 2, Scratch(100))
    np.testing.assert_array_equal(stacked.array, np.stack([data, data]))
