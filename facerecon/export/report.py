"""One self-contained HTML file about a reconstruction, and an index page for a folder of them.

A report loads nothing: pictures are data URIs, curves are inline SVG, the style is in the page, and a content
security policy forbids the rest. Every string that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from facerecon import assets as asset_registry
from facerecon.errors import InputError
from facerecon.export import views
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.types import Observation, ReconstructedFace

__all__ = ["IndexEntry", "Subject", "loss_curve", "stand_ins", "write_index", "write_report"]


@dataclass(frozen=True)
class Subject:
    """What a report says about one face.

    Args:
        name: headline, e.g. the photo's file name.
        pictures: caption -> picture (PIL image, (3, H, W) or (1, 3, H, W) tensor in [0, 1], or the path of an
            image file).
        history: "stage.term" -> one value a step (sequence or (steps,) tensor).
        seconds: stage -> wall-clock time.
        metrics: stage -> {metric: value}; the order of the stages is kept.
        facts: short figures for the headline.
        files: label -> path of a written file, relative to the report.
        notes: sentences, e.g. warnings of the fit.
    """

    name: str
    pictures: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def from_face(
        cls,
        face: ReconstructedFace,
        observation: Observation | None = None,
        *,
        index: int | None = None,
        name: str | None = None,
        renderer: Any = None,
        model: Any = None,
        panel: Image.Image | Tensor | None = None,
        **fields: Any,
    ) -> Subject:
        """Pictures and loss history of one face of a batch; other fields are passed on.

        Args:
            face: the fit.
            observation: of the same photo.
            index: which subject of a batch.
            name: the photo's file name by default.
            renderer, model: see :func:`facerecon.export.views.panel`.
            panel: that picture, if it has been made already.
            fields: ``seconds``, ``metrics``, ``facts``, ``files``, ``notes``, more ``pictures``.
        """
        at = index or 0
        if name is None:
            name = os.path.basename(str(face.path[at])) if len(face.path) > at else "face"
        if panel is None:
            panel = views.panel(face, observation, renderer, model, index=index)
        strip = views.relit_strip(face, index=index, renderer=renderer)
        pictures = {"": panel, "one lamp, walking from left to right": strip, **fields.pop("pictures", {})}
        history = {key: values[at].detach().cpu() for key, values in face.history.items()}
        return cls(name=name, pictures=pictures, history=history, **fields)


@dataclass(frozen=True)
class IndexEntry:
    """One face of a batch in the index page; paths are relative to the page.

    Args:
        name: headline.
        panel: path of its panel picture.
        report: path of its report, if there is one.
        facts: short figures.
    """

    name: str
    panel: str
    report: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    path: str | os.PathLike,
    subjects: Subject | ReconstructedFace | Sequence[Subject],
    *,
    observation: Observation | None = None,
    panel: Image.Image | Tensor | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    title: str = "facerecon",
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    replaced: Mapping[str, str] | None = None,
    assets: Iterable[str] | None = None,
    command: str | None = None,
    failures: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained ``report.html``.

    Args:
        path: the file to write.
        subjects: what is reported; the faces of a :class:`ReconstructedFace` are turned into subjects with
            default pictures.
        observation, panel, metrics, seconds: go with one :class:`ReconstructedFace`, see :class:`Subject`.
        title: of the page.
        preset: "default", "paper", "release", "fast", ...: which settings were used; ``fitting.preset`` of the
            configuration if left out.
        config: the settings, nested mappings as they come from the configuration.
        replaced: part -> what stands in for the paper's part and why, e.g.
            ``{"perceptual": "face_features instead of LPIPS"}``; read off the configuration if left out.
        assets: names of the model files that were used; the whole open pack by default.
        command: how to reproduce the result.
        failures: photo -> why it failed.

    Returns:
        The path.

    Raises:
        InputError: there is nothing to report.
    """
    if isinstance(subjects, ReconstructedFace):
        own = {"panel": panel, "metrics": metrics or {}, "seconds": seconds or {}}
        if len(subjects.vertices) > 1 and any(value for value in own.values() if value is not None):
            raise InputError("panel, metrics and seconds are of one face; make a Subject for each of a batch.")
        subjects = [Subject.from_face(subjects, observation, index=i, **own) for i in range(len(subjects.vertices))]
    subjects = [subjects] if isinstance(subjects, Subject) else list(subjects)
    if not subjects and not failures:
        raise InputError("a report needs at least one subject; got none.")
    if preset is None and isinstance((config or {}).get("fitting"), Mapping):
        preset = config["fitting"].get("preset")
    replaced = stand_ins(config or {}) if replaced is None else replaced
    parts = [_header(title, preset, subjects)]
    parts += [_subject(subject, f"face-{i}") for i, subject in enumerate(subjects)]
    parts.append(_failures(failures or {}))
    parts.append(_reproduce(command))
    parts.append(_settings(preset, config, replaced))
    parts.append(_assets(assets))
    parts.append(_footer())
    return _write(path, title, parts)


