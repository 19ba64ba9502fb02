"""One language: American spelling everywhere, and the field's words in the names of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("facerecon", "fit", "train", "configs", "benchmarks", "tools", "tests", "notebooks", "docs", "samples")
TEXTS = (".py", ".yaml", ".md", ".ipynb", ".html", ".jinja2")
FILES = sorted(
    path
    for path in [
        *(path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in TEXTS),
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "NOTICE", "Makefile", "setup.py", "pyproject.toml")),
    ]
    if "__pycache__" not in path.parts and path != Path(__file__)
)

BRITISH = re.compile(
    r"""colour | \bcentre | \bcentring | (?<!\.)\bgrey | metre(?:s|d)?\b | neighbour | behaviour | favour | honour
    | licence | artefact | labelled | labelling | modelled | modelling | travelled | cancelled | catalogue | judgement
    | \blearnt\b | \bspelt\b | whilst | defence\b | \bfibre
    | (?:normal|raster|regular|optim|minim|maxim|factor|recogn|initial|quant|random|symmetr|general|visual|serial|summar
        |local|real|tri?angular|parametr|linear|stabil|synthes|organ|emphas|final|util|discret|penal|standard|centr
        |neutral|special|material|polar|equal|token|vector|binar|character|diagonal|orthogonal|orthonormal)
      is(?:e[ds]?|ers?|ing|ations?)\b
    | \banalys(?:e[ds]?|ing)\b""",
    re.IGNORECASE | re.VERBOSE,
)
FORMATS = {'"licence"': "a key of the headers of converted head models", '"--licences"': "an alias of --licenses"}
"""What files of earlier versions hold, or other libraries call so."""

DROPPED = {
    "bent": "registered",
    "carried_decoder": "ResampledDecoder",
    "carry_over": "retarget",
    "out_of_depth": "outside_valid_range",
    "relief": "shape_residual",
    "said": "prediction",
    "slip": "uv_jitter",
    "spoil": "degrade",
    "stain": "nothing: it was removed",
    "stark": "nothing: it was removed",
    "unexplained": "photometric_residual",
    "wardrobe": "SyntheticHeads",
    "wear": "augment",
    "worn_classifier": "AccessoryClassifier",
}
"""Words of earlier versions, and the field's word for each."""


def british(text: str) -> list[str]:
    """British spellings in a text, each once."""
    for literal in FORMATS:
        text = text.replace(literal, "")
    return sorted({match[0] for match in BRITISH.finditer(text)})


def defined_names(source: str) -> Iterator[str]:
    """What a module defines: functions, classes, arguments, variables, attributes, keys of ``name: value`` lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def dropped(name: str) -> list[str]:
    """The dropped words that a name holds."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return [word for word in DROPPED if f"_{word}_" in f"_{snake}_"]


def test_spelling_is_american() -> None:
    assert len(FILES) > 300
    found = {str(path.relative_to(ROOT)): british(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: words for path, words in found.items() if words} == {}


def test_dropped_words_do_not_come_back() -> None:
    found = []
    for path in FILES:
        where = path.relative_to(ROOT)
        if path.suffix == ".py" and where.parts[0] != "tests":
            names = sorted(set(defined_names(path.read_text(encoding="utf-8"))))
            found += [f"{where}: {name}: use {DROPPED[word]}" for name in names for word in dropped(name)]
        elif path.suffix == ".yaml":
            keys = re.findall(r"^ *(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
            found += [f"{where}: {key}: use {DROPPED[word]}" for key in keys for word in dropped(key)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a colour at the Centre of a grey square", ["Centre", "colour", "grey"]),
        ("a rasteriser normalises, minimising metres", ["metres", "minimising", "normalises", "rasteriser"]),
        ("parameter, perimeter, geometry, raised, irises, promise, surprised, exercise, otherwise, diameter", []),
        ("ndimage.grey_closing of a gray image", []),
        ('header["licence"] of a license', []),
    ],
)
def test_spellings_are_found(text, words) -> None:
    assert british(text) == words


def test_dropped_words_are_found_in_names() -> None:
    names = set(defined_names("class Wardrobe:\n    wear: int = 1\n    def f(self, slip): self.bent = stark_ = 0\n"))
    assert {word for name in names for word in dropped(name)} == {"wardrobe", "wear", "slip", "bent", "stark"}
    assert dropped("slippery") == dropped("saidel") == dropped("swear") == []
    assert dropped("_out_of_depth") == ["out_of_depth"] and dropped("CarriedDecoder") == ["carried_decoder"]
