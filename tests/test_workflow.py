"""The flow of `run`, with its steps replaced; the real ones run in `tests/e2e`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic import make_dataset, make_fingerprint_of, make_plan

import medseg.configurations as trainings
from medseg import held_out, workflow
from medseg.configurations import begin
from medseg.errors import ModelError, PlanError, UsageError
from medseg.evaluation import comparison, scoring
from medseg.evaluation.comparison import open_evaluation
from medseg.evaluation.records import Comparison
from medseg.evaluation.selection import Selection
from medseg.held_out import report, splits_of, trained_on, trained_with
from medseg.planning.planner import choose_plan
from medseg.plans import Plan
from medseg.preconditions import check_apart, check_continuation, check_fold_count, check_workspace
from medseg.progress import Silent
from medseg.steps import Training
from medseg.training.past import Past
from medseg.training.splits import Split, Splits, left_out
from medseg.workspace import RunFolder, Workspace

GOLDEN = Path(__file__).parent.parent / "plans" / "golden"


def result(finished=True, patience=None, interrupted=""):
    return SimpleNamespace(finished=finished, patience=patience, interrupted=interrupted, tracking="sqlite:///x")


@pytest.fixture
def steps(monkeypatch, plans, dataset, fingerprint, tmp_path):
    """`run(results, **options)`: what `run` returns, and the arguments of the trainings and of the report."""
    out = tmp_path / "run"

    def run(results, **options):
        trained, reported, logged, selected = [], [], [], []
        queue = iter(results)

        def train_fold(chosen, workspace, folder, fold, how):
            assert folder.root == (out / "configurations" / chosen.name if (out / "configurations").is_dir() else out)
            trained.append((chosen.name, fold, how))
            return next(queue)

        def entrants(runs):
            selected.append([run.name for run in runs])
            return (), ()

        def select(of, splits, dataset, folder, device, memory, workers, progress):
            plans[1].save(folder.plan_file)
            return Selection(key="", metric="dice", cases=0, candidates=(), chosen=(plans[1].name,), reason="")

        def report(folder, dataset, folds, selected, device, memory, workers, learn, progress):
            reported.append((folds, selected, learn))

        monkeypatch.setattr(workflow, "opened", lambda *arguments: dataset)
        monkeypatch.setattr(workflow, "measured", lambda *arguments: (dataset, fingerprint))
        monkeypatch.setattr(workflow, "planned", lambda *arguments, like: plans)
        monkeypatch.setattr(trainings, "train_fold", train_fold)
        monkeypatch.setattr(workflow, "entrants", entrants)
        monkeypatch.setattr(workflow, "selected", select)
        monkeypatch.setattr(workflow, "report", report)
        monkeypatch.setattr(workflow, "log_model", lambda *arguments: logged.append(len(trained)))
        monkeypatch.setattr(workflow.Workspace, "dataset", lambda workspace: dataset)
        done = workflow.run(Path("data"), out, **options)
        assert logged == ([] if done.interrupted else [len(trained)])  # once, with all folds
        assert selected == ([] if done.selection is None else [[plan.name for plan in sorted(plans, key=lambda plan: plan.name)]])
        return done, trained, reported

    return run


def test_run_trains_every_fold_and_reports_on_those_that_leave_cases_out(steps, plans):
    done, trained, reported = steps([result()] * 3, folds=(1, None, 0), seconds=60, patience=4, workers=2)
    best = next(p.name for p in plans if p.recommended)
    assert [(name, fold) for name, fold, _ in trained] == [(best, 1), (best, None), (best, 0)]
    how = trained[0][2]
    assert (how.seconds, how.epochs, how.patience, how.resume, how.devices, how.workers) == (60, None, 4, True, 1, 2)
    assert reported == [([1, 0], False, False)]
    assert (done.plan, done.folds, done.tracking, done.interrupted) == (best, (1, None, 0), "sqlite:///x", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": (0, 5)}, "--folds: there is no such fold; found 5, expected 0 to 4, or none."),
        ({"configuration": "3d_hi"}, "--configuration: no such configuration; found '3d_hi', expected of 3d, 3d_low, 3d_cascade, 2d"),
        ({"edits": {"training.sed": "1"}}, "--set, field 'training.sed': no such field in a plan. Did you mean 'seed'?"),
        ({"edits": {"training.seed": "x"}}, "--set, field 'training.seed': Input should be a valid integer"),
        ({"edits": {"network.nonesuch": "1"}}, "--set, field 'network.nonesuch': no such field in a plan."),
        ({"network": "unett"}, "--network: unknown network; found 'unett', expected one of"),
        ({"task": "instance", "network": "yolcat"}, "found 'yolcat', expected one of dense, mask-rcnn, yolact, "),
        ({"task": "instance", "network": "yolcat"}, "Did you mean 'yolact'?"),
        ({"network": "qqqq"}, "`medseg tasks` lists them"),
        ({"task": "panoptic?"}, "unknown name in 'medseg.tasks'; found 'panoptic?', expected one of"),
    ],
)
def test_what_cannot_be_is_refused_before_data_are_read(steps, monkeypatch, options, words):
    monkeypatch.setattr(workflow, "measured", None)
    with pytest.raises((UsageError, PlanError)) as caught:
        steps([], **options)
    assert words in str(caught.value)


def test_run_ends_with_the_fold_that_is_interrupted(steps, plans):
    done, trained, reported = steps([result(), result(finished=False, interrupted="SIGTERM")], folds="all", configuration=plans[0].name)
    assert [fold for _, fold, _ in trained] == [0, 1]
    assert (reported, done.folds, done.interrupted, done.report) == ([], (0, 1, 2, 3, 4), "SIGTERM", None)


def test_one_fold_that_patience_ended_makes_the_report_optimistic(steps):
    assert steps([result(patience=3), result()], folds=(0, 1))[2] == [([0, 1], True, False)]


def test_cross_validation_lets_the_task_learn(steps, plans):
    assert steps([result()] * 5, folds="all", configuration=plans[0].name)[2] == [([0, 1, 2, 3, 4], False, True)]


def test_cross_validation_of_all_configurations_selects(steps, plans, tmp_path):
    names = sorted(plan.name for plan in plans)
    done, trained, reported = steps([result()] * 10, folds="all", seconds=90, progress=(talk := Talk()))
    assert [(name, fold) for name, fold, _ in trained] == [(name, fold) for name in names for fold in range(5)]
    assert reported == [([0, 1, 2, 3, 4], True, True)]
    assert (done.plan, done.selection.chosen) == (plans[1].name, (plans[1].name,))
    assert (
        talk.lines[0]
        == f"2 configurations ({', '.join(names)}): 10 trainings of 90 seconds, 15 minutes in all (preparing and predicting come on top)"
    )
    # The same call goes on with the plans that are there, and no other set of configurations may.
    assert len(steps([result()] * 10, folds="all")[1]) == 10
    for options, text in (
        ({}, r"is a run of several configurations; found 2d, 3d\. Pass --folds all"),
        ({"folds": "all", "configuration": "3d"}, "has begun with other configurations; found 2d, 3d, expected 3d"),
        ({"folds": "all", "edits": {"training.seed": "9"}}, "has begun with another plan; found configuration '2d'"),
    ):
        with pytest.raises(ModelError, match=text):
            steps([], **options)


def test_an_interrupted_configuration_is_named(steps, plans):
    names = sorted(plan.name for plan in plans)
    done, trained, reported = steps([result()] * 6 + [result(finished=False, interrupted="SIGINT")], folds="all")
    assert (done.plan, done.interrupted, len(trained), reported, done.selection) == (names[1], "SIGINT", 7, [], None)


def test_a_run_of_one_configuration_goes_on_with_it(steps, plans, tmp_path):
    plans[0].save(tmp_path / "run" / "plan.json")
    assert {name for name, _, _ in steps([result()] * 5, folds="all")[1]} == {plans[0].name}


def test_edits_that_one_configuration_cannot_take_are_told_before_any_training(steps, tmp_path):
    with pytest.raises(PlanError) as caught:
        steps([], folds="all", edits={"window": "[32, 32]"})
    assert str(caught.value).startswith("configuration '3d', ")
    with pytest.raises(UsageError, match=r"--configuration: not configurations to train; found 2d, 3d, expected one\. Pass --folds all"):
        steps([], configuration=("2d", "3d"))
    with pytest.raises(UsageError, match="found 2d, 2d, expected different ones"):
        steps([], folds="all", configuration=("2d", "2d"))
    assert not (tmp_path / "run" / "configurations").exists()


def test_a_cascade_follows_its_earlier_stage_and_takes_it_from_there(monkeypatch, tmp_path):
    """Although its name comes first, and without training it again."""
    workspace, folder = Workspace(tmp_path / "w"), RunFolder(tmp_path / "run")
    stages = [Plan.load(GOLDEN / f"ct_100_cpu8_{name}.json") for name in ("3d_cascade", "3d_low")]
    chosen = begin(folder, stages, (), {}, True, None, Silent())
    assert [one.plan.name for one in chosen] == ["3d_low", "3d_cascade"]

    def train_fold(chosen, workspace, home, fold, how):
        if chosen.previous:
            assert home.previous.finished_file(1).read_text() == "{}"
            assert [file.name for file in home.previous.weights()] == ["network_0.safetensors"] * 2
            assert home.previous.splits_file.is_file()
            return result()
        home.finished_file(fold).parent.mkdir(parents=True)
        home.finished_file(fold).write_text("{}")
        (home.fold(fold) / "network_0.safetensors").write_bytes(b"")
        home.splits_file.write_text("{}")
        home.provenance_file.write_text("{}")
        return result()

    monkeypatch.setattr(trainings, "train_fold", train_fold)
    monkeypatch.setattr("medseg.workspace._networks", lambda fold: 1)
    how = Training(5, None, None, True, "cpu", 1, 1, Talk())
    assert len(trainings.train_all(chosen, workspace, (0, 1), how)) == 4
    assert (
        how.progress.lines[0]
        == "2 configurations (3d_low, 3d_cascade): 4 trainings of 5 seconds, 20 seconds in all (preparing and predicting come on top)"
    )
    # Alone it trains the earlier stage, too, with all folds.
    (alone,) = begin(RunFolder(tmp_path / "alone"), stages, ("3d_cascade",), {}, True, None, Silent())
    monkeypatch.setattr(trainings, "train_fold", lambda *arguments: result())
    how = Training(60, None, None, True, "cpu", 1, 1, Talk())
    trainings.train_all([alone], workspace, (0,), how)
    assert (
        how.progress.lines[0]
        == "2 configurations (3d_cascade, 3d_low for 3d_cascade): 6 trainings of 60 seconds, 6 minutes in all (preparing and predicting come on top)"
    )


def test_a_cascade_that_the_splits_do_not_allow_is_no_configuration(monkeypatch, tmp_path):
    stages = [Plan.load(GOLDEN / f"ct_100_cpu8_{name}.json") for name in ("3d_cascade", "3d_low", "3d")]
    fixed = Splits(folds=(Split(train=("a", "b"), val=("c",)),), source="fixed.json")
    whole = Splits(folds=(Split(train=("a", "b"), val=("c",)), Split(train=("c",), val=("a", "b"))))
    found = begin(RunFolder(tmp_path / "all"), stages, (), {}, True, fixed, talk := Talk())
    assert [one.plan.name for one in found] == ["3d", "3d_low"]
    assert talk.lines == [
        "3d_cascade is left out: it learns from predictions of cases that '3d_low' has not seen, and no fold leaves out 2 of the training cases"
    ]
    for names in (("3d_cascade",), ("3d", "3d_cascade")):
        with pytest.raises(PlanError, match="a cascade cannot be trained with these folds: 2 training cases are left out by none"):
            begin(RunFolder(tmp_path / "named"), stages, names, {}, True, fixed, Silent())
    assert not (tmp_path / "named").exists()
    assert len(begin(RunFolder(tmp_path / "whole"), stages, (), {}, True, whole, Silent())) == 3


def test_a_cascade_takes_no_stage_whose_weights_patience_chose(monkeypatch, tmp_path):
    """It would learn from predictions that are better than those of new cases."""
    stages = [Plan.load(GOLDEN / f"ct_100_cpu8_{name}.json") for name in ("3d_cascade", "3d_low")]
    chosen = begin(RunFolder(tmp_path / "run"), stages, (), {}, True, None, Silent())
    monkeypatch.setattr(trainings, "train_fold", lambda *arguments: result())
    monkeypatch.setattr(trainings, "_copy_trained", lambda *arguments: pytest.fail("was copied"))
    how = Training(60, None, 3, True, "cpu", 1, 1, Talk())
    assert len(trainings.train_all(chosen, Workspace(tmp_path / "w"), range(5), how)) == 10
    assert how.progress.lines[0].startswith("3 configurations (3d_low, 3d_cascade, 3d_low for 3d_cascade): 15 trainings")


class Talk:
    """Remembers what it was told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def test_run_without_cases_left_out_has_no_report(steps):
    assert steps([result()], folds=(None,))[2] == []


