"""Reading a set of UV maps: ours, the released one, or any folder of square pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from facerecon.errors import InputError
from facerecon.imaging.files import list_images, read_image
from facerecon.storage import parse_json, read_array

__all__ = ["UVMaps", "identity_of"]


def identity_of(paths: Iterable[str | os.PathLike]) -> dict[str, Any]:
    """What tells whether files are still the same ones, wherever they lie.

    Returns:
        ``{"files": how many, "content": digest}``: of their names, sizes and last 4 KB, in which a PNG has the
        checksum of its pixels. 50,000 maps are not read for it.

    Raises:
        InputError: a file is missing.
    """
    digest, count = hashlib.sha256(), 0
    for path in map(Path, paths):
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 4096))
                end = file.read()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}).") from None
        digest.update(json.dumps([path.name, size]).encode() + end)
        count += 1
    return {"files": count, "content": digest.hexdigest()[:16]}


class UVMaps(Dataset):
    """UV maps as a ``torch.utils.data.Dataset``.

    Args:
        folder: a data set with ``uv-maps/`` (and ``meta-info.json``, ``observed/``, ``face-latents/``), as
            ``train/uv_dataset.py`` writes it and as FFHQ-UV is released; or any folder of pictures.
        size: px to which maps are averaged down; None keeps them.
        mirror: give each map a second time, flipped; only right for a mirror-symmetric atlas (makehuman's is).
        observed: also read which texels were observed.
        transform: applied to each map, (3, S, S) in [0, 1].

    An entry is ``{"texture": (3, S, S) in [0, 1], "number": str, "meta": dict}`` and ``"observed": (1, S, S)``.

    Raises:
        InputError: no maps are there, or ``observed`` is asked for and missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        size: int | None = None,
        mirror: bool = False,
        observed: bool = False,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; expected a set of UV maps.")
        maps = self.folder / "uv-maps"
        self.paths = list_images(maps if maps.is_dir() else self.folder)
        self.size, self.mirror, self.observed, self.transform = size, mirror, observed, transform
        if observed:
            missing = [path for path in self.paths if not self._observed_path(path).is_file()]
            if missing:
                raise InputError(f"{self._observed_path(missing[0])} is missing; read the set with observed=False.")
        info = self.folder / "meta-info.json"
        self.meta: dict[str, Any] = {}
        if info.is_file():
            try:
                self.meta = parse_json(info.read_bytes())
                if not isinstance(self.meta, dict):
                    raise ValueError("no object")
            except (OSError, ValueError) as error:
                raise InputError(f"{info} is not readable JSON ({error}); remove or replace it.") from None

    def _observed_path(self, path: Path) -> Path:
        return self.folder / "observed" / path.name

    def __len__(self) -> int:
        return len(self.paths) * (2 if self.mirror else 1)

    def _read(self, path: Path, flip: bool) -> Tensor:
        image = read_image(path)
        if image.shape[1] != image.shape[2]:
            raise InputError(f"{path} is {image.shape[2]} x {image.shape[1]} px; a UV map is square.")
        if self.size is not None and image.shape[-1] != self.size:
            image = F.interpolate(image[None], (self.size, self.size), mode="area")[0]
        return image.flip(-1) if flip else image

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} maps")
        place, flip = divmod(index % len(self), len(self.paths))[::-1]
        path = self.paths[place]
        texture = self._read(path, bool(flip))
        if self.transform is not None:
            texture = self.transform(texture)
        entry = {"texture": texture, "number": path.stem, "meta": self.meta.get(path.stem, {})}
        if self.observed:
            entry["observed"] = self._read(self._observed_path(path), bool(flip))[:1]
        return entry

    def latents(self, index: int) -> Tensor:
        """The latent codes of an entry's normalized views, front, left and right: (3, ...).

        Raises:
            InputError: the set has none.
        """
        path = self.folder / "face-latents" / f"{self.paths[index % len(self.paths)].stem}.npy"
        try:
            return torch.from_numpy(read_array(path))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}); this set has no latent codes for that map.") from None
