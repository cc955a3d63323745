"""The example plug-in, installed as pip would: found by name, planned, trained and predicted with, no engine file touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_plugin_runs_through_the_whole_pipeline(tmp_path: Path, cases: Callable[[Path, int], Path]) -> None:
    site = tmp_path / "site"
    described = site / "medseg_foreground-0.1.0.dist-info"
    described.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "plugin" / "medseg_foreground.py", site)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: medseg-foreground\nVersion: 0.1.0\n")
    (described / "entry_points.txt").write_text("[medseg.tasks]\nforeground = medseg_foreground:Foreground\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def medseg(*arguments: object) -> str:
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert {"family": "tasks", "name": "foreground", "summary": "foreground of any class against background"} in json.loads(medseg("tasks"))
    data = cases(tmp_path / "data", 10)
    arguments = ("--task", "foreground", "--epochs", 1, "--set", "training.steps=2", "--memory", 4)
    result = json.loads(medseg("run", data, "-o", tmp_path / "run", *arguments))
    assert list(result["evaluation"]["classes"]) == ["any"]
    laws = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/contract/test_laws.py"), "-k", "oracle and foreground"],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600, check=False,
    )  # fmt: skip
    assert "1 passed" in laws.stdout, laws.stdout
