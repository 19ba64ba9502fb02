"""Crops that N_enc learns from: rendered faces with truth, and photos or generated faces without."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from facerecon.correspond.resample import decoder_for
from facerecon.errors import InputError
from facerecon.fitting import params_to_coefficients
from facerecon.fitting.tone import toned
from facerecon.imaging.files import read_image
from facerecon.morphable import MorphableModel
from facerecon.perception import load_identity
from facerecon.perception.regressor import Coefficients, RegressorConfig
from facerecon.run import choose_training_precision, item_generator, item_seed
from facerecon.run.processes import Processes
from facerecon.run.signals import check_stop
from facerecon.stylegan.load import load_face_generator
from facerecon.synthetic.faces import SyntheticBatch, SyntheticFaces
from facerecon.training.crops import CropShards, PhotometricAugmentation, observed_faces, photo_batch
from facerecon.training.uv_maps import MapMemory, UVMaps, epoch_order, held_out
from facerecon.types import FaceParams, SHLight

__all__ = ["RegressorData", "batch_of", "decoded_maps", "generated_faces", "rows_of", "square_pictures", "texture_maps"]


_TONES = ((0.92, 0.78, 0.70), (0.34, 0.23, 0.17))
"""Encoded colors of very light and very dark skin."""


class RegressorData:
    """The crops of a run.

    Args:
        faces: renders heads with truth.
        sizes: of the network.
        augment: changes crops, anew in every epoch.
        processes: the ranks, which share the work.
        seed: of the run.
        faces_a_step: crops with truth, over all processes.
        photos_a_step: crops without.
        face_shards: where rendered faces are kept; None: they are rendered anew for every step.
        photo_shards: where crops without truth are kept, or None.
        picture: number of a photo -> its name, and what :func:`facerecon.perception.observe` takes.
        identity: name of the network whose embeddings of photos are kept.

    Attributes:
        unseen_faces: renders held-out heads.
        photos: rows of crops without truth, or None.
        seen_photos, unseen_photos: which of them are learned and held out.
    """

    def __init__(
        self,
        faces: SyntheticFaces,
        sizes: RegressorConfig,
        augment: PhotometricAugmentation,
        processes: Processes,
        seed: int,
        faces_a_step: int,
        photos_a_step: int = 0,
        face_shards: CropShards | None = None,
        photo_shards: CropShards | None = None,
        picture: Callable[[int], tuple[str, Any]] | None = None,
        identity: str = "identity128",
    ) -> None:
        self.faces, self.sizes, self.augment, self.processes, self.seed = faces, sizes, augment, processes, seed
        self.faces_a_step, self.photos_a_step = faces_a_step, photos_a_step
        self.face_shards, self.photo_shards, self.picture = face_shards, photo_shards, picture
        self.identity = identity
        self.pictures = faces.settings.pictures
        self.unseen_faces = copy.copy(faces)
        self.unseen_faces.seed = item_seed(seed, "held out")
        self.rows = self.photos = None
        self.unseen_photos, self.seen_photos = [], []

    def prepare(self) -> None:
        """Make what the cache lacks, each process a part, and read it."""
        if self.face_shards is not None:
            self.rows = self._build(self.face_shards, self._render, "faces")
        if self.photo_shards is not None:
            identity = load_identity(self.identity)

            def observed(numbers: range) -> dict[str, Tensor]:
                return observed_faces(numbers, self.picture, self.faces.size, identity)

            self.photos = self._build(self.photo_shards, observed, "photos")
            count = len(self.photos["image"])
            self.unseen_photos = held_out(count)
            self.seen_photos = sorted({*range(count)} - {*self.unseen_photos})

    def _build(self, shards: CropShards, make: Callable[[range], dict[str, Tensor]], what: str) -> dict[str, Tensor]:
        first, rank, ranks = self.processes.first, self.processes.rank, self.processes.count
        if not self.processes.any(bool(shards.missing())):
            return shards.load()
        with shards.alone() if first else contextlib.nullcontext():
            self.processes.any(False)  # nobody writes before the folder is ready
            total = sum(len(shards.numbers(i)) for i in shards.missing() if i % ranks == rank)
            started, made = time.perf_counter(), 0

            def done(count: int) -> None:
                nonlocal made
                made += count
                bar.update(count)
                if first and bar.disable:
                    print(f"{made}/{total} {what}, {made / (time.perf_counter() - started):.1f}/s", flush=True)
                check_stop()

            with tqdm(total=total, unit=what, disable=None if first else True) as bar:
                shards.build(make, rank, ranks, done)
            self.processes.any(False)  # all wait for the slowest
        return shards.load()

    def _render(self, numbers: range) -> dict[str, Tensor]:
        parts = []
        for start in range(numbers.start, numbers.stop, 64):
            check_stop()
            parts.append(rows_of(self.faces(range(start, min(start + 64, numbers.stop)))))
        rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return rows | {"number": torch.arange(numbers.start, numbers.stop)}

    def next_batch(self, step: int, device: torch.device) -> list[Any]:
        """This rank's part of a step: augmented crops, truth and landmarks of rendered faces, then observed photos and
        their augmented crops; None for what a step has none of."""
        faces, photos = (None, None, None), (None, None)
        if self.faces_a_step:
            numbers = [step * self.faces_a_step + i for i in self.processes.part(self.faces_a_step)]
            if self.rows is None:
                rows, chosen = rows_of(self.faces(numbers)), list(range(len(numbers)))
            else:
                count = len(self.rows["image"])
                rows, chosen = self.rows, epoch_order(count, self.seed, "faces", numbers, self.pictures)
            images, truth, landmarks = batch_of(rows, chosen, self.sizes)
            faces = self.augment(images, numbers), truth, landmarks
        if self.photos_a_step:
            numbers = [step * self.photos_a_step + i for i in self.processes.part(self.photos_a_step)]
            chosen = epoch_order(len(self.seen_photos), self.seed, "photos", numbers)
            observed = photo_batch(self.photos, [self.seen_photos[i] for i in chosen])
            photos = observed, self.augment(observed.image, [-1 - n for n in numbers])
        batch = [None if part is None else part.to(device) for part in (*faces, *photos)]
        torch.manual_seed(int(torch.randint(2**31, (), generator=item_generator(self.seed, "step", step))))
        return batch


def rows_of(batch: SyntheticBatch) -> dict[str, Tensor]:
    """A rendered batch as a shard keeps it: pictures as bytes."""
    p = batch.params
    return {
        "image": (batch.image * 255).round().to(torch.uint8),
        "identity": p.identity,
        "expression": p.expression,
        "rotation": p.rotation,
        "translation": p.translation,
        "light": p.light.coefficients,
        "texture": batch.texture,
        "landmarks68": batch.landmarks68,
    }


def batch_of(
    rows: Mapping[str, Tensor], chosen: Sequence[int], sizes: RegressorConfig
) -> tuple[Tensor, Coefficients, Tensor]:
    """Chosen rows of a shard: pictures (B, 3, S, S) in [0, 1], coefficients, and landmarks (B, 68, 2)."""
    at = torch.as_tensor(chosen)
    row = {key: value[at] for key, value in rows.items() if key != "number"}
    albedo = row["identity"].new_zeros(len(at), 0)
    pose = row["rotation"], row["translation"], SHLight(row["light"])
    params = FaceParams(row["identity"], row["expression"], albedo, *pose)
    return row["image"].float() / 255, params_to_coefficients(params, sizes, row["texture"]), row["landmarks68"]


def generated_faces(generator: str, seed: int, truncation: float) -> Callable[[int], tuple[str, Tensor]]:
    """Faces of a face generator by their number: the name, and the picture (3, S, S) in [0, 1]."""
    network: Any = None

    def picture(number: int) -> tuple[str, Tensor]:
        nonlocal network
        check_stop()
        if network is None:
            network = load_face_generator(generator, dtype=choose_training_precision())
        face_seed = 1_000_000 * (1 + seed) + number
        with torch.no_grad():
            return f"generated face {face_seed}", network(network.sample(face_seed, truncation))[0].float()

    return picture


def texture_maps(folder: str, most: int = 256) -> tuple[Tensor, list[Any]]:
    """The maps of a set at ``most`` px or less: (N, 3, s, s) uint8, and [first name, last name, N]."""

    path = UVMaps(folder).paths[0]
    try:
        with Image.open(path) as image:
            size = min(most, *image.size)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); mend or remove it.") from None
    memory = MapMemory(folder, size)
    usable = memory.usable(range(len(memory)))
    maps = torch.stack([(memory.images([i])[0][0] * 127.5 + 127.5).round().to(torch.uint8) for i in usable])
    return maps, [memory.names[0], memory.names[-1], len(usable)]


def decoded_maps(model: MorphableModel, count: int, seed: int) -> Tensor:
    """Textures of ``decoder=open`` on a head's atlas, each in a skin tone of its own: (N, 3, s, s) uint8.

    Tones are even between a very light and a very dark skin, since the decoder's own are not.
    """
    decoder = decoder_for(model, "open", space="z")
    generator = torch.Generator().manual_seed(seed)
    light, dark = (torch.tensor(color).log() for color in _TONES)
    maps = []
    for _ in tqdm(range(0, count, 8), desc="decoding textures", disable=None):
        check_stop()
        share = torch.rand(8, 1, generator=generator)
        tone = light + share * (dark - light) + 0.04 * torch.randn(8, 3, generator=generator)
        with torch.no_grad():
            texture = toned(decoder(decoder.sample(8, generator)).float(), tone, model.topology)
        maps.append((texture.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(maps)[:count]


def square_pictures(paths: Sequence[Path], size: int) -> Tensor:
    """The middle squares of pictures, (N, 3, size, size) uint8; those that cannot be read are left out.

    Raises:
        InputError: none can be read.
    """
    found = []
    for path in paths:
        try:
            image = read_image(path, max_side=1024)
        except InputError as error:
            warnings.warn(f"{path} is left out ({' '.join(str(error).split())[:160]}).", stacklevel=2)
            continue
        side = min(image.shape[-2:])
        top, left = ((n - side) // 2 for n in image.shape[-2:])
        square = image[None, :, top : top + side, left : left + side]
        small = F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0]
        found.append((small * 255).round().to(torch.uint8))
    if not found:
        raise InputError(f"none of {len(paths)} pictures can be read, such as {paths[0]}.")
    return torch.stack(found)
