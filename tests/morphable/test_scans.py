"""The scans of menpo3d: read as their package lays them out, and what a file that is another says."""

import json

import numpy as np
import pytest
import torch

from facerecon.errors import AssetError, InputError
from facerecon.geometry.surface import Surface
from facerecon.morphable import scans
from facerecon.morphable.scans import convert_mean, convert_person, load_scan
from facerecon.storage import read_safetensors
from facerecon.types import saved_head

POINTS = np.random.default_rng(0).normal(size=(68, 3)) * 1e4


def write_landmarks(path, points=POINTS) -> None:
    path.write_text(json.dumps({"groups": {"LJSON": {"landmarks": {"points": points.tolist()}}}}))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same layout with a small mesh; its folder and its vertices."""
    folder = tmp_path / "menpo3d" / "data"
    folder.mkdir(parents=True)
    vertices = np.random.default_rng(1).normal(size=(5, 3)).astype("<f4") * 1e4
    faces = np.array([[0, 1, 2], [2, 3, 4]])
    rows = b"".join(v.tobytes() + bytes([1, 2, 3, 255]) for v in vertices)
    rows += b"".join(bytes([3]) + f.astype("<i4").tobytes() for f in faces)
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 5\nelement face 2\nend_header\n"
    (folder / "template.ply").write_bytes(head.encode() + rows)
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + ["vt 0.1 0.2", "vt 0.3 0.4"]
    lines += ["f " + " ".join(f"{v + 1}/{k % 2 + 1}" for k, v in enumerate(face)) for face in faces]
    (folder / "james.obj").write_text("\n".join(lines))
    (folder / "james.jpg").write_bytes(b"picture")
    for name in ("template", "james"):
        write_landmarks(folder / f"{name}.ljson")
    monkeypatch.setattr(scans, "_TEMPLATE", (5, 2))
    monkeypatch.setattr(scans, "_PERSON", (5, 2))
    return tmp_path, vertices


def test_meshes_come_in_the_unit_of_heads(package, tmp_path) -> None:
    """Micrometers and millimeters become 0.1 m; the person's points come in iBUG's order."""
    source, vertices = package
    for convert, unit in ((convert_mean, 1e-5), (convert_person, 1e-2)):
        convert(source, tmp_path / "a.safetensors")
        tensors = read_safetensors(tmp_path / "a.safetensors", "a scan", "")[0]
        assert torch.allclose(tensors["vertices"], torch.from_numpy(vertices * unit), rtol=1e-5)
        assert tensors["faces"].tolist() == [[0, 1, 2], [2, 3, 4]]
    assert tensors["uv_faces"].tolist() == [[0, 1, 0], [0, 1, 0]] and bytes(tensors["texture"].tolist()) == b"picture"
    order = [*range(17), *range(29, 34), *range(43, 48), *range(34, 43), *range(17, 29), *range(48, 68)]
    assert np.allclose(tensors["landmarks"], POINTS[order] * 1e-2, rtol=1e-5)


@pytest.mark.parametrize("damage", ["template.ply", "template.ljson", "james.obj", "james.ljson"])
def test_another_file_is_refused(package, tmp_path, damage) -> None:
    source, _ = package
    convert = convert_mean if damage.startswith("template") else convert_person
    (source / "menpo3d" / "data" / damage).write_bytes(b"ply\nsomething else\n")
    with pytest.raises(AssetError, match=damage):
        convert(source, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["scan_mean", "scan_james"])
def test_landmarks_lie_where_a_face_has_them(asset, name) -> None:
    """On the surface, right ones at -x, eyes above the mouth, the nose in front of both."""
    asset(name)
    scan = load_scan(name)
    points, surface = scan.landmarks.double(), Surface(scan.vertices.double(), scan.faces)
    assert surface.distance(points[17:]).max() < 0.05
    assert points[36, 0] < points[39, 0] < points[42, 0] < points[45, 0]
    assert points[36:48, 1].min() > points[48:, 1].max()
    assert points[30, 2] > points[36:, 2].max() and 0.8 < (points[45] - points[36]).norm() < 1.1


def test_files_without_an_edition_are_of_the_first() -> None:
    assert saved_head("makehuman", "2") == "makehuman" and saved_head("makehuman", "") == "makehuman_artist"
    assert saved_head("ict", "") == "ict" and saved_head("makehuman_artist", "") == "makehuman_artist"
    with pytest.raises(InputError, match="version '3' of the head model 'makehuman'"):
        saved_head("makehuman", "3")
