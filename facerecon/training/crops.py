"""Crops made once and read in every epoch: shards on disk, faces as they are observed in photos, and augmentation.

A set of shards is built by as many processes as there are, goes on where it was stopped, and knows what it was made
with. Pictures are kept as bytes, clean; blur, noise, compression and color are added anew each time they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ConfigError, InputError
from facerecon.imaging.files import list_images
from facerecon.perception.identity import IdentityNet
from facerecon.perception.observe import observe
from facerecon.run import item_seed
from facerecon.run.lock import FolderLock
from facerecon.settings import rename_keys
from facerecon.storage import parse_json, read_safetensors, remove_leftovers, safetensors_bytes, write_whole
from facerecon.training.regressor import PhotoBatch
from facerecon.types import Observation

__all__ = [
    "CropShards",
    "PhotometricAugmentation",
    "PhotometricSettings",
    "observed_faces",
    "photo_batch",
    "photo_sources",
]


class CropShards:
    """Samples in files of ``each``, made by number.

    Args:
        folder: of the shards.
        count: samples.
        facts: plain data that they depend on.
        each: samples a shard.
        aliases: {``synthetic.`` key of an earlier version: today's}, of what the facts' ``settings`` hold.

    Raises:
        ConfigError: the folder holds shards made with other facts (names them).
    """

    def __init__(
        self,
        folder: str | Path,
        count: int,
        facts: Mapping[str, Any],
        each: int = 256,
        aliases: Mapping[str, str | None] | None = None,
    ) -> None:
        self.folder, self.count, self.each = Path(folder), count, each
        self.facts = json.loads(json.dumps({**facts, "each": each}, sort_keys=True))
        self.shards = math.ceil(count / each)
        made = self._facts_path
        if made.is_file():
            try:
                found = dict(parse_json(made.read_bytes()))
            except (OSError, ValueError, TypeError):
                found = {}
            if isinstance(found.get("settings"), dict):
                found |= {"settings": rename_keys({"synthetic": found["settings"]}, aliases or {}).get("synthetic")}
            wrong = sorted(k for k in {*found, *self.facts} if found.get(k) != self.facts.get(k))
            if wrong:
                raise ConfigError(
                    f"{self.folder} holds samples made with other settings (differs: {', '.join(wrong[:5])}); "
                    "remove it, or choose another cache=."
                )

    @property
    def _facts_path(self) -> Path:
        return self.folder / "facts.json"

    def path(self, shard: int) -> Path:
        """File of one shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def numbers(self, shard: int) -> range:
        """Numbers of its samples."""
        return range(shard * self.each, min((shard + 1) * self.each, self.count))

    def missing(self) -> list[int]:
        """Shards that are not there; the last one may have to be made anew, when more samples are asked for."""
        return [i for i in range(self.shards) if not self._whole(i)]

    def _whole(self, shard: int) -> bool:
        if not self.path(shard).is_file():
            return False
        try:
            tensors = self._read(shard)
        except InputError as error:
            warnings.warn(f"{error}", stacklevel=3)
            return False
        return len(tensors["number"]) == 0 or int(tensors["asked"][0]) >= len(self.numbers(shard))

    def _read(self, shard: int) -> dict[str, Tensor]:
        advice = "it is made again, or remove it"
        tensors, _ = read_safetensors(self.path(shard), "a shard", advice, error=InputError)
        rows = tensors.get("number", torch.zeros(()))
        others, asked = [t for name, t in tensors.items() if name != "asked"], tensors.get("asked", torch.zeros(0))
        if asked.shape != (1,) or rows.dim() != 1 or any(t.shape[:1] != rows.shape for t in others):
            raise InputError(f"{self.path(shard)} is no shard of samples; {advice}.")
        return tensors

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this run, and remove what a killed one left half written; for one process of a run.

        Raises:
            ConfigError: another run is making samples there.
            OutputError: the folder cannot be written.
        """
        with FolderLock(self.folder):
            remove_leftovers(self.folder)
            write_whole(self._facts_path, (json.dumps(self.facts, indent=1, sort_keys=True) + "\n").encode())
            yield

    def build(
        self,
        make: Callable[[range], dict[str, Tensor]],
        rank: int = 0,
        ranks: int = 1,
        done: Callable[[int], None] | None = None,
    ) -> None:
        """Make what is missing, whole shards; within :meth:`alone` of one process.

        Args:
            make: numbers -> tensors of as many rows, or fewer, ``number`` among them, which says of which they are.
            rank, ranks: this process makes every ``ranks``-th shard.
            done: called with the samples of each.

        Raises:
            OutputError: a file cannot be written.
        """
        for shard in (i for i in self.missing() if i % ranks == rank):
            numbers = self.numbers(shard)
            tensors = make(numbers)
            tensors["asked"] = torch.tensor([len(numbers)])
            write_whole(self.path(shard), safetensors_bytes({k: t.contiguous() for k, t in tensors.items()}))
            if done is not None:
                done(len(numbers))

    def load(self) -> dict[str, Tensor]:
        """All samples, in the order of their numbers.

        Raises:
            InputError: there is none at all.
        """
        parts: list[dict[str, Tensor]] = []
        for shard in range(self.shards):
            tensors = self._read(shard)
            wanted = tensors["number"] < self.count
            parts.append({k: t[wanted] for k, t in tensors.items() if k != "asked"})
        parts = [part for part in parts if len(part["number"])]
        if not parts:
            raise InputError(f"{self.folder}: not one of {self.count} samples could be made.")
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


# -- faces without truth ---------------------------------------------------------------------------------


def photo_sources(folder: str | Path) -> tuple[list[Path], dict[str, Any]]:
    """Pictures of a folder, and what tells whether they are still the same.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    paths = list_images(folder)
    text = "\n".join(f"{p.name} {p.stat().st_size}" for p in paths)
    names = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return paths, {"photos": len(paths), "names": names}


def observed_faces(
    numbers: Sequence[int],
    picture: Callable[[int], tuple[str, Any]],
    size: int,
    identity: IdentityNet | None = None,
) -> dict[str, Tensor]:
    """Observe faces for training: the rows of :class:`~facerecon.training.regressor.PhotoBatch`, as bytes.

    Args:
        numbers: of the faces.
        picture: number -> its name and what :func:`~facerecon.perception.observe` takes.
        size: px of the crops.
        identity: whose embeddings are kept; None: the one that ``observe`` has.

    Returns:
        image (N, 3, S, S) and skin (N, 1, S, S) uint8, landmarks68, embedding, number; pictures that cannot be used
        are left out, with a warning.
    """
    rows, used = [], []
    for number in numbers:
        name, source = picture(number)
        try:
            rows.append(_crop_of(observe(source), size, identity))
            used.append(number)
        except InputError as error:
            warnings.warn(f"{name} is left out ({' '.join(str(error).split())[:160]}).", stacklevel=2)
    if not rows:
        empty = {"image": torch.zeros(0, 3, size, size, dtype=torch.uint8), "landmarks68": torch.zeros(0, 68, 2)}
        return empty | {"number": torch.zeros(0, dtype=torch.int64)}
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]} | {"number": torch.tensor(used)}


