"""What the documentation says is so: links lead somewhere, names exist, commands parse, the pages build."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from facerecon.assets.__main__ import _parser as assets_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "samples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("benchmarks", "configs", "docs", "facerecon", "fit", "notebooks", "samples", "tests", "tools", "train")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURED = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
SCRIPTS = {f"facerecon-{path.stem.replace('_', '-')}": f"{room}/{path.name}" for room in ("fit", "train")
           for path in sorted((ROOT / room).glob("*.py")) if path.stem in CONFIGURED}  # fmt: skip
"""Console commands, as setup.py names them, and their scripts."""


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def resolves(name: str) -> bool:
    """Whether ``facerecon.<name>`` is a module, or something in one."""
    parts = ["facerecon", *name.split(".")]
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, place = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if place:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "NOTICE"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(
        re.findall(
            rf"(?<![\w/.-])((?:{'|'.join(ROOMS)})/[\w./*-]*\w\.(?:py|yaml|md|jpg|png|ipynb|safetensors))\b", text
        )
    )
    missing = [name for name in named if not any(ROOT.glob(name))]
    assert not missing


def test_links_are_checked_for_real() -> None:
    assert anchor("License and use") == "license-and-use"
    assert resolves("losses.pixel_loss") and resolves("Camera.deep3d") and resolves("training.crops")
    assert not resolves("losses.pixel_los") and not resolves("dataset.nothing") and not resolves("Camera.nothing")


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150
    python = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert sum(bool(line) for line in python.splitlines()) <= 15
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name})" not in README]
    assert missing == []


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading, without its head."""
    section = text.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_figures_of_the_readme_are_those_of_the_pages() -> None:
    measured = page("evaluation") + page("benchmarks")
    rows = table(README, "## Figures")
    assert len(rows) == 5
    for name, *values in rows:
        for value in values:
            assert re.search(rf"(?<![\d.]){re.escape(value.split()[0])}(?![\d.])", measured), f"{name}: {value}"


def paper_table() -> dict[str, list[str]]:
    """{left cell: names of the right cell} of the table of docs/paper_to_code.md."""
    rows = table(page("paper_to_code"), "# Paper to code")
    return {left: re.findall(r"`([^`]+)`", right) for left, right in rows}


@pytest.mark.parametrize("row", paper_table().items(), ids=lambda row: row[0][:40])
def test_each_name_of_the_paper_table_exists(row) -> None:
    names = [name for name in row[1] if not name.endswith("=")]
    assert names
    for name in names:
        assert (ROOT / name).is_file() if "/" in name else resolves(name), name


def test_the_paper_table_speaks_of_every_section() -> None:
    text = " ".join(paper_table())
    for part in (
        "3.1.1",
        "3.1.2",
        "3.1.3",
        "3.2",
        "4.1",
        "4.2",
        "4.3",
        "Eq. 1",
        "Eqs. 4, 5",
        "Eq. 5",
        "Table 5",
        "Table 6",
    ):
        assert part in text
    for word in (
        "stage 1",
        "stages 2 and 3",
        "L_lpips",
        "L_pix",
        "L_id",
        "L_reg",
        "L_lm",
        "BS Error",
        "Poisson",
        "Laplacian",
    ):
        assert word in text


def commands(*texts: str) -> list[list[str]]:
    """Commands of the pages' shell blocks, as lists of words."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", "\n".join(texts), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def spoken_commands() -> list[list[str]]:
    """Commands within the sentences of the pages, and in what scripts say of themselves (``--help``)."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for words in map(
            shlex.split,
            re.findall(
                r"`((?:python )?(?:benchmarks|tools|fit|train)/\w+\.py[^`]*|python -m benchmarks\.\w+[^`]*)`", text
            ),
        ):
            if words[0] == "python" or len(words) > 1:
                found.append(words)
    for script in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")):
        help_text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        for line in re.findall(r"^    (python (?:-m benchmarks\.|benchmarks/|tools/).*)", help_text, re.MULTILINE):
            found.append(shlex.split(line.split("  ")[0].replace("[", "").replace("]", ""), comments=True))
    return found


class Parsed(Exception):
    """A script has understood its arguments, and is stopped."""


@functools.cache
def script_module(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"documented_{Path(script).stem}", ROOT / script)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # dataclasses ask for it there
    spec.loader.exec_module(module)
    return module


def stops_once_parsed(script: str, arguments: list[str]) -> None:
    """Run a script up to its parser: wrong arguments are its exit, with status 2."""
    if "ArgumentParser" not in (ROOT / script).read_text(encoding="utf-8"):
        assert not arguments
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(Parsed):
            script_module(script).main()


