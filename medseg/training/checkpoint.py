"""Checkpoints without pickle: one safetensors file, tensors by number, everything else as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import save_file
from torch import Tensor

from medseg.errors import ModelError
from medseg.models.weights import read_tensors
from medseg.record import write_atomic

FORMAT = "medseg-checkpoint-1"


def _encode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = str(len(tensors))
        # Cloned, because safetensors refuses views and two names for one storage.
        tensors[name] = node.detach().to("cpu").contiguous().clone()
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[_encode(key, tensors), _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {"tuple" if isinstance(node, tuple) else "list": [_encode(item, tensors) for item in node]}
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a checkpoint cannot hold {type(node).__name__}")


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value}
    items = [_decode(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def save_tree(path: Path, tree: Any, owner: str) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and tensors, atomically.

    Args:
        owner: digest of the plan that this belongs to.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(tree, tensors))
    metadata = {"format": FORMAT, "plan": owner, "tree": text}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_tree(path: Path, owner: str) -> Any:
    """Read what `save_tree` wrote.

    Raises:
        ModelError: the file is missing, damaged, or belongs to another plan.
    """
    metadata, tensors = read_tensors(path, owner, "checkpoint")
    if metadata.get("format") != FORMAT:
        raise ModelError.of("is not a medseg checkpoint", where=str(path), found=metadata.get("format", "no format"), expected=FORMAT)
    return _decode(json.loads(metadata["tree"]), tensors)


class PlainCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `save_tree`."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        save_tree(Path(path), checkpoint, self.owner)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; its tensors come on the CPU and are copied to where they belong when they are loaded."""
        tree: dict[str, Any] = load_tree(Path(path), self.owner)
        return tree

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
