"""StarDist from scratch; run by `instances.py` in an environment in which StarDist is installed.

    python instances_stardist.py train|predict|time JOB.json

The recipe is that of StarDist's own example for 2D (`examples/2D/2_training.ipynb`): 32 rays, grid (2, 2), intensities from percentiles 1 and
99.8 of each image, holes of labels filled, 15 % of the training images kept for validation, flips, rotations by 90 degrees, changes of intensity
and noise, batches of 4 windows of 256 x 256, Adam at 0.0003, the weights with the lowest validation loss, thresholds by `optimize_thresholds`. Only its
length is another one: it ends after the given seconds instead of 400 epochs. The last line of output is a JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALIDATION = 0.15
NAME = "stardist"
FOREVER = 100_000  # epochs, of which the clock lets only some happen
FASTEST = 1e-6  # of the learning rate, at the end of a cosine
PACKAGES = ("stardist", "csbdeep", "tensorflow-cpu", "tensorflow", "keras", "tf_keras", "numpy")
IOU = (0.5, 0.6, 0.7, 0.8, 0.9)

Array = NDArray[Any]


def image(file: str, colours: bool) -> Array:
    """`(y, x)`, or `(y, x, 3)` with `colours`; transparency is dropped, and grey is the luminance (Rec. 709) of colours."""
    from skimage import color, io

    found: Array = io.imread(file)
    if found.ndim == 3:
        found = found[..., :3]
        return found if colours else color.rgb2gray(found)
    return np.repeat(found[..., None], 3, axis=-1) if colours else found


def normalised(found: Array) -> Array:
    """Each channel by itself, as in the example."""
    from csbdeep.utils import normalize

    values: Array = normalize(found, 1, 99.8, axis=(0, 1))
    return values


def augmented(x: Array, y: Array) -> tuple[Array, Array]:
    """The example's augmentation; it draws from numpy's global generator, which is seeded."""
    order = tuple(np.random.permutation(2))
    x, y = x.transpose(*order, *range(2, x.ndim)), y.transpose(order)
    for axis in range(2):
        if np.random.rand() > 0.5:
            x, y = np.flip(x, axis), np.flip(y, axis)
    x = x * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return x + 0.02 * np.random.uniform() * np.random.normal(size=x.shape), y


def train(job: dict[str, Any]) -> dict[str, Any]:
    import tensorflow
    from skimage import io
    from stardist import fill_label_holes
    from stardist.models import Config2D, StarDist2D

    threads(job)
    colours, cosine = job["input"] == "rgb", job["schedule"] == "cosine"
    np.random.seed(job["seed"])
    tensorflow.random.set_seed(job["seed"])
    images = [normalised(image(file, colours)) for _, file, _ in job["train"]]
    labels = [fill_label_holes(io.imread(label)) for _, _, label in job["train"]]
    order = np.random.RandomState(job["seed"]).permutation(len(images))
    count = max(1, round(VALIDATION * len(images)))
    kept, others = order[:count], order[count:]
    side = min(256, *(min(y.shape) for y in labels))
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        use_gpu=False,
        n_channel_in=3 if colours else 1,
        train_patch_size=(side - side % 16,) * 2,
        train_epochs=FOREVER,
        train_tensorboard=False,
    )
    if cosine:
        config.train_reduce_lr = None
    model = StarDist2D(config, name=NAME, basedir=job["model"])
    model.prepare_for_training()
    clock = stopwatch(type(model.callbacks[0]), job["seconds"], config.train_learning_rate if cosine else None)
    model.callbacks.append(clock)
    model.train(
        [images[i] for i in others],
        [labels[i] for i in others],
        validation_data=([images[i] for i in kept], [labels[i] for i in kept]),
        augmenter=augmented,
        seed=job["seed"],
    )
    trained = time.monotonic() - clock.start
    start = time.monotonic()
    model.optimize_thresholds([images[i] for i in kept], [labels[i] for i in kept])
    return {
        "seconds": round(trained, 1),
        "threshold_seconds": round(time.monotonic() - start, 1),
        "steps": clock.steps,
        "window": list(config.train_patch_size),
        "batch": config.train_batch_size,
        "training_images": len(others),
        "validation_images": len(kept),
        "thresholds": {"prob": round(float(model.thresholds.prob), 4), "nms": round(float(model.thresholds.nms), 4)},
        "versions": versions(),
    }


def stopwatch(known: type, seconds: float, rate: float | None) -> Any:
    """Ends a training after some seconds, validation counted; with a `rate` that falls to nothing by then. `known` is any of Keras's callbacks."""
    kinds = [kind for kind in known.__mro__ if kind.__name__ == "Callback"]  # of the Keras that StarDist uses, which may be either

    class Stopwatch(kinds[0]):
        def __init__(self) -> None:
            super().__init__()
            self.start = 0.0
            self.steps = 0

        def on_train_begin(self, logs: Any = None) -> None:
            self.start = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            done = min(1.0, (time.monotonic() - self.start) / seconds)
            if rate is not None:
                now = max(FASTEST, (1 + math.cos(math.pi * done)) / 2) * rate
                self.model.optimizer.learning_rate.assign(now)
            if done >= 1:
                self.model.stop_training = True

    return Stopwatch()


