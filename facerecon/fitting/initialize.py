"""Stage 1: a start from landmarks or from N_enc, then light and texture in closed form (Sec. 4.2).

* Pose, identity and expression are the maximum a posteriori of the landmarks under Gaussian priors, by
  Gauss-Newton with the expression inside its bounds and the jaw contour sliding with the pose. The priors are around
  the mean face; or around the prediction of N_enc (the paper's stage 1), whose errors are smaller, and a few steps are
  enough.
* Light and texture alternate two linear least-squares problems on the skin, since I = albedo(z) * shading(gamma)
  is linear in either one.

A photo outside the valid range of N_enc (:class:`RegressorStart`) starts from its landmarks alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, check_number, check_shape
from facerecon.fitting.coefficients import coefficients_to_latent, coefficients_to_params
from facerecon.fitting.expression_scores import read_scores
from facerecon.fitting.tone import tone_derivative
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import GAMMA, encoded_shading, linear_intensity, sh_basis
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix, matrix_to_euler
from facerecon.imaging.warp import crop_affine
from facerecon.morphable import MorphableModel
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.perception.regressor import Coefficients, Regressor
from facerecon.render import FusedView, PreparedView
from facerecon.settings import check_keys
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import Camera, FaceParams, Latent, MeshTopology, Observation, SHLight, TensorStruct

__all__ = [
    "LandmarkStart",
    "RegressorStart",
    "ShapePrior",
    "fit_landmarks",
    "fit_light",
    "fit_light_and_texture",
    "shape_prior",
    "start_from_regressor",
]


_DEVIATION = {"identity": 0.5, "expression": 0.2}  # of N_enc's errors, where its weights do not hold them
_USUAL_SHADING = 0.709  # of the ambient light


@dataclass(frozen=True)
class LandmarkStart:
    """Noise and priors of the landmark fit.

    The noise is wider than a detector's scatter, because its errors on neighboring points go together: half of it gave
    1.16 instead of 0.99 mm of shape error on 20 rendered heads, and 1.34 instead of 1.33 on 14 of ICT-FaceKit.

    Args:
        iterations: Gauss-Newton steps.
        sigma: px, noise of the inner landmarks (eyes, brows, nose, mouth) at a 224 px crop.
        sigma_jaw: px, noise of the jaw contour, which slides.
        sigma_mesh: px, noise of the dense face-mesh points; 0 leaves them out.
        sigma_expression: standard deviation of the expression weights around 0.
        refine: Gauss-Newton steps from the prediction of N_enc; 0 takes the prediction as it is.
        refine_noise: the noise of all points is then this many times wider (at 2, 1.03 became 0.99 mm on 14 rendered
            heads, and 1.27 on 10 of ICT-FaceKit stayed).
        refine_identity: standard deviation of identity around the prediction of N_enc; None: its error of each
            coefficient on unseen faces, which its weights hold, else 0.5.
        refine_expression: standard deviation of expression around the prediction of N_enc; None: its error of each
            coefficient on unseen faces, which its weights hold, else 0.2.
        score_noise: how many times the measured noise the face landmarker's expression scores are given, where they
            add to the prior of the expression; None leaves them out (on 30 rendered heads a start with them, at 1, had
            an error of 0.158 instead of 0.159 in expression and of 1.64 instead of 1.63 mm in the neutral shape).
    """

    iterations: int = 12
    sigma: float = 2.4
    sigma_jaw: float = 6.0
    sigma_mesh: float = 12.0
    sigma_expression: float = 0.25
    refine: int = 3
    refine_noise: float = 2.0
    refine_identity: float | None = None
    refine_expression: float | None = None
    score_noise: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "refine"):
            check_number(f"start.{name}", getattr(self, name), 0, 1000, whole=True)
        for name in ("sigma", "sigma_jaw", "sigma_expression", "refine_noise", "refine_identity", "refine_expression",
                     "score_noise"):  # fmt: skip
            if getattr(self, name) is not None or name not in ("refine_identity", "refine_expression", "score_noise"):
                check_number(f"start.{name}", getattr(self, name), 1e-3)
        check_number("start.sigma_mesh", self.sigma_mesh, 0)

    def refine_covariance(self, count: int, residual: Tensor | None, name: str) -> Tensor:
        """(K, K) of ``identity`` or ``expression`` around N_enc's prediction; ``residual``: that of its weights."""
        given = {"identity": self.refine_identity, "expression": self.refine_expression}[name]
        if given is None and residual is not None:
            covariance = residual if residual.dim() == 2 else torch.diag(residual**2)
            return covariance + 1e-6 * torch.eye(count).to(covariance)
        return torch.eye(count) * (_DEVIATION[name] if given is None else given) ** 2


