"""Files of detections."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.errors import ImageError
from medseg.io.coco.export import Instances
from medseg.io.detections import Detection, DetectionFiles, detections_path, read_detections, write_detections
from medseg.io.rle import Rle
from medseg.prediction import FoundObjects
from tests.io.coco.scenes import SHAPE
from tests.io.coco.test_export import LABELS, result, written

FOUND = FoundObjects(
    SHAPE,
    np.array([[0.0, 0, 2, 3], [1, 1, 3, 3], [4, 4, 6, 6]]),
    np.array([0.1, 0.75, 0.05], np.float32),
    np.array([1, 1, 1], np.int32),
    (np.full((2, 3), 255, np.uint8), np.full((2, 2), 200, np.uint8), np.full((2, 2), 90, np.uint8)),
)


def test_all_that_was_found_surest_first(tmp_path: Path) -> None:
    """Objects overlap, unsure ones are there, and what has no voxel is none."""
    one = result(tmp_path)
    one = replace(one, prediction=replace(one.prediction, found=FOUND))
    DetectionFiles().write(one, tmp_path)
    read = read_detections(tmp_path / "a.png", LABELS, SHAPE)
    assert read is not None
    assert [(d.index, d.score) for d in read] == [(0, 0.75), (0, pytest.approx(0.1))]
    sure, unsure = (d.mask.decode() for d in read)
    assert (sure[1:3, 1:3].all(), sure.sum(), unsure[:2, :3].all(), unsure.sum()) == (True, 4, True, 6)
    told = written(Instances(), tmp_path / "out", one)
    assert [(a["score"], a["area"], a["bbox"]) for a in told["annotations"]] == [(0.75, 4, [1, 1, 2, 2]), (0.1, 6, [0, 0, 3, 2])]


def test_without_them_the_objects_of_the_label_map(tmp_path: Path) -> None:
    one = result(tmp_path)
    DetectionFiles().write(one, tmp_path)
    read = read_detections(tmp_path / "a.png", LABELS, SHAPE)
    assert read is not None
    assert [(d.index, d.score) for d in read] == [(0, 0.25), (0, pytest.approx(1 / 3))]
    for detection, number in zip(read, (2, 7), strict=True):
        assert np.array_equal(detection.mask.decode(), one.prediction.labels == (1 << NUMBER_BITS | number))


def test_nobody_said_how_sure(tmp_path: Path) -> None:
    one = result(tmp_path)
    DetectionFiles().write(replace(one, prediction=replace(one.prediction, objects=None)), tmp_path)
    assert read_detections(tmp_path / "a.png", LABELS, SHAPE) is None
    assert read_detections(tmp_path / "b.png", LABELS, SHAPE) is None


def test_volumes_and_boxes(tmp_path: Path) -> None:
    labels = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="ä", values=(2,))), things=("a", "ä"))
    mask = np.random.default_rng(0).random((4, 5, 6)) < 0.3
    some = [Detection(1, 3.5, Rle.encode(mask), (0.5, 0.0, 0.0, 4.0, 5.0, 5.5)), Detection(0, 0.5, Rle.encode(mask[::-1]))]
    write_detections(detections_path(tmp_path, "c.1"), some, labels, mask.shape)
    read = read_detections(tmp_path / "c.1.nii.gz", labels, mask.shape)
    assert read is not None
    assert [(d.index, d.score, d.box) for d in read] == [(1, 3.5, (0.5, 0.0, 0.0, 4.0, 5.0, 5.5)), (0, 0.5, None)]
    assert np.array_equal(read[0].mask.decode(), mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"shape": [6, 8], "detections": [{"class": "cell", "score": 1}]}', r"cannot be read; found KeyError\('counts'\)"),
        ('{"shape": [6, 8], "detections": [{"class": "cell", "score": NaN, "counts": "`1"}]}', "cannot be read; found ValueError"),
        (
            '{"shape": [6, 8], "detections": [{"class": "dog", "score": 1, "counts": "`1"}]}',
            "of another class; found 'dog', expected cell, tissue",
        ),
        ('{"shape": [6, 8], "detections": [{"class": "cell", "score": 1, "counts": "5"}]}', "run lengths do not fill their image"),
        ('{"shape": [8, 6], "detections": []}', "different shapes; found 8 x 6, expected 6 x 8"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    path = detections_path(tmp_path, "a")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ImageError, match=message) as caught:
        read_detections(tmp_path / "a.png", LABELS, SHAPE)
    assert str(path) in str(caught.value)
    assert "Predict again" in str(caught.value)


def test_files_say_nothing_of_the_machine(tmp_path: Path) -> None:
    DetectionFiles().write(result(tmp_path), tmp_path)
    told = json.loads(detections_path(tmp_path, "a").read_text())
    assert told["shape"] == list(SHAPE)
    assert set(told) == {"shape", "detections"}
