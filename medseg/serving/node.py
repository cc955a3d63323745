"""The node: receives studies by C-STORE, predicts them one after another, and sends the results on."""

from __future__ import annotations

import logging
import math
import os
import signal
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from medseg.claim import Claim
from medseg.errors import MedsegError, ModelError, Problem, ResourceError, UsageError
from medseg.serving.addresses import Peer, is_loopback
from medseg.serving.delivery import Delivery
from medseg.serving.dimse import Caller
from medseg.serving.ledger import State, Study
from medseg.serving.monitor import Monitor, Reading
from medseg.serving.queue import Queue
from medseg.serving.receiver import Limits, Receiver
from medseg.serving.store import Store
from medseg.serving.worker import Recipe, Reply, Worker

LOG = logging.getLogger(__name__)
STEP = 0.2  # seconds between two looks at the queue
CLEARING = 60.0  # seconds between two looks for studies that were aside for too long
RESTART = 5.0  # seconds before a worker process is started again that has died while it was starting


@dataclass(frozen=True)
class Settings:
    """How a node runs.

    Attributes:
        store: folder of queue, images and results.
        aet: our title.
        host: to listen on; others than this machine's own need `allow`.
        port: to listen on.
        forward: destinations of all results.
        known: senders that receive the results of what they have sent: title -> address.
        allow: titles that may send; empty is everybody, on this machine only.
        quiet: seconds without a new image, after which a study is complete.
        limit: seconds from the first image, after which it is complete in any case.
        attempts: predictions of a study that fail before it is set aside.
        timeout: seconds that a prediction may take.
        grace: seconds that a running prediction has when the node is asked to stop.
        limits: of room.
        keep: seconds that images and results stay after delivery, so that images that come later are predicted with them; may be infinite.
        keep_aside: seconds after which a study that was set aside is deleted.
        monitor: where health and metrics are served; None is nowhere.
        token: that readers of these must show.
        tls: encrypts what comes in.
        caller_tls: encrypts what goes out.
    """

    store: Path
    aet: str = "MEDSEG"
    host: str = "127.0.0.1"
    port: int = 11112
    forward: tuple[Peer, ...] = ()
    known: Mapping[str, Peer] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    quiet: float = 30.0
    limit: float = 3600.0
    attempts: int = 3
    timeout: float = 3600.0
    grace: float = 60.0
    limits: Limits = field(default_factory=Limits)
    keep: float = 3600.0
    keep_aside: float = 14 * 86400.0
    monitor: tuple[str, int] | None = None
    token: str = ""
    tls: ssl.SSLContext | None = None
    caller_tls: ssl.SSLContext | None = None

    def check(self) -> None:
        """Raises UsageError for what would be unsafe or useless."""
        if not self.forward and not self.known:
            raise UsageError.of(
                "results would go nowhere",
                where="--forward",
                found="neither --forward nor --peer",
                fix="Name a destination: host:port:AET.",
            )
        if not is_loopback(self.host) and not self.allow:
            raise UsageError.of(
                "anybody in the network could send",
                where="--host",
                found=f"{self.host} without --allow",
                expected="the titles of the systems that may send",
                fix="Add --allow AET for each, or leave --host out to listen on this machine only.",
            )
        if self.monitor is not None and not is_loopback(self.monitor[0]) and not self.token:
            raise UsageError.of(
                "anybody in the network could read the metrics",
                where="--monitor",
                found=f"{self.monitor[0]} without a token",
                fix="Add --monitor-token-from NAME, an environment variable with a token, or leave the host out.",
            )


