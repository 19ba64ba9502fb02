"""A photo into the generator: the code whose picture shows the same face (Sec. 3.1.1, the part of e4e).

Alignment as FFHQ was made, a linear encoder for the start, then optimization: first w, under the Gaussian that W is,
then a small residual for each layer. The steps look at previews of the face at 256 px (what they lack of the true
picture is measured now and then and added), which makes a step ten times cheaper than one through the whole picture.

:func:`encode` is the paper's way: e4e's code of W+ of StyleGAN2-FFHQ, as it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import assets
from facerecon.errors import FaceReconError, InputError, ShapeError, check_shape
from facerecon.imaging.masks import gaussian_blur
from facerecon.imaging.warp import crop_affine
from facerecon.losses.identity import identity_loss, identity_similarity
from facerecon.modes import in_own_modes, kept
from facerecon.perception import load_eval_identity, load_facemesh, load_identity, load_landmarks68
from facerecon.perception.facemesh import aligned_look, fused_landmarks
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import FACE_WINDOW, NUM_STYLES, STYLE_DIM, MobileGenerator, framed

__all__ = [
    "Encoder",
    "Inversion",
    "InversionSettings",
    "LinearEncoder",
    "encode",
    "face_points",
    "ffhq_crop",
    "ffhq_transform",
    "invert",
]

_PREVIEW = 256


# -- alignment -------------------------------------------------------------------------------------------------


def ffhq_transform(landmarks68: Tensor, size: int = 1024) -> Tensor:
    """Crop pixels to photo pixels of FFHQ's alignment, (B, 2, 3).

    The square's x axis is the mean of the line between the eyes and the normal of the line from eyes to mouth; its
    side is 4 times the distance of the eyes or 3.6 times that of eyes and mouth, whichever is more; its center lies
    a tenth of the way from the eyes to the mouth (Karras et al. 2018, appendix C, as released for FFHQ).

    Args:
        landmarks68: (B, 68, 2) px.
        size: px of the crop.
    """
    check_shape("landmarks68", landmarks68, "B 68 2")
    points = landmarks68.double()
    right, left = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    eyes, mouth = (right + left) / 2, (points[:, 48] + points[:, 54]) / 2
    across, down = left - right, mouth - eyes
    x = across + torch.stack([down[:, 1], -down[:, 0]], -1)
    half = torch.maximum(across.norm(dim=1) * 2.0, down.norm(dim=1) * 1.8)
    x = F.normalize(x, dim=1) * half[:, None]
    y = torch.stack([-x[:, 1], x[:, 0]], -1)
    corner = eyes + down * 0.1 - x - y
    return torch.stack([2 * x / size, 2 * y / size, corner], -1).to(landmarks68.dtype)


def ffhq_crop(image: Tensor, landmarks68: Tensor, size: int = 1024) -> Tensor:
    """Faces as FFHQ has them, (B, 3, S, S); beyond the photo it is mirrored.

    Args:
        image: (B, 3, H, W) RGB in [0, 1], or (1, 3, H, W) for B faces of one photo.
        landmarks68: (B, 68, 2) px of the photo.
        size: px of the crops.
    """
    check_shape("image", image, "B 3 H W")
    transform = ffhq_transform(landmarks68, size)
    return crop_affine(image, transform, size, padding="reflection").clamp(0, 1)


def face_points(image: Tensor) -> Tensor:
    """68 landmarks of aligned faces, (B, 3, S, S) -> (B, 68, 2) px; no detector is needed there."""
    check_shape("image", image, "B 3 H W")
    small, box = aligned_look(image)
    with torch.no_grad():
        mesh, _ = load_facemesh()(small, box)
        return fused_landmarks(load_landmarks68()(small, box), mesh) * (image.shape[-1] / small.shape[-1])


# -- start -----------------------------------------------------------------------------------------------------


class Encoder(Protocol):
    """What gives the start: an aligned photo (1, 3, 1024, 1024) in [0, 1] -> w (512,) or codes (23, 512)."""

    def __call__(self, crop: Tensor) -> Tensor: ...


class LinearEncoder:
    """Reduced-rank ridge regression from what an aligned face shows to its w.

    Args:
        mean, scale: (F,), of the features.
        down, up, bias: (F, R), (R, 512) and (512,), with w = clip((features - mean) / scale) @ down @ up + bias.
    """

    thumbnail = 16
    limit = 4.0
    """Deviations at which features are clipped: what no face of the generator shows must not throw w far off."""

    def __init__(self, mean: Tensor, scale: Tensor, down: Tensor, up: Tensor, bias: Tensor) -> None:
        self.mean, self.scale, self.down, self.up, self.bias = (x.float() for x in (mean, scale, down, up, bias))

    @classmethod
    def features(cls, crop: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Identity, landmarks and a thumbnail; (B, 3, S, S) -> (B, F).

        Args:
            crop: FFHQ-aligned, RGB in [0, 1].
            landmarks: (B, 68, 2) px, measured if left out.
        """
        points = face_points(crop) if landmarks is None else landmarks
        small, _ = aligned_look(crop)
        with torch.no_grad():
            identity = load_identity()(small, points * (small.shape[-1] / crop.shape[-1]))
        thumbnail = F.interpolate(crop, (cls.thumbnail, cls.thumbnail), mode="area")
        return torch.cat([identity, (points / crop.shape[-1]).flatten(1), thumbnail.flatten(1)], 1)

    @classmethod
    def fit(cls, features: Tensor, w: Tensor, ridge: float = 300.0, rank: int = 96) -> LinearEncoder:
        """Fit to faces of the generator.

        Args:
            features: (N, F) of :meth:`features`.
            w: (N, 512).
            ridge: in samples.
            rank: of the map.
        """
        x, y = features.double(), w.double()
        mean, bias, scale = x.mean(0), y.mean(0), x.std(0).clamp(min=1e-6)
        x, y = (x - mean) / scale, y - bias
        full = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        _, _, directions = torch.linalg.svd(x @ full, full_matrices=False)
        up = directions[:rank]
        return cls(mean, scale, full @ up.T, up, bias)

    def __call__(self, crop: Tensor) -> Tensor:
        """(1, 3, S, S) -> (512,)."""
        return self.decode(self.features(crop))[0]

    def decode(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, 512)."""
        x = ((features - self.mean) / self.scale).clamp(-self.limit, self.limit)
        return x @ self.down @ self.up + self.bias

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, the map in float16."""
        tensors = {"mean": self.mean, "scale": self.scale, "down": self.down.half(), "up": self.up.half()}
        write_whole(path, safetensors_bytes(tensors | {"bias": self.bias}))

    @classmethod
    def load(cls, path: str | Path | None = None) -> LinearEncoder:
        """Read one; the shipped one if left out."""
        path = assets.shipped("inversion_encoder.safetensors") if path is None else path
        advice, keys = "make it with tools/build_inversion_encoder.py", ("mean", "scale", "down", "up", "bias")
        tensors, _ = read_safetensors(path, "an encoder of inversions", advice, keys)
        return cls(**tensors)


