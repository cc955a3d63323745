"""Objects on their way through ensembles: slots of mirrored views and of several networks, beside maps, and where memory runs out."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seen import HEAD, case_of, found_in, painted, perfect_slots, same_objects, scattered, seen_codes

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS
from medseg.inference import ensemble as engine
from medseg.inference.ensemble import Ensemble, batch_size
from medseg.models.base import Head, ObjectHead
from medseg.models.slots import Slots

SLOTS, MASK = 30, 32
CPU = torch.device("cpu")


class Seeing(torch.nn.Module):
    """A perfect detector of codes in its input; with a map of a scalar and one of displacements where it is asked for."""

    def __init__(self, score=0.9, maps=False, most=99):
        super().__init__()
        self.score, self.maps, self.most, self.seen = score, maps, most, []

    def forward(self, image):
        self.seen.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("too many")
        slots = torch.cat([perfect_slots(seen_codes(one), SLOTS, MASK, self.score).pack() for one in image])
        return {"dense": [image[:, :1] * self.score], HEAD: [slots]} if self.maps else {HEAD: [slots]}


def ensemble_of(networks, axes, batch=4, maps=False):
    heads = (ObjectHead(HEAD, slots=SLOTS, mask=MASK, axes=axes),)
    heads = (Head("dense", 1), *heads) if maps else heads
    plan = SimpleNamespace(window=(1,) * axes)
    return Ensemble(SimpleNamespace(plan=plan, heads=heads, inputs=lambda batch: batch.image), networks, CPU, batch)


def windows_of(truth) -> Batch:
    return Batch(torch.from_numpy(np.asarray(case_of(truth).image))[None])


@pytest.fixture
def exact(monkeypatch):
    """In 32 bits: codes are no numbers that could be rounded."""
    monkeypatch.setattr(engine, "autocast_dtype", lambda device: None)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("axes", [2, 3])
def test_slots_of_mirrored_views_come_back_and_stand_side_by_side(axes):
    truth = scattered((20, 24, 28)[:axes], 10, (2, 6), 3)
    mirror = tuple(range(axes))
    said = ensemble_of((Seeing(0.9), Seeing(0.5)), axes).runner(mirror)(windows_of(truth))[HEAD]
    views = list(itertools.chain.from_iterable(itertools.combinations(mirror, n) for n in range(axes + 1)))
    count = len(np.unique(truth)) - 1  # slots that are empty are not kept
    assert 1 < count < SLOTS
    assert said.shape == (1, 2 * len(views), count, 2 + 2 * axes + MASK**axes)
    plain = perfect_slots(truth, count, MASK)
    scores = []
    for part in said.unbind(1):
        slots = Slots.unpack(part, axes, MASK)
        scores.append(float(slots.scores.max()))
        filled = slots.classes[0] > 0
        assert torch.equal(slots.classes, plain.classes)
        assert torch.allclose(slots.boxes[0, filled], plain.boxes[0, filled], atol=1e-4)
        assert torch.equal(slots.masks[0, filled], plain.masks[0, filled])
    assert sorted(scores) == pytest.approx([0.5] * len(views) + [0.9] * len(views))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("networks", [1, 3])
def test_views_and_networks_are_one_object_each(networks):
    truth = scattered((70, 90), 25, (2, 9), 4)
    ensemble = ensemble_of([Seeing(0.6 + 0.1 * k) for k in range(networks)], 2)
    found = found_in(truth, (48, 48), MASK, slots=SLOTS, run=ensemble.runner((0, 1)))
    codes, scores = painted(found)
    assert same_objects(codes, truth)
    assert len(found) == len(np.unique(truth)) - 1
    mean = sum(0.6 + 0.1 * k for k in range(networks)) / networks
    assert list(scores.values()) == pytest.approx([mean] * len(found), abs=0.03)


@pytest.mark.usefixtures("exact")
def test_maps_beside_objects_are_averaged_as_ever():
    truth = scattered((24, 28), 8, (2, 6), 5)
    networks = (Seeing(0.9, maps=True), Seeing(0.5, maps=True))
    said = ensemble_of(networks, 2, maps=True).runner((1,))(windows_of(truth))
    classes = torch.from_numpy(truth >> NUMBER_BITS).float()
    assert set(said) == {"dense", HEAD}
    assert torch.allclose(said["dense"], 0.7 * classes[None, None])
    assert said[HEAD].shape[1:3] == (4, len(np.unique(truth)) - 1)


@pytest.mark.usefixtures("exact")
def test_where_memory_runs_out_slots_are_the_same():
    truth = [scattered((24, 28), 8, (2, 6), seed) for seed in range(4)]
    batch = Batch(torch.cat([windows_of(one).image for one in truth]))
    plenty, tight = Seeing(), Seeing(most=1)
    expected = ensemble_of((plenty,), 2).runner((0,))(batch)[HEAD]
    ensemble = ensemble_of((tight,), 2)
    assert torch.equal(ensemble.runner((0,))(batch)[HEAD], expected)
    assert ensemble.batch_size == 1
    assert tight.seen[0] == 4
    assert tight.seen[-1] == 1


def test_batches_are_bounded_by_slots_not_by_voxels(plan3d, monkeypatch):
    """A window has its slots whatever its size."""
    plan3d = plan3d.model_copy(update={"inference": plan3d.inference.model_copy(update={"mirror": (0, 2)})})
    kept = 5 * 4  # of all networks and views
    monkeypatch.setattr(engine, "LARGEST_OUTPUTS", 3 * kept * 4 * 50 * (2 + 6 + 7**3))
    head = ObjectHead(HEAD, slots=50, mask=7, axes=3)
    assert head.numbers(plan3d.window) == head.numbers((1, 1, 1)) == 50 * (2 + 6 + 343)
    assert Head("maps", 3).numbers((4, 5, 6)) == 360
    task = SimpleNamespace(plan=plan3d, heads=(head,))
    assert batch_size(task, CPU, 1e6, 5) == 3
    assert batch_size(task, CPU, 1e6, 1) == 4
