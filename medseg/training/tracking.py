"""MLflow: a parent run per model folder (dataset and configuration), a child run per fold. No case id and no path of a case goes there.

The runs are addressed by id through the client, never through MLflow's global state, so a notebook's own active run is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from medseg.dataset import file_digest
from medseg.errors import ResourceError
from medseg.fingerprint import Fingerprint
from medseg.plans import Plan, lookup
from medseg.record import Record
from medseg.training.budget import Budget
from medseg.training.history import Row
from medseg.training.splits import Split
from medseg.workspace import Provenance, RunFolder, Workspace

SAMPLING = 10  # seconds between system metrics
BATCH = 100  # parameters that MLflow takes at once
LONGEST = 500  # characters of a parameter


FAILURES = (MlflowException, SQLAlchemyError, OSError)  # what an unusable server or database raises


class RunIds(Record):
    """Where a fold is tracked (`state/tracking.json`), so that resuming goes on in the same run."""

    uri: str
    parent: str
    child: str


@dataclass(frozen=True)
class FoldRun:
    """The MLflow run of one fold; travels to other processes as a few strings."""

    uri: str
    parent: str
    child: str
    fold: str
    resumed: bool

    def log(self, row: Row, step: int) -> str:
        """One epoch's numbers, at `step`. A server that fails now must not end the training: what failed is returned, else empty."""
        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), value, now, step) for name, value in row.items() if name != "epoch" and math.isfinite(value)]
        try:
            with _quiet():
                MlflowClient(self.uri).log_batch(self.child, metrics=metrics)
        except FAILURES as error:
            return _first_line(error)
        return ""

    def artifact(self, file: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with _quiet():
            MlflowClient(self.uri).log_artifact(self.child, str(file), folder or None)

    def finish(self, score: float | None, metric: str) -> None:
        """The fold's last score, on the parent run too, where folds are compared."""
        if score is not None:
            with _quiet():
                client = MlflowClient(self.uri)
                client.log_metric(self.child, _key(f"final/{metric}"), score)
                client.log_metric(self.parent, _key(f"{self.fold}/{metric}"), score)

    def end(self, status: str) -> None:
        """Close the fold's run, and its parent: FINISHED, FAILED, or KILLED (which resuming opens again)."""
        with _quiet():
            client = MlflowClient(self.uri)
            client.set_terminated(self.child, status)
            client.set_terminated(self.parent, status)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Log use of processor, memory, disk, network and GPU meanwhile."""
        with _quiet():
            monitor = SystemMetricsMonitor(self.child, sampling_interval=SAMPLING, resume_logging=self.resumed, tracking_uri=self.uri)
            monitor.start()
        try:
            yield
        finally:
            with _quiet():
                monitor.finish()


@dataclass(frozen=True)
class Tracker:
    """An MLflow server or database, and the dataset whose trainings go there.

    Attributes:
        uri: tracking URI.
        artifacts: URI of the folder for files, or empty where the server decides.
    """

    uri: str
    artifacts: str
    dataset: str
    digest: str

    @classmethod
    def open(cls, workspace: Workspace, plan: Plan, fingerprint: Fingerprint) -> Tracker:
        """Track where `MLFLOW_TRACKING_URI` says, else in the workspace's own sqlite database."""
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        root = workspace.root.resolve()
        return cls(
            uri=given or f"sqlite:///{(root / workspace.tracking.name).as_posix()}",
            artifacts="" if given else (root / "mlartifacts").as_uri(),
            dataset=plan.data.name,
            digest=fingerprint.digest,
        )

    def begin(self, plan: Plan, run: RunFolder, fold: int | None, split: Split, budget: Budget, device: str, devices: int) -> FoldRun:
        """Open the run of a fold: a new one, or the one in which it was interrupted.

        Raises:
            ResourceError: the tracking server cannot be reached.
        """
        with _quiet(), self._reachable():
            client = MlflowClient(self.uri)
            name = run.fold(fold).name
            file = run.fold(fold) / "state" / "tracking.json"
            known = RunIds.load(file) if file.is_file() else None
            if known is not None and known.uri == self.uri and _exists(client, known.parent) and _exists(client, known.child):
                client.update_run(known.parent, RunStatus.to_string(RunStatus.RUNNING))
                client.update_run(known.child, RunStatus.to_string(RunStatus.RUNNING))
                return FoldRun(self.uri, known.parent, known.child, name, True)
            experiment = self._experiment(client)
            parent = self._parent(client, experiment, plan, run)
            child = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent, "medseg.fold": name}).info.run_id
            settings: dict[str, Any] = {
                "fold": name,
                "training_cases": len(split.train),
                "validation_cases": len(split.val),
                "device": device,
                "devices": devices,
                **({"seconds": budget.seconds} if budget.seconds is not None else {"epochs": budget.epochs or plan.training.epochs}),
            }
            client.log_batch(child, params=[Param(key, str(value)) for key, value in settings.items()])
            RunIds(uri=self.uri, parent=parent, child=child).save(file)
            return FoldRun(self.uri, parent, child, name, False)

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self.dataset)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(self.dataset, artifact_location=self.artifacts or None))
        except MlflowException:
            found = client.get_experiment_by_name(self.dataset)  # another fold was faster
            if found is None:
                raise
            return str(found.experiment_id)

    def _parent(self, client: MlflowClient, experiment: str, plan: Plan, run: RunFolder) -> str:
        if run.provenance_file.is_file():
            known = Provenance.load(run.provenance_file).mlflow_run
            if known and _exists(client, known):
                client.update_run(known, RunStatus.to_string(RunStatus.RUNNING))
                return known
        tags = {
            "medseg.dataset": plan.data.name,
            "medseg.dataset_digest": self.digest,
            "medseg.configuration": plan.name,
            "medseg.task": plan.task,
            "medseg.plan_digest": plan.content_digest(),
        }
        parent = str(client.create_run(experiment, run_name=f"{plan.data.name} {plan.name}", tags=tags).info.run_id)
        params = [Param(key, value) for key, value in flat(plan).items()]
        for start in range(0, len(params), BATCH):
            client.log_batch(parent, params=params[start : start + BATCH])
        source = Dataset(plan.data.name, self.digest, "medseg", json.dumps({"digest": self.digest}))
        client.log_inputs(parent, [DatasetInput(source, [InputTag("mlflow.data.context", "training")])])
        client.log_text(parent, plan.to_json(), "plan.json")
        client.log_text(parent, explanation(plan), "explanation.md")
        return parent

    def log_model(self, run: RunFolder, script: Path, name: str = "") -> str:
        """Log the model folder as a pyfunc by models-from-code, and register it; the model's URI.

        Weights that have been logged already are not logged again, so a repeated call adds no version.

        Args:
            script: the models-from-code file; it finds the model folder as the artifact `model`.
            name: registered name; the dataset's and configuration's by default.
        """
        import mlflow
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec
        from mlflow.types.schema import AnyType, ColSpec

        plan = Plan.load(run.plan_file)
        parent = Provenance.load(run.provenance_file).mlflow_run
        weights = hashlib.blake2b("/".join(file_digest(f) for f in run.weights()).encode(), digest_size=8).hexdigest()
        with self._reachable():
            known = MlflowClient(self.uri).get_run(parent).data.tags
        if known.get("medseg.model_weights") == weights:
            return str(known["medseg.model_uri"])
        label = TensorSpec(np.dtype(np.int16), (-1,) * plan.data.ndim, name="labels")
        signature = ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")]), outputs=Schema([label]))
        before = mlflow.get_tracking_uri()
        with tempfile.TemporaryDirectory() as temporary, _quiet(), self._reachable():
            model = Path(temporary) / "model"
            for file in (run.plan_file, run.provenance_file, *run.weights()):  # no splits: they hold case ids
                target = model / file.relative_to(run.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            mlflow.set_tracking_uri(self.uri)
            try:
                with mlflow.start_run(run_id=parent, nested=True):
                    logged = mlflow.pyfunc.log_model(
                        name="model",
                        python_model=str(script),
                        artifacts={"model": str(model)},
                        signature=signature,
                        registered_model_name=_key(name or f"{plan.data.name}-{plan.name}").replace("/", "-"),
                        pip_requirements=["medseg"],
                    )
            finally:
                mlflow.set_tracking_uri(before)
            client = MlflowClient(self.uri)
            client.set_tag(parent, "medseg.model_uri", str(logged.model_uri))
            client.set_tag(parent, "medseg.model_weights", weights)
        return str(logged.model_uri)

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise ResourceError.of(
                "MLflow cannot be used",
                where=self.uri,
                found=_first_line(error),
                fix="Check MLFLOW_TRACKING_URI, or unset it to track in the workspace.",
            ) from error


def flat(record: Record) -> dict[str, str]:
    """A record as dotted names and short texts; reasons are left to `explanation`."""
    values: dict[str, str] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, item in node.items():
                visit(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            values[_key(prefix)] = (node if isinstance(node, str) else json.dumps(node))[:LONGEST]

    visit("", {key: value for key, value in record.model_dump(mode="json").items() if key != "reasons"})
    return values


def explanation(plan: Plan) -> str:
    """Every decision with its reason, as Markdown."""
    lines = ["| field | value | because |", "|---|---|---|"]
    for path, reason in plan.reasons.items():
        value = lookup(plan, path)
        text = value.to_json().strip() if isinstance(value, Record) else str(value)
        lines.append("| " + " | ".join(part.replace("|", "\\|").replace("\n", " ") for part in (path, text, reason)) + " |")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of MLflow and of its database, and the warnings about their own inner workings."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "mlflow.system_metrics", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
