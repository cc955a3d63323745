"""Verbs as `medseg` runs them, within this process: what they print and their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg import workflow
from medseg.commands import main
from medseg.dataset import LabelClass, Labels
from medseg.evaluation.records import Before, CaseScores, Comparison, Difference, Evaluation
from medseg.evaluation.selection import Candidate, Selection
from medseg.evaluation.summary import summarise
from medseg.selection import SelectResult
from medseg.workflow import RunResult

Cli = Callable[..., tuple[int, str, str]]
NOT_A_CLASS = (
    "error --class: not a class; found '{}', expected NAME=VALUES, e.g. polyp=1-20 or edema=2,3. "
    "Name the class, and give its values one by one or as ranges from low to high.\n"
)
NOT_TOGETHER = (
    "error --class: {}; found {}, expected values above 0, each of one class only and not the ignore value. "
    "Give each class values of its own; only a dataset can declare regions that overlap.\n"
)
BACKGROUND = "value 0 is background and cannot belong to a class"
OVERLAP = "overlapping regions need 'order' (regions_class_order) with one written value per class"
REFUSED = [
    (("a",), NOT_A_CLASS.format("a")),
    (("=1",), NOT_A_CLASS.format("=1")),
    (("a=5-3",), NOT_A_CLASS.format("a=5-3")),
    (("a=1,5-3",), NOT_A_CLASS.format("a=1,5-3")),
    (("a=1-",), NOT_A_CLASS.format("a=1-")),
    (
        ("a b=1", " a b =2"),
        "error --class: a class is given twice; found ' a b =2' after another 'a b', expected each name once. "
        "Give all values of a class together, e.g. --class 'a b=1,2'.\n",
    ),
    (("a=0",), NOT_TOGETHER.format(BACKGROUND, "a=0")),
    (("a=0-9",), NOT_TOGETHER.format(BACKGROUND, "a=0,1,2,3,4,5,6,7,...")),
    (("a=1,2", "b=2"), NOT_TOGETHER.format(OVERLAP, "a=1,2 b=2")),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli(*arguments)`: exit code, stdout and stderr of `medseg`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):  # `main` sets them for its process
        monkeypatch.setenv(name, "test")
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset of one picture, with the label values 1 and 2."""
    for folder, array in (("images", np.zeros((6, 6))), ("labels", np.arange(36).reshape(6, 6) // 18 + 1)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / "data" / folder / "a.png")
    return tmp_path / "data"


@pytest.mark.parametrize(("classes", "message"), REFUSED)
@pytest.mark.parametrize("verb", ["evaluate", "verify", "plan", "run"])
def test_classes_that_cannot_be(verb: str, classes: tuple[str, ...], message: str, cli: Cli, pictures: Path) -> None:
    out = pictures.parent / "out"
    arguments = {
        "evaluate": (pictures / "labels", pictures / "labels", "-o", out),
        "verify": (pictures,),
        "plan": (pictures, "-o", out),
        "run": (pictures, "-o", out),
    }[verb]
    assert cli(verb, *arguments, *(word for one in classes for word in ("--class", one))) == (2, "", message)
    assert not out.exists()


def test_classes_that_share_a_value_with_what_is_ignored(cli: Cli, pictures: Path) -> None:
    (pictures / "medseg.json").write_text('{"ignore": 2}')
    expected = NOT_TOGETHER.format("the ignore value 2 also belongs to a class: 'b'", "a=1 b=2")
    assert cli("verify", pictures, "--class", "a=1", "--class", "b=2") == (2, "", expected)


def test_classes_of_many_values(cli: Cli, pictures: Path) -> None:
    labels, out = pictures / "labels", pictures.parent / "out"
    code, _, err = cli("evaluate", labels, labels, "-o", out, "--class", "all = 1-2, 4", "--class", "b=9", "--metrics", "dice")
    assert (code, err) == (0, "")
    found = Evaluation.open(out).labels
    assert [(c.name, c.values) for c in found.classes] == [("all", (1, 2, 4)), ("b", (9,))]


def test_a_comparison_fits_80_columns(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    differences = [
        Difference(cls=cls, metric=metric, n=12, mean_a=0.8, mean_b=0.81, difference=0.01, low=-0.002, high=0.022, better_a=3, better_b=9,
                   p=0.0312, p_holm=0.06)
        for metric in ("dice", "hd95") for cls in ("Anterior", "mean of classes")
    ]  # fmt: skip
    found = Comparison(a="A", b="B", cases=("a", "b"), only_a=(), only_b=(), trained_apart=("b",), differences=tuple(differences))
    monkeypatch.setattr(workflow, "compare", lambda *arguments: found)
    code, out, err = cli("compare", tmp_path / "one", tmp_path / "two")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rows = [" ".join(line.replace("│", " ").split()) for line in lines if line.startswith("│")]
    assert rows == [f"{cls} 12 0.800 0.810 +0.0100 -0.0020 to 0.022 0.031" for cls in ("Anterior", "mean")] * 2
    assert all(len(line) <= 80 for line in lines if line[:1] in "┏┃┡│└")
    assert "change is second - first with its bootstrap interval" in out
    assert "the two models have trained on different cases: 1 of the compared ones (b) were left out by folds" in " ".join(out.split())


@pytest.mark.parametrize("verb", ["verify", "plan", "run"])
def test_splits_that_cannot_be(verb: str, cli: Cli, pictures: Path) -> None:
    """In the dataset's folder or given, they are refused before anything is read or written."""
    (pictures / "splits_final.json").write_text('[{"train": ["b"], "val": ["a"]}]')
    (pictures.parent / "mine.json").write_text('[{"train": ["a"], "val": ["a"]}]')
    out = () if verb == "verify" else ("-o", pictures.parent / "out")
    assert cli(verb, pictures, *out) == (
        2,
        "",
        f"error {pictures.resolve() / 'splits_final.json'}, fold 0: names cases that the dataset does not have labelled; found 1 case (b), "
        "expected case ids such as a. Cases are named as `medseg predict` names them.\n",
    )
    assert cli(verb, pictures, *out, "--splits", pictures.parent / "mine.json") == (
        2,
        "",
        f"error {pictures.parent / 'mine.json'}, fold 0: cases are both trained on and left out; found a. "
        "Remove them from 'train' or from 'val'.\n",
    )
    assert not (pictures.parent / "out").exists()


def test_regions_of_which_one_is_never_seen(cli: Cli, pictures: Path) -> None:
    (pictures / "medseg.json").write_text('{"classes": {"core": [2], "whole": [1, 2]}, "order": [2, 1]}')
    assert cli("verify", pictures) == (
        2,
        "",
        f"error {pictures.resolve() / 'medseg.json'}, labels: class 'core' can never be seen: 'whole' comes later in the region order and "
        "overwrites all of it; larger regions come first.\n",
    )


@pytest.mark.parametrize("verb", ["demo", "run"])
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_says_how_to_go_on(verb: str, signal: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = RunResult(model=tmp_path, plan="3d", folds=(0,), report=None, evaluation=None, tracking="sqlite:///x", interrupted=signal)
    monkeypatch.setattr(workflow, verb, lambda *arguments, **options: stopped)
    data = [tmp_path] if verb == "run" else []
    assert cli(verb, *data, "-o", tmp_path) == (1, f"stopped by {signal}; the same command goes on from there\n", "")


def test_a_finished_demo_shows_its_scores(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CaseScores(id="a", scores={"edge": {"dice": 0.5}}, reference={"edge": 1}, predicted={"edge": 1})
    evaluation = summarise([case], Labels(classes=(LabelClass(name="edge", values=(1,)),)), ("dice",), "Demo")
    done = RunResult(model=tmp_path, plan="3d", folds=(0,), report=tmp_path, evaluation=evaluation, tracking="")
    monkeypatch.setattr(workflow, "demo", lambda *arguments, **options: done)
    code, out, err = cli("demo", "-o", tmp_path)
    assert (code, err) == (0, "")
    assert " ".join(out.split()).startswith("Demo: 1 case, mean and its 95 % bootstrap interval ")
    assert out.endswith(
        f"Report: {tmp_path / 'index.html'}\nOpen the report in a browser. The same on your data: medseg run DATASET -o RUN --time 20m\n"
    )
    assert "0.500" in out
    assert "--init" not in out
    known = evaluation.model_copy(update={"before": Before(cases=1, unknown=("other 3d",))})
    monkeypatch.setattr(workflow, "demo", lambda *arguments, **options: done.model_copy(update={"evaluation": known}))
    said = cli("demo", "-o", tmp_path)[1]
    assert "warning 1 of these 1 cases were trained on by the model that this one began with (--init)" in said
    assert "warning it is unknown which cases 'other 3d' was trained on" in said


SELECTION = Selection(
    key="k",
    metric="dice",
    cases=12,
    candidates=(
        Candidate(
            members=("3d", "2d"), mean=0.9, low=0.88, high=0.92, difference=0.01, difference_low=0.004, difference_high=0.016, seconds=3.5
        ),
        Candidate(members=("3d",), mean=0.89, low=0.87, high=0.91, seconds=2),
        Candidate(members=("2d",), mean=0.8, low=None, high=None, difference=-0.09, seconds=1.5),
    ),
    chosen=("3d", "2d"),
    reason="Together they are better.",
)


def test_select_prints_all_candidates_and_the_choice(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}
    case = CaseScores(id="a", scores={"edge": {"dice": 0.5}}, reference={"edge": 1}, predicted={"edge": 1})
    evaluation = summarise([case], Labels(classes=(LabelClass(name="edge", values=(1,)),)), ("dice",), "Held out")

    def select(runs, out, **options):
        asked.update(runs=runs, out=out, **options)
        return SelectResult(model=out, selection=SELECTION, report=out / "report", evaluation=evaluation)

    monkeypatch.setattr(workflow, "select", select)
    code, out, _ = cli("select", "a", "b", "-o", tmp_path / "model", "--plans", "p", "--memory", 3)
    assert code == 0
    assert (asked["runs"], asked["plans"], asked["memory"]) == ([Path("a"), Path("b")], Path("p"), 3)
    rows = [" ".join(line.replace("\u2502", " ").split()) for line in out.splitlines()]
    for row in ("* 3d + 2d 0.9000 +0.0100 3.500", "3d 0.8900 2.000", "2d 0.8000 -0.0900 1.500", "0.880 to 0.920 0.0040 to 0.016"):
        assert row in rows
    assert "* 3d + 2d. Together they are better." in rows


def test_configurations_are_named_one_by_one_or_together(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def run(*arguments, **options):
        asked.append(options["configuration"])
        return RunResult(model=tmp_path, plan="3d", folds=(0,), selection=SELECTION, report=None, evaluation=None, tracking="")

    monkeypatch.setattr(workflow, "run", run)
    for options in ((), ("--configuration", "2d,3d"), ("--configuration", "2d", "--configuration", "3d")):
        code, out, _ = cli("run", "d", "-o", tmp_path, "--folds", "all", *options)
        assert code == 0
    assert asked == [(), ("2d", "3d"), ("2d", "3d")]
    assert "Selected on 12 cases left out of training, before any cleaning" in out


def test_convert_writes_a_mask_on_its_images(cli: Cli, tmp_path: Path) -> None:
    from medseg.io.dicom.reading.segments import read_segmentation
    from medseg.io.dicom.volume import Source
    from medseg.io.images import write_label
    from tests.io.dicom.predicted import letter, series

    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    mask, out = tmp_path / "mask.nii.gz", tmp_path / "seg.dcm"
    write_label(mask, labels, volume.path)
    arguments = ("convert", mask, "--reference", tmp_path / "in", "-o", out)
    named = ("--class", "liver=1", "--class", "spleen=2,3")
    assert cli(*arguments, *named)[0] == 0
    found = read_segmentation(Source(out), volume)
    assert found.names == {1: "liver", 2: "spleen"}
    assert np.array_equal(found.maps[0], np.minimum(labels, 2))
    assert cli(*arguments)[2] == f"error {out}: exists already. Choose another file, or pass --overwrite.\n"
    code, told, _ = cli(*arguments, "--overwrite", "--format", "labelmap")
    assert code == 0
    assert "'label 1', 'label 2', 'label 3': no SNOMED CT code is known for 3 classes" in " ".join(told.split())
    assert cli("convert", mask, "--reference", tmp_path / "in", "-o", tmp_path)[0] == 2
    assert "has no meaning without --reference" in cli("convert", tmp_path / "in", "-o", tmp_path / "x", *named)[2]
