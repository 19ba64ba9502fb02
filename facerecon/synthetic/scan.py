"""One real face, scanned with its texture, in photos of twelve poses and lights: a shape that no head model drew.

The scan is that of PyPI menpo3d (:func:`facerecon.morphable.scans.load_scan`), a man with a beard. Its texture is a
photo, so that the light of the scanner's room is in it, under the light that is put on it here. Cameras, lights and
what spoils the photos are those of :mod:`facerecon.synthetic.ict_heads`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.correspond.regions import face_regions
from facerecon.errors import InputError
from facerecon.geometry.alignment import apply_similarity, five_points, umeyama
from facerecon.geometry.camera import project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import read_image
from facerecon.morphable.scans import ScannedFace, load_scan
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render import Renderer
from facerecon.synthetic.ict_heads import SyntheticHead, degrade, random_camera, random_light
from facerecon.types import MeshTopology

__all__ = ["VIEWS", "ScanViews"]

VIEWS = (
    # yaw, pitch in degrees
    *((0, 0), (-30, 0), (30, 0), (-15, 0), (15, 0), (0, 10)),
    *((0, -10), (-20, 8), (20, 8), (-10, -8), (10, -8), (0, 0)),
)
"""Poses of the photos; the first six are even, too."""

TEXTURE_SIZE = 2048
GAIN = 1.2
"""Of the texture, which is dark: what a camera's exposure would be."""


class ScanViews:
    """Photos of the scan by number; each is drawn from the seed and that number alone.

    Args:
        scan: with a texture; that of the cache if left out.
        seed: of cameras, lights, backgrounds and noise.

    Attributes:
        vertices: (V, 3), upright, looking at +z, world units.
        faces: (F, 3).
        landmarks: (68, 3).
        regions: {name: (V,) bool}, REALY's four by the scan's own landmarks.

    Raises:
        AssetError: the scan was not fetched.
        InputError: a scan without a texture.
    """

    def __init__(self, scan: ScannedFace | None = None, seed: int = 0) -> None:
        scan = load_scan("scan_james") if scan is None else scan
        if scan.texture is None:
            raise InputError("photos of a scan need its texture; got a scan without one. Use load_scan('scan_james').")
        self.seed, self.faces = seed, scan.faces
        _, turn, shift = umeyama(five_points(scan.landmarks[None]), MEAN_FIVE_POINTS[None], with_scale=False)
        upright = torch.cat([turn, shift[..., None]], -1)
        self.vertices = apply_similarity(upright, scan.vertices[None])[0]
        self.landmarks = apply_similarity(upright, scan.landmarks[None])[0]
        self.regions = face_regions(self.vertices, self.faces, self.landmarks)
        picture = read_image(scan.texture.numpy().tobytes())[None]
        square = F.interpolate(picture, (TEXTURE_SIZE, TEXTURE_SIZE), mode="bilinear", antialias=True)
        self._texture = (GAIN * square).clamp(0, 1)
        none = torch.zeros(0, dtype=torch.int64)
        self._topology = MeshTopology(
            faces=scan.faces,
            uvs=scan.uvs,
            uv_faces=scan.uv_faces,
            landmark_faces=none.view(0, 1),
            landmark_barycentric=torch.zeros(0, 1, 3),
            mesh_points=none,
            mesh_point_faces=none,
            mesh_point_barycentric=torch.zeros(0, 3),
            mirror=none,
            name="scan",
        )

    @torch.no_grad()
    def sample(self, number: int, size: int = 640) -> SyntheticHead:
        """A photo in pose ``VIEWS[number % 12]``, before a smooth background; (3, size, size), and the truth."""
        rng = np.random.default_rng([self.seed, number])
        yaw, pitch = VIEWS[number % len(VIEWS)]
        rotation = torch.deg2rad(torch.tensor([[pitch, yaw, 0.0]]))
        turn = euler_to_matrix(rotation).mT
        camera, light = random_camera(rng, size), random_light(rng)
        drawn = Renderer(size=2 * size, texture_level="auto")(
            self.vertices @ turn, self._texture, self._topology, camera, light
        )
        image, mask = F.avg_pool2d(drawn.image.clamp(0, 1), 2), F.avg_pool2d(drawn.mask, 2)
        photo = degrade((image + (1 - mask) * _backdrop(rng, size)).clamp(0, 1), rng)
        pixels = project(camera, self.landmarks @ turn)[0, :, :2]
        return SyntheticHead(photo, self.vertices, self.landmarks, pixels, rotation, camera)


def _backdrop(rng: np.random.Generator, size: int) -> Tensor:
    """(1, 3, S, S), a wall in uneven light, slightly colored."""
    coarse = rng.uniform(0.3, 0.8) * rng.uniform(0.7, 1.2, (1, 1, 3, 3)) * rng.uniform(0.85, 1.15, (1, 3, 1, 1))
    wall = torch.from_numpy(coarse.astype(np.float32))
    return F.interpolate(wall, (size, size), mode="bicubic", align_corners=True).clamp(0, 1)
