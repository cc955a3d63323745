"""Tiny models whose right answer is known: the network says foreground where the normalised image is above zero."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medseg.device import Machine
from medseg.inference.predictor import Predictor
from medseg.io.layouts.base import open_dataset
from medseg.planning.fingerprinting import make_fingerprint
from medseg.planning.planner import make_plans
from medseg.plans import Plan


class Threshold(torch.nn.Module):
    """Logits (0, first channel): class 1 where the input is positive."""

    def forward(self, image):
        return {"segmentation": [torch.cat([torch.zeros_like(image[:, :1]), image[:, :1]], 1)]}


def blobs(shape, seed=0):
    """A binary image with structure at every rim."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.3
    mask[tuple(n // 3 for n in shape)] = True
    mask[tuple(n // 2 for n in shape)] = False
    return mask


def write_nifti(path: Path, array, affine=None, code=1) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, code)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def tiny_dataset(root: Path, shape, channels=1) -> Path:
    for i in range(3):
        mask = blobs(shape, i)
        for channel in range(channels):
            name = f"case{i}" + (f"_{channel:04d}" if channels > 1 else "")
            write_nifti(root / "images" / f"{name}.nii.gz", np.where(mask, 100, 10 + channel).astype(np.int16))
        write_nifti(root / "labels" / f"case{i}.nii.gz", mask.astype(np.uint8))
    return root


def tiny_plan(root: Path, shape, name: str, channels=1) -> Plan:
    dataset = open_dataset(tiny_dataset(root, shape, channels))
    fingerprint = make_fingerprint(dataset, "grid", cache=None, workers=1)
    plans = make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=Machine("cpu", 2))
    plan = next(plan for plan in plans if plan.name == name)
    free = "[" + ", ".join(["null"] * len(shape)) + "]"
    return plan.edited({"space.spacing": free})


def thresholding(plan: Plan, memory: float | None = None) -> Predictor:
    return Predictor(plan, (Threshold(),), torch.device("cpu"), memory)
