"""Region-wise shape error, against closed forms and a brute-force nearest point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.correspond.regions import (
    ALIGNMENT_LANDMARKS,
    OPEN,
    REGION_LANDMARKS,
    ambient_visibility,
    face_regions,
    head_regions,
    region_forms,
    vertex_areas,
    visible_vertices,
)
from facerecon.errors import InputError, ShapeError
from facerecon.evaluation.regions import region_errors
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.geometry.surface import Surface, closest_on_triangles


def grid(count: int, height: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A square [-1, 1]^2 of count x count vertices, at a height, and its triangles."""
    y, x = np.meshgrid(np.linspace(-1, 1, count), np.linspace(-1, 1, count), indexing="ij")
    vertices = np.stack([x, y, np.broadcast_to(height, x.shape)], -1).reshape(-1, 3)
    a = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    quads = np.stack([a, a + 1, a + count + 1, a + count], 1)
    return vertices, np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])


def landmarks_on_plane() -> np.ndarray:
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (68, 3))
    return points * [1, 1, 0]


def dense_nearest(point: np.ndarray, corners: np.ndarray, steps: int = 200) -> float:
    """Distance to a triangle by looking at many points of it."""
    u, v = np.meshgrid(np.linspace(0, 1, steps), np.linspace(0, 1, steps))
    u, v = u[u + v <= 1], v[u + v <= 1]
    places = corners[0] + u[:, None] * (corners[1] - corners[0]) + v[:, None] * (corners[2] - corners[0])
    return float(np.linalg.norm(places - point, axis=1).min())


def test_closest_point_of_a_triangle() -> None:
    rng = np.random.default_rng(1)
    points, corners = rng.normal(size=(60, 3)), rng.normal(size=(60, 3, 3))
    corners[0, 2] = corners[0, 1]  # a segment
    corners[1, 1:] = corners[1, 0]  # a point
    distance = np.linalg.norm(closest_on_triangles(points, corners) - points, axis=1)
    expected = [dense_nearest(p, c) for p, c in zip(points, corners)]
    assert np.all(distance <= np.array(expected) + 1e-12)
    assert np.abs(distance - expected).max() < 0.02
    corner, edge, inside = np.array([[-1.0, -2, 0], [0.5, -3, 0], [0.2, 0.3, 4]])
    triangle = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    places = closest_on_triangles(np.stack([corner, edge, inside]), np.stack([triangle] * 3))
    assert np.allclose(places, [[0, 0, 0], [0.5, 0, 0], [0.2, 0.3, 0]])


def test_surface_distance_is_exact_with_triangles_of_all_sizes() -> None:
    rng = np.random.default_rng(2)
    vertices = rng.normal(size=(300, 3))
    faces = rng.integers(0, 300, (150, 3))
    vertices[:100] *= 0.01  # tiny triangles beside long ones
    faces[:60] = rng.integers(0, 100, (60, 3))
    points = rng.normal(size=(80, 3))
    pairs = closest_on_triangles(np.repeat(points, 150, 0), np.tile(vertices[faces], (80, 1, 1)))
    expected = np.linalg.norm(pairs - np.repeat(points, 150, 0), axis=1).reshape(80, 150).min(1)
    assert np.allclose(Surface(vertices, faces).distance(points), expected, atol=1e-12)


def test_a_checkered_plane_is_as_far_as_its_height() -> None:
    # true points stand alternately h above and h below the predicted plane: no rigid motion helps, the mean is h
    count, height = 41, 0.03
    sign = (-1.0) ** np.add.outer(np.arange(count), np.arange(count))
    truth, faces = grid(count, sign * height)
    plane, plane_faces = grid(5)
    plane *= [3, 3, 1]
    points = landmarks_on_plane()
    inner = np.abs(truth[:, :2]).max(1) < 0.8
    errors = region_errors(plane, plane_faces, points, truth, faces, points, {"patch": inner})
    assert errors["patch"] == pytest.approx(100 * height, rel=0.02)


def test_a_sphere_inside_a_shell_is_as_far_as_the_radii_differ() -> None:
    # landmarks agree, surfaces are concentric spheres of radius 1 and 1.05: 0.05 units are 5 mm
    ball, faces = sphere(60)
    points = np.random.default_rng(3).normal(size=(68, 3))
    all_of_it = {"all": np.ones(len(ball), bool)}
    errors = region_errors(1.05 * ball, faces, points, ball, faces, points, all_of_it)
    assert errors["all"] == pytest.approx(5.0, rel=0.03)  # facets of the spheres
    # but a sphere of another size with landmarks to match is the same shape
    same = region_errors(1.05 * ball, faces, 1.05 * points, ball, faces, points, all_of_it)
    assert same["all"] < 0.01


