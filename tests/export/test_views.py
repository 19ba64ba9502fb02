"""Pictures: closed forms for the lights, geometry against the camera, sizes and content of every sheet."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from facerecon.errors import ConfigError, InputError
from facerecon.export import views
from facerecon.geometry.camera import project
from facerecon.geometry.lighting import shade
from facerecon.types import Crop, Observation


@pytest.fixture
def observation(sphere_face):
    """A photo that is the sphere head itself in the fitted pose, light and camera; the full crop reaches over it."""
    size = 128
    camera = sphere_face.camera
    shot = views.shoot(views.posed_vertices(sphere_face), sphere_face.texture, sphere_face.topology, camera, 224)
    photo = views.textured(shot, sphere_face.params.light)
    # full crop: photo pixels 1.0 to 0.5 scale, shifted
    to_photo = torch.tensor([[[1.9, 0.0, -8.0], [0.0, 1.9, -6.0]]])
    rows = (torch.arange(size) + 0.5) * 1.9
    x, y = rows - 8.0, rows - 6.0
    grid = torch.stack(torch.meshgrid(y / 112 - 1, x / 112 - 1, indexing="ij")[::-1], dim=-1)[None]
    full = torch.nn.functional.grid_sample(photo, grid, align_corners=False)
    valid = ((grid.abs() <= 1).all(-1))[:, None].float()

    def crop(image, matrix, valid):
        ones = torch.ones_like(valid)
        return Crop(image, matrix, valid, ones, ones, ones, ones, ones)

    identity = torch.eye(2, 3)[None]
    return Observation(
        fit=crop(photo, identity, torch.ones(1, 1, 224, 224)),
        full=crop(full, to_photo, valid),
        landmarks68=views._predicted_landmarks(sphere_face, camera, None)[None],
        mesh468=torch.zeros(1, 468, 3),
        box=torch.zeros(1, 4),
        score=torch.ones(1),
        identity=torch.zeros(1, 128),
        eval_identity=torch.zeros(1, 1024),
        expression=torch.zeros(1, 7),
        age=torch.zeros(1),
        male=torch.zeros(1),
        path=("photo.jpg",),
        photo_size=((224, 224),),
    )


def test_lamp_is_a_clamped_cosine_to_second_order():
    """Projection of max(0, cos) on bands 0-2: never off by more than 0.1, exact mean and first moment."""
    direction = torch.tensor([0.3, -0.5, 0.8])
    light = views.sh_directional_light(direction.tolist(), (1.0, 0.5, 0.0), ambient=0.2)
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(1, 200000, 3, generator=generator), dim=-1)
    cosine = (normals[0] @ torch.nn.functional.normalize(direction, dim=0)).clamp(min=0)
    shading = shade(normals, light)[0]
    lamp = (shading - 0.2) / torch.tensor([1.0, 0.5, 1.0])
    assert (lamp[:, 0] - cosine).abs().max() < 0.1
    assert lamp[:, 0].mean() == pytest.approx(0.25, abs=3e-3)
    assert (lamp[:, 0] * cosine).mean() == pytest.approx(float((cosine**2).mean()), abs=3e-3)
    torch.testing.assert_close(lamp[:, 1], lamp[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(shading[:, 2], torch.full_like(cosine, 0.2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("yaw", [0.0, 35.0, -170.0])
def test_portrait_camera_holds_the_head_however_it_turns(sphere_face, yaw):
    shot = views.turned_view(sphere_face, yaw, 64)
    mask = shot.mask[0, 0]
    assert mask[0].sum() == mask[-1].sum() == mask[:, 0].sum() == mask[:, -1].sum() == 0
    rows = mask.any(1).nonzero()
    assert rows[-1] - rows[0] > 48


def test_the_neck_may_leave_the_frame(sphere_face):
    """With the lower half of the sphere called neck, the upper half fills the picture."""
    points, faces = sphere_face.vertices[0], sphere_face.topology.faces
    neck = points[faces][..., 1].amax(1) < 0.01
    topology = sphere_face.topology.replace(regions={"neck": neck})
    _, pivot = views.portrait_camera(sphere_face.vertices, topology=topology)
    assert pivot[1] == pytest.approx(0.5, abs=0.15)
    whole = views.turned_view(sphere_face, 0.0, 64).mask[0, 0]
    close = views.turned_view(sphere_face.replace(topology=topology), 0.0, 64).mask[0, 0]
    assert not whole[-1].any() and close[-1].any() and not close[0].any()


def test_positive_yaw_turns_to_the_viewers_right(sphere_face):
    """The nose of the sphere (+z) moves right in the picture, as `project` says it should."""
    marked = sphere_face.replace(texture=torch.zeros_like(sphere_face.texture))
    marked.texture[..., 12:20, 14:18] = 1.0  # around u = 0.5, v = 0.5: the front
    front = views.turned_view(marked, 0.0, 64).albedo.mean(1)[0]
    right = views.turned_view(marked, 30.0, 64).albedo.mean(1)[0]
    columns = torch.arange(64) + 0.5
    middle = [(image.sum(0) * columns).sum() / image.sum() for image in (front, right)]
    assert middle[0] == pytest.approx(32, abs=0.6)
    camera, _ = views.portrait_camera(sphere_face.vertices)
    nose = torch.tensor([[[math.sin(math.radians(30)), 0.0, math.cos(math.radians(30))]]])
    assert middle[1] == pytest.approx(float(project(camera, nose)[0, 0, 0]) * 64, abs=1.5)


def test_the_overlay_of_the_true_head_changes_nothing(sphere_face, observation):
    """A photo rendered from the fit, seen through its full crop: the overlay falls exactly on it."""
    camera = views.crop_camera(sphere_face, observation)
    shot = views.shoot(views.posed_vertices(sphere_face), sphere_face.texture, sphere_face.topology, camera, 128)
    inside = shot.mask * observation.full.valid
    smooth = torch.nn.functional.avg_pool2d(
        (views.textured(shot, sphere_face.params.light) - observation.full.image).abs() * inside, 9, 1, 4
    )
    assert inside.mean() > 0.3
    assert smooth.mean() < 0.05 * observation.full.image.mean()
    blended = views.overlay(observation.full.image, shot, sphere_face.params.light)
    outside = (shot.region == 0).expand_as(blended)
    torch.testing.assert_close(blended[outside], observation.full.image[outside])


def test_only_views_of_the_photo_have_its_residual_shading(sphere_face, observation, tmp_path):
    """Half as much light in UV's left half is half as much in the overlay; turned views and older files have none."""
    residual = torch.ones(1, 3, 8, 8)
    residual[..., :4] = 0.5
    shaded = sphere_face.replace(residual_shading=residual)
    ratio = shaded.texture_in_photo() / sphere_face.texture
    assert ratio[..., :12].allclose(torch.tensor(0.5)) and ratio[..., 20:].allclose(torch.tensor(1.0))
    assert sphere_face.texture_in_photo() is sphere_face.texture
    plain, dim = (views._photo_and_shot(face, observation, 64, "auto")[1].albedo for face in (sphere_face, shaded))
    assert dim.sum() < 0.9 * plain.sum()
    assert torch.equal(views.turned_view(shaded, 0.0, 64).albedo, views.turned_view(sphere_face, 0.0, 64).albedo)
    for face in (sphere_face, shaded):
        again = type(face).load(face.save(tmp_path / "face.safetensors"))
        assert torch.equal(again.texture_in_photo(), face.texture_in_photo())
    assert shaded[0].residual_shading.shape == (1, 3, 8, 8)


