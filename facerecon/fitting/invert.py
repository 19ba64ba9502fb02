"""Inversion of UV maps: the code whose texture is nearest to a given map (Table 6's experiment, Sec. 4.1).

As StyleGAN2 projects images (arXiv:1912.04958, appendix D): Adam with a rate that rises, stays and falls as a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import losses
from facerecon.errors import AssetError, ConfigError, check_number, check_shape
from facerecon.modes import in_own_modes
from facerecon.morphable import load_face_model
from facerecon.perception import load_identity
from facerecon.render import Renderer
from facerecon.settings import check_keys
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder, retract_to_sphere
from facerecon.types import Camera, Latent, SHLight

__all__ = ["InvertedTexture", "MapFeatures", "TextureInversionSettings", "invert_texture", "load_map_features"]


@dataclass(frozen=True)
class TextureInversionSettings:
    """How maps are inverted.

    Args:
        steps: steps of Adam.
        learning_rate: learning rate, in standard deviations of the code.
        rampup: share of the steps over which the rate rises linearly.
        rampdown: share of the steps over which the rate falls along a cosine.
        l1: weight of the mean absolute difference.
        features: weight of the feature distance.
        coarse_share: share of the steps, at the start, in which the decoder stops at ``coarse_size`` texels and no
            features are compared.
        coarse_size: texels a side in these steps, a power of two.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int = 300
    learning_rate: float = 0.05
    rampup: float = 0.05
    rampdown: float = 0.4
    l1: float = 1.0
    features: float = 0.05
    coarse_share: float = 0.4
    coarse_size: int = 64

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 0, whole=True)
        for name in ("learning_rate", "l1", "features"):
            check_number(name, getattr(self, name), 0)
        for name in ("rampup", "rampdown", "coarse_share"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("coarse_size", self.coarse_size, 8, whole=True)
        if self.coarse_size & (self.coarse_size - 1):
            raise ConfigError(f"coarse_size must be a power of two; got {self.coarse_size}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1.0, self.rampup * self.steps))
        left = (self.steps - step) / max(1.0, self.rampdown * self.steps)
        return self.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * left) if left < 1 else 1.0)


@dataclass(frozen=True)
class InvertedTexture:
    """Maps as a decoder expresses them.

    Args:
        latent: their codes.
        texture: (B, 3, S, S) in [0, 1], S the decoder's.
        target: what was asked for, at that size.
        l1: (B,) mean absolute difference in [0, 1].
        features: (B,) feature distance; NaN where none was measured.
        history: {term: (B, steps)}; features are NaN in coarse steps.
    """

    latent: Latent
    texture: Tensor
    target: Tensor
    l1: Tensor
    features: Tensor
    history: dict[str, Tensor] = field(default_factory=dict)


class MapFeatures:
    """Feature distance of maps.

    LPIPS compares the maps themselves. ``face_features``, which is not LPIPS, needs a picture of a face, so the maps
    are drawn on the mean head, from the front, under even light.

    Args:
        perceptual: of :func:`facerecon.losses.load_perceptual`.
        atlas: head model whose maps they are.
        device: where.

    Raises:
        ConfigError: an unknown name.
        AssetError: its weights cannot be had.
    """

    def __init__(self, perceptual: str, atlas: str = "makehuman", device: str | torch.device = "cpu") -> None:
        self.name = perceptual
        self.view = None
        if perceptual != "face_features":
            self.distance = losses.load_perceptual(perceptual).to(device)
            return
        self.distance = losses.load_perceptual(perceptual, load_identity().to(device).features)
        model = load_face_model(atlas).to(device)
        light, camera = SHLight.ambient(device=device), Camera.deep3d(device=device)
        with torch.no_grad():
            vertices = model(model.neutral().to(device))
            view = Renderer(224).prepare(vertices, model.topology, camera, light, face_region="face").detach()
            self.gain = 0.9 / view.shade(torch.ones(1, 3, 8, 8, device=device)).image.amax().item()
        self.view, self.landmarks = view, view.rendering.landmarks

    def look(self, maps: Tensor) -> Tensor:
        """What is compared: the maps, or (B, 3, 224, 224) of them on the mean head before gray."""
        if self.view is None:
            return maps.clamp(0, 1)
        mask = self.view.rendering.mask
        drawn = [self.view.shade(texture[None]).image for texture in maps]  # one view serves them all
        return torch.cat([image * self.gain * mask + 0.5 * (1 - mask) for image in drawn])

    def prepare(self, targets: Tensor) -> object:
        """Features of the maps that others are compared with."""
        with torch.no_grad():
            looked = self.look(targets)
            landmarks = None if self.view is None else self.landmarks.expand(len(targets), -1, -1)
            return self.distance.prepare(looked, landmarks)

    def __call__(self, maps: Tensor, prepared: object) -> Tensor:
        """(B,) distances of maps (B, 3, S, S) to the prepared ones."""
        return self.distance(self.look(maps), prepared)


