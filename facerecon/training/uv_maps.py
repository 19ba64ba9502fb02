"""Maps kept in memory for training: decoded once, as bytes, not in every epoch."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from facerecon.dataset.manifest import Manifest
from facerecon.dataset.readers import UVMaps
from facerecon.errors import ConfigError, InputError
from facerecon.run import item_generator
from facerecon.stylegan.linear_basis import principal_components

__all__ = ["MapCodes", "MapMemory", "PairedCodes", "held_out", "share_of"]

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


class MapMemory:
    """The maps of a folder, at one size.

    Args:
        folder: what :class:`UVMaps` reads.
        size: px a side, at most that of the files.
        limit_gb: memory for them, as bytes; beyond it they are read from the disk again and again.
        threads: that decode at the beginning.

    Attributes:
        names: of all files, in natural order. bad: {index: why} of those that could not be read.
        side: px of the files.

    Raises:
        InputError: no maps, maps of different sizes, not square, smaller than ``size``, or more than a tenth of them
            unreadable; the message names a file.
    """

    def __init__(self, folder: str | os.PathLike, size: int, limit_gb: float = 8.0, threads: int | None = None) -> None:
        self.maps = UVMaps(folder, size=size)
        self.paths: list[Path] = self.maps.paths
        self.names = [path.stem for path in self.paths]
        self.size, self.bad = size, {}
        self._check_sizes()
        self.pixels: Tensor | None = None
        if len(self.paths) * 3 * size**2 <= limit_gb * 2**30:
            pixels = torch.zeros(len(self.paths), 3, size, size, dtype=torch.uint8)
            with ThreadPoolExecutor(threads or max(1, torch.get_num_threads())) as pool:
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
        reason = " ".join(str(error).split())[:160]
        self.bad[index] = reason
        warnings.warn(f"{self.paths[index]} is left out ({reason}).", stacklevel=3)
        if len(self.bad) > max(1, _BAD_SHARE * len(self.paths)):
            raise InputError(
                f"{len(self.bad)} of {len(self.paths)} maps cannot be read, the last {self.paths[index]}; "
                "mend or remove them."
            )

    def _read(self, index: int) -> Tensor | None:
        if index in self.bad:
            return None
        try:
            image = self.maps[index]["texture"]
        except InputError as error:
            self._note(index, error)
            return None
        return (image * 255).round().to(torch.uint8)

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
        """Which map the n-th sample of a run shows: every epoch all of them, in an order of its own.

        Args:
            indices: of the maps to train on.
            seed: of the run.
            numbers: of samples, from 0 on.
        """
        chosen, orders = [], {}
        for number in numbers:
            epoch, place = divmod(number, len(indices))
            if epoch not in orders:
                orders[epoch] = torch.randperm(len(indices), generator=item_generator(seed, "order", epoch)).tolist()
            chosen.append(indices[orders[epoch][place]])
        return chosen


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
        parts = [range(i, min(i + 64, len(memory))) for i in range(0, len(memory), 64)]
        good = [[i for i in part if i not in memory.bad] for part in parts]
        small = torch.zeros(len(memory), 3, side, side)
        for part in good:
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
        folder: of the set, with ``manifest.safetensors``.
        names: of the maps.
        mean: (512,) mean of W of the generator.
        truncation: psi with which the faces were drawn; None: what the manifest says. It is taken back, so that codes
            have the distribution of mapped latents: ``w = mean + (source - mean) / psi``.

    Attributes:
        codes: (N, 512), in the order of ``names``; zeros where the manifest has none. known: (N,) bool.
        truncation: that was taken back.

    Raises:
        InputError: no manifest, or one of photos, whose faces have no code of one row.
    """

    def __init__(
        self, folder: str | os.PathLike, names: Sequence[str], mean: Tensor, truncation: float | None = None
    ) -> None:
        path = Path(folder) / "manifest.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; pairs need the manifest of a set that train/uv_dataset.py made of the open "
                "generator. Set warm.kimg=0 adversarial.pairs=0 to train without pairs."
            )
        manifest = Manifest.load(path)
        source = manifest.tensors.get("source")
        if source is None or source.dim() != 2 or source.shape[1] != len(mean):
            shape = None if source is None else tuple(source.shape)
            raise InputError(f"{path} has sources of shape {shape}; pairs need one code of {len(mean)} numbers a map.")
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
            raise InputError(f"{path} knows none of the maps in {folder}, such as {names[0]}; it is of another set.")
