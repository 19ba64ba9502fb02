"""Registration of two head models: what one carries can then be put on the other.

The skin of a source head is registered with the skin of a target head: a similarity of the landmarks, a smooth warp
through them, then non-rigid iterative closest points with an elastic skin (Amberg et al., CVPR 2007, with displacements
in place of affine maps). Whatever lies on the source (landmarks, face-mesh points, regions, texture) then lies on the
target where the registered source touches it.

Both heads are mean shapes, so this is done once for a pair of models, and kept in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import factorized
from torch import Tensor

from facerecon import assets
from facerecon.errors import ShapeError
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.geometry.mesh import edges, vertex_normals
from facerecon.geometry.surface import Surface
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole

__all__ = [
    "cached_table",
    "carry_points",
    "edge_stiffness",
    "mean_shape",
    "nonrigid_icp",
    "normals_of",
    "on_rim",
    "pair_digest",
    "registered",
    "skin_faces",
    "skin_surface",
    "solved",
    "unit",
]

SOURCE = "makehuman"
"""The head with the most regions, whose skin fits ears and lids of the others."""

STIFFNESS = (30.0, 15.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.5)
"""Weight of neighbors that move apart, step by step, relative to a vertex away from the target's surface."""

REACH = 0.3
"""World units (0.1 m): a nearest point farther away than this is no partner."""

CARRIED_REGIONS = ("lips", "lids", "nose", "mouth_area", "forehead", "cheek", "brows", "ears", "scalp", "neck")
"""Regions that a model without them takes over."""

MESH_POINT_REACH = 0.05
"""World units: a face-mesh point whose partner is farther away is left out."""

_LANDMARK_WEIGHTS = np.concatenate([np.full(17, 0.3), np.full(10, 1.0), np.full(9, 10.0), np.full(32, 30.0)])
"""Contour and brows lie at slightly different places in each model; noses, lids and lips do not."""


_VERSION = 3


def mean_shape(model: MorphableModel) -> NDArray:
    """(V, 3) float64."""
    return model.mean.detach().cpu().double().numpy()


def skin_faces(model: MorphableModel) -> NDArray:
    """(F,) bool, faces of the region "skin"; all faces of a model without it."""
    skin = model.topology.regions.get("skin")
    return np.ones(len(model.topology.faces), dtype=bool) if skin is None else skin.cpu().numpy()


def normals_of(vertices: NDArray, faces: NDArray | Tensor) -> NDArray:
    """(V, 3) vertex normals of (V, 3) vertices."""
    return vertex_normals(torch.from_numpy(vertices)[None], torch.as_tensor(faces).cpu())[0].numpy()


def unit(vectors: NDArray) -> NDArray:
    """(N, 3) of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def solved(system: csc_array, right: NDArray) -> NDArray:
    """(N, C) solutions of a sparse system (N, N) for right sides (N, C)."""
    solve = factorized(system)
    return np.stack([solve(np.ascontiguousarray(column)) for column in right.T], 1)


def _landmarks(model: MorphableModel) -> NDArray:
    return model.landmarks3d(model.mean[None])[0].detach().cpu().double().numpy()


def _skin(model: MorphableModel) -> NDArray:
    return model.topology.faces.cpu().numpy()[skin_faces(model)]


def on_rim(faces: NDArray, count: int) -> NDArray:
    """(V,) bool, of ``count`` vertices those on edges that only one of (F, 3) faces has."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    unique, uses = np.unique(pairs, axis=0, return_counts=True)
    on = np.zeros(count, dtype=bool)
    on[unique[uses == 1].ravel()] = True
    return on


def edge_stiffness(faces: NDArray, count: int) -> csc_array:
    """(V, V) K of a mesh with ``count`` vertices: ``d @ K @ d`` is the sum of squared differences along its edges."""
    pairs = edges(torch.from_numpy(faces)).numpy()
    rows = np.repeat(np.arange(len(pairs)), 2)
    difference = coo_array((np.tile([1.0, -1.0], len(pairs)), (rows, pairs.ravel())), shape=(len(pairs), count)).tocsc()
    return (difference.T @ difference).tocsc()


def _ear_points(model: MorphableModel) -> NDArray:
    """Middle, top, bottom, back and outermost point of either ear, (10, 3), or (0, 3): landmarks end at the jaw, and
    ears differ too much in size and place for nearest points to find their partner."""
    if "ears" not in model.topology.regions:
        return np.zeros((0, 3))
    mean, faces = mean_shape(model), model.topology.faces.cpu().numpy()
    vertices = mean[np.unique(faces[model.topology.regions["ears"].cpu().numpy()])]
    points = []
    for side in (-1, 1):
        ear = vertices[vertices[:, 0] * side > 0]
        if not len(ear):
            return np.zeros((0, 3))
        outer = ear[ear[:, 0] * side > np.median(ear[:, 0] * side)]  # the auricle, without the skin around it
        points.append(outer.mean(0))
        for along in (outer[:, 1], -outer[:, 1], -outer[:, 2], outer[:, 0] * side):
            points.append(outer[along >= np.quantile(along, 0.98)].mean(0))
    return np.array(points)


