"""Channels on different grids of one world come out right, to the value; those that cannot be placed are refused."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image as Pillow
from world import between_centres, centres, field, oblique, save

from medseg.dataset import CaseFiles, Channel, Modality, case_digest
from medseg.errors import ImageError
from medseg.geometry import Grid
from medseg.io.digests import Digests
from medseg.io.grids import Moved, coverage, field_of_view, moved_channels, resample
from medseg.io.images import read_case, read_stack
from medseg.scratch import Scratch

CT = oblique((11, 24, 23), (3.0, 1.0, 1.0), (-4.0, 7.0, 2.0), 0.2, -0.1)
PET = oblique((9, 7, 8), (4.0, 4.1, 4.3), (-3.0, 4.0, -1.0), -0.3, 0.15)
MR = oblique((12, 15, 14), (2.0, 0.8, 0.9), (2.0, 10.0, 5.0), 1.5, 0.7)
RNG = np.random.default_rng(7)


def itk(values, grid):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction[:, ::-1].ravel())
    return image


@pytest.mark.parametrize(("source", "target"), [(PET, CT), (MR, CT), (CT, PET), (CT, MR), (CT, CT)])
def test_a_function_of_the_world_stays_what_it_is(source, target):
    values, out = field(source).astype(np.float32), np.full(target.shape, np.nan, np.float32)
    resample(values, source, target, out)
    known = between_centres(source, target)
    assert known.sum() > 20
    assert np.abs(out - field(target))[known].max() < 1e-4
    np.testing.assert_allclose(coverage(source, target), inside(source, target).mean())
    np.testing.assert_array_equal(out[~inside(source, target)], values.min())


def inside(source, target):
    index = np.linalg.inv(source.affine) @ np.concatenate([centres(target), np.ones((*target.shape, 1))], axis=-1)[..., None]
    index = index[..., :3, 0]
    return np.all((index >= -0.5 - 1e-6) & (index <= np.array(source.shape) - 0.5 + 1e-6), axis=-1)


@pytest.mark.parametrize(("source", "target"), [(PET, CT), (CT, MR)])
@pytest.mark.parametrize("kind", [np.float32, np.int16, np.float64])
def test_resampled_image_is_that_of_itk(source, target, kind):
    """With the outer halves of the outer voxels, and the smallest value beyond."""
    values, out = RNG.normal(200, 90, source.shape).astype(kind), np.zeros(target.shape, np.float32)
    resample(values, source, target, out)
    floats = itk(values.astype(np.float32), source)
    wanted = sitk.Resample(floats, itk(out, target), sitk.Transform(), sitk.sitkLinear, float(values.min()), sitk.sitkFloat32)
    np.testing.assert_allclose(out, sitk.GetArrayFromImage(wanted), atol=1e-3)


def test_slabs_and_files_change_nothing(monkeypatch):
    values, whole, slabs = RNG.normal(size=PET.shape).astype(np.float32), np.zeros(CT.shape, np.float32), Scratch(0)
    resample(values, PET, CT, whole)
    monkeypatch.setattr("medseg.scratch.CHUNK", 2 * 24 * 23)
    out = slabs.zeros(CT.shape, np.float32)
    resample(slabs.keep(values), PET, CT, out)
    np.testing.assert_array_equal(out, whole)


def test_a_case_lies_on_the_grid_of_its_first_channel(tmp_path):
    ct = save(tmp_path / "ct.nii.gz", CT, np.rint(field(CT)).astype(np.int16))
    pet = save(tmp_path / "pet.nii.gz", PET, np.stack([field(PET), -field(PET)]).astype(np.float32))
    label = save(tmp_path / "seg.nii.gz", CT, (field(CT) > 60).astype(np.uint8))
    files = CaseFiles(id="a", images=(ct, pet), label=label, group="a")
    case = read_case(files)
    assert case.grid.distance(CT) < 1e-3
    assert (case.image.dtype, case.image.shape) == (np.float32, (3, *CT.shape))
    np.testing.assert_array_equal(case.image[0], np.rint(field(CT)))
    known = between_centres(PET, CT)
    assert case.field(0) is None
    assert [case.field(k).distance(PET) < 1e-3 for k in (1, 2)] == [True, True]
    seen = field_of_view(case.field(1), case.grid)
    assert seen[known].all()
    assert 0 < seen.mean() < 1
    np.testing.assert_array_equal(case.image[1][~seen], case.image[1].min())
    np.testing.assert_array_equal(field_of_view(case.field(1), case.grid, Scratch(0)), seen)
    for channel, sign in ((1, 1), (2, -1)):
        assert np.abs(case.image[channel] - sign * field(CT))[known].max() < 1e-3  # the header holds float32
    np.testing.assert_array_equal(read_case(files, scratch=Scratch(0)).image, case.image)
    np.testing.assert_array_equal(read_case(files).image, case.image)
    turned = files.model_copy(update={"images": (pet, ct), "label": None})
    assert read_case(turned).image.shape == (3, *PET.shape)
    with pytest.raises(ImageError, match=r"seg\.nii\.gz: the label's shape differs from that of .*pet\.nii\.gz"):
        read_case(turned.model_copy(update={"label": label}))


def test_another_reference_is_another_case(tmp_path):
    ct, pet = save(tmp_path / "ct.nii.gz", CT, field(CT)), save(tmp_path / "pet.nii.gz", PET, field(PET))
    files = CaseFiles(id="a", images=(ct, pet), label=None, group="a")
    turned = files.model_copy(update={"images": (pet, ct)})
    assert case_digest(files) != case_digest(turned)
    assert Digests(tmp_path / "cache").case(files) == case_digest(files) != Digests(tmp_path / "cache").case(turned)


def test_channels_that_overlap_nowhere(tmp_path):
    first = save(tmp_path / "a.nii.gz", CT, field(CT))
    far = save(tmp_path / "b.nii.gz", oblique((4, 5, 6), (1, 1, 1), (500, 0, 0)), np.ones((4, 5, 6)))
    with pytest.raises(ImageError) as caught:
        read_stack([first, far, tmp_path / "none.nii"])
    one, two = map(str, caught.value.problems)
    assert f"b.nii.gz: the channel lies elsewhere in the world than {first}: nothing of it overlaps" in one
    assert "found x 500 to 505, y 0 to 4, z 0 to 3 mm, expected a part of x " in one
    assert "Register the channels, or re-export both in one world frame." in one
    assert "none.nii: the file does not exist" in two
    with pytest.raises(ImageError) as caught:
        read_stack([tmp_path / "none.nii", first, far])
    assert len(caught.value.problems) == 1


def test_flat_images_of_different_size_are_refused(tmp_path):
    for name, shape in (("a", (5, 6)), ("b", (5, 7))):
        Pillow.fromarray(RNG.integers(0, 255, shape).astype(np.uint8)).save(tmp_path / f"{name}.png")
        nib.save(nib.Nifti1Image(RNG.normal(size=shape), np.eye(4)), tmp_path / f"{name}.nii")
    for suffix in ("png", "nii"):
        with pytest.raises(ImageError, match="the channel's shape differs"):
            read_stack([tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"])
    volume = save(tmp_path / "c.nii.gz", Grid.plain((3, 4, 5)), np.ones((3, 4, 5)))
    with pytest.raises(ImageError, match="other dimensions"):
        read_stack([volume, tmp_path / "a.nii"])


def test_the_warning_names_channels_cases_and_the_worst_coverage():
    channels = [Channel(name=name, modality=Modality.other) for name in ("CT", "MR", "PET")]
    moved = [Moved("a", (1,), 0.5), Moved("b", (1, 2), 0.2149), Moved("a", (2,), 1.0)]
    assert str(moved_channels(moved, channels, 9)) == (
        "channel MR, PET: lies on another grid than the reference channel 'CT' and is resampled onto it when a case is read; "
        "found 2 of 9 cases; of the reference's field of view MR at least 21.4 % (case 'b'), PET at least 21.4 % (case 'b') is covered. "
        "Beyond its own field of view a channel holds its smallest value."
    )
    assert moved_channels([], channels, 9) is None