def _crop_of(photo: Observation, size: int, identity: IdentityNet | None) -> dict[str, Tensor]:
    with torch.no_grad():
        embedding = photo.identity if identity is None else identity(photo.image, photo.landmarks68)
    crop = {"image": photo.image, "skin": photo.skin_mask}
    for key, part in crop.items():
        if part.shape[-1] != size:
            part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        crop[key] = part.clamp(0, 1).mul(255).round().to(torch.uint8)
    return crop | {"landmarks68": photo.landmarks68, "embedding": embedding}


def photo_batch(rows: Mapping[str, Tensor], chosen: Sequence[int]) -> PhotoBatch:
    """Rows of observed faces as floats."""
    at = torch.as_tensor(chosen)
    image, skin = (rows[key][at].float() / 255 for key in ("image", "skin"))
    return PhotoBatch(image, skin, rows["landmarks68"][at], rows["embedding"][at])


# -- augmentation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotometricSettings:
    """What happens to pictures on their way: kornia's transforms, each with a share of the pictures it happens to.

    Args:
        color: share.
        brightness, contrast, saturation: largest changes of the factors.
        hue: of the turn.
        gray: share of gray pictures.
        blur: share.
        blur_sigma: largest, px.
        motion: share of motion blur, up to 5 px.
        coarse: share of pictures that were smaller.
        coarsest: smallest factor.
        noise: share.
        noise_spread: standard deviation.
        compression: share.
        quality: lowest of JPEG.
        erase: share of pictures with a gray rectangle.
        erased: largest share of its area.
        group: pictures that share one draw of kornia's generator: the same for any number of processes.
    """

    color: float = 0.7
    brightness: float = 0.1
    contrast: float = 0.15
    saturation: float = 0.2
    hue: float = 0.02
    gray: float = 0.03
    blur: float = 0.35
    blur_sigma: float = 1.2
    motion: float = 0.08
    coarse: float = 0.25
    coarsest: float = 0.3
    noise: float = 0.5
    noise_spread: float = 0.03
    compression: float = 0.2
    quality: float = 30.0
    erase: float = 0.1
    erased: float = 0.08
    group: int = 8

    def __post_init__(self) -> None:
        for name in ("color", "gray", "blur", "motion", "coarse", "noise", "compression", "erase"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"augment.{name} is a share, 0 to 1; got {value!r}.")
        if self.group < 1 or not 0 < self.coarsest <= 1 or not 1 <= self.quality <= 95:
            raise ConfigError(
                "augment.group must be 1 or more, augment.coarsest in (0, 1] and augment.quality in 1..95."
            )


