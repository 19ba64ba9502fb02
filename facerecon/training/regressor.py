"""What N_enc is trained with: losses of coefficients in mm, px and gray levels, the weak losses of photos, and a step.

Coefficients are compared by what they do: a difference of identity and expression by how far it moves the face's
vertices (a quadratic form of the bases, no vertex is computed), of the texture by how much it colors the face, of the
light by how it shades it. Faces without truth are learned from as in Deep3D (arXiv:1903.08527, Sec. 3): the rendering's
color on skin, 68 landmarks, identity features, and priors of coefficients, light and albedo.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import AssetError, ConfigError
from facerecon.fitting.coefficients import coefficients_to_params
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import gamma_to_light, sh_basis
from facerecon.geometry.mesh import vertex_normals
from facerecon.losses import coefficient_loss, identity_loss, landmark_loss, landmark_weights, light_color_loss
from facerecon.morphable import MorphableModel
from facerecon.perception.regressor import Coefficients, Regressor, RegressorConfig, mean_regressor, read_regressor
from facerecon.render import Renderer, sample_texture
from facerecon.render.uv import region_texels
from facerecon.run import autocast
from facerecon.run.processes import Processes
from facerecon.run.training_loop import fits_run
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.training.texture_gan import average_weight, cosine_rampdown, resume_optimizer, update_average
from facerecon.types import Camera, TensorStruct

__all__ = [
    "CoefficientLosses",
    "PhotoBatch",
    "RegressorTraining",
    "StepSettings",
    "SupervisedWeights",
    "SyncedBatchNorm",
    "WeakLosses",
    "WeakWeights",
    "landmark_model",
    "network_sizes",
    "start_network",
]

CROP = 224
_MM = 100.0  # of the world's unit
_PIXELS = (101.5, 101.5, 9.0)
"""px by which a unit of translation moves the face (focal length 1015 px, distance 10) or, in depth, its rim, 90 px off
the middle."""


@dataclass(frozen=True)
class SupervisedWeights:
    """Weights of :class:`CoefficientLosses`.

    Args:
        shape: mm, of the whole face.
        identity, expression: mm, of each alone.
        regions: mm, of nose, mouth, forehead and cheek, each after an alignment of its own (as heads are measured).
        intra_inter_ratio: standard deviation of the identity found in a person's pictures over that between people. At
            8 the identity of unseen heads was no better than the mean of all, while a ridge regression on the same
            features was 13 % better.
        landmarks: px of a 224 px crop.
        angles: degrees.
        translation: px that it moves or scales the face by.
        texture: gray levels (of 255).
        light: percent of shading.
        color: gray levels of albedo times shading.
    """

    shape: float = 1.0
    identity: float = 0.5
    expression: float = 0.5
    regions: float = 10.0
    intra_inter_ratio: float = 1.0
    landmarks: float = 0.5
    angles: float = 0.3
    translation: float = 0.3
    texture: float = 0.05
    light: float = 0.05
    color: float = 0.1


@dataclass(frozen=True)
class WeakWeights:
    """Weights of :class:`WeakLosses`; the defaults are Deep3D's, whose light prior is one of color.

    Args:
        photometric: of color differences in [0, 1].
        landmarks: px^2.
        features: cosine distance.
        prior: of all coefficients.
        identity, expression, texture: of each within it.
        light: variance over channels.
        flatness: variance of the skin's albedo.
    """

    photometric: float = 1.92
    landmarks: float = 1.6e-3
    features: float = 0.2
    prior: float = 3e-4
    identity: float = 1.0
    expression: float = 0.8
    texture: float = 1.7e-3
    light: float = 10.0
    flatness: float = 5.0


@dataclass(frozen=True)
class StepSettings:
    """AdamW and the average of weights.

    Args:
        lr: largest learning rate.
        betas, decay: of AdamW.
        clip: largest norm of the gradient.
        rampup, rampdown: shares of the run in which the learning rate rises, and falls as a cosine.
        average: images after which a weight counts half in the running average.
        average_rampup: at first, this share of the images seen.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.01
    clip: float = 5.0
    rampup: float = 0.02
    rampdown: float = 0.6
    average: float = 5000.0
    average_rampup: float = 0.05