# -- optimization ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InversionSettings:
    """How a photo is inverted.

    Args:
        w_steps: steps for w at most; 0 leaves this phase out.
        plus_steps: steps for the residual of each layer at most; 0 leaves this phase out.
        w_rate: learning rate of w, in standard deviations of W.
        plus_rate: learning rate of the residual, in standard deviations of W.
        refresh: steps between two evaluations of the true picture.
        patience: evaluations without an improvement of ``gain`` after which a phase ends.
        gain: least share by which the loss must fall to count as an improvement.
        pixel: weight of the difference at 256 px.
        coarse: weight of the difference at 64 px.
        features: weight of the identity network's feature maps.
        identity: weight of the identity network's embedding.
        w_prior: weight of the squared distance from the mean of W.
        plus_prior: weight of the squared residual.
        background: weight of pixels around the face, relative to those in it.
    """

    w_steps: int = 40
    plus_steps: int = 60
    w_rate: float = 0.1
    plus_rate: float = 0.03
    refresh: int = 10
    patience: int = 2
    gain: float = 0.005
    pixel: float = 2.0
    coarse: float = 2.0
    features: float = 0.6
    identity: float = 1.0
    w_prior: float = 0.02
    plus_prior: float = 0.05
    background: float = 0.3

    def __post_init__(self) -> None:
        if min(self.w_steps, self.plus_steps) < 0 or min(self.refresh, self.patience) < 1:
            raise InputError("inversion steps must be at least 0, refresh and patience at least 1.")