class Node:
    """A node; `run` returns when it was asked to stop."""

    def __init__(self, settings: Settings, recipe: Recipe) -> None:
        """Check the settings and open the queue.

        Raises:
            UsageError: unsafe settings, or another node uses the folder.
            ResourceError: the folder cannot be written.
        """
        settings.check()
        self.settings = settings
        self.port = self.monitor_port = 0  # known when it listens
        self._claim = Claim(settings.store, "node", "--store")
        self.queue = Queue(settings.store)
        self.store = Store(settings.store, self.queue, forever=math.isinf(settings.keep))
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._worker = Worker(recipe)
        self._running: Study | None = None
        self._since = 0.0
        self._next_start = self._next_clearing = 0.0
        self._predicted = self._failed = self._parts = 0
        self._seconds = 0.0
        self._began = time.time()
        self.receiver = Receiver(
            self.store,
            settings.aet,
            (settings.host, settings.port),
            settings.allow,
            settings.limits,
            settings.tls,
        )
        self.delivery = Delivery(self.store, settings.forward, settings.known, Caller(settings.aet, settings.caller_tls), settings.keep > 0)

    def stop(self) -> None:
        """Ask it to stop; safe in signal handlers and from other threads."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            ModelError: the model cannot be read.
            ResourceError: the port is taken.
        """
        with ExitStack() as ending:  # in reverse order, and each also where another one fails
            ending.callback(LOG.info, "stopped")
            ending.callback(self._claim.release)
            ending.callback(self.queue.close)
            running = self.store.recover()
            if running:
                LOG.warning("studies that were being predicted when the node ended last: %d; they wait again", running)
            ending.callback(self._worker.end)
            self._worker.start()
            self._await_model()
            if self.settings.monitor is not None:
                monitor = Monitor(*self.settings.monitor, self.settings.token, self.reading)
                ending.callback(monitor.stop)
                self.monitor_port = monitor.start()
            ending.callback(self.delivery.stop)
            self.delivery.start()
            ending.callback(self._wind_up)
            ending.callback(self.receiver.stop)
            self._began = time.time()
            self.port = self.receiver.start()
            LOG.info(
                "%s listens on %s:%d%s", self.settings.aet, self.settings.host, self.port, "" if self.settings.tls else ", without TLS"
            )
            while not self._stop.is_set():
                self._step()
            LOG.info("stopping")

    def _await_model(self) -> None:
        while not self._worker.ready and not self._stop.is_set():
            try:
                self._worker.poll(STEP)
            except (EOFError, OSError):
                code = self._worker.end()
                raise ModelError.of(
                    "the worker process has died while it read the model", found=f"exit code {code}", fix="Try `medseg predict` with it."
                ) from None

    def _step(self) -> None:
        """One look at everything; takes `STEP` seconds where nothing happens."""
        if not (self.receiver.alive and self.delivery.alive):  # the queue knows all, so that a new start goes on where this one ends
            raise ResourceError(Problem("a thread of the node has ended", fix="See the log, and start the node again."))
        if time.monotonic() >= self._next_clearing:
            self._next_clearing = time.monotonic() + CLEARING
            for study in self.queue.studies((State.aside,)):
                if time.time() - study.changed > self.settings.keep_aside:
                    self.store.forget(study.key)
                    LOG.warning("study %s: was aside for too long, its images are deleted", study.key)
            self.store.expire(self.settings.keep)
        for study in self.queue.settle(self.settings.quiet, self.settings.limit, self.receiver.busy(), self._began):
            LOG.error("study %s: set aside, %s", study.key, study.reason)
        if not self._worker_lives():
            return
        if self._running is None and self._worker.ready:
            self._begin()
        try:
            reply = self._worker.poll(STEP)
        except (EOFError, OSError):
            self._died()
            return
        except MedsegError as error:
            LOG.error("the model cannot be read: %s", error)
            self._died()
            return
        if reply is not None:
            self._replied(reply)
        elif self._running is not None and time.monotonic() - self._since > self.settings.timeout:
            self._worker.end()
            self._failure(f"the prediction took more than {self.settings.timeout:g} s", self.settings.attempts)

    def _worker_lives(self) -> bool:
        if self._worker.alive:
            return True
        if time.monotonic() >= self._next_start:
            self._worker.start()
            return True
        self._stop.wait(STEP)
        return False

    def _begin(self) -> None:
        study = self.queue.take(self.settings.attempts)
        if study is None:
            return
        self._running, self._since = study, time.monotonic()
        LOG.info("study %s: prediction begins, images: %d", study.key, study.instances)
        try:
            self._worker.give(self.store.images(study.key), self.store.clear_results(study.key))
        except OSError:  # it has died before, so that the study is not to blame
            self._running = None
            self.queue.interrupted(study.key)
            self._died()

    def _died(self) -> None:
        starting = not self._worker.ready
        code = self._worker.end()
        self._next_start = time.monotonic() + (RESTART if starting else 0.0)
        LOG.error("the worker process has died with exit code %s", code)
        if self._running is not None:
            self._failure(f"the worker process died (exit code {code})", self.settings.attempts)

    def _replied(self, reply: Reply) -> None:
        assert self._running is not None
        key = self._running.key
        if reply.results is None:
            self._failure(reply.reason, 0 if reply.final else self.settings.attempts)
            return
        self._running = None
        self._predicted += 1
        self._seconds += reply.seconds
        if reply.results.note:
            self._parts += 1
            LOG.warning("study %s: %s", key, reply.results.note)
        if self.queue.predicted(key, reply.results.instances, reply.results.note):
            LOG.info("study %s: predicted in %.1f s, objects: %d", key, reply.seconds, len(reply.results.files))
            self.delivery.wake()
        else:
            LOG.info("study %s: images have come meanwhile, it is predicted again", key)

    def _failure(self, reason: str, attempts: int) -> None:
        assert self._running is not None
        key, self._running = self._running.key, None
        self._failed += 1
        state = self.queue.failed(key, reason, attempts)
        LOG.error("study %s: %s, %s", key, "set aside" if state == State.aside else "tried again", reason)

    def _wind_up(self) -> None:
        """The running study gets some time to finish, or waits for the next start."""
        until = time.monotonic() + self.settings.grace
        try:
            while self._running is not None and time.monotonic() < until:
                reply = self._worker.poll(STEP)
                if reply is not None:
                    self._replied(reply)
        except (EOFError, OSError, MedsegError):
            self._died()
        if self._running is not None:
            self.queue.interrupted(self._running.key)
            LOG.info("study %s: waits for the next start", self._running.key)
            self._worker.end()
        else:
            self._worker.end(grace=2.0)

    def reading(self) -> Reading:
        """What health and metrics tell."""
        traffic = self.receiver.traffic
        return Reading(
            full=self.receiver.full(),
            ready=self._worker.ready,
            seconds=time.time() - self._began,
            studies={str(state): number for state, number in self.queue.counts().items()},
            free=self.store.free(),
            associations=self.receiver.associations(),
            memory={"node": _memory(), "worker": self._worker.memory()},
            counters={
                "images_received": traffic.received,
                "bytes_received": traffic.bytes,
                "images_refused": traffic.refused,
                "objects_ignored": traffic.ignored,
                "objects_unreadable": traffic.unreadable,
                "associations_rejected": traffic.rejected,
                "associations_aborted": traffic.aborted,
                "studies_predicted": self._predicted,
                "studies_predicted_partly": self._parts,
                "prediction_failures": self._failed,
                "prediction_seconds": self._seconds,
                "objects_sent": self.delivery.sent,
                "delivery_failures": self.delivery.failed,
                "worker_starts": self._worker.starts,
            },
        )


def run_until_told(node: Node) -> None:
    """Let a node work until SIGTERM or SIGINT. Raises what `Node.run` raises."""

    def told(_: int, __: FrameType | None) -> None:
        node.stop()

    previous = {sign: signal.signal(sign, told) for sign in (signal.SIGTERM, signal.SIGINT)}
    try:
        node.run()
    finally:
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def _memory() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)
