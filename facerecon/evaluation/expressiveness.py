"""How near a decoder comes to maps that it has not seen: figures of pairs of maps (Table 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import losses
from facerecon.errors import AssetError, check_shape
from facerecon.fitting import MapFeatures
from facerecon.perception import load_eval_identity

__all__ = ["MapMetrics"]


class MapMetrics:
    """Figures of pairs of maps of one atlas.

    Args:
        face: (1, 1, S, S) in [0, 1], the texels of the face (``facerecon.dataset.face_layout(model, size).face``).
        atlas: the head model that the maps are of.

    Attributes:
        missing: why there is no LPIPS, or None.

    Raises:
        AssetError: a network was not fetched.
    """

    def __init__(self, face: Tensor, atlas: str = "makehuman") -> None:
        check_shape("face", face, "1 1 S S")
        self.features = MapFeatures("face_features", atlas)
        self.face = face
        self.judge = load_eval_identity()
        self.lpips, self.missing = None, None
        try:
            self.lpips = losses.load_perceptual("lpips_vgg")
        except (AssetError, ImportError) as error:
            self.missing = str(error)

    @torch.no_grad()
    def __call__(self, maps: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compare maps with their targets, both (B, 3, S, S) in [0, 1].

        Returns:
            {figure: (B,)}. l1: mean absolute difference of the whole map; l1_face: of the face's texels; features: the
            open pack's stand-in for LPIPS, of the map on the mean head; judge: cosine of the 1024-d network's
            embeddings of those renders, which nothing optimizes; lpips: of the map, where its weights can be had.
        """
        size = check_shape("maps", maps, "B 3 S S")["S"]
        check_shape("targets", targets, f"{len(maps)} 3 {size} {size}")
        face = self.face if self.face.shape[-1] == size else F.interpolate(self.face, (size, size), mode="area")
        points = self.features.landmarks.expand(len(maps), -1, -1)
        drawn, truth = self.features.look(maps), self.features.look(targets)
        found = {
            "l1": (maps - targets).abs().mean((1, 2, 3)),
            "l1_face": losses.masked_mean_error(maps, targets, face.to(maps).expand(len(maps), -1, -1, -1)),
            "features": self.features(maps, self.features.prepare(targets)),
            "judge": losses.identity_similarity(self.judge(drawn, points), self.judge(truth, points)),
        }
        if self.lpips is not None:
            found["lpips"] = self.lpips(maps, targets)
        return found
