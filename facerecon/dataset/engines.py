"""Subjects to make maps of, what came of them, and where the work is done: here, in processes, or on many machines."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from facerecon.errors import ConfigError, FaceReconError, nearest_name

__all__ = ["ENGINES", "Item", "Outcome", "Refused", "run_items"]


@dataclass(frozen=True)
class Item:
    """One subject to make a map of. Plain values only: it travels between processes and machines.

    Args:
        number: names the files, ``NNNNNN``.
        seed: of the open generator, or None.
        path: of a photo, or None.
        search: the bytes of a search that was done before (``search/NNNNNN.safetensors``), or None.
    """

    number: int
    seed: int | None = None
    path: str | None = None
    search: bytes | None = None

    @property
    def name(self) -> str:
        """Six digits, e.g. ``000123``."""
        return f"{self.number:06d}"

    @property
    def origin(self) -> str:
        """What a user knows it by."""
        return self.path if self.path is not None else f"seed {self.seed}"


@dataclass
class Outcome:
    """What came of one item.

    Args:
        name: of the item.
        origin: its seed or photo.
        reasons: what speaks against it, each ``"filter: what was measured"``.
        kept: whether it is in the set; with filters off, in spite of reasons.
        error: one line, where it could not be done at all (a corrupt photo).
        figures: every measurement, plain numbers and short lists.
        files: {path relative to the data set's folder: content}.
        seconds: {step: seconds}.
    """

    name: str
    origin: str
    reasons: list[str] = field(default_factory=list)
    error: str | None = None
    kept: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether its map is in the set."""
        return self.kept and self.error is None


class Refused(Exception):
    """Raised by a step to end an item early, with reasons as in :class:`Outcome`."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


Worker = Callable[[Item], Outcome]
ENGINES = ("local", "ray")


def run_items(
    items: Iterable[Item], make_worker: Callable[[], Worker], engine: str = "local", workers: int = 1, threads: int = 1
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
        yield from _run_on_ray(items, make_worker, workers, threads)
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


_worker: Worker | FaceReconError | None = None


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
        _worker = error


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(item: Item) -> Outcome:
    if isinstance(_worker, FaceReconError):
        raise _worker
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


# -- many machines -------------------------------------------------------------------------------------
# A Ray Data pipeline wants its items beforehand; a set of n accepted maps does not know how many it will need. So items
# are handed to actors as they become free, a few ahead, as the processes of one machine get theirs. On a cluster
# (``ray start``, or ``RAY_ADDRESS``) every machine needs this library and the open pack (``python -m facerecon.assets
# fetch open``); photos must lie at the same paths. Only the caller writes files.

ATTEMPTS = 3
"""How often an item is handed out before a run gives up: machines die, but an item may be what kills its worker."""

AHEAD = 2  # items an actor has at a time, so that it never waits for the next


class _Actor:
    """A worker in a process of its own, somewhere."""

    def __init__(self, make_worker: Callable[[], Worker], threads: int) -> None:
        _set_threads(threads)
        self.worker = make_worker()

    def work(self, item: Item) -> Outcome:
        return self.worker(item)


def _run_on_ray(
    items: Iterable[Item], make_worker: Callable[[], Worker], workers: int, threads: int
) -> Iterator[Outcome]:
    """Joins the cluster that is running or that ``RAY_ADDRESS`` names; without one, starts Ray on this machine and
    stops it at the end. An item whose actor died is handed to another."""
    try:
        import ray
    except ImportError:
        raise ConfigError("engine=ray needs the package ray; run: pip install 'facerecon[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers * threads)
    actor_class = ray.remote(num_cpus=threads, max_restarts=-1)(_Actor)
    actors = [actor_class.remote(make_worker, threads) for _ in range(workers)]
    try:
        yield from _hand_out(ray, iter(items), actors)
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        if ours:
            ray.shutdown()


def _connect(ray: Any, cores: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # actors without a GPU of their own still see it
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if "RAY_ADDRESS" in os.environ:
            raise ConfigError(f"no Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} ({error}).") from None
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)


def _hand_out(ray: Any, items: Iterator[Item], actors: list[Any]) -> Iterator[Outcome]:
    again: deque[tuple[Item, int]] = deque()
    waiting: dict[Any, tuple[Item, int, int]] = {}  # reference -> item, how often it was handed out, its actor
    free = deque(list(range(len(actors))) * AHEAD)

    def fill() -> None:
        while free:
            item, tries = again.popleft() if again else (next(islice(items, 1), None), 0)
            if item is None:
                return
            index = free.popleft()
            waiting[actors[index].work.remote(item)] = (item, tries + 1, index)

    fill()
    while waiting:
        (reference, *_), _ = ray.wait(list(waiting), num_returns=1)
        item, tries, index = waiting.pop(reference)
        free.append(index)
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError:
            if tries >= ATTEMPTS:
                raise FaceReconError(
                    f"{item.origin}: the worker died {tries} times, perhaps for want of memory; the same command "
                    "goes on, with fewer workers= if need be."
                ) from None
            again.append((item, tries))
        else:
            yield outcome
        fill()
