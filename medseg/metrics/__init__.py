"""What a segmentation is worth: scores of one case (`score_classes`) and statistics over cases (`medseg.metrics.statistics`).

Rule for empty masks, per class and case:

|                                        | both empty | reference only (missed) | prediction only (false alarm) |
|----------------------------------------|------------|-------------------------|-------------------------------|
| dice, iou, nsd, lesion_f1              | NaN        | 0                       | 0                             |
| sensitivity                            | NaN        | 0                       | NaN (nothing to find)         |
| precision                              | NaN        | NaN (nothing claimed)   | 0                             |
| hd95, assd                             | NaN        | diagonal of the image   | diagonal of the image         |
| volume_error                           | NaN        | -1                      | NaN (no volume to relate to)  |

NaN means undefined: such a case does not enter the mean of that class and metric, so a class that is rightly absent neither earns nor
costs anything, while every miss and every false alarm costs the worst value the metric can take. Absences, misses and false alarms are
counted apart by `medseg.evaluation`. Voxels whose reference is the ignore value are taken out of the reference and of the prediction.
"""

from medseg.metrics.classes import score_classes
from medseg.metrics.descriptions import DETECTION_METRICS, INSTANCE_METRICS, METRICS, TOLERANCE, Better, Metric, describe

__all__ = ["DETECTION_METRICS", "INSTANCE_METRICS", "METRICS", "TOLERANCE", "Better", "Metric", "describe", "score_classes"]
