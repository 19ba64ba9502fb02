"""MakeHuman's head as its artists made it, and upper teeth where people have them."""

from __future__ import annotations

from pathlib import Path

import torch

from facerecon.geometry.mesh import face_components
from facerecon.morphable.model import MorphableModel, read_face_model

__all__ = ["read_first_edition", "seat_teeth"]

_LOWER, _FORWARD = 0.042, 0.03
"""dm. hm08's upper incisors end 2 mm above the edge of the upper lip, and 5 mm over the lower ones; people's reach 2 mm
below it and meet them."""


def read_first_edition(path: Path, num_identity: int | None = None) -> MorphableModel:
    """The makehuman head's first edition, its teeth seated; as :func:`~facerecon.morphable.model.read_face_model`.

    Its atlas has the second edition's name, ``makehuman``.
    """
    model = seat_teeth(read_face_model(path, num_identity))
    if model.name == "makehuman":
        model.name = "makehuman_artist"
    return model


def seat_teeth(model: MorphableModel) -> MorphableModel:
    """A model whose upper teeth end 2 mm below the edge of the upper lip, both rows a little closer to the lips.

    A smile then shows teeth, and not the tongue behind them. Without two rows of teeth the model is given back.
    """
    topology = model.topology
    if "teeth" not in topology.regions or not topology.regions["teeth"].any():
        return model
    faces = topology.faces[topology.regions["teeth"]]
    rows = torch.from_numpy(face_components(faces.cpu().numpy(), model.num_vertices)).to(faces.device)
    pieces = [faces[rows == k].unique() for k in rows.unique()]
    if len(pieces) != 2:
        return model
    lower, upper = sorted(pieces, key=lambda piece: float(model.mean[piece, 1].mean()))
    mean = model.mean.clone()
    mean[upper, 1] -= _LOWER
    mean[torch.cat([lower, upper]), 2] += _FORWARD
    return model.with_mean(mean)
