"""The tables, charts and pages of fit/evaluate.py, of whatever its sweep has measured.

All cells go into results.csv. A page has a table for each of the parts reconstruction, shape, tone and expressiveness,
and charts of the rest, whose alternative text has their values.
"""

from __future__ import annotations

import datetime
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from facerecon.assets.doctor import processor
from facerecon.errors import ConfigError, InputError
from facerecon.evaluation import (
    Metric,
    Row,
    Summary,
    Table,
    bootstrap_interval,
    bootstrap_summary,
    identity_std_ratio,
    ita_errors,
    person_spread,
    rank_correlation,
)
from facerecon.evaluation.tables import LEAST, PUBLISHED, write_csv
from facerecon.export.chart import Bar, bar_chart, cumulative_chart
from facerecon.export.report import library_version
from facerecon.fit.evaluation_parts import INVERTED_BY, RELEASED, split_space
from facerecon.imaging.files import read_image, write_bytes, write_png
from facerecon.perception.skin_tone import TONE_GROUPS, tone_group
from facerecon.storage import csv_bytes

REGIONS = ("nose", "mouth", "forehead", "cheek")
MARKS = ("<!-- evaluate -->", "<!-- /evaluate -->")

DECODERS = {
    "ours": "ours",
    "linear": "PCA tex basis",
    "front": "w/o multi-view",
    "part": "part of the maps",
    "scratch": "w/ another set (scratch)",
    "finetune": "w/ another set (finetune)",
}
"""Rows of Tables 5 and 6, by key of decoders=."""

SHAPES = {
    "shape/synthetic": "Shape, held-out synthetic heads of the fit's own model",
    "shape/ict": "Shape, heads of ICT-FaceKit (another model, another camera)",
    "shape/scan": "Shape, one real face, scanned (other poses, lights and cameras)",
    "realy": "Shape, REALY",
}

STARTS = {
    "mean face": "mean face",
    "landmarks": "start from landmarks",
    "regressor": "regressor only",
    "refined": "regressor, refined on landmarks",
}

SHAPE = [
    *[Metric(region, f"{region}, mm", std=True, interval=False) for region in REGIONS],
    Metric("mean", "mean, mm", std=True),
    Metric("apart", "minus ours, mm", signed=True),
]
RECONSTRUCTION = [
    Metric("photometric", "photometric x 1000", 1000, 1),
    Metric("identity", "CSIM", 1, 3),
    Metric("nme", "landmarks, %", 100, 2),
    Metric("lpips_vgg", "LPIPS (VGG)", 1, 3),
    Metric("lpips_alex", "LPIPS (AlexNet)", 1, 3),
    Metric("photometric_final", "final: photometric x 1000", 1000, 1),
    Metric("identity_final", "final: CSIM", 1, 3),
    Metric("apart", "minus ours: photometric x 1000", 1000, 1, signed=True),
]
TEXTURE = [
    Metric("bs", "BS Error", 1, 2),
    Metric("bs_final", "final: BS Error", 1, 2),
    Metric("identity_std", "identity std, % of the photos'", 100, 0),
]
MAPS = [
    Metric("bs_error_map", "BS Error", 1, 2),
    Metric("bs_error", "BS Error, observed texels", 1, 2),
    Metric("observed", "observed, %", 100, 0),
    Metric("sharpness", "sharpness", 1, 2),
    Metric("coherence", "coherence", 1, 2),
    Metric("identity_map", "identity: map to front view", 1, 3),
    Metric("identity_std", "identity std, % of the sources'", 100, 0),
]
OCTAVES = [Metric(str(i), f"{2 << i} to {4 << i} texels", 1, 2) for i in range(5)]
RELEASED_MAPS = [*MAPS[:3], Metric("identity", "CSIM", 1, 3)]
EXPRESSIVENESS = [
    Metric("lpips_vgg", "LPIPS (VGG)", 1, 3),
    Metric("lpips_alex", "LPIPS (AlexNet)", 1, 3),
    Metric("l1", "L1 x 1000", 1000, 1),
    Metric("l1_face", "L1 of the face x 1000", 1000, 1),
    Metric("csim", "CSIM", 1, 3),
]
GROUPED = [*RECONSTRUCTION[:3], Metric("mean", "shape, mm", 1, 2)]

TONES = ((55, "very light (ITA above 55)"), (41, "light (41 to 55)"), (28, "intermediate (28 to 41)"),
         (10, "tan (10 to 28)"), (-30, "brown (-30 to 10)"), (-1e9, "dark (below -30)"))  # fmt: skip
