"""C-MOVE over encrypted connections, from an archive that is made of pynetdicom."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import make as make_certificates
from nodes import study_of
from orthanc import free_port
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medseg.errors import MedsegError, UsageError
from medseg.progress import Silent
from medseg.serving.remote import open_archive
from medseg.serving.tls import client_tls, server_tls

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")  # pynetdicom lets go of one that cannot connect


@contextmanager
def archive(files: list[Path], tls: ssl.SSLContext, back: tuple[ssl.SSLContext, str] | None, port: int) -> Iterator[int]:
    """Listens with `tls`, holds files, and sends them to `port`, encrypted where `back` says so; without C-GET."""
    data = [dcmread(file) for file in files]

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        found = data if event.identifier.QueryRetrieveLevel == "IMAGE" else data[:1]
        for one in found:
            answer = Dataset()
            for element in event.identifier:
                setattr(answer, element.keyword, one.get(element.keyword, element.value))
            yield 0xFF00, answer

    def move(event: Any) -> Iterator[Any]:
        contexts = [build_context(MRImageStorage, ExplicitVRLittleEndian)]
        yield "127.0.0.1", port, {"contexts": contexts, "ae_title": "MEDSEG", **({"tls_args": back} if back else {})}
        yield len(data)
        for one in data:
            yield 0xFF00, one

    entity = AE("PACS")
    for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove, Verification):
        entity.add_supported_context(model)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move)]
    )
    try:
        yield server.server_address[1]
    finally:
        entity.shutdown()


@pytest.mark.parametrize("sender", ["with a certificate", "without a certificate", "in the clear"])
def test_what_c_move_brings_is_encrypted(sender, make_study, tmp_path):
    certificate, key, authority = make_certificates(tmp_path / "tls")
    files = make_study("moved")
    back = {
        "with a certificate": (client_tls(authority, certificate, key), "127.0.0.1"),
        "without a certificate": (client_tls(authority), "127.0.0.1"),
        "in the clear": None,
    }[sender]
    port = free_port()
    with archive(files, server_tls(certificate, key, authority), back, port) as listening:
        address = f"dimse+tls://PACS@127.0.0.1:{listening}/{study_of(files)}?move_port={port}&ca={authority}&cert={certificate}&key={key}"
        fetch = open_archive(address).fetch
        if sender == "with a certificate":
            fetched = fetch(tmp_path / "cache", Silent())
            assert {dcmread(file).PixelData for file in fetched} == {dcmread(file).PixelData for file in files}
        else:
            with pytest.raises(MedsegError):
                fetch(tmp_path / "cache", Silent())
            assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(("given", "lacking"), [(("ca",), "cert and key"), (("cert", "key"), "ca"), ((), "ca and cert and key")])
def test_nothing_comes_in_the_clear_where_encryption_was_asked_for(given, lacking, tmp_path):
    files = dict(zip(("cert", "key", "ca"), make_certificates(tmp_path / "tls"), strict=True))
    options = "".join(f"&{name}={files[name]}" for name in given)
    with pytest.raises(UsageError, match=rf"without encryption.*found move_port without {lacking}, expected"):
        open_archive(f"dimse+tls://PACS@127.0.0.1:104/1.2?move_port=11113{options}")
