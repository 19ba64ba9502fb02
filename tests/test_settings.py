"""Settings from plain values: unknown keys, nested groups, kinds of values, and keys of earlier versions."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from facerecon.errors import ConfigError
from facerecon.settings import build_settings, rename_keys, today_key


@dataclass(frozen=True)
class Inner:
    sigma: float = 1.0
    steps: int = 3
    limit: float | None = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    eyes: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    inner: Inner = field(default_factory=Inner)


def test_plain_values_become_settings() -> None:
    assert build_settings(Outer, {}) == Outer()
    made = build_settings(Outer, {"betas": [0, 1], "inner": {"steps": 5, "limit": None}, "eyes": False})
    assert made == Outer(eyes=False, betas=(0, 1), inner=Inner(steps=5, limit=None))
    assert build_settings(Outer, {"inner": Inner(sigma=2.0)}).inner.sigma == 2.0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"nmae": "b"}, "unknown key of 'outer' 'nmae'; did you mean 'name'"),
        ({"inner": {"sgima": 1}}, r"unknown key of 'outer\.inner' 'sgima'; did you mean 'sigma'"),
        ({"inner": 3}, r"outer\.inner must be a group of keys; got 3"),
        ({"inner": {"steps": 2.5}}, r"outer\.inner\.steps must be a whole number; got 2\.5"),
        ({"inner": {"sigma": "x"}}, r"outer\.inner\.sigma must be a number; got 'x'"),
        ({"inner": {"sigma": float("nan")}}, r"outer\.inner\.sigma must be a number; got nan"),
        ({"inner": {"sigma": None}}, r"outer\.inner\.sigma must be a number; got None"),
        ({"inner": {"limit": True}}, r"outer\.inner\.limit must be a number; got True"),
        ({"eyes": 1}, r"outer\.eyes must be true or false; got 1"),
        ({"betas": [0.9]}, r"outer\.betas must be a list of 2; got \[0\.9\]"),
        ({"betas": [0.9, "x"]}, r"outer\.betas must be a number; got 'x'"),
    ],
)
def test_a_wrong_value_is_one_line(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(Outer, values, "outer")


def test_a_least_number_holds_for_all_fields() -> None:
    with pytest.raises(ConfigError, match=r"loss\.sigma must be a number, 0 or more; got -1"):
        build_settings(Inner, {"sigma": -1}, "loss", least=0)
    assert build_settings(Inner, {"sigma": -1}).sigma == -1


def test_keys_of_earlier_versions_get_their_new_names() -> None:
    aliases = {"warm.rate": "pretrain.lr", "warm.": "pretrain.", "pack.judge": "pack.eval", "gone": None}
    assert [today_key(key, aliases) for key in ("warm.rate", "warm.kimg", "size")] == [
        "pretrain.lr",
        "pretrain.kimg",
        "size",
    ]
    old = {"warm": {"rate": 1, "kimg": 2, "betas": {}}, "pack": {"judge": "a", "name": "b"}, "gone": 0, "size": 3}
    new = {"pretrain": {"lr": 1, "kimg": 2, "betas": {}}, "pack": {"eval": "a", "name": "b"}, "size": 3}
    assert rename_keys(old, aliases) == new == rename_keys(new, aliases)
    assert old["warm"]["rate"] == 1  # a copy
    assert rename_keys({"gone": 0.7}, aliases) == {"gone": 0.7}
    assert rename_keys({"pack": {"eval": "x", "judge": "a"}}, aliases) == {"pack": {"eval": "x"}}
    maps = {"a.png": 1, "warm": {"kimg": 2}}  # keys with dots of their own stay as they are
    assert rename_keys({"maps": maps, "warm": {"rate": 1}}, aliases) == {"maps": maps, "pretrain": {"lr": 1}}
