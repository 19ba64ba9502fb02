"""Face mesh of 478 points: MediaPipe's 468 of the face, and five of each iris."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.imaging.warp import crop_affine
from facerecon.modes import kept
from facerecon.perception.graph import GraphNet
from facerecon.perception.landmarks import map_points, upright_crop

__all__ = [
    "FACE_OVAL",
    "LEFT_BROW",
    "LEFT_EYE",
    "LIPS_INNER",
    "LIPS_OUTER",
    "RIGHT_BROW",
    "RIGHT_EYE",
    "FaceMeshNet",
    "aligned_look",
    "fused_landmarks",
    "load_facemesh",
    "mesh_roll",
]

FACE_BOX = (0.20, 0.26, 0.80, 0.93)
"""x0, y0, x1, y1 of the face in an FFHQ-aligned image, in its sides."""

# Outlines of the canonical 468-point topology (facts of the published model), in order.
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)


# The mesh points at the 12 eye and 20 mouth points (36-67) of the 68 landmarks.
EYES_AND_MOUTH = (
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip


class FaceMeshNet(nn.Module):
    """478 points of faces in boxes; the crop follows the mesh and turns with it.

    Args:
        net: graph with outputs mesh (B, 1, 1, 1434) and presence, a logit (B, 1, 1, 1).
    """

    size = 256
    passes = 3  # crops looked at one after another, at most
    turned = 0.2  # radians by which the angle must still have changed for a third look (at 35 degrees 1.9 px nearer)

    def __init__(self, net: GraphNet) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Mesh of B faces.

        Args:
            image: (B, 3, H, W) or (1, 3, H, W), [0, 1].
            boxes: (B, 4), x0, y0, x1, y1 px.

        Returns:
            points (B, 478, 3), px; z in the same scale, negative towards the viewer. The last ten are the irises: the
            center and four places of the rim, the person's right eye first. score (B,) in [0, 1]: whether the last crop
            showed a face.
        """
        check_shape("boxes", boxes, "B 4")
        corners, angle = boxes.view(-1, 2, 2), boxes.new_zeros(len(boxes))
        points, score = self._look(image, corners, angle)
        rows = torch.arange(len(boxes), device=boxes.device)
        for _ in range(self.passes - 1):
            last, angle = angle, mesh_roll(points[rows])
            photos = image if len(image) == 1 else image[rows]
            points[rows], score[rows] = self._look(photos, points[rows, :, :2], angle)
            still = (angle - last).abs() > self.turned
            rows, angle = rows[still], angle[still]
            if not len(rows):
                break
        return points, score

    def _look(self, image: Tensor, around: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, 478, 3) px and score (B,) in the crops around points (B, N, 2), turned by angles (B,)."""
        transform = upright_crop(around, angle, 0.25, self.size)
        crops = crop_affine(image, transform, self.size, padding="zeros")
        mesh, presence = self.net(crops.permute(0, 2, 3, 1))
        points = mesh.reshape(-1, 478, 3)
        depth = points[..., 2:] * transform[:, :, 0].norm(dim=1)[:, None, None]
        return torch.cat([map_points(transform, points[..., :2]), depth], -1), presence.flatten().sigmoid()


def mesh_roll(mesh: Tensor) -> Tensor:
    """In-plane rotation of faces from their outer eye corners, (B,) radians, 0 is upright; mesh (B, 478, 2 or 3)."""
    eyes = mesh[:, 263] - mesh[:, 33]
    return torch.atan2(eyes[:, 1], eyes[:, 0])


_MESH_WEIGHT = 0.45
"""On 60 rendered heads turned by 0 to 60 degrees (`benchmarks/face_mesh.py`) the net of 68 alone is 2.5 and 3.0 % of
the distance of the eyes off at eyes and mouth, the mesh alone 2.5 and 2.7 %, both so weighted 2.1 and 2.5 %."""


def fused_landmarks(landmarks: Tensor, mesh: Tensor, weight: float = _MESH_WEIGHT) -> Tensor:
    """68 landmarks (B, 68, 2) px whose eye and mouth points lean on the face mesh, which follows them more closely.

    Args:
        landmarks: (B, 68, 2) px.
        mesh: (B, 468 or 478, 2 or 3) px.
        weight: of the mesh.
    """
    own = landmarks[:, 36:]
    return torch.cat([landmarks[:, :36], own + weight * (mesh[:, list(EYES_AND_MOUTH), :2] - own)], 1)


def aligned_look(image: Tensor, size: int = 512) -> tuple[Tensor, Tensor]:
    """Where the face is in images aligned as FFHQ is; no detector is needed there.

    Args:
        image: (B, 3, S, S).
        size: px to which larger images are averaged down.

    Returns:
        The image (B, 3, s, s), s at most ``size``, and the face's boxes (B, 4) there, px.
    """
    small = F.interpolate(image, (size, size), mode="area") if image.shape[-1] > size else image
    return small, small.new_tensor(FACE_BOX).expand(len(small), -1) * small.shape[-1]


MOST_APART = 0.03
"""Of :func:`disagreement`, in what is trusted."""


def disagreement(landmarks: Tensor, mesh: Tensor, weight: float = _MESH_WEIGHT) -> Tensor:
    """How far apart the two networks were at eyes and mouth: they see the same in a face, and something each in what
    is none.

    Args:
        landmarks: (B, 68, 2), of :func:`fused_landmarks` with this ``weight``.
        mesh: (B, 468 or 478, 2 or 3), in the same px.

    Returns:
        (B,) mean distance, as a share of the landmarks' extent.
    """
    apart = (landmarks[:, 36:] - mesh[:, list(EYES_AND_MOUTH), :2]).norm(dim=-1).mean(1) / (1 - weight)
    return apart / (landmarks.amax(1) - landmarks.amin(1)).amax(1).clamp(min=1e-6)


@kept()
def load_facemesh() -> FaceMeshNet:
    """The open pack's face mesh, frozen."""
    return FaceMeshNet(GraphNet.from_file(assets.locate("facemesh478"))).eval().requires_grad_(False)
