"""OBJ and GLB are read back by readers of our own and compared with the source, number by number."""

from __future__ import annotations

import io
import json
import os
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from facerecon.errors import ConfigError, InputError, OutputError
from facerecon.export.gltf import GlbBuilder
from facerecon.export.mesh import METERS_PER_UNIT, encode_texture, save_glb, save_obj, split_seams
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.types import FaceParams, SHLight

COMPONENT = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def read_glb(path):
    """(document, binary chunk) of a GLB file, by the container specification."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    document = json.loads(data[20 : 20 + size])
    start = 20 + size
    blob_size, kind = struct.unpack_from("<I4s", data, start)
    assert kind == b"BIN\0" and start % 4 == 0
    return document, data[start + 8 : start + 8 + blob_size]


def view_bytes(document, blob, index):
    view = document["bufferViews"][index]
    start = view.get("byteOffset", 0)
    return blob[start : start + view["byteLength"]]


def stored(document, blob, index):
    """Dense values of an accessor as they are stored, sparse ones filled in."""
    accessor = document["accessors"][index]
    dtype, width = COMPONENT[accessor["componentType"]], WIDTH[accessor["type"]]
    values = np.zeros((accessor["count"], width), dtype)
    if "bufferView" in accessor:
        raw = np.frombuffer(view_bytes(document, blob, accessor["bufferView"]), np.uint8)
        size = np.dtype(dtype).itemsize * width
        stride = document["bufferViews"][accessor["bufferView"]].get("byteStride", size)
        assert stride % 4 == 0 or accessor["type"] == "SCALAR"
        values[:] = np.ascontiguousarray(raw.reshape(-1, stride)[:, :size]).view(dtype)
    if "sparse" in accessor:
        sparse = accessor["sparse"]
        rows = np.frombuffer(
            view_bytes(document, blob, sparse["indices"]["bufferView"]),
            COMPONENT[sparse["indices"]["componentType"]],
        )
        assert len(rows) == sparse["count"] and (np.diff(rows.astype(int)) > 0).all()
        raw = view_bytes(document, blob, sparse["values"]["bufferView"])
        values[rows] = np.frombuffer(raw, dtype).reshape(-1, width)
    return values


def read_accessor(document, blob, index):
    """What the stored values stand for: normalized integers are in [-1, 1]."""
    values = stored(document, blob, index)
    if document["accessors"][index].get("normalized"):
        return np.maximum(values / np.iinfo(values.dtype).max, -1)
    return values


def node_scale(document):
    """Meters of a position of 1 in the file."""
    (node,) = document["nodes"]
    assert set(node) <= {"name", "mesh", "scale"} and len(set(node.get("scale", [1]))) == 1
    return node.get("scale", [1.0])[0]


def read_obj(path):
    """Minimal OBJ reader: v, vt, vn, and the corners' (v, vt, vn) indices, 0-based."""
    rows = {"v": [], "vt": [], "vn": [], "f": []}
    for line in path.read_text().splitlines():
        key, *values = line.split()
        if key == "f":
            rows["f"].append([[int(i) - 1 for i in corner.split("/")] for corner in values])
        elif key in rows:
            rows[key].append([float(x) for x in values[:3]])
    return {key: np.asarray(value) for key, value in rows.items()}


