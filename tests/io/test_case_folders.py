"""Folders of case folders: roles by name, the reference by rule, everything that differs between cases at once."""

import json

import numpy as np
import pytest
from world import oblique, save

from medseg.dataset import Modality
from medseg.errors import DatasetError, UsageError
from medseg.evaluation.pairing import find_references
from medseg.geometry import Grid
from medseg.io.images import read_case
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.io.layouts.roles import role_file
from medseg.planning.verify import verify

RNG = np.random.default_rng(3)
PLAIN = Grid.plain((5, 6, 7))
CT = oblique((6, 20, 21), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), 0.1)
PET = oblique((8, 8, 7), (3.0, 4.0, 4.0), (-3.0, -2.0, -1.0))
MR = oblique((5, 12, 11), (3.0, 1.002, 1.0), (4.0, 3.0, 2.0))


def volume(path, grid=PLAIN, label=False):
    values = RNG.integers(0, 2, grid.shape).astype(np.uint8) if label else RNG.normal(100, 20, grid.shape).astype(np.float32)
    return save(path, grid, values)


def lesions(root, cases=("p1", "p2", "p3"), channels=("t2", "flair", "t1", "t1post")):
    """As `ms_lesions_mni`: one grid, one label."""
    for case in cases:
        for name in channels:
            volume(root / case / f"{case}_{name}.nii.gz")
        volume(root / case / f"{case}_seg.nii.gz", label=True)
    (root / "README.md").write_text("not an image")
    return root


def modalities(root, cases=("S_1", "S_2", "S_3")):
    """As `sts_ct_pet_mr`: three grids in one world, a label on each."""
    for case in cases:
        for name, grid in (("CT", CT), ("PET", PET), ("MR_T1", MR)):
            volume(root / case / f"{name}_image.nii.gz", grid)
            volume(root / case / f"{name}_mask.nii.gz", grid, label=True)
    return root


def test_predictions_are_scored_on_the_grid_of_the_models_reference(tmp_path):
    """The rule chooses CT; a model whose first channel is PET has predicted on PET's grid."""
    root = modalities(tmp_path)

    def labels(*arguments):
        return {path.name for path in find_references(root, *arguments).labels.values()}

    turned = open_dataset(root, LayoutOptions(reference="PET")).channels
    assert labels() == labels(None, open_dataset(root).channels) == {"CT_mask.nii.gz"}
    assert labels(None, turned) == labels("PET") == labels("PET", open_dataset(root).channels) == {"PET_mask.nii.gz"}
    assert labels(None, turned[:2]) == {"CT_mask.nii.gz"}
    with pytest.raises(UsageError, match=r"--reference: label files have no channels; found 'PET'\. Leave it out\."):
        find_references(volume(tmp_path / "flat" / "a.nii.gz", label=True).parent, "PET")


def refusal(root, **options):
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, LayoutOptions(**options))
    return [str(problem) for problem in caught.value.problems]


def names(dataset):
    return [channel.name for channel in dataset.channels]


@pytest.mark.parametrize(
    ("name", "case", "role", "label"),
    [
        ("patient07_flair", "patient07", "flair", False),
        ("MR_T1_image", "STS_002", "MR_T1", False),
        ("MR_T1_mask", "STS_002", "MR_T1", True),
        ("patient07_seg", "patient07", "", True),
        ("P07-T1.post", "p07", "T1_post", False),
        ("flair p07", "p07", "flair", False),
        ("p070_t1", "p07", "p070_t1", False),
        ("lesion_1_t1", "lesion_1", "t1", False),
        ("p07", "p07", "image", False),
        ("scan", "p07", "image", False),
        ("unmasked", "p07", "unmasked", False),
        ("p07_consensus_gt", "p07", "consensus", True),
        ("sub-ct_label-22_ct", "sub-ct", "ct", False),
        ("sub-ct_seg-vert_msk", "sub-ct", "vert", True),
        ("sub-01_acq-hi_T1w", "sub-01", "acq_hi_T1w", False),
        ("sub-01_label-GM_dseg", "sub-01", "GM", True),
        ("p07_label-22", "p07", "22", True),
    ],
)
def test_roles(tmp_path, name, case, role, label):
    file = role_file(tmp_path / f"{name}.nii.gz", case)
    assert (file.role, file.label) == (role, label)


def test_pairs_in_names_of_images_belong_to_the_case(tmp_path):
    """`label-22` says what the case is cut to, not that its image is a label."""
    for k, number in enumerate((20, 22, 22)):
        folder = tmp_path / f"sub-{k}"
        volume(folder / f"{folder.name}_label-{number}_ct.nii.gz")
        volume(folder / f"{folder.name}_seg-vert_label-{number}_msk.nii.gz", label=True)
    dataset = open_dataset(tmp_path)
    assert names(dataset) == ["ct"]
    assert [c.modality for c in dataset.channels] == [Modality.ct]
    assert [(c.id, c.images[0].name, c.label.name) for c in dataset.cases][:2] == [
        ("sub-0", "sub-0_label-20_ct.nii.gz", "sub-0_seg-vert_label-20_msk.nii.gz"),
        ("sub-1", "sub-1_label-22_ct.nii.gz", "sub-1_seg-vert_label-22_msk.nii.gz"),
    ]


