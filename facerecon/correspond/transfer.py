"""Textures, landmarks, regions and per-vertex values moved from one head's topology to another's.

    import facerecon as fr
    from facerecon.correspond import transfer

    moved = transfer.texture(fr.read_image("uv.png")[None], "makehuman", "ict", size=1024)
    moved.texture, moved.known                      # the map in ICT's atlas; where it comes from the source
    link = transfer.link("makehuman", "head.obj")
    link.landmarks(), link.regions(), link.vertex_values(values)

Two heads are linked by one registration of their mean shapes (:mod:`facerecon.correspond.registration`), which serves
both directions, so that there and back is the way it came. Where a texel's color lies in the source's map is told by
:mod:`facerecon.correspond.texels`. An eyeball whose source has sockets only is drawn (:mod:`facerecon.morphable.eyes`).
What has no counterpart (shoulders, the inside of the mouth, sockets) is filled, and is 0 in ``known``: skin goes on
smoothly (a harmonic function on the mesh); teeth, tongue and the inside of the mouth take the mean color of the
source's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array, diags_array
from torch import Tensor

from facerecon.correspond.obj import read_head
from facerecon.correspond.registration import mean_shape, normals_of, registered, skin_faces, skin_surface, solved, unit
from facerecon.correspond.texels import FAR, TexelTable, eyes_of, region_faces, skin_places, skin_texels, texel_table
from facerecon.errors import ConfigError, ShapeError, check_shape
from facerecon.geometry.mesh import edges
from facerecon.modes import in_own_modes
from facerecon.morphable import FACE_MODELS, MorphableModel
from facerecon.morphable.eyes import IRISES, eye_color
from facerecon.render.uv import pad_islands, sample_grid, sampling_grid, uv_raster

__all__ = ["Link", "Moved", "landmarks", "link", "regions", "skin_texels", "texture"]

TOO_FAR = 0.5
"""World units (0.1 m) from the source's skin beyond which a texel takes the fill alone."""

TAPS = 4
"""At most so many samples a side of a texel, where the source's map is finer than the target's."""

