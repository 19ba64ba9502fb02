"""Textures, points and values between topologies: against known deformations, closed forms, and there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facerecon as fr
from facerecon.correspond import obj, transfer
from facerecon.correspond.obj import ObjMesh, head_from_obj, known_landmarks, read_obj
from facerecon.errors import ConfigError, InputError, NoFaceError, ShapeError
from facerecon.geometry.alignment import fit_sphere
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.render.uv import pad_islands, region_texels, sample_texture, uv_raster


@pytest.fixture(scope="module", autouse=True)
def _tables(own_tables) -> None:
    """Correspondences are made anew in a folder of the tests."""


@pytest.fixture(scope="module")
def makehuman(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman", num_identity=8)


@pytest.fixture(scope="module")
def other(makehuman: MorphableModel) -> MorphableModel:
    """Another person, 1.15 times as large, in another atlas (a quarter turn): same surface points, other mesh order."""
    params = makehuman.sample(torch.Generator().manual_seed(5))
    shape = 1.15 * makehuman.shape(params.replace(identity=0.7 * params.identity))[0] + torch.tensor([0.1, -0.2, 0.3])
    order = torch.randperm(len(shape), generator=torch.Generator().manual_seed(1))
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order))
    here = makehuman.topology
    topology = here.replace(
        faces=new[here.faces].roll(1, 1),
        uvs=torch.stack([here.uvs[:, 1], 1 - here.uvs[:, 0]], 1),
        uv_faces=here.uv_faces.roll(1, 1),
        landmark_barycentric=here.landmark_barycentric.roll(1, -1),
        mesh_point_barycentric=here.mesh_point_barycentric.roll(1, -1),
        mirror=new[here.mirror[order]],
        regions={name: here.regions[name] for name in ("skin", "eyes", "mouth", "sockets")},
        name="other",
    )
    none = torch.zeros(0, len(shape), 3)
    model = MorphableModel(shape[order], none, none, topology, "other").eval()
    model.vertex_of = new
    return model


@pytest.fixture(scope="module")
def ict(reference: Path) -> MorphableModel:
    return load_face_model("ict", num_identity=2, path=reference / "ict" / "ict_facekit_light.npz")


@pytest.fixture(scope="module")
def to_ict(makehuman: MorphableModel, ict: MorphableModel) -> transfer.Link:
    return transfer.link(makehuman, ict)


@pytest.fixture(scope="module")
def to_other(makehuman: MorphableModel, other: MorphableModel) -> transfer.Link:
    return transfer.link(makehuman, other)


def painted(model: MorphableModel, colors: torch.Tensor, size: int) -> torch.Tensor:
    """(1, C, S, S) map of per-vertex values (V, C)."""
    raster = uv_raster(model.topology, size)
    inside = raster.face_index[0] >= 0
    corners = model.topology.faces[raster.face_index[0][inside]]
    image = torch.zeros(size, size, colors.shape[1])
    image[inside] = (colors[corners] * raster.barycentric[0][inside][..., None]).sum(1)
    return pad_islands(image.permute(2, 0, 1)[None], model.topology, None)


def picture(size: int) -> torch.Tensor:
    """A map with detail of 8 texels and more, and edges."""
    axis = torch.arange(size) / size
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    waves = [
        0.5 + 0.25 * torch.sin(size / 4 * a * u + 1) * torch.cos(size / 4 * b * v) for a, b in ((1, 2), (2, 1), (3, 2))
    ]
    image = torch.stack(waves)[None]
    return torch.where(((u - 0.5) ** 2 + (v - 0.4) ** 2 < 0.03)[None, None], image * 0.5 + 0.3, image)


def psnr(one: torch.Tensor, two: torch.Tensor, mask: torch.Tensor) -> float:
    error = ((one - two).square() * mask).sum() / (mask.sum() * one.shape[1])
    return float(-10 * torch.log10(error))


# -- textures ----------------------------------------------------------------------------------------------


def test_a_map_of_places_arrives_where_it_belongs(makehuman, other, to_other) -> None:
    """The source's texels hold their own 3D place: on the target each texel must show the place of its true partner."""
    size = 256
    moved = to_other.texture((painted(makehuman, makehuman.mean, size) + 4) / 8)
    truth = torch.empty_like(makehuman.mean)
    truth[other.vertex_of] = makehuman.mean
    expected = painted(other, truth, size)
    for region, median, most in (("skin", 0.01, 0.08), ("eyes", 0.02, 0.06)):
        texels = region_texels(other.topology, region, size)[0, 0] > 0
        distance = (moved.texture * 8 - 4 - expected)[0][:, texels].norm(dim=0)
        assert distance.median() < median and distance.quantile(0.95) < most, region
    assert moved.known.shape == (1, 1, size, size)
    mouth = region_texels(other.topology, ("mouth", "sockets"), size)
    skin = region_texels(other.topology, "skin", size)
    assert (moved.known * mouth).sum() == 0 and (moved.known * skin).sum() > 0.97 * skin.sum()


