"""Subjects of a set by their position: faces of a generator, photos, or entries of a manifest; and their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from facerecon import assets
from facerecon.dataset.engines import Item
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import Search
from facerecon.dataset.sampling import draw_seeds
from facerecon.imaging.files import list_images
from facerecon.stylegan.load import load_face_generator

__all__ = ["files_of", "generated_subjects", "manifest_subjects", "photo_subjects", "source_digest"]

Subjects = tuple[Callable[[int], Item], int | None]
"""A function from a position to a subject, and how many there are (None: without end)."""


def generated_subjects(
    generator: str, first_seed: int, truncation: float, dark_share: float | None, seed: int
) -> Subjects:
    """Faces of a generator, to be asked for at 0, 1, 2, ...; see :func:`facerecon.dataset.draw_seeds`."""
    seeds = draw_seeds(load_face_generator(generator), first_seed, truncation, dark_share, seed)

    def draw(position: int) -> Item:
        number = next(seeds)
        return Item(number, seed=number)

    return draw, None


def photo_subjects(folder: str) -> Subjects:
    """The photos of a folder or pattern."""
    paths = list_images(folder)
    return lambda i: Item(i, path=str(paths[i])), len(paths)


def manifest_subjects(path: str, count: int | None = None) -> Subjects:
    """The first entries of a manifest, whose search is done; "open" is the shipped one."""
    path = assets.shipped("open_uv_manifest.safetensors") if path == "open" else path
    rows = list(Manifest.load(path).items())[:count]

    def make(i: int) -> Item:
        number, seed, tensors, figures = rows[i]
        descriptors = {k[11:]: v for k, v in tensors.items() if k.startswith("descriptor_")}
        known = {k: v for k, v in figures.items() if v == v}
        search = Search(tensors["source"], tensors["views"], figures=known, descriptors=descriptors)
        return Item(number, seed=seed, search=search.to_bytes())

    return make, len(rows)


def source_digest(item: Item) -> str:
    """Digest of the photo, or of the manifest's entry; "" for a seed, which is its number."""
    if item.path is None and item.search is None:
        return ""
    try:
        content = Path(item.path).read_bytes() if item.search is None else item.search
    except OSError:
        content = b""  # the worker's error tells what is wrong with it
    return hashlib.sha256(content).hexdigest()[:12]


def files_of(folder: Path, name: str) -> list[Path]:
    """Every file of a subject that is there."""
    parts = ("uv-maps", "observed", "face-latents", "fit", "search", "views", "refused", "thumbs")
    return [path for part in parts for path in folder.glob(f"{part}/{name}.*")]
