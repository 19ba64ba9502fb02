"""The three stages of Sec. 4.2, one loop for all of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facerecon import losses
from facerecon.errors import ConfigError, nearest_name
from facerecon.fitting.detail import add_detail
from facerecon.fitting.initialize import LandmarkStart, fit_landmarks, fit_light_and_texture
from facerecon.fitting.occlusion import OcclusionSettings, find_occlusion, hide
from facerecon.fitting.stage import DetailSettings, Stage, stages_from_config
from facerecon.fitting.variables import Variables
from facerecon.geometry.camera import camera_in_photo, project
from facerecon.morphable import MorphableModel
from facerecon.perception import load_identity
from facerecon.render import FusedView, PreparedView, Renderer
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import Camera, FaceParams, Latent, Observation, ReconstructedFace

__all__ = ["Fitter", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """What a callback sees after each step.

    Args:
        stage: name. step: from 0. steps: of this stage.
        losses: {term: (B,)}, unweighted. total: (B,), weighted.
        image: (B, 3, H, W), the composite of this step. params, latent: before the step.
    """

    stage: str
    step: int
    steps: int
    losses: dict[str, Tensor]
    total: Tensor
    image: Tensor
    params: FaceParams
    latent: Latent


class Fitter:
    """Photo -> head: stage 1 from landmarks, stage 2 the texture latent, stage 3 everything, then detail.

    Faces of a batch are fitted with independent losses; only the arithmetic is shared.

    Args:
        model: head model. decoder: texture decoder.
        renderer: at the size of the fit crop (224).
        identity: differentiable identity network; the open pack's if left out.
        perceptual: ``face_features`` (open pack; not LPIPS), ``lpips_vgg`` (the paper's), ``lpips_alex`` or
            ``lpips_squeeze``.
        photometric: ``l1`` (release) or ``l2`` (paper).
        landmark_weighting: ``release`` or ``uniform``.
        latent_prior: ``radius`` (paper) or ``geocross`` (release).
        identity_alignment: ``own`` aligns photo and render each by its own landmarks (release); ``photo`` both by the
            photo's, which costs one network pass less where features and embedding are both compared.
        stages: {stage: {field: value}}, what differs from :func:`~facerecon.fitting.stage.default_stages`.
        start: noise and priors of stage 1. detail: the last, optional step.
        occlusion: how what hides the face is told and left out; found anew before each stage and before the detail.

    Raises:
        ConfigError: an unknown name; the nearest known one is given.
    """

    def __init__(
        self,
        model: MorphableModel,
        decoder: TextureDecoder,
        renderer: Renderer,
        identity: torch.nn.Module | None = None,
        perceptual: str = "face_features",
        photometric: str = "l1",
        landmark_weighting: str = "release",
        latent_prior: str = "radius",
        identity_alignment: str = "photo",
        stages: Mapping[str, Any] | None = None,
        start: LandmarkStart | None = None,
        detail: DetailSettings | None = None,
        occlusion: OcclusionSettings | None = None,
    ) -> None:
        if photometric not in ("l1", "l2"):
            raise ConfigError(nearest_name(photometric, ("l1", "l2"), "photometric norm"))
        if identity_alignment not in ("own", "photo"):
            raise ConfigError(nearest_name(identity_alignment, ("own", "photo"), "identity alignment"))
        priors = {"radius": losses.radius_loss, "geocross": losses.geocross_loss}
        if latent_prior not in priors:
            raise ConfigError(nearest_name(latent_prior, priors, "latent prior"))
        self.model, self.decoder, self.renderer = model, decoder, renderer
        self.identity = identity if identity is not None else load_identity().to(model.mean.device)
        self.stages = stages_from_config(stages)
        self.photometric = photometric
        self.identity_alignment = identity_alignment
        self.latent_prior = priors[latent_prior]
        self.landmark_weights = losses.landmark_weights(landmark_weighting).to(model.mean.device)
        self.start = start or LandmarkStart()
        self.detail = detail or DetailSettings()
        self.occlusion = occlusion or OcclusionSettings()
        self.perceptual = None
        if any("lpips" in stage.weights for stage in self.stages.values()):
            self.perceptual = losses.load_perceptual(perceptual, self.identity.features)
            self.perceptual.to(model.mean.device)
        self.seconds: dict[str, float] = {}

    # -- stage 1 -----------------------------------------------------------------------------------

    def initialize(self, photo: Observation) -> tuple[FaceParams, Latent]:
        """Stage 1: the linear start (Sec. 4.2)."""
        camera = self._camera(photo)
        params = fit_landmarks(self.model, photo.landmarks68, camera, photo.mesh468, self.start)
        view, vertices = self._prepare(params, camera)
        light, latent = fit_light_and_texture(photo, self.decoder, view, vertices, self.model.topology.faces)
        return params.replace(light=light), latent

    # -- stages 2 and 3 ----------------------------------------------------------------------------

    def __call__(self, photo: Observation, callback: Callable[[StepReport], None] | None = None) -> ReconstructedFace:
        """Fit every face of an observation.

        Args:
            photo: B observed faces.
            callback: called after every step with a :class:`StepReport`.

        Returns:
            B reconstructed faces; ``face.history`` holds every loss of every step, ``fitter.seconds`` the time by
            stage, ``fitter.observed`` the observation without what was found to hide the faces.
        """
        self.seconds = {}
        clock = time.perf_counter()
        params, latent = self.initialize(photo)
        clock = self._lap("start", clock)
        variables = Variables(params, latent, self.model.expression_bounds)
        self.stage_params = {"start": (params, latent)}
        history: dict[str, Tensor] = {}
        for stage in self.stages.values():
            if stage.steps == 0:
                continue
            records = self.run_stage(stage, self._unoccluded(photo, variables), variables, callback)
            history |= {f"{stage.name}.{term}": torch.stack(values, 1) for term, values in records.items()}
            self.stage_params[stage.name] = variables.copy()
            clock = self._lap(stage.name, clock)
        self.observed = self._unoccluded(photo, variables)
        face = self._result(self.observed, variables.current.detach(), variables.code.detach(), history)
        self._lap("detail" if self.detail.enabled else "texture map", clock)
        return face

    def run_stage(
        self, stage: Stage, photo: Observation, variables: Variables, callback: Callable | None = None
    ) -> dict[str, list[Tensor]]:
        """One stage: Adam on the variables it names. Returns {term: [(B,) per step]}, with "total"."""
        camera = self._camera(photo)
        if stage.sphere:
            variables.to_sphere()
        groups = variables.groups(stage)
        optimizer = torch.optim.Adam(groups, eps=stage.epsilon)
        moving_shape = any(v in stage.optimize for v in ("identity", "expression", "pose", "light"))
        view = None if moving_shape else self._prepare(variables.current, camera)[0]
        fixed = self._targets(photo, stage)
        records: dict[str, list[Tensor]] = {}
        last = variables.snapshot()
        reported: set[int] = set()
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step) * group["scale"]
            params, latent = variables.current, variables.code
            before = variables.copy() if callback is not None else None
            terms, image = self._evaluate(stage, photo, params, latent, camera, view, fixed)
            total = sum(stage.weights[name] * value for name, value in terms.items())
            finite = torch.isfinite(total.detach())
            if not bool(finite.all()):
                bad = [int(i) for i in (~finite).nonzero()[:, 0] if int(i) not in reported]
                reported.update(bad)
                for i in bad:
                    name = photo.path[i] if i < len(photo.path) else f"face {i}"
                    warnings.warn(
                        f"{name}: loss is not finite at step {step} of stage '{stage.name}'; "
                        "kept at its last finite state.",
                        stacklevel=2,
                    )
                total = torch.where(finite, total, torch.zeros_like(total))
            else:
                last = variables.snapshot()
            optimizer.zero_grad(set_to_none=True)
            total.sum().backward()
            if reported:
                for tensor in variables.tensors.values():
                    if tensor.grad is not None:
                        tensor.grad[list(reported)] = 0
            optimizer.step()
            variables.retract(stage)
            if reported:
                variables.hold(~finite, last)
            for name, value in {**terms, "total": total}.items():
                records.setdefault(name, []).append(value.detach())
            if callback is not None:
                detached = {name: value.detach() for name, value in terms.items()}
                callback(
                    StepReport(
                        stage.name,
                        step,
                        stage.steps,
                        detached,
                        total.detach(),
                        image.detach(),
                        *before,
                    )
                )
        return records

    # -- pieces ------------------------------------------------------------------------------------

    def _camera(self, photo: Observation) -> Camera:
        return Camera.deep3d(photo.image.shape[-1], photo.batch, photo.image.device)

    def _prepare(self, params: FaceParams, camera: Camera) -> tuple[PreparedView | FusedView, Tensor]:
        """A view that stays fixed, and its posed vertices."""
        with torch.no_grad():
            vertices = self.model(params)
            view = self.renderer.prepare(vertices, self.model.topology, camera, params.light, face_region="face")
        return view.detach(), vertices

    def _unoccluded(self, photo: Observation, variables: Variables) -> Observation:
        """The observation without what the head as it stands does not explain."""
        if not self.occlusion.enabled:
            return photo
        with torch.no_grad():
            params, latent = variables.copy()
            camera, vertices, texture = self._camera(photo), self.model(params), self.decoder(latent)
            topology = self.model.topology
            hidden = find_occlusion(photo, vertices, texture, params.light, camera, topology, self.occlusion)
            for b, given in enumerate(photo.mask_given):
                hidden[b] *= not given
            return hide(photo, hidden)

    def _targets(self, photo: Observation, stage: Stage) -> dict[str, Any]:
        """What every step compares with, computed once."""
        targets: dict[str, Any] = {}
        if "lpips" in stage.weights:
            targets["lpips"] = self.perceptual.prepare(photo.image, photo.landmarks68)
        if "id" in stage.weights:
            with torch.no_grad():
                targets["id"] = self.identity(photo.image, photo.landmarks68)
        return targets

    def _evaluate(
        self,
        stage: Stage,
        photo: Observation,
        params: FaceParams,
        latent: Latent,
        camera: Camera,
        view: PreparedView | FusedView | None,
        targets: dict[str, Any],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All terms of a stage at the present variables: {term: (B,)} and the composite image."""
        texture = self.decoder(latent)
        if view is None:
            vertices = self.model(params)
            view = self.renderer.prepare(vertices, self.model.topology, camera, params.light, face_region="face")
            points3d = self.model.landmarks3d(vertices, camera)
            landmarks = project(camera, points3d)[..., :2]
        else:
            landmarks = photo.landmarks68
        render, mask = view.shade(texture).image, view.rendering.mask
        face = mask * photo.face_mask
        image = losses.composite(render, mask * photo.face_mask, photo.image)
        terms: dict[str, Tensor] = {}
        weights = stage.weights
        own = self.identity_alignment == "own" and "pose" in stage.optimize
        points = landmarks.detach() if own else photo.landmarks68
        if not own and {"lpips", "id"} <= set(weights) and isinstance(self.perceptual, losses.FaceFeatureDistance):
            features, embedding = self.identity.embed_with_features(image, points)  # one pass for both
            terms["lpips"] = self.perceptual.distance(features, targets["lpips"])
        else:
            if "lpips" in weights:
                terms["lpips"] = self.perceptual(image, targets["lpips"])
            embedding = self.identity(image, points) if "id" in weights else None
        if "id" in weights:
            terms["id"] = losses.identity_loss(embedding, targets["id"], self.identity.metric)
        if "pix" in weights:
            terms["pix"] = losses.pixel_loss(render, photo.image, face.detach(), self.photometric)
        if "reg_z" in weights:
            terms["reg_z"] = self.latent_prior(latent.codes)
        if "lm" in weights:
            terms["lm"] = losses.landmark_loss(landmarks, photo.landmarks68, self.landmark_weights)
        if "reg_id" in weights:
            terms["reg_id"] = losses.coefficient_loss(params.identity)
        if "reg_exp" in weights:
            terms["reg_exp"] = losses.coefficient_loss(params.expression)
        if "light" in weights:
            terms["light"] = losses.light_color_loss(params.light.coefficients)
        return terms, image

    def _result(
        self, photo: Observation, params: FaceParams, latent: Latent, history: dict[str, Tensor]
    ) -> ReconstructedFace:
        with torch.no_grad():
            posed = self.model(params)
            decoded = self.decoder(latent).clamp(0, 1)
            camera = self._camera(photo)
            texture, seen = add_detail(photo, posed, decoded, params.light, camera, self.model.topology, self.detail)
            cameras = [
                camera_in_photo(camera[b], photo.fit.to_photo[b : b + 1], tuple(photo.photo_size[b]))
                for b in range(photo.batch)
            ]
            face = ReconstructedFace(
                params=params,
                latent=latent,
                texture=texture,
                decoded=decoded,
                seen=seen,
                vertices=self.model.shape(params),
                neutral_vertices=self.model.shape(params.replace(expression=torch.zeros_like(params.expression))),
                camera=Camera.cat(cameras),
                topology=self.model.topology,
                expression_basis=self.model.expression_basis,
                expression_names=tuple(self.model.expression_names),
                path=tuple(photo.path),
                photo_size=tuple(map(tuple, photo.photo_size)),
                history={name: values.cpu() for name, values in history.items()},
            )
        return face

    def _lap(self, name: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[name] = now - since
        return now
