"""Threads beside each other; kernels: compiled in one place, and usable where nothing can be written."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from facerecon.run import thread_pool as bands

caching = pytest.importorskip("numba.core.caching")
LIBRARY = Path(bands.__file__).parents[1]


def test_without_a_folder_for_them_kernels_are_compiled_and_one_warning_says_so(monkeypatch) -> None:
    """As in a container whose package is read-only and whose user has no home: numba finds no place for its cache."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    bands._warn_of_no_cache.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first = bands.compiled()(lambda a: a + 1)
        bands.compiled(fastmath={"nsz"})(lambda a: a + 2)
    assert len(said) == 1 and "NUMBA_CACHE_DIR" in str(said[0].message)
    assert first(2) == 3


def test_every_kernel_is_compiled_there() -> None:
    others = [p.name for p in LIBRARY.rglob("*.py") if re.search(r"njit\(|@(numba\.)?jit", p.read_text("utf-8"))]
    assert others == ["thread_pool.py"]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_jobs_keep_their_order_and_have_one_thread_each(threads) -> None:
    """Three that wait for one another end only beside each other."""
    meet = threading.Barrier(threads)

    def job(number: int) -> tuple[int, int]:
        meet.wait(60)
        return number, torch.get_num_threads()

    assert bands.beside_each_other([partial(job, i) for i in range(threads)]) == [(i, 1) for i in range(threads)]
    assert torch.get_num_threads() == threads


def test_the_first_error_comes_when_all_have_ended(threads) -> None:
    ended = []

    def job(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(ValueError, match="the first"):
        bands.beside_each_other([partial(job, i) for i in range(3)])
    assert sorted(ended) == ([] if threads == 1 else [1, 2])


LINGERING = """
import atexit, ctypes, os, threading

@atexit.register  # called after those that are registered later
def look():
    print("left", [i for i in used if os.path.exists(f"/proc/self/task/{i}")], len(used))

from facerecon.run.thread_pool import ahead, begin
import torch

torch.set_num_threads(2)
libc, key, used = ctypes.CDLL(None), ctypes.c_uint(), set()
assert libc.pthread_key_create(ctypes.byref(key), libc.sleep) == 0

def work():
    libc.pthread_setspecific(key, ctypes.c_void_p(1))  # sleep(1) when the thread ends, after Python has let go of it
    used.add(threading.get_native_id())

begin(work)()
list(ahead(work() for _ in range(2)))
next(ahead(work() for _ in range(3)))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list threads under /proc")
def test_at_the_end_no_thread_is_left_whose_torch_would_look_for_the_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", LINGERING], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("left [] 3\n", 0), done.stderr


def test_items_are_made_ahead_in_order_and_an_error_comes_where_it_belongs(threads) -> None:
    made = []

    def items():
        for i in range(3):
            made.append(i)
            yield i
        raise ValueError("the end")

    used = []
    with pytest.raises(ValueError, match="the end"):
        for item in bands.ahead(items()):
            used.append(item)
            for _ in range(100 if threads > 1 and item < 2 else 0):  # the next one is on its way
                if item + 1 in made:
                    break
                time.sleep(0.05)
            assert (item + 1 in made) == (threads > 1 and item < 2)
    assert used == [0, 1, 2]


@pytest.mark.parametrize("here", [False, True])
def test_a_job_that_has_begun_has_one_thread_and_so_has_its_caller(threads, here) -> None:
    gone_on = threading.Event()

    def job() -> tuple[bool, int]:
        return gone_on.wait(0 if here or threads == 1 else 60), torch.get_num_threads()

    end = bands.begin(job, here)
    assert torch.get_num_threads() == (threads if here else 1)
    gone_on.set()
    assert end() == (threads == 2 and not here, threads if here else 1)
    assert end() == end() and torch.get_num_threads() == threads


def test_the_error_of_a_job_that_has_begun_comes_at_its_end(threads) -> None:
    def job() -> None:
        raise ValueError("the end")

    if threads == 2:
        end = bands.begin(job)
        with pytest.raises(ValueError, match="the end"):
            end()
    assert torch.get_num_threads() == threads
