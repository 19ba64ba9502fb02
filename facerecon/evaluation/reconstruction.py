"""How well a fitted head explains its photo: photometric error, judged identity, landmarks (Sec. 4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import losses
from facerecon.fitting import Fitter
from facerecon.geometry.camera import project
from facerecon.morphable import MorphableModel
from facerecon.render import Renderer
from facerecon.types import Camera, FaceParams, Observation, ReconstructedFace

__all__ = ["reconstruction_metrics", "stage_figures"]


@torch.no_grad()
def reconstruction_metrics(
    photo: Observation,
    params: FaceParams,
    texture: Tensor,
    model: MorphableModel,
    renderer: Renderer,
    judge: nn.Module | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Figures of B faces, none of which is what was optimized.

    Args:
        photo: observed faces.
        params, texture: the head.
        model, renderer: what draws it.
        judge: the 1024-d network that is never optimized; its cosine is left out without it.

    Returns:
        ``{"photometric": (B,), "identity": (B,), "nme": (B,)}`` and the composite (B, 3, 224, 224).
        photometric: mean absolute RGB difference over the face mask, [0, 1]. identity: cosine of the judge's
        embeddings of the composite and the photo. nme: 68 landmarks over the inter-ocular distance.
    """
    camera = Camera.deep3d(photo.image.shape[-1], photo.batch, photo.image.device)
    vertices = model(params)
    if texture.shape[-1] > 512:
        texture = F.interpolate(texture, size=(512, 512), mode="bilinear", antialias=True)
    view = renderer.prepare(vertices, model.topology, camera, params.light, face_region="face")
    render = view.shade(texture).surface.clamp(0, 1)
    mask = view.rendering.mask * photo.face_mask
    image = losses.composite(render, mask, photo.image)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    figures = {
        "photometric": losses.masked_mean_error(render, photo.image, mask),
        "nme": losses.normalized_mean_error(points, photo.landmarks68),
    }
    if judge is not None:
        figures["identity"] = losses.identity_similarity(judge(image, photo.landmarks68), photo.judge)
    return figures, image


def stage_figures(
    fitter: Fitter, photo: Observation, face: ReconstructedFace, judge: nn.Module | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """{stage: {figure: value}} of the one face just fitted, and {stage: composite (1, 3, 224, 224)}.

    Stages before the detail have the decoder's texture. Figures are those of :func:`reconstruction_metrics`.

    Args:
        fitter: right after the fit.
        photo: of one face.
        face: what the fit returned.
        judge: its cosine is left out without it.
    """
    stages = {
        name: (params, fitter.decoder(latent).detach().clamp(0, 1))
        for name, (params, latent) in fitter.stage_params.items()
    }
    if fitter.detail.enabled:
        stages["detail"] = (face.params, face.texture)
    figures, images = {}, {}
    for name, (params, texture) in stages.items():
        values, images[name] = reconstruction_metrics(photo, params, texture, fitter.model, fitter.renderer, judge)
        figures[name] = {key: value.item() for key, value in values.items()}
    return figures, images
