"""Engines give every outcome once, whatever they run on."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest
from dataset_workers import make_dies, make_frail, make_square

from facerecon.dataset import Item, run_items
from facerecon.errors import ConfigError, FaceReconError


def test_one_worker_works_here_and_in_order():
    outcomes = list(run_items((Item(i, seed=i) for i in range(7)), make_square))
    assert [o.figures["square"] for o in outcomes] == [0, 1, 4, 9, 16, 25, 36]
    assert {o.figures["process"] for o in outcomes} == {os.getpid()}
    assert [o.accepted for o in outcomes] == [True, True, True, False, True, False, True]


def test_processes_give_the_same_outcomes():
    outcomes = list(run_items((Item(i, seed=i) for i in range(7)), make_square, workers=2))
    assert sorted(o.figures["square"] for o in outcomes) == [0, 1, 4, 9, 16, 25, 36]
    assert os.getpid() not in {o.figures["process"] for o in outcomes}


def test_items_are_read_as_they_are_needed():
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield Item(i, seed=i)

    outcomes = run_items(items(), make_square, workers=2)
    for _ in range(3):
        next(outcomes)
    outcomes.close()
    assert len(taken) <= 8


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(FaceReconError, match="a worker process died"):
        list(run_items([Item(0, seed=0)], make_dies, workers=2))


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="the optional engine (pip install 'facerecon[ray]') is not installed")
    path = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": path}}, **quiet)
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_outcomes(ray):
    outcomes = list(run_items((Item(i, seed=i) for i in range(9)), make_square, "ray", workers=2))
    assert sorted(o.figures["square"] for o in outcomes) == [i**2 for i in range(9)]
    assert os.getpid() not in {o.figures["process"] for o in outcomes}
    assert {o.name for o in outcomes if not o.accepted} == {"000003", "000005"}


def test_ray_reads_items_as_they_are_needed(ray):
    taken = []

    def items():
        for i in range(1000):
            taken.append(i)
            yield Item(i, seed=i)

    outcomes = run_items(items(), make_square, "ray", workers=2)
    for _ in range(3):
        next(outcomes)
    outcomes.close()
    assert len(taken) <= 8


def test_an_actor_that_dies_is_replaced(ray, tmp_path):
    """Item 4 kills its process the first time; all outcomes come once. One that always kills ends in one line."""
    make = functools.partial(make_frail, str(tmp_path / "died"))
    outcomes = list(run_items((Item(i, seed=i) for i in range(8)), make, "ray", workers=2))
    assert sorted(o.figures["square"] for o in outcomes) == [i**2 for i in range(8)]
    assert (tmp_path / "died").is_file()
    with pytest.raises(FaceReconError, match="seed 0: the worker died 3 times"):
        list(run_items([Item(0, seed=0)], make_dies, "ray", workers=2))


def test_without_ray_its_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'facerecon\[ray\]'"):
        list(run_items([], make_square, engine="ray"))


def test_wrong_engines_are_named():
    with pytest.raises(ConfigError, match="'ray'"):
        list(run_items([], make_square, engine="rai"))
    with pytest.raises(ConfigError, match="at least 1"):
        list(run_items([], make_square, workers=0))
