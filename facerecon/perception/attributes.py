"""Expression, age and gender."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.imaging.warp import crop_affine
from facerecon.modes import kept
from facerecon.perception.identity import landmark_box
from facerecon.perception.landmarks import square_crop
from facerecon.perception.networks import AgeGenderNet, DenseFaceNet, load_weights

__all__ = ["EXPRESSIONS", "AttributeNet", "load_age_gender", "load_expression"]

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")


class AttributeNet(nn.Module):
    """A classifier that looks at the landmarks' box.

    Args:
        net: expression or age and gender network.
        softmax: turn logits into probabilities.
    """

    def __init__(self, net: nn.Module, softmax: bool) -> None:
        super().__init__()
        self.net, self.softmax = net, softmax

    @torch.no_grad()
    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1] and (B, 68, 2) px -> (B, 7) probabilities, or age (B,) and male (B,)."""
        transform = square_crop(landmark_box(landmarks), self.net.size)
        out = self.net(crop_affine(image, transform, self.net.size, padding="zeros"))
        return out.softmax(1) if self.softmax else out


@kept()
def load_expression() -> AttributeNet:
    """Seven expressions (:data:`EXPRESSIONS`); saturates, good enough to stop a traversal."""
    return AttributeNet(load_weights(DenseFaceNet(7), assets.locate("expression7")), True).eval()


@kept()
def load_age_gender() -> AttributeNet:
    """Age in years (rough) and probability of male."""
    return AttributeNet(load_weights(AgeGenderNet(), assets.locate("age_gender")), False).eval()
