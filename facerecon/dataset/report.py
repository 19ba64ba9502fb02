"""A set's papers: what is in it, what was refused and why, pages to look at, and the manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from facerecon.assets import PACKAGES
from facerecon.dataset.filters import reason_counts
from facerecon.dataset.manifest import Manifest
from facerecon.evaluation.texture import identity_std_ratio
from facerecon.export.report import IndexEntry, library_version, write_index
from facerecon.imaging.files import contact_sheet, read_image, write_bytes, write_jpg
from facerecon.run.metrics import plain
from facerecon.storage import read_safetensors
from facerecon.types import HEAD_VERSIONS

__all__ = ["summarize", "write_overview"]

SHEET = 24  # maps on the contact sheet, taken at random with a fixed seed
_MEANS = (
    "bs_error", "bs_error_map", "observed", "evenness", "source_evenness", "happy", "source_happy", "opening",
    "front_yaw", "front_pitch", "left_yaw", "right_yaw", "identity", "identity_map", "inversion",
    "sharpness", "coherence",
)  # fmt: skip


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, reasons and means of a run.

    Args:
        rows: of metrics.jsonl, one a subject.

    Returns:
        subjects, accepted, refused_by {reason: subjects}, mean {figure: over accepted maps}, seconds {step: mean over
        subjects that took it} and seconds_a_subject.
    """
    accepted = [row for row in rows if row["accepted"]]
    means = {}
    for name in _MEANS:
        values = [row["figures"][name] for row in accepted if isinstance(row["figures"].get(name), int | float)]
        if values:
            means[name] = round(sum(values) / len(values), 4)
    steps: dict[str, list[float]] = {}
    for row in rows:
        for step, seconds in row.get("seconds", {}).items():
            steps.setdefault(step, []).append(seconds)
    total = sum(sum(values) for values in steps.values())
    return {
        "subjects": len(rows),
        "accepted": len(accepted),
        "refused_by": reason_counts(row["reasons"] for row in rows if row["reasons"]),
        "mean": means,
        "seconds": {step: round(sum(values) / len(values), 2) for step, values in steps.items()},
        "seconds_a_subject": round(total / max(len(rows), 1), 2),
    }


def write_overview(
    folder: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    failures: Mapping[str, str],
    settings: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Write manifest.safetensors, manifest.jsonl, meta-info.json, summary.json, sheet.jpg, index.html and refused.html;
    returns the summary.

    Args:
        folder: of the set.
        rows: of metrics.jsonl in the set's order.
        failures: {item: why}.
        settings: of the pipeline.
        command: that makes the set.
    """
    folder = Path(folder)
    accepted = [row for row in rows if row["accepted"] and (folder / "uv-maps" / f"{row['item']}.png").is_file()]
    summary = summarize(rows)
    if accepted:
        manifest = _manifest(folder, accepted, settings)
        manifest.save(folder / "manifest.safetensors")
        if len(manifest) > 1 and {"descriptor_source", "descriptor_map"} <= set(manifest.tensors):
            source = manifest.tensors["descriptor_source"]
            for name in ("front", "map"):
                ratio = identity_std_ratio(manifest.tensors[f"descriptor_{name}"], source)
                summary["mean"][f"identity_std_{name}"] = round(float(ratio), 4)
        _write_sheet(folder, accepted)
    # no seconds here: what a run took does not belong to the set, which is the same whoever made it
    lines = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    write_bytes(folder / "manifest.jsonl", "".join(json.dumps(plain(line)) + "\n" for line in lines).encode())
    write_bytes(folder / "meta-info.json", (json.dumps(plain(_meta(accepted)), indent=1) + "\n").encode())
    write_bytes(folder / "summary.json", (json.dumps(plain(summary), indent=2) + "\n").encode())
    entries = [
        IndexEntry(row["item"], f"thumbs/{row['item']}.jpg", f"uv-maps/{row['item']}.png", _facts(row["figures"]))
        for row in accepted
    ]
    title = "Normalized UV textures"
    write_index(folder / "index.html", entries, dict(failures), title=title, command=command, done="accepted")
    refused = [
        IndexEntry(row["item"], f"refused/{row['item']}.jpg", None, dict(enumerate(row["reasons"], 1)))
        for row in rows
        if row["reasons"] and (folder / "refused" / f"{row['item']}.jpg").is_file()
    ]  # fmt: skip
    write_index(folder / "refused.html", refused, {}, title="Refused subjects", command=command, done="refused")
    return summary


def _manifest(folder: Path, accepted: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Manifest:
    items = []
    for row in accepted:
        tensors, _ = read_safetensors(folder / "fit" / f"{row['item']}.safetensors", "a fit", "make the map again")
        seed = row["origin"].removeprefix("seed ")
        items.append((int(row["item"]), int(seed) if seed.isdigit() else None, tensors, row["figures"]))
    packages = sorted(package.label for package in PACKAGES.values())
    facts = {"facerecon": library_version(), "packages": packages, "settings": settings}
    facts["head_version"] = HEAD_VERSIONS.get(str(settings.get("face_model")), "")
    return Manifest.collect(items, facts)


def _meta(accepted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As the released set's file: attributes of each face; where it came from instead of an index into FFHQ."""
    return {
        row["item"]: {
            "gender": "male" if row["figures"].get("male", 0) > 0.5 else "female",
            "age": round(row["figures"].get("age", float("nan")), 1),
            "skin_tone_ita": row["figures"].get("skin_tone"),
            "origin": row["origin"],
        }
        for row in accepted
    }


def _facts(figures: Mapping[str, Any]) -> dict[str, Any]:
    labels = {"bs_error": "BS Error", "source_evenness": "light before", "evenness": "after"}
    names = ("bs_error", "observed", "source_evenness", "evenness", "identity")
    return {labels.get(name, name): round(figures[name], 2) for name in names if name in figures}


def _write_sheet(folder: Path, accepted: Sequence[Mapping[str, Any]]) -> None:
    """24 maps, not chosen: a random draw with a fixed seed."""
    order = torch.randperm(len(accepted), generator=torch.Generator().manual_seed(0))[:SHEET].tolist()
    names = [accepted[i]["item"] for i in sorted(order)]
    maps = [read_image(folder / "uv-maps" / f"{name}.png") for name in names]
    write_jpg(folder / "sheet.jpg", contact_sheet(maps, 6, size=320))