@in_own_modes
def load_map_features(
    name: str = "auto", atlas: str = "makehuman", device: str | torch.device = "cpu"
) -> MapFeatures | None:
    """A feature distance by name.

    Args:
        name: ``"auto"``, LPIPS (AlexNet) where it is in the cache, else ``face_features`` (see :attr:`MapFeatures.name`
            for which); ``"none"``; or a name of :func:`facerecon.losses.load_perceptual`.
        atlas, device: see :class:`MapFeatures`.
    """
    check_keys([name], ("auto", "none", *losses.PERCEPTUAL), "feature distance")
    if name == "none":
        return None
    if name == "auto":
        try:
            return MapFeatures("lpips_alex", atlas, device)
        except (AssetError, ImportError):
            name = "face_features"
    return MapFeatures(name, atlas, device)


@in_own_modes
def invert_texture(
    targets: Tensor,
    decoder: TextureDecoder,
    features: MapFeatures | None = None,
    settings: TextureInversionSettings | None = None,
    callback: Callable[[int, int, Tensor], None] | None = None,
    start: Latent | None = None,
) -> InvertedTexture:
    """Codes of maps: ``argmin_z l1 |G(z) - T| + features d(G(z), T)``, each map by itself; the best met at full
    size.

    Args:
        targets: (B, 3, s, s) in [0, 1], of any size; they are compared at the decoder's.
        decoder: in space z, w, w+, or linear. Codes of z stay on their sphere.
        features: feature distance; none if left out.
        settings: :class:`TextureInversionSettings`.
        callback: called as (step, steps, (B,) loss) after each step.
        start: where to begin; the closed form of :meth:`~facerecon.stylegan.decoder.TextureDecoder.project` if left
            out.

    Raises:
        ShapeError: targets of another shape.
    """
    check_shape("targets", targets, "B 3 S S")
    settings = settings or TextureInversionSettings()
    size, goal = decoder.size, targets
    if targets.shape[-1] != size:
        goal = F.interpolate(targets, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    codes = (decoder.project(goal, prior=1e-5) if start is None else start).codes.detach().clone()
    small = min(settings.coarse_size, size)
    linear = isinstance(decoder, LinearDecoder)  # decoding fewer texels of a basis gives the same gradient for less
    coarse_steps = 0 if small >= size or linear else round(settings.coarse_share * settings.steps)
    coarse = F.interpolate(goal, (small, small), mode="area") if coarse_steps else goal
    prepared = None if features is None else features.prepare(goal)

    codes.requires_grad_(True)
    optimizer = torch.optim.Adam([codes], betas=(0.9, 0.99), eps=1e-8)
    lowest = torch.full((len(goal),), torch.inf, device=goal.device)
    best = codes.detach().clone()
    history: dict[str, list[Tensor]] = {"l1": [], "features": []}
    nothing = torch.full_like(lowest, torch.nan)
    for step in range(settings.steps + 1):
        with torch.set_grad_enabled(step < settings.steps):
            rough = step < coarse_steps
            texture = decoder(codes, small if rough else None)
            difference = (texture - (coarse if rough else goal)).abs().mean((1, 2, 3))
            apart = nothing if prepared is None or rough else features(texture, prepared)
            loss = settings.l1 * difference
            if prepared is not None and not rough:
                loss = loss + settings.features * apart
        if not rough:
            better = loss.detach() < lowest
            lowest = torch.where(better, loss.detach(), lowest)
            best = torch.where(better[:, None, None], codes.detach(), best)
        if step == settings.steps:
            break
        history["l1"].append(difference.detach())
        history["features"].append(apart.detach())
        optimizer.param_groups[0]["lr"] = settings.rate(step)
        (codes.grad,) = torch.autograd.grad(loss.sum(), [codes])
        optimizer.step()
        if decoder.space == "z":
            with torch.no_grad():
                codes.copy_(retract_to_sphere(codes))
        if callback is not None:
            callback(step, settings.steps, loss.detach())

    with torch.no_grad():
        texture = decoder(best).clamp(0, 1)
        apart = nothing if prepared is None else features(texture, prepared)
    return InvertedTexture(
        Latent(best, decoder.space),
        texture,
        goal,
        (texture - goal).abs().mean((1, 2, 3)),
        apart,
        {name: torch.stack(values, 1).cpu() for name, values in history.items() if values},
    )
