"""Work in threads, which numba's kernels and torch's operations leave to each other: they release the GIL."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import torch

__all__ = ["ahead", "begin", "beside_each_other", "compiled", "one_thread", "run_bands"]

_pool: ThreadPoolExecutor | None = None
_started: set[int] = set()  # threads, as the system numbers them


def _forget_pool() -> None:
    """A forked child inherits the pool object but none of its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def _new_pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, name, initializer=lambda: _started.add(threading.get_native_id()))


@atexit.register
def _wait_for_ends() -> None:
    """Wait until the system has ended all threads: Python calls them ended a moment before.

    In this moment torch takes the GIL to free what a backward pass left in the thread, and if the interpreter has ended
    by then, the process aborts (torch 2.12; 2 runs of 36 on a busy machine). Where the system does not tell, as outside
    Linux, nothing is waited for.
    """
    latest = time.monotonic() + 10
    while any(os.path.exists(f"/proc/self/task/{thread}") for thread in _started) and time.monotonic() < latest:
        time.sleep(0.001)


def run_bands(kernel: Callable[..., None], jobs: Iterable[tuple]) -> None:
    """Call ``kernel(*job)`` for every job, in threads when there is more than one of each."""
    jobs = list(jobs)
    if len(jobs) == 1 or torch.get_num_threads() == 1:
        for job in jobs:
            kernel(*job)
        return
    for future in [_threads().submit(kernel, *job) for job in jobs]:
        future.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = _new_pool(max(2, min(os.cpu_count() or 1, 32)), "facerecon")
    return _pool


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For a while torch uses one thread in this thread: small operations gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def beside_each_other(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of the jobs returns: beside each other, each by one thread of torch's, where torch may use several.

    The first error is raised when all have ended. Give no more jobs than torch has threads: all start at once.
    """
    if len(jobs) == 1 or torch.get_num_threads() == 1:
        return [job() for job in jobs]
    with one_thread():
        futures = [_threads().submit(_alone, job) for job in jobs]
        wait(futures)
    return [future.result() for future in futures]


def begin(job: Callable[[], Any], here: bool = False) -> Callable[[], Any]:
    """Begin a job, and go on: what is returned waits for it and returns its result, or raises its error.

    Until then job and caller have one thread of torch's each. Where torch may use only one, and with ``here``, the job
    is done by the caller, at once.
    """
    threads = torch.get_num_threads()
    if here or threads == 1:
        result = job()
        return lambda: result
    torch.set_num_threads(1)
    future = _threads().submit(_alone, job)

    def end() -> Any:
        try:
            return future.result()
        finally:
            torch.set_num_threads(threads)

    return end


def _alone(job: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    return job()


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items, the first made in a thread from now on, each other while its user works on the one before; in turns
    where torch uses one thread."""
    if torch.get_num_threads() == 1:
        return iter(items)
    source, end = iter(items), object()
    pool = _new_pool(1, "facerecon-ahead")
    first = pool.submit(next, source, end)

    def made() -> Iterator[Any]:
        coming = first
        with pool:
            while (item := coming.result()) is not end:
                coming = pool.submit(next, source, end)
                yield item

    return made()


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