def test_configurations_are_chosen_by_name(plans):
    assert choose_plan(plans, None).recommended
    assert choose_plan(plans, plans[-1].name) is plans[-1]
    with pytest.raises(PlanError) as caught:
        choose_plan(plans, "5d")
    assert str(caught.value) == f"--configuration: no such configuration; found '5d', expected {', '.join(p.name for p in plans)}."


def test_going_on_with_another_plan_or_other_data_is_refused(plans, dataset, fingerprint, tmp_path):
    chosen, folder = plans[0], RunFolder(tmp_path)
    check_continuation(folder, chosen, dataset, fingerprint, None, {})
    edited = chosen.edited({"training.seed": "9"})
    check_continuation(folder, edited, dataset, fingerprint, edited.name, {"training.seed": "9"})
    for configuration, edits, expected in (("5d", {}, "5d"), (None, {"training.seed": "9"}, f"{chosen.name}, training.seed=9")):
        with pytest.raises(ModelError) as caught:
            check_continuation(folder, chosen, dataset, fingerprint, configuration, edits)
        assert str(caught.value) == (
            f"{tmp_path}: has begun with another plan; found configuration '{chosen.name}' without the wanted changes, "
            f"expected {expected}. Choose another folder for -o."
        )
    other = chosen.model_copy(update={"data": chosen.data.model_copy(update={"digest": "0" * 16, "name": "Other"})})
    with pytest.raises(ModelError, match=r"is a run of other data; found dataset 'Other', digest 0{16}, expected 'Hippocampus', digest"):
        check_continuation(folder, other, dataset, fingerprint, None, {})


