"""Dense correspondence between two head models: what one carries can then be put on the other.

The skin of a source head is bent onto the skin of a target head: a similarity of the landmarks, a smooth warp through
them, then non-rigid iterative closest points with an elastic skin (Amberg et al., CVPR 2007, with displacements in
place of affine maps). Whatever lies on the source (landmarks, face-mesh points, regions, texture) then lies on the
target where the bent source touches it.

Both heads are mean shapes, so this is done once for a pair of models.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import factorized

from facerecon.errors import ShapeError
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.geometry.mesh import edges, vertex_normals
from facerecon.geometry.surface import Surface
from facerecon.morphable.model import MorphableModel
from facerecon.types import MeshTopology

__all__ = ["carry_points", "register", "skin_surface"]

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


def _numpy(model: MorphableModel) -> tuple[NDArray, NDArray, NDArray]:
    """Mean vertices (V, 3) and landmarks (68, 3) in float64, faces of the skin (F, 3)."""
    topology = model.topology
    skin = topology.regions.get("skin", torch.ones(len(topology.faces), dtype=torch.bool))
    mean = model.mean.detach().cpu().double()
    points = model.landmarks3d(model.mean[None])[0].detach().cpu().double()
    return mean.numpy(), points.numpy(), topology.faces[skin].cpu().numpy()


def _normals(vertices: NDArray, faces: NDArray) -> NDArray:
    return vertex_normals(torch.from_numpy(vertices)[None], torch.from_numpy(faces))[0].numpy()


def _rim(faces: NDArray) -> NDArray:
    """Vertices of edges that only one face has."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    unique, count = np.unique(pairs, axis=0, return_counts=True)
    return np.unique(unique[count == 1])


def _ear_points(model: MorphableModel) -> NDArray:
    """Middle, top, bottom, back and outermost point of the ear at x < 0 and of that at x > 0, (10, 3); (0, 3) where the
    model does not tell its ears.

    Landmarks end at the jaw, and ears differ too much in size and place for nearest points to find their partner.
    """
    if "ears" not in model.topology.regions:
        return np.zeros((0, 3))
    mean, faces = model.mean.detach().cpu().double().numpy(), model.topology.faces.cpu().numpy()
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
    """The skin of a model as a searchable surface.

    Args:
        model: its "skin" region, or all faces where it has none.
        vertices: (V, 3), the mean shape if left out.

    Returns:
        The surface, and the model's face row of each of the surface's.
    """
    mean, _, faces = _numpy(model)
    skin = model.topology.regions.get("skin")
    rows = np.arange(len(faces)) if skin is None else skin.nonzero()[:, 0].cpu().numpy()
    return Surface(mean if vertices is None else vertices, faces), rows


