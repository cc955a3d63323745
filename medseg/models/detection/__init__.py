"""Object detectors for windows of any number of axes, in plain PyTorch, with numbers of everything that do not depend on values.

A task plans a design (anchors by level, slots, cells of masks, ...), builds the backbone with a head `pyramid` that answers at the design's levels (finest
first), and wraps it: `MaskRCNN(backbone, channels, design)` with a `RegionDesign`, or `Yolact(backbone, channels, design)` with a `PrototypeDesign`. In a
training step it makes a `Truth` of its labels, calls `network(image, truth)`, and takes the terms of `region_losses` or `prototype_losses` in
`medseg.losses.detection`, of `(outputs, truth.boxes, truth.classes)`. In inference `network(image)["objects"][0]` are the packed slots.
`perfect_regions(truth, design)` and `perfect_prototypes(truth, design)` are what perfect networks would have returned, both ways.

Objects for which `Truth` has no place, and voxels without annotation, are `IGNORED` in its map. All outputs are float32 with the window
first, so that a batch can be run in portions. Random numbers, for sampling, come from torch's global generator.
"""

from medseg.models.detection.anchors import Level
from medseg.models.detection.rcnn import MaskRCNN, RegionDesign
from medseg.models.detection.rcnn import perfect as perfect_regions
from medseg.models.detection.truth import IGNORED, Truth
from medseg.models.detection.yolact import PrototypeDesign, Yolact
from medseg.models.detection.yolact import perfect as perfect_prototypes

__all__ = ["IGNORED", "Level", "MaskRCNN", "PrototypeDesign", "RegionDesign", "Truth", "Yolact", "perfect_prototypes", "perfect_regions"]
