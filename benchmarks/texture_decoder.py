"""How well do texture decoders express maps that they have not seen (Table 6), and do they repeat those they have?

    python -m benchmarks.texture_decoder uv ours=texture.safetensors open open:w --maps 60 --pca 64 --pca-bytes 6000000
    python -m benchmarks.texture_decoder uv ours=texture.safetensors --share 0.1,0.3,1.0 --pca 64,128 --mirror
    python -m benchmarks.texture_decoder uv ours=texture.safetensors --memory 200

SET is a folder of maps (``uv-maps/*.png``) of which every tenth was left out of the training, as train/texture_gan.py
leaves it out. A decoder is a name (``open``) or ``NAME=FILE``, with a latent space behind a colon (``:w``; ``:w+`` if
left out). PCA: principal components of the maps to train on, computed here at each decoder's size; with ``--mirror``
also of their mirror images (a component is then its own mirror image, or its negative, and half of it is stored).
``--pca-bytes`` takes as many as a file of that size holds with the mean, as facerecon.stylegan.linear_basis stores
them: 8 bits, color at half resolution; and measures what the file would give back.

Every method expresses every map by the same steps of Adam on L1 and LPIPS (AlexNet) at its own size. What it finds is
enlarged to the maps' size and compared there: L1 and LPIPS (VGG), of the whole map and of the crop around the face, and
CSIM of both maps on the mean head by a network that nothing optimizes. Means with bootstrap intervals of 95 %; and
paired differences to the methods of ``--against``, with the share of maps on which a method is better.

``--memory N``: N random samples of each method; how far the nearest map to train on (or its mirror image) is, beside
the same distance of held-out maps; how different the people are; Frechet distance of identity features.

A map is kept in OUT/rows.jsonl when it is done, and the same command goes on from there. Tables are printed and written
to OUT/tables.md and OUT/results.json after every method; pictures to OUT/expressed.jpg and OUT/memory_METHOD.jpg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from facerecon.dataset.layout import FaceLayout, face_layout
from facerecon.errors import AssetError, ConfigError, InputError
from facerecon.evaluation import Metric, Row, Summary, Table, bootstrap_summary, identity_std_ratio
from facerecon.evaluation.distribution import frechet_distance, identity_features, statistics_of
from facerecon.fitting import MapFeatures, TextureInversionSettings, invert_texture, load_map_features
from facerecon.imaging.color import rgb_to_yuv, yuv_to_rgb
from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.losses import LPIPSDistance, identity_similarity
from facerecon.morphable import load_face_model
from facerecon.perception import load_eval_identity, load_identity
from facerecon.run import MetricsWriter, choose_device, set_threads
from facerecon.run.signals import check_stop, exit_status
from facerecon.storage import file_sha256, write_whole
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder
from facerecon.stylegan.linear_basis import quantized
from facerecon.stylegan.load import decoder_kind, is_decoder_file, load_decoder
from facerecon.training.uv_maps import MapMemory, UVMaps, held_out, identity_of, share_of

EXPRESSED = [
    Metric("lpips_vgg_face", "LPIPS (VGG) of the face", 1, 4),
    Metric("lpips_vgg", "LPIPS (VGG)", 1, 4),
    Metric("lpips_alex", "LPIPS (AlexNet)", 1, 4),
    Metric("l1_face", "L1 of the face x 1000", 1000, 2),
    Metric("l1", "L1 x 1000", 1000, 2),
    Metric("csim", "CSIM", 1, 4),
    Metric("numbers", "numbers of a code", 1, 0, interval=False),
    Metric("seconds", "s a map", 1, 1, interval=False),
]
GREATER = ("csim",)
"""Metrics that are better when greater."""
REMEMBERED = [
    Metric("l1", "L1 x 1000 to the nearest map", 1000, 1),
    Metric("lpips", "LPIPS (AlexNet), least of the 5 nearest", 1, 3),
    Metric("nearer", "nearer than any held-out map, %", 100, 1, interval=False),
    Metric("identity_std", "identity std, % of the maps'", 100, 1, interval=False),
    Metric("frechet", "Frechet distance x 1000, all samples", 1000, 2, interval=False),
    Metric("frechet_few", "as many as held-out maps", 1000, 2, interval=False),
]
NEAREST, SMALL, SHOWN = 5, 64, 8
"""Maps that LPIPS looks at; px of the face crops whose L1 finds them; samples on a sheet."""
LOOKED = 200  # px of the crops that LPIPS compares
_SLAB = 1 << 26  # numbers of maps as floats at once


# -- principal components -----------------------------------------------------------------------------------


class PrincipalComponents:
    """Principal components of many maps, which are never all floats at once.

    Args:
        memory: the maps.
        rows: those to take.
        mirror: also of their mirror images. Each component is then even or odd: its own mirror image, or its negative.

    Attributes:
        mean: (3, S, S) in [0, 1].
        rank: number of components that there are.
        share: (rank,) of the variance that the first components hold.
    """

    def __init__(self, memory: MapMemory, rows: Sequence[int], mirror: bool) -> None:
        self.memory, self.rows, self.mirror = memory, list(rows), mirror
        if len(self.rows) < 2:
            raise InputError(f"principal components need two maps or more; got {len(self.rows)}.")
        count, size = len(self.rows), memory.size
        self.mean = torch.zeros(3, size, size)
        self.parities = (1, -1) if mirror else (0,)
        grams = {parity: torch.zeros(count, count, dtype=torch.float64) for parity in self.parities}
        for part, maps in self._slabs():
            for parity in self.parities:
                flat, mean = self._centered(maps, parity)
                grams[parity] += (flat @ flat.T).double() * (2 if mirror else 1)
                if parity == 1:
                    self.mean[:, part] = torch.cat([mean, mean.flip(-1)], -1)
                elif parity == 0:
                    self.mean[:, part] = mean
        values, parities, vectors = [], [], []
        for parity, gram in grams.items():
            found, columns = torch.linalg.eigh(gram / count)
            centered = int(parity >= 0)  # one dimension less: its variance is 0 but for rounding
            values.append(found[centered:])
            vectors.append(columns[:, centered:])
            parities.append(torch.full((count - centered,), parity))
        values, order = torch.cat(values).sort(descending=True)
        self.parity, self.vectors = torch.cat(parities)[order], torch.cat(vectors, 1)[:, order].float()
        self.rank = int((values > 1e-7 * values[0]).sum())
        self.share = (values.cumsum(0) / values.sum())[: self.rank]

    def _slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of texels of all maps: where, and (N, 3, R, S) in [0, 1]."""
        size = self.memory.size
        step = max(1, _SLAB // (len(self.rows) * 3 * size))
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            if self.memory.pixels is not None:
                maps = self.memory.pixels[self.rows, :, part].float() / 255
            else:
                chunks = (self.rows[i : i + 16] for i in range(0, len(self.rows), 16))
                maps = torch.cat([self.memory.images(some)[0][:, :, part] * 0.5 + 0.5 for some in chunks])
            yield part, maps

    def _centered(self, maps: Tensor, parity: int) -> tuple[Tensor, Tensor]:
        """Rows of a slab (N, D) less their mean, and that mean: of whole maps (0), of the even or odd part's left half
        (1, -1). Odd parts have none: a map and its mirror image cancel."""
        if parity:
            half = maps.shape[-1] // 2
            maps = (maps[..., :half] + parity * maps[..., half:].flip(-1)) / 2
        mean = maps.mean(0) if parity >= 0 else torch.zeros_like(maps[0])
        return (maps - mean).flatten(1), mean

    def basis(self, count: int) -> Tensor:
        """(K, 3, S, S): the first components, one standard deviation each."""
        self._check(count)
        size = self.memory.size
        result = torch.empty(count, 3, size, size)
        for part, maps in self._slabs():
            for parity in self.parities:
                chosen = self.parity[:count] == parity
                flat, mean = self._centered(maps, parity)
                found = (self.vectors[:, :count][:, chosen].T @ flat) / math.sqrt(len(self.rows))
                found = found.view(-1, *mean.shape)
                result[chosen, :, part] = torch.cat([found, parity * found.flip(-1)], -1) if parity else found
        return result

    def stored(self, count: int) -> tuple[Tensor, Tensor]:
        """Mean and components as a file gives them back: 8 bits, color at half resolution, see :meth:`fitting`."""
        basis, half = self.basis(count), self.memory.size // 2
        width = half if self.mirror else 2 * half
        for k, parity in enumerate(self.parity[:count].tolist()):  # one at a time: there may be many
            yuv = rgb_to_yuv(basis[k : k + 1, :, :, :width])
            luma, chroma = (_through_bytes(x) for x in (yuv[:, :1], F.avg_pool2d(yuv[:, 1:], 2)))
            if parity:
                luma, chroma = (torch.cat([x, parity * x.flip(-1)], -1) for x in (luma, chroma))
            chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
            basis[k] = yuv_to_rgb(torch.cat([luma, chroma], 1))[0]
        return self.mean.half().float(), basis

    def fitting(self, largest: int) -> int:
        """How many components a file of so many bytes holds beside the mean (half floats), at most all of them.

        Raises:
            ConfigError: not one.
        """
        size = self.memory.size
        mean, one = 6 * size**2, 3 * size**2 // (4 if self.mirror else 2) + 8
        if largest < mean + one:
            raise ConfigError(f"a mean and one component of {size} px take {mean + one} bytes; --pca-bytes {largest}.")
        return min((largest - mean) // one, self.rank)

    def _check(self, count: int) -> None:
        if not 1 <= count <= self.rank:
            raise ConfigError(f"{len(self.rows)} maps have {self.rank} principal components; --pca asks for {count}.")


def _through_bytes(values: Tensor) -> Tensor:
    levels, scale = quantized(values)
    return levels.float() * scale.view(-1, 1, 1, 1)


# -- methods ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What expresses maps.

    Args:
        name: in tables.
        about: what its results depend on, plain data.
        load: gives the decoder.
        sampler: gives the decoder from which random samples are drawn, and of which latent space.
    """

    name: str
    about: Any
    load: Callable[[], TextureDecoder]
    sampler: Callable[[], tuple[TextureDecoder, str]]


def decoder_method(text: str, precision: str = "auto") -> Method:
    """``"ours=texture.safetensors:w"``, ``"open:w"``, ``"open"`` -> the method."""
    name, sign, place = text.partition("=")
    place = place if sign else name
    path, colon, space = place.rpartition(":")
    path, space = (path, space) if colon and "/" not in space.partition("/")[0] and space[:1] in "zw" else (place, None)
    linear = decoder_kind(path) == "linear"
    given = None if linear else space or "w+"

    def load() -> TextureDecoder:
        return load_decoder(path, space=given, precision=precision)

    def sampler() -> tuple[TextureDecoder, str]:
        if linear:
            return load(), "Gaussian codes"
        try:
            return load_decoder(path, space="z", precision=precision), "z"
        except AssetError:  # a file without its mapping network
            return load_decoder(path, space="w", precision=precision), "w, as a Gaussian"

    content = file_sha256(Path(path).expanduser()) if is_decoder_file(path) else path
    return Method(name if sign else text, [content, given, precision], load, sampler)


def pca_methods(
    folder: Path,
    size: int,
    shares: Sequence[float],
    counts: Sequence[int],
    largest: Sequence[int],
    mirror: bool,
    suffix: str = "",
) -> list[Method]:
    """Principal components of shares of the maps at a size: so many, or as many as fit into so many bytes."""
    memory = cache(lambda: MapMemory(folder, size))
    paths = UVMaps(folder).paths

    @cache
    def components(share: float) -> PrincipalComponents:
        return PrincipalComponents(memory(), memory().usable(share_of(len(paths), share)), mirror)

    def method(share: float, count: int, stored: bool) -> Method:
        def load() -> TextureDecoder:
            found = components(share)
            pair = found.stored(count) if stored else (found.mean, found.basis(count))
            return LinearDecoder(*pair).eval().requires_grad_(False)

        name = f"pca{count}" + ("" if share == 1 else f"-{share:g}") + suffix + ("-int8" if stored else "")
        files = identity_of([paths[i] for i in share_of(len(paths), share)])
        about = ["pca", count, stored, share, mirror, size, files]
        return Method(name, about, load, lambda: (load(), "Gaussian codes"))

    found = []
    for share in shares:
        found += [method(share, count, False) for count in counts]
        found += [method(share, components(share).fitting(most), True) for most in largest]
    return found


# -- metrics ------------------------------------------------------------------------------------------------


class Measures:
    """Metrics of pairs of maps.

    Args:
        layout: of the atlas at the maps' size.
        vgg: px of the longer side at which LPIPS on VGG compares; 0: not at all.
        whole: LPIPS on VGG of the whole map, too.
        networks: also LPIPS on AlexNet and CSIM; False: L1 alone.
        atlas: head model.
        device: where.
    """

    def __init__(
        self, layout: FaceLayout, vgg: int, whole: bool, networks: bool, atlas: str, device: torch.device
    ) -> None:
        self.layout, self.whole = layout, whole
        self.vgg = LPIPSDistance("vgg", vgg).to(device) if vgg else None
        self.head = None
        if networks:
            self.alex = LPIPSDistance("alex").to(device)
            self.head = MapFeatures("face_features", atlas, device)
            self.eval_identity = load_eval_identity().to(device)

    @torch.no_grad()
    def __call__(self, maps: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """{metric: (B,)} of maps and their targets, (B, 3, S, S) in [0, 1]."""
        pair = (maps, targets)
        face, crop = self.layout.face.to(maps), self.layout.crop
        apart = (maps - targets).abs().mean(1, keepdim=True)
        found = {"l1": apart.mean((1, 2, 3)), "l1_face": (apart * face).sum((1, 2, 3)) / face.sum()}
        if self.vgg is not None:
            found["lpips_vgg_face"] = self.vgg(*map(crop, pair))
            if self.whole:
                found["lpips_vgg"] = self.vgg(*pair)
        if self.head is not None:
            found["lpips_alex"] = self.alex(*pair)
            points = self.head.landmarks.expand(len(maps), -1, -1)
            found["csim"] = identity_similarity(*(self.eval_identity(self.head.look(x), points) for x in pair))
        return found


def enlarged(maps: Tensor, size: int) -> Tensor:
    """Maps at the size at which they are compared."""
    return maps if maps.shape[-1] == size else F.interpolate(maps, (size, size), mode="bilinear").clamp(0, 1)


# -- unseen maps --------------------------------------------------------------------------------------------


def express(
    method: Method,
    maps: UVMaps,
    rows: Sequence[int],
    settings: TextureInversionSettings,
    features: MapFeatures | None,
    measures: Callable[[Tensor, Tensor], dict[str, Tensor]],
    batch: int,
    device: torch.device,
    keep: Callable[[int, dict[str, float], Tensor], None],
) -> None:
    """Express maps by a method; ``keep`` takes each one's row, its metrics and the map that was found."""
    decoder = method.load().to(device)
    total = len(rows) * settings.steps
    with tqdm(total=total, desc=method.name, unit="step", disable=None) as bar:
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            targets = torch.stack([maps[i]["texture"] for i in some]).to(device)
            clock = time.perf_counter()

            def step(*_: Any, count: int = len(some)) -> None:
                check_stop()
                bar.update(count)

            found = invert_texture(targets, decoder, features, settings, step).texture
            seconds = (time.perf_counter() - clock) / len(some)
            found = enlarged(found.float(), targets.shape[-1])
            metrics = {key: value.cpu().tolist() for key, value in measures(found, targets).items()}
            for k, row in enumerate(some):
                numbers = {key: value[k] for key, value in metrics.items()}
                numbers |= {"numbers": decoder.rows * decoder.dim, "seconds": seconds}
                keep(row, numbers, found[k].cpu())


def expressed_table(found: dict[str, dict[str, dict[str, float]]], features: str) -> Table:
    """Means of {method: {map: metrics}}."""
    table = Table("expressed", "Unseen maps, as decoders express them", EXPRESSED, first="method")
    marks = frozenset(["l1", features])
    for name, rows in found.items():
        cells = {}
        for metric in EXPRESSED:
            values = [row[metric.key] for row in rows.values() if metric.key in row]
            if values:
                cells[metric.key] = bootstrap_summary(values)
        table.rows.append(Row(name, cells, optimized=marks))
    return table


def paired_table(found: dict[str, dict[str, dict[str, float]]], reference: str) -> Table | None:
    """Differences of every other method to a reference, on the maps that both have; None without any."""
    metrics = []
    for metric in EXPRESSED[:-2]:
        metrics.append(replace(metric, title=f"{metric.title}, difference", signed=True))
        metrics.append(Metric(f"{metric.key} better", "better on, %", 100, 0, interval=False))
    table = Table(f"minus {reference}", f"Minus {reference}, on the same maps", metrics, first="method")
    for name, rows in found.items():
        both = [key for key in rows if key in found[reference]]
        if name == reference or not both:
            continue
        cells: dict[str, Summary] = {}
        for metric in EXPRESSED[:-2]:
            key = metric.key
            pairs = [
                (rows[m][key], found[reference][m][key]) for m in both if key in rows[m] and key in found[reference][m]
            ]
            if pairs:
                apart = torch.tensor(pairs, dtype=torch.float64).diff(dim=1)[:, 0].neg()
                cells[key] = bootstrap_summary(apart)
                better = apart > 0 if key in GREATER else apart < 0
                cells[f"{key} better"] = Summary(better.double().mean().item(), len(apart))
        table.rows.append(Row(name, cells))
    return table if table.rows else None


# -- what a decoder remembers --------------------------------------------------------------------------------


class Remembered:
    """The maps to train on, with which samples are compared.

    Args:
        maps: of the set, at the size of ``layout``.
        rows: of the maps to train on.
        layout: of the atlas.
        networks: LPIPS, and the identity networks; False: L1 alone.
        atlas: head model.
    """

    def __init__(self, maps: UVMaps, rows: Sequence[int], layout: FaceLayout, networks: bool, atlas: str) -> None:
        self.maps, self.rows, self.layout = maps, list(rows), layout
        self.alex = LPIPSDistance("alex") if networks else None
        self.head = MapFeatures("face_features", atlas) if networks else None
        self.features = identity_features() if networks else None
        small, people, features = [], [], []
        for i in tqdm(self.rows, desc="maps to train on", disable=None):
            texture = maps[i]["texture"][None]
            small.append(self.small(texture))
            if networks:
                people.append(self.people(texture))
                features.append(self.features(texture))
        self.known = torch.cat([*small, *(x.flip(-1) for x in small)]).flatten(1)
        if networks:
            self.identities = torch.cat(people)
            self.statistics = statistics_of(lambda x: x, features)

    def small(self, maps: Tensor) -> Tensor:
        """(B, 3, 64, 64) of the face."""
        return F.interpolate(self.layout.crop(maps), (SMALL, SMALL), mode="area")

    def people(self, maps: Tensor) -> Tensor:
        """(B, 128) identities of maps on the mean head."""
        return load_identity()(self.head.look(maps), self.head.landmarks.expand(len(maps), -1, -1))

    def nearest(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest maps to train on: L1 (B, 5) of small face crops, LPIPS (B, 5) of larger ones (NaN without
        networks), and which (B, 5): n and more are mirror images."""
        apart = torch.cdist(self.small(maps).flatten(1), self.known, p=1) / self.known.shape[1]
        least, which = apart.topk(min(NEAREST, apart.shape[1]), largest=False)
        seen = torch.full_like(least, torch.nan)
        if self.alex is not None:
            for one, numbers, row in zip(maps, which, seen, strict=True):
                others = torch.stack([self.picture(int(n)) for n in numbers])
                row[:] = self.alex(*(self.looked(x) for x in (one[None].expand_as(others), others)))
        return least, seen, which

    def picture(self, number: int) -> Tensor:
        """(3, S, S): the map of that number, mirrored from n on."""
        texture = self.maps[self.rows[number % len(self.rows)]]["texture"]
        return texture.flip(-1) if number >= len(self.rows) else texture

    def looked(self, maps: Tensor) -> Tensor:
        """The face at the size at which LPIPS compares."""
        crop = self.layout.crop(maps)
        return F.interpolate(crop, (min(LOOKED, crop.shape[-2]), min(LOOKED, crop.shape[-1])), mode="area")

    @torch.no_grad()
    def __call__(self, maps: Sequence[Tensor], few: int) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor, Tensor]]]:
        """Facts of maps (3, S, S), and of each what :meth:`nearest` found.

        Args:
            maps: samples, or held-out maps.
            few: so many of them, the first, give ``frechet_few``.
        """
        found = [tuple(x[0] for x in self.nearest(one[None])) for one in maps]
        facts: dict[str, Any] = {"l1": [least[0].item() for least, _, _ in found]}
        if self.alex is not None:
            facts["lpips"] = [seen.min().item() for _, seen, _ in found]
            people = torch.cat([self.people(one[None]) for one in maps])
            if min(len(people), len(self.identities)) > 1:
                facts["identity_std"] = identity_std_ratio(people, self.identities).item()
                features = [self.features(one[None]) for one in maps]
                for key, part in (("frechet", features), ("frechet_few", features[:few])):
                    if len(part) > 1:
                        facts[key] = frechet_distance(statistics_of(lambda x: x, part), self.statistics)
        return facts, found


def remembered_table(found: dict[str, dict[str, Any]]) -> Table:
    """Rows of {"held-out maps" or method: facts}."""
    table = Table(
        "remembered", "Random samples, and the maps to train on that are nearest", REMEMBERED, first="samples of"
    )
    floor = min(found["held-out maps"]["l1"])
    for name, facts in found.items():
        count = len(facts["l1"])
        cells = {key: bootstrap_summary(facts[key]) for key in ("l1", "lpips") if key in facts}
        if name != "held-out maps":
            cells["nearer"] = Summary(sum(value < floor for value in facts["l1"]) / count, count)
        cells |= {key: Summary(facts[key], count) for key in ("identity_std", "frechet", "frechet_few") if key in facts}
        table.rows.append(Row(name + (f" ({facts['space']})" if "space" in facts else ""), cells))
    table.notes = [
        f"L1 of {SMALL} px crops of the face, to the nearest map or mirror image; LPIPS of {LOOKED} px crops. Frechet "
        "distances are of identity features, fall with the number of samples, and compare at equal numbers only."
    ]
    return table


@torch.no_grad()
def draw_samples(method: Method, count: int, size: int, seed: int, device: torch.device) -> tuple[list[Tensor], str]:
    """(3, size, size) each, and the latent space that they were drawn in."""
    decoder, space = method.sampler()
    decoder, draw, found = decoder.to(device), torch.Generator().manual_seed(seed), []
    for start in tqdm(range(0, count, 8), desc=f"samples of {method.name}", disable=None):
        check_stop()
        latent = decoder.sample(min(8, count - start), draw)
        found += enlarged(decoder(latent).float().clamp(0, 1).cpu(), size).unbind(0)
    return found, space


def memory_sheet(known: Remembered, samples: Sequence[Tensor], found: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """The samples that are nearest to a map, each beside its nearest ones."""
    order = sorted(range(len(samples)), key=lambda i: found[i][0][0].item())[:SHOWN]
    tiles, labels = [], []
    for i in order:
        least, seen, which = found[i]
        tiles.append(samples[i])
        labels.append(f"sample {i}")
        for l1, lpips, number in zip(least[:3].tolist(), seen[:3].tolist(), which[:3].tolist(), strict=True):
            tiles.append(known.picture(number))
            name = known.maps.paths[known.rows[number % len(known.rows)]].stem
            mirrored = " mirrored" if number >= len(known.rows) else ""
            labels.append(f"{name}{mirrored}: {1000 * l1:.0f}" + ("" if math.isnan(lpips) else f", {lpips:.2f}"))
    return contact_sheet(tiles, 1 + min(3, len(found[0][0])), labels, size=224)


# -- the run ------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, layout: FaceLayout | None = None) -> None:
    """All of it; ``layout`` replaces the one of the head model at the maps' size."""
    set_threads(options.threads)
    device = choose_device(options.device)
    at = options.at or MapMemory(options.set, 1, limit_gb=0).side
    maps = UVMaps(options.set, size=at)
    unseen = held_out(len(maps))
    if not unseen:
        raise InputError(f"{options.set} has {len(maps)} map(s); the tenth is the first that is held out.")
    step = max(1, len(unseen) / max(options.maps, 1))
    chosen = [unseen[int(i * step)] for i in range(min(options.maps, len(unseen)))]
    methods, atlas = _methods(options)
    layout = layout or face_layout(load_face_model(atlas), at)
    settings = TextureInversionSettings(steps=options.steps)
    networks = not options.l1_only
    features = load_map_features(options.features, atlas, device)
    measures = Measures(layout, 0 if options.l1_only else options.vgg, options.whole, networks, atlas, device)
    setup = [asdict(settings), options.features, at, options.vgg * networks, options.whole, networks]
    journal = MetricsWriter(options.out / "rows.jsonl")
    kept = {(row["key"], row["map"]): row for row in journal.read()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    sheets: dict[str, dict[int, Tensor]] = {}

    def write() -> None:
        report(options, found, facts, options.against or [methods[0].name])

    for method in methods:
        key = _digest([method.about, setup])
        digests = {i: _digest([key, identity_of([maps.paths[i]])]) for i in chosen}
        ready = {i: kept[digests[i], maps.paths[i].name] for i in chosen if (digests[i], maps.paths[i].name) in kept}
        rows = found[method.name] = {maps.paths[i].name: row["metrics"] for i, row in ready.items()}

        def keep(i: int, metrics: dict[str, float], texture: Tensor, method=method, digests=digests, rows=rows) -> None:
            name = maps.paths[i].name
            journal.write({"key": digests[i], "method": method.name, "map": name, "metrics": metrics})
            rows[name] = metrics
            sheets.setdefault(method.name, {})[i] = texture

        todo = [i for i in chosen if i not in ready]
        if todo:
            express(method, maps, todo, settings, features, measures, options.batch, device, keep)
        write()
    _write_expressed(options.out / "expressed.jpg", maps, sheets, layout)
    if options.memory:
        known = Remembered(maps, share_of(len(maps), 1.0), layout, networks, atlas)
        some = [maps[i]["texture"] for i in unseen[: options.memory]]
        facts["held-out maps"], _ = known(some, len(some))
        for method in methods:
            samples, space = draw_samples(method, options.memory, at, options.seed, device)
            facts[method.name], nearest = known(samples, len(some))
            facts[method.name]["space"] = space
            write_jpg(options.out / f"memory_{_file_name(method.name)}.jpg", memory_sheet(known, samples, nearest))
            write()
    print(report(options, found, facts, options.against or [methods[0].name]))


def _methods(options: argparse.Namespace) -> tuple[list[Method], str]:
    """All methods, and the atlas of their maps."""
    methods, sizes, atlases = [], {}, {}
    for text in options.decoders:
        method = decoder_method(text, options.precision)
        decoder = method.load()
        methods.append(method)
        sizes[decoder.size], atlases[decoder.atlas] = None, method.name
    if len(atlases) > 1:
        pairs = ", ".join(f"{name} of {atlas}" for atlas, name in atlases.items())
        raise ConfigError(f"the decoders make maps of different atlases ({pairs}); compare those of one.")
    sizes = options.pca_size or list(sizes) or [256]
    if options.pca or options.pca_bytes:
        for size in sizes:
            suffix = f"-{size}px" if len(sizes) > 1 else ""
            methods += pca_methods(
                options.set, size, options.share, options.pca, options.pca_bytes, options.mirror, suffix
            )
    if not methods:
        raise ConfigError("nothing is compared; name a decoder, or give --pca.")
    names = [method.name for method in methods]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two methods are called {twice[0]}; give decoders names of their own, as NAME=FILE.")
    missing = [name for name in options.against if name not in names]
    if missing:
        raise ConfigError(f"--against {missing[0]} is none of the methods {', '.join(names)}.")
    return methods, next(iter(atlases), "makehuman")


def report(
    options: argparse.Namespace,
    found: dict[str, dict[str, dict[str, float]]],
    facts: dict[str, dict[str, Any]],
    against: Sequence[str],
) -> str:
    """Write tables.md and results.json of what there is; the tables as Markdown."""
    tables = [expressed_table(found, options.features)]
    tables += [table for name in against if name in found and (table := paired_table(found, name)) is not None]
    if len(facts) > 1:
        tables.append(remembered_table(facts))
    note = (
        f"{options.steps} steps of Adam on L1 and {options.features}; intervals: bootstrap over maps, 95 %. "
        "Differences are paired."
    )
    tables[0].notes.append(note)
    text = "\n".join(table.to_markdown() for table in tables)
    write_whole(options.out / "tables.md", text.encode())
    cells = {
        table.name: {row.label: {key: asdict(cell) for key, cell in row.cells.items()} for row in table.rows}
        for table in tables
    }
    given = {
        key: value if isinstance(value, int | float | list) else str(value) for key, value in vars(options).items()
    }
    result = {"options": given, "tables": cells, "maps": found, "memory": facts}
    write_whole(options.out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    return text


def _write_expressed(path: Path, maps: UVMaps, sheets: dict[str, dict[int, Tensor]], layout: FaceLayout) -> None:
    """The faces of some maps, and what each method that has just run made of them."""
    shared = sorted(set.intersection(*(set(of) for of in sheets.values())))[:SHOWN] if sheets else []
    if shared:
        tiles = [
            layout.crop(texture) for i in shared for texture in (maps[i]["texture"], *(of[i] for of in sheets.values()))
        ]
        labels = [label for i in shared for label in (maps.paths[i].stem, *sheets)]
        write_jpg(path, contact_sheet(tiles, 1 + len(sheets), labels, size=320))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-+." else "_" for c in name)


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list]:
    def parse(text: str) -> list:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("set", type=Path, help="a set with uv-maps/, or a folder of maps")
    made.add_argument("decoders", nargs="*", metavar="NAME=DECODER", help="see above")
    made.add_argument("--maps", type=int, default=60, help="held-out maps, spread over the set")
    made.add_argument("--steps", type=int, default=TextureInversionSettings.steps)
    made.add_argument("--batch", type=int, default=4, help="maps that are expressed together")
    made.add_argument("--at", type=int, help="px at which maps are compared; the files' if left out")
    made.add_argument("--features", choices=("lpips_alex", "face_features", "none"), default="lpips_alex")
    made.add_argument("--pca", type=_listed(int), default=[], metavar="K,K", help="principal components")
    made.add_argument("--pca-bytes", type=_listed(int), default=[], metavar="N,N", help="as many as a file holds")
    made.add_argument("--pca-size", type=_listed(int), default=[], help="px; the decoders' if left out, or 256")
    made.add_argument("--share", type=_listed(float), default=[1.0], metavar="S,S", help="of the maps, for PCA")
    made.add_argument("--mirror", action="store_true", help="PCA of mirror images, too")
    made.add_argument("--against", nargs="+", default=[], metavar="NAME", help="for differences; the first if left out")
    made.add_argument("--vgg", type=int, default=400, metavar="PX", help="longer side for LPIPS on VGG; 0: without")
    made.add_argument("--whole", action="store_true", help="LPIPS on VGG of whole maps, too")
    made.add_argument("--l1-only", action="store_true", help="no networks measure")
    made.add_argument("--memory", type=int, default=0, metavar="N", help="samples to compare with maps to train on")
    made.add_argument("--seed", type=int, default=0, help="of samples")
    made.add_argument("--precision", default="auto", help="of StyleGAN2 decoders")
    made.add_argument("--threads", type=int)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", type=Path, default=Path("outputs/texture_decoder"))
    return made


def main() -> None:
    run(parser().parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
