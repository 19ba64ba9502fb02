"""Heads to export: a synthetic sphere that always exists; makehuman and the HiFi3D++ sample where they are at hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facerecon.correspond.gnm import convert
from facerecon.correspond.obj import head_from_obj, known_landmarks, read_obj
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.types import Camera, FaceParams, Latent, MeshTopology, ReconstructedFace, SHLight

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "ffhq_uv"


def sphere_topology(rings: int = 12, segments: int = 16) -> tuple[torch.Tensor, MeshTopology]:
    """A UV sphere whose UV seam runs down the back (-z): vertices (V, 3), and its topology."""
    vertices, uvs = [], []
    for r in range(rings + 1):
        polar = math.pi * r / rings
        for s in range(segments if 0 < r < rings else 1):
            azimuth = 2 * math.pi * s / segments - math.pi
            ring = math.sin(polar)
            vertices.append([ring * math.sin(azimuth), math.cos(polar), ring * math.cos(azimuth)])
        uvs += [[s / segments, 1 - r / rings] for s in range(segments + 1)]

    def vertex(r: int, s: int) -> int:
        if r == 0:
            return 0
        return len(vertices) - 1 if r == rings else 1 + (r - 1) * segments + s % segments

    def uv(r: int, s: int) -> int:
        return r * (segments + 1) + s

    faces, uv_faces = [], []
    for r in range(rings):
        for s in range(segments):
            a, b, c, d = (r, s), (r + 1, s), (r + 1, s + 1), (r, s + 1)
            for corners in ((a, b, c), (a, c, d)):
                ids = [vertex(*p) for p in corners]
                if len(set(ids)) == 3:
                    faces.append(ids)
                    uv_faces.append([uv(*p) for p in corners])
    points = torch.tensor(vertices)
    front = points[torch.tensor(faces)].mean(1)[:, 2] > 0.2
    topology = MeshTopology(
        faces=torch.tensor(faces),
        uvs=torch.tensor(uvs),
        uv_faces=torch.tensor(uv_faces),
        landmark_faces=torch.zeros(68, 1, dtype=torch.int64),
        landmark_barycentric=torch.full((68, 1, 3), 1 / 3),
        mesh_points=torch.zeros(0, dtype=torch.int64),
        mesh_point_faces=torch.zeros(0, dtype=torch.int64),
        mesh_point_barycentric=torch.zeros(0, 3),
        mirror=torch.arange(len(points)),
        regions={"face": front, "scalp": ~front},
        name="sphere",
    )
    return points, topology


def build_face(
    neutral: torch.Tensor,
    topology: MeshTopology,
    texture: torch.Tensor,
    basis: torch.Tensor,
    names: tuple[str, ...],
    weights: list[float],
    batch: int = 1,
) -> ReconstructedFace:
    """A fit of nobody: shape (V, 3), texture (3, S, S), basis (E, V, 3); other fields are plausible."""
    expression = torch.tensor(weights)[None].expand(batch, -1)
    neutral = neutral[None].expand(batch, -1, -1)
    vertices = neutral + torch.einsum("be,evc->bvc", expression, basis)
    texture = texture[None].expand(batch, -1, -1, -1)
    return ReconstructedFace(
        params=FaceParams(
            identity=torch.zeros(batch, 4),
            expression=expression,
            albedo=torch.zeros(batch, 0),
            rotation=torch.tensor([[0.05, 0.15, -0.03]]).expand(batch, 3),
            translation=torch.zeros(batch, 3),
            light=SHLight.ambient(batch),
        ),
        latent=Latent(torch.zeros(batch, 1, 8)),
        texture=texture,
        decoded=texture,
        visibility=torch.ones(batch, 1, *texture.shape[-2:]),
        vertices=vertices,
        neutral_vertices=neutral,
        camera=Camera.deep3d(224, batch),
        topology=topology,
        expression_basis=basis,
        expression_names=names,
        path=("photo.jpg",) * batch,
    )


def make_sphere_face(batch: int = 1) -> ReconstructedFace:
    """A sphere head with a local, a global and an all-zero expression unit, and a noisy texture."""
    points, topology = sphere_topology()
    generator = torch.Generator().manual_seed(3)
    local = torch.zeros_like(points)
    local[40:44] = torch.tensor([0.0, -0.1, 0.05])
    basis = torch.stack([local, 0.1 * points * torch.tensor([1.0, 0.2, 0.5]), torch.zeros_like(points)])
    texture = torch.rand(3, 32, 32, generator=generator)
    return build_face(
        points, topology, texture, basis, ("jawOpen", "cheekPuff", "noseSneerLeft"), [0.4, 1.3, -0.2], batch
    )


@pytest.fixture
def sphere_face() -> ReconstructedFace:
    return make_sphere_face()


@pytest.fixture
def sphere_pair() -> ReconstructedFace:
    """A batch of two sphere heads."""
    return make_sphere_face(batch=2)


@pytest.fixture(scope="session")
def hifi_face() -> ReconstructedFace:
    """The sample HiFi3D++ head with its texture map and a made-up smile."""
    source = REFERENCE / "teaser1_hifi3dpp_head.obj"
    if not source.is_file():
        pytest.skip("the reference head (shared/reference/ffhq_uv) is not beside the repository")
    vertices, uvs, faces, uv_faces = [], [], [], []
    for line in source.read_text().splitlines():
        key, *values = line.split() or [""]
        if key == "v":
            vertices.append([float(x) for x in values[:3]])
        elif key == "vt":
            uvs.append([float(x) for x in values[:2]])
        elif key == "f":
            corners = [corner.split("/") for corner in values]
            faces.append([int(c[0]) - 1 for c in corners])
            uv_faces.append([int(c[1]) - 1 for c in corners])
    points = torch.tensor(vertices)
    _, sphere = sphere_topology()
    topology = sphere.replace(
        faces=torch.tensor(faces),
        uvs=torch.tensor(uvs),
        uv_faces=torch.tensor(uv_faces),
        mirror=torch.arange(len(points)),
        regions={"face": torch.ones(len(faces), dtype=torch.bool)},
        name="hifi3dpp",
    )
    with Image.open(REFERENCE / "teaser1_texture.png") as image:
        texture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
    center = torch.tensor([0.0, -0.35, 0.9])
    falloff = torch.exp(-((points - center) ** 2).sum(1, keepdim=True) / 0.05)
    falloff = falloff * (falloff > 1e-3)
    basis = torch.stack([falloff * torch.tensor([0.0, -0.1, 0.0]), falloff * points.sign() * 0.05])
    return build_face(points, topology, texture, basis, ("jawOpen", "mouthSmileLeft"), [0.3, 0.2])


def face_of(model: MorphableModel, identity: float = 0.0) -> ReconstructedFace:
    """A fit of nobody with a head model."""
    params = model.neutral()
    params = params.replace(identity=params.identity + identity)
    if model.num_expression:
        expression = torch.zeros_like(params.expression)
        expression[0, model.expression_names.index("eyeLookInLeft")] = 0.5
        params = params.replace(expression=expression)
    texture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return ReconstructedFace(
        params=params,
        latent=Latent(torch.zeros(1, 1, 4)),
        texture=texture,
        decoded=texture,
        visibility=texture[:, :1],
        vertices=model.shape(params),
        neutral_vertices=model.neutral_shape(params),
        camera=Camera.deep3d(),
        topology=model.topology,
        expression_basis=model.expression_basis,
        expression_names=model.expression_names,
        path=("photo.jpg",),
    )


@pytest.fixture(scope="module")
def person(asset) -> ReconstructedFace:
    """A makehuman head, which has eyeballs."""
    asset("makehuman")
    return face_of(load_face_model("makehuman", num_identity=6), 1.2)


@pytest.fixture(scope="module")
def scanned(reference: Path) -> ReconstructedFace:
    """The ICT head, which has eyeballs that its units leave at rest, and vertices that no face has."""
    return face_of(load_face_model("ict", 3, reference / "ict" / "ict_facekit_light.npz"), 0.8)


@pytest.fixture(scope="module")
def socketed(reference: Path) -> ReconstructedFace:
    """The shared HiFi3D++ head, which has sockets."""
    mesh = read_obj(reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj")
    return face_of(head_from_obj(mesh, known_landmarks(mesh)))


@pytest.fixture(scope="module")
def gnm_face(gnm_files: tuple[Path, np.ndarray], own_tables: Path) -> ReconstructedFace:
    """A head laid out as GNM Head v3, whose eyeballs rest."""
    path = own_tables / "gnm.safetensors"
    convert(gnm_files[0] / "gnm_head.npz", path)
    return face_of(load_face_model("gnm", 3, path), 0.5)