def write_index(
    path: str | os.PathLike,
    entries: Sequence[IndexEntry | tuple[str, str]],
    failures: Mapping[str, str] | None = None,
    *,
    title: str = "facerecon",
    command: str | None = None,
    done: str = "reconstructed",
) -> Path:
    """Write a page that shows the panels of a folder's faces, links their reports, and lists what failed.

    Args:
        path: the file to write; the entries' paths are relative to its folder.
        entries: the faces; (name, panel) pairs will do.
        failures: photo -> why it failed.
        title: of the page.
        command: how to reproduce the results.
        done: what happened to the entries, for the count.
    """
    failures = failures or {}
    entries = [entry if isinstance(entry, IndexEntry) else IndexEntry(*entry) for entry in entries]
    count = f"{len(entries)} {done}" + (f", {len(failures)} failed" if failures else "")
    cards = []
    for entry in entries:
        target = _href(entry.report or entry.panel)
        picture = f'<img loading="lazy" src="{_href(entry.panel)}" alt="{escape(entry.name)}">'
        heading = f'<h3><a href="{target}">{escape(entry.name)}</a></h3>'
        cards.append(f'<article class="card"><a href="{target}">{picture}</a>{heading}{_facts(entry.facts)}</article>')
    parts = [
        f"<header><h1>{escape(title)}</h1><p class=lead>{escape(count)}</p></header>",
        f'<section class="cards">{"".join(cards)}</section>' if cards else "",
        _failures(failures),
        _reproduce(command),
        _footer(),
    ]
    return _write(path, title, parts, images="'self' data:")


def loss_curve(values: Sequence[float], label: str, strong: bool = False) -> str:
    """One loss term over the steps of a stage as an inline SVG figure.

    The vertical axis runs from the smallest to the largest value; both ends of the curve are written out.

    Args:
        values: one a step; values that are not finite leave gaps.
        label: of the term.
        strong: draw it as the main one.
    """
    width, height, pad = 220.0, 84.0, 6.0
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    span, steps = (high - low) or 1.0, max(len(values) - 1, 1)
    runs: list[list[str]] = [[]]
    for i, value in enumerate(values):
        if not math.isfinite(value):
            runs.append([])
            continue
        x = pad + (width - 2 * pad) * i / steps
        y = height - pad - (height - 2 * pad) * (value - low) / span
        runs[-1].append(f"{x:.1f},{y:.1f}")
    lines = "".join(f'<polyline points="{" ".join(run)}"/>' for run in runs if len(run) > 1)
    dots = "".join('<circle cx="{}" cy="{}" r="2"/>'.format(*run[0].split(",")) for run in runs if len(run) == 1)
    ends = f"{_number(values[0])} → {_number(values[-1])}" if len(values) else "no steps"
    name = escape(f"{label}: {ends}")
    return (
        f'<figure class="curve{" strong" if strong else ""}"><figcaption><b>{escape(label)}</b>'
        f"<span>{escape(ends)}</span></figcaption>"
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{name}">{lines}{dots}</svg></figure>'
    )


