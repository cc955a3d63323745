"""FROC by hand, and against MONAI."""

import math

import numpy as np
import pytest

from medseg.metrics.instances import RATES
from medseg.metrics.instances.froc import Findings, findings
from tests.metrics.instances.test_average_precision import case, detections


def froc(cases, cls=1):
    return Findings.of([findings(case, cls) for case in cases]).curve()


def test_by_hand():
    first = detections([[0.3, 0], [0.2, 0], [0, 0], [0, 0.05]], [0.9, 0.95, 0.8, 0.7])  # the first lesion is found twice, the second not
    second = detections([[0.1], [0.0]], [0.6, 0.8])
    curve = froc([first, second])
    assert (curve.cases, curve.lesions) == (2, 3)
    assert curve.scores.tolist() == [0.95, 0.8, 0.7, 0.6]
    assert curve.false_positives.tolist() == [0, 1, 1.5, 1.5]
    assert curve.sensitivity.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert [curve.at(rate) for rate in (0.25, 1.5, 8)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert curve.mean == pytest.approx((4 * 1 / 3 + 3 * 2 / 3) / 7)


def test_equal_to_monai():
    """monai.metrics.compute_froc_score 1.6.1 of the same false and true positives, with one score below all others, which it leaves out."""
    cases = [case(seed, "segm") for seed in (1, 2, 3)]
    assert [froc(cases, cls).mean for cls in (1, 2)] == pytest.approx([0.5663265306122448, 0.7397959183673468])


def test_crowds_and_ignored_voxels_excuse():
    one = detections([[0.6, 0], [0.4, 0], [0, 0.5]], [0.9, 0.8, 0.7], crowd=[True, False])
    curve = froc([one])
    assert curve.lesions == 1
    assert curve.false_positives.tolist() == [1, 1]  # more than half within a crowd is not false, less is
    assert curve.sensitivity.tolist() == [0, 1]


def test_perfect_missed_and_absent():
    assert froc([detections(np.eye(3), [0.2, 0.9, 0.5])]).mean == 1.0
    assert froc([detections(np.zeros((0, 2)), [])]).mean == 0.0
    assert math.isnan(froc([detections(np.zeros((2, 0)), [0.5, 0.4])]).mean)


def test_never_falls_with_more_false_positives():
    curve = froc([case(seed, "bbox") for seed in (4, 5)])
    values = [curve.at(rate) for rate in RATES]
    assert values == sorted(values)
    assert (np.diff(curve.false_positives) >= 0).all()