def test_landmarks_land_in_the_full_crop(sphere_face, observation):
    camera = views.crop_camera(sphere_face, observation)
    expected = views._predicted_landmarks(sphere_face, camera, None)
    torch.testing.assert_close(views._landmarks_in_crop(observation), expected, atol=1e-3, rtol=0)


def test_landmarks_are_drawn_where_they_are():
    """The middle of pixel (30, 20) is the point (30.5, 20.5)."""
    photo, points = torch.full((1, 3, 64, 64), 0.5), torch.tensor([[30.5, 20.5], [50.5, 40.5]])
    drawn = np.asarray(views.landmark_view(photo, points[1:], points[:1])).astype(int)
    changed = np.abs(drawn - drawn[0, 0]).sum(2) > 0
    for (x, y), color in zip(((30, 20), (50, 40)), (views._PREDICTED, views._OBSERVED), strict=True):
        rows, columns = np.nonzero(changed[y - 8 : y + 9, x - 8 : x + 9])
        assert abs(rows.mean() - 8) <= 0.5 and abs(columns.mean() - 8) <= 0.5
        assert (drawn[y - 8 : y + 9, x - 8 : x + 9][rows, columns] == color).all(1).any()


def test_clay_is_gray_lit_from_the_upper_left_and_empty_outside(sphere_face):
    shot = views.turned_view(sphere_face, 0.0, 96)
    image = views.clay(shot)[0]
    assert image.min() >= 0 and image.max() <= 1
    assert (image[0] - image[2]).abs().max() < 0.05
    assert image[:, 32, 32].mean() > 1.3 * image[:, 64, 64].mean()
    assert not image[:, shot.mask[0, 0] == 0].any()


