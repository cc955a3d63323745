"""Every bad dataset is refused with file, found, expected and fix; all problems come at once."""

import json
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.errors import DatasetError
from medseg.io.images import read_case
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.planning import inspection
from medseg.planning.fingerprinting import make_fingerprint
from medseg.planning.verify import verify, verify_and_measure

SHAPE = (6, 7, 8)


def image(path, data, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def root(tmp_path):
    """Six sound 3D cases with two classes."""
    rng = np.random.default_rng(4)
    for i in range(6):
        image(tmp_path / f"imagesTr/c{i}.nii.gz", rng.normal(100, 10, SHAPE).astype(np.float32))
        image(tmp_path / f"labelsTr/c{i}.nii.gz", rng.integers(0, 3, SHAPE).astype(np.uint8))
    describe(tmp_path)
    return tmp_path


def describe(root, channels=1, ids=range(6), **changes):
    data = {
        "name": "toy",
        "modality": {str(c): "MRI" for c in range(channels)},
        "labels": {"0": "background", "1": "head", "2": "tail"},
        "training": [{"image": f"imagesTr/c{i}.nii.gz", "label": f"labelsTr/c{i}.nii.gz"} for i in ids],
    }
    (root / "dataset.json").write_text(json.dumps({**data, **changes}))


def problems(root, options=None, **arguments):
    with pytest.raises(DatasetError) as caught:
        verify(open_dataset(root, options), workers=1, **arguments)
    for problem in caught.value.problems:
        assert problem.where
        assert problem.found or problem.expected
    return caught.value.problems


def one(root, options=None):
    (problem,) = problems(root, options)
    return str(problem)


def label_of(root, i):
    return root / f"labelsTr/c{i}.nii.gz"


def image_of(root, i):
    return root / f"imagesTr/c{i}.nii.gz"


def values(path):
    return np.asarray(nib.load(path).dataobj).copy()


def test_a_sound_dataset(root):
    verified = verify(open_dataset(root), workers=1)
    assert verified.warnings == ()
    assert verified.occurrences == {"head": 6, "tail": 6}
    assert verified.dataset == open_dataset(root)
    assert verified.summary == "toy: 6 3D cases, 8 x 7 x 6 voxels, channels MRI; classes: head in 6, tail in 6"
    json.dumps(verified.model_dump(mode="json"))


def test_worker_processes_find_the_same(root):
    label_of(root, 2).unlink()
    image_of(root, 4).write_bytes(b"x")
    with pytest.raises(DatasetError) as caught:
        verify(open_dataset(root), workers=2)
    assert list(caught.value.problems) == list(problems(root))


def test_missing_label(root):
    label_of(root, 3).unlink()
    text = one(root)
    assert text.startswith("case 'c3': the label is missing; found no file ")
    assert "labelsTr/c3.nii.gz, expected a label for c3.nii.gz. Add the label, or" in text.replace("\\", "/")


def test_missing_image(root):
    image_of(root, 3).unlink()
    with pytest.raises(DatasetError, match=r"case 'c3', .*c3\.nii\.gz: the file does not exist"):
        verify(open_dataset(root), workers=1)


def test_label_on_another_grid(root):
    affine = np.eye(4)
    affine[2, 3] = 3.2
    image(label_of(root, 1), values(label_of(root, 1)), affine)
    text = one(root)
    assert "the label's affine differs from that of" in text
    assert "3.2 mm apart at the far corner" in text
    assert "expected at most 0.1 mm. Re-export both on one grid, or pass --resample-labels." in text
    verified = verify(open_dataset(root), workers=1, resample_labels=True)
    assert [c.id for c in verified.dataset.cases if c.resample_label] == ["c1"]
    assert len(verified.warnings) == 1
    np.testing.assert_array_equal(read_case(verified.dataset.cases[1]).label[4:], values(label_of(root, 1)).T[1:5])
    assert verify(verified.dataset, workers=1).dataset == verified.dataset


def test_channels_on_another_grid(root):
    """nnU-Net raw and all other layouts: resampled onto the first, which the label must share."""
    for i in range(6):
        image_of(root, i).rename(root / f"imagesTr/c{i}_0000.nii.gz")
        grid = np.diag([2.0, 2.0, 2.0, 1.0])
        grid[:3, 3] = 0.5
        image(
            root / f"imagesTr/c{i}_0001.nii.gz",
            np.random.default_rng(i).normal(size=(3, 3, 4)).astype(np.float32),
            grid if i else np.eye(4),
        )
    names = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "head": 1, "tail": 2}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(names))
    verified = verify(open_dataset(root), workers=1)
    (warning,) = verified.warnings
    assert str(warning).startswith("channel PET: lies on another grid than the reference channel 'CT' and is resampled onto it when a case")
    assert "found 6 of 6 cases; of the reference's field of view PET at least 10.7 % (case 'c0') is covered" in str(warning)
    assert read_case(verified.dataset.cases[0]).image.shape == (2, 8, 7, 6)
    far = np.eye(4)
    far[0, 3] = 900
    image(root / "imagesTr/c3_0001.nii.gz", np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32), far)
    text = one(root)
    assert text.startswith("case 'c3', ")
    assert "the channel lies elsewhere in the world than" in text


