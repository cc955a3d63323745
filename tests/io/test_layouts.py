"""Datasets on disk: what is detected, what is read, what is refused."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from medseg.dataset import LabelClass, Modality, region_problems
from medseg.errors import DatasetError, UsageError
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.io.layouts.base import modality_of
from medseg.io.layouts.files import channel_sets

SHIPPED = Path(__file__).parents[2] / "datasets" / "hippocampus"
RNG = np.random.default_rng(2)


def volume(path, channels=1, label=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = RNG.integers(0, 3, (5, 6, 7)) if label else RNG.normal(size=(5, 6, 7, channels) if channels > 1 else (5, 6, 7))
    nib.save(nib.Nifti1Image(data.astype(np.uint8 if label else np.float32), np.eye(4)), path)
    return path


def picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


RGB = RNG.integers(0, 255, (6, 6, 3))
MASK = np.arange(36).reshape(6, 6) // 18


def describe(root, **data):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(data))


def refusal(root, options=None):
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, options)
    return str(caught.value)


# Medical Segmentation Decathlon.


def test_the_shipped_dataset():
    dataset = open_dataset(SHIPPED)
    assert (dataset.name, dataset.layout, dataset.ndim, len(dataset.cases)) == ("Hippocampus", "msd", 3, 24)
    assert [(c.name, c.modality) for c in dataset.channels] == [("MRI", Modality.mr)]
    assert [(c.name, c.values) for c in dataset.labels.classes] == [("Anterior", (1,)), ("Posterior", (2,))]
    assert dataset.labels.exclusive
    assert dataset.licence == "CC-BY-SA 4.0"
    assert all(c.images[0].is_file() and c.label.is_file() and c.group == c.id for c in dataset.cases)
    assert open_dataset(SHIPPED / "dataset.json") == dataset


def decathlon(root, **changes):
    for i in (1, 2):
        volume(root / f"imagesTr/c{i}.nii.gz", channels=2)
        volume(root / f"labelsTr/c{i}.nii.gz", label=True)
    volume(root / "imagesTs/t.nii.gz", channels=2)
    data = {
        "name": "Two",
        "modality": {"0": "FLAIR", "1": "CT"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in (1, 2)]
        + [{"image": "./imagesTr/._c1.nii.gz", "label": "./labelsTr/._c1.nii.gz"}],
        "test": ["./imagesTs/t.nii.gz"],
    }
    describe(root, **{**data, **changes})
    return root


def test_decathlon_channels_tests_and_mac_files(tmp_path):
    dataset = open_dataset(decathlon(tmp_path))
    assert [c.modality for c in dataset.channels] == [Modality.mr, Modality.ct]
    assert [c.id for c in dataset.cases] == ["c1", "c2"]
    assert [(c.id, c.label) for c in dataset.unlabelled] == [("t", None)]
    forced = open_dataset(tmp_path, LayoutOptions(modality=Modality.gray, classes={"any": (1, 2)}))
    assert {c.modality for c in forced.channels} == {Modality.gray}
    assert (forced.labels.classes[0].values, forced.labels.written) == ((1, 2), (1,))


def test_decathlon_with_one_file_per_channel(tmp_path):
    for c in range(2):
        volume(tmp_path / f"imagesTr/a_{c:04d}.nii.gz")
    volume(tmp_path / "labelsTr/a.nii.gz", label=True)
    describe(
        tmp_path,
        modality={"0": "T1", "1": "T2"},
        labels={"1": "x"},
        training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    )
    (case,) = open_dataset(tmp_path).cases
    assert [p.name for p in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_decathlon_reports_all_problems_of_its_description(tmp_path):
    text = refusal(decathlon(tmp_path, modality={"0": "CT", "2": "MR"}, labels={"zero": "background"}, training=[{"image": "a.nii.gz"}, 7]))
    assert text.startswith("4 problems:")
    for words in (
        "the channels of 'modality' are not numbered one by one; found 0, 2, expected 0, 1, ...",
        "a key of 'labels' is not a label value; found 'zero'",
        "training[0]: an entry names no image and label",
        "training[1]",
    ):
        assert words in text
    assert "'labels' declares only background" in refusal(decathlon(tmp_path, labels={"0": "background"}))
    assert "'modality' is missing or of the wrong type; found list, expected an object" in refusal(decathlon(tmp_path, modality=["CT"]))
    assert "'training' is empty" in refusal(decathlon(tmp_path, training=[]))
    assert "--labels has no meaning here" in refusal(decathlon(tmp_path), LayoutOptions(labels="masks"))


# nnU-Net raw.


def nnunet(root, **changes):
    for name in ("c1", "c2"):
        for c in range(2):
            volume(root / f"imagesTr/{name}_{c:04d}.nii.gz")
        volume(root / f"labelsTr/{name}.nii.gz", label=True)
    volume(root / "imagesTs/t_0000.nii.gz")
    volume(root / "imagesTs/t_0001.nii.gz")
    data = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    describe(root, **{**data, **changes})
    return root


def test_nnunet_regions_and_ignore(tmp_path):
    dataset = open_dataset(nnunet(tmp_path))
    assert (dataset.layout, dataset.ndim, dataset.labels.ignore, dataset.labels.order) == ("nnunet", 3, 3, (1, 2))
    assert not dataset.labels.exclusive
    assert [(c.name, c.values) for c in dataset.labels.classes] == [("whole", (1, 2)), ("core", (2,))]
    assert [p.name for p in dataset.cases[1].images] == ["c2_0000.nii.gz", "c2_0001.nii.gz"]
    assert dataset.cases[0].label == tmp_path.resolve() / "labelsTr" / "c1.nii.gz"
    assert [c.id for c in dataset.unlabelled] == ["t"]


def test_nnunet_plain_labels_need_no_order(tmp_path):
    dataset = open_dataset(nnunet(tmp_path, labels={"background": 0, "a": 1, "b": [2]}, regions_class_order=None))
    assert dataset.labels.exclusive


def test_nnunet_files_by_list_and_colour_files(tmp_path):
    listed = {"x": {"images": ["imagesTr/c1_0001.nii.gz", "imagesTr/c1_0000.nii.gz"], "label": "labelsTr/c1.nii.gz"}}
    (case,) = open_dataset(nnunet(tmp_path / "a", dataset=listed)).cases
    assert (case.id, [p.name for p in case.images]) == ("x", ["c1_0001.nii.gz", "c1_0000.nii.gz"])
    picture(tmp_path / "b/imagesTr/p_0000.png", RGB)
    picture(tmp_path / "b/labelsTr/p.png", MASK)
    describe(tmp_path / "b", channel_names={"0": "R", "1": "G", "2": "B"}, labels={"background": 0, "x": 1}, file_ending=".png")
    dataset = open_dataset(tmp_path / "b")
    assert (dataset.ndim, {c.modality for c in dataset.channels}) == (2, {Modality.rgb})


def test_nnunet_refusals(tmp_path):
    root = nnunet(tmp_path)
    words = "regions need 'regions_class_order'; found nothing, expected a list of 2 label values"
    assert words in refusal(_without(nnunet(tmp_path / "b"), "regions_class_order"))
    assert "'file_ending' is no format" in refusal(nnunet(tmp_path / "c", file_ending=".dcm"))
    assert "the channels of 'channel_names' are not numbered" in refusal(nnunet(tmp_path / "d", channel_names={"1": "T1", "2": "T2"}))
    (root / "imagesTr/c2_0001.nii.gz").rename(root / "imagesTr/c2_0002.nii.gz")
    volume(root / "imagesTr/stray.nii.gz")
    text = refusal(root)
    assert "case 'c2' does not have the channels of the dataset; found _0000, _0002, expected _0000, _0001" in text
    assert "stray.nii.gz: the file name has no channel number" in text


@pytest.mark.parametrize(
    ("changes", "what", "found"),
    [
        ({"regions_class_order": [1]}, "the region order has 1 values for 2 classes", "[1]"),
        (
            {"regions_class_order": [1, 2, 3]},
            "the region order has 3 values for 2 classes; the ignore value 3 does not belong into it",
            "[1, 2, 3]",
        ),
        ({"regions_class_order": [3, 2]}, "the region order holds the ignore value 3, for class 'whole'", "[3, 2]"),
        ({"regions_class_order": [1, 7]}, "the region order writes 7 for class 'core', which has the values 2", "[1, 7]"),
        (
            {"regions_class_order": [2, 2]},
            "the region order writes 2 for 'whole' and 'core', so a prediction cannot tell them apart",
            "[2, 2]",
        ),
        (
            {"labels": {"background": 0, "core": 2, "whole": [1, 2]}, "regions_class_order": [2, 1]},
            "class 'core' can never be seen: 'whole' comes later in the region order and overwrites all of it; larger regions come first",
            "[2, 1]",
        ),
    ],
)
def test_nnunet_regions_that_no_prediction_can_show(tmp_path, changes, what, found):
    root = nnunet(tmp_path, **changes)
    names = ", ".join(n for n in changes.get("labels", {"whole": 0, "core": 0}) if n != "background")
    assert refusal(root) == (
        f"{root.resolve() / 'dataset.json'}, field 'regions_class_order': {what}; found {found}, "
        f"expected one value per region, in the order of 'labels' ({names}). "
        "Name for each region the value that a prediction writes, one of its own; later ones overwrite earlier ones."
    )


def test_nnunet_labels_that_cannot_be(tmp_path):
    labels = {"background": [0, 1], "a": [], "b": [2, 3], "ignore": [4, 5]}
    text = refusal(nnunet(tmp_path, labels=labels, regions_class_order=[2]))
    assert text.startswith("3 problems:")
    for words in (
        "the background is not 0; found [0, 1], expected 0. Renumber it in the label files.",
        "label 'a' is no number and no list of numbers; found []",
        "the label 'ignore' has several values; found [4, 5], expected one. Merge them in the label files.",
    ):
        assert words in text
    plain = nnunet(tmp_path / "b", labels={"background": 0, "a": 1, "b": 2, "ignore": 2})
    assert "the ignore value 2 also belongs to a class: 'b'" in refusal(plain)


def test_regions_that_are_sound():
    """nnU-Net's examples (BraTS, KiTS), regions side by side, and two that overlap: both are seen somewhere."""
    for classes, order in (
        ({"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}, (1, 2, 3)),
        ({"kidney_and_mass": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}, (1, 3, 2)),
        ({"a": (1, 2), "b": (3, 4)}, (2, 3)),
        ({"a": (1, 3), "b": (2, 3)}, (1, 2)),
    ):
        assert region_problems([LabelClass(name=n, values=v) for n, v in classes.items()], order, 9) == []


def test_nnunet_labels_without_image(tmp_path):
    root = nnunet(tmp_path).resolve()
    for name in ("c0", "c2_0000", "._c3", ".c4"):
        volume(root / f"labelsTr/{name}.nii.gz", label=True)
    (root / "labelsTr/notes.txt").write_text("c5")
    volume(root / "labelsTr/c6.nii", label=True)
    (root / "labelsTr/c2.nii.gz").unlink()
    assert refusal(root) == (
        "3 problems:\n"
        f"  1. case 'c2': the label is missing; found no file {root / 'labelsTr' / 'c2.nii.gz'}, expected a label for c2_0000.nii.gz. "
        "Add the label, or move the image to the cases to predict.\n"
        f"  2. {root / 'labelsTr' / 'c0.nii.gz'}: the label has no image; expected {root / 'imagesTr' / 'c0_0000.nii.gz'}. "
        "Add or rename the image, or move the label to another folder.\n"
        f"  3. {root / 'labelsTr' / 'c2_0000.nii.gz'}: the label has no image; expected {root / 'imagesTr' / 'c2_0000_0000.nii.gz'}. "
        "Add or rename the image, or move the label to another folder."
    )
    listed = {"x": {"images": ["imagesTr/c1_0000.nii.gz", "imagesTr/c1_0001.nii.gz"], "label": "labelsTr/c1.nii.gz"}}
    assert [c.id for c in open_dataset(nnunet(root, dataset=listed)).cases] == ["x"]  # what is not listed is not of the dataset


def _without(root, key):
    data = json.loads((root / "dataset.json").read_text())
    del data[key]
    describe(root, **data)
    return root


# Plain folders.


def photographs(root, ids, labels="labels", mask=MASK, suffix=""):
    for name in ids:
        picture(root / f"images/{name}.png", RGB)
        picture(root / f"{labels}/{name}{suffix}.png", mask)
    return root


def test_folders_infer_classes_and_colour(tmp_path):
    dataset = open_dataset(photographs(tmp_path, ["a", "b"], mask=MASK * 255))
    assert (dataset.layout, dataset.ndim, [c.name for c in dataset.channels]) == ("folders", 2, ["red", "green", "blue"])
    assert [(c.name, c.values) for c in dataset.labels.classes] == [("foreground", (255,))]
    many = open_dataset(photographs(tmp_path / "x", ["a"], mask=MASK + 2))
    assert [(c.name, c.values) for c in many.labels.classes] == [("class 2", (2,)), ("class 3", (3,))]


def test_folders_declared_classes_group_values(tmp_path):
    photographs(tmp_path, ["a"], mask=np.arange(36).reshape(6, 6) % 5)
    dataset = open_dataset(tmp_path, LayoutOptions(classes={"polyp": tuple(range(1, 21))}))
    assert dataset.labels.classes[0].values == tuple(range(1, 21))
    assert dataset.labels.written == (1,)


def test_folders_label_stems_begin_with_the_image_stem(tmp_path):
    root = photographs(tmp_path, ["Image_01L", "Image_01R", "Image_02L"], suffix="_1stHO")
    dataset = open_dataset(root)
    assert [c.label.name for c in dataset.cases] == ["Image_01L_1stHO.png", "Image_01R_1stHO.png", "Image_02L_1stHO.png"]
    assert [c.group for c in dataset.cases] == ["Image_01", "Image_01", "Image_02"]


def test_folders_case_1_is_not_case_10(tmp_path):
    root = photographs(tmp_path, ["case_1", "case_10", "case_1_b"])
    (root / "labels/case_1.png").unlink()
    found = {c.id: c.label.name for c in open_dataset(root).cases}
    assert found == {"case_1": "case_1.png", "case_10": "case_10.png", "case_1_b": "case_1_b.png"}


def test_folders_keep_cases_whose_label_is_missing_for_verify(tmp_path):
    root = photographs(tmp_path, ["a", "b"])
    (root / "labels/b.png").unlink()
    case = open_dataset(root).cases[1]
    assert case.label == root.resolve() / "labels" / "b.png"
    assert not case.label.exists()


def test_folders_labels_without_image(tmp_path):
    """All of them at once, with the images that have no label: often the two are one case under two names."""
    root = photographs(tmp_path, ["a", "b"]).resolve()
    for name in ("c", "x_a", "d_1stHO", "._b", ".hidden"):
        picture(root / f"labels/{name}.png", MASK)
    (root / "labels/Thumbs.db").write_bytes(b"")
    (root / "labels/b.png").rename(root / "labels/b2.png")
    images, labels = root / "images", root / "labels"
    fix = "Add or rename the image, or move the label to another folder."
    assert refusal(root) == "\n".join(
        [
            "5 problems:",
            f"  1. case 'b': the label is missing; found no file {labels / 'b.png'}, expected a label for b.png. "
            "Add the label, or move the image to the cases to predict.",
            *(
                f"  {i}. {labels / name}: the label has no image; expected {images / name}, or an image as its name begins. {fix}"
                for i, name in enumerate(("b2.png", "c.png", "d_1stHO.png", "x_a.png"), 2)
            ),
        ]
    )


def test_folders_a_second_label_beside_the_one_of_the_same_name(tmp_path):
    """Which of the two is meant is for the user to say; a label that is missing is told at the same time."""
    root = photographs(tmp_path, ["a", "b"]).resolve()
    picture(root / "labels/a_extra.png", MASK)
    labels = root / "labels"
    several = f"{labels}: case 'a' has several labels; found a.png, a_extra.png, expected one. Keep one set of labels per folder."
    assert refusal(root) == several
    (labels / "b.png").unlink()
    assert refusal(root) == (
        f"2 problems:\n  1. {several}\n"
        f"  2. case 'b': the label is missing; found no file {labels / 'b.png'}, expected a label for b.png. "
        "Add the label, or move the image to the cases to predict."
    )


def test_folders_labels_without_image_beside_other_problems(tmp_path):
    for name in ("p_0000", "p_0001", "q_0000"):
        volume(tmp_path / f"images/{name}.nii.gz")
    for name in ("p_1", "p_2", "q", "r"):
        volume(tmp_path / f"masks/{name}.nii.gz", label=True)
    text = refusal(tmp_path)
    assert text.startswith("3 problems:")
    assert "case 'q' does not have the channels of the dataset" in text
    assert "case 'p' has several labels; found p_1.nii.gz, p_2.nii.gz" in text
    assert f"r.nii.gz: the label has no image; expected {tmp_path.resolve() / 'images' / 'r_0000.nii.gz'}," in text


def test_folders_only_the_chosen_annotator_must_have_its_images(tmp_path):
    photographs(tmp_path, ["a", "b"], labels="labels_1stHO")
    picture(tmp_path / "labels_2ndHO/a.png", MASK)
    picture(tmp_path / "labels_2ndHO/c.png", MASK)
    assert len(open_dataset(tmp_path, LayoutOptions(labels="labels_1stHO")).cases) == 2
    assert "c.png: the label has no image" in refusal(tmp_path, LayoutOptions(labels="labels_2ndHO"))


def test_folders_labels_of_test_images_may_lie_among_the_others(tmp_path):
    root = photographs(tmp_path, ["a"])
    picture(root / "images_test/t.png", RGB)
    for name in ("t", "t_2nd"):
        picture(root / f"labels/{name}.png", MASK)
    dataset = open_dataset(root)
    assert [c.id for c in dataset.cases] == ["a"]
    assert [(c.id, c.label) for c in dataset.unlabelled] == [("t", None)]


def test_folders_several_label_folders(tmp_path):
    photographs(tmp_path, ["a"], labels="labels_1stHO")
    photographs(tmp_path, ["a"], labels="labels_2ndHO")
    text = refusal(tmp_path)
    assert "several folders may hold the labels; found labels_1stHO, labels_2ndHO" in text
    assert "--labels FOLDER" in text
    assert open_dataset(tmp_path, LayoutOptions(labels="labels_2ndHO")).cases[0].label.parent.name == "labels_2ndHO"
    assert "does not exist; found labels_1stHO, labels_2ndHO" in refusal(tmp_path, LayoutOptions(labels="labels_3rd"))


def test_folders_channels_by_suffix(tmp_path):
    for c in range(2):
        volume(tmp_path / f"images/p_{c:04d}.nii.gz")
        volume(tmp_path / f"images/q_{c:04d}.nii.gz")
    for name in "pq":
        volume(tmp_path / f"masks/{name}.nii.gz", label=True)
    dataset = open_dataset(tmp_path)
    assert [c.name for c in dataset.channels] == ["channel 0", "channel 1"]
    assert [p.name for p in dataset.cases[1].images] == ["q_0000.nii.gz", "q_0001.nii.gz"]
    (tmp_path / "images/q_0001.nii.gz").unlink()
    assert "case 'q' does not have the channels of the dataset; found _0000, expected _0000, _0001" in refusal(tmp_path)


def test_folders_colours_in_one_suffixed_file(tmp_path):
    for name in ("p", "q"):
        picture(tmp_path / f"images/{name}_0000.png", RGB)
        picture(tmp_path / f"labels/{name}.png", MASK)
    dataset = open_dataset(tmp_path)
    assert [(c.id, len(c.images)) for c in dataset.cases] == [("p", 1), ("q", 1)]
    assert [c.name for c in dataset.channels] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("names", "suffixed", "cases"),
    [
        (["a_0000", "a_0001", "b_0000", "b_0001"], True, ["a", "b"]),
        (["scan_2019", "scan_2020"], False, ["scan_2019", "scan_2020"]),
        (["a_0000", "b"], False, ["a_0000", "b"]),
        ([f"frame_{i:04d}" for i in range(40)], False, [f"frame_{i:04d}" for i in range(40)]),
        (["only_0000"], True, ["only"]),
    ],
)
def test_when_a_number_is_a_channel(names, suffixed, cases):
    found, sets = channel_sets(tuple(Path(f"{n}.png") for n in names))
    assert (found, [case for case, _ in sets]) == (suffixed, cases)


def test_folders_descriptor(tmp_path):
    photographs(tmp_path, ["p1_a", "p1_b", "p2_a"], mask=np.arange(36).reshape(6, 6) % 4)
    picture(tmp_path / "imagesTs/t.png", RGB)
    descriptor = {
        "name": "mine", "licence": "CC0", "channels": ["R", {"name": "depth", "modality": "other"}, "B"],
        "classes": {"all": [1, 2], "core": [2]}, "order": [1, 2], "ignore": 3, "groups": "(p\\d+)_",
    }  # fmt: skip
    (tmp_path / "medseg.json").write_text(json.dumps(descriptor))
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.licence, dataset.labels.ignore, dataset.labels.order) == ("mine", "CC0", 3, (1, 2))
    assert [c.group for c in dataset.cases] == ["p1", "p1", "p2"]
    assert [(c.name, c.modality) for c in dataset.channels] == [("R", "rgb"), ("depth", "other"), ("B", "rgb")]
    assert [c.id for c in dataset.unlabelled] == ["t"]
    for change, words in [
        ({"clases": {}}, "Did you mean 'classes'?"),
        ({"groups": "(x\\d+)_"}, "does not match every case; found p1_a, p1_b, p2_a"),
        ({"groups": "p"}, "has no group in parentheses"),
        ({"groups": "("}, "is not a regular expression"),
        ({"classes": {"a": [0]}}, "value 0 is background"),
        ({"classes": {"a": [1], "b": [3]}}, "the ignore value 3 also belongs to a class: 'b'"),
        ({"classes": {"a": [1], "b": []}}, "class 'b' has no values"),
        ({"order": [1, 2, 3]}, "the region order has 3 values for 2 classes; the ignore value 3 does not belong into it"),
        ({"order": [1, 3]}, "the region order holds the ignore value 3, for class 'core'"),
        ({"order": [2, 2]}, "the region order writes 2 for 'all' and 'core', so a prediction cannot tell them apart"),
        ({"order": [1, 1]}, "the region order writes 1 for class 'core', which has the values 2; the region order writes 1 for 'all' and"),
        (
            {"classes": {"core": [2], "all": [1, 2]}, "order": [2, 1]},
            "class 'core' can never be seen: 'all' comes later in the region order and overwrites all of it; larger regions come first",
        ),
        ({"classes": {"a": [1, 2], "b": [2]}, "order": None}, "overlapping regions need 'order'"),
    ]:
        (tmp_path / "medseg.json").write_text(json.dumps({**descriptor, **change}))
        assert words in refusal(tmp_path)


