"""Which objects of two label maps share voxels: counted once, kept sparse, and all that scores of objects need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.scratch import row_slabs

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Objects:
    """The objects of one label map, by ascending number; arrays `(n,)`.

    Attributes:
        ids: their values in the label map, never 0.
        classes: the class of each, 1 where the map knows no classes.
        sizes: voxels.
        ignored: of these, the voxels where the truth is ignored; always 0 for objects of the truth.
        crowd: the object is a group of objects that nobody told apart (COCO's `iscrowd`); never true of a prediction.
    """

    ids: Integers
    classes: Integers
    sizes: Integers
    ignored: Integers
    crowd: Flags

    def __len__(self) -> int:
        return len(self.ids)

    def chosen(self, some: Flags) -> Objects:
        """Those where `some` `(n,)` is true."""
        return Objects(self.ids[some], self.classes[some], self.sizes[some], self.ignored[some], self.crowd[some])


@dataclass(frozen=True)
class Contingency:
    """Objects of a prediction and of the truth, and the voxels that each pair shares; arrays `(k,)`, one entry per pair that meets.

    Attributes:
        rows: index of a pair's object among `truth`.
        columns: index of a pair's object among `prediction`.
        shared: voxels of both.
    """

    truth: Objects
    prediction: Objects
    rows: Integers
    columns: Integers
    shared: Integers = field(repr=False)

    @classmethod
    def between(
        cls,
        prediction: NDArray[Any],
        truth: NDArray[Any],
        *,
        ignore: int | None = None,
        classes: Callable[[Integers], Integers] | None = None,
        crowd: Collection[int] = (),
    ) -> Contingency:
        """Count two label maps.

        Time and memory follow the number of runs of equal voxels, not the number of objects times voxels: a volume is read once, slab by slab.

        Args:
            prediction: `(*shape)` integers: one value per object, 0 where there is none.
            truth: `(*shape)` integers, likewise.
            ignore: value of the truth where nothing is known; 0 for annotations in which what is no object is unknown (COCO's panoptic
                format). Such voxels belong to no object of the truth and count in no IoU.
            classes: the class of each value, as an array of the same length; the same rule for both maps. None: all of one class, 1.
            crowd: values of the truth that are crowds.

        Raises:
            ValueError: the shapes differ, or values are not integers.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} do not belong together")
        for name, array in (("prediction", prediction), ("truth", truth)):
            if array.dtype.kind not in "iub":
                raise ValueError(f"the {name} holds {array.dtype}, not the integers of a label map")
        if prediction.flags.f_contiguous and truth.flags.f_contiguous:  # runs are found in the order of memory
            prediction, truth = prediction.T, truth.T
        runs = [_runs(truth[rows].ravel(), prediction[rows].ravel(), ignore) for rows in row_slabs(truth.shape)]
        known, t, p, voxels = _merged(*(np.concatenate(part) for part in zip(*runs, strict=True))) if runs else _merged(*_NOTHING)
        of_truth, of_prediction = known & (t != 0), p != 0
        truth_ids, rows = np.unique(t[of_truth], return_inverse=True)
        prediction_ids, columns = np.unique(p[of_prediction], return_inverse=True)
        unknown = np.where(known, 0, voxels)[of_prediction]
        both = of_truth & of_prediction
        row_of, column_of = np.zeros(len(t), np.int64), np.zeros(len(t), np.int64)
        row_of[of_truth], column_of[of_prediction] = rows, columns
        class_of = classes or np.ones_like
        return cls(
            truth=Objects(
                truth_ids,
                class_of(truth_ids),
                _sums(rows, voxels[of_truth], len(truth_ids)),
                np.zeros(len(truth_ids), np.int64),
                np.isin(truth_ids, np.array(sorted(crowd), np.int64)),
            ),
            prediction=Objects(
                prediction_ids,
                class_of(prediction_ids),
                _sums(columns, voxels[of_prediction], len(prediction_ids)),
                _sums(columns, unknown, len(prediction_ids)),
                np.zeros(len(prediction_ids), bool),
            ),
            rows=row_of[both],
            columns=column_of[both],
            shared=voxels[both],
        )

    def of_class(self, cls: int) -> Contingency:
        """The objects of one class alone."""
        rows, columns = self.truth.classes == cls, self.prediction.classes == cls
        pairs = rows[self.rows] & columns[self.columns]
        return Contingency(
            self.truth.chosen(rows),
            self.prediction.chosen(columns),
            (np.cumsum(rows) - 1)[self.rows[pairs]],
            (np.cumsum(columns) - 1)[self.columns[pairs]],
            self.shared[pairs],
        )

    @cached_property
    def iou(self) -> Floats:
        """`(k,)` intersection over union of each pair, without ignored voxels."""
        sizes = self.prediction.sizes - self.prediction.ignored
        ious: Floats = self.shared / (self.truth.sizes[self.rows] + sizes[self.columns] - self.shared)
        return ious

    @cached_property
    def akin(self) -> Flags:
        """`(k,)` whether both objects of a pair have the same class."""
        same: Flags = self.truth.classes[self.rows] == self.prediction.classes[self.columns]
        return same

    @cached_property
    def excused(self) -> Flags:
        """`(m,)` predicted objects of which more than half is ignored or within crowds of their class: never false positives."""
        within = self.akin & self.truth.crowd[self.rows]
        hidden = self.prediction.ignored + _sums(self.columns[within], self.shared[within], len(self.prediction))
        mostly: Flags = hidden > 0.5 * self.prediction.sizes
        return mostly


_NOTHING = (np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _runs(truth: NDArray[Any], prediction: NDArray[Any], ignore: int | None) -> tuple[Flags, Integers, Integers, Integers]:
    """Whether the truth is known, its value, the predicted value, and voxels: of all pairs of values in two flat arrays but (0, 0)."""
    changes = np.flatnonzero((truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])) + 1
    starts = np.concatenate([np.zeros(min(1, truth.size), np.int64), changes])
    t, p = truth[starts].astype(np.int64), prediction[starts].astype(np.int64)
    lengths = np.diff(starts, append=truth.size)
    known = np.ones(len(t), bool) if ignore is None else t != ignore
    counts = (p != 0) | (known & (t != 0))
    return _merged(known[counts], t[counts], p[counts], lengths[counts])


def _merged(known: Flags, t: Integers, p: Integers, voxels: Integers) -> tuple[Flags, Integers, Integers, Integers]:
    """The same with every pair of values once."""
    ts, t_at = np.unique(t, return_inverse=True)
    ps, p_at = np.unique(p, return_inverse=True)
    pairs, at = np.unique(t_at * max(1, len(ps)) + p_at, return_inverse=True)
    first = np.zeros(len(pairs), np.int64)
    first[at] = np.arange(len(at))
    return known[first], ts[pairs // max(1, len(ps))], ps[pairs % max(1, len(ps))], _sums(at, voxels, len(pairs))


def _sums(at: Integers, voxels: Integers, count: int) -> Integers:
    """Sum of the voxels at each index; exact below 2**53."""
    return np.bincount(at, weights=voxels, minlength=count).astype(np.int64)