@pytest.mark.parametrize("tile", [64, 100])
def test_panel_has_twelve_even_tiles(sphere_face, observation, tile):
    picture = views.panel(sphere_face, observation, tile=tile, title="photo.jpg", facts={"identity": 0.7123})
    assert picture.mode == "RGB"
    without = views.panel(sphere_face, tile=tile)
    gap = max(4, round(10 * tile / 320))
    assert picture.width == 4 * (tile + gap) + gap
    assert without.width == 3 * (tile + gap) + gap  # nine tiles
    strip = round(max(10, round(13.5 * tile / 320)) * 1.9)
    head = round(max(10, round(13.5 * tile / 320)) * 2.6)
    assert picture.height == head + 3 * (tile + strip + gap) + gap
    assert without.height == 3 * (tile + strip + gap) + gap
    photo = np.asarray(picture)[head + gap : head + gap + tile, gap : gap + tile]
    assert photo.std() > 10  # the first tile is the photo, not an empty cell


def test_panel_takes_one_of_a_batch(sphere_pair, observation):
    both = Observation.cat([observation, observation])
    with pytest.raises(InputError, match=r"index=0\.\.1"):
        views.panel(sphere_pair, both, tile=48)
    with pytest.raises(InputError, match="below 2"):
        views.panel(sphere_pair, both, tile=48, index=2)
    single = np.asarray(views.panel(sphere_pair[1], observation, tile=48))
    np.testing.assert_array_equal(np.asarray(views.panel(sphere_pair, both, tile=48, index=1)), single)


def test_visible_texture_keeps_what_was_visible(sphere_face):
    visibility = torch.zeros(1, 1, 32, 32)
    visibility[..., :16] = 1
    image = views._visible_texture(sphere_face.replace(visibility=visibility), 32)
    torch.testing.assert_close(image[..., :16], sphere_face.texture[..., :16])
    assert (image[..., 16:] - image.new_tensor(views._BACKDROP).view(1, 3, 1, 1)).abs().max() < 0.13


