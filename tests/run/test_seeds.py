"""Random numbers can be had again."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.run import item_generator, item_seed, seed_everything


def draw() -> tuple:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002


def test_a_seed_repeats_every_generator():
    own = seed_everything(7)
    first, mine = draw(), torch.rand(2, generator=own)
    own = seed_everything(7)
    assert draw() == first
    assert torch.equal(torch.rand(2, generator=own), mine)
    seed_everything(8)
    assert draw() != first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        seed_everything(seed)


def test_item_seeds_depend_on_seed_and_key_only():
    assert item_seed(0, "a.jpg", 1) == item_seed(0, "a.jpg", 1)
    seeds = {item_seed(s, k, i) for s in range(10) for k in ("a", "b") for i in range(10)}
    seeds |= {item_seed(0, "a", "1"), item_seed(0, "a1"), item_seed(0, "1a")}
    assert len(seeds) == 203
    assert all(0 <= s < 2**63 for s in seeds)


def test_item_seeds_are_the_same_in_another_process():
    code = "from facerecon.run import item_seed; print(item_seed(3, 'photo.jpg', 2))"
    cwd = Path(__file__).resolve().parents[2]
    assert int(subprocess.check_output([sys.executable, "-c", code], cwd=cwd)) == item_seed(3, "photo.jpg", 2)


def test_item_generators_do_not_touch_the_global_state():
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    noise = torch.randn(4, generator=item_generator(1, "x"))
    assert draw() == expected
    assert torch.equal(noise, torch.randn(4, generator=item_generator(1, "x")))
