"""Items on many machines: a pool of Ray actors, each with its own worker.

A Ray Data pipeline wants its items beforehand; a set of n accepted maps does not know how many it will need. So items
are handed to actors as they become free, a few ahead, as the processes of one machine get theirs. On a cluster
(``ray start``, or ``RAY_ADDRESS``) every machine needs this library and the open pack (``python -m facerecon.assets
fetch open``); photos must lie at the same paths. Only the caller writes files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from facerecon.dataset.records import Item, Outcome
from facerecon.errors import ConfigError, FaceReconError

__all__ = ["run_on_ray"]

ATTEMPTS = 3
"""How often an item is handed out before a run gives up: machines die, but an item may be what kills its worker."""

AHEAD = 2  # items an actor has at a time, so that it never waits for the next


class _Actor:
    """A worker in a process of its own, somewhere."""

    def __init__(self, make_worker: Callable[[], Callable[[Item], Outcome]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.worker = make_worker()

    def work(self, item: Item) -> Outcome:
        return self.worker(item)


def run_on_ray(
    items: Iterable[Item], make_worker: Callable[[], Callable[[Item], Outcome]], workers: int, threads: int
) -> Iterator[Outcome]:
    """Outcomes in the order in which they are ready; see :func:`facerecon.dataset.run_items`.

    Joins the cluster that is running or that ``RAY_ADDRESS`` names; without one, starts Ray on this machine and stops
    it at the end. An item whose actor died is handed to another.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
        FaceReconError: an item's actors died.
    """
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
