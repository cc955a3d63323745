"""A model of medseg behind a real Orthanc: on request, and as a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nodes import make_node, study_of, until, working
from pydicom import dcmread
from typer.testing import CliRunner

from medseg.claim import TakenError
from medseg.commands import app
from medseg.models.weights import save_weights
from medseg.plans import Plan
from medseg.serving.addresses import Peer
from medseg.serving.ledger import State, digest
from medseg.serving.model import Model
from medseg.tasks.base import find_task
from medseg.workspace import RunFolder
from tests.inference.thresholding import tiny_plan


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with random weights."""
    folder = RunFolder(tmp_path_factory.mktemp("model"))
    plan: Plan = tiny_plan(tmp_path_factory.mktemp("data"), (12, 14, 10), "3d")
    plan.save(folder.plan_file)
    torch.manual_seed(0)
    save_weights(folder.fold(0) / "network_0.safetensors", find_task(plan.task)(plan).network().state_dict(), plan.trained_digest())
    return folder.root


def predict(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])


def segmentations(orthanc, uid: str) -> list[dict]:
    return [tags for tags in orthanc.headers(uid) if tags["Modality"] == "SEG"]


def test_a_study_in_a_pacs_gets_a_segmentation(model, orthanc, make_study, tmp_path):
    files = make_study("web", slices=4)
    uid = study_of(files)
    orthanc.upload(files)
    done = predict(model, f"{orthanc.web}/studies/{uid}", "-o", tmp_path / "web", "--store")
    assert done.exit_code == 0, done.output
    assert "1 DICOM object sent" in done.output
    (found,) = segmentations(orthanc, uid)
    assert found["PatientID"] == "PLANTED-4711"
    (written,) = (tmp_path / "web").glob("*.seg.dcm")
    assert written.name == f"pacs_{digest(uid)[:12]}.seg.dcm"
    again = predict(model, f"{orthanc.web}/studies/{uid}", "-o", tmp_path / "web")
    assert "1 prediction in" in again.output
    assert "1 of them from before" in " ".join(again.output.split())
    assert found["SOPInstanceUID"] == dcmread(written).SOPInstanceUID

    # By DIMSE the images are the same, and so is the result.
    address = f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom}/{uid}/{dcmread(files[0]).SeriesInstanceUID}"
    done = predict(model, address, "-o", tmp_path / "dimse", "--store", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert len(segmentations(orthanc, uid)) == 1
    assert len(list((tmp_path / "cache").rglob("*.dcm"))) == 4
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("*/predictions.json"))
    assert not any(word in kept for word in (b"Planted", b"PLANTED", b"2.25.99"))
    assert uid not in done.output


def test_what_cannot_be_stored_is_said_before_anything_is_predicted(model, tmp_path):
    done = predict(model, tmp_path, "-o", tmp_path / "out", "--store")
    assert "there is no PACS to send to" in str(done.exception)


def test_the_node_predicts_with_a_model(model, orthanc, make_study, tmp_path):
    files = make_study("node", slices=4)
    other = make_study("other", slices=1, Modality="XA", PixelSpacing=None, ImagePositionPatient=None, ImageOrientationPatient=None)
    orthanc.upload([*files, *other])
    node = make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), recipe=Model(model, ("seg",), "cpu"))
    with working(node):
        orthanc.know("MEDSEG", node.port)
        orthanc.send_study(study_of(files), "MEDSEG")
        orthanc.send_study(study_of(other), "MEDSEG")
        until(lambda: node.queue.counts()[State.done] == 1)
        until(lambda: node.queue.counts()[State.aside] == 1)
        reason = node.queue.studies((State.aside,))[0].reason
    (found,) = segmentations(orthanc, study_of(files))
    series = {dcmread(file).SeriesInstanceUID for file in files}
    assert {one["SeriesInstanceUID"] for one in found["ReferencedSeriesSequence"]} == series
    assert reason
    assert not any(word in reason for word in ("Planted", "PLANTED", "2.25", "phantom"))