def skin_surface(model: MorphableModel, vertices: NDArray | None = None) -> tuple[Surface, NDArray]:
    """The skin of a model as a searchable surface, and the model's face row of each of the surface's.

    Args:
        model: its "skin" region, or all faces where it has none.
        vertices: (V, 3), the mean shape if left out.
    """
    rows = skin_faces(model).nonzero()[0]
    faces = model.topology.faces.cpu().numpy()[rows]
    return Surface(mean_shape(model) if vertices is None else vertices, faces), rows


def nonrigid_icp(
    source: MorphableModel, target: MorphableModel, landmark_weights: NDArray = _LANDMARK_WEIGHTS
) -> NDArray:
    """The source's mean head registered with the target's (Amberg et al., CVPR 2007): (V, 3) in the target's frame.

    Eyes and mouth follow the similarity and the warp through the landmarks only.

    Args:
        source, target: head models with 68 landmarks and a region "skin".
        landmark_weights: (68,), how far each of the source's landmarks is held at the target's, relative to a vertex on
            its surface; those of 0 do not guide the warp either.

    Raises:
        ShapeError: a model without faces of the skin.
    """
    start, source_points, faces = mean_shape(source), _landmarks(source), _skin(source)
    goal, target_points, target_faces = mean_shape(target), _landmarks(target), _skin(target)
    if not len(faces) or not len(target_faces):
        raise ShapeError("both head models need faces in their region 'skin'; got none.")
    weights = torch.from_numpy(landmark_weights)
    one, other = torch.from_numpy(source_points)[None], torch.from_numpy(target_points)[None]
    transform = similarity_transform(one, other, weights)
    result = apply_similarity(transform, torch.from_numpy(start)[None])[0].numpy()
    ears, target_ears = _ear_points(source), _ear_points(target)
    guides, goals = source_points[landmark_weights > 0], target_points[landmark_weights > 0]
    if len(ears) == len(target_ears) > 0:
        guides, goals = np.concatenate([guides, ears]), np.concatenate([goals, target_ears])
    guides = apply_similarity(transform, torch.from_numpy(guides)[None])[0].numpy()
    from scipy.interpolate import RBFInterpolator  # half a second

    warp = RBFInterpolator(guides, goals - guides, kernel="linear", degree=0, smoothing=0.01)
    result = result + warp(result)

    used = np.unique(faces)
    local = np.full(len(start), -1)
    local[used] = np.arange(len(used))
    moved, skin = result[used], local[faces]
    stiffness = edge_stiffness(skin, len(used))
    topology = source.topology
    corners = local[topology.faces[topology.landmark_faces[:, 0]].cpu().numpy()]
    shares = topology.landmark_barycentric[:, 0].cpu().double().numpy()
    keep = (corners >= 0).all(1)
    attach = coo_array(
        (shares[keep].ravel(), (np.repeat(np.arange(keep.sum()), 3), corners[keep].ravel())),
        shape=(keep.sum(), len(used)),
    ).tocsc()
    held = diags_array(landmark_weights[keep])
    pull = (attach.T @ held @ attach).tocsc()

    surface = Surface(goal, target_faces)
    rim = on_rim(target_faces, len(goal))
    for amount in STIFFNESS:
        face, barycentric, distance, fits = surface.locate(moved, normals_of(moved, skin), 0.5, candidates=12)
        place = np.einsum("nkc,nk->nc", surface.corners[face], barycentric)
        past_rim = ((barycentric > 1e-6) <= rim[target_faces[face]]).all(1)
        trust = np.where(fits & ~past_rim, np.clip(2 - 2 * distance / REACH, 0, 1), 0.0)
        system = (amount * stiffness + diags_array(trust + 1e-6) + pull).tocsc()
        right = trust[:, None] * (place - moved) + attach.T @ (held @ (target_points[keep] - attach @ moved))
        moved = moved + solved(system, right)
    result[used] = moved
    return result


