"""Addresses as people write them."""

from __future__ import annotations

import pytest

from medseg.errors import UsageError
from medseg.serving.addresses import Peer, is_loopback, parse_entity, parse_known, parse_listener, parse_peer


def test_peers():
    assert parse_peer("pacs.local:104:PACS", "") == Peer("pacs.local", 104, "PACS")
    assert parse_peer("[::1]:11112:MY PACS", "") == Peer("::1", 11112, "MY PACS")
    assert parse_known("CT 1=10.0.0.1:104", "") == Peer("10.0.0.1", 104, "CT 1")
    assert str(Peer("::1", 104, "PACS")) == "PACS at [::1]:104"


@pytest.mark.parametrize("text", ["pacs:104", "pacs:PACS:104", "pacs:70000:PACS", "::1:104:PACS", "pacs:104:", ":104:PACS", "a/b:104:PACS"])
def test_no_peers(text):
    with pytest.raises(UsageError, match="--forward"):
        parse_peer(text, "--forward")


@pytest.mark.parametrize("text", ["", " ", "A\\B", "SEVENTEEN_LETTERS", "Ä"])
def test_no_titles(text):
    with pytest.raises(UsageError, match="not an application entity title"):
        parse_entity(text, "--aet")


def test_listeners():
    assert parse_listener("8080", "") == ("127.0.0.1", 8080)
    assert parse_listener("0.0.0.0:80", "") == ("0.0.0.0", 80)
    assert parse_listener("[::]:80", "") == ("::", 80)
    with pytest.raises(UsageError, match="not an address to listen on"):
        parse_listener("host", "--monitor")
    with pytest.raises(UsageError, match="expected AET=host:port"):
        parse_known("host:104", "--peer")


def test_loopback():
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "", "::", "10.0.0.1", "pacs", "127.evil.org"]))