@dataclass(frozen=True)
class PhotoBatch(TensorStruct):
    """Aligned faces without truth.

    Args:
        image: (B, 3, S, S) in [0, 1].
        skin: (B, 1, S, S).
        landmarks68: (B, 68, 2), pixels of the 224 px crop.
        embedding: (B, D) of the identity network.
    """

    image: Tensor
    skin: Tensor
    landmarks68: Tensor
    embedding: Tensor


def landmark_model(model: MorphableModel) -> MorphableModel:
    """The same head without the vertices that no landmark needs: its landmarks cost next to nothing."""
    topology = model.topology
    used, rows = torch.unique(topology.landmark_faces, return_inverse=True)
    kept, faces = torch.unique(topology.faces[used], return_inverse=True)
    small = topology.replace(
        faces=faces,
        uvs=topology.uvs[:1],
        uv_faces=torch.zeros_like(faces),
        landmark_faces=rows,
        mesh_points=topology.mesh_points[:0],
        mesh_point_faces=topology.mesh_point_faces[:0],
        mesh_point_barycentric=topology.mesh_point_barycentric[:0],
        mirror=torch.arange(len(kept), device=kept.device),
        regions={},
    )
    bases = model.identity_basis[:, kept], model.expression_basis[:, kept]
    names = model.name, model.expression_names, model.expression_bounds
    return MorphableModel(model.mean[kept], *bases, small, *names).eval().requires_grad_(False)


def _root(squares: Tensor, smallest: float) -> Tensor:
    """Square root with a finite gradient at 0."""
    return (squares.clamp(min=0) + smallest**2).sqrt() - smallest


def _form(difference: Tensor, gram: Tensor) -> Tensor:
    """(B, K), (K, K) -> (B,): d^T G d."""
    return ((difference @ gram) * difference).sum(1)


