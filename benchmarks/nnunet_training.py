"""nnU-Net's own training; run by `time_to_dice.py` and `training_step.py` in an environment in which nnU-Net is installed.

    python nnunet_training.py prepare DATASET_ID
    python nnunet_training.py train DATASET_ID --fold 0 --minutes 20
    python nnunet_training.py steps DATASET_ID --count 10

nnU-Net's folders are named by its environment variables. `train` is its own trainer with its own loss, optimiser, augmentation and polynomial
schedule, stretched over the time given instead of 1000 epochs of 250 steps; `steps` times its training step on a batch that lies ready.
The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

CONFIGURATION = "3d_fullres"
STEPS_PER_EPOCH = 10


def prepare(number: int) -> dict[str, Any]:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([number], num_processes=2, check_dataset_integrity=False)
    plan_experiments([number])
    preprocess([number], configurations=[CONFIGURATION], num_processes=[2])
    return {}


def trainer(number: int, fold: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    folder = Path(os.environ["nnUNet_preprocessed"]) / convert_id_to_dataset_name(number)  # noqa: SIM112  (nnU-Net's own name)
    plans, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in ("nnUNetPlans", "dataset"))
    plans["continue_training"] = False
    made = nnUNetTrainer(plans, CONFIGURATION, fold, dataset, device=torch.device("cpu"))
    made.num_iterations_per_epoch = STEPS_PER_EPOCH
    made.num_val_iterations_per_epoch = 1
    return made


def train(number: int, fold: int, minutes: float) -> dict[str, Any]:
    made = trainer(number, fold)
    made.on_train_start()
    start, steps = time.monotonic(), 0
    while (elapsed := (time.monotonic() - start) / (60 * minutes)) < 1:
        made.on_epoch_start()
        made.on_train_epoch_start()
        for group in made.optimizer.param_groups:  # its schedule counts epochs, of which there is no number here
            group["lr"] = made.initial_lr * (1 - elapsed) ** 0.9
        outputs = []
        for _ in range(STEPS_PER_EPOCH):
            outputs.append(made.train_step(next(made.dataloader_train)))
            steps += 1
            if time.monotonic() - start > 60 * minutes:
                break
        made.on_train_epoch_end(outputs)
        with torch.no_grad():
            made.on_validation_epoch_start()
            made.on_validation_epoch_end([made.validation_step(next(made.dataloader_val))])
        made.on_epoch_end()
    seconds = time.monotonic() - start
    made.on_train_end()
    return {"steps": steps, "seconds": round(seconds, 1), "model": made.output_folder_base}


def steps(number: int, count: int) -> dict[str, Any]:
    made = trainer(number, 0)
    made.initialize()
    made.network.train()
    batch = {
        "data": torch.randn(made.batch_size, made.num_input_channels, *made.configuration_manager.patch_size),
        "target": [
            torch.zeros(made.batch_size, 1, *(int(n * s) for n, s in zip(made.configuration_manager.patch_size, scale, strict=True)))
            for scale in made._get_deep_supervision_scales()
        ],
    }
    made.train_step(batch)
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        made.train_step(batch)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "batch": made.batch_size, "window": list(made.configuration_manager.patch_size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "train", "steps"))
    parser.add_argument("dataset", type=int)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    if arguments.verb == "prepare":
        result = prepare(arguments.dataset)
    elif arguments.verb == "train":
        result = train(arguments.dataset, arguments.fold, arguments.minutes)
    else:
        result = steps(arguments.dataset, arguments.count)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
