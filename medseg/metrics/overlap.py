"""Scores that count voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """Voxels of a prediction against the reference: true positive, false positive, false negative."""

    tp: int
    fp: int
    fn: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask) -> Counts:
        """Count two masks of one shape."""
        tp = int(np.count_nonzero(prediction & truth))
        return cls(tp, int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp)

    @property
    def reference(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|) (Dice 1945)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """|A and B| / |A or B| (Jaccard 1912)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that was found."""
        return _ratio(self.tp, self.reference)

    @property
    def precision(self) -> float:
        """Share of the prediction that is right."""
        return _ratio(self.tp, self.predicted)

    @property
    def volume_error(self) -> float:
        """(predicted volume - reference volume) / reference volume; signed, so that its mean shows bias."""
        return _ratio(self.predicted - self.reference, self.reference)


def _ratio(a: int, b: int) -> float:
    return a / b if b else float("nan")
