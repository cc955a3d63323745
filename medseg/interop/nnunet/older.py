"""Plans of nnU-Net 2 before version 2.5, which named the parts of the network one by one.

Source: nnU-Net 2.8.1, `utilities/plans_handling/plans_handler.py`, which reads them in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.interop.nnunet.presets import ARCHITECTURES
from medseg.interop.nnunet.records import NnUNetPlans

BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
RENAMED = {"foreground_intensity_properties_by_modality": "foreground_intensity_properties_per_channel"}


def load_plans(path: Path) -> NnUNetPlans:
    """Read plans of any version of nnU-Net 2.

    Raises:
        PlanError: the file is missing, is not JSON, or does not validate.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return NnUNetPlans.load(path)  # which says what is wrong
    return NnUNetPlans.parse(upgraded(data), str(path))


def upgraded(plans: Any) -> Any:
    """The same plans as today's nnU-Net writes them; what is not of that kind stays as it is."""
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        return plans
    plans = {RENAMED.get(name, name): value for name, value in plans.items()}
    return plans | {"configurations": {name: _upgraded(one) for name, one in plans["configurations"].items()}}


def _upgraded(configuration: Any) -> Any:
    if not isinstance(configuration, dict) or configuration.get("UNet_class_name") not in BLOCKS or "architecture" in configuration:
        return configuration
    old = dict(configuration)
    kind = old.pop("UNet_class_name")
    try:
        axes, blocks = len(old["patch_size"]), old.pop("n_conv_per_stage_encoder")
        first, most = old.pop("UNet_base_num_features"), old.pop("unet_max_num_features")
        arguments = {
            "n_stages": len(blocks),
            "features_per_stage": [min(first * 2**stage, most) for stage in range(len(blocks))],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": old.pop("conv_kernel_sizes"),
            "strides": old.pop("pool_op_kernel_sizes"),
            BLOCKS[kind]: blocks,
            "n_conv_per_stage_decoder": old.pop("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    except (KeyError, TypeError):
        return configuration  # validation names what is missing
    old.pop("num_pool_per_axis", None)
    required = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network = {"network_class_name": f"{ARCHITECTURES}.{kind}", "arch_kwargs": arguments, "_kw_requires_import": required}
    return old | {"architecture": network}