def threads(job: dict[str, Any]) -> None:
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tensorflow.config.threading.set_inter_op_parallelism_threads(job["threads"])


def loaded(job: dict[str, Any]) -> Any:
    from stardist.models import StarDist2D

    threads(job)
    return StarDist2D(None, name=NAME, basedir=job["model"])


def predicted(model: Any, file: str, colours: bool) -> tuple[Array, dict[str, Any]]:
    """From the file to labels `(y, x)`, as in the example."""
    ready = normalised(image(file, colours))
    found: tuple[Array, dict[str, Any]] = model.predict_instances(ready, n_tiles=model._guess_n_tiles(ready), show_tile_progress=False)
    return found


def predict(job: dict[str, Any]) -> dict[str, Any]:
    """Label maps called as the images, and beside them a table of confidences as medseg reads it."""
    from skimage import io

    model, out = loaded(job), Path(job["out"])
    (out / "objects").mkdir(parents=True)
    for name, file, _ in job["test"]:
        labels, details = predicted(model, file, job["input"] == "rgb")
        if labels.max(initial=0) > 65535:
            raise SystemExit(f"{file}: more objects than 16 bits can number")
        io.imsave(out / f"{name}{Path(file).suffix}", labels.astype(np.uint16), check_contrast=False)
        with (out / "objects" / f"{name}.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["number", "class", "score"])
            present = set(np.unique(labels).tolist())
            writer.writerows([i, job["class"], float(p)] for i, p in enumerate(details["prob"], 1) if i in present)
    return {}


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each image with the model loaded, file to labels; the second time that it sees each, so that nothing is compiled any more."""
    model = loaded(job)
    for _ in range(2):
        seconds = []
        for _, file, _ in job["test"]:
            start = time.perf_counter()
            predicted(model, file, job["input"] == "rgb")
            seconds.append(round(time.perf_counter() - start, 4))
    return {"seconds": seconds, "median": statistics.median(seconds), "images_per_second": round(len(seconds) / sum(seconds), 3)}


def score(job: dict[str, Any]) -> dict[str, Any]:
    """StarDist's own scores of label maps of any program: a check of the scorer that all share."""
    from skimage import io
    from stardist.matching import matching_dataset

    files = [(label, Path(job["out"]) / f"{name}{Path(file).suffix}") for name, file, label in job["test"]]
    truth, found = ([io.imread(file).astype(np.int32) for file in side] for side in zip(*files, strict=True))
    rows = [matching_dataset(truth, found, thresh=iou, show_progress=False) for iou in IOU]
    return {
        "object_f1": {f"{iou:g}": round(float(row.f1), 6) for iou, row in zip(IOU, rows, strict=True)},
        "object_accuracy": {f"{iou:g}": round(float(row.accuracy), 6) for iou, row in zip(IOU, rows, strict=True)},
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


VERBS = {"train": train, "predict": predict, "time": timed, "score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("job", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    result = VERBS[arguments.verb](json.loads(arguments.job.read_text()))
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
