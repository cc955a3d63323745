"""Mask R-CNN and YOLACT as ways to find objects: targets, losses, and what comes of perfect outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from slabs import Slabs
from synthetic import make_dataset, make_fingerprint_of

from medseg.case import Batch, PreparedCase
from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.device import Machine
from medseg.domains.base import find_domain
from medseg.errors import PlanError
from medseg.fingerprint import ObjectStats
from medseg.geometry import Grid
from medseg.models.base import ObjectHead
from medseg.planning.memory import training_cost
from medseg.planning.planner import make_plans
from medseg.prediction import FoundObjects
from medseg.tasks.base import find_task
from medseg.tasks.instance.task import OF_DATA

STUFF = Labels(
    classes=(LabelClass(name="tissue", values=(1,)), LabelClass(name="cell", values=(2, 5)), LabelClass(name="vessel", values=(3,))),
    ignore=9,
    things=("cell", "vessel"),
)
SMALL = {
    2: {"window": "[64, 64]", "network.features": "[8, 8, 16]", "network.strides": "[[1,1],[2,2],[2,2]]", "network.kernels": "[[3,3],[3,3],[3,3]]"},
    3: {
        "window": "[16, 32, 32]", "network.features": "[8, 8, 16]", "network.strides": "[[1,1,1],[2,2,2],[2,2,2]]",
        "network.kernels": "[[3,3,3],[3,3,3],[3,3,3]]",
    },
}  # fmt: skip
DEEP = {"network.encoder": "[0, 0, 0]", "network.decoder": "[0, 0]"}
SHAPES = {2: (96, 96), 3: (24, 48, 48)}


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def make_task(network: str, ndim: int, task: str = "instance"):
    dataset = make_dataset(STUFF, ndim)
    fingerprint = make_fingerprint_of(dataset, SHAPES[ndim], (1.0,) * ndim)
    objects = tuple(
        ObjectStats(name=name, count=12, sizes=(40,) * 7, boxes=((6.0,) * ndim, (9.0,) * ndim, (14.0,) * ndim), touching=0.2)
        for name in STUFF.things
    )
    fingerprint = fingerprint.model_copy(update={"cases": tuple(c.model_copy(update={"objects": objects}) for c in fingerprint.cases)})
    plans = make_plans(dataset, fingerprint, task=task, domain="grid", network=network, machine=Machine("cpu", 8.0))
    plan = next(p for p in plans if p.recommended)
    levels = {"target.head.levels": "[1]", "target.head.anchors": str([[[7.0] * ndim, [12.0] * ndim]])}
    detector = {} if network == "dense" else {**levels, "target.head.channels": "16", "target.head.mask": "14"}
    return find_task(task)(plan.edited({**SMALL[ndim], **DEEP, **detector, "target.head.smallest": "1"}))


def test_detectors_learn_as_one_network():
    several, one, also = (make_task(network, 2).plan for network in ("dense", "mask-rcnn", "yolact"))
    assert several.training.networks > one.training.networks == also.training.networks == 1
    assert "one learns for longer" in one.reasons["training.networks"]


@pytest.fixture(scope="module", params=[("mask-rcnn", 2), ("mask-rcnn", 3), ("yolact", 2), ("yolact", 3)], ids=lambda p: f"{p[0]}-{p[1]}d")
def task(request):
    return make_task(*request.param)


def scene(ndim: int, seed: int = 0) -> NDArray[np.int32]:
    """Boxes of several sizes on stuff; some touch, some reach the border."""
    rng = np.random.default_rng(seed)
    codes = np.full(SHAPES[ndim], code(1), np.int32)
    codes[..., : SHAPES[ndim][-1] // 3] = 0
    number = 0
    for _ in range(60):
        low = [int(rng.integers(0, n - 4)) for n in codes.shape]
        place = tuple(slice(a, a + int(rng.integers(4, 13))) for a in low)
        if not (codes[place] & 0xFFFF).any():
            number += 1
            codes[place] = code((2, 3)[number % 2], number)
    return codes


def batch(task, codes: NDArray[np.int32]) -> Batch:
    window = tuple(slice(0, n) for n in task.plan.window)
    label = torch.from_numpy(np.ascontiguousarray(codes[window]))[None]
    return Batch(torch.randn(1, len(task.plan.data.channels), *task.plan.window), label)


def found_in(task, codes: NDArray[np.int32], **how: bool):
    """What comes of a perfect network that is run over windows of a case."""
    domain = find_domain(task.plan.domain)(task.plan)

    def run(windows: Batch) -> dict[str, torch.Tensor]:
        outputs = task.oracle(task.targets(Batch(windows.image, windows.image[:, 0].to(torch.int32))))
        one_view = {head.name for head in task.heads if isinstance(head, ObjectHead)}
        return {head.name: outputs[head.name][:, None] if head.name in one_view else outputs[head.name] for head in task.heads}

    shown = np.repeat(codes[None].astype(np.float32), len(task.plan.data.channels), 0)
    case = PreparedCase("x", shown, None, (), Grid.plain(codes.shape), ())
    return task.decode(domain.stitch(case, run, task.heads, 2, 2**30), "x", **how)


def test_perfect_networks_find_all_objects_of_a_case(task):
    """Windows are smaller than the case, so some cut objects."""
    codes = scene(len(task.plan.window))
    prediction = found_in(task, codes)
    scores = task.score(prediction.labels, codes, (1.0,) * codes.ndim)
    assert {name: row["pq"] for name, row in scores.items()} == pytest.approx(dict.fromkeys(STUFF.names, 1.0), abs=0.03)
    assert min(row["object_accuracy"] for row in scores.values()) == 1.0
    assert set(prediction.objects) == {int(v) for v in np.unique(prediction.labels) if v & 0xFFFF}
    assert min(prediction.objects.values()) > 0.99


def test_what_is_no_object_is_background_or_stuff(task):
    prediction = found_in(task, scene(len(task.plan.window)), probabilities=True, uncertainty=True)
    values = prediction.labels >> NUMBER_BITS
    assert not ((values == 2) | (values == 3))[prediction.labels & 0xFFFF == 0].any()
    assert prediction.probabilities.shape == (4, *prediction.labels.shape)
    assert np.array_equal(prediction.probabilities.argmax(0)[values == 1], np.full((values == 1).sum(), 1))
    assert prediction.probabilities.astype(np.float32).sum(0).max() < 2.01  # two objects may overlap, as far as masks are soft
    assert 0 <= prediction.uncertainty < 0.1


@pytest.mark.parametrize("kind", ["nothing", "one voxel", "everything", "ignored", "one object", "five hundred"])
def test_a_step_on_any_windows_is_finite(task, kind):
    window = task.plan.window
    codes = np.zeros(window, np.int32)
    if kind == "one voxel":
        codes[(3,) * codes.ndim] = code(2, 1)
    elif kind == "everything":
        codes[...] = code(5, 77)
    elif kind == "ignored":
        codes[...] = code(9)
    elif kind == "one object":
        codes[(slice(4, 9),) * codes.ndim] = code(3, 12)
    elif kind == "five hundred":
        rows = np.arange(codes.size).reshape(window)
        codes[...] = code(2) + 1 + rows % 500
    torch.manual_seed(0)
    network = task.network().train()
    shown = batch(task, codes)
    targets = task.targets(shown)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task.run(network, shown, targets)
    terms = task.loss(outputs, targets)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    if kind in ("nothing", "ignored"):
        assert not found_in(task, np.zeros(SHAPES[codes.ndim], np.int32) + codes.flat[0]).objects


def test_more_objects_than_places_are_no_background(task):
    codes = np.zeros(task.plan.window, np.int32)
    flat = codes.reshape(-1, codes.shape[-1])
    places = task.plan.target.head.slots
    flat[:, ::2] = (np.arange(flat[:, ::2].size).reshape(flat[:, ::2].shape) % (places + 5)) + code(2, 1)
    flat[0, 0] = code(2, 60000)
    targets = task.targets(batch(task, codes))
    listed = set(targets["codes"][0].tolist())
    assert code(2, 60000) not in listed  # the smallest of all
    assert int(targets["map"].reshape(flat.shape)[0, 0]) == -1
    assert set(torch.unique(targets["map"]).tolist()) == {-1, 0, *(listed - {0})}


def test_things_without_numbers_are_neither_objects_nor_background(task):
    """As where nobody told the objects of a crowd apart: their class is known, their objects are not."""
    codes = np.zeros(task.plan.window, np.int32)
    codes[..., :8], codes[..., 8:12], codes[..., 12:16] = code(5), code(2, 7), code(1)
    targets = task.targets(batch(task, codes))
    assert (targets["map"][..., :8] == -1).all()
    assert targets["codes"].max() == code(2, 7)
    assert targets["kinds"].sum() == 1
    assert targets["map"][..., 8:].unique().tolist() == [0, code(2, 7)]
    assert (targets["classes"][..., :8] == 2).all()


def test_uncertainty_is_a_mean_over_voxels():
    """Of an object that is sure by a half and a small sure one, beside stuff; background does not count."""
    head = make_task("mask-rcnn", 2).head
    shape = (20, 30)
    maps = np.full((4, *shape), -40, np.float32)
    maps[0] = 0
    boxes = np.array([[0, 0, 10, 10], [15, 15, 17, 17]], float)
    found = FoundObjects(shape, boxes, np.array([0.5, 1], np.float32), np.array([1, 2], np.int32), (np.full((1, 1), 255, np.uint8),) * 2)
    outputs = {"objects": found, "classes": Slabs(maps)}
    prediction = head.decode(outputs, "x", uncertainty=True)
    voxels = np.unique(prediction.labels, return_counts=True)[1].tolist()
    assert voxels == [496, 100, 4]
    assert prediction.uncertainty == pytest.approx(100 / 104, rel=1e-4)
    maps[1, :, 20:] = 1  # stuff against background, 0.73 to 0.27
    entropy = -sum(p * np.log2(p) for p in (np.e / (1 + np.e), 1 / (1 + np.e)))
    assert head.decode(outputs, "x", uncertainty=True).uncertainty == pytest.approx((100 + 200 * entropy) / 304, rel=1e-4)
    none = FoundObjects(shape, np.zeros((0, 4)), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
    alone = head.decode({"objects": none, "classes": Slabs(maps)}, "x", uncertainty=True)
    assert alone.uncertainty == pytest.approx(entropy, rel=1e-4)
    maps[1] = -40
    assert head.decode({"objects": none, "classes": Slabs(maps)}, "x", uncertainty=True).uncertainty is None


def test_a_thing_that_no_object_is_found_for_is_no_stuff():
    """Things and background are one class beside stuff, in labels and in probabilities."""
    head = make_task("mask-rcnn", 2, "panoptic").head
    maps = np.full((4, 2, 6), -40, np.float32)
    maps[1] = 0
    maps[2, :, :2] = 1  # a cell, surer than tissue
    maps[[0, 2, 3], :, 2:4] = -0.5  # each less probable than tissue, all together more
    maps[0, :, 4] = -0.5
    none = FoundObjects((2, 6), np.zeros((0, 4)), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
    prediction = head.decode({"objects": none, "classes": Slabs(maps)}, "x", probabilities=True)
    assert (prediction.labels >> NUMBER_BITS).tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    assert prediction.probabilities.argmax(0).tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    assert prediction.probabilities[0, 0].tolist() == pytest.approx(
        [np.e / (1 + np.e)] * 2 + [3 * np.exp(-0.5) / (1 + 3 * np.exp(-0.5))] * 2 + [np.exp(-0.5) / (1 + np.exp(-0.5)), 0], abs=1e-3
    )


def test_of_stuff_and_things_the_more_confident_object_has_a_voxel_that_two_claim():
    """As published; the other has what is left, and is left out where that is less than half."""
    head = make_task("mask-rcnn", 2, "panoptic").head
    maps = np.full((4, 4, 30), -40, np.float32)
    maps[1] = 0
    masks = (np.full((1, 1), 140, np.uint8), np.full((1, 1), 255, np.uint8), np.full((1, 1), 255, np.uint8))
    boxes = np.array([[0, 0, 4, 10], [0, 6, 4, 16], [0, 10, 4, 21]], float)
    found = FoundObjects((4, 30), boxes, np.array([0.9, 0.8, 0.7], np.float32), np.ones(3, np.int32), masks)
    rows = {}
    for contested in ("confident", "probable"):
        other = type(head)(head.settings.model_copy(update={"contested": contested}), head.labels, head.axes, head.levels)
        rows[contested] = (other.decode({"objects": found, "classes": Slabs(maps)}, "x").labels[0] & 0xFFFF).tolist()
    assert head.settings.contested == "confident"
    assert rows["confident"] == [1] * 10 + [2] * 6 + [0] * 14
    assert rows["probable"] == [1] * 6 + [2] * 10 + [0] * 14


@pytest.mark.parametrize("network", ["mask-rcnn", "yolact"])
def test_settings_of_stuff_are_those_of_labels_with_stuff(network):
    head = make_task(network, 2).head
    things = STUFF.model_copy(update={"things": STUFF.names})
    with pytest.raises(PlanError) as error:
        type(head)(head.settings, things, head.axes, head.levels)
    assert [problem.where for problem in error.value.problems] == ["target.head.semantic", "target.head.frequencies"]
    assert "all classes have objects" in str(error.value)
    plain = head.settings.model_copy(update={"semantic": 0.0, "frequencies": ()})
    assert len(type(head)(plain, things, head.axes, head.levels).heads) == 1
    with pytest.raises(PlanError, match="4 numbers"):
        type(head)(plain, STUFF, head.axes, head.levels)


def test_what_is_found_is_more_than_what_is_painted():
    """Unsure and hidden objects are found, and classes are those of all labels, not of things alone."""
    head = make_task("mask-rcnn", 2).head
    shape = (20, 30)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [12, 12, 18, 18]], float)
    found = FoundObjects(
        shape, boxes, np.array([0.9, 0.8, 0.06], np.float32), np.array([1, 1, 2], np.int32), (np.full((1, 1), 255, np.uint8),) * 3
    )
    maps = np.zeros((4, *shape), np.float32)
    maps[0] = 40
    prediction = head.decode({"objects": found, "classes": Slabs(maps)}, "x")
    assert list(prediction.objects.values()) == [pytest.approx(0.9)]
    assert len(np.unique(prediction.labels)) == 2
    names = [head.labels.names[k - 1] for k in prediction.found.classes]
    things = [name for name in head.labels.names if name in head.labels.things]
    assert names == [things[0], things[0], things[1]]
    assert prediction.found.scores.tolist() == found.scores.tolist()
    lower, inside = prediction.found.mask(2)
    assert (lower, inside.shape, bool(inside.all())) == ((12, 12), (6, 6), True)


def test_the_memory_of_a_step_is_measured(task):
    cost = training_cost(task.plan)
    assert cost.parameters == sum(p.numel() for p in task.network().parameters())
    assert 0.1 < cost.memory < 2


def test_weights_begin_with_those_of_a_plain_network_shape(task):
    """The network is built by the task, so what finds input channels and heads in it sees all of it."""
    from medseg.models.transfer import ports

    of = ports(task.built, task.channels, task.heads)
    assert any(name.startswith("backbone.enter.0") for name in of)
    assert any(name.startswith("backbone.heads.classes") for name in of)


def test_panoptic_needs_things_and_stuff():
    task = make_task("mask-rcnn", 2, "panoptic")
    assert (task.plan.task, task.plan.target.kind, task.plan.target.head.kind) == ("panoptic", "panoptic", "mask-rcnn")
    assert [head.name for head in task.heads] == ["objects", "classes"]
    for things in ((), STUFF.names):
        labels = Labels(classes=STUFF.classes, things=things)
        dataset = make_dataset(labels, 2)
        with pytest.raises(PlanError, match=r"classes with objects .things. and classes without"):
            find_task("panoptic").needs(dataset, make_fingerprint_of(dataset, (50, 50), (1.0, 1.0)))
        name = STUFF.names[0]
        with pytest.raises(PlanError, match=rf'e\.g\. --thing {name}, or "things": \["{name}"\] in'):
            find_task("panoptic").needs(dataset, make_fingerprint_of(dataset, (50, 50), (1.0, 1.0)))
    alone = make_dataset(Labels(classes=STUFF.classes[:1]), 2)
    with pytest.raises(
        PlanError, match=r"found things: none; all classes: .*One class cannot be things and stuff at once: take --task instance"
    ):
        find_task("panoptic").needs(alone, make_fingerprint_of(alone, (50, 50), (1.0, 1.0)))


def test_ways_are_configurations_of_their_own():
    dataset = make_dataset(STUFF, 3)
    fingerprint = make_fingerprint_of(dataset, (36, 50, 35), (1.0, 1.0, 1.0))
    plans = {
        network: make_plans(dataset, fingerprint, task="instance", domain="grid", network=network, machine=Machine("cpu", 8.0))
        for network in (None, "mask-rcnn", "yolact", "dense", "segresnet")
    }
    assert [p.name for p in plans[None]] == ["3d", "3d_mask-rcnn", "2d", "2d_mask-rcnn"]
    assert [p.name for p in plans["yolact"]] == ["3d", "2d"]
    assert {p.target.head.kind for p in plans["yolact"]} == {"yolact"}
    assert {p.network.kind for name, found in plans.items() for p in found if name != "segresnet"} == {"unet"}
    assert {(p.network.kind, p.target.head.kind) for p in plans["segresnet"]} == {("segresnet", "dense")}  # it has no pyramid
    assert sum(p.recommended for p in plans[None]) == 1
    assert all(p.inference.mirror == () for p in plans["yolact"])
    with pytest.raises(PlanError, match="network 'yolact' is for other tasks"):
        make_plans(dataset, fingerprint, task="semantic", domain="grid", network="yolact", machine=Machine("cpu", 8.0))
    with pytest.raises(PlanError, match="mask-rcn"):
        make_plans(dataset, fingerprint, task="instance", domain="grid", network="mask-rcn", machine=Machine("cpu", 8.0))


def test_detectors_begin_with_networks_of_other_ways():
    """What the planned network has learnt under another head, or without annotations, is a start; what is on top of it begins anew."""
    from medseg.training.start import _meaning, _transferred

    plain, detector = make_task("dense", 2), make_task("mask-rcnn", 2)
    source, fresh = plain.network(), detector.network()
    state, moved = _transferred(detector.plan, fresh, source.state_dict(), _meaning(plain.plan))
    assert torch.equal(state["backbone.enter.0.conv.weight"], source.state_dict()["enter.0.conv.weight"])
    assert torch.equal(state["backbone.heads.classes.0.weight"], source.state_dict()["heads.classes.0.weight"])
    assert "anchors" in " ".join(moved.fresh)
    back, _ = _transferred(plain.plan, source, fresh.state_dict(), _meaning(detector.plan))
    assert torch.equal(back["enter.1.conv.weight"], fresh.state_dict()["backbone.enter.1.conv.weight"])


@pytest.mark.parametrize("network", ["dense", "mask-rcnn", "yolact"])
def test_a_model_can_be_continued(network):
    """Planned like a model, other data get its way to find objects, with its anchors and places, so that all weights but those of classes fit."""
    model = make_task(network, 2).plan
    dataset = make_dataset(STUFF, 2)
    fingerprint = make_fingerprint_of(dataset, (200, 300), (1.0, 1.0))
    how = {"task": "instance", "domain": "grid", "machine": Machine("cpu", 8.0)}
    (plan,) = make_plans(dataset, fingerprint, network=None, like=model, **how)
    same = {name: getattr(plan.target.head, name) for name in OF_DATA if name in type(plan.target.head).model_fields}
    assert plan.target.head == model.target.head.model_copy(update=same)
    assert (plan.window, plan.network, plan.inference.mirror) == (model.window, model.network, model.inference.mirror)
    assert "so that its weights fit" in plan.reasons["target.head.kind"]
    mine, theirs = (find_task("instance")(one).network().state_dict() for one in (plan, model))
    assert {name: tensor.shape for name, tensor in mine.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    (other,) = make_plans(dataset, fingerprint, network="yolact", like=model, **how)  # another way on the model's network
    assert (other.target.head.kind, other.network) == ("yolact", model.network)