def test_label_of_another_shape(root):
    image(label_of(root, 1), np.ones((6, 7, 9), np.uint8))
    assert "the label's shape differs" in one(root)
    assert "found 9 x 7 x 6, expected 8 x 7 x 6" in one(root)


def test_values_of_no_class(root):
    data = values(label_of(root, 5))
    data[0, 0, :3] = (7, 9, 9)
    image(label_of(root, 5), data)
    text = one(root)
    assert "the label holds values that no class has; found 7, 9 (3 voxels), expected 0 background, 1 head, 2 tail." in text
    assert "--class" in text


def test_float_labels(root):
    image(label_of(root, 0), values(label_of(root, 0)) * np.float32(0.5))
    assert "label values are not whole numbers; found 0.5 and others" in one(root)
    image(label_of(root, 0), np.full(SHAPE, 1, np.float32))
    assert verify(open_dataset(root), workers=1).occurrences == {"head": 6, "tail": 5}


def test_empty_labels(root):
    image(label_of(root, 0), np.zeros(SHAPE, np.uint8))
    (warning,) = verify(open_dataset(root), workers=1).warnings
    assert "case 'c0'" in str(warning)
    assert "the label is empty; found only background" in str(warning)
    for i in range(6):
        image(label_of(root, i), np.zeros(SHAPE, np.uint8))
    assert "every label is empty; found no voxel of any class, expected values 1, 2" in one(root)


def test_class_that_never_occurs(root):
    describe(root, labels={"0": "background", "1": "head", "2": "tail", "3": "gill"})
    assert "class 'gill' occurs in no case; found no voxel with value 3, expected at least one case. Remove" in one(root)
    label_of(root, 0).unlink()
    assert "the label is missing" in one(root)


def test_class_of_one_case_is_a_warning(root):
    for i in range(1, 6):
        image(label_of(root, i), np.minimum(values(label_of(root, i)), 1))
    (warning,) = verify(open_dataset(root), workers=1).warnings
    assert "class 'tail' occurs in one case only" in str(warning)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(root, value):
    data = values(image_of(root, 2))
    data[1, 2, 3] = data[5, 6, 7] = value
    image(image_of(root, 2), data)
    assert "channel 'MRI' holds NaN or infinite values; found 2 voxels, the first at (x, y, z) = (1, 2, 3), expected finite" in one(root)


def test_constant_image(root):
    image(image_of(root, 2), np.full(SHAPE, 7, np.float32))
    assert "channel 'MRI' is constant; found 7 everywhere" in one(root)


def test_truncated_and_non_gzip(root):
    path = image_of(root, 2)
    path.write_bytes(path.read_bytes()[:-200])
    label_of(root, 3).write_text("not an image")
    first, second = map(str, problems(root))
    assert first.startswith("case 'c2'")
    assert "is truncated or damaged" in first
    assert second.startswith("case 'c3'")
    assert "is not gzip-compressed although its name ends in .gz" in second


def test_wrong_channel_count(root):
    image(image_of(root, 2), np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32))
    assert "wrong number of channels; found 2, expected 1 (MRI)" in one(root)