def test_landmarks_are_those_of_the_68_points_of_ibug() -> None:
    """Counted from 0: 27-30 bridge of the nose, 31-35 its base with 33 in the middle; 36-41 and 42-47 the eyes, from
    their corner on the picture's left over the upper lid; 48-59 the outer lips from a corner, 54 the other corner."""
    assert ALIGNMENT_LANDMARKS == (36, 39, 42, 45, 33, 48, 54)  # seven_keypoints of REALY's utils/util.py
    assert REGION_LANDMARKS == {
        "nose": (27, 28, 29, 30, 32, 33, 34),
        "mouth": (48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59),
        "forehead": (27, 36, 39, 42, 45),
        "cheek": (32, 34, 36, 45, 48, 54),
    }


def test_landmarks_pull_a_region_by_their_weight() -> None:
    """Of a flat face two landmarks in the middle are predicted 1 unit too high: of six of the cheek, which weigh a
    quarter of the points, of seven of the nose. The points want to stay; k of n that pull win w k / n / (1 + w)."""
    plane, faces = grid(21)
    points = np.zeros((68, 3))
    points[[36, 39, 42, 45, 48, 54], :2] = [[-5, 5], [-2, 5], [2, 5], [5, 5], [-5, -5], [5, -5]]
    points[[27, 28, 29, 30], :2] = [[0, 4], [0, -4], [3, 0], [-3, 0]]
    points *= 0.1
    predicted = points.copy()
    predicted[[32, 34], 2] = 1
    everywhere = np.ones(len(plane), bool)
    regions = dict.fromkeys(("nose", "mouth", "cheek", "chin"), everywhere)
    errors = region_errors(3 * plane, faces, predicted, plane, faces, points, regions)
    expected = {"nose": 100 * 2 / 7 / 2, "mouth": 0.0, "cheek": 100 * 0.25 * 2 / 6 / 1.25, "chin": 0.0}
    assert errors == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_density_of_the_true_mesh_does_not_count() -> None:
    # half of the truth lies on the plane; the other, of nine times the vertices, is now 4 mm above it, now below
    calm, calm_faces = grid(13)
    rough, rough_faces = grid(39, 0.04 * (-1.0) ** np.add.outer(np.arange(39), np.arange(39)))
    truth = np.concatenate([calm + [-1, 0, 0], rough * [1, 1, 0] + [1, 0, 0]])
    areas = vertex_areas(truth, np.concatenate([calm_faces, rough_faces + len(calm)]))
    assert areas[: len(calm)].sum() == pytest.approx(4) and areas[len(calm) :].sum() == pytest.approx(4)
    truth[len(calm) :, 2] = rough[:, 2]
    faces = np.concatenate([calm_faces, rough_faces + len(calm)])
    area = vertex_areas(truth, faces)  # a rough surface has more of it
    share = area[len(calm) :].sum() / area.sum()
    plane, plane_faces = grid(3)
    points = np.random.default_rng(0).uniform(-1, 1, (68, 3)) * [1, 1, 0]
    errors = region_errors(
        plane * [4, 4, 1], plane_faces, points, truth, faces, points, {"all": np.ones(len(truth), bool)}
    )
    assert errors["all"] == pytest.approx(4.0 * share, rel=0.02)


