"""68 iBUG landmarks in two passes, averaged with a mirrored pass."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.imaging.warp import crop_affine
from facerecon.perception.networks import DenseFaceNet, load_weights

__all__ = ["MIRRORED_68", "LandmarkNet", "load_landmarks68", "square_crop"]

MIRRORED_68 = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
"""Which point each of the 68 becomes in a mirrored photo."""


def square_crop(boxes: Tensor, size: int) -> Tensor:
    """Crop-to-photo maps of the squares around boxes.

    Args:
        boxes: (B, 4) x0, y0, x1, y1 px. size: side of the crop in pixels.

    Returns:
        (B, 2, 3).
    """
    side = torch.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    scale = side / size
    transform = boxes.new_zeros(boxes.shape[0], 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = scale
    transform[:, :, 2] = (boxes[:, :2] + boxes[:, 2:]) / 2 - scale[:, None] * (size / 2)
    return transform


def map_points(transform: Tensor, points: Tensor) -> Tensor:
    """(B, N, 2) points through (B, 2, 3) affine maps."""
    return points @ transform[:, :, :2].mT + transform[:, None, :, 2]


class LandmarkNet(nn.Module):
    """68 landmarks of faces in boxes; the second pass looks at the box of the first one's landmarks.

    Args:
        net: landmark network (136 outputs in [0, 1] of its crop).
        passes: crops looked at one after another. mirror: average with the mirrored crop.
        margin: of the later passes' box around the landmarks. shifts: crops of the last pass, moved by these shares of
            its side and averaged.
    """

    def __init__(
        self,
        net: DenseFaceNet,
        passes: int = 2,
        mirror: bool = True,
        margin: float = 0.05,
        shifts: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.02, 0.02), (-0.02, 0.02), (0.0, -0.03)),
    ) -> None:
        super().__init__()
        self.net = net
        self.passes, self.mirror, self.margin, self.shifts = passes, mirror, margin, shifts

    @torch.no_grad()
    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Landmarks of B faces.

        Args:
            image: (B, 3, H, W), or (1, 3, H, W) for B boxes in one photo; [0, 1].
            boxes: (B, 4), x0, y0, x1, y1 px.

        Returns:
            (B, 68, 2) px.
        """
        check_shape("boxes", boxes, "B 4")
        points = None
        for i in range(self.passes):
            if points is not None:
                low, high = points.amin(1), points.amax(1)
                pad = (high - low) * self.margin
                boxes = torch.cat([low - pad, high + pad], 1)
            shifts = self.shifts if i == self.passes - 1 else ((0.0, 0.0),)
            side = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
            found = []
            for shift in shifts:
                move = side * boxes.new_tensor(shift)
                found.append(self._once(image, boxes + torch.cat([move, move], 1)))
            points = torch.stack(found).mean(0)
        return points

    def _once(self, image: Tensor, boxes: Tensor) -> Tensor:
        transform = square_crop(boxes, self.net.size)
        crops = crop_affine(image, transform, self.net.size, padding="zeros")
        points = self.net(crops).view(-1, 68, 2)
        if self.mirror:
            other = self.net(crops.flip(-1)).view(-1, 68, 2)[:, list(MIRRORED_68)]
            points = (points + torch.stack([1 - other[..., 0], other[..., 1]], -1)) / 2
        return map_points(transform, points * self.net.size)


@lru_cache(maxsize=1)
def load_landmarks68() -> LandmarkNet:
    """The open pack's 68-landmark network, frozen."""
    return LandmarkNet(load_weights(DenseFaceNet(136), assets.locate("landmarks68"))).eval()
