"""The page: self-contained, well-formed, honest; outlines that follow pixels exactly."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_boxes import box, save
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medseg.dataset import LabelClass, Labels
from medseg.errors import ImageError, UsageError
from medseg.evaluation.page.charts import label, nice
from medseg.evaluation.page.outline import loops, outline
from medseg.evaluation.page.overlays import choose, views
from medseg.evaluation.pairing import Pair
from medseg.evaluation.records import Before, Evaluation
from medseg.evaluation.scoring import evaluate

LABELS = Labels(classes=(LabelClass(name="<box> & co", values=(1,)),))
VOID = {"meta", "input", "br", "img", "path", "rect", "line", "circle", "image", "polyline"}


class Balance(HTMLParser):
    """Checks that every tag is closed and collects what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.references = [], []

    def handle_starttag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href", "action", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(folders, tmp_path):
    predictions, references = folders
    for path in references.iterdir():
        save(tmp_path / "images" / path.name, np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32))
    save(predictions / "<img>.nii.gz", box(1, 2))
    curve = tmp_path / "fold_0" / "metrics.csv"
    curve.parent.mkdir()
    curve.write_text("epoch,seconds,loss,validation_dice,note\n0,1,1.5,,x\n1,2,1.1,0.5,y\n2,3,0.9,,z\n")
    evaluate(
        predictions, references, LABELS, tmp_path / "out", images=tmp_path / "images", curves=[curve], workers=1, title="A <b>title</b>"
    )
    return (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_well_formed_and_self_contained(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in parser.references)
    assert not re.search(r"@import|url\(|https?://", page)


def test_names_are_escaped(page):
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "<b>title" not in page
    assert "&lt;box&gt; &amp; co" in page
    assert "<box>" not in page
    assert "1 prediction without a reference</b>, not scored: &lt;img&gt;" in page


def test_says_what_was_found(page):
    assert "Mean Dice</span><b>0.500</b>" in page
    assert re.findall(r'class="badge (\w+)"', page) == ["best", "median", "worst"]
    assert re.findall(r"<h3>(\w+)</h3>", page) == ["good", "half", "missed"]
    assert "axial 3 of 8" in page  # box 2:6 of z: the first of the equally full slices
    assert "NSD at 2 mm" in page
    assert '<td class="miss">1</td>' in page


@pytest.mark.parametrize("selected", [False, True])
def test_says_when_the_weights_were_chosen_on_these_cases(folders, tmp_path, selected):
    evaluation = evaluate(*folders, LABELS, tmp_path / "out", workers=1, selected=selected)
    assert evaluation.selected is selected
    assert Evaluation.open(tmp_path / "out").selected is selected
    sentence = "<b>Slightly optimistic</b>: weights (with <code>--patience</code>), the configuration or cleaning rules were chosen"
    assert ((tmp_path / "out" / "index.html").read_text(encoding="utf-8").count(sentence) == 1) is selected


def test_curves(page):
    assert page.count('<polyline class="curve"') == 2
    assert "validation dice <b>0.5</b>" in page
    assert "seconds" not in page.split('id="training"')[1].split("<section")[0]


@pytest.mark.parametrize("text", ["", "epoch\n", "name\nx\n"])
def test_curves_without_numbers(folders, tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match="no training curves"):
        evaluate(*folders, LABELS, tmp_path / "out", curves=[path], workers=1)
    with pytest.raises(UsageError, match="cannot be read"):
        evaluate(*folders, LABELS, tmp_path / "out", curves=[tmp_path / "none.csv"], workers=1)
    assert not (tmp_path / "out").exists()


def test_image_of_another_shape(folders, tmp_path):
    for path in folders[1].iterdir():
        save(tmp_path / "images" / path.name, np.zeros((3, 3, 3), np.float32))
    with pytest.raises(ImageError, match="image and reference have different shapes"):
        evaluate(*folders, LABELS, tmp_path / "out", images=tmp_path / "images", workers=1)
    assert not (tmp_path / "out").exists()


@settings(max_examples=150)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)))
def test_outlines_enclose_exactly_the_mask(mask):
    found = loops(mask)
    area = sum(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, [*loop[1:], loop[0]], strict=True)) / 2 for loop in found)
    assert area == mask.sum()
    edges = np.pad(mask, 1)
    length = sum(int((np.diff(edges.astype(int), axis=a) != 0).sum()) for a in (0, 1))
    assert length == sum(abs(x1 - x0) + abs(y1 - y0) for p in found for (x0, y0), (x1, y1) in zip(p, [*p[1:], p[0]], strict=True))
    assert outline(mask).count("Z") == len(found) >= ndimage.label(mask)[1]
    # Even-odd count of crossings to the left of each pixel's centre.
    inside = np.zeros_like(mask)
    for loop in found:
        for (x0, y0), (_, y1) in zip(loop, [*loop[1:], loop[0]], strict=True):
            if y0 != y1:
                inside[min(y0, y1) : max(y0, y1), x0:] ^= True
    assert (inside == mask).all()


