"""Where the texels of one head's atlas lie in another's: one table, to move textures and to resample decoders.

The place of a texel is found in 3D, on the surface that looks the same way, so that no seam of either atlas shows.

* Skin: the nearest place of the source's skin that looks the same way.
* Eyes: the same direction from the eyeball's center; a socket shows what a viewer in front would see of an eyeball.
* What has no counterpart (shoulders, the inside of the mouth, sockets) has a share of 0.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facerecon.correspond.registration import (
    cached_table,
    mean_shape,
    normals_of,
    pair_digest,
    skin_faces,
    skin_surface,
    unit,
)
from facerecon.geometry.surface import Surface
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel
from facerecon.morphable.eyes import Eye, find_eyes, landmark_points, smooth_step
from facerecon.render.uv import uv_raster

__all__ = ["FAR", "TexelTable", "eyes_of", "region_faces", "skin_places", "skin_texels", "texel_table"]

FAR = 0.15
"""World units (0.1 m) from the source's skin beyond which a texel begins to turn from its partner's color to a fill."""

_VERSION = 1


@dataclass(frozen=True)
class TexelTable:
    """Where each texel of a target's atlas lies in a source's.

    Args:
        inside: (S, S) bool, texels of an island; the others have no row below.
        uv: (P, 2) place in the source's atlas.
        share: (P,) in [0, 1], 1 where there is a counterpart, 0 where none is.
        same_side: (P,) bool, whether the counterpart looks the same way.
    """

    inside: Tensor
    uv: Tensor
    share: Tensor
    same_side: Tensor


def region_faces(model: MorphableModel, *names: str) -> NDArray:
    """(F,) bool, faces of any of these regions; those that the model does not have are skipped."""
    flags = np.zeros(len(model.topology.faces), dtype=bool)
    for name in names:
        if name in model.topology.regions:
            flags |= model.topology.regions[name].cpu().numpy()
    return flags


def uv_at(model: MorphableModel, faces: NDArray, barycentric: NDArray) -> NDArray:
    """(N, 2) places in the atlas of points given by faces and barycentric weights."""
    corners = model.topology.uvs.cpu().double().numpy()[model.topology.uv_faces.cpu().numpy()[faces]]
    return (corners * barycentric[..., None]).sum(1)


def skin_places(
    source: MorphableModel, shape: NDArray, points: NDArray, normals: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Where points (N, 3) lie on a head's skin in a shape (V, 3): uv (N, 2), distance (N,), and whether it looks the
    same way as their normals (N,)."""
    surface, rows = skin_surface(source, shape)
    found, barycentric, distance, fits = surface.locate(points, normals, candidates=16)
    return uv_at(source, rows[found], barycentric), distance, fits


def eyes_of(model: MorphableModel) -> list[Eye]:
    """Eyes of the mean shape."""
    return find_eyes(mean_shape(model), model.topology)


def eye_places(source: MorphableModel, target: MorphableModel, points: NDArray) -> tuple[NDArray, NDArray]:
    """UV (N, 2) and share (N,) of points (N, 3) on the eyes of the target's mean shape, each taken to the source's eye
    on its side; the share is 0 where the target has eyeballs and the source has sockets."""
    mean, faces = mean_shape(source), source.topology.faces.cpu().numpy()
    here_of, there_of = ({eye.left: eye for eye in eyes_of(model)} for model in (source, target))
    nose = landmark_points(mean_shape(target), target.topology)[27:31, 0].mean()
    uv, share = np.zeros((len(points), 2)), np.zeros(len(points))
    for left in (False, True):
        some = (points[:, 0] > nose) == left
        if left not in here_of or left not in there_of or not some.any():
            continue
        here, there = here_of[left], there_of[left]
        if there.bulges and not here.bulges:
            continue
        taken = points[some]
        if here.bulges and there.bulges:  # the same direction from the center
            goal = here.center + (taken - there.center) * (here.radius / there.radius)
        elif not here.bulges and not there.bulges:  # two sockets: the same place between the lids
            scale = here.width / there.width
            goal = here.lids.mean(0) + (taken - there.lids.mean(0)) * scale
        else:  # what lies at the same place between the lids, seen from in front
            place = here.opening + (taken[:, :2] - there.opening) * (here.width / there.width)
            offset = place - here.center[:2]
            reach = np.linalg.norm(offset, axis=1, keepdims=True)
            offset *= np.minimum(1, 0.99 * here.radius / np.maximum(reach, 1e-9))
            ahead = np.sqrt(np.maximum(here.radius**2 - (offset**2).sum(1, keepdims=True), 0))
            goal = here.center + np.concatenate([offset, ahead], 1)
        found, barycentric, _, _ = Surface(mean, faces[here.rows]).locate(goal)
        uv[some], share[some] = uv_at(source, here.rows[found], barycentric), 1.0
    return uv, share