def test_there_and_back_over_ict_keeps_the_face(makehuman, to_ict) -> None:
    image = picture(256)
    there = to_ict.texture(image, 512)
    back = to_ict.back.texture(there.texture, 256)
    face = region_texels(makehuman.topology, "face", 256) - region_texels(makehuman.topology, "lids", 256)
    assert psnr(back.texture, image, face) > 30
    assert psnr(back.texture.roll(1, 3), image, face) < 26  # a texel beside the place would show
    assert (back.known * face).sum() > 0.99 * face.sum()


def test_no_seam_shows_and_nothing_is_black(makehuman, ict, to_ict) -> None:
    """Both sides of an edge that the target's atlas cuts have one color, though the source's atlas is cut elsewhere."""
    moved = to_ict.texture((painted(makehuman, makehuman.mean, 256) + 4) / 8, 384)
    topology = ict.topology
    skin = topology.regions["skin"]
    pairs = torch.stack([topology.faces[skin].flatten(), topology.uv_faces[skin].flatten()], 1).unique(dim=0)
    cut = (pairs[1:, 0] == pairs[:-1, 0]).nonzero()[:, 0]
    first, second = topology.uvs[pairs[cut, 1]], topology.uvs[pairs[cut + 1, 1]]
    apart = (first - second).norm(dim=1) > 0.01
    assert apart.sum() > 100
    across = sample_texture(moved.texture, first[None]) - sample_texture(moved.texture, second[None])
    assert 8 * across[0, apart].norm(dim=1).quantile(0.95) < 0.06  # 6 mm of the head
    plain = to_ict.texture(torch.full((1, 3, 64, 64), 0.6), 128)
    assert (plain.texture - 0.6).abs().max() < 1e-4  # padding, fill and filter included


def test_a_finer_map_is_filtered_not_picked_from(other, to_other) -> None:
    """Texels that alternate in a map four times as fine come out gray."""
    board = ((torch.arange(512)[:, None] + torch.arange(512)) % 2).float()[None, None]
    moved = to_other.texture(board, 128)
    skin = region_texels(other.topology, "face" if "face" in other.topology.regions else "skin", 128)[0, 0] > 0
    assert (moved.texture[0, 0][skin] - 0.5).abs().quantile(0.9) < 0.12


def test_what_cannot_be_moved_is_one_line(makehuman, other, to_other) -> None:
    with pytest.raises(ShapeError, match="image must be"):
        to_other.texture(torch.zeros(3, 8, 8))
    with pytest.raises(ConfigError, match="size must be 8"):
        to_other.texture(torch.zeros(1, 3, 8, 8), 4)
    with pytest.raises(ConfigError, match="unknown head 'makehumen'; did you mean 'makehuman'"):
        transfer.link("makehumen", other)
    with pytest.raises(ConfigError, match="one OBJ file; got 0"):
        transfer.link(makehuman, other, landmarks=np.zeros((68, 3)))
    with pytest.raises(ShapeError, match="values must be"):
        to_other.vertex_values(torch.zeros(5, 2))


