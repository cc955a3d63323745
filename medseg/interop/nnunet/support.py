"""Which of nnU-Net's choices medseg has, so that the same files give the same prediction; everything else is refused, with the reason.

Source: nnU-Net 2.8.1, `utilities/plans_handling/plans_handler.py` and the classes and functions that it finds by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medseg.domains.grid.settings import Orientation
from medseg.errors import Problem
from medseg.interop.nnunet.records import Configuration, NnUNetPlans, Resampling, UNetArguments

RESAMPLING = "resample_data_or_seg_to_shape"
READERS = {
    "SimpleITKIO": Orientation.file,
    "NibabelIO": Orientation.file,
    "NaturalImage2DIO": Orientation.file,
    "SimpleITKIOWithReorient": Orientation.ras,
    "NibabelIOWithReorient": Orientation.ras,
}
SCHEMES = ("CTNormalization", "NoNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
ANISOTROPIC = 999  # the spacing along the missing axis of 2D images, in units of the largest other one
EPSILON = 1e-5
TRAINER = "nnUNetTrainer"
SAME_NETWORK = re.compile(  # nnU-Net's own trainers that train the plans' network, only longer or with other losses, rates or augmentation
    r"nnUNetTrainer(Benchmark_5epochs(_noDataLoading)?|DA5(ord0|Segord0|_10epochs)?|NoDA|NoMirroring|NoDeepSupervision|CosAnneal"
    r"|Adan(1en3|3en4|1en1|CosAnneal)?|(Vanilla)?Adam(1en3|3en4)?|DiceLoss|DiceCELoss_noSmooth|Topk10Loss(LS01)?|DiceTopK10Loss|CELoss(_5epochs)?"
    r"|_DASegOrd0(_NoMirroring)?|_noDummy2DDA|_onlyMirror01(_1500ep|_DASegOrd0|_DA5)?|_warmup|_probabilisticOversampling(_033|_010)?"
    r"|_\d+epochs?(_NoMirroring)?)?"
)


def trainer_problem(trainer: str, where: str) -> Problem | None:
    """A trainer of somebody's own may have changed the network, preparation or prediction: its code would be needed."""
    if SAME_NETWORK.fullmatch(trainer):
        return None
    return Problem(
        "the model was trained with a custom trainer, which may build another network or predict in another way",
        where,
        trainer,
        f"{TRAINER}, or one of nnU-Net's own that train the same network",
        "Predict with nnU-Net and that trainer's code.",
    )


def plans_problems(plans: NnUNetPlans, configuration: Configuration, where: str) -> list[Problem]:
    """Everything in a configuration (with what it inherits) that medseg would do otherwise; `where` names file and configuration."""
    return [
        Problem(what, f"{where}, field '{field}'", found, expected, "Predict with nnU-Net.")
        for what, field, found, expected in (*_common(plans), *_preparation(configuration), *_network(configuration))
    ]


Finding = tuple[str, str, str, str]


def _common(plans: NnUNetPlans) -> Iterator[Finding]:
    if plans.image_reader_writer not in READERS:
        yield "images are read by a class that is not known here", "image_reader_writer", plans.image_reader_writer, ", ".join(READERS)
    if plans.label_manager != "LabelManager":
        yield "labels are decoded by a custom class", "label_manager", plans.label_manager, "LabelManager"
    forward = plans.transpose_forward
    if sorted(forward) != [0, 1, 2] or plans.transpose_backward != tuple(forward.index(a) for a in range(3)):
        found = f"{list(forward)} and {list(plans.transpose_backward)}"
        yield "the orders of axes do not undo each other", "transpose_forward", found, "a permutation of 0, 1, 2 and its inverse"


def _preparation(configuration: Configuration) -> Iterator[Finding]:
    if configuration.preprocessor_name != "DefaultPreprocessor":
        yield "cases are prepared by a custom class", "preprocessor_name", configuration.preprocessor_name, "DefaultPreprocessor"
    for index, scheme in enumerate(configuration.normalization_schemes):
        if scheme not in SCHEMES:
            yield "a channel is normalised in an unknown way", f"normalization_schemes.{index}", scheme, ", ".join(SCHEMES)
    maps = (("data", 3), ("probabilities", 1), *([("seg", 1)] if configuration.previous_stage is not None else []))
    for name, order in maps:
        function = str(getattr(configuration, f"resampling_fn_{name}"))
        if function != RESAMPLING:
            yield "cases are resampled by an unknown function", f"resampling_fn_{name}", function, RESAMPLING
            continue
        arguments: Resampling = getattr(configuration, f"resampling_fn_{name}_kwargs")
        usual = Resampling(is_seg=name == "seg", order=order, order_z=0, force_separate_z=None)
        if arguments.model_dump() != usual.model_dump():
            yield "cases are resampled otherwise", f"resampling_fn_{name}_kwargs", str(arguments.model_dump()), str(usual.model_dump())


def _network(configuration: Configuration) -> Iterator[Finding]:
    made: UNetArguments = configuration.architecture.arch_kwargs
    axes = len(configuration.patch_size)
    norm = {"eps": EPSILON, "affine": True}
    for field, found, expected in (
        ("conv_op", made.conv_op.rpartition(".")[2], f"Conv{axes}d"),
        ("norm_op", made.norm_op.rpartition(".")[2], f"InstanceNorm{axes}d"),
        ("nonlin", made.nonlin.rpartition(".")[2], "LeakyReLU"),
        ("conv_bias", made.conv_bias, True),
        ("norm_op_kwargs", made.norm_op_kwargs.model_dump(), norm),
        ("dropout_op", made.dropout_op, None),
        ("nonlin_kwargs", made.nonlin_kwargs.model_extra or {}, {}),
        ("*", sorted(made.model_extra or {}), []),
    ):
        if found != expected:
            yield "the network has layers that are not known here", f"architecture.arch_kwargs.{field}", str(found), str(expected)
    if made.n_stages < 2:
        yield "the network does not pool", "architecture.arch_kwargs.n_stages", str(made.n_stages), "2 or more"
    if any(k % 2 == 0 for kernel in made.kernel_sizes for k in kernel):
        yield "kernels of even size", "architecture.arch_kwargs.kernel_sizes", str(made.kernel_sizes), "odd numbers"