def texel_points(target: MorphableModel, shape: NDArray, size: int) -> tuple[Tensor, NDArray, NDArray, NDArray]:
    """(S, S) which texels lie in an island, and of those the face (P,), the point and the unit normal (P, 3)."""
    raster = uv_raster(target.topology, size)
    index = raster.face_index[0].cpu()
    inside = index >= 0
    face = index[inside].numpy()
    weights = raster.barycentric[0].cpu()[inside].double().numpy()[..., None]
    corners = target.topology.faces.cpu().numpy()[face]
    normals = normals_of(shape, target.topology.faces)
    return inside, face, (shape[corners] * weights).sum(1), unit((normals[corners] * weights).sum(1))


@in_own_modes
def texel_table(
    source: MorphableModel,
    target: MorphableModel,
    source_shape: NDArray,
    target_shape: NDArray,
    size: int,
    too_far: float,
    skin: NDArray | None = None,
) -> TexelTable:
    """Where each texel of the target's S x S map lies in the source's atlas; computed once, then cached.

    Args:
        source, target: heads.
        source_shape, target_shape: (V, 3) float64, the vertices of both, registered with each other.
        size: S.
        too_far: world units from the source's skin beyond which a texel has no counterpart; up to :data:`FAR` it has
            one, and less and less in between.
        skin: (F,) bool, the target's faces that lie on the source's skin; those of :func:`skin_faces` if left out.
    """
    skin = skin_faces(target) if skin is None else skin

    def make() -> dict[str, NDArray]:
        inside, face, points, normals = texel_points(target, target_shape, size)
        uv, share = np.zeros((len(face), 2)), np.zeros(len(face))
        fits = np.zeros(len(face), dtype=bool)
        eyes, on_skin = region_faces(target, "eyes")[face], skin[face]
        uv[on_skin], distance, fits[on_skin] = skin_places(source, source_shape, points[on_skin], normals[on_skin])
        share[on_skin] = 1 - smooth_step(distance, FAR, too_far)
        if eyes.any():
            own = texel_points(target, mean_shape(target), size)[2][eyes]
            uv[eyes], share[eyes] = eye_places(source, target, own)
            fits[eyes] = True
        return {
            "inside": inside.numpy().astype(np.uint8),
            "uv": uv.astype(np.float32),
            "share": share.astype(np.float32),
            "same_side": fits.astype(np.uint8),
        }

    shapes = hashlib.sha256(source_shape.tobytes() + target_shape.tobytes() + skin.tobytes()).hexdigest()
    key = pair_digest(source, target, f"texels {_VERSION} {size} {FAR} {too_far} {shapes}")
    table = cached_table("texels", key, make, ("inside", "uv", "share", "same_side"))
    return TexelTable(table["inside"].bool(), table["uv"], table["share"], table["same_side"].bool())


def skin_texels(model: MorphableModel, size: int) -> Tensor:
    """(1, 1, S, S) in {0, 1}: texels of a head's skin."""
    index = uv_raster(model.topology, size).face_index[0].cpu()
    return torch.from_numpy(np.append(skin_faces(model), False))[index].float()[None, None]
