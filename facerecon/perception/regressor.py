"""N_enc: a photo's 224 px crop -> the coefficients of a head model in one forward pass (Sec. 4.2, stage 1).

The network of Deep3D (Deng et al. 2019, arXiv:1903.08527) with the heads of the released one: a ResNet without its last
layer, and on its pooled features one 1 x 1 convolution each for identity, expression, texture, angles, light and
translation (in the image plane, and in depth). Which head model it speaks of is a matter of its configuration, so one
class serves all; the released ``epoch_latest.pth`` (HiFi3D++) is read by key mapping.

Files are safetensors with the configuration in the header, in half precision or in 8 bits a weight.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import float_tensors, read_state, shapes_of
from facerecon.assets.store import shipped_names
from facerecon.errors import AssetError, ConfigError, InputError, check_number, check_shape, nearest_name
from facerecon.modes import in_own_modes, without_numbers
from facerecon.settings import build_settings
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole
from facerecon.types import HEAD_VERSIONS, TensorStruct, saved_head

__all__ = [
    "BACKBONES",
    "Coefficients",
    "Regressor",
    "RegressorConfig",
    "ResNet",
    "clamp_inward",
    "from_official",
    "load_regressor",
    "mean_regressor",
    "read_official_regressor",
    "read_regressor",
    "save_regressor",
    "shortcut",
    "trained_regressor",
]

FORMAT = "facerecon.regressor/1"
_ADVICE = "give a regressor.safetensors as train/regressor.py writes it"
_OFFICIAL_ADVICE = "get the released epoch_latest.pth again"
_OFFICIAL = "Deep3D's regressor as FFHQ-UV releases it"
_PRECISIONS = ("float32", "float16", "int8")
_SCALE = ".scale"
_FACTOR = "residual.identity"  # Cholesky factor of the covariance
_SHAPE = "shape_head"


@dataclass(frozen=True)
class Coefficients(TensorStruct):
    """Prediction of N_enc for B crops: {p_id, p_exp, p_tex, p_pose, p_light}, in the units of the released network.

    Args:
        identity: (B, I), standard deviations of the head model's basis.
        expression: (B, E), within the bounds of the configuration.
        texture: (B, T), code of the head model's linear texture; T may be 0.
        angles: (B, 3), x, y, z Euler angles in radians, R = Rz Ry Rx.
        light: (B, 27), gamma: channel by channel, nine SH bands each, WITHOUT the ambient 0.8.
        translation: (B, 3), world units (0.1 m), of the camera ``Camera.deep3d``.
    """

    identity: Tensor
    expression: Tensor
    texture: Tensor
    angles: Tensor
    light: Tensor
    translation: Tensor


# -- the network -----------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, Fig. 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut (Fig. 5 right); the 3 x 3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = shortcut(inputs, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """A projection where the sizes differ, else None."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


