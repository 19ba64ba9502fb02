"""The layer table, held against the imports that the source really has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LAYERS = [
    {"types", "errors", "settings", "storage", "modes", "assets", "data"},
    {"geometry", "imaging", "run"},
    {"morphable", "render", "stylegan", "perception"},
    {"correspond", "losses", "export"},
    {"fitting"},
    {"synthetic"},
    {"editing", "evaluation", "training"},
    {"dataset"},
    {"train", "fit"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SCRIPTS = ("train", "fit")
FOUNDATION = {"types", "errors", "settings", "storage", "modes", "data"}  # plain files that the rooms share
NOT_IN_LIBRARY = {"hydra", "wandb", "omegaconf", "pickle"}
LOGGER = Path("facerecon", "run", "wandb_logger.py")  # which imports wandb where a script is told to log there
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "third_party"}


def room_of(path: Path) -> str:
    """The room a file belongs to; "" for the package's own ``__init__`` (the public names)."""
    parts = path.parts
    if parts[0] in SCRIPTS:
        return parts[0]
    return "" if parts[1] == "__init__.py" else parts[1].removesuffix(".py")


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A syntax tree without what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from run_nodes(other)
        else:
            yield from run_nodes(child)


def imported_modules(source: str, path: Path, typing: bool = True) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a file, wherever it stands; relative ones are resolved.

    Args:
        source: text of the file.
        path: its place, relative to the repository.
        typing: False leaves out what stands under ``if TYPE_CHECKING``.
    """
    package = list(path.with_suffix("").parts[:-1])
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree) if typing else run_nodes(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found += [(node.lineno, f"{base}.{alias.name}" if base else alias.name) for alias in node.names]
    return found


def violations(path: Path, source: str) -> list[str]:
    """What a file imports against the table, one line each."""
    room = room_of(path)
    wrong = []
    for line, name in imported_modules(source, path):
        parts = name.split(".")
        where = f"{path}:{line}"
        if path.parts[0] == "facerecon" and parts[0] in NOT_IN_LIBRARY - ({"wandb"} if path == LOGGER else set()):
            wrong.append(f"{where}: the library does not import {parts[0]}")
        if parts[0] in (*SCRIPTS, "tools", "tests", "benchmarks") and parts[0] != room:
            wrong.append(f"{where}: nothing imports scripts, yet this imports {name}")
        if parts[0] != "facerecon" or not room or room in SCRIPTS:
            continue
        target = parts[1] if len(parts) > 1 else ""
        if target not in LEVEL:
            wrong.append(f"{where}: {room} imports '{name}', which is no room of the layer table")
        elif target == room or target in FOUNDATION:
            continue
        elif LEVEL[target] >= LEVEL[room]:
            relation = "beside" if LEVEL[target] == LEVEL[room] else "above"
            wrong.append(f"{where}: {room} imports {target}, which is {relation} it in the layer table")
    return wrong


def module_of(path: Path) -> str:
    """``facerecon.morphable.model`` of its file; a package is its ``__init__``."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def circles(sources: dict[Path, str]) -> list[str]:
    """Circles of imports between files, one line each: imports in functions count, those for type checkers do not.

    An import of a module also runs the ``__init__`` of its packages; only an import of the package itself counts here.
    """
    modules = {module_of(path) for path in sources}
    imports: dict[str, set[str]] = {}
    for path, source in sources.items():
        found = imports[module_of(path)] = set()
        for _, name in imported_modules(source, path, typing=False):
            module = name if name in modules else name.rpartition(".")[0]
            if module in modules - {module_of(path)}:
                found.add(module)
    done: set[str] = set()
    closed: list[str] = []

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            closed.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(imports[module]):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return closed


def source_files() -> list[Path]:
    """Every Python file of the library and of the scripts, relative to the repository."""
    return sorted(
        path.relative_to(REPOSITORY)
        for folder in ("facerecon", *SCRIPTS)
        for path in (REPOSITORY / folder).rglob("*.py")
    )


