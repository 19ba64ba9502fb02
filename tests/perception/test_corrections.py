"""Landmarks and masks from a user: every file format gives the same points, what does not fit is one line."""

import json

import numpy as np
import pytest
import torch

from facerecon.errors import ConfigError, InputError
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.perception import observe, read_landmarks, read_mask
from facerecon.perception.corrections import check_landmarks, fit_mesh
from facerecon.perception.facemesh import EYES_AND_MOUTH
from facerecon.perception.landmarks import map_points


@pytest.fixture
def astronaut(photo, seen):
    """Photo, observation, landmarks in photo pixels."""
    return photo, seen, map_points(seen.fit.to_photo, seen.landmarks68)[0]


POINTS = np.round(np.random.default_rng(0).uniform(0, 500, (68, 2)), 3)


def test_every_format_holds_the_same_points(tmp_path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    (tmp_path / "b.json").write_text(json.dumps(POINTS.tolist()))
    (tmp_path / "c.json").write_text(json.dumps({"landmarks": POINTS.tolist()}))
    (tmp_path / "d.csv").write_text("x1,y1\n" + "\n".join(f"{x},{y}" for x, y in POINTS))
    (tmp_path / "e.txt").write_text("# made by hand\n" + "\n".join(f"{x:.4e}\t{y}" for x, y in POINTS))
    (tmp_path / "f.txt").write_text(" ".join(str(v) for v in POINTS.ravel()))
    (tmp_path / "g.pts").write_text(
        "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x} {y}" for x, y in POINTS) + "\n}\n"
    )
    for file in sorted(tmp_path.iterdir()):
        assert torch.allclose(read_landmarks(file), torch.from_numpy(POINTS).float(), atol=0.06), file.name
    assert torch.equal(read_landmarks(POINTS), read_landmarks(torch.from_numpy(POINTS)[None]))


def test_what_is_no_set_of_landmarks_is_one_line(tmp_path) -> None:
    cases = {
        "few.csv": ("\n".join("1,2" for _ in range(67)), "got 67 points"),
        "three.txt": ("\n".join("1 2 3" for _ in range(68)), "got 204 numbers"),
        "nan.csv": ("\n".join(["nan,1", *["1,2"] * 67]), "point 0 is not finite"),
        "bad.json": ("[[1, 2", "is not JSON"),
        "text.json": ('{"points": []}', "68 x 2"),
        "torn.csv": ("1,2\n3,4\nend of file\n", "got 'end of file' among them"),
        "empty.txt": ("", "got 0 numbers"),
        "shape.md": ("1 2", "Convert the file"),
        "pickle.npy": ("cos\nsystem\n(S'true'\ntR.", "cannot be read"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_landmarks(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="pickle"):
        read_landmarks(tmp_path / "object.npy")
    with pytest.raises(InputError, match="does not exist"):
        read_landmarks(tmp_path / "nowhere.npy")


def test_landmarks_must_lie_on_the_photo(astronaut) -> None:
    image, _, points = astronaut
    size = tuple(image.shape[-2:])
    check_landmarks(points, size)
    for wrong, message in [
        (points / 512, "one pixel"),
        (points + torch.tensor([600.0, 0.0]), "outside the photo"),
        (points * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 512.0]), "mirrored"),
        (points * torch.tensor([-1.0, 1.0]) + torch.tensor([512.0, 0.0]), "mirrored"),
    ]:
        with pytest.raises(InputError, match=message):
            check_landmarks(wrong, size)


def test_masks_fit_the_photo_by_their_aspect() -> None:
    mask = torch.zeros(60, 80)
    mask[10:30, 20:40] = 1
    assert torch.equal(read_mask(mask, (60, 80))[0], mask)
    large = read_mask(mask, (180, 240))
    assert large.shape == (1, 180, 240)
    assert large[0, 31:89, 61:119].min() > 0.99
    assert abs(large.mean() - mask.mean()) < 1e-3
    read_mask(torch.ones(101, 134), (60, 80))  # 1.327 for 1.333: rounding
    with pytest.raises(InputError, match=r"mask is 60 x 80 px; expected the photo's 80 x 60 px"):
        read_mask(mask.T, (60, 80))
    with pytest.raises(InputError, match="black everywhere"):
        read_mask(torch.zeros(60, 80), (60, 80))


def test_the_mesh_follows_the_landmarks(astronaut) -> None:
    """Moved, turned and grown with them; a mesh found on noise still ends on the face."""
    _, seen, _ = astronaut
    mesh, points = seen.mesh468, seen.landmarks68
    turn = euler_to_matrix(torch.tensor([[0.0, 0.0, 0.4]]))[:, :2, :2]
    inner = list(EYES_AND_MOUTH)
    for found in (mesh, torch.cat([mesh[..., :2] @ turn.mT * 0.7 + 30, mesh[..., 2:] * 0.7], -1)):
        bent = fit_mesh(found, points)
        assert (bent[0, inner, :2] - points[0, 36:]).norm(dim=1).mean() < 1.0  # px of 224
        assert (bent - mesh)[..., :2].norm(dim=-1).mean() < 2.0
        assert abs(bent[..., 2].std() / mesh[..., 2].std() - 1) < 0.1


def test_given_landmarks_need_no_detector(astronaut) -> None:
    """The detected ones, given back, change next to nothing; on a picture without a face they are all there is."""
    image, seen, points = astronaut
    again = observe(image, landmarks=points)
    assert (again.landmarks68 - seen.landmarks68).abs().max() < 1e-3
    assert (again.fit.image - seen.fit.image).abs().max() < 1e-3  # of a point that moved by rounding, 1e-4 px
    assert (
        torch.minimum(again.face_mask, seen.face_mask).sum() / torch.maximum(again.face_mask, seen.face_mask).sum()
        > 0.97
    )
    assert not again.mask_given[0]

    nobody = torch.full_like(image, 0.5)
    blank = observe(nobody, landmarks=points)
    assert (blank.landmarks68 - seen.landmarks68).abs().max() < 1e-3
    with pytest.raises(InputError, match=r"no face found.*landmarks="):
        observe(nobody)
    moved = observe(image, landmarks=points + 3.0)
    assert torch.allclose(map_points(moved.fit.to_photo, moved.landmarks68)[0], points + 3.0, atol=1e-3)


def test_given_masks_are_taken_as_they_are(astronaut) -> None:
    image, seen, points = astronaut
    mask = torch.zeros(image.shape[-2:])
    center, reach = points.mean(0), 25
    x, y = (int(v) for v in center)
    mask[y - reach : y + reach, x - reach : x + reach] = 1
    masked = observe(image, mask=mask)
    assert masked.mask_given == (True,)
    area = masked.fit.to_photo[0, :, :2].det()  # photo pixels per crop pixel
    assert abs(masked.face_mask.sum() * area / (2 * reach) ** 2 - 1) < 0.02
    assert (masked.skin_mask <= masked.face_mask + 1e-6).all()
    assert masked.full.eye_mask.sum() <= 1.02 * seen.full.eye_mask.sum()
    with pytest.raises(InputError, match="black where the face is"):
        observe(image, mask=mask.flip(0))
    with pytest.raises(ConfigError, match="one face"):
        observe(image, face="all", mask=mask)
