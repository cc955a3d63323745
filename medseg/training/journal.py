"""One fold in MLflow: its run, and the courier that brings the numbers of every epoch there without making the training wait."""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from medseg.training.history import Row
from medseg.training.mlflow_state import first_line, hushed, quiet

SAMPLING = 10  # seconds between system metrics
METRICS = 1000  # metrics that MLflow takes at once
AGAIN = 60.0  # seconds after a failure before the next attempt
CLOSING = 30.0  # seconds that the last numbers may take after the training
LEAVING = 2.0  # the same, after an error

Stamped = tuple[Row, int]
"""A row, and when it was logged, in milliseconds since 1970."""


@dataclass(frozen=True)
class FoldRun:
    """The MLflow run of one fold; travels to other processes as a few strings."""

    uri: str
    parent: str
    child: str
    fold: str
    resumed: bool

    def send(self, rows: Sequence[Stamped]) -> None:
        """The numbers of epochs, each at its epoch as the step. Raises what MLflow raises."""
        metrics = [
            Metric(metric_key(name), value, stamp, int(row["epoch"]))
            for row, stamp in rows
            for name, value in row.items()
            if name != "epoch" and math.isfinite(value)
        ]
        client = MlflowClient(self.uri)
        for start in range(0, len(metrics), METRICS):
            client.log_batch(self.child, metrics=metrics[start : start + METRICS])

    def arrived(self) -> set[int]:
        """Epochs whose numbers the run has. Raises what MLflow raises."""
        return {metric.step for metric in MlflowClient(self.uri).get_metric_history(self.child, "loss")}

    def artifact(self, file: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with quiet():
            MlflowClient(self.uri).log_artifact(self.child, str(file), folder or None)

    def finish(self, score: float | None, metric: str) -> None:
        """The fold's last score, on the parent run too, where folds are compared."""
        if score is not None:
            with quiet():
                client = MlflowClient(self.uri)
                client.log_metric(self.child, metric_key(f"final/{metric}"), score)
                client.log_metric(self.parent, metric_key(f"{self.fold}/{metric}"), score)

    def end(self, status: str) -> None:
        """Close the fold's run, and its parent: FINISHED, FAILED, or KILLED (which resuming opens again)."""
        with quiet():
            client = MlflowClient(self.uri)
            client.set_terminated(self.child, status)
            client.set_terminated(self.parent, status)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Log use of processor, memory, disk, network and GPU meanwhile."""
        with quiet():
            monitor = SystemMetricsMonitor(self.child, sampling_interval=SAMPLING, resume_logging=self.resumed, tracking_uri=self.uri)
            monitor.start()
        try:
            with hushed():
                yield
        finally:
            with quiet():
                monitor.finish()


class Courier:
    """Sends rows from a thread of its own: a server that is slow or dead costs the training no time.

    What could not be sent is kept, and sent with a later row or when the training ends. Use it as a context manager; `lost` says
    afterwards what has not arrived.
    """

    def __init__(self, run: FoldRun) -> None:
        self.run = run
        self.lost = ""
        self._inbox: queue.SimpleQueue[tuple[Literal["row", "restored", "end"], list[Stamped]]] = queue.SimpleQueue()
        self._unsent: list[Stamped] = []
        self._doubtful: list[Stamped] = []
        self._news = ""
        self._why = ""
        self._failed: float | None = None
        self._thread = threading.Thread(target=self._work, name="medseg-tracking", daemon=True)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Courier:
        self._stack.enter_context(hushed())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inbox.put(("end", []))
        self._thread.join(CLOSING if kind is None else LEAVING)
        missing = len(self._unsent) + len(self._doubtful)
        if missing or self._thread.is_alive():
            self.lost = f"the numbers of {missing} epochs did not reach MLflow at {self.run.uri} ({self._why or 'no answer'})"
        self._stack.close()

    def restore(self, rows: Sequence[Row]) -> None:
        """See `Journal.restore`."""
        stamp = _now()
        self._inbox.put(("restored", [(row, stamp) for row in rows]))

    def log(self, row: Row) -> str:
        """See `Journal.log`."""
        self._inbox.put(("row", [(row, _now())]))
        news, self._news = self._news, ""
        return news

    def _work(self) -> None:
        ending = False
        while not ending:
            parcels = [self._inbox.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    parcels.append(self._inbox.get_nowait())
            for kind, rows in parcels:
                ending = ending or kind == "end"
                (self._doubtful if kind == "restored" else self._unsent).extend(rows)
            if ending or self._failed is None or time.monotonic() - self._failed >= AGAIN:
                self._send()

    def _send(self) -> None:
        try:
            if self._doubtful:  # which of them arrived before the training was interrupted, the server alone knows
                arrived = self.run.arrived()
                self._unsent = [(row, stamp) for row, stamp in self._doubtful if int(row["epoch"]) not in arrived] + self._unsent
                self._doubtful = []
            if self._unsent:
                self.run.send(self._unsent)
                self._unsent = []
            self._failed = None
        except Exception as error:  # whatever it is, the training must not suffer from it
            self._why = first_line(error)
            if self._failed is None:
                self._news = f"MLflow at {self.run.uri} cannot be reached; what it misses is sent later: {self._why}"
            self._failed = time.monotonic()


def metric_key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _now() -> int:
    return int(time.time() * 1000)
