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
from typing import Any

import numpy as np
import pygltflib as gl
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from facerecon.errors import InputError, ShapeError
from facerecon.export.gltf import GlbBuilder, normalized, smallest_index_type
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import to_pil, write_bytes
from facerecon.morphable.eyes import SCLERA, Eyeball, eye_map, eye_uvs, eyeball, find_eyes, iris_color
from facerecon.settings import check_keys
from facerecon.types import FaceParams, MeshTopology, ReconstructedFace

__all__ = ["METERS_PER_UNIT", "SplitMesh", "encode_texture", "save_glb", "save_obj", "split_seams"]

METERS_PER_UNIT = 0.1
"""One world unit of every head model is a decimeter; files are in meters."""

SKIN_ROUGHNESS, SKIN_F0 = 0.5, 0.028
"""Skin under studio light: roughness, and the share of straight light that it reflects (index of refraction 1.4)."""

EYE_ROUGHNESS, EYE_F0 = 0.08, 0.025
"""The wet cornea (index of refraction 1.376)."""

_REACH = 5.0  # world units in which a position of 16 bits ends: steps of 0.015 mm
_DEEPEST_SHADE = 0.4  # mean value of a sclera below which darkness is not all shade
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
    """Split vertices so that every (vertex, UV) pair in use becomes one vertex, ordered by vertex, then UV; vertices in
    no face are dropped.

    Args:
        faces: (F, 3) int64 vertex indices.
        uv_faces: (F, 3) int64 UV indices of the same corners.
    """
    count = int(uv_faces.max()) + 1
    key = (faces.long() * count + uv_faces).cpu().numpy()  # one number a pair: far quicker than unique rows
    unique, inverse = np.unique(key, return_inverse=True)
    return SplitMesh(inverse.reshape(-1, 3).astype(np.int64), *np.divmod(unique, count))