def test_outline_of_one_pixel():
    assert outline(np.eye(2, dtype=bool)[:1]) == "M0 0H1V1H0Z"
    assert outline(np.zeros((2, 2), bool)) == ""


def test_views_are_as_radiologists_look(tmp_path):
    """Right-anterior-superior voxel axes: on an axial view the patient's left is on the right and anterior is up."""
    label_map = np.zeros((20, 20, 20), np.uint8)
    label_map[4, 15, 10] = 1  # i=4 of 20 along R: in the patient's left half; j=15 of 20 along A: in front
    path = save(tmp_path / "a.nii.gz", label_map, np.eye(4))
    axial, coronal, sagittal = views(Pair("a", path, path), (), Labels(classes=(LabelClass(name="a", values=(1,)),)))
    assert [v.title.split()[0] for v in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    # Cropped with a margin of 8: the voxel lies at its margin, except where the image ends. RAS x=4 is LPS index 15.
    assert axial.reference == ("M8 4H9V5H8Z",)
    assert coronal.reference == ("M8 8H9V9H8Z",)
    assert sagittal.reference == ("M4 8H5V9H4Z",)


def test_choice_of_cases():
    assert choose(np.array([0.2, 0.9, np.nan, 0.5])) == (("best", 1), ("median", 3), ("worst", 0))
    assert choose(np.array([0.2, 0.9])) == (("best", 1), ("median", 0))
    assert choose(np.array([0.2])) == (("best", 0),)
    assert choose(np.array([np.nan])) == ()


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e4))
def test_ticks_enclose_the_data(low, width):
    ticks = nice(low, low + width, 5)
    assert 2 <= len(ticks) <= 12
    assert ticks[0] <= low + 1e-5 * width
    assert ticks[-1] >= low + width * (1 - 1e-5)


def test_tick_labels():
    assert [label(t, nice(0, 1, 5)) for t in nice(0, 1, 5)] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [label(t, nice(0, 60, 5)) for t in nice(0, 60, 5)] == ["0", "20", "40", "60"]


def test_says_what_the_model_it_began_with_had_seen(folders, tmp_path):
    before = Before(cases=2, unknown=("other 3d",))
    evaluation = evaluate(*folders, LABELS, tmp_path / "out", workers=1, before=before)
    assert Evaluation.open(tmp_path / "out").before == evaluation.before == before
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    said = (
        "2 of these 3 cases were trained on by the model that this one began with (--init), so their scores say little about unseen ones."
    )
    assert f"<b>Not unseen</b>: {said}" in page
    assert "it is unknown which cases &#x27;other 3d&#x27; was trained on, with which this model began (--init)" in page
    assert evaluate(*folders, LABELS, tmp_path / "plain", workers=1).before == Before()
    assert "Not unseen" not in (tmp_path / "plain" / "index.html").read_text(encoding="utf-8")