@dataclass(frozen=True)
class RegressorStart:
    """When the prediction of N_enc is used, and what of it; other faces start from their landmarks.

    Args:
        max_yaw: degrees; a head turned farther, by its landmarks or by N_enc, starts from its landmarks (up to 70 N_enc
            was ahead of them, beyond half of the faces were not found).
        smallest_face: px of the photo; a face whose box is smaller starts from its landmarks.
        max_error: px at a 224 px crop; a face whose inner landmarks are, on average, farther from those of the
            predicted head starts from its landmarks.
        mirrored: take the mean of the predictions for the photo and its mirror image (1.02 became 0.98 mm on 14
            rendered heads, 1.27 became 1.26 on 10 of ICT-FaceKit).
        realigned: predict again on the crop that the landmarks of the first predicted head ask for: the landmarks
            found in the photo, by which the first crop is cut out, err by more (on rendered heads by up to 16 px and
            6 %).
        appearance: where light and texture of the start come from: ``closed``, least squares on the skin; or
            ``regressor``, which needs the linear decoder that N_enc was trained with.

    Raises:
        ConfigError: an unknown ``appearance``.
    """

    max_yaw: float = 70
    smallest_face: float = 48
    max_error: float = 10
    mirrored: bool = True
    realigned: bool = True
    appearance: str = "closed"

    def __post_init__(self) -> None:
        check_keys([self.appearance], ("closed", "regressor"), "source of the start's light")
        for name in ("max_yaw", "smallest_face", "max_error"):
            check_number(f"regressor.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class ShapePrior(TensorStruct):
    """What stage 1 holds a shape to before it looks at the image: Gaussians, with which stage 3 goes on.

    Args:
        identity: (B, I), the mean face's, or N_enc's prediction.
        expression: (B, E), likewise.
        identity_deviation: (B, I), standard deviations around them.
        expression_deviation: (B, E), likewise.
        landmark_noise: (B, 68 + M) px at a 224 px crop, of the 68 landmarks and of the head's M face-mesh points.
    """

    identity: Tensor
    expression: Tensor
    identity_deviation: Tensor
    expression_deviation: Tensor
    landmark_noise: Tensor


def _weak_perspective(points3d: Tensor, points2d: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Rotation (B, 3, 3) and translation (B, 3) of model points (B, N, 3) that are seen at (B, N, 2) px: orthography
    with scaling, least squares for two rows of s R, then orthonormalized."""
    design = torch.cat([points3d, torch.ones_like(points3d[..., :1])], -1)
    # "gels", not the default "gelsy": that starts from memory it never sets, so that two runs differ in the last digits
    rows = torch.linalg.lstsq(design, points2d, driver="gels").solution.mT  # (B, 2, 4), px per unit; y down
    right, up = rows[:, 0, :3], -rows[:, 1, :3]
    scale = 0.5 * (right.norm(dim=-1) + up.norm(dim=-1))
    turn = torch.stack([right, up], 1)
    u, _, v = torch.linalg.svd(torch.where(turn.isfinite(), turn, 0))  # which refuses a whole batch for one NaN
    flat = u @ v[:, :2]
    rotation = torch.stack([flat[:, 0], flat[:, 1], torch.linalg.cross(flat[:, 0], flat[:, 1])], 1)
    focal = camera.focal if camera.focal.dim() == 1 else camera.focal.mean(1)
    depth = focal / scale.clamp(min=1e-3)
    center = rows[:, :, 3] - camera.center
    along = torch.stack([center[:, 0] / focal * depth, center[:, 1] / focal * depth, depth], -1)
    translation = torch.einsum("bji,bj->bi", camera.rotation, along - camera.translation)
    return rotation, translation


def fit_landmarks(
    model: MorphableModel,
    landmarks: Tensor,
    camera: Camera | None = None,
    mesh_points: Tensor | None = None,
    settings: LandmarkStart | None = None,
    shared_identity: bool = False,
    shared_expression: bool = False,
    averaged: bool = False,
    start: FaceParams | None = None,
    start_residual: Mapping[str, Tensor | None] | None = None,
    scores: Tensor | None = None,
) -> FaceParams:
    """Pose, identity and expression from 68 landmarks (and dense mesh points) in one photo each.

    Minimizes ``sum |p_i - l_i|^2 / sigma_i^2 + |p_id|^2 + |p_exp|^2 / sigma_e^2`` by Gauss-Newton; the candidates
    of the sliding jaw are chosen anew in each iteration. Several photos of one person share what the flags say: their
    normal equations are joined, and the prior of a shared coefficient counts once. Without
    ``start`` the light is ambient, and there is no albedo.

    Args:
        model: head model.
        landmarks: (B, 68, 2), pixels of the camera's image.
        camera: of batch B; ``Camera.deep3d()`` if left out.
        mesh_points: (B, 468, 2 or 3), pixels; the stable ones (``topology.mesh_points``) are used.
        settings: noise and priors.
        shared_identity: the B photos show one person: one identity for all, in every row of the result.
        shared_expression: and that person's face does not move between them.
        averaged: of shared coefficients, minimize the mean of the photos' errors plus the prior, not their sum: right
            where errors go together (a landmark net's do). On 12 rendered heads of three photos the mean gave 0.90 mm
            of shape error, the sum 0.95, one photo 0.92.
        start: of batch B, where to start from, in ``settings.refine`` steps: the noise is then ``refine_noise`` times
            wider, and the priors are around its identity and expression (of shared ones around the mean over the
            photos). Light and albedo are passed on.
        start_residual: {"identity": (I,) or (I, I), "expression": (E,) or (E, E)}, standard deviations or covariances
            of those priors where ``refine_identity`` and ``refine_expression`` are None.
        scores: (B, 52) expression scores of the face landmarker, which join the prior of the expression.
    """
    check_shape("landmarks", landmarks, "B 68 2")
    settings, residual = settings or LandmarkStart(), start_residual or {}
    camera = camera or Camera.deep3d(batch=len(landmarks), device=landmarks.device)
    with torch.no_grad():
        points = _compared_points(model, landmarks, mesh_points, settings)
        if start is None:
            coefficients = landmarks.new_zeros(len(landmarks), model.num_identity + model.num_expression)
            inner = points.candidates[0, 17:, 0].expand(len(landmarks), -1, -1)
            rotation, translation = _weak_perspective(inner, landmarks[:, 17:], camera)
            prior = _coefficient_prior(model, coefficients, settings, shared_identity, shared_expression, None, scores)
        else:
            points = replace(points, sigma=points.sigma * settings.refine_noise)
            coefficients = torch.cat([start.identity, start.expression], 1)
            prior = _coefficient_prior(
                model, coefficients, settings, shared_identity, shared_expression, residual, scores
            )
            coefficients, rotation, translation = prior.center, euler_to_matrix(start.rotation), start.translation
        if averaged:
            prior.precision[prior.shared.outer(prior.shared)] *= len(landmarks)
        for _ in range(settings.iterations if start is None else settings.refine):
            jacobian, error = _linearized(model, points, camera, coefficients, rotation, translation)
            normal = jacobian.mT @ jacobian
            right = (jacobian.mT @ error[..., None])[..., 0]
            step = (_joint_step if prior.shared.any() else _single_steps)(normal, right, coefficients, prior)
            rotation = torch.matrix_exp(_skew(-step[:, :3])) @ rotation
            translation = translation - step[:, 3:6]
            coefficients = (coefficients - step[:, 6:]).clamp(prior.low, prior.high)
    batch, n_id = len(landmarks), model.num_identity
    albedo = coefficients.new_zeros(batch, model.num_albedo) if start is None else start.albedo
    light = SHLight.ambient(batch, landmarks.device) if start is None else start.light
    identity, expression = coefficients[:, :n_id], coefficients[:, n_id:]
    return FaceParams(identity, expression, albedo, matrix_to_euler(rotation), translation, light)


@dataclass(frozen=True)
class _Points:
    """The points of a head that are compared with those of the photos."""

    basis: Tensor  # (1 + K, V, 3), mean and components, K = I + E
    candidates: Tensor  # (1 + K, 68, C, 3), of each landmark
    dense: Tensor | None  # (1 + K, M, 3) dense mesh points
    target: Tensor  # (B, 68 + M, 2) px
    sigma: Tensor  # (68 + M,) px, their noise


def _compared_points(
    model: MorphableModel, landmarks: Tensor, mesh_points: Tensor | None, settings: LandmarkStart
) -> _Points:
    """The 68 landmarks, and the stable dense points where they are given and used."""
    topology, dtype = model.topology, landmarks.dtype
    sigma = _point_noise(model, settings).to(dtype)
    basis = torch.cat([model.mean[None], model.identity_basis, model.expression_basis])  # (1 + I + E, V, 3)
    corners = topology.faces[topology.landmark_faces]  # (68, K, 3)
    candidates = (basis[:, corners] * topology.landmark_barycentric.to(dtype)[..., None]).sum(-2)
    target, dense = landmarks, None
    if mesh_points is not None and settings.sigma_mesh > 0 and topology.mesh_points.numel():
        corners = topology.faces[topology.mesh_point_faces]
        dense = (basis[:, corners] * topology.mesh_point_barycentric.to(dtype)[..., None]).sum(-2)
        target = torch.cat([target, mesh_points[:, topology.mesh_points, :2]], 1)
    return _Points(basis, candidates, dense, target, sigma[: target.shape[1]])


def _point_noise(model: MorphableModel, settings: LandmarkStart) -> Tensor:
    """(68 + M,) px, noise of the 68 landmarks and of the face-mesh points where they are used."""
    mesh = len(model.topology.mesh_points) if settings.sigma_mesh > 0 else 0
    sigma = model.mean.new_tensor([settings.sigma_jaw, settings.sigma, settings.sigma_mesh])
    return sigma.repeat_interleave(torch.tensor([17, 51, mesh], device=sigma.device))


def shape_prior(
    model: MorphableModel,
    settings: LandmarkStart,
    scores: Tensor | None = None,
    batch: int = 1,
    prediction: FaceParams | None = None,
    residual: Mapping[str, Tensor | None] | None = None,
) -> ShapePrior:
    """What :func:`fit_landmarks` with these settings holds shapes to.

    Args:
        model: head model.
        settings: noise and priors.
        scores: (B, 52), as of :func:`fit_landmarks`.
        batch: B, of a start without ``prediction``.
        prediction: of N_enc, which the prior is around; None: the mean face.
        residual: its errors, as of :func:`fit_landmarks`.
    """
    noise, n_id = _point_noise(model, settings), model.num_identity
    if prediction is None:
        center, residual = model.mean.new_zeros(batch, n_id + model.num_expression), None
    else:
        center, residual = torch.cat([prediction.identity, prediction.expression], 1), residual or {}
        # what moves eyes and mouth is the expression, of which the prediction knows less than of the identity
        wider = torch.full_like(noise, settings.refine_noise)
        wider[36:68] = 1.0
        noise = noise * wider
    prior = _coefficient_prior(model, center, settings, False, False, residual, scores)
    deviation = torch.linalg.inv(prior.precision.double()).diagonal().sqrt().to(prior.center).expand_as(prior.center)
    return ShapePrior(
        prior.center[:, :n_id], prior.center[:, n_id:], deviation[:, :n_id], deviation[:, n_id:],
        noise.expand(len(center), -1),
    )  # fmt: skip


@dataclass(frozen=True)
class _Prior:
    """Gaussian prior and bounds of the coefficients, identity before expression."""

    center: Tensor  # (B, K)
    precision: Tensor  # (K, K), inverse covariance
    low: Tensor  # (K,)
    high: Tensor  # (K,)
    shared: Tensor  # (K,) bool: one value for all photos


def _coefficient_prior(
    model: MorphableModel,
    center: Tensor,
    settings: LandmarkStart,
    shared_identity: bool,
    shared_expression: bool,
    residual: Mapping[str, Tensor | None] | None = None,
    scores: Tensor | None = None,
) -> _Prior:
    """The prior around ``center`` (B, K), around N_enc's prediction where the ``residual`` of its weights is given; and
    what the scores (B, 52) say, by the precisions of both."""
    n_id, n_exp = model.num_identity, model.num_expression
    low = center.new_full((n_id + n_exp,), -torch.inf)
    high = -low
    if model.expression_bounds is not None:
        low[n_id:], high[n_id:] = model.expression_bounds
    precision = torch.eye(n_id + n_exp, dtype=center.dtype, device=center.device)
    precision[n_id:, n_id:] *= settings.sigma_expression**-2
    shared = torch.cat([center.new_full((n_id,), shared_identity), center.new_full((n_exp,), shared_expression)]).bool()
    if residual is not None:
        for part, name in ((slice(n_id), "identity"), (slice(n_id, None), "expression")):
            covariance = settings.refine_covariance(len(precision[part]), residual.get(name), name)
            precision[part, part] = torch.linalg.inv(covariance.double()).to(precision)
    scored = None if scores is None or settings.score_noise is None else read_scores(model.expression_names, scores)
    if scored is not None:
        at, more = n_id + scored.index, (settings.score_noise * scored.noise) ** -2
        held = precision[at, at]
        center[:, at] = (held * center[:, at] + more * scored.value) / (held + more)
        precision[at, at] += more
    if residual is not None or scored is not None:
        center = center.clamp(low, high)
        center[:, shared] = center[:, shared].mean(0, keepdim=True)
    return _Prior(center, precision, low, high, shared)


def _linearized(
    model: MorphableModel, points: _Points, camera: Camera, coefficients: Tensor, rotation: Tensor, translation: Tensor
) -> tuple[Tensor, Tensor]:
    """Jacobian (B, 2 N, 6 + K) in rotation, translation and coefficients, and errors (B, 2 N), both over the noise."""
    batch = len(coefficients)
    focal = camera.focal if camera.focal.dim() == 2 else camera.focal[:, None].expand(-1, 2)
    vertices = model.mean + torch.einsum("bk,kvc->bvc", coefficients, points.basis[1:])
    posed = vertices @ rotation.mT + translation[:, None]
    shares = model.candidate_weights(posed, camera)  # (B, 68, K)
    jaw = torch.einsum("mjkc,bjk->bmjc", points.candidates[:, :17], shares[:, :17])
    fixed = [points.candidates[:, 17:, 0]] + ([] if points.dense is None else [points.dense])
    picked = torch.cat([jaw, *(part.expand(batch, -1, -1, -1) for part in fixed)], 2)  # (B, 1 + I + E, 68 + M, 3)
    local = picked[:, 0] + torch.einsum("bk,bknc->bnc", coefficients, picked[:, 1:])
    turned = local @ rotation.mT
    in_camera = (turned + translation[:, None]) @ camera.rotation.mT + camera.translation[:, None]
    depth = in_camera[..., 2:].clamp(min=1e-3)
    # dp/dY: pinhole, then the crop's affine map
    zero = torch.zeros_like(depth[..., 0])
    fx, fy = focal[:, :1] / depth[..., 0], focal[:, 1:] / depth[..., 0]
    pinhole = torch.stack(
        [fx, zero, -fx * in_camera[..., 0] / depth[..., 0], zero, fy, -fy * in_camera[..., 1] / depth[..., 0]], -1
    ).view(batch, -1, 2, 3)
    d_world = camera.warp[:, None, :, :2] @ pinhole @ camera.rotation[:, None]  # (B, N, 2, 3)
    d_shape = torch.einsum("bnij,bjk,bmnk->bnim", d_world, rotation, picked[:, 1:])
    d_rotation = -d_world @ _skew(turned)
    projected = project(camera, turned + translation[:, None])[..., :2]
    jacobian = torch.cat([d_rotation, d_world, d_shape], -1) / points.sigma[:, None, None]
    error = (projected - points.target) / points.sigma[:, None]
    return jacobian.flatten(1, 2), error.flatten(1)


def _single_steps(normal: Tensor, right: Tensor, coefficients: Tensor, prior: _Prior) -> Tensor:
    """(B, 6 + K) steps of faces that have nothing in common; normal equations (B, 6 + K, 6 + K) and (B, 6 + K)."""
    right[:, 6:] += (coefficients - prior.center) @ prior.precision
    stiff = torch.block_diag(1e-4 * torch.eye(6).to(prior.precision), prior.precision)
    # a coefficient at its bound, which would leave it, stays where it is
    held = ((coefficients <= prior.low) & (right[:, 6:] > 0)) | ((coefficients >= prior.high) & (right[:, 6:] < 0))
    free = torch.cat([held.new_ones(len(right), 6), ~held], 1).to(right)
    system = (normal + stiff) * free[:, :, None] * free[:, None] + torch.diag_embed(1 - free)
    return _solved(system, right * free)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """x of ``system`` x = ``right``, (..., K, K) symmetric positive definite and (..., K); NaN where it is not: one bad
    face must not throw for all of a batch.

    By Cholesky: several LU factorizations at once, by threads, break off or are wrong in the oneMKL of torch 2.12 on
    some CPUs (AMD EPYC with AVX2, 4 x 218 x 218).
    """
    factor, failed = torch.linalg.cholesky_ex(system.double())
    step = torch.cholesky_solve(right[..., None].double(), factor)[..., 0]
    return torch.where(failed[..., None] == 0, step, torch.nan).to(right)


def _joint_step(normal: Tensor, right: Tensor, coefficients: Tensor, prior: _Prior) -> Tensor:
    """The same for photos of one face: the columns of shared coefficients are one unknown for all photos."""
    (batch, width), shared = right.shape, prior.shared
    apart = torch.cat([shared.new_ones(6), ~shared])  # columns that each photo has for itself
    column = torch.empty(batch, width, dtype=torch.int64, device=right.device)
    column[:, apart] = torch.arange(batch * int(apart.sum()), device=right.device).view(batch, -1)
    column[:, ~apart] = torch.arange(int((~apart).sum()), device=right.device) + batch * int(apart.sum())
    total = int(column.max()) + 1
    joint, vector = normal.new_zeros(total, total), right.new_zeros(total)
    stiff, value, away = joint.clone(), vector.clone(), vector.clone()
    lowest, highest = vector.new_full((total,), -torch.inf), vector.new_full((total,), torch.inf)
    for b in range(batch):
        at, inner = column[b], column[b, 6:]
        joint[at[:, None], at] += normal[b]
        vector[at] += right[b]
        stiff[at[:6], at[:6]] = 1e-4
        stiff[inner[:, None], inner], value[inner] = prior.precision, coefficients[b]
        lowest[inner], highest[inner] = prior.low, prior.high
        away[inner] = coefficients[b] - prior.center[b]
    vector += stiff @ away
    held = ((value <= lowest) & (vector > 0)) | ((value >= highest) & (vector < 0))
    free = (~held).to(vector)
    system = (joint + stiff) * free[:, None] * free + torch.diag(1 - free)
    return _solved(system, vector * free)[column]


def _skew(vector: Tensor) -> Tensor:
    """(..., 3) -> (..., 3, 3), the matrix of the cross product."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


# -- from N_enc ------------------------------------------------------------------------------------------


def check_regressor(
    regressor: Regressor,
    settings: RegressorStart,
    model: MorphableModel,
    decoder: TextureDecoder,
    light_space: str = "encoded",
) -> None:
    """Refuse a regressor of another head, or of another kind of texture; the message tells what would fit."""
    config = regressor.config
    if config.face_model != model.name or config.expression != model.num_expression:
        raise ConfigError(
            f"the regressor is for face model '{config.face_model}' with {config.expression} expressions; this fit's "
            f"is '{model.name}' with {model.num_expression}. Use load_regressor(model)."
        )
    if settings.appearance == "regressor" and decoder.space != "linear":
        raise ConfigError(
            f"light and texture of the regressor need the linear decoder it was trained with ('{config.decoder}'); the "
            f"fit's is of space '{decoder.space}'. Use appearance=closed."
        )
    if settings.appearance == "regressor" and light_space != "encoded":
        raise ConfigError("light of the regressor multiplies encoded values; use light_space=encoded, tone=off.")


def start_from_regressor(
    model: MorphableModel,
    regressor: Regressor,
    photo: Observation,
    camera: Camera,
    landmarks: LandmarkStart | None = None,
    settings: RegressorStart | None = None,
    shared_identity: bool = False,
) -> tuple[FaceParams, Coefficients, dict[int, str], ShapePrior]:
    """Pose, identity and expression predicted by N_enc from the fit crop, refined on the landmarks.

    Args:
        model: head model.
        regressor: N_enc of that model.
        photo: B observed faces.
        camera: of the fit crop.
        landmarks: settings of the refinement, and of the faces outside the valid range of N_enc.
        settings: that range.
        shared_identity: the B photos show one person, whose identity is refined around the mean prediction for those
            in the valid range; the others start there, with the pose and expression of their landmarks.

    Returns:
        Parameters of batch B (light and albedo are N_enc's; ambient and zero outside its valid range), the prediction
        for the crop as it is, {index: why} of the faces that start from their landmarks, and what the shapes were held
        to.
    """
    landmarks, settings = landmarks or LandmarkStart(), settings or RegressorStart()
    points, scores = (photo.landmarks68, camera, photo.mesh468), photo.expression_scores
    shared = {"shared_identity": True, "averaged": True, "scores": scores}
    with torch.no_grad():
        image = regressor.sized(photo.image)
        prediction = regressor(image)
        first = _predicted(model, regressor, image, settings.mirrored, prediction)
        if settings.realigned:
            first = _realigned(model, regressor, photo.image, first, camera, settings.mirrored)
        reasons = outside_valid_range(model, first, photo, camera, settings)
        if regressor.shape_head is not None:
            by_points = fit_landmarks(model, *points, landmarks, **(shared if shared_identity else {"scores": scores}))
            first = first.replace(identity=_shape(regressor, by_points))
        known = {name: regressor.residual(name) for name in ("identity", "expression")}
        if known["identity"] is not None:  # components that the regressor lacks are as the prior has them
            known["identity"] = _with_prior(known["identity"], model.num_identity)
        if not shared_identity:
            params = fit_landmarks(model, *points, landmarks, start=first, start_residual=known, scores=scores)
            prior = shape_prior(model, landmarks, scores, prediction=first, residual=known)
            if reasons:
                rows = torch.tensor(sorted(reasons), device=photo.image.device)
                given = None if scores is None else scores[rows]
                instead = fit_landmarks(model, *(part[rows] for part in points), landmarks, scores=given)
                order = torch.arange(photo.batch, device=rows.device)
                order[rows] = photo.batch + torch.arange(len(rows), device=rows.device)
                params = FaceParams.cat([params, instead])[order]
                prior = ShapePrior.cat([prior, shape_prior(model, landmarks, given, len(rows))])[order]
            return params, prediction, reasons, prior
        if reasons:
            instead = fit_landmarks(model, *points, landmarks, **shared)
            good = [i for i in range(photo.batch) if i not in reasons]
            if not good:
                return instead, prediction, reasons, shape_prior(model, landmarks, scores, photo.batch)
            rows = torch.arange(photo.batch, device=photo.image.device)
            rows[list(reasons)] += photo.batch
            mean = first.identity[good].mean(0).expand_as(instead.identity)
            first = FaceParams.cat([first, instead.replace(identity=mean)])[rows]
        params = fit_landmarks(model, *points, landmarks, **shared, start=first, start_residual=known)
        prior = shape_prior(model, landmarks, scores, prediction=first, residual=known)
    return params, prediction, reasons, prior


def _shape(regressor: Regressor, by_points: FaceParams) -> Tensor:
    """(B, I): identity by the shape head of N_enc's weights, from fits to the landmarks."""
    count = by_points.identity.shape[1]
    known = regressor.config.identity
    fitted = F.pad(by_points.identity, (0, known - count))
    identity = regressor.shape(fitted, by_points.rotation[:, 1])
    return F.pad(identity, (0, count - known))


def _with_prior(residual: Tensor, count: int) -> Tensor:
    """Deviations (K,) or a covariance (K, K) for the first ``count`` coefficients, standard normal where K is less."""
    more = max(0, count - len(residual))
    if residual.dim() == 1:
        return F.pad(residual, (0, more), value=1.0)[:count]
    return torch.block_diag(residual, torch.eye(more).to(residual))[:count, :count]


def predicted_appearance(
    prediction: Coefficients,
    decoder: TextureDecoder,
    params: FaceParams,
    light: SHLight,
    latent: Latent,
    fallbacks: Collection[int],
    one_person: bool,
) -> tuple[SHLight, Latent]:
    """Light, already in ``params``, and texture code of N_enc; those of ``fallbacks`` are ``light`` and ``latent``, in
    closed form; one person has the mean code of the photos in the valid range."""
    codes, gamma = coefficients_to_latent(prediction, decoder).codes, params.light.coefficients
    for i in fallbacks:
        gamma[i], codes[i] = light.coefficients[i], latent.codes[i]
    if one_person:
        valid = [i for i in range(len(codes)) if i not in fallbacks] or slice(None)
        codes = codes[valid].mean(0, keepdim=True).expand_as(codes)
    return light.replace(coefficients=gamma), Latent(codes, latent.space)


def _predicted(
    model: MorphableModel, regressor: Regressor, image: Tensor, mirrored: bool, prediction: Coefficients
) -> FaceParams:
    """The ``prediction`` for images; ``mirrored``: its mean with that for their mirror images, but for the light, which
    goes with the predicted texture."""
    one, count = coefficients_to_params(prediction, model), len(image)
    if not mirrored:
        return one
    other = model.mirrored(coefficients_to_params(regressor(image.flip(-1)), model))
    mean = FaceParams.cat([one, other]).map(lambda t: (t[:count] + t[count:]) / 2)
    return mean.replace(light=one.light)


def _realigned(
    model: MorphableModel, regressor: Regressor, image: Tensor, first: FaceParams, camera: Camera, mirrored: bool
) -> FaceParams:
    """Pose, identity and expression predicted from the crops that are aligned by the landmarks of the ``first``
    prediction, in the frame of ``camera``; ``first`` where its landmarks ask for a crop far from ``image``."""
    frame, side = Camera.deep3d(batch=len(image), device=image.device), image.shape[-1]  # of N_enc's parameters
    whole, middle = frame.size[0], frame.center
    points = project(camera, model.landmarks3d(model(first), camera))[..., :2]
    wanted = deep3d_crop_transform(points * (whole / side), MEAN_FIVE_POINTS, whole)  # its px -> those of this crop
    growth, shift = wanted[:, 0, 0], wanted[:, :, :2].sum(2) * middle + wanted[:, :, 2] - middle
    near = (growth.log().abs() < 0.2) & (shift.norm(dim=1) < 32)
    still = torch.eye(2, 3, device=image.device).expand_as(wanted)
    wanted = torch.where(near[:, None, None], wanted.nan_to_num(), still)
    size = regressor.config.size
    to_image = torch.cat([wanted[:, :, :2] * (side / size), wanted[:, :, 2:] * (side / whole)], 2)
    crop = crop_affine(image, to_image, size).contiguous(memory_format=torch.channels_last)
    again = _predicted(model, regressor, crop, mirrored, regressor(crop))
    # back to this crop: farther away where it is larger there, and at the place that is shown here
    shown = project(frame, again.translation[:, None])[:, 0, :2]
    place = (wanted[:, :, :2] @ shown[:, :, None])[:, :, 0] + wanted[:, :, 2] - middle
    distance = frame.translation[:, 2]
    depth = (distance - again.translation[:, 2]) / wanted[:, 0, 0]
    across = place * (depth / frame.focal)[:, None] * place.new_tensor([1.0, -1.0])
    moved = torch.cat([across, (distance - depth)[:, None]], 1)
    again = again.replace(translation=moved, light=first.light)
    rows = torch.arange(len(near), device=image.device)
    return FaceParams.cat([again, first])[torch.where(near, rows, len(near) + rows)]


def outside_valid_range(
    model: MorphableModel, params: FaceParams, photo: Observation, camera: Camera, settings: RegressorStart
) -> dict[int, str]:
    """{index: why} of the faces for which the prediction of N_enc, ``params``, is not used."""
    fixed = model.landmarks3d(model.mean[None])[:, 17:].expand(photo.batch, -1, -1)
    turn, _ = _weak_perspective(fixed, photo.landmarks68[:, 17:], camera)
    turns = torch.stack([turn, euler_to_matrix(params.rotation)])  # of the landmarks, and of N_enc
    yaws = torch.rad2deg(torch.atan2(turns[..., 0, 2], turns[..., 2, 2])).abs().amax(0)
    points = project(camera, model.landmarks3d(model(params), camera))[..., :2]
    apart = (points - photo.landmarks68)[:, 17:].norm(dim=-1).mean(1) * (224 / photo.image.shape[-1])
    sides = (photo.box[:, 2:] - photo.box[:, :2]).amin(1)
    reasons: dict[int, str] = {}
    for i, (yaw, error, side) in enumerate(zip(yaws.tolist(), apart.tolist(), sides.tolist(), strict=True)):
        if not math.isfinite(error):
            reasons[i] = "the regressor's prediction is not finite"
        elif side < settings.smallest_face:
            reasons[i] = f"its face is {side:.0f} px wide, under {settings.smallest_face:g}"
        elif yaw > settings.max_yaw:
            reasons[i] = f"its head is turned by {yaw:.0f} degrees, over {settings.max_yaw:g}"
        elif error > settings.max_error:
            reasons[i] = f"the regressor's head misses its landmarks by {error:.1f} px, over {settings.max_error:g}"
    return reasons


# -- light and texture -----------------------------------------------------------------------------------


def fit_light(
    image: Tensor,
    albedo: Tensor,
    normals: Tensor,
    prior: float = 0.02,
    color_prior: float = 0.2,
    rounds: int = 3,
    space: str = "encoded",
) -> Tensor:
    """SH light (9, 3) of one face in closed form: ridge least squares of ``image = albedo * shading(Y(n) gamma)``.

    Args:
        image, albedo, normals: (P, 3) at P skin pixels; normals are unit vectors in the world.
        prior: weight that pulls gamma to the ambient light.
        color_prior: that pulls it to a white one.
        rounds: of reweighting, which discounts shadows, highlights and hair.
        space: of the light, as of :class:`~facerecon.types.SHLight`. Linear light is solved for on intensities, whose
            errors count as they would on encoded values.
    """
    basis = sh_basis(normals)  # (P, 9)
    kind = {"dtype": image.dtype, "device": image.device}
    ambient = SHLight.ambient(1, image.device, space)
    start, strength, channels = (
        ambient.coefficients[0].to(**kind),
        torch.full((9,), prior, **kind),
        torch.eye(3, **kind),
    )
    strength[0] = prior * 0.1
    # unknowns: 9 bands x 3 channels, coupled by the prior on white light
    to_start = torch.kron(channels, torch.diag(strength))
    to_white = color_prior * 0.05 * torch.kron(channels - 1 / 3, torch.eye(9, **kind))
    weight, gamma, seen, base, slope = torch.ones_like(image[:, :1]), start, image, albedo, torch.ones_like(image)
    if space == "linear":
        seen, base = linear_intensity(image), linear_intensity(albedo)
    for _ in range(rounds):
        if space == "linear":
            render = albedo * encoded_shading(basis @ gamma, ambient)
            slope = (render.clamp(min=0.1) ** (1 - GAMMA) / GAMMA).square()
        scale = weight.sum().clamp(min=1e-6)
        designs = [basis * base[:, c : c + 1] for c in range(3)]
        weighted = [(design * weight * slope[:, c : c + 1]).mT / scale for c, design in enumerate(designs)]
        system = torch.block_diag(*[left @ design for left, design in zip(weighted, designs, strict=True)])
        right = torch.stack([left @ seen[:, c] for c, left in enumerate(weighted)])
        right = right + (start * strength[:, None]).mT
        gamma = torch.linalg.solve_ex(system + to_start + to_white, right.flatten())[0].view(3, 9).mT
        shading = encoded_shading(basis @ gamma, ambient)
        error = (image - albedo * shading).abs().mean(1, keepdim=True)
        weight = 1 / (1 + (error / 0.08).square())
    return gamma


def fit_light_and_texture(
    photo: Observation,
    decoder: TextureDecoder,
    view: PreparedView | FusedView,
    vertices: Tensor,
    topology: MeshTopology,
    rounds: int = 3,
    prior: float = 2e-4,
    stride: int = 3,
    shared_texture: bool = False,
    tone: Tensor | None = None,
    space: str = "encoded",
) -> tuple[SHLight, Latent]:
    """Light and texture code of each photo in closed form.

    Args:
        photo: B observed faces.
        decoder: the texture model; its :meth:`~facerecon.stylegan.decoder.TextureDecoder.start_basis` is solved for.
        view: ``Renderer.prepare`` of the fitted heads at the size of the fit crop.
        vertices: (B, V, 3), posed.
        topology: the mesh.
        rounds: of alternation between light and texture.
        prior: weight of |z|^2 against the mean squared error of the pixels.
        stride: use every ``stride``-th skin pixel.
        shared_texture: the B photos show one person: one code for all, in every row of the result, which minimizes the
            mean of their errors; the prior counts once.
        tone: (B, 3), which the texture has whatever its code is (:func:`~facerecon.fitting.tone.toned`, to first order
            in the code); then light may be of any color and strength.
        space: of the light.
    """
    batch, device, faces = photo.batch, photo.image.device, topology.faces
    lights = list(SHLight.ambient(batch, device, space).coefficients)
    with torch.no_grad():
        mean, components = decoder.start_basis()
        stack = torch.cat([mean[None], components]).flatten(0, 1)[None]  # (1, 3 (1 + K), s, s)
        normals_of = F.normalize(view.found.interpolate(vertex_normals(vertices, faces), faces), dim=-1)
        pixels, grids, all_normals = (view.found.split(t) for t in (view.found.pixel, view.look_ups, normals_of))
        area = photo.image.shape[-2] * photo.image.shape[-1]
        codes = torch.zeros(batch, len(components), device=device)
        shown = {}
        if tone is not None:
            usual, follows = tone_derivative(mean, components, topology)
        for b in range(batch):
            at = pixels[b] - b * area
            skin = (photo.skin_mask[b].flatten()[at] > 0.5).nonzero()[::stride, 0]
            if len(skin) < 50:
                continue
            image = photo.image[b].flatten(1)[:, at[skin]].T
            normals, grid = all_normals[b][skin], grids[b][skin][None, None]
            at_pixels = F.grid_sample(stack, grid, align_corners=False, padding_mode="border")
            at_pixels = at_pixels[0, :, 0].view(1 + len(components), 3, -1).permute(2, 1, 0)  # (P, 3, 1 + K)
            if tone is not None:
                kept = at_pixels[..., 1:] - at_pixels[..., :1] * follows.T
                at_pixels = torch.cat([at_pixels[..., :1], kept], -1) * (tone[b] - usual).exp()[:, None]
            shown[b] = image, normals, sh_basis(normals), at_pixels

        def equations(b: int) -> tuple[Tensor, Tensor]:
            """The light of a photo under its code, and the normal equations of the code in that light."""
            image, normals, basis, at_pixels = shown[b]
            albedo = (at_pixels[..., 0] + at_pixels[..., 1:] @ codes[b]).clamp(0.02, 1)
            cast = albedo.new_ones(3)
            if tone is not None:  # the light is free in color and strength: its priors are those of a usual one
                cast = (image / albedo).median(0).values.clamp(0.05, 5) / _USUAL_SHADING
            lights[b] = fit_light(image, albedo * cast, normals, space=space)
            lights[b] = lights[b] * (cast if space == "encoded" else linear_intensity(cast))
            light = SHLight(lights[b], space)
            shading = encoded_shading(basis @ lights[b], light)[..., None]  # (P, 3, 1)
            design = (at_pixels[..., 1:] * shading).flatten(0, 1)
            rest = (image - at_pixels[..., 0] * shading[..., 0]).flatten()
            weight = 1 / (1 + ((rest - design @ codes[b]) / 0.1).square())
            return (design * weight[:, None]).T @ design / len(rest), design.T @ (weight * rest) / len(rest)

        ridge = prior * torch.eye(len(components), device=device)
        for group in [list(shown)] if shared_texture and shown else [[b] for b in shown]:
            for _ in range(rounds):
                normal, right = (sum(parts) / len(group) for parts in zip(*map(equations, group), strict=True))
                code = torch.linalg.solve_ex(normal + ridge, right)[0]
                codes[slice(None) if shared_texture else group] = code
        start = decoder.from_start(codes)
    return SHLight(torch.stack(lights), space), Latent(start, decoder.space)