def encode_texture(texture: Tensor, image_format: str = "png") -> bytes:
    """Encode one texture or image as PNG or JPEG.

    Args:
        texture: (3, S, S) or (1, 3, S, S) in [0, 1]; values outside are clamped.
        image_format: "png" (exact to 8 bits) or "jpeg" (smaller).

    Raises:
        ConfigError: another format.
    """
    check_keys([image_format], ("png", "jpeg"), "texture format")
    if texture.ndim == 4 and len(texture) == 1:
        texture = texture[0]
    if texture.ndim != 3 or texture.shape[0] not in (1, 3):
        raise ShapeError(f"texture must be (3, S, S); got {tuple(texture.shape)}. Pass one subject at a time.")
    buffer = io.BytesIO()
    options = {"quality": 92, "subsampling": 0} if image_format == "jpeg" else {"compress_level": 4}
    to_pil(texture).save(buffer, image_format, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Eyes:
    """The eyeballs of an export, apart from the skin."""

    rows: np.ndarray  # (F,) bool, faces of the head that the eyeballs replace or are
    vertices: np.ndarray  # (N, 3) in world units; the head's own, or spheres in its sockets
    source: np.ndarray  # (N,) their vertices of the head, -1 for those of a sphere
    faces: np.ndarray  # (M, 3)
    uvs: np.ndarray  # (N, 2) on the map
    map: Tensor  # (1, 3, S, S)
    balls: tuple[tuple[int, Eyeball], ...]  # spheres, with the first row of each in ``vertices``

    def moved(self, displacements: np.ndarray, unit: str) -> np.ndarray:
        """(N, 3) what a unit of the expression does to them, from that (V, 3) of the head."""
        moved = np.where(self.source[:, None] >= 0, displacements[self.source], 0.0).astype(np.float32)
        for first, ball in self.balls:
            moved[first : first + len(ball.vertices)] = ball.turned(unit)
        return moved


def _eyeballs(face: ReconstructedFace) -> _Eyes | None:
    """The eyeballs of one subject's neutral head, None where the topology names no region "eyes"."""
    neutral = face.neutral_vertices[0].detach().cpu().double().numpy()
    topology = face.topology
    found = find_eyes(neutral, topology)
    if not found:
        return None
    faces = topology.faces.cpu().numpy()
    vertices, source, triangles, uvs, angles, balls, count = [], [], [], [], [], [], 0
    for eye in found:
        if eye.bulges:
            used, local = np.unique(faces[eye.rows], return_inverse=True)
            places, corners, shown = neutral[used], local.reshape(-1, 3), eye
        else:
            ball = eyeball(neutral, topology, eye)
            balls.append((count, ball))
            used, places, corners, shown = np.full(len(ball.vertices), -1), ball.vertices, ball.faces, ball.eye
        vertices.append(places)
        source.append(used)
        triangles.append(corners + count)
        uvs.append(eye_uvs(places, shown.center))
        angles.append(shown.iris_angle)
        count += len(places)
    if face.irises is None:
        drawn = eye_map(float(np.mean(angles)), iris_color(face.texture[:1], neutral, topology, found))
    else:
        # eyes lie in the shade of brows and lids, which viewers draw in part: the white tells how dark it was
        light = (float(np.mean(SCLERA)) / face.irises.sclera[0].mean().clamp(min=_DEEPEST_SHADE)).sqrt()
        looks = [tuple((light * color[0]).clamp(0, 1).tolist()) for color in (face.irises.color, face.irises.sclera)]
        drawn = eye_map(float(face.irises.angle[0]), *looks)
    return _Eyes(
        rows=np.isin(np.arange(len(faces)), np.concatenate([eye.rows for eye in found])),
        vertices=np.concatenate(vertices),
        source=np.concatenate(source),
        faces=np.concatenate(triangles),
        uvs=np.concatenate(uvs),
        map=drawn,
        balls=tuple(balls),
    )


def save_obj(
    face: ReconstructedFace,
    folder: str | os.PathLike,
    name: str = "head",
    *,
    index: int | None = None,
    neutral: bool = False,
    groups: bool = False,
    eyes: bool = True,
    scale: float = METERS_PER_UNIT,
) -> Path:
    """Write ``name.obj``, ``name.mtl``, ``name.png`` and ``name_eyes.png``, which refer to each other by name.

    Vertices and UVs keep the topology's own numbering (seams are not split), so that files of one head model
    correspond vertex by vertex. Returns the path of the OBJ file, which is written last.

    Args:
        face: the fit, unposed.
        folder: where to write; created if missing. Or the OBJ file itself, ``.../head.obj``, which names the others.
        name: of the files in a folder, without spaces or slashes.
        index: which subject of a batch.
        neutral: leave the fitted expression out.
        groups: write OBJ groups from the topology's regions (a face in several regions names them all).
        eyes: give the eyeballs a material of their own, with a drawn iris in the color of the texture's, in
            ``name_eyes.png``; a head with empty sockets (HiFi3D++) gets eyeballs, whose vertices follow its own. False
            leaves the eyes to the texture.
        scale: meters per world unit.

    Raises:
        InputError: the batch holds several subjects and ``index`` is not given, or the name cannot be used.
    """
    face = one_subject(face, index, "one file holds")
    folder = Path(folder).expanduser()
    if folder.suffix.lower() == ".obj" and not folder.is_dir():
        folder, name = folder.parent, folder.stem
    if not re.fullmatch(r"[^\s/\\#]+", name):
        raise InputError(f"name must not hold spaces, slashes or '#'; got {name!r}. Use e.g. 'head'.")
    apart = _eyeballs(face) if eyes else None
    vertices = face.neutral_vertices if neutral else face.vertices
    text = (
        f"# {_GENERATOR}: unposed head, meters, y up, facing +z; topology {face.topology.name or 'unnamed'}\n"
        f"mtllib {name}.mtl\no {name}\n"
    ) + _head_text(vertices, face.topology, scale, groups, None if apart is None else apart.rows)
    material = [f"# {_GENERATOR}", *_material_lines("skin", 0.04, 20, f"{name}.png")]
    if apart is not None:
        text += _eye_text(apart, vertices.shape[1], len(face.topology.uvs), scale, groups)
        material += _material_lines("eyes", 0.5, 600, f"{name}_eyes.png")
    write_bytes(folder / f"{name}.png", encode_texture(face.texture))
    if apart is not None:
        write_bytes(folder / f"{name}_eyes.png", encode_texture(apart.map))
    write_bytes(folder / f"{name}.mtl", ("\n".join(material) + "\n").encode())
    write_bytes(folder / f"{name}.obj", text.encode())
    return folder / f"{name}.obj"


def _rows(line: str, values: np.ndarray) -> str:
    """A line of text for each of (N, C) rows of numbers, whose places are in ``line``."""
    return (f"{line}\n" * len(values)) % tuple(values.ravel().tolist())


def _head_text(
    vertices: Tensor, topology: MeshTopology, scale: float, groups: bool, left_out: np.ndarray | None
) -> str:
    """The head's part of an OBJ: vertices (1, V, 3), UVs, normals, and the faces that are not ``left_out`` (F,)."""
    text = _rows("v %.8g %.8g %.8g", _array(vertices[0] * scale))
    text += _rows("vt %.8g %.8g", _array(topology.uvs))
    text += _rows("vn %.6g %.6g %.6g", _array(vertex_normals(vertices, topology.faces)[0]))
    corners = torch.stack([topology.faces, topology.uv_faces, topology.faces], dim=2).reshape(-1, 9).cpu().numpy() + 1
    kept = np.ones(len(corners), bool) if left_out is None else ~left_out
    labels = _region_labels(topology.regions, len(corners)) if groups else [""] * len(corners)
    labels, corners = np.array(labels)[kept], corners[kept]
    text += "usemtl skin\n"
    for run in np.split(np.arange(len(corners)), np.flatnonzero(labels[1:] != labels[:-1]) + 1):
        text += f"g {labels[run[0]]}\n" if groups else ""
        text += _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners[run])
    return text


