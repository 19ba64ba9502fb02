"""The part of fit/evaluate.py on albedo: skin tones of heads and pictures, light left in textures, seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

from facerecon.dataset import face_layout
from facerecon.dataset.sampling import held_out_faces
from facerecon.dataset.tone_subjects import held_out_tones, load_tone_subjects
from facerecon.errors import ConfigError
from facerecon.evaluation import brightness_symmetry_error, fine_detail, seam_contrast, texture_errors
from facerecon.evaluation.fair import FairFolder
from facerecon.geometry.lighting import shade
from facerecon.imaging.masks import dilate
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import skin_color, skin_tone
from facerecon.run.directory import file_digest
from facerecon.run.signals import check_stop
from facerecon.synthetic.exposure import exposed, random_exposure
from facerecon.synthetic.scene import Draws
from facerecon.synthetic.toned_heads import TonedHeads

PORTRAITS = 10  # generated ones, at most


def albedo_metrics(model: Any, face: Any) -> dict[str, float]:
    """Of the final texture of one face.

    Returns:
        ita: of the median color of plain skin, degrees. bs_visible: BS Error over the visible texels. seam: contrast of
        the border of the visible texels. fine_detail: of the visible texels. side: how many times brighter the one side
        of the face is lit than the other, on encoded values. Only ``side`` of a head without the regions for the rest.
    """
    normals = torch.tensor([[[-math.sin(1.0), 0.0, math.cos(1.0)], [math.sin(1.0), 0.0, math.cos(1.0)]]])
    lit = shade(normals, face.params.light.to("cpu")).mean(-1).clamp(min=0.01)
    metrics = {"side": (lit.amax() / lit.amin()).item()}
    texture, visible = face.texture.cpu(), face.visibility.cpu()
    try:
        layout = face_layout(model, texture.shape[-1])
    except ConfigError:
        return metrics
    names = ("skin", "face", "plain", "around_eyes", "lips", "ears")
    skin, of_face, plain, around_eyes, lips, ears = (getattr(layout, name).cpu() for name in names)
    edges = torch.maximum(torch.maximum(around_eyes, dilate(lips, layout.unit)), ears)
    visible_skin = (visible > 0.5).float() * of_face
    return metrics | {
        "ita": skin_tone(skin_color(texture, plain)).item(),
        "bs_visible": brightness_symmetry_error(texture, visible_skin).item(),
        "seam": seam_contrast(texture, visible, skin * (1 - edges)).ratio.item(),
        "fine_detail": fine_detail(texture, visible_skin).item(),
    }


def measure_tones(sweep: Any) -> None:
    """Rendered heads of known albedo, then generated portraits as several cameras would have taken them."""
    _measure_heads(sweep)
    for seed, image in held_out_faces(min(sweep.faces, PORTRAITS)):
        for number in range(sweep.pictures + 1):
            work = partial(_fitted, sweep, partial(_portrait, sweep, image, seed, number), {"person": seed})
            sweep.item(f"tone/portrait/{seed}/{number}", _settings(sweep, seed, number), work)


def _settings(sweep: Any, *what: Any) -> list:
    return ["tone", *what, sweep.seed, sweep.fit_config(sweep.tone_preset, sweep.decoders["ours"])[1]]


def _measure_heads(sweep: Any) -> None:
    if sweep.model.topology.name != "makehuman":
        told = f"the maps of known albedo are makehuman's; the fits are of {sweep.model.name}."
        sweep.skipped.append(f"Skin tones of rendered heads were not measured: {told}")
        return
    people = [seed for row in zip(*held_out_tones().values(), strict=True) for seed in row]  # a group after the other
    chosen = people[: sweep.tones]

    @cache
    def heads() -> TonedHeads:
        subjects, model = load_tone_subjects(seeds=chosen), load_face_model("makehuman")
        plain = face_layout(model, subjects.maps.shape[-1]).plain
        return TonedHeads(model, subjects.maps, plain, subjects.identity, sweep.seed)

    for picture in range(sweep.pictures):
        for row, seed in enumerate(chosen):
            drawn = cache(partial(_drawn, heads, picture * len(people) + row, row))
            for kind in ("head", "told") if picture == 0 else ("head",):
                work = partial(_fitted_head, sweep, drawn, kind == "told", seed)
                sweep.item(f"tone/{kind}/{seed}/{picture}", _settings(sweep, kind, seed, picture), work)


def _drawn(heads: Callable[[], TonedHeads], number: int, row: int) -> Any:
    return heads()([number], [row])


def _fitted_head(sweep: Any, drawn: Callable[[], Any], told: bool, seed: int) -> dict[str, Any]:
    """Facts of the fit of one rendered portrait; of ``told`` ones exposure and white balance are taken off first."""
    batch = drawn()
    about = {"person": seed, "tone": batch.ita.item(), "exposure": batch.exposure.item()}
    return _fitted(sweep, lambda: (batch.undone if told else batch.image)[0], about, batch.texture)


def _portrait(sweep: Any, image: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """A generated face as it is (0), or as another camera would have taken it."""
    if number == 0:
        return image
    draws = Draws(sweep.seed, [number], f"portrait {seed}")
    exposure, balance = random_exposure(draws)
    return exposed(image[None], exposure, balance, 0.8 * 1.5625 ** draws.uniform())[0]


def _fitted(
    sweep: Any, picture: Callable[[], Any], about: dict[str, Any], truth: torch.Tensor | None = None
) -> dict[str, Any]:
    """Facts of the fit of one picture; its error of the texture where the true one is given."""
    face = sweep.fitter(sweep.tone_preset, sweep.decoders["ours"])(
        sweep.observed(picture()), callback=lambda _: check_stop()
    ).face
    metrics = albedo_metrics(sweep.model, face)
    if truth is not None:
        size = face.texture.shape[-1]
        where = (face.visibility.cpu() > 0.5).float() * face_layout(sweep.model, size).face.cpu()
        truth = torch.nn.functional.interpolate(truth, (size, size), mode="bilinear")
        metrics |= {key: value.item() for key, value in texture_errors(face.texture.cpu(), truth, where).items()}
    rounded = {key: round(float(value), 5) for key, value in metrics.items() if math.isfinite(value)}
    return {"metrics": rounded, "about": {key: round(value, 4) for key, value in about.items()}}


def measure_fair(sweep: Any) -> None:
    """The FAIR benchmark, as :mod:`facerecon.evaluation.fair` reads it."""
    pictures = dict(_some(FairFolder(sweep.config.fair_dir).pictures, None if sweep.config.full else sweep.tones))
    for name, picture in pictures.items():
        content = [file_digest(path) for path in (picture.path, picture.albedo, picture.skin) if path]

        def fitted(picture: Any = picture) -> dict[str, Any]:
            return _fitted(sweep, lambda: picture.path, {"tone": picture.truth()})

        sweep.item(f"fair/{name}", _settings(sweep, *content, picture.ita), fitted)


def _some(pictures: dict[str, Any], count: int | None) -> Iterator[tuple[str, Any]]:
    """So many of them, evenly over the table."""
    items = list(pictures.items())
    count = len(items) if count is None else min(count, len(items))
    return (items[i * len(items) // count] for i in range(count))