def check_structure(path):
    """The rules of glTF 2.0 that a writer of such files can break."""
    document, blob = read_glb(path)
    assert document["asset"]["version"] == "2.0"
    assert len(document["buffers"]) == 1 and document["buffers"][0]["byteLength"] <= len(blob)
    assert len(blob) - document["buffers"][0]["byteLength"] <= 3
    end = 0
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] >= end and view["byteLength"] > 0
        end = view["byteOffset"] + view["byteLength"]
    assert end <= document["buffers"][0]["byteLength"]
    for i, accessor in enumerate(document["accessors"]):
        values = stored(document, blob, i)
        assert accessor["count"] > 0
        assert "bufferView" in accessor or "byteOffset" not in accessor
        if "min" in accessor:
            np.testing.assert_array_equal(np.float32(accessor["min"]), values.min(0))
            np.testing.assert_array_equal(np.float32(accessor["max"]), values.max(0))
        if "sparse" in accessor:
            for part in ("indices", "values"):
                assert "target" not in document["bufferViews"][accessor["sparse"][part]["bufferView"]]
            assert accessor["sparse"]["count"] <= accessor["count"]
    for mesh in document["meshes"]:
        for primitive in mesh["primitives"]:
            attributes = primitive["attributes"]
            count = document["accessors"][attributes["POSITION"]]["count"]
            assert all(document["accessors"][a]["count"] == count for a in attributes.values())
            for a in attributes.values():
                assert document["bufferViews"][document["accessors"][a]["bufferView"]]["target"] == 34962
            indices = document["accessors"][primitive["indices"]]
            assert document["bufferViews"][indices["bufferView"]]["target"] == 34963
            assert read_accessor(document, blob, primitive["indices"]).max() < count
            np.testing.assert_allclose(
                np.linalg.norm(read_accessor(document, blob, attributes["NORMAL"]), axis=1), 1, atol=3e-5
            )
            targets = primitive.get("targets", [])
            for target in targets:
                assert set(target) == {"POSITION", "NORMAL"}
                assert {"min", "max"} <= set(document["accessors"][target["POSITION"]])
                assert all(document["accessors"][a]["count"] == count for a in target.values())
            if targets:
                assert len(mesh["weights"]) == len(targets) == len(mesh["extras"]["targetNames"])
    return document, blob


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("which", ["sphere_face", "hifi_face"])
def test_glb_equals_the_source(which, quantize, request, tmp_path):
    face = request.getfixturevalue(which)
    path = save_glb(face, tmp_path / "new" / "head.glb", quantize=quantize)
    document, blob = check_structure(path)
    meters = node_scale(document)
    places, angles = (1e-5, 0.5 / 127 + 1e-5) if quantize else (2e-8, 1.01e-3)
    primitive = document["meshes"][0]["primitives"][0]
    split = split_seams(face.topology.faces, face.topology.uv_faces)

    indices = read_accessor(document, blob, primitive["indices"]).reshape(-1, 3)
    positions = read_accessor(document, blob, primitive["attributes"]["POSITION"])
    uvs = read_accessor(document, blob, primitive["attributes"]["TEXCOORD_0"])
    normals = read_accessor(document, blob, primitive["attributes"]["NORMAL"])
    faces, uv_faces = face.topology.faces.numpy(), face.topology.uv_faces.numpy()
    neutral = face.neutral_vertices[0].numpy()
    np.testing.assert_allclose(positions[indices] * meters, neutral[faces] * METERS_PER_UNIT, atol=places)
    source_uvs = face.topology.uvs.numpy()[uv_faces]
    np.testing.assert_allclose(uvs[indices][..., 0], source_uvs[..., 0], atol=1e-5)
    np.testing.assert_allclose(uvs[indices][..., 1], 1 - source_uvs[..., 1], atol=1e-5)
    expected = vertex_normals(face.neutral_vertices, face.topology.faces)
    np.testing.assert_allclose(normals[indices], expected[0].numpy()[faces], atol=2e-5)

    for k, target in enumerate(primitive["targets"]):
        basis = face.expression_basis[k]
        delta = read_accessor(document, blob, target["POSITION"])
        np.testing.assert_allclose(delta * meters, basis.numpy()[split.vertex] * METERS_PER_UNIT, atol=places)
        bent = vertex_normals(face.neutral_vertices + basis, face.topology.faces) - expected
        turned = read_accessor(document, blob, target["NORMAL"])
        np.testing.assert_allclose(turned, bent[0].numpy()[split.vertex].clip(-1, 1), atol=angles)

    mesh = document["meshes"][0]
    assert mesh["extras"]["targetNames"] == list(face.expression_names)
    np.testing.assert_allclose(mesh["weights"], face.params.expression[0].clamp(0, 1).numpy(), rtol=1e-6)
    image = document["images"][0]
    assert image["mimeType"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(view_bytes(document, blob, image["bufferView"]))))
    np.testing.assert_array_equal(pixels, (face.texture[0] * 255).round().byte().permute(1, 2, 0).numpy())
    material = document["materials"][0]
    assert material.get("doubleSided", False) is False
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == pytest.approx(0.5)
    specular = material["extensions"]["KHR_materials_specular"]["specularColorFactor"]
    assert specular == pytest.approx([0.7] * 3)
    required = ["KHR_mesh_quantization"] if quantize else []
    assert document["extensionsUsed"] == ["KHR_materials_specular", *required]
    assert document.get("extensionsRequired", []) == required


