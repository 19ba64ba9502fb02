"""Face masks without a parsing network: outlines bound the face, color and texture separate its skin.

The skin of this face and what surrounds it (hair, hat, background) become mixtures of Gaussians over color and local
contrast; their likelihood ratio and a prior from the outlines are smoothed by a random walk that stops at edges.

Unlike FFHQ-UV, which parses with BiSeNet (19 classes, learned from CelebAMask-HQ): nothing here is learned from other
faces. Weak where hair is as smooth and as colored as the skin. Most of the dark frame of glasses is left out; lenses
count as skin, and rimless glasses are not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from facerecon.errors import check_shape
from facerecon.imaging.color import rgb_to_yuv
from facerecon.imaging.warp import crop_affine
from facerecon.perception.facemesh import FACE_OVAL, LEFT_BROW, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_BROW, RIGHT_EYE
from facerecon.perception.segmentation import GaussianMixture, fit_mixture, random_walk

__all__ = ["FaceMasks", "face_masks", "frame_contrast", "near_face"]

_FOREHEAD, _CHIN, _NASION = 10, 152, 168  # of the mesh
_CONTOUR = (*range(17), *range(26, 16, -1))  # of the 68 landmarks: along the jaw and back over the brows
_TALL = 128  # px: height of the face (top of the mesh to the chin) on the grid that is segmented
_GROWTH = 0.45  # from the top of the mesh to the furthest hairline, in heights of the face
_BORDER = 0.3  # of the grid around the outline, in heights of the face
_FLOOR = np.array([60.0, 6.0, 6.0, 0.15])  # least variances of Y, U, V (0..255) and of the log of the contrast
_ROUNDS = 3  # of fitting colors and segmenting anew
_SAMPLES = 1500  # pixels that a mixture is fitted to
_FINER = 8  # subpixels along an axis when polygons are filled
_RIGHT_LID, _LEFT_LID = (70, 63, 105, 66, 107, 133, 33), (300, 293, 334, 296, 336, 362, 263)  # brow to eye, mesh
_RIGHT_CORNER, _LEFT_CORNER = 133, 362  # of the mesh: the inner corners of the eyes
_NEAR = 0.6  # of the outline's own size: how much further a face may reach
_FRAMED = 0.05  # contrast across the nose from which on it carries glasses; bare noses stay below 0.02


@dataclass(frozen=True)
class FaceMasks:
    """Masks of one face, (1, 1, H, W) in [0, 1]; see :class:`facerecon.types.Crop`."""

    face: Tensor
    skin: Tensor
    eye: Tensor
    mouth: Tensor
    lip: Tensor


def face_masks(
    image: Tensor,
    mesh: Tensor,
    person: Tensor | None = None,
    landmarks: Tensor | None = None,
    face: Tensor | None = None,
) -> FaceMasks:
    """Masks of one face with soft edges, about a hundredth of its height wide; empty where the mesh is not a face.

    Args:
        image: (1, 3, H, W) in [0, 1].
        mesh: (1, 468, 2 or 3) px.
        person: (1, 1, H, W) soft mask of people.
        landmarks: (1, 68, 2) px, whose jaw line completes the mesh's outline, which is too narrow in turned faces.
        face: (1, 1, H, W) in [0, 1], taken for the face where it is already known.
    """
    check_shape("image", image, "1 3 H W")
    check_shape("mesh", mesh[..., :2], "1 468 2")
    points = mesh[0, :, :2].double().cpu().numpy()
    tall = float(np.linalg.norm(points[_FOREHEAD] - points[_CHIN]))
    if not np.isfinite(points).all() or tall < 4 or not 0.2 < np.ptp(points, 0).min() / tall < 5:
        return FaceMasks(*image.new_zeros(5, 1, 1, *image.shape[-2:]))
    if face is None:
        contour = None if landmarks is None else landmarks[0, _CONTOUR].double().cpu().numpy()
        grid = _Grid(points, contour, tall)
        found = _segmented(grid, image, person)
        if frame_contrast(image, mesh).item() > _FRAMED:
            found &= ~_frames(grid, image)
        face = grid.to_image(found, image)

    def filled(indices: tuple[int, ...], grow: float = 0.0) -> Tensor:
        return torch.from_numpy(_polygon(points[list(indices)], tuple(image.shape[-2:]), grow))[None, None].to(image)

    eye = torch.maximum(filled(LEFT_EYE), filled(RIGHT_EYE)) * face
    brow = torch.maximum(filled(LEFT_BROW, 0.15), filled(RIGHT_BROW, 0.15))
    mouth, lips = filled(LIPS_INNER) * face, filled(LIPS_OUTER, 0.04) * face
    skin = face * (1 - eye) * (1 - brow) * (1 - lips)
    return FaceMasks(face, skin, eye, mouth, (lips - mouth).clamp(min=0))


def near_face(image: Tensor, mesh: Tensor) -> Tensor:
    """Where a face can be at most, (1, 1, H, W) in [0, 1]: its mesh's outline, enlarged; nothing if it is not finite.

    Args:
        image: (1, 3, H, W).
        mesh: (1, 468, 2 or 3) px.
    """
    points = mesh[0, :, :2].double().cpu().numpy()
    if not np.isfinite(points).all():
        return image.new_zeros(1, 1, *image.shape[-2:])
    outline = _polygon(points[list(FACE_OVAL)], tuple(image.shape[-2:]), _NEAR)
    return torch.from_numpy(outline)[None, None].to(image)


def frame_contrast(image: Tensor, mesh: Tensor) -> Tensor:
    """How strongly a dark bar crosses the nose between the eyes: glasses.

    Args:
        image: (B, 3, H, W) in [0, 1].
        mesh: (B, 468, 2 or 3) px.

    Returns:
        (B,): steepest fall and rise of log luminance down the nose, in nats a pixel, where a pixel is a fortieth of the
        distance between the inner corners of the eyes. Dark frames have 0.1 to 0.2, bare noses less than 0.02.
    """
    found = []
    for strip in _between_eyes(image, mesh):
        slope = ndimage.gaussian_filter(np.log(strip + 0.04), (1.5, 2.0), order=(1, 0))
        start = (-slope).argmax(0)
        after = np.arange(slope.shape[0])[:, None] - start  # rows after the steepest fall, (rows, columns)
        rise = np.where((after >= 0) & (after < 45), slope, -np.inf).max(0)
        found.append(np.percentile(np.minimum(-slope.min(0), rise), 20))
    return torch.tensor(found, dtype=torch.float32)


def _between_eyes(image: Tensor, mesh: Tensor) -> np.ndarray:
    """Luma of the bridge of the nose from the brows down, (B, 96, 64) in [0, 1]."""
    corner, across = mesh[:, _RIGHT_CORNER, :2].float(), (mesh[:, _LEFT_CORNER] - mesh[:, _RIGHT_CORNER])[:, :2].float()
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    start = corner + 0.2 * across - 0.9 * down
    transform = torch.stack([across * 0.6 / 64, down * 1.6 / 96, start], 2)
    return rgb_to_yuv(crop_affine(image.float(), transform, (96, 64)))[:, 0].cpu().numpy()


def _frames(grid: _Grid, image: Tensor) -> np.ndarray:
    """Dark frames of glasses on the grid, (H, W) bool: what is connected to the dark bar on the nose."""
    luma = rgb_to_yuv(grid.sampled(image, 2))[0, 0].cpu().numpy()
    height, inside, bridge = (np.kron(a, np.ones((2, 2), a.dtype)) for a in (grid.height, grid.inside, grid.bridge))
    size = round(0.17 * _TALL) * 2
    darker = ndimage.grey_closing(luma, size) - luma
    level = np.percentile(darker[bridge], 95)
    dark = (darker > 0.5 * level) & (height > -0.2) & (height < 0.2) & (inside > -0.03)
    labels, _ = ndimage.label(dark)
    frames = np.isin(labels, np.setdiff1d(labels[bridge & dark], 0))
    frames = ndimage.binary_dilation(frames, iterations=2)
    coarse = frames[::2, ::2] | frames[1::2, ::2] | frames[::2, 1::2] | frames[1::2, 1::2]
    return coarse & ~grid.eyes


def _polygon(points: np.ndarray, shape: tuple[int, int], grow: float = 0.0) -> np.ndarray:
    """Filled polygon, (H, W) float32 with antialiased edges; grown about its center by a share of its size."""
    center = points.mean(0)
    points = center + (points - center) * (1 + grow)
    mask = np.zeros(shape, np.float32)
    limits = np.array(shape[::-1])
    low = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, limits)
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, limits)
    if (high <= low).any():
        return mask
    canvas = Image.new("L", tuple(int(v) * _FINER for v in high - low))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in ((points - low) * _FINER).tolist()], fill=255)
    mask[low[1] : high[1], low[0] : high[0]] = np.asarray(canvas.reduce(_FINER), np.float32) / 255
    return mask


class _Grid:
    """The part of an image around one face, resampled so that the face is _TALL px high, and its outlines: of the mesh
    (468, 2), and the contour (N, 2) of jaw and brows, in image px."""

    def __init__(self, points: np.ndarray, contour: np.ndarray | None, tall: float) -> None:
        self.scale = tall / _TALL
        up = (points[_FOREHEAD] - points[_CHIN]) / tall
        outline = points[list(FACE_OVAL)]
        above = np.clip((outline - points[_NASION]) @ up / (0.4 * tall), 0, 1)
        reach = outline + above[:, None] * up * (_GROWTH * tall)
        everything = np.concatenate([outline, reach] + ([] if contour is None else [contour]))
        low, high = everything.min(0) - _BORDER * tall, everything.max(0) + _BORDER * tall
        self.origin = low
        self.shape = tuple(int(np.ceil(v)) for v in ((high - low) / self.scale)[::-1])
        y, x = np.mgrid[: self.shape[0], : self.shape[1]] + 0.5
        nasion = self._inside(points[_NASION])
        self.height = ((x - nasion[0]) * up[0] + (y - nasion[1]) * up[1]) / _TALL
        """(H, W): position along the face's axis, 0 at the nasion, in heights of the face, positive upwards."""
        oval = self._filled(outline)
        if contour is not None:
            oval |= self._filled(contour)
        self.inside = _signed_distance(oval) / _TALL
        """(H, W): distance from the outline, in heights of the face, positive inside."""
        self.reach = _signed_distance(self._filled(reach) | oval) / _TALL
        """(H, W): the same of the outline with the highest possible forehead."""
        self.eyes = np.any([self._filled(points[list(part)], 0.3) for part in (LEFT_EYE, RIGHT_EYE)], 0)
        """(H, W) bool: eyes with a narrow rim."""
        parts = ((LEFT_EYE, 0.5), (RIGHT_EYE, 0.5), (LEFT_BROW, 0.15), (RIGHT_BROW, 0.15), (LIPS_OUTER, 0.04),
                 (_LEFT_LID, 0.0), (_RIGHT_LID, 0.0))  # fmt: skip
        self.features = np.any([self._filled(points[list(part)], grow) for part, grow in parts], 0)
        """(H, W) bool: eyes with their lids, brows, lips."""
        corners = points[[_RIGHT_CORNER, _LEFT_CORNER]]
        nose = corners.mean(0) + (corners - corners.mean(0)) * 0.6
        self.bridge = self._filled(np.concatenate([nose + 0.15 * tall * up, nose[::-1] - 0.1 * tall * up]))
        """(H, W) bool: the bridge of the nose."""

    def _inside(self, points: np.ndarray) -> np.ndarray:
        return (points - self.origin) / self.scale

    def _filled(self, points: np.ndarray, grow: float = 0.0) -> np.ndarray:
        return _polygon(self._inside(points), self.shape, grow) > 0.5

    def sampled(self, image: Tensor, finer: int = 1) -> Tensor:
        """An image (1, C, H, W) on the grid, or on a grid ``finer`` times as fine."""
        transform = torch.eye(2, 3) * (self.scale / finer)
        transform[:, 2] = torch.from_numpy(self.origin).float()
        return crop_affine(image.float(), transform[None].to(image.device), tuple(n * finer for n in self.shape))

    def to_image(self, mask: np.ndarray, image: Tensor) -> Tensor:
        """A bool mask (H, W) of the grid as a soft mask (1, 1, H, W) of the image."""
        soft = torch.from_numpy(ndimage.gaussian_filter(mask.astype(np.float32), 1.0))[None, None].to(image.device)
        transform = torch.eye(2, 3) / self.scale
        transform[:, 2] = torch.from_numpy(-self.origin / self.scale).float()
        large = crop_affine(soft, transform[None].to(image.device), tuple(image.shape[-2:]), padding="zeros")
        return (0.5 + 2.0 * (large - 0.5)).clamp(0, 1).to(image.dtype)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Pixels to the border of a mask, positive inside."""
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)


def _segmented(grid: _Grid, image: Tensor, person: Tensor | None) -> np.ndarray:
    """The face on its grid, (H, W) bool."""
    features = _described(grid, image)
    prior = _prior(grid)
    people = np.ones(grid.shape) if person is None else grid.sampled(person)[0, 0].cpu().numpy()
    prior = prior - 3 * ((people < 0.2) & (grid.inside < 0.05))
    weight = np.where(grid.height < 0, 0.5, 1.0)  # below the brows a beard is face, and so is a shadow
    right, down = _edge_weights(features)
    apart = ~ndimage.binary_dilation(grid.features, iterations=3)
    flat = features.reshape(-1, features.shape[2])

    core = (grid.inside > 0.08) & apart & (grid.height < 0.08)
    skin = _skin_mixture(features[core if core.sum() > 200 else grid.inside > 0])
    unlike = (skin.squared_distances(flat).min(0) > 12).reshape(grid.shape)
    plain = (skin.squared_distances(flat).min(0) < 16).reshape(grid.shape) & (grid.height < 0.12)  # no beard or fringe
    upper = grid.height > -0.25  # lower down there is a neck, as skin-colored as the face
    hair = (prior < -3) & unlike & upper & (people > 0.5)
    background = (prior < -3) & (people < 0.2)
    for _ in range(_ROUNDS):
        ratio = _log_ratio(flat, skin, [_mixture(features[area]) for area in (hair, background) if area.sum() > 80])
        logit = np.clip(ratio.reshape(grid.shape), -6, 6) * weight + prior
        target = 1 / (1 + np.exp(-np.clip(logit, -12, 12)))
        label = random_walk(target, 0.02 + 0.15 * np.abs(2 * target - 1), right, down)
        surely = (label > 0.9) & apart & (grid.inside > 0.03) & plain
        if surely.sum() > 200:
            skin = _mixture(features[surely])
        hair = (label < 0.1) & upper & (grid.reach > -0.25) & (people > 0.5)
    return _tidied(label, grid)


def _described(grid: _Grid, image: Tensor) -> np.ndarray:
    """(H, W, 4): Y, U, V in 0..255, and the log of the contrast over about a fiftieth of the face."""
    fine = rgb_to_yuv(grid.sampled(image, 2)) * 255
    luma = fine[0, 0].cpu().numpy()
    rough = ndimage.gaussian_filter((luma - ndimage.gaussian_filter(luma, 1.5)) ** 2, 2.5)[::2, ::2]
    color = F.avg_pool2d(fine, 2)[0].permute(1, 2, 0).cpu().numpy()
    return np.concatenate([color, 0.5 * np.log(rough + 1.0)[..., None]], -1).astype(np.float64)


def _prior(grid: _Grid) -> np.ndarray:
    """(H, W): log odds of being face, by place alone. Sure below the brows; undecided above them."""
    low = np.clip(grid.inside / 0.05, -2, 1) * 4
    forehead = -np.clip((grid.height - 0.1) / 0.3, 0, 1)
    beyond = np.clip(grid.reach / 0.04, -1, 0) * 5 + np.clip(grid.inside * 3, -1, 0) - 1
    high = np.where(grid.inside > 0, forehead, beyond)
    blend = np.clip((grid.height + 0.05) / 0.15, 0, 1)
    return low * (1 - blend) + high * blend + 7 * (grid.features & (grid.inside > 0))


def _mixture(samples: np.ndarray, components: int = 3) -> GaussianMixture:
    return fit_mixture(samples[:: -(-len(samples) // _SAMPLES)], components, _FLOOR)


def _skin_mixture(samples: np.ndarray) -> GaussianMixture:
    """Of cheeks, nose and chin, without what is far from their median."""
    center = np.median(samples, 0)
    spread = np.median(np.abs(samples - center), 0) * 1.4826 + np.sqrt(_FLOOR)
    return _mixture(samples[(np.abs(samples - center) < 3 * spread).all(1)], 2)


def _log_ratio(x: np.ndarray, skin: GaussianMixture, others: list[GaussianMixture]) -> np.ndarray:
    """(N,): log likelihood of skin over that of anything else, which besides ``others`` may have any color."""
    other = np.full(len(x), -17.0)
    for mixture in others:
        other = np.logaddexp(other, mixture.log_density(x))
    return np.logaddexp(skin.log_density(x), -22.0) - other


def _edge_weights(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of horizontal and vertical neighbors for the random walk, in (0.02, 1.02]."""
    color = ndimage.gaussian_filter(features[..., :3], (0.6, 0.6, 0)) / np.array([1.0, 0.5, 0.5])
    squares = [(np.diff(color, axis=axis) ** 2).sum(2) for axis in (1, 0)]
    typical = np.mean(np.concatenate([s.ravel() for s in squares])) + 1e-6
    return tuple(0.02 + np.exp(-1.5 * s / typical) for s in squares)


def _tidied(label: np.ndarray, grid: _Grid) -> np.ndarray:
    """One smooth region without wisps or small holes."""
    face = ndimage.gaussian_filter(label, 0.012 * _TALL) > 0.5
    radius = round(0.03 * _TALL)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    face = ndimage.binary_opening(face, x * x + y * y <= radius * radius) | (grid.features & face)
    return _without_small_holes(_largest(face), round(0.02 * _TALL * _TALL))


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
