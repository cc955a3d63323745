"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) for windows of any number of axes, on the pyramid of any backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg.geometry import Shape
from medseg.models.base import Outputs
from medseg.models.detection.anchors import Level, anchor_boxes, level_of
from medseg.models.detection.boxes import clip, decode, whole
from medseg.models.detection.heads import AnchorHead, MaskHead, RegionHead
from medseg.models.detection.matching import match_anchors, match_regions
from medseg.models.detection.nms import gather, greedy
from medseg.models.detection.packed import FAINTEST, OBJECTS, PYRAMID, in_portions, packed, perfect_slots, sure
from medseg.models.detection.roi_align import Table, roi_align
from medseg.models.detection.sampling import balanced
from medseg.models.detection.truth import Truth

AMONG = 4  # times as many boxes are looked at as may come out of suppression
PROPOSED = 0.7  # overlap of two proposals (Ren et al. 2015)
DETECTED = 0.5  # overlap of two objects
MATCHED = 0.5  # overlap of a region with the object that it is taken for
POSITIVE = 0.25  # of the sampled regions at most
REFINED = (0.1, 0.2)  # what 1 means for a region: its centre is off by a tenth of its side, its side by a fifth (Girshick 2015)


@dataclass(frozen=True)
class RegionDesign:
    """What Mask R-CNN is planned by.

    Attributes:
        levels: maps of the pyramid, finest first, with the anchors of their cells.
        classes: kinds of things, K.
        slots: objects in a window at most.
        mask: cells per axis of an object's mask, m; even.
        proposals: regions in a window that are looked at more closely; more than `slots`.
        samples: of them, and of the true boxes, those that a window teaches by in a step.
        cells: per axis of the grid by which regions are classified.
        width: of the layers that classify regions.
    """

    levels: tuple[Level, ...]
    classes: int
    slots: int
    mask: int
    proposals: int
    samples: int
    cells: int
    width: int = 256

    @property
    def axes(self) -> int:
        """Of the window."""
        return len(self.levels[0].stride)

    @property
    def outlined(self) -> int:
        """Sampled regions that teach masks."""
        return max(1, round(POSITIVE * self.samples))


