"""UV maps -> texture decoder: StyleGAN2 training (Sec. 4.1), from scratch or warm-started on pairs.

    python train/texture_gan.py data=uv size=256 batch=16 kimg=1000                      the paper's way
    python train/texture_gan.py data=uv size=256 base=linear codes=maps mirror=true channel_base=4096 channel_max=192 \\
        w_dim=128 linear_size=128 constant_size=128 warm.rate=0.006 warm.coarse=0 warm.rampdown=0.8 \\
        warm.kimg=28 kimg=0                                                              a small set, on a CPU
    torchrun --nproc-per-node 8 train/texture_gan.py data=uv size=1024 batch=32 kimg=25000
    python train/texture_gan.py data=uv size=512 init=small/decoder.safetensors out=large  finetune, or grow

Writes decoder.safetensors (the running average, for decoder=PATH), checkpoints/, metrics.jsonl, and at each snapshot
pictures: samples (fixed seeds), interpolations, held-out pairs beside the truth; real.png shows maps of the set.
Ctrl-C and SIGTERM end the step and write a checkpoint; a second one does not wait. The same command goes on from the
last checkpoint, and ends as a run that was not stopped; with another rate, say, resume=force goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from configs.compose import run
from facerecon.run.signals import Stopped, check_stop, names_checkpoint, patient_stops, stop_status
from facerecon.run.wandb_logger import row_logger

STRUCTURE = (
    "codes",
    "mapping_layers",
    "constant_size",
    "linear_size",
    "size",
    "channel_base",
    "channel_max",
    "w_dim",
    "base",
    "mapping",
    "train_mapping",
    "share",
    "held_out",
    "seed",
    "init",
)
"""Keys that a run keeps for good, beside what its maps are; the others change with resume=force, but for
``facerecon.run.directory.FREE_TO_CHANGE``."""

STATISTICS = {"textures": 600}
"""How the statistics of W that a finished run's decoder holds are measured, see ``stylegan.texture.save_decoder``."""

DIRECTIONS = 20_000
"""Samples of W whose distribution decides on the directions that are kept of it."""


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.errors import ConfigError
    from facerecon.run import RunDirectory, choose_device, set_threads
    from facerecon.run.processes import Processes

    if OmegaConf.is_missing(config, "data"):
        raise ConfigError("data is not set; for example: python train/texture_gan.py data=uv size=256")
    set_threads(config.threads)
    job = _Job(config, Processes(choose_device(config.device)))
    with job.processes:
        job.load()  # whatever is wrong with the data or the settings costs nothing
        if not job.processes.first:
            try:
                return job.run(None)
            except (KeyboardInterrupt, Stopped) as stop:
                return stop_status(stop)  # the first one says what is kept
        settings = {"script": "texture_gan"} | job.values | {"maps": job.identity()}
        again = {"resume": config.resume, "overwrite": not config.resume, "fixed": ("script", *STRUCTURE, "maps")}
        run_directory = RunDirectory(config.out, settings, keep_checkpoints=config.keep, **again)
        with run_directory.alone() as folder, names_checkpoint(folder):
            return job.run(folder)


