"""Textures, landmarks, regions and per-vertex values moved from one head's topology to another's.

    import facerecon as fr

    moved = fr.transfer.texture(fr.read_image("uv.png")[None], "makehuman", "ict", size=1024)
    moved.texture, moved.known                      # the map in ICT's atlas; where it comes from the source
    link = fr.transfer.link("makehuman", "head.obj")
    link.landmarks(), link.regions(), link.vertex_values(values)

Two heads are linked by one dense correspondence of their mean shapes (:mod:`facerecon.correspond.correspondence`),
which serves both directions, so that there and back is the way it came. Where a texel's color lies in the source's map
is found in 3D, on the surface that looks the same way: no seam of either atlas shows. The table of places is computed
once and kept in the cache.

* Skin: the nearest place of the other head's skin that looks the same way.
* Eyes: the same direction from the eyeball's center; a socket shows what a viewer in front would see of an eyeball. An
  eyeball whose source has sockets only is drawn (:mod:`facerecon.morphable.eyes`).
* What has no counterpart (shoulders, the inside of the mouth, sockets) is filled, and is 0 in ``known``: skin goes on
  smoothly (a harmonic function on the mesh); teeth, tongue and the inside of the mouth take the mean color of the
  source's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import factorized
from scipy.spatial import cKDTree
from torch import Tensor

from facerecon import assets
from facerecon.correspond.correspondence import register, skin_surface
from facerecon.correspond.obj import ObjMesh, head_from_obj, known_landmarks, read_obj
from facerecon.errors import (
    ConfigError,
    InputError,
    NoFaceError,
    ShapeError,
    check_shape,
    nearest_name,
)
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.mesh import edges, vertex_normals
from facerecon.geometry.surface import Surface
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.eyes import IRISES, Eye, eye_color, find_eyes, landmark_points
from facerecon.morphable.load import FACE_MODELS
from facerecon.perception import observe
from facerecon.perception.landmarks import map_points
from facerecon.render.interpolate import fragments, interpolate
from facerecon.render.uv import pad_islands, sampling_grid, uv_raster
from facerecon.storage import read_array, read_bounded, read_safetensors, safetensors_bytes, write_whole
from facerecon.types import Camera

__all__ = [
    "Link",
    "Moved",
    "Places",
    "detect_landmarks",
    "landmarks",
    "link",
    "load_head",
    "regions",
    "skin_texels",
    "texture",
]

FAR, TOO_FAR = 0.15, 0.5
"""World units (0.1 m) from the source's skin between which a texel turns from its partner's color to the fill."""

TAPS = 4
"""At most so many samples a side of a texel, where the source's map is finer than the target's."""

DEEP = 0.15
"""World units: a place so far behind its surroundings is seen through a gap."""

CLAY = (0.78, 0.62, 0.54)
"""Color in which a bare shape is drawn to find its landmarks."""

_ORDER = ("makehuman", "ict", "hifi3dpp")
"""Of a pair, the head that is bent onto the other: the one with more regions and eyeballs comes first."""

_VERSION = 3


# -- places ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
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


def _mean(model: MorphableModel) -> NDArray:
    return model.mean.detach().cpu().double().numpy()


def _normals(vertices: NDArray, faces: Tensor) -> NDArray:
    return vertex_normals(torch.from_numpy(vertices)[None], faces.cpu())[0].numpy()


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _flags(model: MorphableModel, *names: str) -> NDArray:
    """(F,) bool, faces of any of these regions; those that the model does not have are skipped."""
    flags = np.zeros(len(model.topology.faces), dtype=bool)
    for name in names:
        if name in model.topology.regions:
            flags |= model.topology.regions[name].cpu().numpy()
    return flags


def ramp_down(distance: NDArray, near: float, far: float) -> NDArray:
    """Smooth step from 1 at ``near`` to 0 at ``far``."""
    t = np.clip((distance - near) / (far - near), 0, 1)
    return 1 - t * t * (3 - 2 * t)


def uv_at(model: MorphableModel, faces: NDArray, barycentric: NDArray) -> NDArray:
    """(N, 2) places in the atlas of points given by faces and barycentric weights."""
    corners = model.topology.uvs.cpu().double().numpy()[model.topology.uv_faces.cpu().numpy()[faces]]
    return (corners * barycentric[..., None]).sum(1)


def skin_places(
    source: MorphableModel, shape: NDArray, points: NDArray, normals: NDArray, candidates: int = 16
) -> tuple[NDArray, NDArray, NDArray]:
    """Where points lie on the skin of a source head: uv (N, 2), distance (N,), whether it looks the same way (N,).

    Args:
        source: head.
        shape: (V, 3) its vertices in the frame of the points.
        points, normals: (N, 3).
    """
    surface, rows = skin_surface(source, shape)
    found, barycentric, distance, fits = surface.locate(points, normals, candidates=candidates)
    return uv_at(source, rows[found], barycentric), distance, fits


def _eyes(model: MorphableModel) -> list[Eye]:
    return find_eyes(_mean(model), model.topology)


def eye_places(source: MorphableModel, target: MorphableModel, points: NDArray) -> tuple[NDArray, NDArray]:
    """UV and share of points on the target's eyes, each taken to the source's eye on its side.

    Args:
        points: (N, 3) on the eyes of the target's mean shape.

    Returns:
        uv (N, 2), share (N,): 0 where the source shows no eye: the target has eyeballs, the source has sockets.
    """
    mean, faces = _mean(source), source.topology.faces.cpu().numpy()
    here_of, there_of = ({eye.left: eye for eye in _eyes(model)} for model in (source, target))
    nose = landmark_points(_mean(target), target.topology)[27:31, 0].mean()
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
    normals = _normals(shape, target.topology.faces)
    return inside, face, (shape[corners] * weights).sum(1), _unit((normals[corners] * weights).sum(1))


# -- link --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """A texture in another head's atlas.

    Args:
        texture: (B, C, S, S), padded over the islands' borders.
        known: (1, 1, S, S) in [0, 1]: 1 where the color comes from the source, 0 where it is filled and between the
            islands.
    """

    texture: Tensor
    known: Tensor


class Link:
    """The correspondence of two heads, in one direction; :attr:`back` is the other.

    Args:
        source, target: heads.
        source_shape, target_shape: (V, 3) float64, the vertices of both bent onto each other.
    """

    def __init__(
        self, source: MorphableModel, target: MorphableModel, source_shape: NDArray, target_shape: NDArray
    ) -> None:
        self.source, self.target = source, target
        self.source_shape, self.target_shape = source_shape, target_shape
        self._places: dict[int, Places] = {}

    @property
    def back(self) -> Link:
        """From target to source, over the same correspondence."""
        return Link(self.target, self.source, self.target_shape, self.source_shape)

    # -- textures ------------------------------------------------------------------------------------------

    @in_own_modes
    def places(self, size: int) -> Places:
        """Where each texel of the target's S x S map lies in the source's atlas; computed once, then cached."""
        if size not in self._places:
            shapes = hashlib.sha256(self.source_shape.tobytes() + self.target_shape.tobytes()).hexdigest()
            key = digest(self.source, self.target, f"places {_VERSION} {size} {FAR} {TOO_FAR} {shapes}")
            keys = ("inside", "uv", "share", "same_side")
            table = _kept("transfer_places", key, lambda: self._table(size), keys)
            self._places[size] = Places(
                table["inside"].bool(), table["uv"], table["share"].float() / 255, table["same_side"].bool()
            )
        return self._places[size]

    def _table(self, size: int) -> dict[str, NDArray]:
        inside, face, points, normals = texel_points(self.target, self.target_shape, size)
        uv, share = np.zeros((len(face), 2)), np.zeros(len(face))
        fits = np.zeros(len(face), dtype=bool)
        eyes = _flags(self.target, "eyes")[face]
        skin = _skin_faces(self.target)[face]
        uv[skin], distance, fits[skin] = skin_places(self.source, self.source_shape, points[skin], normals[skin])
        share[skin] = ramp_down(distance, FAR, TOO_FAR)
        if eyes.any():
            mean = self.target.mean.detach().cpu().double().numpy()
            own = texel_points(self.target, mean, size)[2][eyes]
            uv[eyes], share[eyes] = eye_places(self.source, self.target, own)
            fits[eyes] = True
        return {
            "inside": inside.numpy().astype(np.uint8),
            "uv": uv.astype(np.float32),
            "share": np.round(255 * share).astype(np.uint8),
            "same_side": fits.astype(np.uint8),
        }

    def texture(self, image: Tensor, size: int | None = None) -> Moved:
        """Move UV maps from the source's atlas to the target's.

        Bicubic; where the source's map is finer than the target's, several samples a texel.

        Args:
            image: (B, C, s, s) in [0, 1], in the source's atlas (C = 3, or any number of channels: masks too).
            size: S of the result; s if left out. For a result that loses nothing take the size at which the target's
                face has as many texels as the source's.

        Raises:
            ShapeError: not a batch of square maps.
            ConfigError: a size below 8.
        """
        side = check_shape("image", image, "B C S S")["S"]
        size = side if size is None else int(size)
        if size < 8:
            raise ConfigError(f"size must be 8 or more texels; got {size}.")
        with torch.no_grad():
            places = self.places(size)
            image = image.float()
            padded = pad_islands(image, self.source.topology.map(lambda t: t.to(image.device)), None)
            moved = _sampled(padded, places, size)
            fill = self._fill(padded, size)
            share = places.share.to(image)
            mixed = fill + (moved - fill) * share
            inside = places.inside.to(image.device).flatten().nonzero()[:, 0]
            flat = image.new_zeros(*image.shape[:2], size * size)
            flat[:, :, inside] = mixed
            known = image.new_zeros(1, 1, size * size)
            known[:, :, inside] = share * places.same_side.to(image)
            flat = flat.view(*image.shape[:2], size, size)
            out = pad_islands(flat, self.target.topology.map(lambda t: t.to(image.device)), None)
        return Moved(out, known.view(1, 1, size, size))

    def _fill(self, padded: Tensor, size: int) -> Tensor:
        """(B, C, P) colors of the target's texels without regard to their partners: what ``share`` < 1 shows."""
        target, batch = self.target, padded.shape[:2]
        normals = _unit(_normals(self.target_shape, target.topology.faces))
        uv, distance, fits = skin_places(self.source, self.source_shape, self.target_shape, normals)
        faces = target.topology.faces.cpu().numpy()
        skin = np.zeros(len(self.target_shape), dtype=bool)
        skin[faces[_skin_faces(target)]] = True
        known = skin & fits & (distance < FAR)
        coarse = F.avg_pool2d(padded, max(1, padded.shape[-1] // 128))
        grid = sampling_grid(torch.from_numpy(uv).float().to(padded))[None, None]
        colors = F.grid_sample(
            coarse.flatten(0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )[0, :, 0]
        smooth = harmonic(colors.cpu().double().numpy().T, known, faces)  # (V, BC)
        means = _part_means(padded, self.source)
        for part in ("mouth", "tongue", "teeth", "eyes"):
            rows = np.unique(faces[_flags(target, part)])
            if len(rows) and part in means:
                smooth[rows[~skin[rows]]] = means[part].flatten().cpu().double().numpy()
        raster = uv_raster(target.topology, size)
        index = raster.face_index[0].cpu()
        inside = index >= 0
        corners = faces[index[inside].numpy()]
        weights = raster.barycentric[0].cpu()[inside].double().numpy()
        values = np.einsum("pkc,pk->cp", smooth[corners], weights)
        if batch[1] == 3:
            self._draw_eyes(values.reshape(*batch, -1), index[inside].numpy(), weights)
        return torch.from_numpy(values).to(padded).unflatten(0, batch)

    def _draw_eyes(self, values: NDArray, face: NDArray, weights: NDArray) -> None:
        """Put eyes into the fill (B, 3, P) of a target's eyeballs where the source has none, in place."""
        if any(eye.bulges for eye in _eyes(self.source)):
            return
        mean, faces = _mean(self.target), self.target.topology.faces.cpu().numpy()
        for eye in _eyes(self.target):
            some = np.isin(face, eye.rows)
            if not eye.bulges or not some.any():
                continue
            offset = np.einsum("pkc,pk->pc", mean[faces[face[some]]], weights[some]) - eye.center
            across = np.linalg.norm(offset[:, :2], axis=1)
            angle = np.arctan2(across, offset[:, 2])
            place = offset[:, :2] * (angle / np.maximum(across, 1e-12))[:, None]
            values[:, :, some] = eye_color(place, eye.iris_angle, IRISES["brown"]).T

    # -- points, regions, values ---------------------------------------------------------------------------

    def points(self, faces: Tensor, barycentric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points on the source as points on the target's skin.

        Args:
            faces: (N,) int64, rows of the source's faces.
            barycentric: (N, 3).

        Returns:
            faces (N,) and barycentric (N, 3) on the target, distance (N,) in world units (0.1 m) between the two in the
            bent shapes; inf where nothing of the target looks the same way.
        """
        count = check_shape("faces", faces, "N")["N"]
        check_shape("barycentric", barycentric, f"{count} 3")
        corners = self.source.topology.faces.cpu()[faces.cpu()].numpy()
        shares = barycentric.detach().cpu().double().numpy()[..., None]
        normals = _unit((_normals(self.source_shape, self.source.topology.faces)[corners] * shares).sum(1))
        surface, rows = skin_surface(self.target, self.target_shape)
        face, weights, distance, fits = surface.locate((self.source_shape[corners] * shares).sum(1), normals)
        distance = np.where(fits, distance, np.inf)
        return torch.from_numpy(rows[face]), torch.from_numpy(weights).float(), torch.from_numpy(distance).float()

    def landmarks(self) -> tuple[Tensor, Tensor, Tensor]:
        """The source's 68 landmarks on the target: faces (68,), barycentric (68, 3), distance (68,)."""
        topology = self.source.topology
        return self.points(topology.landmark_faces[:, 0], topology.landmark_barycentric[:, 0])

    def regions(self) -> dict[str, Tensor]:
        """The source's regions as (F,) bool on the target's faces: those of the skin; eyes and mouth are the target's
        own."""
        target, topology = self.target, self.target.topology
        here, there = skin_surface(self.source, self.source_shape), skin_surface(target, self.target_shape)
        found, _, distance, fits = here[0].locate(there[0].centers, there[0].normals)
        skin = self.source.topology.regions.get("skin")
        taken = {}
        for name, rows in self.source.topology.regions.items():
            rows = rows.cpu().numpy()
            if skin is not None and not (rows & skin.cpu().numpy()).any():
                continue
            flags = np.zeros(len(topology.faces), dtype=bool)
            flags[there[1]] = rows[here[1][found]] & fits & (distance < TOO_FAR)
            if name == "face":
                flags |= _flags(target, "eyes")
            taken[name] = torch.from_numpy(flags)
        for name in ("skin", "eyes", "sockets", "mouth", "teeth", "tongue"):
            if name in topology.regions:
                taken[name] = topology.regions[name].cpu()
        return taken

    def vertex_values(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Per-vertex values (weights, colors, displacements) of the source's skin on the target's vertices.

        Args:
            values: (V, C) or (V,) of the source.

        Returns:
            (V', C) or (V',) on the target; harmonic where there is no counterpart (0 on pieces of the mesh that have
            none), and (V',) bool, which vertices have one.
        """
        if values.ndim not in (1, 2) or len(values) != self.source.num_vertices:
            raise ShapeError(f"values must be ({self.source.num_vertices}, C); got {tuple(values.shape)}.")
        table = values.detach().cpu().double().numpy().reshape(len(values), -1)
        surface, rows = skin_surface(self.source, self.source_shape)
        faces = self.target.topology.faces.cpu().numpy()
        normals = _unit(_normals(self.target_shape, self.target.topology.faces))
        found, weights, distance, fits = surface.locate(self.target_shape, normals)
        taken = np.einsum("nkc,nk->nc", table[self.source.topology.faces.cpu().numpy()[rows[found]]], weights)
        skin = np.zeros(len(self.target_shape), dtype=bool)
        skin[faces[_skin_faces(self.target)]] = True
        known = skin & fits & (distance < FAR)
        out = torch.from_numpy(harmonic(taken, known, faces)).to(values)
        return out.reshape(len(out), *values.shape[1:]), torch.from_numpy(known)


def _skin_faces(model: MorphableModel) -> NDArray:
    skin = model.topology.regions.get("skin")
    return np.ones(len(model.topology.faces), dtype=bool) if skin is None else skin.cpu().numpy()


def skin_texels(model: MorphableModel, size: int) -> Tensor:
    """(1, 1, S, S) in {0, 1}: texels of a head's skin."""
    index = uv_raster(model.topology, size).face_index[0].cpu()
    return torch.from_numpy(np.append(_skin_faces(model), False))[index].float()[None, None]


def _part_means(padded: Tensor, model: MorphableModel) -> dict[str, Tensor]:
    """(B, C) mean colors of the source's mouth, tongue, teeth and eyes: what their like on a target are filled with.

    A source that tells no teeth or tongue from its mouth gives that of the mouth for all.
    """
    index = uv_raster(model.topology, padded.shape[-1]).face_index[0].cpu()
    parts = {}
    for part in ("mouth", "tongue", "teeth", "eyes"):
        flags = _flags(model, part)
        if part == "mouth":
            flags &= ~_flags(model, "teeth", "tongue")
        texels = torch.from_numpy(np.append(flags, False))[index].to(padded.device)
        if part == "teeth" and texels.any():  # the part of their maps that shows, not the shade behind
            brightness = padded[0].mean(0)
            texels &= brightness >= brightness[texels].median()
        if texels.any():
            parts[part] = padded[:, :, texels].mean(-1)
    for part in ("tongue", "teeth"):
        if "mouth" in parts:
            parts.setdefault(part, parts["mouth"])
    return parts


def _sampled(padded: Tensor, places: Places, size: int) -> Tensor:
    """(B, C, P) colors at the places, filtered to the target's texels.

    The step of the places from texel to texel says how many texels of the source one of the target covers; it is taken
    within islands only, never across a seam of either atlas.
    """
    grid = torch.full((size, size, 2), torch.nan)
    grid[places.inside] = places.uv
    side = padded.shape[-1]
    steps = []
    for axis in (1, 0):
        ahead = grid.roll(-1, axis) - grid
        behind = ahead.roll(1, axis)
        length = torch.stack([behind.norm(dim=-1), ahead.norm(dim=-1)]).nan_to_num(torch.inf)
        step = torch.where((length[0] < length[1])[..., None], behind, ahead)
        step = torch.where((length.amin(0) < 8 / size)[..., None], step, 0.0)
        steps.append(step[places.inside])
    across, down = steps
    footprint = torch.stack([across.norm(dim=-1), down.norm(dim=-1)]).amax(0) * side
    taps = int(footprint.quantile(0.9).clamp(1, TAPS).round()) if len(footprint) < 1 << 24 else TAPS
    offsets = (torch.arange(taps) + 0.5) / taps - 0.5
    maps, total = padded.flatten(0, 1)[None], 0
    for dy in offsets.tolist():
        for dx in offsets.tolist():
            uv = places.uv + dx * across + dy * down
            where = sampling_grid(uv.clamp(0, 1))[None, None].to(padded)
            total = (
                total + F.grid_sample(maps, where, mode="bicubic", padding_mode="border", align_corners=False)[0, :, 0]
            )
    return (total / taps**2).clamp(padded.min(), padded.max()).unflatten(0, padded.shape[:2])


def harmonic(values: NDArray, known: NDArray, faces: NDArray) -> NDArray:
    """Values on a mesh that are given at some vertices and as smooth as can be (harmonic) at the others.

    Args:
        values: (V, C).
        known: (V,) bool, where they are given.
        faces: (F, 3).

    Returns:
        (V, C): every other vertex the mean of its neighbors; 0 on pieces of the mesh without a known vertex.
    """
    pairs = edges(torch.from_numpy(faces)).numpy()
    count = len(values)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    adjacency = coo_array((np.ones(len(both)), both.T), shape=(count, count)).tocsr()
    out = np.where(known[:, None], values, 0.0)
    free = np.flatnonzero(~known)
    if not len(free):
        return out
    degree = adjacency.sum(1)[free]
    system = (diags_array(degree + 1e-9) - adjacency[free][:, free]).tocsc()
    right = adjacency[free] @ out
    solve = factorized(system)
    out[free] = np.stack([solve(np.ascontiguousarray(column)) for column in right.T], 1)
    return out


# -- making links ------------------------------------------------------------------------------------------


def digest(source: MorphableModel, target: MorphableModel, settings: str) -> str:
    """Of two heads and settings: everything that a correspondence depends on."""
    state = hashlib.sha256(settings.encode())
    for model in (source, target):
        topology = model.topology
        tensors = (model.mean, topology.faces, topology.uvs, topology.uv_faces, topology.landmark_faces)
        for tensor in (*tensors, topology.landmark_barycentric, *topology.regions.values()):
            state.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return state.hexdigest()[:16]


def _kept(name: str, key: str, make: Callable[[], dict[str, NDArray]], keys: tuple[str, ...]) -> dict[str, Tensor]:
    """A table of the cache, made where it is not there or damaged."""

    def write(path: Path) -> None:
        write_whole(path, safetensors_bytes({key: torch.from_numpy(array) for key, array in make().items()}))

    path = assets.derived(name, key, write)
    tensors = read_safetensors(path, "a table of correspondences", "delete it, it is made again", keys)[0]
    return {key: tensor.clone() for key, tensor in tensors.items()}  # free of the mapped file


@in_own_modes
def load_head(head: str | os.PathLike | MorphableModel, landmarks: Any = None) -> MorphableModel:
    """A head by its model's name, or of an OBJ file with UVs.

    Args:
        head: a name of :data:`~facerecon.morphable.FACE_MODELS` (from the cache), the path of an OBJ file, or a
            model, which is returned as it is.
        landmarks: of an OBJ file: (68, 3) points, (68,) vertex numbers from 0, or a file of either (.npy, .csv, .txt).
            Left out, they are those of a topology that is known (HiFi3D++, ICT-FaceKit), or found on a rendering.

    Raises:
        ConfigError: an unknown name.
        InputError: a file that cannot be used.
        NoFaceError: no face is found on an OBJ
        without landmarks.
        AssetError: the model is not in the cache.
    """
    if isinstance(head, MorphableModel):
        return head
    if str(head) in FACE_MODELS:
        return load_face_model(str(head), num_identity=0)
    path = Path(head)
    if path.suffix.lower() != ".obj":
        raise ConfigError(nearest_name(str(head), [*FACE_MODELS, "FILE.obj"], "head"))
    mesh = read_obj(path)
    points = known_landmarks(mesh) if landmarks is None else read_landmarks3d(landmarks, mesh.vertices)
    return head_from_obj(mesh, detect_landmarks(mesh) if points is None else points)


def read_landmarks3d(source: Any, vertices: NDArray) -> NDArray:
    """(68, 3) landmarks of a head, of points or vertex numbers.

    Args:
        source: (68, 3) points in the head's coordinates, (68,) vertex numbers from 0, or a file of either: .npy, or
            text with one point or number a line (.csv, .txt).
        vertices: (V, 3) of the head.

    Raises:
        InputError: neither of both, or a vertex that is not there.
    """
    name, values = "landmarks", source
    expected = "expected 68 points x y z in the head's coordinates, or 68 vertex numbers from 0"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = path.name
        try:
            if path.suffix.lower() == ".npy":
                values = read_array(path, 1 << 20)
            else:
                text = read_bounded(path, 1 << 20).decode("utf8")
                rows = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
                values = [[float(x) for x in row] for row in rows if row]
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: landmarks cannot be read ({reason}); {expected}.") from None
    try:
        table = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {expected}; got rows of different lengths.") from None
    if table.size == 68 and table.ndim <= 2:
        index = table.ravel()
        if (index != np.floor(index)).any() or index.min() < 0 or index.max() >= len(vertices):
            raise InputError(f"{name}: {expected}; the head has {len(vertices)} vertices.")
        return vertices[index.astype(np.int64)]
    if table.shape != (68, 3) or not np.isfinite(table).all():
        raise InputError(f"{name}: {expected}; got {table.shape}.")
    return table


def detect_landmarks(mesh: ObjMesh, size: int = 640) -> NDArray:
    """68 landmarks of a head of any topology, found on a rendering of its bare shape from the front.

    Args:
        mesh: upright (y up), looking at +z, with or without a neck.
        size: of the rendering in pixels.

    Returns:
        (68, 3) points of the surface, in the mesh's coordinates.

    Raises:
        NoFaceError: no face is found.
    """
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    unit = 2.6 / max(high[:2] - low[:2])  # world units of a head
    placed = torch.from_numpy((mesh.vertices - (low + high) / 2) * unit).float()[None]
    faces = torch.from_numpy(mesh.faces)
    camera = Camera.deep3d(size)
    camera = camera.replace(focal=camera.focal * 0.8)
    clip = clip_coordinates(camera, placed)
    found = fragments(clip, faces, (size, size))
    normals = F.normalize(interpolate(found, vertex_normals(placed, faces), faces), dim=-1)
    light = F.normalize(torch.tensor([-0.3, 0.45, 1.0]), dim=0)
    shading = 0.35 + 0.65 * (normals @ light).clamp(min=0)
    mask = (found.face_index >= 0)[:, None].float()
    skin = torch.tensor(CLAY)[None, :, None, None]
    picture = (skin * shading[:, None] * mask + 0.92 * (1 - mask)).clamp(0, 1)
    try:
        seen = observe(picture[0])
    except InputError:
        raise NoFaceError(
            f"{mesh.path.name}: no face found on a rendering of it from the front; it should be upright (y up) and "
            "look at +z. Turn it, or give landmarks=: 68 points or vertex numbers."
        ) from None
    pixels = map_points(seen.fit.to_photo, seen.landmarks68)[0].double().numpy()
    index, depth = found.face_index[0].numpy(), found.depth[0].numpy()
    rows, columns = np.nonzero(index >= 0)
    tree = cKDTree(np.column_stack([columns, rows]) + 0.5)
    reach = 0.06 * np.linalg.norm(pixels[45] - pixels[36])
    picked = []
    for pixel in pixels:  # the nearest place that does not lie deep behind what is around it, as in a gap of the lips
        around = np.array(tree.query_ball_point(pixel, reach) or [tree.query(pixel)[1]])
        near = depth[rows[around], columns[around]]
        around = around[near < near.min() + DEEP]
        picked.append(around[((tree.data[around] - pixel) ** 2).sum(1).argmin()])
    rows, columns = rows[picked], columns[picked]
    weights = found.barycentric[0].numpy()[rows, columns].astype(np.float64)
    return np.einsum("nkc,nk->nc", mesh.vertices[mesh.faces[index[rows, columns]]], weights)


def _rank(model: MorphableModel) -> tuple:
    """Of two heads the one that is bent onto the other has the smaller rank."""
    place = _ORDER.index(model.name) if model.name in _ORDER else len(_ORDER)
    return place, model.name, model.num_vertices


def _bent(first: MorphableModel, second: MorphableModel) -> NDArray:
    """(V, 3) the first head bent onto the second.

    Between two heads that are not makehuman's, over that one, whose skin fits ears and lids of either: each vertex
    keeps its offset from the makehuman skin bent onto the first, while that skin moves on to the second.
    """

    def registered(one: MorphableModel, other: MorphableModel) -> NDArray:
        key = digest(one, other, f"bent {_VERSION}")
        table = _kept("transfer_bent", key, lambda: {"bent": register(one, other)}, ("bent",))
        return table["bent"].numpy()

    if first.name == _ORDER[0]:
        return registered(first, second)
    between = load_face_model(_ORDER[0], num_identity=0)
    here, there = registered(between, first), registered(between, second)
    mean = _mean(first)
    surface, rows = skin_surface(between, here)
    face, weights, _, _ = surface.locate(mean, _unit(_normals(mean, first.topology.faces)))
    corners = between.topology.faces.cpu().numpy()[rows[face]]
    partner, moved = (np.einsum("nkc,nk->nc", shape[corners], weights) for shape in (here, there))
    transform = similarity_transform(torch.from_numpy(here)[None], torch.from_numpy(there)[None])
    offset = apply_similarity(transform, torch.from_numpy(mean)[None]) - apply_similarity(
        transform, torch.from_numpy(partner)[None]
    )
    return moved + offset[0].numpy()


@in_own_modes
def link(source: Any, target: Any, landmarks: Any = None) -> Link:
    """The dense correspondence of two heads, computed once (seconds), then cached.

    Args:
        source, target: names of head models, models, or paths of OBJ files, as :func:`load_head` takes them.
        landmarks: of the OBJ file, where one of both is one and its topology is not known.

    Raises:
        ConfigError, InputError, NoFaceError, AssetError: as :func:`load_head`.
    """
    files = [head for head in (source, target) if not isinstance(head, MorphableModel) and str(head) not in FACE_MODELS]
    if landmarks is not None and len(files) != 1:
        raise ConfigError(f"landmarks belong to one OBJ file; got {len(files)} among source and target.")
    here, there = (load_head(head, landmarks if head in files else None) for head in (source, target))
    first, second = (here, there) if _rank(here) <= _rank(there) else (there, here)
    other = _mean(second)
    same = first.topology.faces.shape == second.topology.faces.shape and bool(
        (first.topology.faces.cpu() == second.topology.faces.cpu()).all()
    )
    bent = other if same else _bent(first, second)  # one topology: vertex by vertex
    return Link(here, there, bent, other) if first is here else Link(here, there, other, bent)


def texture(image: Tensor, source: Any, target: Any, size: int | None = None, landmarks: Any = None) -> Moved:
    """Move a UV map to another head's atlas: :func:`link`, then :meth:`Link.texture`.

    Args:
        image: (B, C, s, s) in [0, 1].
        source, target, landmarks: as of :func:`link`.
        size: of the result; s if left out.
    """
    return link(source, target, landmarks).texture(image, size)


def landmarks(source: Any, target: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The source's 68 landmarks on the target: :meth:`Link.landmarks`."""
    return link(source, target).landmarks()


def regions(source: Any, target: Any) -> dict[str, Tensor]:
    """The source's regions on the target: :meth:`Link.regions`."""
    return link(source, target).regions()
