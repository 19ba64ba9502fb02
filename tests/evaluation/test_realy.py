"""REALY's protocol: hand-computed alignments, closed forms, invariances, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from facerecon.correspond.regions import REGION_LANDMARKS
from facerecon.errors import ConfigError, InputError, ShapeError
from facerecon.evaluation.realy import (
    BENDING_KEYPOINTS,
    ICP_KEYPOINTS,
    KEYPOINTS,
    REGIONS,
    RealyFolder,
    Scan,
    coarse_alignment,
    keypoints_of,
    read_keypoint_places,
    realy_errors,
    scan_of_head,
    write_mesh,
    write_realy_errors,
)

NOSE = Path("data", "REALY_scan_region", "2", "nose.obj")


def dome(count: int = 41, bump: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A face-like surface over [-1, 1]^2 with a nose of height 0.5, a bump beside it, and its triangles."""
    y, x = np.meshgrid(np.linspace(-1, 1, count), np.linspace(-1, 1, count), indexing="ij")
    z = 0.6 - 0.35 * x**2 - 0.2 * y**2 + 0.5 * np.exp(-(x**2 + y**2) / 0.03)
    z += bump * np.exp(-((x - 0.5) ** 2 + (y + 0.3) ** 2) / 0.05)
    a = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    quads = np.stack([a, a + 1, a + count + 1, a + count], 1)
    return np.stack([x, y, z], -1).reshape(-1, 3), np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])


def places(vertices: np.ndarray) -> np.ndarray:
    """(85,) vertices as keypoints, spread over a dome."""
    inner = np.flatnonzero(np.abs(vertices[:, :2]).max(1) < 0.9)
    return np.random.default_rng(0).permutation(inner)[:KEYPOINTS]


