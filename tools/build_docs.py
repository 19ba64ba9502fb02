"""The documentation as a folder of web pages: README, docs/*.md, and the API of every module, by pdoc.

    python tools/build_docs.py [--out build/docs]        (`make docs`)

Whatever is not right is a line on standard error and exit status 1: a warning of pdoc, a public name without a
docstring, a name in a docstring's ``:func:`...``` that does not exist, a link or picture that leads nowhere. Nothing is
fetched.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import jinja2
import pdoc.doc
import pdoc.docstrings
import pdoc.render
from markupsafe import Markup
from pdoc.render_helpers import to_html, to_markdown_with_context

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).with_name("docs_templates")
PAGES = ("README.md", "CHANGELOG.md", "NOTICE", "LICENSE", "samples/README.md")
"""Pages beside those of docs/; README.md is index.html."""
REFERENCE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([\w.]+)`")

TILDE = re.compile(r"(:(?:func|class|meth|mod|data|attr|exc):`)~")


def pages() -> dict[Path, Path]:
    """{source: target}, relative to the repository and to the built folder."""
    sources = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").glob("*.md"))
    relative = [path.relative_to(ROOT) for path in sources]
    return {path: Path("index.html") if path.name == "README.md" and len(path.parts) == 1 else path.with_suffix(".html")
            for path in relative}  # fmt: skip


def title(text: str, path: Path) -> str:
    """The first heading of a Markdown text, or the file's name; README.md is called so."""
    if path == Path("README.md"):
        return "README"
    found = re.match(r"#\s+(.+)", text)
    return found[1].strip() if found else path.name


def module_names(package: str = "facerecon") -> list[str]:
    """Every module of the package, by name; those with a leading underscore are nobody's business."""
    root = importlib.import_module(package)
    names = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def resolved(name: str) -> ModuleType:
    """Import a module, and give it the names that it otherwise imports on first use."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        vars(module).setdefault(public, getattr(module, public))
    return module


@jinja2.pass_context
def as_docstring(context: jinja2.runtime.Context, text: str) -> str:
    """pdoc's filter of that place; it shows the tilde of ``:class:`~a.b.C```, which here only marks a full name."""
    return to_markdown_with_context(context, TILDE.sub(r"\1", text))


def first_paragraph(docstring: str) -> Markup:
    """The first paragraph of a docstring, as HTML."""
    text = TILDE.sub(r"\1", docstring.split("\n\n")[0])
    return Markup(to_html(pdoc.docstrings.convert(text, "google", None)))


def unknown_references(module: ModuleType) -> list[str]:
    """Names in the docstrings of a module's source that do not exist, as lines."""
    found = []
    for name in dict.fromkeys(REFERENCE.findall(inspect.getsource(module))):
        own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        if not any(exists(holder, name) for holder in (module, *own)) and not exists_by_path(name):
            found.append(f"{module.__name__}: a docstring names `{name}`, which does not exist")
    return found


def without_docstring(module: ModuleType) -> list[str]:
    """A module and its public functions and classes of which nothing is said, as lines."""
    public = [getattr(module, name) for name in getattr(module, "__all__", ())]
    spoken = [module, *(item for item in public if inspect.isclass(item) or inspect.isfunction(item))]
    return [f"{module.__name__}: no docstring on {item.__name__}" for item in spoken if not item.__doc__]


def exists(holder: object, dotted: str) -> bool:
    """Whether ``holder.a.b.c`` does; what a class's source gives each of its objects counts as the class's."""
    for part in dotted.split("."):
        if not hasattr(holder, part):
            source = inspect.getsource(holder) if inspect.isclass(holder) else ""
            return bool(re.search(rf"^    {part}: |self\.{part}\b", source, re.MULTILINE))
        holder = getattr(holder, part)
    return True


def exists_by_path(dotted: str) -> bool:
    """Whether a full name, ``package.module.name.attribute``, does."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        return length == len(parts) or exists(module, ".".join(parts[length:]))
    return False


def as_markdown(path: Path) -> str:
    """A page's Markdown; plain text files become one literal block."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return text if path.suffix == ".md" else f"# {path.name}\n\n```text\n{text}```\n"


