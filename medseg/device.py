"""The machine at hand: which device to use, how much memory it has, which fast paths it offers."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from medseg.errors import ResourceError

if TYPE_CHECKING:
    import torch

Kind = Literal["cpu", "cuda", "mps"]
CPU_SHARE = 0.5  # of the physical memory: other programs, the page cache and the data workers need the rest
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")
"""What RuntimeErrors say when memory ran out where there is no type for it: Apple's backend, the CPU's allocator, ITK, cuDNN and cuBLAS."""


@dataclass(frozen=True)
class Machine:
    """What a plan is made for: kind of device and GiB that training may use."""

    kind: Kind
    memory: float


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ResourceError: the device does not exist here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = _named(name)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device.type]
    if not present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError.of(
            "this device is not available here",
            found=f"'{name}'",
            fix="Run `medseg doctor` to see what is, or pass --device auto. To plan for another machine, say what it has with --memory.",
        )
    return device


def _named(name: str) -> torch.device:
    import torch

    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if device.type in get_args(Kind):
            return device
    raise ResourceError.of("unknown device", found=f"'{name}'", expected="auto, cpu, cuda, cuda:N or mps")


def machine(device: str = "auto", memory: float | None = None) -> Machine:
    """The machine to plan for: the one at hand, or another one, described by a device and its memory.

    A GPU offers its total memory less 1 GiB for the context; a CPU half of its `physical_memory` (`CPU_SHARE`), rounded down to whole GiB.

    Args:
        device: as for `choose_device`. With `memory`, a device that is named need not exist here: planning computes nothing on it.
        memory: GiB that training may use (`--memory`), instead of what the device has.

    Raises:
        ResourceError: the device is unknown, or its memory is asked for and it does not exist here.
    """
    import torch

    if memory is not None:
        named = choose_device() if device == "auto" else _named(device)
        return Machine(named.type, memory)  # type: ignore[arg-type]
    chosen = choose_device(device)
    if chosen.type == "cuda":
        return Machine("cuda", max(1.0, float(torch.cuda.get_device_properties(chosen).total_memory // 2**30 - 1)))
    if chosen.type == "mps":
        return Machine("mps", max(1.0, float(torch.mps.recommended_max_memory() // 2**30)))
    return Machine("cpu", max(1.0, float(int(physical_memory() * CPU_SHARE) // 2**30)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # of a file that cannot be mapped
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def release_cache(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later, before something is tried again with less memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def physical_memory() -> int:
    """Bytes of main memory that this process may ever hold: the machine's, or less where a container or a batch system limits it."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return total  # no Linux: there are no control groups
    return min(total, control_group_limit(membership, CONTROL_GROUPS) or total)


def memory_per_array(workers: int, arrays: int) -> float:
    """Bytes for each of `arrays` large arrays that each of `workers` processes holds at once; together `CPU_SHARE` of the memory."""
    return physical_memory() * CPU_SHARE / workers / arrays


def control_group_limit(membership: str, mount: Path) -> int | None:
    """The smallest memory limit, in bytes, of a process's Linux control group and the groups around it; None where there is none.

    Args:
        membership: content of `/proc/self/cgroup`: `0::/path` for version 2, `4:memory:/path` for version 1.
        mount: where control groups are mounted. Within a container this is the container's own group, and `path` may not exist below it.
    """
    limits = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            try:
                text = root.joinpath(*parts[:depth], name).read_text(encoding="utf-8").strip()
            except OSError:
                continue  # the root of version 2 has no limit, and a container does not see the groups around it
            if text.isdigit() and int(text) > 0:
                limits.append(int(text))
    return min(limits, default=None)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is faster than float32 (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX), else None."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None
