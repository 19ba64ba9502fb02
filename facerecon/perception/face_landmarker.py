"""What the 478 points of a face mesh say beyond places: scores of expressions, the irises and where they look."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.modes import kept
from facerecon.perception.facemesh import mesh_roll
from facerecon.perception.graph import GraphNet

__all__ = [
    "EXPRESSION_SCORES",
    "ExpressionScoreNet",
    "find_irises",
    "gaze_angles",
    "iris_mask",
    "load_expression_scores",
]

# The names of the scores and the points they are read from: facts of the published model, in its order.
EXPRESSION_SCORES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
SCORED_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153,
    154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251,
    263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318,
    321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386,
    387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, *range(468, 478),
)  # fmt: skip

_EYES = ((33, 133), (362, 263))  # corners of the right and the left eye, from the image's left in an unmirrored photo
_IRIS_TURN = 0.48  # radius of a human iris (5.8 mm) over its distance from the middle of the eyeball (12 mm)


class ExpressionScoreNet(nn.Module):
    """Scores of ``EXPRESSION_SCORES`` from face meshes.

    Args:
        net: graph from (1, 146, 2) points to (52,) scores; it takes one face at a time.
    """

    def __init__(self, net: GraphNet) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, mesh: Tensor) -> Tensor:
        """Scores (B, 52) in [0, 1].

        Args:
            mesh: (B, 478, 2 or 3), px of any image; faces are turned upright first.
        """
        check_shape("mesh", mesh, f"B 478 {mesh.shape[-1]}")
        angle = mesh_roll(mesh)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
        points = mesh[:, list(SCORED_POINTS), :2] @ turn
        return torch.stack([self.net(face[None])[0].flatten() for face in points])


def find_irises(mesh: Tensor) -> Tensor:
    """The irises of face meshes.

    Args:
        mesh: (B, 478, 2 or 3) px.

    Returns:
        (B, 2, 3): x and y of the center and the radius, px; the person's right eye first.
    """
    check_shape("mesh", mesh, f"B 478 {mesh.shape[-1]}")
    points = mesh[:, 468:, :2].view(-1, 2, 5, 2)
    radius = (points[:, :, 1:] - points[:, :, :1]).norm(dim=-1).amax(-1, keepdim=True)  # a turned disk is narrow
    return torch.cat([points[:, :, 0], radius], -1)


def iris_mask(irises: Tensor, eyes: Tensor) -> Tensor:
    """Where irises show between the lids.

    Args:
        irises: (B, 2, 3) px, of :func:`find_irises`.
        eyes: (B, 1, H, W) in [0, 1], mask of the eyes in that image.

    Returns:
        (B, 1, H, W) in [0, 1]: both disks, with an edge of a pixel.
    """
    check_shape("eyes", eyes, "B 1 H W")
    check_shape("irises", irises, f"{len(eyes)} 2 3")
    y, x = (torch.arange(side, device=eyes.device) + 0.5 for side in eyes.shape[-2:])
    dx, dy = x - irises[..., 0, None], y - irises[..., 1, None]
    distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
    return (irises[..., 2, None, None] + 0.5 - distance).clamp(0, 1).amax(1, keepdim=True) * eyes


def gaze_angles(mesh: Tensor) -> Tensor:
    """Where the eyes look, against the straight ahead of the face (a disk's place between the eye's corners).

    Args:
        mesh: (B, 478, 2 or 3) px.

    Returns:
        (B, 2, 2) radians: to the image's right, and down; the person's right eye first. Rough: a lid that covers the
        iris, or a face that is turned far, shifts it.
    """
    irises = find_irises(mesh)
    corners = mesh[:, torch.tensor(_EYES, device=mesh.device), :2]  # (B, 2, 2, 2)
    across = corners[:, :, 1] - corners[:, :, 0]
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    offset = irises[..., :2] - corners.mean(2)
    down = torch.stack([-across[..., 1], across[..., 0]], -1)
    along = torch.stack([(offset * across).sum(-1), (offset * down).sum(-1)], -1)
    return (along / irises[..., 2:].clamp(min=1e-6) * _IRIS_TURN).clamp(-1, 1).asin()


@kept()
def load_expression_scores() -> ExpressionScoreNet:
    """The open pack's expression scores, frozen."""
    return ExpressionScoreNet(GraphNet.from_file(assets.locate("expression52"))).eval().requires_grad_(False)
