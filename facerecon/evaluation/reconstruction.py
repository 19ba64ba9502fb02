"""How well a fitted head explains its photo: photometric error, CSIM, landmarks (Sec. 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import losses
from facerecon.evaluation.texture import brightness_symmetry_error, evenly_lit
from facerecon.fitting import FitResult, Fitter, RegressorStart, fit_landmarks, start_from_regressor
from facerecon.geometry.camera import project
from facerecon.morphable import MorphableModel
from facerecon.perception import load_identity
from facerecon.render import Renderer
from facerecon.types import FaceParams, Observation, ReconstructedFace

__all__ = [
    "fit_metrics",
    "identity_vectors",
    "lpips_metrics",
    "reconstruction_metrics",
    "stage1_heads",
    "stage_metrics",
]


@torch.no_grad()
def reconstruction_metrics(
    photo: Observation,
    params: FaceParams,
    texture: Tensor,
    model: MorphableModel,
    renderer: Renderer,
    eval_identity: nn.Module | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Metrics of B faces, none of which is what was optimized.

    Args:
        photo: observed faces.
        params, texture: the head.
        model, renderer: what draws it.
        eval_identity: the 1024-d network that is never optimized; CSIM is left out without it.

    Returns:
        ``{"photometric": (B,), "identity": (B,), "nme": (B,)}`` and the composite (B, 3, 224, 224).
        photometric: mean absolute RGB difference over the face mask, [0, 1].
        identity: CSIM, cosine of ``eval_identity``'s embeddings of the composite and the photo.
        nme: error of the 68 landmarks over the inter-ocular distance.
    """
    camera, vertices = photo.camera, model(params)
    if texture.shape[-1] > 512:
        texture = F.interpolate(texture, size=(512, 512), mode="bilinear", antialias=True)
    view = renderer.prepare(vertices, model.topology, camera, params.light, face_region="face")
    render = view.shade(texture).surface.clamp(0, 1)
    mask = view.rendering.mask * photo.face_mask
    image = losses.composite(render, mask, photo.image)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    metrics = {
        "photometric": losses.masked_mean_error(render, photo.image, mask),
        "nme": losses.normalized_mean_error(points, photo.landmarks68),
    }
    if eval_identity is not None:
        metrics["identity"] = losses.identity_similarity(eval_identity(image, photo.landmarks68), photo.eval_identity)
    return metrics, image


@torch.no_grad()
def lpips_metrics(
    images: Mapping[str, Tensor], photo: Tensor, distances: Sequence[losses.LPIPSDistance]
) -> dict[str, dict[str, list[float]]]:
    """LPIPS of composites and the photo, one face after the other so that memory stays small.

    Args:
        images: {stage: (B, 3, H, W)} in [0, 1], of :func:`reconstruction_metrics`.
        photo: (B, 3, H, W) in [0, 1].
        distances: which LPIPS; :func:`facerecon.losses.eval_lpips` names the one that a fit did not optimize.

    Returns:
        {stage: {name of the distance: B values}}.
    """
    found: dict[str, dict[str, list[float]]] = {stage: {} for stage in images}
    for distance in distances:
        for i in range(len(photo)):
            target = distance.prepare(photo[i : i + 1])
            for stage, image in images.items():
                found[stage].setdefault(distance.name, []).append(distance(image[i : i + 1], target).item())
    return found


def stage_metrics(
    fitter: Fitter, photo: Observation, result: FitResult, eval_identity: nn.Module | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """{stage: {metric: value}} of one fitted face, and {stage: composite (1, 3, 224, 224)}.

    Stages before the detail have the decoder's texture. Metrics are those of :func:`reconstruction_metrics`.

    Args:
        fitter: of the fit.
        photo: of one face.
        result: what the fit returned.
        eval_identity: CSIM is left out without it.
    """
    metrics, images = {}, {}
    for name, (params, texture) in result.heads(fitter.decoder).items():
        values, images[name] = reconstruction_metrics(
            photo, params, texture, fitter.model, fitter.renderer, eval_identity
        )
        metrics[name] = {key: value.item() for key, value in values.items()}
    return metrics, images


def fit_metrics(
    fitter: Fitter,
    photo: Observation,
    result: FitResult,
    eval_identity: nn.Module | None = None,
    distances: Sequence[losses.LPIPSDistance] = (),
) -> dict[str, float]:
    """Metrics of one fit: of the decoder's texture, and ``*_final`` with the photo's own texels (detail).

    Those of :func:`reconstruction_metrics`, :func:`lpips_metrics`, and "bs", the BS Error of the texture.

    Args:
        fitter: of the fit.
        photo: of one face.
        result: what the fit returned.
        eval_identity: CSIM is left out without it.
        distances: each LPIPS to measure.
    """
    stages, images = stage_metrics(fitter, photo, result, eval_identity)
    last = next(name for name in reversed(stages) if name != "detail")
    end = list(stages)[-1]
    for name, values in lpips_metrics({name: images[name] for name in (last, end)}, photo.image, distances).items():
        stages[name] |= {key: value for key, (value,) in values.items()}
    final = stages[end]
    with torch.no_grad():
        bs = [brightness_symmetry_error(texture).item() for texture in (result.face.decoded, result.face.texture)]
    final = {f"{key}_final": value for key, value in final.items()}
    return stages[last] | final | {"bs": bs[0], "bs_final": bs[1]}


@torch.no_grad()
def identity_vectors(model: MorphableModel, photo: Observation, face: ReconstructedFace) -> dict[str, Tensor]:
    """{"photo", "render": (128,)}: descriptors of a photo, and of the fitted head, neutral, under even light.

    Args:
        model: of the fit.
        photo: of one face.
        face: what the fit returned.
    """
    still = {name: torch.zeros_like(getattr(face.params, name)) for name in ("expression", "rotation", "translation")}
    identity = load_identity().to(photo.image.device)
    return {
        "photo": identity(photo.image, photo.landmarks68)[0],
        "render": identity(*evenly_lit(model, face.params.replace(**still), face.decoded))[0],
    }


def stage1_heads(
    fitter: Fitter, photo: Observation, limits: RegressorStart | None = None
) -> tuple[dict[str, FaceParams], str | None]:
    """Every way to begin a fit of one face.

    Args:
        fitter: whose head model, regressor and settings are used.
        photo: of one face.
        limits: where the regressor is used; the fitter's if left out.

    Returns:
        {"landmarks", and with a regressor "regressor" and "refined" (on landmarks)}, and why the regressor was not used
        for this face, if so: all are the landmarks' then.
    """
    points = (photo.landmarks68, photo.camera, photo.mesh468)
    heads = {"landmarks": fit_landmarks(fitter.model, *points, fitter.start, scores=photo.expression_scores)}
    reasons: dict[int, str] = {}
    if fitter.regressor is not None:
        for name, start in (("regressor", replace(fitter.start, refine=0)), ("refined", fitter.start)):
            heads[name], _, reasons, _ = start_from_regressor(
                fitter.model, fitter.regressor, photo, photo.camera, start, limits or fitter.regressor_start
            )
    return heads, reasons.get(0)
