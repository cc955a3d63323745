"""The node's work queue: one row per study in a SQLite file, every change of state one transaction that is on the disk when it returns.

    received -> waiting -> running -> sending -> done
                              `----------`-----> aside

A study is `received` while its images come in, `waiting` when it is complete, `aside` when it cannot be predicted or delivered.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medseg.errors import UsageError
from medseg.serving.ledger import OPEN, State, Study, move, open_ledger, study_of

KEEP_DONE = 10_000  # rows of delivered studies that are remembered
FORGET_REFUSED = 86_400.0  # seconds after which instances that were refused and never came again are forgotten


class Queue:
    """The queue in the file `folder/queue.sqlite`; safe to use from several threads, and from several processes."""

    def __init__(self, folder: Path, create: bool = True) -> None:
        """Open or create it.

        Raises:
            UsageError: there is none, and `create` is False.
            ResourceError: the file cannot be read or written.
        """
        self._lock = threading.RLock()
        self._base = open_ledger(folder, create)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def together(self) -> Iterator[sqlite3.Connection]:
        """What is done within is one transaction, and nobody else, of this process or another, changes rows or files meanwhile."""
        with self._lock:
            if self._base.in_transaction:
                yield self._base
                return
            self._base.execute("begin immediate")
            try:
                yield self._base
                self._base.execute("commit")
            except BaseException:
                if self._base.in_transaction:  # SQLite may have ended it already
                    self._base.execute("rollback")
                raise

    def find(self, key: str) -> Study | None:
        """The study with this key."""
        with self._lock:
            row = self._base.execute("select * from studies where key = ?", (key,)).fetchone()
        return None if row is None else study_of(row)

    def studies(self, states: Collection[State] = tuple(State)) -> tuple[Study, ...]:
        """All studies in some states, the oldest first."""
        marks = ",".join("?" * len(states))
        with self._lock:
            rows = self._base.execute(f"select * from studies where state in ({marks}) order by first", tuple(states)).fetchall()
        return tuple(study_of(row) for row in rows)

    def counts(self) -> dict[State, int]:
        """How many studies are in each state."""
        with self._lock:
            found = {row[0]: row[1] for row in self._base.execute("select state, count(*) from studies group by state")}
        return {state: found.get(state, 0) for state in State}

    def open(self) -> int:
        """How many studies are not done and not aside."""
        counts = self.counts()
        return sum(counts[state] for state in OPEN)

    # What comes in

    def arrived(self, key: str, instance: str, caller: str, size: int, new: bool = True, now: float | None = None) -> None:
        """An image of a study is on the disk; with `new` False it was there before, equal to the bit. No `caller` is an unknown one."""
        now = time.time() if now is None else now
        with self.together() as base:
            base.execute("delete from refused where study = ? and instance = ?", (key, instance))
            found = base.execute("select state from studies where key = ?", (key,)).fetchone()
            if found is None:
                base.execute(
                    "insert into studies (key, state, caller, first, last, changed) values (?, ?, ?, ?, ?, ?)",
                    (key, State.received, caller, now, now, now),
                )
            base.execute(
                "update studies set last = ?, caller = iif(? = '', caller, ?), unreleased = 1 where key = ?", (now, caller, caller, key)
            )
            if new:
                self.lost(key, instance)
                base.execute("insert into images values (?, ?, ?)", (key, instance, size))
                base.execute("update studies set instances = instances + 1, bytes = bytes + ? where key = ?", (size, key))
            if found is None:
                return
            if new and found[0] in (State.running, State.sending):
                base.execute("update studies set late = 1 where key = ?", (key,))
            elif found[0] in (State.aside, State.done) or (new and found[0] == State.waiting):
                base.execute("delete from deliveries where study = ?", (key,))
                base.execute(
                    "update studies set state = :state, changed = :now, attempts = 0, late = 0, due = 0, reason = '',"
                    " first = iif(state = 'waiting', first, :now) where key = :key",
                    {"state": State.received, "now": now, "key": key},
                )

    def holds(self, key: str, instance: str) -> bool:
        """Whether an image was taken into the queue, and its file has not been replaced since."""
        with self._lock:
            return self._base.execute("select 1 from images where study = ? and instance = ?", (key, instance)).fetchone() is not None

    def images(self, key: str) -> frozenset[str]:
        """The images that were taken into the queue for a study."""
        with self._lock:
            return frozenset(row[0] for row in self._base.execute("select instance from images where study = ?", (key,)))

    def lost(self, key: str, instance: str) -> None:
        """The file of an image is not there, or is going to be replaced: it counts as new when it is there again."""
        with self.together() as base:
            found = base.execute("delete from images where study = ? and instance = ? returning size", (key, instance)).fetchone()
            if found is not None:
                base.execute("update studies set instances = instances - 1, bytes = bytes - ? where key = ?", (found[0], key))

    def released(self, key: str) -> None:
        """The associations that brought images of a study have ended as they should."""
        with self.together() as base:
            base.execute("update studies set unreleased = 0 where key = ?", (key,))

    def refuse(self, key: str, instance: str) -> None:
        """An image was refused for lack of room; its study is not complete before it has come again."""
        with self.together() as base:
            base.execute("insert or replace into refused values (?, ?, ?)", (key, instance, time.time()))

    def settle(
        self, quiet: float, limit: float, busy: Collection[str] = (), began: float = 0.0, now: float | None = None
    ) -> tuple[Study, ...]:
        """Studies to which nothing was added for `quiet` seconds, and whose associations were released, become complete.

        After `limit` seconds from the first image a study is complete anyway where its sender is still connected (`busy`). It is set aside
        where images of it were refused and have not come again, or where its association broke: it may be partial, and a result would not
        tell; the same where fewer images came than were delivered before and deleted. No time counts before `began`, when the node
        began to listen: nobody could send. Returns what was set aside.
        """
        now = time.time() if now is None else now
        aside: dict[Study, str] = {}
        with self.together() as base:
            base.execute(
                "delete from refused where at < ? and study not in (select key from studies where state = ?)",
                (now - FORGET_REFUSED, State.received),
            )
            rows = base.execute("select * from studies where state = ?", (State.received,)).fetchall()
            for study in map(study_of, rows):
                missing = base.execute("select count(*) from refused where study = ?", (study.key,)).fetchone()[0]
                late = now - max(study.first, began) >= limit
                if late and missing:
                    aside[study] = f"images that were refused for lack of room and have not come again: {missing}"
                elif late and study.unreleased and study.key not in busy:
                    aside[study] = "an association that brought images broke, and nobody has sent them again: the study may be partial"
                elif not late and (missing or study.unreleased or now - max(study.last, began) < quiet):
                    continue
                elif study.instances < study.gone:
                    aside[study] = (
                        f"the other images of this study, {study.gone} in all, were delivered and deleted: send it whole again; "
                        "--retry predicts what is there"
                    )
                else:
                    move(base, study.key, State.waiting, now, late=0, gone=0)
            for study, reason in aside.items():
                move(base, study.key, State.aside, now, reason=reason)
        return tuple(replace(study, state=State.aside, reason=reason) for study, reason in aside.items())

    # What is done

    def take(self, attempts: int) -> Study | None:
        """The oldest complete study, which is now `running`. One that was begun `attempts` times already is set aside instead."""
        now = time.time()
        with self.together() as base:
            while True:
                row = base.execute(
                    "select * from studies where state = ? and due <= ? order by first limit 1", (State.waiting, now)
                ).fetchone()
                if row is None:
                    return None
                study = study_of(row)
                if study.attempts < attempts:
                    move(base, study.key, State.running, now, attempts=study.attempts + 1, late=0)
                    return study_of(base.execute("select * from studies where key = ?", (study.key,)).fetchone())
                move(base, study.key, State.aside, now, reason=study.reason or f"the node ended {study.attempts} times while it ran")

    def predicted(self, key: str, instances: Sequence[str], note: str = "") -> bool:
        """Results are on the disk: the study is `sending`, or `received` again (False) where images have come meanwhile.

        Args:
            key: of the study.
            instances: digests of the UIDs of the results, which are recognised should they come back.
            note: what went wrong with parts of the study.
        """
        now = time.time()
        with self.together() as base:
            late = base.execute("select late from studies where key = ?", (key,)).fetchone()[0]
            if late:
                move(base, key, State.received, now, (State.running,), late=0, attempts=0, first=now)
                return False
            base.execute("delete from deliveries where study = ?", (key,))
            base.executemany("insert or replace into sent values (?, ?)", [(instance, key) for instance in instances])
            move(base, key, State.sending, now, (State.running,), reason=note, due=0)
            return True

    def failed(self, key: str, reason: str, attempts: int, pause: float = 0.0) -> State:
        """A prediction failed: the study waits for another try, or is set aside after `attempts`."""
        now = time.time()
        with self.together() as base:
            tried = base.execute("select attempts from studies where key = ?", (key,)).fetchone()[0]
            state = State.aside if tried >= attempts else State.waiting
            move(base, key, state, now, (State.running,), reason=reason, due=now + pause)
            return state

    def interrupted(self, key: str) -> None:
        """The node stops in the middle of a study, which is not the study's fault."""
        with self.together() as base:
            base.execute("update studies set attempts = max(0, attempts - 1) where key = ?", (key,))
            move(base, key, State.waiting, time.time(), (State.running,))

    def due(self) -> Study | None:
        """The oldest study whose results are to be sent now."""
        with self._lock:
            row = self._base.execute(
                "select * from studies where state = ? and due <= ? order by due, first limit 1", (State.sending, time.time())
            ).fetchone()
        return None if row is None else study_of(row)

    def delivered(self, key: str, destination: str) -> None:
        """All results of a study have reached a destination."""
        with self.together() as base:
            base.execute("insert or replace into deliveries values (?, ?)", (key, destination))

    def delivered_to(self, key: str) -> frozenset[str]:
        """The destinations that have all results of a study."""
        with self._lock:
            rows = self._base.execute("select destination from deliveries where study = ?", (key,)).fetchall()
        return frozenset(row[0] for row in rows)

    def postpone(self, key: str, reason: str, pause: float) -> None:
        """A destination did not answer; results are sent again later."""
        with self.together() as base:
            base.execute("update studies set due = ?, reason = ? where key = ?", (time.time() + pause, reason, key))

    def finish(self, key: str) -> bool:
        """Every destination has the results: the study is `done`, or `received` again (False) where images have come meanwhile."""
        now = time.time()
        with self.together() as base:
            late = base.execute("select late from studies where key = ?", (key,)).fetchone()[0]
            if late:
                move(base, key, State.received, now, (State.sending,), late=0, attempts=0, first=now)
                return False
            move(base, key, State.done, now, (State.sending,))
            return True

    def kept(self, before: float | None = None) -> tuple[str, ...]:
        """Delivered studies that still have their files, the first that was delivered first; with `before` those delivered until then."""
        with self._lock:
            rows = self._base.execute(
                "select key from studies where state = ? and instances > 0 and changed <= ? order by changed",
                (State.done, time.time() if before is None else before),
            ).fetchall()
        return tuple(row[0] for row in rows)

    def emptied(self, key: str) -> bool:
        """A delivered study has no files any more; False where images have come meanwhile. The oldest of these studies are forgotten."""
        with self.together() as base:
            if not base.execute(
                "update studies set gone = instances, instances = 0, bytes = 0 where key = ? and state = ?", (key, State.done)
            ).rowcount:
                return False
            base.execute("delete from images where study = ?", (key,))
            old = "select key from studies where state = ? and instances = 0 order by changed desc limit -1 offset ?"
            for table, column in (("sent", "study"), ("deliveries", "study"), ("studies", "key")):
                base.execute(f"delete from {table} where {column} in ({old})", (State.done, KEEP_DONE))
            return True

    def aside(self, key: str, reason: str) -> None:
        """Nothing more can be done for a study before somebody looks at it."""
        with self.together() as base:
            move(base, key, State.aside, time.time(), OPEN, reason=reason)

    def is_own(self, instance: str) -> bool:
        """Whether an instance with this digest is a result that this node made."""
        with self._lock:
            return self._base.execute("select 1 from sent where instance = ?", (instance,)).fetchone() is not None

    # What people and restarts do

    def recover(self) -> int:
        """After a start: what was running waits again. Returns how many studies were."""
        with self.together() as base:
            return base.execute(
                "update studies set state = ?, changed = ? where state = ?", (State.waiting, time.time(), State.running)
            ).rowcount

    def retry(self, key: str) -> None:
        """Predict a study again that was set aside.

        Raises:
            UsageError: no such study is aside.
        """
        self._only_aside(key)
        with self.together() as base:
            base.execute("delete from refused where study = ?", (key,))
            move(base, key, State.waiting, time.time(), (State.aside,), attempts=0, due=0, unreleased=0, gone=0, reason="")

    def forget(self, key: str) -> None:
        """Remove a study that was set aside; its files are the caller's to remove.

        Raises:
            UsageError: no such study is aside.
        """
        self._only_aside(key)
        with self.together() as base:
            for table, column in (
                ("sent", "study"),
                ("deliveries", "study"),
                ("refused", "study"),
                ("images", "study"),
                ("studies", "key"),
            ):
                base.execute(f"delete from {table} where {column} = ?", (key,))

    def _only_aside(self, key: str) -> None:
        found = self.find(key)
        if found is None or found.state != State.aside:
            raise UsageError.of(
                "no such study is aside",
                where=f"study {key}",
                found="no study" if found is None else found.state,
                expected=", ".join(study.key for study in self.studies((State.aside,))) or "none is",
                fix="Only studies that were set aside can be tried again or removed; delivered ones go by themselves (--keep-for).",
            )