def register(source: MorphableModel, target: MorphableModel) -> NDArray:
    """The source's mean head bent onto the target's mean head.

    Args:
        source, target: head models with 68 landmarks and a region "skin".

    Returns:
        (V, 3) float64, the source's vertices in the target's frame. Eyes and mouth follow the similarity and the
        warp through the landmarks only.

    Raises:
        ShapeError: a model without faces of the skin.
    """
    start, source_points, faces = _numpy(source)
    goal, target_points, target_faces = _numpy(target)
    if not len(faces) or not len(target_faces):
        raise ShapeError("both head models need faces in their region 'skin'; got none.")
    weights = torch.from_numpy(_LANDMARK_WEIGHTS)
    one, other = torch.from_numpy(source_points)[None], torch.from_numpy(target_points)[None]
    transform = similarity_transform(one, other, weights)
    bent = apply_similarity(transform, torch.from_numpy(start)[None])[0].numpy()
    ears, target_ears = _ear_points(source), _ear_points(target)
    if len(ears) == len(target_ears) > 0:
        guides, goals = np.concatenate([source_points, ears]), np.concatenate([target_points, target_ears])
    else:
        guides, goals = source_points, target_points
    guides = apply_similarity(transform, torch.from_numpy(guides)[None])[0].numpy()
    warp = RBFInterpolator(guides, goals - guides, kernel="linear", degree=0, smoothing=0.01)
    bent = bent + warp(bent)

    used = np.unique(faces)
    local = np.full(len(start), -1)
    local[used] = np.arange(len(used))
    moved, skin = bent[used], local[faces]
    pairs = edges(torch.from_numpy(skin)).numpy()
    rows = np.repeat(np.arange(len(pairs)), 2)
    difference = coo_array((np.tile([1.0, -1.0], len(pairs)), (rows, pairs.ravel())), shape=(len(pairs), len(used)))
    stiffness = (difference.T @ difference).tocsc()
    corners, shares = _landmark_places(source, local)
    keep = (corners >= 0).all(1)
    attach = coo_array(
        (shares[keep].ravel(), (np.repeat(np.arange(keep.sum()), 3), corners[keep].ravel())),
        shape=(keep.sum(), len(used)),
    ).tocsc()
    held = diags_array(_LANDMARK_WEIGHTS[keep])
    pull = (attach.T @ held @ attach).tocsc()

    surface = Surface(goal, target_faces)
    on_rim = np.zeros(len(goal), dtype=bool)
    on_rim[_rim(target_faces)] = True
    for amount in STIFFNESS:
        face, barycentric, distance, fits = surface.locate(moved, _normals(moved, skin), 0.5, candidates=12)
        place = np.einsum("nkc,nk->nc", surface.corners[face], barycentric)
        past_rim = ((barycentric > 1e-6) <= on_rim[target_faces[face]]).all(1)
        trust = np.where(fits & ~past_rim, np.clip(2 - 2 * distance / REACH, 0, 1), 0.0)
        system = (amount * stiffness + diags_array(trust + 1e-6) + pull).tocsc()
        solve = factorized(system)
        right = trust[:, None] * (place - moved) + attach.T @ (held @ (target_points[keep] - attach @ moved))
        moved = moved + np.stack([solve(np.ascontiguousarray(column)) for column in right.T], 1)
    bent[used] = moved
    return bent


def _landmark_places(model: MorphableModel, local: NDArray) -> tuple[NDArray, NDArray]:
    """Corner vertices (68, 3), renumbered by ``local``, and weights (68, 3) of the landmarks."""
    topology = model.topology
    corners = topology.faces[topology.landmark_faces[:, 0]].cpu().numpy()
    return local[corners], topology.landmark_barycentric[:, 0].cpu().double().numpy()


def carry_points(source: MorphableModel, target: MorphableModel, bent: NDArray) -> MorphableModel:
    """The target with what a fit needs and it lacks: a sliding jaw contour, face-mesh points, regions.

    The target's own 68 landmarks stay; the source's candidates of the jaw contour join them, so that the contour can
    slide over the cheek as the head turns. Regions that the target has stay as they are.

    Args:
        source, target: head models.
        bent: of :func:`register`.

    Returns:
        A model with the target's shape and another topology record.
    """
    here, there = source.topology, target.topology
    surface, rows = skin_surface(target)
    normals = _normals(bent, here.faces.cpu().numpy())

    def carried(faces: torch.Tensor, weights: torch.Tensor) -> tuple[NDArray, NDArray, NDArray]:
        corners, shares = here.faces[faces].cpu().numpy(), weights.cpu().double().numpy()[..., None]
        normal = (normals[corners] * shares).sum(1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        face, barycentric, distance, fits = surface.locate((bent[corners] * shares).sum(1), normal)
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
        back, back_rows = skin_surface(source, bent)
        face, _, _, _ = back.locate(surface.centers, surface.normals)
        for name in missing:
            region = torch.zeros(len(there.faces), dtype=torch.bool)
            region[torch.from_numpy(rows)] = here.regions[name].cpu()[torch.from_numpy(back_rows[face])]
            regions[name] = region.to(device)
    return target.with_topology(
        MeshTopology(
            faces=there.faces,
            uvs=there.uvs,
            uv_faces=there.uv_faces,
            landmark_faces=landmark_faces,
            landmark_barycentric=landmark_weights,
            mesh_points=mesh[0],
            mesh_point_faces=mesh[1],
            mesh_point_barycentric=mesh[2],
            mirror=there.mirror,
            regions=regions,
            name=there.name,
        )
    )
