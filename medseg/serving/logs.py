"""What the node logs: time, level and a sentence, as text or as JSON lines; nothing that libraries say of headers."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

LIBRARIES = (
    "pynetdicom",
    "pydicom",
    "highdicom",
    "dicomweb_client",
    "retrying",
    "urllib3",
)  # their messages hold UIDs and values of headers


class _Lines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        return json.dumps({"time": when, "level": record.levelname.lower(), "message": record.getMessage()})


def hush() -> None:
    """No library's logger, and no child of one, hands on what it says, whatever the level and whoever has added handlers."""
    for name in LIBRARIES:
        children = [one for one in logging.Logger.manager.loggerDict if one.startswith(f"{name}.")]
        for logger in map(logging.getLogger, (name, *children)):
            logger.handlers = [logging.NullHandler()]
            logger.propagate = False
            logger.setLevel(logging.CRITICAL + 1)


def silence() -> None:
    """No library of this process writes values of headers to logs or to stderr."""
    hush()
    warnings.simplefilter("ignore")


def begin(lines: bool) -> None:
    """Log to stderr, where systemd and containers look; with `lines` as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    text.converter = time.gmtime
    handler.setFormatter(_Lines() if lines else text)
    logger = logging.getLogger("medseg")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    silence()
