"""VGG-19 (arXiv:1409.1556) with batch normalization on FER2013: the expression classifier of FFHQ-UV's editing.

The traversal along the expression's direction goes on while it predicts "happy" (Sec. 3.1.1). One fully connected
layer follows the convolutions, whose input is 44 px a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import load_converted
from facerecon.errors import check_shape
from facerecon.imaging.color import luma
from facerecon.modes import kept

__all__ = ["FER_EXPRESSIONS", "VGGExpression", "load_vgg_expression"]

FER_EXPRESSIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
"""In FER2013's order."""

_WIDTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGGExpression(nn.Module):
    """Faces (B, 3, H, W) RGB in [0, 1], square crops of a face -> probabilities (B, 7) of :data:`FER_EXPRESSIONS`.

    As in its repository the face is gray and 48 px a side, and the answer is the mean over ten crops of 44 px: four
    corners and the middle, and their mirror images.
    """

    size, crop = 48, 44

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width, count in _WIDTHS:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, len(FER_EXPRESSIONS))

    def logits(self, crops: Tensor) -> Tensor:
        """(B, 3, 44, 44) -> (B, 7)."""
        check_shape("crops", crops, f"B 3 {self.crop} {self.crop}")
        return self.classifier(self.features(crops).flatten(1))

    def forward(self, image: Tensor) -> Tensor:
        check_shape("image", image, "B 3 H W")
        gray = F.interpolate(luma(image), (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        gray = gray.expand(-1, 3, -1, -1)
        room, size = self.size - self.crop, self.crop
        places = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]
        crops = [gray[:, :, y : y + size, x : x + size] for y, x in places]
        crops += [crop.flip(-1) for crop in crops]
        return torch.stack([self.logits(crop.contiguous()) for crop in crops]).mean(0).softmax(1)


@kept()
def load_vgg_expression() -> VGGExpression:
    """The released expression classifier, frozen; until it is converted, an AssetError with the command."""
    return load_converted(VGGExpression, assets.locate("expression_vgg19"))
