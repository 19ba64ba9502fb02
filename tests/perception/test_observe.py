"""observe: landmarks against the released ones, invariances of a photo, crops that fit together, one-line errors."""

import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError, InputError, NoFaceError
from facerecon.geometry.alignment import deep3d_crop_transform
from facerecon.imaging.warp import crop_affine
from facerecon.perception import MEAN_FIVE_POINTS, observe
from facerecon.perception.detection import Detection
from facerecon.perception.landmarks import MIRRORED_68, map_points
from facerecon.perception.observe import _View
from facerecon.types import Observation

pytestmark = pytest.mark.usefixtures("networks")


def in_photo(seen: Observation) -> torch.Tensor:
    """Landmarks in photo pixels, (68, 2)."""
    return map_points(seen.fit.to_photo, seen.landmarks68)[0]


def between_eyes(points: torch.Tensor) -> torch.Tensor:
    return (points[36] - points[45]).norm()


def error(found: torch.Tensor, truth: torch.Tensor, part: slice = slice(None)) -> float:
    """Mean distance in percent of the distance between the outer eye corners."""
    return (100 * (found - truth)[part].norm(dim=1).mean() / between_eyes(truth)).item()


# Landmarks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "all_68", "without_jaw"),
    # In the turned views the released jaw runs inside the far cheek, ours along its visible edge.
    [("fitting_000007", 2.0, 1.8), ("front", 2.1, 1.8), ("left", 3.9, 2.4), ("right", 4.8, 3.7)],
)
def test_landmarks_against_the_released_ones(
    references, observed, name: str, all_68: float, without_jaw: float
) -> None:
    truth = next(r.landmarks for r in references if r.name == name)
    found = in_photo(observed[name])
    assert error(found, truth) < all_68
    assert error(found, truth, slice(17, 68)) < without_jaw


def test_the_released_landmarks_give_the_released_crops(reference, references) -> None:
    """Scale and center of the 224 px alignment, from the same landmarks, for four photos."""
    folder = reference / "ffhq_uv"
    with np.load(folder / "01223_trans_params.npz") as arrays:
        released = [arrays[name] for name in ("front", "left", "right")]
    for (_, _, landmarks), parameters in zip(references[1:], released, strict=True):
        to_photo = deep3d_crop_transform(landmarks[None], MEAN_FIVE_POINTS)[0]
        scale = parameters[2]
        center = to_photo @ torch.tensor([112.0, 112.0, 1.0])
        expected = torch.tensor([parameters[3], parameters[1] - parameters[4]])
        assert to_photo[0, 0].item() * scale == pytest.approx(1, abs=0.006)
        assert ((center - expected).norm() * scale).item() < 3


# A photo, changed ------------------------------------------------------------------------------------


def test_scaling_a_photo_scales_everything(seen, photo) -> None:
    double = observe(F.interpolate(photo[None], scale_factor=2, mode="bilinear"))
    assert error(in_photo(double) / 2, in_photo(seen)) < 1.0
    assert (double.landmarks68 - seen.landmarks68).norm(dim=-1).mean() < 1.0  # px of 224
    assert (double.mesh468 - seen.mesh468).norm(dim=-1).mean() < 1.5
    torch.testing.assert_close(double.fit.to_photo / 2, seen.fit.to_photo, atol=1.0, rtol=0.02)


def test_padding_a_photo_moves_everything(seen, photo) -> None:
    padded = observe(F.pad(photo, (60, 20, 30, 50), value=0.5))
    moved = in_photo(padded) - torch.tensor([60.0, 30.0])
    assert error(moved, in_photo(seen)) < 1.0


def test_mirroring_a_photo_mirrors_the_landmarks(seen, photo) -> None:
    mirrored = observe(photo.flip(-1))
    points = in_photo(mirrored)[list(MIRRORED_68)]
    points = torch.stack([photo.shape[-1] - points[:, 0], points[:, 1]], -1)
    assert error(points, in_photo(seen)) < 1.2
    agreement = (mirrored.face_mask.flip(-1) > 0.5) & (seen.face_mask > 0.5)
    either = (mirrored.face_mask.flip(-1) > 0.5) | (seen.face_mask > 0.5)
    assert agreement.sum() / either.sum() > 0.9


@pytest.mark.parametrize("degrees", [-25, 20])
def test_a_tilted_head_is_measured_as_well(seen, photo, degrees: int) -> None:
    angle = torch.tensor(degrees / 57.29578)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    offset = torch.tensor([224.0, 124.0]) - turn @ torch.tensor([160.0, 160.0])
    to_photo = torch.cat([turn, offset[:, None]], 1)[None]
    found = observe(crop_affine(photo[None], to_photo, 320))
    assert error(map_points(to_photo, in_photo(found)[None])[0], in_photo(seen)) < 1.6