def test_the_same_topology_needs_no_search(makehuman) -> None:
    """Vertex by vertex: the texture of one person is that of another, to the last texel but for the filter."""
    wide = makehuman.with_mean(makehuman.mean * torch.tensor([1.2, 1.0, 1.0]))
    image = picture(128)
    moved = transfer.link(makehuman, wide).texture(image)
    texels = region_texels(makehuman.topology, "face", 128) - region_texels(makehuman.topology, ("lids", "lips"), 128)
    assert psnr(moved.texture, image, texels.clamp(0, 1)) > 38


# -- points, regions, values -------------------------------------------------------------------------------


def test_regions_and_landmarks_of_ict_are_found(ict, to_ict) -> None:
    regions, own = to_ict.regions(), ict.topology.regions
    for name, least in (("lips", 0.9), ("face", 0.85), ("ears", 0.5), ("neck", 0.6)):
        assert (regions[name] & own[name]).sum() > least * (regions[name] | own[name]).sum(), name
    faces, weights, distance = to_ict.landmarks()
    points = (ict.mean[ict.topology.faces[faces]] * weights[..., None]).sum(1)
    error = (points - ict.landmarks3d(ict.mean[None])[0]).norm(dim=1)
    assert error[17:].max() < 0.03 and error[:17].max() < 0.06 and distance[17:].max() < 0.05


def test_values_of_vertices_follow_a_known_deformation(makehuman, other, to_other) -> None:
    values, known = to_other.vertex_values(makehuman.mean)
    error = (values[other.vertex_of] - makehuman.mean).norm(dim=1)
    skin = torch.zeros(len(error), dtype=torch.bool)
    skin[makehuman.topology.faces[makehuman.topology.regions["skin"]]] = True
    assert error[skin].median() < 0.01 and error[skin].quantile(0.95) < 0.08
    eyes = torch.zeros(len(error), dtype=torch.bool)
    eyes[makehuman.topology.faces[makehuman.topology.regions["eyes"]]] = True
    assert not known[other.vertex_of][eyes].any() and known[other.vertex_of][skin].float().mean() > 0.95


def test_harmonic_values_solve_the_dense_system() -> None:
    """On a strip they are linear between the ends; on a random mesh they equal a dense solve."""
    count = 12
    strip = np.array([[i, i + 1, i + 1] for i in range(count - 1)])
    known = np.isin(np.arange(count), [0, count - 1])
    values = np.where(known, np.linspace(2, 5, count), 99.0)[:, None]
    np.testing.assert_allclose(transfer.harmonic(values, known, strip)[:, 0], np.linspace(2, 5, count), atol=1e-6)

    rng = np.random.default_rng(0)
    faces = np.concatenate([[[i, i + 1, i + 2] for i in range(28)], rng.integers(0, 30, (20, 3)), [[30, 31, 32]]])
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    adjacency = np.zeros((33, 33))
    for a, b in np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]):
        adjacency[a, b] = adjacency[b, a] = 1
    known = (rng.random(33) < 0.3) & (np.arange(33) < 30)
    values = rng.normal(size=(33, 2)) * known[:, None]
    system = np.diag(adjacency.sum(1)) - adjacency
    system[known] = np.eye(33)[known]
    system[30:] = np.eye(33)[30:]
    np.testing.assert_allclose(transfer.harmonic(values, known, faces), np.linalg.solve(system, values), atol=1e-6)


def test_a_sphere_through_points() -> None:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    center, radius = fit_sphere(np.array([1.0, -2.0, 0.5]) + 0.7 * directions[directions[:, 2] > -0.2])
    np.testing.assert_allclose([*center, radius], [1.0, -2.0, 0.5, 0.7], atol=1e-9)


# -- OBJ files ---------------------------------------------------------------------------------------------


