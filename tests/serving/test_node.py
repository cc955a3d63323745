"""The node between a real Orthanc, or a plain receiver, and senders of all kinds."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from certificates import make as make_certificates
from nodes import make_node, study_of, until, working
from orthanc import free_port
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom.presentation import build_context
from recipes import RESULT, Copying

from medseg.errors import ModelError, UsageError
from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError, UnreachableError
from medseg.serving.dimse import Caller, associate, echo, send
from medseg.serving.ledger import State, digest
from medseg.serving.node import Settings
from medseg.serving.receiver import Limits
from medseg.serving.tls import client_tls, server_tls

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")  # pynetdicom lets go of one that cannot connect
NOWHERE = Peer("127.0.0.1", 9, "NOWHERE")


def at(node) -> Peer:
    return Peer("127.0.0.1", node.port, "MEDSEG")


def http(node, path: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{node.monitor_port}{path}", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def results(orthanc, uid: str) -> list[str]:
    return [tags["SeriesDescription"] for tags in orthanc.headers(uid) if tags["SeriesDescription"].startswith(RESULT)]


def test_a_study_that_orthanc_sends_comes_back_with_its_result(tmp_path, orthanc, make_study, caplog):
    files = make_study("one")
    uid = study_of(files)
    orthanc.upload(files)
    with caplog.at_level(logging.INFO), working(make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet))) as node:
        orthanc.know("MEDSEG", node.port)
        orthanc.send_study(uid, "MEDSEG")
        until(lambda: results(orthanc, uid) == [f"{RESULT} of 3"])
        until(lambda: node.queue.counts()[State.done] == 1)
        first = len(orthanc.headers(uid))

        orthanc.send_study(uid, "MEDSEG")  # with the result in it, which is not taken for an image
        until(lambda: node.queue.find(digest(uid)).state == State.received)
        until(lambda: node.queue.find(digest(uid)).state == State.done)
        until(lambda: not list((tmp_path / "store").rglob("*.dcm")))
        assert node.receiver.traffic.ignored == 1
    assert len(orthanc.headers(uid)) == first == 4
    own = [record.getMessage() for record in caplog.records if record.name.startswith("medseg")]
    assert any(digest(uid) in line for line in own)
    assert not any(word in line for line in own for word in ("Planted", "PLANTED", "2.25", "phantom"))
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").glob("queue.sqlite*"))
    assert not any(word in stored for word in (b"Planted", b"PLANTED", b"2.25"))


def test_results_go_back_to_a_known_sender_only(tmp_path, orthanc, make_study):
    known, unknown = make_study("known"), make_study("unknown")
    node = make_node(tmp_path, known={"SCANNER": Peer("127.0.0.1", orthanc.dicom, orthanc.aet)})
    with working(node):
        send(known, at(node), Caller("SCANNER"))
        send(unknown, at(node), Caller("OTHER"))
        until(lambda: results(orthanc, study_of(known)))
        until(lambda: node.queue.find(digest(study_of(unknown))).state == State.aside)
    assert "nowhere to send" in node_reason(tmp_path, study_of(unknown))


def node_reason(tmp_path: Path, uid: str) -> str:
    from medseg.serving.queue import Queue

    queue = Queue(tmp_path / "store")
    found = queue.find(digest(uid))
    queue.close()
    return found.reason


def test_images_that_come_late_are_part_of_the_next_prediction(tmp_path, orthanc, make_study):
    files = make_study("late", slices=4, StudyDescription="gate")
    uid = study_of(files)
    with working(make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), limit=3600.0)) as node:
        send(files[:2], at(node))
        until(lambda: node.queue.find(digest(uid)).state == State.running)
        send(files[1:], at(node))
        (node.store.images(digest(uid)).parent / "open").touch()
        until(lambda: node.queue.find(digest(uid)).state == State.done)
    assert results(orthanc, uid) == [f"{RESULT} of 4"]  # and none of two images


def test_images_that_come_after_delivery_lead_to_a_prediction_of_the_whole_series(tmp_path, orthanc, make_study):
    files = make_study("later", slices=4)
    key = digest(study_of(files))
    with working(make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), keep=3600.0)) as node:
        send(files[:2], at(node))
        until(lambda: node.queue.find(key) is not None and node.queue.find(key).state == State.done)
        send(files[2:], at(node))
        until(lambda: len(results(orthanc, study_of(files))) == 2 and node.queue.find(key).state == State.done)
        assert node.queue.find(key).instances == 4
        assert len(list(node.store.images(key).iterdir())) == 4
    assert sorted(results(orthanc, study_of(files))) == [f"{RESULT} of 2", f"{RESULT} of 4"]  # the first one is superseded


def test_a_partial_study_is_set_aside_in_the_end(tmp_path, make_study, caplog):
    (first, _) = make_study("partial", slices=2)
    data = dcmread(first)
    key = digest(data.StudyInstanceUID)
    with caplog.at_level(logging.INFO), working(make_node(tmp_path, NOWHERE, limit=2.0)) as node:
        with associate(at(node), [build_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)], Caller()) as association:
            assert association.send_c_store(data).Status == 0
            association.abort()
        until(lambda: node.queue.find(key).state == State.aside)
        assert "the study may be partial" in node.queue.find(key).reason
        node.queue.retry(key)  # somebody has looked at it, and wants it all the same
        until(lambda: node.queue.find(key).state == State.sending)
    assert any("set aside" in one.getMessage() and "may be partial" in one.getMessage() for one in caplog.records)


def test_an_open_association_keeps_a_study_open(tmp_path, make_study):
    from pynetdicom import AE

    (first, second) = make_study("open", slices=2)
    with working(make_node(tmp_path, NOWHERE)) as node:
        data = dcmread(first)
        entity = AE("SCANNER")
        entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", node.port, ae_title="MEDSEG")
        assert association.send_c_store(data).Status == 0
        time.sleep(0.7)  # several times as long as a study must be quiet
        assert node.queue.find(digest(data.StudyInstanceUID)).state == State.received
        assert association.send_c_store(dcmread(second)).Status == 0
        association.release()
        until(lambda: node.queue.find(digest(data.StudyInstanceUID)).state == State.sending)


def test_poison_studies_are_set_aside_and_others_go_on(tmp_path, orthanc, make_study):
    expected = {
        "raise": (2, "ValueError in recipes.py"),
        "refuse": (1, "has no slices that the model can use; found '[...]' of [...] on [...]"),  # which another try would not change
        "kill": (2, "the worker process died (exit code 9)"),
        "hang": (2, "took more than 1 s"),
    }
    poison = {wish: make_study(wish, slices=1, StudyDescription=wish) for wish in expected}
    good = make_study("good")
    node = make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), attempts=2, timeout=1.0)
    with working(node):
        for files in poison.values():
            send(files, at(node))
        send(good, at(node))
        until(lambda: node.queue.counts()[State.aside] == 4 and node.queue.counts()[State.done] == 1)
        assert results(orthanc, study_of(good))
        for wish, (attempts, reason) in expected.items():
            aside = node.queue.find(digest(study_of(poison[wish])))
            assert reason in aside.reason
            assert "Planted" not in aside.reason
            assert aside.attempts == attempts
            assert len(list(node.store.images(aside.key).iterdir())) == 1
        key = digest(study_of(poison["refuse"]))
        node.queue.retry(key)
        until(lambda: node.queue.find(key).state == State.aside)
        node.store.forget(key)
        assert not node.store.images(key).exists()


def test_a_full_queue_and_a_full_disk(tmp_path, make_study):
    one, other = make_study("first", slices=2), make_study("second", slices=3)
    key = digest(study_of(other))
    node = make_node(tmp_path, NOWHERE, limits=Limits(free=0, studies=1, associations=5), monitor=("127.0.0.1", 0), limit=2.5)
    with working(node):
        send(one[:1], at(node))
        with pytest.raises(RejectedError, match=r"3 of 3 objects were refused.*0xA700"):
            send(other, at(node))
        assert json.loads(http(node, "/health")[1])["reason"] == "the queue is full"
        send(one[1:], at(node))  # of a study that is in the queue already
        until(lambda: node.queue.find(digest(study_of(one))).state == State.sending)
        node.queue.aside(digest(study_of(one)), "makes room")
        send(other[:2], at(node))
        time.sleep(0.6)
        assert node.queue.find(key).state == State.received  # it lacks an image that was refused
        until(lambda: node.queue.find(key).state == State.aside)
        assert "refused for lack of room and have not come again: 1" in node.queue.find(key).reason
        send(other[2:], at(node))
        until(lambda: node.queue.find(key).state == State.sending)
        assert node.receiver.traffic.refused == 3

        object.__setattr__(node.settings.limits, "free", 2**62)
        with pytest.raises(RejectedError, match=r"1 of 1 objects were refused.*0xA700"):
            send(other[:1], at(node))
        status, health = http(node, "/health")
        assert (status, json.loads(health)["status"], json.loads(health)["reason"]) == (503, "full", "the disk is full")


def test_who_may_call(tmp_path, make_study):
    files = make_study("x", slices=1)
    with working(make_node(tmp_path, NOWHERE, allow=("SCANNER",), limits=Limits(free=0, associations=1))) as node:
        echo(at(node), Caller("SCANNER"))
        with pytest.raises(UnreachableError, match="Calling AE title not recognised"):
            send(files, at(node), Caller("STRANGER"))
        with pytest.raises(UnreachableError, match="Called AE title not recognised"):
            send(files, Peer("127.0.0.1", node.port, "OTHER"), Caller("SCANNER"))
        assert node.queue.studies() == ()
        assert node.receiver.traffic.rejected == 2


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"forward": ()}, "results would go nowhere"),
        ({"host": "0.0.0.0"}, "anybody in the network could send"),
        ({"monitor": ("0.0.0.0", 0)}, "anybody in the network could read"),
    ],
)
def test_unsafe_settings_are_refused(settings, problem, tmp_path):
    with pytest.raises(UsageError, match=problem):
        Settings(tmp_path, **{"forward": (NOWHERE,), **settings}).check()


def test_two_nodes_do_not_share_a_folder(tmp_path):
    first = make_node(tmp_path, NOWHERE)
    with pytest.raises(UsageError, match="another node is writing there"):
        make_node(tmp_path, NOWHERE)
    first._claim.release()
    first.queue.close()


def test_a_model_that_cannot_be_read_ends_the_node(tmp_path):
    from medseg.errors import ImageError

    with pytest.raises(ImageError, match="cannot be read"), working(make_node(tmp_path, NOWHERE, recipe=Copying(broken=True))):
        pass


def test_encrypted_both_ways(tmp_path, make_study):
    certificate, key, authority = make_certificates(tmp_path / "tls")
    files = make_study("secret")
    with_certificate = Caller("SCANNER", client_tls(authority, certificate, key))
    receiving = make_node(tmp_path / "a", NOWHERE, tls=server_tls(certificate, key, authority))
    with working(receiving):
        echo(at(receiving), with_certificate)
        silent = socket.create_connection(("127.0.0.1", receiving.port))  # shakes no hands and keeps nobody waiting
        try:
            relay = make_node(tmp_path / "b", at(receiving), caller_tls=with_certificate.tls)
            with working(relay):
                send(files, at(relay))
                until(lambda: receiving.queue.find(digest(study_of(files))) is not None)
            for caller in (Caller("SCANNER"), Caller("SCANNER", client_tls(authority))):  # plain, and without a certificate
                with pytest.raises(UnreachableError):
                    echo(at(receiving), caller)
        finally:
            silent.close()


def test_health_and_metrics(tmp_path, make_study):
    node = make_node(tmp_path, NOWHERE, monitor=("127.0.0.1", 0), token="abc", limits=Limits(free=0))
    with working(node):
        assert http(node, "/health", "wrong")[0] == 401
        assert http(node, "/metrics")[0] == 401
        assert http(node, "/", "abc")[0] == 404
        send(make_study("m"), at(node))
        until(lambda: node.queue.counts()[State.sending] == 1)
        status, text = http(node, "/health", "abc")
        assert (status, json.loads(text)["status"], json.loads(text)["studies"]["sending"]) == (200, "ok", 1)
        lines = http(node, "/metrics", "abc")[1].splitlines()
        assert "medseg_node_images_received_total 3" in lines
        assert "medseg_node_studies_predicted_total 1" in lines
        assert 'medseg_node_studies{state="sending"} 1' in lines
        assert next(float(line.split()[1]) for line in lines if line.startswith('medseg_node_memory_bytes{process="worker"}')) > 1e7
        until(lambda: "medseg_node_delivery_failures_total 1" in http(node, "/metrics", "abc")[1])
        assert "no association" in node.queue.studies()[0].reason


class Process:
    """A node in a process of its own, which may be killed."""

    def __init__(self, store: Path, forward: Peer, seconds: float) -> None:
        self.store, self.port, self.monitor_port = store, free_port(), free_port()
        program = Path(__file__).with_name("recipes.py")
        command = [program, store, self.port, f"{forward.host}:{forward.port}:{forward.aet}", self.monitor_port, seconds]
        self._log = store.with_suffix(".log")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *map(str, command)], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        until(self._ready)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return http(self, "/health")[0] == 200 and "listens" in self._log.read_text()
        except urllib.error.URLError:
            return False

    def states(self) -> dict[str, int]:
        return json.loads(http(self, "/health")[1])["studies"]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_that_is_stopped_in_the_middle_of_a_study_loses_nothing(number, tmp_path, orthanc, make_study):
    import psutil

    running, waiting, half = make_study("running"), make_study("waiting"), make_study("half", slices=4)
    forward = Peer("127.0.0.1", orthanc.dicom, orthanc.aet)
    first = Process(tmp_path / "store", forward, 30.0)
    send(running, at(first))
    until(lambda: first.states()["running"] == 1)
    send(waiting, at(first))
    until(lambda: first.states()["waiting"] == 1)
    send(half[:2], at(first))
    workers = psutil.Process(first.process.pid).children(recursive=True)
    code = first.end(number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert orthanc.get("/studies") == []
    psutil.wait_procs(workers, 10)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    time.sleep(0.5)  # longer than a study must be quiet; but nobody could send
    with working(make_node(tmp_path, forward, quiet=0.4)) as second:
        send(half[2:], at(second))
        until(lambda: second.queue.counts()[State.done] == 3)
    for files in (running, waiting, half):
        assert results(orthanc, study_of(files)) == [f"{RESULT} of {len(files)}"]
    log = first._log.read_text()
    assert "study" in log
    assert not any(word in log for word in ("Planted", "PLANTED", "2.25.99", "Traceback"))


def test_objects_that_are_no_images_or_no_objects(tmp_path, make_study):
    (file,) = make_study("odd", slices=1)
    data = dcmread(file)
    data.Modality = "SEG"
    data.save_as(file)
    with working(make_node(tmp_path, NOWHERE)) as node:
        send([file], at(node))
        assert node.receiver.traffic.ignored == 1
        del data.StudyInstanceUID
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.save_as(file)
        with pytest.raises(RejectedError, match="0xC000"):
            send([file], at(node))
        assert node.queue.studies() == ()


def test_a_model_that_kills_its_process_ends_the_node(tmp_path):
    with (
        pytest.raises(ModelError, match="has died while it read the model"),
        working(make_node(tmp_path, NOWHERE, recipe=Copying(seconds=-1.0))),
    ):
        pass


def test_images_of_studies_that_are_aside_for_too_long_are_deleted(tmp_path, make_study):
    with working(make_node(tmp_path, NOWHERE, keep_aside=0.0)) as node:
        send(make_study("old", slices=1, StudyDescription="refuse"), at(node))
        until(lambda: node.queue.counts()[State.aside] == 1)
        node._next_clearing = 0.0
        until(lambda: node.queue.studies() == ())
        until(lambda: not list(node.store.folder.rglob("*.dcm")))


def test_each_destination_gets_results_once(tmp_path, orthanc, make_study, caplog):
    files = make_study("two")
    node = make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), Peer("127.0.0.1", free_port(), "LATER"))
    with caplog.at_level(logging.INFO), working(node):
        send(files, at(node))
        until(lambda: "no association" in node.queue.studies()[0].reason)
        node.queue.postpone(digest(study_of(files)), "", -1.0)
        node.delivery.wake()
        until(lambda: node.delivery.failed == 2)
    assert sum("sent to ORTHANC" in record.getMessage() for record in caplog.records) == 1
    assert results(orthanc, study_of(files)) == [f"{RESULT} of 3"]


def test_a_worker_that_dies_between_two_studies_is_replaced(tmp_path, orthanc, make_study):
    import psutil

    with working(make_node(tmp_path, Peer("127.0.0.1", orthanc.dicom, orthanc.aet), attempts=1)) as node:
        psutil.Process(node._worker._process.pid).kill()
        files = make_study("after")
        send(files, at(node))
        until(lambda: node.queue.counts()[State.done] == 1)
        assert node.reading().counters["worker_starts"] == 2
