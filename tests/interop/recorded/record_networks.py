"""Record what nnU-Net's own networks compute: `PYTHON_WITH_NNUNET tests/interop/recorded/record_networks.py` writes `recorded/*.pt`.

Written with dynamic-network-architectures 0.4.4. Each file holds the network's arguments, the names of its whole state, each weight once, one
input, and the outputs from full resolution to coarse.
"""

from __future__ import annotations

from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

FOLDER = Path(__file__).parent
COMMON = {"conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
CASES = {
    "plain_3d": (PlainConvUNet, 3, (8, 16, 16)),
    "residual_3d": (ResidualEncoderUNet, 3, (8, 16, 16)),
    "plain_2d": (PlainConvUNet, 2, (16, 24)),
    "residual_2d": (ResidualEncoderUNet, 2, (16, 24)),
}


def main() -> None:
    for name, (kind, axes, window) in CASES.items():
        torch.manual_seed(0)
        residual = kind is ResidualEncoderUNet
        flat = (1, 3, 3)[-axes:]
        sizes = {
            "n_stages": 4,
            "features_per_stage": (2, 3, 4, 4),  # the last two alike: a shortcut that is pooled but not projected
            "kernel_sizes": (flat, (3,) * axes, (3,) * axes, (3,) * axes),
            "strides": ((1,) * axes, (1, 2, 2)[-axes:], (2,) * axes, (2,) * axes),
            "n_conv_per_stage_decoder": (1, 2, 1),
            "n_blocks_per_stage" if residual else "n_conv_per_stage": (1, 2, 1, 1),
        }
        modules = {"conv_op": (nn.Conv2d, nn.Conv3d)[axes - 2], "norm_op": (nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 2]}
        network = kind(input_channels=2, num_classes=3, deep_supervision=True, **sizes, **modules, **COMMON)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        image = torch.randn(2, 2, *window)
        with torch.no_grad():
            outputs = network.train()(image)
        state = network.state_dict()
        weights = {k: v for k, v in state.items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
        record = {"sizes": sizes, "names": sorted(state), "weights": weights, "input": image, "outputs": outputs}
        torch.save(record, FOLDER / f"{name}.pt")


if __name__ == "__main__":
    main()