def write_obj(path: Path, model: MorphableModel, scale: float, split: bool) -> np.ndarray:
    """A head as an OBJ of another program; split: every corner is a vertex of its own. Returns its landmarks."""
    topology, vertices = model.topology, model.mean.numpy() * scale + [3.0, 160.0, -7.0]
    faces, uv_faces = topology.faces.numpy(), topology.uv_faces.numpy()
    if split:
        vertices, faces = vertices[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)
    lines = [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in topology.uvs.tolist()]
    lines += [
        "f " + " ".join(f"{a + 1}/{b + 1}" for a, b in zip(f, t, strict=True))
        for f, t in zip(faces.tolist(), uv_faces.tolist(), strict=True)
    ]
    path.write_text("# a head\nusemtl skin\n" + "\n".join(lines) + "\n")
    return model.landmarks3d(model.mean[None])[0].numpy() * scale + [3.0, 160.0, -7.0]


def test_an_obj_in_other_units_with_split_vertices(makehuman, other, tmp_path) -> None:
    """Centimeters, moved, every corner its own vertex: the places are those of the model itself."""
    points = write_obj(tmp_path / "someone.obj", other, 10.0, split=True)
    np.savetxt(tmp_path / "points.csv", points, delimiter=",", header="x,y,z")
    link = transfer.link(makehuman, tmp_path / "someone.obj", tmp_path / "points.csv")
    assert link.target.num_vertices <= other.num_vertices and link.target.topology.name == "someone"
    size = 192
    moved = link.texture((painted(makehuman, makehuman.mean, size) + 4) / 8)
    truth = torch.empty_like(makehuman.mean)
    truth[other.vertex_of] = makehuman.mean
    skin = region_texels(other.topology, "skin", size)[0, 0] > 0
    distance = (moved.texture * 8 - 4 - painted(other, truth, size))[0][:, skin].norm(dim=0)
    assert distance.median() < 0.015 and distance.quantile(0.95) < 0.1
    vertices = read_obj(tmp_path / "someone.obj").vertices
    nearest = [int(((vertices - point) ** 2).sum(1).argmin()) for point in points]
    by_number = obj.read_head(tmp_path / "someone.obj", np.array(nearest))
    assert (
        by_number.landmarks3d(by_number.mean[None]) - link.target.landmarks3d(link.target.mean[None])
    ).abs().max() < 0.2


def test_polygons_and_negative_numbers_of_an_obj(tmp_path) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvn 0 0 1\n"
    (tmp_path / "a.obj").write_text(text + "f 1/1/1 2/2/1 3/3/1 4/4/1 # a quad\n")
    (tmp_path / "b.obj").write_text(text + "f -4/-4 -3/-3 -2/-2 -1/-1\n")
    for name in ("a.obj", "b.obj"):
        mesh = read_obj(tmp_path / name)
        assert mesh.faces.tolist() == mesh.uv_faces.tolist() == [[0, 1, 2], [0, 2, 3]]
        assert mesh.uvs.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no faces"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "without UVs"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 9/1\n", "a vertex that is not there"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/0\n", "a UV that is not there"),
        ("v 0 0 zero\n", "line 1 is not of an OBJ"),
        ("v 0 0 0\nv 1 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n", "different lengths"),
        ("v 0 0 nan\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n", "NaN"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 3.5 0\nf 1/1 2/1 3/1\n", "UV tiles"),
    ],
)
def test_an_obj_that_cannot_be_used_is_one_line(text, words, tmp_path) -> None:
    (tmp_path / "bad.obj").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_obj(tmp_path / "bad.obj")
    assert "\n" not in str(caught.value)


