"""Every key of a script's configuration with its default and what it means: ``--help``, and docs/configuration.md.

    python -m facerecon.configs.describe > docs/configuration.md

Comments stand beside the keys in configs/*.yaml; those of settings in the docstrings of their dataclasses.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import schema
from .compose import CONFIGS, composed_defaults, groups

SCRIPTS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _yaml_comments(path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, comment) of a YAML file, in its order."""
    above: list[tuple[int, str]] = []
    key, comment = "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"^( *)([\w]+):(?:.*?\s# ?(.*))?", line)
        if found:
            if key:
                yield key, comment
            above = [(depth, name) for depth, name in above if depth < len(found[1])] + [(len(found[1]), found[2])]
            key, comment = prefix + ".".join(name for _, name in above), (found[3] or "").strip()
        elif more := re.match(r"^ {4,}# ?(.*)", line):
            comment += f" {more[1].strip()}"
    if key:
        yield key, comment


def _options(script: str) -> dict[str, list[str]]:
    """{config group of a script: its options, the default one first}."""
    chosen = dict(
        re.findall(r"^  - (\w+): (\w+)", (CONFIGS / f"{script}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    return {group: sorted(groups()[group], key=lambda option: option != first) for group, first in chosen.items()}


def rows(script: str, overrides: Sequence[str] = ()) -> list[tuple[str, Any, str]]:
    """(dotted key, default, what it means) of every key of a script; the default of a group of keys is ``...``.

    Keys come before groups, and those of the YAML files first, in their order.
    """
    options = _options(script)
    files = [(CONFIGS / group / f"{names[0]}.yaml", f"{group}.") for group, names in options.items()]
    written = dict(
        pair for path, prefix in [(CONFIGS / f"{script}.yaml", ""), *files] for pair in _yaml_comments(path, prefix)
    )
    known = schema.comments(script) | {key: text for key, text in written.items() if text}
    known |= {group: f"one of {', '.join(names)}" for group, names in options.items()}
    order = {key: place for place, key in enumerate(written)}

    def walk(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, str]]:
        for key in sorted(values, key=lambda key: (isinstance(values[key], dict), order.get(prefix + key, len(order)))):
            value = values[key]
            yield prefix + key, ... if isinstance(value, dict) else value, known.get(prefix + key, "")
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return list(walk(composed_defaults(script, overrides), ""))


def _shown(value: Any) -> str:
    """A default as it is written in an override."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def help_text(script: str, doc: str) -> str:
    """What ``--help`` prints: the script's docstring, and every key."""
    lines = [doc.strip(), "", "Keys and defaults:", ""]
    for key, value, comment in rows(script):
        depth, name = key.count("."), key.rpartition(".")[2]
        start = "  " * (depth + 1) + name + (":" if value is ... else f"={_shown(value)}")
        if len(start) > 27 and comment:
            lines += [start]
            start = ""
        lines += textwrap.wrap(comment, 118, initial_indent=f"{start:<29} ", subsequent_indent=" " * 30) or [start]
    lines += [
        "",
        "Change a key of a group with group.key=value.",
        "--cfg prints the composed configuration, --help this text.",
    ]
    return "\n".join(lines)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in body]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells]]


def _cell(value: Any) -> str:
    return "" if value is ... else f"`{_shown(value)}`"


def markdown() -> str:
    """docs/configuration.md: a table of each script, and one of each config group with a column an option."""
    text = """\
# Configuration

Every key of every script, with its default. Keys are given as `key=value`, those of a group as `group.key=value`, and
`group=option` chooses all values of `pack` or `fitting` at once; `--help` lists the same, `--cfg` prints the composed
configuration. Defaults of settings stand in their dataclasses, all others in configs/. This page is made by
`python -m facerecon.configs.describe`.
"""
    lines = text.splitlines()
    for script in SCRIPTS:
        folder = "fit" if (CONFIGS.parent / "fit" / f"{script}.py").is_file() else "train"
        shown = [row for row in rows(script) if row[0].partition(".")[0] not in groups() or "." not in row[0]]
        table = _table(["key", "default", ""], [[f"`{key}`", _cell(value), text] for key, value, text in shown])
        lines += ["", f"## {folder}/{script}.py", "", *table]
    for group, options in groups().items():
        columns = [{key: value for key, value, _ in rows("reconstruct", [f"{group}={option}"])} for option in options]
        body = [
            [f"`{key}`", *(_cell(column[key]) for column in columns), text]
            for key, _, text in rows("reconstruct") if key.startswith(f"{group}.")
        ]  # fmt: skip
        lines += ["", f"## {group}", "", *_table(["key", *(f"{group}={option}" for option in options), ""], body)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
