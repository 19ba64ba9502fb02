"""Kernels that release the GIL: how numba compiles them, and a pool of threads, as many at a time as torch may use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

__all__ = ["compiled", "run_bands"]

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child inherits the pool object but none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def run_bands(kernel: Callable[..., None], jobs: Iterable[tuple]) -> None:
    """Call ``kernel(*job)`` for every job, in threads when there is more than one of each."""
    global _pool
    jobs = list(jobs)
    if len(jobs) == 1 or torch.get_num_threads() == 1:
        for job in jobs:
            kernel(*job)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max(2, min(os.cpu_count() or 1, 32)), thread_name_prefix="facerecon-bands")
    for future in [_pool.submit(kernel, *job) for job in jobs]:
        future.result()


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """``numba.njit`` of a kernel that releases the GIL, with more options of numba's.

    What is compiled is kept beside the source file or in the user's cache folder; where neither can be written, each
    process compiles again, and one warning says so.
    """
    import numba

    options = dict(nogil=True, boundscheck=False, error_model="numpy") | options

    def compile_kernel(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba finds no folder for what it compiles
            _warn_of_no_cache()
            return numba.njit(**options)(function)

    return compile_kernel


@cache
def _warn_of_no_cache() -> None:
    warnings.warn(
        "neither facerecon's folder nor the user's cache folder can be written, so its kernels are compiled again at "
        "every start (some 10 s); set NUMBA_CACHE_DIR to a folder that can.",
        stacklevel=3,
    )
