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
        net: the network. sizes: input sizes, px; small ones find large faces best.
        fallback_sizes: tried only when those find nothing: small faces in large photos.
        threshold: confidence below which a box is dropped; lowered with the fallback.
    """

    def __init__(
        self,
        net: TinyDetectorNet,
        sizes: tuple[int, ...] = (224, 416, 160, 608),
        fallback_sizes: tuple[int, ...] = (128, 320, 928, 1312),
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.net = net
        self.sizes, self.fallback_sizes = sizes, fallback_sizes
        self.threshold = threshold

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Detection]:
        """All faces of a photo, largest first.

        Args:
            image: (3, H, W) in [0, 1].

        Returns:
            Merged detections of all scales; none if no scale finds a face.
        """
        check_shape("image", image, "3 H W", "Pass one image without a batch axis.")
        side = max(image.shape[1:])
        square = F.pad(image, (0, side - image.shape[2], 0, side - image.shape[1]))[None]
        largest = max(self.sizes)
        reduced = _resized(square, 2 * largest) if side > 2 * largest else square  # then each size costs little
        found = [d for size in self.sizes for d in self._at_size(reduced, size, self.threshold, side)]
        if not found:
            sizes = [s for s in self.sizes + self.fallback_sizes if s <= max(largest, side)]
            found = [d for size in sizes for d in self._at_size(reduced, size, self.threshold * 0.6, side)]
        return sorted(_merged(found), key=lambda d: -d.side)

    def _at_size(self, square: Tensor, size: int, threshold: float, side: int) -> list[Detection]:
        """Boxes, unmerged, of a photo padded to a square (1, 3, S, S) whose side is ``side`` photo pixels."""
        raw = self.net(_resized(square, size))[0]  # (anchor, value, row, column)
        cells = raw.shape[-1]
        anchors = raw.new_tensor(self.net.anchors)
        anchor, row, column = (raw[:, 4].sigmoid() > threshold).nonzero().unbind(1)
        x, y, w, h, score = raw[anchor, :, row, column].unbind(1)
        center = torch.stack([column + x.sigmoid(), row + y.sigmoid()], 1)
        extent = torch.stack([w, h], 1).exp() * anchors[anchor]
        boxes = torch.cat([center - extent / 2, center + extent / 2], 1) * (side / cells)
        return [Detection(tuple(b), s) for b, s in zip(boxes.tolist(), score.sigmoid().tolist(), strict=True)]


def _resized(square: Tensor, size: int) -> Tensor:
    smaller = size < square.shape[-1]
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=smaller, align_corners=False)


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
