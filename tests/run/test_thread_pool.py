"""Kernels: compiled in one place, and usable where nothing can be written."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

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
