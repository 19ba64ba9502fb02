"""68 iBUG landmarks: upright crops in three passes, averaged over small shifts and their mirror images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.imaging.warp import crop_affine
from facerecon.modes import kept
from facerecon.perception.networks import DenseFaceNet, load_weights

__all__ = ["MIRRORED_68", "LandmarkNet", "eye_angle", "load_landmarks68", "map_points", "square_crop", "upright_crop"]

MIRRORED_68 = (
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)  # fmt: skip
"""Which point each of the 68 becomes in a mirrored photo."""


def square_crop(boxes: Tensor, size: int) -> Tensor:
    """Crop-to-photo maps (B, 2, 3) of the squares around boxes.

    Args:
        boxes: (B, 4) x0, y0, x1, y1 px.
        size: side of the crop in pixels.
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


def upright_crop(points: Tensor, angle: Tensor, margin: float, size: int) -> Tensor:
    """Crop-to-photo maps (B, 2, 3) of the turned squares around points.

    Args:
        points: (B, N, 2) px.
        angle: (B,) radians by which the squares are turned (clockwise on the screen).
        margin: added on every side, as a share of the points' extent.
        size: side of the crop in pixels.
    """
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    upright = points @ turn  # each row times the inverse rotation
    low, high = upright.amin(1), upright.amax(1)
    side = (high - low).amax(1) * (1 + 2 * margin)
    center = (turn @ ((low + high) / 2)[..., None])[..., 0]
    linear = turn * (side / size)[:, None, None]
    offset = center - (linear @ linear.new_full((2, 1), size / 2))[..., 0]
    return torch.cat([linear, offset[..., None]], -1)


def eye_angle(landmarks: Tensor) -> Tensor:
    """In-plane rotation of faces from their 68 landmarks: (B, 68, 2) -> (B,) radians, 0 is upright."""
    across = landmarks[:, 42:48].mean(1) - landmarks[:, 36:42].mean(1)
    return torch.atan2(across[:, 1], across[:, 0])


class LandmarkNet(nn.Module):
    """68 landmarks of faces in boxes.

    A first look at the box, then looks at the box of the landmarks just found, turned upright; the last look is the
    mean of several shifted crops. Every crop is seen mirrored as well.

    The jaw points lie on the visible contour of the face. Unlike FFHQ-UV: the released landmarks follow the jaw line
    of a 3D head, which on the far side of a turned face runs inside the cheek.

    Args:
        net: landmark network (136 outputs in [0, 1] of its crop).
        passes: looks one after another.
    """

    corner = 0.5
    """Crop pixels. The network learned on crops whose pixel i showed the photo at i * scale (TensorFlow's old resize),
    not at (i + 0.5) * scale: all that it finds lies half a pixel up and to the left."""

    margin = 0.03  # around the landmarks in all looks but the first, as a share of their extent
    shifts = ((0.0, 0.0), (0.02, 0.02), (-0.02, 0.02), (0.0, -0.03))  # (x, y) of the last look's crops, in their sides

    def __init__(self, net: DenseFaceNet, passes: int = 3) -> None:
        super().__init__()
        self.net, self.passes = net, passes

    @torch.no_grad()
    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Landmarks (B, 68, 2) px of B faces.

        Args:
            image: (B, 3, H, W), or (1, 3, H, W) for B boxes in one photo; [0, 1].
            boxes: (B, 4), x0, y0, x1, y1 px.
        """
        check_shape("image", image, "N 3 H W", "Add a batch axis: image[None].")
        check_shape("boxes", boxes, "B 4")
        transform = square_crop(boxes, self.net.size)
        for i in range(self.passes):
            points = self._look(image, transform, self.shifts if i == self.passes - 1 else ((0.0, 0.0),))
            transform = upright_crop(points, eye_angle(points), self.margin, self.net.size)
        return points

    def _look(self, image: Tensor, transform: Tensor, shifts: tuple[tuple[float, float], ...]) -> Tensor:
        """Mean over shifted and mirrored crops, (B, 68, 2) px; all crops in one forward pass."""
        size, batch, count = self.net.size, len(transform), len(shifts)
        moves = transform.new_tensor(shifts)[:, :, None] * size  # (S, 2, 1) crop pixels
        transform = transform.repeat_interleave(count, 0)
        offset = transform[:, :, 2:] + transform[:, :, :2] @ moves.repeat(batch, 1, 1)
        transform = torch.cat([transform[:, :, :2], offset], -1)
        photos = image if len(image) == 1 else image.repeat_interleave(count, 0)
        crops = crop_affine(photos, transform, size, padding="zeros")
        found = self.net(torch.cat([crops, crops.flip(-1)])).view(2, -1, 68, 2) * size + self.corner
        points, mirrored = found.unbind()
        mirrored = mirrored[:, list(MIRRORED_68)]
        points = (points + torch.stack([size - mirrored[..., 0], mirrored[..., 1]], -1)) / 2
        return map_points(transform, points).view(batch, count, 68, 2).mean(1)


@kept()
def load_landmarks68() -> LandmarkNet:
    """The open pack's 68-landmark network, frozen."""
    return LandmarkNet(load_weights(DenseFaceNet(136), assets.locate("landmarks68"))).eval()