class _Job:
    """One run: data, networks, and what is written of it."""

    def __init__(self, config: Any, processes: Any) -> None:
        from omegaconf import OmegaConf

        self.config, self.processes = config, processes
        self.values = OmegaConf.to_container(config, resolve=True)

    # -- before the loop ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Maps, codes and networks."""
        self.check_settings()
        self.load_maps()
        source = self.choose_mapping()
        self.load_codes(source)
        generator, about = self.build_generator(source)
        discriminator = self.build_discriminator()
        self.load_features()
        self.build_training(generator, discriminator)
        if self.processes.first:
            self.announce(about)

    def check_settings(self) -> None:
        """What a setting may be that the library does not look at itself."""
        from omegaconf import OmegaConf

        from facerecon.errors import ConfigError, check_number, nearest_name
        from facerecon.morphable import FACE_MODELS
        from facerecon.run import choose_training_precision
        from facerecon.stylegan.generator import NOISE

        c, device = self.config, self.processes.device
        for key in ("batch", "warm.batch", "keep", "linear_size", "grid.samples", "grid.cell", "collapse.patience"):
            check_number(key, OmegaConf.select(c, key), 1, whole=True)
        for key in ("pairs", "inversion", "inversion_steps", "features"):
            check_number(f"measure.{key}", c.measure[key], 0, whole=True)
        if c.recompute_from is not None and (not isinstance(c.recompute_from, int) or c.recompute_from < 4):
            raise ConfigError(f"recompute_from must be null or px, 4 or more; got {c.recompute_from!r}.")
        for key in ("warm", "adversarial"):
            if c[key].noise not in NOISE:
                raise ConfigError(nearest_name(c[key].noise, NOISE, f"{key}.noise"))
        for key, names in (
            ("atlas", tuple(FACE_MODELS)),
            ("mapping", ("auto", "open", "own")),
            ("train_mapping", ("auto", True, False)),
            ("base", ("none", "mean", "linear")),
            ("codes", ("faces", "maps")),
        ):
            if c[key] not in names:
                raise ConfigError(f"{key} must be one of {', '.join(map(str, names))}; got {c[key]!r}.")
        if c.warm.kimg <= 0 and c.kimg <= 0:
            raise ConfigError("warm.kimg and kimg are both 0: there is nothing to train.")
        self.precision = choose_training_precision(c.precision, device)
        self.regularizer_precision = choose_training_precision(c.regularizer_precision, device)

    @property
    def codes(self) -> str:
        """Whose codes the run learns pairs of: "faces", "maps" or "none"."""
        c = self.config
        return c.codes if c.warm.kimg > 0 or c.adversarial.pairs > 0 else "none"

    def load_maps(self) -> None:
        """The maps, and which of them are to train on and which to measure on."""
        from facerecon.errors import InputError
        from facerecon.training.uv_maps import MapMemory, held_out, share_of

        c = self.config
        self.memory = memory = MapMemory(c.data, c.size, c.memory_gb)
        self.training_maps = memory.usable(share_of(len(memory), c.share, c.held_out))
        self.unseen = memory.usable(held_out(len(memory))) if c.held_out else []
        if not self.training_maps:
            raise InputError(f"{c.data} has {len(memory)} map(s); none is left to train on with share={c.share}.")

    def identity(self) -> dict[str, Any]:
        """What the maps are, and the manifest that says what they are of, if it is read."""
        from facerecon.training.uv_maps import identity_of

        manifest = [Path(self.config.data) / "manifest.safetensors"] if self.codes == "faces" else []
        return identity_of([*self.memory.paths, *manifest])

    def choose_mapping(self) -> Any:
        """The open face generator where its mapping network is to be the decoder's; None: one of its own."""
        from facerecon.errors import ConfigError
        from facerecon.stylegan.face_generator import load_generator

        c = self.config
        kind = ("open" if self.codes == "faces" else "own") if c.mapping == "auto" else c.mapping
        if kind == "open" and self.codes == "maps":
            raise ConfigError("codes=maps has a W of its own; set mapping=own, or codes=faces.")
        if kind == "own" and self.codes == "faces":
            raise ConfigError("pairs need the mapping network that drew their codes; set mapping=open.")
        self.values["mapping"] = kind
        return load_generator() if kind == "open" else None

    def load_codes(self, source: Any) -> None:
        """Codes of the maps, of their faces or of their own.

        Sets ``known`` (M, C), a code for each map (and then for their mirror images) before any projection; ``spread``,
        the standard deviation of the noise on them; ``coded``, the maps to train on that have one, ``pair_rows``, these
        and their mirror images, and ``unseen_pairs``, the held-out ones.
        """
        from facerecon.dataset import Manifest
        from facerecon.errors import InputError
        from facerecon.training.uv_maps import MapCodes, PairedCodes

        c, memory = self.config, self.memory
        self.pairs = self.map_codes = self.known = None
        self.coded, self.pair_rows, self.unseen_pairs, self.spread = [], [], [], c.warm.code_noise
        if self.codes == "maps":
            self.map_codes = MapCodes(memory, self.training_maps, c.w_dim, c.mirror, c.linear_size)
            self.known, self.coded, self.unseen_pairs = self.map_codes.table, self.training_maps, self.unseen
            self.pair_rows = self.coded + ([i + len(memory) for i in self.coded] if c.mirror else [])
        elif self.codes == "faces":
            path = Path(c.data) / "manifest.safetensors"
            if not path.is_file():
                raise InputError(
                    f"{path} does not exist; pairs need the manifest of a set that train/uv_dataset.py made of the open "
                    "generator. Set warm.kimg=0 adversarial.pairs=0 to train without pairs."
                )
            self.pairs = PairedCodes(Manifest.load(path), memory.names, source.mean_w, c.pair_truncation)
            self.known = self.pairs.codes
            self.coded, self.unseen_pairs = (
                [i for i in maps if self.pairs.known[i]] for maps in (self.training_maps, self.unseen)
            )
            if not self.coded:
                raise InputError(
                    f"the manifest in {c.data} knows none of the {len(self.training_maps)} maps to train on."
                )
            self.pair_rows = self.coded
            if c.warm.code_noise:
                self.spread = self.known[self.pairs.known].std(0) * c.warm.code_noise

    def build_generator(self, source: Any) -> tuple[Any, str]:
        """The generator as it starts, and a word on how."""
        import torch

        from facerecon.assets import locate
        from facerecon.run import item_seed
        from facerecon.stylegan.generator import Generator, GeneratorConfig
        from facerecon.stylegan.load import DECODERS
        from facerecon.stylegan.weights import read_generator
        from facerecon.training.texture_gan import initialize_from, open_mapping, start_gently, start_without_color

        c = self.config
        mapped = 0 if source is None or c.w_dim == len(source.mean_w) else len(source.mean_w)
        layers = (0 if self.codes == "maps" else 8) if c.mapping_layers == "auto" else c.mapping_layers
        sizes = GeneratorConfig(
            size=c.size,
            z_dim=512 if layers else c.w_dim,
            w_dim=c.w_dim,
            mapping_layers=layers,
            channel_base=c.channel_base,
            channel_max=c.channel_max,
            mapped_dim=mapped,
            constant_size=c.constant_size,
        )
        torch.manual_seed(item_seed(c.seed, "weights"))
        generator = Generator(sizes)
        if source is not None:
            open_mapping(generator.mapping, source.mapping)
            if not mapped:
                generator.w_mean.copy_(source.mean_w)
            elif not c.init:
                self.find_directions(generator)
        if c.warm.kimg > 0 or c.base != "none":
            start_without_color(generator)
        if c.base == "linear":
            start_gently(generator)
        released = DECODERS[c.init].asset if c.init in DECODERS else ""
        initial = read_generator(locate(released) if released else c.init)[0] if c.init else None
        self.set_base(generator, fit=initial is None)
        if initial is not None:
            return generator, initialize_from(generator, initial)
        return generator, "at random" + (", mapping of the open face generator" if source is not None else "")

    def build_discriminator(self) -> Any:
        """The discriminator, or None where no phase has one."""
        import torch

        from facerecon.run import item_seed
        from facerecon.stylegan.discriminator import Discriminator

        c = self.config
        torch.manual_seed(item_seed(c.seed, "discriminator"))
        return Discriminator(c.size, c.channel_base, c.channel_max) if c.kimg > 0 else None

    def load_features(self) -> None:
        """What Frechet distances are measured in."""
        from facerecon.evaluation.distribution import identity_features, inception_features

        measure = self.config.measure
        self.features, self.real_features = {}, {}
        if measure.features:
            self.features["identity"] = identity_features()
            if measure.inception:
                self.features["inception"] = inception_features(measure.inception)

    def build_training(self, generator: Any, discriminator: Any) -> None:
        """Networks, optimizers and settings put together."""
        import torch

        from facerecon.settings import build_settings
        from facerecon.training.ada import ADASettings, Augment
        from facerecon.training.texture_gan import (
            AdversarialSettings,
            Latents,
            PairWeights,
            TextureTraining,
            WarmSettings,
        )

        c, v, device = self.config, self.values, self.processes.device
        latents = Latents()
        if self.pair_rows:
            rows = torch.tensor(self.pair_rows)
            codes = self.codes_of(self.pair_rows, generator).to(device)
            latents = Latents(codes, lambda chosen: self.pair_images(rows[chosen.cpu()], device)[0], rows)
        strengths = {key: value for key, value in v["augment"].items() if key != "enabled"}
        if not v["augment"]["enabled"]:
            strengths["limit"] = 0.0
        warm = {key: value for key, value in v["warm"].items() if key not in ("kimg", "code_noise")}
        for network in (generator.synthesis, discriminator):
            if network is not None:
                network.recompute_from = c.recompute_from
        self.training = TextureTraining(
            generator,
            discriminator,
            batch=c.batch,
            seed=c.seed,
            warm=build_settings(WarmSettings, warm, "warm"),
            adversarial=build_settings(AdversarialSettings, v["adversarial"], "adversarial"),
            pair_weights=build_settings(PairWeights, v["pair_loss"], "pair_loss"),
            adversarial_pair_weights=build_settings(PairWeights, v["adversarial_pair_loss"], "adversarial_pair_loss"),
            augment=Augment(build_settings(ADASettings, strengths, "augment"), c.mirror),
            train_mapping=v["mapping"] == "own" if c.train_mapping == "auto" else c.train_mapping,
            precision=self.precision,
            regularizer_precision=self.regularizer_precision,
            processes=self.processes,
            latents=latents,
            table=None if self.map_codes is None else self.map_codes.table,
        )
        if self.known is not None:  # from now on where the networks are; those of maps are the learnt ones
            self.known = self.known.to(device) if self.map_codes is None else self.training.table.detach()
            self.spread = torch.as_tensor(self.spread, device=device)

    def announce(self, about: str) -> None:
        """What is going to be trained on what, one line."""
        t, memory = self.training, self.memory
        million = [
            sum(p.numel() for p in network.parameters()) / 1e6
            for network in (t.generator, t.discriminator)
            if network is not None
        ]
        print(
            f"{len(self.training_maps)} maps of {memory.side} px to train on, {len(self.unseen)} held out, "
            f"{len(self.pair_rows)} with codes; generator {million[0]:.1f} M parameters at {self.config.size} px, "
            f"started {about}"
            + (f"; discriminator {million[1]:.1f} M" if len(million) > 1 else "")
            + f"; {self.precision} on {t.device}, {self.processes.count} process(es)"
        )

    def set_base(self, generator: Any, fit: bool = True) -> None:
        """What the network adds to; ``fit=False`` leaves the linear prediction to the decoder that it starts from."""
        import torch
        import torch.nn.functional as F

        from facerecon.errors import ConfigError
        from facerecon.stylegan.latent_space import linear_maps

        c, memory = self.config, self.memory
        if c.base == "none":
            return
        generator.synthesis.base = memory.mean(self.training_maps)
        if c.base != "linear":
            return
        if self.map_codes is not None:
            codes = self.map_codes
            generator.synthesis.linear = codes.components.clone()
            pooled = F.adaptive_avg_pool2d(generator.synthesis.base, codes.mean.shape[-1])
            shift = (codes.mean - pooled)[None]  # of maps and their mirror images
            generator.synthesis.base += F.interpolate(shift, size=(c.size, c.size), mode="bilinear")[0]
            self.set_gain(generator, codes.table)
            return
        if self.pairs is None:
            raise ConfigError("base=linear is learnt from pairs; set warm.kimg.")
        side = min(c.linear_size, c.size)
        if not fit:
            generator.synthesis.linear = torch.zeros(c.w_dim, 3, side, side)
            return
        rows = self.coded
        codes, native = self.codes_of(rows, generator), self.known[rows]
        spread = native.std(0) * c.warm.code_noise
        shares = spread.diag() if generator.projection is None else generator.projection.directions * spread
        small = torch.cat([F.adaptive_avg_pool2d(memory.images(part)[0], side) for part in _parts(rows)])
        _, linear = linear_maps(codes, small, shares @ shares.T)
        generator.synthesis.linear = linear
        shift = (codes.mean(0) @ linear.flatten(1)).view(1, 3, side, side)
        generator.synthesis.base -= F.interpolate(shift, size=(c.size, c.size), mode="bilinear")[0]
        table = torch.zeros(len(memory), c.w_dim)
        table[rows] = codes
        self.set_gain(generator, table)

    def set_gain(self, generator: Any, table: Any) -> None:
        """Least-squares factor of the linear part in each texel, which is coarser than the maps."""
        import torch

        s = generator.synthesis
        s.gain = None
        above, below = torch.zeros(1, s.size, s.size), torch.full((1, s.size, s.size), 1e-6)
        for part in _parts(self.coded):
            codes, maps = table[torch.as_tensor(part)], self.memory.images(part)[0]
            linear = s.underlay(generator.rows_of(codes), s.size) - s.base
            above += (linear * (maps - s.base)).sum((0, 1))
            below += linear.square().sum((0, 1))
        s.gain = (above / below).clamp(0, 2)

    def find_directions(self, generator: Any) -> None:
        """Restrict W to the directions that the maps to train on depend on."""
        import torch

        from facerecon.errors import ConfigError
        from facerecon.stylegan.latent_space import predictive_directions

        if self.pairs is None:
            raise ConfigError(f"w_dim={self.config.w_dim} with mapping=open is learnt from pairs; set warm.kimg.")
        z = torch.randn(DIRECTIONS, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            samples = generator.mapping(z)
        side = min(64, self.memory.size)
        pool = torch.nn.functional.adaptive_avg_pool2d
        small = torch.cat([pool(self.memory.images(part)[0], side) for part in _parts(self.coded)])
        center, directions = predictive_directions(self.known[self.coded], small, samples, self.config.w_dim)
        generator.projection.center.copy_(center)
        generator.projection.directions.copy_(directions)

    def codes_of(self, rows: Any, generator: Any, numbers: Any = None) -> Any:
        """(b, w_dim) codes of the faces that maps show; for samples of these ``numbers`` with noise, if any."""
        import torch

        from facerecon.training.ada import draws_of

        codes = self.known[torch.as_tensor(rows, device=self.known.device)]
        if numbers is not None and self.config.warm.code_noise:
            noise = draws_of(self.config.seed, "code noise", numbers, codes.shape[1])
            codes = codes + self.spread * noise.to(codes.device)
        if generator.projection is None:
            return codes
        with torch.no_grad():
            return generator.projection(codes)

    def pair_images(self, rows: Any, device: Any) -> tuple[Any, list[int]]:
        """Maps of the supervised phase, by their rows; those beyond the number of maps are mirror images."""
        rows, count = [int(i) for i in rows], len(self.memory)
        images, shown = self.memory.images([i % count for i in rows], device)
        flipped = [i >= count for i in rows]
        for k, flip in enumerate(flipped):
            if flip:
                images[k] = images[k].flip(-1)
        return images, [i + count * flip for i, flip in zip(shown, flipped, strict=True)]

    def _resume(self, folder: Any) -> bool:
        """The last checkpoint, on every rank; returns whether what belongs to its snapshot is still to be made."""
        from facerecon.run import Checkpoints, drop_after, read_metrics

        t = self.training
        self.figures: dict[str, Any] = {}  # of the steps since the last row of metrics
        checkpoints = Checkpoints(Path(self.config.out) / "checkpoints", self.config.keep)
        found = checkpoints.latest(t.device) if self.config.resume else None
        snapshot = False
        if found is not None:
            t.load_state(found[1], str(checkpoints.path(found[0])))
            self.figures, snapshot = dict(found[1].get("figures", {})), found[1].get("snapshot", False)
        if folder is None:
            return False
        if found is not None:
            print(f"goes on from step {t.step}, {t.images / 1000:.1f} kimg, phase {t.phase}")
        drop_after(folder.metrics.path, t.images, "images")
        rows = read_metrics(folder.metrics.path) if snapshot else []
        return snapshot and not any("snapshot" in row and row["images"] == t.images for row in rows)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self, folder: Any) -> int:
        """Train; ``folder`` is None on ranks that do not write.

        Raises:
            KeyboardInterrupt, Stopped: this rank or another one was asked to end; a checkpoint is written.
        """
        from tqdm import tqdm

        from facerecon.run import is_due

        c, t, first = self.config, self.training, folder is not None
        unfinished = self._resume(folder)
        warm_images = (
            math.ceil(c.warm.kimg * 1000 / c.warm.batch) * c.warm.batch if t.phase != "adversarial" else t.warm_images
        )
        total = warm_images + round(c.kimg * 1000)
        if t.images >= total and not self.processes.any(unfinished):
            if first:
                print(f"nothing to do: {t.images / 1000:.1f} kimg are trained; raise warm.kimg or kimg to go on.")
            return 0
        self.logger = row_logger(self.values, step="images") if first else None
        if first and t.images == 0:
            self.show_real(folder.path)
        started, marked, watch = time.perf_counter(), (time.perf_counter(), t.images), _Watch(c.collapse)
        bar = tqdm(total=total, initial=t.images, unit="img", unit_scale=True, disable=None if first else True)
        with bar, patient_stops() as asked:
            stopped = unfinished and not self.snapshot(folder, t.images >= total, bar)
            stopped = self.processes.any(stopped)
            over = False
            while t.images < total and not stopped and not over:
                self.step(warm_images)
                watch.look(self.figures, t)
                t.finish_step(c.average_kimg * 1000, c.average_rampup)
                bar.update(min(t.batch, total - bar.n))

                done = t.images >= total
                late = c.max_minutes is not None and time.perf_counter() - started > 60 * c.max_minutes
                over = self.processes.any(late or asked())  # all ranks end at the same step
                stopped = over and not done and self.processes.any(asked())
                last = done or (over and not stopped)
                if is_due(t.images, t.batch, c.log_kimg) or last:
                    row = self.row(marked, total)
                    marked = (time.perf_counter(), t.images)
                    if first:
                        folder.metrics.write(row)
                        self.logger(row)
                        report(bar, row)
                due = is_due(t.images, t.batch, c.snapshot_kimg) or last
                if due or stopped:
                    watch.check_weights(t)
                    self.keep(folder, due)
                    if first and due and not stopped:
                        stopped = not self.snapshot(folder, done, bar)
                    stopped = self.processes.any(stopped)  # and no rank leaves before the checkpoint is written
                    marked = (time.perf_counter(), t.images)
        if stopped:
            check_stop()
            raise Stopped  # another rank was asked
        if first:
            end = "done" if t.images >= total else f"stopped after {c.max_minutes} minutes; the same command goes on"
            print(f"{end}: {t.images / 1000:.1f} kimg in {folder.path}, {(time.perf_counter() - started) / 60:.1f} min")
        return 0

    def step(self, warm_images: int) -> None:
        """One turn of the loop, of the phase that it belongs to."""
        import torch

        c, t, maps = self.config, self.training, self.memory
        t.enter("warm" if t.images < warm_images else "adversarial")
        numbers = t.numbers()
        if t.phase == "warm":  # supervised: the map of a face, from the face's code
            real, shown = self.pair_images(maps.order(self.pair_rows, c.seed, numbers), t.device)
            codes = self.codes_of(shown, t.generator, numbers)
            rows = None if t.table is None else torch.tensor(shown)
            self.figures |= t.warm_step(codes, real, t.images / warm_images, rows)
            return
        # adversarial: StyleGAN2
        real, _ = maps.images(maps.order(self.training_maps, c.seed, numbers), t.device)
        if t.images - t.warm_images >= c.adversarial.delay_kimg * 1000:
            self.figures |= t.generator_step()
            if c.adversarial.path_weight and t.step % c.adversarial.path_every == 0:
                self.figures |= t.path_step()
        self.figures |= t.discriminator_step(real)
        if t.adversarial.gamma(c.size, c.batch) and t.step % c.adversarial.r1_every == 0:
            self.figures |= t.r1_step(real)

    def row(self, marked: tuple[float, int], total: int) -> dict[str, Any]:
        """One line of metrics: means over the ranks of what the last steps gave."""
        t = self.training
        values = {key: round(float(self.processes.average(value)), 6) for key, value in sorted(self.figures.items())}
        self.figures = {}
        seconds = max(time.perf_counter() - marked[0], 1e-9)
        speed = (t.images - marked[1]) / seconds
        timing = {"images_per_second": round(speed, 3), "eta_minutes": round((total - t.images) / speed / 60, 2)}
        return {"images": t.images, "step": t.step, "phase": t.phase, "p": round(t.augment.p, 5)} | values | timing

    # -- snapshots ---------------------------------------------------------------------------------------

    def keep(self, folder: Any, snapshot: bool) -> None:
        """Write a checkpoint, with the figures since the last row of metrics.

        Args:
            folder: None on ranks that do not write; they take part in averages.
            snapshot: whether pictures and measurements belong to it, which a run that is stopped before they are made
                begins with.
        """
        figures = {key: self.processes.average(value) for key, value in sorted(self.figures.items())}
        state = self.training.state() | {"figures": figures, "snapshot": snapshot}
        if folder is not None:
            folder.checkpoints.save(self.training.step, state)

    def snapshot(self, folder: Any, final: bool, bar: Any) -> bool:
        """What belongs to a checkpoint: measurements, decoder and pictures, and at last their row of metrics.

        Args:
            final: the run is finished.
            bar: to write beside.

        Returns:
            Whether it was made; False if the run was asked to end before.
        """
        t, path = self.training, folder.path
        name = f"{t.images / 1000:08.1f}"
        try:
            with patient_stops(False):  # it can be made again from the checkpoint
                row = {"images": t.images, "step": t.step, "phase": t.phase, "snapshot": True}
                row |= self.measure(path, name)
                self.save_decoder(path / "decoders" / f"decoder-{name}.safetensors", row)
                self.save_decoder(path / "decoder.safetensors", row, final)
                if self.config.keep_decoders is not None:
                    kept = sorted((path / "decoders").glob("decoder-*.safetensors"))
                    for old in kept[: -self.config.keep_decoders]:
                        old.unlink(missing_ok=True)
                self.show(path, name)
                folder.metrics.write(row)
                self.logger(row)
                bar.write(describe(row))
        except (KeyboardInterrupt, Stopped):
            return False
        return True

    def save_decoder(self, path: Path, figures: dict[str, Any], final: bool = False) -> None:
        """The running average, for ``decoder=PATH``; a final one with the statistics of W that fits start from."""
        import copy

        from facerecon.stylegan.texture_decoder import save_decoder, synthesis_precision
        from facerecon.stylegan.weights import save_generator

        t, c = self.training, self.config
        about = {
            "trained": "train/texture_gan.py",
            "atlas": c.atlas,
            "maps": len(self.training_maps),
            "warm_kimg": t.warm_images / 1000,
            "kimg": (t.images - t.warm_images) / 1000,
            "batch": c.batch,
            "mapping": self.values["mapping"],
            "codes": self.codes,
            "base": c.base,
            "share": c.share,
            "seed": c.seed,
            "figures": {key: value for key, value in figures.items() if isinstance(value, float)},
        }
        if self.pairs is not None:
            about["pair_truncation"] = self.pairs.truncation
        if not final:
            save_generator(path, t.average, about)
            return
        network = copy.deepcopy(t.average).cpu()
        network.precision = synthesis_precision("auto", "cpu")
        save_decoder(path, network, about, **STATISTICS)

    def measure(self, path: Path, name: str) -> dict[str, float]:
        """Figures of the running average: on held-out maps, and of generated ones beside those trained on."""
        import torch

        from facerecon.evaluation.distribution import frechet_distance, statistics_of
        from facerecon.training.ada import draws_of
        from facerecon.training.texture_gan import invert_maps

        c, t = self.config, self.training
        g, figures = t.average, {}
        known = self.unseen_pairs[: c.measure.pairs]
        if known:
            errors = []
            for start in range(0, len(known), c.batch):
                truth, shown = self.memory.images(known[start : start + c.batch], t.device)
                made = self._images(g.rows_of(self.codes_of(shown, g)))
                errors += ((made - truth.cpu()).abs().mean((1, 2, 3)) / 2).tolist()
            figures["held_out_pair_l1"] = sum(errors) / len(errors)
        chosen = self.unseen[: c.measure.inversion]
        if chosen and c.measure.inversion_steps:
            truth, _ = self.memory.images(chosen, t.device)
            fitted = [invert_maps(g, part, c.measure.inversion_steps)[1].cpu() for part in truth.split(c.batch)]
            figures["held_out_inversion_l1"] = float((torch.cat(fitted) - truth.cpu()).abs().mean() / 2)
            self._sheet(path / f"inversions-{name}.png", torch.cat([truth.cpu(), *fitted]), len(chosen))
        for kind, features in self.features.items():
            if kind not in self.real_features:
                parts = (self.training_maps[i : i + 16] for i in range(0, len(self.training_maps), 16))
                real = (self.memory.images(part, t.device)[0] * 0.5 + 0.5 for part in parts)
                self.real_features[kind] = statistics_of(features, real)
            z = draws_of(c.seed, "features", range(c.measure.features), g.config.z_dim).to(t.device)
            made = (self._images(g.rows_of(g.map(part))).to(t.device) * 0.5 + 0.5 for part in z.split(c.batch))
            figures[f"frechet_{kind}"] = frechet_distance(statistics_of(features, made), self.real_features[kind])
        return {key: round(value, 6) for key, value in figures.items()}

    # -- pictures ----------------------------------------------------------------------------------------

    def show_real(self, path: Path) -> None:
        """Maps of the set."""
        n = len(self.training_maps)
        chosen = [self.training_maps[i * n // self.config.grid.samples % n] for i in range(self.config.grid.samples)]
        self._sheet(path / "real.png", self.memory.images(list(dict.fromkeys(chosen)))[0])

    def show(self, path: Path, name: str) -> None:
        """Samples and interpolations of fixed seeds, and held-out pairs beside the truth."""
        import torch

        from facerecon.training.ada import draws_of

        g, c, device = self.training.average, self.config, self.training.device
        z = draws_of(c.seed, "grid", range(c.grid.samples), g.config.z_dim).to(device)
        self._sheet(path / f"samples-{name}.png", self._images(g.rows_of(g.map(z))))
        ends = draws_of(c.seed, "interpolation", range(8), g.config.z_dim).to(device)
        w = g.map(ends)
        steps = torch.linspace(0, 1, 8, device=device)[:, None]
        lines = torch.cat([torch.lerp(w[i], w[(i + 1) % 8], steps) for i in range(0, 8, 2)])
        self._sheet(path / f"interpolations-{name}.png", self._images(g.rows_of(lines)), 8)
        known = self.unseen_pairs[:8]
        if known:
            made = self._images(g.rows_of(self.codes_of(known, g)))
            self._sheet(path / f"held-out-{name}.png", torch.cat([self.memory.images(known)[0], made]), len(known))

    def _images(self, ws: Any) -> Any:
        import torch

        batch = self.config.batch
        with torch.no_grad():
            return torch.cat([self.training.average.synthesis(part).cpu() for part in ws.split(batch)])

    def _sheet(self, path: Path, images: Any, columns: int | None = None) -> None:
        from facerecon.imaging.files import contact_sheet, write_png

        write_png(path, contact_sheet((images + 1) / 2, columns, size=self.config.grid.cell))


class _Watch:
    """Stops a run that has gone wrong, before its next snapshot."""

    def __init__(self, limits: Any) -> None:
        self.limits = limits
        self.flat = self.wild = 0

    def look(self, figures: dict[str, Any], training: Any) -> None:
        """Losses of a step: not finite, or discriminator and samples beyond limits for many steps."""
        from facerecon.errors import FitError

        if training.device.type != "cpu" and training.step % 8:
            return  # looking waits for the device
        for name, value in figures.items():
            if not math.isfinite(float(value)):
                raise FitError(self._stopped(f"'{name}' is {float(value)}", training))
        if "spread" in figures and training.batch // training.processes.count > 1:
            self.flat = self.flat + 1 if float(figures["spread"]) < self.limits.spread else 0
        if "real" in figures:
            most = max(abs(float(figures[key])) for key in ("real", "fake") if key in figures)
            self.wild = self.wild + 1 if most > self.limits.logits else 0
        if self.flat >= self.limits.patience:
            raise FitError(self._stopped("the generated images are all alike (collapse)", training))
        if self.wild >= self.limits.patience:
            raise FitError(self._stopped(f"the discriminator's logits passed {self.limits.logits:g}", training))

    def check_weights(self, training: Any) -> None:
        """Before a snapshot replaces an older one."""
        from facerecon.errors import FitError
        from facerecon.storage import all_finite

        for network in (training.generator, training.average, training.discriminator):
            for name, value in network.state_dict().items() if network is not None else ():
                if not all_finite(value):
                    raise FitError(self._stopped(f"weights are not finite ('{name}')", training))

    @staticmethod
    def _stopped(what: str, training: Any) -> str:
        return (
            f"training stopped at step {training.step}, {training.images / 1000:.1f} kimg: {what}. The last checkpoint "
            "is kept; go on from it by resume=force with a smaller adversarial.rate or a greater adversarial.r1_gamma."
        )


def _parts(rows: list[int], size: int = 64) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def report(bar: Any, row: dict[str, Any]) -> None:
    """Losses beside the progress bar; where there is none, a line."""
    shown = {key: row[key] for key in ("l1", "pair", "generator", "discriminator", "r1", "length", "p") if key in row}
    text = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
    if not bar.disable:
        bar.set_postfix_str(f"{row['phase']}, {text}")
        return
    minutes = row["eta_minutes"]
    print(
        f"{row['images'] / 1000:.1f} kimg, {row['phase']}, {row['images_per_second'] / 1000:.4f} kimg/s, "
        f"{minutes:.0f} min left; {text}",
        flush=True,
    )


def describe(row: dict[str, Any]) -> str:
    """A snapshot's figures, one line."""
    figures = ", ".join(f"{key} {value}" for key, value in row.items() if isinstance(value, float))
    return f"snapshot at {row['images'] / 1000:.1f} kimg" + (f": {figures}" if figures else "")


if __name__ == "__main__":
    sys.exit(run(main, "texture_gan", __doc__))
