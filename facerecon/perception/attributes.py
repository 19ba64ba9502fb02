"""Expression, age and gender, and the person's outline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.imaging.warp import crop_affine
from facerecon.modes import kept
from facerecon.perception.graph import GraphNet
from facerecon.perception.identity import landmark_box
from facerecon.perception.landmarks import square_crop
from facerecon.perception.networks import AgeGenderNet, DenseFaceNet, load_weights

__all__ = ["EXPRESSIONS", "AttributeNet", "PersonSegmenter", "load_age_gender", "load_expression", "load_segmenter"]

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


class PersonSegmenter(nn.Module):
    """Soft mask of people.

    Args:
        net: graph (B, 256, 256, 3) -> (B, 256, 256, 1).
    """

    size = 256

    def __init__(self, net: GraphNet) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]."""
        small = F.interpolate(image, (self.size,) * 2, mode="bilinear", antialias=True, align_corners=False)
        masks = [self.net(one[None].permute(0, 2, 3, 1))[0].permute(0, 3, 1, 2) for one in small]
        return F.interpolate(torch.cat(masks), image.shape[-2:], mode="bilinear", align_corners=False)


@kept()
def load_expression() -> AttributeNet:
    """Seven expressions (:data:`EXPRESSIONS`); saturates, good enough to stop a traversal."""
    return AttributeNet(load_weights(DenseFaceNet(7), assets.locate("expression7")), True).eval()


@kept()
def load_age_gender() -> AttributeNet:
    """Age in years (rough) and probability of male."""
    return AttributeNet(load_weights(AgeGenderNet(), assets.locate("age_gender")), False).eval()


@kept()
def load_segmenter() -> PersonSegmenter:
    """Person segmentation."""
    return PersonSegmenter(GraphNet.from_file(assets.locate("selfie"))).eval().requires_grad_(False)
