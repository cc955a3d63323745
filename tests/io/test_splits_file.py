"""Folds that a user has decided: what is read, what is refused, what is odd."""

import json

import pytest
from synthetic import make_dataset

from medseg.dataset import Dataset, Split, Splits
from medseg.errors import DatasetError
from medseg.io.layouts.splits import odd_splits, with_splits

FOLDS = [{"train": ["case_00", "case_01"], "val": ["case_02"]}, {"train": ["case_02"], "val": ["case_00", "case_01"]}]
READ = (Split(train=("case_00", "case_01"), val=("case_02",)), Split(train=("case_02",), val=("case_00", "case_01")))


def build(root, cases=3, groups="abcdefghij"):
    dataset = make_dataset(cases=cases)
    members = tuple(c.model_copy(update={"group": g}) for c, g in zip(dataset.cases, groups, strict=False))
    return dataset.model_copy(update={"root": root, "cases": members})


def write(file, content):
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def refusal(tmp_path, content, dataset=None):
    file = write(tmp_path / "given.json", content)
    with pytest.raises(DatasetError) as caught:
        with_splits(dataset or build(tmp_path), file)
    return str(caught.value).replace(str(file), "FILE")


def test_splits_final_in_the_datasets_folder(tmp_path):
    dataset = build(tmp_path)
    assert with_splits(dataset, None) is dataset
    file = write(tmp_path / "splits_final.json", FOLDS)
    found = with_splits(dataset, None)
    assert found.splits == Splits(folds=READ, source="splits_final.json")
    assert found.notes == (f"folds: 2, as {file} says",)
    assert odd_splits(found) == odd_splits(dataset) == []


def test_a_file_of_the_user_goes_before_that_of_the_dataset(tmp_path):
    """Also medseg's own format, and with it a single fold."""
    final = write(tmp_path / "splits_final.json", FOLDS)
    Splits(folds=READ[:1]).save(tmp_path / "splits.json")
    found = with_splits(build(tmp_path), tmp_path / "splits.json")
    assert found.splits == Splits(folds=READ[:1], source="splits.json")
    assert found.notes == (f"folds: 1, as {tmp_path / 'splits.json'} says; {final} is not used",)
    assert with_splits(build(tmp_path), final).notes == (f"folds: 2, as {final} says",)


def test_splits_where_nnunet_keeps_them(tmp_path):
    raw, prepared = tmp_path / "nnUNet_raw" / "Dataset007_X", tmp_path / "nnUNet_preprocessed" / "Dataset007_X"
    raw.mkdir(parents=True)
    prepared.mkdir(parents=True)
    assert with_splits(build(raw), None).splits is None
    file = write(prepared / "splits_final.json", FOLDS)
    found = with_splits(build(raw), None)
    assert found.splits == Splits(folds=READ, source="splits_final.json")
    assert found.notes == (f"folds: 2, as {file} says",)
    nearer = write(raw / "splits_final.json", FOLDS[:1])
    assert with_splits(build(raw), None).notes == (f"folds: 1, as {nearer} says; {file} is not used",)
    # Another folder of that name says nothing about a dataset that lies elsewhere.
    other = tmp_path / "data" / "Dataset007_X"
    other.mkdir(parents=True)
    assert with_splits(build(other), None).splits is None


