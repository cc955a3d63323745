"""Trainings that begin with the weights of another model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_training import Talk, Tiny

from medseg.dataset import Split
from medseg.errors import ModelError
from medseg.planning.pretext import pretext_plan
from medseg.plans import Plan
from medseg.tasks.base import find_objective
from medseg.training.module import Learner
from medseg.training.past import Past, past_of_cases
from medseg.training.start import Origin, Source, _meaning, _transferred
from medseg.training.train import TrainingResult
from medseg.workspace import RunFolder

PROGRAM = Path(__file__).with_name("tiny_training.py")
SEVERAL = (("training.network_steps", "6"), ("training.networks", "3"))
NAMES = ("network_0.safetensors", "network_1.safetensors", "network_2.safetensors")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A source of two networks in fold 0 and one in fold 1, and a model of three networks that began with it."""
    tiny = Tiny(tmp_path_factory.mktemp("start"), SEVERAL)
    tiny.run("source", epochs=4)
    tiny.run("source", epochs=2, fold=1)
    talk = Talk()
    tiny.run("begun", epochs=6, source=tiny.source("source"), progress=talk)
    (tiny.root / "said.txt").write_text("\n".join(talk.lines))
    return tiny


def start(tiny, **arguments):
    process = subprocess.run([sys.executable, str(PROGRAM), str(tiny.root), json.dumps(arguments)], stdout=subprocess.PIPE, text=True)
    assert process.returncode == 9


@pytest.fixture
def beginnings(monkeypatch):
    """What networks are when they begin, in order."""
    seen = []
    real = Learner._new

    def new(self, number):
        network = real(self, number)
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return network

    monkeypatch.setattr(Learner, "_new", new)
    return seen


def test_each_network_begins_with_one_of_the_source(tiny, beginnings):
    tiny.run("watched", epochs=6, source=tiny.source("source"))
    files = [load_file(tiny.root / "source" / "fold_0" / name) for name in NAMES[:2]]
    for beginning, file in zip(beginnings, [files[0], files[1], files[0]], strict=True):
        assert all(torch.equal(beginning[name], tensor) for name, tensor in file.items())
    for name in NAMES:
        assert (tiny.root / "watched" / "fold_0" / name).read_bytes() == (tiny.root / "begun" / "fold_0" / name).read_bytes()


def test_what_is_left_of_the_source(tiny):
    folder = tiny.root / "begun"
    text = (folder / "init.json").read_text()
    assert str(tiny.root) not in text
    origin = Origin.load(folder / "init.json")
    assert (origin.source, origin.plan_digest) == ("made up 3d", tiny.plan.trained_digest())
    assert (origin.transferred.share, origin.transferred.adapted, origin.transferred.fresh) == (1.0, {}, {})
    assert origin.meaning.heads == {"segmentation": ("background", "anterior", "posterior")}
    assert not list(folder.rglob("source.safetensors"))
    assert len(RunFolder(folder).weights()) == 3
    said = (tiny.root / "said.txt").read_text().splitlines()
    assert said[0] == "begins with made up 3d, fold_0 (2 networks, one after another): 100 % of the parameters are transferred"
    assert said[1].split() == ["copied", str(origin.transferred.copied), "tensors", "name", "and", "shape", "are", "the", "same"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("method", "count", "gone"),
    [
        ("medseg.training.start.Source.keep", 1, True),
        ("medseg.training.history.History.save", 3, False),
        ("medseg.training.module.Learner.renew", 1, True),
        ("medseg.training.train.Job.finish", 1, False),
    ],
)
def test_killed_and_resumed_without_the_source_it_ends_with_the_same_weights(tiny, method, count, gone):
    name, source = f"killed {method.rpartition('.')[2]} {gone}", f"a source {method} {gone}"
    shutil.copytree(tiny.root / "source", tiny.root / source)
    start(tiny, name=name, epochs=6, edits=dict(SEVERAL), source=source, die=(method, count))
    assert (tiny.root / name / "fold_0" / "state" / "source.safetensors").is_file()
    given = {} if gone else {"source": tiny.source(source)}
    shutil.rmtree(tiny.root / source)
    assert tiny.run(name, epochs=6, resume=True, **given).networks == 3
    for number in range(3):
        assert tiny.weights(name, number=number) == tiny.weights("begun", number=number)
    assert not (tiny.root / name / "fold_0" / "state" / "source.safetensors").exists()


