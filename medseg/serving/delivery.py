"""The thread of the node that sends results, so that a slow or silent destination delays no prediction."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import MedsegError
from medseg.serving.addresses import Peer
from medseg.serving.archive import RejectedError
from medseg.serving.dimse import Caller, send
from medseg.serving.ledger import Study
from medseg.serving.store import SUFFIX, Store

LOG = logging.getLogger(__name__)
PAUSES = (5.0, 10.0, 30.0, 60.0, 300.0)  # seconds between attempts; the last one goes on for as long as nobody answers
REFUSALS = 3  # attempts of a study whose objects a destination refuses


@dataclass
class _Attempts:
    """To send the results of a study to a destination.

    Attributes:
        failed: how many failed.
        refused: how many of these ended with objects refused.
        reason: of the latest failure.
    """

    failed: int = 0
    refused: int = 0
    reason: str = ""


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
        self._attempts: dict[tuple[str, Peer], _Attempts] = {}
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
                self._store.queue.postpone(study.key, type(error).__name__, PAUSES[-1])
            self._changed()

    def _deliver(self, study: Study) -> None:
        """Send to every destination that lacks the results: none waits for another one."""
        files = sorted(self._store.results(study.key).rglob(f"*{SUFFIX}"))
        destinations = self.destinations(study.caller)
        if not destinations:
            self._aside(study, "there is nowhere to send results to: no --forward, and the sender is no --peer")
            return
        has = self._store.queue.delivered_to(study.key)
        lacking = [peer for peer in destinations if str(peer) not in has]
        if lacking and not files:
            self._aside(study, "its results are not on the disk any more; --retry predicts it again")
            return
        for peer in lacking:
            tried = self._attempts.setdefault((study.key, peer), _Attempts())
            if tried.refused < REFUSALS:
                self._send(study, files, peer, tried)
            if self._stop.is_set():
                return
        failed = [self._attempts[study.key, peer] for peer in lacking if (study.key, peer) in self._attempts]
        outstanding = [tried for tried in failed if tried.refused < REFUSALS]
        reason = " ".join(tried.reason for tried in failed if tried.reason)
        if outstanding:
            pause = PAUSES[min(max(min(tried.failed for tried in outstanding), 1), len(PAUSES)) - 1]
            LOG.warning("study %s: results are sent again in %g s, %s", study.key, pause, reason)
            self._store.queue.postpone(study.key, reason, pause)
        elif failed:
            self._aside(study, reason)
        elif self._store.finish(study.key, self._keep):
            LOG.info("study %s: done", study.key)
        else:
            LOG.info("study %s: images have come meanwhile, it is predicted again", study.key)

    def _send(self, study: Study, files: Sequence[Path], peer: Peer, tried: _Attempts) -> None:
        try:
            send(files, peer, self._caller)
        except Exception as error:
            self.failed += 1
            tried.failed += 1
            tried.refused += isinstance(error, RejectedError)
            tried.reason = str(error) if isinstance(error, MedsegError) else f"{peer}: {type(error).__name__}"
            return
        self.sent += len(files)
        self._store.queue.delivered(study.key, str(peer))
        del self._attempts[study.key, peer]
        LOG.info("study %s: sent to %s, objects: %d", study.key, peer.aet, len(files))

    def _aside(self, study: Study, reason: str) -> None:
        for place in [place for place in self._attempts if place[0] == study.key]:
            del self._attempts[place]
        LOG.error("study %s: set aside, %s", study.key, reason)
        self._store.queue.aside(study.key, reason)