def test_channels_on_the_first_axis(root):
    rng = np.random.default_rng(0)
    for i in range(6):
        image(image_of(root, i), rng.normal(size=(*SHAPE, 2)).astype(np.float32))
    describe(root, channels=2)
    assert verify(open_dataset(root), workers=1).warnings == ()
    image(image_of(root, 0), np.moveaxis(values(image_of(root, 0)), -1, 0))
    texts = [str(p) for p in problems(root)]
    assert any("found 8, expected 2 (MRI 0, MRI 1). The channels seem to lie on another axis" in t for t in texts)


def test_mixed_channel_order(root):
    rng = np.random.default_rng(0)
    for i in range(6):
        pair = [rng.normal(-500, 300, SHAPE), rng.normal(4, 2, SHAPE)]
        image(image_of(root, i), np.stack(pair if i != 4 else pair[::-1], axis=-1).astype(np.float32))
    describe(root, modality={"0": "CT", "1": "PET"})
    text = one(root)
    assert text.startswith("case 'c4'")
    assert "the channels are in another order than in the other cases; found values of 'PET' where 'CT' should be" in text
    assert "expected CT, PET" in text


def test_similar_channels_are_never_called_swapped(root):
    rng = np.random.default_rng(0)
    for i in range(6):
        scale = rng.uniform(0.2, 5)
        image(image_of(root, i), (rng.normal(100, 10, (*SHAPE, 3)) * scale * rng.uniform(0.5, 2, 3)).astype(np.float32))
    describe(root, channels=3)
    verify(open_dataset(root), workers=1)


def test_mixed_2d_and_3d(root):
    image(image_of(root, 0), np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32))
    image(label_of(root, 0), np.ones((6, 7), np.uint8))
    text = one(root)
    assert "2D and 3D cases are mixed; found 5 cases in 3D, but 1 in 2D: c0, expected one number of dimensions" in text


def test_one_slice_volume(root):
    image(image_of(root, 0), np.random.default_rng(0).normal(size=(6, 7, 1)).astype(np.float32))
    image(label_of(root, 0), np.ones((6, 7, 1), np.uint8))
    assert "is a volume of one slice; found 1 x 7 x 6, expected several slices along every axis. Save single slices as 2D" in one(root)


def test_duplicate_case_ids(root):
    describe(root, ids=[0, 1, 2, 3, 4, 5, 1])
    assert one(root).startswith("case 'c1': the case id is not unique; found ")
    shutil.copy(image_of(root, 1), image_of(root, "Ä"))
    shutil.copy(image_of(root, 1), root / "imagesTr/C1.nii.gz")
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": "labelsTr/c1.nii.gz"} for n in ("c1", "C1", "c2")]
    describe(root, training=entries)
    assert "case 'C1': the case id is not unique" in one(root)


@pytest.mark.parametrize(
    ("offset", "packed", "words"),
    [
        (80, struct.pack("<f", 0.0), "the voxel spacing is impossible; found 0 x 1 x 1 mm, expected positive"),
        (88, struct.pack("<f", -2.0), "the voxel spacing is impossible; found 1 x 1 x -2 mm"),
        (280, struct.pack("<12f", 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0), "the affine is singular"),
        (280, struct.pack("<f", float("nan")), "the affine holds NaN or infinite values"),
    ],
)
def test_impossible_geometry(root, offset, packed, words):
    plain = image(root / "imagesTr/c9.nii", values(image_of(root, 2)))
    content = bytearray(plain.read_bytes())
    content[offset : offset + len(packed)] = packed
    plain.write_bytes(bytes(content))
    shutil.copy(label_of(root, 2), root / "labelsTr/c9.nii.gz")
    entry = {"image": "imagesTr/c9.nii", "label": "labelsTr/c9.nii.gz"}
    describe(root, training=[*({"image": f"imagesTr/c{i}.nii.gz", "label": f"labelsTr/c{i}.nii.gz"} for i in range(5)), entry])
    text = one(root)
    assert text.startswith("case 'c9'")
    assert words in text


def test_spacing_in_another_unit_is_a_warning(root):
    affine = np.diag([0.001, 0.001, 0.001, 1])
    image(image_of(root, 0), values(image_of(root, 0)), affine)
    image(label_of(root, 0), values(label_of(root, 0)), affine)
    (warning,) = verify(open_dataset(root), workers=1).warnings
    assert "the spacing is far from that of the other cases" in str(warning)


