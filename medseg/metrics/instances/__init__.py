"""Scores of objects: which are found, how well, and how sure a model was of them; in 2D and 3D.

Two label maps are counted once (`Contingency.between`); all scores of label maps follow from that small table:

- `match`: optimal one-to-one assignment of objects of a class at an IoU threshold, and by it `Tally`: accuracy TP / (TP + FP + FN), precision,
  sensitivity, F1, mean IoU of pairs (Schmidt et al. 2018, StarDist; Caicedo et al. 2019);
- `panoptic`: the counts of panoptic quality of things and stuff, added up over a dataset (`add_up`) before PQ, SQ and RQ are taken, and
  averaged over classes (`mean_quality`) (Kirillov et al. 2019);
- `medseg.metrics.lesions.covered_f1`: lesion-wise F1, which lets lesions split and merge.

`count_case` and `pool` take all of these over the cases of a dataset together, with bootstrap intervals.

Scored objects (`Detections`: of masks, boxes or a label map) have an average precision (Lin et al. 2014, COCO) and a curve of sensitivity by
false positives per case (`Froc`, Setio et al. 2017). They are scores of a dataset, and `pool` takes them, too; their mean over cases is something
else.

What to report: PQ, or F1 with the mean IoU of pairs, where every object counts; FROC where finding matters more than outlines; AP only where
scores are calibrated to rank, because it changes with detections that nobody would show (Maier-Hein et al. 2024, Metrics reloaded, Nature
Methods 21:195-212, arXiv:2206.01653).

Rule for objects that are not there, per class and case (or dataset, where counts are added up):

|                                              | none on both sides | reference only (missed) | prediction only (false alarm) |
|----------------------------------------------|--------------------|-------------------------|-------------------------------|
| pq, sq, rq, object_accuracy, object_f1, lesion_f1 | NaN           | 0                       | 0                             |
| object_sensitivity                           | NaN                | 0                       | NaN (nothing to find)         |
| object_precision                             | NaN                | NaN (nothing claimed)   | 0                             |
| ap, box_ap, froc                             | NaN                | 0                       | NaN (nothing to find)         |

Objects match within their class only. Voxels whose reference is the ignore value count in no IoU; a predicted object of which more than half
lies there, or within crowds of its class, is no false positive.
"""

from medseg.metrics.contingency import Contingency, Objects
from medseg.metrics.descriptions import DETECTION_METRICS, INSTANCE_METRICS
from medseg.metrics.instances.average_precision import THRESHOLDS, Ranked
from medseg.metrics.instances.boxes import label_boxes
from medseg.metrics.instances.detections import Detections
from medseg.metrics.instances.froc import RATES, Froc
from medseg.metrics.instances.labelled import class_numbers, count_objects
from medseg.metrics.instances.matching import Matches, Quality, Tally, add_up, match, mean_quality, panoptic
from medseg.metrics.instances.overlaps import mask_overlaps
from medseg.metrics.instances.pooling import LEVELS, ClassCounts, Pooled, Ranking, count_case, curve_of, pool, poolable, ranked_of
from medseg.metrics.instances.scores import score_instances

__all__ = [
    "DETECTION_METRICS",
    "INSTANCE_METRICS",
    "LEVELS",
    "RATES",
    "THRESHOLDS",
    "ClassCounts",
    "Contingency",
    "Detections",
    "Froc",
    "Matches",
    "Objects",
    "Pooled",
    "Quality",
    "Ranked",
    "Ranking",
    "Tally",
    "add_up",
    "class_numbers",
    "count_case",
    "count_objects",
    "curve_of",
    "label_boxes",
    "mask_overlaps",
    "match",
    "mean_quality",
    "panoptic",
    "pool",
    "poolable",
    "ranked_of",
    "score_instances",
]
