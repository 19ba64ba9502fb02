"""UV maps of a set, ours, the released one or any folder of square pictures: read, kept in memory, and their codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from facerecon.errors import ConfigError, InputError
from facerecon.imaging.files import list_images, read_image
from facerecon.run import item_generator
from facerecon.storage import parse_json, read_array
from facerecon.stylegan.linear_basis import principal_components

__all__ = ["MapCodes", "MapMemory", "PairedCodes", "UVMaps", "epoch_order", "held_out", "identity_of", "share_of"]

_SHARE_ORDER = (0, 3, 6, 1, 4, 7, 2, 5, 8)
_BAD_SHARE = 0.1


def held_out(count: int) -> list[int]:
    """Indices of a set's items, sorted by number, on which nothing is trained: every tenth, 9, 19, 29 ..."""
    return list(range(9, count, 10))


def share_of(count: int, share: float = 1.0, leave_out: bool = True) -> list[int]:
    """Indices of the items to train on.

    Args:
        count: items of the set, sorted by number.
        share: tenths of it: 0.3 takes the indices with ``index % 10`` in (0, 3, 6), a smaller share takes a part of a
            greater one's; 1.0 all that are not left out.
        leave_out: leave out the :func:`held_out` ones; needed for a share below 1.

    Raises:
        ConfigError: a share that is no number of tenths.
    """
    tenths = round(share * 10)
    if not 1 <= tenths <= 10 or abs(share * 10 - tenths) > 1e-6:
        raise ConfigError(f"share must be 0.1, 0.2, ... or 1.0; got {share}.")
    if tenths == 10 and not leave_out:
        return list(range(count))
    kept = set(_SHARE_ORDER[:tenths])
    return [i for i in range(count) if i % 10 in kept]