def test_turntable_and_animations(sphere_face, tmp_path):
    frames = views.turntable(sphere_face, 6, size=40)
    assert [f.size for f in frames] == [(40, 40)] * 6
    assert np.abs(np.asarray(frames[0], int) - np.asarray(frames[3], int)).mean() > 1  # front and back differ
    swing = views.turntable(sphere_face, 4, size=40, swing=30, shape_only=True)
    np.testing.assert_allclose(np.asarray(swing[0], int), np.asarray(swing[2], int), atol=1)
    for name in ("t.gif", "t.webp"):
        path = views.save_animation(tmp_path / "new" / name, frames, fps=10)
        with Image.open(path) as image:
            durations = [(f.load(), f.info["duration"])[1] for f in ImageSequence.Iterator(image)]
            assert len(durations) == 6 and set(durations) == {100} and image.info["loop"] == 0
    with pytest.raises(ConfigError, match=r"\.gif or \.webp"):
        views.save_animation(tmp_path / "t.mp4", frames)
    with pytest.raises(InputError, match="at least one frame"):
        views.save_animation(tmp_path / "t.gif", [])


def test_relit_strip_walks_from_left_to_right(sphere_face):
    plain = sphere_face.replace(texture=torch.full_like(sphere_face.texture, 0.6))
    strip = np.asarray(views.relit_strip(plain, 3, tile=64)).astype(float).mean(2)
    gap = 4
    cells = [strip[gap : gap + 64, gap + k * (64 + gap) : gap + k * (64 + gap) + 64] for k in range(3)]
    lean = [c[24:40, 12:24].mean() - c[24:40, 40:52].mean() for c in cells]
    assert lean[0] > 30 and abs(lean[1]) < 4 and lean[2] < -30


def test_a_head_without_a_texture_is_drawn_as_clay(sphere_face):
    face = sphere_face
    drawn = views.head_views(face.vertices, None, face.topology, yaws=(0.0,), size=32)
    shot = views.turned_view(face, 0.0, 64)
    middle = views.clay(shot)[:, :, 30:34, 30:34].mean()
    assert drawn.shape == (1, 3, 32, 32) and drawn[:, :, 15:17, 15:17].mean() == pytest.approx(middle.item(), abs=1e-5)
    assert views.head_views(face.vertices, face.texture, face.topology, size=32).shape == (1, 3, 32, 96)


def test_captioned_sheet_fits_any_size_and_clips_long_text():
    tiles = [Image.new("RGB", (40, 80), "red"), Image.new("L", (200, 50), 128), Image.new("RGB", (64, 64))]
    sheet = views.captioned_sheet(tiles, ["x" * 500, "", "c"], columns=2, title="t" * 400, note="n" * 400, tile=64)
    assert sheet.width == 2 * 64 + 3 * 4
    with pytest.raises(InputError, match="at least one picture"):
        views.captioned_sheet([])


def test_live_panel_writes_every_n_steps_and_the_last(tmp_path):
    path = tmp_path / "live.png"
    live = views.live_panel(path, every=4, tile=48)
    written = []
    for stage, steps in (("texture", 6), ("joint", 3)):
        for step in range(steps):
            report = SimpleNamespace(
                stage=stage, step=step, steps=steps, total=torch.tensor([1.0, 2.0]) / (step + 1),
                image=torch.rand(2, 3, 24, 24),
            )  # fmt: skip
            path.unlink(missing_ok=True)
            live(report)
            if path.exists():
                written.append((stage, step))
                with Image.open(path) as image:
                    assert image.width == 3 * 48 + 4 * 4
    assert written == [("texture", 0), ("texture", 4), ("texture", 5), ("joint", 0), ("joint", 2)]
    assert len(live.curve) == 9 and live.curve[1] == ("texture", pytest.approx(0.75))


def test_live_panel_updates_one_cell_of_a_notebook(monkeypatch):
    shown, updated = [], []

    class Handle:
        def update(self, picture):
            updated.append(picture)

    def display(picture, display_id):
        shown.append((picture, display_id))
        return Handle()

    ipython = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    live = views.live_panel(path=None, every=1, tile=48)
    for step in range(3):
        live(SimpleNamespace(stage="joint", step=step, steps=3, total=torch.ones(1), image=torch.zeros(1, 3, 8, 8)))
    assert len(shown) == 1 and shown[0][1] is True and len(updated) == 2
