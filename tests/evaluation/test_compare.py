"""Paired comparison: which way is better, who is paired, what is adjusted."""

import numpy as np
import pytest
from scipy import stats

from medseg.dataset import LabelClass, Labels
from medseg.errors import UsageError
from medseg.evaluation.comparison import ALL, compare
from medseg.evaluation.records import CaseScores
from medseg.evaluation.summary import summarise

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))


def evaluation(values, ids, title="x", labels=TWO, metrics=("dice", "hd95", "volume_error")):
    cases = [
        CaseScores(id=i, scores={name: dict.fromkeys(metrics, v) for name, v in zip(labels.names, row, strict=True)},
                   reference=dict.fromkeys(labels.names, 1), predicted=dict.fromkeys(labels.names, 1))
        for i, row in zip(ids, values, strict=True)
    ]  # fmt: skip
    return summarise(cases, labels, metrics, title)


def test_differences_by_hand():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 0.7, (9, 2))
    second = first + rng.uniform(-0.02, 0.1, (9, 2))
    ids = [f"c{i}" for i in range(9)]
    order = [3, 0, 8, 1, 2, 4, 5, 6, 7]  # pairs go by id, not by position
    found = compare(evaluation(first, ids, "A"), evaluation(second[order], [ids[i] for i in order], "B"))
    assert (found.a, found.b, found.cases, found.only_a, found.only_b) == ("A", "B", tuple(ids), (), ())
    dice = {d.cls: d for d in found.differences if d.metric == "dice"}
    assert list(dice) == ["a", "b", ALL]
    moved = (second - first)[:, 0]
    assert dice["a"].difference == pytest.approx(moved.mean())
    assert dice["a"].p == pytest.approx(stats.wilcoxon(moved).pvalue)
    assert dice["a"].low < moved.mean() < dice["a"].high
    assert (dice["a"].better_a, dice["a"].better_b) == ((moved < 0).sum(), (moved > 0).sum())
    assert dice[ALL].difference == pytest.approx((second - first).mean())
    raw = sorted((dice["a"].p, dice["b"].p))
    assert sorted((dice["a"].p_holm, dice["b"].p_holm)) == pytest.approx([min(1, 2 * raw[0]), max(min(1, 2 * raw[0]), raw[1])])


def test_better_depends_on_the_metric():
    first, second = evaluation([[0.2, -0.2]], ["c"]), evaluation([[0.3, 0.1]], ["c"])
    better = {(d.cls, d.metric): (d.better_a, d.better_b) for d in compare(first, second).differences}
    assert better["a", "dice"] == (0, 1)
    assert better["a", "hd95"] == (1, 0)
    assert better["a", "volume_error"] == (1, 0)
    assert better["b", "volume_error"] == (0, 1)


def test_only_common_defined_cases_count():
    first = evaluation([[0.5, None], [0.6, 0.6], [0.7, 0.7]], ["c", "d", "e"])
    second = evaluation([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7]], ["c", "d", "f"])
    found = compare(first, second)
    assert (found.cases, found.only_a, found.only_b) == (("c", "d"), ("e",), ("f",))
    by_name = {d.cls: d for d in found.differences if d.metric == "dice"}
    assert (by_name["a"].n, by_name["a"].difference, by_name["a"].p) == (2, 0.0, 1.0)
    assert (by_name["b"].n, by_name["b"].low) == (1, None)


def test_nothing_in_common():
    other = Labels(classes=(LabelClass(name="z", values=(1,)),))
    first, second = evaluation([[0.5, 0.5]], ["c"]), evaluation([[0.5]], ["d"], labels=other, metrics=("iou",))
    with pytest.raises(UsageError) as caught:
        compare(first, second)
    assert [p.what for p in caught.value.problems] == [f"two evaluations without a common {w}" for w in ("case", "class", "metric")]
