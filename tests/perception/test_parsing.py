"""Masks: polygons against their area, hair and glasses left out, one face of several, nothing where no face is."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from facerecon.errors import ShapeError
from facerecon.imaging.warp import crop_affine
from facerecon.perception import FaceParser, load_parser
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.facemesh import FACE_OVAL
from facerecon.perception.landmarks import map_points
from facerecon.perception.parsing import _polygon, class_share, face_outline
from facerecon.types import Observation


def in_full(seen: Observation, points: Tensor) -> Tensor:
    """Points of the fit crop in pixels of the full crop, (1, N, 2)."""
    photo = map_points(seen.fit.to_photo, points[..., :2])
    square = torch.cat([seen.full.to_photo, torch.tensor([[[0.0, 0.0, 1.0]]])], 1)
    return map_points(torch.linalg.inv(square)[:, :2], photo)


@pytest.fixture
def full_mesh(seen) -> Tensor:
    return in_full(seen, seen.mesh468)


class Painted(torch.nn.Module):
    """Stands for BiSeNet where the answer must be known: the class of a pixel is its red value times 18."""

    def forward(self, image: Tensor) -> Tensor:
        classes = (image[:, 0] * 18).round().long()
        return 30.0 * torch.nn.functional.one_hot(classes, 19).permute(0, 3, 1, 2).float()


def painted(**parts: tuple[int, int, int, int]) -> Tensor:
    """A picture (1, 3, 512, 512) of boxes (left, top, right, bottom) px, each of the class that it is named by."""
    image = torch.zeros(1, 3, 512, 512)
    for name, (left, top, right, bottom) in parts.items():
        image[:, :, top:bottom, left:right] = CLASSES.index(name.rstrip("_")) / 18
    return image


def round_mesh(x: float, y: float, radius: float) -> Tensor:
    """(1, 468, 2) px, a circle for the outline."""
    mesh = torch.tensor([float(x), float(y)]).repeat(1, 468, 1)
    angle = torch.arange(len(FACE_OVAL)) / len(FACE_OVAL) * 2 * torch.pi
    mesh[0, list(FACE_OVAL)] += radius * torch.stack([angle.sin(), -angle.cos()], 1)
    return mesh


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


def test_outlines_of_meshes() -> None:
    found = face_outline(torch.cat([round_mesh(40, 30, 20), round_mesh(40, 30, torch.nan)]), (70, 80))
    assert found.shape == (2, 1, 70, 80) and found[1].max() == 0
    assert found[0].sum().item() == pytest.approx(math.pi * 20**2, rel=0.02) and found[0, 0, 30, 40] == 1


def test_what_covers_a_face_is_left_out_with_a_margin() -> None:
    """Of hair, a hat, glasses and an earring: a hundredth of the face's height around them; not of a collar."""
    image = painted(
        skin=(156, 106, 356, 406), hair=(156, 106, 176, 406), hat=(176, 106, 356, 126), glasses=(200, 200, 300, 220),
        earring=(340, 300, 356, 320), cloth=(156, 380, 356, 406), left_eye=(220, 240, 240, 250),
    )  # fmt: skip
    mesh = round_mesh(256, 256, 150)
    masks = FaceParser(Painted())(image, mesh)
    face, cover = masks.face[0, 0], image[0, 0].mul(18).round()
    assert (face[cover == CLASSES.index("skin")] > 0.99).float().mean() > 0.9
    for name, inside, outside in (
        ("hair", (300, 178), (300, 182)), ("hat", (128, 250), (132, 250)), ("glasses", (222, 250), (226, 250)),
        ("earring", (310, 337), (310, 333)), ("cloth", (381, 250), (377, 250)),
    ):  # fmt: skip
        assert face[inside] < 0.05 and face[outside] > 0.95, name
    assert masks.eye[0, 0, 245, 230] == pytest.approx(1) and masks.skin[0, 0, 245, 230] == 0
    assert (masks.classes[0, 0] == cover).all() and masks.classes.dtype == torch.uint8


def test_of_two_faces_the_one_under_the_mesh_counts() -> None:
    """Glasses from side to side do not cut its forehead off; a face beside it and one far below are others."""
    image = painted(
        skin=(100, 100, 300, 350), glasses=(100, 180, 300, 200), skin_=(310, 100, 380, 350), skin__=(190, 470, 210, 512)
    )
    face = FaceParser(Painted())(image, round_mesh(200, 225, 90)).face[0, 0]
    assert face[150, 200] > 0.99 and face[250, 200] > 0.99
    assert face[:, 312:].max() == 0 and face[472:].max() == 0


def test_a_mask_that_is_given_is_taken_as_it_is(seen, full_mesh) -> None:
    """What of it is no eye, brow, lip or mouth is skin."""
    given = torch.zeros_like(seen.full.face_mask)
    given[..., 448:] = 1
    masks = load_parser()(seen.full.image, full_mesh, given)
    assert torch.equal(masks.face, given)
    assert masks.skin[..., :440].max() == 0 and 0.9 < masks.skin[..., 480:].mean() < 1
    eyes = seen.full.eye_mask[..., 480:] > 0.9
    assert masks.eye[..., 480:][eyes].mean() > 0.95 and masks.skin[..., 480:][eyes].mean() < 0.05


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
    usual = seen.full.face_mask > 0.5
    for change in (image * 0.6, image * torch.tensor([0.85, 0.95, 1.0]).view(1, 3, 1, 1)):
        found = load_parser()(change, full_mesh).face > 0.5
        assert ((found & usual).sum() / (found | usual).sum()).item() > 0.95


def test_probabilities_are_sure_inside_a_part_and_sum_to_one(seen) -> None:
    found = load_parser().probabilities(seen.full.image)
    assert found.shape == (1, 19, 512, 512)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 512, 512))
    face = class_share(found, "skin", "nose")
    assert face[face > 0.5].median() > 0.98
    assert (seen.fit.classes == CLASSES.index("hair")).float().mean() > 0.05
    assert (seen.full.classes == CLASSES.index("glasses")).sum() == 0


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


def test_drawn_glasses_are_left_out(seen, full_mesh) -> None:
    worn, frame = with_glasses(seen.full.image, full_mesh)
    masks = load_parser()(worn, full_mesh)
    drawn = (frame > 0.5) & (seen.full.face_mask > 0.5)
    assert (masks.face[drawn] > 0.5).float().mean() < 0.1
    assert (masks.classes[drawn] == CLASSES.index("glasses")).float().mean() > 0.8


def test_no_glasses_on_the_reference_photos(observed) -> None:
    for name, seen in observed.items():
        assert (seen.full.classes == CLASSES.index("glasses")).float().mean() < 1e-4, name


@pytest.mark.parametrize("broken", ["point", "line", "nan", "far"])
def test_what_is_no_mesh_gives_empty_masks(broken: str) -> None:
    mesh = {
        "point": torch.full((1, 468, 2), 30.0),
        "line": torch.linspace(0, 60, 468)[None, :, None] * torch.tensor([0.0, 1.0]),
        "nan": torch.full((1, 468, 2), torch.nan),
        "far": torch.rand(1, 468, 2) * 50 + 1000,
    }[broken]
    masks = FaceParser(Painted())(torch.full((1, 3, 64, 64), 1 / 18), mesh)
    for mask in (masks.face, masks.skin, masks.eye, masks.mouth, masks.lip):
        assert mask.shape == (1, 1, 64, 64) and (mask == 0).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="image"):
        FaceParser(Painted())(torch.rand(2, 3, 8, 8), torch.rand(1, 468, 2))
