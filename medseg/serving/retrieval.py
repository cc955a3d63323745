"""A study fetched by DIMSE: C-FIND says what there is, C-GET brings it, or C-MOVE where C-GET is not offered."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, build_context, build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medseg.errors import ResourceError, UsageError
from medseg.progress import Progress
from medseg.record import write_atomic
from medseg.serving.addresses import Peer
from medseg.serving.archive import Archive, Place, RejectedError, UnreachableError, instance_file
from medseg.serving.dimse import CONTEXTS, Caller, associate, send
from medseg.serving.intake import PDU, SYNTAXES, receive_into

PLAIN = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"]
IMAGES = (  # where the archive does not say of which classes its objects are
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.7",
)
COMPRESSED = ("50", "51", "57", "70", "80", "81", "90", "91")  # 1.2.840.10008.1.2.4.*
SUCCESS, PENDING = 0x0000, (0xFF00, 0xFF01)
AT_ONCE = 200  # instances asked for by name in one request


@dataclass(frozen=True)
class Listed:
    """An instance that the archive has."""

    series: str
    uid: str
    sop_class: str


class Entity(Archive):
    """An archive behind an application entity."""

    def __init__(
        self,
        peer: Peer,
        place: Place,
        caller: Caller,
        listen: tuple[str, int] | None = None,
        listen_tls: ssl.SSLContext | None = None,
    ) -> None:
        """An archive; nothing is asked yet.

        Args:
            peer: its address.
            place: study or series.
            caller: our title, and certificates where the connection is encrypted.
            listen: where C-MOVE may send to: the archive must know our title with this port; None does without.
            listen_tls: encrypts what C-MOVE brings; needed where `caller` is encrypted, too.
        """
        self.peer = peer
        self.place = place
        self.name = str(peer)
        self._caller = caller
        self._listen = listen
        self._listen_tls = listen_tls

    def send(self, files: Sequence[Path], progress: Progress) -> None:
        """See `Archive.send`."""
        send(files, self.peer, self._caller, progress)

    def fetch(self, folder: Path, progress: Progress) -> tuple[Path, ...]:
        """See `Archive.fetch`."""
        listed = self.find()
        if not listed:
            raise self.nothing()
        files = {one.uid: instance_file(folder, one.uid) for one in listed}
        missing = [one for one in listed if not files[one.uid].is_file()]
        if missing:
            here = len(listed) - len(missing)
            progress.update("download", here, len(listed))
            seen: set[str] = set()

            def keep(uid: str, file: Path) -> None:
                write_atomic(instance_file(folder, uid), partial(shutil.copyfile, file))
                seen.add(uid)
                progress.update("download", min(len(listed), here + len(seen)), len(listed))

            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
                into = (evt.EVT_CONN_OPEN, receive_into(Path(scratch)))
                if not self._get(missing, keep, into):
                    self._move(missing, keep, into)
            lacking = sum(not files[one.uid].is_file() for one in listed)
            if lacking:
                raise UnreachableError.of(
                    f"{lacking} of {len(listed)} instances have not come",
                    where=self.name,
                    fix="Repeat the command; it asks for these only.",
                )
        return tuple(files.values())

    def find(self) -> tuple[Listed, ...]:
        """What the archive has, by C-FIND.

        Raises:
            UnreachableError: no association.
            RejectedError: the request was refused.
        """
        model = StudyRootQueryRetrieveInformationModelFind
        with associate(self.peer, [build_context(model, PLAIN)], self._caller) as association:

            def ask(level: str, wanted: Sequence[str], **known: str) -> list[Dataset]:
                query = Dataset()
                query.QueryRetrieveLevel = level
                for keyword in wanted:
                    setattr(query, keyword, "")
                for keyword, value in known.items():
                    setattr(query, keyword, value)
                answers = []
                for status, answer in association.send_c_find(query, model):
                    self._check(status, "C-FIND")
                    if answer is not None and status.Status in PENDING:
                        answers.append(answer)
                return answers

            study = self.place.study
            found = [self.place.series] if self.place.series else None
            if found is None:
                found = [str(one.SeriesInstanceUID) for one in ask("SERIES", ("SeriesInstanceUID",), StudyInstanceUID=study)]
            listed = [
                Listed(series, str(one.SOPInstanceUID), str(one.get("SOPClassUID", "")))
                for series in found
                for one in ask("IMAGE", ("SOPInstanceUID", "SOPClassUID"), StudyInstanceUID=study, SeriesInstanceUID=series)
            ]
        return tuple(dict.fromkeys(listed))

    def _requests(self, missing: Sequence[Listed]) -> list[Dataset]:
        """One request per series, naming the instances; these are as many as may be asked for at once."""
        by_series: dict[str, list[str]] = defaultdict(list)
        for one in missing:
            by_series[one.series].append(one.uid)
        requests = []
        for series, uids in by_series.items():
            for start in range(0, len(uids), AT_ONCE):
                query = Dataset()
                query.QueryRetrieveLevel = "IMAGE"
                query.StudyInstanceUID = self.place.study
                query.SeriesInstanceUID = series
                query.SOPInstanceUID = uids[start : start + AT_ONCE]
                requests.append(query)
        return requests

    def _get(self, missing: Sequence[Listed], keep: Callable[[str, Path], None], into: tuple[Any, Any]) -> bool:
        """By C-GET; False where the archive does not offer it."""
        model = StudyRootQueryRetrieveInformationModelGet
        classes = [*dict.fromkeys(one.sop_class or image for one in missing for image in IMAGES)]
        # As it is stored: a context for each compression, or the archive would have to decode.
        syntaxes: list[list[str]] = [PLAIN, *([f"1.2.840.10008.1.2.4.{one}"] for one in COMPRESSED), ["1.2.840.10008.1.2.5"]]
        # With a context that every archive accepts, as an association without any is aborted, and nothing tells that C-GET is not offered.
        always = build_context(Verification, PLAIN)
        contexts = [build_context(model, PLAIN), always, *(build_context(one, syntax) for syntax in syntaxes for one in classes)][:CONTEXTS]
        roles = [build_role(one, scp_role=True) for one in classes]
        handlers = [into, (evt.EVT_C_STORE, _keeper(keep))]
        with associate(self.peer, contexts, self._caller, roles, handlers) as association:
            if not any(context.abstract_syntax == model for context in association.accepted_contexts):
                return False
            for query in self._requests(missing):
                for status, _ in association.send_c_get(query, model):
                    self._check(status, "C-GET")
        return True

    def _move(self, missing: Sequence[Listed], keep: Callable[[str, Path], None], into: tuple[Any, Any]) -> None:
        """By C-MOVE to a listener of ours."""
        if self._listen is None:
            raise UsageError.of(
                "the archive does not offer C-GET",
                where=self.name,
                fix=f"Let it know {self._caller.aet} with a port of this machine, and add ?move_port=PORT to the address.",
            )
        model = StudyRootQueryRetrieveInformationModelMove
        entity = AE(self._caller.aet)
        entity.require_called_aet = True
        entity.require_calling_aet = [self.peer.aet]
        entity.maximum_pdu_size = PDU
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, SYNTAXES)
        wanted = {one.uid for one in missing}
        try:
            entity.start_server(
                self._listen, block=False, ssl_context=self._listen_tls, evt_handlers=[into, (evt.EVT_C_STORE, _keeper(keep, wanted))]
            )
        except OSError as error:
            raise ResourceError.of(
                "cannot listen",
                where=f"{self._listen[0]}:{self._listen[1]}",
                found=error.strerror or str(error),
                fix="Choose another move_port.",
            ) from None
        try:
            with associate(self.peer, [build_context(model, PLAIN)], self._caller) as association:
                for query in self._requests(missing):
                    for status, _ in association.send_c_move(query, self._caller.aet, model):
                        self._check(status, "C-MOVE")
        finally:
            entity.shutdown()

    def _check(self, status: Any, verb: str) -> None:
        if "Status" not in status:
            raise UnreachableError.of("the association broke, or no answer came in time", where=self.name)
        if status.Status != SUCCESS and status.Status not in PENDING and status.Status >> 12 != 0xB:
            known = " (it does not know where to send to)" if status.Status == 0xA801 else ""
            raise RejectedError.of(f"{verb} was refused", where=self.name, found=f"status 0x{status.Status:04X}{known}")


def _keeper(keep: Callable[[str, Path], None], wanted: set[str] | None = None) -> Callable[[Any], int]:
    def stored(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if wanted is not None and uid not in wanted:  # whoever sends it, nobody has asked for it
            return 0x0124
        try:
            keep(uid, event.dataset_path)
        except ResourceError:
            return 0xA700
        return SUCCESS

    return stored