def _material_lines(name: str, specular: float, exponent: int, picture: str) -> list[str]:
    """One material of an MTL."""
    lines = [f"newmtl {name}", "Ka 1 1 1", "Kd 1 1 1", f"Ks {specular} {specular} {specular}", f"Ns {exponent}"]
    return [*lines, "d 1", "illum 2", f"map_Kd {picture}"]


def _eye_text(eyes: _Eyes, vertices: int, uvs: int, scale: float, groups: bool) -> str:
    """The eyeballs' part of an OBJ: vertices of spheres, their UVs, and the faces of both."""
    new = eyes.source < 0
    number = np.where(new, vertices + np.cumsum(new), eyes.source + 1)
    text = _rows("v %.8g %.8g %.8g", eyes.vertices[new] * scale)
    for first, ball in eyes.balls:
        outward = (eyes.vertices[first : first + len(ball.vertices)] - ball.eye.center) / ball.eye.radius
        text += _rows("vn %.6g %.6g %.6g", outward)
    text += _rows("vt %.8g %.8g", eyes.uvs) + ("g eyes\n" if groups else "") + "usemtl eyes\n"
    corners = np.stack([number[eyes.faces], eyes.faces + uvs + 1, number[eyes.faces]], 2)
    return text + _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners.reshape(-1, 9))