class PhotometricAugmentation:
    """Changes pictures; what happens to one depends on the seed, its group's number and its place in it.

    Args:
        settings: how much.
        seed: of the run.
    """

    def __init__(self, settings: PhotometricSettings | None = None, seed: int = 0) -> None:
        import kornia.augmentation as K

        s = self.settings = settings or PhotometricSettings()
        self.seed = seed
        around = (1 - s.brightness, 1 + s.brightness), (1 - s.contrast, 1 + s.contrast)
        steps = [
            K.RandomBrightness(around[0], p=s.color),
            K.RandomContrast(around[1], p=s.color),
            K.RandomSaturation((1 - s.saturation, 1 + s.saturation), p=s.color),
            K.RandomHue((-s.hue, s.hue), p=s.color / 2),
            K.RandomGrayscale(p=s.gray),
            K.RandomGaussianBlur((7, 7), (0.1, max(s.blur_sigma, 0.11)), p=s.blur),
            K.RandomMotionBlur((3, 5), 90.0, 0.5, p=s.motion),
            K.RandomErasing((0.005, max(s.erased, 0.006)), value=0.5, p=s.erase),
            K.RandomGaussianNoise(0.0, s.noise_spread, p=s.noise),
            K.RandomJPEG((s.quality, 96.0), p=s.compression),
        ]
        self.steps = torch.nn.Sequential(*(step for step in steps if step.p > 0))

    def __call__(self, images: Tensor, numbers: Sequence[int]) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, 3, S, S) in [0, 1].
            numbers: of the samples; whole groups of ``settings.group``, or a batch smaller than one.

        Returns:
            (B, 3, S, S) in [0, 1]; the input is not changed.
        """
        group, parts = self.settings.group, []
        for start in range(0, len(images), group):
            with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
                torch.manual_seed(item_seed(self.seed, "wear", int(numbers[start])))
                part = self._coarse(images[start : start + group])
                parts.append(self.steps(part).clamp(0, 1))
        return torch.cat(parts)

    def _coarse(self, images: Tensor) -> Tensor:
        s, size = self.settings, images.shape[-1]
        chosen, factor = torch.rand(len(images)) < s.coarse, torch.rand(len(images)) * (1 - s.coarsest) + s.coarsest
        images = images.clone()
        for i in chosen.nonzero()[:, 0].tolist():
            small = max(8, round(size * float(factor[i])))
            less = F.interpolate(images[i : i + 1], (small, small), mode="bilinear", antialias=True)
            images[i] = F.interpolate(less, (size, size), mode="bilinear")[0]
        return images
