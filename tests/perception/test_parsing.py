"""Masks: polygons against their area, hair and glasses left out, what is no face gives nothing."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from facerecon.errors import ShapeError
from facerecon.imaging.warp import crop_affine
from facerecon.perception import face_masks, frame_contrast, load_segmenter
from facerecon.perception.landmarks import map_points
from facerecon.perception.parsing import _polygon, _without_small_holes
from facerecon.types import Observation


def in_full(seen: Observation, points: Tensor) -> Tensor:
    """Points of the fit crop in pixels of the full crop, (1, N, 2)."""
    photo = map_points(seen.fit.to_photo, points[..., :2])
    square = torch.cat([seen.full.to_photo, torch.tensor([[[0.0, 0.0, 1.0]]])], 1)
    return map_points(torch.linalg.inv(square)[:, :2], photo)


@pytest.fixture
def full_mesh(seen) -> Tensor:
    return in_full(seen, seen.mesh468)


def masks_of(seen: Observation, image: Tensor, mesh: Tensor) -> Tensor:
    return face_masks(image, mesh, load_segmenter()(image), in_full(seen, seen.landmarks68))


@pytest.mark.parametrize("sides", [3, 4, 17])
def test_polygons_have_their_area_and_center(sides: int) -> None:
    angles = np.arange(sides) * 2 * math.pi / sides + 0.3
    points = np.stack([20.3 * np.cos(angles) + 41.2, 20.3 * np.sin(angles) + 33.8], 1)
    mask = _polygon(points, (70, 80))
    area = sides / 2 * 20.3**2 * math.sin(2 * math.pi / sides)
    assert mask.sum() == pytest.approx(area, rel=0.02)
    y, x = np.mgrid[:70, :80] + 0.5
    assert ((x * mask).sum() / mask.sum(), (y * mask).sum() / mask.sum()) == pytest.approx((41.2, 33.8), abs=0.06)
    assert _polygon(points, (70, 80), 0.5).sum() == pytest.approx(area * 1.5**2, rel=0.02)


def test_polygons_may_leave_the_image() -> None:
    square = np.array([[-10.0, -10.0], [5.0, -10.0], [5.0, 5.0], [-10.0, 5.0]])
    assert _polygon(square, (20, 20)).sum() == pytest.approx(25, abs=1.5)
    assert _polygon(square - 50, (20, 20)).sum() == 0


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    mask = np.ones((40, 40), bool)
    mask[0] = mask[5:8, 5:8] = mask[20:35, 20:35] = False
    filled = _without_small_holes(mask, 20)
    assert filled[5:8, 5:8].all() and not filled[20:35, 20:35].any() and not filled[0].any()


def test_the_fringe_is_no_face_and_the_skin_below_it_is(seen) -> None:
    """Places read off the sample photo by eye, (x, y) px."""
    square = torch.cat([seen.full.to_photo, torch.tensor([[[0.0, 0.0, 1.0]]])], 1)
    mask = crop_affine(seen.full.face_mask, torch.linalg.inv(square)[:, :2], seen.photo_size[0], padding="zeros")[0, 0]
    hair = [(225, 30), (240, 60), (255, 72), (270, 80), (205, 58), (180, 75), (290, 100), (170, 110)]
    skin = [(222, 95), (235, 90), (208, 92), (190, 120), (260, 122), (223, 170), (223, 150), (223, 125)]
    for name, places, face in (("hair", hair, False), ("skin", skin, True)):
        wrong = [p for p in places if (mask[p[1], p[0]].item() > 0.5) != face]
        assert not wrong, name


def test_brighter_and_bluer_photos_have_the_same_mask(seen, full_mesh) -> None:
    image = seen.full.image
    usual = masks_of(seen, image, full_mesh).face > 0.5
    for change in (image * 0.6, image * torch.tensor([0.85, 0.95, 1.0]).view(1, 3, 1, 1)):
        found = masks_of(seen, change, full_mesh).face > 0.5
        assert ((found & usual).sum() / (found | usual).sum()).item() > 0.95


def with_glasses(image: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor]:
    """The face with a dark frame drawn on, and the frame, (1, 1, H, W)."""
    canvas = Image.new("L", image.shape[-1:-3:-1])
    draw = ImageDraw.Draw(canvas)
    eyes = [mesh[0, [a, b]].mean(0) for a, b in ((33, 133), (362, 263))]
    width = (mesh[0, 33] - mesh[0, 133]).norm().item()
    for x, y in (e.tolist() for e in eyes):
        draw.ellipse([x - 0.9 * width, y - 0.65 * width, x + 0.9 * width, y + 0.65 * width], outline=255, width=12)
    (ax, ay), (bx, by) = (e.tolist() for e in eyes)
    draw.line([ax + 0.85 * width, ay - 10, bx - 0.85 * width, by - 10], fill=255, width=14)
    frame = torch.from_numpy(np.asarray(canvas).copy())[None, None].float() / 255
    return image * (1 - frame) + 0.08 * frame, frame


def test_drawn_glasses_are_seen_and_left_out(seen, full_mesh) -> None:
    bare, (worn, frame) = seen.full.image, with_glasses(seen.full.image, full_mesh)
    contrasts = [frame_contrast(image, full_mesh).item() for image in (bare, worn)]
    assert contrasts[0] < 0.02 and contrasts[1] > 0.08
    together = frame_contrast(torch.cat([bare, worn]), full_mesh.expand(2, -1, -1))
    torch.testing.assert_close(together, torch.tensor(contrasts))
    without, with_frame = (masks_of(seen, image, full_mesh).face for image in (bare, worn))
    drawn = (frame > 0.5) & (without > 0.5)
    assert ((with_frame > 0.5) & drawn).sum() / drawn.sum() < 0.2
    lost = (without > 0.5) & (with_frame < 0.5) & (frame < 0.5)
    assert lost.sum() / (without > 0.5).sum() < 0.1


def test_no_glasses_on_the_reference_photos(observed) -> None:
    for name, seen in observed.items():
        assert frame_contrast(seen.full.image, in_full(seen, seen.mesh468)).item() < 0.02, name


@pytest.mark.parametrize("broken", ["point", "line", "nan", "far"])
def test_what_is_no_mesh_gives_empty_masks(broken: str) -> None:
    mesh = {
        "point": torch.full((1, 468, 2), 30.0),
        "line": torch.linspace(0, 60, 468)[None, :, None] * torch.tensor([0.0, 1.0]),
        "nan": torch.full((1, 468, 2), torch.nan),
        "far": torch.rand(1, 468, 2) * 50 + 1000,
    }[broken]
    masks = face_masks(torch.rand(1, 3, 64, 64), mesh)
    for mask in (masks.face, masks.skin, masks.eye, masks.mouth, masks.lip):
        assert mask.shape == (1, 1, 64, 64) and (mask == 0).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="image"):
        face_masks(torch.rand(2, 3, 8, 8), torch.rand(1, 468, 2))
    with pytest.raises(ShapeError, match="mesh"):
        face_masks(torch.rand(1, 3, 8, 8), torch.rand(1, 68, 2))
