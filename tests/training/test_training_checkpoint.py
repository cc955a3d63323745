from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import ModelError
from medseg.models.weights import save_weights
from medseg.training.checkpoint import load_tree, save_tree

LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
TREES = st.recursive(
    LEAVES,
    lambda t: st.lists(t, max_size=3) | st.tuples(t, t) | st.dictionaries(st.integers() | st.text(max_size=4), t, max_size=3),
    max_leaves=12,
)


@given(tree=TREES)
def test_plain_trees_come_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "c.safetensors"
    save_tree(path, tree, "me")
    back = load_tree(path, "me")
    assert back == tree
    assert repr(back) == repr(tree)  # tuples stay tuples, integers integers


def test_tensors_come_back_bit_by_bit_whatever_their_layout(tmp_path):
    torch.manual_seed(0)
    channels_last = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    tree = {"a": [channels_last, torch.tensor(3)], 5: (torch.zeros(2, dtype=torch.bfloat16), math.inf), "view": channels_last[:, 1:2]}
    save_tree(tmp_path / "c.safetensors", tree, "me")
    back = load_tree(tmp_path / "c.safetensors", "me")
    assert torch.equal(back["a"][0], channels_last)
    assert torch.equal(back["view"], channels_last[:, 1:2])
    assert back["a"][1].shape == ()
    assert back["a"][1].dtype == torch.int64
    assert back[5][0].dtype == torch.bfloat16
    assert back[5][1] == math.inf


def test_what_it_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot hold set"):
        save_tree(tmp_path / "c.safetensors", {"a": {1}}, "me")
    assert list(tmp_path.iterdir()) == []


def test_another_plan_damage_and_absence_are_told_apart(tmp_path):
    path = tmp_path / "c.safetensors"
    save_tree(path, {"a": torch.zeros(100)}, "mine")
    with pytest.raises(ModelError, match="belongs to another plan; found plan digest mine, expected yours"):
        load_tree(path, "yours")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelError, match="cannot be read"):
        load_tree(path, "mine")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tree(tmp_path / "none.safetensors", "mine")
    save_weights(path, {"w": torch.ones(2)}, "mine")
    with pytest.raises(ModelError, match="is not a medseg checkpoint"):
        load_tree(path, "mine")
