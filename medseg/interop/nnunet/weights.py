"""Names of weights in nnU-Net's checkpoints and in networks of kind "nnunet".

Source: dynamic-network-architectures 0.4.4, `PlainConvUNet` and `ResidualEncoderUNet`. Their state holds most weights under several names: the
decoder keeps the encoder as an attribute, and each convolution keeps its layers by name and once more in a list.
"""

from __future__ import annotations

from collections.abc import Iterator

from medseg.models.nnunet import NnUNetSettings

PARTS = ("weight", "bias")
LISTED = {"conv": "all_modules.0", "norm": "all_modules.1"}


def weight_names(settings: NnUNetSettings, head: str) -> dict[str, str]:
    """Each weight's name in medseg's network to its name in nnU-Net's; of several names the one that the code means.

    Args:
        head: name of the network's only output.
    """
    return dict(_names(settings, head))


def aliases(name: str) -> tuple[str, ...]:
    """All names of a weight in nnU-Net's state, the given one included."""
    parent, layer, part = name.rsplit(".", 2)
    names = [name, f"{parent}.{LISTED[layer]}.{part}"] if layer in LISTED else [name]
    return tuple(names + [f"decoder.{n}" for n in names if n.startswith("encoder.")])


def _names(settings: NnUNetSettings, head: str) -> Iterator[tuple[str, str]]:
    stages = len(settings.features)
    if settings.residual:
        yield from _block("stem", "encoder.stem.convs.0")
    for s, count in enumerate(settings.encoder):
        for i in range(count):
            if not settings.residual:
                yield from _block(f"encoder.{s}.{i}", f"encoder.stages.{s}.0.convs.{i}")
                continue
            theirs = f"encoder.stages.{s}.blocks.{i}"
            yield from _block(f"encoder.{s}.{i}.first", f"{theirs}.conv1")
            yield from _block(f"encoder.{s}.{i}.second", f"{theirs}.conv2")
            if i == 0 and s > 0 and settings.features[s] != settings.features[s - 1]:
                place = int(any(n != 1 for n in settings.strides[s]))  # after the pooling, where there is one
                yield from _block(f"encoder.{s}.{i}.project", f"{theirs}.skip.{place}", bias=False)
    for s in range(stages - 1):
        d = stages - 2 - s  # nnU-Net counts decoder stages from the coarsest
        yield from ((f"up.{s}.{part}", f"decoder.transpconvs.{d}.{part}") for part in PARTS)
        for i in range(settings.decoder[s]):
            yield from _block(f"decoder.{s}.{i}", f"decoder.stages.{d}.convs.{i}")
    for s in range(settings.deep_supervision + 1):
        yield from ((f"heads.{head}.{s}.{part}", f"decoder.seg_layers.{stages - 2 - s}.{part}") for part in PARTS)


def _block(ours: str, theirs: str, bias: bool = True) -> Iterator[tuple[str, str]]:
    """A convolution with its normalisation."""
    for part in PARTS:
        if bias or part == "weight":
            yield f"{ours}.conv.{part}", f"{theirs}.conv.{part}"
        yield f"{ours}.norm.{part}", f"{theirs}.norm.{part}"
