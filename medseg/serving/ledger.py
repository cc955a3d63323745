"""The file of the node's work queue: its tables, and a study as a row of them.

Nothing in the file names a patient: studies and instances are known by digests of their UIDs.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from medseg.errors import ResourceError, UsageError

NAME = "queue.sqlite"
PRIVATE = 0o600

SCHEMA = """
create table if not exists studies (
    key text primary key, state text not null, caller text not null, first real not null, last real not null, changed real not null,
    instances integer not null default 0, bytes integer not null default 0, attempts integer not null default 0,
    late integer not null default 0, unreleased integer not null default 1, gone integer not null default 0,
    due real not null default 0, reason text not null default ''
) strict;
create table if not exists images (study text not null, instance text not null, size integer not null, primary key (study, instance)) strict;
create table if not exists refused (study text not null, instance text not null, at real not null, primary key (study, instance)) strict;
create table if not exists deliveries (study text not null, destination text not null, primary key (study, destination)) strict;
create table if not exists sent (instance text primary key, study text not null) strict;
create index if not exists sent_of on sent (study);
"""


class State(StrEnum):
    """Where a study is."""

    received = "received"
    waiting = "waiting"
    running = "running"
    sending = "sending"
    done = "done"
    aside = "aside"


OPEN = (State.received, State.waiting, State.running, State.sending)


@dataclass(frozen=True)
class Study:
    """A row of the queue.

    Attributes:
        key: digest of the Study Instance UID.
        state: see `State`.
        caller: title of the application entity that sent the latest image.
        first: when its first image came, seconds since 1970; after it was delivered or set aside, the first one that came then.
        last: when its latest image came.
        changed: when its state changed.
        instances: images received.
        bytes: of these.
        attempts: predictions that have begun.
        late: whether images have come since the prediction began.
        unreleased: whether an association that brought images is open, or broke and nobody has sent images again since.
        gone: images that were delivered and deleted, before those that have come now.
        due: before this time it is not tried again.
        reason: why it is aside, or what went wrong last.
    """

    key: str
    state: State
    caller: str
    first: float
    last: float
    changed: float
    instances: int
    bytes: int
    attempts: int
    late: bool
    unreleased: bool
    gone: int
    due: float
    reason: str


def digest(uid: str) -> str:
    """16 hexadecimal digits that name something without telling its UID."""
    return hashlib.blake2b(uid.encode(), digest_size=8).hexdigest()


def open_ledger(folder: Path, create: bool = True) -> sqlite3.Connection:
    """The file `folder/queue.sqlite`, for all threads, without transactions of its own.

    Raises:
        UsageError: there is none, and `create` is False.
        ResourceError: the file cannot be read or written.
    """
    path = folder / NAME
    if not create and not path.is_file():
        raise UsageError.of("is not the folder of a node", where=str(folder), expected=f"a file {NAME}", fix="Pass the node's --store.")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=PRIVATE)
        path.chmod(PRIVATE)  # SQLite gives its -wal and -shm the same
        for beside in folder.glob(f"{NAME}-*"):
            beside.chmod(PRIVATE)
        base = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        base.row_factory = sqlite3.Row
        base.execute("pragma journal_mode = wal")
        base.execute("pragma synchronous = full")
        base.executescript(SCHEMA)
        base.execute("select gone from studies limit 0")
    except (OSError, sqlite3.Error) as error:
        raise ResourceError.of("the queue cannot be opened", where=str(path), found=str(error), fix="Choose another --store.") from None
    return base


def move(base: sqlite3.Connection, key: str, state: State, now: float, before: Collection[State] = OPEN, **fields: Any) -> None:
    """Change the state of a study, and fields of its row. Raises RuntimeError where its state is none of `before`."""
    settings = "".join(f", {name} = :{name}" for name in fields)
    marks = ",".join(f"'{one}'" for one in before)
    changed = base.execute(
        f"update studies set state = :state, changed = :now{settings} where key = :key and state in ({marks})",
        {"state": state, "now": now, "key": key, **fields},
    ).rowcount
    if changed != 1:
        raise RuntimeError(f"study {key} cannot become {state}: it is not {' or '.join(before)}")


def study_of(row: sqlite3.Row) -> Study:
    """A row of `studies`."""
    values = dict(row)
    return Study(**{**values, "state": State(values["state"]), "late": bool(values["late"]), "unreleased": bool(values["unreleased"])})
