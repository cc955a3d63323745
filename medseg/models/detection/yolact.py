"""YOLACT (Bolya et al. 2019, arXiv:1904.02689) for windows of any number of axes: objects in one pass, masks as sums of common prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg.models.base import Outputs
from medseg.models.blocks import convolution, pointwise
from medseg.models.detection.anchors import Level, anchor_boxes
from medseg.models.detection.boxes import clip, decode, grown, whole
from medseg.models.detection.heads import AnchorHead, decision
from medseg.models.detection.matching import match_anchors
from medseg.models.detection.nms import fast, gather
from medseg.models.detection.packed import FAINTEST, OBJECTS, PYRAMID, in_portions, packed, perfect_slots, sure
from medseg.models.detection.roi_align import Table, roi_align
from medseg.models.detection.sampling import balanced
from medseg.models.detection.truth import Truth

AMONG = 3  # times as many boxes are looked at as there are slots
DETECTED = 0.5  # overlap of two objects
MARGIN = 0.1  # of a true box, on each side, where masks are learned: predicted boxes are not exact


@dataclass(frozen=True)
class PrototypeDesign:
    """What YOLACT is planned by.

    Attributes:
        levels: maps of the pyramid, finest first, with the anchors of their cells. Prototypes lie on the finest.
        classes: kinds of things, K.
        slots: objects in a window at most.
        mask: cells per axis of an object's mask, m.
        samples: positive anchors by which a window teaches masks in a step.
        prototypes: maps of which masks are made.
    """

    levels: tuple[Level, ...]
    classes: int
    slots: int
    mask: int
    samples: int
    prototypes: int = 32

    @property
    def axes(self) -> int:
        """Of the window."""
        return len(self.levels[0].stride)


class Yolact(nn.Module):
    """A backbone, prototypes on the finest map of its pyramid, and what each anchor is: class, box, and factors of the prototypes.

    One convolution of each map serves for all of it, so the head costs little beside a backbone. A mask is computed on its grid only: sums of
    interpolated prototypes are interpolated sums. Outputs of the backbone other than the pyramid are
    passed through.
    """

    def __init__(self, backbone: nn.Module, channels: int, design: PrototypeDesign) -> None:
        """On a backbone whose output `pyramid` is a map `(N, channels, *window / stride)` for each level of the design."""
        super().__init__()
        self.backbone, self.design = backbone, design
        axes, count = design.axes, design.prototypes
        self.anchors = AnchorHead(channels, axes, len(design.levels[0].sizes), 1 + design.classes + 2 * axes + count)
        self.prototypes = convolution(channels, count, (1,) * axes, bias=True)
        self.semantic = decision(convolution(channels, design.classes, (1,) * axes, bias=True))

    def forward(self, image: Tensor, truth: Truth | None = None) -> Outputs:
        """Detect objects in windows `(N, C, *window)`.

        Returns:
            In inference `objects`: packed slots `(N, slots, 2 + 2 d + m ** d)` (`packed`).
            In training, with `truth`, what `medseg.losses.detection.prototype_losses` takes, all float32, one tensor each:
            `anchor_scores` `(N, A, 1 + K)` logits, background first; `anchor_boxes` `(N, A, 2 d)`; `anchor_match` `(N, A)` (`match_anchors`);
            `masks` `(N, P, m ** d)` logits of some positive anchors' masks; `outlines` `(N, P, m ** d)` what these should be (`Truth.outlines`);
            `semantic` `(N, K, *cells)` logits of the classes on the finest map; `semantic_truth` `(N, *cells)` (`Truth.semantic`).
            Either way, the backbone's other outputs.
        """
        outputs = dict(self.backbone(image))
        maps = outputs.pop(PYRAMID)
        design, window = self.design, tuple(image.shape[2:])
        seen = self.anchors.seen(maps)
        said, common = self.anchors.said(seen), pointwise(self.prototypes, seen[0]).relu()
        with torch.autocast(image.device.type, enabled=False):
            scores, deltas, factors = torch.split(said, [1 + design.classes, 2 * design.axes, design.prototypes], -1)
            boxes = decode(deltas, anchor_boxes(design.levels, window, image.device))
            if not self.training:
                return outputs | {OBJECTS: [self._objects(scores, clip(boxes, window), factors, common)]}
            if truth is None:
                raise ValueError("a detector is trained with the true boxes")
            match = match_anchors(truth, design.levels)
            chosen, _ = balanced(match, design.samples, design.samples)
            few, at = sampled(truth, match, chosen)
            raw = {
                "anchor_scores": scores,
                "anchor_boxes": boxes,
                "anchor_match": match.float(),
                "masks": self._masks(common, at, gather(factors, chosen)),
                "outlines": truth.outlines(at, few, design.mask),
                "semantic": pointwise(self.semantic, maps[0]),
                "semantic_truth": truth.semantic(tuple(maps[0].shape[2:])).float(),
            }
        return outputs | {name: [value] for name, value in raw.items()}

    def _objects(self, scores: Tensor, boxes: Tensor, factors: Tensor, common: Tensor) -> Tensor:
        chances, kinds = scores.softmax(-1)[..., 1:].max(-1)
        valid = whole(boxes) & (chances >= FAINTEST)
        index, there = fast(boxes, chances, valid, DETECTED, self.design.slots, AMONG * self.design.slots)
        boxes = gather(boxes, index)
        chosen = gather(factors, index)
        masks = in_portions(lambda part: self._masks(common, boxes[:, part], chosen[:, part]).sigmoid(), there, self.design.samples)
        return packed(chances.gather(1, index), 1 + kinds.gather(1, index), boxes, masks, there)

    def _masks(self, common: Tensor, boxes: Tensor, factors: Tensor) -> Tensor:
        """Logits `(N, R, m ** d)` of masks over boxes `(N, R, 2 d)`, of prototypes `(N, k, *cells)` and their factors `(N, R, k)`."""
        first = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=boxes.device)
        grids = roi_align(Table.of([common], [self.design.levels[0].stride]), boxes, first, self.design.mask)
        rows = grids.movedim(1, -1).flatten(1, -2)  # (N * R, cells, k)
        return (rows @ factors.tanh().flatten(0, 1)[..., None]).view(*boxes.shape[:2], -1)


def sampled(truth: Truth, match: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """What the chosen anchors `(N, P)` are matched with, `(N, P)`, and where their masks are learned: `(N, P, 2 d)` about the true boxes."""
    few = match.gather(1, chosen)
    boxes = truth.boxes_of(few, truth.boxes.new_zeros(()))
    return few, clip(grown(boxes, MARGIN), truth.window)


def perfect(truth: Truth, design: PrototypeDesign) -> dict[str, Tensor]:
    """What `Yolact` would say if it were perfect: its raw outputs in training, whose loss is nearly 0, and `objects`."""
    match = match_anchors(truth, design.levels)
    few, at = sampled(truth, match, balanced(match, design.samples, design.samples)[0])
    outlines = truth.outlines(at, few, design.mask)
    kinds = truth.semantic(design.levels[0].cells(truth.window))
    index = torch.arange(design.classes + 1, device=match.device)
    anchors = anchor_boxes(design.levels, truth.window, match.device)
    return {
        "anchor_scores": sure(truth.classes_of(match)[..., None] == index),
        "anchor_boxes": truth.boxes_of(match, anchors),
        "anchor_match": match.float(),
        "masks": sure(outlines),
        "outlines": outlines,
        "semantic": sure((kinds[..., None] == index[1:]).movedim(-1, 1)),
        "semantic_truth": kinds.float(),
        OBJECTS: perfect_slots(truth, design.slots, design.mask),
    }
