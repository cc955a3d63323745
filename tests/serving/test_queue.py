"""The queue and its files: every path of a study, and what a restart finds."""

from __future__ import annotations

import os
import sqlite3
import time

import pytest

from medseg.errors import ResourceError, UsageError
from medseg.serving.ledger import State, digest
from medseg.serving.queue import Queue
from medseg.serving.store import Store

KEY = digest("1.2.3")


@pytest.fixture
def queue(tmp_path):
    one = Queue(tmp_path)
    yield one
    one.close()


@pytest.fixture
def store(tmp_path, queue) -> Store:
    return Store(tmp_path, queue)


def put(store: Store, key: str, instance: str, caller: str, data: bytes) -> None:
    """An image comes over an association that stays open."""
    file = store.incoming / "coming"
    file.write_bytes(data)
    try:
        store.keep(key, instance, caller, file)
    finally:
        file.unlink(missing_ok=True)


def complete(store: Store, *instances: str) -> None:
    for instance in instances or ("a",):
        put(store, KEY, instance, "SCANNER", instance.encode())
    store.queue.released(KEY)
    store.queue.settle(0.0, 3600.0)


def deliver(store: Store, keep: bool = True) -> None:
    """A study that is waiting is predicted and delivered."""
    store.queue.take(1)
    (store.clear_results(KEY) / "result.dcm").write_bytes(b"r")
    assert store.queue.predicted(KEY, [])
    assert store.finish(KEY, keep)


def test_a_study_goes_through_all_states(store):
    queue = store.queue
    put(store, KEY, "a", "SCANNER", b"one")
    put(store, KEY, "b", "OTHER", b"two!")
    study = queue.find(KEY)
    assert (study.state, study.caller, study.instances, study.bytes, study.attempts) == (State.received, "OTHER", 2, 7, 0)
    queue.settle(60.0, 3600.0, now=study.last + 61)
    assert queue.take(3) is None  # the association is open
    queue.released(KEY)
    queue.settle(60.0, 3600.0, now=study.last + 59)
    assert queue.take(3) is None
    queue.settle(60.0, 3600.0, began=study.last + 50, now=study.last + 61)
    assert queue.take(3) is None
    queue.settle(60.0, 3600.0, now=study.last + 61)
    assert queue.take(3).state == State.running
    assert queue.take(3) is None
    assert queue.due() is None
    (store.clear_results(KEY) / "result.dcm").write_bytes(b"r")
    assert queue.predicted(KEY, ["r1", "r2"])
    assert queue.is_own("r2")
    assert not queue.is_own("a")
    assert queue.due().key == KEY
    queue.postpone(KEY, "nobody answers", 60.0)
    assert queue.due() is None
    queue.delivered(KEY, "PACS at host:104")
    assert queue.delivered_to(KEY) == {"PACS at host:104"}
    assert store.finish(KEY, keep=False)
    assert queue.find(KEY).state == State.done
    assert list(store.folder.rglob("*.dcm")) == []
    assert queue.open() == 0

    put(store, KEY, "c", "SCANNER", b"three")  # a later addition to a study whose images are gone
    assert (queue.find(KEY).state, queue.find(KEY).instances) == (State.received, 1)
    assert queue.delivered_to(KEY) == set()


def test_images_of_delivered_studies_are_kept_for_some_time(store):
    complete(store)
    deliver(store)
    store.recover()
    store.expire(60.0)
    assert [path.name for path in store.images(KEY).iterdir()] == ["a.dcm"]
    assert store.queue.kept() == (KEY,)
    store.expire(0.0)
    assert list(store.folder.rglob("*.dcm")) == []
    assert store.queue.kept() == ()
    assert store.queue.find(KEY).state == State.done


def test_late_images_without_the_earlier_ones_are_not_predicted(store):
    queue = store.queue
    complete(store, "a", "b")
    deliver(store, keep=False)
    put(store, KEY, "c", "SCANNER", b"c")
    queue.released(KEY)
    (aside,) = queue.settle(0.0, 3600.0)
    assert queue.find(KEY).state == State.aside
    assert "the other images of this study, 2 in all, were delivered and deleted" in aside.reason
    queue.retry(KEY)  # as somebody wants it
    deliver(store, keep=False)

    put(store, KEY, "d", "SCANNER", b"d")  # as many as the last result was of
    queue.released(KEY)
    assert queue.settle(0.0, 3600.0) == ()
    assert queue.take(1).key == KEY


