"""COCO files as datasets: which are read, where their images lie, and what is wrong with them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import DatasetError, ImageError, UsageError
from medseg.io.images import read_case
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.planning.verify import verify
from tests.io.coco.scenes import CATEGORIES, SHAPE, THINGS, annotation, instances, listed, pictures, segments, square, write


def problems(root: Path, options: LayoutOptions | None = None) -> list[str]:
    with pytest.raises((DatasetError, UsageError)) as caught:
        open_dataset(root, options)
    return [str(problem) for problem in caught.value.problems]


def test_instances(tmp_path):
    file = instances(tmp_path)
    found = open_dataset(tmp_path)
    assert (found.layout, found.task, found.domain, found.ndim) == ("coco", "instance", "grid", 2)
    assert [(c.id, c.images, c.label, c.group) for c in found.cases] == [
        (name, (tmp_path / "images" / f"{name}.png",), file / f"{number}.coco", name) for number, name in ((1, "a"), (2, "b"))
    ]
    assert [(c.name, c.values) for c in found.labels.classes] == [("cell", (1,)), ("gland", (3,))]
    assert found.labels.things == ("cell", "gland")
    assert (found.labels.objects, found.labels.ignore) == ("codes", None)
    assert found.notes == ("annotations: annotations.json", "categories without an annotation are left out: never seen")
    assert open_dataset(tmp_path, LayoutOptions(objects="auto")) == found
    case = read_case(found.cases[0], labels=found.labels)
    assert case.label is not None
    assert found.labels.semantic(case.label)[4, 5] == 3
    checked = verify(found, workers=1)
    assert checked.occurrences == {"cell": 1, "gland": 1}


def test_panoptic(tmp_path):
    ids = np.full(SHAPE, 2)
    ids[:2] = 0
    ids[3, 3] = 900
    segments(tmp_path, ids, [{"id": 2, "category_id": 2}, {"id": 900, "category_id": 1}])
    found = open_dataset(tmp_path)
    assert (found.task, found.labels.names, found.labels.things, found.labels.ignore) == ("panoptic", ("cell", "tissue"), ("cell",), 3)
    case = read_case(found.cases[0], labels=found.labels)
    assert case.label is not None
    assert np.unique(found.labels.semantic(case.label)).tolist() == [1, 2, 3]


def test_training_validation_and_test_side_by_side(tmp_path):
    """As COCO 2017 lies on the disk: validation is the fold, tests are predicted only, captions are not read."""
    for role, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        pictures(tmp_path / f"{role}2017", *(f"{name}.png" for name in names))
    folder = tmp_path / "annotations"
    write(folder / "instances_train2017.json", listed("a.png", "b.png"), [annotation(1, 1, square(0, 0))])
    write(folder / "instances_val2017.json", listed("c.png", first=3), [annotation(2, 3, square(0, 0), category=3)])
    write(folder / "image_info_test2017.json", listed("d.png", first=4), [])
    found = open_dataset(tmp_path)
    assert [c.id for c in found.cases] == ["a", "b", "c"]
    assert [(c.id, c.label) for c in found.unlabelled] == [("d", None)]
    assert found.splits is not None
    assert [(f.train, f.val) for f in found.splits.folds] == [(("a", "b"), ("c",))]
    assert "folds: 1, trained on 2 images, 1 left out, as the files' names say" in found.notes
    write(folder / "captions_train2017.json", listed("a.png", "b.png"), [{"id": 1, "image_id": 1, "caption": "a cell"}])
    (told,) = problems(tmp_path)
    assert "captions_train2017.json: holds no masks; found annotations with id, image_id, caption" in told
    assert len(open_dataset(tmp_path, LayoutOptions(labels="instances")).cases) == 3
    assert open_dataset(tmp_path, LayoutOptions(labels="annotations/instances_train2017")).splits is None


def test_a_file_beside_its_images(tmp_path):
    """As Roboflow exports; a test set that is annotated is not trained on."""
    for role, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        pictures(tmp_path / role, f"{name}.png")
        write(tmp_path / role / "_annotations.coco.json", listed(f"{name}.png", first=0), [annotation(0, 0, square(0, 0))])
    found = open_dataset(tmp_path)
    assert [(c.id, c.images[0].parent.name) for c in (*found.cases, *found.unlabelled)] == [("a", "train"), ("b", "valid"), ("c", "test")]
    assert found.splits is not None
    assert "images of _annotations.coco.json are only predicted" in found.notes


def test_file_names_with_folders(tmp_path):
    pictures(tmp_path / "images", "p1/s.png", "p2/s.png", "p2/t.png")
    write(tmp_path / "a.json", listed("p1/s.png", "p2\\s.png", "p2/t.png"), [annotation(1, 1, square(0, 0))])
    found = open_dataset(tmp_path)
    assert [c.id for c in found.cases] == ["p1_s", "p2_s", "p2_t"]
    assert all(c.images[0].is_file() for c in found.cases)
    (tmp_path / "medseg.json").write_text(json.dumps({"groups": "(p[0-9])_", "channels": ["microscopy"], "name": "mine"}))
    grouped = open_dataset(tmp_path)
    assert ([c.group for c in grouped.cases], grouped.name, grouped.channels[0].name) == (["p1", "p2", "p2"], "mine", "microscopy")
    (tmp_path / "medseg.json").write_text(json.dumps({"classes": {"x": [1]}}))
    assert "medseg.json: says what the COCO file says; found classes, expected name, licence, channels, groups" in problems(tmp_path)[0]


def test_crowds_are_ignored(tmp_path):
    pictures(tmp_path / "images", "a.png")
    crowd = {"size": list(SHAPE), "counts": [0, 8, SHAPE[0] * SHAPE[1] - 8]}
    write(tmp_path / "a.json", listed("a.png"), [annotation(1, 1, square(2, 4)), annotation(2, 1, crowd, iscrowd=1)])
    found = open_dataset(tmp_path)
    assert found.labels.ignore == 5
    assert verify(found, workers=1).occurrences == {"cell": 1}


def test_classes_may_be_merged_and_renamed(tmp_path):
    instances(tmp_path)
    found = open_dataset(tmp_path, LayoutOptions(classes={"anything": (1, 3)}))
    assert (found.labels.names, found.labels.things) == (("anything",), ("anything",))
    (told,) = problems(tmp_path, LayoutOptions(classes={"cell": (1,)}))
    assert told == (
        "--class: leaves out categories that are annotated; found 3 gland, expected 1 cell, 3 gland. "
        "Name them, too, for example --class other=3."
    )
    (told,) = problems(tmp_path, LayoutOptions(objects="numbers"))
    assert "--objects: has no meaning for COCO files" in told
    (told,) = problems(tmp_path, LayoutOptions(things=("cell",)))
    assert "--thing: has no meaning for COCO files" in told
    segments(tmp_path / "p", np.full(SHAPE, 1), [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}])
    (told,) = problems(tmp_path / "p", LayoutOptions(classes={"all": (1, 2)}))
    assert "--class: merges things and stuff; found all" in told


def test_a_folder_of_label_maps_may_lie_beside(tmp_path):
    instances(tmp_path)
    (tmp_path / "labels").mkdir()
    for name in "ab":
        Image.fromarray(np.eye(*SHAPE, dtype=np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    assert open_dataset(tmp_path).layout == "coco"
    assert open_dataset(tmp_path, LayoutOptions(labels="labels")).layout == "folders"
    (told,) = problems(tmp_path, LayoutOptions(labels="x"))
    assert told == "--labels: no COCO file and no folder of labels has this name; found 'x', expected annotations.json."


def test_files_that_annotate_the_same_images(tmp_path):
    instances(tmp_path)
    write(tmp_path / "other.json", listed("a.png"), [annotation(1, 1, square(0, 0))], CATEGORIES[:1])
    (told,) = problems(tmp_path)
    assert "several COCO files annotate the same images; found annotations.json, other.json, expected one" in told
    assert "--labels annotations" in told
    assert [c.id for c in open_dataset(tmp_path, LayoutOptions(labels="other.json")).cases] == ["a"]
    pictures(tmp_path / "images", "c.png")
    write(tmp_path / "other.json", listed("c.png"), [annotation(1, 1, square(0, 0))], [{"id": 1, "name": "nucleus"}])
    (told,) = problems(tmp_path)
    assert "other.json: has other categories than another file of this dataset; found 1 nucleus, expected those of" in told


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    pictures(tmp_path / "images", "a.png")
    pictures(tmp_path / "images", "small.png", shape=(3, 3))
    images = [
        *listed("a.png", "small.png", "missing.png"),
        {"id": 2, "file_name": "twice.png", "height": 6, "width": 8},
        {"id": 5, "file_name": "a.png", "height": 6, "width": 8},
        {"id": -1, "file_name": "b.png", "height": 6, "width": 8},
        {"id": 7, "file_name": "../c.png", "height": 6, "width": 8},
        {"id": 8, "file_name": "d.png", "height": 0, "width": 8},
        {"id": 9},
        3,
    ]
    annotations = [
        annotation(1, 1, square(0, 0), category=99),
        annotation(1, 1, []),
        annotation(2, 77, square(0, 0)),
        annotation(3, 1, [[1, 1, 2, 2]]),
        annotation(4, 1, {"size": [8, 6], "counts": [48]}),
        annotation(5, 1, {"size": [6, 8], "counts": [40]}),
        annotation(6, 1, {"size": [6, 8], "counts": [50, -2]}),
        annotation(-7, 1, square(0, 0), iscrowd=2),
        annotation(8, 1, [[0, 0, 1, float("nan"), 3, 3]]),
    ]
    categories = [*CATEGORIES, {"id": 1, "name": "again"}, {"id": 6, "name": "cell"}, {"id": -2, "name": "x"}, {"id": 7, "name": " "}]
    write(tmp_path / "a.json", images, annotations, categories)
    told = problems(tmp_path)
    found = [text.split("a.json: ")[1] for text in told]
    for expected in (
        "category ids are no whole numbers from 0 on; found -2",
        "categories without a name; found id 7",
        "several categories have one id; found 1",
        "several categories have one name; found cell",
        "image ids are no whole numbers from 0 on; found -1 ('b.png')",
        "file names lead out of the folder of images; found '../c.png'",
        "images without a size; found 'd.png' (8 x 0)",
        "images without a 'file_name'; found id 9",
        "entries of 'images' are no objects; found 3",
        "several images have one id; found 2 ('small.png', 'twice.png')",
        "images that are listed several times; found 'a.png' (ids 1, 5)",
        "annotations of categories that are not listed; found annotation 1 (category 99)",
        "annotations without a mask; found annotation 1 of 'a.png'",
        "annotations of images that are not listed; found annotation 2 (image 77)",
        "polygons that are none; found annotation 3 of 'a.png' ([1, 1, 2, 2]), annotation 8 of 'a.png'",
        "run lengths of another size than their image; found annotation 4 of 'a.png' ([8, 6])",
        "run lengths that do not fill their image; found annotation 5 of 'a.png' (40 of 48 pixels)",
        "run lengths that are none; found annotation 6 of 'a.png'",
        "annotation ids are no whole numbers from 0 on; found -7",
        "'iscrowd' is neither 0 nor 1; found annotation -7 (category 1)",
        "several annotations have one id; found 1",
    ):
        assert any(text.startswith(expected) for text in found), expected
    assert len(found) == 21


def test_missing_images_and_other_sizes_are_told_with_the_rest(tmp_path):
    """By `verify` where the file is sound, and with its problems where it is not."""
    pictures(tmp_path / "images", "a.png", "b.png")
    pictures(tmp_path / "images", "b.png", shape=(3, 3))
    file = write(tmp_path / "a.json", listed("a.png", "b.png", "c.png"), [annotation(1, 1, square(0, 0))])
    with pytest.raises(DatasetError) as caught:
        verify(open_dataset(tmp_path), workers=1)
    told = [str(p) for p in caught.value.problems]
    assert any("c.png: the file does not exist" in text for text in told)
    assert any(
        "image 2 (b.png)" in text and "width 8 in the JSON, 3 in the file; height 6 in the JSON, 3 in the file" in text for text in told
    )
    write(tmp_path / "b.json", listed("a.png"), [annotation(1, 1, [])])
    told = problems(tmp_path)
    assert len(told) == 3
    assert "b.json: annotations without a mask" in told[0]
    assert f"{file}: images are missing; found 'c.png', expected as listed, in {tmp_path / 'images'}" in told[1]
    assert "images have other sizes than the file says; found 'b.png' (3 x 3, listed as 8 x 6)" in told[2]


def test_segments_that_contradict_themselves(tmp_path):
    infos = [
        {"id": 0, "category_id": 1},
        {"id": 2**24, "category_id": 1},
        {"id": 5, "category_id": 9},
        {"id": 5, "category_id": 1},
    ]
    file = segments(tmp_path, np.full(SHAPE, 5), infos)
    (one, two, three) = problems(tmp_path)
    assert "segment ids that no pixel can have; found 0 of 'a.png', 16777216 of 'a.png', expected 1 to 16777215; 0 is void" in one
    assert "annotations of categories that are not listed; found segment 5 of 'a.png' (category 9)" in two
    assert "several segments of an image have one id; found 5 of 'a.png'" in three
    write(file, listed("a.png"), [{"image_id": 1, "file_name": "../a.png", "segments_info": 3}], [{"id": 1, "name": "cell"}, *THINGS[1:]])
    told = " ".join(problems(tmp_path))
    assert "categories that do not say whether they are things; found 'cell'" in told
    assert "annotations without a PNG file" in told
    assert "annotations without a list of segments" in told
    entry = {"image_id": 1, "file_name": "a.png", "segments_info": []}
    write(file, listed("a.png"), [entry, entry], THINGS)
    assert "images with several annotations; found 'a.png'" in problems(tmp_path)[0]


def test_files_that_are_no_coco(tmp_path):
    file = instances(tmp_path)
    whole = file.read_text()
    file.write_text(whole[: len(whole) - 30])
    (told,) = problems(tmp_path)
    assert "annotations.json: is not valid JSON" in told
    assert "it may be truncated" in told
    file.write_text(whole.replace('"annotations"', '"labels"'))
    assert "no COCO file has annotations to train on" in problems(tmp_path)[0]
    file.write_text(whole.replace('"categories"', '"kinds"'))
    assert "is no COCO file; found keys images, kinds, annotations" in problems(tmp_path)[0]
    write(file, [], [])
    file.write_text(file.read_text() + " " * 10 + "\n")
    file.write_text(json.dumps({"images": [], "file_name": 0, "categories": [], "annotations": []}))
    assert "lists no image" in problems(tmp_path)[0]
    write(file, listed("x.png", "y.png"), [annotation(1, 1, square(0, 0))])
    assert "none of its images is there; found no 'x.png', no 'y.png'" in problems(tmp_path)[0]


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a": ' * 200_000, '{"images": [%s]}' % ("9" * 5000)])
def test_json_that_no_program_wrote(tmp_path, bomb):
    file = instances(tmp_path)
    file.write_text(bomb + ' "images" "file_name" "annotations"')
    (told,) = problems(tmp_path)
    assert "annotations.json: is not valid JSON" in told


@pytest.mark.parametrize("key", ["annotations", "categories", "images"])
@pytest.mark.parametrize("value", [None, 5, 1.5, "text", {}])
def test_lists_that_are_none(tmp_path, key, value):
    file = instances(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value, "info": [{"annotations": 0, "images": 0, "file_name": 0}]}))
    (told,) = problems(tmp_path)
    assert "annotations.json: is no COCO file" in told
    assert "expected lists 'images', 'categories' and 'annotations'" in told


def test_licences_are_names_or_nothing(tmp_path):
    file = instances(tmp_path)
    whole = json.loads(file.read_text())
    for licences, expected in (
        ([{"name": ["x"]}], ""),
        ([{"name": ["x"]}, {"name": "y"}], "y"),
        ([{"name": "y"}, {"name": "z"}], ""),
        (3, ""),
    ):
        file.write_text(json.dumps(whole | {"licenses": licences}))
        assert open_dataset(tmp_path).licence == expected


def test_numbers_and_names_that_nothing_can_hold(tmp_path):
    """Each is told before anything is made of it."""
    pictures(tmp_path / "images", "a.png")
    images = [
        *listed("a.png"),
        {"id": 2, "file_name": "large.png", "height": 10**6, "width": 10**6},
        {"id": 3, "file_name": "deep.png", "height": 2**70, "width": 1},
        {"id": 2**70, "file_name": "b.png", "height": 6, "width": 8},
        {"id": 5, "file_name": "\ud800.png", "height": 6, "width": 8},
        {"id": 6, "file_name": "a\0.png", "height": 6, "width": 8},
        {"id": 7, "file_name": ".", "height": 6, "width": 8},
    ]
    nines = int("9" * 4300)
    annotations = [
        annotation(1, 1, square(0, 0)),
        annotation(2, 1, {"size": list(SHAPE), "counts": [2**70, 2**70]}),
        annotation(3, 1, {"size": list(SHAPE), "counts": [nines, nines]}),
        annotation(4, 1, [[0, 0, 1, 1, 2, 10**400]]),
        annotation(5, 1, [[0, 0, 1, 1, 2, 1e9]]),
        annotation(6, 1, {"size": list(SHAPE), "counts": [2**62, 2**62]}),
    ]
    write(tmp_path / "a.json", images, annotations, [*CATEGORIES, {"id": 5, "name": "\udcff"}])
    found = [text.split("a.json: ")[1] for text in problems(tmp_path)]
    for expected in (
        "categories without a name; found id 5 ('\\udcff')",
        "images are too large; found 'large.png' (1000000 x 1000000), expected at most 2147483647 pixels",
        "images without a size; found 'deep.png'",
        f"image ids are no whole numbers from 0 on; found {2**70} ('b.png')",
        "file names hold what no name can; found '\\ud800.png', 'a\\x00.png'",
        "file names lead out of the folder of images; found '.'",
        "run lengths that are none; found annotation 2 of 'a.png'",
        "polygons that are none; found annotation 4 of 'a.png' ([0, 0, 1, 1, 2, 1000",
        f"run lengths that do not fill their image; found annotation 6 of 'a.png' ({2**63} of 48 pixels)",
    ):
        assert any(text.startswith(expected) for text in found), (expected, found)
    assert len(found) == 9


def test_a_size_that_is_not_that_of_the_image_is_told_before_anything_is_drawn(tmp_path):
    pictures(tmp_path / "images", "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 40_000, "width": 40_000}
    write(tmp_path / "a.json", [image], [annotation(1, 1, square(0, 0))])
    tracemalloc.start()
    with pytest.raises(
        DatasetError, match=r"image 1 .a\.png.: the size of the image is wrong; found width 40000 in the JSON, 8 in the file"
    ):
        verify(open_dataset(tmp_path), workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26


def test_what_is_odd_about_objects_is_told_once(tmp_path):
    pictures(tmp_path / "images", "a.png", "b.png")
    write(tmp_path / "a.json", listed("a.png", "b.png"), [annotation(1, 1, square(0, 0)), annotation(2, 1, square(1, 1))])
    told = [str(warning) for warning in verify(open_dataset(tmp_path), workers=1).warnings]
    assert len([text for text in told if "objects overlap in 1 pixels" in text]) == 1


def test_images_in_several_places(tmp_path):
    for folder in ("one", "two"):
        pictures(tmp_path / folder, "a.png")
    write(tmp_path / "a.json", listed("a.png"), [annotation(1, 1, square(0, 0))])
    (told,) = problems(tmp_path)
    assert "several folders hold images of these names; found one, two" in told
    pictures(tmp_path / "images", "a.png")
    assert open_dataset(tmp_path).cases[0].images[0].parent.name == "images"


def test_no_mask_is_read_before_its_turn(tmp_path):
    """A dataset opens without decoding; `verify` names every damaged mask."""
    pictures(tmp_path / "images", "a.png", "b.png")
    damaged = {"size": list(SHAPE), "counts": "04"}
    write(tmp_path / "a.json", listed("a.png", "b.png"), [annotation(1, 1, damaged), annotation(2, 2, damaged)])
    found = open_dataset(tmp_path)
    with pytest.raises(DatasetError) as caught:
        verify(found, workers=1)
    assert [str(p).partition(": run")[0].partition("annotation ")[2] for p in caught.value.problems] == ["1 of 'a.png'", "2 of 'b.png'"]
    with pytest.raises(ImageError, match="run lengths do not fill their image"):
        read_case(found.cases[0], labels=found.labels)


def test_a_file_that_is_cut_off(tmp_path):
    """With and without the keys by which a file is known to be COCO's, and wherever it lies."""
    file = instances(tmp_path)
    text = file.read_text()
    for place in (file, tmp_path / "annotations" / "instances.json"):
        file.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        for length in (70, text.index('"annotations"') + 30):
            place.write_text(text[:length])
            (problem,) = problems(tmp_path)
            assert problem.startswith(f"{place}: is not valid JSON; found ")
            assert "line 1 column " in problem
            assert problem.endswith("Export or download it again; it may be truncated.")


