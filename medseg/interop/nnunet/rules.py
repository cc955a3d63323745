"""The rules of nnU-Net's planner that look at the fingerprint alone.

Source: see `medseg.interop.nnunet.planner`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.errors import PlanError
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetFingerprint

Vector = NDArray[np.float64]
Table = NDArray[np.float64]

ANISOTROPY = 3  # an axis is coarse when its spacing is more than so many times that of the others
CROPPED = 3 / 4  # cases that lose more by cropping to nonzero are normalised inside the nonzero region
SCHEMES = {  # by channel name, whatever its case; all other channels are normalised by their own mean and deviation
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
OTHERWISE = "ZScoreNormalization"
MASKED = {OTHERWISE}  # the schemes for which nnU-Net leaves voxels outside the mask at zero
READERS = {  # by file ending
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".nii.gz": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".mha": "SimpleITKIO",
    ".gipl": "SimpleITKIO",
    ".tiff": "Tiff3DIO",
    ".nii": "NibabelIO",
}
PIXELS = (999, 1, 1)  # the spacing that NaturalImage2DIO gives all images
ON_REQUEST = {"NibabelIOWithReorient", "SimpleITKIOWithReorient"}


def target_spacing(spacings: Table, shapes: NDArray[np.int64]) -> Vector:
    """The median spacing in mm; along an axis that is much coarser and has far fewer voxels, the 10th percentile.

    Such data (ACDC: 10 mm slices) hold cases with finer slices too, and resampling these to the median invents or loses whole slices.

    Args:
        spacings: mm per case and axis.
        shapes: voxels per case and axis.
    """
    target: Vector = np.percentile(spacings, 50, 0)
    size = np.percentile(shapes, 50, 0)
    worst = int(np.argmax(target))
    others = [a for a in range(len(target)) if a != worst]
    finer = max(target[others])
    if target[worst] > ANISOTROPY * finer and size[worst] * ANISOTROPY < min(size[others]):
        fine = np.percentile(spacings[:, worst], 10)
        target[worst] = finer + 1e-5 if fine < finer else fine  # it stays the coarsest axis
    return target


def coarsest_first(spacing: Vector) -> tuple[int, int, int]:
    """The order of axes with the largest spacing first: 2D windows go through it slice by slice."""
    worst = int(np.argmax(spacing))
    first, second = (a for a in range(3) if a != worst)
    return worst, first, second


def median_shape(spacings: Table, shapes: NDArray[np.int64], target: Vector) -> Vector:
    """Voxels per axis of the median case at the target spacing; halves with an even number of cases."""
    resampled = [
        [round(has / wanted * n) for has, wanted, n in zip(spacing, target, shape, strict=True)]
        for spacing, shape in zip(spacings.tolist(), shapes.tolist(), strict=True)
    ]
    return np.asarray(np.median(resampled, 0))


def normalization(dataset: NnUNetDataset, fingerprint: NnUNetFingerprint) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """nnU-Net's normalisation class of each channel, by its name, and whether it looks at the nonzero region only."""
    schemes = tuple(SCHEMES.get(name.casefold(), OTHERWISE) for name in dataset.channels)
    cropped = fingerprint.median_relative_size_after_cropping < CROPPED
    return schemes, tuple(cropped and scheme in MASKED for scheme in schemes)


def reader(dataset: NnUNetDataset, fingerprint: NnUNetFingerprint) -> str:
    """nnU-Net's class that reads the images, by file ending.

    nnU-Net tries it on the first image and takes the next class that knows the ending when that fails (oblique NIfTI: `NibabelIO`);
    without images only `.tif` can be told apart, by the spacing that images get. A dataset whose images need another class says so in
    `overwrite_image_reader_writer`.

    Raises:
        PlanError: nnU-Net reads no such files.
    """
    asked = dataset.overwrite_image_reader_writer
    if asked in {*READERS.values(), *ON_REQUEST}:
        return str(asked)
    ending = dataset.file_ending.lower()
    if ending == ".tif":
        return "NaturalImage2DIO" if all(spacing == PIXELS for spacing in fingerprint.spacings) else "Tiff3DIO"
    if ending not in READERS:
        raise PlanError.of(
            "nnU-Net reads no such files",
            where="dataset.json, field 'file_ending'",
            found=dataset.file_ending,
            expected=", ".join((*READERS, ".tif")),
            fix="Name another ending, or the class that reads the images in 'overwrite_image_reader_writer'.",
        )
    return READERS[ending]