def save_glb(
    face: ReconstructedFace,
    path: str | os.PathLike,
    *,
    index: int | None = None,
    targets: Sequence[str] | None = None,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    image_format: str = "png",
    texture_size: int | None = None,
    roughness: float = SKIN_ROUGHNESS,
    eyes: bool = True,
    scale: float = METERS_PER_UNIT,
    track: FaceParams | None = None,
    times: Sequence[float] | Tensor | None = None,
    quantize: bool = True,
) -> Path:
    """Write one GLB: neutral head, embedded texture, and named morph targets set to the fitted expression.

    Any glTF viewer opens it with the fitted expression; the targets carry position and normal differences,
    and their names (ARKit's for makehuman) are in ``mesh.extras.targetNames``, where Blender, three.js and
    the game engines look for them.

    Args:
        face: the fit, unposed.
        path: the .glb file to write; its folder is created if missing.
        index: which subject of a batch.
        targets: names of the expression units to export; all of them by default, () for none.
        clamp: bounds of the default weights; None keeps them as fitted.
        image_format: "png", or "jpeg" for a smaller file.
        texture_size: side of the embedded texture in pixels; as it is by default.
        roughness: of the skin (metallic is 0; it reflects 2.8 % of what falls on it straight, KHR_materials_specular).
        eyes: draw the eyeballs as a glossy primitive of their own, with an iris in the color of the texture's; a head
            with empty sockets (HiFi3D++) gets eyeballs. They follow the units eyeLook... False leaves the eyes to the
            texture.
        scale: meters per world unit.
        track: parameters of T frames of a video: the file then plays their expressions and rotations.
        times: (T,) seconds of those frames, increasing.
        quantize: store integers (KHR_mesh_quantization, which Blender, three.js and game engines read; positions to
            0.01 mm). False writes float32, for a program that lacks the extension.

    Raises:
        InputError: the batch holds several subjects and ``index`` is not given, times do not fit the track, or the
        path is that of another kind of file.
        ConfigError: an unknown target name or texture format.
    """
    face = one_subject(face, index, "one file holds")
    path = Path(path).expanduser()
    if path.suffix.lower() != ".glb":
        raise InputError(f"save_glb writes one binary .glb file; got {path.name}. Name it {path.stem}.glb.")
    apart = _eyeballs(face) if eyes else None
    head = face.topology
    kept = slice(None) if apart is None else torch.from_numpy(~apart.rows)
    split = split_seams(head.faces.cpu()[kept], head.uv_faces.cpu()[kept])
    normals = _unit_normals(face.neutral_vertices.float(), head.faces)

    build = GlbBuilder(_GENERATOR)
    numbers = _Numbers.of(face, scale, quantize)
    uvs = _array(head.uvs)[split.uv]
    positions = _array(face.neutral_vertices[0])[split.vertex]
    skin = _primitive(build, numbers, positions, _array(normals[0])[split.vertex], uvs, split.faces)
    chosen = _chosen_targets(face, targets)
    skin.targets, eye_targets = _morph_targets(build, numbers, face, chosen, split, apart, normals)
    mesh = gl.Mesh(name="head", primitives=[skin])
    texture = face.texture if texture_size is None else resized(face.texture, texture_size)
    picture = build.texture(encode_texture(texture, image_format), f"image/{image_format}", "albedo")
    build.gltf.materials.append(_material("skin", picture, roughness, SKIN_F0))
    if apart is not None:
        mesh.primitives.append(_eye_primitive(build, numbers, apart, eye_targets))
    if chosen:
        weights = face.params.expression[0].detach().cpu().float()[chosen]
        mesh.weights = (weights if clamp is None else weights.clamp(*clamp)).tolist()
        mesh.extras = {"targetNames": [face.expression_names[i] for i in chosen]}
    build.gltf.extensionsRequired = ["KHR_mesh_quantization"] if quantize else []
    build.gltf.extensionsUsed = ["KHR_materials_specular", *build.gltf.extensionsRequired]
    build.add_scene(mesh, "facerecon", numbers.node_scale)
    if track is not None:
        _animate(build, track, times, chosen, clamp)
    return write_bytes(path, build.to_bytes())