_STAND_INS = {
    ("face_model", "makehuman"): "MakeHuman head (sculpted shapes, ARKit expression units) instead of HiFi3D++",
    ("decoder", "open"): "our own StyleGAN2 decoder, 256 px, trained on 749 maps of generated faces, instead of "
    "FFHQ-UV's of 1024 px",
    ("decoder", "linear"): "linear UV basis, the paper's ablation 'PCA tex basis', instead of the StyleGAN2 decoder",
    ("decoder", "linear_normalized"): "linear UV basis of normalized maps, instead of the StyleGAN2 decoder",
    ("perceptual", "face_features"): "distance of face-network features instead of LPIPS; not comparable with it",
    ("pack.identity", "identity128"): "128-d face descriptor (Euclidean metric) instead of ArcFace",
    ("pack.judge", "faceres1024"): "1024-d descriptor judges identity and is never optimized; the paper has none",
    ("stage1", "landmarks"): "fitted to landmarks instead of the regressor N_enc",
    ("pack.name", "open"): "masks from face-mesh polygons, skin color and a person mask instead of BiSeNet parsing",
}
_PART_NAMES = {
    "pack.identity": "identity loss",
    "pack.judge": "identity judge",
    "pack.name": "masks",
    "stage1": "stage 1",
    "perceptual": "perceptual: face_features",
}


def stand_ins(config: Mapping[str, Any]) -> dict[str, str]:
    """Which parts of a configuration stand in for the paper's, and for what: {part: sentence}."""
    values = dict(_flattened(config))
    return {
        _PART_NAMES.get(key, key.replace("_", " ")): text
        for (key, value), text in _STAND_INS.items()
        if values.get(key) == value
    }


# -- sections --------------------------------------------------------------------------------------------


def _header(title: str, preset: str | None, subjects: Sequence[Subject]) -> str:
    about = f"{len(subjects)} face{'s' if len(subjects) != 1 else ''}, fitted in the stages of Sec. 4.2 of FFHQ-UV"
    about += f", preset <b>{escape(preset)}</b>" if preset else ""
    links = ""
    if len(subjects) > 1:
        items = "".join(f'<a href="#face-{i}">{escape(s.name)}</a>' for i, s in enumerate(subjects))
        links = f"<nav>{items}</nav>"
    return f"<header><h1>{escape(title)}</h1><p class=lead>{about}</p>{links}</header>"


def _subject(subject: Subject, anchor: str) -> str:
    parts = [f"<h2>{escape(subject.name)}</h2>", _facts(subject.facts)]
    parts += [f'<p class="note">{escape(str(note))}</p>' for note in subject.notes]
    for caption, picture in subject.pictures.items():
        text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        alt = escape(caption or f"panel of {subject.name}")
        parts.append(f'<figure class="wide"><img src="{_data_uri(picture)}" alt="{alt}">{text}</figure>')
    if subject.files:
        links = "".join(
            f'<li><a href="{_href(where)}">{escape(label)}</a></li>' for label, where in subject.files.items()
        )
        parts.append(f'<ul class="files">{links}</ul>')
    parts.append(_stage_table(subject))
    parts.append(_curves(subject.history))
    return f'<section class="face" id="{anchor}">{"".join(parts)}</section>'


