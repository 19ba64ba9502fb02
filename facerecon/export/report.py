"""One self-contained HTML file about a reconstruction, and an index page for a folder of them.

A report loads nothing: pictures are data URIs, curves are inline SVG, the style is in the page, and a content
security policy forbids the rest. Every string that comes from outside is escaped by the templates.
"""

from __future__ import annotations

import base64
import io
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image
from torch import Tensor

from facerecon import assets as asset_registry
from facerecon.errors import InputError
from facerecon.export import views
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.types import Observation, ReconstructedFace

__all__ = ["IndexEntry", "ReportEntry", "loss_curve", "stand_ins", "write_index", "write_report"]


@dataclass(frozen=True)
class ReportEntry:
    """What a report shows of one face.

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
    ) -> ReportEntry:
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

    def stage_rows(self) -> list[dict[str, Any]]:
        """Metrics and seconds by stage, "name", "metrics" and "seconds"; last, named None, all seconds together."""
        names = list(dict.fromkeys(name for values in self.metrics.values() for name in values))
        rows = [
            {"name": stage, "seconds": self.seconds.get(stage),
             "metrics": {name: self.metrics.get(stage, {}).get(name) for name in names}}
            for stage in dict.fromkeys([*self.seconds, *self.metrics])
        ]  # fmt: skip
        total = {"name": None, "seconds": sum(self.seconds.values()), "metrics": dict.fromkeys(names)}
        return [*rows, total] if self.seconds else rows

    def losses(self) -> dict[str, dict[str, list[float]]]:
        """{stage: {term: values}}, each stage's total first."""
        stages: dict[str, dict[str, list[float]]] = {}
        for key, values in self.history.items():
            stage, _, term = str(key).rpartition(".")
            numbers = values.detach().flatten().tolist() if isinstance(values, Tensor) else [float(v) for v in values]
            stages.setdefault(stage or "fit", {})[term] = numbers
        return {k: dict(sorted(terms.items(), key=lambda item: item[0] != "total")) for k, terms in stages.items()}


@dataclass(frozen=True)
class IndexEntry:
    """One face of a batch in the index page; paths are relative to the page.

    Args:
        name: headline.
        panel: path of its panel picture.
        report: path of its report, if there is one.
        facts: short figures.
        viewer: path of its viewer, if there is one.
        turning: paths of a small film of the head and of a picture for those who want no motion.
    """

    name: str
    panel: str
    report: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    viewer: str | None = None
    turning: tuple[str, str] | None = None

    @classmethod
    def of_folder(cls, run: Path, name: str) -> IndexEntry:
        """What is there of a face in the folder of a run."""

        def there(file: str) -> str | None:
            return f"{name}/{file}" if (run / name / file).is_file() else None

        film, still = there("turning.webp"), there("still.webp")
        turning = (film, still) if film and still else None
        return cls(name, f"{name}/panel.png", there("report.html"), {}, there("viewer.html"), turning)