def test_landmarks_that_do_not_belong_are_one_line(other, tmp_path) -> None:
    points = write_obj(tmp_path / "head.obj", other, 1.0, split=False)
    mesh = read_obj(tmp_path / "head.obj")
    for landmarks, words in (
        (points[:60], r"must be \(68, 3\)"),
        (points * 0 + 1, "do not belong"),
        (points + [0, 0, 90.0], "away from the surface"),
    ):
        with pytest.raises(InputError, match=words):
            head_from_obj(mesh, landmarks)
    (tmp_path / "short.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "words.csv").write_text("1,2,three\n")
    for source, words in (
        (tmp_path / "short.csv", "expected 68 points"),
        (tmp_path / "words.csv", "cannot be read"),
        (tmp_path / "none.npy", "cannot be read"),
        (np.full(68, 10**7), "the head has"),
    ):
        with pytest.raises(InputError, match=words):
            obj.read_head(tmp_path / "head.obj", source)


def test_landmarks_are_found_on_a_bare_shape(reference, observe_models) -> None:
    """On the shared HiFi3D++ head, whose landmarks are known, found as if its topology were not."""
    mesh = read_obj(reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj")
    found, known = obj.detect_landmarks(mesh), known_landmarks(mesh)
    error = np.linalg.norm(found - known, axis=1)
    assert np.median(error[27:]) < 0.05 and error[27:].max() < 0.2, error  # 5 and 20 mm
    cube = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    faces = np.array([[1, 5, 7], [1, 7, 3], [0, 2, 6], [0, 6, 4]])
    with pytest.raises(NoFaceError, match="no face found on a rendering"):
        obj.detect_landmarks(ObjMesh(cube, cube[:, :2], faces, faces, Path("cube.obj")))


def test_the_shared_head_gives_its_texture_to_makehuman(reference, makehuman) -> None:
    """Hair lies on the scalp, skin on the face, lips are redder than cheeks: in the same places on either head."""
    folder = reference / "ffhq_uv"
    image = fr.read_image(folder / "teaser1_texture.png")[None]
    image = torch.nn.functional.avg_pool2d(image, 4)
    moved = transfer.texture(image, folder / "teaser1_hifi3dpp_head.obj", makehuman, 192)
    mean = {}
    for name in ("cheek", "lips", "scalp", "forehead"):
        texels = region_texels(makehuman.topology, name, 192)[0, 0] > 0
        mean[name] = moved.texture[0][:, texels].mean(1)
    assert mean["scalp"].mean() < 0.5 * mean["cheek"].mean() < 0.6 * mean["forehead"].mean()
    redness = {name: color[0] - color[1] for name, color in mean.items()}
    assert redness["lips"] > redness["cheek"] + 0.05
    skin = transfer.skin_texels(makehuman, 192)[0, 0] > 0
    assert moved.texture[0][:, skin].min() > 0.01
    eyes = region_texels(makehuman.topology, "eyes", 192)[0, 0] > 0  # drawn: the map shows the flesh of the sockets
    assert moved.known[0, 0][eyes].max() == 0
    bright = moved.texture[0][:, eyes].mean(0)
    assert bright.min() < 0.15 < 0.5 < bright.max()


# -- script ------------------------------------------------------------------------------------------------


def test_the_script_writes_its_files_and_its_errors_are_one_line(makehuman, reference, tmp_path) -> None:
    from facerecon.configs.compose import compose
    from facerecon.fit.transfer import main

    Image.fromarray((picture(64)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / "uv.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "wide.png")
    out, uv = tmp_path / "moved", f"texture={tmp_path / 'uv.png'}"
    head = reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj"
    assert main(compose("transfer", [uv, f"target={head}", f"out={out}", "size=96"])) == 0
    assert {path.name for path in out.iterdir()} == {
        "texture.png", "known.png", "landmarks.csv", "regions.json", "preview.png",
    }  # fmt: skip
    assert Image.open(out / "texture.png").size == (96, 96)
    rows = np.loadtxt(out / "landmarks.csv", delimiter=",")
    assert rows.shape == (68, 7) and np.allclose(rows[:, 1:4].sum(1), 1, atol=1e-4)
    for overrides, words in (
        (["target=ict"], "texture is not set"),
        ([uv], "target is not set"),
        ([uv, "target=ict", "size=2"], "size must be"),
        ([uv, f"target={tmp_path / 'uv.png'}"], "unknown head"),
        ([uv, f"target={head}", "target_path=x"], "belongs to a head model"),
        ([f"texture={tmp_path / 'wide.png'}", "target=ict"], "square UV map"),
    ):
        with pytest.raises(ConfigError, match=words):
            main(compose("transfer", overrides))