def test_a_list_of_results_is_no_dataset(tmp_path):
    file = instances(tmp_path)
    file.write_text(json.dumps([annotation(7, 1, square(0, 0))]))
    (problem,) = problems(tmp_path)
    assert problem == (
        f"{file}: is a list of results, and no dataset; found 1 entries, expected {{'images': ..., ...}}. Take the file with the annotations; "
        "results are for evaluation."
    )
    file.write_text(json.dumps({"anything": 1}))
    assert "no folder of labels" in problems(tmp_path)[0]
    file.write_text("[" * 100_000)
    assert problems(tmp_path)[0].startswith(f"{file}: is not valid JSON")


@pytest.mark.parametrize("resample", [True, False])
def test_a_listed_size_that_is_wrong(tmp_path, resample):
    pictures(tmp_path / "images", "a.png", "b.png")
    images = listed("a.png", "b.png")
    images[0]["width"] = 999
    images[1]["height"], images[1]["width"] = 5, 9
    file = write(tmp_path / "annotations.json", images, [annotation(7, 1, square(0, 0)), annotation(8, 2, square(0, 0))])
    with pytest.raises(DatasetError) as caught:
        verify(open_dataset(tmp_path), workers=1, resample_labels=resample)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{file}, image 1 (a.png): the size of the image is wrong; found width 999 in the JSON, 8 in the file. Correct the JSON.",
        f"{file}, image 2 (b.png): the size of the image is wrong; found width 9 in the JSON, 8 in the file; height 5 in the JSON, 6 in the "
        "file. Correct the JSON.",
    ]