@dataclass
class Inversion:
    """A photo in the generator.

    Attributes:
        code: (23, 512), w and its residual; of an encoder (18, 512).
        w: (512,), without it.
        image: (3, 1024, 1024) of the code, RGB in [0, 1].
        quality: ``csim`` (cosine of the evaluation descriptors of photo and picture), ``identity`` (Euclidean distance
            of the 128-d embeddings), ``error`` (mean absolute difference over the face at 256 px), ``residual`` (rms
            of the residual in deviations of W).
        trace: one plain dict for each comparison with the true picture.
    """

    code: Tensor
    w: Tensor
    image: Tensor
    quality: dict[str, float]
    trace: list[dict[str, Any]] = field(default_factory=list)


@kept(2)
def _whitening(mapping: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Square root of the covariance of W, and its inverse; (512, 512) each, symmetric."""
    z = torch.randn(10_000, STYLE_DIM, generator=torch.Generator().manual_seed(1))
    parameter = next(mapping.parameters())
    with torch.no_grad():
        w = mapping(z.to(parameter)).double()
    values, vectors = torch.linalg.eigh(torch.cov(w.T))
    root = values.clamp(min=1e-3 * values.mean()).sqrt()
    return ((vectors * root) @ vectors.T).float(), ((vectors / root) @ vectors.T).float()


class _Objective:
    """Distance of pictures of the face from the photo's, at 256 px within the window."""

    def __init__(self, crop: Tensor, points: Tensor, settings: InversionSettings) -> None:
        self.settings, self.points = settings, points * (_PREVIEW / crop.shape[-1])
        top, bottom, left, right = (v // 4 for v in FACE_WINDOW)
        self.target = F.interpolate(crop, (_PREVIEW, _PREVIEW), mode="area")[:, :, top:bottom, left:right]
        self.mask = _face_mask(self.points)[:, :, top:bottom, left:right]
        self.weight = settings.background + (1 - settings.background) * self.mask
        self.weight = self.weight / self.weight.mean()
        self.net = load_identity()
        with torch.no_grad():
            features, self.embedding = self.net.embed_with_features(framed(self.target), self.points)
        self.features = [_unit(x) for x in features]

    def __call__(self, part: Tensor) -> Tensor:
        """part: (1, 3, h, w), the window of a picture at 256 px -> scalar."""
        s = self.settings
        features, embedding = self.net.embed_with_features(framed(part), self.points)
        perceptual = sum((_unit(x) - y).square().sum(1).mean() for x, y in zip(features, self.features, strict=True))
        difference = part - self.target
        coarse = F.avg_pool2d(difference, 4, ceil_mode=True).abs().mean()
        pixel = (difference.abs() * self.weight).mean()
        distance = identity_loss(embedding, self.embedding, self.net.metric).mean()
        return s.pixel * pixel + s.coarse * coarse + s.features * perceptual + s.identity * distance

    def error(self, part: Tensor) -> float:
        """Mean absolute difference over the face."""
        difference = (part - self.target).abs().mean(1, keepdim=True)
        return float((difference * self.mask).sum() / self.mask.sum())


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()


def _face_mask(points: Tensor) -> Tensor:
    """(1, 1, 256, 256): the landmarks' outline, raised to the forehead, with a soft rim."""
    brows = points[:, 17:27].flip(1)
    up = (points[:, 27] - points[:, 8])[:, None] * 0.45
    outline = torch.cat([points[:, :17], brows + up], 1)[0]
    grid = torch.arange(_PREVIEW, dtype=points.dtype) + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    inside = torch.zeros(_PREVIEW, _PREVIEW, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(outline.tolist(), outline.roll(-1, 0).tolist(), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return gaussian_blur(inside.float()[None, None], 9)


@in_own_modes
def invert(
    crop: Tensor,
    generator: MobileGenerator,
    settings: InversionSettings | None = None,
    encoder: Encoder | None = None,
    landmarks68: Tensor | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    state: str | Path | None = None,
) -> Inversion:
    """Find the code of an aligned photo.

    Args:
        crop: (1, 3, 1024, 1024) or (3, 1024, 1024) RGB in [0, 1], from :func:`ffhq_crop`.
        generator: any precision; bfloat16 takes half the time on a CPU that has it.
        settings: :class:`InversionSettings`.
        encoder: the start, :class:`LinearEncoder` if left out.
        landmarks68: (1, 68, 2) px of the crop; measured if left out.
        progress: called as (phase, step, steps).
        state: a file that keeps what was reached after each phase; a later call with the same photo and settings
            goes on from there to the same result. It is left for the caller to remove.

    Returns:
        :class:`Inversion`; whether it is good enough is for the caller to decide by its ``quality``.
    """
    settings = settings or InversionSettings()
    crop = crop[None] if crop.dim() == 3 else crop
    check_shape("crop", crop, f"1 3 {generator.resolution} {generator.resolution}")
    points = face_points(crop) if landmarks68 is None else landmarks68
    check_shape("landmarks68", points, "1 68 2")
    key = _key(crop, points, settings)
    done, tensors, trace = _read_state(state, key)
    objective = _Objective(crop, points, settings)
    root, inverse = _whitening(generator.mapping)
    mean = generator.mean_w.float()
    if not tensors:
        start = (encoder or LinearEncoder.load())(crop)
        if start.shape not in ((STYLE_DIM,), (NUM_STYLES, STYLE_DIM)):
            raise ShapeError(f"an encoder must give (512,) or (23, 512); got {tuple(start.shape)}.")
        rows = start.detach().float().expand(NUM_STYLES, -1)
        tensors = {"w": rows.mean(0), "delta": rows - rows.mean(0)}

    def codes(white: Tensor, delta: Tensor) -> Tensor:
        return (mean + white @ root)[None].expand(NUM_STYLES, -1) + delta @ root

    white, delta = (tensors["w"] - mean) @ inverse, tensors["delta"] @ inverse
    for phase, steps, rate in (
        ("w", settings.w_steps, settings.w_rate),
        ("w+", settings.plus_steps, settings.plus_rate),
    ):
        if phase in done or not steps:
            continue
        variables = [white.clone(), delta.clone()]
        variables[0 if phase == "w" else 1].requires_grad_()
        white, delta = _optimize(generator, objective, variables, codes, phase, steps, rate, trace, progress)
        done.append(phase)
        tensors = {"w": mean + white @ root, "delta": delta @ root}
        _write_state(state, key, done, tensors, trace)
        # what a resumed call would start from
        white, delta = (tensors["w"] - mean) @ inverse, tensors["delta"] @ inverse
    code = tensors["w"] + tensors["delta"]
    with torch.no_grad():
        image = generator(code[None])
    quality = _quality(objective, crop, points, image)
    quality["residual"] = float((tensors["delta"] / generator.std_w).square().mean().sqrt())
    return Inversion(code, tensors["w"], image[0], quality, trace)


def _optimize(
    generator: MobileGenerator,
    objective: _Objective,
    variables: list[Tensor],
    codes: Callable[[Tensor, Tensor], Tensor],
    phase: str,
    steps: int,
    rate: float,
    trace: list[dict[str, Any]],
    progress: Callable[[str, int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """One phase; the variables (512,) and (23, 512) in deviations of W, best of the looks at the true picture."""
    settings, free = objective.settings, [v for v in variables if v.requires_grad]
    optimizer = torch.optim.Adam(free, lr=rate, betas=(0.9, 0.95))

    def prior() -> Tensor:
        white, delta = variables
        return settings.w_prior * white.square().mean() + settings.plus_prior * delta.square().mean()

    best, best_loss, stale = [v.detach().clone() for v in variables], float("inf"), 0
    for step in range(steps + 1):
        if step % settings.refresh == 0 or step == steps:
            with torch.no_grad():
                code = codes(*variables)[None]
                true = F.avg_pool2d(generator(code, clamp=False, window=FACE_WINDOW), 4)
                lacking = true - generator(code, clamp=False, window=FACE_WINDOW, preview=True)
                loss = float(objective(true) + prior())
            trace.append({"phase": phase, "step": step, "loss": loss, "error": objective.error(true)})
            stale = 0 if loss < best_loss * (1 - settings.gain) else stale + 1
            if loss < best_loss:
                best, best_loss = [v.detach().clone() for v in variables], loss
            if step == steps or stale >= settings.patience:
                break
        if progress is not None:
            progress(phase, step, steps)
        for group in optimizer.param_groups:  # a short rise, and a fall over the last third
            group["lr"] = rate * min(1.0, (step + 1) / 5, 3 * (steps - step) / steps)
        with torch.enable_grad():
            preview = generator(codes(*variables)[None], clamp=False, window=FACE_WINDOW, preview=True)
            total = objective(preview + lacking) + prior()
            gradients = torch.autograd.grad(total, free)
        for variable, gradient in zip(free, gradients, strict=True):
            variable.grad = gradient
        optimizer.step()
    return best[0], best[1]


def encode(crop: Tensor, generator: Callable[[Tensor], Tensor], encoder: Callable[[Tensor], Tensor]) -> Inversion:
    """The code that an encoder of W+ gives an aligned photo, without optimization (e4e; Sec. 3.1.1, item 1).

    Args:
        crop: (1, 3, S, S) or (3, S, S) RGB in [0, 1], from :func:`ffhq_crop`.
        generator: codes (1, N, 512) -> pictures in [0, 1].
        encoder: crop -> (1, N, 512).

    Returns:
        :class:`Inversion`: its code has N rows, its ``w`` is the mean of these; ``residual`` is not measured.
    """
    crop = crop[None] if crop.dim() == 3 else crop
    check_shape("crop", crop, "1 3 S S")
    with torch.no_grad():
        code = encoder(crop).float()
        image = generator(code)
        objective = _Objective(crop, points := face_points(crop), InversionSettings())
        quality = _quality(objective, crop, points, image)
    return Inversion(code[0], code[0].mean(0), image[0], quality)


def _quality(objective: _Objective, crop: Tensor, points: Tensor, image: Tensor) -> dict[str, float]:
    found = face_points(image)
    top, bottom, left, right = (v // 4 for v in FACE_WINDOW)
    with torch.no_grad():
        csim = identity_similarity(load_eval_identity()(image, found), load_eval_identity()(crop, points))
        distance = (load_identity()(image, found) - load_identity()(crop, points)).norm()
    preview = F.interpolate(image, (_PREVIEW, _PREVIEW), mode="area")
    error = objective.error(preview[:, :, top:bottom, left:right])
    return {"csim": float(csim), "identity": float(distance), "error": error}


# -- state -----------------------------------------------------------------------------------------------------


def _key(crop: Tensor, points: Tensor, settings: InversionSettings) -> str:
    digest = hashlib.sha256(crop.numpy().tobytes() + points.numpy().tobytes())
    digest.update(json.dumps(asdict(settings), sort_keys=True).encode())
    return digest.hexdigest()


def _read_state(path: str | Path | None, key: str) -> tuple[list[str], dict[str, Tensor], list[dict[str, Any]]]:
    """Phases done, w and delta, trace; nothing if the file is missing, spoilt, or of another photo."""
    try:
        if path is not None:
            tensors, notes = read_safetensors(path, "a state of an inversion", "remove it", ("w", "delta"))
            if notes.get("key") == key:
                return parse_json(notes["done"]), tensors, parse_json(notes["trace"])
    except (FaceReconError, KeyError, ValueError):
        pass
    return [], {}, []


def _write_state(
    path: str | Path | None, key: str, done: list[str], tensors: dict[str, Tensor], trace: list[dict[str, Any]]
) -> None:
    if path is None:
        return
    notes = {"key": key, "done": json.dumps(done), "trace": json.dumps(trace)}
    write_whole(path, safetensors_bytes(tensors, notes))
