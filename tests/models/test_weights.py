from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import ModelError
from medseg.models.weights import load_weights, save_weights


def test_weights_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(path, first.state_dict(), "mine")
    assert load_weights(second, path, "mine") is second
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(ModelError, match="weights file belongs to another plan; found plan digest mine, expected yours"):
        load_weights(second, path, "yours")
    with pytest.raises(
        ModelError, match="do not fit the plan's network; found 1 tensors that are missing, unknown or of another shape, the"
    ):
        load_weights(nn.Linear(4, 2), path, "mine")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match="cannot be read as a weights file"):
        load_weights(second, path, "mine")
    with pytest.raises(ModelError, match="cannot be read as a weights file"):
        load_weights(second, tmp_path / "none.safetensors", "mine")
