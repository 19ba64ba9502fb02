"""Eyes: against closed forms, and colors painted and measured again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.correspond.obj import head_from_obj, known_landmarks, read_obj
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.eyes import (
    IRISES,
    MAP_ANGLE,
    SCLERA,
    eye_color,
    eye_map,
    eye_uvs,
    eyeball,
    find_eyes,
    iris_color,
)
from facerecon.render.uv import uv_raster


@pytest.fixture(scope="module")
def makehuman(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman", num_identity=4)


@pytest.fixture(scope="module")
def sockets(reference: Path) -> MorphableModel:
    mesh = read_obj(reference / "ffhq_uv" / "teaser1_hifi3dpp_head.obj")
    return head_from_obj(mesh, known_landmarks(mesh))


def mean_of(model: MorphableModel) -> np.ndarray:
    return model.mean.double().numpy()


def test_eyes_are_found_on_either_side(makehuman, sockets) -> None:
    right, left = find_eyes(mean_of(makehuman), makehuman.topology)
    assert (right.left, left.left) == (False, True) and right.bulges and left.bulges
    np.testing.assert_allclose(right.center * [-1, 1, 1], left.center, atol=1e-4)
    assert 0.13 < left.radius < 0.18 and math.radians(15) < left.iris_angle < math.radians(30)
    assert [eye.bulges for eye in find_eyes(mean_of(sockets), sockets.topology)] == [False, False]
    bare = makehuman.topology.replace(regions={})
    assert find_eyes(mean_of(makehuman), bare) == []


def test_an_eyeball_fills_its_socket(sockets) -> None:
    """A closed sphere, turned outward, behind every vertex of the lids' rim, and in front of the socket's bottom."""
    mean, topology = mean_of(sockets), sockets.topology
    faces, eyes = topology.faces.numpy(), topology.regions["eyes"].numpy()
    for eye in find_eyes(mean, topology):
        ball = eyeball(mean, topology, eye)
        a, b, c = (ball.vertices[ball.faces[:, k]] - ball.eye.center for k in range(3))
        volume = (a * np.cross(b, c)).sum() / 6
        assert volume == pytest.approx(4 / 3 * math.pi * ball.eye.radius**3, rel=0.03)
        edges = np.sort(np.concatenate([ball.faces[:, [0, 1]], ball.faces[:, [1, 2]], ball.faces[:, [2, 0]]]), 1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
        rim = np.intersect1d(faces[eye.rows], faces[~eyes])
        lids = mean[rim][np.linalg.norm(mean[rim, :2] - ball.eye.center[:2], axis=1) < 0.85 * ball.eye.radius]
        front = ball.eye.center[2] + np.sqrt(ball.eye.radius**2 - ((lids[:, :2] - ball.eye.center[:2]) ** 2).sum(1))
        assert len(lids) > 5 and (lids[:, 2] - front).min() == pytest.approx(0.005, abs=1e-6)


def test_gaze_turns_the_pupil(sockets) -> None:
    mean, topology = mean_of(sockets), sockets.topology
    for eye in find_eyes(mean, topology):
        ball, side = eyeball(mean, topology, eye), "Left" if eye.left else "Right"
        nose = -1 if eye.left else 1
        pupil = ball.vertices[:, 2].argmax()
        for name, axis, sign in (("In", 0, nose), ("Out", 0, -nose), ("Up", 1, 1), ("Down", 1, -1)):
            moved = ball.turned(f"eyeLook{name}{side}")
            assert moved[pupil, axis] * sign > 0.25 * ball.eye.radius
            distance = np.linalg.norm(ball.vertices + moved - ball.eye.center, axis=1)
            np.testing.assert_allclose(distance, ball.eye.radius, rtol=1e-9)
        for other in (f"eyeLookUp{'Right' if eye.left else 'Left'}", "jawOpen", "eyeBlinkLeft"):
            assert not ball.turned(other).any()


def test_places_on_the_map_are_angles() -> None:
    angle, around = np.array([0.0, 0.3, 1.0, 3.0]), np.array([0.0, 0.5, -2.0, 1.0])
    points = np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], 1)
    uv = eye_uvs(np.array([1.0, 2.0, 3.0]) + 0.2 * points, np.array([1.0, 2.0, 3.0]))
    reach = np.minimum(0.5 * angle / MAP_ANGLE, 0.499)
    np.testing.assert_allclose(uv, 0.5 + np.stack([reach * np.cos(around), reach * np.sin(around)], 1), atol=1e-9)


def test_a_drawn_eye_has_pupil_iris_and_white() -> None:
    iris_angle, size = 0.4, 256
    drawn = eye_map(iris_angle, IRISES["blue"], size=size)[0].permute(1, 2, 0).numpy()
    axis = ((np.arange(size) + 0.5) / size * 2 - 1) * MAP_ANGLE
    r = np.hypot(*np.meshgrid(axis, axis)) / iris_angle
    assert drawn[r < 0.25].max() < 0.06
    np.testing.assert_allclose(drawn[(r > 0.55) & (r < 0.75)].mean(0), IRISES["blue"], atol=0.07)
    level = np.abs(axis) < 0.05  # beside the iris, between the lids
    np.testing.assert_allclose(
        drawn[level][:, (np.abs(axis) > 0.44) & (np.abs(axis) < 0.5)].mean((0, 1)), SCLERA, atol=0.09
    )
    assert drawn.min() >= 0 and drawn.max() <= 1


@pytest.mark.parametrize("name", ["dark", "brown", "blue", "gray"])
def test_a_painted_iris_is_measured_again(makehuman, name) -> None:
    mean, topology, size = mean_of(makehuman), makehuman.topology, 512
    raster = uv_raster(topology, size)
    index = raster.face_index[0]
    inside = index >= 0
    points = (makehuman.mean[topology.faces[index[inside]]] * raster.barycentric[0][inside][..., None]).sum(1).numpy()
    colors = np.full((len(points), 3), 0.6)
    eyes = find_eyes(mean, topology)
    for eye in eyes:
        rows = np.isin(index[inside].numpy(), eye.rows)
        offset = points[rows] - eye.center
        across = np.linalg.norm(offset[:, :2], axis=1)
        place = offset[:, :2] * (np.arctan2(across, offset[:, 2]) / np.maximum(across, 1e-12))[:, None]
        colors[rows] = eye_color(place, eye.iris_angle, IRISES[name])
    texture = torch.zeros(size, size, 3)
    texture[inside] = torch.from_numpy(colors).float()
    measured = np.array(iris_color(texture.permute(2, 0, 1)[None], mean, topology, eyes))
    distance = {other: np.abs(measured - color).max() for other, color in IRISES.items()}
    assert min(distance, key=distance.get) == name and distance[name] < 0.1, (measured, distance)


def test_without_eyeballs_an_iris_is_brown(sockets) -> None:
    eyes = find_eyes(mean_of(sockets), sockets.topology)
    assert iris_color(torch.rand(1, 3, 32, 32), mean_of(sockets), sockets.topology, eyes) == IRISES["brown"]
