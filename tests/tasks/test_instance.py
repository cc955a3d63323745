from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from slabs import Slabs
from synthetic import REGIONS, TWO, make_dataset, make_fingerprint_of, make_plan

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.errors import ImageError, PlanError
from medseg.fingerprint import OBJECT_QUANTILES, ObjectStats
from medseg.prediction import Prediction
from medseg.scratch import Scratch
from medseg.tasks.base import Frame
from medseg.tasks.instance import Instance, voting
from medseg.tasks.instance.voting import group_voxels
from medseg.tasks.semantic import Semantic

THINGS = TWO.as_objects("components")
STUFF = Labels(
    classes=(LabelClass(name="tissue", values=(1,)), LabelClass(name="cell", values=(2, 5)), LabelClass(name="vessel", values=(3,))),
    ignore=9,
    things=("cell", "vessel"),
)


def task_of(labels: Labels, ndim: int = 2) -> Instance:
    plan = make_plan(labels, ndim, shape=(32, 64, 64), task="instance").edited({"target.head.smallest": "1"})
    return Instance(plan)


@pytest.fixture(scope="module")
def tasks() -> dict[int, Instance]:
    return {ndim: task_of(STUFF, ndim) for ndim in (2, 3)}


def batch(codes: NDArray[np.int32]) -> Batch:
    return Batch(torch.zeros(1, 1, *codes.shape), torch.from_numpy(codes)[None])


def perfect(task: Instance, codes: NDArray[np.int32], **how: bool) -> Prediction:
    outputs = task.oracle(task.targets(batch(codes)))
    assert {name: maps.shape[1] for name, maps in outputs.items()} == {head.name: head.channels for head in task.heads}
    return task.decode({name: Slabs(maps[0].numpy()) for name, maps in outputs.items()}, "x", **how)


def same_objects(found: NDArray[np.int32], codes: NDArray[np.int32]) -> bool:
    """The same voxels belong together, with the same class, whatever their numbers."""
    pairs = np.unique(np.stack([found.ravel(), codes.ravel()]), axis=1)
    one_to_one = len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]
    return one_to_one and bool((pairs[0] >> NUMBER_BITS == pairs[1] >> NUMBER_BITS).all())


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def crowded(ndim: int) -> NDArray[np.int32]:
    """Touching blocks that fill the image to all borders, among them some of one voxel, on stuff."""
    codes = np.full((12, 20, 24)[-ndim:], code(1), np.int32)
    codes[..., :6, :8] = code(2, 1)
    codes[..., :6, 8:16] = code(2, 2)
    codes[..., 6:12, :8] = code(3, 3)
    codes[..., -1, -1] = code(3, 4)
    codes[..., -1, -2] = code(2, 5)
    codes[..., 12:, 0] = code(2, 6)
    codes[..., 12:, 1] = code(2, 7)
    codes[..., 2, 2] = code(2, 8)  # within another
    if ndim == 3:
        codes[1:] = np.where(codes[1:] & 0xFFFF, codes[1:] + 20, codes[1:])
    return codes