ALL = [*commands(*(path.read_text(encoding="utf-8") for path in PAGES)), *spoken_commands()]


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words)[:60])
def test_each_documented_command_is_one(words) -> None:
    from facerecon.configs.compose import compose

    words = [SCRIPTS.get(word, word) for word in words]
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):  # which import one another
        words = ["python", words[2].replace(".", "/") + ".py", *words[3:]]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None:
        assert words[0] in ("git", "pip") or words[:3] == ["python", "-m", "facerecon.assets"]
        if words[0] == "python":
            assets_parser().parse_args(words[3:])
        return
    assert (ROOT / script).is_file()
    arguments = words[words.index(script) + 1 :]
    if script.startswith(("fit/", "train/")):
        config = ROOT / "configs" / f"{Path(script).stem}.yaml"
        assert config.is_file()
        compose(config.stem, [word for word in arguments if word not in ("img=...", "init=...", "...")])
    else:
        stops_once_parsed(script, [word for word in arguments if word != "..."])


def test_commands_are_parsed_for_real(capsys) -> None:
    assert ["python", "-m", "benchmarks.silhouettes"] in spoken_commands()
    stops_once_parsed("benchmarks/silhouettes.py", ["--yaws", "0", "20"])
    for wrong in (["--yaws", "north"], ["--yaw-s", "0"], ["more"]):
        with pytest.raises(SystemExit) as error:
            stops_once_parsed("benchmarks/silhouettes.py", wrong)
        assert error.value.code == 2
    capsys.readouterr()


def test_the_three_commands_of_the_readme_run(run_script, fit_models, tmp_path, monkeypatch) -> None:
    section = README.split("## Three commands", 1)[1].split("\n## ", 1)[0]
    three = [[SCRIPTS[words[0]], *words[1:]] for words in commands(section)]
    assert len(three) == 3
    smoke = {
        "fit/reconstruct.py": ["fitting=smoke", "decoder=linear"],
        "fit/render.py": ["size=96"],
        "train/uv_dataset.py": ["n=1", "size=64", "source=manifest", "manifest=open", "check=false", "workers=1"],
    }
    shutil.copyfile(ROOT / "samples" / "astronaut.jpg", tmp_path / "face.jpg")
    monkeypatch.chdir(tmp_path)
    for script, *arguments in three:
        done = run_script(script, *arguments, *smoke[script])
        assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "outputs" / "reconstruct" / "face").iterdir()}
    named = README.split("## What you get", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"`([\w]+\.\w+)`", named)) <= made
    assert len(list((tmp_path / "uv" / "uv-maps").glob("*.png"))) == 1


def test_each_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        assert set(re.findall(r"`make ([\w-]+)", path.read_text(encoding="utf-8"))) <= targets, path


def test_names_in_the_python_of_the_pages_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    chains = set(re.findall(r"\bfr\.([A-Za-z_][\w.]*)", "\n".join(blocks)))
    assert len(chains) > 8
    assert [chain for chain in chains if not resolves(chain)] == []
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_pages_name_every_extra() -> None:
    block = (ROOT / "setup.py").read_text(encoding="utf-8").split("extras_require={", 1)[1].split("}", 1)[0]
    named = page("reconstruct").split("Extras:", 1)[1].split("\n\n", 1)[0]
    assert [name for name in re.findall(r'^ +"(\w+)":', block, re.MULTILINE) if f"`{name}`" not in named] == []


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed (pip install -c constraints.txt -e '.[dev]')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_docs.py"), "--out", str(tmp_path / "docs")],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 warnings" in done.stdout and done.stderr == ""
    for page in ("index.html", "modules.html", "docs/consent.html", "facerecon/fitting/fitter.html", "search.js"):
        assert (tmp_path / "docs" / page).stat().st_size > 5000


@pytest.mark.slow
def test_a_wrong_reference_a_broken_link_and_a_silent_function_are_found(tmp_path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed (pip install -c constraints.txt -e '.[dev]')")
    module = tmp_path / "wrong_docs.py"
    module.write_text(
        '"""See :func:`~wrong_docs.nothing` and :class:`Here`."""\n\n__all__ = ["Here", "silent"]\n\n\n'
        'class Here:\n    """A class; :meth:`run`, :attr:`field`."""\n\n    def run(self):\n        self.field = 1\n'
        "\n\ndef silent():\n    pass\n"
    )
    (tmp_path / "page.html").write_text('<a href="gone.html">a</a><a href="#there">b</a><p id="here"></p>')
    code = (
        "import build_docs as b, wrong_docs\nfrom pathlib import Path\n"
        "print(b.unknown_references(wrong_docs) + b.without_docstring(wrong_docs) "
        f"+ b.broken_links(Path({str(tmp_path)!r})))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tools"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert len(found) == 4
    assert "wrong_docs.nothing" in found[0] and "silent" in found[1]
    assert "gone.html" in found[2] and "#there" in found[3]
