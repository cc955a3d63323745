"""Plans of medseg to the files of nnU-Net, for the models that nnU-Net can run with the same result."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.dataset import Labels
from medseg.domains.grid.settings import Blending, GridSettings, Interpolation, Normalization, Orientation, Scheme
from medseg.errors import ModelError, Problem
from medseg.interop.nnunet.convert import NATURAL, OVERLAP
from medseg.interop.nnunet.presets import Network
from medseg.interop.nnunet.records import (
    Activation,
    Architecture,
    Configuration,
    Intensities,
    NnUNetDataset,
    NnUNetPlans,
    Normalisation,
    UNetArguments,
)
from medseg.interop.nnunet.records import Resampling as Arguments
from medseg.interop.nnunet.support import ANISOTROPIC, EPSILON, RESAMPLING
from medseg.models.nnunet import NnUNetSettings
from medseg.plans import Plan
from medseg.tasks.semantic import SemanticSettings

PLANS_NAME = "nnUNetPlans"
NAMES = {
    "3d": "3d_fullres",
    "3d_low": "3d_lowres",
    "3d_cascade": "3d_cascade_fullres",
}  # medseg's name of a configuration to nnU-Net's, where they differ
PHOTOGRAPHS = (".png", ".bmp", ".tif")
UNKNOWN = 1  # number of training cases: a plan does not hold it, and prediction does not ask for it


def default_ending(plan: Plan) -> str:
    """The suffix of images where nobody says another."""
    return ".png" if plan.data.ndim == 2 else ".nii.gz"


def nnunet_files(plan: Plan, ending: str) -> tuple[str, NnUNetPlans, NnUNetDataset]:
    """The name of the configuration, and the content of `plans.json` and `dataset.json`.

    What prediction does not use and a plan does not hold is filled in: medians are the target spacing and the window, the number of
    training cases is 1.

    Args:
        ending: suffix of the images that nnU-Net will predict on.

    Raises:
        ModelError: nnU-Net cannot do what the plan says; all reasons at once.
    """
    problems = list(_obstacles(plan, ending))
    if problems:
        raise ModelError(problems)
    name = NAMES.get(plan.name, plan.name)
    space: GridSettings = plan.space
    window = plan.window
    known = tuple(float(s) if s is not None else 1.0 for s in space.spacing)
    spacing = known[-len(window) :]
    lead = (ANISOTROPIC * max(spacing),) if plan.data.ndim == 2 else known[:-2]
    forward = (0, 1, 2) if plan.data.ndim == 2 else (space.axes[0], space.axes[1], space.axes[2])
    schemes = [_scheme(how) for how in space.channels]
    labels = SemanticSettings.model_validate(plan.target.model_dump())
    image = Arguments(is_seg=False, order=3, order_z=0, force_separate_z=None)
    linear = image.model_copy(update={"order": 1})
    stages = {"previous_stage": NAMES.get(plan.previous, plan.previous)} if plan.previous else {}
    made = Configuration(
        data_identifier=f"{PLANS_NAME}_{name}",
        preprocessor_name="DefaultPreprocessor",
        batch_size=plan.training.batch_size,
        patch_size=window,
        median_image_size_in_voxels=window,
        spacing=spacing,
        normalization_schemes=tuple(scheme for scheme, _ in schemes),
        use_mask_for_norm=tuple(how.scheme is Scheme.masked for how in space.channels),
        resampling_fn_data=RESAMPLING,
        resampling_fn_seg=RESAMPLING,
        resampling_fn_data_kwargs=image,
        resampling_fn_seg_kwargs=linear.model_copy(update={"is_seg": True}),
        resampling_fn_probabilities=RESAMPLING,
        resampling_fn_probabilities_kwargs=linear,
        architecture=_architecture(plan.network, len(window)),
        batch_dice=labels.batch_dice,
        **stages,
    )
    plans = NnUNetPlans(
        dataset_name=plan.data.name,
        plans_name=PLANS_NAME,
        original_median_spacing_after_transp=(lead[0], spacing[-2], spacing[-1]),
        original_median_shape_after_transp=(window[0] if len(window) == 3 else 1, window[-2], window[-1]),
        image_reader_writer=_reader(space.orientation, plan.data.ndim, ending),
        transpose_forward=forward,
        transpose_backward=(forward.index(0), forward.index(1), forward.index(2)),
        configurations={name: made},
        experiment_planner_used="ExperimentPlanner",
        label_manager="LabelManager",
        foreground_intensity_properties_per_channel={str(i): intensities for i, (_, intensities) in enumerate(schemes)},
    )
    return name, plans, _dataset(plan, ending)


def _obstacles(plan: Plan, ending: str) -> Iterator[Problem]:
    """Why nnU-Net would not predict the same."""
    fix = (
        "A trained model cannot change it. Models that can be exported are imported ones, and those trained with a plan of `medseg plan --preset "
        "nnunet`."
    )
    space, target = plan.space, plan.target
    if not isinstance(space, GridSettings) or not isinstance(target, SemanticSettings):
        yield Problem("nnU-Net has no such task", "task", f"{plan.task} on {plan.domain}", "semantic on grid")
        return
    if not isinstance(plan.network, NnUNetSettings):
        yield Problem(
            "nnU-Net does not have this network", "network.kind", plan.network.kind, "nnunet", "Plan and train with --network nnunet."
        )
    if space.orientation is Orientation.canonical and plan.data.ndim == 3:
        yield Problem("nnU-Net cannot bring images to this orientation", "space.orientation", "canonical", "ras or file", fix)
    if space.interpolation is not Interpolation.nnunet:
        yield Problem("nnU-Net resamples otherwise", "space.interpolation", space.interpolation.value, "nnunet", fix)
    if space.blending is not Blending.nnunet:
        yield Problem("nnU-Net sums up windows otherwise", "space.blending", space.blending.value, "nnunet", fix)
    if not space.crop:
        yield Problem("nnU-Net always crops to nonzero voxels", "space.crop", "false", "true", fix)
    lead = plan.data.ndim - len(plan.window)
    photographs = _reader(space.orientation, plan.data.ndim, ending) == NATURAL
    if any((s is None) != (a < lead) for a, s in enumerate(space.spacing)) and not (photographs and set(space.spacing) == {None}):
        yield Problem(
            "nnU-Net resamples every axis of a window and no other", "space.spacing", str(list(space.spacing)), "a number for each", fix
        )
    for i, how in enumerate(space.channels):
        if how.scheme is Scheme.fixed and how.low is None and (how.mean, how.std) != (0, 1):
            yield Problem("nnU-Net cannot standardise without clipping", f"space.channels.{i}", f"mean {how.mean}, std {how.std}", "", fix)
        if how.scheme is Scheme.spread:
            yield Problem("nnU-Net has no such normalisation", f"space.channels.{i}", "spread", "fixed, zscore, masked or range", fix)
    if plan.inference.overlap != OVERLAP:
        yield Problem("nnU-Net's windows overlap otherwise", "inference.overlap", str(plan.inference.overlap), str(OVERLAP))
    if target.cleaning:
        yield Problem(
            "nnU-Net does not clean predictions so",
            "target.cleaning",
            f"{len(target.cleaning)} rules",
            "none",
            "Remove them from plan.json to export the network alone.",
        )
    yield from _label_obstacles(plan.data.labels)


def _label_obstacles(labels: Labels) -> Iterator[Problem]:
    where, values = "data.labels", list(labels.values)
    if labels.exclusive and [c.values for c in labels.classes] != [(k,) for k in range(1, len(labels.classes) + 1)]:
        found = ", ".join(f"{c.name} {list(c.values)}" for c in labels.classes)
        yield Problem("nnU-Net numbers classes without gaps, one value each", where, found, f"1 to {len(labels.classes)} in order")
    elif values != list(range(1, len(values) + 1)):
        yield Problem("nnU-Net's label values are consecutive", where, str(values), f"1 to {len(values)}")
    elif not labels.exclusive and all(len(c.values) == 1 for c in labels.classes):
        yield Problem("nnU-Net takes regions of one value each for exclusive classes", where, ", ".join(labels.names), "a union of values")
    elif labels.ignore is not None and labels.ignore != len(values) + 1:
        yield Problem("nnU-Net's label to ignore is the highest", where, str(labels.ignore), str(len(values) + 1))
    reserved = {"background", "ignore"} & set(labels.names)
    if reserved:
        yield Problem("nnU-Net gives these names another meaning", where, ", ".join(sorted(reserved)), "other names")


def _scheme(how: Normalization) -> tuple[str, Intensities]:
    """nnU-Net's class, and the numbers it reads; zeros where it reads none."""
    low, high, mean, std = (value or 0.0 for value in (how.low, how.high, how.mean, how.std))
    seen = Intensities(max=high, mean=mean, median=mean, min=low, percentile_00_5=low, percentile_99_5=high, std=std)
    if how.scheme is Scheme.range:
        return "RescaleTo01Normalization", seen
    if how.scheme is not Scheme.fixed:
        return "ZScoreNormalization", seen
    if how.low is None:
        return "NoNormalization", seen
    return ("RGBTo01Normalization" if (low, high, mean, std) == (0, 255, 0, 255) else "CTNormalization"), seen


