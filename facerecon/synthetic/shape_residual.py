"""Shapes that a head model lacks: smooth random reliefs of the face, and the model's nearest head to each.

People differ in ways that no 3DMM has. A regressor that only saw heads of the model takes every trait of a face for a
coefficient and is too sure of it; rendered with a relief, a head has an exact shape that the model can only come near,
and its truth is the nearest one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.correspond.regions import MILLIMETERS, head_regions, region_forms
from facerecon.geometry.mesh import vertex_normals
from facerecon.morphable import MorphableModel

__all__ = ["ShapeResidual"]


class ShapeResidual:
    """Bumps and hollows of 8 to 40 mm, mostly the same on both sides.

    Attributes:
        nearest: (D, I), identity coefficients of the head that comes nearest to each: least in the squares of the
            regions' errors, each region after its own alignment
            (:func:`facerecon.correspond.regions.region_forms`), and of the face's vertices at a tenth, with a ridge of
            0.02 square mm for the prior.
        left: (D, V, 3), world units, what is left of each: a field is ``identity_basis`` times ``nearest`` plus
            ``left``, and a code of D standard normals moves the vertices of the face by a root mean square of 1 mm.

    Args:
        model: head model with regions ``face`` and ``eyes``.
        count: D.
        seed: of the fields.
    """

    def __init__(self, model: MorphableModel, count: int = 160, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        topology, mean = model.topology, model.mean
        face = topology.faces[topology.regions["face"] & ~topology.regions["eyes"]].unique()
        centers = face[torch.randint(len(face), (count,), generator=generator)]
        width = 0.08 * 5 ** torch.rand(count, 1, generator=generator)  # 8 to 40 mm
        normals = F.normalize(vertex_normals(mean[None], topology.faces)[0], dim=1)
        towards = normals[centers] + 0.5 * torch.randn(count, 3, generator=generator)
        near = (-0.5 * (torch.cdist(mean[centers], mean) / width).square()).exp()
        fields = near[..., None] * towards[:, None]
        both = torch.rand(count, generator=generator) < 0.75
        mirrored = fields[:, topology.mirror] * mean.new_tensor([-1.0, 1.0, 1.0])
        fields = torch.where(both[:, None, None], fields + mirrored, fields)
        size = fields[:, face].square().sum(2).mean(1, keepdim=True).sqrt()  # a small bump is as high as a wide one
        fields = fields / (size[..., None] * width[..., None] ** -0.5)
        fields = fields / (fields[:, face].square().sum((0, 2)).mean().sqrt() * MILLIMETERS)
        self.nearest = self._nearest(model, fields, face)
        self.left = fields - torch.einsum("di,ivc->dvc", self.nearest, model.identity_basis)

    @staticmethod
    def _nearest(model: MorphableModel, fields: Tensor, face: Tensor) -> Tensor:
        changes = torch.cat([model.identity_basis, fields])
        points = model.landmarks3d(model.mean[None])[0]
        moved = model.landmarks3d(model.mean + changes) - points
        forms = region_forms(model.mean, model.topology.faces, points, changes, moved, head_regions(model))
        form = torch.stack([torch.from_numpy(form) for form in forms.values()]).mean(0)
        flat = changes[:, face].flatten(1).double() * MILLIMETERS
        form = form + 0.1 * flat @ flat.T / len(face)
        n = model.num_identity
        return torch.linalg.solve(form[:n, :n] + 0.02 * torch.eye(n, dtype=form.dtype), form[:n, n:]).T.float()

    def __call__(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What a relief adds to the identity coefficients, and the displacements that are left.

        Args:
            codes: (B, D).

        Returns:
            (B, I) and (B, V, 3): the relief is ``identity_basis`` times the first plus the second.
        """
        return codes @ self.nearest, torch.einsum("bd,dvc->bvc", codes, self.left)
