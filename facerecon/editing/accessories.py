"""Accessories of the upper face, classified in the image: glasses, fringe, headwear.

Planes in W predict what a code should show; after an edit only the image is evidence. Oriented gradients and colors
of a grid over brows, eyes and forehead, and logistic regression on labels made by looking.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.editing.linear import fit_class, logistic
from facerecon.errors import AssetError, check_shape
from facerecon.imaging.color import luma
from facerecon.modes import kept
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole

__all__ = [
    "ACCESSORIES",
    "AccessoryClassifier",
    "fit_accessories",
    "load_accessories",
    "upper_face",
    "upper_face_features",
]

ACCESSORIES = ("glasses", "fringe", "headwear")
SIZE, CELL, BINS = 96, 8, 8
STRENGTHS = (0.1, 0.3, 1.0, 3.0)


def upper_face(image: Tensor, mesh: Tensor) -> Tensor:
    """(B, 3, 96, 96): from above the hairline to the nose, the eyes level and in a fixed place.

    Args:
        image: (B, 3, S, S) in [0, 1].
        mesh: (B, 468, 2 or 3), pixels of the image.
    """
    check_shape("mesh", mesh, "B 468 D")
    if image.shape[-1] > 256:
        mesh = mesh * (256 / image.shape[-1])
        image = F.interpolate(image, (256, 256), mode="area")
    points = mesh[..., :2]
    left, right = points[:, [33, 133]].mean(1), points[:, [362, 263]].mean(1)
    across = F.normalize(right - left, dim=1)
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    width = (points[:, 454] - points[:, 234]).norm(dim=1)
    height = ((points[:, 152] - points[:, 10]) * down).sum(1)
    line = torch.linspace(0, 1, SIZE, dtype=image.dtype, device=image.device)
    y, x = torch.meshgrid(line - 0.65, 1.1 * (line - 0.5), indexing="ij")
    place = (left + right)[:, None, None] / 2
    place = place + (x * width[:, None, None])[..., None] * across[:, None, None]
    place = place + (y * height[:, None, None])[..., None] * down[:, None, None]
    return F.grid_sample(image, place / image.shape[-1] * 2 - 1, padding_mode="border", align_corners=False)


def upper_face_features(crop: Tensor) -> Tensor:
    """(B, 1584) of (B, 3, 96, 96): in each 8 px cell 8 gradient orientations, and the color over that of the cheeks."""
    gray = luma(crop)
    dx = F.pad(gray[..., 2:] - gray[..., :-2], (1, 1))
    dy = F.pad(gray[..., 2:, :] - gray[..., :-2, :], (0, 0, 1, 1))
    strength = (dx.square() + dy.square()).sqrt()
    place = torch.atan2(dy, dx).remainder(math.pi) / math.pi * BINS
    low = place.floor()
    share, low = place - low, low.long() % BINS
    bins = torch.arange(BINS, device=crop.device)[:, None, None]
    votes = strength * ((1 - share) * (low == bins) + share * ((low + 1) % BINS == bins))  # (B, 8, 96, 96)
    cells = F.avg_pool2d(votes, CELL)
    around = F.avg_pool2d(F.pad(cells.square().sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), 3, 1).sqrt()
    cells = (cells / (3 * around + 0.02)).clamp(max=0.6)
    cheeks = crop[:, :, SIZE * 3 // 4 :, SIZE // 3 : -SIZE // 3].mean((2, 3), keepdim=True).clamp(min=0.05)
    color = (F.avg_pool2d(crop, CELL) / cheeks).clamp(min=1e-4).log().clamp(-2, 2) * 0.5
    return torch.cat([cells, color], 1).flatten(1)


class AccessoryClassifier(nn.Module):
    """Log odds of each of ``ACCESSORIES``.

    Args:
        weight: (3, 1584).
        bias: (3,).
        metrics: of the cross-validation.
    """

    def __init__(self, weight: Tensor, bias: Tensor, metrics: dict | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.metrics = metrics or {}

    def forward(self, image: Tensor, mesh: Tensor) -> Tensor:
        """(B, 3) log odds; a face and its mirror image get the same.

        Args:
            image: (B, 3, S, S) in [0, 1].
            mesh: (B, 468, 2 or 3), pixels of the image.
        """
        crop = upper_face(image, mesh)
        features = 0.5 * (upper_face_features(crop) + upper_face_features(crop.flip(3)))
        return features @ self.weight.T + self.bias

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file."""
        metadata = {"format": "facerecon accessories 2", "metrics": json.dumps(self.metrics, sort_keys=True)}
        write_whole(path, safetensors_bytes({"weight": self.weight, "bias": self.bias}, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> AccessoryClassifier:
        """Read what :meth:`save` wrote; anything else is an AssetError."""
        advice = "run train/edit_directions.py to make one"
        tensors, metadata = read_safetensors(path, "a classifier of accessories", advice, ("weight", "bias"))
        classes, features = len(ACCESSORIES), (BINS + 3) * (SIZE // CELL) ** 2
        try:
            if {name: tuple(t.shape) for name, t in tensors.items()} != {
                "weight": (classes, features),
                "bias": (classes,),
            }:
                raise ValueError("other shapes")
            metrics = parse_json(metadata.get("metrics", metadata.get("figures", "{}")))
            return cls(**tensors, metrics=metrics)
        except ValueError as error:
            raise AssetError(f"{path} is not a classifier of accessories ({error}); {advice}.") from None


@kept()
def load_accessories() -> AccessoryClassifier:
    """The classifier that is shipped, frozen."""
    return AccessoryClassifier.load(assets.shipped("worn.safetensors")).eval()


def fit_accessories(
    features: Tensor, labels: Mapping[str, tuple[Tensor, Tensor]], folds: int = 5
) -> tuple[AccessoryClassifier, dict[str, Tensor]]:
    """Fit, with the strength of each class chosen out of fold.

    Args:
        features: (N, 1584), the mean of a crop's and its mirror image's.
        labels: {class: (index (M,), there (M,) of 0 and 1)} for all of ``ACCESSORIES``.
        folds: of the cross-validation.

    Returns:
        The classifier, and {class: (M,) log odds out of fold} for looking at the mistakes.

    Raises:
        InputError: a class of which one side has fewer than ``folds`` members.
    """
    weights, biases, metrics, margins = [], [], {}, {}
    for name in ACCESSORIES:
        index, there = labels[name]
        x = features[index].double()
        center = x.mean(0)
        (weight, bias), margins[name], metrics[name] = fit_class(name, _logistic, x - center, there, STRENGTHS, folds)
        weights.append(weight)
        biases.append(bias - center @ weight)
    return AccessoryClassifier(torch.stack(weights).float(), torch.stack(biases).float(), metrics), margins


def _logistic(x: Tensor, there: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Logistic regression in the space that the samples span: they are fewer than the features."""
    _, values, right = torch.linalg.svd(x, full_matrices=False)
    right = right[values > 1e-9 * values[0]]
    weight, bias = logistic(x @ right.T, there, strength)
    return right.T @ weight, bias
