"""What is measured and written at a snapshot of a training: the running average's weights, pictures and errors."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facerecon.fitting import coefficients_to_params
from facerecon.imaging.files import contact_sheet, write_png
from facerecon.perception.regressor import Coefficients, save_regressor
from facerecon.render import Renderer
from facerecon.stylegan.texture_decoder import save_decoder, synthesis_precision
from facerecon.stylegan.weights import save_generator
from facerecon.training.ada import draws_of
from facerecon.training.crops import photo_batch
from facerecon.training.regressor import RegressorTraining
from facerecon.training.regressor_data import RegressorData, batch_of, rows_of
from facerecon.training.texture_data import TextureData
from facerecon.training.texture_gan import TextureTraining, invert_maps
from facerecon.types import Camera

__all__ = ["RegressorSnapshots", "TextureSnapshots"]

STATISTICS = {"textures": 600}
"""How the statistics of W that a finished run's decoder holds are measured, see ``stylegan.texture_decoder``."""


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, float)}


class TextureSnapshots:
    """Snapshots of a texture decoder.

    Args:
        path: folder of the run.
        training: whose running average is measured.
        data: maps and codes.
        about: plain facts that the decoder's file keeps.
        batch: images synthesized at once.
        seed: of samples and interpolations.
        samples: pictures of fixed seeds.
        cell: px of each picture of a sheet.
        pairs: held-out maps whose codes are known, of which the pair error is taken.
        inversion: held-out maps to which a code is fitted.
        inversion_steps: of that.
        features: generated maps of each Frechet distance.
        distances: {name: distance of generated maps, batches (b, 3, S, S) in [0, 1], from those trained on}.
        keep: decoders of past snapshots that stay; None: all.
    """

    def __init__(
        self,
        path: Path,
        training: TextureTraining,
        data: TextureData,
        about: Mapping[str, Any],
        *,
        batch: int,
        seed: int,
        samples: int = 64,
        cell: int = 128,
        pairs: int = 64,
        inversion: int = 6,
        inversion_steps: int = 60,
        features: int = 0,
        distances: Mapping[str, Callable[[Iterable[Tensor]], float]] | None = None,
        keep: int | None = None,
    ) -> None:
        self.path, self.training, self.data, self.about = path, training, data, dict(about)
        self.batch, self.seed, self.samples, self.cell, self.pairs = batch, seed, samples, cell, pairs
        self.inversion, self.inversion_steps = inversion, inversion_steps
        self.features, self.distances, self.keep = features, distances or {}, keep

    def begin(self) -> None:
        """Write real.png, maps of the set."""
        rows, n = self.data.chosen, len(self.data.chosen)
        chosen = [rows[i * n // self.samples % n] for i in range(self.samples)]
        self._sheet("real.png", self.data.memory.images(list(dict.fromkeys(chosen)))[0])

    def make(self, row: dict[str, Any], final: bool) -> dict[str, Any]:
        """Measurements, decoder and pictures.

        Args:
            row: of the snapshot.
            final: the run is finished; the decoder then holds the statistics of W that fits start from.

        Returns:
            The row with the measurements.
        """
        name = f"{self.training.images / 1000:08.1f}"
        row |= self._measure(name)
        self._save_decoder(self.path / "decoders" / f"decoder-{name}.safetensors", row)
        self._save_decoder(self.path / "decoder.safetensors", row, final)
        if self.keep is not None:
            kept = sorted((self.path / "decoders").glob("decoder-*.safetensors"))
            for old in kept[: -self.keep]:
                old.unlink(missing_ok=True)
        self._show(name)
        return row

    def describe(self, row: Mapping[str, Any]) -> str:
        """All measurements, one line."""
        return ", ".join(f"{key} {value}" for key, value in _numbers(row).items())

    def _save_decoder(self, path: Path, row: Mapping[str, Any], final: bool = False) -> None:
        t = self.training
        about = self.about | {
            "pretrain_kimg": t.pretrain_images / 1000,
            "kimg": (t.images - t.pretrain_images) / 1000,
            "metrics": _numbers(row),
        }
        if not final:
            save_generator(path, t.average, about)
            return
        network = copy.deepcopy(t.average).cpu()
        network.precision = synthesis_precision("auto", "cpu")
        save_decoder(path, network, about, **STATISTICS)

    def _measure(self, name: str) -> dict[str, float]:
        """Errors on held-out maps, and distances of generated maps from those trained on."""
        t, data = self.training, self.data
        g, metrics, memory = t.average, {}, data.memory
        known = data.unseen_pairs[: self.pairs]
        if known:
            errors = []
            for start in range(0, len(known), self.batch):
                truth, shown = memory.images(known[start : start + self.batch], t.device)
                made = self._images(g.rows_of(data.codes_of(shown, g.projection)))
                errors += ((made - truth.cpu()).abs().mean((1, 2, 3)) / 2).tolist()
            metrics["held_out_pair_l1"] = sum(errors) / len(errors)
        chosen = data.unseen[: self.inversion]
        if chosen and self.inversion_steps:
            truth, _ = memory.images(chosen, t.device)
            fitted = [invert_maps(g, part, self.inversion_steps)[1].cpu() for part in truth.split(self.batch)]
            metrics["held_out_inversion_l1"] = float((torch.cat(fitted) - truth.cpu()).abs().mean() / 2)
            self._sheet(f"inversions-{name}.png", torch.cat([truth.cpu(), *fitted]), len(chosen))
        for kind, distance in self.distances.items():
            z = draws_of(self.seed, "features", range(self.features), g.config.z_dim).to(t.device)
            made = (self._images(g.rows_of(g.map(part))).to(t.device) * 0.5 + 0.5 for part in z.split(self.batch))
            metrics[f"frechet_{kind}"] = distance(made)
        return {key: round(value, 6) for key, value in metrics.items()}

    def _show(self, name: str) -> None:
        """Samples and interpolations of fixed seeds, and held-out pairs beside the truth."""
        g, device = self.training.average, self.training.device
        z = draws_of(self.seed, "grid", range(self.samples), g.config.z_dim).to(device)
        self._sheet(f"samples-{name}.png", self._images(g.rows_of(g.map(z))))
        w = g.map(draws_of(self.seed, "interpolation", range(8), g.config.z_dim).to(device))
        steps = torch.linspace(0, 1, 8, device=device)[:, None]
        lines = torch.cat([torch.lerp(w[i], w[(i + 1) % 8], steps) for i in range(0, 8, 2)])
        self._sheet(f"interpolations-{name}.png", self._images(g.rows_of(lines)), 8)
        known = self.data.unseen_pairs[:8]
        if known:
            made = self._images(g.rows_of(self.data.codes_of(known, g.projection)))
            self._sheet(f"held-out-{name}.png", torch.cat([self.data.memory.images(known)[0], made]), len(known))

    def _images(self, ws: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.training.average.synthesis(part).cpu() for part in ws.split(self.batch)])

    def _sheet(self, name: str, images: Tensor, columns: int | None = None) -> None:
        write_png(self.path / name, contact_sheet((images + 1) / 2, columns, size=self.cell))


class RegressorSnapshots:
    """Snapshots of a regressor.

    Args:
        path: folder of the run.
        training: whose running average is measured.
        data: crops; faces of another seed are held out.
        about: plain facts that the regressor's file keeps.
        count: held-out faces, and photos, that are measured.
        columns: of the grids.
        number_type: of the file, "float32", "float16" or "int8".
    """

    def __init__(
        self,
        path: Path,
        training: RegressorTraining,
        data: RegressorData,
        about: Mapping[str, Any],
        count: int,
        columns: int,
        number_type: str,
    ) -> None:
        self.path, self.training, self.data, self.about = path, training, data, dict(about)
        self.count, self.columns, self.number_type = count, columns, number_type

    def begin(self) -> None:
        """Nothing is written before the first step."""

    def make(self, row: dict[str, Any], final: bool) -> dict[str, Any]:
        """Regressor, measurements and pictures; returns the row with the measurements."""
        t = self.training
        metrics, residual = self._measure()
        row |= metrics
        about = self.about | {"kimg": t.images / 1000, "metrics": _numbers(row)}
        about["synthetic_faces"] = about["synthetic_faces"] or t.images
        if residual and all(map(math.isfinite, residual["identity"] + residual["expression"])):
            about["residual"] = residual  # what stage 1 may change of what the network predicts
        save_regressor(self.path / "regressor.safetensors", t.average, about, self.number_type)
        self._show(f"{t.images / 1000:08.1f}")
        return row

    def describe(self, row: Mapping[str, Any]) -> str:
        """The main measurements, one line."""
        shown = ("shape", "landmarks", "yaw", "weak_photometric", "weak_landmarks", "weak_features")
        parts = []
        for key in (key for key in shown if f"held_out_{key}" in row):
            mean = f" (mean face {row[f'held_out_mean_face_{key}']:.3f})" if key in ("shape", "landmarks") else ""
            parts.append(f"held_out_{key} {row[f'held_out_{key}']:.3f}{mean}")
        return ", ".join(parts)

    def _measure(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Means of errors on held-out faces, augmented once, beside those of the mean face, and of weak losses of
        held-out photos; and {"identity", "expression": root mean square error of each coefficient}."""
        t, data, count = self.training, self.data, self.count
        if not count:
            return {}, {}
        sums, squares = Counter(), {"identity": 0.0, "expression": 0.0}
        identities = []
        for start in range(0, count, 64):
            images, truth, landmarks = self._held_out(range(start, min(start + 64, count)))
            truth, landmarks = truth.to(t.device), landmarks.to(t.device)
            with torch.no_grad():
                found = t.predict(images.to(t.device), average=True)
                identities.append(found.identity)
                for prefix, values in (("", found), ("mean_face_", truth.map(torch.zeros_like))):
                    for key, value in t.losses(values, truth, landmarks).items():
                        sums[f"held_out_{prefix}{key}"] += float(value.sum())
                sums["held_out_yaw"] += float(torch.rad2deg((found.angles - truth.angles)[:, 1].abs()).sum())
                for name in squares:
                    squares[name] += (getattr(found, name) - getattr(truth, name)).double().square().sum(0).cpu()
        residual = {
            name: [round(max(v, 1e-3), 4) for v in (total / count).sqrt().tolist()] for name, total in squares.items()
        }
        metrics = {key: value / count for key, value in sums.items()}
        if data.pictures > 1:
            whole = count // data.pictures * data.pictures
            metrics["held_out_intra_inter_ratio"] = float(t.losses.intra_inter_ratio(torch.cat(identities)[:whole]))
        chosen, weak = data.unseen_photos[:count], Counter()
        for start in range(0, len(chosen), 32):
            photos = photo_batch(data.photos, chosen[start : start + 32]).to(t.device)
            with torch.no_grad():
                for key, value in t.weak(t.predict(photos.image, average=True), photos)[0].items():
                    weak[key] += float(value.sum())
        metrics |= {f"held_out_weak_{key}": value / len(chosen) for key, value in weak.items()}
        return {key: round(value, 5) for key, value in metrics.items()}, residual

    def _held_out(self, numbers: range) -> tuple[Tensor, Coefficients, Tensor]:
        data, rows = self.data, list(range(len(numbers)))
        images, truth, landmarks = batch_of(rows_of(data.unseen_faces(numbers)), rows, data.sizes)
        return data.augment(images, numbers), truth, landmarks

    def _show(self, name: str) -> None:
        """Grids: input, rendering of the prediction, rendering of the truth; of photos the composite."""
        t, data = self.training, self.data
        cell = max(data.faces.size, 112)
        images, truth, _ = self._held_out(range(self.columns))
        with torch.no_grad():
            found = t.predict(images.to(t.device), average=True).to("cpu")
            rows = [images, self._render(found), self._render(truth)]
            write_png(self.path / f"faces-{name}.png", contact_sheet(torch.cat(rows), self.columns, size=cell))
            if data.photos is not None:
                chosen = (data.unseen_photos or data.seen_photos)[: self.columns]
                photos = photo_batch(data.photos, chosen)
                found = t.predict(photos.image.to(t.device), average=True).to("cpu")
                rows = [photos.image, self._render(found), self._render(found, photos.image)]
                write_png(self.path / f"photos-{name}.png", contact_sheet(torch.cat(rows), len(chosen), size=cell))

    def _render(self, found: Coefficients, behind: Tensor | None = None) -> Tensor:
        """Heads of coefficients, on gray or on given pictures (of which only the face is covered)."""
        f, model = self.data.faces, self.data.faces.model
        params = coefficients_to_params(found, model)
        texture = (f.mean.flatten() + found.texture @ f.basis.flatten(1)).view(-1, *f.mean.shape).clamp(0, 1)
        region = None if behind is None else "face"
        drawn = Renderer(f.size, antialias=True)(
            model(params), texture, model.topology, Camera.deep3d(224, len(texture)), params.light, region
        )
        under = torch.full_like(drawn.image, 0.5) if behind is None else behind
        return (drawn.image + under * (1 - drawn.mask)).clamp(0, 1)