def test_every_import_points_down():
    wrong = [line for path in source_files() for line in violations(path, (REPOSITORY / path).read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    found = circles({path: (REPOSITORY / path).read_text("utf-8") for path in source_files()})
    assert not found, "\n".join(found)


def test_a_circle_is_found_wherever_its_imports_stand():
    files = {
        "facerecon/stylegan/__init__.py": "from facerecon.stylegan.load import load_decoder",
        "facerecon/stylegan/load.py": "def load():\n    from . import texture_decoder",
        "facerecon/stylegan/texture_decoder.py": "from facerecon.stylegan.decoder import TextureDecoder",
        "facerecon/stylegan/decoder.py": "",
    }

    def found(**changed: str) -> list[str]:
        texts = files | {f"facerecon/stylegan/{name}.py": text for name, text in changed.items()}
        return circles({Path(name): text for name, text in texts.items()})

    assert found() == []
    for back in ("def load():\n    from facerecon.stylegan import load", "from .load import load"):
        (line,) = found(decoder=back)
        names = ["load", "texture_decoder", "decoder", "load"]
        assert line == " -> ".join(f"facerecon.stylegan.{name}" for name in names)
    (line,) = found(decoder="import facerecon.stylegan")
    assert line.count("facerecon.stylegan -> ") == 1
    assert found(decoder="if TYPE_CHECKING:\n    from facerecon.stylegan.load import load") == []


def test_every_room_is_in_the_table():
    rooms = {room_of(path) for path in source_files()} - {""}
    assert rooms <= set(LEVEL), f"not in the layer table: {sorted(rooms - set(LEVEL))}"
    assert {"types", "errors", "assets", "geometry", "run"} <= rooms


def test_types_and_errors_stand_alone():
    for name, allowed in (
        ("errors", set()),
        ("settings", {"errors"}),
        ("storage", {"errors"}),
        ("types", {"errors", "storage"}),
    ):
        path = Path("facerecon", f"{name}.py")
        names = [n for _, n in imported_modules((REPOSITORY / path).read_text("utf-8"), path)]
        targets = {n.split(".")[1] for n in names if n.startswith("facerecon.")}
        assert targets <= allowed


def test_nothing_has_a_vague_name():
    vague = [str(p) for p in source_files() if VAGUE_NAMES & {part.removesuffix(".py").lower() for part in p.parts}]
    assert not vague


def test_nothing_is_unpickled():
    """Weights come as safetensors, others' at most by ``torch.load(weights_only=True)``; no ``allow_pickle=True``."""
    wrong = []
    for path in source_files():
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            pickled = any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            tensors_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if (called == "torch.load" and not tensors_only) or pickled:
                wrong.append(f"{path}:{node.lineno}: {called}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path, source, words",
    [
        ("facerecon/geometry/camera.py", "from facerecon.imaging import warp", "beside"),
        ("facerecon/geometry/camera.py", "import facerecon.render.uv", "above"),
        ("facerecon/losses/image.py", "def f():\n    from ..fitting import stage", "above"),
        ("facerecon/render/uv.py", "from facerecon import losses", "above"),
        ("facerecon/run/metrics.py", "import wandb", "library does not import wandb"),
        ("facerecon/run/metrics.py", "from facerecon import load_decoder", "no room"),
        ("facerecon/assets/store.py", "import facerecon.run.seeds", "above"),
        ("facerecon/fitting/fitter.py", "from fit import reconstruct", "nothing imports scripts"),
        ("facerecon/types.py", "from facerecon import assets", "beside"),
    ],
)
def test_the_check_can_fail(path, source, words):
    (line,) = violations(Path(path), source)
    assert words in line


@pytest.mark.parametrize(
    "path, source",
    [
        (
            "facerecon/render/uv.py",
            "from facerecon.render.rasterize import rasterize\nfrom ..geometry import mesh",
        ),
        (
            "facerecon/render/backends/__init__.py",
            "from . import numba_bands\nfrom ..rasterize import rasterize",
        ),
        ("facerecon/assets/store.py", "from facerecon.errors import AssetError"),
        ("facerecon/__init__.py", "from facerecon.fitting import Fitter"),
        ("fit/reconstruct.py", "import hydra\nfrom facerecon import Fitter, observe"),
    ],
)
def test_the_check_lets_good_imports_pass(path, source):
    assert violations(Path(path), source) == []
