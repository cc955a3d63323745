"""Semantic segmentation: a class for every voxel, or overlapping regions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from medseg.case import Batch
from medseg.dataset import Dataset, Labels
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.losses.blobs import number_blobs
from medseg.losses.dice import IGNORED, Form, exclusive_loss, region_loss
from medseg.losses.levels import at_size, shares
from medseg.metrics import METRICS, score_classes
from medseg.metrics.contingency import Contingency
from medseg.models.base import Head, Outputs
from medseg.plans import TargetSection
from medseg.prediction import DenseMap, Prediction, Scores
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs
from medseg.tasks.base import Needs, Task
from medseg.tasks.cleaning import Cleaning, HeldOut, clean, learn

HEAD = "segmentation"
BACKGROUND = "background"  # name of the channel that stands for no class
SURE = 12.0  # logit of a perfect network: e^-12 of doubt
RARE = 20.0  # a foreground class this many times rarer than the most frequent one gets weight
FAINTEST = 1e-4  # a class is never taken to be rarer, so that its first logits are not out of reach
MANY = 5  # components per case from which a single one hardly shows in the Dice of its class
HEAVIEST = 5.0  # more would make the cross entropy of a rare class drown all others


class SemanticSettings(TargetSection):
    """What the loss asks of the network."""

    seldom: ClassVar[tuple[str, ...]] = ("missed", "blob", "focal", "hardest")

    kind: Literal["semantic"] = "semantic"
    frequencies: tuple[float, ...] = Field(
        description="Share of annotated voxels that each channel of the network stands for; its first guess before anything is learnt."
    )
    class_weights: tuple[float, ...] = Field(
        description="Weight of each class in the cross entropy, in the order of the network's channels; empty: all alike."
    )
    batch_dice: bool = Field(description="Dice over all windows of a batch together instead of window by window.")
    dice: float = Field(ge=0, le=10, description="Factor of the overlap: soft Dice, or Tversky (see `missed`).")
    cross_entropy: float = Field(ge=0, le=10, description="Factor of the cross entropy.")
    missed: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Weight of missed voxels in the overlap, against 1 minus it of invented ones: 0.5 is the Dice, others are the Tversky "
        "index. Written where it is not 0.5.",
    )
    blob: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Factor of the blob loss: the overlap of each connected component by itself, in which small ones count as much as large "
        "ones. Every step waits for the CPU to number them (0.03 s for a window of 128^3). Written where it is not 0.",
    )
    focal: float = Field(
        default=0.0,
        ge=0,
        le=5,
        description="Exponent by which the cross entropy of voxels that are nearly right fades (focal loss; 2 is usual). Written where it is "
        "not 0.",
    )
    hardest: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the voxels, the hardest ones, that the cross entropy is the mean of (top-k loss; 0.1 is usual). Written where it "
        "is not 1.",
    )
    cleaning: tuple[Cleaning, ...] = Field(default=(), description="What is done to predicted label maps; learned of held-out predictions.")

    def training_key(self) -> str:
        """Cleaning comes after training."""
        return self.model_copy(update={"cleaning": ()}).to_json()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not 0 < f < 1 for f in self.frequencies):
            raise ValueError(f"frequencies lie between 0 and 1; found {list(self.frequencies)}")
        if self.class_weights and (len(self.class_weights) != len(self.frequencies) or min(self.class_weights) <= 0):
            raise ValueError(f"class_weights needs {len(self.frequencies)} positive values, or none; found {list(self.class_weights)}")
        if self.dice + self.cross_entropy == 0:
            raise ValueError("dice and cross_entropy cannot both be 0")
        return self


class Semantic(Task):
    """Softmax over background and classes that exclude each other; sigmoid per region where they overlap.

    One head, `segmentation`: `1 + K` channels with background first, or `K` channels for regions.
    """

    Settings = SemanticSettings
    summary = "a class for every voxel (softmax), or overlapping regions (sigmoid); voxels may be ignored"
    metrics = tuple(METRICS)

    @staticmethod
    def needs(dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        """One head, and class weights where some classes are much rarer than others."""
        labels = dataset.labels
        if labels.things:
            raise PlanError.of(
                "labels that tell objects apart are not for this task",
                where=f"dataset '{dataset.name}'",
                found=f"objects of {', '.join(labels.things)}",
                fix="Leave out --task, or --objects.",
            )
        weights, why = _class_weights(fingerprint)
        names = ", ".join(labels.names)
        reasons = {
            "kind": f"Labels give a class to every voxel: {names}"
            + (" (exclusive: softmax)." if labels.exclusive else " (regions that may overlap: one sigmoid each)."),
            "frequencies": "Measured: a network that starts from them need not first learn that most voxels are background.",
            "class_weights": why,
            "batch_dice": "Small objects may be missing from a window; over the whole batch their Dice is stable.",
            "dice": " ".join(("Optimises the score itself, whatever the class imbalance.", *_many_small(fingerprint))),
            "cross_entropy": "Smooth gradients where the Dice has none; the sum of both is nnU-Net's loss.",
            "cleaning": "None yet: `medseg run --folds all` learns it of the predictions of held-out cases.",
        }
        frequencies = _frequencies(fingerprint)
        target = SemanticSettings(frequencies=frequencies, class_weights=weights, batch_dice=True, dice=1.0, cross_entropy=1.0)
        return Needs(labels, len(dataset.channels), _heads(labels, target), target, reasons)

    @property
    def labels(self) -> Labels:
        """Classes, ignore value, written values."""
        return self.plan.data.labels

    @property
    def settings(self) -> SemanticSettings:
        """The task's section of the plan."""
        settings: SemanticSettings = self.plan.target
        return settings

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Task.heads`."""
        return _heads(self.labels, self.settings)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """`classes` `(N, *window)` int64 with `IGNORED`; or `regions` `(N, K, *window)` uint8 and `valid` `(N, *window)` bool.

        Where the loss asks for them, `blobs`: the number of each voxel's component, `(N, *window)` or `(N, K, *window)` int16.
        """
        if batch.label is None:
            raise ValueError("targets need labels")
        label = batch.label
        if self.labels.exclusive:
            targets = {"classes": self._constant(self._table, torch.int64, label.device)[label.long() - self._lowest]}
            return targets | {"blobs": number_blobs(targets["classes"])} if self.settings.blob else targets
        regions = [torch.isin(label, self._constant(c.values, label.dtype, label.device)) for c in self.labels.classes]
        valid = torch.ones_like(label, dtype=torch.bool) if self.labels.ignore is None else label != self.labels.ignore
        targets = {"regions": torch.stack(regions, 1).to(torch.uint8), "valid": valid}
        if self.settings.blob:
            seen = targets["regions"] * valid[:, None]
            targets["blobs"] = number_blobs(seen.flatten(0, 1)).view(seen.shape)
        return targets

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dice`, `cross_entropy` and, where it is chosen, `blob`: each over all supervised resolutions with weights 1, 1/2, 1/4, ... that
        sum to 1 (nnU-Net)."""
        settings = self.settings
        maps = outputs[HEAD]
        factors = {"dice": settings.dice, "cross_entropy": settings.cross_entropy} | ({"blob": settings.blob} if settings.blob else {})
        sums: dict[str, Tensor] = {}
        for share, logits in zip(shares(len(maps)), maps, strict=True):
            terms = self._terms(logits, {name: at_size(target, logits.shape[2:]) for name, target in targets.items()})
            for name, factor in factors.items():
                term = terms[name] * (factor * share)
                sums[name] = sums[name] + term if name in sums else term
        return sums

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of +-12."""
        if self.labels.exclusive:
            channels = torch.arange(self.heads[0].channels, device=targets["classes"].device)
            hot = (targets["classes"].clamp_min(0)[..., None] == channels).movedim(-1, 1).float()
        else:
            hot = targets["regions"].float()
        return {HEAD: (2 * hot - 1) * SURE}

    def decode(
        self,
        outputs: Mapping[str, DenseMap],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """The most probable class per voxel (exclusive), or every region above one half, written in `Labels.order`."""
        dense = outputs[HEAD]
        if self.labels.exclusive and not probabilities and not uncertainty:
            decoded = self._empty(dense.shape[1:], scratch)
            for rows, channels in dense.strongest():
                decoded[rows] = self._values[channels]
                release(decoded)
            return Prediction(case_id, decoded)

        def chances() -> Iterator[tuple[slice, NDArray[np.float32]]]:
            for rows, slab in dense.slabs():
                logits = np.asarray(slab, dtype=np.float32)
                yield rows, _softmax(logits) if self.labels.exclusive else _sigmoid(logits)

        return self._decided(chances(), dense.shape, case_id, probabilities, scratch, uncertainty)

    def combine(
        self,
        predictions: Sequence[Prediction],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """The mean of the class probabilities, decided as `decode` decides; nnU-Net's ensembles are the same."""
        parts = [one.probabilities for one in predictions if one.probabilities is not None]
        if not parts or len(parts) < len(predictions):
            raise ValueError("predictions are combined by their probabilities")
        shape = parts[0].shape

        def chances() -> Iterator[tuple[slice, NDArray[np.float32]]]:
            for rows in row_slabs((shape[1], shape[0], *shape[2:])):
                total = sum((part[:, rows].astype(np.float64) for part in parts), start=np.zeros(1))  # exact in whatever order
                for part in parts:
                    release(part)
                yield rows, (total / len(parts)).astype(np.float32)

        return self._decided(chances(), shape, case_id, probabilities, scratch, uncertainty)

    def _decided(
        self,
        slabs: Iterable[tuple[slice, NDArray[np.float32]]],
        shape: tuple[int, ...],
        case_id: str,
        probabilities: bool,
        scratch: Scratch,
        uncertainty: bool,
    ) -> Prediction:
        """A prediction from slabs of class probabilities of an array `(K, *spatial)` of this shape."""
        labels = self.labels
        decoded = self._empty(shape[1:], scratch)
        kept = scratch.zeros(shape, np.float16) if probabilities else None
        doubt, voxels = 0.0, 0
        for rows, chances in slabs:
            if labels.exclusive:
                decoded[rows] = self._values[chances.argmax(0)]
            else:
                slab = decoded[rows]
                for chance, value in zip(chances, labels.written, strict=True):
                    slab[chance > 0.5] = value
            if uncertainty:
                found = decoded[rows] != 0
                doubt += float(_entropy(chances[:, found], labels.exclusive).sum(dtype=np.float64))
                voxels += int(found.sum())
            if kept is not None:
                kept[:, rows] = chances
                release(kept)
            release(decoded)
        return Prediction(case_id, decoded, kept, doubt / voxels if voxels else None)

    def learn(self, cases: Iterable[HeldOut]) -> tuple[TargetSection, dict[str, str]]:
        """See `medseg.tasks.cleaning.learn`."""
        rules, why = learn(cases, self.labels)
        return self.settings.model_copy(update={"cleaning": rules}), {"cleaning": why}

    def finish(self, labels: NDArray[Any], spacing: tuple[float, ...]) -> NDArray[Any]:
        """See `medseg.tasks.cleaning.clean`."""
        return clean(labels, self.settings.cleaning, self.labels, spacing)

    def score(
        self,
        prediction: NDArray[Any],
        truth: NDArray[Any],
        spacing: tuple[float, ...],
        metrics: tuple[str, ...] | None = None,
        counted: Contingency | None = None,
    ) -> Scores:
        """See `medseg.metrics.classes.score_classes`."""
        return score_classes(prediction, truth, self.labels, spacing, self.metrics if metrics is None else metrics)

    def _terms(self, logits: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        settings = self.settings
        weights = self._constant(settings.class_weights, torch.float32, logits.device) if settings.class_weights else None
        form = Form(settings.batch_dice, settings.missed, settings.focal, settings.hardest)
        if self.labels.exclusive:
            return exclusive_loss(logits, targets["classes"], weights, form, targets.get("blobs"))
        return region_loss(logits, targets["regions"], targets["valid"], weights, form, targets.get("blobs"))

    def _constant(self, values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """These numbers as a tensor, made once: a step that copies them to a GPU waits for it."""
        key = (values, dtype, device)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=device)
        return self._constants[key]

    @cached_property
    def _constants(self) -> dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor]:
        return {}

    def _empty(self, shape: tuple[int, ...], scratch: Scratch) -> NDArray[Any]:
        """A label map `(*shape)` of background, of the smallest type that holds all values that are written."""
        return scratch.zeros(shape, np.promote_types(self._values.dtype, np.uint8))

    @cached_property
    def _values(self) -> NDArray[Any]:
        """What is written for background and each class."""
        values = (0, *self.labels.written)
        return np.asarray(values, dtype=np.result_type(np.min_scalar_type(min(values)), np.min_scalar_type(max(values))))

    @cached_property
    def _lowest(self) -> int:
        return min(0, *self._meanings)

    @cached_property
    def _table(self) -> tuple[int, ...]:
        """Channel of each voxel value, from `_lowest` on."""
        return tuple(self._meanings.get(value, 0) for value in range(self._lowest, max(0, *self._meanings) + 1))

    @cached_property
    def _meanings(self) -> dict[int, int]:
        """Voxel value to channel, for background, classes and the ignore value."""
        meanings = {0: 0} | {value: k for k, c in enumerate(self.labels.classes, 1) for value in c.values}
        return meanings if self.labels.ignore is None else meanings | {self.labels.ignore: IGNORED}


def _heads(labels: Labels, settings: SemanticSettings) -> tuple[Head, ...]:
    odds = (math.log(f) if labels.exclusive else math.log(f / (1 - f)) for f in settings.frequencies)
    names = (BACKGROUND, *labels.names) if labels.exclusive else labels.names
    return (Head(HEAD, len(names), tuple(odds), names),)


def _frequencies(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Share of annotated voxels of each channel over the dataset, bounded away from 0 and 1."""
    voxels = [sum(case.classes[k].voxels for case in fingerprint.cases) for k in range(len(fingerprint.labels.classes))]
    total = max(1, sum(math.prod(case.shape) - case.ignored for case in fingerprint.cases))
    if fingerprint.labels.exclusive:
        voxels.insert(0, total - sum(voxels))
    return tuple(float(f"{min(max(v / total, FAINTEST), 1 - FAINTEST):.4g}") for v in voxels)


def _class_weights(fingerprint: Fingerprint) -> tuple[tuple[float, ...], str]:
    """Square roots of inverse frequencies, where classes differ more than `RARE` times in frequency; and why."""
    labels = fingerprint.labels
    voxels = [sum(case.classes[k].voxels for case in fingerprint.cases) for k in range(len(labels.classes))]
    seen = [v for v in voxels if v]
    if len(seen) < 2:
        return (), "None: there is one class."
    rare, common = labels.names[voxels.index(min(seen))], labels.names[voxels.index(max(seen))]
    ratio = f"'{common}' has {max(seen) / min(seen):.3g} times the voxels of '{rare}'"
    if max(seen) < RARE * min(seen):
        return (), f"None: {ratio}, and the Dice loss balances up to {RARE:g} times."
    weights = tuple(round(min(HEAVIEST, math.sqrt(max(seen) / v)), 3) if v else 1.0 for v in voxels)
    why = f"{ratio}: square roots of the inverse frequencies, at most {HEAVIEST:g}."
    return ((1.0, *weights) if labels.exclusive else weights), why


def _many_small(fingerprint: Fingerprint) -> tuple[str, ...]:
    """What is to be said of classes that are many separate objects."""
    told = []
    for k, name in enumerate(fingerprint.labels.names):
        found = [case.classes[k] for case in fingerprint.cases if case.classes[k].components]
        number = float(np.median([c.components for c in found])) if found else 0.0
        if number >= MANY:
            size = float(np.median([c.sizes[len(c.sizes) // 2] for c in found]))
            told.append(f"'{name}' is {number:g} components in the median case, half of them below {size:g} voxels")
    if not told:
        return ()
    return (
        "; ".join(told) + ": half of the windows are shared evenly by them.",
        "Tversky, blob, focal and top-k losses (missed, blob, focal, hardest) brought no consistent gain in a small trial on such data "
        "(benchmarks/losses.py), so none is chosen.",
    )


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(torch.from_numpy(logits).sigmoid(), dtype=np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0), dtype=np.float32)


def _entropy(chances: NDArray[np.float32], exclusive: bool) -> NDArray[np.float32]:
    """Entropy of `(K, voxels)` probabilities, from 0 (sure) to 1 (ignorant): of the classes, or the mean over regions."""
    safe = np.clip(chances, 1e-7, 1 - 1e-7)
    if exclusive:
        return np.asarray(-(safe * np.log(safe)).sum(0) / math.log(len(safe)), dtype=np.float32)
    return np.asarray(-(safe * np.log2(safe) + (1 - safe) * np.log2(1 - safe)).mean(0), dtype=np.float32)