def test_same_image_twice_is_a_warning(root):
    shutil.copy(image_of(root, 0), image_of(root, 1))
    (warning,) = verify(open_dataset(root), workers=1).warnings
    assert "cases 'c0' and 'c1': two cases have the same image" in str(warning)


def test_regions_that_a_prediction_cannot_show_wholly(root):
    """`a` and `b` share the value 2, which is written as `b`."""
    classes = (LabelClass(name="a", values=(1, 2)), LabelClass(name="b", values=(2, 3)))
    dataset = open_dataset(root)
    dataset = dataset.model_copy(update={"labels": Labels(classes=classes, order=(1, 3))})
    (warning,) = [w for w in verify(dataset, workers=1).warnings if "cannot show" in w.what]
    assert str(warning) == (
        f"dataset '{dataset.name}', class 'a': a prediction cannot show all of this region, because a later one overwrites it where both "
        "are; found values 2. Its scores count these voxels as missed, however good the model is."
    )


def test_everything_at_once(root):
    label_of(root, 0).unlink()
    image(image_of(root, 1), np.full(SHAPE, 7, np.float32))
    image(label_of(root, 2), np.full(SHAPE, 9, np.uint8))
    image_of(root, 3).write_bytes(b"")
    describe(root, ids=[0, 1, 2, 3, 4, 5, 5])
    assert len(problems(root)) == 5


def test_cases_without_label_are_checked_too(root):
    image(root / "imagesTs/t.nii.gz", np.full(SHAPE, np.nan, np.float32))
    describe(root, test=["imagesTs/t.nii.gz"])
    assert "case 't'" in one(root)


