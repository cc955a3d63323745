"""Tables of objects, and what they are made of."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg import scratch
from medseg.dataset import NUMBER_BITS, CaseFiles, LabelClass, Labels
from medseg.io.exports import Maker, Result
from medseg.io.found import Findings
from medseg.io.images import read_header
from medseg.io.rle import Rle
from medseg.io.table import Table
from medseg.prediction import Prediction
from tests.io.coco.scenes import pictures

LABELS = Labels(classes=(LabelClass(name="cell", values=(1,)), LabelClass(name="tissue", values=(2, 3))), things=("cell",))
SHAPE = (4, 5, 6)  # z, y, x


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def result(image: Path, codes: np.ndarray, labels: Labels = LABELS, **objects: float) -> Result:
    files = CaseFiles(id=image.name.partition(".")[0], images=(image,), group="g")
    scores = {code(1, int(number[1:])): score for number, score in objects.items()}
    return Result(files, Prediction(files.id, codes, objects=scores), read_header(image).grid, labels, Maker("model", "0.1", "01"))


def volume(folder: Path) -> tuple[Path, np.ndarray]:
    """Spacing 2, 3, 4 mm along x, y, z; RAS, so x and y turn their signs."""
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE[::-1], np.int16), np.diag([2.0, 3.0, 4.0, 1.0])), folder / "v.nii.gz")
    codes = np.zeros(SHAPE, np.int32)
    codes[1, 2:4, 3:5] = code(1, 12)
    codes[0, 0, 0] = code(1, 3)
    codes[3] = code(2)
    codes[3, 0] = code(3)
    return folder / "v.nii.gz", codes


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_objects_of_a_volume(tmp_path):
    image, codes = volume(tmp_path)
    Table().write(result(image, codes, n3=0.5, n12=0.875), tmp_path / "out")
    one, other, tissue = rows(tmp_path / "out" / "objects" / "v.csv")
    assert other == {
        "case": "v", "number": "12", "class": "cell", "score": "0.875", "voxels": "4", "volume_mm3": "96",
        "x_mm": "-7", "y_mm": "-7.5", "z_mm": "4", "x": "3.5", "y": "2.5", "z": "1",
        "x_min": "3", "y_min": "2", "z_min": "1", "x_max": "5", "y_max": "4", "z_max": "2",
    }  # fmt: skip
    assert (one["number"], one["score"], one["voxels"]) == ("3", "0.5", "1")
    assert (tissue["number"], tissue["class"], tissue["score"], tissue["voxels"]) == ("", "tissue", "", "30")


def test_pictures_have_no_millimetres(tmp_path):
    pictures(tmp_path, "a.png", shape=(4, 5))
    codes = np.zeros((4, 5), np.int32)
    codes[2, 1:3] = code(1, 1)
    Table().write(result(tmp_path / "a.png", codes), tmp_path / "out")
    (row,) = rows(tmp_path / "out" / "objects" / "a.csv")
    assert (row["area_mm2"], row["x_mm"], row["x"], row["y"], row["x_max"], row["y_max"], row["score"]) == (
        "",
        "",
        "1.5",
        "2",
        "3",
        "3",
        "",
    )
    assert "z" not in row


def test_one_table_of_all_cases(tmp_path):
    image, codes = volume(tmp_path)
    (tmp_path / "w.nii.gz").write_bytes(image.read_bytes())
    table, out = Table(), tmp_path / "out"
    results = [result(image, codes), result(tmp_path / "w.nii.gz", codes * 0)]
    for one in results:
        table.write(one, out)
    table.collect([table.targets(one.files, False) for one in results], out)
    assert [row["case"] for row in rows(out / "objects.csv")] == ["v"] * 3
    assert (out / "objects.csv").read_text() == (out / "objects" / "v.csv").read_text()
    table.collect([], out)
    assert (out / "objects.csv").read_text() == ""


@pytest.mark.parametrize("together", [2**22, 7])
def test_findings_of_any_label_map(tmp_path, monkeypatch, together):
    """In one slab or many; without background, with regions that overlap, and at random: masks, boxes, centres and run lengths agree with the plain way."""
    monkeypatch.setattr(scratch, "CHUNK", together)
    image, _ = volume(tmp_path)
    random = np.random.default_rng(0)
    full = code(1) | random.integers(1, 9, SHAPE).astype(np.int32)
    regions = Labels(classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), order=(1, 2))
    for labels, array in ((LABELS, full), (LABELS, np.where(random.random(SHAPE) < 0.5, 0, full)), (regions, random.integers(0, 3, SHAPE))):
        findings = Findings.of(result(image, array, labels))
        assert findings.found
        for one in findings.found:
            values = [int(findings.values[place]) for place in one.places]
            mask = np.isin(array, values)
            index = np.argwhere(mask)
            assert [(a.start, a.stop) for a in one.box] == list(zip(index.min(0), index.max(0) + 1, strict=True))
            assert one.voxels == len(index)
            assert np.allclose(findings.centre(one), index.mean(0))
            assert np.array_equal(findings.mask(one), mask[one.box])
            assert np.array_equal(findings.rle(one).counts, Rle.encode(mask).counts)
    assert Findings.of(result(image, full * 0)).found == ()


def test_an_object_takes_the_memory_of_its_box(tmp_path):
    """Of thousands of objects in a large image, not that of the image for each."""
    pictures(tmp_path, "a.png", shape=(1000, 1000))
    codes = np.zeros((1000, 1000), np.int32)
    codes[500:510, 700:720] = code(1, 1)
    codes[::7, ::7] = code(2)
    findings = Findings.of(result(tmp_path / "a.png", codes))
    one = findings.found[0]
    tracemalloc.start()
    counts, centre = findings.rle(one).counts, findings.centre(one)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(counts, Rle.encode(codes == code(1, 1)).counts)
    assert np.allclose(centre, np.argwhere(codes == code(1, 1)).mean(0))
    assert peak < 100_000
