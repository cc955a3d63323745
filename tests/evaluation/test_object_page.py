"""Pictures of objects: what was found, missed and invented looks different, neighbours too, and the slice is one that tells."""

import re

import numpy as np
import pytest
from evaluation_boxes import save
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from test_objects_evaluated import confidences
from test_page import Balance

from medseg.dataset import LabelClass, Labels
from medseg.evaluation.page.instances import HUES, Shape, _sign, hues, object_views, view_svg
from medseg.evaluation.page.objects import worst_first
from medseg.evaluation.pairing import Pair
from medseg.evaluation.records import Evaluation
from medseg.evaluation.scoring import evaluate

CELL = Labels(classes=(LabelClass(name="<cell>", values=(1,)),), things=("<cell>",), objects="numbers")


def volume(seed=0):
    """Five blocks, of which the prediction has three, and one more; slices 4 to 7 hold two wrong ones, 12 to 15 another."""
    truth, prediction = np.zeros((12, 14, 20), np.uint8), np.zeros((12, 14, 20), np.uint8)
    for n, (y, z) in enumerate([(1, 4), (6, 4), (10, 4), (1, 12), (6, 12)], 1):
        truth[2:6, y : y + 3, z : z + 4] = n
    prediction[truth == 1] = 5
    prediction[truth == 4] = 7
    prediction[truth == 5] = 9
    prediction[8:11, 1:4, 4:7] = 2
    prediction[8:11, 6:9, 12:13] = 3
    return truth, prediction


@pytest.fixture
def page(tmp_path):
    truth, prediction = volume()
    for case, found in (("good", truth), ("bad", prediction), ("worse", np.zeros_like(truth))):
        save(tmp_path / "r" / f"{case}.nii.gz", truth)
        save(tmp_path / "p" / f"{case}.nii.gz", found)
        save(tmp_path / "i" / f"{case}.nii.gz", truth.astype(np.float32))
        confidences(tmp_path / "p", case, [(n, "<cell>", n / 10) for n in np.unique(found)[1:]])
    evaluate(tmp_path / "p", tmp_path / "r", CELL, tmp_path / "out", 1, images=tmp_path / "i")
    return (tmp_path / "out" / "index.html").read_text(encoding="utf-8"), Evaluation.open(tmp_path / "out")


def test_well_formed_self_contained_and_escaped(page):
    parser = Balance()
    parser.feed(page[0].replace("<ellipse", "<path"))
    assert parser.open == []
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in parser.references)
    assert not re.search(r"@import|url\(|https?://", page[0])
    assert "<cell>" not in page[0]


def test_worst_cases_come_first(page):
    text, found = page
    assert [found.cases[i].id for i in worst_first(found)] == ["worse", "bad", "good"]
    assert re.findall(r'class="badge (\w+)"', text) == ["worst", "next", "best"]
    assert re.findall(r"<h3>(\w+)</h3>", text) == ["worse", "bad", "good"]
    assert "3 found · 2 missed · 2 invented" in text
    assert re.findall(r'<tr data-i="\d"><td>(\w+)</td>', text) == ["worse", "bad", "good"]


def test_tables_and_charts(page):
    text, found = page
    assert f"PQ, all objects</span><b>{found.objects.means['all']['pq'].value:.3f}</b>" in text
    for title in ("PQ, SQ and RQ", "F1 by IoU", "Accuracy by IoU", "Precision and sensitivity", "FROC", "Found by size"):
        assert f"<b>{title}</b>" in text
    assert "Not computed" not in text
    assert found.objects.froc["<cell>"][1][-1] == pytest.approx(8 / 15)
    assert "AP<small>IoU 0.5:0.95</small>" in text


