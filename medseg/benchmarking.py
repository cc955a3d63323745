"""How fast a plan trains and predicts on a device, and what limits it: the verb `medseg benchmark`.

Training, prediction and preparation are the engine's own; nothing that they make is kept.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from medseg.dataset import CaseFiles, Dataset
from medseg.device import autocast_dtype, choose_device
from medseg.errors import DatasetError, ModelError, UsageError
from medseg.io.store import Store
from medseg.parallel import usable_cores
from medseg.plans import Plan
from medseg.preconditions import check_one_plan, read_plan
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.steps import workspace_of
from medseg.verdict import TrainingSpeed, Verdict, judge
from medseg.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    import torch

    from medseg.inference.predictor import Predictor
    from medseg.training.probe import Pace

SILENT = Silent()
SECONDS = 60.0  # that measuring takes, about
FEW = 8  # cases that are prepared where the workspace has none
SHARES = {"training": 0.45, "float32": 0.2, "prediction": 0.3, "cutting": 0.03, "products": 0.01}  # of the time
CUTTING = 1.0  # seconds
PRODUCTS = 0.5  # seconds of matrix products, twice
WEIGHED = 32  # prepared cases whose files are looked at for the size of all
GIB = 2**30


class PredictionSpeed(Record):
    """How fast a model predicts; see `medseg.inference.pace.PredictionPace`. `memory` is of main memory, `device_memory` of a GPU, in GiB."""

    windows_per_second: float
    views: int
    networks: int
    case_shape: tuple[int, ...]
    case_windows: int
    case_seconds: float
    case_whole: bool
    memory: float | None
    device_memory: float | None
    measured: bool = Field(description="Whether `device_memory` was measured.")


class Benchmark(Record):
    """What `benchmark` measured. Nothing in it tells cases apart.

    Attributes:
        prepared: prepared cases that windows came from; `own` when they are the workspace's.
        prepared_gib: what all prepared cases of the dataset take, about.
    """

    plan: str
    plan_digest: str
    device: str
    kind: str
    precision: str
    threads: int
    cores: int
    versions: dict[str, str]
    window: tuple[int, ...]
    batch_size: int
    prepared: int
    own: bool
    prepared_gib: float
    training: TrainingSpeed
    prediction: PredictionSpeed | None
    verdict: Verdict


def benchmark(
    target: Path,
    *,
    plans: Path | None = None,
    seconds: float = SECONDS,
    steps: int | None = None,
    edits: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = SILENT,
) -> Benchmark:
    """Measure a plan, or the plan of a model folder, on a device.

    Where the workspace holds prepared cases of the plan, windows come from these; otherwise a few cases are prepared aside.

    Args:
        target: a plan file in its workspace, or a model folder, trained or not.
        plans: the workspace of a model folder; None takes the one within.
        seconds: that measuring takes, about; slow steps take longer, and so does preparing cases.
        steps: of training to measure, instead of as many as the time allows; all else stays within `seconds`.
        edits: values to change in the plan first.
        workers: processes that prepare cases, and that cut the windows of a GPU.

    Raises:
        UsageError, PlanError, ModelError, DatasetError, ResourceError: what is asked for cannot be measured.
        KeyboardInterrupt: a signal ended it.
    """
    from medseg.planning.memory import training_cost
    from medseg.tasks.base import Task, find_objective
    from medseg.training.preflight import check_kind
    from medseg.training.probe import cutting_pace, product_rate, train_pace

    for option, value in (("--seconds", seconds), ("--steps", steps)):
        if value is not None and not value > 0:
            raise UsageError.of("nothing would be measured", where=option, found=f"{value:g}", expected="more than 0")
    plan, workspace, model = _opened(target, plans)
    plan = plan.edited(dict(edits or {}))
    chosen = choose_device(device)
    if kind := check_kind(plan, chosen):
        progress.say(kind)
    dataset = workspace.dataset()
    here = plan.model_copy(update={"memory": plan.memory.model_copy(update={"device": chosen.type})})
    cost = training_cost(here)
    dtype = autocast_dtype(chosen)
    with ExitStack() as stack:
        store, ids, own = _prepared(plan, workspace, dataset, model, workers, progress, stack)
        gib = _gib(store, ids) * len(dataset.cases)
        cut = cutting_pace(plan, store.folder, ids, min(CUTTING, SHARES["cutting"] * seconds))
        pace = train_pace(plan, store.folder, ids, chosen, SHARES["training"] * seconds, steps, workers, progress)
        plain: Pace | None = None
        if chosen.type == "cpu" and dtype is not None:
            limit = SHARES["float32"] * seconds
            if 2 * pace.step > limit:  # one before the measured one
                progress.say("steps are too slow for a comparison with float32 within --seconds")
            else:
                progress.say("the same in float32")
                plain = train_pace(plan, store.folder, ids, chosen, limit / 2, None, workers, progress, full_precision=True, fewest=1)
    products = min(PRODUCTS, SHARES["products"] * seconds)
    peak = product_rate(chosen, dtype or _float32(), products)
    prediction = None
    if issubclass(find_objective(plan.task), Task):
        prediction = _prediction(plan, workspace, dataset, model, chosen, device, SHARES["prediction"] * seconds, progress)
    peak = max(peak, product_rate(chosen, dtype or _float32(), products))  # other programs may have held up either
    training = TrainingSpeed(
        steps=pace.steps,
        steps_per_second=1 / pace.step,
        windows_per_second=plan.training.batch_size / pace.step,
        fastest=pace.fastest,
        slowest=pace.slowest,
        cores=pace.taken.cores,
        others=pace.taken.others,
        phases=pace.phases,
        waiting=pace.phases["data"] / sum(pace.phases.values()),
        memory=pace.memory,
        memory_predicted=cost.memory,
        portion=pace.portion,
        flops=cost.flops,
        rate=cost.flops / pace.step,
        peak_rate=peak,
        utilisation=cost.flops / pace.step / peak,
        workers=pace.workers,
        window_seconds=cut.seconds,
        window_computing=cut.computing,
        compiled=pace.compiled,
        float32_steps_per_second=1 / plain.step if plain is not None else None,
        epoch_seconds=plan.training.steps * pace.step,
        plan_seconds=plan.training.epochs * plan.training.steps * pace.step,
    )
    threads, cores = _threads(), usable_cores()
    precision = str(dtype or _float32()).removeprefix("torch.")
    return Benchmark(
        plan=plan.name,
        plan_digest=plan.trained_digest(),
        device=_device_name(chosen),
        kind=chosen.type,
        precision=precision,
        threads=threads,
        cores=cores,
        versions={"python": platform.python_version(), "medseg": version("medseg"), "torch": version("torch")},
        window=plan.window,
        batch_size=plan.training.batch_size,
        prepared=len(ids),
        own=own,
        prepared_gib=gib,
        training=training,
        prediction=prediction,
        verdict=judge(training, plan.training.batch_size, plan.memory.budget, chosen.type, cores, gib if own else None, precision),
    )


def _opened(target: Path, plans: Path | None) -> tuple[Plan, Workspace, RunFolder | None]:
    """The plan that is meant, its workspace, and the model folder where one was given."""
    if not target.is_dir():
        return read_plan(target), Workspace(plans) if plans is not None else Workspace.of_plan(target), None
    folder = RunFolder(target)
    check_one_plan(folder.root)
    if not folder.plan_file.is_file():
        raise ModelError.of(
            "is neither a plan nor a model folder",
            where=str(target),
            found="a folder without plan.json",
            fix="Pass a plan file, e.g. PLANS/3d.json, or the folder that `medseg train` or `medseg run` writes. Of a dataset, make plans "
            "first: `medseg plan DATASET -o PLANS`.",
        )
    plan = Plan.load(folder.plan_file)
    return plan, workspace_of([target], plans, plan), folder


def _prepared(
    plan: Plan,
    workspace: Workspace,
    dataset: Dataset,
    model: RunFolder | None,
    workers: int | None,
    progress: Progress,
    stack: ExitStack,
) -> tuple[Store, tuple[str, ...], bool]:
    """Prepared cases, their ids, and whether they are the workspace's own; others lie in a folder that goes with `stack`."""
    from medseg.preprocessing.prepare import prepare

    known = {case.id for case in dataset.cases}
    before = _digest_before(model) if plan.previous else ""
    if before is not None:
        store = Store(workspace.prepared(plan, before))
        if ids := tuple(case for case in store.ids() if case in known):
            return store, ids, True
    if not dataset.cases:
        raise DatasetError.of("has no labelled case to train on", where=str(workspace.dataset_file))
    places = sorted({round(place) for place in np.linspace(0, len(dataset.cases) - 1, FEW)})
    few = [dataset.cases[place] for place in places]
    if plan.previous:  # annotations cost as much to read as what the stage before would predict
        few = [case.model_copy(update={"prior": case.label}) for case in few]
    progress.say(
        f"the cases are not prepared for this plan: {len(few)} of {len(dataset.cases)} are, for now, in a temporary folder. These few stay in memory, so "
        "what reading takes from the workspace's disk is not seen"
    )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medseg-")))
    store = prepare(dataset.model_copy(update={"cases": tuple(few)}), plan, folder, workers=workers, progress=progress)
    return store, tuple(case.id for case in few), False


