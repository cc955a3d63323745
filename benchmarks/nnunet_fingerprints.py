"""Datasets to compare planners on: modelled on the Medical Segmentation Decathlon, and random valid ones.

The Decathlon's own fingerprints are not published. `decathlon` makes datasets with the numbers of cases, channels, classes, median shapes
and spacings that the literature gives for its tasks (Antonelli et al. 2022; Isensee et al. 2021, supplement), entered from memory and not
checked again; cases vary about them, and the intensities, which the planner only copies, are invented.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Job:
    """Nothing but what nnU-Net's two files hold."""

    group: str
    name: str
    dataset: dict[str, Any]
    fingerprint: dict[str, Any]


# name, cases, channels, classes, median shape, median spacing, slice spacing of every eighth case, share left by cropping
DECATHLON: tuple[tuple[str, int, tuple[str, ...], int, tuple[int, int, int], Triple, float, float], ...] = (
    ("Dataset001_BrainTumour", 484, ("FLAIR", "T1w", "t1gd", "T2w"), 3, (138, 169, 138), (1, 1, 1), 1, 0.36),
    ("Dataset002_Heart", 20, ("MRI",), 1, (115, 320, 232), (1.37, 1.25, 1.25), 1.37, 1),
    ("Dataset003_Liver", 131, ("CT",), 2, (482, 512, 512), (1, 0.77, 0.77), 1, 1),
    ("Dataset004_Hippocampus", 260, ("MRI",), 2, (36, 50, 35), (1, 1, 1), 1, 1),
    ("Dataset005_Prostate", 32, ("T2", "ADC"), 2, (20, 320, 319), (3.6, 0.62, 0.62), 3.6, 1),
    ("Dataset006_Lung", 63, ("CT",), 1, (252, 512, 512), (1.24, 0.79, 0.79), 1.24, 1),
    ("Dataset007_Pancreas", 281, ("CT",), 2, (93, 512, 512), (2.5, 0.8, 0.8), 2.5, 1),
    ("Dataset008_HepaticVessel", 303, ("CT",), 2, (49, 512, 512), (5, 0.8, 0.8), 1.5, 1),
    ("Dataset009_Spleen", 41, ("CT",), 1, (60, 512, 512), (5, 0.79, 0.79), 1.6, 1),
    ("Dataset010_Colon", 126, ("CT",), 1, (90, 512, 512), (5, 0.78, 0.78), 3, 1),
)


