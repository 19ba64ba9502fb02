"""Every kind of photo reads the same; every broken one says so in one line."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from facerecon import assets
from facerecon.assets import store
from facerecon.errors import InputError, OutputError
from facerecon.imaging import files
from facerecon.run import RunDirectory
from facerecon.storage import write_whole


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(40, 60, 3) uint8, smooth and with a distinct color in each corner."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 255 / 59, y * 255 / 39, 255 - x * 2 - y * 2], -1).astype(np.uint8)


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text and len(text) < 200
    for word in words:
        assert word in text


def test_all_sources_agree(pixels, tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(pixels)
    image.save(path)
    expected = as_tensor(pixels)
    floats = pixels.astype(np.float64) / 255
    sources = [path, str(path), path.read_bytes(), image, pixels, floats, expected, expected[None]]
    sources.append(torch.from_numpy(pixels).permute(2, 0, 1))
    sources.append(pixels.astype(np.uint16) * 257)
    written = io.BytesIO(path.read_bytes())
    written.seek(0, io.SEEK_END)  # as it stands after a picture was saved into it
    sources += [written, expected.clone().requires_grad_()]
    for source in sources:
        loaded = files.load_image(source)
        assert loaded.image.dtype == torch.float32
        assert torch.allclose(loaded.image, expected, atol=1e-6), type(source)
        assert loaded.scale == 1 and loaded.size == (40, 60)


def test_a_path_with_a_tilde_and_open_files(pixels, tmp_path, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert files.load_image("~/a.png").name == "a.png"
    with open(tmp_path / "a.png", "rb") as file:
        assert torch.equal(files.read_image(file), as_tensor(pixels))
        assert torch.equal(files.open_regions(file)((0, 0, 1, 1), 99)[0], as_tensor(pixels))
    (tmp_path / "a.txt").write_text("words")
    with open(tmp_path / "a.txt", encoding="utf-8") as text, pytest.raises(InputError) as error:
        files.read_image(text)
    one_line(error, "open(path, 'rb')")
    with pytest.raises(InputError) as error:
        files.read_image(file)
    one_line(error, "closed file")


GRAY = np.linspace(0, 1, 60)[None].repeat(40, 0)  # from black to white


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PPM", "array"])
def test_numbers_of_fewer_bits_in_16_bits(kind, bits):
    values = np.round(GRAY * (2**bits - 1)).astype(np.uint16)
    if kind == "array":
        source = values
    elif kind == "PPM":
        source = b"P5 60 40 65535\n" + values.astype(">u2").tobytes()
    elif kind == "PNG":
        source = encode(Image.fromarray(values), "PNG")
    else:
        big = Image.frombytes("I;16B", (60, 40), values.astype(">u2").tobytes())
        source = encode(big if kind.startswith("big") else Image.fromarray(values), "TIFF")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = files.load_image(source)
    assert (loaded.image - torch.from_numpy(GRAY)).abs().max() < 0.003
    assert [f"{2**bits - 1} is taken for white" in str(w.message) for w in said] == [True] * (bits < 16)


@pytest.mark.parametrize("most", [1.0, 1.3, 255.0, 65535.0])
def test_floats_of_any_usual_range(most):
    values = np.round(GRAY * most, 6).astype(np.float32)
    values[0, 0] = np.nan
    found = files.read_image(encode(Image.fromarray(values), "TIFF"))
    expected = torch.from_numpy((GRAY * (1.3 if most == 1.3 else 1)).clip(0, 1))
    assert (found[:, 1:] - expected[1:]).abs().max() < 0.003


def test_numbers_beyond_16_bits_are_refused():
    values = np.round(GRAY * 2e9).astype(np.int32)
    with pytest.raises(InputError) as error:
        files.read_image(encode(Image.fromarray(values), "TIFF"))
    one_line(error, "8 or 16 bits")


def png_16(values: np.ndarray, color: int) -> bytes:
    """A PNG of 16 bits a channel (H, W, C); color 2 is RGB, 4 gray and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("color, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel(color, channels):
    values = np.round(GRAY * 65535)[..., None].repeat(channels, 2)
    if channels != 3:
        values[..., -1] = 65535
    found = files.read_image(png_16(values, color))
    assert (found - torch.from_numpy(GRAY)).abs().max() < 0.005
    with pytest.raises(InputError) as error:  # of 12 bits in them too little is left
        files.read_image(png_16(np.minimum(values // 16, 4095), color))
    one_line(error, "12 bits", "8 bits a channel")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_shows_the_upright_picture(pixels, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL transpose codes that store the picture turned
    stored = Image.fromarray(pixels)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options, tolerance in (("PNG", {}, 1e-6), ("JPEG", {"quality": 98, "subsampling": 0}, 0.04)):
        loaded = files.load_image(encode(stored, kind, exif=exif, **options))
        assert loaded.size == (40, 60)
        assert (loaded.image - as_tensor(pixels)).abs().max() < tolerance


def test_alpha_lies_over_white(pixels):
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    alpha[:10] = 128
    expected = as_tensor(pixels) * torch.from_numpy(alpha / 255.0).float() + 1 - torch.from_numpy(alpha / 255.0)
    rgba = np.dstack([pixels, alpha])
    image = Image.fromarray(rgba)
    for source in (rgba, encode(image, "PNG"), encode(image, "WEBP", lossless=True, exact=True)):
        assert (files.read_image(source) - expected).abs().max() < 0.006


def test_grayscale_palette_and_bit_depths(pixels):
    gray = pixels[..., 1]
    expected = torch.from_numpy(gray / 255.0).float().expand(3, -1, -1)
    eight = encode(Image.fromarray(gray), "PNG")
    sixteen = encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    tiff = encode(Image.fromarray(gray.astype(np.uint16) * 257), "TIFF")
    real = encode(Image.fromarray(gray.astype(np.float32) / 255), "TIFF")
    for source in (gray, eight, sixteen, tiff, real, gray.astype(np.uint16) * 257):
        assert (files.read_image(source) - expected).abs().max() < 1e-6
    bits = files.read_image(encode(Image.fromarray(gray > 100), "PNG"))
    assert torch.equal(bits[0], torch.from_numpy(gray > 100).float())
    palette = Image.fromarray(pixels).quantize(64)
    assert torch.equal(files.read_image(encode(palette, "PNG")), as_tensor(np.asarray(palette.convert("RGB"))))
    clear = np.asarray(palette).ravel()[0]
    transparent = files.read_image(encode(palette, "PNG", transparency=int(clear)))
    assert torch.equal(transparent[:, 0, 0], torch.ones(3))


def test_16_bit_rgb_png():
    """Pillow writes no 16-bit RGB, so the file is put together by hand: one pixel (65535, 32768, 0)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = zlib.compress(b"\0" + struct.pack(">3H", 65535, 32768, 0))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert torch.allclose(files.read_image(png).flatten(), torch.tensor([1.0, 0.5, 0.0]), atol=0.003)


def test_cmyk_jpeg(pixels):
    """Without a profile: R = (1 - C)(1 - K), to JPEG accuracy; a broken profile changes nothing."""
    image = Image.fromarray(pixels).convert("CMYK")
    plain = files.read_image(encode(image, "JPEG", quality=98, subsampling=0))
    assert (plain - as_tensor(pixels)).abs().mean() < 0.01
    broken = files.read_image(encode(image, "JPEG", quality=98, subsampling=0, icc_profile=b"nonsense" * 32))
    assert torch.equal(plain, broken)


def test_embedded_profile_is_applied(pixels):
    """A profile of exactly sRGB changes nothing; a LAB profile on RGB data is ignored."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(pixels)
    expected = as_tensor(pixels)
    assert (files.read_image(encode(image, "PNG", icc_profile=srgb)) - expected).abs().max() < 0.02
    assert torch.equal(files.read_image(encode(image, "PNG", icc_profile=lab)), expected)


def test_large_photos_are_reduced_and_tell_the_scale(pixels):
    big = Image.fromarray(pixels).resize((3000, 2000), Image.Resampling.BICUBIC)
    for kind in ("JPEG", "PNG"):
        loaded = files.load_image(encode(big, kind), max_side=300)
        assert loaded.image.shape == (3, 200, 300)
        assert loaded.scale == pytest.approx(0.1) and loaded.size == (2000, 3000)
        expected = files.read_image(big.resize((300, 200), Image.Resampling.BOX))
        assert (loaded.image - expected).abs().mean() < 0.01
    assert files.load_image(np.asarray(big), max_side=300).image.shape == (3, 200, 300)


def test_reduction_and_rotation_together(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    big = Image.fromarray(pixels).resize((600, 400))
    loaded = files.load_image(encode(big, "JPEG", exif=exif), max_side=60)
    assert loaded.image.shape == (3, 60, 40)
    assert loaded.size == (600, 400) and loaded.scale == pytest.approx(0.1)


@pytest.mark.slow
def test_panorama_in_bounded_memory():
    """12,000 x 6,000 JPEG: decoded at a reduced size, far below the 864 MB of its float pixels."""
    data = encode(Image.new("RGB", (12000, 6000), (200, 100, 50)), "JPEG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = files.load_image(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert loaded.image.shape == (3, 2048, 4096)
    assert grown < 500


def test_decompression_bomb_is_refused_before_decoding():
    """A PNG whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12_000, 60_000):
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
        png += chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        with pytest.raises(InputError) as error:
            files.read_image(png)
        one_line(error, "100 megapixels", "Reduce it")


def test_broken_files_give_one_line(pixels, tmp_path):
    jpeg = encode(Image.fromarray(pixels).resize((600, 400)), "JPEG")
    png = encode(Image.fromarray(pixels), "PNG")
    cases = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], ("cut.jpg is truncated or corrupt", "export it again")),
        "head.jpg": (jpeg[:30], ("head.jpg",)),
        "cut.png": (png[: len(png) // 2], ("cut.png is truncated or corrupt",)),
        "text.jpg": (b"Dear photo,\nyou are a letter.\n", ("text.jpg holds text", "expected JPEG")),
        "noise.jpg": (bytes(range(256)) * 4, ("noise.jpg", "expected JPEG")),
        "empty.jpg": (b"", ("empty.jpg is empty",)),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ("phone.heic is a HEIC",)),
        "paper.jpg": (b"%PDF-1.7\n", ("paper.jpg is a PDF",)),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as error:
            files.read_image(tmp_path / name)
        one_line(error, *words)
    with pytest.raises(InputError) as error:
        files.read_image(tmp_path / "missing.jpg")
    one_line(error, "missing.jpg does not exist")
    with pytest.raises(InputError) as error:
        files.read_image(tmp_path)
    one_line(error, "is a folder")


def test_flipped_bytes_never_escape_as_another_error(pixels):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        good = encode(Image.fromarray(pixels), kind)
        for _ in range(60):
            bad = bytearray(good)
            for position in rng.integers(0, min(len(bad), 300), 4):
                bad[position] = rng.integers(256)
            with contextlib.suppress(InputError):
                files.read_image(bytes(bad))


@pytest.mark.parametrize(
    "source, word",
    [
        (np.zeros((3, 8, 8), np.uint8), "pass a tensor"),
        (np.zeros((8, 8, 3), np.int64), "uint8"),
        (np.full((8, 8, 3), 200.0), "255"),
        (np.full((8, 8, 3), np.nan), "[0, 1]"),
        (torch.zeros(8, 8, 3), "pass an array"),
        (torch.zeros(2, 3, 8, 8), "(2, 3, 8, 8)"),
        (torch.full((3, 8, 8), 3.0), "[0, 1]"),
        (17, "int"),
    ],
)
def test_bad_arrays_say_what_to_do(source, word):
    with pytest.raises(InputError) as error:
        files.read_image(source)
    one_line(error, word)


def test_write_and_read_back(pixels, tmp_path):
    image = as_tensor(pixels)
    path = files.write_png(tmp_path / "new" / "a.png", image)
    assert torch.allclose(files.read_image(path), image, atol=1e-6)
    files.write_png(path, image[1:2])  # replaces; one channel
    assert torch.allclose(files.read_image(path)[0], image[1], atol=1e-6)
    jpg = files.write_jpg(tmp_path / "a.jpg", image)
    assert (files.read_image(jpg) - image).abs().mean() < 0.02
    assert sorted(os.listdir(tmp_path / "new")) == ["a.png"]


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_what_is_written_is_the_umask_s(mask, mode, tmp_path, monkeypatch):
    """A head is of a person: where the umask says that others may not read, they may not."""
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path / "home"))
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("unpacked/file", b"x")
    before = os.umask(mask)
    try:
        files.write_bytes(tmp_path / "out" / "result" / "a.bin", b"new")
        files.write_bytes(tmp_path / "out" / "result" / "a.bin", b"replaced")
        with RunDirectory(tmp_path / "out", {}).alone() as run:
            run.metrics.write(step=1)
            run.checkpoints.save(1, {"w": torch.ones(1)})
            lock = (tmp_path / "out" / ".lock").stat().st_mode & 0o777
        assets.derived("table", "1", lambda path: write_whole(path, b"x"))
        write_whole(tmp_path / "home" / "manifest.json", b"{}")
        store._unpack(SimpleNamespace(root="", label=""), archive, ["unpacked/file"], tmp_path / "home")
    finally:
        os.umask(before)
    found = [path for folder in ("out", "home") for path in (tmp_path / folder).rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {mode} and len(found) == 11
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o777 & ~mask}
    assert lock & mask == 0


def test_nothing_sets_a_mode_of_its_own():
    """No file of the library or the scripts is written by what ignores the umask."""
    root = Path(files.__file__).resolve().parents[2]
    sources = [path for folder in ("facerecon", "fit", "train") for path in (root / folder).rglob("*.py")]
    found = {
        (path.name, word)
        for path in sources
        for word in ("chmod(", "mkstemp(", "NamedTemporaryFile(", "save_file(", "0o6")
        if word in path.read_text("utf-8")
    }
    # the mode that the umask takes from, and a program in a temporary folder
    assert found == {("storage.py", "0o6"), ("store.py", "chmod(")}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_list_images(tmp_path):
    for name in ("b10.jpg", "b2.JPG", "a.png", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    names = [p.name for p in files.list_images(tmp_path)]
    assert names == ["a.png", "b2.JPG", "b10.jpg"]
    assert [p.name for p in files.list_images(str(tmp_path / "b*"))] == ["b2.JPG", "b10.jpg"]
    assert files.list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert len(files.list_images([tmp_path, tmp_path / "a.png"])) == 3
    (tmp_path / "empty").mkdir()
    cases = {tmp_path / "empty": "no image", tmp_path / "*.gif": "matches", "nowhere.jpg": "exist"}
    for bad, word in cases.items():
        with pytest.raises(InputError) as error:
            files.list_images(bad)
        one_line(error, word)


def test_a_folder_gives_all_that_can_be_opened(tmp_path, pixels, monkeypatch):
    """Whatever Pillow saves and opens as a photo is listed, under each of its endings, in capitals too."""
    import warnings

    kinds = {"JPEG": (".jfif", ".JPE", ".mpo"), "PNG": (".PNG",), "AVIF": (".avif",), "JPEG2000": (".jp2", ".j2k"),
             "TIFF": (".TIF",), "WEBP": (".webp",), "PPM": (".ppm", ".pnm"), "TGA": (".tga",)}  # fmt: skip
    for kind, endings in kinds.items():
        for ending in endings if kind in Image.OPEN else ():
            (tmp_path / f"photo{ending}").write_bytes(encode(Image.fromarray(pixels), kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        found = files.list_images(tmp_path)
    assert {p.name for p in found} == {p.name for p in tmp_path.iterdir()}
    for path in found:
        assert (files.read_image(path) - as_tensor(pixels)).abs().mean() < 0.05, path.name
    assert not {".pdf", ".eps", ".mpg", ".ico", ".h5", ".fli"} & set(files.EXTENSIONS)


def test_heic_is_read_where_it_can_be(tmp_path, pixels, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "phone.HEIC"
    heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95)
    assert files.list_images(tmp_path) == [path]
    assert (files.read_image(path) - as_tensor(pixels)).abs().mean() < 0.05
    whole = path.read_bytes()
    for length in (40, 400, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated or corrupt"):
            files.read_image(path)
    monkeypatch.setattr(files, "EXTENSIONS", (".jpg",))  # as without pillow-heif
    with pytest.raises(InputError) as error:
        files.list_images(tmp_path)
    one_line_of = str(error.value)
    assert "1 file is left out" in one_line_of and "phone.HEIC" in one_line_of and "facerecon[heic]" in one_line_of
    path.write_bytes(whole[:40])
    with pytest.raises(InputError) as error:
        files.read_image(path)
    one_line(error, "is a HEIC/HEIF photo", "pip install 'facerecon[heic]'", "export it as JPEG")


def test_what_a_folder_leaves_out_is_one_line(tmp_path):
    for name in ("a.jpg", "notes.txt", "b.CR2", "c.mp4", "d", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.txt").mkdir()
    with pytest.warns(UserWarning, match=r"4 files are left out.*\(b.CR2, c.mp4, d, \.\.\.\)\.$") as found:
        files.list_images(tmp_path)
    assert len(found) == 1


def test_what_exists_is_no_pattern(tmp_path):
    for name in ("My [2023] photos", "My 2 photos", "a*b", "x/[old]"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    here = str(tmp_path)
    assert files.list_images(f"{here}/My [2023] photos/*.jpg") == [tmp_path / "My [2023] photos" / "1.jpg"]
    assert files.list_images(f"{here}/My [0-9] photos/*.jpg") == [tmp_path / "My 2 photos" / "1.jpg"]
    assert files.list_images(f"{here}/*/[old]/*.jpg") == [tmp_path / "x" / "[old]" / "1.jpg"]
    assert files.list_images(f"{here}/a*b/?.jpg") == [tmp_path / "a*b" / "1.jpg"]
    assert files.list_images(f"{here}/My [2023] photos") == [tmp_path / "My [2023] photos" / "1.jpg"]
    assert len(files.list_images(f"{here}/**/*.jpg")) == 4
    (tmp_path / "[1].jpg").write_bytes(b"x")
    assert files.list_images(f"{here}/[1].jpg") == [tmp_path / "[1].jpg"]


def test_any_name_is_listed(tmp_path):
    names = [
        os.fsdecode(b"caf\xe9.jpg"),
        "1\u00b22.jpg",
        "\u0663.jpg",
        " .jpg",
        "a\nb.jpg",
        "[x]{y}$,='\"#.JPG",
        "...jpg",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = files.list_images(tmp_path)
    assert {p.name for p in found} == {name for name in names if not name.startswith(".")}


def test_contact_sheet_places_pictures(pixels):
    image = as_tensor(pixels)
    sheet = files.contact_sheet([image, image[:1], image, image], columns=3, size=60)
    assert sheet.shape == (3, 2 * 64 + 4, 3 * 64 + 4)
    assert torch.allclose(sheet[:, 14:54, 4:64], image, atol=1e-6)
    assert torch.equal(sheet[:, 70:, 70:], torch.ones_like(sheet[:, 70:, 70:]))
    with pytest.raises(InputError, match="one label"):
        files.contact_sheet([image], labels=["a", "b"])
