"""nnU-Net's plans and dataset files to plans of medseg that prepare, predict and decode alike.

Source: nnU-Net 2.8.1, `preprocessing/`, `inference/` and `training/nnUNetTrainer/nnUNetTrainer.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from medseg.dataset import LabelClass, Labels
from medseg.domains.grid.drafts import plan_augmentation
from medseg.domains.grid.settings import Blending, GridSettings, Interpolation, Normalization, PriorChanges, Scheme
from medseg.errors import PlanError
from medseg.interop.nnunet.records import Configuration, Intensities, NnUNetDataset, NnUNetPlans, UNetArguments
from medseg.interop.nnunet.support import ANISOTROPIC, READERS, plans_problems
from medseg.io.layouts.base import LayoutOptions, make_channels
from medseg.models.nnunet import NnUNetSettings
from medseg.planning.memory import training_cost
from medseg.plans import DataPlan, InferencePlan, MemoryPlan, Optimizer, Plan, TrainingPlan
from medseg.tasks.semantic import SemanticSettings

PLANS, DATASET = "plans.json", "dataset.json"
OVERLAP = 0.5
SMALLEST_STD = 1e-8
NATURAL = "NaturalImage2DIO"


def plan_of(
    plans: NnUNetPlans, dataset: NnUNetDataset, name: str, *, mirror: Sequence[int] | None = None, trainer: str = "nnUNetTrainer"
) -> Plan:
    """The plan of one configuration.

    Args:
        plans, dataset: as nnU-Net wrote them.
        name: of the configuration.
        mirror: window axes that predictions mirror; None is what nnU-Net's trainer does, all of them.
        trainer: which one trained, or would; for the reasons.

    Raises:
        PlanError: there is no such configuration, or medseg cannot do what it says; all problems at once.
    """
    configuration = plans.configuration(name)
    problems = plans_problems(plans, configuration, f"{PLANS}, configuration '{name}'")
    if problems:
        raise PlanError(problems)
    window = configuration.patch_size
    mirrored = tuple(range(len(window))) if mirror is None else tuple(mirror)
    space = _space(plans, dataset, configuration, mirrored)
    labels = labels_of(dataset)
    fields = {
        "name": name,
        "task": "semantic",
        "domain": "grid",
        "data": DataPlan(
            name=plans.dataset_name,
            digest=_digest(plans, dataset),
            ndim=len(space.axes),
            channels=make_channels(dataset.channels, LayoutOptions()),
            labels=labels,
        ),
        "window": window,
        "space": space,
        "network": network_of(configuration.architecture.arch_kwargs),
        "target": _target(labels, configuration.batch_dice),
        "training": _training(configuration.batch_size),
        "inference": InferencePlan(overlap=OVERLAP, mirror=mirrored),
        "memory": MemoryPlan(budget=1.0, training=0.0, device="cuda"),
        "previous": configuration.previous_stage or "",
        "recommended": True,
    }
    plan = Plan.parse(fields | {"reasons": {}}, where=f"{PLANS}, configuration '{name}'")
    gib = max(0.01, math.ceil(training_cost(plan).memory * 100) / 100)
    plan = plan.model_copy(update={"memory": MemoryPlan(budget=gib, training=gib, device="cuda")})
    return plan.model_copy(update={"reasons": _reasons(plan, plans.plans_name, trainer)})


def labels_of(dataset: NnUNetDataset) -> Labels:
    """Classes in the order of the network's channels: by value, or regions in the order of the file."""
    ignore = dataset.labels.get("ignore")
    specs = {name: value if isinstance(value, tuple) else (value,) for name, value in dataset.labels.items() if name != "ignore"}
    specs = {name: values for name, values in specs.items() if set(values) != {0}}
    if not dataset.has_regions:
        names: dict[int, list[str]] = {}
        for name, values in specs.items():
            names.setdefault(values[0], []).append(name)
        specs = {"/".join(names[value]): (value,) for value in sorted(names)}
    fields = {
        "classes": [LabelClass(name=name, values=values) for name, values in specs.items()],
        "ignore": ignore[0] if isinstance(ignore, tuple) else ignore,
        "order": dataset.regions_class_order if dataset.has_regions else None,
    }
    return Labels.parse(fields, where=DATASET)


def network_of(made: UNetArguments) -> NnUNetSettings:
    """The network's settings; nnU-Net lists decoder stages from the coarsest."""
    residual = made.n_blocks_per_stage is not None
    return NnUNetSettings(
        features=made.features_per_stage,
        strides=made.strides,
        kernels=made.kernel_sizes,
        residual=residual,
        encoder=made.n_blocks_per_stage or made.n_conv_per_stage or (),
        decoder=made.n_conv_per_stage_decoder[::-1],
        deep_supervision=made.n_stages - 2,
        precision="full",
    )


