"""What ``doctor`` prints: enough for a bug report, nothing of whose machine it is, also where nothing is installed."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from facerecon import assets
from facerecon.assets import doctor
from facerecon.assets.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def text(capsys) -> str:
    assert main(["doctor"]) == 0
    return capsys.readouterr().out


def test_versions_processor_and_the_state_of_the_cache_are_told(pretend, capsys):
    assets.fetch("head", archives=pretend.archives)
    shown = text(capsys)
    for words in ("facerecon ", "Python 3.", "torch 2.", "torchvision ", "processor: ", "threads: torch uses ", "GPU",
                  "cache: $FACERECON_HOME, 0 MB; ", "GB free",
                  "models: 1 of 2 of the pack 'open' are ready; eyes missing",
                  "facerecon/data: as released", "next: python -m facerecon.assets fetch open"):  # fmt: skip
        assert words in shown, words
    assets.fetch(archives=pretend.archives)
    assert "models: 2 of 2 of the pack 'open' are ready\n" in (shown := text(capsys)) and "next:" not in shown
    next(path for path in (pretend.home / "assets").glob("head-*")).write_bytes(b"damaged")
    assert "head altered" in text(capsys)


def test_no_names_and_no_secrets_are_told(pretend, capsys, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://alice:secret@proxy.example")
    monkeypatch.setenv("PIP_INDEX_URL", "https://token@index.example/simple")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    shown = text(capsys)
    assert "https_proxy is set" in shown and "PIP_INDEX_URL is set" in shown and "OMP_NUM_THREADS=2" in shown
    for secret in ("alice", "secret", "token", "example", str(pretend.home), str(Path.home()), socket.gethostname()):
        assert secret not in shown, secret
    if getpass.getuser() != "root":
        assert getpass.getuser() not in shown
    broken = "libcudart.so.12: cannot open /home/alice/env/lib/libtorch.so: no such file"
    assert doctor._without_places(broken) == "libcudart.so.12: cannot open libtorch.so: no such file"


def test_a_damaged_list_of_models_is_a_line(pretend, capsys):
    (pretend.home / "assets").mkdir(parents=True)
    (pretend.home / "assets" / "manifest.json").write_text("{")
    shown = text(capsys)
    assert "models: the list of converted assets is damaged: manifest.json." in shown and str(pretend.home) not in shown


def test_it_runs_where_nothing_is_installed(tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FACERECON_HOME": str(tmp_path / "none")}
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from facerecon.assets.__main__ import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("packages: none of those it needs", "torch cannot be imported: it is not installed",
                  "models: 0 of ", " more\n", "next: make setup, or pip install -e ."):  # fmt: skip
        assert words in done.stdout, done.stdout
    assert not (tmp_path / "none").exists(), "looking must not write"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("flags\t\t: fpu sse2 avx2 avx512f amx_bf16\n" * 2, "AVX2, AVX-512, AMX bfloat16"),
        ("Features\t: fp asimd bf16\n", "NEON, bfloat16"),
        ("", "features unknown"),
    ],
)
def test_a_processor_is_told_in_words(flags, words, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **how: flags)
    assert doctor.processor().endswith(words) and " core" in doctor.processor()