def _digest_before(model: RunFolder | None) -> str | None:
    """Of a cascade's earlier stage, as far as it is trained."""
    if model is None:
        return None
    try:
        return model.previous.digest()
    except ModelError:
        return None


def _gib(store: Store, ids: Sequence[str]) -> float:
    """Mean of the prepared cases."""
    looked = ids[:: max(1, len(ids) // WEIGHED)]
    return sum(file.stat().st_size for case in looked for file in (store.folder / case).iterdir()) / GIB / len(looked)


def _prediction(
    plan: Plan,
    workspace: Workspace,
    dataset: Dataset,
    model: RunFolder | None,
    chosen: torch.device,
    device: str,
    seconds: float,
    progress: Progress,
) -> PredictionSpeed:
    """Of a trained model that `plan` leaves as it is, else of one network that has learned nothing, which takes as long."""
    from medseg.inference.pace import prediction_pace
    from medseg.inference.predictor import Predictor

    files, shape = _typical(workspace, dataset)
    try:
        stored = model is not None and Plan.load(model.plan_file).content_digest() == plan.content_digest()
        predictor = Predictor.load(model.root, device=device) if model is not None and stored else _untrained(plan, workspace, chosen)
    except ModelError:
        predictor = _untrained(plan, workspace, chosen)
    pace = prediction_pace(predictor, files, seconds, progress)
    return PredictionSpeed(
        windows_per_second=pace.windows_per_second,
        views=pace.views,
        networks=pace.networks,
        case_shape=shape,
        case_windows=pace.windows,
        case_seconds=pace.seconds,
        case_whole=pace.whole,
        memory=pace.estimate.memory if pace.estimate is not None else None,
        device_memory=pace.memory if pace.memory is not None else (pace.estimate.device or None) if pace.estimate is not None else None,
        measured=pace.memory is not None,
    )


def _untrained(plan: Plan, workspace: Workspace, device: torch.device) -> Predictor:
    from medseg.inference.predictor import Predictor
    from medseg.models.base import find_network
    from medseg.tasks.base import find_task

    network = find_task(plan.task)(plan).network()
    find_network(plan.network.kind).freeze(network, device, autocast_dtype(device))
    previous = _untrained(Plan.load(workspace.plan_file(plan.previous)), workspace, device) if plan.previous else None
    return Predictor(plan, [network], device, previous=previous)


def _typical(workspace: Workspace, dataset: Dataset) -> tuple[CaseFiles, tuple[int, ...]]:
    """The case of median size, by the fingerprint."""
    files = {case.id: case for case in dataset.cases}
    sizes = sorted((float(np.prod(case.shape)), case.shape, case.id) for case in workspace.fingerprint().cases if case.id in files)
    if not sizes:
        raise DatasetError.of("is the fingerprint of other cases", where=str(workspace.fingerprint_file), fix="Run `medseg plan` again.")
    _, shape, name = sizes[len(sizes) // 2]
    return files[name], shape


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # no Linux
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _float32() -> torch.dtype:
    import torch

    return torch.float32


def _threads() -> int:
    import torch

    return torch.get_num_threads()