def epoch_order(count: int, seed: int, kind: str, numbers: Sequence[int], together: int = 1) -> list[int]:
    """Which row the n-th sample of a run shows: every epoch all of them, each in another random order.

    Args:
        count: rows.
        seed: of the run.
        kind: what the rows are; another kind has other orders.
        numbers: of samples, from 0 on.
        together: rows that stay side by side.
    """
    orders, chosen = {}, []
    for number in numbers:
        epoch, place = divmod(number, count)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count // together, generator=item_generator(seed, kind, epoch)).tolist()
        chosen.append(orders[epoch][place // together] * together + place % together)
    return chosen


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
        flip, place = divmod(index % len(self), len(self.paths))
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


class MapMemory:
    """The maps of a folder, at one size.

    Args:
        folder: what :class:`UVMaps` reads.
        size: px a side, at most that of the files.
        limit_gb: memory for them, as bytes; beyond it they are read from the disk again and again.

    Attributes:
        names: of all files, in natural order.
        bad: {index: why} of those that could not be read.
        side: px of the files.

    Raises:
        InputError: no maps, maps of different sizes, not square, smaller than ``size``, or more than a tenth of them
            unreadable; the message names a file.
    """

    def __init__(self, folder: str | os.PathLike, size: int, limit_gb: float = 8.0) -> None:
        self.maps = UVMaps(folder, size=size)
        self.paths: list[Path] = self.maps.paths
        self.names = [path.stem for path in self.paths]
        self.size, self.bad = size, {}
        self._check_sizes()
        self.pixels: Tensor | None = None
        if len(self.paths) * 3 * size**2 <= limit_gb * 2**30:
            pixels = torch.zeros(len(self.paths), 3, size, size, dtype=torch.uint8)
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
                for i, read in enumerate(pool.map(self._read, range(len(self.paths)))):
                    if read is not None:
                        pixels[i] = read
            self.pixels = pixels

    def __len__(self) -> int:
        return len(self.paths)

    def _check_sizes(self) -> None:
        """By the headers alone, before anything is decoded."""
        sides: dict[int, Path] = {}
        for i, path in enumerate(self.paths):
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except Exception as error:
                self._note(i, error)
                continue
            if width != height:
                raise InputError(f"{path} is {width} x {height} px; a UV map is square.")
            sides.setdefault(width, path)
        if len(sides) > 1:
            (a, first), (b, second) = list(sides.items())[:2]
            raise InputError(
                f"the maps have different sizes: {first} is {a} px, {second} {b} px; bring them to one size."
            )
        self.side = next(iter(sides))
        if self.side < self.size:
            raise InputError(f"the maps are {self.side} px, smaller than size={self.size}; choose size={self.side}.")

    def _note(self, index: int, error: Exception) -> None:
        if index in self.bad:
            return
        self.bad[index] = " ".join(str(error).split())[:160]
        warnings.warn(f"{self.paths[index]} is left out ({self.bad[index]}).", stacklevel=3)
        if len(self.bad) > max(1, _BAD_SHARE * len(self.paths)):
            raise InputError(
                f"{len(self.bad)} of {len(self.paths)} maps cannot be read, the last {self.paths[index]}; "
                "mend or remove them."
            )

    def _read(self, index: int) -> Tensor | None:
        if index in self.bad:
            return None
        try:
            return (self.maps[index]["texture"] * 255).round().to(torch.uint8)
        except InputError as error:
            self._note(index, error)
            return None

    def usable(self, indices: Sequence[int]) -> list[int]:
        """Those of ``indices`` that are not known to be unreadable."""
        return [i for i in indices if i not in self.bad]

    def images(self, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, list[int]]:
        """Maps by their indices. One that became unreadable is replaced by another of the batch.

        Returns:
            (B, 3, S, S) in [-1, 1], float32, and the indices that they are of.

        Raises:
            InputError: too many became unreadable, or all of the batch.
        """
        indices = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        if self.pixels is not None:
            pixels = self.pixels[indices]
        else:
            read = {i: image for i in dict.fromkeys(indices) if (image := self._read(i)) is not None}
            if not read:
                raise InputError(f"none of a batch's maps can be read, such as {self.paths[indices[0]]}.")
            good = list(read)
            indices = [i if i in read else good[k % len(good)] for k, i in enumerate(indices)]
            pixels = torch.stack([read[i] for i in indices])
        return pixels.to(device).float().div_(127.5).sub_(1), indices

    def mean(self, indices: Sequence[int]) -> Tensor:
        """(3, S, S) in [-1, 1]: the mean of maps."""
        total = torch.zeros(3, self.size, self.size)
        for start in range(0, len(indices), 64):
            total += self.images(indices[start : start + 64])[0].sum(0)
        return total / len(indices)

    def order(self, indices: Sequence[int], seed: int, numbers: Sequence[int]) -> list[int]:
        """Which of the maps ``indices`` the samples of these ``numbers`` show, see :func:`epoch_order`."""
        return [indices[place] for place in epoch_order(len(indices), seed, "order", numbers)]


class MapCodes:
    """Codes of maps by themselves: whitened principal coordinates, in which a decoder can begin to learn better ones.

    Args:
        memory: the maps.
        rows: those to find the components of.
        count: K.
        mirror: their mirror images count as maps too.
        side: px to which maps are averaged down before.

    Attributes:
        mean: (3, s, s), components: (K, 3, s, s), one standard deviation each; on values in [-1, 1].
        table: (2 N, K) of all N maps, then of their mirror images; N rows without ``mirror``.

    Raises:
        ShapeError: fewer than K + 1 maps.
    """

    def __init__(self, memory: MapMemory, rows: Sequence[int], count: int, mirror: bool, side: int = 64) -> None:
        side = min(side, memory.size)
        small = torch.zeros(len(memory), 3, side, side)
        for start in range(0, len(memory), 64):
            part = memory.usable(range(start, min(start + 64, len(memory))))
            if part:
                small[part] = F.adaptive_avg_pool2d(memory.images(part)[0], side)
        known = small[list(rows)]
        both = torch.cat([known, known.flip(-1)]) if mirror else known
        self.mean, self.components, _ = principal_components(both, count)
        self.table = self.coordinates(torch.cat([small, small.flip(-1)]) if mirror else small)

    def coordinates(self, maps: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, K), by least squares."""
        flat = self.components.flatten(1)
        small = F.adaptive_avg_pool2d(maps, self.mean.shape[-1])
        return ((small - self.mean).flatten(1) @ flat.T) / flat.square().sum(1)


class PairedCodes:
    """Codes of the faces that maps were made from, by the manifest of the set.

    Args:
        manifest: of the set, a :class:`facerecon.dataset.Manifest`.
        names: of the maps.
        mean: (512,) mean of W of the generator.
        truncation: psi with which the faces were drawn; None: what the manifest says. It is taken back, so that codes
            have the distribution of mapped latents: ``w = mean + (source - mean) / psi``.

    Attributes:
        codes: (N, 512), in the order of ``names``; zeros where the manifest has none. known: (N,) bool.
        truncation: that was taken back.

    Raises:
        InputError: it is of photos, whose faces have no code of one row, or of other maps.
    """

    def __init__(self, manifest: Any, names: Sequence[str], mean: Tensor, truncation: float | None = None) -> None:
        source = manifest.tensors.get("source")
        if source is None or source.dim() != 2 or source.shape[1] != len(mean):
            shape = None if source is None else tuple(source.shape)
            raise InputError(f"the manifest has sources of shape {shape}; pairs need one code of {len(mean)} numbers.")
        if truncation is None:
            truncation = float(manifest.facts.get("settings", {}).get("truncation", 1.0))
        if not 0 < truncation <= 1:
            raise ConfigError(f"pair_truncation must be in (0, 1]; got {truncation}.")
        self.truncation = truncation
        rows = {int(number): i for i, number in enumerate(manifest.numbers.tolist())}
        self.codes, self.known = torch.zeros(len(names), len(mean)), torch.zeros(len(names), dtype=torch.bool)
        for i, name in enumerate(names):
            row = rows.get(int(name)) if re.fullmatch(r"\d+", name) else None
            if row is not None:
                self.codes[i] = mean.cpu() + (source[row] - mean.cpu()) / truncation
                self.known[i] = True
        if not self.known.any():
            raise InputError(f"the manifest knows none of the maps, such as {names[0]}; it is of another set.")