def test_a_workspace_serves_one_dataset_that_may_grow_shrink_or_be_renamed(dataset, tmp_path):
    """Two datasets in folders of one name have one name, so it alone tells nothing."""
    workspace = Workspace(tmp_path)
    present = dataset.model_copy(update={"cases": dataset.cases[4:8]})
    present.save(workspace.dataset_file)

    def check(cases, name=dataset.name):
        check_workspace(workspace, dataset.model_copy(update={"cases": cases, "name": name}))

    for cases in (dataset.cases[4:8], dataset.cases, dataset.cases[4:5], dataset.cases[7:9]):
        check(cases)
    check(dataset.cases[7:3:-1], name="Renamed")
    first, other = min(c.id for c in present.cases), dataset.cases[0].id
    for cases, name, example in ((dataset.cases[:4], dataset.name, other), (dataset.cases[:5], "Other", other)):
        with pytest.raises(UsageError) as caught:
            check(cases, name)
        assert str(caught.value) == (
            f"{tmp_path}: belongs to another dataset; found dataset 'Hippocampus' with 4 cases such as '{first}', "
            f"expected '{name}' with {len(cases)} cases such as '{example}'. Choose another folder for -o."
        )


def test_a_folder_without_an_evaluation(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_evaluation(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no evaluation; expected summary.json. Pass a folder that `medseg evaluate` or `medseg run` wrote."
    )


GIVEN = Splits(
    folds=(Split(train=("case_00", "case_01"), val=("case_02",)), Split(train=("case_02",), val=("case_03",))), source="mine.json"
)


@pytest.fixture
def shelf(tmp_path):
    """A workspace of ten cases, and a model folder."""
    workspace = Workspace(tmp_path / "plans")
    data = make_dataset(cases=10)
    data.save(workspace.dataset_file)
    make_fingerprint_of(data).save(workspace.fingerprint_file)
    return workspace, RunFolder(tmp_path / "run")


def test_the_users_splits_decide(plans, shelf):
    workspace, folder = shelf
    GIVEN.save(workspace.splits_file)
    assert splits_of(plans[0], workspace, folder, 1) == GIVEN
    assert splits_of(plans[0], workspace, folder, None).folds == (Split(train=("case_00", "case_01", "case_02", "case_03"), val=()),)
    with pytest.raises(UsageError, match=r"--fold: there is no such fold; found 2, expected 0 to 1, or none\."):
        splits_of(plans[0], workspace, folder, 2)


def test_medsegs_splits_are_made_once(plans, shelf):
    workspace, folder = shelf
    made = splits_of(plans[0], workspace, folder, 0)
    assert (len(made.folds), made.source) == (5, "")
    made.save(folder.splits_file)
    assert splits_of(plans[0].edited({"training.seed": "3"}), workspace, folder, 0) == made
    assert len(splits_of(plans[0], workspace, folder, None).folds[0].train) == 10


@pytest.mark.parametrize("fold", [0, None])
def test_a_model_that_has_begun_with_other_splits(plans, shelf, fold):
    workspace, folder = shelf
    own = splits_of(plans[0], workspace, folder, 0)
    one = Splits(folds=GIVEN.folds[:1], source="one.json")
    names = {
        own: "those that medseg made, 5 folds",
        one: "those of one.json, 1 fold",
        GIVEN: "those of mine.json, 2 folds",
        None: "medseg's own",
    }
    for present, wanted in ((own, GIVEN), (GIVEN, None), (GIVEN, one)):
        present.save(folder.splits_file)
        workspace.splits_file.unlink(missing_ok=True)
        if wanted is not None:
            wanted.save(workspace.splits_file)
        with pytest.raises(ModelError) as caught:
            splits_of(plans[0], workspace, folder, fold)
        assert str(caught.value) == (
            f"{folder.root}: has begun with other splits; found {names[present]}, expected {names[wanted]}. "
            "Choose another folder for -o, or go on with the splits that this one has."
        )
    one.model_copy(update={"source": "renamed.json"}).save(folder.splits_file)
    one.save(workspace.splits_file)
    assert splits_of(plans[0], workspace, folder, 0).folds == one.folds


def test_as_many_folds_as_the_splits_have(plans):
    two = plans[0].edited({"training.folds": "2"})
    check_fold_count(two, GIVEN)
    check_fold_count(plans[0], None)
    with pytest.raises(PlanError) as caught:
        check_fold_count(plans[0], GIVEN)
    assert str(caught.value) == (
        f"plan '{two.name}', field 'training.folds': the plan and the splits have different numbers of folds; found 5, "
        "expected 2, as in mine.json. Leave the field as it is, or plan with other splits."
    )


def test_cases_that_several_folds_leave_out_are_predicted_once(monkeypatch, tmp_path, dataset):
    folder = RunFolder(tmp_path)
    folds = tuple(Split(train=("z",), val=tuple(val)) for val in ("ab", "bc", "a"))
    Splits(folds=folds, source="x").save(folder.splits_file)
    monkeypatch.setattr(held_out, "predict_held_out", lambda *arguments, **options: {})
    monkeypatch.setattr(held_out.Plan, "load", lambda file: None)
    monkeypatch.setattr(held_out, "past_of_cases", lambda folder, cases: (0, ()))
    monkeypatch.setattr(scoring, "evaluate", lambda *arguments, cases, **options: cases)
    assert report(folder, dataset, [2, 0, 1], False, "cpu", None, 1, False, Silent()) == ["a", "b", "c"]
    assert left_out(folds, [2, 0, 1]) == {2: ("a",), 0: ("b",), 1: ("c",)}
    assert left_out(folds, [1]) == {1: ("b", "c")}


def test_models_that_have_trained_on_different_cases(tmp_path, monkeypatch):
    """Of runs and of their report folders; a folder of which nothing is known is not called different."""
    first, other = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    Splits(folds=(Split(train=("x", "y"), val=("a", "b")), Split(train=("a", "b"), val=("a", "x")))).save(first.splits_file)
    Splits(folds=(Split(train=("y", "x"), val=("a", "c")), Split(train=("x", "z"), val=("b",)))).save(other.splits_file)
    assert trained_with(first) == {"a": {"x", "y"}, "b": {"x", "y"}, "x": {"a", "b"}}
    assert trained_with(RunFolder(tmp_path)) == {}
    for folder in (first, other):
        folder.report.mkdir()
    found = Comparison(a="", b="", cases=("a", "b"), only_a=(), only_b=(), differences=())
    monkeypatch.setattr(comparison, "open_evaluation", lambda path: None)
    monkeypatch.setattr(comparison, "compare", lambda *evaluations: found)
    for a, b in ((first.root, other.root), (first.report, other.report)):
        assert workflow.compare(a, b).trained_apart == ("b",)
        assert workflow.compare(a, tmp_path).trained_apart == ()
    assert workflow.compare(first.root, first.report).trained_apart == ()


def test_cases_that_a_model_has_trained_on_are_counted(tmp_path):
    folder = RunFolder(tmp_path)
    assert trained_on(folder, ["a"]) == 0
    Splits(folds=(Split(train=("a", "b"), val=("c",)), Split(train=("b", "c"), val=("a",)))).save(folder.splits_file)
    (tmp_path / "plan.json").write_text("{}")

    def train(fold):
        folder.fold(fold).mkdir()
        (folder.fold(fold) / "network_0.safetensors").write_bytes(b"")

    train(0)
    assert [trained_on(folder, [case]) for case in "abcd"] == [1, 1, 0, 0]
    train(1)
    assert trained_on(folder, "abcd") == 3
    (folder.fold(0) / "network_0.safetensors").unlink()
    assert [trained_on(folder, [case]) for case in "abcd"] == [0, 1, 1, 0]
    train(None)
    assert trained_on(folder, "abcd") == 3
    plan = make_plan()
    plan.save(folder.plan_file)
    before = Past.begin(plan, Split(train=("d",), val=()), True, None)
    Past.begin(plan, Split(train=("a", "b"), val=("c",)), True, before).save(folder.fold(None) / "past.json")
    assert trained_on(folder, "abcd") == 4


def test_nothing_is_written_among_what_is_read(dataset, tmp_path):
    for root in (dataset.root, dataset.root / "workspace", dataset.root / "imagesTr" / "run" / "workspace"):
        with pytest.raises(UsageError, match=r"the output would lie among the files of the dataset\. Choose another folder for -o\."):
            check_workspace(Workspace(root), dataset)
    check_apart(tmp_path / "out", tmp_path)
    with pytest.raises(UsageError, match="the output would lie among the inputs"):
        check_apart(tmp_path / "x" / "..", tmp_path)


def test_a_folder_of_plans_is_no_plan(tmp_path, plans, dataset):
    dataset.save(tmp_path / "dataset.json")
    (tmp_path / "fingerprint.json").touch()
    for one in plans:
        one.save(tmp_path / f"{one.name}.json")
    names = ", ".join(sorted(f"{one.name}.json" for one in plans))
    with pytest.raises(UsageError, match=f"is a folder of plans; expected one of them: {names}"):
        workflow.explain(tmp_path)
