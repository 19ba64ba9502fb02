"""Images in and out of files: every kind of photo becomes one float tensor, every write is atomic."""

from __future__ import annotations

import contextlib
import glob
import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor

from facerecon.errors import InputError
from facerecon.modes import in_own_modes
from facerecon.storage import write_whole

__all__ = [
    "EXTENSIONS",
    "LoadedImage",
    "contact_sheet",
    "from_uint8",
    "list_images",
    "open_regions",
    "load_image",
    "read_image",
    "read_open_file",
    "to_pil",
    "to_uint8",
    "write_bytes",
    "write_jpg",
    "write_png",
]

_NO_PHOTOS = ("BUFR", "CUR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF", "WMF")


def _readable() -> tuple[str, ...]:
    """Endings of all kinds of photos that Pillow opens as it is installed, HEIC with pillow-heif; common ones first."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    endings = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind == "MPO" or (kind in Image.OPEN and kind not in _NO_PHOTOS)  # MPO is opened as JPEG
    }
    first = (".jpg", ".jpeg", ".png", ".webp")
    return (*first, *sorted(endings.difference(first)))


EXTENSIONS = _readable()
"""File name endings that :func:`list_images` takes from a folder, in small letters."""

_MAX_SIDE = 4096
_MAX_PIXELS = 100_000_000
_FOREIGN = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_HEIC = "to read HEIC: pip install 'facerecon[heic]' (or: pip install pillow-heif), or export it as JPEG or PNG"
_ORIENTATION_TAG = 0x0112
_GRAY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises at a file that is not whole."""


@dataclass(frozen=True)
class LoadedImage:
    """A decoded photo.

    Args:
        image: (3, H, W) float32 RGB in [0, 1], upright.
        scale: pixels of ``image`` per pixel of the file (1 unless the photo was reduced).
        size: (H, W) of the upright photo in the file.
        name: what to call it in messages (file name, or "image").
        white: the number of the file that is white, where whole numbers are no 8-bit colors.
    """

    image: Tensor
    scale: float
    size: tuple[int, int]
    name: str
    white: float | None = None


def read_image(source: Any, max_side: int | None = _MAX_SIDE, max_pixels: int = _MAX_PIXELS) -> Tensor:
    """The image of :func:`load_image`, alone: (3, H, W) float32 RGB in [0, 1]."""
    return load_image(source, max_side, max_pixels).image


@in_own_modes
def load_image(source: Any, max_side: int | None = _MAX_SIDE, max_pixels: int = _MAX_PIXELS) -> LoadedImage:
    """Decode any photo to upright RGB, in bounded memory.

    EXIF rotation is applied, transparency is laid over white, grayscale, palette, 16-bit, CMYK (through its
    embedded ICC profile where it has one) and animated files (first frame) become RGB.

    Args:
        source: path, encoded bytes, open binary file, PIL image, array (H, W), (H, W, 1|3|4) of uint8, uint16, bool
            or float in [0, 1], or tensor (3, H, W) / (1, 3, H, W) in [0, 1] or uint8.
        max_side: longer side in pixels beyond which a photo is reduced (antialiased); None keeps its size.
        max_pixels: largest pixel count that is decoded. A larger JPEG is decoded at 1/2, 1/4 or 1/8 if that
            brings it below; any other larger file is refused.

    Returns:
        The image and the scale at which it was read. A warning names 16-bit numbers that are taken for fewer bits.

    Raises:
        InputError: missing, empty, truncated or corrupt, not an image, or too large; always one line.
    """
    if isinstance(source, Tensor):
        return _shrunk(_from_tensor(source), max_side, "image")
    if isinstance(source, np.ndarray):
        return _shrunk(_from_array(source), max_side, "image")
    if isinstance(source, Image.Image):
        name, data, handle = "image", b"", source.copy
    else:
        name, data = _contents(source)
        handle = partial(Image.open, io.BytesIO(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images, odd EXIF and palettes: handled here
            with handle() as image:
                loaded = _decode(image, name, max_side, max_pixels)
    except UnidentifiedImageError:
        raise InputError(_not_an_image(name, data)) from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "more pixels than can be decoded", max_pixels)) from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is truncated or corrupt ({reason}); export it again.") from None
    _warn_of_depth(loaded.name, loaded.white)
    return loaded


