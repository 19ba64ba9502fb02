"""Engines give every outcome once, whatever they run on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for this process and for those it starts

from dataset_workers import make_dies, make_square

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


def test_wrong_engines_are_named():
    with pytest.raises(ConfigError, match="'ray'"):
        list(run_items([], make_square, engine="rai"))
    with pytest.raises(ConfigError, match="at least 1"):
        list(run_items([], make_square, workers=0))