def sphere(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere and its triangles, outward."""
    polar, turn = np.meshgrid(np.linspace(0, np.pi, count), np.linspace(0, 2 * np.pi, count), indexing="ij")
    points = np.stack([np.sin(polar) * np.sin(turn), -np.cos(polar), np.sin(polar) * np.cos(turn)], -1)
    return points.reshape(-1, 3), grid(count)[1]


def test_only_what_a_scanner_sees_is_visible() -> None:
    outer, faces = sphere(40)
    vertices = np.concatenate([outer, 0.7 * outer])
    seen = visible_vertices(vertices, np.concatenate([faces, faces + len(outer)]), yaws=(0.0,))
    assert not seen[len(outer) :].any()  # the sphere inside
    inside = np.linalg.norm(outer[:, :2], axis=1) < 0.95
    assert (
        seen[: len(outer)][inside & (outer[:, 2] > 0)].all()
        and not seen[: len(outer)][inside & (outer[:, 2] < 0)].any()
    )


def test_sky_over_a_well_is_its_closed_form() -> None:
    """Of the cosine-weighted sky, r^2 / (r^2 + h^2) is seen from the middle of the floor of a well."""
    plane, plane_faces = grid(41)
    around, height = np.meshgrid(np.linspace(0, 2 * np.pi, 41), np.linspace(0, 1, 41))
    for depth in (0.4, 0.8, 1.6):
        wall = np.stack([0.8 * np.cos(around), 0.8 * np.sin(around), depth * height], -1).reshape(-1, 3)
        well = np.concatenate([plane, wall]), np.concatenate([plane_faces, plane_faces + len(plane)])
        middle = ambient_visibility(*well)[np.linalg.norm(plane, axis=1).argmin()]
        assert middle == pytest.approx(0.64 / (0.64 + depth**2), abs=0.08), depth


def test_cavities_and_nothing_else_are_left_out_of_regions(reference: Path, asset) -> None:
    """Our head bent onto ICT's mean lies on it in every region; it has no tunnels in its nose. What went is away from
    that surface (nostrils), or within a millimeter of the line between closed lips."""
    from facerecon.correspond.registration import registered
    from facerecon.morphable import load_face_model

    asset("makehuman")
    model = load_face_model("ict", num_identity=0, path=reference / "ict" / "ict_facekit_light.npz")
    ours = load_face_model("makehuman", num_identity=0)
    mean, faces, points = model.mean.double().numpy(), model.topology.faces, model.landmarks3d(model.mean[None])[0]
    bent, regions = torch.from_numpy(registered(ours, model)), head_regions(model)
    errors = region_errors(
        bent, ours.topology.faces, ours.landmarks3d(bent[None].float())[0], mean, faces, points, regions
    )
    assert max(errors.values()) < 0.10, errors

    monkey = pytest.MonkeyPatch()
    monkey.setattr("facerecon.correspond.regions.OPEN", -1.0)
    before = head_regions(model)
    monkey.undo()
    cut = {name: before[name] & ~regions[name] for name in before}
    assert not any((regions[name] & ~before[name]).any() for name in before)
    assert not cut["forehead"].any() and not cut["cheek"].any()
    away = Surface(bent, ours.topology.faces).distance(mean) * 100
    assert 90 < cut["nose"].sum() < 140 and (away[cut["nose"]] > 0.3).mean() > 0.95
    assert (away[before["nose"] & ~cut["nose"]] < 0.3).mean() > 0.95
    line = points[[48, 60, 61, 62, 63, 64, 54]].double().numpy()
    off = np.abs(mean[:, 1] - np.interp(mean[:, 0], line[:, 0], line[:, 1])) * 100
    assert cut["mouth"].sum() < 100 and off[cut["mouth"]].max() < 1.0
    assert ambient_visibility(mean, faces)[regions["nose"]].min() > OPEN


@pytest.fixture(scope="module")
def heads(reference: Path) -> dict:
    from facerecon.morphable import load_face_model

    model = load_face_model("ict", num_identity=30, path=reference / "ict" / "ict_facekit_light.npz")
    shape = model.shape(model.sample(torch.Generator().manual_seed(0), 1))[0]
    points = model.landmarks3d(shape[None])[0]
    mean_points = model.landmarks3d(model.mean[None])[0]
    regions = face_regions(model.mean, model.topology.faces, mean_points, torch.arange(model.num_vertices) < 6706)
    return {"model": model, "shape": shape, "points": points, "mean_points": mean_points, "regions": regions}


def test_perfect_prediction_has_no_error_whatever_its_frame(heads: dict) -> None:
    faces, shape, points = heads["model"].topology.faces, heads["shape"], heads["points"]
    turn = euler_to_matrix(torch.tensor([[0.3, -0.8, 0.2]]))[0]
    moved, moved_points = (2.5 * x @ turn.T + torch.tensor([3.0, -1.0, 4.0]) for x in (shape, points))
    errors = region_errors(moved, faces, moved_points, shape, faces, points, heads["regions"])
    assert max(errors.values()) < 1e-3


def test_error_grows_with_the_difference_of_heads(heads: dict) -> None:
    model, faces = heads["model"], heads["model"].topology.faces

    def errors(share: float) -> dict[str, float]:
        between, points = (
            share * a + (1 - share) * b
            for a, b in ((heads["shape"], model.mean), (heads["points"], heads["mean_points"]))
        )
        return region_errors(between, faces, points, heads["shape"], faces, heads["points"], heads["regions"])

    mean, half = errors(0.0), errors(0.5)
    for name in ("nose", "mouth", "forehead", "cheek"):
        assert 0.3 < mean[name] < 6.0
        assert half[name] == pytest.approx(mean[name] / 2, rel=0.3)


def test_regions_of_a_face(heads: dict) -> None:
    regions, mean = heads["regions"], heads["model"].mean.numpy()
    total = np.sum([mask.astype(int) for mask in regions.values()], 0)
    assert total.max() == 1
    points = heads["mean_points"].numpy()
    landmark = {name: {int(np.abs(mean - p).sum(1).argmin()) for p in points[rows]} for name, rows in
                {"nose": [28, 29, 30, 33], "mouth": [48, 51, 54, 57]}.items()}  # fmt: skip
    for name, vertices in landmark.items():
        assert all(regions[name][v] for v in vertices), name
    height = {name: mean[mask, 1].mean() for name, mask in regions.items()}
    assert height["mouth"] < height["cheek"] < height["forehead"] and height["mouth"] < height["nose"]
    for mask in regions.values():  # as much left as right
        assert abs(mean[mask, 0].mean()) < 0.02


def test_bad_input_is_one_line(heads: dict) -> None:
    faces, shape, points = heads["model"].topology.faces, heads["shape"], heads["points"]
    with pytest.raises(ShapeError, match="predicted_landmarks"):
        region_errors(shape, faces, points[:60], shape, faces, points, heads["regions"])
    with pytest.raises(InputError, match="not finite"):
        region_errors(shape, faces, points * float("nan"), shape, faces, points, heads["regions"])
    with pytest.raises(ShapeError, match="region 'nose'"):
        region_errors(shape, faces, points, shape, faces, points, {"nose": np.ones(3, bool)})
    with pytest.raises(InputError, match="no vertex"):
        region_errors(shape, faces, points, shape, faces, points, {"nose": np.zeros(len(shape), bool)})


# -- quadratic forms -------------------------------------------------------------------------------------


def mean_head(heads: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    model = heads["model"]
    return (
        model.mean.double().numpy(),
        model.topology.faces.numpy(),
        heads["mean_points"].double().numpy(),
        heads["regions"],
    )


def test_a_similarity_is_no_difference_and_flattening_is(heads: dict) -> None:
    vertices, faces, points, regions = mean_head(heads)
    turn, grow, shift, flatten = (
        lambda x: np.cross([0, 0, 1.0], x),
        lambda x: x - points.mean(0),
        lambda x: np.ones_like(x),
        lambda x: x * [0, 0, 0.1],
    )
    changes, moved = (np.stack([f(x) for f in (turn, grow, shift, flatten)]) for x in (vertices, points))
    for name, form in region_forms(vertices, faces, points, changes, moved, regions).items():
        assert np.abs(form[:3]).max() < 1e-9, name
        assert form[3, 3] > 1e-3, name


def test_forms_are_the_errors_of_small_changes(heads: dict) -> None:
    vertices, faces, points, regions = mean_head(heads)
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(6, 3)) * 3, rng.uniform(0, 6, 6), rng.normal(size=(6, 3)) * 0.02

    def change(x: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(x @ w + p)[:, None] * d for w, p, d in zip(*waves, strict=True)])

    forms = region_forms(vertices, faces, points, change(vertices), change(points), regions)
    for amount in rng.normal(size=(3, 6)):
        moved, keys = (x + np.einsum("k,kvc->vc", amount, change(x)) for x in (vertices, points))
        errors = region_errors(vertices, faces, points, moved, faces, keys, regions)
        for name, form in forms.items():
            spread = np.sqrt(amount @ form @ amount)
            assert 0.6 * spread < errors[name] < 1.05 * spread, name  # a mean of distances, a root mean square


def test_forms_ask_for_changes_that_fit(heads: dict) -> None:
    vertices, faces, points, regions = mean_head(heads)
    with pytest.raises(ShapeError, match="landmark_changes"):
        region_forms(vertices, faces, points, vertices[None], points[None, :60], regions)