def open_regions(source: Any, max_pixels: int = _MAX_PIXELS) -> Callable[[tuple, int], tuple[Tensor, tuple]]:
    """Parts of a photo at its own resolution, when :func:`load_image` had to reduce the whole.

    The photo is decoded once, at the first part, and kept in 8 bits.

    Args:
        source, max_pixels: as for :func:`load_image`.

    Returns:
        A function of (x0, y0, x1, y1), shares of the upright photo's width and height, and the longer side in pixels
        beyond which the part is reduced. It gives the part (3, h, w) in [0, 1], and the box that it really covers, in
        shares: whole pixels, inside the photo.
    """
    kept: list[Image.Image] = []

    def part(box: tuple[float, float, float, float], max_side: int) -> tuple[Tensor, tuple[float, ...]]:
        if not kept:
            kept.append(_upright(source, max_pixels))
        whole = kept[0]
        width, height = whole.size
        x0, y0 = (min(max(0, math.floor(v * n)), n - 1) for v, n in zip(box[:2], whole.size, strict=True))
        x1, y1 = (
            max(min(math.ceil(v * n), n), low + 1) for v, n, low in zip(box[2:], whole.size, (x0, y0), strict=True)
        )
        piece = whole.crop((x0, y0, x1, y1))
        rgb = _to_rgb(piece, _reduced_size(piece.width, piece.height, max_side, None))
        return from_uint8(np.asarray(rgb)), (x0 / width, y0 / height, x1 / width, y1 / height)

    return part