def carry_points(source: MorphableModel, target: MorphableModel, shape: NDArray) -> MorphableModel:
    """The target with what a fit needs and it lacks: a sliding jaw contour, face-mesh points, regions.

    The target's own 68 landmarks stay; the source's candidates of the jaw contour join them, so that the contour can
    slide over the cheek as the head turns. Regions that the target has stay as they are.

    Args:
        source, target: head models.
        shape: (V, 3) the source registered with the target, of :func:`registered`.
    """
    here, there = source.topology, target.topology
    surface, rows = skin_surface(target)
    normals = normals_of(shape, here.faces)

    def carried(faces: torch.Tensor, weights: torch.Tensor) -> tuple[NDArray, NDArray, NDArray]:
        corners, shares = here.faces[faces].cpu().numpy(), weights.cpu().double().numpy()[..., None]
        normal = unit((normals[corners] * shares).sum(1))
        face, barycentric, distance, fits = surface.locate((shape[corners] * shares).sum(1), normal)
        return rows[face], barycentric, np.where(fits, distance, np.inf)

    device, dtype = there.faces.device, there.landmark_barycentric.dtype

    def places(face: NDArray, barycentric: NDArray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(face).to(device), torch.from_numpy(barycentric).to(device, dtype)

    landmark_faces, landmark_weights = there.landmark_faces, there.landmark_barycentric
    if landmark_faces.shape[1] == 1:
        count = here.landmark_faces.shape[1]
        face, barycentric, _ = carried(here.landmark_faces[:17].flatten(), here.landmark_barycentric[:17].flatten(0, 1))
        face, barycentric = places(face, barycentric)
        landmark_faces = landmark_faces.repeat(1, count + 1)
        landmark_weights = landmark_weights.repeat(1, count + 1, 1)
        landmark_faces[:17, 1:] = face.view(17, count)
        landmark_weights[:17, 1:] = barycentric.view(17, count, 3)

    mesh = (there.mesh_points, there.mesh_point_faces, there.mesh_point_barycentric)
    if not len(there.mesh_points):
        face, barycentric, distance = carried(here.mesh_point_faces, here.mesh_point_barycentric)
        near = distance < MESH_POINT_REACH
        mesh = (here.mesh_points[torch.from_numpy(near)].to(device), *places(face[near], barycentric[near]))

    regions = dict(there.regions)
    missing = [name for name in CARRIED_REGIONS if name in here.regions and name not in regions]
    if missing:
        back, back_rows = skin_surface(source, shape)
        face, _, _, _ = back.locate(surface.centers, surface.normals)
        for name in missing:
            region = torch.zeros(len(there.faces), dtype=torch.bool)
            region[torch.from_numpy(rows)] = here.regions[name].cpu()[torch.from_numpy(back_rows[face])]
            regions[name] = region.to(device)
    return target.with_topology(
        there.replace(
            landmark_faces=landmark_faces,
            landmark_barycentric=landmark_weights,
            mesh_points=mesh[0],
            mesh_point_faces=mesh[1],
            mesh_point_barycentric=mesh[2],
            regions=regions,
        )
    )


# -- kept in the cache --------------------------------------------------------------------------------------


def pair_digest(source: MorphableModel, target: MorphableModel, settings: str) -> str:
    """Digest of two heads and settings: everything that a correspondence depends on."""
    state = hashlib.sha256(settings.encode())
    for model in (source, target):
        topology = model.topology
        tensors = (model.mean, topology.faces, topology.uvs, topology.uv_faces, topology.landmark_faces)
        for tensor in (*tensors, topology.landmark_barycentric, *topology.regions.values()):
            state.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return state.hexdigest()[:16]


def cached_table(
    name: str, key: str, make: Callable[[], dict[str, NDArray]], keys: tuple[str, ...]
) -> dict[str, Tensor]:
    """A table of the cache, made where it is not there or damaged."""

    def write(path: Path) -> None:
        write_whole(path, safetensors_bytes({key: torch.from_numpy(array) for key, array in make().items()}))

    path = assets.derived(name, key, write)
    tensors = read_safetensors(path, "a table of correspondences", "delete it, it is made again", keys)[0]
    return {key: tensor.clone() for key, tensor in tensors.items()}  # free of the mapped file


def registered(first: MorphableModel, second: MorphableModel) -> NDArray:
    """(V, 3) the first mean head registered with the second, computed once (seconds), then cached.

    Between two heads that are not makehuman's, over that one, whose skin fits ears and lids of either: each vertex
    keeps its offset from the makehuman skin registered with the first, while that skin moves on to the second.
    """

    def cached(one: MorphableModel, other: MorphableModel) -> NDArray:
        key = pair_digest(one, other, f"registered {_VERSION}")
        return cached_table("registered", key, lambda: {"shape": nonrigid_icp(one, other)}, ("shape",))["shape"].numpy()

    if first.topology.name == SOURCE:
        return cached(first, second)
    between = load_face_model(SOURCE, num_identity=0)
    here, there = cached(between, first), cached(between, second)
    mean = mean_shape(first)
    surface, rows = skin_surface(between, here)
    face, weights, _, _ = surface.locate(mean, unit(normals_of(mean, first.topology.faces)))
    corners = between.topology.faces.cpu().numpy()[rows[face]]
    partner, moved = (np.einsum("nkc,nk->nc", shape[corners], weights) for shape in (here, there))
    transform = similarity_transform(torch.from_numpy(here)[None], torch.from_numpy(there)[None])
    goal, start = (apply_similarity(transform, torch.from_numpy(points)[None])[0] for points in (mean, partner))
    return moved + (goal - start).numpy()