def test_the_slice_through_the_most_wrong_objects(tmp_path):
    truth, prediction = volume()
    case = Pair("a", save(tmp_path / "p.nii.gz", prediction), save(tmp_path / "r.nii.gz", truth))
    axial, coronal, sagittal = object_views(case, (), CELL)
    assert axial.title in {f"axial {k} of 20" for k in (5, 6, 7)}  # two missed and one invented
    kinds = [shape.kind for shape in axial.shapes]
    assert {kind: kinds.count(kind) for kind in kinds} == {"known": 1, "missed": 2, "found": 1, "invented": 1}
    (missed, _) = (s for s in axial.shapes if s.kind == "missed")
    assert missed.title == "missed: <cell> 2, 48 voxels"
    assert [v.title.split()[0] for v in (coronal, sagittal)] == ["coronal", "sagittal"]
    drawn = view_svg(axial)
    assert drawn.count('class="sign"') == kinds.count("invented")
    assert drawn.count("<ellipse") == kinds.count("missed")
    assert "missed: &lt;cell&gt; 2" in drawn
    assert drawn.rindex('Z"/></g>') < min(drawn.index('class="sign"'), drawn.index("<ellipse"))  # symbols lie on top of every outline


def test_symbols_grow_with_their_objects_and_lie_in_one_another():
    def radius(kind, size):
        sign = _sign(Shape(kind, 0, "", (50.0, 50.0), size, ""), (1.0, 1.0), 0.4)
        return float(re.search(r'rx="([\d.]+)"', sign)[1]) if kind == "missed" else float(re.search(r"L([\d.]+)", sign)[1]) - 50

    assert radius("missed", 10.0) == pytest.approx(5.0)
    assert radius("invented", 10.0) == pytest.approx(2.8)
    assert radius("invented", 0.1) == pytest.approx(0.4)  # still seen
    assert all(radius("invented", size) * 2**0.5 < radius("missed", size) for size in (0.1, 1.0, 30.0))


def test_the_page_explains_what_it_shows(page):
    told = page[0].partition("How to read this</h2>")[2]
    for title in ("Found, missed, invented", "IoU", "AP at IoU 0.5:0.95", "AP at IoU 0.5", "Box AP at IoU 0.5:0.95", "FROC", "SQ", "RQ",
                  "Object accuracy at IoU 0.5:0.95", "Lesion F1"):  # fmt: skip
        assert told.count(f"<dt>{title}</dt>") == 1
    for kind in ("found", "known", "invented", "missed"):
        assert f'data-hide="no{kind}"' in page[0]
        assert f"body.no{kind} .{kind}" in page[0]


def test_outlines_lie_where_the_objects_are(tmp_path):
    truth = np.zeros((40, 50), np.uint16)
    truth[10:20, 10:30], truth[10:20, 30:35] = 3, 400
    for name in "pr":
        Image.fromarray(truth).save(tmp_path / f"{name}.png")
    (view,) = object_views(Pair("a", tmp_path / "p.png", tmp_path / "r.png"), (), CELL)
    first, second = (s for s in view.shapes if s.kind == "found")
    assert view.size == (46, 26)  # cropped to rows 2 to 27
    assert (first.path, second.path) == ("M10 8H30V18H10Z", "M30 8H35V18H30Z")
    assert first.hue != second.hue
    assert first.title == "<cell> 3: IoU 1.00"


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 6)))
def test_neighbours_have_different_colours(codes):
    chosen = hues(codes)
    assert set(chosen) == set(np.unique(codes)) - {0}
    assert all(0 <= h < HUES for h in chosen.values())
    for a, b in ((codes[1:], codes[:-1]), (codes[:, 1:], codes[:, :-1])):
        for one, other in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            assert one == other or 0 in (one, other) or chosen[one] != chosen[other]


def test_five_hundred_objects(tmp_path):
    truth = np.zeros((230, 230), np.uint16)
    for n in range(529):
        y, x = divmod(n, 23)
        truth[10 * y + 1 : 10 * y + 9, 10 * x + 1 : 10 * x + 9] = n + 1
    for name in "pr":
        (tmp_path / name).mkdir()
        Image.fromarray(truth).save(tmp_path / name / "a.png")
    found = evaluate(tmp_path / "p", tmp_path / "r", CELL, tmp_path / "out", 1)
    assert found.objects.counts["<cell>"].matched == 529
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert text.count('<g class="o found') == 529 + 1  # and the legend
    assert len(text) < 400_000


def test_a_case_without_objects_is_drawn(tmp_path):
    for name in "pr":
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / name / "a.png")
    evaluate(tmp_path / "p", tmp_path / "r", CELL, tmp_path / "out", 1)
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "0 found · 0 missed · 0 invented" in text
    assert "PQ, all objects</span><b>\u2013</b>" in text