def relinked(html: str, source: Path, targets: dict[Path, Path]) -> str:
    """Links between the repository's pages as links between the built ones."""

    def change(match: re.Match[str]) -> str:
        link = urlsplit(match[2])
        if link.scheme or link.netloc or not link.path:
            return match[0]
        place = (ROOT / source.parent / unquote(link.path)).resolve()
        target = targets.get(place.relative_to(ROOT)) if place.is_relative_to(ROOT) else None
        if target is None:
            return match[0]
        up = "../" * (len(targets[source].parts) - 1)
        return f'{match[1]}"{up}{target.as_posix()}{"#" + link.fragment if link.fragment else ""}"'

    return re.sub(r'(href=)"([^"]+)"', change, html)


def broken_links(folder: Path) -> list[str]:
    """Links and pictures of the built pages that lead to no file of the folder, or to no place on a page."""
    places: dict[Path, set[str]] = {}

    def anchors(page: Path) -> set[str]:
        if page not in places:
            places[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
        return places[page]

    found = []
    for page in sorted(folder.rglob("*.html")):
        text = re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for url in dict.fromkeys(re.findall(r'(?:href|src)="([^"]+)"', text)):
            link = urlsplit(url)
            if link.scheme or link.netloc:
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            if not target.is_file():
                found.append(f"{page.relative_to(folder)}: '{url}' leads nowhere")
            elif link.fragment and target.suffix == ".html" and unquote(link.fragment) not in anchors(target):
                found.append(f"{page.relative_to(folder)}: no place '#{link.fragment}' on {target.name}")
    return found


def build(out: Path) -> list[str]:
    """Write all pages into ``out``, which is emptied first; returns what is wrong, a line each."""
    names = module_names()
    modules = [resolved(name) for name in names]
    problems = [line for module in modules for line in unknown_references(module) + without_docstring(module)]
    if out.exists():
        shutil.rmtree(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.render.configure(docformat="google", show_source=False, template_directory=TEMPLATES)
        environment = pdoc.render.env
        environment.filters["to_markdown"] = as_docstring
        everything = {name: pdoc.doc.Module.from_name(name) for name in names}
        targets = pages()
        texts = {source: as_markdown(source) for source in targets}
        site = {
            "pages": [(targets[source].as_posix(), title(texts[source], source)) for source in targets],
            "summaries": {name: first_paragraph(module.docstring) for name, module in everything.items()},
        }
        environment.globals |= {"site": site}
        written: dict[Path, str] = {}
        for name, module in everything.items():
            written[Path(f"{name.replace('.', '/')}.html")] = pdoc.render.html_module(module, everything)
        for source, target in targets.items():
            body = to_html(texts[source])
            written[target] = environment.get_template("page.html.jinja2").render(
                name=title(texts[source], source),
                body=Markup(relinked(body, source, targets)),
                contents=Markup(body.toc_html or ""),
                up="../" * (len(target.parts) - 1),
                module={"modulename": ".".join(target.with_suffix("").parts)},  # its depth, for the search
            )
        written[Path("modules.html")] = environment.get_template("modules.html.jinja2").render(
            name="All modules", up="", module={"modulename": "modules"}
        )
        written[Path("search.js")] = pdoc.render.search_index(everything)
    problems += [f"pdoc: {' '.join(str(one.message).split())}" for one in caught]
    for path, text in written.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
    for picture in [*(ROOT / "docs").glob("*.jpg"), *(ROOT / "docs").glob("*.png"), *(ROOT / "samples").glob("*.jpg")]:
        place = out / picture.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, place)
    return problems + broken_links(out)


def main() -> int:
    """Build; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder to write; emptied first")
    options = parser.parse_args()
    problems = build(options.out.resolve())
    for line in problems:
        print(line, file=sys.stderr)
    print(f"{options.out / 'index.html'}: {len(problems)} warnings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
