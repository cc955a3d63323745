"""What each ingredient of the training recipe brings: variants of one plan, trained equally long, scored on the cases left out.

    python benchmarks/ablation.py DATASET --time 150s       # on a machine that does nothing else
    python benchmarks/ablation.py DATASET --epochs 3        # equal steps: variants that change the cost of a step need --time

Every variant is an edit of the plan (`--set`), so users can repeat each by hand. All seeds leave out the same cases; differences to the first
row are paired over cases and seeds. Their interval is over cases, of each case's mean over seeds; the seeds' own means are given beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from hardware import write

from medseg import workflow
from medseg.commands.console import Bars
from medseg.commands.options import parse_time
from medseg.evaluation.summary import case_means
from medseg.metrics.statistics import mean_interval
from medseg.training.history import History
from medseg.workspace import RunFolder

VARIANTS: dict[str, dict[str, str]] = {
    "recommended plan": {},
    "AdamW instead of Muon": {"training.optimizer": "adamw", "training.learning_rate": "0.002"},
    "SGD with Nesterov momentum instead of Muon": {"training.optimizer": "sgd", "training.learning_rate": "0.01"},
    "half the learning rate": {"training.learning_rate": "0.025"},
    "twice the learning rate": {"training.learning_rate": "0.1"},
    "ten times the warm-up": {"training.warmup": "0.1"},
    "batch 4, half the steps": {"training.batch_size": "4", "training.steps": "50"},
    "without EMA of weights": {"training.ema": "0"},
    "without spatial augmentation": {"space.augmentation.spatial": "0", "space.augmentation.elastic": "0"},
    "without intensity augmentation": {
        f"space.augmentation.{name}": "0" for name in ("contrast", "brightness", "gamma", "noise", "blur", "coarse")
    },
    "with mirroring": {"space.augmentation.mirror": "[0, 1, 2]", "inference.mirror": "[0, 1, 2]"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--time")
    length.add_argument("--epochs", type=int)
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    names = list(dict.fromkeys([next(iter(VARIANTS)), *(arguments.only or VARIANTS)]))
    note = (
        f"{arguments.time or f'{arguments.epochs} epochs'} of training each, fold 0; Dice of each seed, and the difference to the first row "
        "(mean over cases and seeds, 95 % interval over cases)"
    )
    scores: dict[str, dict[int, np.ndarray]] = {name: {} for name in names}
    steps: dict[str, int] = {}
    splits = None
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        for seed in arguments.seeds:
            for name in names:
                out = Path(temporary) / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
                done = workflow.run(
                    arguments.dataset,
                    out,
                    seconds=parse_time(arguments.time),
                    epochs=arguments.epochs,
                    edits=VARIANTS[name] | {"training.seed": str(seed)},
                    splits=splits,
                    progress=progress,
                )
                assert done.evaluation is not None
                splits = splits or RunFolder(out).splits_file  # a seed also decides which cases are left out: all take the first one's
                scores[name][seed] = case_means(done.evaluation, "dice")
                steps[name] = int(History.read(out / "fold_0" / "metrics.csv").rows[-1]["step"])
                progress.say(f"seed {seed} {name}: {scores[name][seed].mean():.4f}")
                write("ablation", [row(name, scores, steps) for name in names if scores[name]], note)


def row(name: str, scores: dict[str, dict[int, np.ndarray]], steps: dict[str, int]) -> dict[str, object]:
    """What is known of one variant so far."""
    own, base = scores[name], next(iter(scores.values()))
    found: dict[str, object] = {"variant": name, "edits": VARIANTS[name], "steps": steps[name]}
    found["dice"] = round(float(np.mean([values.mean() for values in own.values()])), 4)
    found["dice_of_seeds"] = [round(float(values.mean()), 4) for values in own.values()]
    if own is not base:
        difference = np.mean([own[seed] - base[seed] for seed in own], axis=0)
        interval = mean_interval(difference)
        found["difference"] = [round(value, 4) for value in (interval.mean, interval.low, interval.high)]
        found["difference_of_seeds"] = [round(float((own[seed] - base[seed]).mean()), 4) for seed in own]
    return found


if __name__ == "__main__":
    main()