def _reader(orientation: Orientation, ndim: int, ending: str) -> str:
    if ndim == 2:
        return NATURAL if ending.lower() in PHOTOGRAPHS else "SimpleITKIO"
    if orientation is Orientation.ras:
        return "SimpleITKIOWithReorient"
    return "NibabelIO" if ending.lower() == ".nii" else "SimpleITKIO"


def _architecture(settings: NnUNetSettings, axes: int) -> Architecture:
    network = Network.residual if settings.residual else Network.plain
    made = UNetArguments.model_validate(
        {
            "n_stages": len(settings.features),
            "features_per_stage": settings.features,
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": settings.kernels,
            "strides": settings.strides,
            "n_blocks_per_stage" if settings.residual else "n_conv_per_stage": settings.encoder,
            "n_conv_per_stage_decoder": settings.decoder[::-1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": Normalisation(eps=EPSILON, affine=True),
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": Activation(inplace=True),
        }
    )
    return Architecture(network_class_name=network.path, arch_kwargs=made, requires_import=("conv_op", "norm_op", "dropout_op", "nonlin"))


def _dataset(plan: Plan, ending: str) -> NnUNetDataset:
    labels = plan.data.labels
    values: dict[str, int | tuple[int, ...]] = {"background": 0}
    values |= {c.name: c.values[0] if len(c.values) == 1 else c.values for c in labels.classes}
    if labels.ignore is not None:
        values["ignore"] = labels.ignore
    content = {
        "channel_names": {str(i): channel.name for i, channel in enumerate(plan.data.channels)},
        "labels": values,
        "numTraining": UNKNOWN,
        "file_ending": ending,
    }
    if labels.order is not None:
        content["regions_class_order"] = labels.order
    return NnUNetDataset.parse(content, "the exported dataset.json")