@pytest.mark.parametrize("ndim", [2, 3])
def test_perfect_outputs_give_the_same_objects(tasks, ndim):
    codes = crowded(ndim)
    found = perfect(tasks[ndim], codes).labels
    assert found.dtype == np.int32
    assert same_objects(found, codes)
    scores = tasks[ndim].score(found, codes, (1.0,) * ndim)
    assert {name: row["pq"] for name, row in scores.items()} == {"tissue": 1.0, "cell": 1.0, "vessel": 1.0}
    assert all(value == 1.0 for row in scores.values() for value in row.values())


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_perfect_outputs_of_any_regions(tasks, seed, count):
    """Objects of any shape and size, touching each other, in pieces, around each other."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, count + 1, (8, 9)).repeat(rng.integers(1, 4), 0).repeat(rng.integers(1, 4), 1)
    codes = np.where(numbers, (2 + numbers % 2) << NUMBER_BITS | numbers, 0).astype(np.int32)
    assert same_objects(perfect(tasks[2], codes).labels, codes)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["nothing", "one voxel", "everything", "ignored", "one object"])
def test_empty_and_extreme_cases(tasks, kind, ndim):
    task, codes = tasks[ndim], np.zeros((16, 16, 16)[-ndim:], np.int32)
    if kind == "one voxel":
        codes[(3,) * ndim] = code(2, 1)
    elif kind == "everything":
        codes[...] = code(5, 77)
    elif kind == "ignored":
        codes[...] = code(9)
    elif kind == "one object":
        codes[(slice(4, 9),) * ndim] = code(3, 12)
    targets = task.targets(batch(codes))
    outputs = {head.name: [torch.zeros(1, head.channels, *codes.shape, requires_grad=True)] for head in task.heads}
    total = sum(task.loss(outputs, targets).values())
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(maps[0].grad).all() for maps in outputs.values())
    found = perfect(task, codes).labels
    if kind == "ignored":
        assert not found.any()
    elif kind == "everything":
        assert np.unique(found).tolist() == [code(2, 1)]  # the class is written as its first value
    else:
        assert same_objects(found, codes)


def test_five_hundred_objects(tasks):
    numbers = np.arange(1, 501).reshape(20, 25).repeat(4, 0).repeat(3, 1)
    found = perfect(tasks[2], (numbers | 2 << NUMBER_BITS).astype(np.int32)).labels
    assert np.array_equal(found & 0xFFFF, numbers)  # numbered in index order


def test_more_objects_than_codes_can_number(tasks, monkeypatch):
    monkeypatch.setattr("medseg.imaging.painting.MOST_OBJECTS", 1)
    with pytest.raises(
        ImageError, match=r"case 'x': more objects were found than can be numbered; found \d+, expected at most 1\. Cut the image"
    ):
        perfect(tasks[2], crowded(2))


def test_the_loss_of_an_offset_is_counted_in_radii(tasks):
    """A way that misses by as much of the radius costs the same for a small and a large object."""
    task, losses = tasks[2], []
    for size in (4, 16):
        codes = np.zeros((32, 32), np.int32)
        codes[4 : 4 + size, 4 : 4 + size] = code(2, 1)
        targets = task.targets(batch(codes))
        outputs = {name: [maps] for name, maps in task.oracle(targets).items()}
        assert sum(float(term) for term in task.loss(outputs, targets).values()) < 0.01
        outputs["offsets"] = [outputs["offsets"][0] + 0.25 * size / task.head.settings.scale[0]]
        losses.append(float(task.loss(outputs, targets)["offset"]))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] == pytest.approx(task.head.settings.offset * 0.25 * np.sqrt(np.pi), rel=1e-5)


def test_votes_that_scatter_are_one_object_and_neighbours_stay_two():
    """Disks of radius 10 that touch, with votes that miss the centre by two voxels."""
    rows, columns = np.mgrid[:40, :64]
    centres = ((20, 16), (20, 37), (8, 52))
    radii = (10, 10, 4)
    truth, offsets = np.zeros((40, 64), np.int32), np.zeros((2, 40, 64))
    for number, ((y, x), r) in enumerate(zip(centres, radii, strict=True), 1):
        inside = (rows - y) ** 2 + (columns - x) ** 2 <= r**2
        truth[inside] = number
        offsets[:, inside] = np.array([y - rows, x - columns])[:, inside]
    rng = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter

    for strength in (0.0, 0.5, 1.0, 2.0):
        noise = np.stack([gaussian_filter(rng.standard_normal((40, 64)), 2) for _ in range(2)])
        found = group_voxels(truth > 0, offsets + strength * noise / noise.std(), 1, 1.25)
        overlap = [np.bincount(found[truth == n]).max() / (truth == n).sum() for n in (1, 2, 3)]
        assert min(overlap) > 0.9, strength
        assert len({int(np.bincount(found[truth == n]).argmax()) for n in (1, 2, 3)}) == 3


@pytest.mark.parametrize("slices", [1, 3])
def test_an_object_in_the_middle_of_one_of_another_class(slices):
    """Both vote for nearly the same centre; where classes are sure they stay two, where they are not they are one."""
    rows, columns = np.mgrid[:40, :40]
    distance = np.hypot(rows - 20, columns - 20)
    truth = np.where(distance <= 5, 2, np.where(distance <= 15, 1, 0))
    rng = np.random.default_rng(0)
    offsets = np.stack([20 - rows, 20 - columns]) + rng.normal(0, 1.5, (2, 40, 40))
    stack = np.repeat(truth[None], slices, 0)
    ways = np.repeat(offsets[:, None], slices, 1)
    for sure, count in ((0.95, 2), (0.6, 1)):
        chances = np.stack([np.where(stack == k, sure, 1 - sure) for k in (1, 2)])
        found = group_voxels(stack > 0, ways, 20, 2.0, chances=chances)
        assert len(np.unique(found[stack == 1])) == len(np.unique(found[stack == 2])) == 1
        assert found.max() == count
    assert group_voxels(stack > 0, ways, 20, 2.0).max() == 1


@pytest.mark.parametrize("axes", [2, 3])
def test_groups_do_not_depend_on_the_slabs_in_which_they_are_found(monkeypatch, axes):
    from scipy import ndimage

    rng = np.random.default_rng(axes)
    truth, count = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(24, 20, 16)), 1.5) > 0.1)
    centres = np.array(ndimage.center_of_mass(truth > 0, truth, range(1, count + 1))).T[-axes:]
    offsets = np.concatenate([np.zeros((axes, 1)), centres], 1)[:, truth] - np.indices(truth.shape)[-axes:]
    offsets += rng.normal(0, 0.7, offsets.shape)
    chances = list(rng.uniform(0.01, 1, (2, *truth.shape)))
    whole = group_voxels(truth > 0, offsets, 3, 1.5, chances=chances)
    assert whole.max() > 5
    first = np.unique(whole, return_index=True)[1][1:]
    assert (np.diff(first) > 0).all()
    for together in (1, 20 * 16 * 3):
        monkeypatch.setattr(voting, "TOGETHER", together)
        assert (group_voxels(truth > 0, offsets, 3, 1.5, chances=chances, scratch=Scratch(0)) == whole).all()


@pytest.mark.parametrize("together", [1, 40, 2**20])
def test_near_centres_are_those_of_all_pairs(monkeypatch, together):
    """Spreads differ a thousandfold; some centres are the same, some groups do not spread at all."""
    monkeypatch.setattr(voting, "TOGETHER", together)
    rng = np.random.default_rng(together)
    centres = rng.uniform(0, 100, (2, 120))
    centres[:, 100:] = centres[:, :20]
    spread = 10 ** rng.uniform(-2, 1, 120)
    spread[::7] = 0
    spread[:30] = 0.5
    apart = np.linalg.norm(centres[:, :, None] - centres[:, None], axis=0)
    expected = (apart <= 1.5 * (spread[:, None] + spread)) & ~np.eye(120, dtype=bool)
    found = np.zeros_like(expected)
    for one, other in voting._near(centres, spread, 1.5):
        found[one, other] = found[other, one] = True
    assert np.array_equal(found, expected)
    assert expected.sum() > 60


def test_one_group_that_strays_does_not_make_all_others_look_far():
    """A large object with votes all over it, beside thousands of small ones that all are themselves."""
    rows, columns = np.mgrid[:320, :320]
    large = (rows - 160) ** 2 + (columns - 82) ** 2 < 80**2
    small = (rows % 4 == 0) & (columns % 4 == 0) & (columns > 240)
    offsets = np.zeros((2, 320, 320), np.float32)
    offsets[:, large] = np.stack([160 - rows, 82 - columns])[:, large] + np.random.default_rng(0).normal(0, 27, (2, int(large.sum())))
    tracemalloc.start()
    found = group_voxels(large | small, offsets, 1, 2.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.max() > small.sum() == 1520
    assert peak < 20 * 2**20


@pytest.mark.parametrize("axes", [2, 3])
def test_what_touches_is_one_object_where_objects_cannot(monkeypatch, axes):
    """Votes that divide them do not count: objects are the connected components of each class, with corners, also across slices."""
    from scipy import ndimage

    rng = np.random.default_rng(axes)
    noise = ndimage.gaussian_filter(rng.normal(size=(12, 20, 16)), 1.2)
    truth = np.where(noise > 0.12, 1, np.where(noise < -0.12, 2, 0))
    offsets = rng.uniform(-0.4, 0.4, (axes, *truth.shape))  # each voxel for itself
    corners = np.ones((3, 3, 3))

    def alike(found: NDArray[np.integer], other: NDArray[np.integer]) -> bool:
        pairs = np.unique(np.stack([found.ravel(), other.ravel()]), axis=1)
        return len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]

    expected = [ndimage.label(truth == k, corners)[0] for k in (1, 2)]
    both = expected[0] + np.where(truth == 2, expected[0].max() + expected[1], 0)
    chances = [np.where(truth == k, 0.95, 0.05) for k in (1, 2)]
    for together in (1, 20 * 16 * 3, 2**20):
        monkeypatch.setattr(voting, "TOGETHER", together)
        assert alike(group_voxels(truth > 0, offsets, 1, 1.0, chances=chances, scratch=Scratch(0), touching="corners"), both)
    assert alike(group_voxels(truth > 0, offsets, 1, 1.0, touching="corners"), ndimage.label(truth > 0, corners)[0])
    assert alike(group_voxels(truth > 0, offsets, 1, 1.0, touching="faces"), ndimage.label(truth > 0)[0])
    assert group_voxels(truth > 0, offsets, 1, 1.0).max() > both.max()


def test_each_component_counts_the_same():
    """Where components are the objects, to miss a small one of two costs half of the blob loss; elsewhere there is none."""
    task = task_of(THINGS)
    codes = np.zeros((64, 64), np.int32)
    codes[4:34, 4:34], codes[50:52, 50:52] = code(THINGS.values[0], 1), code(THINGS.values[0], 2)
    targets = task.targets(batch(codes))
    outputs = task.oracle(targets)
    assert all(float(term) < 0.01 for term in task.loss({name: [maps] for name, maps in outputs.items()}, targets).values())
    missed = outputs["classes"].clone()
    missed[0, :, 50:52, 50:52] = missed[0, :, :1, :1].squeeze(-1).squeeze(-1)[:, None, None]
    terms = task.loss({**{name: [maps] for name, maps in outputs.items()}, "classes": [missed]}, targets)
    assert float(terms["blob"]) == pytest.approx(0.5, abs=0.01)
    assert float(terms["dice"]) < 0.5
    numbered = task_of(THINGS.model_copy(update={"objects": "codes"}))
    assert set(numbered.loss({name: [maps] for name, maps in outputs.items()}, numbered.targets(batch(codes)))) == {
        "dice",
        "cross_entropy",
        "offset",
    }


def test_errors_along_thick_slices_count_by_the_sides_of_objects():
    """Where objects have a tenth of the voxels along an axis, a voxel there is ten times as far: in the loss, and between votes."""
    plan = make_plan(STUFF, 3, shape=(32, 64, 64), task="instance").edited(
        {"target.head.smallest": "1", "target.head.scale": "[1, 10, 10]"}
    )
    task = Instance(plan)
    codes = np.zeros((8, 32, 32), np.int32)
    codes[3:5, 4:24, 4:24] = code(2, 1)
    targets = task.targets(batch(codes))
    losses = []
    for way in ((1, 0, 0), (0, 10, 0), (0, 1, 0)):
        outputs = {name: [maps] for name, maps in task.oracle(targets).items()}
        moved = torch.tensor(way).view(1, 3, 1, 1, 1) / torch.tensor([1, 10, 10]).view(1, 3, 1, 1, 1)
        outputs["offsets"] = [outputs["offsets"][0] + moved]
        losses.append(float(task.loss(outputs, targets)["offset"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) == pytest.approx(10 * losses[2], rel=1e-4)
    radius = (codes.astype(bool).sum() * 3 / (4 * np.pi)) ** (1 / 3)
    assert losses[0] == pytest.approx(task.head.settings.offset * 100 ** (1 / 3) / radius / 3, rel=1e-3)
    with pytest.raises(
        PlanError, match=r"target.head.scale: the scale of offsets is not one of a window's axes; found .1.0, 10.0., expected 3 numbers"
    ):
        _ = Instance(plan.edited({"target.head.scale": "[1, 10]"})).head


def test_votes_scatter_more_in_planes_than_across_slices():
    """Two flat objects over each other: votes miss by voxels of the plane, slices between their centres are as far as ten of them."""
    rng = np.random.default_rng(0)
    things = np.ones((4, 20, 20), bool)
    place = np.indices(things.shape)
    centre = np.array([np.where(place[0] < 2, 0, 3), np.full(things.shape, 10), np.full(things.shape, 10)])
    offsets = centre - place + np.array([0, 2, 2]).reshape(3, 1, 1, 1) * rng.normal(size=(3, *things.shape))
    for scale, count in (((1.0, 1.0, 1.0), 1), ((1.0, 10.0, 10.0), 2)):
        ways = offsets / np.array(scale).reshape(3, 1, 1, 1)
        assert group_voxels(things, ways, 50, 2.0, scale).max() == count


def test_small_groups_are_dropped_and_votes_beyond_the_image_stay_in_it():
    things = np.zeros((6, 9), bool)
    things[1:4, 1:4] = things[5, 8] = True
    offsets = np.zeros((2, 6, 9))
    offsets[:, 1:4, 1:4] = np.array([2 - np.mgrid[1:4, 1:4][0], 2 - np.mgrid[1:4, 1:4][1]])
    offsets[:, 5, 8] = 50
    assert np.unique(group_voxels(things, offsets, 1, 1.25)).tolist() == [0, 1, 2]
    kept = group_voxels(things, offsets, 2, 1.25)
    assert np.unique(kept).tolist() == [0, 1]
    assert kept[5, 8] == 0


def test_objects_of_slices_are_one_where_they_lie_over_each_other():
    truth = np.zeros((4, 12, 12), np.int32)
    truth[:3, 1:5, 1:5], truth[1:, 1:5, 5:9], truth[0, 8:, 8:], truth[1, 6:9, 6:9] = 1, 2, 3, 4
    offsets = np.zeros((2, 4, 12, 12))
    for z, one in enumerate(truth):
        for number in np.unique(one[one > 0]):
            places = np.stack(np.nonzero(one == number))
            offsets[:, z, *places] = np.rint(places.mean(1))[:, None] - places
    found = group_voxels(truth > 0, offsets, 1, 1.25)
    assert same_objects(found, truth)


def test_needs():
    dataset = make_dataset(TWO, 2)
    needs = Instance.needs(dataset, make_fingerprint_of(dataset, (50, 50), (1.0, 1.0), (314, 100)))
    assert needs.labels == THINGS
    assert needs.target.head.smallest == 50  # half of the smaller of two
    assert needs.target.head.scale == (4.0, 4.0)  # no objects have been measured
    assert set(needs.reasons) == {f"head.{name}" for name in type(needs.target.head).model_fields}
    regions, things = make_dataset(REGIONS, 2), make_dataset(THINGS, 2)
    of_regions, of_things = (make_fingerprint_of(one, (50, 50), (1.0, 1.0)) for one in (regions, things))
    with pytest.raises(PlanError, match="regions that overlap have no separate objects"):
        Instance.needs(regions, of_regions)
    with pytest.raises(PlanError, match=r"tell objects apart are not for this task.*objects of anterior, posterior"):
        Semantic.needs(things, of_things)


@pytest.mark.parametrize(("side", "overlap"), [(10, 0.25), (30, 0.75), (60, 0.75)])
def test_windows_overlap_so_that_objects_are_whole_in_one(side, overlap):
    """What a window shows of an object has a centre of its own: votes of windows that cut it differently contradict each other."""
    dataset = make_dataset(THINGS, 2)
    fingerprint = make_fingerprint_of(dataset, (100, 100), (1.0, 1.0))
    names = dataset.labels.things
    objects = tuple(
        ObjectStats(
            name=n,
            count=1,
            sizes=(side**2,) * len(OBJECT_QUANTILES),
            extents=(side,) * len(OBJECT_QUANTILES),
            aspects=(1.0,) * len(OBJECT_QUANTILES),
            boxes=((side, side),),
            touching=0.0,
        )
        for n in names
    )
    cases = tuple(case.model_copy(update={"objects": objects}) for case in fingerprint.cases)
    fingerprint = fingerprint.model_copy(update={"cases": cases})
    needs = Instance.needs(dataset, fingerprint)
    fitted = Instance.fit(needs, fingerprint, Frame((40, 40), (1.0, 1.0), (0, 1), ((1, 1), (2, 2)), "cpu"))
    assert fitted.overlap == overlap
    assert f"{side} x {side} voxels" in fitted.overlap_because


def test_uncertainty(tasks):
    sure = perfect(tasks[2], crowded(2), probabilities=True, uncertainty=True)
    assert sure.uncertainty < 1e-3
    with pytest.raises(ValueError, match="are not combined"):
        tasks[2].combine([sure, sure], "x")
