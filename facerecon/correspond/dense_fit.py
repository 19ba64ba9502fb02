"""A head model fitted to a surface in 3D: how near its shapes can come to a head, and a head's coefficients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerecon.correspond.regions import head_regions
from facerecon.correspond.registration import mean_shape, normals_of
from facerecon.geometry.alignment import fit_similarity
from facerecon.geometry.surface import Surface, as_array
from facerecon.morphable import MorphableModel

__all__ = ["DenseFit"]

_LANDMARKS = (*range(27, 31), 33, *range(36, 68))
"""Bridge, tip and base of the nose, eyes and mouth, which mean the same on every head."""


_ALONG = 4.0
"""Noise along the surface, against that across it."""


class DenseFit:
    """Fits the identity of a head model to surfaces.

    Maximum a posteriori under the model's prior, iterated closest points with a similarity: places of the face lie on
    the surface but for noise across it, and four times as much along it, where a surface tells nothing; landmarks of
    eyes, nose and mouth lie at the surface's.

    Args:
        model: a head model; of its mean face, the four regions of the evaluation count.
        noise: standard deviation of places across the surface, world units (0.1 m).
        landmark_noise: of landmarks.
        points: places of the face, evenly chosen.
        rounds: of correspondences.
    """

    def __init__(
        self,
        model: MorphableModel,
        noise: float = 0.004,
        landmark_noise: float = 0.01,
        points: int = 2500,
        rounds: int = 12,
    ) -> None:
        self.model, self.noise, self.landmark_noise, self.rounds = model, noise, landmark_noise, rounds
        self.mean, self.faces = mean_shape(model), model.topology.faces.cpu().numpy()
        self.basis = model.identity_basis.cpu().double().numpy()
        used = np.flatnonzero(np.logical_or.reduce(list(head_regions(model).values())))
        self.used = np.random.default_rng(0).permutation(used)[:points]
        corners = model.topology.faces[model.topology.landmark_faces[:, 0]].cpu().numpy()[list(_LANDMARKS)]
        shares = model.topology.landmark_barycentric[:, 0].cpu().double().numpy()[list(_LANDMARKS), :, None]
        self.keys = (self.mean[corners] * shares).sum(1)
        self.keys_basis = (self.basis[:, corners] * shares).sum(2)

    def __call__(self, vertices: ArrayLike, faces: ArrayLike, landmarks: ArrayLike) -> NDArray:
        """(I,) identity coefficients of a head.

        Args:
            vertices: (V, 3) of the surface, any similarity of the world's frame.
            faces: (F, 3), of its skin.
            landmarks: (68, 3) on it.
        """
        surface = Surface(vertices, faces)
        goals = as_array("landmarks", landmarks, "68 3")[list(_LANDMARKS)]
        count, basis = len(self.basis), self.basis[:, self.used]
        identity = np.zeros(count)
        scale, rotation, translation = fit_similarity(self.keys, goals)
        for _ in range(self.rounds):
            shape = self.mean + np.tensordot(identity, self.basis, 1)
            placed = scale * shape @ rotation.T + translation
            normals = normals_of(placed, self.faces)[self.used]
            face, weights, distance, fits = surface.locate(placed[self.used], normals, 0.5, candidates=12)
            places = np.einsum("nkc,nk->nc", surface.corners[face], weights)
            trusted = fits & (distance < 0.15 * scale)
            keys = self.keys + np.tensordot(identity, self.keys_basis, 1)
            scale, rotation, translation = fit_similarity(
                np.concatenate([shape[self.used][trusted], keys]), np.concatenate([places[trusted], goals])
            )
            missing = ((places - translation) @ rotation / scale - shape[self.used])[trusted]
            across = (surface.normals[face] @ rotation)[trusted]
            away = ((goals - translation) @ rotation / scale - keys).ravel()
            moved = basis[:, trusted]
            parts = (
                (np.einsum("knc,nc->kn", moved, across), np.einsum("nc,nc->n", missing, across), self.noise),
                (moved.reshape(count, -1), missing.ravel(), _ALONG * self.noise),
                (self.keys_basis.reshape(count, -1), away, self.landmark_noise),
            )
            jacobian = np.concatenate([change / noise for change, _, noise in parts], 1)
            error = np.concatenate([left / noise for _, left, noise in parts])
            normal = jacobian @ jacobian.T + np.eye(count)
            identity = identity + np.linalg.solve(normal, jacobian @ error - identity)
        return identity