_ORDER = ("makehuman", "ict", "gnm", "hifi3dpp")
"""Of a pair, the head that is registered with the other: the one with more regions and eyeballs comes first."""


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
        source_shape, target_shape: (V, 3) float64, the vertices of both registered with each other.
    """

    def __init__(
        self, source: MorphableModel, target: MorphableModel, source_shape: NDArray, target_shape: NDArray
    ) -> None:
        self.source, self.target = source, target
        self.source_shape, self.target_shape = source_shape, target_shape
        self._places: dict[int, TexelTable] = {}

    @property
    def back(self) -> Link:
        """From target to source, over the same correspondence."""
        return Link(self.target, self.source, self.target_shape, self.source_shape)

    # -- textures ------------------------------------------------------------------------------------------

    def places(self, size: int) -> TexelTable:
        """Where each texel of the target's S x S map lies in the source's atlas."""
        if size not in self._places:
            table = texel_table(self.source, self.target, self.source_shape, self.target_shape, size, TOO_FAR)
            self._places[size] = replace(table, share=(255 * table.share).round() / 255)
        return self._places[size]

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
        normals = unit(normals_of(self.target_shape, target.topology.faces))
        uv, distance, fits = skin_places(self.source, self.source_shape, self.target_shape, normals)
        faces = target.topology.faces.cpu().numpy()
        skin = np.zeros(len(self.target_shape), dtype=bool)
        skin[faces[skin_faces(target)]] = True
        known = skin & fits & (distance < FAR)
        coarse = F.avg_pool2d(padded, max(1, padded.shape[-1] // 128))
        colors = sample_grid(coarse.flatten(0, 1)[None], sampling_grid(torch.from_numpy(uv).float().to(padded)))
        smooth = harmonic(colors.cpu().double().numpy(), known, faces)  # (V, BC)
        means = _part_means(padded, self.source)
        for part in ("mouth", "tongue", "teeth", "eyes"):
            rows = np.unique(faces[region_faces(target, part)])
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
        if any(eye.bulges for eye in eyes_of(self.source)):
            return
        mean, faces = mean_shape(self.target), self.target.topology.faces.cpu().numpy()
        for eye in eyes_of(self.target):
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
            registered shapes; inf where nothing of the target looks the same way.
        """
        count = check_shape("faces", faces, "N")["N"]
        check_shape("barycentric", barycentric, f"{count} 3")
        corners = self.source.topology.faces.cpu()[faces.cpu()].numpy()
        shares = barycentric.detach().cpu().double().numpy()[..., None]
        normals = unit((normals_of(self.source_shape, self.source.topology.faces)[corners] * shares).sum(1))
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
                flags |= region_faces(target, "eyes")
            taken[name] = torch.from_numpy(flags)
        for name in ("skin", "eyes", "sockets", "mouth", "teeth", "tongue"):
            if name in topology.regions:
                taken[name] = topology.regions[name].cpu()
        return taken

    def vertex_values(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values (V, C) or (V,) of the source's skin (weights, colors, displacements) on the target's vertices.

        Returns:
            (V', C) or (V',) on the target; harmonic where there is no counterpart (0 on pieces of the mesh that have
            none), and (V',) bool, which vertices have one.
        """
        if values.ndim not in (1, 2) or len(values) != self.source.num_vertices:
            raise ShapeError(f"values must be ({self.source.num_vertices}, C); got {tuple(values.shape)}.")
        table = values.detach().cpu().double().numpy().reshape(len(values), -1)
        surface, rows = skin_surface(self.source, self.source_shape)
        faces = self.target.topology.faces.cpu().numpy()
        normals = unit(normals_of(self.target_shape, self.target.topology.faces))
        found, weights, distance, fits = surface.locate(self.target_shape, normals)
        taken = np.einsum("nkc,nk->nc", table[self.source.topology.faces.cpu().numpy()[rows[found]]], weights)
        skin = np.zeros(len(self.target_shape), dtype=bool)
        skin[faces[skin_faces(self.target)]] = True
        known = skin & fits & (distance < FAR)
        out = torch.from_numpy(harmonic(taken, known, faces)).to(values)
        return out.reshape(len(out), *values.shape[1:]), torch.from_numpy(known)


def _part_means(padded: Tensor, model: MorphableModel) -> dict[str, Tensor]:
    """(B, C) mean colors of the source's mouth, tongue, teeth and eyes: what their like on a target are filled with."""
    index = uv_raster(model.topology, padded.shape[-1]).face_index[0].cpu()
    parts = {}
    for part in ("mouth", "tongue", "teeth", "eyes"):
        flags = region_faces(model, part)
        if part == "mouth":
            flags &= ~region_faces(model, "teeth", "tongue")
        texels = torch.from_numpy(np.append(flags, False))[index].to(padded.device)
        if part == "teeth" and texels.any():  # the part of their maps that shows, not the shade behind
            brightness = padded[0].mean(0)
            texels &= brightness >= brightness[texels].median()
        if texels.any():
            parts[part] = padded[:, :, texels].mean(-1)
    for part in ("tongue", "teeth") if "mouth" in parts else ():
        parts.setdefault(part, parts["mouth"])
    return parts


def _sampled(padded: Tensor, places: TexelTable, size: int) -> Tensor:
    """(B, C, P) colors at the places, filtered to the target's texels by the step of the places from one to the next,
    which is taken within islands only, never across a seam of either atlas."""
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
            total = total + sample_grid(maps, sampling_grid(uv.clamp(0, 1)).to(padded), "bicubic").T
    return (total / taps**2).clamp(padded.min(), padded.max()).unflatten(0, padded.shape[:2])


def harmonic(values: NDArray, known: NDArray, faces: NDArray) -> NDArray:
    """Values on a mesh that are given at some vertices and as smooth as can be (harmonic) at the others.

    Every other vertex becomes the mean of its neighbors; 0 on pieces of the mesh without a known vertex.

    Args:
        values: (V, C).
        known: (V,) bool, where they are given.
        faces: (F, 3).
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
    out[free] = solved(system, adjacency[free] @ out)
    return out


# -- making links ------------------------------------------------------------------------------------------


def _rank(model: MorphableModel) -> tuple:
    """Of two heads the one that is registered with the other has the smaller rank."""
    place = _ORDER.index(model.topology.name) if model.topology.name in _ORDER else len(_ORDER)
    return place, model.name, model.num_vertices


@in_own_modes
def link(source: Any, target: Any, landmarks: Any = None) -> Link:
    """The dense correspondence of two heads, computed once (seconds), then cached.

    Args:
        source: name of a head model, a model, or the path of an OBJ file, as of
            :func:`~facerecon.correspond.obj.read_head`.
        target: another one.
        landmarks: of the OBJ file, where one of both is one and its topology is not known.

    Raises:
        ConfigError, InputError, NoFaceError, AssetError: as :func:`~facerecon.correspond.obj.read_head`.
    """
    files = [head for head in (source, target) if not isinstance(head, MorphableModel) and str(head) not in FACE_MODELS]
    if landmarks is not None and len(files) != 1:
        raise ConfigError(f"landmarks belong to one OBJ file; got {len(files)} among source and target.")
    here, there = (read_head(head, landmarks if head in files else None) for head in (source, target))
    first, second = (here, there) if _rank(here) <= _rank(there) else (there, here)
    other = mean_shape(second)
    same = torch.equal(first.topology.faces.cpu(), second.topology.faces.cpu())
    shape = other if same else registered(first, second)  # one topology: vertex by vertex
    return Link(here, there, shape, other) if first is here else Link(here, there, other, shape)


def texture(image: Tensor, source: Any, target: Any, size: int | None = None, landmarks: Any = None) -> Moved:
    """Move a UV map to another head's atlas: :func:`link`, then :meth:`Link.texture`."""
    return link(source, target, landmarks).texture(image, size)


def landmarks(source: Any, target: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The source's 68 landmarks on the target: :meth:`Link.landmarks`."""
    return link(source, target).landmarks()


def regions(source: Any, target: Any) -> dict[str, Tensor]:
    """The source's regions on the target: :meth:`Link.regions`."""
    return link(source, target).regions()