def test_the_ict_head_has_its_units_and_eyeballs(scanned, tmp_path):
    document, blob = check_structure(save_glb(scanned, tmp_path / "head.glb", targets=("jawOpen", "eyeBlinkLeft")))
    mesh = document["meshes"][0]
    skin, eyes = mesh["primitives"]
    assert mesh["extras"]["targetNames"] == ["jawOpen", "eyeBlinkLeft"]
    largest = [
        np.abs(read_accessor(document, blob, target["POSITION"])).max() * node_scale(document) / METERS_PER_UNIT
        for target in skin["targets"]
    ]
    rows = [scanned.expression_names.index(name) for name in ("jawOpen", "eyeBlinkLeft")]
    drawn = scanned.topology.faces[~scanned.topology.regions["eyes"]].unique()
    np.testing.assert_allclose(largest, scanned.expression_basis[rows][:, drawn].abs().amax((1, 2)), atol=1e-4)
    middle = read_accessor(document, blob, eyes["attributes"]["POSITION"]).mean(0)
    middle = middle * node_scale(document) / METERS_PER_UNIT
    balls = scanned.topology.faces[scanned.topology.regions["eyes"]].unique()
    np.testing.assert_allclose(middle, scanned.neutral_vertices[0, balls].mean(0), atol=0.03)


def test_zero_targets_keep_their_name_and_store_nothing(sphere_face, tmp_path):
    document, blob = check_structure(save_glb(sphere_face, tmp_path / "head.glb"))
    jaw, puff, zero = document["meshes"][0]["primitives"][0]["targets"]
    assert "sparse" in document["accessors"][jaw["POSITION"]]
    assert "bufferView" in document["accessors"][puff["POSITION"]]  # moves everything: dense is smaller
    empty = document["accessors"][zero["POSITION"]]
    assert "sparse" not in empty and "bufferView" not in empty
    assert not read_accessor(document, blob, zero["POSITION"]).any()


def test_seams_split_every_pair_once_and_nothing_else(sphere_face):
    faces, uv_faces = sphere_face.topology.faces, sphere_face.topology.uv_faces
    split = split_seams(faces, uv_faces)
    pairs = Counter(zip(split.vertex.tolist(), split.uv.tolist(), strict=True))
    assert set(pairs.values()) == {1}
    assert set(pairs) == set(zip(faces.reshape(-1).tolist(), uv_faces.reshape(-1).tolist(), strict=True))
    np.testing.assert_array_equal(split.vertex[split.faces], faces.numpy())
    np.testing.assert_array_equal(split.uv[split.faces], uv_faces.numpy())
    assert len(split.vertex) > sphere_face.vertices.shape[1]  # the sphere has a seam


@pytest.mark.parametrize("count,width", [(65535, 2), (65536, 4)])
def test_index_width_leaves_the_reserved_value_free(count, width):
    from facerecon.export.gltf import smallest_index_type

    assert np.dtype(smallest_index_type(count - 1)).itemsize == width


def test_builder_refuses_foreign_types():
    with pytest.raises(ValueError, match="float64"):
        GlbBuilder("test").accessor(np.zeros((3, 3)))


def test_chosen_targets_and_unclamped_weights(sphere_face, tmp_path):
    path = save_glb(sphere_face, tmp_path / "a.glb", targets=("cheekPuff", "jawOpen"), clamp=None)
    mesh = check_structure(path)[0]["meshes"][0]
    assert mesh["extras"]["targetNames"] == ["cheekPuff", "jawOpen"]
    assert mesh["weights"] == pytest.approx([1.3, 0.4])
    plain = check_structure(save_glb(sphere_face, tmp_path / "b.glb", targets=()))[0]["meshes"][0]
    assert "weights" not in plain and "targets" not in plain["primitives"][0]
    with pytest.raises(ConfigError, match="did you mean 'jawOpen'"):
        save_glb(sphere_face, tmp_path / "c.glb", targets=("jawopen",))


def test_jpeg_and_texture_size(sphere_face, tmp_path):
    path = save_glb(sphere_face, tmp_path / "head.glb", image_format="jpeg", texture_size=16)
    document, blob = check_structure(path)
    picture = Image.open(io.BytesIO(view_bytes(document, blob, document["images"][0]["bufferView"])))
    assert picture.format == "JPEG" and picture.size == (16, 16)
    with pytest.raises(ConfigError, match="jpeg"):
        save_glb(sphere_face, tmp_path / "x.glb", image_format="jpg")


