"""468-point face mesh, re-cropped and turned upright until it settles."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.imaging.warp import crop_affine
from facerecon.perception.landmarks import map_points
from facerecon.perception.tfjs import GraphNet

__all__ = ["FACE_OVAL", "LEFT_EYE", "LIPS_INNER", "LIPS_OUTER", "RIGHT_EYE", "FaceMeshNet", "load_facemesh"]

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


class FaceMeshNet(nn.Module):
    """468 points of faces in boxes.

    Args:
        net: graph with outputs (B, 1404) and (B, 1). passes: crops looked at one after another.
    """

    size = 192

    def __init__(self, net: GraphNet, passes: int = 3) -> None:
        super().__init__()
        self.net, self.passes = net, passes

    @torch.no_grad()
    def forward(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Mesh of B faces.

        Args:
            image: (B, 3, H, W) or (1, 3, H, W), [0, 1]. boxes: (B, 4), x0, y0, x1, y1 px.

        Returns:
            points (B, 468, 3), px; z in the same scale, negative towards the viewer. score (B,), the network's raw face
            flag.
        """
        check_shape("boxes", boxes, "B 4")
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        side = (boxes[:, 2:] - boxes[:, :2]).amax(1) * 1.5
        angle = torch.zeros_like(side)
        for _ in range(self.passes):
            cos, sin = angle.cos(), angle.sin()
            turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
            linear = turn * (side / self.size)[:, None, None]
            offset = center - (linear @ linear.new_full((2, 1), self.size / 2))[..., 0]
            transform = torch.cat([linear, offset[..., None]], -1)
            crops = crop_affine(image, transform, self.size, padding="zeros")
            mesh, flag = self.net(crops.permute(0, 2, 3, 1))
            mesh = mesh.view(-1, 468, 3)
            plane = map_points(transform, mesh[..., :2])
            points = torch.cat([plane, mesh[..., 2:] * (side / self.size)[:, None, None]], -1)
            eyes = plane[:, 263] - plane[:, 33]
            angle = torch.atan2(eyes[:, 1], eyes[:, 0])
            cos, sin = angle.cos(), angle.sin()
            turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
            upright = plane @ turn
            low, high = upright.amin(1), upright.amax(1)
            center = (turn @ ((low + high) / 2)[..., None])[..., 0]
            side = (high - low).amax(1) * 1.5
        return points, flag[:, 0]


@lru_cache(maxsize=1)
def load_facemesh() -> FaceMeshNet:
    """The open pack's face mesh, frozen."""
    return FaceMeshNet(GraphNet.from_file(assets.locate("facemesh468"))).eval().requires_grad_(False)
