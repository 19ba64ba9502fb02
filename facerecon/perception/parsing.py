"""Face masks without a parsing network: face-mesh outlines, a Gaussian of the skin's color, and the person's outline.

Unlike FFHQ-UV, which parses with BiSeNet (19 classes): here outlines say where the face can be, color says
what of it is skin. Weak where color is: glasses and light hair can pass for skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.imaging.color import rgb_to_yuv
from facerecon.perception.facemesh import (
    FACE_OVAL,
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_BROW,
    RIGHT_EYE,
)

__all__ = ["FaceMasks", "face_masks"]

_FOREHEAD, _CHIN, _NASION = 10, 152, 168
# vectors from the lower border of the mesh's forehead to the hairline, as a share of the face's height
_FOREHEAD_GROWTH = 0.5


@dataclass(frozen=True)
class FaceMasks:
    """Masks of one face, (1, 1, H, W) in [0, 1]; see :class:`facerecon.types.Crop`."""

    face: Tensor
    skin: Tensor
    eye: Tensor
    mouth: Tensor
    lip: Tensor


def _polygon(points: np.ndarray, shape: tuple[int, int], grow: float = 0.0) -> np.ndarray:
    """Filled polygon (H, W) bool, grown about its center."""
    center = points.mean(0)
    points = center + (points - center) * (1 + grow)
    canvas = Image.new("L", (shape[1] * 2, shape[0] * 2))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in (points * 2).tolist()], fill=255)
    return np.asarray(canvas.reduce(2)) > 127


def face_masks(image: Tensor, mesh: Tensor, person: Tensor | None = None, landmarks: Tensor | None = None) -> FaceMasks:
    """Masks of one face.

    Args:
        image: (1, 3, H, W) in [0, 1]. mesh: (1, 468, 2 or 3) px. person: (1, 1, H, W) soft mask of people.
        landmarks: (1, 68, 2) px, whose jaw line completes the mesh's outline, which is too narrow in turned faces.

    Returns:
        Masks with edges softened over about a pixel in 300.
    """
    check_shape("image", image, "1 3 H W")
    check_shape("mesh", mesh[..., :2], "1 468 2")
    height, width = shape = image.shape[-2:]
    points = mesh[0, :, :2].double().cpu().numpy()
    outline = points[list(FACE_OVAL)]
    tall = float(np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))
    if not np.isfinite(points).all() or tall < 4:
        blank = torch.zeros(1, 1, height, width)
        return FaceMasks(blank, blank, blank, blank, blank)

    oval = _polygon(outline, shape)
    if landmarks is not None:
        oval |= _polygon(landmarks[0, :17].double().cpu().numpy(), shape)
    up = points[_FOREHEAD] - points[_CHIN]
    above = np.clip(((outline - points[_NASION]) @ up) / (up @ up), 0, 1)
    reach = _polygon(outline + above[:, None] * up * _FOREHEAD_GROWTH, shape)
    eyes = _polygon(points[list(LEFT_EYE)], shape) | _polygon(points[list(RIGHT_EYE)], shape)
    wide_eyes = _polygon(points[list(LEFT_EYE)], shape, 0.5) | _polygon(points[list(RIGHT_EYE)], shape, 0.5)
    brows = _polygon(points[list(LEFT_BROW)], shape, 0.15) | _polygon(points[list(RIGHT_BROW)], shape, 0.15)
    lips = _polygon(points[list(LIPS_OUTER)], shape, 0.04)
    mouth = _polygon(points[list(LIPS_INNER)], shape)

    likely = _skin_likelihood(image, oval, wide_eyes | brows | lips, tall)
    inside = oval & (likely > 0.04)
    forehead = reach & ~oval & (likely > 0.22)
    people = person is None or person[0, 0].cpu().numpy() > 0.35
    skin = (inside | forehead) & people
    features = wide_eyes & oval | brows & oval | lips
    face = _largest(ndimage.binary_opening(skin, iterations=max(1, round(tall / 160))) | features)
    face = _without_small_holes(face, max(16, int(0.004 * tall * tall))) & (oval | reach)

    soften = max(0.5, tall / 300)

    def soft(mask: np.ndarray) -> Tensor:
        blurred = ndimage.gaussian_filter(mask.astype(np.float32), soften)
        return torch.from_numpy(blurred)[None, None].to(image.device)

    bare = face & ~eyes & ~brows & ~lips
    return FaceMasks(soft(face), soft(bare), soft(eyes & oval), soft(mouth), soft(lips & ~mouth))


def _skin_likelihood(image: Tensor, oval: np.ndarray, features: np.ndarray, tall: float) -> np.ndarray:
    """exp(-d^2) of each pixel's color from this face's own skin, in YUV; shadows and highlights tolerated."""
    yuv = rgb_to_yuv(image)[0].permute(1, 2, 0).cpu().numpy() * 255
    margin = max(1, round(tall / 40))
    core = ndimage.binary_erosion(oval, iterations=max(1, round(tall / 9))) & ~ndimage.binary_dilation(
        features, iterations=margin
    )
    if core.sum() < 50:
        core = oval
    sample = yuv[core].astype(np.float64)
    center = np.median(sample, 0)
    distance = np.abs(sample - center) / (np.median(np.abs(sample - center), 0) * 1.4826 + 2)
    sample = sample[(distance < 3).all(1)]
    if len(sample) < 20:
        return np.ones(oval.shape)
    covariance = np.cov(sample.T) + np.diag([120.0, 8.0, 8.0])
    difference = yuv - sample.mean(0)
    squared = np.einsum("hwi,ij,hwj->hw", difference, np.linalg.inv(covariance), difference)
    return ndimage.gaussian_filter(np.exp(-0.175 * squared), max(0.7, tall / 250))


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _without_small_holes(mask: np.ndarray, area: int) -> np.ndarray:
    """Fill holes up to an area; larger ones (a microphone, a hand) stay open."""
    labels, _ = ndimage.label(~mask)
    sizes = np.bincount(labels.ravel())
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    fill = (sizes <= area) & ~np.isin(np.arange(len(sizes)), border)
    fill[0] = False
    return mask | fill[labels]
