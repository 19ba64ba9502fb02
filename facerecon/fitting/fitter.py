"""The three stages of Sec. 4.2 and the detail step, on faces or on photos of one person."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from facerecon import losses
from facerecon.errors import ConfigError, FitError, InputError, check_floats
from facerecon.fitting.detail import add_detail, add_shared_detail
from facerecon.fitting.initialize import (
    LandmarkStart,
    RegressorStart,
    check_regressor,
    fit_landmarks,
    fit_light_and_texture,
    predicted_appearance,
    shape_prior,
    start_from_regressor,
)
from facerecon.fitting.irises import draw_eyeballs, fit_eyes
from facerecon.fitting.mouth import draw_mouth
from facerecon.fitting.objective import Objective
from facerecon.fitting.occlusion import OcclusionSettings, find_occlusion, mask_occluders
from facerecon.fitting.optimize import StageRun, StepReport, Track, moving_rows, run_stage
from facerecon.fitting.result import FitResult, Start, emptied, finite_rows
from facerecon.fitting.stage import DetailSettings, SmoothnessSettings, Stage, stages_from_config
from facerecon.fitting.tone import has_skin, shared_tone
from facerecon.fitting.trust import find_suspects
from facerecon.fitting.variables import Variables
from facerecon.geometry.camera import camera_in_photo
from facerecon.modes import in_own_modes, ordinary
from facerecon.morphable import MorphableModel
from facerecon.perception import Regressor, load_identity, observe
from facerecon.render import Renderer
from facerecon.render.uv import pad_islands, region_texels
from facerecon.settings import check_keys
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import Camera, FaceParams, Irises, Latent, Observation, ReconstructedFace

__all__ = ["Fitter"]


class Fitter:
    """Photo -> head: stage 1 from landmarks or by N_enc, stage 2 the texture latent, stage 3 everything, then detail.

    Faces of a batch are fitted with independent losses; only the arithmetic is shared. :meth:`multiview` fits one
    person to all of them. A fitter keeps nothing of its last call: all is in the :class:`FitResult`. Whatever modes of
    torch the caller has switched on (inference mode, autocast, a default type), a fit is in float32 and turns gradients
    on for itself.

    Args:
        model: head model.
        decoder: texture decoder.
        renderer: at the size of the fit crop (224). With ``antialias=True`` outlines move shape; without it the term
            ``silhouette`` is computed but has no gradient.
        identity: differentiable identity network; SFace if left out.
        perceptual: ``lpips_vgg`` (the paper's), ``lpips_alex``, or ``face_features`` (not LPIPS).
        photometric: ``l1`` (release) or ``l2`` (paper).
        landmark_weighting: ``noise`` (ours: squared distances over the noise of stage 1, summed over landmarks and
            face-mesh points, less for what the start turns away from the camera,
            :func:`~facerecon.losses.facing_weights`), ``facing`` (the release's weights, likewise), ``release`` or
            ``uniform``.
        latent_prior: ``gaussian`` (ours), ``radius`` (paper) or ``geocross`` (release).
        shape_prior: what ``reg_id`` and ``reg_exp`` hold identity and expression to: ``start``, what stage 1 held them
            to, in its standard deviations (ours: the prediction of N_enc and its errors on unseen faces, or the mean
            face and the model's variances), or ``mean``, the model's mean face (paper).
        identity_alignment: ``own`` aligns photo and render each by its own landmarks (release); ``photo`` both by the
            photo's, which costs one network pass less where features and embedding are both compared.
        tone: ``belief`` brings the skin to the tone that the photo's face and scene speak for
            (:mod:`facerecon.fitting.tone`, ours); ``off`` leaves exposure and tone to decoder and light, as the paper.
        light_space: what light multiplies (:func:`~facerecon.geometry.lighting.encoded_shading`): ``linear``
            intensities (ours), or ``encoded`` values (release).
        stages: {stage: {field: value}}, what differs from :func:`~facerecon.fitting.stage.default_stages`.
        start: noise and priors of stage 1.
        regressor: N_enc, of this head model; None starts from landmarks alone.
        regressor_start: its valid range, and which of its predictions are used.
        detail: the last, optional step.
        occlusion: how what hides the face is found and left out, anew before each stage and before the detail.

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
        perceptual: str = "lpips_alex",
        photometric: str = "l1",
        landmark_weighting: str = "noise",
        latent_prior: str = "gaussian",
        shape_prior: str = "start",
        identity_alignment: str = "photo",
        tone: str = "belief",
        light_space: str = "linear",
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
        self.model, self.decoder, self.renderer = model, decoder, renderer
        self.identity = identity if identity is not None else load_identity("sface").to(model.mean.device)
        self.stages = stages_from_config(stages)
        self.start, self.regressor_start = start or LandmarkStart(), regressor_start or RegressorStart()
        check_keys([tone], ("belief", "off"), "tone")
        check_keys([light_space], ("linear", "encoded"), "light space")
        self.tone, self.light_space = tone, light_space
        self.regressor = regressor
        if regressor is not None:
            check_regressor(regressor, self.regressor_start, model, decoder, light_space)
        self.detail, self.occlusion = detail or DetailSettings(), occlusion or OcclusionSettings()
        self.perceptual = None
        if any("lpips" in stage.weights for stage in self.stages.values()):
            self.perceptual = losses.load_perceptual(perceptual, self.identity.features)
            self.perceptual.to(model.mean.device)
        self.objective = Objective(
            model, decoder, renderer, self.identity, self.perceptual, photometric, landmark_weighting, latent_prior,
            shape_prior, identity_alignment,
        )  # fmt: skip

    @in_own_modes
    def __call__(self, photo: Observation, callback: Callable[[StepReport], None] | None = None) -> FitResult:
        """Fit every face of an observation.

        Args:
            photo: B observed faces; or a photo, whose largest face is observed as :func:`facerecon.observe` does.
            callback: called after every step with a :class:`StepReport`.

        Returns:
            B reconstructed faces, ``result.face``, and how they came about. What cannot be fitted, what diverged, and
            faces that may be none are named there, and warned of; none changes the others.

        Raises:
            FitError: no face of the observation can be fitted.
            InputError: a list.
            ConfigError: the renderer makes pictures of another size than the fit crop's.
            ShapeError: half precision.
        """
        running = _Running(self._taken(photo))
        running.replace_unusable()
        return self._fit(running, callback)

    @in_own_modes
    def multiview(
        self,
        photos: Observation | Sequence[Observation],
        times: Sequence[float] | Tensor | None = None,
        smoothness: SmoothnessSettings | None = None,
        callback: Callable[[StepReport], None] | None = None,
    ) -> FitResult:
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
            A result whose face has batch B; its rows have identity, latent, texture and neutral vertices in common (and
            in memory). ``result.face[i]`` is the person as in photo i. What was measured on a photo may be unusable
            (not finite): then it is left out, with a warning; ``result.used`` holds the numbers of the others.

        Raises:
            InputError: no photo; times without smoothness, of another length or not increasing.
            FitError: no photo can be used, or the fit fails.
        """
        several = list(photos) if isinstance(photos, list | tuple) else [photos]
        if not several or (isinstance(photos, Observation) and photos.batch == 0):
            raise InputError("there is no photo to fit; give at least one observation.")
        photo = Observation.cat([self._taken(item) for item in several])
        times = _moments(times, smoothness, photo.batch)
        measured = _Running(photo)
        measured.replace_unusable()
        for i, reason in measured.failed.items():
            warnings.warn(f"{measured.name(i)}: left out, {reason}.", stacklevel=3)
        used = [i for i in range(photo.batch) if i not in measured.failed]
        if measured.failed:
            photo, times = photo[used], None if times is None else times[used]
        track = None if smoothness is None else Track(smoothness, times)
        return self._fit(_Running(photo, used=tuple(used)), callback, one_person=True, track=track)

    # -- stages ------------------------------------------------------------------------------------

    @in_own_modes
    def initialize(self, photo: Observation, one_person: bool = False) -> Start:
        """Stage 1: the start, by N_enc or from landmarks (Sec. 4.2).

        Args:
            photo: B observed faces.
            one_person: identity and texture are the same in every row, the best for all photos.
        """
        one_person = one_person and photo.batch > 1
        camera = photo.camera
        fallbacks, prediction = {}, None
        if self.regressor is None:
            params = fit_landmarks(
                self.model, photo.landmarks68, camera, photo.mesh468, self.start, shared_identity=one_person,
                averaged=True, scores=photo.expression_scores,
            )  # fmt: skip
            prior = shape_prior(self.model, self.start, photo.expression_scores, photo.batch)
        else:
            params, prediction, fallbacks, prior = start_from_regressor(
                self.model, self.regressor, photo, camera, self.start, self.regressor_start, one_person
            )
        params = params.replace(tone=self._tone(photo, one_person))
        view, vertices = self.objective.prepare(params, camera)
        light, latent = fit_light_and_texture(
            photo, self.decoder, view, vertices, self.model.topology, shared_texture=one_person, tone=params.tone,
            space=self.light_space,
        )  # fmt: skip
        if prediction is not None and self.regressor_start.appearance == "regressor":
            light, latent = predicted_appearance(prediction, self.decoder, params, light, latent, fallbacks, one_person)
        params = params.replace(light=light)
        view, _ = self.objective.prepare(params, camera)
        with torch.no_grad():
            render = view.shade(self.objective.albedo(params, latent).nan_to_num()).surface
        suspect = find_suspects(self.model, photo, params, camera, render, view.rendering.mask)
        return Start(params, latent, fallbacks, suspect, prior)

    def _tone(self, photo: Observation, one_person: bool) -> Tensor | None:
        """(B, 3): the tone that the textures have; None where it is theirs."""
        if self.tone == "off" or photo.tone is None or not has_skin(self.model.topology):
            return None
        return (shared_tone(photo.tone) if one_person else photo.tone).mean

    def _fit(
        self,
        running: _Running,
        callback: Callable[[StepReport], None] | None,
        one_person: bool = False,
        track: Track | None = None,
    ) -> FitResult:
        """The three stages and the detail, of faces or of one person; ``track``: along a video."""
        photo = running.photo
        start = self.initialize(photo, one_person)
        running.lap("start")
        fallbacks, suspect = (
            {i: reason for i, reason in of.items() if i not in running.failed}
            for of in (start.fallbacks, start.suspect)
        )
        for i, reason in fallbacks.items():
            warnings.warn(f"{running.name(i)}: stage 1 starts from its landmarks, {reason}.", stacklevel=4)
        for i, reason in suspect.items():
            warnings.warn(f"{running.name(i)}: suspect, {reason}.", stacklevel=4)
        variables = Variables(
            start.params, start.latent, self.model.expression_bounds, self.decoder, one_person, start.prior
        )
        running.fail(~variables.finite(), "its start from the landmarks and the light is not finite")
        stages = {"start": (start.params, start.latent)}
        history: dict[str, Tensor] = {}
        for stage in self.stages.values():
            if stage.steps == 0:
                continue
            visible = self._unoccluded(photo, variables)
            run = run_stage(self.objective, stage, visible, variables, callback, track, running.failed)
            for text in running.note_stopped(stage, run, first=len(stages) == 1, one_person=one_person):
                warnings.warn(text, stacklevel=4)
            history |= {f"{stage.name}.{term}": values for term, values in run.losses.items()}
            stages[stage.name] = variables.copy()
            running.lap(stage.name)
        running.fill_in(variables)
        observed = self._unoccluded(photo, variables)
        params, irises = variables.current.detach(), None
        if self.detail.enabled and self.detail.eyes:
            params, irises = fit_eyes(observed, params, self.model, one_person, turn=track is None)
        face = self._face(observed, params, variables.code.detach(), history, one_person, irises)
        running.lap("detail" if self.detail.enabled else "texture map")
        running.fail(~finite_rows(face), "its texture or shape is not finite")
        for i, reason in running.failed.items():
            warnings.warn(f"{running.name(i)}: could not be fitted, {reason}.", stacklevel=4)
        return FitResult(
            emptied(face, list(running.failed)), stages, observed, running.failed, running.diverged, fallbacks,
            suspect, running.seconds, running.used or tuple(range(photo.batch)),
        )  # fmt: skip

    def _unoccluded(self, photo: Observation, variables: Variables) -> Observation:
        """The observation without what the head as it stands does not explain."""
        if not self.occlusion.enabled:
            return photo
        with torch.no_grad():
            params, latent = variables.current, variables.code
            vertices, texture = self.model(params), self.objective.albedo(params, latent).nan_to_num()
            hidden = find_occlusion(
                photo, vertices, texture, params.light, photo.camera, self.model.topology, self.occlusion
            )
            for b, given in enumerate(photo.mask_given):
                hidden[b] *= not given
            return mask_occluders(photo, hidden)

    def _face(
        self,
        photo: Observation,
        params: FaceParams,
        latent: Latent,
        history: dict[str, Tensor],
        one_person: bool,
        irises: Irises | None,
    ) -> ReconstructedFace:
        """The heads of fitted variables, with the detail step."""
        with torch.no_grad():
            decoded = self.objective.albedo(params[: len(latent.codes)], latent).clamp(0, 1)
            who = params[:1] if one_person else params
            neutral = self.model.shape(who.replace(expression=torch.zeros_like(who.expression)))
            add = add_shared_detail if one_person and photo.batch > 1 else add_detail
            texture, visibility, residual = add(
                photo, self.model(params), decoded, params.light, photo.camera, self.model.topology, self.detail
            )
            topology, drawn = self.model.topology, []
            if irises is not None:
                several = len(texture) < photo.batch
                heads = neutral if several else self.model.shape(params)
                texture = draw_eyeballs(texture, heads, irises, topology, several, None if several else visibility)
                drawn = ["eyes"]
            if self.detail.enabled and self.detail.mouth:
                texture = draw_mouth(texture, neutral[0], topology)
                drawn += ["mouth", "teeth", "tongue"]
            if drawn:
                texture = pad_islands(texture, topology)
                visibility = visibility * (1 - region_texels(topology, tuple(drawn), texture.shape[-1]))
            if one_person:
                texture, visibility, decoded, codes = (
                    t.expand(photo.batch, *t.shape[1:]) for t in (texture, visibility, decoded, latent.codes)
                )
                latent = latent.replace(codes=codes)
            cameras = [
                camera_in_photo(photo.camera[b], photo.fit.to_photo[b : b + 1], tuple(photo.photo_size[b]))
                for b in range(photo.batch)
            ]
            return ReconstructedFace(
                params=params,
                latent=latent,
                texture=texture,
                decoded=decoded,
                visibility=visibility,
                vertices=self.model.shape(params),
                neutral_vertices=neutral.expand(photo.batch, -1, -1),
                camera=Camera.cat(cameras),
                topology=self.model.topology,
                expression_basis=self.model.expression_basis,
                expression_names=tuple(self.model.expression_names),
                path=tuple(photo.path),
                photo_size=tuple(map(tuple, photo.photo_size)),
                history={name: values.cpu() for name, values in history.items()},
                residual_shading=residual,
                irises=irises,
            )

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
        _check_numbers(photo, {"head model": self.model, "decoder": self.decoder, "identity network": self.identity})
        made, wanted = self.renderer.image_size(photo.camera), tuple(photo.image.shape[-2:])
        if made != wanted:
            raise ConfigError(
                f"the renderer makes {made[0]} x {made[1]} px, the fit crop has {wanted[0]} x {wanted[1]}; use "
                f"Renderer(size={wanted[0]}), or observe(..., crop_size={made[0]})."
            )
        return photo


def _check_numbers(photo: Observation, parts: dict[str, torch.nn.Module]) -> None:
    """Refuse half precision, mixtures of precisions, and parts that cannot take part in a gradient."""
    check_floats("an observation", photo.image, torch.zeros(()), "the fit")
    for name, module in parts.items():
        for tensor in filter(torch.is_floating_point, chain(module.parameters(), module.buffers())):
            check_floats(f"the {name}", tensor, photo.image, "the observation")
            if tensor.is_inference():
                raise ConfigError(f"the {name} was made in torch.inference_mode(); make it, or move it, outside.")


def _moments(times: Any, smoothness: SmoothnessSettings | None, count: int) -> Tensor | None:
    """The times of ``count`` frames, (B,) float64; None where they are evenly spaced."""
    if times is None:
        return None
    if smoothness is None:
        raise InputError("times belong to a video; give smoothness=SmoothnessSettings() too.")
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.shape != (count,):
        raise InputError(f"times must be ({count},), one a frame; got {tuple(times.shape)}.")
    if not bool((times.diff() > 0).all()):
        raise InputError("times must increase from frame to frame; sort the frames, each with its own time.")
    return times


@dataclass
class _Running:
    """A fit while it runs: its photos, and what became of which faces."""

    photo: Observation
    used: tuple[int, ...] = ()  # numbers of the faces among the photos given; () for all
    failed: dict[int, str] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    clock: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self.clock = now - self.clock, now

    def name(self, index: int) -> str:
        """What messages call a face."""
        return str(self.photo.path[index]) if index < len(self.photo.path) else f"face {index}"

    def fail(self, which: Tensor, reason: str) -> None:
        """Note the faces ``which``, (B,) bool, as failed, unless they are already."""
        for i in which.nonzero()[:, 0].tolist():
            self.failed.setdefault(i, reason)

    def replace_unusable(self) -> None:
        """Note unusable faces as failed, and put a usable one in their place: the others are computed as they would be
        beside a usable face, and no batched solver meets a NaN."""
        photo, usable = self.photo, finite_rows(self.photo)
        if not bool(usable.any()):
            raise FitError(f"{self.name(0)}: what was measured on the photo is not finite; observe it again.")
        if not bool(usable.all()):
            self.fail(~usable, "what was measured on it is not finite")
            rows = torch.arange(photo.batch, device=usable.device)
            rows[~usable] = usable.nonzero()[0, 0]
            self.photo = photo[rows].replace(path=photo.path, photo_size=photo.photo_size)

    def note_stopped(self, stage: Stage, run: StageRun, first: bool, one_person: bool) -> list[str]:
        """Note the faces that a stage stopped as diverged, or, in the ``first`` stage without a good state, as failed;
        returns warnings of those that diverged, one of ``one_person``, whose photos stop together."""
        texts = []
        for i, (step, good) in run.stopped.items():
            if i in self.failed:
                continue
            text = f"its loss is not finite or blew up at step {step + 1} of {stage.steps} of stage '{stage.name}'"
            if good or not first:
                self.diverged[i] = f"{text}; kept at its best state before"
                texts += [] if one_person and i > 0 else [f"{self.name(i)}: {self.diverged[i]}."]
            else:
                self.failed[i] = text
        return texts

    def fill_in(self, variables: Variables) -> None:
        """Give failed faces the numbers of one that did not, for what follows to be computed."""
        fine = [i for i in range(self.photo.batch) if i not in self.failed]
        if not fine:
            raise FitError(f"{self.name(0)}: could not be fitted, {self.failed[0]}.")
        if self.failed:
            instead = {name: t[fine[:1]].clone() for name, t in variables.tensors.items()}
            variables.keep(moving_rows(self.photo, self.failed), instead)