def test_one_label_on_one_grid(tmp_path):
    dataset = open_dataset(lesions(tmp_path))
    assert (dataset.layout, dataset.ndim, dataset.task, dataset.domain) == ("case_folders", 3, "semantic", "grid")
    assert names(dataset) == ["flair", "t1", "t1post", "t2"]
    assert {c.modality for c in dataset.channels} == {Modality.mr}
    assert [c.id for c in dataset.cases] == ["p1", "p2", "p3"]
    case = dataset.cases[1]
    assert [p.name for p in case.images] == ["p2_flair.nii.gz", "p2_t1.nii.gz", "p2_t1post.nii.gz", "p2_t2.nii.gz"]
    assert (case.label.name, case.group) == ("p2_seg.nii.gz", "p2")
    assert dataset.labels.names == ("foreground",)
    assert dataset.notes == ("reference channel 'flair': the label lies on its grid (as on that of t1, t1post, t2; the first by name)",)
    verified = verify(dataset, workers=1)
    assert [w.what for w in verified.warnings] == ["the dataset is small"]


def test_the_channel_of_the_label_is_the_reference(tmp_path):
    root = modalities(tmp_path)
    for case in root.iterdir():
        for name in ("CT", "MR_T1"):
            (case / f"{name}_mask.nii.gz").unlink()
        (case / "PET_mask.nii.gz").rename(case / "tumour_roi.nii.gz")
    dataset = open_dataset(root)
    assert names(dataset) == ["PET", "CT", "MR_T1"]
    assert dataset.notes == ("reference channel 'PET': the label lies on its grid",)


def test_one_label_for_each_channel(tmp_path):
    dataset = open_dataset(modalities(tmp_path))
    assert [(c.name, c.modality) for c in dataset.channels] == [("CT", "ct"), ("MR_T1", "mr"), ("PET", "pet")]
    assert {c.label.name for c in dataset.cases} == {"CT_mask.nii.gz"}
    assert dataset.notes == (
        "reference channel 'CT': it has the finest voxels (3 x 1 x 1 mm), as MR_T1, and the larger field of view; its label is CT_mask",
    )
    verified = verify(dataset, workers=1)
    (moved,) = [str(w) for w in verified.warnings if "grid" in w.what]
    assert moved.startswith("channel MR_T1, PET: lies on another grid than the reference channel 'CT' and is resampled onto it")
    assert "found 3 of 3 cases; of the reference's field of view MR_T1 at least 2" in moved
    case = read_case(verified.dataset.cases[0])
    assert (case.image.shape, case.label.shape) == ((3, *CT.shape), CT.shape)
    assert case.grid.distance(CT) < 1e-3


def test_the_reference_can_be_said(tmp_path):
    root = modalities(tmp_path)
    dataset = open_dataset(root, LayoutOptions(reference="pet"))
    assert (names(dataset), {c.label.name for c in dataset.cases}) == (["PET", "CT", "MR_T1"], {"PET_mask.nii.gz"})
    assert dataset.notes == ("reference channel 'PET': as --reference says; its label is PET_mask",)
    (root / "medseg.json").write_text(json.dumps({"reference": "MR_T1", "name": "mine", "groups": "(S)_"}))
    dataset = open_dataset(root)
    assert (names(dataset), dataset.name, {c.group for c in dataset.cases}) == (["MR_T1", "CT", "PET"], "mine", {"S"})
    assert names(open_dataset(root, LayoutOptions(reference="CT"))) == ["CT", "MR_T1", "PET"]
    (text,) = refusal(root, reference="T2")
    assert "there is no such channel to be the reference; found 'T2', expected CT or MR_T1 or PET. Check --reference" in text


def test_a_label_by_name(tmp_path):
    root = modalities(tmp_path)
    dataset = open_dataset(root, LayoutOptions(labels="PET_mask"))
    assert (names(dataset)[0], {c.label.name for c in dataset.cases}) == ("PET", {"PET_mask.nii.gz"})
    dataset = open_dataset(root, LayoutOptions(labels="pet", reference="CT"))
    assert (names(dataset)[0], {c.label.name for c in dataset.cases}) == ("CT", {"PET_mask.nii.gz"})
    with pytest.raises(DatasetError, match="or pass --resample-labels"):
        verify(dataset, workers=1)
    assert all(c.resample_label for c in verify(dataset, workers=1, resample_labels=True).dataset.cases)
    for case in ("S_1", "S_2", "S_3"):
        (root / case / "CT_mask.nii.gz").rename(root / case / "CT_bones.nii.gz")
    (root / "medseg.json").write_text(json.dumps({"labels": "CT_bones"}))
    assert {c.label.name for c in open_dataset(root).cases} == {"CT_bones.nii.gz"}


