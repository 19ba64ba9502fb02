"""The files of one head: what fit/reconstruct.py writes, of a photo or of a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL.Image import Image

from facerecon.export.bundle import why_no_viewer
from facerecon.export.mesh import save_glb, save_obj
from facerecon.export.report import ReportEntry, write_report
from facerecon.export.viewer import write_viewer
from facerecon.export.views import save_animation, turning_thumbnail
from facerecon.fitting import Fitter
from facerecon.imaging.files import read_image, write_bytes, write_png
from facerecon.run.thread_pool import beside_each_other
from facerecon.stylegan.load import DECODER_VERSIONS, is_decoder_file
from facerecon.types import Observation, ReconstructedFace, SavedFace

PAGES = ("viewer.html", "report.html")
"""Of a head's folder, the one to open first."""

EXPORTS = ("panel", "texture", "obj", "glb", "viewer", "report")


def saved_face(face: ReconstructedFace, names: Sequence[str], fitter: Fitter, config: Any) -> SavedFace:
    """What ``params.safetensors`` holds of a fit; ``names``: of the photos, one a row of ``face``."""
    decoder = str(Path(config.decoder).expanduser().absolute()) if is_decoder_file(config.decoder) else config.decoder
    return SavedFace(
        params=face.params,
        latent=face.latent,
        camera=face.camera,
        face_model=config.face_model,
        decoder=decoder,
        num_identity=fitter.model.num_identity,
        face_model_version=fitter.model.version,
        decoder_version=DECODER_VERSIONS.get(decoder, ""),
        path=tuple(names),
        face_model_path=str(Path(config.face_model_path).absolute()) if config.face_model_path else "",
    )


def write_head(
    folder: Path,
    head: ReconstructedFace,
    name: str,
    fitter: Fitter,
    config: Any,
    result: dict[str, Any],
    draw: Callable[[], Image],
    describe: Callable[[Image], ReportEntry],
    arguments: str,
    shown: tuple[ReconstructedFace, Observation],
    lead: str,
    **track: Any,
) -> None:
    """The files of one head that ``config.export`` names, each whole or not at all, none with a time or a date.

    Args:
        folder: where.
        head: of batch 1.
        name: of its photo or person.
        fitter: of the fit.
        config: of fit/reconstruct.py.
        result: metrics.json.
        draw: draws the panel.
        describe: panel -> its entry in the report.
        arguments: of the command in the report, besides fitting=.
        shown: the head as in the photo that the viewer shows, and that photo.
        lead: the viewer's line below the name.
        track: of :func:`~facerecon.export.save_glb`, along a video.
    """
    saved_face(head, [name], fitter, config).save(folder / "params.safetensors")
    viewer = {"glb", "viewer"} <= set(config.export) and not why_no_viewer()

    def write_models() -> None:
        if "glb" in config.export:
            save_glb(head, folder / "head.glb", eyes=config.eyes, **track)
        if viewer:
            write_viewer(folder / "viewer.html", folder / "head.glb", *shown, name=name, lead=lead)
        if "obj" in config.export:
            save_obj(head, folder, eyes=config.eyes)

    def write_pictures() -> Image | None:
        if "texture" in config.export:
            write_png(folder / "texture.png", head.texture)
            write_png(folder / "visibility.png", head.visibility)
        if {"glb", "viewer"} <= set(config.export):
            frames = turning_thumbnail(head)
            save_animation(folder / "turning.webp", frames, 12, quality=60)
            save_animation(folder / "still.webp", frames[:1], quality=60)
        if not {"panel", "report"} & set(config.export):
            return None
        picture = draw()
        write_png(folder / "panel.png", read_image(picture))
        return picture

    picture, _ = beside_each_other([write_pictures, write_models])
    links = {"turn, light and move the head": "viewer.html"} if viewer else {}
    if "report" in config.export:
        settings = OmegaConf.to_container(config, resolve=True)
        settings["stage1"] = "landmarks" if fitter.regressor is None else "regressor"
        for key in ("out", "resume", "logger"):  # what does not change the result
            settings.pop(key)
        entry = replace(describe(picture), files=links)
        write_report(
            folder / "report.html", entry, config=settings | {"parts": result["parts"]},
            command=f"python fit/reconstruct.py {arguments} fitting={config.fitting.preset}",
        )  # fmt: skip
    write_bytes(folder / "metrics.json", json.dumps(result, indent=2).encode())


def page_to_open(folder: Path, items: Sequence[str]) -> str:
    """The last line of a run: the page, or else the folder, that shows its results.

    Args:
        folder: of the run.
        items: folders of the heads in it.
    """
    heads = [folder / item for item in items if (folder / item).is_dir()]
    pages = [folder / "index.html"] if len(heads) != 1 else [heads[0] / name for name in PAGES]
    fallback = heads[0] if heads else folder
    return f"open: {next((page for page in pages if page.is_file()), fallback).resolve()}"