def regions_of(vertices: np.ndarray, faces: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Four patches with vertices of their own, as scans have them."""
    x, y = vertices[:, 0], vertices[:, 1]
    masks = {
        "nose": np.hypot(x, y) < 0.3, "mouth": (np.abs(x) < 0.4) & (y < -0.4) & (y > -0.8),
        "forehead": (np.abs(x) < 0.7) & (y > 0.4) & (y < 0.8), "cheek": (np.abs(x) > 0.4) & (np.abs(y) < 0.4),
    }  # fmt: skip
    cut = {}
    for name, mask in masks.items():
        inside = faces[mask[faces].all(1)]
        used, index = np.unique(inside, return_inverse=True)
        cut[name] = vertices[used], index.reshape(-1, 3)
    return cut


def turned(points: np.ndarray, scale: float = 2.5) -> np.ndarray:
    """Another frame: a turn by 90 degrees about x, then z, another size, far away."""
    return scale * points @ np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]).T + [3.0, -1.0, 4.0]


@pytest.fixture(scope="module")
def truth() -> dict:
    vertices, faces = dome()
    keys = places(vertices)
    return {"vertices": vertices, "faces": faces, "rows": keys,
            "scan": Scan(vertices[keys], regions_of(vertices, faces), millimeters=8.0)}  # fmt: skip


# -- alignment -----------------------------------------------------------------------------------------------


def test_a_hand_computed_coarse_alignment() -> None:
    # corners of a box of 2 x 4 x 6 around (1, 1, 1), to one of twice the size, turned by 90 degrees about z
    box = np.array([[x, y, z] for x in (0, 2) for y in (-1, 3) for z in (-2, 4)], dtype=float)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    scale, rotation, translation = coarse_alignment(box, 2 * box @ quarter.T + [5, 6, 7])
    assert scale == pytest.approx(2) and np.allclose(rotation, quarter) and np.allclose(translation, [5, 6, 7])
    # where the shapes differ the scale is a ratio of sums of absolute coordinates: 8 corners of (1, 2, 3) off the
    # middle sum to 48, of (1, 2, 9) to 96. Least squares would say (1 + 4 + 27) / 14 = 2.29.
    longer = (box - [1, 1, 1]) * [1, 1, 3]
    scale, rotation, translation = coarse_alignment(box, longer)
    assert scale == pytest.approx(2) and np.allclose(rotation, np.eye(3)) and np.allclose(translation, [-2, -2, -2])


def test_a_mirrored_prediction_is_not_mirrored_back() -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    _, rotation, _ = coarse_alignment(points * [-1, 1, 1], points)
    assert np.linalg.det(rotation) == pytest.approx(1)
    with pytest.raises(InputError, match="one point"):
        coarse_alignment(np.ones((7, 3)), points)
    with pytest.raises(InputError, match="finite"):
        coarse_alignment(points * np.nan, points)


# -- errors --------------------------------------------------------------------------------------------------


def test_a_perfect_prediction_has_no_error_in_any_frame(truth: dict) -> None:
    vertices, faces, rows, scan = (truth[k] for k in ("vertices", "faces", "rows", "scan"))
    same = realy_errors(vertices, faces, vertices[rows], scan)
    assert set(same.errors) == set(REGIONS) and max(same.errors.values()) < 1e-9
    moved = realy_errors(turned(vertices), faces, turned(vertices)[rows], scan)
    assert max(moved.errors.values()) < 1e-4
    assert np.allclose(moved.coarse, vertices, atol=1e-6)
    assert all(np.allclose(aligned, vertices, atol=1e-4) for aligned in moved.aligned.values())


def test_similarities_of_the_prediction_change_nothing(truth: dict) -> None:
    vertices, faces, rows, scan = (truth[k] for k in ("vertices", "faces", "rows", "scan"))
    other = vertices * [1.0, 1.1, 1.0] + np.array([0, 0, 0.1]) * np.sin(3 * vertices[:, :1])
    here = realy_errors(other, faces, other[rows], scan)
    there = realy_errors(turned(other, 0.01), faces, turned(other, 0.01)[rows], scan)
    assert min(here.errors.values()) > 0.01
    assert there.errors == pytest.approx(here.errors, rel=1e-4)
    assert here.mean == pytest.approx(np.mean(list(here.errors.values())))


def test_millimeters_are_the_scan_s(truth: dict) -> None:
    vertices, faces, rows, scan = (truth[k] for k in ("vertices", "faces", "rows", "scan"))
    other = vertices * [1.0, 1.1, 1.0]
    small = {name: (0.1 * v, f) for name, (v, f) in scan.regions.items()}
    shrunk = Scan(0.1 * scan.keypoints, small, millimeters=80.0)  # the same head in other units
    assert realy_errors(other, faces, other[rows], shrunk).errors == pytest.approx(
        realy_errors(other, faces, other[rows], scan).errors, rel=1e-3
    )


def test_shells_are_as_far_apart_as_their_radii() -> None:
    # keypoints agree, so nothing is scaled: all of a sphere of radius 1 lies 0.05 units, 5 mm, below one of 1.05
    polar, turn = np.meshgrid(np.linspace(0, np.pi, 40), np.linspace(0, 2 * np.pi, 60), indexing="ij")
    ball = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1).reshape(-1, 3)
    a = (np.arange(39)[:, None] * 60 + np.arange(59)).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + 61], 1), np.stack([a, a + 61, a + 60], 1)])
    keys = np.random.default_rng(1).normal(size=(68, 3))
    scan = Scan(keys, {"all": (ball, faces)}, 100.0, icp={"all": range(68)}, bending={}, by_area=True)
    found = realy_errors(1.05 * ball, faces, keys, scan).errors["all"]
    assert found == pytest.approx(5.0, rel=0.02)  # facets


def plane(count: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """[-1, 1]^2 at z = 0."""
    vertices, faces = dome(count)
    return vertices * [1, 1, 0], faces


def test_correspondences_from_both_sides_see_what_a_distance_does_not() -> None:
    """A flat face whose mouth is painted 2 mm to the side: every point lies on the prediction, but not where it
    belongs, and the whole region is bent there. A keypoint 4 mm or more from the region does not hold it."""
    vertices, faces = plane(41)
    keys = np.zeros((68, 3))
    keys[[36, 39, 42, 45, 33, 48, 54], :2] = [[-5, 5], [-2, 5], [2, 5], [5, 5], [0, 0], [-2, -5], [2, -5]]
    keys *= 0.1
    keys[[50, 52, 56, 58], :2] = [[-0.1, -0.4], [0.1, -0.4], [0.1, -0.6], [-0.1, -0.6]]
    keys[60] = [0.9, 0.5, 0]
    region, held = {"mouth": regions_of(vertices, faces)["mouth"]}, (50, 52, 56, 58, 60)
    other = keys.copy()
    other[[50, 52, 56, 58]] += [0.2, 0, 0]
    other[60] -= [0.7, 0, 0]
    for predicted, bending, expected in ((keys, held, 0.0), (other, (), 0.0), (other, held, 2.0)):
        scan = Scan(keys, region, 10.0, icp={}, bending={"mouth": bending})
        found = realy_errors(3 * vertices, faces, predicted, scan).errors["mouth"]
        assert found == pytest.approx(expected, abs=1e-3)


def test_keypoints_of_a_region_weigh_as_much_as_its_points_those_of_the_cheek_a_quarter() -> None:
    """Points want to stay on a plane, the one keypoint wants to go 1 unit up: it wins 1 / 2, of the cheek 1 / 5."""
    vertices, faces = plane()
    keys = np.zeros((68, 3))
    keys[[36, 39, 42, 45, 33, 48, 54], :2] = [[-5, 5], [-2, 5], [2, 5], [5, 5], [0, 1], [-2, -5], [2, -5]]
    predicted = keys.copy()
    predicted[0, 2] = 1  # in the middle of the region
    for name in REGIONS:
        scan = Scan(keys, {name: (vertices, faces)}, 10.0, icp={name: [0]}, bending={})
        found = realy_errors(3 * vertices, faces, predicted, scan).errors[name]
        assert found == pytest.approx(10 / 5 if name == "cheek" else 10 / 2, rel=1e-3)


def test_keypoints_are_those_of_the_released_code() -> None:
    """``keypoints_region_map`` of utils/util.py of github.com/czh-98/REALY; step 2 (utils/rICP.py) takes ``nose_part``
    and step 3 (utils/eval.py) ``nose``, and nothing for the cheek."""
    lips = [48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 64]
    nose = [27, 28, 29, 30, 31, 32, 33, 34, 35]
    forehead = [36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]
    cheek = [76, 77, 36, 41, 40, 39, 42, 47, 46, 45, 7, 8, 9]
    assert {name: sorted(held) for name, held in ICP_KEYPOINTS.items()} == {
        "nose": [*nose, 70, 71], "mouth": lips, "forehead": sorted(forehead), "cheek": sorted([*lips, *cheek]),
    }  # fmt: skip
    assert {name: sorted(held) for name, held in BENDING_KEYPOINTS.items()} == {
        "nose": nose, "mouth": lips, "forehead": sorted(forehead), "cheek": [],
    }  # fmt: skip
    assert (KEYPOINTS, REGIONS) == (85, ("nose", "mouth", "forehead", "cheek"))


def test_prediction_with_68_points_is_aligned_by_those(truth: dict) -> None:
    vertices, faces, rows, scan = (truth[k] for k in ("vertices", "faces", "rows", "scan"))
    assert max(realy_errors(vertices, faces, vertices[rows[:68]], scan).errors.values()) < 1e-9
    with pytest.raises(ShapeError, match="68"):
        realy_errors(vertices, faces, vertices[rows[:60]], scan)
    with pytest.raises(InputError, match="region 'nose'"):
        empty = Scan(scan.keypoints, {"nose": (vertices, np.zeros((0, 3), int))}, 1.0)
        realy_errors(vertices, faces, vertices[rows], empty)


def test_a_head_as_a_scan_keeps_its_regions(truth: dict) -> None:
    vertices, faces = truth["vertices"], truth["faces"]
    masks = {"nose": np.hypot(vertices[:, 0], vertices[:, 1]) < 0.3, "cheek": vertices[:, 0] > 0.4}
    keys = vertices[truth["rows"][:68]]
    scan = scan_of_head(vertices, faces, keys, masks)
    assert scan.by_area and scan.millimeters == 100
    assert scan.icp == REGION_LANDMARKS and scan.bending == {**REGION_LANDMARKS, "cheek": ()}
    for name, mask in masks.items():
        points, triangles = scan.regions[name]
        assert len(points) == mask.sum() and triangles.max() < len(points)
        assert {tuple(p) for p in points} <= {tuple(p) for p in vertices[mask]}
    assert max(realy_errors(vertices, faces, keys, scan).errors.values()) < 1e-9
    with pytest.raises(ShapeError, match="region 'nose'"):
        scan_of_head(vertices, faces, keys, {"nose": np.ones(3, bool)})


# -- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path: Path, truth: dict) -> Path:
    """A folder in REALY's layout with subjects 1 and 2, the photo of 1 twice."""
    from PIL import Image

    (tmp_path / "REALY_image" / "frontal").mkdir(parents=True)
    data = tmp_path / "data"
    for subject in ("1", "2"):
        write_mesh(data / "REALY_HIFI3D_keypoints" / f"{subject}.obj", truth["scan"].keypoints, np.zeros((0, 3), int))
        for name, (vertices, faces) in truth["scan"].regions.items():
            write_mesh(data / "REALY_scan_region" / subject / f"{name}.obj", vertices, faces)
    for name in ("1.jpg", "2.png", "1_2.jpg", "notes_1.jpg", "7.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "REALY_image" / "frontal" / name)
    (data / "metrical_scale.txt").write_text("8.000000000000000000e+00\n9.5\n")
    return tmp_path


def test_reading_the_benchmark(benchmark: Path, truth: dict) -> None:
    folder = RealyFolder(benchmark)
    assert list(folder.images) == ["1", "1_2", "2"]
    scan = folder.scan("1_2")
    assert (scan.millimeters, folder.scan("2").millimeters) == (8.0, 9.5) and not scan.by_area
    assert np.allclose(scan.keypoints, truth["scan"].keypoints, atol=1e-6)
    vertices, faces, rows = (truth[k] for k in ("vertices", "faces", "rows"))
    result = realy_errors(turned(vertices), faces, turned(vertices)[rows], scan)
    assert max(result.errors.values()) < 1e-3  # six digits of the files


@pytest.mark.parametrize(
    "degrade, message",
    [
        (lambda f: (f / "data" / "metrical_scale.txt").unlink(), "no metrical_scale.txt"),
        (lambda f: (f / "data" / "metrical_scale.txt").write_text("a b"), "not a list of numbers"),
        (lambda f: (f / "data" / "metrical_scale.txt").write_text("8\n"), "none for subject 2"),
        (lambda f: (f / NOSE).unlink(), "nose.obj cannot be read"),
        (lambda f: (f / NOSE).write_text("v 1 2\nv 1 2 3\nf 1 2 1"), "different lengths"),
        (lambda f: (f / NOSE).write_text("v 1 2 3"), "holds no faces"),
        (lambda f: (f / NOSE).write_text("v 1 2 3\nf 1 2 9"), "not there"),
        (lambda f: (f / NOSE).write_text("v 1 2 x"), "not of an OBJ"),
        (lambda f: (f / "data" / "REALY_HIFI3D_keypoints" / "2.obj").write_text("v 1 2 3"), "85 vertices"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_benchmark_is_one_line(benchmark: Path, degrade, message: str) -> None:
    degrade(benchmark)
    with pytest.raises(InputError, match=message) as error:
        RealyFolder(benchmark).scan("2")
    assert "\n" not in str(error.value)


def test_places_of_keypoints(tmp_path: Path, truth: dict) -> None:
    path = tmp_path / "HEAD.txt"
    rows = [[k, 0.25, 0.5] for k in range(KEYPOINTS)]
    path.write_text(json.dumps(rows))
    found = keypoints_of(truth["vertices"], truth["faces"], read_keypoint_places(path))
    a, b, c = (truth["vertices"][truth["faces"][:KEYPOINTS, k]] for k in range(3))
    assert np.allclose(found, 0.25 * a + 0.5 * b + 0.25 * c)
    with pytest.raises(InputError, match="another topology"):
        keypoints_of(truth["vertices"], truth["faces"][:9], read_keypoint_places(path))
    for text in ("[[1, 2, 3]]", "no", json.dumps([[-1, 0, 0]] * 85)):
        path.write_text(text)
        with pytest.raises(InputError):
            read_keypoint_places(path)


def test_the_error_file_is_the_benchmark_s(tmp_path: Path) -> None:
    errors = {"nose": 1.23456789, "mouth": 2.0, "forehead": 0.5, "cheek": 10.25}
    write_realy_errors(tmp_path / "REALY_error.txt", [("1", errors), ("2_3", errors)])
    lines = (tmp_path / "REALY_error.txt").read_text().splitlines()
    name, _, *numbers = lines[1].split("\t")  # as its own script reads it
    assert name == "2_3" and len(lines) == 2
    assert [float(n) for n in numbers] == pytest.approx([1.2345679, 2, 0.5, 10.25], abs=1e-6)
    with pytest.raises(ConfigError, match="cheek"):
        write_realy_errors(tmp_path / "x.txt", [("1", {"nose": 1.0})])