@dataclass(frozen=True)
class _Numbers:
    """How a GLB holds the numbers of its vertices: as float32, or as integers (KHR_mesh_quantization).

    Args:
        quantize: as integers.
        unit: what a position in world units is multiplied with.
        node_scale: what the node multiplies in its turn.
    """

    quantize: bool
    unit: float
    node_scale: float

    @classmethod
    def of(cls, face: ReconstructedFace, scale: float, quantize: bool) -> _Numbers:
        """For a head in world units and a file of ``scale`` meters a unit."""
        if not quantize:
            return cls(False, scale, 1.0)
        reach = max(
            _REACH, *(float(x.abs().amax()) for x in (face.neutral_vertices, face.expression_basis) if x.numel())
        )
        return cls(True, 1 / reach, reach * scale)

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Of positions, or their differences, (N, 3) in world units."""
        return normalized(values * self.unit, np.int16) if self.quantize else np.float32(values * self.unit)

    def normals(self, values: np.ndarray) -> np.ndarray:
        """Of unit normals (N, 3)."""
        return normalized(values, np.int16) if self.quantize else np.float32(values)

    def turns(self, values: np.ndarray) -> np.ndarray:
        """Of differences of normals (N, 3); integers hold them up to 1 on each axis."""
        return normalized(np.clip(values, -1, 1), np.int8) if self.quantize else np.float32(values)

    def uvs(self, values: np.ndarray) -> np.ndarray:
        """Of UVs (N, 2) whose v runs up, in glTF's order."""
        values = np.float32(values * [1, -1] + [0, 1])
        return normalized(values, np.uint16) if self.quantize and values.min() >= 0 and values.max() <= 1 else values


def _primitive(
    build: GlbBuilder,
    numbers: _Numbers,
    positions: np.ndarray,
    normals: np.ndarray,
    uvs: np.ndarray,
    faces: np.ndarray,
    prefix: str = "",
) -> Any:
    """Triangles of material 0 without morph targets; ``prefix`` begins the names of their accessors."""
    attributes = gl.Attributes(
        POSITION=build.accessor(numbers.positions(positions), gl.ARRAY_BUFFER, bounds=True, name=f"{prefix}positions"),
        NORMAL=build.accessor(numbers.normals(normals), gl.ARRAY_BUFFER, name=f"{prefix}normals"),
        TEXCOORD_0=build.accessor(numbers.uvs(uvs), gl.ARRAY_BUFFER, name=f"{prefix}uvs"),
    )
    triangles = faces.reshape(-1).astype(smallest_index_type(len(positions) - 1))
    indices = build.accessor(triangles, gl.ELEMENT_ARRAY_BUFFER, name=f"{prefix}triangles")
    return gl.Primitive(attributes=attributes, indices=indices, material=0)


def _eye_primitive(build: GlbBuilder, numbers: _Numbers, eyes: _Eyes, targets: list[dict[str, int]]) -> Any:
    """The eyeballs, of material 1."""
    made = _primitive(build, numbers, eyes.vertices, _eye_normals(eyes, eyes.vertices), eyes.uvs, eyes.faces, "eyes.")
    made.targets, made.material = targets, 1
    picture = build.texture(encode_texture(eyes.map), "image/png", "eyes")
    build.gltf.materials.append(_material("eyes", picture, EYE_ROUGHNESS, EYE_F0))
    return made


