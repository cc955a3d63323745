from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medseg.dataset import LabelClass, Labels
from medseg.tasks.base import learned, unlearned
from medseg.tasks.cleaning import SIZES, Cleaning, HeldOut, clean, learn

TWO = Labels(classes=(LabelClass(name="liver", values=(1,)), LabelClass(name="tumour", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))),
    order=(1, 2),
)
SPACING = (2.0, 1.0, 1.0)


def picture(*blobs, shape=(6, 20, 20)):
    labels = np.zeros(shape, np.uint8)
    for value, box in blobs:
        labels[box] = value
    return labels


BIG = np.s_[1:5, 2:10, 2:10]
STRAY = np.s_[2:3, 15:18, 15:18]  # 9 voxels, 18 mm³
DOT = np.s_[4:5, 1:2, 15:16]


def test_the_largest_component_stays():
    labels = picture((1, BIG), (1, STRAY), (2, DOT))
    clean(labels, [Cleaning(cls="liver", largest=True)], TWO, SPACING)
    assert np.array_equal(labels, picture((1, BIG), (2, DOT)))


def test_components_are_measured_in_cubic_millimetres():
    for limit, stays in ((18.0, True), (18.1, False)):
        labels = picture((1, BIG), (1, STRAY))
        clean(labels, [Cleaning(cls="liver", smallest=limit)], TWO, SPACING)
        assert np.array_equal(labels, picture((1, BIG), *([(1, STRAY)] if stays else [])))


def test_all_classes_together_are_one_object():
    touching = (2, np.s_[1:5, 10:12, 2:10])
    labels = picture((1, BIG), touching, (2, STRAY))
    clean(labels, [Cleaning(cls="", largest=True)], TWO, SPACING)
    assert np.array_equal(labels, picture((1, BIG), touching))


def test_holes_are_filled_with_background_only():
    hole, other = np.s_[2:3, 5:7, 5:7], np.s_[3:4, 5:6, 5:6]
    labels = picture((1, BIG), (0, hole), (2, other))
    clean(labels, [Cleaning(cls="liver", fill=True)], TWO, SPACING)
    assert np.array_equal(labels, picture((1, BIG), (2, other)))


def test_corners_touch():
    labels = picture((1, BIG), (1, np.s_[5:6, 10:11, 10:11]))
    before = labels.copy()
    clean(labels, [Cleaning(cls="liver", largest=True)], TWO, SPACING)
    assert np.array_equal(labels, before)


@given(labels=hnp.arrays(np.uint8, (3, 6, 5), elements=st.integers(0, 2)), limit=st.sampled_from([0.0, 2.0, 9.0]), largest=st.booleans())
def test_cleaning_removes_whole_components_and_is_done_at_once(labels, limit, largest):
    rules = [Cleaning(cls="tumour", smallest=limit, largest=largest)]
    cleaned = clean(labels.copy(), rules, TWO, SPACING)
    assert np.array_equal(clean(cleaned.copy(), rules, TWO, SPACING), cleaned)
    assert np.array_equal(cleaned == 1, labels == 1)
    components, count = ndimage.label(labels == 2, structure=np.ones((3, 3, 3)))
    for k in range(1, count + 1):
        assert len(np.unique(cleaned[components == k])) == 1


def cases(count, *wrong, truth=((1, BIG), (2, np.s_[2:3, 4:6, 4:6]))):
    return [HeldOut(picture(*truth, *wrong), picture(*truth), SPACING) for _ in range(count)]


def test_stray_components_teach_a_rule():
    rules, why = learn(cases(6, (1, STRAY)), TWO)
    assert rules == (Cleaning(cls="", largest=True),)
    assert why.startswith("Proven on 6 held-out predictions: all classes together: the largest component only, +0.0")


def test_a_class_alone_where_all_together_would_not_do():
    """Truly scattered tumours forbid to keep one object; small false liver is removed all the same."""
    far = (2, np.s_[0:1, 12:15, 0:2])
    truth = ((1, BIG), far)
    rules, _ = learn(cases(6, (1, STRAY), truth=truth), TWO)
    assert [(rule.cls, rule.largest or rule.smallest > 18) for rule in rules] == [("liver", True)]
    labels = picture(*truth, (1, STRAY))
    clean(labels, rules, TWO, SPACING)
    assert np.array_equal(labels, picture(*truth))


def test_false_alarms_count_in_cases_without_the_class():
    right = cases(8, truth=((1, BIG), (2, np.s_[1:5, 12:18, 2:8])))
    alarms = [HeldOut(picture((1, BIG), (2, STRAY)), picture((1, BIG)), SPACING) for _ in range(8)]
    rules, why = learn([*right, *alarms], TWO)
    (rule,) = rules
    assert (rule.cls, rule.largest, rule.fill) == ("", False, False)
    assert 18 < rule.smallest <= 288
    assert rule.smallest in SIZES
    assert f"all classes together: components of at least {rule.smallest:g} mm³, +0.25" in why


def test_holes_teach_to_fill_them():
    truth = ((1, BIG),)
    rules, why = learn(cases(6, (0, np.s_[2:3, 5:7, 5:7]), truth=truth), TWO)
    assert rules == (Cleaning(cls="liver", fill=True),)
    assert "liver: holes filled" in why


def test_right_predictions_teach_nothing_and_neither_do_few_cases():
    assert learn(cases(6), TWO) == ((), "None: no rule raises the Dice on 6 held-out predictions beyond doubt.")
    assert learn(cases(4, (1, STRAY)), TWO) == ((), "None: 4 held-out cases prove nothing.")


def test_a_doubtful_gain_is_no_gain():
    """It helps in one case of eight."""
    assert learn([*cases(7), *cases(1, (1, STRAY))], TWO)[0] == ()


def test_regions_are_cleaned_together_only():
    truth = ((1, BIG), (2, np.s_[2:3, 4:6, 4:6]))
    rules, _ = learn([HeldOut(picture(*truth, (1, STRAY)), picture(*truth), SPACING) for _ in range(6)], REGIONS)
    assert rules == (Cleaning(cls="", largest=True),)


def test_ignored_voxels_prove_nothing():
    labels = Labels(classes=TWO.classes, ignore=9)
    truth = picture((1, BIG), (9, STRAY))
    assert learn([HeldOut(picture((1, BIG), (1, STRAY)), truth, SPACING)] * 6, labels)[0] == ()


def test_an_empty_prediction_stays_empty():
    empty = picture()
    clean(empty, [Cleaning(cls="", largest=True, fill=True)], TWO, SPACING)
    assert not empty.any()
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Cleaning(cls="", smallest=-1)


def test_rules_set_by_hand_stay_and_nothing_is_learned(plans):
    def cases():
        pytest.fail("was read")
        yield

    rules = '[{"cls": "", "largest": true}]'
    plan = plans[0].edited({"target.cleaning": rules})
    assert learned(plan, cases()) == (plan, {"cleaning": "set by hand, so nothing is learned"})
    assert unlearned(plan) is plan
    assert learned(plan.edited({"target.cleaning.0.largest": "false"}), cases())[1] == {"cleaning": "set by hand, so nothing is learned"}
    # Rules that nobody has set are learned anew, and can be taken back.
    other = plan.model_copy(update={"reasons": plans[0].reasons})
    assert unlearned(other).target == plans[0].target
    assert learned(other, ())[0].target == plans[0].target
