"""Using MLflow as a guest: its global state, the environment and the terminal are left exactly as they were found."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import mlflow
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils as service
from mlflow.utils import logging_utils
from sqlalchemy.exc import SQLAlchemyError

FAILURES = (MlflowException, SQLAlchemyError, CommandError, OSError)  # what an unusable server or database raises
TALKATIVE = ("mlflow", "alembic", "mlflow.system_metrics", "mlflow.store.db.utils", "urllib3")
LIBRARIES = r"(mlflow|sqlalchemy|alembic|pydantic)\b"
PROMPT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds; MLflow's own are 7 and 120


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """A dead server is given up after seconds, where MLflow tries for minutes; what the user has set stays."""
    with environment({name: value for name, value in PROMPT.items() if name not in os.environ}):
        yield


@contextlib.contextmanager
def store_at(uri: str) -> Iterator[None]:
    """Point MLflow's global functions at a store meanwhile; `mlflow.set_tracking_uri` alone would leave its mark in the environment."""
    module = service._tracking_uri
    names = [name for name in os.environ if name.startswith("MLFLOW_")]
    before = {name: os.environ[name] for name in names}
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(module)
        for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in before]:
            del os.environ[name]
        os.environ.update(before)


class _Nowhere:
    """Where MLflow's notes go."""

    enabled = False

    def write(self, text: str) -> None:
        """Forget it."""

    def flush(self) -> None:
        """There is nothing to flush."""


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without MLflow's notes on the terminal, and without the warnings that MLflow and its database cause within themselves."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    stream = logging_utils.MLFLOW_LOGGING_STREAM
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    logging_utils.MLFLOW_LOGGING_STREAM = _Nowhere()  # its switch `enabled` would be set again by MLflow on the way
    try:
        with environment({"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=LIBRARIES)
            yield
    finally:
        logging_utils.MLFLOW_LOGGING_STREAM = stream
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """`hushed`, and without any warning: for calls that only MLflow's code takes part in."""
    with hushed(), warnings.catch_warnings(record=True):  # recorded, because MLflow sets filters of its own on the way
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