TONE = [
    Metric("mean", "ITA error, degrees", 1, 1),
    Metric("worst", "worst group", 1, 1),
    Metric("bias_score", "bias score", 1, 1),
    Metric("offset", "too light by", 1, 1, signed=True),
    Metric("spread", "spread of a person", 1, 1),
    Metric("rank", "rank correlation", 1, 2),
    *[Metric(name, name, 1, 1, interval=False) for name in TONE_GROUPS],
]
ALBEDO = [
    Metric("bs_visible", "BS Error, visible texels", 1, 2),
    Metric("seam", "seam contrast", 1, 2),
    Metric("texture", "texture error x 1000", 1000, 1),
    Metric("texture_scaled", "after scale", 1000, 1),
    Metric("fine_detail", "fine detail x 1000", 1000, 2),
]
SIDE_LIGHT = 1.3
"""Ratio of encoded shading of both sides of the face from which a light counts as side light."""
AGES = ((50, "50 and older"), (30, "30 to 49"), (-1e9, "younger than 30"))


# -- rows ------------------------------------------------------------------------------------------------------


def _row(label: str, items: Sequence[Mapping[str, float]], metrics: Iterable[Metric]) -> Row | None:
    """Means over items that have the metrics; None where there are no items."""
    cells = {}
    for metric in metrics:
        values = [item[metric.key] for item in items if item.get(metric.key) == item.get(metric.key, 0)]
        values = [v for v in values if v is not None]
        if values:
            cells[metric.key] = bootstrap_summary(values)
    return Row(label, cells) if cells else None


def _named(sweep: Any, pattern: str) -> list[tuple[re.Match, dict[str, Any]]]:
    """Finished items whose names match, in order."""
    found = [(re.fullmatch(pattern, name), facts) for name, facts in sweep.done.items()]
    return [(match, facts) for match, facts in found if match and "skipped" not in facts and "refused" not in facts]


def _not_run(key: str) -> Row:
    return Row(DECODERS.get(key, key), note=f"give decoders.{key}=FILE")


def _label(sweep: Any, key: str) -> str:
    """Of a decoder: its row in the paper, and its file."""
    name, space = split_space(sweep.decoders[key])
    shown = Path(name).stem if "/" in name or Path(name).suffix else name
    return f"{DECODERS.get(key, key)} (decoder {shown}{':' + space if space else ''})"


def _errors(facts: Mapping[str, float]) -> dict[str, float]:
    return {**facts, "mean": sum(facts[region] for region in REGIONS) / len(REGIONS)}


def _apart(row: Row, items: Mapping[str, float], ours: Mapping[str, float]) -> Row:
    """A row with its paired difference to ours, over what both have measured."""
    pairs = [value - ours[name] for name, value in items.items() if name in ours]
    return replace(row, cells=dict(row.cells) | {"apart": bootstrap_summary(pairs)}) if pairs else row


# -- tables ----------------------------------------------------------------------------------------------------


def shape_tables(sweep: Any) -> list[Table]:
    """Table 5, for every kind of head that was measured."""
    tables = []
    for place, title in SHAPES.items():
        found = _named(sweep, f"{place}/([^/]+)/starts")
        if not found:
            continue
        items: dict[str, dict[str, dict[str, float]]] = {}  # row, head, region
        for match, facts in found:
            for key, errors in facts["errors"].items():
                items.setdefault(key, {})[match[1]] = _errors(errors)
        for match, facts in _named(sweep, f"{place}/([^/]+)/([^/]+)"):
            if match[2] != "starts":
                items.setdefault(f"fit {match[2]}", {})[match[1]] = _errors(facts["errors"])
        ours = {head: errors["mean"] for head, errors in items.get("fit ours", {}).items()}
        table = Table(f"shape_{place.removeprefix('shape/')}", title, SHAPE, first="REALY's protocol")

        def add(key: str, label: str, items: dict = items, ours: dict = ours, table: Table = table) -> bool:
            row = _row(label, list(items.get(key, {}).values()), SHAPE)
            if row is not None and key != "fit ours":
                row = _apart(row, {head: errors["mean"] for head, errors in items[key].items()}, ours)
            table.rows += filter(None, [row])
            return row is not None

        for key, label in STARTS.items():
            if not add(key, label) and key == "regressor":
                table.rows.append(Row(label, note="no trained weights for this head model"))
        for key in sweep.decoders:
            add(f"fit {key}", f"full fit: {_label(sweep, key)}")
        fallen = sum(facts.get("stage1", "regressor") != "regressor" for _, facts in found)
        table.notes = [
            "Mean ± standard deviation over heads (95 % interval of the mean), differences on the same heads."
        ]
        if place == "shape/scan":
            table.notes.append("The scan's texture has the light of its room baked in, under the light of each photo.")
        table.notes += filter(None, [_no_worse(items)])
        if fallen:
            told = f"{fallen} of {len(found)} heads are outside the regressor's range and start from landmarks."
            table.notes.append(told)
        if place == "realy" and sweep.config.full:
            table.rows += PUBLISHED["realy"]
        tables.append(table)
    return tables


