"""Associations that end well, that break, and what they leave; without a model."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path

import pytest
from nodes import study_of, until
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context

from medseg.serving import dimse, intake
from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError, UnreachableError
from medseg.serving.dimse import Caller, associate, send
from medseg.serving.intake import DEFLATED
from medseg.serving.ledger import State, digest
from medseg.serving.queue import Queue
from medseg.serving.receiver import Limits, Receiver
from medseg.serving.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")  # pynetdicom lets go of sockets of connections that broke
Connect = Callable[[Path], Association]


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    queue = Queue(tmp_path / "store")
    yield Store(tmp_path / "store", queue)
    queue.close()


@pytest.fixture
def receiver(store) -> Iterator[Receiver]:
    one = Receiver(store, "MEDSEG", ("127.0.0.1", 0), (), Limits(free=0, largest=2**19))
    one.port = one.start()
    yield one
    one.stop()


@pytest.fixture
def connect(receiver) -> Iterator[Connect]:
    """`connect(file)` opens an association and sends the file."""
    with ExitStack() as ending:

        def begin(file: Path) -> Association:
            data = dcmread(file)
            context = build_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
            association = ending.enter_context(associate(at(receiver), [context], Caller("SCANNER")))
            assert association.send_c_store(data).Status == 0
            return association

        yield begin


def at(receiver: Receiver) -> Peer:
    return Peer("127.0.0.1", receiver.port, "MEDSEG")


def is_whole(store: Store, key: str) -> bool:
    """Whether the study is complete by now."""
    store.queue.settle(0.0, 3600.0)
    return store.queue.find(key).state == State.waiting


def test_a_study_whose_association_broke_waits_until_it_is_sent_again(receiver, store, connect, make_study):
    files = make_study("broken")
    key = digest(study_of(files))
    connect(files[0]).abort()
    until(lambda: receiver.busy() == set())
    assert not is_whole(store, key)
    send(files, at(receiver))
    until(lambda: is_whole(store, key))
    assert store.queue.find(key).instances == 3
    assert receiver.traffic.aborted == 1


def test_a_connection_that_is_lost_is_no_end(receiver, store, connect, make_study):
    files = make_study("lost")
    connect(files[0]).dul.socket.close()
    until(lambda: receiver.busy() == set())
    assert not is_whole(store, digest(study_of(files)))


def test_an_association_that_was_open_when_another_one_broke_heals_nothing(receiver, store, connect, make_study):
    files = make_study("parallel")
    key = digest(study_of(files))
    first, second = connect(files[0]), connect(files[1])
    first.abort()
    until(lambda: receiver.traffic.aborted == 1)
    second.release()
    until(lambda: receiver.associations() == 0)
    assert not is_whole(store, key)
    third, fourth = connect(files[0]), connect(files[2])
    third.release()
    until(lambda: receiver.associations() == 1)
    assert not is_whole(store, key)  # the fourth is still sending
    fourth.release()
    until(lambda: is_whole(store, key))


def test_a_study_is_not_complete_over_an_association_that_could_not_store_an_image(receiver, store, make_study, monkeypatch):
    files = make_study("full")
    key, real, calls = digest(study_of(files)), os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:  # an image, three folders, an image
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RejectedError, match=r"1 of 3 objects were refused.*0xA700"):
        send(files, at(receiver))
    until(lambda: receiver.associations() == 0)
    assert not is_whole(store, key)
    send(files, at(receiver))
    until(lambda: is_whole(store, key))


def test_objects_are_received_into_the_folder_of_the_node(receiver, store, make_study, monkeypatch):
    seen, keep = [], store.keep
    monkeypatch.setattr(store, "keep", lambda study, instance, caller, file: (seen.append(file), keep(study, instance, caller, file)))
    files = make_study("files")
    for file, modality in zip(files, ("MR", "SEG", "MR"), strict=True):
        data = dcmread(file)
        data.Modality = modality
        data.save_as(file)
    send(files, at(receiver))
    send(files[:1], at(receiver))  # equal to what is there
    assert [file.parent for file in seen] == [store.incoming] * 3
    assert list(store.incoming.iterdir()) == []
    kept = sorted(store.images(digest(study_of(files))).iterdir())
    assert {dcmread(file).SOPInstanceUID for file in kept} == {dcmread(files[n]).SOPInstanceUID for n in (0, 2)}
    assert dcmread(kept[0]).file_meta.TransferSyntaxUID == dcmread(files[0]).file_meta.TransferSyntaxUID
    with tempfile.NamedTemporaryFile() as other:  # of somebody else in this process
        assert Path(other.name).parent != store.incoming


def test_objects_that_are_too_large_are_not_received(receiver, store, make_study, caplog):
    small, large = make_study("small", slices=2), make_study("large", slices=1)
    data = dcmread(large[0])
    data.PixelData = bytes(2**20)
    data.save_as(large[0])
    with pytest.raises(UnreachableError):
        send(large, at(receiver))
    until(lambda: receiver.associations() == 0)
    assert list(store.incoming.iterdir()) == []
    assert "more than 524288 bytes" in caplog.text
    send(small, at(receiver))
    assert [study.key for study in store.queue.studies()] == [digest(study_of(small))]
    assert receiver.traffic.aborted == 1


def test_a_connection_that_announces_gigabytes_is_closed(receiver, make_study, caplog):
    receiver._entity.acse_timeout = 1.0  # the thread of a connection that was closed lives so long
    for first in (b"\x01", b"\x04"):  # a request for an association, and data
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=30) as connection:
            connection.sendall(first + b"\x00" + (2**32 - 1).to_bytes(4) + bytes(1000))
            with suppress(ConnectionResetError):
                assert connection.recv(100)[:1] in (b"", b"\x07")  # closed, or an abort
    assert caplog.text.count("announced a protocol data unit of 4294967295 bytes") == 2
    send(make_study("after"), at(receiver))


def test_an_object_whose_file_cannot_be_written_ends_its_association(receiver, store, make_study, monkeypatch, caplog):
    files = make_study("nowhere")
    with monkeypatch.context() as patched:
        patched.setattr("medseg.serving.intake._create", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        patched.setattr("pynetdicom.dimse_messages.NamedTemporaryFile", lambda **options: intake._create(**options))
        with pytest.raises(UnreachableError):
            send(files, at(receiver))
    until(lambda: receiver.associations() == 0)
    assert "No space left on device" in caplog.text
    send(files, at(receiver))


def test_nothing_is_inflated(receiver, store, make_study, tmp_path):
    (file,) = make_study("bomb", slices=1)
    data = dcmread(file)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "deflated.dcm")
    with pytest.raises(UnreachableError, match="no association"):
        send([tmp_path / "deflated.dcm"], at(receiver))
    offered = {syntax for one in receiver._entity.supported_contexts for syntax in one.transfer_syntax}
    assert not offered & set(DEFLATED)

    meta = Dataset()
    meta.add_new(0x00020010, "UI", DeflatedExplicitVRLittleEndian)
    smuggled = encode(meta, is_implicit_vr=False, is_little_endian=True) + zlib.compress(bytes(2**20), wbits=-15)
    data = dcmread(file)
    context = build_context(data.SOPClassUID, ExplicitVRLittleEndian)
    assert send_encoded(at(receiver), context, data, smuggled) == 0xC000
    assert store.queue.studies() == ()


def send_encoded(peer: Peer, context: PresentationContext, data: Dataset, encoded: bytes) -> int:
    """Send bytes as the object; returns the status."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    request.DataSet = BytesIO(encoded)
    with associate(peer, [context], Caller()) as association:
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, answer = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        return int(answer.Status)


