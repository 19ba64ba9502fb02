"""Checkpoints: round trip, atomic, resumed training is the same training."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from facerecon.errors import InputError, OutputError
from facerecon.run import Checkpoints, is_due, load_checkpoint, save_checkpoint, seed_everything


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_of_a_tree(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    tree = {
        "views": [base, base.T, base[0]],  # shared storage, not contiguous
        "types": (torch.tensor(3), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])),
        "state": {0: {"step": torch.tensor(4.0), "lr": 1e-3}, 1: {}},
        "plain": {"name": "a.b", "none": None, "flag": True, "many": [1, 2.5, "x"], "nested": ((1,), [])},
        "a.b": {"c": torch.ones(1)},
    }
    assert same(load_checkpoint(save_checkpoint(tmp_path / "new" / "c.safetensors", tree)), tree)


def test_names_that_meet_stay_apart(tmp_path):
    tree = {"a.b": torch.tensor([1.0]), "a": {"b": torch.tensor([2.0])}}
    assert same(load_checkpoint(save_checkpoint(tmp_path / "c.safetensors", tree)), tree)


def test_special_numbers_survive(tmp_path):
    best = load_checkpoint(save_checkpoint(tmp_path / "c.safetensors", {"best": float("inf")}))["best"]
    assert best == float("inf")


@pytest.mark.parametrize("tree", [{"model": nn.Linear(1, 1)}, {1.5: 0}, {"a": {True: 0}}])
def test_other_objects_are_refused(tmp_path, tree):
    with pytest.raises(InputError) as error:
        save_checkpoint(tmp_path / "c.safetensors", tree)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "c.safetensors", {"x": torch.ones(2)})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        save_checkpoint(path, {"x": torch.zeros(2)})
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path)["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_damaged_missing_and_foreign_files_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    path = save_checkpoint(tmp_path / "c.safetensors", {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="no checkpoint"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_the_last_few_are_kept(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert kept.latest() is None and kept.steps() == []
    for step in (5, 10, 1_000_000_000, 1_000_000_005):
        kept.save(step, {"x": step})
    assert kept.steps() == [1_000_000_000, 1_000_000_005]
    assert kept.latest() == (1_000_000_005, {"x": 1_000_000_005})


def test_a_damaged_last_one_falls_back_to_the_one_before(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(1, {"x": 1})
    kept.save(2, {"x": 2}).write_bytes(b"half")
    with pytest.warns(UserWarning, match="Trying the one before"):
        assert kept.latest() == (1, {"x": 1})


@settings(deadline=None)
@given(strategies.integers(1, 300), strategies.integers(1, 900), strategies.integers(1, 40))
def test_snapshots_are_due_once_in_each_interval(batch, every, steps):
    """The first step that reaches a multiple of the interval, whether or not the batch divides it."""
    reached, due = 0, []
    for step in range(1, steps + 1):
        if is_due(step * batch, batch, every / 1000):
            due.append(step)
        assert is_due(step * batch, batch, every / 1000) == (step * batch >= (reached + 1) * every)
        while (reached + 1) * every <= step * batch:
            reached += 1
    if batch <= every:
        assert len(due) == steps * batch // every


class Training:
    """A small network with dropout, Adam and a schedule: every kind of state there is to resume."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def step(self) -> float:
        loss = self.model(torch.randn(16, 4)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        return {**{name: dict(state) for name, state in parts.items()}, "rng": torch.get_rng_state()}

    def restore(self, state: dict) -> None:
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])


def test_a_resumed_training_is_the_same_training(tmp_path):
    seed_everything(3)
    through = Training()
    losses = [through.step() for _ in range(4)]
    Checkpoints(tmp_path).save(4, through.state())
    losses += [through.step() for _ in range(4)]

    seed_everything(77)
    resumed = Training()
    step, state = Checkpoints(tmp_path).latest()
    resumed.restore(state)
    assert [resumed.step() for _ in range(8 - step)] == losses[4:]
    assert same(dict(resumed.model.state_dict()), dict(through.model.state_dict()))
