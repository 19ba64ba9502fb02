"""Which maps are trained on, and the codes of their faces."""

import numpy as np
import pytest
import torch
from PIL import Image

from facerecon.dataset import Manifest
from facerecon.errors import ConfigError, InputError
from facerecon.training.uv_maps import MapCodes, MapMemory, PairedCodes, held_out, identity_of, share_of


def test_shares_and_what_is_held_out() -> None:
    assert held_out(25) == [9, 19]
    assert share_of(20, 0.3) == [0, 3, 6, 10, 13, 16]
    assert set(share_of(100)) | set(held_out(100)) == set(range(100))
    assert not set(share_of(100)) & set(held_out(100))
    assert share_of(20, 1.0, leave_out=False) == list(range(20))
    for small, large in ((0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        assert set(share_of(50, small)) < set(share_of(50, large))
    for share in (0.0, 0.25, 1.1):
        with pytest.raises(ConfigError, match="share must be"):
            share_of(10, share)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_every_epoch_shows_every_map_once(folder) -> None:
    memory = MapMemory(folder, 8)
    indices = [0, 2, 3, 5]
    order = memory.order(indices, 1, range(12))
    epochs = [order[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(epoch) == indices for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert memory.order(indices, 1, [5, 6]) == order[5:7]  # whoever asks, whenever


@pytest.mark.parametrize("limit", [8.0, 0.0])
def test_images_are_the_files(folder, limit) -> None:
    memory = MapMemory(folder, 4, limit_gb=limit)
    images, shown = memory.images([5, 1])
    assert shown == [5, 1]
    assert images.shape == (2, 3, 4, 4)
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([200, 40]) / 127.5 - 1)
    assert torch.allclose(memory.mean([0, 5]), torch.full((3, 4, 4), 100 / 127.5 - 1), atol=1e-5)


def test_a_map_that_breaks_in_training_is_replaced(folder) -> None:
    memory = MapMemory(folder, 8, limit_gb=0)
    (folder / "3.png").write_bytes(b"gone")
    with pytest.warns(UserWarning, match=r"3\.png is left out"):
        images, shown = memory.images([3, 1])
    assert shown == [1, 1]
    assert torch.equal(images[0], images[1])
    (folder / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"1\.png"), pytest.raises(InputError, match="2 of 6 maps cannot be read"):
        memory.images([1, 2])


def test_truncation_of_codes_is_taken_back(folder) -> None:
    mean, full = torch.randn(5), torch.randn(6, 5)
    rows = [(i, i, {"source": torch.lerp(mean, full[i], 0.5), "views": torch.zeros(1)}, {}) for i in (0, 2, 5)]
    Manifest.collect(rows, {"settings": {"truncation": 0.5}}).save(folder / "manifest.safetensors")
    manifest = Manifest.load(folder / "manifest.safetensors")
    pairs = PairedCodes(manifest, [str(i) for i in range(6)], mean)
    assert pairs.truncation == 0.5
    assert pairs.known.tolist() == [True, False, True, False, False, True]
    assert torch.allclose(pairs.codes[[0, 2, 5]], full[[0, 2, 5]], atol=0.01)  # stored in half precision
    with pytest.raises(InputError, match="knows none of the maps"):
        PairedCodes(manifest, ["face"], mean)
    with pytest.raises(InputError, match=r"one code of 4 numbers"):
        PairedCodes(manifest, ["0"], mean[:4])
    with pytest.raises(ConfigError, match="pair_truncation"):
        PairedCodes(manifest, ["0"], mean, 0.0)


def test_codes_of_maps_are_whitened_coordinates(tmp_path) -> None:
    draws = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    memory = MapMemory(tmp_path, 16)
    rows = share_of(len(memory))
    codes = MapCodes(memory, rows, 5, mirror=True, side=8)
    known = codes.table[[*rows, *(i + len(memory) for i in rows)]]
    assert codes.table.shape == (2 * len(memory), 5)
    torch.testing.assert_close(known.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(known.T @ known / (len(known) - 1), torch.eye(5), atol=1e-3, rtol=0)
    some = codes.mean + (codes.table[3:4] @ codes.components.flatten(1)).view(1, 3, 8, 8)
    torch.testing.assert_close(codes.coordinates(some), codes.table[3:4], atol=1e-4, rtol=0)
    flipped = codes.coordinates(memory.images([3])[0].flip(-1))
    torch.testing.assert_close(flipped, codes.table[3 + len(memory)][None], atol=1e-4, rtol=0)


def test_files_are_known_by_name_size_and_content_not_by_place(tmp_path) -> None:
    """Other pixels change the end of a PNG, also of one that is as long; a missing file is one line."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for folder, pixels in (("a", noise), ("b", noise), ("c", noise[::-1])):
        (tmp_path / folder).mkdir()
        for name in ("0.png", "1.png"):
            Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / folder / name, compress_level=0)
    a, b, c = (identity_of(sorted((tmp_path / folder).iterdir())) for folder in "abc")
    assert a == b != c and a["files"] == c["files"] == 2
    assert len({path.stat().st_size for path in tmp_path.rglob("*.png")}) == 1
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "2.png")
    assert identity_of(sorted((tmp_path / "a").iterdir()))["content"] != b["content"]
    with pytest.raises(InputError, match=r"0\.png cannot be read"):
        identity_of([tmp_path / "a" / "0.png"])
