"""Heads as files that other programs open: OBJ + MTL + PNG, and one self-contained GLB with morph targets.

Both are unposed (the head looks at +z, y is up), in meters, with the texture in the head model's UV layout.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from facerecon.errors import ConfigError, InputError, ShapeError, nearest_name
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.types import FaceParams, ReconstructedFace

if TYPE_CHECKING:
    from facerecon.export.gltf import GlbBuilder

__all__ = ["METERS_PER_UNIT", "SplitMesh", "encode_texture", "save_glb", "save_obj", "split_seams"]

METERS_PER_UNIT = 0.1
"""One world unit of every head model is a decimetre; files are in meters."""

_GENERATOR = "facerecon"


@dataclass(frozen=True)
class SplitMesh:
    """A mesh with one index per corner, as GPUs and glTF want it: seam vertices exist once per UV.

    Args:
        faces: (F, 3) int64 into the split vertices.
        vertex: (N,) int64, the source vertex of each split vertex.
        uv: (N,) int64, the source UV of each split vertex.
    """

    faces: np.ndarray
    vertex: np.ndarray
    uv: np.ndarray


def split_seams(faces: Tensor, uv_faces: Tensor) -> SplitMesh:
    """Split vertices so that every (vertex, UV) pair in use becomes one vertex.

    Args:
        faces: (F, 3) int64 vertex indices.
        uv_faces: (F, 3) int64 UV indices of the same corners.

    Returns:
        The split mesh; pairs are ordered by vertex, then UV; vertices in no face are dropped.
    """
    pairs = torch.stack([faces.reshape(-1), uv_faces.reshape(-1)], dim=1).cpu().numpy()
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    return SplitMesh(inverse.reshape(-1, 3).astype(np.int64), unique[:, 0], unique[:, 1])


def encode_texture(texture: Tensor, image_format: str = "png", quality: int = 92) -> bytes:
    """Encode one texture or image as PNG or JPEG.

    Args:
        texture: (3, S, S) or (1, 3, S, S) in [0, 1]; values outside are clamped.
        image_format: "png" (exact to 8 bits) or "jpeg" (smaller).
        quality: of the JPEG, 1 to 95.

    Raises:
        ConfigError: another format.
    """
    if image_format not in ("png", "jpeg"):
        raise ConfigError(nearest_name(image_format, ("png", "jpeg"), "texture format"))
    if texture.ndim == 4 and len(texture) == 1:
        texture = texture[0]
    if texture.ndim != 3 or texture.shape[0] not in (1, 3):
        raise ShapeError(f"texture must be (3, S, S); got {tuple(texture.shape)}. Pass one subject at a time.")
    picture = to_pil(texture)
    buffer = io.BytesIO()
    if image_format == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def save_obj(
    face: ReconstructedFace,
    folder: str | os.PathLike,
    name: str = "head",
    *,
    index: int | None = None,
    neutral: bool = False,
    groups: bool = False,
    scale: float = METERS_PER_UNIT,
) -> Path:
    """Write ``name.obj``, ``name.mtl`` and ``name.png``, which refer to each other by relative names.

    Vertices and UVs keep the topology's own numbering (seams are not split), so that files of one head model
    correspond vertex by vertex.

    Args:
        face: the fit, unposed.
        folder: where to write; created if missing.
        name: of the three files, without spaces or slashes.
        index: which subject of a batch.
        neutral: leave the fitted expression out.
        groups: write OBJ groups from the topology's regions (a face in several regions names them all).
        scale: meters per world unit.

    Returns:
        Path of the OBJ file, which is written last.

    Raises:
        InputError: the batch holds several subjects and ``index`` is not given, or the name cannot be used.
    """
    face = _one_subject(face, index)
    if not re.fullmatch(r"[^\s/\\#]+", name):
        raise InputError(f"name must not hold spaces, slashes or '#'; got {name!r}. Use e.g. 'head'.")
    folder = Path(folder)
    vertices = face.neutral_vertices if neutral else face.vertices
    normals = vertex_normals(vertices, face.topology.faces)
    topology = face.topology

    lines = [
        f"# {_GENERATOR}: unposed head, meters, y up, facing +z; topology {topology.name or 'unnamed'}",
        f"mtllib {name}.mtl",
        f"o {name}",
    ]
    lines += [f"v {x:.8g} {y:.8g} {z:.8g}" for x, y, z in _array(vertices[0] * scale).tolist()]
    lines += [f"vt {u:.8g} {v:.8g}" for u, v in _array(topology.uvs).tolist()]
    lines += [f"vn {x:.6g} {y:.6g} {z:.6g}" for x, y, z in _array(normals[0]).tolist()]
    lines.append("usemtl skin")
    labels = _region_labels(topology.regions, len(topology.faces)) if groups else None
    corners = torch.stack([topology.faces, topology.uv_faces], dim=2).reshape(-1, 6).cpu() + 1
    current = None
    for i, (a, ta, b, tb, c, tc) in enumerate(corners.tolist()):
        if labels is not None and labels[i] != current:
            current = labels[i]
            lines.append(f"g {current}")
        lines.append(f"f {a}/{ta}/{a} {b}/{tb}/{b} {c}/{tc}/{c}")

    material = [
        f"# {_GENERATOR}",
        "newmtl skin",
        "Ka 1 1 1",
        "Kd 1 1 1",
        "Ks 0.04 0.04 0.04",
        "Ns 20",
        "d 1",
        "illum 2",
        f"map_Kd {name}.png",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{name}.png", encode_texture(face.texture))
    write_bytes(folder / f"{name}.mtl", ("\n".join(material) + "\n").encode())
    write_bytes(folder / f"{name}.obj", ("\n".join(lines) + "\n").encode())
    return folder / f"{name}.obj"


def save_glb(
    face: ReconstructedFace,
    path: str | os.PathLike,
    *,
    index: int | None = None,
    targets: Sequence[str] | None = None,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    image_format: str = "png",
    texture_size: int | None = None,
    roughness: float = 0.55,
    scale: float = METERS_PER_UNIT,
    track: FaceParams | None = None,
    times: Sequence[float] | Tensor | None = None,
) -> Path:
    """Write one GLB: neutral head, embedded texture, and named morph targets set to the fitted expression.

    Any glTF viewer opens it with the fitted expression; the targets carry position and normal differences,
    and their names (ARKit's for makehuman) are in ``mesh.extras.targetNames``, where Blender, three.js and
    the game engines look for them.

    Args:
        face: the fit, unposed.
        path: the file to write; its folder is created if missing.
        index: which subject of a batch.
        targets: names of the expression units to export; all of them by default, () for none.
        clamp: bounds of the default weights; None keeps them as fitted.
        image_format: "png", or "jpeg" for a smaller file.
        texture_size: side of the embedded texture in pixels; as it is by default.
        roughness: of the PBR material (metallic is 0).
        scale: meters per world unit.
        track: parameters of T frames of a video: the file then plays their expressions and rotations.
        times: (T,) seconds of those frames, increasing.

    Returns:
        The path.

    Raises:
        InputError: the batch holds several subjects and ``index`` is not given, or times do not fit the track.
        ConfigError: an unknown target name or texture format.
    """
    import pygltflib as gl

    from facerecon.export.gltf import GlbBuilder, smallest_index_type

    face = _one_subject(face, index)
    path = Path(path)
    split = split_seams(face.topology.faces, face.topology.uv_faces)
    neutral = face.neutral_vertices.float()
    normals = _unit_normals(neutral, face.topology.faces)

    build = GlbBuilder(_GENERATOR)
    positions = _array(neutral[0] * scale)[split.vertex]
    uvs = _array(face.topology.uvs)[split.uv] * np.float32([1, -1]) + np.float32([0, 1])
    attributes = gl.Attributes(
        POSITION=build.accessor(positions, gl.ARRAY_BUFFER, bounds=True, name="positions"),
        NORMAL=build.accessor(_array(normals[0])[split.vertex], gl.ARRAY_BUFFER, name="normals"),
        TEXCOORD_0=build.accessor(uvs, gl.ARRAY_BUFFER, name="uvs"),
    )
    index_type = smallest_index_type(len(split.vertex) - 1)
    indices = build.accessor(split.faces.reshape(-1).astype(index_type), gl.ELEMENT_ARRAY_BUFFER, name="triangles")

    chosen = _chosen_targets(face, targets)
    names = [face.expression_names[i] for i in chosen]
    morphs = []
    for start in range(0, len(chosen), 16):  # a few at a time bounds the memory
        basis = face.expression_basis[chosen[start : start + 16]].float()
        bent = _unit_normals(neutral + basis, face.topology.faces) - normals
        for k in range(len(basis)):
            label = names[start + k]
            position = _array(basis[k] * scale)[split.vertex]
            normal = _array(bent[k])[split.vertex]
            morphs.append(
                {
                    "POSITION": build.delta_accessor(position, 1e-8, bounds=True, name=f"{label}.positions"),
                    "NORMAL": build.delta_accessor(normal, 1e-3, name=f"{label}.normals"),
                }
            )
    weights = face.params.expression[0].detach().cpu().float()[chosen]
    weights = (weights if clamp is None else weights.clamp(*clamp)).tolist()

    texture = face.texture
    if texture_size is not None and texture_size != texture.shape[-1]:
        texture = torch.nn.functional.interpolate(
            texture, (texture_size, texture_size), mode="bilinear", antialias=True, align_corners=False
        )
    picture = build.texture(encode_texture(texture, image_format), f"image/{image_format}", "albedo")
    model = build.gltf
    model.materials.append(
        gl.Material(
            name="skin",
            pbrMetallicRoughness=gl.PbrMetallicRoughness(
                baseColorTexture=gl.TextureInfo(index=picture),
                baseColorFactor=[1.0, 1.0, 1.0, 1.0],
                metallicFactor=0.0,
                roughnessFactor=roughness,
            ),
            alphaMode="OPAQUE",
            alphaCutoff=None,
            doubleSided=False,
        )
    )
    primitive = gl.Primitive(attributes=attributes, indices=indices, material=0, targets=morphs)
    mesh = gl.Mesh(name="head", primitives=[primitive])
    if morphs:
        mesh.weights = weights
        mesh.extras = {"targetNames": names}
    model.meshes.append(mesh)
    model.nodes.append(gl.Node(name="head", mesh=0))
    if track is not None:
        _animate(build, track, times, chosen, clamp)
    model.scenes.append(gl.Scene(name="facerecon", nodes=[0]))
    model.scene = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, build.to_bytes())
    return path


def _animate(
    build: GlbBuilder,
    track: FaceParams,
    times: Sequence[float] | Tensor | None,
    chosen: Sequence[int],
    clamp: tuple[float, float] | None,
) -> None:
    """Play a track on node 0: its rotations, and the weights of the ``chosen`` morph targets.

    Raises:
        InputError: no times, of another number than the frames, negative or not increasing.
    """
    import pygltflib as gl

    moments = np.asarray([] if times is None else torch.as_tensor(times, dtype=torch.float64).cpu(), dtype=np.float32)
    if moments.shape != (track.batch,) or not (np.diff(moments) > 0).all() or (moments < 0).any():
        raise InputError(f"times must be {track.batch} increasing seconds, one a frame of the track; got {times}.")
    clock = build.accessor(moments, bounds=True, name="seconds")
    turns = Rotation.from_matrix(euler_to_matrix(track.rotation.detach().cpu().double()).numpy()).as_quat()
    for i in range(1, len(turns)):  # the same turn has two quaternions; players go straight from one to the next
        turns[i] *= 1.0 if turns[i] @ turns[i - 1] >= 0 else -1.0
    weights = track.expression.detach().cpu().float()[:, chosen]
    weights = weights if clamp is None else weights.clamp(*clamp)
    played = {"rotation": turns.astype(np.float32), "weights": _array(weights).reshape(-1)}
    animation = gl.Animation(name="video")
    for path, values in played.items():
        if values.size:
            output = build.accessor(values, name=f"{path} along the video")
            animation.samplers.append(gl.AnimationSampler(input=clock, output=output, interpolation="LINEAR"))
            target = gl.AnimationChannelTarget(node=0, path=path)
            animation.channels.append(gl.AnimationChannel(sampler=len(animation.samplers) - 1, target=target))
    build.gltf.animations.append(animation)


def _one_subject(face: ReconstructedFace, index: int | None) -> ReconstructedFace:
    count = len(face.vertices)
    if index is None and count != 1:
        raise InputError(f"one file holds one subject; got a batch of {count}. Pass index=0..{count - 1}.")
    if index is not None and not -count <= index < count:
        raise InputError(f"index must be below {count}, the number of subjects; got {index}.")
    return face[index or 0].detach()


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def _unit_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Vertex normals that are unit length everywhere: loose and degenerate vertices look at +z."""
    normals = torch.nn.functional.normalize(vertex_normals(vertices, faces), dim=-1)
    good = normals.norm(dim=-1, keepdim=True) > 0.5
    return torch.where(good, normals, normals.new_tensor([0.0, 0.0, 1.0]))


def _chosen_targets(face: ReconstructedFace, targets: Sequence[str] | None) -> list[int]:
    known = list(face.expression_names)
    if len(known) != len(face.expression_basis):
        raise ShapeError(
            f"expression_names must name the {len(face.expression_basis)} rows of expression_basis; "
            f"got {len(known)} names."
        )
    for name in targets or ():
        if name not in known:
            raise ConfigError(nearest_name(name, known, "morph target"))
    return list(range(len(known))) if targets is None else [known.index(name) for name in targets]


def _region_labels(regions: dict[str, Tensor], count: int) -> list[str]:
    names = sorted(regions)
    flags = [regions[name].cpu().tolist() for name in names]
    return [" ".join(n for n, f in zip(names, flags, strict=True) if f[i]) or "rest" for i in range(count)]
