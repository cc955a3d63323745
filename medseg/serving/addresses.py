"""Where other systems are: application entities of DIMSE, and the address that the node or its monitor listens on."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from medseg.errors import UsageError

ENTITY = re.compile(r"[^\\\x00-\x1f\x7f-\U0010ffff]{1,16}")  # PS3.5, value representation AE


@dataclass(frozen=True)
class Peer:
    """An application entity that can be reached.

    Attributes:
        host: name or address.
        port: of its listener.
        aet: its title.
    """

    host: str
    port: int
    aet: str

    def __str__(self) -> str:
        return f"{self.aet} at {_bracketed(self.host)}:{self.port}"


def parse_entity(text: str, where: str) -> str:
    """An application entity title. Raises UsageError where it is none."""
    title = text.strip()
    if not ENTITY.fullmatch(title):
        raise UsageError.of(
            "not an application entity title", where=where, found=f"'{text}'", expected="1 to 16 ASCII characters without a backslash"
        )
    return title


def parse_peer(text: str, where: str) -> Peer:
    """`host:port:AET` (`[::1]:104:PACS` for addresses with colons). Raises UsageError where it is none."""
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]/]+):(\d+):([^:]+)", text.strip())
    if match is None:
        raise UsageError.of("not an application entity's address", where=where, found=f"'{text}'", expected="host:port:AET")
    return Peer(match[1].strip("[]"), parse_port(match[2], where), parse_entity(match[3], where))


def parse_known(text: str, where: str) -> Peer:
    """`AET=host:port`. Raises UsageError where it is none."""
    title, equals, address = text.partition("=")
    if not equals:
        raise UsageError.of("not a known application entity", where=where, found=f"'{text}'", expected="AET=host:port")
    return parse_peer(f"{address.strip()}:{title.strip()}", where)


def parse_listener(text: str, where: str) -> tuple[str, int]:
    """`port`, which is on 127.0.0.1, or `host:port`. Raises UsageError where it is neither."""
    match = re.fullmatch(r"(?:(\[[^\]]+\]|[^:\[\]/]+):)?(\d+)", text.strip())
    if match is None:
        raise UsageError.of("not an address to listen on", where=where, found=f"'{text}'", expected="port or host:port")
    return (match[1] or "127.0.0.1").strip("[]"), parse_port(match[2], where)


def parse_port(text: str, where: str) -> int:
    """A TCP port, 0 to 65535. Raises UsageError where it is none."""
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError.of("not a port", where=where, found=f"'{text}'", expected="a number up to 65535")
    return int(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
