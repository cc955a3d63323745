"""The thread of the node that sends results, so that a slow or silent destination delays no prediction."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from medseg.errors import MedsegError
from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError
from medseg.serving.dimse import Caller, send
from medseg.serving.queue import Study
from medseg.serving.store import SUFFIX, Store

LOG = logging.getLogger(__name__)
PAUSES = (5.0, 10.0, 30.0, 60.0, 300.0)  # seconds between attempts; the last one goes on for as long as nobody answers
REFUSALS = 3  # attempts of a study whose objects a destination refuses


class Delivery:
    """Sends results of studies from `start` to `stop`."""

    def __init__(
        self,
        store: Store,
        forward: Sequence[Peer],
        known: Mapping[str, Peer],
        caller: Caller,
        keep: bool,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        """A sender of results.

        Args:
            store: where they lie.
            forward: destinations of all results.
            known: title -> address; a sender of images that is among them receives the results, too.
            caller: how we call others.
            keep: whether files stay after delivery.
            changed: called after every study.
        """
        self.sent = 0
        self.failed = 0
        self._store = store
        self._forward = tuple(forward)
        self._known = dict(known)
        self._caller = caller
        self._keep = keep
        self._changed = changed
        self._tries: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="delivery")

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it sends."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def stop(self) -> None:
        """End after the study that is being sent."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def destinations(self, caller: str) -> tuple[Peer, ...]:
        """Where results of a study go that `caller` has sent."""
        back = self._known.get(caller)
        return tuple(dict.fromkeys([*self._forward, *([back] if back else [])]))

    def _run(self) -> None:
        while not self._stop.is_set():
            study = self._store.queue.due()
            if study is None:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            try:
                self._deliver(study)
            except Exception as error:  # the thread must live
                LOG.error("study %s: sending failed: %s", study.key, type(error).__name__)
                self._again(study, type(error).__name__)
            self._changed()

    def _deliver(self, study: Study) -> None:
        files = sorted(self._store.results(study.key).rglob(f"*{SUFFIX}"))
        has = self._store.queue.delivered_to(study.key)
        destinations = self.destinations(study.caller)
        if not destinations:
            self._store.queue.aside(study.key, "there is nowhere to send results to: no --forward, and the sender is no --peer")
            return
        for peer in destinations:
            if str(peer) in has:
                continue
            try:
                send(files, peer, self._caller)
            except MedsegError as error:
                self.failed += 1
                if isinstance(error, RejectedError):
                    self._refusals[study.key] = self._refusals.get(study.key, 0) + 1
                self._again(study, str(error))
                return
            self.sent += len(files)
            self._store.queue.delivered(study.key, str(peer))
            LOG.info("study %s: sent to %s, objects: %d", study.key, peer.aet, len(files))
        self._tries.pop(study.key, None)
        self._refusals.pop(study.key, None)
        if self._store.finish(study.key, self._keep):
            LOG.info("study %s: done", study.key)
        else:
            LOG.info("study %s: images have come meanwhile, it is predicted again", study.key)

    def _again(self, study: Study, reason: str) -> None:
        if self._refusals.get(study.key, 0) >= REFUSALS:
            self._refusals.pop(study.key)
            self._tries.pop(study.key, None)
            LOG.error("study %s: set aside, %s", study.key, reason)
            self._store.queue.aside(study.key, reason)
            return
        tries = self._tries.get(study.key, 0)
        self._tries[study.key] = tries + 1
        pause = PAUSES[min(tries, len(PAUSES) - 1)]
        LOG.warning("study %s: results are sent again in %g s, %s", study.key, pause, reason)
        self._store.queue.postpone(study.key, reason, pause)
