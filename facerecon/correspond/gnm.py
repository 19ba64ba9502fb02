"""GNM Head's statistical expressions as ARKit's units, carried over from the makehuman head.

Each unit of the makehuman head moves its skin; the registration of the two heads (:mod:`facerecon.correspond.transfer`)
takes these displacements to GNM's skin, and those of the tongue to its tongue. The 383 components are fitted to them by
ridge regression, so that what a unit does is what GNM's scans know of it, inside the mouth too. Eyeballs, which GNM's
expressions leave at rest, turn as makehuman's do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from facerecon.correspond.registration import SOURCE, carry_points, mean_shape, registered
from facerecon.correspond.texels import eyes_of, region_faces
from facerecon.correspond.transfer import link
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.convert import write_face_model
from facerecon.morphable.eyes import landmark_points
from facerecon.morphable.gnm import gnm_model, read_gnm

__all__ = ["arkit_units", "convert"]

NOISE = 0.02
"""World units (0.1 m): error of a carried displacement; with components in standard deviations it sets the ridge."""

_LIDS = {"Right": ((37, 38), (41, 40)), "Left": ((43, 44), (47, 46))}
"""Landmarks of the upper and the lower lid."""


@in_own_modes
def convert(source: Path, target: Path) -> None:
    """Write GNM Head v3 as a head model's file (layout: :mod:`facerecon.morphable.convert`).

    Args:
        source: a folder or file of :func:`~facerecon.morphable.gnm.read_gnm`.
        target: the safetensors file.

    Raises:
        AssetError: it is something else, or the makehuman head is not in the cache.
    """
    model, head = gnm_model(read_gnm(source)), load_face_model(SOURCE, num_identity=0)
    units = arkit_units(model, head)
    if "face" not in model.topology.regions:
        rows = link(head, model).regions()["face"]
        model = model.with_topology(model.topology.replace(regions={**model.topology.regions, "face": rows}))
    topology = carry_points(head, model, registered(head, model)).topology
    ready = MorphableModel(
        mean=model.mean,
        identity_basis=model.identity_basis,
        expression_basis=units,
        topology=topology,
        name=model.name,
        expression_names=head.expression_names,
        expression_bounds=head.expression_bounds,
    )
    write_face_model(ready, target, "GNM Head v3, github.com/google/GNM; ARKit units carried over", "Apache-2.0")


def arkit_units(model: MorphableModel, head: MorphableModel) -> torch.Tensor:
    """(E, V, 3) displacements of a head's expression units on GNM's vertices, within the span of its components.

    Args:
        model: GNM with its own components, of :func:`~facerecon.morphable.gnm.gnm_model`.
        head: the makehuman head.
    """
    moves = head.expression_basis.double()  # (E, V', 3)
    values, known = link(head, model).vertex_values(moves.permute(1, 0, 2).flatten(1))
    goal = values.reshape(model.num_vertices, len(moves), 3).numpy()
    known = known.numpy()
    rows, taken = _tongue(head, model)
    goal[rows], known[rows] = moves.permute(1, 0, 2).numpy()[taken], True

    basis = model.expression_basis.double().numpy()
    system = basis[:, known].reshape(len(basis), -1)
    right = goal[known].transpose(0, 2, 1).reshape(-1, len(moves))
    coefficients = np.linalg.solve(system @ system.T + NOISE**2 * np.eye(len(basis)), system @ right)
    units = np.einsum("ke,kvc->evc", coefficients, basis)
    for side in _LIDS:
        unit = head.expression_names.index(f"eyeBlink{side}")
        share = _closing(head, moves[unit].numpy(), side) / _closing(model, units[unit], side)
        units[unit] *= np.clip(share, 0.5, 2.0)  # lids that are less far apart travel less
    _turn_eyes(units, model, head, moves.numpy())
    return torch.from_numpy(units.astype(np.float32))


def _tongue(head: MorphableModel, model: MorphableModel) -> tuple[NDArray, NDArray]:
    """Vertices of the model's tongue, and of the head's the one at the same place between the tongue's ends."""

    def tongue(of: MorphableModel) -> tuple[NDArray, NDArray]:
        rows = np.unique(of.topology.faces.cpu().numpy()[region_faces(of, "tongue")])
        points = mean_shape(of)[rows]
        low, high = points.min(0), points.max(0)
        return rows, (points - low) / (high - low)

    (here, places), (there, goals) = tongue(head), tongue(model)
    return there, here[np.array([((places - goal) ** 2).sum(1).argmin() for goal in goals])]


def _closing(model: MorphableModel, unit: NDArray, side: str) -> float:
    """How far a unit brings the lids together, as a share of their distance."""
    upper, lower = _LIDS[side]
    mean = mean_shape(model)
    heights = [landmark_points(vertices, model.topology)[:, 1] for vertices in (mean, mean + unit)]
    still, moved = (height[list(upper)].mean() - height[list(lower)].mean() for height in heights)
    return max((still - moved) / still, 1e-3)


def _turn_eyes(units: NDArray, model: MorphableModel, head: MorphableModel, moves: NDArray) -> None:
    """Turn the model's eyeballs in (E, V, 3) units as the head's turn in (E, V', 3) moves, in place."""
    eyes = {eye.left: eye for eye in eyes_of(model)}
    for eye in eyes_of(head):
        own = eyes[eye.left]
        here = np.unique(head.topology.faces.cpu().numpy()[eye.rows])
        there = np.unique(model.topology.faces.cpu().numpy()[own.rows])
        points, goal = mean_shape(head)[here], mean_shape(model)[there] - own.center
        for unit, move in zip(units, moves[:, here]):
            if np.abs(move).max() < 1e-3:
                continue
            ends = points + move
            left, _, right = np.linalg.svd((ends - ends.mean(0)).T @ (points - points.mean(0)))  # Kabsch
            left[:, -1] *= np.linalg.det(left @ right)
            unit[there] = goal @ (left @ right).T - goal