def _no_worse(items: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """On how many heads the fit with our decoder ends no farther from the truth than it began; ``items``: {row: {head:
    errors}}."""
    start = next((key for key in ("refined", "landmarks") if key in items), None)
    heads = items.get("fit ours", {}).keys() & items.get(start, {}).keys()
    if not heads:
        return ""
    count = sum(items["fit ours"][head]["mean"] <= items[start][head]["mean"] for head in heads)
    return f"The full fit is no worse than its start on {count} of {len(heads)}."


def reconstruction_tables(sweep: Any) -> list[Table]:
    """Reconstruction by preset and decoder, and what the decoders' textures are like."""
    found = _named(sweep, "reconstruction/([^/]+)/([^/]+)/([^/]+)")
    if not found:
        return []
    table = Table("reconstruction", "Reconstruction of photos and held-out generated faces", RECONSTRUCTION,
                  first="preset, decoder")  # fmt: skip
    texture = Table("texture", "Textures of those fits", TEXTURE, first="preset, decoder")
    items: dict[tuple[str, str], dict[str, dict]] = {}  # column, photo
    for match, facts in found:
        items.setdefault((match[2], match[3]), {})[match[1]] = facts
    ours = {name: facts["metrics"]["photometric"] for name, facts in items.get((sweep.preset, "ours"), {}).items()}
    for (preset, key), of in items.items():
        label = f"{preset}, {_label(sweep, key)}"
        metrics = [facts["metrics"] for facts in of.values()]
        row = _row(label, metrics, RECONSTRUCTION)
        if row is not None and (preset, key) != (sweep.preset, "ours"):
            row = _apart(row, {name: facts["metrics"]["photometric"] for name, facts in of.items()}, ours)
        if row is not None:
            optimized = sweep.fit_config(preset, sweep.decoders[key])[0].perceptual
            table.rows.append(replace(row, optimized=frozenset([optimized])))
        row = _row(label, metrics, TEXTURE)
        if row is not None:
            texture.rows.append(_with_diversity(row, list(of.values()), "render", "photo"))
    photos = len({match[1] for match, _ in found if match[1].startswith("photo_")})
    faces = len({match[1] for match, _ in found}) - photos
    table.notes = [
        f"{photos} photo(s) and {faces} generated face(s). Photometric error: mean RGB difference over the face in "
        "[0, 1]; CSIM: cosine of 1024-d identity descriptors that are never optimized; landmarks: of the distance "
        "between the outer eye corners; LPIPS: of the photo with the fitted face in it, 224 px; "
        "all of the decoder's texture, 'final' with the photo's own texels (detail, where the preset has it)."
    ]
    other = sweep.fit_config(*sweep.main)[0].face_model != "hifi3dpp"
    atlas = "another atlas than the paper's: not comparable with its; " if other else ""
    texture.notes = [
        f"BS Error of the decoder's texture ({atlas}0 where a basis "
        "holds mirror-symmetric maps only, as decoder=linear does). Identity std: of "
        "renders with that texture under even light, 128-d, over that of the photos."
    ]
    return [table, texture]


def _with_diversity(row: Row, found: Sequence[Mapping[str, Any]], ours: str, source: str) -> Row:
    """A row with the ratio of identity deviations of two kinds of vectors, the people resampled."""
    pairs = [(facts["vectors"][ours], facts["vectors"][source]) for facts in found]
    if len(pairs) < LEAST:
        return row
    values = torch.tensor(pairs, dtype=torch.float64)  # (N, 2, D)
    value, low, high = bootstrap_interval(values, lambda some: identity_std_ratio(some[:, 0], some[:, 1]))
    return replace(row, cells=dict(row.cells) | {"identity_std": Summary(value, len(pairs), low, high)})


def map_tables(sweep: Any) -> list[Table]:
    """Tables 2 and 4."""
    full = _named(sweep, "maps/([^/]+)/full")
    if not full:
        return []
    table = Table("maps", "UV maps of held-out subjects, and with one thing changed", MAPS, first="maps")
    row = _row("full", [facts["metrics"] for _, facts in full], MAPS)
    table.rows.append(_with_diversity(row, [facts for _, facts in full], "map", "source"))
    changed: dict[str, list[dict]] = {}
    for match, facts in _named(sweep, "maps/([^/]+)/(.+)"):
        if match[2] != "full":
            changed.setdefault(match[2], []).append(facts["metrics"])
    table.rows += filter(None, [_row(name, items, MAPS) for name, items in changed.items()])
    refused = sum("refused" in facts for name, facts in sweep.done.items() if name.startswith("maps/"))
    table.notes = [
        f"Seeds that are in no set; {refused} subject(s) were refused by the filters. 'Light' is the division by the "
        "remaining shading, which FFHQ-UV does not do. Hidden texels are mirrored or the template's, so whole maps "
        "look more even than what was observed. Sharpness and coherence: the least over the octaves of the front from "
        "periods of 4 texels on. Identity: 128-d, Euclidean."
    ]
    return [table, *_octave_table([facts["octaves"] for _, facts in full if "octaves" in facts])]


def _octave_table(found: Sequence[Mapping[str, Sequence[float]]]) -> list[Table]:
    """Sharpness and coherence of full maps, octave by octave."""
    table = Table("sharpness", "Detail of those maps beside the views that they are of", OCTAVES, first="full maps")
    for zone in ("front", "side"):
        for name in ("sharpness", "coherence"):
            items = [octaves[f"{name}_{zone}"] for octaves in found if f"{name}_{zone}" in octaves]
            values = [dict(zip((metric.key for metric in OCTAVES), item, strict=True)) for item in items]
            table.rows += filter(None, [_row(f"{zone}: {name}", values, OCTAVES)])
    table.notes = [
        "Of log brightness in differences of Gaussians, by period, over observed texels. Sharpness: standard deviation "
        "of the map over that of the view; less than 1 is blurred. Coherence: their correlation. Front: against the "
        "front view; side: against each side view, where the front view shows nothing. The first octave lies above "
        "half of the Nyquist frequency and does not count."
    ]
    return [table] if table.rows else []


def released_tables(sweep: Any) -> list[Table]:
    """Maps of the authors' subjects beside ours."""
    table = Table("released", "Maps of the authors' set beside ours", RELEASED_MAPS, first="maps")
    for row, label in RELEASED.items():
        items = [facts["metrics"] for _, facts in _named(sweep, f"released/[^/]+/{row}")]
        table.rows += filter(None, [_row(label, items, RELEASED_MAPS)])
    table.notes = [
        "CSIM of the photo and the map drawn into it, on the head that is fitted to its landmarks, under the light "
        "that is solved for each. BS Error of the released map is on its own atlas."
    ]
    return [table] if table.rows else []


def expressiveness_tables(sweep: Any) -> list[Table]:
    """Table 6."""
    found = _named(sweep, "expressiveness/([^/]+)/([^/]+)")
    if not found:
        return []
    table = Table("expressiveness", "Unseen maps, as decoders express them", EXPRESSIVENESS, first="decoder")
    for key in map(str, sweep.config.decoders):
        if key not in sweep.decoders:
            table.rows.append(_not_run(key))
            continue
        facts = [facts for match, facts in found if match[2] == key]
        row = _row("", [one["metrics"] for one in facts], EXPRESSIVENESS)
        if row is not None:
            label = f"{_label(sweep, key)}, {facts[0]['numbers']:,} numbers"
            table.rows.append(replace(row, label=label, optimized=frozenset([INVERTED_BY, "l1"])))
    steps = sweep.config.inversion_steps
    table.notes = [f"{steps} steps of Adam on L1 and LPIPS (AlexNet), in W+ or all components."]
    return [table]


def group_tables(sweep: Any) -> list[Table]:
    """Our fits with the first preset, by what the faces look like."""
    photos = [facts for _, facts in _named(sweep, f"reconstruction/[^/]+/{re.escape(sweep.preset)}/ours")]
    heads = [facts for _, facts in _named(sweep, "(?:shape/synthetic|shape/ict|realy)/[^/]+/ours")]
    kinds = ("photometric", "identity", "nme")
    people = [(facts["about"], {key: facts["metrics"][key] for key in kinds}) for facts in photos]
    people += [(facts["about"], {"mean": _errors(facts["errors"])["mean"]}) for facts in heads]
    if not people:
        return []

    def banded(name: str, bands: Sequence[tuple[float, str]]) -> Callable[[dict], str | None]:
        return lambda about: next((label for low, label in bands if about.get(name, -2e9) >= low), None)

    groupings = {
        "skin tone": ([label for _, label in TONES], banded("tone", TONES)),
        "age": ([label for _, label in reversed(AGES)], banded("age", AGES)),
        "gender": (["taken for a man", "taken for a woman"],
                   lambda about: "taken for a man" if about.get("male", 0.5) >= 0.5 else "taken for a woman"),
    }  # fmt: skip
    table = Table("groups", f"By skin tone, age and gender (preset {sweep.preset}, {_label(sweep, 'ours')})", [
        *GROUPED, Metric("photos", "photos", 1, 0, interval=False), Metric("heads", "heads", 1, 0, interval=False),
    ], first="group")  # fmt: skip
    for what, (labels, of) in groupings.items():
        for label in labels:
            inside = [metrics for about, metrics in people if of(about) == label]
            row = _row(f"{what}: {label}", inside, GROUPED)
            if row is not None:
                counts = {
                    key: sum(kind in one for one in inside) for key, kind in (("photos", "identity"), ("heads", "mean"))
                }
                cells = dict(row.cells) | {key: Summary(value, len(inside)) for key, value in counts.items() if value}
                table.rows.append(replace(row, cells=cells))
    table.notes = [
        "Skin tone: individual typology angle of the fitted texture's plain skin. Age and gender: as a network takes "
        "the photo; both are rough, and no statement on a person. Few faces in a group say little: intervals from 3 on."
    ]
    return [table]


def tone_tables(sweep: Any) -> list[Table]:
    """Skin tones of the fitted albedos, of heads, pictures and FAIR."""
    table = Table("tone", f"Skin tone of the fitted albedo (preset {sweep.tone_preset}, {_label(sweep, 'ours')})", TONE,
                  first="pictures")  # fmt: skip
    kinds = {
        "tone/head": "rendered heads of known albedo",
        "tone/told": "the same heads, first picture of each, exposure and light color told",
        "fair": "FAIR",
    }
    for kind, label in kinds.items():
        found = [facts for _, facts in _named(sweep, f"{kind}/.+") if "ita" in facts["metrics"]]
        if found:
            table.rows.append(Row(label, _tone_cells(found)))
    portraits = _named(sweep, r"tone/portrait/(\d+)/(\d+)")
    portraits = [(match, facts) for match, facts in portraits if "ita" in facts["metrics"]]
    first = {match[1]: facts["metrics"]["ita"] for match, facts in portraits if match[2] == "0"}
    rest = [(match[1], facts["metrics"]["ita"]) for match, facts in portraits if match[2] != "0" and match[1] in first]
    if len(rest) > 1:
        persons, tones = zip(*rest, strict=True)
        own = [first[person] for person in persons]
        cells = {"rank": Summary(rank_correlation(tones, own), len(rest))} | _spread(tones, persons)
        table.rows.append(Row("generated portraits as other cameras would take them", cells))
    if any(name.startswith("fair/") for name in sweep.done):
        table.rows += PUBLISHED["fair"]
    table.notes = [
        "ITA: individual typology angle of the median color of plain skin of the final texture; by groups of the true "
        "albedo. Bias score: standard deviation of the groups' mean errors (TRUST). Exposures 0.5 to 1.8 and white "
        "balances of 25 % in linear light. Spread: mean over persons of the standard deviation over their pictures. "
        "Rank correlation (Spearman): with the truth, or with the fit of the uncorrupted picture. It is the appearance "
        "of a texture, and no statement on a person."
    ]
    return [table] if table.rows else []


def _tone_cells(found: Sequence[Mapping[str, Any]]) -> dict[str, Summary]:
    fitted, truth = ([facts[part][key] for facts in found] for part, key in (("metrics", "ita"), ("about", "tone")))
    pairs = torch.tensor([fitted, truth], dtype=torch.float64).T
    apart = pairs[:, 0] - pairs[:, 1]
    groups = [tone_group(true) for true in truth]
    cells = {"mean": bootstrap_summary(apart.abs()), "offset": bootstrap_summary(apart)}
    cells |= {name: bootstrap_summary(apart.abs()[[group == name for group in groups]])
              for name in TONE_GROUPS if name in groups}  # fmt: skip
    statistics = {"worst": lambda some: ita_errors(some[:, 0], some[:, 1]).worst}
    if len(set(groups)) > 1:
        statistics["bias_score"] = lambda some: ita_errors(some[:, 0], some[:, 1]).bias
    if len(found) > 1:
        statistics["rank"] = lambda some: rank_correlation(some[:, 0], some[:, 1])
    cells |= {
        key: bootstrap_summary(pairs, lambda some, of=of: torch.tensor(of(some))) for key, of in statistics.items()
    }
    return cells | _spread(fitted, [facts["about"].get("person") for facts in found])


def _spread(tones: Sequence[float], persons: Sequence[Any]) -> dict[str, Summary]:
    """A cell, where somebody has two pictures."""
    pairs = [(tone, person) for tone, person in zip(tones, persons, strict=True) if person is not None]
    names = [person for _, person in pairs]
    if len(names) == len(set(names)):
        return {}
    return {"spread": Summary(person_spread([tone for tone, _ in pairs], names), len(pairs))}


def albedo_tables(sweep: Any) -> list[Table]:
    """Light left in the final textures, and seams, of every fit with the first preset and our decoder."""
    table = Table("albedo", "Light and seams in the final textures", ALBEDO, first="pictures")
    kinds = {
        "photos and generated faces": f"reconstruction/.+/{re.escape(sweep.preset)}/ours",
        "rendered heads": r"tone/head/.+",
        "portraits as other cameras would take them": r"tone/portrait/.+",
    }
    for label, pattern in kinds.items():
        found = [facts["metrics"] for _, facts in _named(sweep, pattern) if "bs_visible" in facts["metrics"]]
        table.rows += filter(None, [_row(label, found, ALBEDO)])
        aside = [metrics for metrics in found if metrics["side"] >= SIDE_LIGHT]
        table.rows += filter(None, [_row(f"{label}: in side light", aside, ALBEDO)])
    table.notes = [
        f"Side light: the fitted light shades one side of the face {SIDE_LIGHT} times as bright as the other. Seam "
        "contrast: change of log brightness across the border of the visible texels over that of the skin beside it, "
        "95th percentiles; 1 where no line shows. Texture error: mean difference of RGB over visible texels, and after "
        "the best factor of each channel. Fine detail: energy of the two finest octaves of log brightness."
    ]
    return [table] if table.rows else []


# -- pages -----------------------------------------------------------------------------------------------------

HEADS = {"synthetic": "synthetic heads", "ict": "ICT heads", "scan": "one scan", "realy": "REALY"}
PAGE = {
    "reconstruction": ("photometric", "identity", "lpips_vgg", "nme", "photometric_final", "identity_final"),
    "tone": ("mean", "worst", "bias_score", "offset", "spread", "rank"),
    "expressiveness": ("lpips_vgg", "l1_face", "csim"),
    "released": tuple(metric.key for metric in RELEASED_MAPS),
}
"""{table of a page: its columns there}."""
EXPLAINED = {"groups": "groups_shape.png", "maps": "maps.png", "sharpness": "sharpness.png", "albedo": "albedo.png"}
"""{table that a page has as a chart alone: the chart below which its notes stand}."""


def write_evaluation(sweep: Any) -> int:
    """Everything that is written at the end; the exit status."""
    folder = sweep.folder.path
    makers = (reconstruction_tables, shape_tables, tone_tables, expressiveness_tables, map_tables, released_tables,
              albedo_tables, group_tables)  # fmt: skip
    tables = {table.name: table for make in makers for table in make(sweep)}
    sweep.folder.tidy(sweep.done)
    if not tables:
        why = next(iter(sweep.failed.values()), "nothing was asked for; see parts=")
        raise InputError(f"nothing could be measured: {why}")
    write_bytes(folder / "results.csv", write_csv(list(tables.values())))
    write_bytes(folder / "items.csv", _items(sweep))
    charts = _charts(sweep, tables)
    body = [_introduction(sweep)]
    for name in ("reconstruction", "shape", "tone", "expressiveness", "released"):
        if name == "shape":
            body += [table.to_markdown(3) for table in _shape_page(tables)]
        elif name in tables:
            shown = [metric for metric in tables[name].metrics if metric.key in PAGE[name]]
            body.append(replace(tables[name], metrics=shown).to_markdown(3))
    if charts:
        notes = {file: " ".join(tables[name].notes) for name, file in EXPLAINED.items() if name in tables}
        pictures = [f"![{alt}]({file})\n\n{notes.get(file, '')}\n".rstrip("\n") + "\n" for file, alt in charts.items()]
        body.append("### Charts\n\n" + "\n".join(pictures))
    body.append(_not_measured(sweep))
    text = "\n".join(part for part in body if part)
    sheets = "\n".join(f"![Panels]({name})\n" for name in sweep.sheets)
    write_bytes(folder / "evaluate.md", f"## Evaluation\n\n{text}\n{sheets}".encode("utf-8", "backslashreplace"))
    if sweep.config.readme:
        _into(Path(sweep.config.readme), text, folder, charts)
    failed = f", {len(sweep.failed)} failed (see the report)" if sweep.failed else ""
    print(f"{len(sweep.done)} item(s){failed}; {folder / 'evaluate.md'}")
    return 1 if sweep.failed else 0


def _shape_page(tables: Mapping[str, Table]) -> list[Table]:
    """The mean errors of all kinds of heads in one table."""
    kinds = {kind: tables[f"shape_{kind}"] for kind in HEADS if f"shape_{kind}" in tables}
    counts = {kind: max((row.count or 0 for row in table.rows if not row.source), default=0)
              for kind, table in kinds.items()}  # fmt: skip
    metrics = [Metric(kind, f"{HEADS[kind]}, mm (n = {count})") for kind, count in counts.items()]
    rows: dict[str, Row] = {}
    for kind, table in kinds.items():
        for row in table.rows:
            if "mean" in row.cells:
                known = rows.setdefault(row.label, Row(row.label, source=row.source))
                rows[row.label] = replace(known, cells=dict(known.cells) | {kind: row.cells["mean"]})
    notes = ["Mean of nose, mouth, forehead and cheek by REALY's protocol, with the 95 % interval over heads."]
    for kind, table in kinds.items():
        notes += [f"{HEADS[kind][0].upper()}{HEADS[kind][1:]}: {' '.join(table.notes[1:])}"] if table.notes[1:] else []
    return [Table("shape", "Shape", metrics, list(rows.values()), "shape", notes, counted=False)] if rows else []


def _introduction(sweep: Any) -> str:
    """Date, commit, machine, command, sizes."""
    config = sweep.config
    command = shlex.join(["python", "fit/evaluate.py", *_arguments(sys.argv[1:])])
    minutes = sum(facts.get("seconds", 0) for facts in sweep.done.values()) / 60
    commits = sorted({facts.get("commit") or "unknown" for facts in sweep.done.values()})
    machine = processor()
    if sweep.device.type == "cuda":
        machine += f", {torch.cuda.get_device_name(sweep.device)}"
    fits = sweep.fit_config(*sweep.main)[0]
    few = "" if config.full else " **A few items a row: orientation only; full=true has at least 20.**"
    return (
        f"{datetime.date.today().isoformat()}, facerecon {library_version()}, commit {', '.join(commits)}; {machine}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); {minutes:.0f} minutes of CPU.{few}\n\n"
        f"```bash\n{command}\n```\n\n"
        f"Face model {fits.face_model}, decoder {config.decoders.ours}, preset {sweep.preset} where none is named. "
        "In brackets: 95 % intervals by the bootstrap over items, from 3 items on.\n"
    )


def _arguments(given: Sequence[str]) -> list[str]:
    """What of a command line changes the numbers; of paths the last part."""

    def short(text: str) -> str:
        key, sign, value = text.partition("=")
        if key == "set":
            value = " ".join(short(part) for part in value.split())
        return f"{key}={Path(value).name}" if value.startswith(("/", "~")) else key + sign + value

    return [short(a) for a in given if not a.startswith(("out=", "readme=", "resume=", "threads=", "device="))]


def _not_measured(sweep: Any) -> str:
    lines = [f"- {text}" for text in sweep.skipped]
    lines += [f"- failed: {name}: {why[:200]}" for name, why in list(sweep.failed.items())[:20]]
    more = len(sweep.failed) - 20
    lines += [f"- and {more} more failures (failures.jsonl)"] if more > 0 else []
    return "\n".join(["### Not measured", "", *lines, ""]) if lines else ""


def _items(sweep: Any) -> bytes:
    """Every measurement of every item: item, group, metric, value."""
    lines = [["item", "group", "metric", "value"]]
    for name in sorted(sweep.done):
        facts = sweep.done[name]
        for group in ("metrics", "about"):
            lines += [[name, group, key, value] for key, value in facts.get(group, {}).items()]
        errors = facts.get("errors", {})
        nested = errors if any(isinstance(v, dict) for v in errors.values()) else {"": errors}
        for row, of in nested.items():
            lines += [[name, f"mm {row}".strip(), region, value] for region, value in of.items()]
    return csv_bytes(lines)


def _charts(sweep: Any, tables: Mapping[str, Table]) -> dict[str, str]:
    """Draw them; {file: alternative text, which has the values}."""
    charts: dict[str, str] = {}

    def keep(file: str, title: str, picture: Any, values: str) -> None:
        write_png(sweep.folder.path / file, read_image(picture))
        charts[file] = f"{title}. {values}".replace("[", "(").replace("]", ")")

    def bars(file: str, title: str, axis: str, groups: Sequence[tuple[str, list[Bar]]], legend: tuple = ()) -> None:
        groups = [(heading, some) for heading, some in groups if some]
        if groups:
            told = [f"{heading}: " * bool(heading) + ", ".join(f"{bar.label} {bar.text}" for bar in some)
                    for heading, some in groups]  # fmt: skip
            keep(file, title, bar_chart(title, groups, f"{axis}; lines: 95 % intervals", legend), "; ".join(told))

    kinds = {kind: tables[f"shape_{kind}"] for kind in HEADS if f"shape_{kind}" in tables}
    compared = ("mean face", "full fit")
    groups = []
    for kind, table in kinds.items():
        rows = {name: next((row for row in table.rows if row.label.startswith(name)), None) for name in compared}
        groups.append((f"{HEADS[kind]}", [
            bar for region in REGIONS for k, name in enumerate(compared) if rows[name] is not None
            for bar in _bars([rows[name]], Metric(region, region), k, lambda row, r=region, n=name: f"{r}, {n}")
        ]))  # fmt: skip
    bars("shape.png", "Shape error by region", "mm", groups, compared)
    kind = next((kind for kind in ("realy", "ict", "synthetic") if kind in kinds), None)
    if kind is not None and (series := _cumulated(sweep, kind)):
        title = f"Shape error, {HEADS[kind]}: share of heads with at most so much"
        told = [f"{name}: half within {sorted(values)[(len(values) - 1) // 2]:.2f} mm, all within {max(values):.2f} mm"
                for name, values in series]  # fmt: skip
        keep("shape_cumulated.png", title, cumulative_chart(title, series, "mm, mean of four regions"), "; ".join(told))
    if "groups" in tables:
        for file, key, title, unit in (
            ("groups_photometric.png", "photometric", "Photometric error by group", "RGB difference x 1000"),
            ("groups_shape.png", "mean", "Shape error by group", "mm"),
        ):
            metric = next(metric for metric in GROUPED if metric.key == key)
            what = {}
            for row in tables["groups"].rows:
                what.setdefault(row.label.partition(": ")[0], []).append(row)
            bars(
                file, title, unit, [(name, _bars(rows, metric, 0, _with_count(metric))) for name, rows in what.items()]
            )
    if "tone" in tables:
        groups = [(row.label, [bar for name in TONE_GROUPS for bar in _bars([row], Metric(name, name, 1, 1), 0,
                   lambda row, name=name: f"{name}, n = {row.cells[name].count}")])
                  for row in tables["tone"].rows if not row.source]  # fmt: skip
        bars("tone.png", "Error of the skin tone by group", "ITA, degrees", groups)
    if "maps" in tables:
        metric = next(metric for metric in MAPS if metric.key == "bs_error")
        rows = tables["maps"].rows
        bars(
            "maps.png",
            "UV maps: BS Error over observed texels",
            "of 255",
            [("", _bars(rows, metric, 0, _with_count(metric)))],
        )
    if "sharpness" in tables:
        groups = [(f"{row.label}, n = {row.count}", [
            bar for metric in OCTAVES for bar in _bars([row], metric, 0, lambda _, metric=metric: metric.title)
        ]) for row in tables["sharpness"].rows]  # fmt: skip
        bars("sharpness.png", "Detail of UV maps beside the views that they are of", "of the view's", groups)
    if "albedo" in tables:
        found = _bars(tables["albedo"].rows, ALBEDO[0], 0, lambda row: f"{row.label}, n = {row.count}")
        bars("albedo.png", "Light left in final textures: BS Error over visible texels", "of 255", [("", found)])
    return charts


def _cumulated(sweep: Any, kind: str) -> list[tuple[str, list[float]]]:
    """Mean errors of all heads of a kind: of the mean face, the start and the full fit."""
    place = "realy" if kind == "realy" else f"shape/{kind}"
    starts = [facts["errors"] for _, facts in _named(sweep, f"{place}/[^/]+/starts")]
    found = {
        name: [_errors(errors[key])["mean"] for errors in starts if key in errors]
        for key, name in (("mean face", "mean face"), ("refined", "start"), ("landmarks", "start from landmarks"))
    }
    if found["start"]:
        del found["start from landmarks"]
    found["full fit"] = [_errors(facts["errors"])["mean"] for _, facts in _named(sweep, f"{place}/[^/]+/ours")]
    return [(name, values) for name, values in found.items() if values]


def _with_count(metric: Metric) -> Callable[[Row], str]:
    """Labels of bars with how many items are behind them."""
    return lambda row: f"{row.label.partition(': ')[2] or row.label}, n = {row.cells[metric.key].count}"


def _bars(rows: Sequence[Row], metric: Metric, series: int, label: Callable[[Row], str]) -> list[Bar]:
    """A bar for each of our rows that has the metric."""
    found = []
    for row in rows:
        cell = row.cells.get(metric.key)
        if cell is not None and not row.source and cell.value >= 0:
            low, high = (None if v is None else metric.scale * v for v in (cell.low, cell.high))
            value = metric.scale * cell.value
            found.append(Bar(label(row), value, low, high, series, f"{value:.{metric.digits}f}"))
    return found


def _into(path: Path, text: str, folder: Path, charts: Mapping[str, str]) -> None:
    """Replace what is between the marks of a Markdown file; charts go beside it, as evaluate_NAME."""
    content = path.read_text(encoding="utf-8")
    first, last = content.find(MARKS[0]), content.find(MARKS[1])
    if first < 0 or last < first:
        raise ConfigError(f"{path} has no lines {MARKS[0]} and {MARKS[1]}; add them where the tables shall stand.")
    for name in charts:
        write_bytes(path.with_name(f"evaluate_{name}"), (folder / name).read_bytes())
        text = text.replace(f"]({name})", f"](evaluate_{name})")
    whole = f"{content[:first]}{MARKS[0]}\n{text.rstrip()}\n{content[last:]}"
    write_bytes(path, whole.encode("utf-8", "backslashreplace"))
