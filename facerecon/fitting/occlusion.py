"""What stands in front of the face, from what the fit cannot explain (ours, not the paper's; SPEC 1b.2 excludes the
non-face by parsing instead).

The decoder knows skin, lips, brows and beards, but no microphone: the photo over the render of the stage so far,
in logarithms, is small wherever a face is seen. What sticks out of it, by brightness or by color, and is no eye, brow,
nostril or beard, is left out of every later image loss and of the detail step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from facerecon.errors import check_number, check_shape
from facerecon.fitting.detail import fit_to_full, full_crop_camera
from facerecon.geometry.camera import scale_camera
from facerecon.imaging.color import LUMA
from facerecon.imaging.warp import crop_affine
from facerecon.render import Renderer
from facerecon.types import Camera, Crop, MeshTopology, Observation, SHLight

__all__ = ["OcclusionSettings", "find_occlusion", "mask_occluders", "photometric_residual"]

_FLOOR, _DIM = 0.05, 0.12  # added to intensities before logarithms: darker than this is black, or has no color
_LUMA = np.array(LUMA, np.float32)
_STRAND = 0.12  # nats by which a strand of hair is darker than what lies beside it
_LIGHT = 0.3  # nats: how much slowly changing light the render may have missed
_SCALE = (0.07, 0.2)  # limits of the residual's robust standard deviation, in nats
_CHROMA_SCALE = (0.035, 0.13)


@dataclass(frozen=True)
class OcclusionSettings:
    """How the fit tells what hides the face.

    Args:
        enabled: off uses the face mask of the observation as it is.
        size: px, side of the picture of the full crop in which photo and render are compared.
        threshold: how far photo and render may differ, in robust standard deviations of this face; lower finds more
            and loses more of what is face.
        smallest: diameter of the least spot that counts, in distances between the eyes: moles are smaller.
        margin: added around what is found, in distances between the eyes.

    Raises:
        ConfigError: a value out of range.
    """

    enabled: bool = True
    size: int = 448
    threshold: float = 5.0
    smallest: float = 0.1
    margin: float = 0.02

    def __post_init__(self) -> None:
        check_number("occlusion.size", self.size, 64, whole=True, unit="px")
        for name, low in (("threshold", 1), ("smallest", 0), ("margin", 0)):
            check_number(f"occlusion.{name}", getattr(self, name), low, 100)


def photometric_residual(
    photo: Tensor, render: Tensor, face: Tensor, landmarks: Tensor, settings: OcclusionSettings | None = None
) -> Tensor:
    """What of each face the render does not explain: (B, 1, S, S) in [0, 1], 1 where something hides it, 0 outside.

    Args:
        photo, render: (B, 3, S, S) in [0, 1].
        face: (B, 1, S, S) in [0, 1], where both show the face.
        landmarks: (B, 68, 2), px of these images.
        settings: thresholds.
    """
    check_shape("photo", photo, "B 3 S S")
    check_shape("render", render, " ".join(map(str, photo.shape)))
    check_shape("landmarks", landmarks, f"{photo.shape[0]} 68 2")
    settings = settings or OcclusionSettings()
    pairs = torch.stack([photo, render], 1).detach().clamp(0, 1).float().cpu().numpy()
    faces = face.detach().cpu().numpy()[:, 0] > 0.5
    points = landmarks.detach().double().cpu().numpy()
    found = np.zeros(faces.shape, np.float32)
    for b, inside in enumerate(faces):
        if inside.sum() < 50 or not np.isfinite(points[b]).all():
            continue
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        box = tuple(slice(max(0, n[0] - 8), n[-1] + 9) for n in (rows, columns))
        moved = points[b] - [box[1].start, box[0].start]
        found[b][box] = _one(*pairs[b][:, :, box[0], box[1]], inside[box], moved, settings)
    return torch.from_numpy(found[:, None]).to(photo)


class _Places:
    """Where on an image of (H, W) px the parts of a face with (68, 2) landmarks are."""

    def __init__(self, points: np.ndarray, shape: tuple[int, int]) -> None:
        self.shape = shape
        right, left = points[36:42].mean(0), points[42:48].mean(0)
        # px: about the distance between the eyes, whatever the pose
        self.unit = max(float(np.linalg.norm(left - right)), float(np.ptp(points[:, 1])) / 3.5, 4.0)
        middle = (right + left) / 2
        down = points[48:60].mean(0) - middle
        down = down / max(float(np.linalg.norm(down)), 1e-6)
        y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
        # down the face from the eyes, in distances between them: of each pixel, of the nose's base, of the brows
        self.height = ((x - middle[0]) * down[0] + (y - middle[1]) * down[1]) / self.unit
        self.nose = float((points[31:36].mean(0) - middle) @ down) / self.unit
        self.brow = float((points[17:27].mean(0) - middle) @ down) / self.unit
        self.upright = abs(down[1]) >= abs(down[0])
        eyes = self._near(points, (range(36, 42), range(42, 48)), 0.14)
        brows = self._near(points, (range(17, 22), range(22, 27)), 0.14)
        lips = self._near(points, (range(48, 60),), 0.08)
        nostrils = self._near(points, (range(31, 36),), 0.12)
        self.features = eyes | brows | lips | nostrils  # where faces differ from each other in small, sharp things

    def _near(self, points: np.ndarray, parts: tuple[range, ...], reach: float) -> np.ndarray:
        canvas = Image.new("1", self.shape[::-1])
        draw = ImageDraw.Draw(canvas)
        for part in parts:
            corners = [tuple(p) for p in points[list(part)].tolist()]
            draw.polygon(corners, fill=1)
            draw.line([*corners, corners[0]], fill=1, width=1)
        return ndimage.distance_transform_edt(~np.asarray(canvas, bool)) <= reach * self.unit


def _spread(values: np.ndarray, limits: tuple[float, float]) -> float:
    """1.4826 MAD within limits."""
    return float(np.clip(1.4826 * np.median(np.abs(values - np.median(values))), *limits))


def _smooth(values: np.ndarray, weight: np.ndarray, reach: float) -> np.ndarray:
    """Gaussian mean over ``reach`` px of what has weight."""
    return ndimage.gaussian_filter(weight * values, reach) / (ndimage.gaussian_filter(weight, reach) + 1e-4)


def _even(values: np.ndarray, inside: np.ndarray, reach: float) -> np.ndarray:
    """Without what changes slowly over the face (light that the render missed), outliers counting little."""
    middle = np.median(values[inside])
    rest = values - middle
    for _ in range(2):
        smooth = _smooth(rest, inside / (1 + (rest / 0.2) ** 2), reach)
        rest = values - middle - np.clip(smooth, -_LIGHT, _LIGHT)
    return rest


def _one(
    photo: np.ndarray, render: np.ndarray, face: np.ndarray, points: np.ndarray, settings: OcclusionSettings
) -> np.ndarray:
    """(3, H, W) twice, (H, W) bool, (68, 2) px -> (H, W) float32 in [0, 1]."""
    places = _Places(points, face.shape)
    unit, inside = places.unit, face.astype(np.float32)
    plain = face & ~places.features
    plain = plain if plain.sum() > 50 else face
    luma = np.tensordot(_LUMA, np.log((photo + _FLOOR) / (render + _FLOOR)), 1)
    luma = _smooth(_even(luma, plain, 0.35 * unit), inside, 0.012 * unit)
    ratio = np.log((photo + _DIM) / (render + _DIM))
    chroma = [_smooth(c - np.median(c[plain]), inside, 0.02 * unit) for c in ratio - np.tensordot(_LUMA, ratio, 1)]
    luma_scale = settings.threshold * _spread(luma[plain], _SCALE)
    chroma_scale = settings.threshold * _spread(np.stack(chroma)[:, plain], _CHROMA_SCALE)

    # a beard is dark, skin may shine or blush, a shadow is dark without being colored
    beard = np.clip((places.height - 0.6 * places.nose) / (0.3 * places.nose), 0, 1)
    red, green, blue = chroma
    colored = np.sqrt(red**2 + green**2 + blue**2)
    shadow = np.clip(1 - colored / (0.5 * chroma_scale), 0, 1)
    limit = luma_scale * np.where(luma < 0, 1.6 + np.maximum(2.2 * beard, 1.2 * shadow), 1.4)
    warm = np.clip((red - green) / (np.abs(red) + np.abs(green) + np.abs(blue) + 1e-6), 0, 1)
    tint = chroma_scale * (1 + 0.7 * warm + 0.5 * beard * (luma < 0))
    score = np.sqrt((luma / limit) ** 2 + (colored / tint) ** 2)

    # hair hangs into the face from its border: there, darker counts sooner, and thin upright lines sooner still
    depth = ndimage.distance_transform_edt(face) / unit
    forehead = places.height < places.brow - 0.1
    rim = (forehead | ((depth < 0.25) & (places.height < 0.8 * places.nose))) & face & ~places.features
    hanging = np.abs(luma) / (np.where(forehead, 0.8, 1.2) * luma_scale * (1 + 0.8 * shadow))
    across = max(3, round(0.16 * unit))
    line = ndimage.grey_closing(luma * face, (1, across) if places.upright else (across, 1)) - luma
    hanging = np.where(rim, np.maximum(hanging, forehead * line / _STRAND), 0)
    labels, _ = ndimage.label(hanging > 0.6, np.ones((3, 3)))
    border = ndimage.binary_dilation(~face, iterations=2)
    kept = np.intersect1d(labels[(hanging > 1) & (depth > 0.06)], labels[border & face])
    hair = np.isin(labels, kept[kept > 0])

    outlying = (score > 1) & face
    broad = _opened(outlying, 0.11 * unit)
    outlying &= ~places.features | ndimage.binary_dilation(broad, iterations=max(1, round(0.05 * unit)))
    outlying = ndimage.binary_propagation(outlying, mask=(score > 0.7) & face & ~(places.features & ~broad))
    found = _notable(outlying, score, settings.smallest * unit) | hair
    found = ndimage.distance_transform_edt(~found) <= settings.margin * unit if found.any() else found
    soft = ndimage.gaussian_filter(found.astype(np.float32), 0.7)
    return np.where(face, np.clip(1.6 * soft - 0.3, 0, 1), 0).astype(np.float32)


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Morphological opening by a disk, by distances."""
    inner = ndimage.distance_transform_edt(mask) > radius
    return ndimage.distance_transform_edt(~inner) <= radius if inner.any() else inner