@pytest.mark.parametrize("which", ["sphere_face", "hifi_face"])
def test_obj_equals_the_source(which, request, tmp_path):
    face = request.getfixturevalue(which)
    path = save_obj(face, tmp_path / "new", "ada")
    back = read_obj(path)
    np.testing.assert_allclose(back["v"], face.vertices[0].numpy() * METERS_PER_UNIT, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(back["vt"], face.topology.uvs.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(back["f"][..., 0], face.topology.faces.numpy())
    np.testing.assert_array_equal(back["f"][..., 1], face.topology.uv_faces.numpy())
    expected = vertex_normals(face.vertices, face.topology.faces)[0].numpy()
    np.testing.assert_allclose(back["vn"][back["f"][..., 2]], expected[face.topology.faces.numpy()], atol=1e-5)
    material = (tmp_path / "new" / "ada.mtl").read_text()
    assert "mtllib ada.mtl" in path.read_text() and "map_Kd ada.png" in material
    pixels = np.asarray(Image.open(tmp_path / "new" / "ada.png"))
    np.testing.assert_array_equal(pixels, (face.texture[0] * 255).round().byte().permute(1, 2, 0).numpy())


def test_obj_neutral_groups_and_scale(sphere_face, tmp_path):
    path = save_obj(sphere_face, tmp_path, neutral=True, groups=True, scale=1.0)
    np.testing.assert_allclose(read_obj(path)["v"], sphere_face.neutral_vertices[0].numpy(), atol=1e-7)
    counts, group = Counter(), None
    for line in path.read_text().splitlines():
        if line.startswith("g "):
            group = line[2:]
        elif line.startswith("f "):
            counts[group] += 1
    regions = sphere_face.topology.regions
    assert counts == {name: int(flags.sum()) for name, flags in regions.items()}


def test_a_batch_needs_an_index(sphere_pair, tmp_path):
    sizes = torch.tensor([1.0, 2.0])[:, None, None]
    faces = sphere_pair.replace(neutral_vertices=sphere_pair.neutral_vertices * sizes)
    for save in (save_glb, save_obj):
        with pytest.raises(InputError, match=r"index=0\.\.1"):
            save(faces, tmp_path / "head.glb")
        with pytest.raises(InputError, match="below 2"):
            save(faces, tmp_path / "head.glb", index=2)
    document, blob = check_structure(save_glb(faces, tmp_path / "h.glb", index=1))
    primitive = document["meshes"][0]["primitives"][0]
    positions = read_accessor(document, blob, primitive["attributes"]["POSITION"])
    assert np.abs(positions).max() * node_scale(document) == pytest.approx(0.2, abs=1e-5)


def test_large_heads_and_long_displacements_keep_their_place(sphere_face, tmp_path):
    """Beyond the usual range of the integers, their steps grow."""
    far = sphere_face.replace(
        expression_basis=sphere_face.expression_basis * 100, neutral_vertices=sphere_face.neutral_vertices * 7
    )
    document, blob = check_structure(save_glb(far, tmp_path / "head.glb", scale=1.0))
    jaw = document["meshes"][0]["primitives"][0]["targets"][0]["POSITION"]
    moved = read_accessor(document, blob, jaw) * node_scale(document)
    assert np.abs(moved).max() == pytest.approx(10, abs=1e-3)


def test_uvs_outside_the_map_stay_there(sphere_face, tmp_path):
    head = sphere_face.replace(topology=sphere_face.topology.replace(uvs=sphere_face.topology.uvs * 2 - 0.5))
    document, blob = check_structure(save_glb(head, tmp_path / "head.glb"))
    uvs = read_accessor(document, blob, document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"])
    assert (uvs.min(), uvs.max()) == pytest.approx((-0.5, 1.5))


@pytest.mark.parametrize("name", ["a b", "a/b", "", "..\\x"])
def test_obj_names_that_break_references(sphere_face, tmp_path, name):
    with pytest.raises(InputError, match="name must not"):
        save_obj(sphere_face, tmp_path, name)


def test_an_obj_by_its_own_path(sphere_face, tmp_path, monkeypatch):
    path = save_obj(sphere_face, tmp_path / "new" / "ada.OBJ")
    assert path == tmp_path / "new" / "ada.obj" and "mtllib ada.mtl" in path.read_text()
    assert {p.name for p in path.parent.iterdir()} >= {"ada.obj", "ada.mtl", "ada.png"}
    (tmp_path / "photo.obj").mkdir()  # a folder stays one, whatever its name
    assert save_obj(sphere_face, tmp_path / "photo.obj") == tmp_path / "photo.obj" / "head.obj"
    monkeypatch.chdir(tmp_path)
    assert save_obj(sphere_face, "bob.obj").is_file() and (tmp_path / "bob.mtl").is_file()


@pytest.mark.parametrize("name", ["head.gltf", "head", "head.obj"])
def test_another_ending_than_glb_is_refused(sphere_face, tmp_path, name):
    with pytest.raises(InputError, match=r"Name it head\.glb"):
        save_glb(sphere_face, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(sphere_face, tmp_path, monkeypatch):
    path = save_glb(sphere_face, tmp_path / "head.glb")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError):
        save_glb(sphere_face.replace(texture=sphere_face.texture * 0), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["head.glb"]


def test_loose_and_degenerate_vertices_get_unit_normals(sphere_face, tmp_path):
    flat = sphere_face.replace(neutral_vertices=torch.zeros_like(sphere_face.neutral_vertices))
    check_structure(save_glb(flat, tmp_path / "flat.glb"))


def test_encode_texture_takes_one_subject():
    with pytest.raises(ValueError, match="one subject"):
        encode_texture(torch.zeros(2, 3, 8, 8))


def test_trimesh_reads_what_we_write(sphere_face, tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
    scene = trimesh.load(save_glb(sphere_face, tmp_path / "head.glb", quantize=False))
    mesh = next(iter(scene.geometry.values()))
    split = split_seams(sphere_face.topology.faces, sphere_face.topology.uv_faces)
    assert mesh.faces.shape == sphere_face.topology.faces.shape
    assert len(mesh.vertices) == len(split.vertex)


# -- animation -------------------------------------------------------------------------------------------------


def test_a_track_is_played(sphere_face, tmp_path):
    face, count = sphere_face, 4
    units = len(face.expression_names)
    expression = torch.linspace(0, 1.5, count)[:, None] * torch.linspace(0.2, 1, units)
    turns = torch.tensor([[0.1, 3.0, 0.0], [0.1, 3.1, 0.0], [0.1, 3.2, 0.0], [0.1, 3.3, 0.0]])
    one = face.params
    track = FaceParams(
        identity=one.identity.expand(count, -1), expression=expression, albedo=one.albedo.expand(count, -1),
        rotation=turns, translation=torch.zeros(count, 3), light=SHLight.ambient(count),
    )  # fmt: skip
    path = save_glb(face, tmp_path / "head.glb", track=track, times=[0.0, 0.1, 0.3, 0.4])
    check_structure(path)
    document, blob = read_glb(path)
    (animation,) = document["animations"]
    played = {channel["target"]["path"]: animation["samplers"][channel["sampler"]] for channel in animation["channels"]}
    assert set(played) == {"rotation", "weights"}
    clock = document["accessors"][played["weights"]["input"]]
    assert (clock["min"], clock["max"]) == ([0.0], pytest.approx([0.4]))
    seconds = read_accessor(document, blob, played["weights"]["input"])
    assert np.allclose(seconds[:, 0], [0, 0.1, 0.3, 0.4])
    weights = read_accessor(document, blob, played["weights"]["output"]).reshape(count, units)
    assert np.allclose(weights, expression.clamp(0, 1).numpy(), atol=1e-6)
    quaternions = read_accessor(document, blob, played["rotation"]["output"])
    x, y, z, w = quaternions.T.astype(np.float64)
    column = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], 1)
    expected = euler_to_matrix(turns.double())[:, :, 0].numpy()
    assert np.allclose(column, expected, atol=1e-6)
    assert ((quaternions[1:] * quaternions[:-1]).sum(1) > 0.9).all()  # past half a turn without a leap
    for times in (None, [0, 1, 2], [0, 2, 1, 3], [-1, 0, 1, 2]):
        with pytest.raises(InputError, match="increasing seconds"):
            save_glb(face, tmp_path / "bad.glb", track=track, times=times)
    assert not read_glb(save_glb(face, tmp_path / "still.glb"))[0].get("animations")
