"""Eyeballs in exported heads: their place, their material, and what gaze does to them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from facerecon.correspond.obj import read_obj
from facerecon.export.mesh import save_glb, save_obj
from facerecon.morphable.eyes import find_eyes


class Glb:
    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        self.document, self.blob = json.loads(data[20 : 20 + length]), data[28 + length :]

    def array(self, index: int) -> np.ndarray:
        """A dense accessor, or one of zeros with sparse rows."""
        entry = self.document["accessors"][index]
        kinds = {5120: np.int8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
        kind = kinds[entry["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[entry["type"]]
        unit = 1 / np.iinfo(kind).max if entry.get("normalized") else 1

        def read(view: int, kind: type) -> np.ndarray:
            part = self.document["bufferViews"][view]
            return np.frombuffer(self.blob[part["byteOffset"] : part["byteOffset"] + part["byteLength"]], kind)

        if "bufferView" in entry:
            return unit * read(entry["bufferView"], kind).reshape(entry["count"], -1)[:, :width]
        values = np.zeros((entry["count"], width), kind)
        if "sparse" in entry:
            part = entry["sparse"]
            index_kind = {5123: np.uint16, 5125: np.uint32}[part["indices"]["componentType"]]
            rows = read(part["indices"]["bufferView"], index_kind)
            values[rows] = read(part["values"]["bufferView"], kind).reshape(-1, width)
        return unit * values

    def meters(self, index: int) -> np.ndarray:
        """Positions, or their differences, as the node scales them."""
        return self.array(index) * self.document["nodes"][0]["scale"][0]


def test_own_eyeballs_are_a_glossy_part(person, tmp_path) -> None:
    glb = Glb(save_glb(person, tmp_path / "head.glb"))
    mesh = glb.document["meshes"][0]
    skin, eyes = mesh["primitives"]
    rows = person.topology.regions["eyes"]
    expected = person.neutral_vertices[0][person.topology.faces[rows].unique()].numpy() * 0.1
    found = glb.meters(eyes["attributes"]["POSITION"])
    for one, other in ((found, expected), (expected, found)):
        assert cKDTree(one).query(other)[0].max() < 2e-5
    counts = [len(glb.array(part["indices"])) // 3 for part in (skin, eyes)]
    assert counts == [int((~rows).sum()), int(rows.sum())]
    normals = glb.array(eyes["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=3e-5)
    assert len(eyes["targets"]) == len(skin["targets"]) == 52
    for name, moves in (("eyeLookInLeft", True), ("jawOpen", False)):
        k = person.expression_names.index(name)
        moved = glb.meters(eyes["targets"][k]["POSITION"])
        basis = person.expression_basis[k][person.topology.faces[rows].unique()].norm(dim=1).max() * 0.1
        assert np.linalg.norm(moved, axis=1).max() == pytest.approx(float(basis), abs=2e-5)
        assert bool(np.abs(moved).max() > 1e-3) is moves
    roughness = [m["pbrMetallicRoughness"]["roughnessFactor"] for m in glb.document["materials"]]
    assert [m["name"] for m in glb.document["materials"]] == ["skin", "eyes"] and roughness[1] < 0.2 < roughness[0]


def test_sockets_get_eyeballs_behind_the_lids(socketed, tmp_path) -> None:
    glb = Glb(save_glb(socketed, tmp_path / "head.glb"))
    skin, eyes = glb.document["meshes"][0]["primitives"]
    places = glb.meters(eyes["attributes"]["POSITION"]) * 10
    found = find_eyes(socketed.neutral_vertices[0].double().numpy(), socketed.topology)
    for eye in found:
        ball = places[np.abs(places[:, 0] - eye.opening[0]) < eye.width]
        assert np.abs(ball[:, :2].mean(0) - eye.opening).max() < 0.1 * eye.width
        assert ball[:, 2].max() < eye.lids[:, 2].max() + 0.03
    rows = int(socketed.topology.regions["eyes"].sum())
    assert len(glb.array(skin["indices"])) // 3 == len(socketed.topology.faces) - rows  # the sockets are gone


@pytest.mark.parametrize("which", ["person", "socketed"])
def test_eyes_can_be_left_to_the_texture(which, request, tmp_path) -> None:
    face = request.getfixturevalue(which)
    glb = Glb(save_glb(face, tmp_path / "head.glb", eyes=False, targets=()))
    (skin,) = glb.document["meshes"][0]["primitives"]
    assert len(glb.array(skin["indices"])) // 3 == len(face.topology.faces)
    save_obj(face, tmp_path, eyes=False)
    assert {path.name for path in tmp_path.iterdir()} == {"head.glb", "head.obj", "head.mtl", "head.png"}
    assert "eyes" not in (tmp_path / "head.obj").read_text()


@pytest.mark.parametrize("which", ["person", "socketed"])
def test_an_obj_keeps_the_numbers_of_the_head(which, request, tmp_path) -> None:
    face = request.getfixturevalue(which)
    mesh = read_obj(save_obj(face, tmp_path))
    count, own = face.vertices.shape[1], which == "person"
    np.testing.assert_allclose(mesh.vertices[:count], face.vertices[0].numpy() * 0.1, atol=1e-6)
    assert (len(mesh.vertices) == count) is own
    text = (tmp_path / "head.obj").read_text()
    rows = face.topology.regions["eyes"]
    after = text.split("usemtl eyes")[1].count("\nf ")
    assert after == (int(rows.sum()) if own else len(mesh.faces) - int((~rows).sum())) > 500
    if own:
        kept = np.concatenate([face.topology.faces[~rows].numpy(), face.topology.faces[rows].numpy()])
        same = {tuple(sorted(row)) for row in kept.tolist()}
        assert {tuple(sorted(row)) for row in mesh.faces.tolist()} == same
    assert "map_Kd head_eyes.png" in (tmp_path / "head.mtl").read_text()
    normals = text.count("\nvn ")
    assert normals == len(mesh.vertices)