def _stage_table(subject: Subject) -> str:
    """Seconds and metrics by stage in one table."""
    stages = list(dict.fromkeys([*subject.seconds, *subject.metrics]))
    if not stages:
        return ""
    metrics = list(dict.fromkeys(name for values in subject.metrics.values() for name in values))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["stage", *metrics, "seconds"])
    rows = []
    for stage in stages:
        values = [subject.metrics.get(stage, {}).get(name) for name in metrics]
        cells = "".join(f"<td>{_number(v)}</td>" for v in [*values, subject.seconds.get(stage)])
        rows.append(f"<tr><th scope=row>{escape(stage)}</th>{cells}</tr>")
    if subject.seconds:
        empty = "<td></td>" * len(metrics)
        total = sum(subject.seconds.values())
        rows.append(f"<tr class=total><th scope=row>all</th>{empty}<td>{_number(total)}</td></tr>")
    return f"<h3>By stage</h3>{_table(head, rows)}"


def _curves(history: Mapping[str, Any]) -> str:
    """Small multiples: a row a stage, its total first."""
    stages: dict[str, dict[str, list[float]]] = {}
    for key, values in history.items():
        stage, _, term = str(key).rpartition(".")
        numbers = values.detach().flatten().tolist() if isinstance(values, Tensor) else [float(v) for v in values]
        stages.setdefault(stage or "fit", {})[term] = numbers
    parts = []
    for stage, terms in stages.items():
        names = sorted(terms, key=lambda term: term != "total")
        steps = max(len(values) for values in terms.values())
        curves = "".join(loss_curve(terms[name], name, strong=name == "total") for name in names)
        heading = f"{escape(stage)} <small>{steps} steps</small>"
        parts.append(f'<h4>{heading}</h4><div class="curves">{curves}</div>')
    return f"<h3>Losses</h3>{''.join(parts)}" if parts else ""


def _failures(failures: Mapping[str, str]) -> str:
    if not failures:
        return ""
    head = "<th>photo</th><th>why</th>"
    rows = [
        f"<tr><th scope=row>{escape(str(name))}</th><td class=text>{escape(str(reason))}</td></tr>"
        for name, reason in failures.items()
    ]
    return f'<section class="failed"><h2>Failed</h2>{_table(head, rows)}</section>'


def _reproduce(command: str | None) -> str:
    if not command:
        return ""
    return f"<section><h2>How to reproduce</h2><pre><code>{escape(command)}</code></pre></section>"


def _settings(preset: str | None, config: Mapping[str, Any] | None, replaced: Mapping[str, str] | None) -> str:
    parts = []
    if replaced:
        rows = [
            f"<tr><th scope=row>{escape(str(part))}</th><td class=text>{escape(str(text))}</td></tr>"
            for part, text in replaced.items()
        ]
        parts.append("<h3>What stands in for the paper's parts</h3>")
        parts.append(_table("<th>part</th><th>here</th>", rows))
    if config:
        rows = [
            f"<tr><th scope=row><code>{escape(key)}</code></th><td class=text><code>{escape(value)}</code></td></tr>"
            for key, value in _flattened(config)
        ]
        body = _table("<th>key</th><th>value</th>", rows)
        parts.append(f"<details><summary>All {len(rows)} settings</summary>{body}</details>")
    if not parts and not preset:
        return ""
    label = f" <small>preset {escape(preset)}</small>" if preset else ""
    return f"<section><h2>Settings{label}</h2>{''.join(parts)}</section>"


def _assets(names: Iterable[str] | None) -> str:
    known = asset_registry.ASSETS
    names = list(known) if names is None else list(names)
    rows = []
    for name in names:
        if name not in known:
            rows.append(f"<tr><th scope=row>{escape(name)}</th><td class=text colspan=4>not in the registry</td></tr>")
            continue
        asset = known[name]
        package = asset_registry.PACKAGES[asset.package]
        texts = (asset.purpose, package.label, asset.licence, asset.caveat)
        cells = "".join(f"<td class=text>{escape(text)}</td>" for text in texts)
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>")
    if not rows:
        return ""
    head = (
        "<th>model</th><th>used for</th><th>package</th><th>license, as stated</th><th>what that does not settle</th>"
    )
    return f"<section><h2>Models and their licenses</h2>{_table(head, rows)}</section>"


