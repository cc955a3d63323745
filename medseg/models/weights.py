"""Trained weights on disk: safetensors, no pickle; the header names the plan that they belong to."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.errors import ModelError
from medseg.record import write_atomic


def save_weights(path: Path, weights: dict[str, Tensor], owner: str) -> None:
    """Write a network's weights, atomically.

    Args:
        owner: digest of the plan (`Plan.trained_digest`).
    """
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in weights.items()}
    write_atomic(path, lambda temporary: save_file(plain, temporary, metadata={"plan": owner}))


def load_weights(network: nn.Module, path: Path, owner: str) -> nn.Module:
    """Fill a network with weights from a file, and return it.

    Raises:
        ModelError: the file is missing or damaged, belongs to another plan, or does not fit the network.
    """
    _, state = read_tensors(path, owner, "weights file")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong = sorted(
        {name for name, tensor in state.items() if expected.get(name) != tuple(tensor.shape)}
        | {name for name in expected if name not in state}
    )
    if wrong:
        raise ModelError.of(
            "these weights do not fit the plan's network",
            where=str(path),
            found=f"{len(wrong)} tensors that are missing, unknown or of another shape, the first '{wrong[0]}'",
            fix="Restore the plan.json that the model was trained with, or use the version of medseg named in provenance.json.",
        )
    network.load_state_dict(state)
    return network


def read_tensors(path: Path, owner: str, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file that belongs to a plan.

    Raises:
        ModelError: the file is missing or damaged, or belongs to another plan.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelError.of(
            f"cannot be read as a {what}", where=str(path), found=str(error), fix="Restore the file, or train the fold again."
        ) from None
    if metadata.get("plan") != owner:
        raise ModelError.of(
            f"this {what} belongs to another plan",
            where=str(path),
            found=f"plan digest {metadata.get('plan', 'none')}",
            expected=owner,
            fix="Use the plan it was trained with (plan.json beside it), or another output folder.",
        )
    return metadata, tensors
