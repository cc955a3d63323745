"""The listening side of the node: a storage SCP that answers success only when an image is on the disk and in the queue."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from medseg.errors import ResourceError
from medseg.serving.intake import LARGEST, PDU, SYNTAXES, receive_into
from medseg.serving.ledger import OPEN, digest
from medseg.serving.logs import hush
from medseg.serving.store import Store

LOG = logging.getLogger(__name__)
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
HANDSHAKE = 10.0  # seconds that a client has for the TLS handshake
IDLE = 120.0  # seconds without data after which an association is aborted; what we do with an image counts
NO_IMAGES = frozenset({"SEG", "RTDOSE", "PR"})  # have rows and columns, or refer to them, but are made of images
HEADER = ("StudyInstanceUID", "SOPInstanceUID", "Modality", "Rows")


@dataclass(frozen=True)
class Limits:
    """When the receiver has no room.

    Attributes:
        free: bytes that stay free on the disk.
        studies: that may be in the queue; images of these are still taken when it is full.
        associations: at the same time.
        largest: bytes of one object; an association that brings more of it is aborted.
    """

    free: int = 2**31
    studies: int = 1000
    associations: int = 20
    largest: int = LARGEST


@dataclass
class Traffic:
    """What came in since the start."""

    received: int = 0
    bytes: int = 0
    refused: int = 0
    ignored: int = 0
    unreadable: int = 0
    rejected: int = 0
    aborted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **by: int) -> None:
        """Add to some of the numbers."""
        with self.lock:
            for name, number in by.items():
                setattr(self, name, getattr(self, name) + number)


class Receiver:
    """Listens from `start` to `stop`."""

    def __init__(
        self,
        store: Store,
        aet: str,
        address: tuple[str, int],
        callers: Collection[str],
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        """A receiver for associations.

        Args:
            store: where images go.
            aet: our title; associations with another one are rejected.
            address: to listen on; port 0 takes a free one.
            callers: titles whose associations are accepted; none is all.
            limits: of room.
            tls: makes the connections encrypted.
            changed: called after every image.
        """
        self.traffic = Traffic()
        self._store = store
        self._limits = limits
        self._changed = changed
        self._lock = threading.Lock()
        self._busy: dict[Any, dict[str, bool]] = {}  # association -> study -> whether all is well when it is released
        self._entity = AE(aet)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = sorted(callers)
        self._entity.maximum_associations = limits.associations
        self._entity.network_timeout = self._entity.dimse_timeout = IDLE
        self._entity.maximum_pdu_size = PDU
        self._entity.add_supported_context(Verification, SYNTAXES)
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(context.abstract_syntax, SYNTAXES)
        self._address = address
        self._tls = tls
        self._server: ThreadedAssociationServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; returns the port. Raises ResourceError where that is not possible."""
        handlers = [
            (evt.EVT_CONN_OPEN, receive_into(self._store.incoming, self._limits.largest)),
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, self._aborted),
            (evt.EVT_RELEASED, self._released),
        ]
        hush()
        try:
            self._server = self._entity.make_server(self._address, ssl_context=self._tls, evt_handlers=handlers, server_class=_Server)
        except OSError as error:
            host, port = self._address
            raise ResourceError.of(
                "cannot listen", where=f"{host}:{port}", found=error.strerror or str(error), fix="Choose another --port or --host."
            ) from None
        self._entity._servers.append(self._server)  # as `AE.start_server` does, so that `AE.shutdown` finds it
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="receiver")
        self._thread.start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Abort open associations and stop listening."""
        self._entity.shutdown()
        if self._thread is not None:
            self._thread.join()
        for association in self._entity.active_associations:
            association.join(5)

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._thread is not None and self._thread.is_alive()

    def busy(self) -> frozenset[str]:
        """Keys of studies to which an open association has sent images, and nothing has gone wrong meanwhile."""
        with self._lock:
            dead = [association for association in self._busy if not association.is_alive()]
        for association in dead:  # ended without an event
            self._broke(association)
        with self._lock:
            return frozenset(study for studies in self._busy.values() for study, well in studies.items() if well)

    def associations(self) -> int:
        """How many are open."""
        return len(self._entity.active_associations)

    def full(self) -> str:
        """Why images are refused just now; empty where they are not."""
        if not self._store.make_room(self._limits.free):
            return "the disk is full"
        if self._store.queue.open() >= self._limits.studies:
            return "the queue is full"
        return ""

    def _stored(self, event: Any) -> int:
        try:
            return self._store_one(event)
        except ResourceError as error:
            LOG.error("%s", error)
            self.traffic.count(refused=1)
            return OUT_OF_RESOURCES
        except Exception as error:  # whatever is wrong with one object, the others are still received
            LOG.error("an object could not be received: %s", type(error).__name__)
            self.traffic.count(unreadable=1)
            return CANNOT_UNDERSTAND

    def _store_one(self, event: Any) -> int:
        file = event.dataset_path
        event.request._dataset_file.close()  # Windows moves no open file
        if read_file_meta_info(file).TransferSyntaxUID != event.context.transfer_syntax:
            raise ValueError("the object has file meta information of its own")  # it could claim to be deflated
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
        study, instance = digest(str(header.StudyInstanceUID)), digest(str(header.SOPInstanceUID))
        if "Rows" not in header or header.get("Modality") in NO_IMAGES or self._store.queue.is_own(instance):
            self.traffic.count(ignored=1)  # nothing to predict; our own results come back where a PACS routes all it gets
            return SUCCESS
        if self._refuses(study, instance):
            self.traffic.count(refused=1)
            return OUT_OF_RESOURCES
        with self._lock:
            self._busy.setdefault(event.assoc, {}).setdefault(study, True)
        size = file.stat().st_size
        try:
            self._store.keep(study, instance, str(event.assoc.requestor.ae_title).strip(), file)
        except ResourceError:
            with self._lock:
                self._busy[event.assoc][study] = False
            raise
        self.traffic.count(received=1, bytes=size)
        self._changed()
        return SUCCESS

    def _refuses(self, study: str, instance: str) -> bool:
        queue = self._store.queue
        if self._store.make_room(self._limits.free):
            known = queue.find(study)
            if (known is not None and known.state in OPEN) or queue.open() < self._limits.studies:
                return False
            reason = "the queue is full"
        else:
            reason = "the disk is full"
        LOG.warning("study %s: an image is refused, %s", study, reason)
        queue.refuse(study, instance)
        return True

    def _rejected(self, event: Any) -> None:
        self.traffic.count(rejected=1)
        LOG.warning("an association of '%s' was rejected", event.assoc.requestor.ae_title)

    def _aborted(self, event: Any) -> None:
        self.traffic.count(aborted=1)
        LOG.warning("an association of '%s' was aborted", event.assoc.requestor.ae_title)
        self._broke(event.assoc)
        self._changed()

    def _broke(self, association: Any) -> None:
        """Its studies stay incomplete until an association that begins to send them later is released."""
        with self._lock:
            broken = self._busy.pop(association, {})
            for others in self._busy.values():
                others.update(dict.fromkeys(broken.keys() & others.keys(), False))
        for study in broken:
            LOG.warning("study %s: an association that brought images broke; it is complete when they are sent again", study)

    def _released(self, event: Any) -> None:
        with self._lock:  # also while the queue is written: an image of a further association comes before or after
            for study, well in self._busy.pop(event.assoc, {}).items():
                others = [studies for studies in self._busy.values() if study in studies]
                for studies in others if well else ():
                    studies[study] = True
                if well and not others:
                    self._store.queue.released(study)
        self._changed()


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Shakes hands in the thread of the connection: a client that is silent keeps nobody else waiting."""

    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, Any]:
        assert self.socket is not None
        accepted: tuple[socket.socket, Any] = self.socket.accept()
        return accepted

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.ssl_context is not None:
            request.settimeout(HANDSHAKE)
            request = self.ssl_context.wrap_socket(request, server_side=True)
            request.settimeout(None)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        LOG.warning("a connection has failed before an association was requested")
