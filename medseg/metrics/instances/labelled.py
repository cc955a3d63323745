"""Objects of label maps as they are in memory (`Labels`): which classes they are of, and what is not known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import NUMBER_BITS, Labels
from medseg.metrics.contingency import Contingency, Integers


def class_numbers(labels: Labels) -> dict[int, str]:
    """Class -> name, counted from 1 on in the order of `labels`."""
    return dict(enumerate(labels.names, 1))


def count_objects(prediction: NDArray[Any], truth: NDArray[Any], labels: Labels) -> Contingency:
    """The objects of two maps of codes `(*shape)`, with classes as in `class_numbers`; a class that is no thing is one object.

    Values that belong to no class have class 0, which no score looks at.
    """
    values = {value: k for k, one in enumerate(labels.classes, 1) for value in one.values}

    def classes(codes: Integers) -> Integers:
        found, at = np.unique(labels.semantic(codes), return_inverse=True)
        return np.array([values.get(int(value), 0) for value in found], np.int64)[at.reshape(-1)]

    ignore = None if labels.ignore is None else labels.ignore << NUMBER_BITS
    return Contingency.between(prediction, truth, ignore=ignore, classes=classes)