def _space(plans: NnUNetPlans, dataset: NnUNetDataset, configuration: Configuration, mirror: tuple[int, ...]) -> GridSettings:
    window, spacing = configuration.patch_size, tuple(float(s) for s in configuration.spacing)
    flat = _flat(plans)
    lead = 0 if flat else 3 - len(window)
    channels = len(dataset.channels)
    if len(configuration.normalization_schemes) != channels:
        raise PlanError.of(
            f"the plans normalise another number of channels than {DATASET} names",
            where=f"{PLANS}, field 'normalization_schemes'",
            found=str(len(configuration.normalization_schemes)),
            expected=str(channels),
        )
    fields = {
        "axes": (0, 1) if flat else plans.transpose_forward,
        # Photographs have spacing 1 for nnU-Net, whatever their files say, so they are never resampled.
        "spacing": (None,) * len(window) if plans.image_reader_writer == NATURAL else (None,) * lead + spacing,
        "crop": True,
        "channels": tuple(
            _normalization(scheme, masked, plans.foreground_intensity_properties_per_channel, index)
            for index, (scheme, masked) in enumerate(zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True))
        ),
        "augmentation": plan_augmentation(spacing, window, mirror).value,
        "prior": None if configuration.previous_stage is None else PriorChanges(),
        "orientation": READERS[plans.image_reader_writer],
        "interpolation": Interpolation.nnunet,
        "blending": Blending.nnunet,
    }
    return GridSettings.parse(fields, where=f"{PLANS}, configuration of the window {list(window)}")


def _flat(plans: NnUNetPlans) -> bool:
    """Whether the images are 2D, which nnU-Net takes for volumes of one slice that is 999 times as thick as its pixels are large."""
    first, *others = plans.original_median_spacing_after_transp
    return first >= ANISOTROPIC * max(others) * (1 - 1e-6)


def _normalization(scheme: str, masked: bool, seen: Mapping[str, Intensities], index: int) -> Normalization:
    if scheme == "ZScoreNormalization":
        return Normalization(scheme=Scheme.masked if masked else Scheme.zscore)
    if scheme == "RescaleTo01Normalization":
        return Normalization(scheme=Scheme.range)
    if scheme == "NoNormalization":
        return Normalization(scheme=Scheme.fixed, mean=0, std=1)
    if scheme == "RGBTo01Normalization":
        return Normalization(scheme=Scheme.fixed, low=0, high=255, mean=0, std=255)
    values = seen.get(str(index))
    if values is None:
        raise PlanError.of(
            "the intensities of a CT channel are missing",
            where=f"{PLANS}, field 'foreground_intensity_properties_per_channel'",
            found=", ".join(seen) or "nothing",
            expected=f"an entry '{index}'",
        )
    return Normalization(
        scheme=Scheme.fixed, low=values.percentile_00_5, high=values.percentile_99_5, mean=values.mean, std=max(values.std, SMALLEST_STD)
    )


def _target(labels: Labels, batch_dice: bool) -> SemanticSettings:
    count = len(labels.classes) + labels.exclusive
    return SemanticSettings(
        frequencies=(1 / count if labels.exclusive else 0.5,) * count, class_weights=(), batch_dice=batch_dice, dice=1.0, cross_entropy=1.0
    )


def _training(batch: int) -> TrainingPlan:
    """What nnU-Net's trainer does, as far as medseg's can."""
    return TrainingPlan(
        batch_size=batch,
        steps=250,
        epochs=1000,
        network_steps=250_000,
        networks=1,
        optimizer=Optimizer.sgd,
        learning_rate=0.01,
        weight_decay=3e-5,
        warmup=0.0,
        clip=12.0,
        ema=0.0,
        foreground=0.33,
        folds=5,
        seed=0,
    )


def _digest(plans: NnUNetPlans, dataset: NnUNetDataset) -> str:
    return hashlib.blake2b(f"{plans.content()} {dataset.content()}".encode(), digest_size=8).hexdigest()


def _reasons(plan: Plan, source: str, trainer: str) -> dict[str, str]:
    """One reason per decision: most are nnU-Net's."""
    planned, trained = f"As in the nnU-Net plans '{source}'.", f"As nnU-Net's {trainer} trains; medseg's schedule is a cosine."
    reasons = {"window": planned, "recommended": "The only configuration here.", "network.kind": planned}
    for section, why in (("space", planned), ("network", planned), ("target", trained), ("training", trained), ("inference", planned)):
        reasons |= {f"{section}.{name}": why for name in getattr(plan, section).model_dump() if name != "kind"}
    if plan.previous:
        reasons |= {"previous": planned, "space.prior": "Damage of the kinds and with the probabilities of nnU-Net's trainer."}
    measured = "Measured on the network and loss under fake tensors; nnU-Net's plans hold no number."
    return dict(
        sorted(
            (
                reasons
                | {
                    "space.crop": "nnU-Net always crops to the box of voxels that are not zero in every channel.",
                    "space.augmentation": "medseg's own, for windows of this shape; mirroring as in the nnU-Net model.",
                    "space.orientation": "As nnU-Net's reader gives the images of this model.",
                    "space.interpolation": "As nnU-Net resamples, so that predictions are the same.",
                    "space.blending": "As nnU-Net sums up windows, to the last bit, so that predictions are the same.",
                    "network.deep_supervision": "nnU-Net has a head at every decoder stage; all are kept.",
                    "network.precision": "As nnU-Net on a CPU: 16 bits decide some voxels in 100 000 otherwise.",
                    "target.frequencies": "Neutral: the weights are trained, and nnU-Net's heads start from zero.",
                    "target.class_weights": "nnU-Net's loss has none.",
                    "target.batch_dice": planned,
                    "target.cleaning": "None: nnU-Net's postprocessing is kept in files of its own.",
                    "training.batch_size": planned,
                    "inference.overlap": "nnU-Net's default.",
                    "inference.mirror": f"The axes that {trainer} allows.",
                    "memory.budget": measured,
                    "memory.training": measured,
                    "memory.device": "nnU-Net plans for GPUs.",
                }
            ).items()
        )
    )
