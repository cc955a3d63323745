"""Results and their destinations, some of which do not answer or refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError, UnreachableError
from medseg.serving.delivery import REFUSALS, Delivery
from medseg.serving.dimse import Caller
from medseg.serving.ledger import State, Study, digest
from medseg.serving.queue import Queue
from medseg.serving.store import Store

KEY = digest("1.2.3")
DEAD, GOOD, STERN = (Peer("127.0.0.1", port, name) for port, name in enumerate(("DEAD", "GOOD", "STERN"), 1))
ERRORS: dict[Peer, type[UnreachableError | RejectedError]] = {}


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    queue = Queue(tmp_path)
    store = Store(tmp_path, queue)
    file = store.incoming / "coming"
    file.write_bytes(b"image")
    store.keep(KEY, "a", "SCANNER", file)
    queue.released(KEY)
    queue.settle(0.0, 3600.0)
    queue.take(1)
    (store.clear_results(KEY) / "result.dcm").write_bytes(b"r")
    queue.predicted(KEY, ["r"])
    yield store
    queue.close()


@pytest.fixture
def attempt(store, monkeypatch) -> Callable[..., Study]:
    """`attempt(*destinations)` tries to send once; `attempt.sent` is what was tried."""
    deliveries: dict[tuple[Peer, ...], Delivery] = {}
    ERRORS.clear()
    ERRORS.update({DEAD: UnreachableError, STERN: RejectedError})

    def send(files: list[Path], peer: Peer, caller: Caller) -> None:
        assert [file.name for file in files] == ["result.dcm"]
        try_once.sent.append(peer.aet)
        if peer in ERRORS:
            raise ERRORS[peer].of("did not work", where=str(peer))

    def try_once(*destinations: Peer) -> Study:
        one = deliveries.setdefault(destinations, Delivery(store, destinations, {}, Caller(), keep=True))
        one._deliver(store.queue.find(KEY))
        return store.queue.find(KEY)

    try_once.sent = []
    monkeypatch.setattr("medseg.serving.delivery.send", send)
    return try_once


def test_a_destination_that_does_not_answer_keeps_no_other_one_waiting(store, attempt):
    study = attempt(DEAD, GOOD)
    assert (study.state, attempt.sent) == (State.sending, ["DEAD", "GOOD"])
    assert store.queue.delivered_to(KEY) == {str(GOOD)}
    assert "DEAD at 127.0.0.1:1" in study.reason
    for _ in range(2 * REFUSALS):
        assert attempt(DEAD, GOOD).state == State.sending
    assert attempt.sent.count("GOOD") == 1
    del ERRORS[DEAD]
    assert attempt(DEAD, GOOD).state == State.done


def test_refusals_are_counted_for_each_destination(attempt):
    for _ in range(REFUSALS + 1):
        study = attempt(STERN, DEAD)
    assert study.state == State.sending
    assert attempt.sent.count("STERN") == REFUSALS
    assert attempt.sent.count("DEAD") == REFUSALS + 1
    del ERRORS[DEAD]
    study = attempt(STERN, DEAD)
    assert study.state == State.aside
    assert "STERN at 127.0.0.1:3" in study.reason
    assert "DEAD" not in study.reason


def test_each_study_waits_longer_between_attempts(store, attempt):
    pauses = []
    for _ in range(7):
        study = attempt(DEAD, GOOD)
        pauses.append(round(study.due - store.queue.find(KEY).changed))
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] >= 299


def test_results_that_are_gone_are_not_sent(store, attempt):
    (store.results(KEY) / "result.dcm").unlink()
    study = attempt(GOOD)
    assert (study.state, attempt.sent) == (State.aside, [])
    assert "its results are not on the disk any more" in study.reason
    store.queue.retry(KEY)
    assert store.queue.find(KEY).state == State.waiting
