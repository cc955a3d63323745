"""What a training of few labelled cases gains when it begins with other weights: pre-trained without labels, or trained on other cases.

    python benchmarks/pretraining.py DATASET --pretrain-steps 1000 --steps 200 --seeds 3

DATASET is a Decathlon folder (Task04). Of its cases 40 are scored, 20 may be labelled, and the images of the others pre-train: once without
their labels (`medseg pretrain`), once with them (`medseg train`), equally long. For every seed a few of the 20 are drawn and train a fixed
number of steps, with the same windows, from scratch and from both. Differences are paired over cases, means over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from hardware import write

from medseg import workflow
from medseg.commands.console import Bars
from medseg.io.images import read_label
from medseg.plans import Plan

SCORED, LABELLED = 40, 20
BOOTSTRAPS = 5000
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "from scratch": ("", {}),
    "masked autoencoding": ("masked", {}),
    "trained on other cases": ("supervised", {}),
    "trained on other cases, 0.3 x learning rate": ("supervised", {"training.learning_rate": "0.015"}),
    "trained on other cases, 0.1 x learning rate": ("supervised", {"training.learning_rate": "0.005"}),
    "masked autoencoding, 0.3 x learning rate": ("masked", {"training.learning_rate": "0.015"}),
}


def subset(dataset: Path, out: Path, labelled: Iterable[dict[str, str]], unlabelled: Iterable[str] = ()) -> Path:
    """A Decathlon folder of some of the cases, by links."""
    described = json.loads((dataset / "dataset.json").read_text())
    described |= {"training": list(labelled), "test": list(unlabelled)}
    for name in [*described["test"], *(file for pair in described["training"] for file in pair.values())]:
        link = out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((dataset / name).resolve())
    (out / "dataset.json").write_text(json.dumps(described))
    return out


def dice(predicted: Path, dataset: Path, pairs: list[dict[str, str]], classes: int) -> np.ndarray:
    """Mean of the classes' Dice, for each case."""
    scores = []
    for pair in pairs:
        truth = read_label(dataset / pair["label"]).array
        found = read_label(predicted / Path(pair["image"]).name).array
        each = []
        for value in range(1, classes + 1):
            a, b = found == value, truth == value
            each.append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
        scores.append(float(np.mean(each)))
    return np.array(scores)


def epochs_of(plan: Path, steps: int) -> int:
    """Epochs of about so many steps."""
    return max(1, round(steps / Plan.load(plan).training.steps))


def interval(values: np.ndarray) -> list[float]:
    """The mean over seeds and cases of `(seeds, cases)`, and its 95 % bootstrap interval over both."""
    rng = np.random.default_rng(0)
    seeds, cases = values.shape
    means = [values[rng.integers(seeds, size=seeds)][:, rng.integers(cases, size=cases)].mean() for _ in range(BOOTSTRAPS)]
    return [round(float(v), 4) for v in (values.mean(), *np.percentile(means, [2.5, 97.5]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--pretrain-steps", type=int, default=1000, help="of each pre-training; a multiple of 50")
    parser.add_argument("--steps", type=int, default=200, help="of each training of few cases; a multiple of 50")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, action="append")
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--keep", type=Path, help="keep pre-trained models in this folder, and take those that are there")
    parser.add_argument("--name", default="pretraining", help="of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = sorted(json.loads((arguments.dataset / "dataset.json").read_text())["training"], key=lambda pair: pair["image"])
    order = np.random.default_rng(0).permutation(len(pairs))
    scored = [pairs[i] for i in order[:SCORED]]
    pool = [pairs[i] for i in order[SCORED : SCORED + LABELLED]]
    others = [pairs[i] for i in order[SCORED + LABELLED :]]
    chosen = arguments.only or list(VARIANTS)
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        keep, work = arguments.keep or Path(temporary), Path(temporary) / "work"
        sources: dict[str, Path] = {}
        if any(VARIANTS[name][0] == "masked" for name in chosen):
            sources["masked"] = keep / "masked"
            if not sources["masked"].is_dir():
                data = subset(arguments.dataset, keep / "images", pool[:5], [pair["image"] for pair in others])
                workflow.plan(data, keep / "plans_masked", memory=4, progress=progress)
                plan = keep / "plans_masked" / "3d.json"
                workflow.pretrain(plan, sources["masked"], epochs=epochs_of(plan, arguments.pretrain_steps), progress=progress)
        if any(VARIANTS[name][0] == "supervised" for name in chosen):
            sources["supervised"] = keep / "supervised"
            if not sources["supervised"].is_dir():
                data = subset(arguments.dataset, keep / "labelled", others)
                workflow.plan(data, keep / "plans_supervised", memory=4, progress=progress)
                plan = keep / "plans_supervised" / "3d.json"
                epochs = epochs_of(plan, arguments.pretrain_steps)
                one = {"training.networks": "1"}
                workflow.train(plan, sources["supervised"], fold=None, epochs=epochs, edits=one, progress=progress)
        table: dict[tuple[int, str], list[np.ndarray]] = {}
        results: list[dict[str, object]] = []
        for seed in range(arguments.seeds):
            for count in arguments.cases or [5, 10]:
                drawn = np.random.default_rng(seed + 1).permutation(LABELLED)[:count]
                folder = work / f"{seed}_{count}"
                data = subset(arguments.dataset, folder / "data", [pool[i] for i in drawn])
                workflow.plan(data, folder / "plans", memory=4, progress=progress)
                plan = folder / "plans" / "3d.json"
                epochs = epochs_of(plan, arguments.steps)
                for name in chosen:
                    source, edits = VARIANTS[name]
                    run = folder / name.replace(" ", "_")
                    edits = edits | {"training.seed": str(seed), "training.networks": "1"}
                    init = sources.get(source)
                    workflow.train(plan, run, fold=None, epochs=epochs, init=init, edits=edits, progress=progress)
                    workflow.predict(run, [arguments.dataset / pair["image"] for pair in scored], run / "out", progress=progress)
                    table.setdefault((count, name), []).append(dice(run / "out", arguments.dataset, scored, 2))
                    results = [
                        {
                            "cases": cases,
                            "variant": variant,
                            "dice": interval(np.array(values)),
                            "seeds": [round(float(v.mean()), 4) for v in values],
                        }
                        | (
                            {"difference": interval(np.array(values) - np.array(table[cases, "from scratch"])[: len(values)])}
                            if variant != "from scratch" and (cases, "from scratch") in table
                            else {}
                        )
                        for (cases, variant), values in sorted(table.items())
                    ]
                    progress.say(str([row for row in results if (row["cases"], row["variant"]) == (count, name)]))
                    note = (
                        f"pre-trained {arguments.pretrain_steps} steps on {len(others)} cases, then {arguments.steps} steps on few; Dice of "
                        f"{SCORED} cases: mean and 95 % bootstrap interval over seeds and cases; difference to the training from scratch"
                    )
                    write(arguments.name, results, note)


if __name__ == "__main__":
    main()
