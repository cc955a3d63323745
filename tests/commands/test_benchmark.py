"""What `medseg benchmark` prints and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medseg import workflow
from medseg.benchmarking import Benchmark, PredictionSpeed
from medseg.commands import console, main
from medseg.verdict import TrainingSpeed, Verdict

FOUND = Benchmark(
    plan="3d",
    plan_digest="0123456789abcdef",
    device="A chip",
    kind="cpu",
    precision="bfloat16",
    threads=2,
    cores=4,
    versions={"torch": "2.8"},
    window=(40, 56, 40),
    batch_size=2,
    prepared=8,
    own=False,
    prepared_gib=0.25,
    training=TrainingSpeed(
        steps=18,
        steps_per_second=2.5,
        windows_per_second=5.0,
        fastest=0.39,
        slowest=0.452,
        cores=1.94,
        others=0.03,
        phases={"data": 0.004, "augmentation": 0.02, "network": 0.332, "optimiser": 0.044},
        waiting=0.01,
        memory=0.23,
        memory_predicted=0.45,
        portion=None,
        flops=90 * 10**9,
        rate=225e9,
        peak_rate=450e9,
        utilisation=0.5,
        workers=0,
        window_seconds=0.001,
        window_computing=1.0,
        compiled=False,
        float32_steps_per_second=1.25,
        epoch_seconds=20.0,
        plan_seconds=9000.0,
    ),
    prediction=PredictionSpeed(
        windows_per_second=22.9,
        views=8,
        networks=5,
        case_shape=(35, 51, 35),
        case_windows=1,
        case_seconds=300.0,
        case_whole=False,
        memory=0.78,
        device_memory=None,
        measured=False,
    ),
    verdict=Verdict(limit="network", sentence="limited by the network (waiting 1%)", advice=("a GPU",)),
)
SHOWN = [
    ("training", "2.5 steps/s, 5 windows/s, 18 steps measured"),
    ("a step", "390 to 452 ms"),
    ("cores", "1.9 of 4 used; other processes took 3% of all"),
    ("data", "4.0 ms, 1% of a step"),
    ("augmentation", "20.0 ms, 5% of a step"),
    ("network", "332.0 ms, 83% of a step"),
    ("optimiser", "44.0 ms, 11% of a step"),
    ("waiting for data", "1%, with windows cut by the training itself"),
    ("memory", "0.23 GiB at the peak; predicted 0.45 GiB, which is for float32"),
    ("arithmetic", "90 GFLOP per step, 225 GFLOP/s"),
    ("utilisation", "50% of a large matrix product, 450 GFLOP/s"),
    ("in float32", "1.25 steps/s; bfloat16 is 2 times as fast"),
    ("an epoch", "20 s"),
    ("the plan's training", "2.5 h, or as --time says; validation adds a few percent"),
    ("prediction", "22.9 windows/s of 8 mirrored views, 5 networks"),
    ("a typical case", "5 min: 35 x 51 x 35 voxels, 1 window, by the pace of windows; reading, resampling and writing apart"),
    ("memory", "0.78 GiB, estimated"),
]


@pytest.fixture
def cli(monkeypatch, capsys):
    """`cli(*arguments)`: exit code, stdout, stderr, and what the workflow was asked."""
    asked = {}

    def measure(target, **more):
        asked.update(more, target=target)
        return FOUND

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        monkeypatch.setattr(console, "style", console.Style())
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr(), asked)

    monkeypatch.setenv("COLUMNS", str(console.WIDE))  # whatever the terminal, and whatever others have set
    for name in ("OMP_WAIT_POLICY", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "set")
    monkeypatch.setattr(workflow, "benchmark", measure)
    return run


def test_the_table_and_the_verdict(cli):
    code, out, _, asked = cli("benchmark", "plan.json", "--steps", 3, "--set", "training.batch_size=4", "--workers", 2)
    assert code == 0
    assert "Plan 3d: window 40 x 56 x 40, batch 2; A chip, bfloat16, 2 threads" in out
    rows = [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in out.splitlines() if line.startswith("│")]
    assert rows == SHOWN
    assert out.endswith("ok limited by the network (waiting 1%)\n  a GPU\n")
    assert (asked["target"], asked["steps"], asked["seconds"], asked["workers"]) == (Path("plan.json"), 3, 60.0, 2)
    assert asked["edits"] == {"training.batch_size": "4"}


def test_results_for_machines(cli, tmp_path):
    file = tmp_path / "speed.json"
    code, out, err, _ = cli("benchmark", "plan.json", "--json", "-o", file)
    assert code == 0
    assert json.loads(out) == json.loads(file.read_text()) == FOUND.model_dump(mode="json")
    assert Benchmark.load(file) == FOUND
    assert "limited by the network" in err


def test_a_place_that_cannot_hold_the_result_is_refused_before_anything_is_measured(cli, tmp_path):
    code, _, err, asked = cli("benchmark", "plan.json", "-o", tmp_path)
    assert code == 2
    assert err == f"error {tmp_path}: is a folder; expected a file for the result, e.g. speed.json.\n"
    assert not asked
