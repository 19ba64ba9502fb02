"""Face parsing: soft masks of one face, and the class of every pixel, by BiSeNet (Sec. 3.1.2, 3.1.3, 4.2).

Unlike FFHQ-UV, which takes the class with the highest score: masks have soft edges, what covers a face (hair, a hat,
glasses) is grown by a margin, as strands and rims are thinner than the network sees, and of a crop with several faces
the one under the mesh counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import load_converted
from facerecon.errors import check_shape
from facerecon.imaging.masks import dilate
from facerecon.modes import kept
from facerecon.perception.bisenet import CLASSES, BiSeNet
from facerecon.perception.facemesh import FACE_OVAL

__all__ = ["COVERS", "FaceMasks", "FaceParser", "class_share", "face_outline", "load_parser"]

_BROWS, _EYES, _MOUTH = ("left_brow", "right_brow"), ("left_eye", "right_eye"), ("mouth",)
_LIPS = ("upper_lip", "lower_lip")
_FACE = ("skin", "nose", *_BROWS, *_EYES, *_MOUTH, *_LIPS)
COVERS = ("hair", "hat", "glasses", "earring")
"""Classes of what may lie over a face."""
_SHARPNESS = 8.0  # of the logits: as they are, the class of a pixel inside a cheek has a probability of 0.7
_MARGIN = 0.012  # around what covers a face, in heights of the face (top of the mesh to the chin)
_NEAR = 0.6  # of the mesh's outline: how much further a face may reach
_TOP, _CHIN = 10, 152  # of the mesh
_FINER = 8  # subpixels along an axis when polygons are filled


@dataclass(frozen=True)
class FaceMasks:
    """Masks of one face, (1, 1, H, W) in [0, 1], and classes, uint8; see :class:`facerecon.types.Crop`."""

    face: Tensor
    skin: Tensor
    eye: Tensor
    mouth: Tensor
    lip: Tensor
    classes: Tensor


class FaceParser(nn.Module):
    """Masks of an aligned face by BiSeNet.

    Args:
        net: images -> logits.
        precision: in which it runs; bfloat16 changes the class of 1 or 2 of 1000 pixels.
    """

    size = 512
    """px, what the network was trained on."""

    def __init__(self, net: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net, self.precision = net.to(precision, memory_format=torch.channels_last), precision

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Of the classes.

        Args:
            image: (B, 3, H, W) in [0, 1], a square crop of a head.

        Returns:
            (B, 19, 512, 512) in [0, 1], sums of 1 over :data:`~facerecon.perception.bisenet.CLASSES`.
        """
        check_shape("image", image, "B 3 H W")
        small = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        small = small.to(self.precision, memory_format=torch.channels_last)
        return (_SHARPNESS * self.net(small).to(image.dtype)).softmax(1)

    @torch.no_grad()
    def forward(self, image: Tensor, mesh: Tensor, face: Tensor | None = None) -> FaceMasks:
        """Masks of one face; empty where the mesh is no face.

        The face is skin, nose, brows, eyes, mouth and lips; ears, glasses, hair and neck are not of it.

        Args:
            image: (1, 3, H, W) in [0, 1], a crop of the head.
            mesh: (1, 468 or more, 2 or 3) px, of the face that is meant where a crop shows two.
            face: (1, 1, H, W) in [0, 1], taken for the face where it is already known.
        """
        check_shape("image", image, "1 3 H W")
        found, size = self.probabilities(image), (self.size, self.size)
        if face is None:
            scale = mesh.new_tensor([self.size / side for side in image.shape[:-3:-1]])
            small = _one_face(found, mesh[0, :, :2] * scale)
        else:
            small = F.interpolate(face, size, mode="area")
        brow, *others = (class_share(found, *names) for names in (_BROWS, _EYES, _MOUTH, _LIPS))
        skin = (small - brow - sum(others)).clamp(min=0)
        soft = torch.cat([small, skin, *others], 1)
        soft = F.interpolate(soft, image.shape[-2:], mode="bilinear", align_corners=False)
        whole = soft[:, :1] if face is None else face
        classes = F.interpolate(found.argmax(1, keepdim=True).byte(), image.shape[-2:], mode="nearest-exact")
        return FaceMasks(whole, *torch.minimum(soft[:, 1:], whole).split(1, 1), classes)


def class_share(probabilities: Tensor, *names: str) -> Tensor:
    """(B, 1, H, W) in [0, 1]: probability of any of some classes.

    Args:
        probabilities: (B, 19, H, W).
        names: of :data:`~facerecon.perception.bisenet.CLASSES`.
    """
    return probabilities[:, [CLASSES.index(name) for name in names]].sum(1, keepdim=True)


def face_outline(mesh: Tensor, size: tuple[int, int], grow: float = 0.0) -> Tensor:
    """The area within the outlines of face meshes, (B, 1, H, W) in [0, 1]; nothing of one that is not finite.

    Args:
        mesh: (B, 468 or more, 2 or 3) px.
        size: (H, W).
        grow: about its center, by a share of its size.
    """
    points = mesh[:, list(FACE_OVAL), :2].double().cpu().numpy()
    return torch.from_numpy(np.stack([_polygon(one, size, grow) for one in points]))[:, None].to(mesh.device)


def _one_face(probabilities: Tensor, mesh: Tensor) -> Tensor:
    """(1, 1, H, W) in [0, 1]: the face that is connected with the inside of a mesh (N, 2) px, without what covers it
    and a margin around that; nothing where the mesh is no face."""
    points, shape = mesh.double().cpu().numpy(), tuple(probabilities.shape[-2:])
    tall = float(np.linalg.norm(points[_TOP] - points[_CHIN]))
    if not np.isfinite(points).all() or tall < 4 or not 0.2 < np.ptp(points, 0).min() / tall < 5:
        return torch.zeros_like(probabilities[:, :1])
    covered = dilate(class_share(probabilities, *COVERS), _MARGIN * min(tall, shape[0]))
    face = class_share(probabilities, *_FACE) * (1 - covered)
    labels, _ = ndimage.label(face[0, 0].cpu().numpy() > 0.05)
    outline = points[list(FACE_OVAL)]
    inside = np.unique(labels[_polygon(outline, shape) > 0.5])
    kept = np.isin(labels, inside[inside > 0]) & (_polygon(outline, shape, _NEAR) > 0.5)
    return face * torch.from_numpy(kept).to(face)


def _polygon(points: np.ndarray, shape: tuple[int, int], grow: float = 0.0) -> np.ndarray:
    """Filled polygon, (H, W) float32 with antialiased edges; grown about its center by a share of its size."""
    mask = np.zeros(shape, np.float32)
    if not np.isfinite(points).all():
        return mask
    center = points.mean(0)
    points = center + (points - center) * (1 + grow)
    limits = np.array(shape[::-1])
    low = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, limits)
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, limits)
    if (high <= low).any():
        return mask
    canvas = Image.new("L", tuple(int(v) * _FINER for v in high - low))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in ((points - low) * _FINER).tolist()], fill=255)
    mask[low[1] : high[1], low[0] : high[0]] = np.asarray(canvas.reduce(_FINER), np.float32) / 255
    return mask


@kept(2)
def load_parser(precision: torch.dtype = torch.float32) -> FaceParser:
    """The face parser, frozen.

    Args:
        precision: of its network.

    Raises:
        AssetError: it is not in the cache; the message holds the command.
    """
    return FaceParser(load_converted(BiSeNet, assets.locate("bisenet")), precision).eval().requires_grad_(False)
