"""medseg: self-configuring segmentation for medical images.

    import medseg
    from pathlib import Path

    medseg.run(Path("DATASET"), Path("RUN"), seconds=1200)          # everything, one call
    medseg.Predictor.load(Path("RUN")).predict([Path("scan.nii.gz")], Path("OUT"))

Each verb of the command line is a function here (`verify`, `plan`, `explain`, `preprocess`, `train`, `pretrain`, `predict`, `evaluate`,
`compare`, `select`, `run`, `demo`, `benchmark`), documented in `medseg.workflow`. Names are imported on first use, so `import medseg` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor
    from medseg.workflow import benchmark, compare, demo, evaluate, explain, plan, predict, preprocess, pretrain, run, select, train, verify

__all__ = [
    "Predictor",
    "benchmark",
    "compare",
    "demo",
    "evaluate",
    "explain",
    "plan",
    "predict",
    "preprocess",
    "pretrain",
    "run",
    "select",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'medseg' has no attribute '{name}'")
    import importlib

    module = importlib.import_module("medseg.inference.predictor" if name == "Predictor" else "medseg.workflow")
    return getattr(module, name)
