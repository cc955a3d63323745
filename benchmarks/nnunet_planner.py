"""Whether `medseg.interop.nnunet` plans what nnU-Net's own planners plan: every key of every configuration, and the bytes of the file.

    python benchmarks/nnunet_planner.py --reference NNUNET_VENV/bin/python [--random 400] [--seed 0] [FOLDER ...]

NNUNET_VENV has nnunetv2 installed. FOLDER holds `dataset.json` and `dataset_fingerprint.json`; the Decathlon and random datasets
(`nnunet_fingerprints.py`) come besides. Where nnU-Net itself fails, medseg must fail with a clear error. `--golden FILE` writes the given
and some small random datasets with nnU-Net's plans, one per line, for `tests/interop`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hardware import write
from nnunet_fingerprints import KINDS, Job, decathlon, drawn

from medseg.errors import PlanError
from medseg.interop.nnunet.checks import DATASET, FINGERPRINT
from medseg.interop.nnunet.planner import make_plans
from medseg.interop.nnunet.presets import PRESETS
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetFingerprint

SMALL = 6  # cases of a dataset in the fixture


@dataclass
class Row:
    """What was compared for one group of datasets and one preset."""

    group: str
    preset: str
    datasets: int = 0
    identical_files: int = 0
    both_refuse: int = 0
    configurations: int = 0
    keys: int = 0
    equal_keys: int = 0
    differences: list[str] = field(default_factory=list)


def reference(python: Path, jobs: list[Job]) -> Iterator[dict[str, str]]:
    """Versions, then nnU-Net's result for every job and preset in turn."""
    script = Path(__file__).with_name("nnunet_reference.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        for job in jobs:
            line = {"name": job.name, "dataset": job.dataset, "fingerprint": job.fingerprint, "presets": list(PRESETS)}
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            for _ in PRESETS:
                yield json.loads(process.stdout.readline())


def ours(job: Job, preset: str) -> dict[str, str]:
    try:
        dataset = NnUNetDataset.parse(job.dataset, DATASET)
        fingerprint = NnUNetFingerprint.parse(job.fingerprint, FINGERPRINT)
        plans = make_plans(dataset, fingerprint, name=job.name, preset=PRESETS[preset])
    except PlanError as error:
        return {"error": str(error)}
    return {"plans": json.dumps(plans.content(), indent=4)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no object, by its dotted path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def compare(row: Row, name: str, theirs: dict[str, str], mine: dict[str, str]) -> None:
    row.datasets += 1
    if "error" in theirs or "error" in mine:
        if "error" in theirs and "error" in mine:
            row.both_refuse += 1
        else:
            row.differences.append(f"{name}: nnU-Net {theirs.get('error', 'plans')}; medseg {mine.get('error', 'plans')}")
        return
    row.identical_files += theirs["plans"] == mine["plans"]
    expected, found = (json.loads(side["plans"]) for side in (theirs, mine))
    row.configurations += len(expected["configurations"])
    a, b = dict(leaves(expected)), dict(leaves(found))
    for key in sorted(a.keys() | b.keys()):
        row.keys += 1
        if key in a and key in b and a[key] == b[key]:
            row.equal_keys += 1
        else:
            row.differences.append(f"{name}, {key}: nnU-Net {a.get(key, 'nothing')}, medseg {b.get(key, 'nothing')}")


def folder_job(folder: Path) -> Job:
    dataset, fingerprint = (json.loads((folder / name).read_text()) for name in (DATASET, FINGERPRINT))
    return Job("given", folder.name if folder.name.startswith("Dataset") else f"Dataset999_{folder.name}", dataset, fingerprint)


def golden(file: Path, python: Path, jobs: list[Job]) -> None:
    """nnU-Net's plans of small datasets, the presets in turn, every other time the default one."""
    small = [job for job in jobs if len(job.fingerprint["spacings"]) <= SMALL]
    chosen = [job for job in jobs if job.group == "given"] + [next(job for job in small if job.group == kind) for kind in KINDS]
    results = reference(python, chosen)
    next(results)
    lines = []
    others = itertools.cycle(list(PRESETS)[1:])
    for number, job in enumerate(chosen):
        found = dict(zip(PRESETS, itertools.islice(results, len(PRESETS)), strict=True))
        preset = next(others) if number % 2 else "nnunet"
        lines.append(json.dumps({**asdict(job), "preset": preset, "plans": json.loads(found[preset]["plans"])}))
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    parser.add_argument("--reference", type=Path, required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--random", type=int, default=400, help="number of random datasets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", type=Path, metavar="FILE", help="write the fixture of the tests, and compare nothing")
    arguments = parser.parse_args()
    jobs = [*map(folder_job, arguments.folders), *decathlon(), *drawn(arguments.random, arguments.seed)]
    if arguments.golden is not None:
        golden(arguments.golden, arguments.reference, jobs)
        return
    results = reference(arguments.reference, jobs)
    versions = next(results)
    rows: dict[tuple[str, str], Row] = {}
    seconds = 0.0
    for job in jobs:
        for preset in PRESETS:
            theirs = next(results)
            start = time.perf_counter()
            mine = ours(job, preset)
            seconds += time.perf_counter() - start
            compare(rows.setdefault((job.group, preset), Row(job.group, preset)), job.name, theirs, mine)
    print(f"{'group':12} {'preset':17} {'datasets':>8} {'identical':>9} {'refused':>8} {'configurations':>14} {'keys':>8} {'equal':>8}")
    for row in rows.values():
        print(
            f"{row.group:12} {row.preset:17} {row.datasets:8} {row.identical_files:9} {row.both_refuse:8} {row.configurations:14} "
            f"{row.keys:8} {row.equal_keys:8}"
        )
    for difference in [d for row in rows.values() for d in row.differences][:20]:
        print(difference)
    planned = sum(row.datasets for row in rows.values())
    print(f"{planned} plans, {1e3 * seconds / planned:.1f} ms each")
    write(
        "nnunet_planner",
        {
            "reference": versions,
            "random": arguments.random,
            "seed": arguments.seed,
            "milliseconds_per_plan": round(1e3 * seconds / planned, 1),
            "rows": [{**asdict(row), "differences": row.differences[:20]} for row in rows.values()],
        },
        "plans of medseg.interop.nnunet and of nnU-Net's own planners for the same dataset.json and dataset_fingerprint.json; identical: "
        "the files are equal to the byte; refused: nnU-Net crashes and medseg gives an error",
    )


if __name__ == "__main__":
    main()
