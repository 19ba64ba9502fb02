"""Face detection at several scales, and the boxes it gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.perception.networks import TinyDetectorNet, load_weights

__all__ = ["Detection", "FaceDetector", "load_detector"]


@dataclass(frozen=True)
class Detection:
    """One found face: x0, y0, x1, y1 in photo pixels, and the detector's confidence in [0, 1]."""

    box: tuple[float, float, float, float]
    score: float

    @property
    def side(self) -> float:
        """Longer side in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class FaceDetector(nn.Module):
    """Tiny face detector, run at several input sizes and merged.

    Args:
        net: the network. sizes: input sizes in the order they are tried; 224 finds large faces best.
        threshold: confidence below which a box is dropped.
    """

    def __init__(self, net: TinyDetectorNet, sizes: tuple[int, ...] = (224, 416, 160, 608), threshold: float = 0.5):
        super().__init__()
        self.net = net
        self.sizes = sizes
        self.threshold = threshold

    @torch.no_grad()
    def at_size(self, image: Tensor, size: int, threshold: float) -> list[Detection]:
        """Boxes of one image (3, H, W) at one input size, unmerged."""
        _, height, width = image.shape
        side = max(height, width)
        square = F.pad(image, (0, side - width, 0, side - height))[None]
        square = F.interpolate(square, size=(size, size), mode="bilinear", antialias=side > size, align_corners=False)
        raw = self.net(square)[0]  # (anchor, value, row, column)
        cells = raw.shape[-1]
        scores = raw[:, 4].sigmoid()
        found = []
        for anchor, row, column in (scores > threshold).nonzero().tolist():
            x, y, w, h = raw[anchor, :4, row, column]
            cx, cy = (column + x.sigmoid().item()) / cells * side, (row + y.sigmoid().item()) / cells * side
            w = w.exp().item() * self.net.anchors[anchor][0] / cells * side
            h = h.exp().item() * self.net.anchors[anchor][1] / cells * side
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            found.append(Detection(box, float(scores[anchor, row, column])))
        return found

    def forward(self, image: Tensor, every_size: bool = False) -> list[Detection]:
        """All faces of a photo, largest first.

        Args:
            image: (3, H, W) in [0, 1].
            every_size: search all scales (for several faces); otherwise stop at the first that finds one.

        Returns:
            Merged detections; none if no scale finds a face.
        """
        check_shape("image", image, "3 H W", "Pass one image without a batch axis.")
        found: list[Detection] = []
        for threshold in (self.threshold, 0.3):
            for size in self.sizes:
                found += self.at_size(image, size, threshold)
                if found and not every_size:
                    break
            if found:
                break
        return sorted(_merged(found), key=lambda d: -d.side)


def _overlap(a: Detection, b: Detection) -> float:
    """Intersection over the smaller box: nested boxes of two scales are one face."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    areas = [(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in (a, b)]
    return max(0.0, width) * max(0.0, height) / max(1e-9, min(areas))


def _merged(found: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: -d.score):
        if all(_overlap(detection, other) < 0.5 for other in kept):
            kept.append(detection)
    return kept


@lru_cache(maxsize=1)
def load_detector() -> FaceDetector:
    """The open pack's face detector, frozen."""
    return FaceDetector(load_weights(TinyDetectorNet(), assets.locate("face_detector"))).eval()
