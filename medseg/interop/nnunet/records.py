"""nnU-Net's files as records: frozen and typed, but keys that are unknown here are kept, because each release of nnU-Net adds some.

Source: nnU-Net 2.8.1, `documentation/dataset_format.md` and `documentation/explanation_plans_files.md`. Axes are nnU-Net's array axes
`(z, y, x)`, spacings are millimetres per voxel along them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from medseg.errors import PlanError
from medseg.record import problems_of, write_text

Number = int | float  # a file says 20 or 20.0, and both are written back as they were
Sizes = tuple[int, ...]


class ForeignRecord(BaseModel):
    """A frozen record of another program's file: unknown keys are kept, missing and malformed ones are errors."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read from JSON.

        Raises:
            PlanError: the file is missing, is not JSON, or does not validate.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
        except (ValueError, RecursionError) as error:
            raise PlanError.of(
                "is not valid JSON", where=str(path), found=str(error), fix="Restore the file, or let nnU-Net write it again."
            ) from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Validate plain data; `where` names its origin in errors.

        Raises:
            PlanError: every field that is missing or malformed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PlanError(problems_of(cls, error, where)) from None

    def content(self) -> dict[str, Any]:
        """The plain data of the file: the keys it had, in the order of nnU-Net."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class NnUNetDataset(ForeignRecord):
    """`dataset.json`. Whether its entries agree with each other is checked by `medseg.interop.nnunet.checks`.

    Attributes:
        channel_names: channel number to its name, which decides its normalisation.
        modality: the name of `channel_names` in files of nnU-Net 1; read only where that is missing.
        labels: class name to its value, or to several values of which it is the union (a region).
        regions_class_order: value written for each region, in the order of `labels`; later ones overwrite earlier ones.
        num_training: number of training cases (`numTraining`).
        file_ending: suffix of the images, with its dot.
        overwrite_image_reader_writer: name of the nnU-Net class that reads the images.
    """

    model_config = ConfigDict(populate_by_name=True)

    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    labels: dict[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    num_training: int = Field(alias="numTraining", ge=1)
    file_ending: str
    overwrite_image_reader_writer: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.channel_names and not self.modality:
            raise ValueError('\'channel_names\' is missing; expected an object like {"0": "CT"}')
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the file."""
        return tuple((self.channel_names or self.modality or {}).values())

    @property
    def has_regions(self) -> bool:
        """Whether classes may overlap: some class has several values."""
        return any(isinstance(value, tuple) and len(value) > 1 for value in self.labels.values())


class Intensities(ForeignRecord):
    """Statistics of one channel over foreground voxels of the training cases, in the channel's own unit."""

    max: Number
    mean: Number
    median: Number
    min: Number
    percentile_00_5: Number
    percentile_99_5: Number
    std: Annotated[Number, Field(ge=0)]


class NnUNetFingerprint(ForeignRecord):
    """`dataset_fingerprint.json`.

    Attributes:
        foreground_intensity_properties_per_channel: by channel number.
        median_relative_size_after_cropping: share of a case's voxels that are left after cropping to nonzero, median over cases.
        shapes_after_crop: voxels per axis of each training case.
        spacings: millimetres per axis of each training case; 2D images have one slice of 999 mm.
    """

    foreground_intensity_properties_per_channel: dict[str, Intensities]
    median_relative_size_after_cropping: Annotated[Number, Field(gt=0, le=1)]
    shapes_after_crop: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = Field(
        min_length=1
    )
    spacings: tuple[tuple[Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)], Annotated[Number, Field(gt=0)]], ...] = Field(
        min_length=1
    )


class Resampling(ForeignRecord):
    """Arguments of nnU-Net's `resample_data_or_seg_to_shape`; other resampling functions have others.

    Attributes:
        is_seg: labels, each value of which is resampled as a map of its own.
        order: of the spline within slices.
        order_z: of the spline across slices, where the axis with the largest spacing is resampled apart.
        force_separate_z: whether that happens; None where a spacing is more than 3 times another one.
    """

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = None


class Normalisation(ForeignRecord):
    """Arguments of the network's normalisation layers."""

    eps: float = 1e-5
    affine: bool = False


class Activation(ForeignRecord):
    """Arguments of the network's activations."""

    inplace: bool = False


class UNetArguments(ForeignRecord):
    """Arguments of `PlainConvUNet` (with `n_conv_per_stage`) or `ResidualEncoderUNet` (with `n_blocks_per_stage`)."""

    n_stages: int = Field(ge=1)
    features_per_stage: Sizes
    conv_op: str
    kernel_sizes: tuple[Sizes, ...]
    strides: tuple[Sizes, ...]
    n_conv_per_stage: Sizes | None = None
    n_blocks_per_stage: Sizes | None = None
    n_conv_per_stage_decoder: Sizes
    conv_bias: bool
    norm_op: str
    norm_op_kwargs: Normalisation
    dropout_op: str | None
    dropout_op_kwargs: dict[str, float] | None
    nonlin: str
    nonlin_kwargs: Activation

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.n_conv_per_stage is None) == (self.n_blocks_per_stage is None):
            raise ValueError("expected either 'n_conv_per_stage' or 'n_blocks_per_stage'")
        for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"):
            value = getattr(self, name)
            if value is not None and len(value) != self.n_stages:
                raise ValueError(f"'{name}' has {len(value)} entries, expected one for each of the {self.n_stages} stages")
        if len(self.n_conv_per_stage_decoder) != self.n_stages - 1:
            raise ValueError(f"'n_conv_per_stage_decoder' has {len(self.n_conv_per_stage_decoder)} entries, expected {self.n_stages - 1}")
        return self


