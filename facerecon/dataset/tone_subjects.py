"""Sixty people of known albedo, ten of each of six groups of skin tone: what tones of fits are measured on.

They are named by their seeds in ``facerecon/data/tone_subjects.json``. What learns to read tones from pictures leaves
them out. Those of the shipped set are made from its manifest; seeds from ``FIRST_HELD_OUT`` on are normalized anew.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor
from tqdm import tqdm

from facerecon import assets
from facerecon.dataset.complete import CompleteSettings
from facerecon.dataset.engines import Item, Outcome
from facerecon.dataset.layout import face_layout
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import PipelineSettings, Search, UVPipeline
from facerecon.errors import InputError
from facerecon.imaging.files import read_image, write_bytes
from facerecon.modes import in_own_modes, kept
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import TONE_GROUPS, mean_log_color, skin_color, skin_tone
from facerecon.storage import read_array
from facerecon.types import HEAD_VERSIONS

__all__ = ["ToneSubjects", "held_out_tones", "load_tone_subjects"]

_SIZE = 512


@dataclass(frozen=True)
class ToneSubjects:
    """N people.

    Args:
        seeds: of the open generator, one a person.
        groups: of :data:`~facerecon.perception.skin_tone.TONE_GROUPS`, as chosen.
        maps: (N, 3, S, S) uint8, albedo.
        identity: (N, I), shapes of their heads, in standard deviations of makehuman's basis.
        ita: (N,) degrees, of the median color of plain skin.
        log_color: (N, 3), mean of the natural log of encoded RGB over plain skin.
    """

    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    maps: Tensor
    identity: Tensor
    ita: Tensor
    log_color: Tensor


def held_out_tones() -> dict[str, list[int]]:
    """{group of skin tone: seeds of its people}, dark to light; no map of theirs may be learned from for tones."""
    chosen = json.loads(assets.shipped("tone_subjects.json").read_text(encoding="utf-8"))
    return {name: [int(seed) for seed in chosen[name]] for name in TONE_GROUPS}


@in_own_modes
def load_tone_subjects(
    folder: str | os.PathLike | None = None, size: int = _SIZE, seeds: Sequence[int] | None = None
) -> ToneSubjects:
    """Their maps and tones; maps that are not there yet are made, 5 seconds each (a minute where it is searched).

    Args:
        folder: of the maps, ``NNNNNN.png`` at 512 texels, and shapes, ``NNNNNN.npy``; None: ``tone_subjects-VERSION``,
            VERSION of the head, in the cache of models.
        size: S, texels a side of what is returned, at most 512.
        seeds: only these; None: all.

    Raises:
        InputError: a seed that is none of theirs, or a map that cannot be made.
    """
    of = {seed: group for group, members in held_out_tones().items() for seed in members}
    chosen = list(of) if seeds is None else [int(seed) for seed in seeds]
    if unknown := [seed for seed in chosen if seed not in of]:
        raise InputError(f"seed {unknown[0]} is no person of tone_subjects.json.")
    where = assets.home() / f"tone_subjects-{HEAD_VERSIONS['makehuman']}" if folder is None else Path(folder)
    missing = [seed for seed in chosen if not (where / f"{seed:06d}.png").is_file()]
    for seed in tqdm(missing, unit="map", desc="people of known tone", disable=None if missing else True):
        _make(where, seed)
    maps = torch.stack([read_image(where / f"{seed:06d}.png") for seed in chosen])
    identity = torch.stack([torch.from_numpy(read_array(where / f"{seed:06d}.npy")).float() for seed in chosen])
    plain = face_layout(load_face_model("makehuman"), maps.shape[-1]).plain
    ita, logs = skin_tone(skin_color(maps, plain)), mean_log_color(maps, plain)
    if size != maps.shape[-1]:
        maps = F.interpolate(maps, (size, size), mode="area")
    maps = (maps * 255).round().to(torch.uint8)
    return ToneSubjects(tuple(chosen), tuple(of[seed] for seed in chosen), maps, identity, ita, logs)


@kept()
def _pipeline() -> UVPipeline:
    return UVPipeline(
        PipelineSettings(size=_SIZE, check=False, complete=CompleteSettings(tone="off"))
    )  # as photographed


@kept()
def _views() -> dict[int, tuple[Tensor, Tensor]]:
    """{seed: codes of the source and of its views} of the shipped set."""
    path = assets.shipped("open_uv_manifest.safetensors")
    return {seed: (tensors["source"], tensors["views"]) for _, seed, tensors, _ in Manifest.load(path).items()}


def _make(folder: Path, seed: int) -> None:
    """Write a map and a shape; the map, written last, says that both are whole."""
    item, pipeline = Item(seed, seed=seed), _pipeline()
    if seed in _views():
        search, outcome = Search(*_views()[seed], made=False), Outcome(item.name, item.origin)
        with torch.no_grad():
            search.images = pipeline.generate(search.views)
            pipeline.make_map(item, search, outcome, {})
    else:
        outcome = pipeline(item)
    if outcome.error:
        raise InputError(f"the map of seed {seed} cannot be made: {outcome.error}")
    shape, buffer = load(outcome.files[f"fit/{item.name}.safetensors"])["identity"], io.BytesIO()
    np.save(buffer, shape.numpy())
    write_bytes(folder / f"{item.name}.npy", buffer.getvalue())
    write_bytes(folder / f"{item.name}.png", outcome.files[f"uv-maps/{item.name}.png"])
