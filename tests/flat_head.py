"""A head of four vertices and a photo of 8 x 8 px on which everything can be computed by hand."""

from __future__ import annotations

import torch

from facerecon.morphable import MorphableModel
from facerecon.types import Crop, MeshTopology, Observation, SHLight

PIXEL = 10 / (1015 / 28)
"""World units that a pixel of the 8 px camera is wide at the head's distance."""


def flat_head() -> MorphableModel:
    """A square over columns and rows 2 to 5 of the picture; identity 1 is a pixel to the right, expression 1 one up.

    Landmark k is corner k % 4: in pixels (2, 6), (6, 6), (6, 2), (2, 2). On the other side of the square is the first
    candidate of landmark 0, an end of the jaw, which the outline of a picture is not.
    """
    corners = torch.tensor([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    at = (torch.arange(68) % 4)[:, None].repeat(1, 2)
    at[0, 0] = 1
    none = torch.zeros(0, dtype=torch.int64)
    topology = MeshTopology(
        faces=faces,
        uvs=(corners[:, :2] + 1) / 2,
        uv_faces=faces,
        landmark_faces=(at == 3).long(),
        landmark_barycentric=torch.eye(3)[torch.tensor([0, 1, 2, 2])[at]],
        mesh_points=none,
        mesh_point_faces=none,
        mesh_point_barycentric=torch.zeros(0, 3),
        mirror=torch.tensor([1, 0, 3, 2]),
        regions={"face": torch.ones(2, dtype=torch.bool)},
    )
    right, up = (torch.tensor(axis).expand(1, 4, 3) * PIXEL for axis in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]))
    return MorphableModel(2 * PIXEL * corners, right, up, topology, "flat", ("up",))


def even_light(*gains: float) -> SHLight:
    """Light that multiplies a texture by these factors, one a face."""
    coefficients = torch.zeros(len(gains), 9, 3)
    coefficients[:, 0] = torch.tensor(gains)[:, None] / (torch.pi / 4) ** 0.5
    return SHLight(coefficients)


def flat_photo(batch: int = 1) -> Observation:
    """Pictures of 0.5 where the square is and 1 around it; the face mask lacks columns 5 to 7, the photo row 0."""
    image = torch.ones(batch, 3, 8, 8)
    image[..., 2:6, 2:6] = 0.5
    whole, face, valid = torch.ones(3, batch, 1, 8, 8)
    face[..., 5:], valid[..., 0, :] = 0, 0
    crop = Crop(image, torch.eye(2, 3).expand(batch, 2, 3), valid, face, face, whole, whole, whole)
    corners = torch.tensor([[2.0, 6.0], [6.0, 6.0], [6.0, 2.0], [2.0, 2.0]])
    return Observation(
        fit=crop,
        full=crop,
        landmarks68=corners[torch.arange(68) % 4].expand(batch, 68, 2).clone(),
        mesh468=torch.zeros(batch, 468, 3),
        box=torch.zeros(batch, 4),
        score=torch.ones(batch),
        identity=torch.zeros(batch, 3),
        eval_identity=torch.eye(3)[:batch],
        expression=torch.zeros(batch, 7),
        age=torch.zeros(batch),
        male=torch.zeros(batch),
        path=("",) * batch,
        photo_size=((8, 8),) * batch,
        mask_given=(False,) * batch,
    )