def test_two_ranks_begin_alike(tiny, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    result = tiny.run("two", epochs=4, devices=2, source=tiny.source("source"))
    assert result.networks == 2
    one = load_file(tiny.root / "two" / "fold_0" / NAMES[0])
    begun = load_file(tiny.root / "source" / "fold_0" / NAMES[0])
    assert max(float((one[name] - begun[name]).abs().max()) for name in one) < 0.5


def test_a_further_fold_needs_the_source_and_takes_its_fold(tiny, beginnings):
    shutil.copytree(tiny.root / "begun", tiny.root / "folds")
    with pytest.raises(ModelError, match=r"began with the weights of another.*made up 3d\. Pass that model once more: --init MODEL"):
        tiny.run("folds", fold=1, epochs=2)
    tiny.run("folds", fold=1, epochs=2, source=tiny.source("source", 1))
    file = load_file(tiny.root / "source" / "fold_1" / NAMES[0])
    assert all(torch.equal(beginnings[0][name], tensor) for name, tensor in file.items())


def test_a_training_that_began_otherwise_is_refused(tiny):
    source = tiny.source("source")
    with pytest.raises(ModelError, match=r"began anew, without --init\. Drop --init, or choose"):
        tiny.run("source", epochs=4, resume=True, source=source)
    other = tiny.source("begun")
    for resume, fold in ((True, 0), (False, 2)):
        with pytest.raises(ModelError, match=r"began with other weights; found --init with weights \w+ of made up 3d, expected weights"):
            tiny.run("begun", fold=fold, epochs=6, resume=resume, source=other)
    assert not (tiny.root / "begun" / "fold_2").exists() or not list((tiny.root / "begun" / "fold_2").rglob("*.safetensors"))
    done = tiny.run("begun", epochs=6, resume=True, source=source)  # the same: it is finished
    assert done.finished


def test_finished_it_needs_nothing(tiny):
    assert tiny.run("begun", epochs=6, resume=True) == TrainingResult.load(tiny.root / "begun" / "fold_0" / "state" / "finished.json")


def renamed(plan, name, digest="f" * 16):
    return plan.model_copy(update={"data": plan.data.model_copy(update={"digest": digest, "name": name})})


def test_cases_that_the_source_has_seen_are_told(tiny):
    split = tiny.splits[0]
    past = Past.load(tiny.root / "source" / "fold_0" / "past.json")
    (seen,) = past.trainings
    assert (seen.model, seen.digest, seen.annotated, seen.cases) == ("made up 3d", tiny.plan.data.digest, True, split.train)
    assert tiny.source("source", 0).warnings == ()
    assert tiny.source("source", 1).warnings == ()
    (told,) = tiny.source("source", 2).warnings  # the source has no fold 2: its first one has trained on these
    assert told.startswith(
        f"warning: the source was trained on the same dataset, with {len(tiny.splits[2].val)} of the {len(tiny.splits[2].val)} cases"
    )
    moved = Split(train=split.val, val=(split.val[0], *split.train[:1]))
    (told,) = Source.open(tiny.root / "source", tiny.plan, 0, moved).warnings
    assert "with 1 of the 2 cases left out here" in told
    for name in ("made up", "Dataset012_Made up"):
        assert len(Source.open(tiny.root / "source", renamed(tiny.plan, name), 0, moved).warnings) == 1
    assert Source.open(tiny.root / "source", renamed(tiny.plan, "elsewhere"), 0, moved).warnings == ()
    assert Source.open(tiny.root / "source", tiny.plan, None, Split(train=split.train, val=())).warnings == ()


def test_a_source_that_does_not_say_what_it_was_trained_on(tiny, tmp_path):
    shutil.copytree(tiny.root / "source", tmp_path / "silent")
    (tmp_path / "silent" / "fold_0" / "past.json").unlink()
    for plan in (tiny.plan, renamed(tiny.plan, "elsewhere")):
        (told,) = Source.open(tmp_path / "silent", plan, 0, tiny.splits[0]).warnings
        assert told == (
            "warning: 'made up 3d' does not say which cases it was trained on; if cases left out here were among them, their scores are optimistic"
        )


def test_what_the_source_of_the_source_has_seen_is_told(tiny):
    tiny.run("every", fold=None, epochs=1)
    tiny.run("between", epochs=1, source=tiny.source("every"))
    assert "the source was trained on the same dataset, with 2 of the 2" in tiny.source("every").warnings[0]
    (told,) = tiny.source("between").warnings  # its own fold 0 has left out the same cases
    assert told.startswith("warning: the source, or a model that it began with, was trained on the same dataset, with 2 of the 2 cases")
    tiny.run("last", epochs=1, source=tiny.source("between"))
    past = Past.load(tiny.root / "last" / "fold_0" / "past.json")
    ids = tuple(sorted(case.id for case in tiny.dataset.cases))
    assert [seen.cases for seen in past.trainings] == [tiny.splits[0].train, tiny.splits[0].train, ids]
    assert past_of_cases(RunFolder(tiny.root / "last"), {0: tiny.splits[0].val}) == (2, ())
    assert past_of_cases(RunFolder(tiny.root / "begun"), {0: tiny.splits[0].val}) == (0, ())
    copied = RunFolder(tiny.root / "copied")
    folder = RunFolder(tiny.root / "last")
    folder.copy(copied.root, folder.origins())
    assert past_of_cases(copied, {0: tiny.splits[0].val}) == (2, ())
    assert copied.init_file.read_bytes() == folder.init_file.read_bytes()
    assert not any(case in (tiny.root / "last" / "init.json").read_text() for case in ids)
    assert not any(file.name == "past.json" for file in folder.files())  # these are logged


def test_other_classes_and_channels(tiny, tmp_path):
    plan = tiny.plan.edited(
        {
            "data.labels.classes": '[{"name": "Posterior", "values": [1]}, {"name": "tail", "values": [2]}]',
            "data.channels": '[{"name": "scan", "modality": "mr"}, {"name": "t2", "modality": "mr"}]',
            "space.channels": '[{"scheme": "zscore"}, {"scheme": "zscore"}]',
        }
    )
    moved = Source.open(tiny.root / "source", plan, 0, tiny.splits[0]).origin.transferred
    assert moved.adapted == {"enter.0.conv.weight": "channels by name: scan; new, the mean of the source's: t2"}
    why = "the source has no output tail, so all of the head begin alike"
    assert (moved.fresh, moved.left) == ({"heads.segmentation.0.weight": why, "heads.segmentation.0.bias": why}, 0)


def test_priors_find_each_other_by_the_names_of_their_classes(tiny):
    def cascade(*classes, **more):
        data = tiny.plan.model_dump(mode="json") | {"name": "3d_cascade", "previous": "3d_low", "reasons": {}}
        data["data"]["labels"] = {"classes": [{"name": name, "values": values} for name, values in classes], **more}
        data["target"]["frequencies"] = [0.5] * (len(classes) + 1)
        data["space"]["prior"] = {}
        return Plan.parse(data, "x")

    here, there = (
        cascade(*((name, [n + 1]) for n, name in enumerate(names))) for names in (("tail", "Posterior"), ("anterior", "posterior"))
    )
    meaning = _meaning(there)
    assert meaning.channels == ("scan", "prior: anterior", "prior: posterior")
    network = find_objective(here.task)(here).network()
    source = {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    state, moved = _transferred(here, network, source, meaning)
    assert (
        moved.adapted["enter.0.conv.weight"]
        == "channels by name: scan, prior: Posterior; new, from 0: prior: tail; left out: prior: anterior"
    )
    weight, before = state["enter.0.conv.weight"], source["enter.0.conv.weight"]
    assert torch.equal(weight[:, [0, 2]], before[:, [0, 2]])
    assert not weight[:, 1].any()
    regions = cascade(("whole", [1, 2, 4]), ("core", [2, 4]), ("hot", [4]), order=[1, 2, 4])
    assert _meaning(regions).channels[1:] == ("prior: whole", "prior: whole + core", "prior: whole + core + hot")
    joined = cascade(("both", [1, 3]), ("other", [2]))
    assert _meaning(joined).channels[1:] == ("prior: both, value 1 of 2", "prior: other", "prior: both, value 2 of 2")


def test_images_that_look_otherwise_are_told(tiny):
    def told(**edits):
        plan = tiny.plan.edited({f"space.{name}": value for name, value in edits.items()})
        return Source.open(tiny.root / "source", plan, 0, tiny.splits[0]).warnings

    assert tiny.plan.space.spacing == (1.0, 1.0, 1.0)
    assert told(spacing="[1.04, 1, 1]") == ()
    after = "the images do not look to the network as they did. A plan made with --like has them alike"
    (warned,) = told(spacing="[3, 1, null]")
    assert warned == f"warning: the target spacing is 3 x 1 x as is mm, the source's 1 x 1 x 1 mm: {after}"
    assert tiny.plan.space.channels[0].scheme == "zscore"
    assert told(channels='[{"scheme": "range"}]') == (
        f"warning: channel 'scan' is normalised by 'range', in the source by 'zscore': {after}",
    )
    assert len(told(spacing="[2, 1, 1]", channels='[{"scheme": "range"}]')) == 2


@pytest.mark.parametrize(
    ("edits", "what"),
    [
        (
            {"network.features": "[24, 40]"},
            r"found \d+% of the parameters of plan '3d' in '3d' of made up; tensor '.*': shape .*at least 50%\. Plan the dataset for the model's "
            r"network: `medseg plan DATASET -o PLANS --like MODEL`\.",
        ),
        (
            {"window": "[8, 8]", "network.strides": "[[1,1],[2,2]]", "network.kernels": "[[3,3],[3,3]]"},
            r"axes of a window: .*found 3 in '3d' of made up, expected 2 as in plan '3d'\. Choose a model of the same kind",
        ),
        (
            {"network": '{"kind": "segresnet", "axes": 3, "width": 8, "blocks": [1, 1]}'},
            r"network\.kind: .*found unet in '3d' of made up, expected segresnet as in plan '3d'\. Plan the dataset for the model's network",
        ),
    ],
)
def test_networks_that_are_different(tiny, edits, what):
    plan = Plan.parse({**tiny.plan.model_dump(mode="json"), "reasons": {}}, "x").edited(edits)
    with pytest.raises(ModelError, match=what) as caught:
        Source.open(tiny.root / "source", plan, 0, tiny.splits[0])
    assert "the networks are different" in str(caught.value)


def test_models_that_are_none(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"is not a trained model.*no such folder"):
        tiny.source("nowhere")
    with pytest.raises(ModelError, match="is not a trained model"):
        Source.open(tiny.root, tiny.plan, 0, tiny.splits[0])
    shutil.copytree(tiny.root / "source", tmp_path / "damaged")
    file = tmp_path / "damaged" / "fold_0" / NAMES[0]
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"network_0\.safetensors: cannot be read as a weights file"):
        Source.open(tmp_path / "damaged", tiny.plan, 0, tiny.splits[0])


def test_pre_training_of_images_without_labels_and_what_begins_with_it(tmp_path):
    """No label, no validation, several sessions: the same weights; a training of a task takes all but its heads."""
    tiny = Tiny(tmp_path)
    store, ids = tiny.store, tuple(case.id for case in tiny.dataset.cases)
    for case in ids[:3]:
        folder = store.folder / case
        (folder / "label.npy").unlink()
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"labelled": False, "counts": []}))
    task = tiny.plan
    tiny.plan = pretext_plan(task, "masked").edited({"training.steps": "6"})
    tiny.splits = (Split(train=ids, val=()),)
    talk = Talk()
    whole = tiny.run("pre", fold=None, epochs=4, progress=talk)
    assert (whole.metric, whole.score, whole.networks, whole.cases) == ("", None, 1, 0)
    rows = [line.split(",") for line in (tmp_path / "pre" / "fold_none" / "metrics.csv").read_text().splitlines()]
    assert "loss/reconstruction" in rows[0]
    column = rows[0].index("loss/reconstruction")
    assert float(rows[-1][column]) < float(rows[1][column])

    real = talk.update

    def stop(what, done, total, note="", seconds=False):
        real(what, done, total, note)
        if done >= 1.5 and not stop.done:
            import os
            import signal

            stop.done = True
            os.kill(os.getpid(), signal.SIGTERM)

    stop.done = False
    talk.update = stop
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medseg.training.supervisor.TELL_EVERY", 0.0)
        patched.delenv("SLURM_JOB_ID", raising=False)
        assert not tiny.run("parts", fold=None, epochs=4, progress=talk, save_every=1000).finished
    assert tiny.run("parts", fold=None, epochs=4, resume=True).finished
    assert tiny.weights("parts", fold=None) == tiny.weights("pre", fold=None)

    found = Source.open(tmp_path / "pre", task, 0, Split(train=ids[3:5], val=ids[5:]))
    assert set(found.origin.transferred.fresh) == {"heads.segmentation.0.weight", "heads.segmentation.0.bias"}
    assert (found.origin.source, found.fold) == ("made up 3d (masked)", "fold_none")
    assert "not on their annotations" in found.warnings[0]
    tiny.plan, tiny.splits = task, (Split(train=ids[3:5], val=ids[5:]),)
    assert tiny.run("fine", fold=0, epochs=1, source=found).score is not None
    with safe_open(tmp_path / "fine" / "fold_0" / NAMES[0], framework="pt") as file:
        assert "heads.segmentation.0.weight" in file.keys()  # noqa: SIM118
