"""Shards go on where they were stopped and know what they were made with; wear is the same for any part of a batch."""

import pytest
import torch

from facerecon.errors import ConfigError, InputError
from facerecon.training.crops import (
    CropShards,
    PhotometricAugmentation,
    PhotometricSettings,
    observed_faces,
    photo_batch,
)


def squares(numbers):
    return {"number": torch.tensor(list(numbers)), "value": torch.tensor([n * n for n in numbers])}


def test_shards_go_on_and_grow(tmp_path, recwarn) -> None:
    made = []

    def make(numbers):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(numbers)
        return squares(numbers)

    shards = CropShards(tmp_path / "s", 10, {"a": 1}, each=4)
    assert shards.missing() == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt), shards.alone():
        shards.build(make)
    assert CropShards(tmp_path / "s", 10, {"a": 1}, each=4).missing() == [2]
    shards.build(squares)
    assert shards.load()["value"].tolist() == [n * n for n in range(10)]
    more = CropShards(tmp_path / "s", 14, {"a": 1}, each=4)
    assert more.missing() == [2, 3]  # the third had two of its four
    more.build(squares, rank=0, ranks=2)
    more.build(squares, rank=1, ranks=2)
    assert more.load()["number"].tolist() == list(range(14))
    assert CropShards(tmp_path / "s", 6, {"a": 1}, each=4).load()["number"].tolist() == list(range(6))
    more.path(1).write_bytes(b"cut")
    assert more.missing() == [1]
    assert len(recwarn) == 1


def test_shards_of_other_settings_are_refused(tmp_path) -> None:
    shards = CropShards(tmp_path, 4, {"size": 32, "seed": 0})
    with shards.alone():
        with pytest.raises(ConfigError, match=r"another|process"), shards.alone():
            pass
        shards.build(squares)
    with pytest.raises(ConfigError, match=r"made with other settings \(differs: size\)"):
        CropShards(tmp_path, 4, {"size": 64, "seed": 0})
    with pytest.raises(InputError, match="not one of 3 samples"):
        empty = CropShards(tmp_path / "none", 3, {})
        (tmp_path / "none").mkdir()
        empty.build(lambda numbers: {"number": torch.zeros(0, dtype=torch.int64)})
        empty.load()


def test_shards_of_before_settings_were_renamed_are_read(tmp_path) -> None:
    old, new = {"relief": 2.0, "slip": 0.006, "yaw": 18.0}, {"shape_residual": 2.0, "uv_jitter": 0.006, "yaw": 18.0}
    aliases = {"synthetic.relief": "synthetic.shape_residual", "synthetic.slip": "synthetic.uv_jitter"}
    aliases |= {"synthetic.stark": None, "synthetic.stain": None}
    for folder, gone in (("plain", {"stark": 0.0, "stain": 0.0}), ("stained", {"stark": 0.0, "stain": 0.2})):
        with CropShards(tmp_path / folder, 4, {"settings": old | gone}).alone():
            pass
    CropShards(tmp_path / "plain", 4, {"settings": new}, aliases=aliases)
    with pytest.raises(ConfigError, match=r"made with other settings \(differs: settings\)"):
        CropShards(tmp_path / "stained", 4, {"settings": new}, aliases=aliases)


def test_wear_depends_on_seed_and_number_alone() -> None:
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, state = images.clone(), torch.get_rng_state()
    wear = PhotometricAugmentation(seed=1)
    whole = wear(images, range(16))
    halves = torch.cat([wear(images[:8], range(8)), wear(images[8:], range(8, 16))])
    assert (halves - whole).abs().mean() < 1e-3  # rounding can move a pixel by a level of 8 bits
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert whole.min() >= 0 and whole.max() <= 1
    assert (whole - images).abs().mean() > 0.01
    assert not torch.equal(PhotometricAugmentation(seed=2)(images, range(16)), whole)
    shares = ("color", "gray", "blur", "motion", "coarse", "noise", "compression", "erase")
    assert torch.equal(
        PhotometricAugmentation(PhotometricSettings(**dict.fromkeys(shares, 0.0)))(images, range(16)), images
    )


@pytest.mark.parametrize("changes", [{"blur": 2}, {"group": 0}, {"quality": 0}])
def test_augmentation_that_cannot_be(changes) -> None:
    with pytest.raises(ConfigError, match=f"augment.{next(iter(changes))}"):
        PhotometricSettings(**changes)


def test_observed_faces(reference, observe_models, tmp_path) -> None:
    """A photo's crop, landmarks and embedding; a file that is no picture, and one without a face, are left out."""
    from pathlib import Path

    from PIL import Image

    photo = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
    bad, empty = tmp_path / "bad.jpg", tmp_path / "empty.png"
    bad.write_bytes(b"no picture")
    Image.new("RGB", (200, 200)).save(empty)
    paths = [bad, photo, empty]
    with pytest.warns(UserWarning, match="left out") as caught:
        rows = observed_faces(range(3), lambda n: (paths[n].name, paths[n]), 64)
    assert [str(w.message).split()[0] for w in caught if "left out" in str(w.message)] == ["bad.jpg", "empty.png"]
    assert rows["number"].tolist() == [1]
    batch = photo_batch(rows, [0])
    assert batch.image.shape == (1, 3, 64, 64) and batch.skin.shape == (1, 1, 64, 64)
    assert 0.1 < batch.skin.mean() < 0.6 and batch.embedding.shape == (1, 128)
    inner = batch.landmarks68[:, 17:]
    assert ((inner > 20) & (inner < 200)).all()