class MaskRCNN(nn.Module):
    """A backbone, and on its pyramid proposals, their classes and boxes, and masks.

    Outputs of the backbone other than the pyramid are passed through.
    """

    def __init__(self, backbone: nn.Module, channels: int, design: RegionDesign) -> None:
        """On a backbone whose output `pyramid` is a map `(N, channels, *window / stride)` for each level of the design."""
        super().__init__()
        if design.mask % 2:
            raise ValueError(f"masks have an even number of cells; found {design.mask}")
        self.backbone, self.design = backbone, design
        axes = design.axes
        self.anchors = AnchorHead(channels, axes, len(design.levels[0].sizes), 1 + 2 * axes)
        self.regions = RegionHead(channels, design.cells, design.width, design.classes, axes)
        self.masks = MaskHead(channels, axes)

    def forward(self, image: Tensor, truth: Truth | None = None) -> Outputs:
        """Detect objects in windows `(N, C, *window)`.

        Returns:
            In inference `objects`: packed slots `(N, slots, 2 + 2 d + m ** d)` (`packed`).
            In training, with `truth`, what `medseg.losses.detection.region_losses` takes, all float32, one tensor each:
            `anchor_scores` `(N, A)` logits; `anchor_boxes` `(N, A, 2 d)`; `anchor_match` `(N, A)` (`match_anchors`);
            `region_scores` `(N, S, 1 + K)` logits, background first; `region_boxes` `(N, S, 2 d)`; `region_match` `(N, S)` (`match_regions`);
            `region_masks` `(N, P, m ** d)` logits of the first P of them; `region_outlines` `(N, P, m ** d)` what these should be (`Truth.outlines`).
            Either way, the backbone's other outputs.
        """
        outputs = dict(self.backbone(image))
        maps = outputs.pop(PYRAMID)
        window = tuple(image.shape[2:])
        said, table = self.anchors(maps), Table.of(maps, [level.stride for level in self.design.levels])
        with torch.autocast(image.device.type, enabled=False):
            scores, boxes = said[..., 0], decode(said[..., 1:], anchor_boxes(self.design.levels, window, image.device))
            proposals, valid = self._proposals(scores.detach(), boxes.detach(), window)
        if not self.training:
            return outputs | {OBJECTS: [self._objects(table, proposals, valid, window)]}
        if truth is None:
            raise ValueError("a detector is trained with the true boxes")
        with torch.autocast(image.device.type, enabled=False):
            anchor_match = match_anchors(truth, self.design.levels)
            regions = torch.cat([truth.boxes, proposals], 1)
            match = match_regions(regions, torch.cat([truth.there, valid], 1), truth, MATCHED)
            chosen, counts = balanced(match, self.design.samples, self.design.outlined)
            regions = gather(regions, chosen)
            match = torch.where(counts, match.gather(1, chosen), -1)
        classes, refined = self._classified(table, regions)
        few = regions[:, : self.design.outlined]
        masks = self._outlined(table, few)
        outlines = truth.outlines(few, match[:, : self.design.outlined], self.design.mask)
        raw = {
            "anchor_scores": scores,
            "anchor_boxes": boxes,
            "anchor_match": anchor_match.float(),
            "region_scores": classes,
            "region_boxes": refined,
            "region_match": match.float(),
            "region_masks": masks,
            "region_outlines": outlines,
        }
        return outputs | {name: [value] for name, value in raw.items()}

    def _proposals(self, scores: Tensor, boxes: Tensor, window: Shape) -> tuple[Tensor, Tensor]:
        boxes = clip(boxes, window)
        index, valid = greedy(boxes, scores, whole(boxes), PROPOSED, self.design.proposals, AMONG * self.design.proposals)
        return gather(boxes, index), valid

    def _objects(self, table: Table, proposals: Tensor, valid: Tensor, window: Shape) -> Tensor:
        classes, boxes = self._classified(table, proposals)
        boxes = clip(boxes, window)
        chances, kinds = classes.softmax(-1)[..., 1:].max(-1)
        valid = valid & whole(boxes) & (chances >= FAINTEST)
        index, there = greedy(boxes, chances, valid, DETECTED, self.design.slots, self.design.proposals)
        boxes = gather(boxes, index)
        masks = in_portions(lambda part: self._outlined(table, boxes[:, part]).sigmoid(), there, self.design.outlined)
        return packed(chances.gather(1, index), 1 + kinds.gather(1, index), boxes, masks, there)

    def _classified(self, table: Table, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(N, R, 1 + K)` and refined boxes `(N, R, 2 d)`."""
        logits, deltas = self.regions(self._read(table, regions, self.design.cells))
        logits, deltas = (one.view(*regions.shape[:2], -1) for one in (logits, deltas))
        return logits, decode(deltas * unit(deltas), regions)

    def _outlined(self, table: Table, regions: Tensor) -> Tensor:
        """Logits `(N, R, m ** d)`."""
        logits: Tensor = self.masks(self._read(table, regions, self.design.mask // 2))
        return logits.view(*regions.shape[:2], -1)

    def _read(self, table: Table, regions: Tensor, cells: int) -> Tensor:
        return roi_align(table, regions, level_of(regions, self.design.levels, cells), cells)


def unit(deltas: Tensor) -> Tensor:
    """What 1 means in each of `(..., 2 d)` of a region."""
    half = deltas.shape[-1] // 2
    return deltas.new_tensor((REFINED[0],) * half + (REFINED[1],) * half)


def perfect(truth: Truth, design: RegionDesign) -> dict[str, Tensor]:
    """What `MaskRCNN` would say if it were perfect: its raw outputs in training, whose loss is nearly 0, and `objects`."""
    match = match_anchors(truth, design.levels)
    anchors = anchor_boxes(design.levels, truth.window, truth.boxes.device).expand(len(match), -1, -1)
    proposed = anchors[:, : design.proposals]
    regions = torch.cat([truth.boxes, proposed], 1)
    found = match_regions(regions, torch.cat([truth.there, whole(proposed)], 1), truth, MATCHED)
    chosen, counts = balanced(found, design.samples, design.outlined)
    regions, found = gather(regions, chosen), torch.where(counts, found.gather(1, chosen), -1)
    outlines = truth.outlines(regions[:, : design.outlined], found[:, : design.outlined], design.mask)
    return {
        "anchor_scores": sure(match > 0),
        "anchor_boxes": truth.boxes_of(match, anchors),
        "anchor_match": match.float(),
        "region_scores": sure(truth.classes_of(found)[..., None] == torch.arange(design.classes + 1, device=match.device)),
        "region_boxes": truth.boxes_of(found, regions),
        "region_match": found.float(),
        "region_masks": sure(outlines),
        "region_outlines": outlines,
        OBJECTS: perfect_slots(truth, design.slots, design.mask),
    }
