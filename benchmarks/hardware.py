"""What every result must say about where it was measured."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from medseg.device import physical_memory
from medseg.diagnosis import PACKAGES, installed_version


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def described() -> dict[str, object]:
    """Hardware and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(physical_memory() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
    }


def write(name: str, results: object, note: str) -> Path:
    """Write a result beside the scripts."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"note": note, "where": described(), "results": results}, indent=2) + "\n")
    return path