def decathlon() -> list[Job]:
    """Ten datasets with the Decathlon's numbers."""
    jobs = []
    for name, cases, channels, classes, shape, spacing, finest, left in DECATHLON:
        rng = random.Random(name)
        shapes, spacings = [], []
        # Symmetric about the median, which stays what it is; along each axis in another order.
        about = [math.exp(0.3 * (2 * i / (cases - 1) - 1)) for i in range(cases)]
        factors = [rng.sample(about, cases) for _ in range(3)]
        for case in range(cases):
            fine = finest if case % 8 == 0 else spacing[0]
            varies = shape[1] == 512  # the matrix of CT is fixed, and its pixels vary
            spacings.append([fine, *(s * (factors[1][case] if varies else 1) for s in spacing[1:])])
            slices = shape[0] * spacing[0] / fine * factors[0][case]
            shapes.append([round(slices), *(n if varies else round(n * factors[a][case]) for a, n in enumerate(shape[1:], 1))])
        labels = {"background": 0, **{f"class {i}": i for i in range(1, classes + 1)}}
        names = {str(i): c for i, c in enumerate(channels)}
        dataset = {"channel_names": names, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
        jobs.append(Job("decathlon", name, dataset, _fingerprint(rng, shapes, spacings, len(channels), left)))
    return jobs


NAMES = (
    ("CT", "ct", "Ct", "CT2", "CT "),
    ("MRI", "T1", "FLAIR", "PET", "0"),
    ("zscore", "ZScore", "ZSCORE"),
    ("noNorm", "nonorm", "NONORM"),
    ("rescale_to_0_1", "Rescale_to_0_1", "rescale-to-0-1"),
    ("rgb_to_0_1", "RGB_to_0_1", "R", "rgb"),
)
KINDS = ("natural", "slice", "isotropic", "anisotropic", "mixed", "one slice", "tiny", "huge", "long")


def drawn(count: int, seed: int) -> list[Job]:
    """Random valid datasets, all kinds in turn."""
    return [_random(random.Random(f"{seed} {i}"), i) for i in range(count)]


def _random(rng: random.Random, number: int) -> Job:
    kind = KINDS[number % len(KINDS)]
    cases = round(10 ** rng.uniform(0, 2.5))
    shape, spacing = _median(rng, kind)
    spread = rng.choice((0, 0.05, 0.3, 0.8))
    shapes, spacings = [], []
    protocol = tuple(s * rng.uniform(0.2, 1) if a == spacing.index(max(spacing)) else s for a, s in enumerate(spacing))
    for _ in range(cases):
        base = protocol if kind == "mixed" and rng.random() < 0.4 else spacing
        flat = kind in ("natural", "slice")
        keep = flat or (kind == "one slice")
        spacings.append(
            [s if (flat and a == 0) or kind == "natural" else s * math.exp(rng.uniform(-spread, spread) / 2) for a, s in enumerate(base)]
        )
        shapes.append([1 if keep and n == 1 else max(1, round(n * math.exp(rng.uniform(-spread, spread)))) for n in shape])
    if rng.random() < 0.5:
        spacings = [[round(s, 3) for s in one] for one in spacings]
    left = rng.choice((1.0, 0.75, rng.uniform(0.05, 1)))
    channels = rng.randint(1, 5)
    names = {str(i): rng.choice(rng.choice(NAMES)) for i in range(channels)}
    dataset: dict[str, Any] = {
        ("modality" if rng.random() < 0.1 else "channel_names"): names,
        **_labels(rng),
        "numTraining": cases,
        "file_ending": rng.choice((".png", ".bmp", ".tif") if kind == "natural" else (".nii.gz", ".nii", ".nrrd", ".mha", ".tif", ".tiff")),
        "licence": "none",
    }
    if rng.random() < 0.2:
        dataset["overwrite_image_reader_writer"] = rng.choice(
            ("None", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient", "NoSuchIO")
        )
    name = f"Dataset{number % 1000:03d}_{kind.replace(' ', '')}{number}"
    return Job(kind, name, dataset, _fingerprint(rng, shapes, spacings, channels, left))


def _median(rng: random.Random, kind: str) -> tuple[list[int], list[float]]:
    def sizes(low: float, high: float) -> list[int]:
        return [round(math.exp(rng.uniform(math.log(low), math.log(high)))) for _ in range(3)]

    fine = math.exp(rng.uniform(math.log(0.2), math.log(3)))
    if kind == "natural":
        return [1, *sizes(24, 4000)[1:]], [999, 1, 1]
    if kind == "slice":
        return [1, *sizes(24, 1500)[1:]], [rng.choice((999, 1, 8)) * fine * 1.5, fine, fine * rng.choice((1, 1, rng.uniform(0.3, 1.4)))]
    if kind == "isotropic":
        shape = sizes(16, 500)
        return (shape if rng.random() < 0.6 else [shape[0]] * 3), [fine] * 3
    if kind == "tiny":
        return sizes(2, 24), [fine * rng.choice((1, 1, 2, 3)) for _ in range(3)]
    if kind == "huge":
        return sizes(300, 1500), [fine * rng.uniform(1, 2) for _ in range(3)]
    coarse = rng.randrange(3)
    spacing = [fine * rng.uniform(0.9, 1.1) for _ in range(3)]
    if kind == "one slice":
        shape = sizes(24, 700)
        shape[coarse] = 1
        return shape, spacing
    if kind == "long":  # two coarse axes, or one fine one
        spacing[coarse] /= rng.uniform(1.5, 6)
        return sizes(12, 600), spacing
    spacing[coarse] *= math.exp(rng.uniform(0, math.log(15)))
    shape = sizes(64, 700)
    shape[coarse] = sizes(4, 200)[0]
    return shape, spacing


def _labels(rng: random.Random) -> dict[str, Any]:
    classes = rng.choice((1, 2, 3, 5, 14, 117))
    labels: dict[str, Any] = {"background": 0, **{f"class {i}": i for i in range(1, classes + 1)}}
    found: dict[str, Any] = {"labels": labels}
    if classes > 1 and rng.random() < 0.3:
        for i in range(1, classes):
            labels[f"class {i}"] = list(range(i, classes + 1))
        found["regions_class_order"] = list(range(1, classes + 1))
    if rng.random() < 0.2:
        labels["ignore"] = classes + 1
    return found


def _fingerprint(rng: random.Random, shapes: list[list[int]], spacings: list[list[float]], channels: int, left: float) -> dict[str, Any]:
    intensities = {}
    for channel in range(channels):
        mean, std = rng.uniform(-100, 1000), rng.uniform(1, 400)
        values = {"mean": mean, "median": mean + std / 9, "std": std, "min": mean - 5 * std, "max": mean + 7 * std}
        intensities[str(channel)] = values | {"percentile_00_5": mean - 2.5 * std, "percentile_99_5": mean + 2.7 * std}
    return {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": left,
    }