def test_a_study_that_is_sent_whole_again_is_predicted_again(store):
    complete(store, "a", "b")
    deliver(store)
    store.expire(0.0)
    for _ in range(2):
        complete(store, "a")
        assert store.queue.find(KEY).state == State.aside
    complete(store, "b")  # joins the first one
    assert (store.queue.find(KEY).state, store.queue.find(KEY).gone) == (State.waiting, 0)


def test_late_images_of_a_delivered_study_join_those_that_are_kept(store):
    complete(store, "a", "b")
    deliver(store)
    put(store, KEY, "c", "SCANNER", b"c")
    study = store.queue.find(KEY)
    assert (study.state, study.instances, study.bytes, study.unreleased) == (State.received, 3, 3, True)
    store.expire(0.0)  # in the middle of it
    assert len(list(store.images(KEY).iterdir())) == 3
    store.queue.settle(0.0, 3600.0, now=study.first + 100)
    assert store.queue.find(KEY).state == State.received  # it waits as long as any other


def test_room_is_made_of_what_was_delivered_first(store, monkeypatch):
    keys = [digest(str(number)) for number in range(3)]
    for key in keys:
        put(store, key, "a", "SCANNER", b"a")
        store.queue.released(key)
        store.queue.settle(0.0, 3600.0)
        if key != keys[2]:
            store.queue.take(1)
            store.queue.predicted(key, [])
            store.finish(key, keep=True)
    monkeypatch.setattr(Store, "free", lambda self: 10 - len(list(self.folder.rglob("*.dcm"))))
    assert store.make_room(7)
    assert store.queue.kept() == tuple(keys[:2])
    assert store.make_room(8)
    assert store.queue.kept() == (keys[1],)
    assert not Store(store.folder, store.queue, forever=True).make_room(9)
    assert not store.make_room(10)  # what is not delivered stays
    assert [path.parent.parent.name for path in store.folder.rglob("*.dcm")] == [keys[2]]


def test_a_study_whose_association_broke_is_not_predicted(store):
    put(store, KEY, "a", "SCANNER", b"a")
    first = store.queue.find(KEY).first
    assert store.queue.settle(0.0, 100.0, now=first + 99) == ()
    assert store.queue.find(KEY).state == State.received
    (aside,) = store.queue.settle(0.0, 100.0, now=first + 101)
    assert aside.key == KEY
    assert (store.queue.find(KEY).state, store.queue.find(KEY).reason) == (State.aside, aside.reason)
    assert "the study may be partial" in aside.reason
    put(store, KEY, "a", "SCANNER", b"a")  # again, the whole of it
    store.queue.settle(0.0, 100.0)
    assert store.queue.find(KEY).state == State.received
    store.queue.released(KEY)
    store.queue.settle(0.0, 100.0)
    assert store.queue.find(KEY).state == State.waiting


def test_what_broken_associations_leave_is_removed(store):
    for name, age in (("old", 700), ("new", 0)):
        (store.incoming / name).write_bytes(b"half an image")
        os.utime(store.incoming / name, (time.time() - age,) * 2)
    store.expire(60.0)
    assert [path.name for path in store.incoming.iterdir()] == ["new"]


def test_a_study_that_nobody_ends_is_complete_at_last(store):
    put(store, KEY, "a", "SCANNER", b"one")
    first = store.queue.find(KEY).first
    store.queue.settle(60.0, 100.0, busy={KEY}, now=first + 99)
    assert store.queue.find(KEY).state == State.received
    store.queue.settle(60.0, 100.0, busy={KEY}, now=first + 101)
    assert store.queue.find(KEY).state == State.waiting


def test_what_is_sent_twice_changes_nothing(store):
    complete(store)
    put(store, KEY, "a", "SCANNER", b"a")
    assert (store.queue.find(KEY).state, store.queue.find(KEY).instances) == (State.waiting, 1)
    store.queue.take(1)
    put(store, KEY, "a", "SCANNER", b"a")
    assert store.queue.predicted(KEY, [])
    put(store, KEY, "a", "SCANNER", b"A")  # another content under the same name
    assert not store.finish(KEY, keep=False)
    assert store.queue.find(KEY).state == State.received
    assert (store.images(KEY) / "a.dcm").read_bytes() == b"A"