def test_splits_are_not_written_with_the_dataset(tmp_path):
    dataset = build(tmp_path)
    found = dataset.model_copy(update={"splits": Splits(folds=READ)})
    found.save(tmp_path / "dataset.json")
    assert Dataset.load(tmp_path / "dataset.json") == dataset


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "FILE: is not valid JSON; found Expecting value: line 1 column 2 (char 1). Correct the file at this place, or restore it."),
        (
            "[" + 5000 * "9" + "]",
            "FILE: is not valid JSON; found Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; "
            "use sys.set_int_max_str_digits() to increase the limit. Correct the file at this place, or restore it.",
        ),
        (
            {"name": "x"},
            'FILE: holds no splits; found an object with name, expected a list of {"train": [case ids], "val": [case ids]}, one per fold.',
        ),
        ([], 'FILE: holds no splits; found an empty list, expected a list of {"train": [case ids], "val": [case ids]}, one per fold.'),
        ('"a"', 'FILE: holds no splits; found str, expected a list of {"train": [case ids], "val": [case ids]}, one per fold.'),
        (
            [{"train": ["case_00"], "val": ["case_01"], "test": []}],
            'FILE, fold 0: is no fold; found {"train": ["case_00"], "val": ["case_01"], "test": []}, '
            'expected {"train": [case ids], "val": [case ids]} and nothing else.',
        ),
        (
            [{"train": ["case_0"], "val": ["case_02"]}],
            "FILE, fold 0: names cases that the dataset does not have labelled; found 1 case (case_0), expected case ids such as "
            "case_00, case_01 .... Did you mean 'case_02'?",
        ),
    ],
)
def test_refusals(tmp_path, content, words):
    assert refusal(tmp_path, content) == words


def test_all_problems_at_once(tmp_path):
    dataset = build(tmp_path)
    bare = dataset.cases[0].model_copy(update={"id": "test_1", "label": None})
    folds = [
        {"train": [], "val": ["case_00", "case_00"]},
        {"train": ["test_1", "case_01"], "val": ["case_01", "case_02"]},
        {"train": ["case_00"], "val": 3},
        {"train": ["case_00"], "val": []},
    ]
    assert refusal(tmp_path, folds, dataset.model_copy(update={"unlabelled": (bare,)})) == (
        "6 problems:\n"
        "  1. FILE, fold 0: cases are listed twice in 'val'; found case_00. Name each once.\n"
        "  2. FILE, fold 0: 'train' is empty; expected at least one case.\n"
        "  3. FILE, fold 1: names cases that the dataset does not have labelled; found 1 case (test_1), expected case ids such as "
        "case_00, case_01 .... They have no label: test_1.\n"
        "  4. FILE, fold 1: cases are both trained on and left out; found case_01. Remove them from 'train' or from 'val'.\n"
        '  5. FILE, fold 2: is no fold; found {"train": ["case_00"], "val": 3}, expected {"train": [case ids], "val": [case ids]} '
        "and nothing else.\n"
        "  6. FILE, fold 3: 'val' is empty; expected at least one case. To train on every case, use --fold none."
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.json: splits cannot be read; found No such file or directory\. Check the path\."):
        with_splits(build(tmp_path), tmp_path / "nowhere.json")


def test_odd_splits(tmp_path):
    """Patient `a` has the cases 0 and 2."""
    file = write(tmp_path / "s.json", [FOLDS[0], {"train": ["case_01"], "val": ["case_02"]}])
    assert [str(problem) for problem in odd_splits(with_splits(build(tmp_path, 8, "abacdefg"), file))] == [
        "s.json, fold 0: patients are both trained on and left out, so the scores of this fold say little about other patients; "
        "found 1 patient (case_00, case_02). Keep all cases of a patient on one side.",
        "s.json: cases are left out by several folds; the report takes the prediction of the first of these; found 1 case (case_02).",
        "s.json: cases are in no fold, so they are neither trained on nor scored, also with --fold none; found 5 cases "
        "(case_03, case_04, case_05, case_06, case_07).",
    ]


def test_cases_are_found_by_an_index_that_follows_copies():
    dataset = make_dataset()
    assert all(dataset.case(case.id) is case for case in dataset.cases)
    assert dataset.by_id is dataset.by_id
    few = dataset.model_copy(update={"cases": dataset.cases[:2]})
    with pytest.raises(KeyError):
        few.case(dataset.cases[2].id)
    assert few == make_dataset().model_copy(update={"cases": few.cases})