def test_channels_that_are_listed(tmp_path):
    root = modalities(tmp_path)
    volume(root / "S_1" / "extra.nii.gz", PET)
    (root / "medseg.json").write_text(json.dumps({"channels": [{"name": "pet", "modality": "other"}, "CT"]}))
    dataset = open_dataset(root)
    assert [(c.name, c.modality) for c in dataset.channels] == [("pet", "other"), ("CT", "ct")]
    assert [p.name for p in dataset.cases[0].images] == ["PET_image.nii.gz", "CT_image.nii.gz"]
    assert dataset.notes == ("reference channel 'PET': the first of 'channels' in medseg.json; its label is PET_mask",)
    (root / "medseg.json").write_text(json.dumps({"channels": ["CT", "T2"]}))
    text = refusal(root)[0]
    assert "field 'channels': lists channels of which there are no files; found T2, expected CT, extra, MR_T1, PET" in text
    (root / "medseg.json").write_text(json.dumps({"channels": ["CT"]}))
    assert [len(c.images) for c in open_dataset(root).cases] == [1, 1, 1]


def test_cases_that_differ_are_told_at_once(tmp_path):
    root = lesions(tmp_path, ("p1", "p2", "p3", "p4", "p5"))
    (root / "p2/p2_t1.nii.gz").unlink()
    (root / "p3/p3_seg.nii.gz").unlink()
    volume(root / "p4/p4_dwi.nii.gz")
    volume(root / "p5/p5_flair.nii")
    volume(root / "atlas.nii.gz")
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("")
    texts = refusal(root)
    expected = "expected flair, seg, t1, t1post, t2. Add, rename or remove files, or list the channels to use in medseg.json ('channels')."
    assert texts == [
        f"{root / 'atlas.nii.gz'}: an image lies beside the case folders; expected images in the folders of their cases. Move it away.",
        f"{root / 'notes'}: the folder of a case holds no image; found a.txt, expected image files. Move it away, or add the images.",
        f"{root / 'p5'}: two files for one channel; found p5_flair.nii and p5_flair.nii.gz, expected one. Remove or rename one of them.",
        f"case 'p2': the case does not have the files of the other cases; found no t1, {expected}",
        f"case 'p3': the case does not have the files of the other cases; found no seg, {expected}",
        f"case 'p4': the case does not have the files of the other cases; found p4_dwi.nii.gz besides, {expected}",
    ]


def test_names_that_follow_other_ids(tmp_path):
    for i in (1, 2, 3):
        volume(tmp_path / f"case{i}" / f"x{i}_t1.nii.gz")
        volume(tmp_path / f"case{i}" / f"x{i}_seg.nii.gz", label=True)
    (text,) = refusal(tmp_path)
    assert "the names of the files have nothing in common between the case folders; found case1: x1_seg.nii.gz, x1_t1.nii.gz;" in text


def test_several_labels_that_are_not_of_channels(tmp_path):
    root = lesions(tmp_path)
    for case in ("p1", "p2", "p3"):
        volume(root / case / f"{case}_brain_mask.nii.gz", label=True)
    (text,) = refusal(root)
    assert (
        "several labels per case, which are not one for each channel; found brain_mask, seg, expected one, or labels for channels" in text
    )
    assert open_dataset(root, LayoutOptions(labels="brain_mask")).cases[0].label.name == "p1_brain_mask.nii.gz"
    for case in ("p1", "p2", "p3"):
        volume(root / case / f"{case}_gt.nii.gz", label=True)
    assert "two files for one label; found p1_gt.nii.gz and p1_seg.nii.gz" in refusal(root)[0]
    assert open_dataset(root, LayoutOptions(labels="gt")).cases[0].label.name == "p1_gt.nii.gz"


def test_single_images_and_numbered_channels(tmp_path):
    for case in ("a", "b"):
        volume(tmp_path / "one" / case / "image.nii.gz")
        volume(tmp_path / "one" / case / "label.nii.gz", label=True)
        for c in range(2):
            volume(tmp_path / "two" / case / f"{case}_{c:04d}.nii.gz")
        volume(tmp_path / "two" / case / f"{case}_seg.nii.gz", label=True)
    dataset = open_dataset(tmp_path / "one")
    assert (names(dataset), dataset.notes) == (["image"], ())
    assert names(open_dataset(tmp_path / "two")) == ["0000", "0001"]
    assert "numbered channels have the first as their reference" in refusal(tmp_path / "two", reference="0001")[0]


def test_other_layouts_are_left_to_themselves(tmp_path):
    root = lesions(tmp_path)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for folder in ("images", "labels"):
        volume(root / folder / "c.nii.gz", label=folder == "labels")
    assert open_dataset(root).layout == "folders"
    assert "a reference channel has no meaning here" in refusal(root, reference="CT")[0]
    plain = tmp_path / "plain"
    for i in range(40):
        volume(plain / "train" / f"{i}_image.nii.gz")
        volume(plain / "train" / f"{i}_mask.nii.gz", label=True)
    assert "is no dataset of a known layout" in refusal(plain)[0]
    mixed = lesions(tmp_path / "mixed", ("p1",))
    for name in ("a", "b"):
        (mixed / name).mkdir()
    assert "is no dataset of a known layout" in refusal(mixed)[0]