class Architecture(ForeignRecord):
    """The network of a configuration.

    Attributes:
        network_class_name: dotted path of a `PlainConvUNet` or `ResidualEncoderUNet`; it names the kind and is never imported here.
        requires_import: the arguments that nnU-Net imports by their dotted paths (`_kw_requires_import`).
    """

    model_config = ConfigDict(populate_by_name=True)

    network_class_name: str
    arch_kwargs: UNetArguments
    requires_import: tuple[str, ...] = Field(alias="_kw_requires_import")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        name = str(data.get("network_class_name", "")) if isinstance(data, dict) else ""
        if name and name.rpartition(".")[2] not in NETWORKS:
            raise ValueError(f"network '{name}' is not supported; expected {' or '.join(NETWORKS)}")
        return data


NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")


class Configuration(ForeignRecord):
    """One configuration with all its values: how cases are prepared, and the network.

    Attributes:
        patch_size, spacing, median_image_size_in_voxels: along the transposed axes; 2D configurations leave the first one out.
        batch_dice: Dice over all windows of a batch together.
        next_stage, previous_stage: the neighbours in a cascade, absent where there are none.
    """

    data_identifier: str
    preprocessor_name: str
    batch_size: int = Field(ge=1)
    patch_size: Sizes
    median_image_size_in_voxels: tuple[Number, ...]
    spacing: tuple[Number, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: str
    resampling_fn_seg: str
    resampling_fn_data_kwargs: Resampling
    resampling_fn_seg_kwargs: Resampling
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: Resampling
    architecture: Architecture
    batch_dice: bool
    next_stage: str | None = None
    previous_stage: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        axes = len(self.patch_size)
        if axes not in (2, 3) or len(self.spacing) != axes or any(len(s) != axes for s in self.architecture.arch_kwargs.strides):
            raise ValueError("'patch_size', 'spacing' and 'strides' must have the same number of axes, 2 or 3")
        if len(self.normalization_schemes) != len(self.use_mask_for_norm):
            raise ValueError("'normalization_schemes' and 'use_mask_for_norm' must have one entry per channel each")
        return self


class DerivedConfiguration(ForeignRecord):
    """A configuration that takes what it does not say from another one of the same file."""

    inherits_from: str
    previous_stage: str | None = None


def _kind(value: Any) -> str:
    derived = "inherits_from" in value if isinstance(value, dict) else isinstance(value, DerivedConfiguration)
    return "derived" if derived else "complete"


AnyConfiguration = Annotated[
    Annotated[Configuration, Tag("complete")] | Annotated[DerivedConfiguration, Tag("derived")], Discriminator(_kind)
]


class NnUNetPlans(ForeignRecord):
    """`nnUNetPlans.json`, or the plans of another planner.

    Attributes:
        transpose_forward, transpose_backward: order of the axes in prepared cases, the one with the largest spacing first; and back.
    """

    dataset_name: str
    plans_name: str
    original_median_spacing_after_transp: tuple[Number, Number, Number]
    original_median_shape_after_transp: tuple[int, int, int]
    image_reader_writer: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    configurations: dict[str, AnyConfiguration]
    experiment_planner_used: str
    label_manager: str
    foreground_intensity_properties_per_channel: dict[str, Intensities]

    def configuration(self, name: str) -> Configuration:
        """A configuration with what it inherits.

        Raises:
            PlanError: there is no such configuration, it inherits from itself, or it is not complete.
        """
        merged: dict[str, Any] = {}
        chain: list[str] = []
        following: str | None = name
        while following is not None:
            found = self.configurations.get(following)
            if found is None or following in chain:
                what = "there is no such configuration" if found is None else "the configuration inherits from itself"
                raise PlanError.of(
                    what,
                    where=f"plans '{self.plans_name}'",
                    found=" -> ".join([*chain, following]),
                    expected=", ".join(self.configurations),
                )
            chain.append(following)
            merged = found.content() | merged
            following = found.inherits_from if isinstance(found, DerivedConfiguration) else None
        merged.pop("inherits_from", None)
        return Configuration.parse(merged, f"plans '{self.plans_name}', configuration '{name}'")

    def write(self, path: Path) -> None:
        """Write the file as nnU-Net does, to the byte.

        Raises:
            ResourceError: the folder cannot be written.
        """
        write_text(path, json.dumps(self.content(), indent=4))