def test_2d_colour(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        for folder, data in (("images", rng.integers(0, 255, (9, 8, 3))), ("labels", rng.integers(0, 4, (9, 8)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Pillow.fromarray(data.astype(np.uint8)).save(tmp_path / folder / f"p{i}.png")
    verified = verify(open_dataset(tmp_path, LayoutOptions(classes={"polyp": (1, 2, 3)})), workers=1)
    assert verified.occurrences == {"polyp": 6}
    assert "2D cases, 9 x 8 voxels, channels red, green, blue" in verified.summary
    assert "the label holds values that no class has" in str(problems(tmp_path, LayoutOptions(classes={"polyp": (1,)}))[0])
    Pillow.fromarray(rng.integers(0, 255, (9, 8)).astype(np.uint8)).save(tmp_path / "images/p0.png")
    assert "found 1, expected 3 (red, green, blue)" in one(tmp_path, LayoutOptions(classes={"polyp": (1, 2, 3)}))


def test_declared_values_out_of_range(root):
    describe(root, labels={"0": "background", "1": "head", "2": "tail", "40000": "big"})
    assert any("declared label values are out of range; found 40000, expected 0 to 32767" in str(p) for p in problems(root))


@pytest.mark.parametrize(("value", "kind"), [(40000, np.uint16), (65537, np.int32), (-40000, np.int32), (32768, np.float32)])
def test_labels_that_windows_cannot_hold(root, value, kind):
    """Declared or not: a window's int16 would turn them into other classes (65537 into 1)."""
    data = values(label_of(root, 3)).astype(kind)
    data[0, 0, 0] = value
    image(label_of(root, 3), data)
    assert f"the label holds values that no class has; found {value} (1 voxels)" in one(root)
    declared = LayoutOptions(classes={"head": (1,), "tail": (2, value)})
    assert any(f"declared label values are out of range; found {value}, expected 0 to 32767" in str(p) for p in problems(root, declared))


def test_many_values_out_of_range_are_counted(root):
    declared = LayoutOptions(classes={"head": (1, 2), "many": tuple(range(40000, 41000))})
    assert any(
        "found 40000, 40001, 40002, 40003, 40004, 40005, 40006, 40007 and 992 more, expected" in str(p) for p in problems(root, declared)
    )


def test_a_second_look_reads_no_digest_again(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("medseg.io.digests.FRESH", -(10**18))
    first = verify(open_dataset(root), workers=1, cache=cache)
    monkeypatch.setattr("medseg.io.digests.file_digest", None)
    assert verify(open_dataset(root), workers=1, cache=cache) == first


def test_what_an_ignore_value_leaves_unannotated(root):
    dataset = open_dataset(root)
    ignoring = dataset.model_copy(update={"labels": dataset.labels.model_copy(update={"ignore": 9})})
    assert verify(ignoring, workers=1).warnings == ()

    image(label_of(root, 0), np.full(SHAPE, 9, np.uint8))
    (warning,) = verify(ignoring, workers=1).warnings
    assert str(warning).startswith("case 'c0'")
    assert "nothing of the case is annotated; found the ignore value 9 everywhere" in str(warning)

    for i in range(1, 6):
        label = values(label_of(root, i))
        label[label == 0] = 9
        image(label_of(root, i), label)
    _, warning = verify(ignoring, workers=1).warnings
    assert "no voxel of background is annotated in any case" in str(warning)

    for i in range(1, 6):
        image(label_of(root, i), np.full(SHAPE, 9, np.uint8))
    with pytest.raises(DatasetError, match="nothing is annotated; found the ignore value 9 everywhere, expected values 0, 1, 2"):
        verify(ignoring, workers=1)


def test_measured_on_the_way_and_nothing_read_twice(root, tmp_path_factory, monkeypatch):
    dataset = open_dataset(root, LayoutOptions())
    apart = make_fingerprint(verify(dataset, workers=1).dataset, dataset.domain, None, workers=1)
    seen = []
    for name in ("read_image", "read_annotation"):
        read = getattr(inspection, name)
        monkeypatch.setattr(inspection, name, lambda path, *more, read=read, **named: seen.append(path) or read(path, *more, **named))
    cache = tmp_path_factory.mktemp("cache")
    verified, together = verify_and_measure(dataset, 1, cache=cache)
    assert together.to_json() == apart.to_json()
    assert verified == verify(dataset, workers=1)
    files = [file for case in dataset.cases for file in (*case.images, case.label)]
    assert seen[: len(files)] == files
    assert verify_and_measure(dataset, 2, cache=cache)[1].to_json() == apart.to_json()


def test_measured_with_labels_and_channels_on_other_grids(root):
    rng = np.random.default_rng(5)
    for i in range(6):
        image(root / f"imagesTr/c{i}.nii.gz", rng.normal(100, 10, (*SHAPE, 2)).astype(np.float32))
        image(root / f"labelsTr/c{i}.nii.gz", rng.integers(0, 3, (12, 7, 8)).astype(np.uint8), np.diag([0.5, 1, 1, 1]))
    describe(root, 2)
    dataset = open_dataset(root, LayoutOptions())
    verified, together = verify_and_measure(dataset, 1, resample_labels=True)
    assert all(case.resample_label for case in verified.dataset.cases)
    assert together.to_json() == make_fingerprint(verified.dataset, dataset.domain, None, workers=1).to_json()


def test_a_bad_case_is_not_measured_and_ends_both(root):
    (root / "labelsTr/c3.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="c3"):
        verify_and_measure(open_dataset(root, LayoutOptions()), 1)


def test_what_a_check_between_cases_raises_ends_the_work(root):
    def check():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        verify_and_measure(open_dataset(root, LayoutOptions()), 1, check=check)


def test_classes_that_fill_the_image(tmp_path):
    """Of panoptic segments void is what nobody annotated; where there is stuff, classes fill the image and no background is missed."""
    for i in range(5):
        label = np.full((20, 30), 2 << NUMBER_BITS, np.int32)
        label[2:6, 2 : 9 + i] = 1 << NUMBER_BITS | 1
        label[10:12] = 201 << NUMBER_BITS
        for folder, data in (("images", np.random.default_rng(i).integers(0, 255, label.shape).astype(np.uint8)), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / f"c{i}.tif", data.astype(np.uint32) if folder == "labels" else data)
    classes = (LabelClass(name="cell", values=(1,)), LabelClass(name="tissue", values=(2,)))
    dataset = open_dataset(tmp_path, LayoutOptions(classes={c.name: c.values for c in classes}, objects="codes"))
    panoptic = dataset.model_copy(update={"labels": Labels(classes=classes, ignore=201, things=("cell",))})
    assert verify(panoptic, workers=1).warnings == ()
    objects = dataset.model_copy(update={"labels": Labels(classes=classes, ignore=201, things=("cell", "tissue"))})
    (warning,) = verify(objects, workers=1).warnings
    assert "found classes and voxels without annotation (void) only" in str(warning)
    assert "a class of stuff" in str(warning)
    assert "201" not in str(warning)