@pytest.mark.parametrize("state", [State.running, State.sending])
@pytest.mark.parametrize("failing", ["arrived", "commit"])
def test_an_image_whose_row_could_not_be_written_is_new_when_it_comes_again(state, failing, store, monkeypatch):
    queue = store.queue
    complete(store, "a")
    queue.take(1)
    if state == State.sending:
        queue.predicted(KEY, [])
    with monkeypatch.context() as patched:
        if failing == "arrived":
            patched.setattr(queue, "arrived", failure)
        else:
            patched.setattr(queue, "_base", FailingCommit(queue._base, 2))  # the first one only says that the file is about to change
        with pytest.raises(ResourceError, match="disk I/O error"):
            put(store, KEY, "b", "SCANNER", b"b")
    assert not queue._base.in_transaction
    put(store, KEY, "b", "SCANNER", b"b")
    study = queue.find(KEY)
    assert (study.state, study.instances, study.bytes, study.late) == (state, 2, 2, True)
    assert not (queue.predicted(KEY, []) if state == State.running else store.finish(KEY, keep=False))
    assert queue.find(KEY).state == State.received


@pytest.mark.parametrize("state", [State.running, State.sending])
def test_an_image_that_was_replaced_without_its_row_is_new_when_it_comes_again(state, store, monkeypatch):
    queue = store.queue
    complete(store, "a")
    queue.take(1)
    if state == State.sending:
        queue.predicted(KEY, [])
    with monkeypatch.context() as patched:
        patched.setattr(queue, "arrived", failure)
        with pytest.raises(ResourceError):
            put(store, KEY, "a", "SCANNER", b"other")
    put(store, KEY, "a", "SCANNER", b"other")
    study = queue.find(KEY)
    assert (study.instances, study.bytes, study.late) == (1, 5, True)


@pytest.mark.parametrize("state", [State.received, State.running, State.sending, State.done])
def test_a_restart_finds_images_without_rows_and_rows_without_images(state, store):
    queue = store.queue
    complete(store, "a", "b")
    if state == State.received:
        queue.arrived(KEY, "a", "SCANNER", 1)
    else:
        queue.take(1)
    if state in (State.sending, State.done):
        queue.predicted(KEY, [])
    if state == State.done:
        store.finish(KEY, keep=True)
    (store.images(KEY) / "c.dcm").write_bytes(b"late")  # ... and the process is killed
    (store.images(KEY) / "a.dcm").unlink()  # its name was not on the disk when the power failed
    store.recover()
    study = queue.find(KEY)
    assert (study.instances, study.bytes, study.caller, study.unreleased) == (2, 5, "SCANNER", True)
    assert queue.images(KEY) == {"b", "c"}
    assert (study.state, study.late) == ((State.sending, True) if state == State.sending else (State.received, False))


