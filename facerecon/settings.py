"""Settings from plain values, as configurations and files hold them: dataclasses are the schema, and one check of keys.

Defaults stand in the dataclasses alone; a value out of range is told by their own ``__post_init__``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from facerecon.errors import ConfigError, check_number, nearest_name

__all__ = ["build_settings", "check_keys", "rename_keys", "today_key"]

T = TypeVar("T")


def check_keys(keys: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Hold keys against the known ones.

    Args:
        keys: what was given.
        known: what there is.
        kind: what a key is called in the message.

    Raises:
        ConfigError: an unknown key; the nearest known one is named.
    """
    known = list(known)
    for key in keys:
        if key not in known:
            raise ConfigError(nearest_name(str(key), known, kind))


def build_settings(kind: type[T], values: Mapping[str, Any], where: str = "", least: float = -math.inf) -> T:
    """A settings dataclass from plain values; keys that are left out keep its defaults.

    Args:
        kind: the dataclass. Its fields may be dataclasses, built of mappings, and tuples, built of lists.
        values: {field: value}.
        where: dotted name of the group, for messages; "" for the top.
        least: smallest number that any field may be.

    Raises:
        ConfigError: an unknown key (the nearest is named), or a value of another kind than the field's.
    """
    hints = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or kind.__name__} must be a group of keys; got {values!r}.")
    check_keys(values, fields, f"key of '{where}'" if where else "setting")
    prefix = f"{where}." if where else ""
    return kind(**{key: _checked(f"{prefix}{key}", value, hints[key], least) for key, value in values.items()})


def _checked(name: str, value: Any, hint: Any, least: float) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if value is None and types.NoneType in kinds:
        return None
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build_settings(kind, value, name, least)
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false; got {value!r}.")
    if kind in (int, float) and len(kinds) == 1 + (types.NoneType in kinds):
        check_number(name, value, least, whole=kind is int)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, list | tuple) or (Ellipsis not in items and len(value) != len(items)):
            count = "" if Ellipsis in items else f" of {len(items)}"
            raise ConfigError(f"{name} must be a list{count}; got {value!r}.")
        return tuple(_checked(name, part, items[0], least) for part in value)
    return value


def today_key(key: str, aliases: Mapping[str, str | None]) -> str | None:
    """Today's name of a dotted key.

    Args:
        key: as an earlier version called it, or as it is.
        aliases: {dotted key: today's}; one that ends in a dot stands for all keys below it, None for one that is gone.
    """
    if key in aliases:
        return aliases[key]
    for old, new in aliases.items():
        if old.endswith(".") and key.startswith(old):
            return f"{new}{key.removeprefix(old)}"
    return key


def rename_keys(values: Mapping[str, Any], aliases: Mapping[str, str | None]) -> dict[str, Any]:
    """Plain values of an earlier version under today's keys.

    Args:
        values: nested mapping.
        aliases: as in :func:`today_key`. A key that is gone is left out where it was 0, null or empty.

    Returns:
        A copy; where both keys are there, today's stays.
    """
    result = copy.deepcopy(dict(values))
    for path, value in list(_leaves(values)):
        key = ".".join(path)
        new = today_key(key, aliases)
        if new == key or (new is None and value):
            continue
        *group, last = path
        holders = list(itertools.accumulate(group, lambda holder, part: holder[part], initial=result))
        del holders[-1][last]
        for holder, part in zip(reversed(holders[:-1]), reversed(group), strict=True):
            if not holder[part]:
                del holder[part]
        if new is not None:
            *group, last = new.split(".")
            functools.reduce(lambda holder, part: holder.setdefault(part, {}), group, result).setdefault(last, value)
    return result


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
