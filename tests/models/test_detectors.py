"""Mask R-CNN and YOLACT as wholes: they learn to find objects, with any number of them, in two and three dimensions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from toys import Backbone, Ball, levels, painted

from medseg.losses.detection import prototype_losses, region_losses
from medseg.models.detection import (
    IGNORED,
    MaskRCNN,
    PrototypeDesign,
    RegionDesign,
    Truth,
    Yolact,
    perfect_prototypes,
    perfect_regions,
)
from medseg.models.detection.boxes import iou
from medseg.models.detection.packed import in_portions
from medseg.models.slots import Slots
from medseg.planning.shadows import Shadows, shadowed
from medseg.training.portions import Portions

KINDS, CELLS = 3, {2: 14, 3: 8}
DISCS: list[Ball] = [((11, 11), 7, 1), ((33, 32), 11, 2), ((9, 38), 5, 3), ((25, 9), 4, 2), ((42, 8), 4, 1), ((9, 25), 3, 2)]
BALLS: list[Ball] = [((6, 6, 6), 5, 1), ((16, 16, 7), 6, 2), ((7, 18, 18), 4, 3), ((18, 6, 18), 4, 2)]
WINDOW: dict[int, tuple[int, ...]] = {2: (48, 48), 3: (24, 24, 24)}


def detector(kind: str, axes: int, slots: int = 16) -> MaskRCNN | Yolact:
    torch.manual_seed(0)
    backbone = Backbone(axes)
    if kind == "rcnn":
        return MaskRCNN(backbone, 16, RegionDesign(levels(axes), KINDS, slots, CELLS[axes], 3 * slots, 32, {2: 7, 3: 4}[axes], 64))
    return Yolact(backbone, 16, PrototypeDesign(levels(axes), KINDS, slots, CELLS[axes], 24, 16))


def losses(network: nn.Module, outputs: dict[str, list[Tensor]], truth: Truth) -> dict[str, Tensor]:
    how = region_losses if isinstance(network, MaskRCNN) else prototype_losses
    return how(outputs, truth.boxes, truth.classes)


def perfect(network: MaskRCNN | Yolact, truth: Truth) -> dict[str, Tensor]:
    return perfect_regions(truth, network.design) if isinstance(network, MaskRCNN) else perfect_prototypes(truth, network.design)


def step(network: MaskRCNN | Yolact, image: Tensor, truth: Truth) -> dict[str, Tensor]:
    terms = losses(network, network.train()(image, truth), truth)
    network.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    return {name: term.detach() for name, term in terms.items()}


def recovered(slots: Slots, truth: Truth) -> float:
    """Mean average precision at an overlap of masks of 0.5 of one window, all classes together."""
    order = slots.scores[0].argsort(descending=True)
    order = order[slots.classes[0][order] > 0]
    cells = slots.masks.shape[-1]
    found = torch.zeros(len(truth.boxes[0]), dtype=torch.bool)
    precision, hits = 0.0, 0
    for rank, i in enumerate(order.tolist(), 1):
        box, kind = slots.boxes[0, i], slots.classes[0, i]
        overlap = torch.where((truth.classes[0] == kind) & ~found, iou(box[None], truth.boxes[0])[0], 0.0)
        best = int(overlap.argmax())
        outline = truth.outlines(box[None, None], torch.tensor([[best + 1]]), cells)[0, 0] > 0
        mask = slots.masks[0, i].flatten() > 0.5
        same = (outline & mask).sum() / (outline | mask).sum().clamp_min(1)
        if overlap[best] >= 0.5 and same >= 0.5:
            found[best] = True
            hits += 1
            precision += hits / rank
    return precision / int((truth.classes[0] > 0).sum())


@pytest.mark.parametrize("kind", ["rcnn", "yolact"])
@pytest.mark.parametrize("axes", [2, 3])
def test_it_learns_to_find_all_objects(kind: str, axes: int) -> None:
    image, truth = painted(WINDOW[axes], [DISCS if axes == 2 else BALLS], 8)
    network = detector(kind, axes)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(120):
        step(network, image, truth)
        optimizer.step()
    with torch.inference_mode():
        outputs = network.eval()(image)
    assert set(outputs) == {"objects", "classes"}
    assert recovered(Slots.unpack(outputs["objects"][0], axes, CELLS[axes]), truth) == 1


@pytest.mark.parametrize("kind", ["rcnn", "yolact"])
@pytest.mark.parametrize("axes", [2, 3])
def test_perfect_answers_have_no_loss(kind: str, axes: int) -> None:
    balls: list[Ball] = DISCS if axes == 2 else BALLS
    image, truth = painted(WINDOW[axes], [balls, [], balls[:1]], 8)
    truth.map[1, :8] = IGNORED
    network = detector(kind, axes)
    raw, ideal = network.train()(image, truth), perfect(network, truth)
    slots = Slots.unpack(ideal.pop("objects"), axes, CELLS[axes])
    assert {name: maps[0].shape for name, maps in raw.items()} == {name: one.shape for name, one in ideal.items()} | {
        "classes": raw["classes"][0].shape
    }
    assert {one.dtype for maps in raw.values() for one in maps} == {torch.float32} == {one.dtype for one in ideal.values()}
    terms = losses(network, {name: [one] for name, one in ideal.items()}, truth)
    assert set(terms) == set(losses(network, raw, truth))
    assert all(0 <= term < 1e-3 for term in terms.values())
    assert slots.scores.shape == (3, network.design.slots)
    assert torch.equal(slots.classes[:, :8], truth.classes)
    assert torch.equal(slots.boxes[:, :8][truth.there], truth.boxes[truth.there])
    assert torch.equal(slots.scores[:, :8], truth.there.float())
    assert recovered(slots, truth) == 1
    assert not slots.classes[:, 8:].any()
    assert not slots.masks[1].any()


@pytest.mark.parametrize("kind", ["rcnn", "yolact"])
@pytest.mark.parametrize("axes", [2, 3])
def test_any_objects_can_be_learned_from(kind: str, axes: int) -> None:
    """None; one; specks of one voxel; one that fills the window; hundreds. In 32 and in 16 bits."""
    window = (32,) * axes
    full: list[Ball] = [((16.0,) * axes, 60.0, 2)]
    specks: list[Ball] = [((n + 0.5,) * axes, 0.6, 1) for n in (0, 7, 31)]
    crowd: list[Ball] = [((2.5 + 3 * i, 2.5 + 3 * j, 3.0)[:axes], 1.2, 1 + (i + j) % 3) for i in range(10) for j in range(10)]
    network = detector(kind, axes, slots=64)
    for balls in ([], full, specks, crowd):
        image, truth = painted(window, [balls, []], 128)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                terms = step(network, image, truth)
            assert all(torch.isfinite(term) for term in terms.values())
            gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
            assert all(torch.isfinite(gradient).all() for gradient in gradients)
            if not balls:
                assert {name for name, term in terms.items() if term > 0} <= {"anchor", "class", "semantic"}
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                found = Slots.unpack(network.eval()(image)["objects"][0], axes, CELLS[axes])
            assert found.boxes.dtype == torch.float32
            assert found.boxes.shape == (2, 64, 2 * axes)
            for part in (found.scores, found.boxes, found.masks):
                assert torch.isfinite(part).all()
            assert ((found.boxes >= 0) & (found.boxes <= 32)).all()
            assert torch.equal(found.scores > 0, found.classes > 0)
            assert (found.classes <= KINDS).all()


def test_all_of_a_crowd_have_slots() -> None:
    """More objects than a window has voxels per axis; the sure ones come first."""
    balls: list[Ball] = [((4.5 + 8 * i, 4.5 + 8 * j), 3, 1) for i in range(20) for j in range(20)]
    _, truth = painted((164, 164), [balls], 400)
    network = detector("rcnn", 2, slots=400)
    slots = Slots.unpack(perfect(network, truth)["objects"], 2, 14)
    assert int((slots.classes > 0).sum()) == 400
    assert recovered(slots, truth) == 1
    few = Slots.unpack(perfect(detector("yolact", 2, slots=100), truth)["objects"], 2, 14)
    assert int((few.classes > 0).sum()) == 100


@pytest.mark.parametrize("kind", ["rcnn", "yolact"])
def test_a_step_needs_no_values(kind: str) -> None:
    """It is measured without, and takes what a step with values takes."""
    image, truth = painted(WINDOW[3], [BALLS, []], 8)
    real = {name: maps[0].shape for name, maps in detector(kind, 3).train()(image, truth).items()}
    for half in (False, True):
        network, shadows = detector(kind, 3).train(), Shadows()
        shadowed(network, shadows)
        with shadows:
            fields = (truth.boxes, truth.classes, truth.codes, truth.map)
            blank = Truth(*(torch.zeros(one.shape, dtype=one.dtype) for one in fields))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                raw = network(torch.zeros(image.shape), blank)
            torch.stack(list(losses(network, raw, blank).values())).sum().backward()
            perfect(network, blank)
        assert {name: maps[0].shape for name, maps in raw.items()} == real
        assert all(weight.grad is not None for name, weight in network.named_parameters() if "dense" not in name)
        assert shadows.peak > 2**20
        assert shadows.flops > 10**8


def some(truth: Truth, rows: slice) -> Truth:
    """The objects of some of the windows."""
    return Truth(truth.boxes[rows], truth.classes[rows], truth.codes[rows], truth.map[rows])


@pytest.mark.parametrize("kind", ["rcnn", "yolact"])
def test_windows_do_not_depend_on_each_other(kind: str) -> None:
    """A batch in portions has the gradient of the whole batch."""
    image, truth = painted((48, 48), [DISCS, DISCS[:2]], 8)
    network = detector(kind, 2).train()
    portions = Portions(lambda rows: network(image[rows], some(truth, rows)), 2, 1, 0)
    outputs = portions.forward()
    torch.stack(list(losses(network, outputs, truth).values())).sum().backward()
    portions.backward()
    found = [weight.grad for weight in network.parameters()]
    network.zero_grad(set_to_none=True)
    parts = []
    for n in range(2):
        torch.manual_seed(n)
        parts.append(network(image[n : n + 1], some(truth, slice(n, n + 1))))
    joined = {name: [torch.cat([part[name][0] for part in parts])] for name in parts[0]}
    torch.stack(list(losses(network, joined, truth).values())).sum().backward()
    for one, weight in zip(found, network.parameters(), strict=True):
        assert (one is None) == (weight.grad is None)
        assert one is None or torch.allclose(one, weight.grad, atol=1e-5)


def test_training_needs_the_truth() -> None:
    for kind in ("rcnn", "yolact"):
        with pytest.raises(ValueError, match="trained with the true boxes"):
            detector(kind, 2).train()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="even number of cells; found 7"):
        MaskRCNN(Backbone(2), 16, RegionDesign(levels(2), 1, 4, 7, 8, 8, 7))


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys, torch\n"
        "from medseg.models.detection.nms import greedy\n"
        "greedy(torch.rand(1, 9, 4), torch.rand(1, 9), torch.ones(1, 9, dtype=torch.bool), 0.5, 3, 9)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_masks_are_drawn_in_portions() -> None:
    """As all at once; portions without an object are not drawn."""
    there = torch.zeros(2, 10, dtype=torch.bool)
    there[0, :4] = there[1, :1] = True
    drawn: list[slice] = []

    def draw(part: slice) -> torch.Tensor:
        drawn.append(part)
        return torch.arange(10.0)[part].view(1, -1, 1).expand(2, -1, 3)

    masks = in_portions(draw, there, 3)
    assert drawn == [slice(0, 3), slice(3, 6)]
    assert masks[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]
    assert torch.equal(in_portions(draw, torch.ones(2, 10, dtype=torch.bool), 4)[1, :, 2], torch.arange(10.0))
    assert in_portions(draw, torch.zeros(2, 10, dtype=torch.bool), 4).shape == (2, 10, 3)
