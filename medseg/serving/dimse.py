"""Talking to other application entities: C-ECHO, C-STORE, C-FIND, C-GET, C-MOVE. Errors never name a UID or a person."""

from __future__ import annotations

import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from medseg.errors import Problem
from medseg.progress import Progress, Silent
from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError, UnreachableError
from medseg.serving.intake import PDU
from medseg.serving.logs import hush

AET = "MEDSEG"
CONNECT = 10.0  # seconds for a connection and its negotiation
ANSWER = 60.0  # seconds for the answer to one message
CONTEXTS = 128  # of an association (PS3.8)

_config.LOG_HANDLER_LEVEL = "none"  # nothing is put into words for logs


@dataclass(frozen=True)
class Caller:
    """How this side calls others.

    Attributes:
        aet: our title.
        tls: certificates, where the connection is encrypted.
    """

    aet: str = AET
    tls: ssl.SSLContext | None = None


def echo(peer: Peer, caller: Caller = Caller()) -> None:
    """Ask whether an application entity is there. Raises UnreachableError where it is not."""
    with associate(peer, [build_context(Verification)], caller) as association:
        _checked(association.send_c_echo(), peer, "C-ECHO")


def send(files: Sequence[Path], peer: Peer, caller: Caller = Caller(), progress: Progress | None = None) -> None:
    """Send DICOM files as they are encoded, by C-STORE. All are tried; those that were refused are counted in the error.

    Raises:
        UnreachableError: no association, or it broke.
        RejectedError: some were refused.
    """
    progress = progress or Silent()
    syntaxes: dict[str, list[str]] = defaultdict(list)
    for file in files:
        meta = read_file_meta_info(file)
        if meta.TransferSyntaxUID not in syntaxes[meta.MediaStorageSOPClassUID]:
            syntaxes[meta.MediaStorageSOPClassUID].append(meta.TransferSyntaxUID)
    # One context for each pair: a context with several syntaxes is accepted with one of them only.
    contexts = [build_context(sop, syntax) for sop, several in syntaxes.items() for syntax in several]
    refused: dict[str, int] = defaultdict(int)
    with associate(peer, contexts[:CONTEXTS], caller) as association:
        for file in progress.track(files, len(files), "send"):
            try:
                status = association.send_c_store(dcmread(file))
            except ValueError:
                refused["no presentation context was accepted for it"] += 1
                continue
            except RuntimeError:
                raise _lost(peer) from None
            if "Status" not in status:
                raise _lost(peer)
            if not _is_stored(status.Status):
                refused[f"status 0x{status.Status:04X}"] += 1
    if refused:
        raise RejectedError(
            Problem(f"{count} of {len(files)} objects were refused", str(peer), why, fix="See the log of that system.")
            for why, count in refused.items()
        )


@contextmanager
def associate(
    peer: Peer, contexts: Sequence[Any], caller: Caller, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()
) -> Iterator[Association]:
    """An association, released at the end. Raises UnreachableError where there is none."""
    hush()
    entity = AE(caller.aet)
    entity.connection_timeout = entity.acse_timeout = CONNECT
    entity.dimse_timeout = entity.network_timeout = ANSWER
    entity.maximum_pdu_size = PDU
    association = entity.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.aet,
        ext_neg=list(roles),
        evt_handlers=[(evt.EVT_ACCEPTED, _make_safe), *handlers],
        tls_args=(caller.tls, peer.host) if caller.tls else None,
    )
    if not association.is_established:
        if association.is_rejected:
            answer = association.acceptor.primitive
            found = f"rejected: {answer.result_str}, {answer.reason_str}"
        elif association.is_aborted:
            found = "aborted, or no connection"
        else:
            found = "no connection"
        raise UnreachableError.of(
            "no association",
            where=str(peer),
            found=found,
            fix=f"Check host, port and titles, and that the other side knows {caller.aet}.",
        )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


class _Checkpoint(threading.Event):
    """Where the reactor of an association waits while somebody else waits for an answer.

    pynetdicom (3.0) takes the reactor for paused as long as `_is_paused` is set, also when it has just left the checkpoint. On a busy machine
    the reactor then takes the answer, throws it away, and both sides wait until one loses patience.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            super().wait(timeout)
            self._association._is_paused = False
            if self.is_set():  # whoever clears it from here on sees that the reactor is not paused
                return True
            self._association._is_paused = True


def _make_safe(event: Any) -> None:
    """Before the reactor of an association of ours begins."""
    event.assoc._reactor_checkpoint = _Checkpoint(event.assoc)


def _is_stored(status: int) -> bool:
    return status == 0 or status >> 12 == 0xB


def _checked(status: Any, peer: Peer, verb: str) -> None:
    if "Status" not in status:
        raise _lost(peer)
    if status.Status != 0:
        raise RejectedError.of(f"{verb} was refused", where=str(peer), found=f"status 0x{status.Status:04X}")


def _lost(peer: Peer) -> UnreachableError:
    return UnreachableError(Problem("the association broke, or no answer came in time", str(peer)))
