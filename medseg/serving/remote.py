"""Addresses of studies where paths of images may stand.

dicomweb+http://host[:port]/path/studies/STUDY[/series/SERIES]            also dicomweb+https
dimse://AET@host:port/STUDY[/SERIES][?calling=MEDSEG&move_port=11113]     also dimse+tls, with ca, cert and key as paths of PEM files
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from medseg.errors import MedsegError, Problem, UsageError
from medseg.progress import Progress
from medseg.serving.addresses import Peer, is_loopback, parse_entity, parse_port
from medseg.serving.archive import Archive, parse_place

SCHEME = re.compile(r"(dicomweb\+https?|dimse(\+tls)?)://", re.IGNORECASE)
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


@dataclass(frozen=True)
class Fetched:
    """Where a study lies now.

    Attributes:
        archive: that it comes from.
        folder: of its files.
    """

    archive: Archive
    folder: Path


def fetch_all(addresses: Sequence[str], cache: Path, authorization: str, progress: Progress) -> tuple[Fetched, ...]:
    """Bring studies into folders below `cache`; what is there from an earlier call is not fetched again.

    Raises:
        MedsegError: some address is wrong, or some study cannot be fetched; all problems at once.
    """
    archives = [open_archive(address, authorization) for address in addresses]
    fetched = []
    problems: list[Problem] = []
    for archive in archives:
        folder = cache / archive.place.key
        if authorization and archive.name.startswith("http:") and not is_loopback(urlsplit(archive.name).hostname or ""):
            progress.say(f"warning: {archive.name}: the authorization is sent without encryption; use dicomweb+https")
        try:
            archive.fetch(folder, progress)
        except MedsegError as error:
            problems += error.problems
        fetched.append(Fetched(archive, folder))
    if problems:
        raise MedsegError(problems)
    return tuple(fetched)


def send_back(files: Sequence[Path], fetched: Sequence[Fetched], progress: Progress) -> int:
    """Send results to the archives whose studies they belong to; returns how many.

    Raises:
        MedsegError: some were refused, or an archive does not answer; all problems at once.
    """
    from pydicom import dcmread

    study_of = {file: str(dcmread(file, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID) for file in files}
    sent = 0
    problems: list[Problem] = []
    for archive in {one.archive.place.study: one.archive for one in fetched}.values():
        own = [file for file in files if study_of[file] == archive.place.study]
        if not own:
            continue
        try:
            archive.send(own, progress)
            sent += len(own)
        except MedsegError as error:
            problems += error.problems
    if problems:
        raise MedsegError(problems)
    return sent


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
    from medseg.serving.tls import client_tls

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
    caller_tls = None
    if parts.scheme.lower() == "dimse+tls":
        ca, cert, key = (Path(options[name]) if name in options else None for name in ("ca", "cert", "key"))
        caller_tls = client_tls(ca, cert, key)
    elif {"ca", "cert", "key"} & set(options):
        raise UsageError.of("certificates are for encrypted connections", where=where, expected="dimse+tls://...")
    own = "127.0.0.1" if is_loopback(host) else ""
    listen = (own, parse_port(options["move_port"], where)) if "move_port" in options else None
    caller = Caller(parse_entity(options.get("calling", AET), where), caller_tls)
    return Entity(Peer(host, port, parse_entity(aet, where)), parse_place(parts.path, where), caller, listen)
