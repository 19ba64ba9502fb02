"""The three stages of Sec. 4.2, one loop for all of them."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from facerecon import losses
from facerecon.errors import ConfigError, FitError, InputError, check_floats, nearest_name
from facerecon.fitting.coefficients import coefficients_to_latent
from facerecon.fitting.detail import add_detail, add_shared_detail
from facerecon.fitting.initialize import (
    LandmarkStart,
    RegressorStart,
    fit_landmarks,
    fit_light_and_texture,
    start_from_regressor,
)
from facerecon.fitting.occlusion import OcclusionSettings, find_occlusion, mask_occluders
from facerecon.fitting.stage import DetailSettings, SmoothnessSettings, Stage, stages_from_config
from facerecon.fitting.trust import find_suspects
from facerecon.fitting.variables import Variables, chosen_rows
from facerecon.geometry.camera import camera_in_photo, project
from facerecon.modes import in_own_modes, ordinary
from facerecon.morphable import MorphableModel
from facerecon.perception import Regressor, load_identity, observe
from facerecon.render import FusedView, PreparedView, Renderer
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import Camera, FaceParams, Latent, Observation, ReconstructedFace, SHLight, TensorStruct

__all__ = ["Fitter", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """What a callback sees after each step.

    Args:
        stage: name.
        step: from 0.
        steps: of this stage.
        losses: {term: (B,)}, unweighted.
        total: (B,), weighted.
        image: (B, 3, H, W), the composite of this step.
        params, latent: before the step.
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
    """Photo -> head: stage 1 from landmarks or by N_enc, stage 2 the texture latent, stage 3 everything, then detail.

    Faces of a batch are fitted with independent losses; only the arithmetic is shared. :meth:`multiview` fits one
    person to all of them. Whatever modes of torch the caller has switched on (inference mode, autocast, a default
    type), a fit is in float32 and turns gradients on for itself.

    Args:
        model: head model.
        decoder: texture decoder.
        renderer: at the size of the fit crop (224). With ``antialias=True`` outlines move shape; without it the term
            ``silhouette`` is computed but has no gradient.
        identity: differentiable identity network; the open pack's if left out.
        perceptual: ``face_features`` (open pack; not LPIPS), ``lpips_vgg`` (the paper's), ``lpips_alex`` or
            ``lpips_squeeze``.
        photometric: ``l1`` (release) or ``l2`` (paper).
        landmark_weighting: ``facing`` (ours: the release's, and less for what the start turns away from the camera,
            :func:`~facerecon.losses.facing_weights`), ``release`` or ``uniform``.
        latent_prior: ``gaussian`` (ours), ``radius`` (paper) or ``geocross`` (release).
        shape_prior: what ``reg_id`` and ``reg_exp`` hold identity and expression to: ``start``, what stage 1 found
            (ours), or ``mean``, the model's mean face (paper).
        identity_alignment: ``own`` aligns photo and render each by its own landmarks (release); ``photo`` both by the
            photo's, which costs one network pass less where features and embedding are both compared.
        stages: {stage: {field: value}}, what differs from :func:`~facerecon.fitting.stage.default_stages`.
        start: noise and priors of stage 1.
        regressor: N_enc, of this head model; None starts from landmarks alone.
        regressor_start: when it is believed, and what of it.
        detail: the last, optional step.
        occlusion: how what hides the face is told and left out; found anew before each stage and before the detail.

    Raises:
        ConfigError: an unknown name; the nearest known one is given.
        ShapeError: half precision.
    """

    @in_own_modes
    def __init__(
        self,
        model: MorphableModel,
        decoder: TextureDecoder,
        renderer: Renderer,
        identity: torch.nn.Module | None = None,
        perceptual: str = "face_features",
        photometric: str = "l1",
        landmark_weighting: str = "facing",
        latent_prior: str = "gaussian",
        shape_prior: str = "start",
        identity_alignment: str = "photo",
        stages: Mapping[str, Any] | None = None,
        start: LandmarkStart | None = None,
        detail: DetailSettings | None = None,
        occlusion: OcclusionSettings | None = None,
        regressor: Regressor | None = None,
        regressor_start: RegressorStart | None = None,
    ) -> None:
        for value, what, how in (
            (model, "a head model", "load_face_model(...)"),
            (decoder, "a texture decoder", "load_decoder(...)"),
            (renderer, "a renderer", "Renderer(size=224, antialias=True)"),
        ):
            if not isinstance(value, torch.nn.Module):
                raise ConfigError(f"a fitter takes {what}, as {how} gives it; got {type(value).__name__} {value!r}.")
        if photometric not in ("l1", "l2"):
            raise ConfigError(nearest_name(photometric, ("l1", "l2"), "photometric norm"))
        if identity_alignment not in ("own", "photo"):
            raise ConfigError(nearest_name(identity_alignment, ("own", "photo"), "identity alignment"))
        if shape_prior not in ("start", "mean"):
            raise ConfigError(nearest_name(shape_prior, ("start", "mean"), "shape prior"))
        priors = {
            "radius": losses.radius_loss,
            "geocross": losses.geocross_loss,
            "gaussian": losses.gaussian_loss,
        }
        if latent_prior not in priors:
            raise ConfigError(nearest_name(latent_prior, priors, "latent prior"))
        self.model, self.decoder, self.renderer = model, decoder, renderer
        self.identity = identity if identity is not None else load_identity().to(model.mean.device)
        self.stages = stages_from_config(stages)
        self.photometric = photometric
        self.identity_alignment = identity_alignment
        self.latent_prior, self.shape_prior = priors[latent_prior], shape_prior
        self.facing = landmark_weighting == "facing"
        self.landmark_weights = losses.landmark_weights(landmark_weighting).to(model.mean.device)
        self.start = start or LandmarkStart()
        self.regressor, self.regressor_start = regressor, regressor_start or RegressorStart()
        if regressor is not None:
            self._check_regressor(regressor)
        self.detail = detail or DetailSettings()
        self.occlusion = occlusion or OcclusionSettings()
        self.perceptual = None
        if any("lpips" in stage.weights for stage in self.stages.values()):
            self.perceptual = losses.load_perceptual(perceptual, self.identity.features)
            self.perceptual.to(model.mean.device)
        self.seconds: dict[str, float] = {}
        self.failed: dict[int, str] = {}
        self.diverged: dict[int, str] = {}
        self.fallbacks: dict[int, str] = {}
        self.suspect: dict[int, str] = {}
        self.used: list[int] = []

    # -- stage 1 -----------------------------------------------------------------------------------

    @in_own_modes
    def initialize(self, photo: Observation, one_person: bool = False) -> tuple[FaceParams, Latent]:
        """Stage 1: the start, by N_enc or from landmarks (Sec. 4.2).

        ``self.fallbacks`` names the faces that N_enc cannot read, {index: why}; they start from their landmarks.
        ``self.suspect`` names those that may be no face, {index: why}.
        ``one_person``: identity and texture are the same in every row, the best for all photos.
        """
        one_person = one_person and photo.batch > 1
        camera = self._camera(photo)
        self.fallbacks, said = {}, None
        if self.regressor is None:
            params = fit_landmarks(
                self.model,
                photo.landmarks68,
                camera,
                photo.mesh468,
                self.start,
                shared_identity=one_person,
                averaged=True,
            )
        else:
            params, said, self.fallbacks = start_from_regressor(
                self.model, self.regressor, photo, camera, self.start, self.regressor_start, one_person
            )
        view, vertices = self._prepare(params, camera)
        light, latent = fit_light_and_texture(
            photo, self.decoder, view, vertices, self.model.topology.faces, shared_texture=one_person
        )
        if said is not None and self.regressor_start.appearance == "regressor":
            codes = coefficients_to_latent(said, self.decoder).codes
            gamma = params.light.coefficients
            for i in self.fallbacks:
                gamma[i], codes[i] = light.coefficients[i], latent.codes[i]
            if one_person:
                believed = [i for i in range(photo.batch) if i not in self.fallbacks] or slice(None)
                codes = codes[believed].mean(0, keepdim=True).expand_as(codes)
            light, latent = SHLight(gamma), Latent(codes, latent.space)
        params = params.replace(light=light)
        view, _ = self._prepare(params, camera)
        with torch.no_grad():
            render = view.shade(self.decoder(latent).nan_to_num()).surface
        self.suspect = find_suspects(self.model, photo, params, camera, render, view.rendering.mask)
        return params, latent

    def _check_regressor(self, regressor: Regressor) -> None:
        """Refuse one that speaks of another head, or of another kind of texture.

        Raises:
            ConfigError: with what would fit.
        """
        config = regressor.config
        if config.face_model != self.model.name or config.expression != self.model.num_expression:
            raise ConfigError(
                f"the regressor is for face model '{config.face_model}' with {config.expression} expressions; this "
                f"fit's is '{self.model.name}' with {self.model.num_expression}. Use load_regressor(model)."
            )
        if self.regressor_start.appearance == "regressor" and self.decoder.space != "linear":
            raise ConfigError(
                f"light and texture of the regressor need the linear decoder it was trained with "
                f"('{config.decoder}'); the fit's is of space '{self.decoder.space}'. Use appearance=closed."
            )

    # -- stages 2 and 3 ----------------------------------------------------------------------------

    @in_own_modes
    def __call__(self, photo: Observation, callback: Callable[[StepReport], None] | None = None) -> ReconstructedFace:
        """Fit every face of an observation.

        Args:
            photo: B observed faces; or a photo, whose largest face is observed as :func:`facerecon.observe` does.
            callback: called after every step with a :class:`StepReport`.

        Returns:
            B reconstructed faces; ``face.history`` holds every loss of every step, ``fitter.seconds`` the time by
            stage, ``fitter.fallbacks`` the faces that N_enc cannot read, ``fitter.suspect`` those that may be no face,
            ``fitter.observed`` the observation without what was found to hide the faces. A face that cannot be fitted
            (its observation, or its first loss, is not finite) is NaN throughout and named in ``fitter.failed``,
            {index: why}; one that diverged later is kept at its best state and named in ``fitter.diverged``. All three
            warn, and none changes the others.

        Raises:
            FitError: no face of the observation can be fitted.
            InputError: a list.
            ConfigError: the renderer makes
            pictures of another size than the fit crop's.
            ShapeError: half precision.
        """
        photo = self._taken(photo)
        self.seconds, self.failed, self.diverged = {}, {}, {}
        return self._fit(self._usable(photo), callback)

    def _taken(self, photo: Any) -> Observation:
        """An observation that this fitter can fit, of what a caller gives."""
        if isinstance(photo, list | tuple):
            raise InputError(
                f"a fit takes one observation; got a {type(photo).__name__} of {len(photo)}. Use multiview([...]) for "
                "photos of one person, Observation.cat([...]) for several people."
            )
        if not isinstance(photo, Observation):
            photo = observe(photo).to(self.model.mean.device)
        photo = photo.map(ordinary)
        check_floats("an observation", photo.image, torch.zeros(()), "the fit")
        parts = {"head model": self.model, "decoder": self.decoder, "identity network": self.identity}
        for name, module in parts.items():
            for tensor in filter(torch.is_floating_point, chain(module.parameters(), module.buffers())):
                check_floats(f"the {name}", tensor, photo.image, "the observation")
                if tensor.is_inference():
                    raise ConfigError(f"the {name} was made in torch.inference_mode(); make it, or move it, outside.")
        made, wanted = self.renderer.image_size(self._camera(photo)), tuple(photo.image.shape[-2:])
        if made != wanted:
            raise ConfigError(
                f"the renderer makes {made[0]} x {made[1]} px, the fit crop has {wanted[0]} x {wanted[1]}; use "
                f"Renderer(size={wanted[0]}), or observe(..., crop_size={made[0]})."
            )
        return photo

    @in_own_modes
    def multiview(
        self,
        photos: Observation | Sequence[Observation],
        times: Sequence[float] | Tensor | None = None,
        smoothness: SmoothnessSettings | None = None,
        callback: Callable[[StepReport], None] | None = None,
    ) -> ReconstructedFace:
        """Fit one person to several photos: one identity and one texture, a pose, expression and light for each photo.

        All three stages minimize the mean of the photos' losses, in which the priors of identity and texture count
        once; each photo's own variables follow its own loss. The detail step takes for each texel the photo that shows
        it best. One photo gives what ``fitter(photo)`` gives.

        Args:
            photos: B observed faces of one person, or one observation (or photo) a photo.
            times: (B,), increasing, of the frames of a video, any unit; evenly spaced if left out.
            smoothness: makes the photos frames of a video, in this order: weights of the second differences of
                expression, pose and light over time. None: photos in any order.
            callback: called after every step.

        Returns:
            A face of batch B, whose rows have identity, latent, texture and neutral vertices in common (and in memory).
            ``face[i]`` is the person as in photo i. What was measured on a photo may be unusable (not finite): then it
            is left out, with a warning; ``fitter.used`` holds the numbers of those in the result.

        Raises:
            InputError: no photo; times without smoothness, of another length or not increasing.
            FitError: no photo can
            be used, or the fit fails.
        """
        several = list(photos) if isinstance(photos, list | tuple) else [photos]
        if not several or (isinstance(photos, Observation) and photos.batch == 0):
            raise InputError("there is no photo to fit; give at least one observation.")
        photo = Observation.cat([self._taken(item) for item in several])
        if times is not None:
            if smoothness is None:
                raise InputError("times belong to a video; give smoothness=SmoothnessSettings() too.")
            times = torch.as_tensor(times, dtype=torch.float64)
            if times.shape != (photo.batch,):
                raise InputError(f"times must be ({photo.batch},), one a frame; got {tuple(times.shape)}.")
            if not bool((times.diff() > 0).all()):
                raise InputError("times must increase from frame to frame; sort the frames, each with its own time.")
        self.seconds, self.failed, self.diverged = {}, {}, {}
        self._usable(photo)
        for i, reason in self.failed.items():
            warnings.warn(f"{_called(photo, i)}: left out, {reason}.", stacklevel=3)
        self.used = [i for i in range(photo.batch) if i not in self.failed]
        if self.failed:
            photo, times = photo[self.used], None if times is None else times[self.used]
            self.failed = {}
        track = None if smoothness is None else _Track(smoothness, times)
        return self._fit(photo, callback, one_person=True, track=track)

    def _fit(
        self,
        photo: Observation,
        callback: Callable[[StepReport], None] | None,
        one_person: bool = False,
        track: _Track | None = None,
    ) -> ReconstructedFace:
        """The three stages and the detail, of faces or of one person; ``track``: along a video."""
        clock = time.perf_counter()
        params, latent = self.initialize(photo, one_person)
        clock = self._lap("start", clock)
        for i, reason in self.fallbacks.items():
            if i not in self.failed:
                warnings.warn(f"{_called(photo, i)}: stage 1 starts from its landmarks, {reason}.", stacklevel=4)
        self.suspect = {i: reason for i, reason in self.suspect.items() if i not in self.failed}
        for i, reason in self.suspect.items():
            warnings.warn(f"{_called(photo, i)}: suspect, {reason}.", stacklevel=4)
        variables = Variables(params, latent, self.model.expression_bounds, self.decoder, one_person)
        for i in (~variables.finite()).nonzero()[:, 0].tolist():
            self.failed.setdefault(i, "its start from the landmarks and the light is not finite")
        self.stage_params = {"start": (params, latent)}
        history: dict[str, Tensor] = {}
        for stage in self.stages.values():
            if stage.steps == 0:
                continue
            records = self.run_stage(stage, self._unoccluded(photo, variables), variables, callback, track)
            history |= {f"{stage.name}.{term}": torch.stack(values, 1) for term, values in records.items()}
            self.stage_params[stage.name] = variables.copy()
            clock = self._lap(stage.name, clock)
        self._stand_in(photo, variables)
        self.observed = self._unoccluded(photo, variables)
        face = self._result(self.observed, variables.current.detach(), variables.code.detach(), history, one_person)
        self._lap("detail" if self.detail.enabled else "texture map", clock)
        for i in (~_finite_rows(face)).nonzero()[:, 0].tolist():
            self.failed.setdefault(i, "its texture or shape is not finite")
        for i, reason in self.failed.items():
            warnings.warn(f"{_called(photo, i)}: could not be fitted, {reason}.", stacklevel=4)
        return _emptied(face, list(self.failed))

    @in_own_modes
    def run_stage(
        self,
        stage: Stage,
        photo: Observation,
        variables: Variables,
        callback: Callable | None = None,
        track: _Track | None = None,
    ) -> dict[str, list[Tensor]]:
        """One stage: Adam on the variables it names. Returns {term: [(B,) per step]}, with "total".

        A face whose loss is not finite, or far above its start, goes back to its best state and stays there until the
        stage ends; ``self.diverged`` says so. The others do not notice. Photos of one person (``variables.one_person``)
        do so together, by the mean of their losses; ``track``: they are frames of a video.
        """
        camera = self._camera(photo)
        variables.hold_latent(as_w=False)
        if stage.sphere:
            variables.to_sphere()
        variables.hold_latent(stage.latent == "w" and self.decoder.space.startswith("w"))
        groups = variables.groups(stage)
        optimizer = torch.optim.Adam(groups, eps=stage.epsilon)
        moving_shape = any(v in stage.optimize for v in ("identity", "expression", "pose", "light"))
        view = None if moving_shape else self._prepare(variables.current, camera)[0]
        fixed = self._targets(photo, stage, variables.params)
        records: dict[str, list[Tensor]] = {}
        moving = torch.ones(photo.batch, dtype=torch.bool, device=photo.image.device)
        moving[list(self.failed)] = False
        watch = _Watch(moving, variables)
        weights = stage.weights | (track.settings.weights if track is not None else {})
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate(step) * group["scale"]
            params, latent = variables.current, variables.code
            before = variables.copy() if callback is not None else None
            size = stage.texture_size(step)
            terms, image = self._evaluate(stage, photo, params, latent, camera, view, fixed, size)
            if track is not None and moving_shape:
                terms |= track.settings.terms(params, track.times)
            if variables.one_person:  # one texture, one prior of it
                terms = {name: value.expand(photo.batch) for name, value in terms.items()}
            total = sum(weights[name] * value for name, value in terms.items())
            judged = total.detach()
            watch.look(step, judged.mean().expand_as(judged) if variables.one_person else judged, variables)
            optimizer.zero_grad(set_to_none=True)
            torch.where(watch.moving, total, torch.zeros_like(total)).sum().backward()
            variables.average()
            variables.still(watch.moving)
            optimizer.step()
            variables.retract(stage)
            variables.keep(watch.moving, watch.best)
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
        for i, step, good in watch.close(stage.steps, variables):
            self._left(i, step, good, stage, photo, quiet=variables.one_person and i > 0)
        return records

    def _left(self, index: int, step: int, good: bool, stage: Stage, photo: Observation, quiet: bool = False) -> None:
        """Note, and warn, that a face left its path in a stage; ``good``: it has a state to go back to."""
        if index in self.failed:
            return
        text = f"its loss is not finite or blew up at step {step + 1} of {stage.steps} of stage '{stage.name}'"
        if good or stage.name != next(name for name, other in self.stages.items() if other.steps):
            self.diverged[index] = f"{text}; kept at its best state before"
            if not quiet:
                warnings.warn(f"{_called(photo, index)}: {self.diverged[index]}.", stacklevel=7)
        else:
            self.failed[index] = text

    def _stand_in(self, photo: Observation, variables: Variables) -> None:
        """Give failed faces the numbers of one that did not, for what follows to be computed.

        Raises:
            FitError: all failed.
        """
        fine = [i for i in range(photo.batch) if i not in self.failed]
        if not fine:
            raise FitError(f"{_called(photo, 0)}: could not be fitted, {self.failed[0]}.")
        if self.failed:
            moving = torch.ones(photo.batch, dtype=torch.bool, device=photo.image.device)
            moving[list(self.failed)] = False
            variables.keep(moving, {name: t[fine[:1]].clone() for name, t in variables.tensors.items()})

    def _usable(self, photo: Observation) -> Observation:
        """The observation with its unusable faces, which ``self.failed`` names, replaced by a usable one.

        So the others are computed as they would be beside a usable face, and no batched solver meets a NaN.

        Raises:
            FitError: not one face is usable.
        """
        usable = _finite_rows(photo)
        if bool(usable.all()):
            return photo
        if not bool(usable.any()):
            raise FitError(f"{_called(photo, 0)}: what was measured on the photo is not finite; observe it again.")
        self.failed |= {i: "what was measured on it is not finite" for i in (~usable).nonzero()[:, 0].tolist()}
        rows = torch.arange(photo.batch, device=usable.device)
        rows[~usable] = usable.nonzero()[0, 0]
        return photo[rows].replace(path=photo.path, photo_size=photo.photo_size)

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
            params, latent = variables.current, variables.code
            camera, vertices, texture = self._camera(photo), self.model(params), self.decoder(latent).nan_to_num()
            topology = self.model.topology
            hidden = find_occlusion(photo, vertices, texture, params.light, camera, topology, self.occlusion)
            for b, given in enumerate(photo.mask_given):
                hidden[b] *= not given
            return mask_occluders(photo, hidden)

    def _targets(self, photo: Observation, stage: Stage, start: FaceParams) -> dict[str, Any]:
        """What every step compares with, computed once; ``start``: what stage 1 found."""
        targets: dict[str, Any] = {"lm": self.landmark_weights}
        if self.facing:
            points = self.model.landmarks3d(self.model.mean[None])[0]
            targets["lm"] = self.landmark_weights * losses.facing_weights(points, start.rotation)
        if self.shape_prior == "start":
            targets |= {"reg_id": start.identity, "reg_exp": start.expression}
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

    def _evaluate(
        self,
        stage: Stage,
        photo: Observation,
        params: FaceParams,
        latent: Latent,
        camera: Camera,
        view: PreparedView | FusedView | None,
        targets: dict[str, Any],
        size: int | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All terms of a stage at the present variables: {term: (B,)} and the composite image.

        ``size``: of a coarser texture.
        """
        texture = self.decoder(latent, size)
        if view is None:
            vertices = self.model(params)
            view = self.renderer.prepare(vertices, self.model.topology, camera, params.light, face_region="face")
            points3d = self.model.landmarks3d(vertices, camera)
            landmarks = project(camera, points3d)[..., :2]
        else:
            landmarks = photo.landmarks68
        # The silhouette term alone moves the outer outline: the photo is what lies beyond it, so no image loss could
        # ever ask for more face. Silhouettes within the face (nose before cheek) move with the image losses.
        render, mask = view.shade(texture).surface, view.rendering.mask
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
            # geocross speaks of w, the radius of the code
            on_w = self.latent_prior is losses.geocross_loss
            terms["reg_z"] = self.latent_prior(self.decoder.to_w(latent.codes) if on_w else latent.codes)
        if "lm" in weights:
            terms["lm"] = losses.landmark_loss(landmarks, photo.landmarks68, targets["lm"])
        if "silhouette" in weights:
            terms["silhouette"] = losses.silhouette_loss(mask, photo.face_mask, targets["below"])
        if "reg_id" in weights:
            terms["reg_id"] = losses.coefficient_loss(params.identity - targets.get("reg_id", 0.0))
        if "reg_exp" in weights:
            terms["reg_exp"] = losses.coefficient_loss(params.expression - targets.get("reg_exp", 0.0))
        if "light" in weights:
            terms["light"] = losses.light_color_loss(params.light.coefficients)
        return terms, image

    def _result(
        self,
        photo: Observation,
        params: FaceParams,
        latent: Latent,
        history: dict[str, Tensor],
        one_person: bool = False,
    ) -> ReconstructedFace:
        with torch.no_grad():
            posed = self.model(params)
            decoded = self.decoder(latent).clamp(0, 1)
            camera = self._camera(photo)
            who = params[:1] if one_person else params
            neutral = self.model.shape(who.replace(expression=torch.zeros_like(who.expression)))
            add = add_shared_detail if one_person and photo.batch > 1 else add_detail
            texture, seen = add(photo, posed, decoded, params.light, camera, self.model.topology, self.detail)
            if one_person:
                texture, seen, decoded, codes = (
                    t.expand(photo.batch, *t.shape[1:]) for t in (texture, seen, decoded, latent.codes)
                )
                latent = latent.replace(codes=codes)
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
                neutral_vertices=neutral.expand(photo.batch, -1, -1),
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


@dataclass(frozen=True)
class _Track:
    """The photos are frames of a video, at these moments (None: evenly spaced)."""

    settings: SmoothnessSettings
    times: Tensor | None


_BLOWN = 10.0  # a loss this many times its first value, and 0.1 more, has left its path


class _Watch:
    """Faces of a stage: which still move, their best states, and when the others stopped. Nothing waits for a GPU.

    Args:
        moving: (B,) bool, at the start.
        variables: at the start.
    """

    def __init__(self, moving: Tensor, variables: Variables) -> None:
        self.moving = moving
        self.best = variables.snapshot()  # leaves that all photos share have one row
        self.lowest = torch.full(moving.shape, torch.inf, device=moving.device)
        self.first: Tensor | None = None
        self.stopped = torch.full(moving.shape, -1, device=moving.device)

    def look(self, step: int, total: Tensor, variables: Variables) -> None:
        """Take in the (B,) losses of the variables as they stand before a step."""
        if self.first is None:
            self.first = total
        self._stop(step, total.isfinite() & ~(total > _BLOWN * self.first.abs() + 0.1))
        better = self.moving & (total < self.lowest)
        self.lowest = torch.where(better, total, self.lowest)
        for name, tensor in variables.tensors.items():
            self.best[name] = chosen_rows(better[: len(tensor)], tensor.detach(), self.best[name])

    def close(self, steps: int, variables: Variables) -> list[tuple[int, int, bool]]:
        """(face, step at which it stopped, whether it has a good state) of every face that did not finish."""
        self._stop(steps - 1, variables.finite())
        variables.keep(self.moving, self.best)
        good = self.lowest.isfinite().tolist()
        return [(i, step, good[i]) for i, step in enumerate(self.stopped.tolist()) if step >= 0]

    def _stop(self, step: int, good: Tensor) -> None:
        self.stopped = torch.where(self.moving & ~good, step, self.stopped)
        self.moving = self.moving & good


def _called(photo: Observation, index: int) -> str:
    return str(photo.path[index]) if index < len(photo.path) else f"face {index}"


def _finite_rows(record: TensorStruct) -> Tensor:
    """(B,) bool: every batched number of a record is finite; losses of the past may be anything."""
    rows: list[Tensor] = []

    def look(item: TensorStruct) -> None:
        for f in dataclasses.fields(item):
            value = None if f.name in item.SHARED else getattr(item, f.name)
            if isinstance(value, TensorStruct):
                look(value)
            elif isinstance(value, Tensor) and value.is_floating_point():
                rows.append(value.isfinite() if value.dim() == 1 else value.flatten(1).isfinite().all(1))

    look(record)
    return torch.stack(rows).all(0)


def _emptied(face: ReconstructedFace, failed: list[int]) -> ReconstructedFace:
    """NaN in all that the failed faces have: nobody takes it for a result."""
    if not failed:
        return face

    def empty(item: Any) -> Any:
        if isinstance(item, TensorStruct):
            names = [f.name for f in dataclasses.fields(item) if f.name not in item.SHARED]
            return item.replace(**{name: empty(getattr(item, name)) for name in names})
        if isinstance(item, Tensor) and item.is_floating_point():
            item = item.clone()
            item[failed] = torch.nan
        return item

    return empty(face)
