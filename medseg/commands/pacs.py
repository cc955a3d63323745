"""Verbs at a PACS: node, queue."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medseg.commands.console import answer, ok, paragraphs, say, table, warn
from medseg.commands.options import Device, Memory, RunPath, parse_formats, parse_names, parse_time
from medseg.errors import UsageError

GIB = 2**30
KEPT = {"0": 0.0, "forever": math.inf}


def node(
    run: RunPath,
    store: Annotated[Path, typer.Option("--store", help="Folder of the work queue and of images until they are predicted and delivered.")],
    aet: Annotated[str, typer.Option("--aet", help="Title of this node.")] = "MEDSEG",
    host: Annotated[str, typer.Option("--host", help="Address to listen on. Others than this machine's own need --allow.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on.")] = 11112,
    forward: Annotated[list[str] | None, typer.Option("--forward", help="host:port:AET that receives all results (repeatable).")] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="AET=host:port of a sender that receives the results of what it has sent (repeatable)."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="Titles that may send, AET[,AET]. Default: every one on this machine, none elsewhere."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Results as seg, labelmap, rtstruct, sr, preview (repeatable, or seg,sr). Default: seg."),
    ] = None,
    quiet_for: Annotated[
        str, typer.Option("--quiet-for", help="A study is complete when no image has come for so long, e.g. 30s or 2m.")
    ] = "30s",
    wait_at_most: Annotated[str, typer.Option("--wait-at-most", help="... or so long after its first image.")] = "1h",
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Failed predictions after which a study is set aside.")] = 3,
    timeout: Annotated[str, typer.Option("--timeout", help="Longest prediction; a longer one has failed.")] = "1h",
    grace: Annotated[
        str, typer.Option("--grace", help="When asked to stop, how long a prediction may go on before it is left for later.")
    ] = "60s",
    free: Annotated[float, typer.Option("--free", min=0, help="GiB of disk that stay free; with less, images are refused.")] = 2.0,
    most: Annotated[int, typer.Option("--most", min=1, help="Studies in the queue; with more, new ones are refused.")] = 1000,
    associations: Annotated[
        int, typer.Option("--associations", min=1, help="Associations at the same time; further ones are rejected.")
    ] = 20,
    keep_aside: Annotated[str, typer.Option("--keep-aside", help="How long the images of studies that were set aside are kept.")] = "336h",
    keep_for: Annotated[
        str,
        typer.Option(
            "--keep-for",
            help="How long images and results stay after delivery, so that later images are predicted with them: a time, 0 or forever.",
        ),
    ] = "1h",
    monitor: Annotated[str | None, typer.Option("--monitor", help="\\[host:]port for /health (JSON) and /metrics (Prometheus).")] = None,
    monitor_token: Annotated[
        str | None,
        typer.Option("--monitor-token-from", help="Name of an environment variable with the token that readers of these must show."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate (PEM): connections that come in are encrypted.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", help="Authority (PEM): senders must show a certificate of it, and receivers are checked by it."),
    ] = None,
    tls_out: Annotated[bool, typer.Option("--tls-out", help="Send results encrypted, too, with the same certificate.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines.")] = False,
    device: Device = "auto",
    memory: Memory = None,
) -> None:
    """Receive studies by DICOM C-STORE, predict them, and send the results on. Runs until SIGTERM or Ctrl-C."""
    from medseg.serving import logs
    from medseg.serving.addresses import is_loopback, parse_entity, parse_known, parse_listener, parse_peer
    from medseg.serving.model import Model
    from medseg.serving.node import Node, Settings, run_until_told
    from medseg.serving.receiver import Limits
    from medseg.serving.tls import client_tls, server_tls

    if (tls_cert is None) != (tls_key is None) or ((tls_ca or tls_out) and tls_cert is None):
        raise UsageError.of("--tls-cert and --tls-key belong together, and --tls-ca and --tls-out need them", where="--tls-cert")
    known = [parse_known(text, "--peer") for text in peer or ()]
    settings = Settings(
        store=store,
        aet=parse_entity(aet, "--aet"),
        host=host,
        port=port,
        forward=tuple(parse_peer(text, "--forward") for text in forward or ()),
        known={one.aet: one for one in known},
        allow=tuple(parse_entity(title, "--allow") for title in parse_names(allow) or ()),
        quiet=_seconds(quiet_for, "--quiet-for"),
        limit=_seconds(wait_at_most, "--wait-at-most"),
        attempts=attempts,
        timeout=_seconds(timeout, "--timeout"),
        grace=_seconds(grace, "--grace"),
        limits=Limits(free=int(free * GIB), studies=most, associations=associations),
        keep=KEPT[keep_for] if keep_for in KEPT else _seconds(keep_for, "--keep-for"),
        keep_aside=_seconds(keep_aside, "--keep-aside"),
        monitor=parse_listener(monitor, "--monitor") if monitor is not None else None,
        token=_secret(monitor_token, "--monitor-token-from"),
        tls=server_tls(tls_cert, tls_key, tls_ca) if tls_cert and tls_key else None,
        caller_tls=client_tls(tls_ca, tls_cert, tls_key) if tls_out else None,
    )
    logs.begin(log_json)
    worker = Node(settings, Model(run, parse_formats(formats) or ("seg",), device, memory))
    if settings.tls is None and not is_loopback(host):
        warn("connections are not encrypted (--tls-cert, --tls-key): everybody on the network's path can read the images")
    run_until_told(worker)


def queue(
    store: Annotated[Path, typer.Argument(help="The --store of a node; it may be running.")],
    retry: Annotated[
        list[str] | None, typer.Option("--retry", help="Predict a study again that was set aside, or `all` (repeatable).")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Delete a study that was set aside, or `all` (repeatable).")] = None,
) -> None:
    """List the studies of a node: where they are, and why some were set aside."""
    from medseg.serving.ledger import State
    from medseg.serving.queue import Queue
    from medseg.serving.store import Store

    work = Queue(store, create=False)
    try:
        for keys, act in ((retry, work.retry), (remove, Store(store, work).forget)):
            for key in keys or ():
                for one in [study.key for study in work.studies((State.aside,))] if key == "all" else [key]:
                    act(one)
        studies = work.studies(tuple(state for state in State if state != State.done))
        counts = work.counts()
    finally:
        work.close()
    now = time.time()
    rows = [(s.key, s.state, s.caller, s.instances, s.attempts, _ago(now - s.changed)) for s in studies]
    if rows:
        table(f"{store}", ("study", "state", "from", "images", "attempts", "since"), rows)
    paragraphs((f"{s.key} ({s.state})", s.reason) for s in studies if s.reason)
    ok(f"{counts[State.done]} studies done, {counts[State.aside]} aside, {len(studies) - counts[State.aside]} on their way")
    if counts[State.aside]:
        say("Try one again: medseg queue STORE --retry STUDY")
    answer({"counts": {str(state): number for state, number in counts.items()}, "studies": [asdict(study) for study in studies]})


def _seconds(text: str, option: str) -> float:
    try:
        seconds = parse_time(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text.strip()) else text)
    except UsageError as error:
        raise UsageError.of(error.problems[0].what, where=option, found=f"'{text}'", expected="for example 90, 30s, 10m or 1h") from None
    assert seconds is not None
    return seconds


def _secret(name: str | None, option: str) -> str:
    if name is None:
        return ""
    value = os.environ.get(name, "")
    if not value:
        raise UsageError.of(
            "the environment variable is empty", where=option, found=name, expected="the name of a variable that holds a token"
        )
    return value


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


VERBS: dict[str, Callable[..., None]] = {"node": node, "queue": queue}
