from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import make_plan

from medseg.case import Batch, Case, PreparedCase
from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.domains.base import find_domain
from medseg.domains.grid.maps import VectorMap
from medseg.domains.grid.measure import measure_case
from medseg.domains.grid.objects import measure_objects
from medseg.domains.grid.sampling import window_locations
from medseg.geometry import Grid
from medseg.imaging.warp import rotation_matrices, sampling_grid, warp
from medseg.models.base import Head
from medseg.prediction import DenseMap

LABELS = Labels(classes=(LabelClass(name="tissue", values=(1,)), LabelClass(name="cell", values=(2,))), things=("cell",))


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def example() -> np.ndarray:
    """Two cells that touch, one alone of one voxel, and tissue."""
    codes = np.zeros((10, 12), np.int32)
    codes[1:3, 1:7], codes[3:5, 1:4], codes[8, 8], codes[6, :] = code(2, 1), code(2, 2), code(2, 3), code(1)
    return codes


def test_objects_are_measured():
    (cell,) = measure_objects(example(), LABELS, (1.0, 0.5))
    assert (cell.name, cell.count) == ("cell", 3)
    assert cell.sizes == (1, 1, 1, 6, 12, 12, 12)
    assert cell.extents == (1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0)
    assert cell.aspects[0] == pytest.approx(2 / 1.5, rel=1e-5)
    assert cell.touching == pytest.approx(2 / 3, abs=1e-6)
    (none,) = measure_objects(np.zeros((4, 4), np.uint8), LABELS, (1.0, 1.0))
    assert (none.count, none.sizes, none.touching) == (0, (), 0.0)
    assert measure_objects(np.ones((4, 4), np.uint8), Labels(classes=LABELS.classes), (1.0, 1.0)) == ()


def test_objects_of_other_classes_are_no_neighbours():
    two = Labels(classes=LABELS.classes, things=("tissue", "cell"))
    codes = np.zeros((6, 6), np.int32)
    codes[1:3, 1:5], codes[3:5, 1:3], codes[3:5, 4] = code(2, 1), code(1, 2), code(1, 3)
    assert [one.touching for one in measure_objects(codes, two, (1.0, 1.0))] == [0.0, 0.0]
    codes[3:5, 3] = code(1, 4)
    assert [one.touching for one in measure_objects(codes, two, (1.0, 1.0))] == [1.0, 0.0]


def test_a_class_of_things_counts_objects():
    image = np.arange(120, dtype=np.float32).reshape(1, 10, 12) + 1
    case = Case("x", image, example(), Grid.plain((10, 12)))
    found = measure_case(case, LABELS, "0")
    assert [(c.voxels, c.components) for c in found.classes] == [(12, 1), (19, 3)]
    assert found.classes[1].sizes == (1, 1, 6, 12, 12)
    assert found.objects[0].count == 3
    plain = measure_case(Case("x", image, example() >> NUMBER_BITS, case.grid), Labels(classes=LABELS.classes), "0")
    assert plain.classes[1].components == 2
    assert '"objects"' not in plain.to_json()
    assert plain.channels == found.channels


def test_windows_are_shared_by_objects_that_touch():
    codes = np.full((40, 40), code(2, 1), np.int32)
    codes[0, 0] = code(2, 2)
    tissue, cells = window_locations(codes, LABELS)
    assert len(tissue) == 0
    assert np.count_nonzero((cells == 0).all(1)) > 100  # every second of half of them
    assert (codes[tuple(cells.T)] == code(2, 1)).any()


def test_codes_move_with_the_image():
    """Every object keeps its code when windows are turned, also where float32 would round it."""
    high = 2 << NUMBER_BITS | 65_521
    label = torch.zeros(1, 9, 9, dtype=torch.int32)
    label[0, 1, 2], label[0, 6:, 5:] = high, (32_000 << NUMBER_BITS) + 1
    matrix = rotation_matrices(torch.tensor([[torch.pi / 2]]), 2)
    grid = sampling_grid((9, 9), (9, 9), matrix, torch.zeros(1, 2))
    moved_image, (moved, prior) = warp(label[:, None].float(), (label, (label > 0).to(torch.int16)), ((), (0, 1)), grid)
    assert moved.dtype == torch.int32
    assert sorted(moved.unique().tolist()) == sorted(label.unique().tolist())
    assert torch.equal(moved > 0, prior > 0)
    assert torch.equal(moved > 0, moved_image[:, 0] > 0.5)


def test_windows_and_augmentation_keep_codes():
    plan = make_plan(LABELS, 2, shape=(1, 64, 64), task="instance")
    domain = find_domain("grid")(plan)
    codes = np.zeros((64, 64), np.int32)
    codes[20:40, 20:40], codes[20:40, 40:60] = code(2, 65_535), code(2, 12)
    case = PreparedCase("x", np.zeros((1, 64, 64), np.float16), codes, domain.locations(codes), Grid.plain((64, 64)), ())
    window = domain.sample(case, np.random.default_rng(0), 1)
    assert window.label.dtype == np.int32
    empty = PreparedCase("y", case.image, np.zeros((64, 64), np.uint8), (), case.native, ())
    assert domain.sample(empty, np.random.default_rng(0), None).label.dtype == np.int32
    batch = Batch(torch.from_numpy(window.image)[None].repeat(8, 1, 1, 1), torch.from_numpy(window.label)[None].repeat(8, 1, 1))
    moved = domain.augment(batch, torch.Generator().manual_seed(0)).label
    assert moved.dtype == torch.int32
    assert set(moved.unique().tolist()) == {0, code(2, 65_535), code(2, 12)}


class Whole(DenseMap):
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def slabs(self):
        for row in range(0, self.shape[1], 2):
            yield slice(row, min(row + 2, self.shape[1])), self.values[:, row : row + 2]


@pytest.mark.parametrize("spatial", [(10, 4), (3, 8), (5, 6), (1, 3), (23, 17)])
def test_displacements_on_another_grid(spatial):
    """All lead to one place before; all lead to the same place afterwards, within the size of a voxel before."""
    before = np.stack(np.mgrid[:5, :6]).astype(np.float32)
    source = Whole(np.array([2.0, 3.0], np.float32)[:, None, None] - before)
    found = VectorMap(source, spatial)
    rows, parts = zip(*found.slabs(), strict=True)
    assert [r.start for r in rows] == [0, *(r.stop for r in rows[:-1])]
    assert rows[-1].stop == spatial[0]
    values = np.concatenate(parts, 1)
    assert values.shape == found.shape == (2, *spatial)
    factors = np.array(spatial) / (5, 6)
    goal = (np.stack(np.mgrid[: spatial[0], : spatial[1]]) + 0.5) / factors[:, None, None] - 0.5 + values / factors[:, None, None]
    assert np.abs(goal - np.array([2, 3])[:, None, None]).max() <= 0.5 + 1e-6
    if spatial == (5, 6):
        assert np.array_equal(values, source.values)


def test_displacements_turn_round_in_mirrored_views():
    maps = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).reshape(2, 2, 3, 4)
    vector, plain = Head("a", 2, vector=True), Head("b", 2)
    assert plain.turned(maps, (1,)) is maps
    assert vector.turned(maps, ()) is maps
    assert torch.equal(vector.turned(maps, (1,))[:, 0], maps[:, 0])
    assert torch.equal(vector.turned(maps, (1,))[:, 1], -maps[:, 1])
    assert torch.equal(vector.turned(maps, (0, 1)), -maps)
