"""Masked autoencoding: random blocks of the image are hidden, and the network fills them in. It needs no annotation.

Sources: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; for convolutional networks Tian et al., Designing BERT for
Convolutional Networks (SparK), ICLR 2023, and for volumes Wald et al., Revisiting MAE pre-training for 3D medical image segmentation, CVPR
2025. Here convolutions are dense: hidden voxels are 0, the mean of a normalised image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.case import Batch
from medseg.geometry import Shape
from medseg.models.base import Head, Outputs, find_network
from medseg.plans import Plan, TargetSection
from medseg.tasks.base import Pretext

HEAD, HIDDEN = "image", "hidden"
RATIO = 0.6
LARGEST_BLOCK = 16  # voxels; larger ones hide whole organs
FEWEST_BLOCKS = 4  # along each axis of a window
POOLING = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class MaskedSettings(TargetSection):
    """What is hidden of a window."""

    kind: Literal["masked"] = "masked"
    block: Shape = Field(description="Size of the blocks that are hidden or shown, in samples per axis of the window.")
    ratio: float = Field(gt=0, lt=1, description="Share of the blocks of every window that is hidden.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.block or min(self.block) < 1:
            raise ValueError(f"block must be positive along every axis of the window; found {list(self.block)}")
        return self


class Masked(Pretext):
    """Hidden voxels of the normalised, augmented window are to be reconstructed; the loss is their mean squared error.

    One head, `image`, with a channel for each channel of the input.
    """

    Settings = MaskedSettings
    summary = "pre-training without annotations: hidden blocks of the image are reconstructed (`medseg pretrain`)"

    @staticmethod
    def target(plan: Plan) -> tuple[TargetSection, dict[str, str]]:
        """Blocks as large as one sample at the network's bottleneck."""
        block = tuple(_block(plan, axis) for axis in range(len(plan.window)))
        size = "x".join(map(str, block))
        reasons = {
            "kind": "Masked autoencoding needs nothing but images (He et al. 2022).",
            "block": f"{size}: what one sample of the network's coarsest maps sees, but at most {LARGEST_BLOCK} samples and so many that a "
            f"window has {FEWEST_BLOCKS} along each axis: smaller ones could be filled in from their border.",
            "ratio": f"{RATIO:.0%}: so much that neighbours alone do not tell what is hidden, and little enough that a window still shows "
            "what it is of.",
        }
        return MaskedSettings(block=block, ratio=RATIO), reasons

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Objective.heads`."""
        names = tuple(channel.name for channel in self.plan.data.channels)
        return (Head(HEAD, len(names), names=names),)

    def inputs(self, batch: Batch) -> Tensor:
        """The image with hidden voxels 0."""
        return batch.image.masked_fill(self._hidden(batch), 0)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """`image` `(N, C, *window)`, and `hidden` `(N, 1, *window)` bool."""
        return {HEAD: batch.image, HIDDEN: self._hidden(batch)}

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`reconstruction`: over all supervised resolutions with weights 1, 1/2, 1/4, ... that sum to 1; coarser targets are means."""
        image, hidden = targets[HEAD].float(), targets[HIDDEN].float()
        maps = outputs[HEAD]
        shares = [0.5**level for level in range(len(maps))]
        total = torch.zeros((), device=image.device)
        for share, found in zip(shares, maps, strict=True):
            size = found.shape[2:]
            pool = POOLING[len(size)]
            truth, weight = (image, hidden) if size == image.shape[2:] else (pool(image, size), pool(hidden, size))  # type: ignore[arg-type]
            error = (found.float() - truth).square().mean(1, keepdim=True)
            total = total + share / sum(shares) * (error * weight).sum() / weight.sum().clamp_min(1e-6)
        return {"reconstruction": total}

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The image."""
        return {HEAD: targets[HEAD]}

    def _hidden(self, batch: Batch) -> Tensor:
        """Which voxels are hidden, `(N, 1, *window)`; drawn at the first call for a batch.

        Drawn on the CPU, so that every kind of device hides the same; the blocks of each window are drawn without replacement, so that
        every window hides equally many.
        """
        known = batch.extra.get(HIDDEN)
        if known is not None:
            return known
        target = self.plan.target
        assert isinstance(target, MaskedSettings)
        count, *window = batch.image.shape[0], *batch.image.shape[2:]
        grid = tuple(-(-n // b) for n, b in zip(window, target.block, strict=True))
        blocks = math.prod(grid)
        rank = torch.rand(count, blocks).argsort(1).argsort(1)
        hidden = (rank < max(1, round(target.ratio * blocks))).reshape(count, 1, *grid).to(batch.image.device)
        for axis, (size, block) in enumerate(zip(window, target.block, strict=True), 2):
            hidden = hidden.repeat_interleave(block, axis).narrow(axis, 0, size)
        batch.extra[HIDDEN] = hidden
        return hidden


def _block(plan: Plan, axis: int) -> int:
    """Edge of a block: the network's stride, which is the least by which a window can be shortened."""
    check, size = find_network(plan.network.kind).check, plan.window[axis]

    def fits(by: int) -> bool:
        return not check(plan.network, tuple(n - by if a == axis else n for a, n in enumerate(plan.window)))

    stride = next((by for by in range(1, size) if fits(by)), size)
    return min(size, max(2, min(stride, LARGEST_BLOCK, size // FEWEST_BLOCKS)))