def _notable(mask: np.ndarray, score: np.ndarray, diameter: float) -> np.ndarray:
    """Drop spots whose extent is below a diameter, and those below four of them that hardly stick out."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    extent = np.array([0, *(max(s.stop - s.start for s in box) for box in boxes)])
    height = np.array([0, *ndimage.maximum(score, labels, range(1, len(boxes) + 1))])
    return ((extent >= 4 * diameter) | ((extent >= diameter) & (height > 1.5)))[labels] & mask


def find_occlusion(
    photo: Observation,
    vertices: Tensor,
    texture: Tensor,
    light: SHLight,
    camera: Camera,
    topology: MeshTopology,
    settings: OcclusionSettings | None = None,
) -> Tensor:
    """What hides the faces of an observation, by :func:`photometric_residual` on its full crop: (B, 1, S, S),
    S = ``settings.size``.

    Args:
        photo: B observed faces.
        vertices: (B, V, 3), posed.
        texture: (B, 3, s, s), the decoder's.
        light: fitted.
        camera: of the fit crop.
        topology: mesh.
        settings: of :func:`photometric_residual`.
    """
    settings = settings or OcclusionSettings()
    size, crop = settings.size, photo.full
    camera = scale_camera(full_crop_camera(camera, photo), (size, size))
    view = Renderer(size=size).prepare(vertices, topology, camera, light, face_region="face")
    render = view.shade(texture.clamp(0, 1))
    layers = torch.cat([crop.image, crop.face_mask * crop.valid], 1)
    image, face = F.interpolate(layers, size=(size, size), mode="area").split([3, 1], 1)
    to_full = fit_to_full(photo) * (size / crop.image.shape[-1])
    points = photo.landmarks68 @ to_full[:, :, :2].mT + to_full[:, None, :, 2]
    return photometric_residual(image, render.image, face * render.mask, points, settings)


def mask_occluders(photo: Observation, occluded: Tensor) -> Observation:
    """An observation whose masks, of both crops, leave out what is hidden.

    Args:
        photo: B observed faces.
        occluded: (B, 1, S, S) in [0, 1], a picture of the full crop at any size.
    """
    check_shape("occluded", occluded, f"{photo.batch} 1 S S")

    def without(crop: Crop, hidden: Tensor) -> Crop:
        names = ("face_mask", "skin_mask", "eye_mask", "mouth_mask", "lip_mask")
        return crop.replace(**{name: getattr(crop, name) * (1 - hidden) for name in names})

    side = photo.full.image.shape[-1]
    full = F.interpolate(occluded, size=(side, side), mode="bilinear", align_corners=False)
    fit = crop_affine(full, fit_to_full(photo), photo.image.shape[-1], padding="zeros")
    return photo.replace(fit=without(photo.fit, fit), full=without(photo.full, full))
