"""The numbers that tell nnU-Net's planners from each other.

Source: nnU-Net 2.8.1, `experiment_planning/experiment_planners/default_experiment_planner.py` and
`residual_unets/residual_encoder_unet_planners.py`; Isensee et al., nnU-Net Revisited, MICCAI 2024, for the residual encoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ARCHITECTURES = "dynamic_network_architectures.architectures.unet"


class Network(StrEnum):
    """nnU-Net's two networks."""

    plain = "PlainConvUNet"
    residual = "ResidualEncoderUNet"

    @property
    def path(self) -> str:
        """The dotted path under which nnU-Net imports it."""
        return f"{ARCHITECTURES}.{self}"


@dataclass(frozen=True)
class Preset:
    """One of nnU-Net's planners. Derive others with `dataclasses.replace`, for example with another `memory`.

    Attributes:
        planner: nnU-Net's name of the planner, written into the plans.
        plans: name of the plans, which names the folders of prepared cases.
        network: what is trained.
        encoder: convolutions (plain) or blocks (residual) of each encoder stage; its length is the largest number of stages.
        decoder: convolutions of each decoder stage.
        memory: GB of GPU memory that a training may take.
        reference_memory: GB that were measured with feature maps of the sizes `reference_2d` and `reference_3d`.
        reference_2d, reference_3d: values of the feature maps of one window (`maps.feature_map_values`).
        dataset_share: of the dataset's voxels that one batch may hold at most.
    """

    planner: str
    plans: str
    network: Network
    encoder: tuple[int, ...]
    decoder: int
    memory: float
    reference_memory: float
    reference_2d: int
    reference_3d: int
    dataset_share: float

    def reference(self, axes: int) -> float:
        """Values of feature maps that fit the memory, for windows of 2 or 3 axes."""
        return (self.reference_2d if axes == 2 else self.reference_3d) * (self.memory / self.reference_memory)


PLAIN = (2,) * 14
RESIDUAL = (1, 3, 4, *(6,) * 10)

DEFAULT = Preset("ExperimentPlanner", "nnUNetPlans", Network.plain, PLAIN, 2, 8, 8, 85_000_000, 560_000_000, 0.05)
RESENC_M = Preset("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans", Network.residual, RESIDUAL, 1, 8, 8, 135_000_000, 680_000_000, 1)
RESENC_L = Preset("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans", Network.residual, RESIDUAL, 1, 24, 24, 380_000_000, 2_100_000_000, 1)
RESENC_XL = Preset("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans", Network.residual, RESIDUAL, 1, 40, 40, 560_000_000, 3_600_000_000, 1)
PRESETS = {"nnunet": DEFAULT, "nnunet-resenc-m": RESENC_M, "nnunet-resenc-l": RESENC_L, "nnunet-resenc-xl": RESENC_XL}
