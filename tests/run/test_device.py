"""Device, precision and thread choices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.run import autocast, available_cores, choose_device, choose_precision, device, set_threads


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


def test_a_device_that_is_not_here_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda, but torch sees no CUDA device here; use device=cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"only 2 CUDA devices; use cuda:0\.\.cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cudaa", "cuda:x", ""])
def test_an_unknown_device_is_answered_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"unknown device .* Known: auto, cpu, cuda"):
        choose_device(name)


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(device, "supports_bfloat16", lambda where: torch.device(where).type == "cuda")
    assert choose_precision("auto", "cuda") == torch.bfloat16
    assert choose_precision("auto", "cpu") == torch.float32
    assert choose_precision("bfloat16", "cuda") == torch.bfloat16
    with pytest.raises(ConfigError, match="this cpu device has none; use precision=float32"):
        choose_precision("bfloat16", "cpu")
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        choose_precision("bfloat", "cpu")
    with pytest.raises(ConfigError, match="float16 is for GPUs"):
        choose_precision("float16", "cpu")


@pytest.mark.parametrize("flags, expected", [({"avx512f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)])
def test_bfloat16_on_a_cpu_is_read_from_its_flags(monkeypatch, flags, expected):
    monkeypatch.setattr(device, "_cpu_flags", lambda: flags)
    assert device.supports_bfloat16("cpu") is expected


def test_autocast_changes_matrix_products_only_when_asked():
    x = torch.ones(2, 2)
    with autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("cpu", torch.float32):
        assert (x @ x).dtype == torch.float32


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(device, "_quota", lambda group: 1.5)
    assert available_cores() == 2
    monkeypatch.setattr(device, "_quota", lambda group: None)
    assert available_cores() == 64
    monkeypatch.undo()
    assert device._quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert device._quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert device._quota(tmp_path) == 2.5
    older = tmp_path / "older"
    (older / "cpu").mkdir(parents=True)
    (older / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (older / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert device._quota(older) is None


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_thread_counts_are_whole_and_positive(count):
    with pytest.raises(ConfigError, match="1 or more"):
        set_threads(count)


def test_threads_are_set_before_torch_is_loaded():
    """Whatever the environment says of the libraries' own threads, as the jobs of a cluster have it."""
    code = (
        "import json, os, sys\nfrom facerecon.run import set_threads\nn = set_threads(1)\n"
        "early = 'torch' not in sys.modules\nimport torch\n"
        "print(json.dumps([n, early, torch.get_num_threads(), os.environ['OMP_WAIT_POLICY']]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "NUMBA_", "MKL_"))}
    environment |= {"MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    cwd = Path(__file__).resolve().parents[2]
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=cwd, text=True)
    assert json.loads(said) == [1, True, 1, "PASSIVE"]


def test_threads_can_change_after_torch_is_loaded(monkeypatch):
    before = torch.get_num_threads()
    for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", str(before))  # so that all are put back
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    try:
        assert set_threads(1) == 1 == torch.get_num_threads()
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE", "the user's choice stays"
    finally:
        torch.set_num_threads(before)
