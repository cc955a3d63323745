"""nnU-Net's checkpoints, read without running code that they might hold, and written so that nnU-Net predicts with them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import ModelError, Problem
from medseg.interop.nnunet.support import TRAINER
from medseg.interop.nnunet.weights import aliases
from medseg.record import write_atomic

SCALAR: Any = np.float64(0).__reduce__()[0]
KINDS = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
SAFE: list[Any] = [
    # What nnU-Net's trainer keeps for its curves: numpy's scalars, of numpy 1 and of numpy 2.
    (SCALAR, "numpy._core.multiarray.scalar"),
    (SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *KINDS,
    *(type(np.dtype(kind)) for kind in KINDS),
]
ENTRIES = ("network_weights", "init_args", "trainer_name")


@dataclass(frozen=True)
class Checkpoint:
    """What prediction needs of `checkpoint_final.pth`.

    Attributes:
        trainer: name of the class that trained.
        configuration: name of the configuration in the plans.
        mirror: window axes that predictions mirror.
        weights: by nnU-Net's names, each perhaps under several; they may lie in the file.
    """

    trainer: str
    configuration: str
    mirror: tuple[int, ...]
    weights: Mapping[str, Tensor]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnU-Net's trainer. Only tensors, plain data and numpy's scalars are made; nothing else in it is run.

    Raises:
        ModelError: the file is missing or damaged, needs more than that (named), or is no checkpoint of nnU-Net.
    """
    try:
        with torch.serialization.safe_globals(SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ModelError.of("the checkpoint does not exist", where=str(path), fix="Finish the training, or choose other folds.") from None
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError.of("is no readable checkpoint", where=str(path), found=first, fix="Copy or train it again.") from None
    return _parsed(path, content)


def _refused(path: Path, error: pickle.UnpicklingError) -> ModelError:
    with torch.serialization.safe_globals(SAFE):
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):
            names = re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        found = (str(error).strip().splitlines() or ["nothing that pickle knows"])[0]
        return ModelError(Problem("is no readable checkpoint", str(path), found, "", "Copy or train it again."))
    return ModelError(
        Problem(
            "the checkpoint holds Python objects that nnU-Net's trainer does not store; loading them could run any code, so they are refused",
            str(path),
            ", ".join(sorted(names)),
            "tensors, plain data and numpy scalars",
            "If you trust the file, load it with torch in the environment it comes from, remove these objects, and save it again.",
        )
    )


def _parsed(path: Path, content: Any) -> Checkpoint:
    missing = [name for name in ENTRIES if not isinstance(content, dict) or name not in content]
    if missing:
        found = ", ".join(str(key) for key in list(content)[:8]) if isinstance(content, dict) else type(content).__name__
        raise ModelError.of(
            f"is no checkpoint of nnU-Net: {', '.join(missing)} missing", where=str(path), found=found, expected=", ".join(ENTRIES)
        )
    weights, made = content["network_weights"], content["init_args"]
    configuration = made.get("configuration") if isinstance(made, dict) else None
    if not isinstance(configuration, str) or not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ModelError.of(
            "is no checkpoint of nnU-Net 2",
            where=str(path),
            expected="tensors in 'network_weights' and a name in 'init_args.configuration'",
        )
    mirror = content.get("inference_allowed_mirroring_axes") or ()
    return Checkpoint(str(content["trainer_name"]), configuration, tuple(int(axis) for axis in mirror), weights)


def network_state(checkpoint: Checkpoint, names: Mapping[str, str], shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, Tensor]:
    """The weights under medseg's names.

    Args:
        names: medseg's name to nnU-Net's, as `weight_names` gives them.
        shapes: of the network's weights, by medseg's name.
        where: names the file.

    Raises:
        ModelError: weights are missing, unknown, or of another shape than the plans say.
    """
    known = {alias for name in names.values() for alias in aliases(name)}
    wrong = [f"'{name}' unknown" for name in checkpoint.weights if name not in known]
    for ours, theirs in names.items():
        weight = checkpoint.weights.get(theirs)
        if weight is None:
            wrong.append(f"'{theirs}' missing")
        elif tuple(weight.shape) != tuple(shapes[ours]):
            wrong.append(f"'{theirs}' of shape {list(weight.shape)} instead of {list(shapes[ours])}")
    if wrong:
        raise ModelError.of(
            "the weights are not those of the network in plans.json",
            where=where,
            found=f"{len(wrong)} differences, the first: {wrong[0]}",
            fix="Restore the plans.json that the model was trained with.",
        )
    return {ours: checkpoint.weights[theirs].detach().float() for ours, theirs in names.items()}


def write_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    mirror: Sequence[int],
    *,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    configuration: str,
    fold: int | str,
) -> None:
    """Write a checkpoint that nnU-Net predicts with, atomically; it holds no optimiser, so nnU-Net cannot go on training it.

    Args:
        state: weights by nnU-Net's names, each once.
        mirror: window axes that predictions mirror.
        plans, dataset: content of nnU-Net's files.
        configuration: name within the plans.
        fold: number, or `all`.
    """
    content = {
        "network_weights": {alias: weight for name, weight in state.items() for alias in aliases(name)},
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": tuple(mirror) or None,
    }
    write_atomic(path, lambda temporary: torch.save(content, temporary))
