"""MLflow: a parent run per model folder (dataset and configuration), a child run per fold. No case id and no path of a case goes there.

The runs are addressed by id through the client, never through MLflow's global state, so a notebook's own active run is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import DataType, Schema
from mlflow.types.schema import Array, ColSpec

from medseg.claim import Claim, TakenError
from medseg.errors import MedsegError, ResourceError
from medseg.fingerprint import Fingerprint
from medseg.plans import Plan, lookup
from medseg.record import Record
from medseg.training.budget import Budget
from medseg.training.journal import FoldRun, metric_key
from medseg.training.mlflow_state import FAILURES, environment, first_line, prompt, quiet, store_at
from medseg.training.splits import Split
from medseg.training.start import Origin
from medseg.workspace import Provenance, RunFolder, Workspace

BATCH = 100  # parameters that MLflow takes at once
SQLITE = "sqlite:///"
PATIENCE = 120.0  # seconds in which another process makes a database
LONGEST = 500  # characters of a parameter
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for a run that a store does not have
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # of an upload: a large model may take its time, a dead server may not
INPUTS = (
    "a path; a list of paths, one image each; an array (C, Z, Y, X) or (C, Y, X); a list of arrays; {'image': any of these}; "
    "or a data frame with a column 'image' of paths, arrays, or lists of one path per channel"
)


class RunIds(Record):
    """Where a fold is tracked (`state/tracking.json`), so that resuming goes on in the same run."""

    uri: str
    parent: str
    child: str


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
        with quiet(), prompt(), self._reachable():
            client = self._client()
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
            "medseg.plan_digest": plan.trained_digest(),
        }
        origin = Origin.load(run.init_file) if run.init_file.is_file() else None
        if origin is not None:
            tags |= {"medseg.init": origin.source, "medseg.init_weights": origin.weights_digest}
            tags["medseg.init_share"] = str(origin.transferred.share)
        parent = str(client.create_run(experiment, run_name=f"{plan.data.name} {plan.name}", tags=tags).info.run_id)
        params = [Param(key, value) for key, value in flat(plan).items()]
        for start in range(0, len(params), BATCH):
            client.log_batch(parent, params=params[start : start + BATCH])
        source = Dataset(plan.data.name, self.digest, "medseg", json.dumps({"digest": self.digest}))
        client.log_inputs(parent, [DatasetInput(source, [InputTag("mlflow.data.context", "training")])])
        client.log_text(parent, plan.to_json(), "plan.json")
        client.log_text(parent, explanation(plan), "explanation.md")
        if origin is not None:
            client.log_text(parent, origin.to_json(), "init.json")
        return parent

    def log_model(self, run: RunFolder, script: Path, name: str = "") -> str:
        """Log the model folder as a pyfunc by models-from-code, and register it; the model's URI.

        What has been logged already under this name is not logged again, so a repeated call adds no version. A model whose run this store
        does not know (it was tracked elsewhere, or the run was deleted) gets a new parent run.

        Args:
            script: the models-from-code file; it finds the model folder as the artifact `model`.
            name: registered name; the dataset's and configuration's by default.

        Raises:
            ResourceError: the model could not be logged, for whatever reason on MLflow's side.
        """
        plan = Plan.load(run.plan_file)
        provenance = Provenance.load(run.provenance_file)
        members = "-".join([plan.name, *(part.root.name for part in run.partners())])
        registered = metric_key(name or f"{plan.data.name}-{members}").replace("/", "-")
        weights = hashlib.blake2b(f"{registered}/{run.digest()}".encode(), digest_size=8).hexdigest()
        with quiet(), self._reachable((Exception,)):
            client = self._client()
            with prompt():
                parent = provenance.mlflow_run
                if not parent or not _exists(client, parent):
                    parent = self._parent(client, self._experiment(client), plan, run)
                    client.set_terminated(parent)
                    provenance.model_copy(update={"mlflow_run": parent}).save(run.provenance_file)
                known = client.get_run(parent)
            if known.data.tags.get("medseg.model_weights") == weights:
                return str(known.data.tags["medseg.model_uri"])
            with environment({key: value for key, value in RETRIES.items() if key not in os.environ}):
                uri = self._upload(client, plan, run, script, parent, str(known.info.experiment_id), registered)
                client.set_tag(parent, "medseg.model_uri", uri)
                client.set_tag(parent, "medseg.model_weights", weights)
        return uri

    def _upload(self, client: MlflowClient, plan: Plan, run: RunFolder, script: Path, parent: str, experiment: str, registered: str) -> str:
        """Everything is named by id, so that neither an active run nor an active experiment of the caller plays a part."""
        with tempfile.TemporaryDirectory() as temporary, store_at(self.uri):
            model = Path(temporary) / "model"
            run.copy(model)  # no splits: they hold case ids
            entry = client.create_logged_model(experiment, name="model", source_run_id=parent)
            logged = Model.log(
                artifact_path=None,
                name="model",
                flavor=mlflow.pyfunc,
                run_id=parent,
                model_id=entry.model_id,
                registered_model_name=registered,
                python_model=str(script),
                artifacts={"model": str(model)},
                signature=model_signature(plan),
                metadata={"inputs": INPUTS},
                pip_requirements=[f"medseg=={version('medseg')}"],
            )
        return str(logged.model_uri)

    def _client(self) -> MlflowClient:
        """A client whose store is ready. Of several processes that track in a new database at the same moment one makes it."""
        if not self.uri.startswith(SQLITE):
            return MlflowClient(self.uri)
        folder = Path(self.uri.removeprefix(SQLITE)).parent
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with Claim(folder, "database"):
                    client = MlflowClient(self.uri)
                    client.search_experiments(max_results=1)
                return client
            except TakenError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    @contextlib.contextmanager
    def _reachable(self, failures: tuple[type[Exception], ...] = FAILURES) -> Iterator[None]:
        try:
            yield
        except MedsegError:
            raise
        except failures as error:
            raise ResourceError.of(
                "MLflow cannot be used",
                where=self.uri,
                found=first_line(error),
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
            values[metric_key(prefix)] = (node if isinstance(node, str) else json.dumps(node))[:LONGEST]

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


def model_signature(plan: Plan) -> ModelSignature:
    """Out: one row per image, a label map as nested lists of integers.

    There is no schema for what goes in: no schema of MLflow lets paths as well as arrays pass, and with none it passes all on as it is.
    """
    labels = Array(DataType.integer)
    for _ in range(plan.data.ndim - 1):
        labels = Array(labels)
    return ModelSignature(outputs=Schema([ColSpec(labels, "labels")]))


def _exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has this run. A store that gives no answer is an error, not a no."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in UNKNOWN:
            return False
        raise