def write_report(
    path: str | os.PathLike,
    subjects: ReportEntry | ReconstructedFace | Sequence[ReportEntry],
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
        subjects: what is reported; the faces of a :class:`ReconstructedFace` are turned into entries with
            default pictures.
        observation, panel, metrics, seconds: go with one :class:`ReconstructedFace`, see :class:`ReportEntry`.
        title: of the page.
        preset: "default", "paper", "release", "fast", ...: which settings were used; ``fitting.preset`` of the
            configuration if left out.
        config: the settings, nested mappings as they come from the configuration.
        replaced: part -> what stands in for the paper's part and why, e.g.
            ``{"perceptual": "face_features instead of LPIPS"}``; read off the configuration if left out.
        assets: names of the model files that were used; the whole open pack by default.
        command: how to reproduce the result.
        failures: photo -> why it failed.

    Raises:
        InputError: there is nothing to report.
    """
    if isinstance(subjects, ReconstructedFace):
        own = {"panel": panel, "metrics": metrics or {}, "seconds": seconds or {}}
        if len(subjects.vertices) > 1 and any(value for value in own.values() if value is not None):
            raise InputError("panel, metrics and seconds are of one face; make a ReportEntry for each of a batch.")
        subjects = [ReportEntry.from_face(subjects, observation, index=i, **own) for i in range(len(subjects.vertices))]
    subjects = [subjects] if isinstance(subjects, ReportEntry) else list(subjects)
    if not subjects and not failures:
        raise InputError("a report needs at least one subject; got none.")
    if preset is None and isinstance((config or {}).get("fitting"), Mapping):
        preset = config["fitting"].get("preset")
    return _write(
        path, "report.html", title=title, entries=subjects, failures=failures, command=command, preset=preset,
        stand_ins=stand_ins(config or {}) if replaced is None else replaced, config=_flattened(config or {}),
        assets=_licenses(assets), images="data:",
    )  # fmt: skip


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
    entries = [entry if isinstance(entry, IndexEntry) else IndexEntry(*entry) for entry in entries]
    return _write(
        path, "index.html", title=title, entries=entries, failures=failures, command=command, done=done,
        images="'self' data:",
    )  # fmt: skip


_STAND_INS = {
    ("face_model", "makehuman"): "MakeHuman head, bent to the mean of scanned people, with ARKit expression units, "
    "instead of HiFi3D++",
    ("face_model", "makehuman_artist"): "MakeHuman head (sculpted shapes, ARKit expression units) instead of HiFi3D++",
    ("decoder", "open"): "our own StyleGAN2 decoder, 512 px, trained on 1,127 maps of generated faces, instead of "
    "FFHQ-UV's of 1024 px",
    ("decoder", "linear"): "linear UV basis, the paper's ablation 'PCA tex basis', instead of the StyleGAN2 decoder",
    ("perceptual", "face_features"): "distance of face-network features instead of LPIPS; not comparable with it",
    ("perceptual", "lpips_alex"): "LPIPS on AlexNet instead of VGG-16, for its speed",
    ("identity", "sface"): "SFace, 128-d, of ArcFace's kind instead of ArcFace r50",
    ("identity", "identity128"): "128-d face descriptor (Euclidean metric) instead of ArcFace",
    ("pack.eval_identity", "faceres1024"): "1024-d descriptor measures CSIM and is never optimized; the paper has none",
    ("fitting.tone", "belief"): "skin tone by a belief from face and scene instead of what decoder and light leave",
    ("fitting.light_space", "linear"): "light multiplies linear intensities instead of encoded values",
    ("stage1", "landmarks"): "fitted to landmarks instead of the regressor N_enc",
}
_PART_NAMES = {
    "identity": "identity loss",
    "pack.eval_identity": "eval_identity",
    "stage1": "stage 1",
    "fitting.tone": "skin tone",
    "fitting.light_space": "light",
    "perceptual": "perceptual loss",
}


def stand_ins(config: Mapping[str, Any]) -> dict[str, str]:
    """Which parts of a configuration stand in for the paper's, and for what: {part: sentence}."""
    values = dict(_flattened(config))
    return {
        _PART_NAMES.get(key, key.replace("_", " ")): text
        for (key, value), text in _STAND_INS.items()
        if values.get(key) == value
    }


def _licenses(names: Iterable[str] | None) -> dict[str, tuple[str, ...]]:
    """{model file: purpose, package, license and caveat}, nothing where the registry does not know it."""
    known = asset_registry.ASSETS
    found = {}
    for name in known if names is None else names:
        asset = known.get(name)
        package = asset and asset_registry.PACKAGES[asset.package].label
        found[name] = (asset.purpose, package, asset.license, asset.caveat) if asset else ()
    return found


# -- pages -----------------------------------------------------------------------------------------------


def page_template(name: str) -> Template:
    """One of ``templates/``."""
    environment = Environment(
        loader=PackageLoader("facerecon.export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": _number, "href": _href, "data_uri": _data_uri, "curve": curve_points}
    return environment.get_template(name)


def _write(path: str | os.PathLike, template: str, **context: Any) -> Path:
    """A page of ``templates/``; without a date, so that the same run writes the same bytes."""
    made_with = (
        f"facerecon {library_version()}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    )
    page = page_template(template).render(made_with=made_with, **context)
    return write_bytes(path, page.encode("utf-8", "backslashreplace"))  # names need not be UTF-8


def loss_curve(values: Sequence[float], label: str) -> str:
    """One loss term over the steps of a stage as an inline SVG figure.

    Args:
        values: one a step; values that are not finite leave gaps.
        label: of the term.
    """
    return page_template("curve.html").render(values=values, label=label)


def curve_points(values: Sequence[float]) -> dict[str, Any]:
    """One loss term over the steps of a stage, as an SVG draws it.

    The vertical axis runs from the smallest to the largest value.

    Args:
        values: one a step; values that are not finite leave gaps.

    Returns:
        "runs": lists of "x,y" points, "ends": the first and the last value as text, "size": of the picture.
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
    ends = f"{_number(values[0])} → {_number(values[-1])}" if len(values) else "no steps"
    return {"runs": runs, "ends": ends, "size": (round(width), round(height))}


def _number(value: Any) -> str:
    """Four significant digits; text as it is, nothing is a dash."""
    if value is None:
        return "–"
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
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
    """A path of this disk as an address; what looks like another one (scheme, //host) becomes a harmless one."""
    path = str(where).replace(os.sep, "/")
    path = "/" + path.lstrip("/") if path.startswith("/") else path
    return quote(os.fsencode(path))


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
    try:
        return version("facerecon")
    except PackageNotFoundError:
        return "(not installed)"
