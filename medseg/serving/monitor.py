"""Health and metrics of the node over HTTP: `/health` as JSON, `/metrics` as Prometheus text."""

from __future__ import annotations

import hmac
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medseg.errors import ResourceError

LOG = logging.getLogger(__name__)
TIMEOUT = 30.0  # seconds that a client has for its request


@dataclass(frozen=True)
class Reading:
    """What a node says of itself.

    Attributes:
        full: why it refuses images; empty where it does not.
        ready: whether the model is read and the worker process lives.
        seconds: since the start.
        studies: state -> number.
        free: bytes on the disk.
        associations: that are open.
        memory: process -> bytes.
        counters: name -> number since the start.
    """

    full: str
    ready: bool
    seconds: float
    studies: Mapping[str, int]
    free: int
    associations: int
    memory: Mapping[str, int]
    counters: Mapping[str, float]

    @property
    def status(self) -> str:
        """`ok`, `starting` or `full`."""
        return "full" if self.full else "ok" if self.ready else "starting"

    def health(self) -> dict[str, Any]:
        """For `/health`."""
        return {
            "status": self.status,
            "reason": self.full or ("" if self.ready else "the worker process reads the model"),
            "seconds": round(self.seconds, 1),
            "studies": dict(self.studies),
            "free_bytes": self.free,
            "associations": self.associations,
        }

    def metrics(self) -> str:
        """For `/metrics`."""
        lines = []
        for name, value in self.counters.items():
            lines += [f"# TYPE medseg_node_{name}_total counter", f"medseg_node_{name}_total {float(value):.15g}"]
        gauges: dict[str, float] = {
            "free_bytes": self.free,
            "associations": self.associations,
            "up_seconds": self.seconds,
            "ready": self.ready,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE medseg_node_{name} gauge", f"medseg_node_{name} {float(value):.15g}"]
        for name, label, table in (("studies", "state", self.studies), ("memory_bytes", "process", self.memory)):
            lines.append(f"# TYPE medseg_node_{name} gauge")
            lines += [f'medseg_node_{name}{{{label}="{key}"}} {value:.15g}' for key, value in table.items()]
        return "\n".join(lines) + "\n"


class Monitor:
    """Serves from `start` to `stop`."""

    def __init__(self, host: str, port: int, token: str, read: Callable[[], Reading]) -> None:
        """A server for the readings of `read`; with `token` for those only who send `Authorization: Bearer TOKEN`."""
        self._address = (host, port)
        self._handler = type("Handler", (_Handler,), {"token": token, "read": staticmethod(read)})
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; returns the port. Raises ResourceError where that is not possible."""
        try:
            self._server = _Server(self._address, self._handler)
        except OSError as error:
            host, port = self._address
            raise ResourceError.of(
                "cannot listen", where=f"{host}:{port}", found=error.strerror or str(error), fix="Choose another --monitor."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="monitor")
        self._thread.start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        LOG.warning("a reader of health or metrics was not answered: %s", type(sys.exception()).__name__)


class _Handler(BaseHTTPRequestHandler):
    token: str
    read: Callable[[], Reading]
    timeout = TIMEOUT
    server_version = "medseg"
    sys_version = ""

    def do_GET(self) -> None:
        if self.token and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), f"Bearer {self.token}".encode()):
            self._answer(401, "text/plain", "a token is needed\n", {"WWW-Authenticate": "Bearer"})
        elif self.path == "/health":
            reading = self.read()
            self._answer(200 if reading.status == "ok" else 503, "application/json", json.dumps(reading.health()) + "\n")
        elif self.path == "/metrics":
            self._answer(200, "text/plain; version=0.0.4", self.read().metrics())
        else:
            self._answer(404, "text/plain", "there are /health and /metrics\n")

    def _answer(self, status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
