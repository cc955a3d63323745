"""Networks of kind "nnunet" compute what nnU-Net's own networks computed with the same weights (`recorded/record_networks.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from medseg.device import Machine
from medseg.interop.nnunet.weights import aliases, weight_names
from medseg.models.base import Head
from medseg.models.nnunet import NnUNetFamily, NnUNetSettings

RECORDED = Path(__file__).parent / "recorded"
HEAD = Head("segmentation", 3)


def settings_of(sizes: dict[str, Any]) -> NnUNetSettings:
    residual = "n_blocks_per_stage" in sizes
    return NnUNetSettings(
        features=sizes["features_per_stage"],
        strides=sizes["strides"],
        kernels=sizes["kernel_sizes"],
        residual=residual,
        encoder=sizes["n_blocks_per_stage" if residual else "n_conv_per_stage"],
        decoder=sizes["n_conv_per_stage_decoder"][::-1],
        deep_supervision=sizes["n_stages"] - 2,
        precision="full",
    )


@pytest.mark.parametrize("name", ["plain_2d", "plain_3d", "residual_2d", "residual_3d"])
def test_same_weights_same_outputs(name: str) -> None:
    record = torch.load(RECORDED / f"{name}.pt", weights_only=True)
    settings = settings_of(record["sizes"])
    network = NnUNetFamily.build(settings, record["input"].shape[1], (HEAD,))
    names = weight_names(settings, HEAD.name)
    assert set(names) == set(network.state_dict())
    assert sorted(alias for theirs in names.values() for alias in aliases(theirs)) == record["names"]
    network.load_state_dict({ours: record["weights"][theirs] for ours, theirs in names.items()})
    with torch.no_grad():
        outputs = network.train()(record["input"])[HEAD.name]
        alone = network.eval()(record["input"])[HEAD.name]
    assert len(outputs) == len(record["outputs"]) == 3
    for found, expected in zip(outputs, record["outputs"], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(alone) == 1
    torch.testing.assert_close(alone[0], outputs[0])


@pytest.mark.parametrize("precision", ["full", "half"])
def test_predictions_keep_32_bits_where_the_plan_says_so(precision: str) -> None:
    settings = NnUNetFamily.configure((16, 16), (1.0, 1.0), Machine("cpu", 8)).settings.model_copy(update={"precision": precision})
    network = NnUNetFamily.build(settings, 1, (HEAD,)).eval()
    image = torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        exact = network(image)[HEAD.name][0]
        with torch.autocast("cpu", torch.bfloat16):
            found = network(image)[HEAD.name][0]
            trained = network.train()(image)[HEAD.name][0]
    assert found.dtype == torch.float32  # the last layer always
    assert torch.equal(found, exact) == (precision == "full")
    assert trained.dtype == torch.bfloat16


@pytest.mark.parametrize("residual", [False, True])
def test_every_weight_is_trained(residual: bool) -> None:
    """Also with fewer supervised stages than there are, and several heads: a weight without a gradient stops training on several devices."""
    sizes = {"features": (4, 6, 6), "strides": ((1, 1), (2, 2), (1, 2)), "kernels": ((3, 3),) * 3, "encoder": (1, 2, 1), "decoder": (1, 2)}
    settings = NnUNetSettings(**sizes, residual=residual, deep_supervision=0, precision="half")  # type: ignore[arg-type]
    network = NnUNetFamily.build(settings, 1, (HEAD, Head("other", 1, (0.5,)))).train()
    outputs = network(torch.randn(2, 1, 8, 8))
    assert outputs["other"][0].shape == (2, 1, 8, 8)
    sum(maps[0].square().mean() for maps in outputs.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_every_setting_has_a_reason() -> None:
    configured = NnUNetFamily.configure((40, 56, 40), (1.0, 1.0, 1.0), Machine("cuda", 8))
    assert set(configured.reasons) == set(NnUNetSettings.model_fields)
    assert configured.settings.features == (32, 64, 128, 256)
    assert NnUNetFamily.check(configured.settings, configured.window) == ""
    assert "multiple" in NnUNetFamily.check(configured.settings, (41, 56, 40))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoder": (1, 1)}, "encoder has 2 entries; 3 features ask for 3"),
        ({"encoder": (0, 1, 1)}, "must be positive"),
        ({"kernels": ((2, 3), (3, 3), (3, 3))}, "kernels must be odd"),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, "full resolution"),
        ({"deep_supervision": 2}, "at most 1 with 3 stages; found 2"),
    ],
)
def test_impossible_settings(changes: dict[str, object], text: str) -> None:
    base: dict[str, object] = {
        "features": (4, 6, 6),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernels": ((3, 3),) * 3,
        "residual": False,
        "encoder": (1, 1, 1),
        "decoder": (1, 1),
        "deep_supervision": 0,
        "precision": "full",
    }
    with pytest.raises(ValidationError, match=text):
        NnUNetSettings.model_validate(base | changes)
