"""Scores of real label maps against what panopticapi and panoptica say of them; only the tables of their overlaps are kept here.

`benchmarks/instance_scores.py` makes the tables of the files, says where these are, and scores the files themselves.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.metrics.instances import Contingency, add_up, match, panoptic

HERE = Path(__file__).parent / "published"


def maps(rows):
    """One line of voxels for the truth and for the prediction, which share what the table says."""
    truth, prediction, voxels = np.array(rows).T
    return np.repeat(truth, voxels), np.repeat(prediction, voxels)


def test_sample_of_panopticapi():
    """Void, crowds and stuff; the IoU to twelve digits."""
    table, cases = json.loads((HERE / "coco_panoptic_sample.json").read_text(encoding="utf-8")), []
    for image in table["rows"]:
        truth, prediction = maps(image["pixels"])
        category = {number: category for number, category, _ in image["truth"]}
        predicted = dict(image["prediction"])
        far = max(category) + 1  # numbers of truth and prediction have one rule for classes
        prediction = np.where(prediction > 0, prediction + far, 0)
        classes = category | {number + far: of for number, of in predicted.items()}
        crowd = [number for number, _, crowd in image["truth"] if crowd]
        assert crowd
        cases.append(
            panoptic(
                Contingency.between(
                    prediction, truth, ignore=0, crowd=crowd, classes=lambda ids, of=classes: np.array([of[int(i)] for i in ids], np.int64)
                )
            )
        )
    total = add_up(cases)
    expected = {int(category): counts for category, counts in table["expected"].items()}
    assert {c: [t.tp, t.fp, t.fn] for c, t in total.items() if t.objects} == {c: counts[:3] for c, counts in expected.items()}
    assert [total[c].iou for c in expected] == pytest.approx([counts[3] for counts in expected.values()], abs=1e-12)


@pytest.mark.parametrize("name", ["unmatched_instance", "semantic"])
def test_spine_of_panoptica(name):
    table = json.loads((HERE / "spine.json").read_text(encoding="utf-8"))
    truth, prediction = maps(table["rows"][name])
    found = match(Contingency.between(prediction, truth), 0.5).tallies()[1]
    assert [found.tp, found.fp, found.fn] == table["expected"][name][:3]
    assert [found.f1, found.sq, found.pq] == pytest.approx(table["expected"][name][3:], abs=1e-12)
