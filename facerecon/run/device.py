"""Where and how exactly to compute: device, precision, threads.

torch is imported inside the functions: :func:`set_threads` sets environment variables that OpenMP reads only
once, when torch is loaded, so scripts call it before they import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from facerecon.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    import torch

__all__ = [
    "autocast",
    "available_cores",
    "choose_device",
    "choose_precision",
    "choose_training_precision",
    "import_torch",
    "set_threads",
    "supports_bfloat16",
]

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device to run on.

    Args:
        name: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: an unknown name, or a device that is not here.
    """
    import torch

    name = str(name).strip().lower()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise ConfigError(nearest_name(name, ("auto", "cpu", "cuda", "cuda:0", "mps"), "device"))
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ConfigError(f"device={name}, but torch sees no CUDA device here; use device=cpu or device=auto.")
        if index and int(index) >= count:
            raise ConfigError(f"device={name}, but there are only {count} CUDA devices; use cuda:0..cuda:{count - 1}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but there is no Metal device here; use device=cpu or device=auto.")
    return torch.device(name)


def supports_bfloat16(device: str | torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulation, slower than float32, does not count."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
    return False


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def choose_precision(name: str = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """The floating-point type for the networks (geometry and losses stay float32).

    Args:
        name: "auto" (bfloat16 on a GPU that has it, else float32), "float32", "bfloat16", "float16".
        device: where it will run.

    Raises:
        ConfigError: an unknown name, or a type that this device does not have.
    """
    import torch

    device = torch.device(device)
    if name not in _PRECISIONS:
        raise ConfigError(nearest_name(name, _PRECISIONS, "precision"))
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and supports_bfloat16(device) else torch.float32
    if name == "bfloat16" and not supports_bfloat16(device):
        raise ConfigError(f"precision=bfloat16, but this {device.type} device has none; use precision=float32.")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("precision=float16 is for GPUs; on a CPU use precision=float32.")
    return getattr(torch, name)


def choose_training_precision(name: str = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """As :func:`choose_precision`, but "auto" is bfloat16 on every device that has it, a CPU too: a network that learns
    spends its time in convolutions, and takes the rounding.

    Raises:
        ConfigError: as :func:`choose_precision`.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if supports_bfloat16(device) else torch.float32
    return choose_precision(name, device)


def autocast(device: str | torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast to ``dtype``, or nothing at all for float32."""
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def available_cores() -> int:
    """Cores this process may use: affinity and, in a container, the CPU quota; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_quota(Path("/sys/fs/cgroup")) or cores)))


def _quota(group: Path) -> float | None:
    """CPU quota in cores, of control groups version 2 or 1; None where there is none."""
    try:
        if (group / "cpu.max").is_file():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit = (group / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu" / "cpu.cfs_period_us").read_text().strip()
        cores = float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_... of <malloc.h>


def import_torch() -> None:
    """Import torch, and let Python's search for circles of objects pass it by from now on.

    All of it stays until the process ends, and would be looked through several times, about a second a run.
    """
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module("torch")
        gc.freeze()
        gc.enable()


def set_threads(count: int | None = None) -> int:
    """Use ``count`` threads (default: every available core), let idle ones sleep, and keep memory that is freed.

    OpenMP threads that spin while they wait made a 28 ms step take 515 ms on a busy 2-core machine, so
    ``OMP_WAIT_POLICY=PASSIVE`` is set unless the user chose otherwise. OpenMP reads it when torch is loaded:
    call this before the first ``import torch``. Child processes inherit all of it but the memory's rule: glibc gives
    large blocks back at once, and to be given them again, as zeros, took a tenth of a fit's time.

    Args:
        count: threads, 1 or more.

    Returns:
        The number of threads set.

    Raises:
        ConfigError: ``count`` is less than 1.
    """
    if count is None:
        count = available_cores()
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"threads must be a whole number, 1 or more; got {count!r}.")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for library in ("OMP", "MKL", "OPENBLAS"):  # torch takes the count of MKL's where it is set
        os.environ[f"{library}_NUM_THREADS"] = str(count)
    if "numba" not in sys.modules:  # numba refuses a later change
        os.environ["NUMBA_NUM_THREADS"] = str(count)
    if platform.libc_ver()[0] == "glibc":
        for parameter, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30)):  # the most glibc takes; 1 GB
            ctypes.CDLL(None).mallopt(parameter, size)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
    return count