def test_folders_that_hold_no_classes(tmp_path):
    assert "no label file has any foreground" in refusal(photographs(tmp_path / "a", ["a"], mask=MASK * 0))
    many = RNG.permutation(np.arange(400) % 65536).reshape(20, 20).astype(np.uint16)
    picture(tmp_path / "b/images/a.png", np.zeros((20, 20)))
    (tmp_path / "b/labels").mkdir()
    Pillow.fromarray(many).save(tmp_path / "b/labels/a.png")
    assert "the labels hold too many values to be classes; found 399 values" in refusal(tmp_path / "b")
    photographs(tmp_path / "c", ["a"])
    picture(tmp_path / "c/labels/a.bmp", MASK)
    assert "case 'a' has several labels; found a.bmp, a.png" in refusal(tmp_path / "c")


# Detection.


def test_no_layout(tmp_path):
    (tmp_path / "stuff").mkdir()
    text = refusal(tmp_path)
    assert "is no dataset of a known layout; found stuff" in text
    for words in ("msd: dataset.json", "nnunet: dataset.json with 'channel_names'", "folders: images/"):
        assert words in text
    assert "no such folder" in refusal(tmp_path / "none")


def test_unreadable_json(tmp_path):
    decathlon(tmp_path)
    (tmp_path / "dataset.json").write_text('{"training": [')
    text = refusal(tmp_path)
    assert "dataset.json: is not valid JSON; found" in text
    assert "line 1 column" in text
    (tmp_path / "dataset.json").write_bytes(b"\xff\xfe\x00")
    assert "is not valid JSON" in refusal(tmp_path)
    for bomb in ("[" * 200_000, '{"a": ' * 200_000, "[" + "9" * 5000 + "]"):
        (tmp_path / "dataset.json").write_text(bomb)
        assert "is not valid JSON" in refusal(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    assert "is not a JSON object; found list" in refusal(tmp_path)


def test_unknown_modality():
    with pytest.raises(UsageError, match="unknown modality; found 'mrt', expected ct, mr"):
        LayoutOptions(modality="mrt")


@pytest.mark.parametrize(
    ("name", "modality"),
    [("CT", "ct"), ("T1w", "mr"), ("FLAIR", "mr"), ("pet_suv", "pet"), ("R", "rgb"), ("green", "rgb"), ("noNorm", "other"), ("ADC", "mr")],
)
def test_modality_of(name, modality):
    assert modality_of(name) == modality


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.png").symlink_to(f"/nowhere/{name}.png")
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / "images" / f"{n}.png") for n in "ab"]
    assert str(caught.value.problems[0]).endswith(
        "is a link to a file that is missing; found /nowhere/a.png. Fetch the files, mount the disk, or remove the link."
    )
