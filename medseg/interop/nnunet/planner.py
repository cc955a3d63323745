"""nnU-Net's planner as pure functions: from its dataset and fingerprint records to its plans record, equal in every value.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), Methods and supplementary note 2; nnU-Net 2.8.1,
`experiment_planners/default_experiment_planner.py` and `residual_unets/residual_encoder_unet_planners.py`. Equality is measured by
`benchmarks/nnunet_planner.py`. Sums are in the order of nnU-Net, because sizes are rounded and a last digit can decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medseg.errors import PlanError
from medseg.interop.nnunet import rules
from medseg.interop.nnunet.checks import DATASET, FINGERPRINT, dataset_problems, fingerprint_problems
from medseg.interop.nnunet.maps import Pooling, feature_map_values, features, pooling
from medseg.interop.nnunet.presets import DEFAULT, Network, Preset
from medseg.interop.nnunet.records import (
    Activation,
    AnyConfiguration,
    Architecture,
    Configuration,
    DerivedConfiguration,
    NnUNetDataset,
    NnUNetFingerprint,
    NnUNetPlans,
    Normalisation,
    Resampling,
    UNetArguments,
)

T = TypeVar("T")
Vector = NDArray[np.float64]

FULL, LOW, CASCADE = "3d_fullres", "3d_lowres", "3d_cascade_fullres"
RESAMPLING = "resample_data_or_seg_to_shape"
COARSER = 1.03  # step of the search for the spacing of 3d_lowres
SEEN = 0.25  # share of a median case that a window should see
WORTH = 2  # 3d_lowres has cases so many times smaller, or it is left out
SMALLEST_BATCH = 2
REFERENCE_BATCH = {2: 12, 3: 2}  # windows per batch with which the presets' reference values were measured, by number of axes
FIRST_WINDOW = {2: 2048, 3: 256}  # edge of the window from which the search starts, by number of axes


def make_plans(dataset: NnUNetDataset, fingerprint: NnUNetFingerprint, *, name: str, preset: Preset = DEFAULT) -> NnUNetPlans:
    """The plans that nnU-Net's planner writes for a dataset.

    2D always; 3D at full resolution unless cases have one slice; 3D at low resolution, with a cascade on top, where a window at full
    resolution sees too little.

    Args:
        dataset, fingerprint: as `read_folder` read them.
        name: of the dataset's folder, for example `Dataset004_Hippocampus`.
        preset: which of nnU-Net's planners.

    Raises:
        PlanError: the records contradict each other, or the sizes are so extreme that nnU-Net's rules give no network.
    """
    problems = dataset_problems(dataset, DATASET) + fingerprint_problems(fingerprint, dataset, FINGERPRINT)
    if problems:
        raise PlanError(problems)
    spacings = np.array(fingerprint.spacings, dtype=np.float64)
    shapes = np.array(fingerprint.shapes_after_crop)
    target = rules.target_spacing(spacings, shapes)
    forward = rules.coarsest_first(target)
    spacing = target[list(forward)]
    shape = rules.median_shape(spacings, shapes, target)[list(forward)]
    planner = _Planner(dataset, fingerprint, preset)
    low = full = None
    if shape[0] != 1:
        full = planner.configuration(FULL, spacing, shape.tolist(), float(np.prod(shape)))
        low = _low_resolution(planner, spacing, shape, full)
    flat = planner.configuration("2d", spacing[1:], shape[1:].tolist(), float(np.prod(shape)))
    # Where windows see little of a case, single ones often lack a class: Dice is taken over the batch.
    configurations: dict[str, AnyConfiguration] = {"2d": flat.model_copy(update={"batch_dice": True})}
    if low is not None:
        configurations[LOW] = low.model_copy(update={"next_stage": CASCADE})
    if full is not None:
        configurations[FULL] = full.model_copy(update={"batch_dice": low is not None})
    if low is not None:
        configurations[CASCADE] = DerivedConfiguration(inherits_from=FULL, previous_stage=LOW)
    order = list(forward)
    median = np.median(shapes, 0)[order]
    return NnUNetPlans(
        dataset_name=name,
        plans_name=preset.plans,
        original_median_spacing_after_transp=_three(float(s) for s in np.median(spacings, 0)[order]),
        original_median_shape_after_transp=_three(round(n) for n in median),
        image_reader_writer=rules.reader(dataset, fingerprint),
        transpose_forward=forward,
        transpose_backward=_three(forward.index(a) for a in range(3)),
        configurations=configurations,
        experiment_planner_used=preset.planner,
        label_manager="LabelManager",
        foreground_intensity_properties_per_channel=fingerprint.foreground_intensity_properties_per_channel,
    )


def _low_resolution(planner: _Planner, spacing: Vector, shape: Vector, full: Configuration) -> Configuration | None:
    """The configuration with cases just so coarse that a window sees a quarter of them; None where that is hardly coarser.

    The finer axes coarsen alone until they are within a factor of two of the coarsest.
    """
    coarse, sizes, voxels, seen = spacing, shape, float(np.prod(shape)), math.prod(full.patch_size)
    while seen / voxels < SEEN:
        fine = coarse.max() / coarse > 2
        coarse = np.where(fine, coarse * COARSER, coarse) if fine.any() else coarse * COARSER
        sizes = spacing / coarse * shape
        voxels = float(np.prod(sizes))
        seen = math.prod(planner.network(coarse, _rounded(sizes)).pool.window)
    if float(np.prod(shape)) / voxels < WORTH:
        return None
    return planner.configuration(LOW, coarse, _rounded(sizes), voxels)


def _rounded(sizes: Vector) -> list[int]:
    return [round(n) for n in sizes.tolist()]


@dataclass(frozen=True)
class _Fitted:
    """A network that fits the memory, and the values of its feature maps for one window."""

    pool: Pooling
    values: int


@dataclass(frozen=True)
class _Planner:
    """The rules for one configuration."""

    dataset: NnUNetDataset
    fingerprint: NnUNetFingerprint
    preset: Preset

    def network(self, spacing: Vector, shape: Sequence[float]) -> _Fitted:
        """The network with the largest window that fits the memory.

        Args:
            spacing: mm per axis.
            shape: of the median case.
        """
        fitted = self._judged(spacing, shape, pooling(spacing.tolist(), _first_window(spacing, shape)))
        while not self._fits(fitted, len(shape)):
            fitted = self._judged(spacing, shape, _smaller(fitted.pool, spacing.tolist(), shape))
        return fitted

    def _fits(self, fitted: _Fitted, axes: int) -> bool:
        """Whether the smallest batch fits the memory.

        The reference belongs to a batch of `REFERENCE_BATCH` windows. nnU-Net's residual planners make no use of that: their 2D windows shrink
        until the reference batch fits.
        """
        needed: float = fitted.values
        if self.preset.network is Network.plain:
            needed = fitted.values / REFERENCE_BATCH[axes] * SMALLEST_BATCH
        return needed <= self.preset.reference(axes)

    def _judged(self, spacing: Vector, shape: Sequence[float], pool: Pooling) -> _Fitted:
        most = len(self.preset.encoder)
        if min(pool.window) < 1 or len(pool.strides) > most:
            raise PlanError.of(
                "nnU-Net's rules give no network for such cases",
                where=FINGERPRINT,
                found=f"a median case of {'x'.join(f'{n:g}' for n in shape)} voxels of {'x'.join(f'{s:.4g}' for s in spacing)} mm, "
                f"windows of {'x'.join(map(str, pool.window))} voxels and {len(pool.strides)} stages",
                expected=f"at least one voxel per axis and at most {most} stages",
                fix="Check the spacings of the images.",
            )
        return _Fitted(pool, feature_map_values(pool, self.preset, len(self.dataset.labels)))

    def _batch(self, fitted: _Fitted, axes: int, voxels: float) -> int:
        """As many windows as fit the memory, at most the given share of the dataset, at least two.

        One window gives gradients that depend too much on it; a batch with much of the dataset overfits.
        """
        memory = round(self.preset.reference(axes) / fitted.values * REFERENCE_BATCH[axes])
        data = round(voxels * self.dataset.num_training * self.preset.dataset_share / math.prod(fitted.pool.window))
        return max(min(memory, data), SMALLEST_BATCH)

    def configuration(self, name: str, spacing: Vector, shape: Sequence[float], voxels: float) -> Configuration:
        """One configuration, for Dice window by window.

        Args:
            name: of the configuration.
            spacing: mm per axis.
            shape: of the median case along the same axes.
            voxels: of the median volume, also where windows are 2D.
        """
        fitted = self.network(spacing, shape)
        schemes, masked = rules.normalization(self.dataset, self.fingerprint)
        # Preparation is the same for all planners, so residual ones take what the default planner has prepared; nnU-Net's 3d_lowres differs.
        owner = DEFAULT.plans if name != LOW else self.preset.plans
        image, label = (Resampling(is_seg=seg, order=order, order_z=0, force_separate_z=None) for seg, order in ((False, 3), (True, 1)))
        return Configuration(
            data_identifier=f"{owner}_{name}",
            preprocessor_name="DefaultPreprocessor",
            batch_size=self._batch(fitted, len(shape), voxels),
            patch_size=fitted.pool.window,
            median_image_size_in_voxels=tuple(shape),
            spacing=tuple(spacing.tolist()),
            normalization_schemes=schemes,
            use_mask_for_norm=masked,
            resampling_fn_data=RESAMPLING,
            resampling_fn_seg=RESAMPLING,
            resampling_fn_data_kwargs=image,
            resampling_fn_seg_kwargs=label,
            resampling_fn_probabilities=RESAMPLING,
            resampling_fn_probabilities_kwargs=image.model_copy(update={"order": 1}),
            architecture=_architecture(fitted.pool, self.preset),
            batch_dice=False,
        )


def _first_window(spacing: Vector, shape: Sequence[float]) -> list[float]:
    """A window too large for memory with the same millimetres along all axes, but no larger than the median case."""
    axes = len(shape)
    aspect = 1 / spacing
    window = aspect * (FIRST_WINDOW[axes] ** axes / np.prod(aspect)) ** (1 / axes)
    return [min(round(n), most) for n, most in zip(window.tolist(), shape, strict=True)]


def _smaller(pool: Pooling, spacing: list[float], shape: Sequence[float]) -> Pooling:
    """The next smaller window along the axis that covers most of the median case (the last of several).

    Smaller windows pool less and need not be divisible as often: the step is that of the window one full step below, lest valid sizes be
    skipped.
    """
    axis = max(range(len(shape)), key=lambda a: (pool.window[a] / shape[a], a))
    window = list(pool.window)
    window[axis] -= pool.divisor[axis]
    step = pooling(spacing, window).divisor[axis]
    window[axis] = pool.window[axis] - step
    return pooling(spacing, window)


def _architecture(pool: Pooling, preset: Preset) -> Architecture:
    stages, axes = len(pool.strides), len(pool.window)
    encoder = "n_conv_per_stage" if preset.network is Network.plain else "n_blocks_per_stage"
    return Architecture(
        network_class_name=preset.network.path,
        arch_kwargs=UNetArguments.model_validate(
            {
                "n_stages": stages,
                "features_per_stage": features(stages, axes),
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": pool.kernels,
                "strides": pool.strides,
                encoder: preset.encoder[:stages],
                "n_conv_per_stage_decoder": (preset.decoder,) * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": Normalisation(eps=1e-5, affine=True),
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": Activation(inplace=True),
            }
        ),
        requires_import=("conv_op", "norm_op", "dropout_op", "nonlin"),
    )


def _three(values: Iterable[T]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third
