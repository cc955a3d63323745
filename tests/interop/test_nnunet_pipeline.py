"""Preparation, windows and the way back equal what nnU-Net itself made of small images (`recorded/record_pipeline.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.case import Case, PreparedCase
from medseg.domains.base import find_domain
from medseg.geometry import Grid
from medseg.inference.predictor import Predictor
from medseg.interop.nnunet.convert import plan_of
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetPlans
from medseg.interop.nnunet.weights import weight_names
from medseg.planning.explain import unexplained
from medseg.plans import Plan
from medseg.prediction import DenseMap
from medseg.tasks.base import find_task

RECORDED = sorted((Path(__file__).parent / "recorded").glob("pipeline_*.pt"))


class Array(DenseMap):
    """A map in memory with the slab interface, in slabs of two rows."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def slabs(self) -> Any:
        for start in range(0, self.shape[1], 2):
            rows = slice(start, min(start + 2, self.shape[1]))
            yield rows, self.values[:, rows]


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem, scope="module")
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    record: dict[str, Any] = torch.load(request.param, weights_only=True)
    return record


@pytest.fixture(scope="module")
def plan(recorded: dict[str, Any]) -> Plan:
    plans, dataset = NnUNetPlans.parse(recorded["plans"], "plans"), NnUNetDataset.parse(recorded["dataset"], "dataset")
    return plan_of(plans, dataset, recorded["configuration"], mirror=recorded["mirror"])


def prepare(plan: Plan, recorded: dict[str, Any], prior: NDArray[Any] | None = None) -> Case:
    image = recorded["image"].numpy()
    case = Case("x", image, None, Grid.plain(image.shape[1:], tuple(recorded["spacing"])), prior=prior)
    return find_domain(plan.domain)(plan).prepare(case)


def test_prepared_cases_are_equal(plan: Plan, recorded: dict[str, Any]) -> None:
    np.testing.assert_allclose(prepare(plan, recorded).image, recorded["prepared"].numpy(), atol=1e-4)


def test_priors_are_equal(plan: Plan, recorded: dict[str, Any]) -> None:
    """What an earlier stage predicted, as input channels of a cascade; to the voxel."""
    prior = prepare(plan, recorded, recorded["prior"].numpy()).prior
    assert prior is not None
    found = np.stack([prior == value for value in plan.data.labels.values])
    np.testing.assert_array_equal(found, recorded["staged"].numpy())


def test_stitched_logits_are_equal(plan: Plan, recorded: dict[str, Any]) -> None:
    """Of two folds, to the last bits of nnU-Net's 16: only where 32-bit outputs differ in theirs, one may round otherwise."""
    task = find_task(plan.task)(plan)
    names = weight_names(plan.network, task.heads[0].name)
    networks = [task.network(), task.network()]
    for fold, network in enumerate(networks):
        network.load_state_dict({ours: recorded["weights"][theirs] * (1 + 0.01 * fold) for ours, theirs in names.items()})
    predictor = Predictor(plan, networks, torch.device("cpu"), 1.0)
    image = recorded["prepared"].numpy()
    maps = predictor._stitched(PreparedCase("x", image, None, (), Grid.plain(image.shape[1:]), ()), True, None)
    found = np.concatenate([values for _, values in maps[task.heads[0].name].slabs()], axis=1)
    expected = recorded["logits"].float().numpy()
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)
    assert (found == expected).mean() > 0.9


def test_segmentations_are_equal(plan: Plan, recorded: dict[str, Any]) -> None:
    """nnU-Net's logits, brought back and decoded here, are nnU-Net's segmentation, to the voxel."""
    task, domain = find_task(plan.task)(plan), find_domain(plan.domain)(plan)
    trail = prepare(plan, recorded).trail
    maps = domain.native({task.heads[0].name: Array(recorded["logits"].float().numpy())}, trail, task.heads)
    labels = domain.restore(task.decode(maps, "x").labels, trail)
    expected = recorded["segmentation"].numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(labels, expected)


def test_every_decision_has_a_reason(plan: Plan) -> None:
    assert unexplained(plan) == ()
    assert Plan.parse(plan.model_dump(mode="json"), "again") == plan
