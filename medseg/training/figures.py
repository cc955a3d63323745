"""Pictures of a training: its curves, and predictions over images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg.case import PreparedCase
from medseg.dataset import Labels
from medseg.prediction import Prediction
from medseg.training.history import History


def draw_curves(history: History, metric: str, file: Path) -> None:
    """Loss terms, validation by class and learning rate over the epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    names = sorted({name for row in history.rows for name in row})
    for name in ["loss", *(n for n in names if n.startswith("loss/"))]:
        loss.plot(*history.curve(name), label=name.removeprefix("loss/"), linewidth=2 if name == "loss" else 1)
    prefix = f"val/{metric}"
    for name in [n for n in names if n == prefix or n.startswith(f"{prefix}/")]:
        label = name.removeprefix(f"{prefix}/") if name != prefix else "mean"
        score.plot(*history.curve(name), label=label, marker=".", linewidth=2 if name == prefix else 1)
    rate.plot(*history.curve("learning_rate"))
    for axes, title in ((loss, "training loss"), (score, f"validation {metric}"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def draw_overlay(case: PreparedCase, prediction: Prediction, labels: Labels, file: Path) -> bool:
    """Image, annotation and prediction of the slice with the most foreground; False where a case is no image (not 2D or 3D)."""
    if len(case.shape) not in (2, 3) or case.label is None:
        return False
    image, truth, found = (
        np.asarray(case.image[0], np.float32),
        labels.semantic(np.asarray(case.label)),
        labels.semantic(np.asarray(prediction.labels)),
    )
    if image.ndim == 3:
        foreground = np.isin(truth, labels.values).sum(axis=(1, 2))
        row = int(foreground.argmax()) if foreground.any() else len(image) // 2
        image, truth, found = image[row], truth[row], found[row]
    low, high = np.percentile(image, [1, 99])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, title, mask in zip(figure.subplots(1, 3), ("image", "annotation", "prediction"), (None, truth, found), strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
        if mask is not None:
            axes.imshow(_colours(mask, labels), interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    figure.savefig(file, dpi=110)
    return True


def _colours(mask: NDArray[Any], labels: Labels) -> NDArray[np.float32]:
    """Half-transparent colour per written value, `(H, W, 4)`."""
    table = matplotlib.colormaps["tab10"]
    image = np.zeros((*mask.shape, 4), np.float32)
    for number, value in enumerate(sorted({*labels.values, *labels.written})):
        image[mask == value] = (*table(number % 10)[:3], 0.5)
    return image
