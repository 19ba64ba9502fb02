"""The losses of stages 2 and 3 (Eqs. 4 and 5): what every step compares with, and all terms of one step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import losses
from facerecon.fitting.expression_scores import ScoredExpressions, read_scores
from facerecon.fitting.initialize import LandmarkStart, ShapePrior, shape_prior
from facerecon.fitting.stage import Stage
from facerecon.fitting.tone import toned
from facerecon.geometry.camera import project
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel
from facerecon.render import FusedView, PreparedView, Renderer
from facerecon.run.thread_pool import beside_each_other
from facerecon.settings import check_keys
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import Camera, FaceParams, Latent, Observation

__all__ = ["Objective"]

_PRIORS = {"radius": losses.radius_loss, "geocross": losses.geocross_loss, "gaussian": losses.gaussian_loss}
_KNOWN = {
    "photometric": (("l1", "l2"), "photometric norm"),
    "landmark_weighting": (("noise", "facing", "release", "uniform"), "landmark weighting"),
    "identity_alignment": (("own", "photo"), "identity alignment"),
    "shape_prior": (("start", "mean"), "shape prior"),
    "latent_prior": (_PRIORS, "latent prior"),
}


@dataclass(frozen=True)
class Objective:
    """The terms of Eqs. 4 and 5 as functions of parameters and latent.

    Args:
        model: head model.
        decoder: texture decoder.
        renderer: at the size of the fit crop.
        identity: identity network of the term ``id``.
        perceptual: distance of the term ``lpips``; None where no stage has it.
        photometric, landmark_weighting, latent_prior, shape_prior, identity_alignment: as of
            :class:`~facerecon.fitting.Fitter`.

    Raises:
        ConfigError: an unknown name; the nearest known one is given.
    """

    model: MorphableModel
    decoder: TextureDecoder
    renderer: Renderer
    identity: torch.nn.Module
    perceptual: torch.nn.Module | None
    photometric: str
    landmark_weighting: str
    latent_prior: str
    shape_prior: str
    identity_alignment: str

    def __post_init__(self) -> None:
        for name, (known, kind) in _KNOWN.items():
            check_keys([getattr(self, name)], known, kind)

    @cached_property
    @in_own_modes
    def face(self) -> MorphableModel:
        """What the steps of a stage pose and draw of the head."""
        return self.model.cropped("face")

    def prepare(self, params: FaceParams, camera: Camera) -> tuple[PreparedView | FusedView, Tensor]:
        """A view that stays fixed, and its posed vertices."""
        with torch.no_grad():
            vertices = self.model(params)
            view = self.renderer.prepare(vertices, self.model.topology, camera, params.light, face_region="face")
        return view.detach(), vertices

    def albedo(self, params: FaceParams, latent: Latent, size: int | None = None) -> Tensor:
        """(B, 3, S, S): the decoder's texture in the tone of ``params``; ``size``: of a coarser one."""
        return toned(self.decoder(latent, size), params.tone, self.model.topology)

    def targets(
        self, photo: Observation, stage: Stage, start: FaceParams, prior: ShapePrior | None = None
    ) -> dict[str, Any]:
        """What every step of a stage compares with: {term: target}, and "below", (B, 1, H, W), for silhouettes.

        Args:
            photo: B observed faces.
            stage: its weights name the terms.
            start: what stage 1 found.
            prior: what it held the shape to; None: ``start``, with standard deviations of 1.
        """
        if prior is None:
            usual = shape_prior(self.model, LandmarkStart(), batch=len(start.identity))
            one, other = torch.ones_like(start.identity), torch.ones_like(start.expression)
            prior = ShapePrior(start.identity, start.expression, one, other, usual.landmark_noise)
        if self.landmark_weighting == "noise":
            targets: dict[str, Any] = {"lm": prior.landmark_noise**-2}
        else:
            targets = {"lm": losses.landmark_weights(self.landmark_weighting).to(photo.image.device)}
        if self.landmark_weighting in ("noise", "facing"):
            points = self.model.landmarks3d(self.model.mean[None])[0]
            facing = losses.facing_weights(points, start.rotation)
            targets["lm"] = targets["lm"] * F.pad(facing, (0, targets["lm"].shape[-1] - 68), value=1.0)
        if self.shape_prior == "start":
            targets["reg_id"] = prior.identity, prior.identity_deviation
            targets["reg_exp"] = prior.expression, prior.expression_deviation
        if "exp_scores" in stage.weights and photo.expression_scores is not None:
            targets["exp_scores"] = read_scores(self.model.expression_names, photo.expression_scores)
        if "lpips" in stage.weights:
            targets["lpips"] = self.perceptual.prepare(photo.image, photo.landmarks68)
        if "id" in stage.weights:
            with torch.no_grad():
                targets["id"] = self.identity(photo.image, photo.landmarks68)
        if "silhouette" in stage.weights:
            # Above the eyes hair hides the outline, and a bald head has none where the face region ends.
            rows = torch.arange(photo.image.shape[-2], device=photo.image.device).view(1, 1, -1, 1)
            eyes = photo.landmarks68[:, 36:48, 1].mean(1).view(-1, 1, 1, 1)
            targets["below"] = (rows > eyes).to(photo.image) * photo.fit.valid
        return targets

    def terms(
        self,
        stage: Stage,
        photo: Observation,
        params: FaceParams,
        latent: Latent,
        targets: dict[str, Any],
        view: PreparedView | FusedView | None = None,
        texture: Tensor | None = None,
        skipped: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All terms of a stage at the present variables, {term: (B,)}, unweighted, and the composite (B, 3, H, W).

        Args:
            stage: its weights name the terms.
            photo: B observed faces.
            params, latent: the variables.
            targets: of :meth:`targets`.
            view: of :meth:`prepare`, where only the texture moves.
            texture: (B, 3, S, S) of :meth:`albedo`; computed if left out.
            skipped: of "lpips" and "id", what is not computed.
        """
        if texture is None:
            texture = self.albedo(params, latent)
        if view is None:
            camera, vertices = photo.camera, self.face(params)
            points = self.face.landmarks3d(vertices, camera)
            view = self.renderer.prepare(vertices, self.face.topology, camera, params.light, "face", points)
            landmarks = view.rendering.landmarks
        else:
            vertices, landmarks = None, photo.landmarks68
        # The silhouette term alone moves the outer outline: the photo is what lies beyond it, so no image loss could
        # ever ask for more face. Silhouettes within the face (nose before cheek) move with the image losses.
        render, mask, weights = view.shade(texture).surface, view.rendering.mask, stage.weights
        face = mask * photo.face_mask
        image = losses.composite(render, face, photo.image)
        terms = self._network_terms(stage, photo, image, landmarks, targets, skipped)
        on_w = self.latent_prior == "geocross"  # which is defined on w; the radius on the code
        losses_of = {
            "pix": lambda: losses.pixel_loss(render, photo.image, face.detach(), self.photometric),
            "reg_z": lambda: _PRIORS[self.latent_prior](self.decoder.to_w(latent.codes) if on_w else latent.codes),
            "lm": lambda: self._landmarks_loss(photo, vertices, landmarks, targets["lm"]),
            "silhouette": lambda: losses.silhouette_loss(mask, photo.face_mask, targets["below"]),
            "reg_id": lambda: _prior_loss(params.identity, targets.get("reg_id")),
            "reg_exp": lambda: _prior_loss(params.expression, targets.get("reg_exp")),
            "exp_scores": lambda: _scores_loss(params.expression, targets.get("exp_scores")),
            "light": lambda: losses.light_color_loss(_without_cast(params)),
        }
        return terms | {name: loss() for name, loss in losses_of.items() if name in weights}, image

    def _landmarks_loss(
        self, photo: Observation, vertices: Tensor | None, landmarks: Tensor, weights: Tensor
    ) -> Tensor:
        """(B,): mean of the weighted squared errors of the 68 ``landmarks``; by ``noise`` their sum, over it, with the
        face-mesh points of the ``vertices`` of :attr:`face`."""
        target = photo.landmarks68
        if self.landmark_weighting != "noise":
            return losses.landmark_loss(landmarks, target, weights)
        if vertices is not None and weights.shape[-1] > 68:
            mesh = project(photo.camera, self.face.mesh_points3d(vertices))[..., :2]
            landmarks = torch.cat([landmarks, mesh], 1)
            target = torch.cat([target, photo.mesh468[:, self.model.topology.mesh_points, :2]], 1)
        count = landmarks.shape[1]
        return count * losses.landmark_loss(landmarks, target, weights[:, :count])

    def _network_terms(
        self,
        stage: Stage,
        photo: Observation,
        image: Tensor,
        landmarks: Tensor,
        targets: dict[str, Any],
        skipped: Collection[str],
    ) -> dict[str, Tensor]:
        """The perceptual and the identity term of a composite image, by one network pass where they share it, else side
        by side."""
        wanted = {"lpips", "id"} & set(stage.weights) - set(skipped)
        own = self.identity_alignment == "own" and "pose" in stage.optimize
        points = landmarks.detach() if own else photo.landmarks68
        if not own and len(wanted) == 2 and isinstance(self.perceptual, losses.FaceFeatureDistance):
            features, embedding = self.identity.embed_with_features(image, points)
            return {
                "lpips": self.perceptual.distance(features, targets["lpips"]),
                "id": losses.identity_loss(embedding, targets["id"], self.identity.metric),
            }
        distances = {
            "lpips": lambda x: self.perceptual(x, targets["lpips"]),
            "id": lambda x: losses.identity_loss(self.identity(x, points), targets["id"], self.identity.metric),
        }
        wanted = [name for name in distances if name in wanted]
        if len(wanted) == 2 and image.requires_grad and image.device.type == "cpu" and torch.get_num_threads() > 1:
            found = beside_each_other([partial(_with_gradient, distances[name], image) for name in wanted])
            return dict(zip(wanted, found, strict=True))
        return {name: distances[name](image) for name in wanted}


def _with_gradient(distance: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """(B,) distances of B images, each of its image alone, whose gradient is computed here and now."""
    x = image.detach().requires_grad_(True)
    with torch.enable_grad():
        value = distance(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach() + ((image - x.detach()) * gradient).flatten(1).sum(1)


def _prior_loss(coefficients: Tensor, prior: tuple[Tensor, Tensor] | None) -> Tensor:
    """Squared norm of (B, K) coefficients, from the center and in the deviations of a prior; (B,)."""
    if prior is not None:
        coefficients = (coefficients - prior[0]) / prior[1]
    return losses.coefficient_loss(coefficients)


def _without_cast(params: FaceParams) -> Tensor:
    """Coefficients of the light (B, 9, 3); where the tone is known, without the color of its mean, which is free."""
    light = params.light.coefficients
    if params.tone is None:
        return light
    mean = light[:, :1].detach().clamp(min=0.01)
    return light / mean * mean.mean(2, keepdim=True)


def _scores_loss(expression: Tensor, scored: ScoredExpressions | None) -> Tensor:
    """Squared errors of the expression (B, E) against the scores, over their noise; (B,), 0 without scores."""
    if scored is None:
        return expression.new_zeros(len(expression))
    return losses.coefficient_loss((expression[:, scored.index] - scored.value) / scored.noise)
