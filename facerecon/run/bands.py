"""A pool of Python threads for kernels that release the GIL, as many at a time as torch may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["run_bands"]

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
