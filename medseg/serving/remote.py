"""Addresses of studies where paths of images may stand.

dicomweb+http://host[:port]/path/studies/STUDY[/series/SERIES]            also dicomweb+https
dimse://AET@host:port/STUDY[/SERIES][?calling=MEDSEG&move_port=11113]     also dimse+tls, with ca, cert and key as paths of PEM files
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from medseg.errors import MedsegError, Problem, ResourceError, UsageError
from medseg.progress import Progress
from medseg.serving.addresses import Peer, is_loopback, parse_entity, parse_port
from medseg.serving.archive import Archive, parse_place

SCHEME = re.compile(r"(dicomweb\+https?|dimse(\+tls)?):/{1,2}", re.IGNORECASE)  # a path has lost the second one
OPTIONS = {"calling", "move_port", "ca", "cert", "key"}


def is_remote(text: str) -> bool:
    """Whether this is the address of a study in another system, not a path."""
    return SCHEME.match(text) is not None


def open_archive(address: str, authorization: str = "") -> Archive:
    """The archive behind an address; nothing is asked yet.

    Args:
        address: see the top of this module.
        authorization: for DICOMweb: a token, or the whole value of the header `Authorization` (`Basic ...`); empty leaves it to a
            `.netrc` file.

    Raises:
        UsageError: not such an address.
    """
    return _web(address, authorization) if address.lower().startswith("dicomweb") else _entity(address)


def authorization_from(name: str | None) -> str:
    """The value of an environment variable, so that no secret stands on a command line. Raises UsageError where it is empty."""
    if name is None:
        return ""
    value = os.environ.get(name, "").strip()
    if not value:
        raise UsageError.of("the environment variable is empty", where="--authorization-from", found=name)
    return value if " " in value else f"Bearer {value}"


class Remote:
    """Studies from other systems, lying in folders here, in place of their addresses among the inputs of a prediction."""

    def __init__(self, inputs: Sequence[str], authorization: str = "") -> None:
        """From paths and addresses; nothing is fetched yet.

        Raises:
            UsageError: an address is none, or two name one study in different systems; all problems at once.
        """
        self.archives: dict[str, Archive] = {}
        problems: list[Problem] = []
        for text in filter(is_remote, inputs):
            try:
                self.archives[text] = open_archive(text, authorization)
            except MedsegError as error:
                problems += error.problems
        homes: dict[str, set[str]] = defaultdict(set)
        for archive in self.archives.values():
            homes[archive.place.study].add(archive.name)
        problems += [
            Problem("a study is given from two systems", " and ".join(sorted(names)), fix="Give each study once.")
            for names in homes.values()
            if len(names) > 1
        ]
        if problems:
            raise UsageError(problems)
        self._inputs = tuple(inputs)
        self._authorized = bool(authorization)

    def fetch(self, cache: Path, progress: Progress) -> tuple[Path, ...]:
        """Bring the studies into folders below `cache`, where those that are there already stay; returns the paths of all inputs.

        Raises:
            MedsegError: some study cannot be fetched; all problems at once.
        """
        problems: list[Problem] = []
        for archive in self.archives.values():
            if self._authorized and archive.name.startswith("http:") and not is_loopback(urlsplit(archive.name).hostname or ""):
                progress.say(f"warning: {archive.name}: the authorization is sent without encryption; use dicomweb+https")
            try:
                archive.fetch(cache / _name(archive), progress)
            except MedsegError as error:
                problems += error.problems
        if problems:
            raise ResourceError(problems)
        return tuple(cache / _name(self.archives[text]) if text in self.archives else Path(text) for text in self._inputs)

    def send(self, files: Sequence[Path], progress: Progress) -> int:
        """Send DICOM files to the systems that their studies come from; those of other studies are left out. Returns how many were sent.

        Raises:
            ResourceError: some were refused, or a system does not answer; all problems at once.
        """
        from pydicom import dcmread

        study_of = {
            file: str(dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID) for file in files
        }
        sent = 0
        problems: list[Problem] = []
        for study, archive in {one.place.study: one for one in self.archives.values()}.items():
            own = [file for file in files if study_of[file] == study]
            if not own:
                continue
            try:
                archive.send(own, progress)
                sent += len(own)
            except MedsegError as error:
                problems += error.problems
        if problems:
            raise ResourceError(problems)
        return sent


def _name(archive: Archive) -> str:
    """Of the folder of a study, and so of its results, in every call the same; 16 digits would be passed over as a UID's would."""
    return f"pacs_{archive.place.key[:12]}"


@contextmanager
def folder_for(remote: Remote, cache: Path | None) -> Iterator[Path]:
    """Where studies of `remote` lie: `cache`, or a temporary folder that vanishes; readable for nobody else, and not logged by libraries."""
    if not remote.archives:
        yield Path()
        return
    from medseg.serving.logs import silence

    silence()
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        yield Path(folder)


def _web(address: str, authorization: str) -> Archive:
    from medseg.serving.web import Web

    base, found, rest = address[len("dicomweb+") :].partition("/studies/")
    if not found:
        raise UsageError.of(
            "not the address of a study", where=urlsplit(base).netloc, expected="dicomweb+http(s)://host/path/studies/UID[/series/UID]"
        )
    place = parse_place(rest.replace("/series/", "/"), urlsplit(base).netloc)
    return Web(base, place, authorization)


def _entity(address: str) -> Archive:
    from medseg.serving.dimse import AET, Caller
    from medseg.serving.retrieval import Entity
    from medseg.serving.tls import client_tls, server_tls

    parts = urlsplit(address)
    where = f"{parts.scheme}://{parts.netloc}"
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise UsageError.of("unknown options", where=where, found=", ".join(unknown), expected=", ".join(sorted(OPTIONS)))
    aet, at, _ = parts.netloc.rpartition("@")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not at or not host or not port:
        raise UsageError.of("not the address of an application entity", where=where, expected="dimse://AET@host:port/STUDY")
    caller_tls = listen_tls = None
    if parts.scheme.lower() == "dimse+tls":
        ca, cert, key = (Path(options[name]) if name in options else None for name in ("ca", "cert", "key"))
        caller_tls = client_tls(ca, cert, key)
        if "move_port" in options:
            if cert is None or key is None or ca is None:
                raise UsageError.of(
                    "images would come by C-MOVE without encryption, or from anybody",
                    where=where,
                    found="move_port without " + " and ".join(name for name in ("ca", "cert", "key") if name not in options),
                    expected="our certificate and its key, and the authority of the archive's: &ca=ca.pem&cert=own.pem&key=own.key",
                )
            listen_tls = server_tls(cert, key, ca)
    elif {"ca", "cert", "key"} & set(options):
        raise UsageError.of("certificates are for encrypted connections", where=where, expected="dimse+tls://...")
    own = "127.0.0.1" if is_loopback(host) else ""
    listen = (own, parse_port(options["move_port"], where)) if "move_port" in options else None
    caller = Caller(parse_entity(options.get("calling", AET), where), caller_tls)
    return Entity(Peer(host, port, parse_entity(aet, where)), parse_place(parts.path, where), caller, listen, listen_tls)
