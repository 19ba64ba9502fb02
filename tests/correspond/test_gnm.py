"""GNM Head v3: files of the official layout (tests/gnm_file.py; the real ones were not at hand), read and converted,
held against the makehuman head that they were made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon import export
from facerecon.correspond import transfer
from facerecon.correspond.gnm import convert
from facerecon.correspond.regions import head_regions
from facerecon.correspond.resample import decoder_for, retarget
from facerecon.errors import AssetError, ConfigError
from facerecon.fitting import fit_landmarks
from facerecon.geometry.alignment import five_points
from facerecon.geometry.camera import project
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.gnm import gnm_model, read_gnm
from facerecon.render.uv import sample_texture, uv_raster
from facerecon.types import Camera, Latent, ReconstructedFace


@pytest.fixture(scope="module", autouse=True)
def _tables(own_tables) -> None:
    """Correspondences are made anew in a folder of the tests."""


@pytest.fixture(scope="module")
def head(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman_artist", num_identity=170)


@pytest.fixture(scope="module")
def origin(gnm_files) -> np.ndarray:
    """The makehuman vertex of each vertex; -1 inside the eyeballs."""
    return gnm_files[1]


@pytest.fixture(scope="module")
def arrays(gnm_files) -> dict[str, np.ndarray]:
    return read_gnm(gnm_files[0])


@pytest.fixture(scope="module")
def bare(arrays) -> MorphableModel:
    return gnm_model(arrays)


@pytest.fixture(scope="module")
def converted(gnm_files, tmp_path_factory, own_tables) -> Path:
    path = tmp_path_factory.mktemp("converted") / "gnm.safetensors"
    convert(gnm_files[0] / "gnm_head.npz", path)
    return path


@pytest.fixture(scope="module")
def model(converted) -> MorphableModel:
    return load_face_model("gnm", None, converted)


# -- what is read ------------------------------------------------------------------------------------


def test_shape_is_the_sources_in_decimeters(bare: MorphableModel, model: MorphableModel, head, arrays, origin) -> None:
    source = torch.from_numpy(arrays["template_vertex_positions"]) * 10
    shift = bare.mean - source
    assert (shift - shift[0]).abs().max() < 1e-5 and shift[:, 0].abs().max() < 1e-5
    assert torch.equal(model.mean, bare.mean)
    five = five_points(model.landmarks3d(model.mean[None]))[0].mean(0)
    assert (five[1:] - five_points(head.landmarks3d(head.mean[None]))[0].mean(0)[1:]).abs().max() < 1e-4
    outer = torch.from_numpy(origin >= 0)
    same = head.identity_basis[:, origin[origin >= 0]]
    assert model.num_identity == 173
    assert (model.identity_basis[:170, outer] - same).abs().max() < 1e-3 * same.abs().max()  # half precision
    eyeballs = model.identity_basis[170:].abs().amax((0, 2)) > 0
    assert eyeballs[model.topology.faces[model.topology.regions["eyes"]]].all()
    assert not eyeballs[model.topology.faces[~model.topology.regions["eyes"]]].any()  # no shapes of teeth


def test_landmarks_are_the_weighted_vertices(bare: MorphableModel, arrays) -> None:
    weights = torch.from_numpy(arrays["landmark_weights"]).float()[..., None]
    for vertices in (bare.mean, bare.mean + bare.identity_basis[0]):
        expected = (vertices[torch.from_numpy(arrays["landmark_vertices"])] * weights).sum(1)
        assert (bare.landmarks3d(vertices[None])[0] - expected).abs().max() < 1e-3
    points = bare.landmarks3d(bare.mean[None])[0]
    assert points[30, 2] == points[:, 2].max() and points[36, 0] < 0 < points[45, 0]


def test_charts_lie_apart_in_the_unit_square(bare: MorphableModel) -> None:
    topology = bare.topology
    assert topology.uvs.min() >= 0 and topology.uvs.max() <= 1
    corners = topology.uvs[topology.uv_faces].double()
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    rows = ~(topology.regions["sockets"] | topology.regions["mouth"])  # of the test file, merged faces overlap there
    area = (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]).abs()[rows].sum() / 2
    index = uv_raster(topology, 512).face_index[0]
    covered = torch.cat([rows, rows.new_zeros(1)])[index].double().mean()
    assert abs(area.item() - covered.item()) < 0.01


def test_regions_are_those_of_the_source(model: MorphableModel, head: MorphableModel, origin) -> None:
    here, there = model.topology, head.topology
    assert set(there.regions) == set(here.regions)
    for name, rows in here.regions.items():
        flags = torch.zeros(head.num_vertices, dtype=torch.bool)
        flags[there.faces[there.regions[name]]] = True
        expected = flags[origin] & torch.from_numpy(origin >= 0)
        own = torch.zeros(model.num_vertices, dtype=torch.bool)
        own[here.faces[rows]] = True
        both, either = (own & expected).sum(), (own | expected).sum()
        assert both / either > (0.8 if name == "sockets" else 0.9), name  # thinned out in the test file
    assert torch.equal(here.regions["face"] & here.regions["eyes"], here.regions["eyes"])


def test_only_the_outer_shells_of_the_eyes_are_drawn(bare: MorphableModel, origin) -> None:
    assert (torch.from_numpy(origin)[bare.topology.faces] >= 0).all()
    mirror = bare.topology.mirror
    assert torch.equal(mirror[mirror], torch.arange(len(mirror)))


# -- what it is converted to -------------------------------------------------------------------------


def test_units_are_arkits_and_move_as_makehumans(model: MorphableModel, head: MorphableModel, origin) -> None:
    assert model.expression_names == head.expression_names and model.expression_bounds == (0.0, 1.0)
    truth = head.expression_basis[:, np.maximum(origin, 0)]
    error = (model.expression_basis - truth).norm(dim=2)
    topology = model.topology
    skin = topology.faces[topology.regions["skin"]].unique()
    blinks = torch.tensor([name.startswith("eyeBlink") for name in model.expression_names])
    assert error[~blinks][:, skin].max() < 0.01  # 1 mm of up to 41
    assert error[blinks][:, skin].max() < 0.03  # of 13 mm; its lids are otherwise apart
    inner = {name: topology.faces[topology.regions[name]].unique() for name in ("tongue", "teeth")}
    for unit, part in (("tongueOut", "tongue"), ("jawOpen", "tongue"), ("jawOpen", "teeth")):
        row = model.expression_names.index(unit)
        assert error[row, inner[part]].mean() < 0.15 * truth[row, inner[part]].norm(dim=1).max(), (unit, part)


def test_eyeballs_turn_in_place_as_makehumans(model: MorphableModel, head: MorphableModel, origin) -> None:
    vertices = model.topology.faces[model.topology.regions["eyes"]].unique()
    for left in (False, True):
        rows = vertices[(model.mean[vertices, 0] > 0) == left]
        for name, unit in zip(model.expression_names, model.expression_basis):
            if not name.startswith("eyeLook") or name.endswith("Left") != left:
                assert unit[rows].abs().max() == 0, name
                continue
            points = [model.mean[rows], model.mean[rows] + unit[rows]]
            twin = head.mean[origin[rows]], head.expression_basis[head.expression_names.index(name)][origin[rows]]
            points += [twin[0], twin[0] + twin[1]]
            shells = [p - p.mean(0) for p in points]
            pole = shells[0][:, 2].argmax()
            assert (shells[1].norm(dim=1) - shells[0].norm(dim=1)).abs().max() < 1e-3  # rigid
            assert (points[1].mean(0) - points[0].mean(0)).norm() < 0.01
            own, true = (torch.cosine_similarity(shells[i][pole], shells[i + 1][pole], 0).acos() for i in (0, 2))
            assert true > 0.1 and abs(own - true) < 0.03, (name, own, true)
            ways = [shells[i + 1][pole] - shells[i][pole] for i in (0, 2)]
            assert torch.cosine_similarity(*ways, 0) > 0.98, name


def test_a_lid_that_is_less_far_from_the_other_travels_less(model: MorphableModel, head: MorphableModel) -> None:
    def closing(of: MorphableModel) -> torch.Tensor:
        unit = of.expression_basis[of.expression_names.index("eyeBlinkLeft")]
        gaps = [of.landmarks3d(v[None])[0, :, 1] for v in (of.mean, of.mean + unit)]
        still, moved = (gap[[43, 44]].mean() - gap[[46, 47]].mean() for gap in gaps)
        return (still - moved) / still

    assert abs(closing(model) / closing(head) - 1) < 0.06


@pytest.fixture(scope="module")
def retargeted(model: MorphableModel):
    return retarget(model)


def test_it_has_what_a_fit_needs(model: MorphableModel, converted: Path, retargeted) -> None:
    assert retargeted.model.topology.landmark_faces.shape[1] > 1 and len(model.topology.mesh_points) > 200
    regions = head_regions(model)
    assert all(rows.sum() > 300 for rows in regions.values())
    model = load_face_model("gnm", 2, converted)
    camera, rotation = Camera.deep3d(), torch.tensor([[0.05, 0.4, -0.03]])
    params = model.sample(torch.Generator().manual_seed(4)).replace(rotation=rotation)
    vertices = model(params)
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    mesh = torch.zeros(1, 468, 2)
    mesh[:, model.topology.mesh_points] = project(camera, model.mesh_points3d(vertices))[..., :2]
    fitted = fit_landmarks(model, points, camera, mesh)
    assert (fitted.rotation - rotation).abs().max() < 0.03


def test_our_decoder_makes_its_texture(model: MorphableModel, retargeted) -> None:
    decoder, topology = decoder_for(model, retargeted=retargeted), model.topology

    def color(name: str) -> torch.Tensor:
        rows = topology.regions[name].nonzero()[:, 0]
        return sample_texture(decoder.mean[None], topology.uvs[topology.uv_faces[rows]].mean(1)[None])[0].mean(0)

    lips, scalp, mouth = color("lips"), color("scalp"), color("mouth")
    assert decoder.atlas == "gnm" and lips[0] - lips[1] > scalp[0] - scalp[1] + 0.05 and mouth.mean() < scalp.mean()


def test_textures_move_there_and_back(model: MorphableModel, head: MorphableModel) -> None:
    link = transfer.link("makehuman", model)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.interpolate(image, 256, mode="bicubic").clamp(0, 1)
    back = link.back.texture(link.texture(image, 512).texture, 256)
    index = uv_raster(head.topology, 256).face_index[0]
    face = head.topology.regions["face"] & ~head.topology.regions["eyes"]
    at = torch.cat([face, face.new_zeros(1)])[index]
    assert (back.texture - image).abs()[0, :, at].mean() < 0.01


def test_a_head_is_exported_with_its_units(model: MorphableModel, tmp_path: Path) -> None:
    import pygltflib

    params, texture = model.sample(torch.Generator().manual_seed(2)), torch.full((1, 3, 64, 64), 0.5)
    face = ReconstructedFace(
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
    )
    export.save_glb(face, tmp_path / "head.glb")
    mesh = pygltflib.GLTF2().load(str(tmp_path / "head.glb")).meshes[0]
    assert len(mesh.primitives) == 2 and set(mesh.extras["targetNames"]) <= set(model.expression_names)
    assert len(mesh.extras["targetNames"]) == 52
    export.save_obj(face, tmp_path / "head.obj")
    assert (tmp_path / "head.obj").read_text().count("\nf ") == len(model.topology.faces)


# -- what is wrong -----------------------------------------------------------------------------------


def _without(arrays: dict, name: str) -> dict:
    names = arrays["mesh_component_names"]
    return {**arrays, "mesh_component_names": names[names != name]}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: _without(a, "tongue"), "has no part 'tongue'"),
        (lambda a: {**a, "landmark_vertices": a["landmark_vertices"][[0, 1, *range(6, 1, -1), *range(7, 68)]],
                    "landmark_weights": a["landmark_weights"][[0, 1, *range(6, 1, -1), *range(7, 68)]]},
         "out of order; take the file of google/GNM 0ae8cc7"),
        (lambda a: {**a, "landmark_weights": a["landmark_weights"] * 1.5}, "do not lie on its skin"),
        (lambda a: {**a, "mirror_indices": np.roll(np.arange(17821), 1)}, "each vertex's partner"),
        (lambda a: {**a, "triangle_uvs": a["triangle_uvs"] * 3}, "one tile for each triangle"),
        (lambda a: {**a, "identity_names": np.array(["mode"] * 253)}, "names no identity 'head_000'"),
    ],
    ids=["part", "jaw", "landmarks", "mirror", "uvs", "identity"],
)  # fmt: skip
def test_other_arrays_are_one_line(arrays, change: Callable, words: str) -> None:
    with pytest.raises(AssetError, match=words) as error:
        gnm_model(change(dict(arrays)))
    assert "\n" not in str(error.value)


def test_tiles_of_udim_are_told_apart(arrays, bare: MorphableModel) -> None:
    moved = gnm_model(dict(arrays, triangle_uvs=arrays["triangle_uvs"] + np.float32([3, 1]))).topology
    corners = bare.topology.uvs[bare.topology.uv_faces]
    assert (moved.uvs[moved.uv_faces] - corners).abs().max() < 1e-5


def test_other_files_are_one_line(gnm_files, tmp_path: Path, monkeypatch) -> None:
    def refused(words: str) -> None:
        with pytest.raises(AssetError, match=words) as error:
            read_gnm(tmp_path)
        assert "\n" not in str(error.value)

    refused("gnm_head.npz does not exist")
    (tmp_path / "gnm_head.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused("head_sparse_68.txt does not exist")
    text = (gnm_files[0] / "head_sparse_68.txt").read_text()
    (tmp_path / "head_sparse_68.txt").write_text(text)
    refused("is not GNM Head v3")
    np.savez(tmp_path / "gnm_head.npz", template_vertex_positions=np.array([{"a": 1}], dtype=object))
    refused(r"is not GNM Head v3 \(Object arrays cannot be loaded")
    np.savez(tmp_path / "gnm_head.npz", template_vertex_positions=np.zeros((3, 3)))
    refused("vertex_identity_basis is not a file in the archive")
    (tmp_path / "gnm_head.npz").unlink()
    (tmp_path / "gnm_head.npz").symlink_to(gnm_files[0] / "gnm_head.npz")
    for changed, words in (
        (text.rsplit("\n", 2)[0], r"must hold 68 lines of vertex, weight.*\(67, 6\)"),
        (text.replace(text.split()[0], "17821", 1), "must count vertices 0..17820"),
        (text.replace(text.split()[1], "0.2", 1), "must sum to 1"),
        ("a b c\n", "must hold 68 lines"),
    ):
        (tmp_path / "head_sparse_68.txt").write_text(changed)
        refused(words)
    monkeypatch.setattr("facerecon.morphable.gnm._LARGEST", 10_000_000)
    refused("unpacks to more than 10 MB")


def test_the_raw_file_is_converted_first(gnm_files, converted: Path) -> None:
    with pytest.raises(AssetError, match=r"python -m facerecon\.assets convert gnm .*gnm_head\.npz"):
        load_face_model("gnm", path=gnm_files[0] / "gnm_head.npz")
    with pytest.raises(ConfigError, match=r"0\.\.173"):
        load_face_model("gnm", 174, converted)