class CoefficientLosses(nn.Module):
    """Differences of coefficients in units of what they do to the face; (B,) each.

    Args:
        model: head model.
        decoder: its linear texture.
        components: T, of the texture.
        texels: px to which the texture is averaged down.
        points: places of the face at which color is compared.
        regions: {name: (I + E, I + E)}, square mm, what a difference of coefficients is in each region of the face
            (:func:`facerecon.evaluation.region_forms`); without them there is no such term.
        pictures: of each person, one after the other in a batch, for :meth:`intra_inter_ratio`.
    """

    def __init__(
        self,
        model: MorphableModel,
        decoder: TextureDecoder,
        components: int,
        texels: int = 64,
        points: int = 400,
        regions: Mapping[str, Tensor] | None = None,
        pictures: int = 1,
    ) -> None:
        super().__init__()
        self.pictures = pictures
        topology, parts = model.topology, model.topology.regions
        face = parts["face"] if "face" in parts else torch.ones(len(topology.faces), dtype=torch.bool)
        skin = face & parts["skin"] if "skin" in parts else face
        ids = torch.unique(topology.faces[skin])
        basis = torch.cat([model.identity_basis, model.expression_basis])[:, ids].flatten(1).double() * _MM
        self.identities = model.num_identity
        self.register_buffer("shape_gram", (basis @ basis.T / len(ids)).float())
        forms = [torch.as_tensor(form).float() for form in (regions or {}).values()]
        self.register_buffer("region_grams", torch.stack(forms) if forms else None)
        self.landmarks = landmark_model(model)

        mean, effect = decoder.start_basis()
        effect = effect[:components]
        texels = min(texels, mean.shape[-1])
        mask = region_texels(topology, "face", texels) if "face" in parts else mean.new_ones(1, 1, texels, texels)
        pooled = F.adaptive_avg_pool2d(torch.cat([mean[None], effect]), texels)
        seen = pooled[:, :, mask[0, 0] > 0].flatten(1) * 255  # (1 + T, 3 N)
        self.register_buffer("texture_gram", seen[1:] @ seen[1:].T / max(seen.shape[1], 1))

        normals = F.normalize(vertex_normals(model.mean[None], topology.faces)[0], dim=1)
        faces = skin.nonzero()[:, 0]
        faces = faces[torch.linspace(0, len(faces) - 1, min(points, len(faces)), device=faces.device).long()]
        self.register_buffer("normals", F.normalize(normals[topology.faces[faces]].mean(1), dim=1))
        uv = topology.uvs[topology.uv_faces[faces]].mean(1)
        self.register_buffer("colors", sample_texture(pooled, uv[None]))  # (1 + T, P, 3)
        front = sh_basis(self.normals)
        self.register_buffer("light_gram", front.T @ front / len(front))

    def pixels(self, c: Coefficients) -> Tensor:
        """(B, 68, 2): landmarks in the 224 px crop."""
        camera = Camera.deep3d(CROP, len(c.angles), c.angles.device)
        vertices = self.landmarks(coefficients_to_params(c, self.landmarks))
        return project(camera, self.landmarks.landmarks3d(vertices, camera))[..., :2]

    def lit(self, c: Coefficients) -> Tensor:
        """(B, P, 3): albedo times shading at places of the face, its normals those of the mean shape, not turned."""
        albedo = self.colors[0] + torch.einsum("bt,tpc->bpc", c.texture, self.colors[1:])
        return albedo * self.shading(c.light)

    def shading(self, gamma: Tensor) -> Tensor:
        """(B, 27) -> (B, P, 3)."""
        return sh_basis(self.normals) @ gamma_to_light(gamma).coefficients

    def intra_inter_ratio(self, identity: Tensor) -> Tensor:
        """Deviation of a person's identity over that between people: a ratio, so that a smaller face is no way out.

        Args:
            identity: (B, I), ``pictures`` rows of each person after each other.

        Returns:
            A number: the mean of the ratio of standard deviations of the coefficients and, where there are regions, of
            that of the regions' shapes; 0 for less than two people.
        """
        n, several = self.identities, identity.unflatten(0, (-1, self.pictures))
        if len(several) < 2:
            return identity.new_zeros(())
        means = several.mean(1, keepdim=True)
        within = (several - means).flatten(0, 1) * math.sqrt(self.pictures / (self.pictures - 1))
        between = (means - means.mean(0))[:, 0] * math.sqrt(len(several) / (len(several) - 1))
        forms = [torch.eye(n, dtype=identity.dtype, device=identity.device)]
        if self.region_grams is not None:
            forms.append(self.region_grams[:, :n, :n].mean(0))
        ratios = [(_form(within, g).mean() / _form(between, g).mean().clamp(min=1e-6) + 1e-4).sqrt() for g in forms]
        return torch.stack(ratios).mean()

    def forward(self, found: Coefficients, truth: Coefficients, landmarks: Tensor) -> dict[str, Tensor]:
        """Root mean squares over the face, in the units that :class:`SupervisedWeights` names.

        Args:
            found, truth: of batch B.
            landmarks: (B, 68, 2), the truth, px of the 224 px crop.
        """
        n, gram = self.identities, self.shape_gram
        shape = torch.cat([found.identity - truth.identity, found.expression - truth.expression], 1)
        moved = (found.translation - truth.translation) * found.translation.new_tensor(_PIXELS)
        light = (found.light - truth.light).view(-1, 9)
        regional = {}
        if self.region_grams is not None:
            squares = ((shape @ self.region_grams) * shape).sum(-1)  # (R, B)
            regional["regions"] = _root(squares, 0.05).mean(0)
        return regional | {
            "shape": _root(_form(shape, gram), 0.1),
            "identity": _root(_form(shape[:, :n], gram[:n, :n]), 0.1),
            "expression": _root(_form(shape[:, n:], gram[n:, n:]), 0.1),
            "landmarks": (self.pixels(found) - landmarks).square().sum(-1).add(1e-4).sqrt().mean(1),
            "angles": torch.rad2deg(_root((found.angles - truth.angles).square().sum(1), 1e-3)),
            "translation": _root(moved.square().sum(1), 0.05),
            "texture": _root(_form(found.texture - truth.texture, self.texture_gram), 0.5),
            "light": 100 * _root(_form(light, self.light_gram).view(-1, 3).mean(1), 0.005),
            "color": 255 * _root((self.lit(found) - self.lit(truth)).square().mean((1, 2)), 0.002),
        }


