"""Names that resolve, and names that do not."""

from __future__ import annotations

import pytest

from medseg import registry
from medseg.errors import PlanError


def test_built_ins_are_registered_by_package_metadata() -> None:
    assert "semantic" in registry.tasks.names()
    assert {"segresnet", "unet"} <= set(registry.networks.names())
    assert set(registry.layouts.names()) >= {"folders", "msd", "nnunet"}
    assert registry.tasks.get("semantic").__name__ == "Semantic"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"found 'semantics', expected one of .*semantic.* Did you mean 'semantic'\?"):
        registry.tasks.get("semantics")
