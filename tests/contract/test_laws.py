"""Laws that hold for everything that is registered, built in or third-party."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg import registry
from medseg.case import Batch, Case, PreparedCase
from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.domains.base import Domain, find_domain
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.geometry import Grid
from medseg.io.images import read_case
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.models.base import Head, ObjectHead, find_network
from medseg.planning.fingerprinting import make_fingerprint
from medseg.planning.planner import make_plans
from medseg.planning.pretext import pretext_plan
from medseg.plans import Plan
from medseg.prediction import DenseMap
from medseg.tasks.base import Task, find_objective, find_task


class Array(DenseMap):
    """An in-memory map with the slab interface, in slabs of three rows so that seams are exercised."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def slabs(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, self.shape[1], 3):
            rows = slice(start, min(start + 3, self.shape[1]))
            yield rows, self.values[:, rows]


def native_spacing(plan: Plan) -> tuple[float, ...]:
    return (1.0,) * plan.data.ndim


TASKS = [name for name, found in registry.tasks.items() if issubclass(found, Task)]
NETWORKS = [(name, network) for name in TASKS for network in ("unet", *find_task(name).networks)]
SAMPLE = Path(__file__).parents[2] / "datasets" / "hippocampus"
COARSE = 0.95  # of the overlap that is left where masks are drawn on a grid of few cells


@pytest.fixture(scope="module")
def separate() -> tuple[Dataset, Fingerprint]:
    """The sample with one class whose connected components are objects."""
    found = open_dataset(SAMPLE, LayoutOptions(objects="components", things=("Anterior",)))
    return found, make_fingerprint(found, "grid", cache=None, workers=1)


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_oracle_law(name: str, network: str, dataset, fingerprint, separate) -> None:
    """decode(native(stitch(oracle(targets(case))))) scores 1.0 on real labels, or nearly where masks are coarse."""
    task_type = find_task(name)
    known, seen = separate if task_type.objects else (dataset, fingerprint)
    plans = make_plans(known, seen, task=name, domain=known.domain, network=network, machine=Machine("cpu", 8))
    plan = next(p for p in plans if p.recommended)
    task, domain = task_type(plan), find_domain(plan.domain)(plan)
    for files in known.cases[:3]:
        case = domain.prepare(read_case(files, labels=plan.data.labels))
        assert case.label is not None
        shown = np.repeat(case.label[None].astype(np.float32), len(plan.data.channels), 0)  # a network that sees the truth can be perfect

        def run(batch: Batch) -> dict[str, torch.Tensor]:
            outputs = task.oracle(task.targets(Batch(batch.image, batch.image[:, 0].to(torch.int32))))
            one_view = {head.name for head in task.heads if isinstance(head, ObjectHead)}

            return {head.name: outputs[head.name][:, None] if head.name in one_view else outputs[head.name] for head in task.heads}

        stitched = domain.stitch(PreparedCase(files.id, shown, None, (), case.grid, case.trail), run, task.heads, 1, 2**30)
        prediction = task.decode(stitched, files.id)
        scores = task.score(prediction.labels, case.label, case.grid.spacing)
        coarse = any(isinstance(head, ObjectHead) for head in task.heads)
        for values in scores.values():
            assert values[task.metrics[0]] == 1.0 or (coarse and values[task.metrics[0]] > COARSE)


@pytest.mark.parametrize("name", [name for name in TASKS if find_task(name).combines])
def test_combination_law(name: str, dataset, fingerprint) -> None:
    """Equal predictions come to the same as one of them, and the order of different ones plays no part."""
    plans = make_plans(dataset, fingerprint, task=name, domain=dataset.domain, network="unet", machine=Machine("cpu", 8))
    plan = plans[0]
    if "smallest" in type(plan.target).model_fields:  # noise has only small objects
        plan = plan.edited({"target.head.smallest": "1"})
    task = find_task(name)(plan)
    rng = np.random.default_rng(0)
    outputs = [{head.name: Array(rng.normal(0, 2, (head.channels, 7, 6, 5)).astype(np.float32)) for head in task.heads} for _ in range(3)]
    predictions = [task.decode(one, "x", probabilities=True, uncertainty=True) for one in outputs]

    def combined(parts):
        found = task.combine(parts, "x", probabilities=True, uncertainty=True)
        assert np.array_equal(task.combine(parts, "x").labels, found.labels)
        return found

    first = predictions[0]
    for same in ([first], [first, first], [first] * 3):
        together = combined(same)
        assert np.array_equal(together.labels, first.labels)
        assert np.array_equal(together.probabilities, first.probabilities)
        assert together.uncertainty == pytest.approx(first.uncertainty, abs=1e-3)
    every = combined(predictions)
    assert not np.array_equal(every.labels, first.labels)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        other = combined([predictions[i] for i in order])
        assert np.array_equal(other.labels, every.labels)
        assert np.array_equal(other.probabilities, every.probabilities)
        assert other.uncertainty == every.uncertainty