def _upright(source: Any, max_pixels: int) -> Image.Image:
    """A whole photo at its own resolution, 8 bits a channel, upright."""
    if isinstance(source, (Tensor, np.ndarray)):
        return to_pil(load_image(source, None).image)
    handle = source.copy if isinstance(source, Image.Image) else partial(Image.open, io.BytesIO(_contents(source)[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with handle() as image:
            if image.format in ("JPEG", "MPO"):
                image.draft(None, _reduced_size(*image.size, None, max_pixels))
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            image.load()
            if image.mode not in ("RGB", "L", "P", "RGBA", "CMYK"):
                image = _to_rgb(image, image.size)
            info = {key: image.info[key] for key in ("icc_profile", "transparency") if key in image.info}
            if orientation != 1:
                image = ImageOps.exif_transpose(_with_orientation(image, orientation))
            whole = image.copy() if image is source else image
            whole.info.update(info)
            whole.load()
            return whole


def read_open_file(source: Any) -> Any:
    """The bytes of an open binary file, from its start where it can go back there; any other source as it is.

    Raises:
        InputError: it is open as text, or closed.
    """
    if isinstance(source, (Tensor, np.ndarray, Image.Image, str, os.PathLike)) or not hasattr(source, "read"):
        return source
    try:
        if source.seekable():
            source.seek(0)
        data = source.read()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"the open file cannot be read ({error}); open it with open(path, 'rb').") from None
    if not isinstance(data, (bytes, bytearray)):
        raise InputError("the file is open as text; open it with open(path, 'rb').")
    return bytes(data)


def _contents(source: Any) -> tuple[str, bytes]:
    source = read_open_file(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "image", bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(os.path.expanduser(source))
        name = path.name or str(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected an image file (for many, give 'folder/*.jpg').")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; check the path.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{path} cannot be read ({reason}); check the path and its permissions.") from None
    else:
        raise InputError(
            "an image must be a path, bytes, an open binary file, a PIL image, an array or a tensor; "
            f"got {type(source).__name__}."
        )
    if not data:
        raise InputError(f"{name} is empty (0 bytes); export it again.")
    return name, data


def _not_an_image(name: str, data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _FOREIGN:
        return f"{name} is a HEIC/HEIF photo" + (
            ", truncated or corrupt; export it again." if ".heic" in EXTENSIONS else f"; {_HEIC}."
        )
    if data[4:8] == b"ftyp":
        return f"{name} is a video or an unsupported image container; export a frame as JPEG or PNG."
    head = data[:512]
    if head[:5] == b"%PDF-":
        return f"{name} is a PDF, not an image; export the picture as JPEG or PNG."
    if b"<svg" in head.lower():
        return f"{name} is an SVG drawing, not a photo; export it as PNG."
    text = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    kind = "holds text" if text > 0.95 * len(head) else "is no image format that is known here"
    return f"{name} {kind}; expected JPEG, PNG, WebP, TIFF or BMP. Check that it is the right file."


def _too_large(name: str, size: str, max_pixels: int) -> str:
    return f"{name} has {size}; at most {max_pixels / 1e6:.0f} megapixels are read. Reduce it first."


def _decode(image: Image.Image, name: str, max_side: int | None, max_pixels: int) -> LoadedImage:
    """Reduce while decoding where the format can, then convert to upright RGB."""
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        target = _reduced_size(width, height, max_side, max_pixels)
        if target != (width, height):
            image.draft(None, target)  # decodes at 1/2, 1/4 or 1/8, never below the target
    if image.width * image.height > max_pixels:
        raise InputError(_too_large(name, f"{width} x {height} pixels", max_pixels))
    deep = image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    image.load()
    if deep and 0 < max(high for _, high in image.getextrema()[:3]) < 16:  # Pillow keeps the upper 8 bits
        raise InputError(
            f"{name} holds at most 12 bits in 16-bit channels, of which 4 are left here; export it with 8 bits a "
            "channel."
        )
    target = _reduced_size(image.width, image.height, max_side, None)
    white = _white(np.asarray(image)) if image.mode in _GRAY and image.mode != "F" else None
    rgb = _to_rgb(image, target)
    if orientation != 1:
        rgb = ImageOps.exif_transpose(_with_orientation(rgb, orientation))
        if orientation in (5, 6, 7, 8):
            width, height = height, width
    tensor = from_uint8(np.asarray(rgb))
    return LoadedImage(tensor, tensor.shape[-1] / width, (height, width), name, white)


def _with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    image.info.pop("exif", None)
    image.info["exif"] = exif.tobytes()
    return image


def _reduced_size(width: int, height: int, max_side: int | None, max_pixels: int | None) -> tuple[int, int]:
    factor = 1.0
    if max_side is not None:
        factor = min(factor, max_side / max(width, height))
    if max_pixels is not None:
        factor = min(factor, math.sqrt(max_pixels / (width * height)))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """8-bit RGB of ``size``: profile, depth, palette and alpha resolved."""
    profile = image.info.get("icc_profile")
    if image.mode in _GRAY:
        values = np.asarray(image)
        shares = np.clip(np.nan_to_num(values / _white(values)), 0, 1)
        image = Image.fromarray(np.round(shares * 255).astype(np.uint8))
    elif "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode in ("1", "L", "P"):
        image = image.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BOX, reducing_gap=None)
    if image.mode == "RGBA":
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image)
        image = over.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _through_profile(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(values: np.ndarray) -> float:
    """The number that is white: the largest of as few bits as hold all; of floats also 1, with highlights above it."""
    most = values[np.isfinite(values)].max(initial=0)
    if values.dtype.kind == "f" and most <= 16:
        return 1.0
    for bits in (8, 10, 12, 16):
        if most < 2**bits:
            return 2.0**bits - 1
    raise InputError(f"the picture's numbers go up to {most:g}; export it with 8 or 16 bits a channel.")


def _warn_of_depth(name: str, white: float | None) -> None:
    if white is not None and white < 65535:
        warnings.warn(
            f"{name} holds no number above {white:.0f} in 16 bits or more; {white:.0f} is taken for white.",
            stacklevel=4,
        )


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Embedded ICC profile -> sRGB; an unusable profile is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != image.mode:
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return converted if converted is not None else image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        hint = " For (3, H, W), pass a tensor." if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise InputError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4); got {array.shape}.{hint}")
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    elif array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    elif array.dtype == np.uint16:
        white = _white(array)
        _warn_of_depth("the image array", white)
        array = array.astype(np.float32) / white
    elif array.dtype.kind != "f":
        raise InputError(f"an image array must be uint8, uint16 or float in [0, 1]; got {array.dtype}.")
    image = torch.from_numpy(np.array(array, np.float32)).permute(2, 0, 1)
    if image.shape[0] == 4:
        image = image[:3] * image[3:] + (1 - image[3:])
    return _checked_range(image.expand(3, -1, -1).contiguous(), "array")


def _from_tensor(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    image = tensor[0] if tensor.dim() == 4 and tensor.shape[0] == 1 else tensor
    if image.dim() != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        hint = " For (H, W, 3), pass an array." if image.dim() == 3 and image.shape[-1] in (3, 4) else ""
        raise InputError(f"an image tensor must be (3, H, W) or (1, 3, H, W); got {tuple(tensor.shape)}.{hint}")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point():
        raise InputError(f"an image tensor must be uint8 or float in [0, 1]; got {tensor.dtype}.")
    return _checked_range(image.float().expand(3, -1, -1).contiguous(), "tensor")


def _checked_range(image: Tensor, kind: str) -> Tensor:
    low, high = image.min().item(), image.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
        raise InputError(
            f"a float image {kind} must be in [0, 1]; got {low:.4g} to {high:.4g}. Divide by its range, 255?"
        )
    return image.clamp(0, 1)


def _shrunk(image: Tensor, max_side: int | None, name: str) -> LoadedImage:
    height, width = image.shape[-2:]
    size = _reduced_size(width, height, max_side, None)
    if size != (width, height):
        image = torch.nn.functional.interpolate(image[None], size[::-1], mode="area")[0]
    return LoadedImage(image, image.shape[-1] / width, (height, width), name)


# -- conversions and writing ----------------------------------------------------------------------------


def from_uint8(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous().float().div_(255)


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W), (1, H, W) or (H, W) in [0, 1], rounded and clamped -> (H, W, 3) or (H, W) uint8."""
    image = image.detach()
    for axes in (4, 3):
        if image.dim() == axes and image.shape[0] == 1:
            image = image[0]
    if image.dim() == 3 and image.shape[0] == 3:
        image = image.permute(1, 2, 0)
    elif image.dim() != 2:
        raise InputError(f"an image to write must be (3, H, W), (1, H, W) or (H, W); got {tuple(image.shape)}.")
    return image.float().nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W), (1, H, W) or (H, W) in [0, 1] -> PIL image."""
    return Image.fromarray(to_uint8(image))


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file so that it is there whole or not at all; see :func:`facerecon.storage.write_whole`.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    return write_whole(path, data)


def write_png(path: str | os.PathLike, image: Tensor, compress_level: int = 4) -> Path:
    """Write an image (3, H, W), (1, H, W) or (H, W) in [0, 1] as 8-bit PNG, atomically."""
    return _write(path, image, format="PNG", compress_level=compress_level)


def write_jpg(path: str | os.PathLike, image: Tensor, quality: int = 92) -> Path:
    """Write an image (3, H, W), (1, H, W) or (H, W) in [0, 1] as JPEG (4:4:4), atomically."""
    return _write(path, image, format="JPEG", quality=quality, subsampling=0)


def _write(path: str | os.PathLike, image: Tensor, **options: Any) -> Path:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, **options)
    return write_bytes(path, buffer.getvalue())


# -- many images ----------------------------------------------------------------------------------------


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def list_images(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Image files named by a file, a folder, a pattern, or a list of these, in natural order (2 before 10).

    Args:
        source: ``face.jpg``, ``folder/`` (its image files, not those of subfolders; a warning counts what else is
            there), ``'*.jpg'`` or ``'**/*.png'``, or several of them. A file or pattern is taken as it is, whatever
            its ending. What exists is no pattern: ``'My [2023] photos/*.jpg'``.

    Raises:
        InputError: nothing is there.
    """
    if isinstance(source, (list, tuple)) or (isinstance(source, Sequence) and not isinstance(source, (str, bytes))):
        paths = [path for item in source for path in list_images(item)]
        if not paths:
            raise InputError("no image was given; expected a file, a folder or a pattern such as '*.jpg'.")
        return list(dict.fromkeys(paths))
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        there = [p for p in path.iterdir() if not p.name.startswith(".") and p.is_file()]
        found = [p for p in there if p.suffix.lower() in EXTENSIONS]
        left = _left_out([p for p in there if p.suffix.lower() not in EXTENSIONS])
        if not found:
            raise InputError(f"{path} holds no image file ({left or ', '.join(EXTENSIONS[:4]) + ', ...'}); check it.")
        if left:
            warnings.warn(f"{path}: {left}.", stacklevel=2)
    elif any(mark in str(path) for mark in "*?["):
        patterns = (_literal_where_there(path), re.sub(r"\[", "[[]", str(path)))
        matches = ([Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p)] for text in patterns)
        found = next(filter(None, matches), [])
        if not found:
            raise InputError(f"no file matches '{source}'; quote the pattern and check the folder.")
    else:
        raise InputError(f"{path} does not exist; expected an image, a folder or a pattern such as '*.jpg'.")
    return sorted(found, key=_natural)


def _left_out(paths: Sequence[Path]) -> str:
    """What a folder's other files are, in short; "" if there are none."""
    if not paths:
        return ""
    names = ", ".join(path.name for path in sorted(paths, key=_natural)[:3])
    heic = any(path.suffix.lower() in (".heic", ".heif") for path in paths)
    return (
        f"{len(paths)} file{'s are' if len(paths) > 1 else ' is'} left out, as no photo that can be read here ({names}"
        f"{', ...' if len(paths) > 3 else ''})" + (f"; {_HEIC}" if heic else "")
    )


def _literal_where_there(pattern: Path) -> str:
    """A pattern with the leading folders that exist as they are written taken literally."""
    parts, done = pattern.parts, Path()
    for i, part in enumerate(parts):
        if not os.path.exists(done / part):
            return str(Path(glob.escape(str(done)), *parts[i:]))
        done /= part
    return glob.escape(str(pattern))


def contact_sheet(
    images: Sequence[Tensor] | Tensor, columns: int | None = None, labels: Sequence[str] | None = None, size: int = 224
) -> Tensor:
    """Many pictures on one white sheet, to look at: (3, H, W) in [0, 1].

    Args:
        images: (3, H, W), (1, H, W) or (H, W) tensors in [0, 1], of any sizes; or one (B, C, H, W) tensor.
        columns: pictures a row; by default about as many as rows.
        labels: one line of text under each picture.
        size: side in pixels of the square cell each picture is fitted into.
    """
    pictures = [to_pil(image).convert("RGB") for image in images]
    if not pictures:
        raise InputError("a contact sheet needs at least one image; got none.")
    if labels is not None and len(labels) != len(pictures):
        raise InputError(f"a contact sheet needs one label an image; got {len(labels)} for {len(pictures)}.")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    gap, foot = 4, 14 if labels is not None else 0
    step_x, step_y = size + gap, size + foot + gap
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x, y = gap + index % columns * step_x, gap + index // columns * step_y
        factor = size / max(picture.size)
        fitted = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        filter_ = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
        picture = picture.resize(fitted, filter_) if fitted != picture.size else picture
        sheet.paste(picture, (x + (size - fitted[0]) // 2, y + (size - fitted[1]) // 2))
        if labels is not None:
            draw.text((x + 2, y + size + 1), str(labels[index])[: size // 6], fill="black")
    return from_uint8(np.asarray(sheet))