def test_a_slow_disk_breaks_no_association(receiver, store, make_study, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.2), real(descriptor)))
    studies = [make_study(f"slow {number}", slices=2) for number in range(4)]
    threads = [threading.Thread(target=send, args=(files, at(receiver))) for files in studies]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: all(is_whole(store, digest(study_of(files))) for files in studies))
    assert receiver.traffic.received == 8
    assert receiver.traffic.aborted == 0
    assert time.monotonic() - began < 16 * 0.2 + 20  # a busy machine may take its time


def test_nobody_else_takes_the_answer_that_a_sender_waits_for(receiver, make_study, monkeypatch):
    """The reactor is slow to leave its checkpoint, and the sender slow to look for the answer, as on a busy machine."""
    leave, look = dimse._Checkpoint.wait, DIMSEServiceProvider.get_msg

    def slow_leave(self, timeout=None):
        return leave(self, timeout), time.sleep(0.1)

    def slow_look(self, block=False):
        if block:
            time.sleep(0.3)
        return look(self, block)

    monkeypatch.setattr(dimse._Checkpoint, "wait", slow_leave)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", slow_look)
    monkeypatch.setattr(dimse, "ANSWER", 3.0)
    send(make_study("race", slices=4), at(receiver))
    assert receiver.traffic.received == 4


def test_no_logger_tells_who_it_was(receiver, connect, make_study, caplog, capfd):
    (file,) = make_study("private", slices=1)
    data = dcmread(file)
    with caplog.at_level(logging.DEBUG):
        for name in ("pynetdicom", "pynetdicom.events", "pynetdicom.dimse", "pydicom"):
            logging.getLogger(name).setLevel(logging.DEBUG)
            logging.getLogger(name).propagate = True
        logging.getLogger("pynetdicom.acse").addHandler(logging.StreamHandler())  # somebody has looked for an error
        connect(file).abort()
        del data.StudyInstanceUID
        data.save_as(file)
        with pytest.raises(RejectedError):
            send([file], at(receiver))
        until(lambda: receiver.associations() == 0)
    told = caplog.text + "".join(capfd.readouterr())
    assert "association" in told
    assert not any(word in told for word in ("Planted", "PLANTED", "2.25.", "2.25.99"))