def failure(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")


class FailingCommit:
    """A connection whose n-th commit fails."""

    def __init__(self, base: sqlite3.Connection, number: int) -> None:
        self._base, self._left = base, number

    def __getattr__(self, name: str) -> object:
        return getattr(self._base, name)

    def execute(self, text: str, *values: object) -> sqlite3.Cursor:
        self._left -= text == "commit"
        if text == "commit" and not self._left:
            failure()
        return self._base.execute(text, *values)


def test_new_images_of_a_waiting_study_let_it_wait_for_more(store):
    complete(store)
    put(store, KEY, "b", "SCANNER", b"b")
    assert store.queue.find(KEY).state == State.received


def test_failures_are_counted(store):
    queue = store.queue
    complete(store)
    queue.take(2)
    assert queue.failed(KEY, "first", 2) == State.waiting
    assert queue.take(2).attempts == 2
    assert queue.failed(KEY, "second", 2) == State.aside
    assert queue.find(KEY).reason == "second"
    with pytest.raises(UsageError, match=r"no such study is aside; found no study, expected " + KEY):
        queue.retry(digest("other"))
    queue.retry(KEY)
    assert (queue.find(KEY).state, queue.find(KEY).attempts) == (State.waiting, 0)
    with pytest.raises(
        UsageError, match=r"found waiting, expected none is\. Only studies that were set aside can be tried again or removed"
    ):
        store.forget(KEY)


def test_a_study_that_kills_the_whole_node_is_set_aside(store):
    complete(store)
    for _ in range(2):
        assert store.queue.take(2).state == State.running
        assert store.recover() == 1
    assert store.queue.take(2) is None
    assert store.queue.find(KEY).reason == "the node ended 2 times while it ran"


def test_a_stop_is_not_the_fault_of_a_study(store):
    complete(store)
    for _ in range(5):
        assert store.queue.take(1).attempts == 1
        store.queue.interrupted(KEY)


def test_impossible_moves_are_bugs(store):
    complete(store)
    with pytest.raises(RuntimeError, match="cannot become sending"):
        store.queue.predicted(KEY, [])
    assert store.queue.find(KEY).state == State.waiting


def test_a_restart_repairs_what_was_half_done(store, tmp_path):
    complete(store, "a", "b")
    store.queue.take(1)
    store.queue.predicted(KEY, [])
    store.queue.finish(KEY)
    store.queue.emptied(KEY)  # ... and then the process is killed, before files are removed
    lost = digest("4.5.6")
    store.images(lost).mkdir(parents=True)
    (store.images(lost) / "c.dcm").write_bytes(b"image")  # ... or before an image is in the queue
    (tmp_path / "incoming" / "half").write_bytes(b"im")
    (tmp_path / "removed" / "old").mkdir()
    store.recover()
    assert not store.images(KEY).exists()
    assert (store.queue.find(lost).state, store.queue.find(lost).instances) == (State.received, 1)
    assert list((tmp_path / "incoming").iterdir()) == list((tmp_path / "removed").iterdir()) == []


def test_results_that_were_being_sent_are_sent_again(tmp_path):
    first = Queue(tmp_path)
    complete(Store(tmp_path, first))
    first.take(1)
    first.predicted(KEY, [])
    first.delivered(KEY, "A")
    first._base.close()  # as a kill leaves it
    second = Queue(tmp_path)
    Store(tmp_path, second).recover()
    assert second.due().key == KEY
    assert second.delivered_to(KEY) == {"A"}
    second.close()


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        put(store, KEY, "a", "SCANNER", b"one")
    assert store.queue.find(KEY) is None
    assert [path for path in store.folder.rglob("*") if path.is_file() and "queue" not in path.name] == []


def test_images_that_were_refused_are_waited_for(store):
    queue = store.queue
    queue.refuse(KEY, "b")
    complete(store)
    assert queue.find(KEY).state == State.received
    put(store, KEY, "b", "SCANNER", b"b")
    queue.released(KEY)
    queue.settle(0.0, 3600.0)
    assert queue.find(KEY).state == State.waiting


def test_only_the_latest_deliveries_are_remembered(store, monkeypatch):
    monkeypatch.setattr("medseg.serving.queue.KEEP_DONE", 2)
    for number in range(4):
        key = digest(str(number))
        put(store, key, "a", "SCANNER", b"a")
        store.queue.released(key)
        store.queue.settle(0.0, 3600.0)
        store.queue.take(1)
        store.queue.predicted(key, [f"result {number}"])
        store.finish(key, keep=False)
    assert len(store.queue.studies()) == 2
    assert [store.queue.is_own(f"result {number}") for number in range(4)] == [False, False, True, True]


def test_a_folder_that_is_no_nodes(tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a node"):
        Queue(tmp_path / "none", create=False)
    (tmp_path / "queue.sqlite").write_text("something else, which is long enough to be taken for a file of a data base")
    with pytest.raises(ResourceError, match="the queue cannot be opened"):
        Queue(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_all_is_readable_for_the_owner_only(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("queue.sqlite", "queue.sqlite-wal"):
        (folder / name).touch()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777 if path.is_dir() else 0o666)
    mask = os.umask(0)
    try:
        queue = Queue(folder)
        store = Store(folder, queue)
        complete(store, "a", "b")
        deliver(store)
        assert {path.name for path in folder.iterdir()} == {
            *("queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm", "studies", "incoming", "removed")
        }
        private = [folder, *folder.iterdir(), store.images(KEY), store.results(KEY), store.results(KEY).parent]
        assert [path for path in private if path.stat().st_mode & 0o077] == []
        queue.close()
    finally:
        os.umask(mask)


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
def test_every_new_name_is_on_the_disk_when_an_image_is_kept(store, monkeypatch):
    synced, opened = set(), {}
    real_open, real_sync = os.open, os.fsync

    def note(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        opened[descriptor] = path
        return descriptor

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(opened.get(descriptor)), real_sync(descriptor)))
    put(store, KEY, "a", "SCANNER", b"a")
    assert synced >= {store.images(KEY), store.images(KEY).parent, store.folder / "studies"}


def test_rows_are_on_the_disk_when_a_call_returns(queue):
    mode = queue._base.execute("pragma synchronous").fetchone()[0], queue._base.execute("pragma journal_mode").fetchone()[0]
    assert mode == (2, "wal")
    assert sqlite3.threadsafety >= 1


def test_rows_and_files_change_together_or_not_at_all(store, monkeypatch):
    complete(store)
    store.queue.take(1)
    store.queue.failed(KEY, "poison", 1)
    monkeypatch.setattr(store, "_put_away", lambda key: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.forget(KEY)
    assert store.queue.find(KEY).state == State.aside
    assert (store.images(KEY) / "a.dcm").is_file()
