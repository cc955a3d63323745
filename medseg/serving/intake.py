"""How objects come in by DIMSE: into files of a folder, and no more of them, nor of a message, than there is room for."""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pynetdicom import ALL_TRANSFER_SYNTAXES, _config, dimse_messages
from pynetdicom.dimse import DIMSEServiceProvider

LOG = logging.getLogger(__name__)
LARGEST = 2**32  # bytes of one object; native pixels cannot be more (PS3.5, 7.1)
MESSAGE = 2**24  # bytes of a message that is held in memory: commands, queries and their answers
PDU = 2**17  # bytes of one protocol data unit that we ask for; 0, which is no limit, would let the other side choose our memory
LONGEST_PDU = 2**20  # that we take: requests for associations may be longer
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")  # a kilobyte may be a gigabyte
SYNTAXES = [one for one in ALL_TRANSFER_SYNTAXES if one not in DEFLATED]

_config.STORE_RECV_CHUNKED_DATASET = True  # objects are written to files as they come


def receive_into(folder: Path, largest: int = LARGEST) -> Callable[[Any], None]:
    """A handler for `evt.EVT_CONN_OPEN`: objects of the association lie in a folder until they are handled (`event.dataset_path`).

    An association over which more than `largest` bytes of one object come is aborted; so is one where the file cannot be written.
    """

    def opened(event: Any) -> None:
        association = event.assoc
        association.dimse = _Inbox(association, folder, largest)
        connection = association.dul.socket
        receive = connection.recv

        def bounded(wanted: int) -> bytearray:
            if wanted > LONGEST_PDU:
                LOG.error("a connection was closed: it announced a protocol data unit of %d bytes", wanted)
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
                raise OSError
            received: bytearray = receive(wanted)
            return received

        connection.recv = bounded

    return opened


class _Inbox(DIMSEServiceProvider):  # type: ignore[misc]
    """Puts together the messages of an association."""

    message: Any

    def __init__(self, association: Any, folder: Path, largest: int) -> None:
        super().__init__(association)
        self._folder = folder
        self._largest = largest

    def receive_primitive(self, primitive: Any) -> None:
        _PLACE.folder = self._folder
        try:
            super().receive_primitive(primitive)
        except Exception as error:  # or the thread of the association would die and leave it open
            self._give_up(getattr(error, "strerror", None) or type(error).__name__)
            return
        finally:
            _PLACE.folder = None
        message = self.message
        if message is None:
            return
        file = message._data_set_file
        size, most = (file.tell(), self._largest) if file else (message.encoded_command_set.tell() + message.data_set.tell(), MESSAGE)
        if size > most:
            self._give_up(f"more than {most} bytes")

    def _give_up(self, reason: str) -> None:
        LOG.error("an association is aborted, an object or message of it could not be received: %s", reason)
        message = self.message
        self.message = None
        if message is not None and message._data_set_file:
            message._data_set_file.close()
            Path(message._data_set_file.name).unlink(missing_ok=True)
        self.dul.event_queue.put("Evt19")  # an invalid protocol data unit: the association is aborted


class _Place(threading.local):
    folder: Path | None = None


_PLACE = _Place()


def _create(**options: Any) -> Any:
    return tempfile.NamedTemporaryFile(dir=_PLACE.folder, **options)


# pynetdicom (3.0) lets nobody choose the folder of its files; the name is replaced in its module only, not `tempfile.tempdir` for the process.
setattr(dimse_messages, "NamedTemporaryFile", _create)  # noqa: B010