@pytest.mark.parametrize(("name", "network"), [*NETWORKS, *((name, "unet") for name in registry.tasks.names() if name not in TASKS)])
def test_perfect_law(name: str, network: str, dataset, fingerprint, separate) -> None:
    """loss(oracle(targets(case))) is nearly 0 on real images and labels, whether inputs or targets are asked for first."""
    task = name if name in TASKS else dataset.task
    known, seen = separate if find_task(task).objects else (dataset, fingerprint)
    plans = make_plans(known, seen, task=task, domain=known.domain, network=network, machine=Machine("cpu", 8))
    plan = next(p for p in plans if p.recommended)
    if name not in TASKS:
        plan = pretext_plan(plan, name)
    objective, domain = find_objective(name)(plan), find_domain(plan.domain)(plan)
    case = domain.prepare(read_case(known.cases[0], labels=plan.data.labels))
    ready = PreparedCase("x", case.image, case.label, domain.locations(case.label), case.grid, ())
    window = domain.sample(ready, np.random.default_rng(0), None)
    for first in ("inputs", "targets"):
        torch.manual_seed(0)
        batch = domain.augment(
            Batch(torch.from_numpy(window.image)[None], torch.from_numpy(window.label)[None]), torch.Generator().manual_seed(0)
        )
        if first == "inputs":
            inputs = objective.inputs(batch)
        targets = objective.targets(batch)
        if first == "targets":
            inputs = objective.inputs(batch)
        assert inputs.shape == (1, objective.channels, *plan.window)
        perfect = objective.oracle(targets)
        sizes = {head.name: head.slots if isinstance(head, ObjectHead) else head.channels for head in objective.heads}
        assert {head.name: perfect[head.name].shape[1] for head in objective.heads} == sizes
        terms = objective.loss({head: [maps] for head, maps in perfect.items()}, targets)
        assert sum(float(term) for term in terms.values()) < 0.01


@pytest.mark.parametrize("name", registry.domains.names())
def test_configurations_law(name: str, fingerprint) -> None:
    """A domain says beforehand which configurations it may make, with windows of how many axes, and makes no other."""
    domain = find_domain(name)
    for machine in (Machine("cpu", 2), Machine("cuda", 24)):
        drafts = domain.drafts(fingerprint, machine)
        assert len({draft.name for draft in drafts}) == len(drafts) > 0
        assert {draft.name for draft in drafts} <= set(domain.configurations)
        for draft in drafts:
            assert {len(window) for window in draft.windows} == {domain.configurations[draft.name]}


@pytest.mark.parametrize(("wrong", "found"), [(None, "nothing"), ({}, "{}"), (("3d",), r"\('3d',\)"), ({"3d": None}, "{'3d': None}")])
def test_a_domain_without_configurations_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: object, found: str) -> None:
    class Unfinished(Domain):
        pass

    if wrong is not None:
        Unfinished.configurations = wrong  # type: ignore[assignment]
    monkeypatch.setattr(registry.domains, "get", lambda name: Unfinished)
    with pytest.raises(
        PlanError, match=rf"does not say which configurations it makes; found {found}, expected names with the axes of their windows"
    ):
        find_domain("unfinished")


@pytest.mark.parametrize("name", registry.domains.names())
def test_inverse_law(name: str, plans: tuple[Plan, ...], dataset) -> None:
    """restore(prepare(case)) is the identity, to the voxel, for an oblique, permuted, flipped case."""
    plan = next(p for p in plans if p.domain == name)
    domain = find_domain(name)(plan)
    case = read_case(dataset.cases[0])
    rng = np.random.default_rng(0)
    for _ in range(8):
        axes = rng.permutation(3)
        flips = tuple(int(a) + 1 for a in range(3) if rng.random() < 0.5)
        image = np.flip(case.image.transpose(0, *(axes + 1)), flips)
        label = np.flip(case.label.transpose(*axes), tuple(f - 1 for f in flips))
        rotation, _ = np.linalg.qr(np.eye(3)[:, ::-1][:, axes] + 0.1 * rng.standard_normal((3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = rotation
        affine[:3, 3] = rng.uniform(-100, 100, 3)
        prepared = domain.prepare(Case("x", image, label, Grid(label.shape, affine)))
        assert np.array_equal(domain.restore(prepared.label, prepared.trail), label)


@pytest.mark.parametrize("name", registry.domains.names())
@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.7, 2.5])
def test_any_size_law(name: str, factor: float, plans: tuple[Plan, ...]) -> None:
    """A case of any size is covered by windows; a network that returns its input gives the input back."""
    for plan in (p for p in plans if p.domain == name):
        domain = find_domain(name)(plan)
        shape = tuple(max(1, int(n * factor)) for n in ((3, *plan.window)[-plan.data.ndim :]))
        image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        case = PreparedCase("x", image, None, (), Grid.plain(shape), ())
        maps = domain.stitch(case, lambda windows: {"echo": windows.image[:, :1]}, (Head("echo", 1),), 2, 2**30)
        seen = np.zeros(shape, bool)
        for rows, values in maps["echo"].slabs():
            np.testing.assert_allclose(values, image[:, rows], atol=2e-2)
            assert not seen[rows].any()
            seen[rows] = True
        assert seen.all()


@pytest.mark.parametrize("name", registry.networks.names())
@pytest.mark.parametrize("window", [(40, 56, 40), (96, 128), (12, 96, 96), (7, 65, 33), (32, 32)])
def test_networks_take_what_they_configure(name: str, window: tuple[int, ...]) -> None:
    """A configured network accepts its window, returns full-resolution maps first, and one map per head in evaluation."""
    family = find_network(name)
    configured = family.configure(window, (1.0,) * len(window), Machine("cpu", 4))
    assert family.check(configured.settings, configured.window) == ""
    torch.manual_seed(0)
    network = family.build(configured.settings, 2, (Head("a", 3), Head("b", 1)))
    image = torch.zeros(1, 2, *configured.window)
    outputs = network.eval()(image)
    assert {k: [tuple(t.shape) for t in v] for k, v in outputs.items()} == {
        "a": [(1, 3, *configured.window)],
        "b": [(1, 1, *configured.window)],
    }
    assert network.train()(image)["a"][0].shape[2:] == configured.window
