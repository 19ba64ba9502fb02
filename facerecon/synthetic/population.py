"""People of another head model, as identities of this one: what scanned heads have that the prior does not know."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from facerecon.correspond.dense_fit import DenseFit
from facerecon.correspond.registration import cached_table, pair_digest, skin_faces
from facerecon.morphable import MorphableModel

__all__ = ["Population", "population_of"]

_FITS = 240
_SEED = 900


@dataclass(frozen=True)
class Population:
    """Identities as a Gaussian: ``mean + factor.T @ x``, x standard normal.

    Args:
        mean: (I,), in the model's standard deviations.
        factor: (M, I).
    """

    mean: Tensor
    factor: Tensor

    def __call__(self, draws: Tensor) -> Tensor:
        """(B, M) standard normals -> (B, I)."""
        return self.mean + draws @ self.factor


def population_of(other: MorphableModel, model: MorphableModel) -> Population:
    """The people of another head model (ICT-FaceKit's, from scans), each the head of this model that lies nearest.

    240 heads of the other are fitted densely (:class:`~facerecon.correspond.dense_fit.DenseFit`), and their
    coefficients regressed on those of the other model: computed once (some minutes), then cached.

    Args:
        other: whose identities are standard normal.
        model: of the identities that come out.
    """

    def make() -> dict[str, np.ndarray]:
        fit, rng = DenseFit(model), np.random.default_rng(_SEED)
        faces = other.topology.faces[torch.from_numpy(skin_faces(other))]
        draws = rng.standard_normal((_FITS, other.num_identity)).astype(np.float32)
        found = []
        for row in tqdm(draws, desc=f"fitting {model.name} to heads of {other.name}", disable=None):
            shape = other.shape(other.neutral(1).replace(identity=torch.from_numpy(row[None])))
            found.append(fit(shape[0], faces, other.landmarks3d(shape)[0]))
        design = np.concatenate([np.ones((_FITS, 1)), draws], 1)
        ridge = np.diag([0.0] + [1.0] * draws.shape[1])
        solution = np.linalg.solve(design.T @ design + ridge, design.T @ np.array(found))
        return {"mean": solution[0].astype(np.float32), "factor": solution[1:].astype(np.float32)}

    bases = [hashlib.sha256(m.identity_basis.cpu().numpy().tobytes()).hexdigest() for m in (model, other)]
    settings = f"population 1 {bases}"
    table = cached_table("population", pair_digest(model, other, settings), make, ("mean", "factor"))
    return Population(table["mean"], table["factor"])