def _footer() -> str:
    """What the files were made with; no date, so that the same run writes the same bytes."""
    about = (
        f"facerecon {library_version()}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"<footer>{escape(about)}</footer>"


# -- pieces ----------------------------------------------------------------------------------------------


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{_number(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>' if items else ""


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _number(value: Any) -> str:
    """Four significant digits; text is escaped, nothing is a dash."""
    if value is None:
        return "–"
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flattened(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flattened(value, f"{name}.")
        else:
            rows.append((name, str(value)))
    return rows


def _href(where: str) -> str:
    """A path of this disk as an attribute value; what looks like an address (scheme, //host) becomes a harmless one."""
    path = str(where).replace(os.sep, "/")
    path = "/" + path.lstrip("/") if path.startswith("/") else path
    return escape(quote(os.fsencode(path)))


def _data_uri(picture: Any, quality: int = 90) -> str:
    if isinstance(picture, Tensor):
        picture = to_pil((picture[0] if picture.ndim == 4 else picture).detach().cpu())
    elif isinstance(picture, (str, os.PathLike)):
        with Image.open(picture) as image:
            picture = image.convert("RGB")
    if not isinstance(picture, Image.Image):
        raise InputError(f"a report's picture must be an image, a tensor or a path; got {type(picture).__name__}.")
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def library_version() -> str:
    """Of the installed facerecon."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("facerecon")
    except PackageNotFoundError:
        return "(not installed)"


def _write(path: str | os.PathLike, title: str, parts: Sequence[str], images: str = "data:") -> Path:
    policy = f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'"
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes(path, page.encode("utf-8", "backslashreplace"))  # names need not be UTF-8


_STYLE = """
:root { --ink: #1f2430; --faint: #667085; --line: #e4e7ec; --wash: #f7f8fa; --blue: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem); max-width: 1440px; color: var(--ink);
  background: #fff; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
h4 { font-size: .9rem; margin: 1rem 0 .4rem; }
small { color: var(--faint); font-weight: 400; font-size: .8em; }
.lead { color: var(--faint); margin: .2rem 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
figure { margin: 0; }
figure.wide { margin: 0 0 1rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .85rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1rem; }
.facts div { background: var(--wash); border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .75rem; }
.facts dt { color: var(--faint); font-size: .75rem; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.files { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 0 0 1rem; }
.note { background: #fff8eb; border-left: 3px solid #f59e0b; padding: .5rem .8rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child, td.text { text-align: left; }
td.text { min-width: 9rem; }
thead th { white-space: nowrap; }
thead th { color: var(--faint); font-weight: 500; }
.failed th, details th { overflow-wrap: anywhere; }
section:not(.face) thead th { text-align: left; }
tbody th { font-weight: 500; }
tr.total > * { font-weight: 600; border-bottom: 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(200px, 45%), 1fr)); gap: .7rem; }
.curve { background: var(--wash); border: 1px solid var(--line); border-radius: .5rem; padding: .45rem .6rem; }
.curve figcaption { display: flex; justify-content: space-between; gap: .5rem; font-size: .78rem; }
.curve b { color: var(--ink); font-weight: 600; }
.curve svg { display: block; width: 100%; height: auto; }
.curve polyline { fill: none; stroke: #98a2b3; stroke-width: 1.6; stroke-linejoin: round; }
.curve circle { fill: #98a2b3; }
.curve.strong polyline { stroke: var(--blue); stroke-width: 2; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  overflow-x: auto; }
code { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
details summary { cursor: pointer; color: var(--blue); margin: .8rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 1.4rem;
  padding-top: 1.4rem; }
.card { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; padding-bottom: .2rem; }
.card img { display: block; width: 100%; height: auto; }
.card h3, .card .facts { margin: .6rem .8rem; overflow-wrap: anywhere; }
footer { color: var(--faint); font-size: .8rem; margin-top: 3rem; }
@media print { section { break-inside: avoid; } }
"""
