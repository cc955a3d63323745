"""What `medseg doctor` finds out about an installation."""

from __future__ import annotations

import platform
import shutil
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from medseg.device import autocast_dtype, choose_device, machine, physical_memory
from medseg.record import Record

PACKAGES = ("medseg", "torch", "monai", "lightning", "mlflow", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "pydantic")


class Diagnosis(Record):
    """Versions, hardware, measured fast paths and warnings."""

    versions: dict[str, str]
    machine: dict[str, str]
    fast_paths: dict[str, str]
    warnings: tuple[str, ...]


def examine() -> Diagnosis:
    """Look at this machine; takes a few seconds, for the measurements."""
    versions = {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}
    device = choose_device()
    offered = machine()
    disk = shutil.disk_usage(Path.cwd())
    hardware = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(psutil.cpu_count(logical=False) or psutil.cpu_count()),
        "memory": f"{physical_memory() / 2**30:.1f} GiB",
        "free disk here": f"{disk.free / 2**30:.1f} GiB",
        "device": _device_name(device),
        "plans are made for": f"{offered.kind}, {offered.memory:g} GiB",
    }
    fast, warnings = _measure(device)
    warnings += known_bad(versions["torch"], device.type)
    if disk.free < 5 * 2**30:
        warnings.append(f"only {disk.free / 2**30:.1f} GiB of disk are free here: prepared cases take 2 to 4 bytes per voxel and channel")
    return Diagnosis(versions=versions, machine=hardware, fast_paths=fast, warnings=tuple(warnings))


def known_bad(torch_version: str, device: str) -> list[str]:
    """Combinations that are known to be slow or wrong."""
    found = []
    if torch_version.startswith("2.9."):
        found.append(
            "torch 2.9 runs 3D convolutions under autocast about four times slower (pytorch issue 166122): install torch 2.8 or 2.10 and later"
        )
    if device == "cpu" and autocast_dtype(torch.device("cpu")) is None:
        found.append("this CPU has no bfloat16 instructions (AVX512-BF16 or AMX): training runs in float32, about half as fast")
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found.append("this GPU has no bfloat16 (Ampere and later have): training uses float16 with loss scaling")
    return found


def installed_version(name: str) -> str:
    """The version of an installed package, or a note that it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} in all"
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _measure(device: torch.device) -> tuple[dict[str, str], list[str]]:
    """Time a 3D convolution forward and backward in float32 and in the autocast type."""
    conv = torch.nn.Conv3d(32, 32, 3, padding=1).to(device)
    image = torch.randn(1, 32, 48, 48, 48, device=device).to(memory_format=torch.channels_last_3d)

    def step() -> None:
        conv(image).float().mean().backward()

    plain = _median(step, device)
    fast = {"3D convolution, float32": f"{plain * 1e3:.1f} ms"}
    dtype = autocast_dtype(device)
    if dtype is None:
        return fast, []
    with torch.autocast(device.type, dtype):
        quick = _median(step, device)
    fast[f"3D convolution, {str(dtype).removeprefix('torch.')}"] = f"{quick * 1e3:.1f} ms ({plain / quick:.1f} times as fast)"
    if quick > plain * 1.2:
        return fast, [
            f"autocast is slower than float32 here ({quick * 1e3:.1f} against {plain * 1e3:.1f} ms): another torch version may mend it"
        ]
    return fast, []


def _median(step: Callable[[], None], device: torch.device, runs: int = 7) -> float:
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