def _morph_targets(
    build: GlbBuilder,
    numbers: _Numbers,
    face: ReconstructedFace,
    chosen: Sequence[int],
    split: SplitMesh,
    apart: _Eyes | None,
    normals: Tensor,
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Position and normal differences of the ``chosen`` expression units: accessors of the skin, and of the eyes."""

    def target(positions: np.ndarray, turned: np.ndarray, label: str) -> dict[str, int]:
        return {
            "POSITION": build.delta_accessor(
                numbers.positions(positions), 1e-8, bounds=True, name=f"{label}.positions"
            ),
            "NORMAL": build.delta_accessor(numbers.turns(turned), 1e-3, name=f"{label}.normals"),
        }

    neutral, faces, normals = face.neutral_vertices[0].float().cpu(), face.topology.faces.cpu(), normals[0].cpu()
    skin, eyes = [], []
    at_rest = None if apart is None else _eye_normals(apart, apart.vertices)
    for k in chosen:
        label, basis = face.expression_names[k], face.expression_basis[k].float().cpu()
        moved = _array(basis)
        skin.append(target(moved[split.vertex], _turned(neutral, faces, basis, normals)[split.vertex], label))
        if apart is not None:
            moved = apart.moved(moved, label)
            turned = _eye_normals(apart, apart.vertices + moved) - at_rest if moved.any() else np.zeros_like(at_rest)
            eyes.append(target(moved, turned, f"{label}.eyes"))
    return skin, eyes


def _turned(neutral: Tensor, faces: Tensor, displacement: Tensor, normals: Tensor) -> np.ndarray:
    """(V, 3) what a displacement (V, 3) adds to unit normals (V, 3), from the faces around what it moves."""
    turned = torch.zeros_like(neutral)
    moving = (displacement != 0).any(1)
    touched = torch.zeros_like(moving)
    touched[faces[moving[faces].any(1)]] = True
    near = faces[touched[faces].any(1)]
    local, used = torch.zeros(len(neutral), dtype=torch.int64), torch.zeros_like(moving)
    used[near] = True
    rows = used.nonzero()[:, 0]
    local[rows] = torch.arange(len(rows))
    bent = _unit_normals((neutral[rows] + displacement[rows])[None], local[near])[0] - normals[rows]
    turned[rows] = torch.where(touched[rows, None], bent, 0.0)
    return _array(turned)


def _animate(
    build: GlbBuilder,
    track: FaceParams,
    times: Sequence[float] | Tensor | None,
    chosen: Sequence[int],
    clamp: tuple[float, float] | None,
) -> None:
    """Play a track on node 0: its rotations, and the weights of the ``chosen`` morph targets."""
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


def _material(name: str, texture: int, roughness: float, f0: float) -> Any:
    """A dielectric of a base color texture; ``f0`` is what it reflects of light that falls on it straight."""
    return gl.Material(
        name=name,
        pbrMetallicRoughness=gl.PbrMetallicRoughness(
            baseColorTexture=gl.TextureInfo(index=texture),
            baseColorFactor=[1.0, 1.0, 1.0, 1.0],
            metallicFactor=0.0,
            roughnessFactor=roughness,
        ),
        alphaMode="OPAQUE",
        alphaCutoff=None,
        doubleSided=False,
        extensions={"KHR_materials_specular": {"specularColorFactor": [f0 / 0.04] * 3}},
    )


def _eye_normals(eyes: _Eyes, vertices: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals of the eyeballs."""
    placed, faces = torch.from_numpy(vertices).float()[None], torch.from_numpy(eyes.faces)
    return _array(_unit_normals(placed, faces)[0])


def one_subject(record: Any, index: int | None, what: str) -> Any:
    """One subject of a batched face or observation, out of the graph; ``what`` begins the error: "one file holds"."""
    count = record.batch
    if index is None and count != 1:
        raise InputError(f"{what} one subject; got a batch of {count}. Pass index=0..{count - 1}.")
    if index is not None and not -count <= index < count:
        raise InputError(f"index must be below {count}, the number of subjects; got {index}.")
    return record[index or 0].detach()


def resized(image: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) at ``size`` pixels a side."""
    if image.shape[-2:] == (size, size):
        return image
    return functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def _unit_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Vertex normals that are unit length everywhere: loose and degenerate vertices look at +z."""
    normals = functional.normalize(vertex_normals(vertices, faces), dim=-1)
    good = normals.norm(dim=-1, keepdim=True) > 0.5
    return torch.where(good, normals, normals.new_tensor([0.0, 0.0, 1.0]))


def _chosen_targets(face: ReconstructedFace, targets: Sequence[str] | None) -> list[int]:
    known = list(face.expression_names)
    if len(known) != len(face.expression_basis):
        rows = len(face.expression_basis)
        raise ShapeError(f"expression_names must name the {rows} rows of expression_basis; got {len(known)} names.")
    check_keys(targets or (), known, "morph target")
    return list(range(len(known))) if targets is None else [known.index(name) for name in targets]


def _region_labels(regions: dict[str, Tensor], count: int) -> list[str]:
    names = sorted(regions)
    flags = [regions[name].cpu().tolist() for name in names]
    return [" ".join(n for n, f in zip(names, flags, strict=True) if f[i]) or "rest" for i in range(count)]