def upright(points: torch.Tensor, turn: int, size: tuple[int, int]) -> torch.Tensor:
    """Points (N, 2) of a photo that was turned counter-clockwise by quarters from one of ``size`` (H, W) -> there."""
    x, y = points.unbind(-1)
    height, width = size
    return torch.stack({0: (x, y), 1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[turn], -1)


@pytest.mark.parametrize("turn", [1, 2])
def test_a_turned_photo_is_put_upright(seen, photo, turn: int) -> None:
    """What is measured stays in pixels of the photo as it is; the crops are upright."""
    cut = photo[:, :400]
    with pytest.warns(UserWarning, match=f"turned by {90 * turn} degrees clockwise") as said:
        found = observe(torch.rot90(cut, turn, (1, 2)))
    assert len(said) == 1 and found.turned == (90 * turn,) and seen.turned == (0,)
    assert found.photo_size == ((512, 400) if turn == 1 else (400, 512),)
    points = upright(in_photo(found), turn, (400, 512))
    assert error(points, in_photo(seen)) < 0.5
    corners = upright(found.box.view(2, 2), turn, (400, 512))
    assert torch.cat([corners.amin(0), corners.amax(0)]).sub(seen.box[0]).abs().max() < 10
    for crop, other in ((found.fit, seen.fit), (found.full, seen.full)):
        assert (crop.image - other.image)[:, :, : crop.image.shape[-1] // 2].abs().mean() < 0.02
    assert ((found.face_mask - seen.face_mask).abs() > 0.5).float().mean() < 0.03


@pytest.mark.parametrize(("scores", "turned"), [((0.7, 0.9), 180), ((0.7, 0.8), 0), ((0.9, 0.99), 0)])
def test_what_the_detector_is_unsure_of_gives_way_to_a_turn_with_a_clear_face(photo, scores, turned: int) -> None:
    """Two faces, one upside down; the scores are of upright faces in the photo as it is, and when it is turned."""
    both = torch.cat([photo[:, :320, 100:420], torch.rot90(photo, 2, (1, 2))[:, -320:, 100:420]], 2)
    module, calls = sys.modules["facerecon.perception.observe"], []

    def detector(image: torch.Tensor) -> list[Detection]:
        calls.append(image)
        box = (66.0, 75.0, 182.0, 187.0)
        return [Detection(box, scores[len(calls) > 1])] if len(calls) in (1, 4) else []

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(module, "load_detector", lambda: detector)
        warnings.simplefilter("ignore")
        assert observe(both).turned == (turned,)
    assert len(calls) == (1 if scores[0] == 0.9 else 4)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_views_of_a_turned_photo_say_where_in_it_they_are(photo, turn: int) -> None:
    """A part of a photo, enlarged and turned: its pixels, and a box in it, are where they came from."""
    part = F.interpolate(photo[None, :, 100:220, 60:260], scale_factor=2, mode="nearest")[0]
    view = _View(part, 2.0, 60.0, 100.0).turned(turn)
    to_photo = torch.tensor([[[0.5, 0.0, 20.0], [0.0, 0.5, 30.0]]])  # half a pixel of the view a pixel of the crop
    shown = crop_affine(view.image[None], to_photo, 100)
    assert (crop_affine(photo[None], view.to_photo(to_photo), 100) - shown).abs().mean() < 0.01
    seen = view.seen(Detection((100.0, 120.0, 140.0, 200.0), 0.5))
    x0, y0, x1, y1 = seen.box
    assert (x1 - x0, y1 - y0) == ((160, 80) if turn % 2 else (80, 160))
    back = map_points(view.to_photo(torch.eye(2, 3)[None]), torch.tensor([[[x0, y0], [x1, y1]]]))[0]
    assert torch.cat([back.amin(0), back.amax(0)]).tolist() == pytest.approx([100, 120, 140, 200], abs=1e-3)


def test_the_largest_face_to_be_trusted_is_taken(photo, seen) -> None:
    """A large sheet that the detector takes for a face, beside a small one that is: the small one."""
    detections = [Detection((0.0, 300.0, 200.0, 500.0), 0.9), Detection(tuple(seen.box[0].tolist()), 0.9)]
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["facerecon.perception.observe"]
        patch.setattr(module, "load_detector", lambda: lambda image: detections)
        patch.setattr(module, "_MESH_SCORE", -1.0)
        found = observe(photo)
    assert error(in_photo(found), in_photo(seen)) < 0.5


# What comes out --------------------------------------------------------------------------------------


def test_shapes_ranges_and_path(seen, photo) -> None:
    assert seen.fit.image.shape == (1, 3, 224, 224) and seen.full.image.shape == (1, 3, 896, 896)
    assert seen.landmarks68.shape == (1, 68, 2) and seen.mesh468.shape == (1, 468, 3)
    assert seen.photo_size == ((512, 512),) and len(seen.path) == 1
    for crop in (seen.fit, seen.full):
        for name in ("image", "valid", "face_mask", "skin_mask", "eye_mask", "mouth_mask", "lip_mask"):
            values = getattr(crop, name)
            assert values.dtype == torch.float32 and values.min() >= 0 and values.max() <= 1 + 1e-5, name
        face = crop.face_mask
        assert (crop.skin_mask <= face + 1e-3).all()
        for other in (crop.eye_mask, crop.lip_mask, crop.mouth_mask):
            assert ((crop.skin_mask + other) <= 1.35).all() and (other.sum() > 0)


def test_the_two_crops_show_the_same_face(seen, photo) -> None:
    fit, full = seen.fit, seen.full
    # one pixel of the fit crop is 1 / 1.4 * 4 pixels of the full one, about the same center
    torch.testing.assert_close(full.to_photo[0, 0, 0] * 896, 1.4 * fit.to_photo[0, 0, 0] * 224, atol=0, rtol=1e-4)
    centers = [crop.to_photo[0] @ torch.tensor([s / 2, s / 2, 1.0]) for crop, s in ((fit, 224.0), (full, 896.0))]
    torch.testing.assert_close(centers[0], centers[1], atol=1e-2, rtol=0)
    zoom = 896 / (1.4 * 224)
    to_full = torch.eye(2, 3)[None] * zoom
    to_full[:, :, 2] = 448 - 112 * zoom
    for name, tolerance in (("image", 0.03), ("face_mask", 0.02)):
        again = crop_affine(getattr(full, name), to_full, 224)
        assert (again - getattr(fit, name)).abs().mean() < tolerance


def test_beyond_the_photo_nothing_is_valid(photo) -> None:
    cut = observe(photo[:, 60:, 170:])
    to_photo, valid = cut.full.to_photo[0], cut.full.valid[0, 0]
    corner = to_photo @ torch.tensor([10.5, 10.5, 1.0])
    assert (corner < 0).any() and valid[10, 10] == 0 and valid[448, 448] == 1
    assert (cut.full.face_mask[0, 0] * (1 - valid)).max() == 0
    assert (cut.fit.face_mask * (1 - cut.fit.valid)).max() == 0


def in_photo_mask(seen: Observation, mask: torch.Tensor) -> torch.Tensor:
    """A mask of the full crop in photo pixels, (H, W) bool."""
    square = torch.cat([seen.full.to_photo, torch.tensor([[[0.0, 0.0, 1.0]]])], 1)
    return crop_affine(mask, torch.linalg.inv(square)[:, :2], seen.photo_size[0], padding="zeros")[0, 0] > 0.5


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union."""
    return ((a & b).sum() / (a | b).sum()).item()


def test_the_face_mask_against_the_released_one(reference, observed) -> None:
    """The released mask of this photo is the parsed face without the eyes."""
    with np.load(reference / "ffhq_uv" / "fitting_000007.npz") as arrays:
        truth = torch.from_numpy(arrays["parse_mask"][0, 0].astype(np.float32)) > 0.5
    seen = observed["fitting_000007"]
    bare = in_photo_mask(seen, seen.full.face_mask * (1 - seen.full.eye_mask))
    assert overlap(bare, truth) > 0.92


@pytest.mark.parametrize("view", ["left", "front", "right"])
def test_masks_against_the_released_parsing(reference, observed, view: str) -> None:
    """CelebAMask classes: 1 skin, 2-3 brows, 4-5 eyes, 10 nose, 11 mouth, 12-13 lips; one view a channel."""
    from PIL import Image

    parsed = np.asarray(Image.open(reference / "ffhq_uv" / "01223_final_seg_result.png"))
    classes = torch.from_numpy(parsed[..., ("left", "front", "right").index(view)].copy())
    full = observed[view].full
    for mask, members, least in (
        (full.face_mask, (1, 2, 3, 4, 5, 10, 11, 12, 13), 0.95),
        (full.skin_mask, (1, 10), 0.92),
        (full.lip_mask, (12, 13), 0.80),
        (full.eye_mask, (4, 5), 0.70),
    ):
        truth = torch.isin(classes, torch.tensor(members, dtype=classes.dtype))
        assert overlap(in_photo_mask(observed[view], mask), truth) > least, members


def test_masks_lie_on_what_they_name(seen) -> None:
    """Face-mesh centers of eyes and lips lie in their masks; cheeks are skin; above the hair there is none."""
    masks, points = seen.fit, seen.landmarks68[0]

    def at(mask: torch.Tensor, where: torch.Tensor) -> float:
        x, y = where.long().tolist()
        return mask[0, 0, y, x].item()

    for eye in (points[36:42].mean(0), points[42:48].mean(0)):
        assert at(masks.eye_mask, eye) > 0.8 and at(masks.skin_mask, eye) < 0.2 and at(masks.face_mask, eye) > 0.8
    lower_lip = (points[57] + points[66]) / 2
    assert at(masks.lip_mask, lower_lip) > 0.7 and at(masks.skin_mask, lower_lip) < 0.3
    assert at(masks.mouth_mask, (points[62] + points[66]) / 2) > 0.7  # she shows her teeth
    for cheek in ((points[31] + points[3]) / 2, (points[35] + points[13]) / 2):
        assert at(masks.skin_mask, cheek) > 0.8
    assert masks.face_mask[0, 0, :20].mean() < 0.05  # hair and background


def test_all_faces_become_a_batch(seen, photo) -> None:
    small = F.interpolate(photo[None], (400, 400), mode="area")[0]
    scene = torch.full((3, 512, 920), 0.5)
    scene[:, :, :512] = photo
    scene[:, 60:460, 515:915] = small
    both = observe(scene, face="all")
    assert both.batch == 2 and len(both.path) == 2
    sides = both.box[:, 2] - both.box[:, 0]
    assert sides[0] > sides[1]
    second = observe(scene, face=1)
    torch.testing.assert_close(second.landmarks68, both.landmarks68[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(second.identity, both.identity[1:], atol=1e-4, rtol=1e-3)
    assert (both.identity[0] - both.identity[1]).norm() < 0.35  # the same woman
    with pytest.raises(InputError, match=r"face=2 does not exist, 2 face"):
        observe(scene, face=2)


def test_other_sizes_and_margins(seen, photo) -> None:
    usual, seen = seen, observe(photo, crop_size=112, full_size=300, full_margin=2.0)
    assert seen.fit.image.shape[-1] == 112 and seen.full.face_mask.shape[-2:] == (300, 300)
    assert seen.full.to_photo[0, 0, 0] * 300 == pytest.approx(2 * 112 * seen.fit.to_photo[0, 0, 0].item(), rel=1e-4)
    torch.testing.assert_close(seen.landmarks68 * 2, usual.landmarks68, atol=0.01, rtol=0)


def test_threads_and_gradients_are_left_as_they_were(photo) -> None:
    before = torch.get_num_threads()
    seen = observe(photo)
    assert torch.get_num_threads() == before and torch.is_grad_enabled()
    assert not seen.identity.requires_grad


@pytest.mark.parametrize("height, width", [(400, 6000), (12000, 190)])
def test_large_photos_and_strips_are_in_pixels_of_their_file(photo, height: int, width: int) -> None:
    """A photo above 4096 px is reduced, a long screenshot is not, or nothing would be left of its face."""
    part, top, left = photo[:, 20:200, 140:320], 100, 5000
    if height > width:  # of a face that would have 25 px in a reduced strip
        part, top, left = F.interpolate(part[None], scale_factor=0.6, mode="area")[0], 9000, 5
    scene = torch.full((3, height, width), 0.6)
    scene[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    found, alone = observe(scene), observe(F.pad(part, (40, 40, 40, 40), value=0.6))
    assert found.photo_size == ((height, width),)
    offset = torch.tensor([left - 40.0, top - 40.0])
    assert error(in_photo(found) - offset, in_photo(alone)) < 2.5
    assert (found.box - offset.repeat(2) - alone.box).abs().max() < 0.3 * (alone.box[0, 2] - alone.box[0, 0])


# Errors ----------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


def test_a_photo_without_a_face_names_the_file(tmp_path) -> None:
    from facerecon.imaging.files import write_png

    path = write_png(tmp_path / "empty.png", torch.full((3, 200, 200), 0.5))
    with pytest.raises(NoFaceError) as error:
        observe(path)
    assert "empty.png" in one_line(error)


def test_tiny_photos_and_tiny_faces_say_how_small(photo) -> None:
    for height, width in ((80, 63), (20000, 60)):  # the file's own size, however far it had to be reduced
        with pytest.raises(InputError, match=f"is {width} x {height} px") as error:
            observe(torch.zeros(3, height, width))
        one_line(error)
    tiny = F.interpolate(photo[None], (150, 150), mode="area")[0]  # the face is some 34 px wide
    with pytest.raises(InputError, match=r"only 3\d px wide") as error:
        observe(tiny)
    one_line(error)


def test_a_small_face_is_a_warning(photo) -> None:
    small = F.interpolate(photo[None], (230, 230), mode="area")[0]  # some 52 px
    with pytest.warns(UserWarning, match="px wide"):
        observe(small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observe(photo)


@pytest.mark.parametrize("face", ["biggest", -1, True, 1.0])
def test_unknown_choices_of_face_are_refused(photo, face) -> None:
    with pytest.raises(ConfigError, match="face must be"):
        observe(photo, face=face)
