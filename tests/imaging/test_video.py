"""Frames come evenly spread, in order and with their times, from films, animated pictures and folders."""

from __future__ import annotations

import builtins
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from facerecon.errors import ConfigError, InputError
from facerecon.imaging import video


def gray(level: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8))


def test_frames_are_evenly_spread() -> None:
    assert video.chosen_frames(5, 9) == [0, 1, 2, 3, 4]
    assert video.chosen_frames(9, 3) == [0, 4, 8]
    assert video.chosen_frames(9, 1) == [4]
    many = video.chosen_frames(1000, 16)
    assert (many[0], many[-1], len(set(many))) == (0, 999, 16)
    assert set(np.diff(many)) <= {66, 67}
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="whole number"):
            video.chosen_frames(9, bad)


def test_a_folder_is_taken_in_natural_order(tmp_path) -> None:
    for number in (1, 2, 10, 11, 12):
        gray(10 * number).save(tmp_path / f"frame{number}.png")
    found = list(video.read_frames(tmp_path, 3))
    assert [f.name for f in found] == ["frame1.png", "frame10.png", "frame12.png"]
    assert [f.number for f in found] == [0, 2, 4]
    assert [f.time for f in found] == [0.0, 2 / 25, 4 / 25]
    assert [round(float(f.image.mean()) * 255) for f in found] == [10, 100, 120]


def test_an_animation_keeps_its_own_times(tmp_path) -> None:
    path = tmp_path / "clip.gif"
    frames = [gray(20 * i + 10) for i in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 200, 100, 300, 100])
    found = list(video.read_frames(path, 3))
    assert [f.number for f in found] == [0, 2, 4]
    assert np.allclose([f.time for f in found], [0.0, 0.3, 0.7])
    assert [round(float(f.image.mean()) * 255) for f in found] == [10, 50, 90]


def test_a_film_round_trip(tmp_path) -> None:
    pytest.importorskip("av", reason="films need PyAV (pip install av)")
    path = video.write_film(tmp_path / "clip.mp4", [gray(12 * i + 20, (41, 32)) for i in range(12)], 10)
    found = list(video.read_frames(path, 4))
    assert [f.number for f in found] == [0, 4, 7, 11]
    assert np.allclose([f.time for f in found], [0.0, 0.4, 0.7, 1.1])
    assert [tuple(f.image.shape) for f in found] == [(3, 32, 40)] * 4
    levels = [float(f.image.mean()) * 255 for f in found]
    assert np.abs(np.array(levels) - [20, 68, 104, 152]).max() < 3
    again = video.write_film(tmp_path / "again.mp4", [gray(12 * i + 20, (41, 32)) for i in range(12)], 10)
    assert path.read_bytes() == again.read_bytes()
    path.write_bytes(b"no film at all")
    with pytest.raises(InputError, match="cannot be read as a film"):
        list(video.read_frames(path))


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(video.read_frames(tmp_path / "nowhere.mp4"))
    film = tmp_path / "clip.MOV"
    film.write_bytes(b"x")
    assert video.is_film(film)
    assert not video.is_film(tmp_path / "clip.gif")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'facerecon\[video\]'.*folder of frames") as caught:
        list(video.read_frames(film))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="PyAV"):
        video.write_film(tmp_path / "out.mp4", [gray(1)])
    with pytest.raises(ConfigError, match=r"\.mp4"):
        video.write_film(tmp_path / "out.avi", [gray(1)])
    with pytest.raises(InputError, match="at least one frame"):
        video.write_film(tmp_path / "out.mp4", [])


def animation(path, size: tuple[int, int], count: int = 3, **options):
    frames = [gray(60 * i, size).convert("P") for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    return path


def test_frames_together_are_no_more_than_a_photo_may_be(tmp_path, monkeypatch) -> None:
    """Each frame is kept until the fit, so 16 of them may not take 16 times the memory of the largest photo."""
    monkeypatch.setattr(video, "_MAX_PIXELS", 3 * 20 * 20)
    path = animation(tmp_path / "clip.gif", (40, 30))
    assert [tuple(f.image.shape) for f in video.read_frames(path)] == [(3, 15, 20)] * 3
    assert [tuple(f.image.shape) for f in video.read_frames(path, 1)] == [(3, 26, 34)]
    for number in range(3):
        gray(9, (40, 30)).save(tmp_path / f"{number}.png")
    assert [tuple(f.image.shape) for f in video.read_frames(tmp_path / "*.png")] == [(3, 15, 20)] * 3


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_an_animation_that_is_too_large_is_refused_before_it_is_decoded(ending, tmp_path, monkeypatch) -> None:
    def decoded(*_):
        raise AssertionError("decoded")

    path = animation(tmp_path / f"clip.{ending}", (40, 30))
    monkeypatch.setattr(video, "read_image", decoded)
    for limit, value, words in (
        ("_MAX_PIXELS", 40 * 30 - 1, "40 x 30 pixels"),
        ("_MAX_DECODED", 3 * 40 * 30 - 1, "3 frames of 40 x 30 pixels"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(video, limit, value)
            with pytest.raises(InputError, match=words) as caught:
                list(video.read_frames(path, 2))
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_a_canvas_that_lies_is_refused(ending, tmp_path) -> None:
    """A few hundred bytes that say they are 60,000 px a side: 10 GB a frame."""
    path = animation(tmp_path / f"clip.{ending}", (40, 30))
    data = bytearray(path.read_bytes())
    at, sizes = {
        "gif": (6, struct.pack("<HH", 60_000, 60_000)),
        "webp": (24, (16_383).to_bytes(3, "little") * 2),
        "png": (16, struct.pack(">II", 60_000, 60_000)),
    }[ending]
    data[at : at + len(sizes)] = sizes
    if ending == "png":
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(video.read_frames(path, 2))
    assert "\n" not in str(caught.value) and "clip" in str(caught.value)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_a_broken_animation_is_one_line(ending, tmp_path) -> None:
    path = animation(tmp_path / f"clip.{ending}", (40, 30))
    data, said = path.read_bytes(), []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        try:
            list(video.read_frames(path))
        except InputError as error:
            said.append(str(error))
    assert said and all("\n" not in text and "clip" in text for text in said)
