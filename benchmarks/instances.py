"""Objects found by medseg's heads, by StarDist, and by components of classes, after equal times of training, on the same cases left out.

    python benchmarks/instances.py begin DATASET WORK --time 30m --left-out 28
    python benchmarks/instances.py medseg WORK                            (what the planner chooses)
    python benchmarks/instances.py medseg WORK --network mask-rcnn        (and yolact)
    python benchmarks/instances.py stardist WORK --python STARDIST_VENV/bin/python [--input rgb] [--schedule cosine]
    python benchmarks/instances.py speed WORK
    python benchmarks/instances.py join WORK

    python benchmarks/instances.py begin DATASET WORK --task panoptic --time 30m --left-out 2 --last
    python benchmarks/instances.py medseg WORK [--network mask-rcnn]
    python benchmarks/instances.py components WORK --labels semantic
    python benchmarks/instances.py join WORK

`begin` settles cases, folds, time and threads for all parts. Cases left out are drawn of the whole range of image sizes, or those of a split that is given
(`--splits`, `medseg run` writes one); with `--last` they are the
last ones, which suits sections of a stack, where neighbours are alike. Each part trains in a process of its own with the same threads (bound to so many
cores), predicts the cases left out, and writes its part of the result into WORK; `join` puts the parts together. A part that is finished is not
done again; one that was interrupted goes on (medseg) or trains anew (StarDist). The time is that of training: planning, preparation
and StarDist's choice of thresholds come in addition. All label maps are scored by `medseg evaluate`'s pooled scores; `stardist` also scores its
own by StarDist's functions, as a check. Average precision is of all that a detector found (`detections/`), as in `medseg run`; of painted objects only
(above its own threshold of confidence) where a program writes no more: StarDist, votes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import write
from instances_shared import CURVES, IOU, VIEWS, Setup, Work, per_second, predicted, scored, trained
from numpy.typing import NDArray
from planning_speed import timed
from scipy import ndimage

from medseg import steps
from medseg.commands.options import parse_time
from medseg.dataset import NUMBER_BITS, Dataset, Labels
from medseg.device import choose_device
from medseg.inference.predictor import Predictor
from medseg.io.images import image_suffix, read_case, read_header, read_label, write_label
from medseg.plans import Plan
from medseg.training.splits import Splits

SCRIPT = Path(__file__).with_name("instances_stardist.py")
AGREED = 1e-4  # between two scorers


def begin(arguments: argparse.Namespace) -> None:
    root: Path = arguments.work
    parse_time(arguments.time)
    dataset = steps.opened(arguments.dataset, None, None, arguments.task)
    for case in dataset.cases:
        if len(case.images) != 1 or case.images[0].name != f"{case.id}{image_suffix(case.images[0])}":
            raise SystemExit(f"{case.id}: one image file per case, called as the case, is what this comparison can share among programs")
    total = min(arguments.cases or len(dataset.cases), len(dataset.cases))
    if arguments.splits is None and not 0 < (arguments.left_out or 0) < total:
        raise SystemExit(f"{arguments.left_out} of {total} cases cannot be left out")
    if arguments.splits is not None:
        fold = Splits.load(arguments.splits).folds[0]
        ids, test = [*fold.train, *fold.val], list(fold.val)
    elif arguments.last:
        ids = [case.id for case in dataset.cases][:total]
        test = ids[-arguments.left_out :]
    else:
        draw, count = random.Random(arguments.seed), arguments.left_out
        ordered = by_size(dataset, draw)
        ids = [ordered[i * len(ordered) // total] for i in range(total)]
        test = [draw.choice(ids[i * total // count : (i + 1) * total // count]) for i in range(count)]
    train = sorted(set(ids) - set(test))
    setup = Setup(
        dataset=str(arguments.dataset.resolve()),
        task=arguments.task,
        time=arguments.time,
        threads=arguments.threads,
        device=arguments.device,
        seed=arguments.seed,
        train=train,
        test=sorted(test),
    )
    file = root / "setup.json"
    if file.is_file() and json.loads(file.read_text()) != asdict(setup):
        raise SystemExit(f"{root} has begun otherwise; choose another folder")
    (root / "images").mkdir(parents=True, exist_ok=True)
    for case_id in setup.test:
        (image,) = dataset.case(case_id).images
        shutil.copyfile(image, root / "images" / image.name)
    (root / "splits.json").write_text(json.dumps([{"train": setup.train, "val": setup.test}]))
    file.write_text(json.dumps(asdict(setup), indent=2))
    print(f"{len(train)} cases to train on, {len(test)} left out")


def by_size(dataset: Dataset, draw: random.Random) -> list[str]:
    """Cases by the size of their image, those of one size in a random order."""
    sizes = [(math.prod(read_header(case.images[0]).shape), draw.random(), case.id) for case in dataset.cases]
    return [case for _, _, case in sorted(sizes)]


def called(text: str) -> Any:
    """The last JSON object that a program said; others may talk after it."""
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def medseg(arguments: argparse.Namespace) -> None:
    work = Work(arguments.work)
    name = f"medseg_{arguments.network or 'planned'}"
    if work.part(name).is_file():
        return
    options = ["--task", work.setup.task, *(("--network", arguments.network) if arguments.network else ())]
    run, row = trained(work, name, *options)
    for view, flags in VIEWS.items():
        if view == "mirrored" and not row["mirror"]:
            continue
        out = work.root / name / view
        cost = predicted(work, run, out, "--format", "labels,table,detections", *flags)
        row[view] = {"prediction": cost, "scores": scored(work, out)}
    work.keep(name, row)


def components(arguments: argparse.Namespace) -> None:
    """A network of classes alone; each connected component of a class of things is an object."""
    work, labels = Work(arguments.work), arguments.labels
    name = "components"
    if work.part(name).is_file():
        return
    run, row = trained(work, name, "--task", "semantic", *(("--labels", labels) if labels else ()))
    known = work.dataset.labels
    if Plan.load(run / "plan.json").data.labels.written != known.written:
        raise SystemExit("the classes of the semantic labels are not those of the objects")
    smallest = smallest_objects(work)
    for view, flags in VIEWS.items():
        classes, out = work.root / name / f"{view}_classes", work.root / name / view
        cost = predicted(work, run, classes, "--format", "labels", *flags)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        start = time.monotonic()
        for image in work.left_out():
            codes = with_objects(read_label(classes / image.name).array[0], known, smallest)
            write_label(out / image.name, codes, image, colours=True)
        seconds = round(time.monotonic() - start, 2)
        row[view] = {"prediction": cost, "component_seconds": seconds, "scores": scored(work, out, "codes")}
    work.keep(name, {**row, "smallest": smallest})


def smallest_objects(work: Work) -> dict[str, int]:
    """Voxels of the smallest object of each class of things in the cases trained on; smaller components are left out."""
    labels, found = work.dataset.labels, dict[str, int]()
    for case_id in work.setup.train:
        label = read_case(work.dataset.case(case_id), labels=labels).label
        assert label is not None
        codes, sizes = np.unique(label, return_counts=True)
        for name, value in zip(labels.names, labels.written, strict=True):
            here = sizes[(codes >> NUMBER_BITS == value) & (labels.numbers(codes) > 0)]
            if name in labels.things and here.size:
                found[name] = min(found.get(name, int(here.min())), int(here.min()))
    return found


def with_objects(classes: NDArray[Any], labels: Labels, smallest: dict[str, int]) -> NDArray[np.int32]:
    """Codes of classes `(*shape)`: components that touch by faces are objects of things; those smaller than any that was trained on are background."""
    codes: NDArray[np.int32] = classes.astype(np.int32) << NUMBER_BITS
    count = 0
    for name, value in zip(labels.names, labels.written, strict=True):
        if name in labels.things:
            parts, here = ndimage.label(classes == value)
            large = np.bincount(parts.ravel(), minlength=here + 1) >= smallest.get(name, 1)
            codes[(parts > 0) & ~large[parts]] = 0
            inside = (parts > 0) & large[parts]
            codes[inside] |= parts[inside] + count
            count += here
    return codes


def stardist(arguments: argparse.Namespace) -> None:
    work = Work(arguments.work)
    setup, labels = work.setup, work.dataset.labels
    if labels.objects != "numbers" or setup.device != "cpu":
        raise SystemExit("StarDist is compared on a CPU, with labels of one class whose values are objects")
    asked = {arguments.input: "gray", arguments.schedule: "recipe"}
    name = "_".join(["stardist", *(choice for choice, usual in asked.items() if choice != usual)])
    if work.part(name).is_file():
        return
    folder = work.root / name
    out = folder / "predictions"
    trained_file = folder / "trained.json"
    job = {
        "train": files(work.dataset, setup.train),
        "test": files(work.dataset, setup.test),
        "class": labels.names[0],
        "model": str(folder / "model"),
        "out": str(out),
        "seconds": parse_time(setup.time),
        "threads": setup.threads,
        "seed": setup.seed,
        "input": arguments.input,
        "schedule": arguments.schedule,
    }
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job))

    def log(verb: str) -> Path:
        return folder / f"{verb}.log"

    def command(verb: str) -> list[str]:
        return [str(arguments.python), str(SCRIPT), verb, str(folder / "job.json")]

    environment = work.environment()
    if not trained_file.is_file():
        shutil.rmtree(folder / "model", ignore_errors=True)
        cost = timed(command("train"), environment, log("train"))
        trained_file.write_text(json.dumps({**called(log("train").read_text()), "whole_run": asdict(cost)}))
    shutil.rmtree(out, ignore_errors=True)
    prediction = per_second(timed(command("predict"), environment, log("predict")), len(setup.test))
    for verb in ("time", "score"):
        timed(command(verb), environment, log(verb))
    row: dict[str, Any] = {"program": "StarDist", "input": arguments.input, "schedule": arguments.schedule}
    row |= json.loads(trained_file.read_text())
    scores: dict[str, Any] = scored(work, out, "numbers")
    own = called(log("score").read_text())
    ours = scores["curves"][labels.names[0]]
    apart = max(abs((ours[m][iou] or 0.0) - own[m][iou]) for m in CURVES for iou in IOU)
    if apart > AGREED:
        print(f"warning: StarDist's own scores differ by {apart:.4f}")
    row["one_view"] = {"prediction": prediction, "loaded": called(log("time").read_text()), "scores": scores}
    work.keep(name, {**row, "own_scores": own, "own_scores_differ_by": round(apart, 6)})


def files(dataset: Dataset, ids: list[str]) -> list[tuple[str, str, str]]:
    return [(i, str(dataset.case(i).images[0].resolve()), str(dataset.case(i).label.resolve())) for i in ids]  # type: ignore[union-attr]


def mirroring(model: Predictor, device: torch.device) -> Predictor:
    """The model with the mirrored views that it was trained for, also where its plan predicts without."""
    plan = model.plan
    views = plan.inference.model_copy(update={"mirror": plan.space.augmentation.mirror})
    return Predictor(plan.model_copy(update={"inference": views}), model.ensemble.networks, device)


def speed(arguments: argparse.Namespace) -> None:
    """Each image by every model there is, with and without mirrored views, in turn; file to labels, models loaded."""
    work = Work(arguments.work)
    torch.set_num_threads(work.setup.threads)
    runs = {path.parent.name: path.parent / "run" for path in sorted(work.root.glob("medseg_*/run.json"))}
    if not runs:
        raise SystemExit("no model is trained yet")
    device = choose_device(work.setup.device)
    models = {name: mirroring(Predictor.load(run, device=work.setup.device), device) for name, run in runs.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {view: [] for view in VIEWS} for name in models}
    for repeat in range(2):  # the first time is not counted, as with StarDist
        for image in work.left_out():
            for name, model in models.items():
                for view, flags in VIEWS.items():
                    start = time.perf_counter()
                    model.predict_file(image, mirror=not flags)
                    if repeat:
                        seconds[name][view].append(round(time.perf_counter() - start, 4))
    rows: dict[str, Any] = {
        name: {
            view: {"median": statistics.median(found), "images_per_second": round(len(found) / sum(found), 3), "seconds": found}
            for view, found in views.items()
        }
        for name, views in seconds.items()
    }
    pair = [seconds.get(f"medseg_{network}") for network in ("mask-rcnn", "yolact")]
    if pair[0] and pair[1]:
        rows["mask-rcnn_over_yolact"] = {
            view: {
                "sum": round(sum(pair[0][view]) / sum(pair[1][view]), 2),
                "median_of_images": round(statistics.median(a / b for a, b in zip(pair[0][view], pair[1][view], strict=True)), 2),
            }
            for view in VIEWS
        }
    work.keep("speed", rows)


def join(arguments: argparse.Namespace) -> None:
    work = Work(arguments.work)
    parts = {file.stem: json.loads(file.read_text()) for file in sorted((work.root / "parts").glob("*.json"))}
    setup = work.setup
    for name, part in parts.items():
        for view in VIEWS:
            if view in part and name != "speed":
                scores, told = part[view]["scores"], ("pq", "object_accuracy", "ap")
                values = ", ".join(f"{m} {scores['means']['all'][m][0]}" for m in told if m in scores["means"]["all"])
                classes = ", ".join(f"{of} {row['pq'][0]}" for of, row in scores["classes"].items())
                print(f"{name}, {view}: {values}; pq of {classes}; {part[view]['prediction']['images_per_second']} images/s")
    result = {
        "dataset": work.dataset.name,
        "task": setup.task,
        "time": setup.time,
        "threads": setup.threads,
        "device": setup.device,
        "seed": setup.seed,
        "trained_on": len(setup.train),
        "left_out": setup.test,
        "parts": parts,
    }
    note = (
        f"{setup.time} of training each, {setup.threads} threads; pooled scores of the {len(setup.test)} cases left out, [value, 95 % bootstrap interval "
        "over cases]; prediction: whole processes, start included; speed and loaded: seconds of each image, file to labels, model loaded"
    )
    print(write(arguments.name or f"instances_{work.dataset.name}", result, note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in (begin, medseg, stardist, components, speed, join):
        one = verbs.add_parser(verb.__name__)
        one.set_defaults(function=verb)
        if verb is begin:
            one.add_argument("dataset", type=Path)
        one.add_argument("work", type=Path)
        if verb is begin:
            one.add_argument("--task", choices=("instance", "panoptic"), default="instance")
            one.add_argument("--time", required=True)
            one.add_argument("--left-out", type=int)
            one.add_argument("--splits", type=Path, help="train and leave out as in the first fold of this splits.json")
            one.add_argument("--last", action="store_true", help="leave out the last cases instead of a draw over image sizes")
            one.add_argument("--cases", type=int, help="take so many cases only")
            one.add_argument("--threads", type=int, default=2)
            one.add_argument("--device", default="cpu")
            one.add_argument("--seed", type=int, default=0)
        elif verb is medseg:
            one.add_argument("--network", help="default: what the planner chooses")
        elif verb is stardist:
            one.add_argument("--python", type=Path, required=True, help="of an environment with StarDist")
            one.add_argument("--input", choices=("gray", "rgb"), default="gray", help="luminance, or the colours")
            one.add_argument("--schedule", choices=("recipe", "cosine"), default="recipe", help="of the learning rate, over the time given")
        elif verb is components:
            one.add_argument("--labels", help="name of the folder with the classes")
        elif verb is join:
            one.add_argument("--name", help="of the result file")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