class WeakLosses(nn.Module):
    """The losses of Deep3D on faces without truth; (B,) each.

    Args:
        model, decoder: the head and its linear texture.
        size: px of the crops.
        components: T.
        identity: a differentiable identity network; None leaves ``features`` out.
        texels: px of the texture that is rendered.
    """

    def __init__(
        self,
        model: MorphableModel,
        decoder: TextureDecoder,
        size: int,
        components: int,
        identity: nn.Module | None = None,
        texels: int = 128,
    ) -> None:
        super().__init__()
        self.model, self.identity, self.size = model, identity, size
        self.renderer = Renderer(size)
        mean, effect = decoder.start_basis()
        maps = F.adaptive_avg_pool2d(torch.cat([mean[None], effect[:components]]), min(texels, mean.shape[-1]))
        self.register_buffer("mean", maps[0])
        self.register_buffer("effect", maps[1:].contiguous())
        skin, face = (region_texels(model.topology, name, maps.shape[-1])[0] for name in ("skin", "face"))
        self.register_buffer("skin", skin * face)
        self.register_buffer("weights", landmark_weights("release"))

    def texture(self, code: Tensor) -> Tensor:
        """(B, T) -> (B, 3, s, s)."""
        return (self.mean.flatten() + code @ self.effect.flatten(1)).view(-1, *self.mean.shape)

    def forward(self, found: Coefficients, photo: PhotoBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Losses, and the composite that they compare: (B, 3, S, S)."""
        params = coefficients_to_params(found, self.model)
        camera = Camera.deep3d(CROP, len(found.angles), found.angles.device)
        vertices = self.model(params)
        landmarks3d = self.model.landmarks3d(vertices, camera)
        texture = self.texture(found.texture)
        drawn = self.renderer(vertices, texture, self.model.topology, camera, params.light, "face", landmarks3d)
        mask = (drawn.mask * photo.skin).detach()
        away = (drawn.image - photo.image).square().sum(1, keepdim=True).add(1e-6).sqrt()
        landmarks = drawn.landmarks * (CROP / self.size)
        flat = self.skin.expand_as(texture)
        middle = (texture * flat).sum((2, 3), keepdim=True) / flat.sum((2, 3), keepdim=True).clamp(min=1)
        values = {
            "photometric": (away * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1),
            "landmarks": landmark_loss(landmarks, photo.landmarks68, self.weights),
            "identity": coefficient_loss(found.identity),
            "expression": coefficient_loss(found.expression),
            "texture": coefficient_loss(found.texture),
            "light": light_color_loss(params.light.coefficients),
            "flatness": ((texture - middle).square() * flat).sum((1, 2, 3)) / flat.sum((1, 2, 3)).clamp(min=1),
        }
        shown = drawn.mask.detach()
        composite = drawn.image * shown + photo.image * (1 - shown)
        if self.identity is not None:
            scaled = photo.landmarks68 * (self.size / CROP)
            embedding = self.identity(composite.clamp(0, 1), scaled)
            values["features"] = identity_loss(embedding, photo.embedding, "cosine")
        return values, composite

    @staticmethod
    def total(values: Mapping[str, Tensor], w: WeakWeights) -> Tensor:
        """Weighted sum, (B,)."""
        sum_of = {key: getattr(w, key) for key in ("photometric", "landmarks", "features", "light", "flatness")}
        prior = {key: w.prior * getattr(w, key) for key in ("identity", "expression", "texture")}
        return sum(weight * values[key] for key, weight in (sum_of | prior).items() if key in values)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the batches of all ranks, on any device (torch's own wants a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), as many samples on each rank."""
        if not self.training:
            return super().forward(x)
        exact = x.float()
        sums = torch.stack([exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))])
        sums = dist.nn.all_reduce(sums)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean, square = (sums / count).unbind(0)
        variance = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance.clamp(min=0) + self.eps).rsqrt()
        return (exact * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    @classmethod
    def replace_in(cls, network: nn.Module) -> None:
        """Change the class of every ``BatchNorm2d``; names, weights and buffers stay."""
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = cls


class RegressorTraining:
    """Network, its running average and optimizer. One step is :meth:`loss`, :meth:`descend` and :meth:`finish_step`.

    Args:
        network: to train.
        losses: of faces with truth.
        weights: of these.
        weak: of faces without, or None.
        weak_weights: of these.
        weak_weight: of all of them against the supervised.
        settings: AdamW and average.
        images: of the whole run, which the learning rate follows.
        precision: of the network's arithmetic.
        processes: whose gradients are averaged.

    Attributes:
        steps, images: turns of the loop and crops so far.
    """

    remedy = "a smaller step.lr"
    shown = {
        **{"loss": "", "shape": "mm", "landmarks": "px", "angles": "deg"},
        **{"weak_photometric": "", "weak_landmarks": "px2"},
    }

    def __init__(
        self,
        network: Regressor,
        losses: CoefficientLosses,
        weights: SupervisedWeights | None = None,
        weak: WeakLosses | None = None,
        weak_weights: WeakWeights | None = None,
        weak_weight: float = 1.0,
        settings: StepSettings | None = None,
        images: float = 1e5,
        precision: torch.dtype = torch.float32,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes or Processes(torch.device("cpu"))
        self.device = self.processes.device
        self.network = network.to(self.device, memory_format=torch.channels_last).train().requires_grad_(True)
        self.processes.copy_from_first(self.network.state_dict().values())
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        if self.processes.count > 1:
            SyncedBatchNorm.replace_in(self.network)
        self.losses = losses.to(self.device)
        self.weak = None if weak is None else weak.to(self.device)
        self.weights, self.weak_weights = weights or SupervisedWeights(), weak_weights or WeakWeights()
        self.weak_weight, self.settings, self.total_images = weak_weight, settings or StepSettings(), images
        self.precision = precision
        kernels = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        s = self.settings
        groups = [{"params": kernels, "weight_decay": s.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, s.lr, tuple(s.betas))
        self.steps = self.images = 0

    def predict(self, images: Tensor, average: bool = False) -> Coefficients:
        """Coefficients of crops, by the network that learns or by its running average."""
        network = self.average if average else self.network
        with autocast(self.device, self.precision):
            return network(images.contiguous(memory_format=torch.channels_last))

    def loss(
        self,
        images: Tensor | None,
        truth: Coefficients | None,
        landmarks: Tensor | None,
        photos: PhotoBatch | None = None,
        photo_images: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of this rank's part of a batch.

        Args:
            images: (B, 3, S, S) with truth, or None.
            truth: their coefficients.
            landmarks: (B, 68, 2), px of the 224 px crop.
            photos: (P) without truth, or None.
            photo_images: as the network sees them (with another color or sharpness than those that the rendering is
                compared with).

        Returns:
            (), and the means of every term; those of photos begin with ``weak_``.
        """
        given = [part for part in (images, photo_images) if part is not None]
        found = self.predict(torch.cat(given))
        loss, metrics = torch.zeros((), device=self.device), {}
        count = 0 if images is None else len(images)
        if count:
            values = self.losses(found[:count], truth, landmarks)
            if self.losses.pictures > 1:
                everyone = found.identity[:count]
                if self.processes.count > 1:  # the people of all ranks
                    everyone = torch.cat(dist.nn.all_gather(everyone.contiguous()))
                values["intra_inter_ratio"] = self.losses.intra_inter_ratio(everyone)
            loss = sum(getattr(self.weights, key) * value for key, value in values.items()).mean()
            metrics = {key: value.detach().mean() for key, value in values.items()}
        if photos is not None:
            values, _ = self.weak(found[count:], photos)
            loss = loss + self.weak_weight * self.weak.total(values, self.weak_weights).mean()
            metrics |= {f"weak_{key}": value.detach().mean() for key, value in values.items()}
        return loss, metrics | {"loss": loss.detach()}

    def descend(self, loss: Tensor) -> dict[str, Tensor]:
        """One step of AdamW down a loss, with gradients averaged over the ranks; returns the gradient's norm."""
        s, done = self.settings, self.images / max(self.total_images, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * cosine_rampdown(min(done, 1.0), s.rampup, s.rampdown)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(self.network.parameters())
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), s.clip)
        self.optimizer.step()
        return {"gradient": norm}

    def finish_step(self, batch: int) -> None:
        """Count the step of ``batch`` crops, over all ranks, and move the average."""
        s = self.settings
        self.steps += 1
        self.images += batch
        update_average(self.average, self.network, average_weight(batch, self.images, s.average, s.average_rampup))

    # -- keeping -----------------------------------------------------------------------------------------

    @property
    def progress(self) -> dict[str, Any]:
        """What begins a row of metrics."""
        return {"images": self.images, "step": self.steps}

    def networks(self) -> list[nn.Module]:
        """Those whose weights must be finite."""
        return [self.network, self.average]

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on, for :class:`facerecon.run.Checkpoints`."""
        return {
            "step": self.steps,
            "images": self.images,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any], name: str = "the checkpoint") -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            InputError: it is of another network; ``name`` says which file.
        """
        with fits_run(name):
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            resume_optimizer(self.optimizer, state["optimizer"])
            self.steps, self.images = int(state["step"]), int(state["images"])


def network_sizes(
    model: MorphableModel, backbone: str, width: float, size: int, decoder: str, components: int
) -> RegressorConfig:
    """Sizes of the network for a head.

    Args:
        model: the head.
        backbone: a ResNet's name.
        width: of its layers against the usual ones.
        size: px of the crops.
        decoder: name of the head's linear texture.
        components: of that texture.
    """
    low, high = model.expression_bounds or (None, None)
    return RegressorConfig(
        backbone=backbone,
        identity=model.num_identity,
        expression=model.num_expression,
        texture=components,
        width=width,
        size=size,
        expression_low=None if low is None or math.isinf(low) else low,
        expression_high=None if high is None or math.isinf(high) else high,
        face_model=model.name,
        decoder=decoder,
    )


def start_network(sizes: RegressorConfig, init: str | Sequence[str] | None, seed: int) -> tuple[Regressor, str]:
    """A network as it starts.

    Args:
        sizes: of it.
        init: files of regressors, of whose weights it is the mean (of those of another head what does not depend on
            the head); None: torchvision's ImageNet weights if they lie in torch's hub cache, else at random.
        seed: of random weights.

    Returns:
        The network, and how it starts, in words.

    Raises:
        ConfigError: ``init`` is of a network of another kind or size.
    """
    torch.manual_seed(seed)
    if not init:
        network = Regressor(sizes)
        return network, _load_imagenet(network)
    files = [init] if isinstance(init, str) else list(init)
    network = mean_regressor([read_regressor(file) for file in files])
    if network.config != sizes:
        found = network.config.plain()
        wrong = [key for key, value in sizes.plain().items() if found[key] != value]
        if not {"backbone", "width", "size"} & {*wrong}:
            return _of_other_head(network, sizes), f"from {' and '.join(files)}, of another head ({', '.join(wrong)})"
        remedy = " ".join(f"{key}={found[key]}" for key in wrong)
        raise ConfigError(f"{init} is of another network (differs: {', '.join(wrong)}); set {remedy}.")
    return network, f"from {' and '.join(files)}"


def _of_other_head(other: Regressor, sizes: RegressorConfig) -> Regressor:
    """A network that reads pictures as another does, and what does not depend on the head as that one: pose and light,
    texture and expression where they are as many of the same kind; its identity is the mean."""
    network = Regressor(sizes)
    network.backbone.load_state_dict(other.backbone.state_dict())
    same = {"angles", "light", "shift", "depth"}
    same |= {"texture"} if (other.config.texture, other.config.decoder) == (sizes.texture, sizes.decoder) else set()
    same |= {"expression"} if other.config.face_model.partition("_")[0] == sizes.face_model.partition("_")[0] else set()
    for name in same & {*network.heads}:
        network.heads[name].load_state_dict(other.heads[name].state_dict())
    return network


def _load_imagenet(network: Regressor) -> str:
    """Take torchvision's ImageNet weights, if they lie in torch's hub cache; tells what was done."""
    c = network.config
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(folder.glob(f"{c.backbone}-*.pth"))
    if c.width != 1.0 or not files:
        why = "width is not 1" if c.width != 1.0 else f"no {c.backbone}-*.pth in {folder}"
        return f"at random ({why})"
    try:
        state = torch.load(files[-1], map_location="cpu", weights_only=True)
        own = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        # they were trained on (x - mean) / std: the first kernel takes the scale; its offset is the normalization's
        scale = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        own["conv1.weight"] = own["conv1.weight"] / scale
        network.backbone.load_state_dict(own)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise AssetError(
            f"{files[-1]} is not torchvision's {c.backbone} ({reason}); remove it from the cache."
        ) from None
    middle = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    network.backbone.bn1.running_mean += (network.backbone.conv1.weight * middle).sum((1, 2, 3))
    return f"from {files[-1].name}"
