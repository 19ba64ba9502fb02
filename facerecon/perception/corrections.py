"""What a user knows better than the networks: 68 landmarks and a face mask, from files or arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import InputError
from facerecon.imaging.files import load_image
from facerecon.perception.facemesh import EYES_AND_MOUTH
from facerecon.storage import parse_json, read_array, read_bounded

__all__ = ["LANDMARK_FORMATS", "check_landmarks", "fit_mesh", "read_landmarks", "read_mask"]

LANDMARK_FORMATS = (".npy", ".json", ".csv", ".txt", ".pts")
"""Endings of files that :func:`read_landmarks` reads."""

_EXPECTED = "expected 68 x 2 numbers: x and y in photo pixels, y down, in iBUG order"
_LARGEST = 1 << 20  # bytes of a file of landmarks
_BEYOND = 0.25  # of the landmarks' extent: how far a jaw that the photo cuts off may lie outside


def read_landmarks(source: Any) -> Tensor:
    """68 landmarks in the order of iBUG 300-W (jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67).

    Args:
        source: tensor or array (68, 2), or the path of a file: ``.npy`` (an array, never pickled), ``.json`` (68 pairs,
            or an object that holds them under "landmarks" or "landmarks68"), ``.csv`` and ``.txt`` (two numbers a
            line, or 136 numbers; lines that start with # and a header without numbers are skipped), ``.pts`` (iBUG).

    Returns:
        (68, 2) float32, pixels (x, y) of the photo: origin top-left, y down.

    Raises:
        InputError: the file cannot be read, or does not hold 68 finite points.
    """
    if isinstance(source, str | os.PathLike):
        name, values = Path(source).name, _values(Path(source))
    else:
        name, values = "landmarks", source
    try:
        points = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: {_EXPECTED}; got something else.") from None
    if points.size == 136 and points.shape[-1] in (2, 136):
        points = points.reshape(68, 2)
    if points.shape != (68, 2):
        count = f"{len(points)} points" if points.ndim == 2 and points.shape[1] == 2 else f"shape {points.shape}"
        raise InputError(f"{name}: {_EXPECTED}; got {count}.")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(1))
        raise InputError(f"{name}: {_EXPECTED}; point {bad[0]} is not finite. Correct it, or remove the file.")
    return torch.from_numpy(points).float()


def _values(path: Path) -> Any:
    """Whatever numbers a landmark file holds."""
    if path.suffix.lower() not in LANDMARK_FORMATS:
        known = ", ".join(LANDMARK_FORMATS)
        raise InputError(f"{path.name}: landmarks are read from {known}; got '{path.suffix}'. Convert the file.")
    try:
        if path.suffix.lower() == ".npy":
            return read_array(path, _LARGEST)
        text = read_bounded(path, _LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path.name} cannot be read ({reason}); {_EXPECTED}.") from None
    if path.suffix.lower() == ".json":
        try:
            values = parse_json(text)
        except ValueError as error:
            raise InputError(f"{path.name} is not JSON ({error}); {_EXPECTED}.") from None
        if isinstance(values, dict):
            values = next((values[key] for key in ("landmarks", "landmarks68") if key in values), None)
        return values
    if path.suffix.lower() == ".pts":
        text = text[text.find("{") + 1 : text.rfind("}") if "}" in text else None]
    rows: list[list[float]] = []
    for line in text.splitlines():
        words = line.split("#")[0].replace(",", " ").replace(";", " ").split()
        try:
            row = [float(word) for word in words]
        except ValueError:
            if rows:
                raise InputError(f"{path.name}: {_EXPECTED}; got '{line.strip()[:40]}' among them.") from None
            continue  # a header
        if row:
            rows.append(row)
    if rows and all(len(row) == 2 for row in rows):
        return rows
    flat = [number for row in rows for number in row]
    if len(flat) != 136:
        raise InputError(f"{path.name}: {_EXPECTED}; got {len(flat)} numbers in {len(rows)} lines.")
    return flat


def check_landmarks(points: Tensor, size: tuple[int, int], name: str = "landmarks") -> None:
    """Hold landmarks against their photo.

    Args:
        points: (68, 2) px.
        size: (H, W) of the photo.

    Raises:
        InputError: they lie outside the photo, in one place, or are mirrored (y up, or left and right exchanged).
    """
    low, high = points.amin(0), points.amax(0)
    extent = (high - low).amax()
    if extent < 1:
        raise InputError(f"{name}: all 68 points lie within one pixel; give them in photo pixels, not in [0, 1].")
    limit = torch.tensor([size[1], size[0]], dtype=points.dtype)
    outside = ((points < -_BEYOND * extent) | (points > limit + _BEYOND * extent)).any(1)
    if outside.any():
        at = int(outside.nonzero()[0, 0])
        x, y = points[at].tolist()
        raise InputError(
            f"{name}: point {at} ({x:.0f}, {y:.0f}) lies outside the photo of {size[1]} x {size[0]} px; "
            "give pixels of this photo."
        )
    across = points[42:48].mean(0) - points[36:42].mean(0)
    down = points[48:68].mean(0) - points[36:48].mean(0)
    if across[0] * down[1] - across[1] * down[0] <= 0:
        raise InputError(
            f"{name}: the points are mirrored; y points down, and 36-41 are the eye on the image's left in an "
            "unmirrored photo."
        )


def read_mask(source: Any, size: tuple[int, int]) -> Tensor:
    """A user's face mask: white is face that may be used.

    Args:
        source: whatever :func:`~facerecon.imaging.files.read_image` takes.
        size: (H, W) of the photo.

    Returns:
        (1, H, W) in [0, 1]; an image of another size but the same aspect is resized.

    Raises:
        InputError: not an image, another aspect, or nothing white.
    """
    name = Path(source).name if isinstance(source, str | os.PathLike) else "mask"
    if isinstance(source, Tensor) and source.dim() >= 2 and (source.dim() == 2 or source.shape[-3] == 1):
        source = source.float().expand(3, *source.shape[-2:])
    loaded = load_image(source)
    height, width = loaded.size
    # as near as whole pixels allow, for the smaller of the two
    error = abs(width * size[0] - height * size[1])
    if error > 1.5 * max(width, size[1], height, size[0]):
        raise InputError(
            f"{name} is {width} x {height} px; expected the photo's {size[1]} x {size[0]} px, or the same aspect."
        )
    mask = loaded.image.mean(0)[None]
    if tuple(mask.shape[-2:]) != tuple(size):
        mask = F.interpolate(mask[None], size=tuple(size), mode="bilinear", antialias=True, align_corners=False)[0]
    if mask.amax() < 0.5:
        raise InputError(f"{name} is black everywhere; white marks the face that may be used.")
    return mask.clamp(0, 1)


_JAW = (127, 234, 93, 132, 58, 172, 136, 149, 152, 378, 365, 397, 288, 361, 323, 454, 356)
_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
_NOSE = (168, 197, 5, 4, 98, 97, 2, 326, 327)


def fit_mesh(mesh: Tensor, landmarks: Tensor) -> Tensor:
    """Bend a face mesh (1, N, 3) so that it agrees with given landmarks, where the two mean the same places.

    A similarity first, then radial functions for what is left of eyes, mouth and nose; jaw and brows, which the 68
    points put elsewhere than the mesh, draw it only where they are far away.

    Args:
        mesh: (1, 468 or 478, 3) px.
        landmarks: (1, 68, 2) px.
    """
    index = torch.tensor([*_JAW, *_BROWS, *_NOSE, *EYES_AND_MOUTH], device=mesh.device)
    points, target = mesh[0, :, :2].double(), landmarks[0].double()
    inner = index[36:]
    # eyes and mouth: x' = a x - b y + s, y' = b x + a y + t
    x, y = points[inner].unbind(1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    design = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    a, b, s, t = torch.linalg.lstsq(design, target[36:].T.reshape(-1, 1)).solution[:, 0]
    moved = points @ torch.stack([torch.stack([a, b]), torch.stack([-b, a])]) + torch.stack([s, t])
    unit = (target[42:48].mean(0) - target[36:42].mean(0)).norm().clamp(min=1e-3)
    source = moved[index]
    rest = target - source
    slack = torch.cat([rest.new_full((17,), 0.25), rest.new_full((10,), 0.15), rest.new_full((41,), 0.0)]) * unit
    size = rest.norm(dim=1).clamp(min=1e-9)
    rest = rest * ((size - slack).clamp(min=0) / size)[:, None]

    def near(p: Tensor) -> Tensor:
        return (-(p[:, None] - source).norm(dim=-1) / (0.4 * unit)).exp()

    soft = torch.diag(torch.cat([rest.new_full((27,), 0.3), rest.new_full((41,), 0.05)]))
    bend = torch.linalg.solve(near(source) + soft, rest)
    depth = mesh[0, :, 2:].double() * (a.square() + b.square()).sqrt()
    return torch.cat([moved + near(moved) @ bend, depth], 1)[None].to(mesh)
