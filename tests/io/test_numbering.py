"""Values that are classes, and values that number objects, told apart by their looks, with the reason said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg import workflow
from medseg.errors import DatasetError
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.planning.verify import verify

AUTO = LayoutOptions(objects="auto")
PLACES = [(y, x) for y in range(4, 40, 8) for x in range(4, 40, 8)]


def squares(values: list[int], size: int = 40) -> np.ndarray:
    """One square for each value, apart from the others."""
    label = np.zeros((size, size), np.uint16)
    for value, (y, x) in zip(values, PLACES, strict=False):
        label[y : y + 4, x : x + 4] = value
    return label


def folder(root: Path, *labels: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for k, label in enumerate(labels):
        Image.fromarray(rng.integers(0, 255, label.shape, np.uint8)).save(root / "images" / f"c{k}.png")
        Image.fromarray(label).save(root / "labels" / f"c{k}.png")
    return root


def numbered(root: Path, *counts: int) -> Path:
    return folder(root, *(squares(list(range(1, count + 1))) for count in counts))


def test_two_classes_of_ten_disks_are_classes(tmp_path):
    found = open_dataset(folder(tmp_path, squares([1, 2] * 5), squares([1, 1, 2, 2, 2])), AUTO)
    assert [(c.name, c.values) for c in found.labels.classes] == [("class 1", (1,)), ("class 2", (2,))]
    assert (found.labels.objects, found.labels.things, found.task) == ("components", ("class 1", "class 2"), "instance")
    assert found.notes == (
        "objects are connected components, each is a class, values 1, 2 (of 4 values in 2 label files, 0 are one connected component each); "
        "where values number objects: --objects numbers",
    )
    chosen = open_dataset(tmp_path, LayoutOptions(objects="numbers"))
    assert (chosen.labels.objects, chosen.labels.names, chosen.notes) == ("numbers", ("object",), ())
    assert [w.what for w in verify(found, workers=1).warnings] == ["the dataset is small"]


def test_values_that_number_objects(tmp_path):
    found = open_dataset(numbered(tmp_path, 12, 3, 5), AUTO)
    assert (found.labels.objects, found.labels.names) == ("numbers", ("object",))
    assert found.notes == (
        "objects are numbers, each value in a file is one (of 20 values in 3 label files, 20 are one connected component each); "
        "where values are classes: --objects components",
    )


@pytest.mark.parametrize(
    ("values", "classes", "told"),
    [
        (([255, 255], [255]), {"object": (255,)}, "they are one class (no label file holds several values)"),
        (([1], [255]), {"object": (1, 255)}, "they are one class (no label file holds several values)"),
        (([1], [2, 2], [1], [2]), {"class 1": (1,), "class 2": (2,)}, "each is a class, values 1, 2 (no label file holds several values)"),
    ],
)
def test_files_of_one_value(tmp_path, values, classes, told):
    found = open_dataset(folder(tmp_path, *(squares(v) for v in values)), AUTO)
    assert {c.name: c.values for c in found.labels.classes} == classes
    assert found.labels.objects == "components"
    assert told in found.notes[0]


def test_numbers_taken_for_classes_are_one_warning(tmp_path):
    verified = verify(open_dataset(numbered(tmp_path, 14, 3, 5)), workers=1)
    assert [str(w) for w in verified.warnings if "class" in w.what] == [
        f"dataset '{tmp_path.name}': the values of labels look like numbers of objects, but each is a class; found 14 values from 1 to 14; of 22 "
        "values in 3 label files, 22 are one connected component each. To tell the objects apart: --task instance. To make them one class: "
        "--class object=1-14."
    ]


@pytest.mark.parametrize(
    "labels",
    [
        [list(range(1, 13))] * 3,  # organs that every case shows
        [[n for n in range(1, 15) if n % 5], [n for n in range(1, 15) if n % 4], [2, 5, 9]],  # organs of which cases show some
        [list(range(1, 9)), [1, 2, 3]],  # few values
        [list(range(1, 13)) * 2, [1, 2, 1, 2]],  # parts of several components
    ],
)
def test_classes_are_not_taken_for_numbers(tmp_path, labels):
    verified = verify(open_dataset(folder(tmp_path, *(squares(v) for v in labels))), workers=1)
    assert not any("numbers of objects" in w.what for w in verified.warnings)


def test_values_that_are_never_shared_are_numbers(tmp_path):
    verified = verify(open_dataset(folder(tmp_path, squares(list(range(301, 309))), squares(list(range(801, 805))))), workers=1)
    assert "12 values from 301 to 804" in str(verified.warnings[0])


def test_one_class_is_not_advised_to_become_one(tmp_path):
    only = open_dataset(folder(tmp_path, squares([]), squares([1, 2, 3])), LayoutOptions(objects="numbers"))
    (warning,) = [w for w in verify(only, workers=1).warnings if "one case only" in w.what]
    assert warning.fix == "It cannot be learnt and scored at once."


class Said:
    """What is said, in order; nothing is scored before."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def track(self, items, total, name):
        if name == "scoring" and not any("--objects numbers" in line for line in self.lines):
            self.lines.append("scoring")
        return items


@pytest.mark.parametrize("whole", [True, False])
def test_evaluation_hints_at_numbers_before_it_begins(tmp_path, whole):
    root = numbered(tmp_path, 11, 3, 5)
    said = Said()
    references = root if whole else root / "labels"
    workflow.evaluate(root / "labels", references, metrics=["dice"], workers=1, progress=said)  # type: ignore[arg-type]
    assert said.lines == [
        "warning: the references hold 11 values, which look like numbers of objects (of 19 values in 3 label files, 19 are one connected "
        "component each), each taken for a class; where they number objects: --objects numbers"
    ]
    quiet = Said()
    workflow.evaluate(root / "labels", references, objects="auto", workers=1, progress=quiet)  # type: ignore[arg-type]
    assert quiet.lines == ["scoring"]


def test_an_unreadable_label_does_not_hide_the_others(tmp_path):
    root = folder(tmp_path, squares([1, 2] * 5), squares([1, 2, 2, 1]), squares([1, 1, 2, 2]))
    (root / "labels" / "c1.png").write_bytes(b"no picture")
    assert open_dataset(root, AUTO).labels.objects == "components"
    with pytest.raises(DatasetError, match=r"c1\.png"):
        verify(open_dataset(root, AUTO), workers=1)


def test_more_values_than_classes(tmp_path):
    root = folder(tmp_path, np.arange(400, dtype=np.uint16).reshape(20, 20), squares([1, 2]))
    with pytest.raises(
        DatasetError, match=r"found 399 values from 1 to 399.*--task instance or --objects numbers, or as one class --class object=1-399"
    ):
        open_dataset(root)