BACKBONES: dict[str, tuple[type[nn.Module], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (_Bottleneck, (3, 4, 6, 3)),
}
"""Kind of block, and blocks a stage."""


class ResNet(nn.Module):
    """A ResNet without its last layer: (B, 3, H, W) -> features at 1/8, 1/16 and 1/32 of the size.

    Args:
        name: key of :data:`BACKBONES`.
        channels: of the four stages, before the expansion of a bottleneck.
    """

    def __init__(self, name: str, channels: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        block, counts = BACKBONES[name]
        self.width = channels[0]
        self.conv1 = nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width)
        for k, (width, count) in enumerate(zip(channels, counts, strict=True), 1):
            blocks = []
            for i in range(count):
                blocks.append(block(self.width, width, 2 if k > 1 and i == 0 else 1))
                self.width = width * block.expansion
            setattr(self, f"layer{k}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


@dataclass(frozen=True)
class RegressorConfig:
    """Sizes of a regressor, and what its numbers mean.

    Args:
        backbone: key of :data:`BACKBONES`; resnet50 is the released one.
        identity, expression, texture: how many coefficients of each; 0 is allowed.
        width: channels of every layer against the usual ones, (0, 2].
        size: px, side of the crop.
        expression_low, expression_high: bounds of the expression coefficients, None for none; 0 and None is the
            released ReLU, 0 and 1 fits blendshape weights.
        face_model: head model that the coefficients are of.
        version: of that head model; None: the present one.
        decoder: linear texture decoder whose code the texture is ("linear", or "albedo" for the head model's
            own); "" is unknown.
    """

    backbone: str = "resnet18"
    identity: int = 80
    expression: int = 52
    texture: int = 64
    width: float = 1.0
    size: int = 224
    expression_low: float | None = 0.0
    expression_high: float | None = None
    face_model: str = "makehuman"
    decoder: str = "linear"
    version: str | None = None

    def __post_init__(self) -> None:
        if self.version is None:
            object.__setattr__(self, "version", HEAD_VERSIONS.get(self.face_model, ""))
        if self.backbone not in BACKBONES:
            raise ConfigError(nearest_name(self.backbone, BACKBONES, "backbone"))
        for name in ("identity", "expression", "texture"):
            check_number(f"regressor.{name}", getattr(self, name), 0, 4096, whole=True)
        check_number("regressor.size", self.size, 32, 1024, whole=True, unit="px")
        if not isinstance(self.width, int | float) or not 0 < self.width <= 2:
            raise ConfigError(f"regressor.width must be above 0 and at most 2; got {self.width!r}.")
        for bound in (self.expression_low, self.expression_high):
            if bound is not None and not (isinstance(bound, int | float) and math.isfinite(bound)):
                raise ConfigError(f"bounds of the expression must be numbers or null; got {bound!r}.")
        low, high = self.bounds
        if not low <= 0 <= high or low == high:
            raise ConfigError(f"bounds of the expression must hold 0, the neutral face; got {low} to {high}.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest expression coefficient, infinite where there is no bound."""
        low, high = self.expression_low, self.expression_high
        return -math.inf if low is None else float(low), math.inf if high is None else float(high)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages, before the expansion of a bottleneck; multiples of 8."""
        return tuple(max(8, round(base * self.width / 8) * 8) for base in (64, 128, 256, 512))  # type: ignore[return-value]

    def plain(self) -> dict[str, Any]:
        """As plain data, for the header of a file."""
        return dataclasses.asdict(self)


class _Inward(torch.autograd.Function):
    """Clamp whose gradient still leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        stays = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))  # descent would leave
        return gradient.masked_fill(stays, 0), None, None


def clamp_inward(x: Tensor, low: float, high: float) -> Tensor:
    """``x.clamp(low, high)``, whose gradient passes where a descent step leads inside.

    The released ReLU is the case (0, infinity), but for its gradient: a coefficient at 0, as every one is in an
    untrained network, could not leave it there.
    """
    return _Inward.apply(x, low, high)


class Regressor(nn.Module):
    """ResNet and heads; the untrained one gives the mean face in the middle of the crop, in ambient light.

    Args:
        config: sizes.

    Attributes:
        covariance: (I, I) of what is missed in the identity of faces that were not seen, or None.
        shape_head: (I, 2 I + 1), or None: see :meth:`shape`.
        about: plain data that came with the weights (training, figures, license); {} for a new network. Under
            "residual" it may hold {"identity": I numbers, "expression": E numbers}, the standard deviations of what
            the network misses on faces it has not seen.
    """

    HEADS = ("identity", "expression", "texture", "angles", "light", "shift", "depth")

    def __init__(self, config: RegressorConfig | None = None) -> None:
        super().__init__()
        config = config or RegressorConfig()
        self.config = config
        self.about: dict[str, Any] = {}
        self.covariance: Tensor | None = None
        self.shape_head: Tensor | None = None
        self.backbone = ResNet(config.backbone, config.channels)
        sizes = (config.identity, config.expression, config.texture, 3, 27, 2, 1)
        self.heads = nn.ModuleDict(
            {
                name: nn.Conv2d(self.backbone.width, size, 1)
                for name, size in zip(self.HEADS, sizes, strict=True)
                if size
            }
        )
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def residual(self, name: str) -> Tensor | None:
        """What errors of ``identity`` or ``expression`` on unseen faces are like: their covariance (K, K) where it is
        known, else standard deviations (K,), or None."""
        if name == "identity" and self.covariance is not None:
            return self.covariance.to(self.heads["angles"].bias)
        values = self.about.get("residual", {}).get(name)
        return None if values is None else torch.tensor(values, device=self.heads["angles"].bias.device)

    def shape(self, landmark_fit: Tensor, yaw: Tensor) -> Tensor:
        """Identity from a fit to landmarks, (B, I): linear, solved on rendered heads whose points were detected, so
        that it knows the detectors' errors and what people look like.

        Args:
            landmark_fit: (B, I), identity of a fit to the landmarks from the mean face.
            yaw: (B,) of that fit, radians.
        """
        one = torch.ones_like(yaw)[:, None]
        return torch.cat([landmark_fit, landmark_fit * yaw.abs()[:, None], one], 1) @ self.shape_head.to(yaw).mT

    def sized(self, crops: Tensor) -> Tensor:
        """Square crops (B, 3, N, N) of any size, at the network's."""
        size = self.config.size
        if crops.shape[-2:] != (size, size):
            crops = F.interpolate(crops, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return crops.contiguous(memory_format=torch.channels_last)

    def pooled(self, images: Tensor) -> Tensor:
        """Features before the heads: (B, 3, S, S) in [0, 1] -> (B, C)."""
        check_shape("images", images, f"B 3 {self.config.size} {self.config.size}")
        return self.backbone(images)[-1].mean((2, 3))

    def forward(self, images: Tensor) -> Coefficients:
        """Coefficients of B aligned crops, float32.

        Args:
            images: (B, 3, S, S) RGB in [0, 1], in the released alignment
                (:func:`~facerecon.geometry.alignment.deep3d_crop_transform`). As in the release they are not
                normalized any further.

        Raises:
            ShapeError: another size.
        """
        features = self.pooled(images).float()[:, :, None, None]
        with torch.autocast(features.device.type, enabled=False):
            out = {name: head(features)[:, :, 0, 0] for name, head in self.heads.items()}
        none = features.new_zeros(len(features), 0)
        expression = out.get("expression", none)
        low, high = self.config.bounds
        if not (math.isinf(low) and math.isinf(high)):
            expression = clamp_inward(expression, low, high)
        return Coefficients(
            identity=out.get("identity", none),
            expression=expression,
            texture=out.get("texture", none),
            angles=out["angles"],
            light=out["light"],
            translation=torch.cat([out["shift"], out["depth"]], 1),
        )


# -- our files -------------------------------------------------------------------------------------------


def save_regressor(
    path: str | Path,
    network: Regressor,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str = torch.float16,
) -> Path:
    """Write a regressor.

    Args:
        path: safetensors file to write.
        network: on any device.
        metadata: plain data about it (steps, figures, license ...), kept as JSON; ``network.about`` if left out.
        dtype: of the stored kernels: float32, float16, or int8 (with a scale for each output channel; the heads, which
            are small, in float16). Normalization stays float32.

    Raises:
        ConfigError: another ``dtype``, or metadata that JSON cannot hold.
        OutputError: the file cannot be written; one that was there is untouched.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _PRECISIONS:
        raise ConfigError(nearest_name(name, _PRECISIONS, "dtype of a regressor's file"))
    tensors: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        value = value.detach().cpu().float().contiguous()
        if value.dim() < 4:
            tensors[key] = value
        elif name == "int8" and key.startswith("backbone."):
            scale = value.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            tensors[key] = (value / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
            tensors[key + _SCALE] = scale
        else:
            tensors[key] = value if name == "float32" else value.half()
    if network.covariance is not None:
        tensors[_FACTOR] = torch.linalg.cholesky(network.covariance.cpu().double()).half()
    if network.shape_head is not None:
        tensors[_SHAPE] = network.shape_head.cpu().half()
    about = network.about if metadata is None else dict(metadata)
    header = {"format": FORMAT, "config": network.config.plain(), "about": about}
    try:
        text = json.dumps(header, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata of a regressor must be plain data for JSON ({error}).") from None
    return write_whole(path, safetensors_bytes(tensors, {"facerecon": text}))


def mean_regressor(networks: Sequence[Regressor]) -> Regressor:
    """The network whose weights are the means of others', of one path of training (arXiv:2203.05482).

    Args:
        networks: one or more of the same configuration; without the first's record of how it was trained.

    Raises:
        ConfigError: none, or they differ in their configuration.
    """
    if not networks:
        raise ConfigError("a mean needs one network at least.")
    if any(other.config != networks[0].config for other in networks):
        raise ConfigError("these are weights of networks of different kinds; name such as one run led to.")
    mean, states = copy.deepcopy(networks[0]), [other.state_dict() for other in networks]
    for name, value in mean.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name] for state in states]).mean(0))
    mean.about = {}
    return mean


@in_own_modes
def read_regressor(path: str | Path) -> Regressor:
    """Read what :func:`save_regressor` wrote, frozen, in float32 and eval mode.

    Raises:
        AssetError: no such file, a pickle (never opened), not a regressor, or numbers that are not finite.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path, "a face regressor", _ADVICE)
    try:
        header = parse_json(metadata.get("facerecon", ""))
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
        values = {"version": ""} | header["config"]
        values["face_model"] = saved_head(values["face_model"], values.pop("version"))
        config = build_settings(RegressorConfig, values, "regressor")
        about = dict(header.get("about", {}))
        for name, values in about.get("residual", {}).items():
            if len(values) != getattr(config, name) or not all(math.isfinite(v) and v > 0 for v in values):
                raise ValueError(f"residual of '{name}' is not {getattr(config, name)} numbers above 0")
    except (AttributeError, ValueError, KeyError, TypeError, OverflowError, ConfigError, InputError) as error:
        raise AssetError(
            f"{path} is not a face regressor of this library ({error or 'no header'}); {_ADVICE}."
        ) from None
    factor, shape = tensors.pop(_FACTOR, None), tensors.pop(_SHAPE, None)
    count = config.identity
    scales = {name.removesuffix(_SCALE): tensors.pop(name) for name in list(tensors) if name.endswith(_SCALE)}
    weights = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = scales.pop(name, None)
            if scale is None or scale.shape != tensor.shape[:1]:
                raise AssetError(f"{path} is damaged: '{name}' and its scale do not fit; {_ADVICE}.")
            tensor = tensor * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        weights[name] = tensor.float()
    network = _filled(config, weights, path, about, _ADVICE)
    wide = {_FACTOR: (factor, count), _SHAPE: (shape, 2 * count + 1)}
    for name, (tensor, columns) in wide.items():
        if tensor is not None and tensor.shape != (count, columns):
            raise AssetError(f"{path} is damaged: '{name}' is {tuple(tensor.shape)}; {_ADVICE}.")
    network.covariance = None if factor is None else factor.float() @ factor.float().T
    network.shape_head = None if shape is None else shape.float()
    return network


def _filled(config: RegressorConfig, weights: dict[str, Tensor], path: Any, about: dict, advice: str) -> Regressor:
    """A frozen network of given weights, which are all it needs and no more."""
    with without_numbers():
        network = Regressor(config)
    expected = shapes_of(lambda: network)
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise AssetError(
            f"{path} does not fit its sizes: {odd} should be {expected.get(odd, 'absent')}, is "
            f"{found.get(odd, 'absent')}; {advice}."
        )
    counters = {n: torch.tensor(0) for n in network.state_dict() if n.endswith("num_batches_tracked")}
    network.load_state_dict({**weights, **counters}, assign=True)
    network.about = about
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


# -- the released file -----------------------------------------------------------------------------------

_OFFICIAL_HEADS = {
    "identity": "final_layers.0",
    "expression": "final_layers.1.0",
    "texture": "final_layers.2",
    "angles": "final_layers.3",
    "light": "final_layers.4",
    "shift": "final_layers.5",
    "depth": "final_layers.6",
}


def from_official(state: Mapping[str, Tensor], path: str | Path = "the state dictionary") -> Regressor:
    """A regressor from the released layout (``net_recon``); every key is used exactly once.

    Args:
        state: {name: tensor}; the backbone may be any of :data:`BACKBONES`.
        path: for messages.

    Raises:
        AssetError: a key is missing, left over, of another shape or type, or holds NaN; one line names it.
    """
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    kernels = "conv3" if "backbone.layer1.0.conv3.weight" in shapes else "conv2"
    counts = tuple(
        len([n for n in shapes if re.fullmatch(rf"backbone\.layer{k}\.\d+\.{kernels}\.weight", n)]) for k in range(1, 5)
    )
    kinds = {"conv3": _Bottleneck, "conv2": BasicBlock}
    backbone = next((n for n, (block, c) in BACKBONES.items() if c == counts and block is kinds[kernels]), None)
    lacking = [f"{there}.weight" for there in _OFFICIAL_HEADS.values() if f"{there}.weight" not in shapes]
    if backbone is None or lacking or "backbone.conv1.weight" not in shapes:
        lacks = f"lacks '{lacking[0]}'" if lacking else "its ResNet is of an unknown depth"
        raise AssetError(f"{path} is not {_OFFICIAL} ({lacks}); {_OFFICIAL_ADVICE}.")
    config = RegressorConfig(
        backbone=backbone,
        width=shapes["backbone.conv1.weight"][0] / 64,
        expression_low=0.0,
        expression_high=None,
        face_model="hifi3dpp",
        decoder="albedo",
        **{name: shapes[f"{_OFFICIAL_HEADS[name]}.weight"][0] for name in ("identity", "expression", "texture")},
    )
    shapes = shapes_of(lambda: Regressor(config))
    official = {name: name for name in shapes}
    for head, there in _OFFICIAL_HEADS.items():
        official |= {f"heads.{head}.{kind}": f"{there}.{kind}" for kind in ("weight", "bias")}
    found = float_tensors(state, {official[name]: shape for name, shape in shapes.items()}, path, _OFFICIAL)
    weights = {name: found[official[name]].clone() for name in shapes}
    about = {"source": "FFHQ-UV, epoch_latest.pth (net_recon)"}
    return _filled(config, weights, path, about, _OFFICIAL_ADVICE)


def read_official_regressor(path: str | Path) -> Regressor:
    """Read a released ``.pth``: {"net_recon": state dictionary, ...}, or the state dictionary alone.

    Raises:
        AssetError: missing, not such a file, or one that holds more than tensors (it is not opened then).
    """
    return from_official(read_state(path, "net_recon"), Path(path))


# -- by head model ---------------------------------------------------------------------------------------


def trained_regressor(face_model: str) -> Path | None:
    """The file of trained weights for a head model: what comes with the library, or the release's for hifi3dpp once it
    is converted; None where there are none."""
    name = f"regressor_{face_model}.safetensors"
    if name in shipped_names():
        return assets.shipped(name)
    if face_model == "hifi3dpp" and assets.status("ffhq_uv_regressor").state == "ready":
        return assets.locate("ffhq_uv_regressor")
    return None


@in_own_modes
def load_regressor(model: Any = "makehuman", path: str | Path | None = None) -> Regressor:
    """The trained regressor of a head model, frozen, in eval mode.

    Args:
        model: name of a head model, or the model itself.
        path: weights of one's own: a file of :func:`save_regressor`, or the released ``epoch_latest.pth``.

    Raises:
        AssetError: there are no trained weights for that head model; the file is missing or is none; or it is of
        another head model.
    """
    name = str(getattr(model, "name", model))
    file = trained_regressor(name) if path is None else Path(path).expanduser()
    if file is None:
        released = " or give the released epoch_latest.pth as regressor=PATH," if name == "hifi3dpp" else ""
        raise AssetError(
            f"there are no trained weights of a regressor for face model '{name}';{released} train one with: "
            f"python train/regressor.py face_model={name}; then give its file as regressor=PATH (or use "
            "stage1=landmarks)."
        )
    network = read_official_regressor(file) if file.suffix in (".pth", ".pt") else read_regressor(file)
    if network.config.face_model != name:
        raise AssetError(
            f"{file} is a regressor for face model '{network.config.face_model}', not for '{name}'; use "
            f"face_model={network.config.face_model}, or train one: python train/regressor.py face_model={name}."
        )
    expression = getattr(model, "num_expression", network.config.expression)
    if expression != network.config.expression:
        raise AssetError(
            f"{file} gives {network.config.expression} expression coefficients, face model '{name}' has {expression}; "
            f"train one for it: python train/regressor.py face_model={name}."
        )
    return network
