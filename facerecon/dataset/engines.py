"""Where the work is done: here, in processes of this machine, or on many machines by Ray."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

from facerecon.dataset.records import Item, Outcome
from facerecon.errors import ConfigError, FaceReconError, nearest_name

__all__ = ["ENGINES", "run_items"]

Worker = Callable[[Item], Outcome]
ENGINES = ("local", "ray")


def run_items(
    items: Iterable[Item],
    make_worker: Callable[[], Worker],
    engine: str = "local",
    workers: int = 1,
    threads: int = 1,
) -> Iterator[Outcome]:
    """Outcomes of items, in the order in which they are ready.

    Args:
        items: read lazily, a few ahead of the workers: closing the iterator leaves the rest undone.
        make_worker: called once in each process; importable by name or a ``functools.partial`` of such, since it
            travels. Each worker computes with its own ``threads`` threads, so that an item's result does not depend on
            how many there are.
        engine: "local" or "ray".
        workers: processes; 1 with "local" works in this process.
        threads: of each.

    Raises:
        ConfigError: an unknown engine, or one that is not installed.
        FaceReconError: a worker process died.
    """
    if engine not in ENGINES:
        raise ConfigError(nearest_name(engine, ENGINES, "engine"))
    if workers < 1 or threads < 1:
        raise ConfigError(f"workers and threads must be at least 1; got {workers} and {threads}.")
    if engine == "ray":
        from facerecon.dataset.ray_engine import run_on_ray

        yield from run_on_ray(items, make_worker, workers, threads)
    elif workers == 1:
        _set_threads(threads)
        worker = make_worker()
        for item in items:
            yield worker(item)
    else:
        yield from _run_in_processes(iter(items), make_worker, workers, threads)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


_worker: Worker | None = None


def _start(make_worker: Callable[[], Worker], threads: int, parent: int) -> None:
    """In a new process: build its worker, and watch that its parent lives."""
    import signal

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _set_threads(threads)
    try:
        _worker = make_worker()
    except FaceReconError as error:  # a missing model: the first item says so
        _worker = _Failed(error)


class _Failed:
    def __init__(self, error: FaceReconError) -> None:
        self.error = error

    def __call__(self, item: Item) -> Outcome:
        raise self.error


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(item: Item) -> Outcome:
    assert _worker is not None
    return _worker(item)


def _run_in_processes(
    items: Iterator[Item], make_worker: Callable[[], Worker], workers: int, threads: int
) -> Iterator[Outcome]:
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork would copy numba's and torch's threads
    pool = ProcessPoolExecutor(workers, context, _start, (make_worker, threads, os.getpid()))
    try:
        waiting: set[Future] = {pool.submit(_work, item) for item in islice(items, workers + 1)}
        while waiting:
            ready, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
                waiting |= {pool.submit(_work, item) for item in islice(items, 1)}
    except BrokenProcessPool:
        raise FaceReconError(
            "a worker process died, perhaps for want of memory; the same command goes on; try fewer workers=."
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
