"""Face detection at several scales, and the boxes it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.modes import kept
from facerecon.perception.networks import TinyDetectorNet, load_weights

__all__ = ["Detection", "FaceDetector", "load_detector"]

_LONGEST = 4096
"""px a side up to which a photo is searched as a whole."""


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
    """Tiny face detector, run at several input sizes and merged."""

    sizes = (224, 416, 160, 608)  # px; small ones find large faces best
    fallback_sizes = (128, 320, 928, 1312)  # tried only when those find nothing: small faces in large photos
    threshold = 0.5  # confidence below which a box is dropped; lowered with the fallback
    smallest_share = 0.1  # where no face has this share of a large photo's side, it is searched in tiles too
    tile_threshold = 0.7  # many tiles have many chances to see a face where there is none

    def __init__(self, net: TinyDetectorNet) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Detection]:
        """All faces of a photo (3, H, W) in [0, 1], largest first: merged detections of all scales."""
        check_shape("image", image, "3 H W", "Pass one image without a batch axis.")
        side = max(image.shape[1:])
        largest = max(self.sizes)
        if side > _LONGEST:  # a strip, in whose square nothing would be left of a face
            found = [d for d in self._in_tiles(image) if d.score > self.tile_threshold]
            return sorted(found, key=lambda d: -d.side)
        square = _squared(image, side)
        reduced = _resized(square, 2 * largest) if side > 2 * largest else square  # then each size costs little
        found = _merged([d for size in self.sizes for d in self._at_size(reduced, size, self.threshold, side)])
        if side > 2 * largest and all(d.side < self.smallest_share * side for d in found):
            found += [d for d in self._in_tiles(image) if all(_overlap(d, other) < 0.5 for other in found)]
        if not found:
            sizes = [s for s in self.sizes + self.fallback_sizes if s <= max(largest, side)]
            found = _merged([d for size in sizes for d in self._at_size(reduced, size, self.threshold * 0.6, side)])
        return sorted(found, key=lambda d: -d.side)

    @torch.no_grad()
    def confirm(self, image: Tensor, detection: Detection) -> bool:
        """Whether a face is still seen at its place in a closer view, (3, H, W), where it is no longer small:
        on average over the input sizes, which a chance likeness seldom convinces all."""
        side = max(image.shape[1:])
        square = _squared(image, side)
        best = []
        for size in (size for size in self.sizes if size >= 224):
            there = [
                d for d in self._at_size(square, size, 0.1, side)
                if _overlap(d, detection) > 0.5 and 0.5 < d.side / detection.side < 2
            ]  # fmt: skip
            best.append(max((d.score for d in there), default=0.0))
        return sum(best) / len(best) > self.threshold + 0.1

    def _in_tiles(self, image: Tensor) -> list[Detection]:
        """Small faces of a large photo (a panorama, a crowd), in tiles that overlap by more than such a face."""
        height, width = image.shape[1:]
        size = max(self.sizes)
        found: list[Detection] = []
        for side in (2 * size, size):
            for top in _starts(height, side):
                for left in _starts(width, side):
                    tile = _squared(image[:, top : top + side, left : left + side], side)
                    low = (2 if left > 0 else -side, 2 if top > 0 else -side)
                    high = (
                        side - 2 if left + side < width else 2 * side,
                        side - 2 if top + side < height else 2 * side,
                    )
                    for d in self._at_size(tile, size, self.threshold, side):
                        x0, y0, x1, y1 = d.box
                        if x0 > low[0] and y0 > low[1] and x1 < high[0] and y1 < high[1]:  # else the next tile has more
                            found.append(Detection((x0 + left, y0 + top, x1 + left, y1 + top), d.score))
        return _merged(found)

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


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover a length and overlap by a quarter or more."""
    count = max(1, -(-(length - tile) // (tile * 3 // 4)) + 1)
    return [round(i * max(0, length - tile) / max(1, count - 1)) for i in range(count)]


def _squared(image: Tensor, side: int) -> Tensor:
    """(3, H, W) padded to (1, 3, S, S), at the bottom and the right."""
    return F.pad(image, (0, side - image.shape[2], 0, side - image.shape[1]))[None]


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


@kept()
def load_detector() -> FaceDetector:
    """The open pack's face detector, frozen."""
    return FaceDetector(load_weights(TinyDetectorNet(), assets.locate("face_detector"))).eval()
