from __future__ import annotations

import pytest

from medseg.device import Machine
from medseg.models.segresnet import SegResNetFamily
from medseg.models.unet import UNetFamily


@pytest.mark.parametrize(("kind", "share", "words"), [("cpu", 2, "half of the U-Net's on a CPU"), ("cuda", 1, "as the U-Net has")])
def test_width_is_what_its_reason_says(kind: str, share: int, words: str) -> None:
    machine, window = Machine(kind, 8.0), (32, 32, 32)
    configured = SegResNetFamily.configure(window, (1.0, 1.0, 1.0), machine)
    usual = UNetFamily.configure(window, (1.0, 1.0, 1.0), machine).settings.features[0]
    assert configured.settings.width * share == usual
    assert words in configured.reasons["width"]