def test_what_is_odd_about_the_images_is_noted(model, make_study, tmp_path):
    (file,) = make_study("single", slices=1)
    results = Model(model, ("seg",), "cpu").load()(file.parent, tmp_path / "out")
    assert len(results.files) == 1
    assert results.note.endswith("is a single slice.")


def test_a_format_that_is_none_ends_the_node(model, tmp_path):
    from medseg.errors import PlanError

    node = make_node(tmp_path, Peer("127.0.0.1", 9, "NOWHERE"), recipe=Model(model, ("sge",), "cpu"))
    with pytest.raises(PlanError, match="Did you mean 'seg'"), working(node):
        pass


def test_a_second_node_on_a_store_names_the_right_option(tmp_path):
    nowhere = Peer("127.0.0.1", 9, "NOWHERE")
    with working(make_node(tmp_path, nowhere)), pytest.raises(TakenError, match="choose another folder with --store"):
        make_node(tmp_path, nowhere)


def test_the_queue_verb(tmp_path):
    from medseg.serving.queue import Queue
    from medseg.serving.store import Store

    queue = Queue(tmp_path)
    (tmp_path / "image").write_bytes(b"image")
    Store(tmp_path, queue).keep("0123456789abcdef", "a", "SCANNER", tmp_path / "image")
    queue.released("0123456789abcdef")
    queue.settle(0.0, 10.0)
    queue.take(1)
    queue.failed("0123456789abcdef", "has no slices", 0)
    shown = CliRunner().invoke(app, ["queue", str(tmp_path)]).output
    assert all(word in shown for word in ("0123456789abcdef", "SCANNER", "has no slices", "1 aside", "--retry"))
    assert "1 on their way" in CliRunner().invoke(app, ["queue", str(tmp_path), "--retry", "0123456789abcdef"]).output
    queue.take(1)
    queue.failed("0123456789abcdef", "has no slices", 0)
    CliRunner().invoke(app, ["queue", str(tmp_path), "--remove", "all"])
    assert queue.studies() == ()
    queue.close()
    assert (
        json.dumps(str(CliRunner().invoke(app, ["queue", str(tmp_path), "--retry", "x"]).exception)).count(
            "no such study is aside; found no study, expected none is. Only studies that were set aside can be tried again or removed"
        )
        == 1
    )


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("2.5", 2.5), ("90s", 90.0), ("1h30m", 5400.0)])
def test_times_are_given_in_seconds_or_with_units(text, seconds, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("medseg.serving.node.Node", lambda settings, recipe: seen.append(settings))
    monkeypatch.setattr("medseg.serving.node.run_until_told", lambda node: None)
    monkeypatch.setattr("medseg.serving.logs.begin", lambda lines: None)
    options = ["--forward", "pacs:104:PACS", "--quiet-for", text, "--keep-for", "0"]
    assert CliRunner().invoke(app, ["node", "model", "--store", str(tmp_path), *options]).exit_code == 0
    assert (seen[0].quiet, seen[0].keep) == (seconds, 0.0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "results would go nowhere"),
        (["--forward", "pacs"], "--forward: not an application entity's address"),
        (["--forward", "pacs:104:PACS", "--host", "0.0.0.0"], "anybody in the network could send"),
        (["--forward", "pacs:104:PACS", "--tls-ca", "ca.pem"], "--tls-cert and --tls-key belong together"),
        (["--forward", "pacs:104:PACS", "--tls-cert", "no.pem", "--tls-key", "no.key"], "the certificates cannot be used"),
        (["--forward", "pacs:104:PACS", "--quiet-for", "soon"], "--quiet-for: not a length of time"),
        (["--forward", "pacs:104:PACS", "--monitor", "0.0.0.0:9180"], "anybody in the network could read"),
        (["--forward", "pacs:104:PACS", "--monitor-token-from", "NO_SUCH_VARIABLE"], "the environment variable is empty"),
        (["--peer", "PACS:104"], "expected AET=host:port"),
    ],
)
def test_the_node_verb_refuses_what_is_unsafe_or_wrong(options, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["node", "model", "--store", str(tmp_path / "store"), *options])
    assert problem in str(done.exception)
    assert not (tmp_path / "store").exists()
