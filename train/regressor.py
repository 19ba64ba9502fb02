"""Stage 1's regressor N_enc (Sec. 4.2), for any head model: from rendered faces with truth, and photos without.

    python train/regressor.py face_model=makehuman synthetic.maps=uv synthetic.mirror=true        ResNet-18, 224 px
    python train/regressor.py backbone=resnet50 num_identity=null weak.share=0.5 weak.data=photos    Deep3D's way
    python train/regressor.py width=0.7 size=112 kimg=500 synthetic.maps=uv weak.share=0.25     on a CPU
    python train/regressor.py ... prepare=true                              only make the cache, which runs may share
    torchrun --nproc-per-node 8 train/regressor.py batch=512 kimg=20000 synthetic.cached=200000

Writes regressor.safetensors (the running average), checkpoints/, metrics.jsonl, and at each snapshot grids of fits:
what the network sees, the rendering of what it says, the rendering of the truth (of a photo: what is compared).
A run that was stopped goes on from its last checkpoint with the same command, and ends as one that was not; with
another rate, say, resume=force goes on.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from configs.compose import run
from facerecon.run.signals import check_stop, names_checkpoint, patient_stops
from facerecon.run.wandb_logger import row_logger

STRUCTURE = (
    "face_model",
    "face_model_path",
    "num_identity",
    "decoder",
    "texture",
    "backbone",
    "width",
    "size",
    "init",
    "seed",
    "synthetic",
    *("weak.count", "weak.truncation", "weak.generator", "weak.identity", "weak.parsing"),
)
"""Keys that a run keeps for good, beside what its files are; the others change with resume=force, but for
``facerecon.run.directory.FREE_TO_CHANGE``."""


def main(config: Any) -> int:
    from facerecon.run import RunDirectory, choose_device, set_threads
    from facerecon.run.processes import Processes

    set_threads(config.threads)
    job = _Job(config, Processes(choose_device(config.device)))
    with job.processes:
        job.load()  # whatever is wrong with the data or the settings costs nothing
        if config.prepare:
            job.prepare()
            if job.processes.first:
                print(f"the cache in {job.cache} is whole.")
            return 0
        if not job.processes.first:
            job.prepare()
            return job.run(None)
        settings = {"script": "regressor"} | job.values | {"files": job.identity()}
        again = {"resume": config.resume, "overwrite": not config.resume, "fixed": ("script", *STRUCTURE, "files")}
        run_directory = RunDirectory(config.out, settings, keep_checkpoints=config.keep, **again)
        with run_directory.alone() as folder, names_checkpoint(folder):
            job.prepare()
            return job.run(folder)


OPEN = {"generator": "mobile_stylegan", "identity": "identity128", "parsing": "outlines"}
"""Parts of the open pack; caches of faces without truth name only what differs from them."""


def _unlike_open(config: Any, *names: str) -> dict[str, str]:
    return {name: config.weak[name] for name in names if config.weak[name] != OPEN[name]}


def _needed(config: Any) -> dict[str, str]:
    """What of the FFHQ-UV release a run needs: {asset: the setting that does without it}."""
    needed = {}
    if config.face_model == "hifi3dpp" and not config.face_model_path:
        needed["hifi3dpp"] = "face_model=makehuman decoder=linear"
    if config.weak.share > 0:
        if config.weak.identity == "arcface":
            needed["arcface"] = "weak.identity=identity128"
        if config.weak.parsing == "bisenet":
            needed["bisenet"] = "weak.parsing=outlines"
        if config.weak.data == "open" and config.weak.generator == "stylegan2_ffhq":
            from facerecon.assets import status

            if status("e4e_generator").state != "ready":
                needed["stylegan2_ffhq"] = "weak.generator=mobile_stylegan"
    return needed


class _Job:
    """One run: faces, network, and what is written of it."""

    def __init__(self, config: Any, processes: Any) -> None:
        from omegaconf import OmegaConf

        self.config, self.processes = config, processes
        self.values = OmegaConf.to_container(config, resolve=True)

    # -- before the loop ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Head model, sampler, sources and network; nothing is made yet."""
        import torch

        from facerecon.assets.release import require
        from facerecon.correspond.resample import decoder_for, retarget
        from facerecon.errors import ConfigError, check_number
        from facerecon.evaluation import head_region_forms
        from facerecon.imaging.files import list_images
        from facerecon.morphable import load_face_model
        from facerecon.perception import load_identity
        from facerecon.perception.regressor import Regressor, RegressorConfig, mean_regressor, read_regressor
        from facerecon.run import choose_training_precision, item_seed
        from facerecon.settings import build_settings
        from facerecon.synthetic.faces import SyntheticFaces, SyntheticSettings
        from facerecon.training.crops import CropShards, PhotometricAugmentation, PhotometricSettings, photo_sources
        from facerecon.training.regressor import (
            CoefficientLosses,
            RegressorTraining,
            StepSettings,
            SupervisedWeights,
            WeakLosses,
            WeakWeights,
        )
        from facerecon.training.uv_maps import MapMemory

        c, v, device = self.config, self.values, self.processes.device
        for key, least in (("batch", 1), ("keep", 1), ("measure", 0), ("grid", 1), ("size", 32)):
            check_number(key, v[key], least, whole=True)
        check_number("synthetic.cached", c.synthetic.cached, 0, whole=True)
        check_number("weak.count", c.weak.count, 1, whole=True)
        if not 0 <= c.weak.share <= 1:
            raise ConfigError(f"weak.share must be 0 to 1; got {c.weak.share!r}.")
        if c.file not in ("float32", "float16", "int8"):
            raise ConfigError(f"file must be float32, float16 or int8; got {c.file!r}.")
        if c.kimg < 0 or (c.kimg == 0 and not c.init):
            raise ConfigError(f"kimg must be above 0 (or 0, to measure and save the mean of init=); got {c.kimg!r}.")
        wear = build_settings(PhotometricSettings, v["wear"], "wear")
        chosen = {key: value for key, value in v["synthetic"].items() if key not in ("cached", "maps", "backgrounds")}
        self.photos_a_step = round(c.batch * c.weak.share)
        self.faces_a_step = c.batch - self.photos_a_step
        self.settings = build_settings(SyntheticSettings, chosen, "synthetic")
        self.pictures = self.settings.pictures
        for count, several in ((self.photos_a_step, 1), (self.faces_a_step, self.pictures)):
            group = math.lcm(wear.group, several) if self.processes.count > 1 else several
            self.processes.part(count, group)
        if c.synthetic.cached % self.pictures:
            raise ConfigError(
                f"synthetic.cached={c.synthetic.cached} is not a multiple of synthetic.pictures={self.pictures}."
            )

        require(_needed(c))
        model = load_face_model(c.face_model, c.num_identity, c.face_model_path)
        carried = None if model.name == "makehuman" else retarget(model)
        self.model = model if carried is None else carried.model
        components = c.texture if c.decoder == "albedo" else None
        self.decoder = decoder_for(self.model, c.decoder, components, carried)
        maps = backgrounds = None
        self.sources: dict[str, Any] = {}
        if c.synthetic.maps:
            memory = MapMemory(c.synthetic.maps, _power_below(c.synthetic.maps, 256))
            usable = memory.usable(range(len(memory)))
            maps = torch.stack([(memory.images([i])[0][0] * 127.5 + 127.5).round().to(torch.uint8) for i in usable])
            self.sources["maps"] = [memory.names[0], memory.names[-1], len(usable)]
        if c.synthetic.backgrounds:
            paths = list_images(c.synthetic.backgrounds)
            backgrounds = _pictures(paths, c.size)
            self.sources["backgrounds"] = [len(paths), paths[0].name]
        self.faces = SyntheticFaces(
            self.model, self.decoder, self.settings, item_seed(c.seed, "faces"), c.size, c.texture, maps, backgrounds
        )
        self.unseen = copy.copy(self.faces)
        self.unseen.seed = item_seed(c.seed, "held out")
        self.wear = PhotometricAugmentation(wear, c.seed)

        self.cache = Path(c.cache or Path(c.out) / "cache")
        facts = {"face_model": self.model.name, "size": c.size}
        self.synthetic_shards = self.photo_shards = self.photo_paths = None
        if c.synthetic.cached:
            own = {key: v[key] for key in ("num_identity", "decoder", "texture", "seed")}
            every = facts | own | {"settings": chosen} | {"sources": self.sources}
            self.synthetic_shards = CropShards(self.cache / "synthetic", c.synthetic.cached, every)
        if self.photos_a_step:
            if c.weak.data == "open":
                count = c.weak.count
                source = {"data": "open", "truncation": c.weak.truncation, "seed": c.seed}
                source |= _unlike_open(c, "generator")
            else:
                self.photo_paths, source = photo_sources(c.weak.data)
                count = len(self.photo_paths)
            source |= _unlike_open(c, "identity", "parsing")
            self.photo_shards = CropShards(self.cache / "photos", count, facts | source, each=32)

        low, high = self.model.expression_bounds or (None, None)
        sizes = RegressorConfig(
            backbone=c.backbone,
            identity=self.model.num_identity,
            expression=self.model.num_expression,
            texture=len(self.faces.basis),
            width=c.width,
            size=c.size,
            expression_low=None if low is None or math.isinf(low) else low,
            expression_high=None if high is None or math.isinf(high) else high,
            face_model=self.model.name,
            decoder=c.decoder,
        )
        torch.manual_seed(item_seed(c.seed, "weights"))
        if c.init:
            files = [c.init] if isinstance(c.init, str) else list(c.init)
            network, about = mean_regressor([read_regressor(file) for file in files]), f"from {' and '.join(files)}"
            if network.config != sizes:
                wrong = [k for k, value in sizes.plain().items() if network.config.plain()[k] != value]
                raise ConfigError(
                    f"{c.init} is of another network (differs: {', '.join(wrong)}); set "
                    + " ".join(f"{k}={network.config.plain()[k]}" for k in wrong)
                    + "."
                )
        else:
            network = Regressor(sizes)
            about = _imagenet(network)
        identity = None
        if self.photos_a_step and c.weak.loss.features > 0:
            identity = load_identity(c.weak.identity)
        self.training = RegressorTraining(
            network,
            CoefficientLosses(
                self.model,
                self.decoder,
                sizes.texture,
                regions=head_region_forms(self.model),
                pictures=self.pictures,
            ),
            build_settings(SupervisedWeights, v["loss"], "loss", 0),
            WeakLosses(self.model, self.decoder, c.size, sizes.texture, identity) if self.photos_a_step else None,
            build_settings(WeakWeights, v["weak"]["loss"], "weak.loss", 0),
            c.weak.weight,
            build_settings(StepSettings, v["step"], "step", 0),
            c.kimg * 1000,
            choose_training_precision(c.precision, device),
            self.processes,
        )
        if self.processes.first:
            million = sum(p.numel() for p in network.parameters()) / 1e6
            print(
                f"{c.backbone} x {c.width:g} at {c.size} px, {million:.1f} M parameters, started {about}; "
                f"{self.model.name}: {sizes.identity} identity, {sizes.expression} expression, {sizes.texture} "
                "texture coefficients; "
                f"{self.faces_a_step} rendered faces and {self.photos_a_step} without truth a step; "
                f"{self.training.precision} on {device}, {self.processes.count} process(es)"
            )

    def identity(self) -> dict[str, Any]:
        """What the maps, backgrounds and photos are."""
        from facerecon.imaging.files import list_images
        from facerecon.training.uv_maps import UVMaps, identity_of

        maps, backgrounds = self.config.synthetic.maps, self.config.synthetic.backgrounds
        files = {
            "maps": identity_of(UVMaps(maps).paths if maps else ()),
            "backgrounds": identity_of(list_images(backgrounds) if backgrounds else ()),
        }
        return files if self.photo_paths is None else files | {"photos": identity_of(self.photo_paths)}

    def prepare(self) -> None:
        """Make what the cache lacks, each process a part, and read it."""
        import torch
        from tqdm import tqdm

        from facerecon.perception import load_identity, load_parser
        from facerecon.run import choose_training_precision
        from facerecon.stylegan.load import load_face_generator
        from facerecon.training.crops import observed_faces
        from facerecon.training.uv_maps import held_out

        c, first, rank, ranks = self.config, self.processes.first, self.processes.rank, self.processes.count
        self.rows = self.photos = None
        self.unseen_photos, self.seen_photos = [], []

        def build(shards: Any, make: Any, what: str) -> dict[str, Any]:
            if not self.processes.any(bool(shards.missing())):
                return shards.load()
            with shards.alone() if first else contextlib.nullcontext():
                self.processes.any(False)  # nobody writes before the folder is ready
                mine = [i for i in shards.missing() if i % ranks == rank]
                total = sum(len(shards.numbers(i)) for i in mine)
                started, made = time.perf_counter(), [0]

                def done(count: int) -> None:
                    made[0] += count
                    bar.update(count)
                    if first and bar.disable:
                        speed = made[0] / (time.perf_counter() - started)
                        print(f"{made[0]}/{total} {what}, {speed:.1f}/s", flush=True)
                    check_stop()

                with tqdm(total=total, unit=what, disable=None if first else True) as bar:
                    shards.build(make, rank, ranks, done)
                self.processes.any(False)  # all wait for the slowest
            return shards.load()

        def render(numbers: range) -> dict[str, torch.Tensor]:
            parts = []
            for start in range(numbers.start, numbers.stop, 64):
                check_stop()
                part = self.faces(range(start, min(start + 64, numbers.stop)))
                parts.append(_rows_of(part))
            rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            return rows | {"number": torch.arange(numbers.start, numbers.stop)}

        if self.synthetic_shards is not None:
            self.rows = build(self.synthetic_shards, render, "faces")
        if self.photo_shards is not None:
            generator = None

            def picture(number: int) -> tuple[str, Any]:
                nonlocal generator
                check_stop()
                if self.photo_paths is not None:
                    return str(self.photo_paths[number]), self.photo_paths[number]
                if generator is None:
                    precision = choose_training_precision("auto", torch.device("cpu"))
                    generator = load_face_generator(c.weak.generator, dtype=precision)
                seed = 1_000_000 * (1 + c.seed) + number
                with torch.no_grad():
                    face = generator(generator.sample(seed, c.weak.truncation))[0].float()
                return f"generated face {seed}", face

            identity, parser = load_identity(c.weak.identity), load_parser(c.weak.parsing)

            def observed(numbers: Any) -> dict[str, torch.Tensor]:
                return observed_faces(numbers, picture, c.size, identity, parser)

            made = build(self.photo_shards, observed, "photos")
            self.photos = made
            count = len(made["image"])
            self.unseen_photos = held_out(count)
            self.seen_photos = [i for i in range(count) if i not in set(self.unseen_photos)]

    def _resume(self, folder: Any) -> None:
        """The last checkpoint, on every rank."""
        from facerecon.run import Checkpoints, drop_after

        t = self.training
        checkpoints = Checkpoints(Path(self.config.out) / "checkpoints", self.config.keep)
        found = checkpoints.latest(t.device) if self.config.resume else None
        if found is not None:
            t.load_state(found[1], str(checkpoints.path(found[0])))
        if folder is not None:
            if found is not None:
                print(f"goes on from step {t.step_number}, {t.images / 1000:.1f} kimg")
            drop_after(folder.metrics.path, t.images, "images")

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self, folder: Any) -> int:
        """Train; ``folder`` is None on ranks that do not write."""
        from tqdm import tqdm

        from facerecon.run import drop_after, is_due

        c, t, first = self.config, self.training, folder is not None
        self._resume(folder)
        total = round(c.kimg * 1000)
        if t.images >= total:
            if first and total == 0:  # what it starts from, measured; anew, if it was before
                drop_after(folder.metrics.path, -1, "images")
                row = self.snapshot(folder)
                folder.metrics.write(row)
                print(describe(row))
            elif first:
                print(f"nothing to do: {t.images / 1000:.1f} kimg are trained; raise kimg to go on.")
            return 0
        logger = row_logger(self.values, step="images") if first else None
        started = time.perf_counter()
        marked, sums, count = (started, t.images), {}, 0
        bar = tqdm(total=total, initial=t.images, unit="img", unit_scale=True, disable=None if first else True)
        with bar, patient_stops() as asked:
            over = False
            while t.images < total and not over:
                figures = self.step()
                for key, value in figures.items():
                    sums[key] = sums.get(key, 0.0) + value
                count += 1
                bar.update(min(c.batch, total - bar.n))
                late = c.max_minutes is not None and time.perf_counter() - started > 60 * c.max_minutes
                done = t.images >= total
                over = self.processes.any(late or asked())
                due = is_due(t.images, c.batch, c.snapshot_kimg) or done or over
                if is_due(t.images, c.batch, c.log_kimg) or due:
                    row = self.row({key: value / count for key, value in sums.items()}, marked, total)
                    marked, sums, count = (time.perf_counter(), t.images), {}, 0
                    self.check(row)
                    if first:
                        folder.metrics.write(row)
                        logger(row)
                        report(bar, row)
                if due and first:
                    folder.checkpoints.save(t.step_number, t.state())
                    if not asked():
                        row = self.snapshot(folder)
                        folder.metrics.write(row)
                        logger(row)
                        bar.write(describe(row))
                if due:
                    marked = (time.perf_counter(), t.images)
        check_stop()
        if first:
            done = "done" if t.images >= total else f"stopped after {c.max_minutes} minutes; the same command goes on"
            print(
                f"{done}: {t.images / 1000:.1f} kimg in {folder.path}, {(time.perf_counter() - started) / 60:.1f} min"
            )
        return 0

    def step(self) -> dict[str, Any]:
        """This rank's part of the next batch: rendered faces, then photos."""
        import torch

        from facerecon.run import item_generator
        from facerecon.training.crops import photo_batch

        c, t = self.config, self.training
        number, parts = t.step_number, [None, None, None, None, None]
        if self.faces_a_step:
            mine = self.processes.part(self.faces_a_step)
            numbers = [number * self.faces_a_step + i for i in mine]
            if self.rows is None:
                rows = _rows_of(self.faces(numbers))
                chosen = list(range(len(numbers)))
            else:
                rows, chosen = self.rows, _order(len(self.rows["image"]), c.seed, "faces", numbers, self.pictures)
            images, truth, landmarks = _batch_of(rows, chosen, t.network.config)
            parts[:3] = self.wear(images, numbers), truth, landmarks
        if self.photos_a_step:
            mine = self.processes.part(self.photos_a_step)
            numbers = [number * self.photos_a_step + i for i in mine]
            chosen = _order(len(self.seen_photos), c.seed, "photos", numbers)
            photos = photo_batch(self.photos, [self.seen_photos[i] for i in chosen])
            parts[3:] = photos, self.wear(photos.image, [-1 - n for n in numbers])
        moved = [part.to(t.device) if part is not None else None for part in parts]
        torch.manual_seed(int(torch.randint(2**31, (), generator=item_generator(c.seed, "step", number))))
        return t.step(*moved)

    def check(self, row: dict[str, Any]) -> None:
        """Stop before a checkpoint of numbers that are none replaces an older one."""
        from facerecon.errors import FitError
        from facerecon.storage import all_finite

        t = self.training
        bad = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        bad += [f"weights '{name}'" for name, value in t.network.state_dict().items() if not all_finite(value)][:1]
        if bad:
            raise FitError(
                f"training stopped at step {t.step_number}: {bad[0]} is not finite. The last checkpoint is kept; go on "
                "from it by resume=force with a smaller step.rate."
            )

    def row(self, figures: dict[str, Any], marked: tuple[float, int], total: int) -> dict[str, Any]:
        """One line of metrics: means over the ranks and the steps since the last."""
        t = self.training
        values = {key: round(float(self.processes.average(value)), 5) for key, value in sorted(figures.items())}
        speed = (t.images - marked[1]) / max(time.perf_counter() - marked[0], 1e-9)
        timing = {"images_per_second": round(speed, 3), "eta_minutes": round((total - t.images) / speed / 60, 2)}
        return {"images": t.images, "step": t.step_number} | values | timing

    # -- snapshots ---------------------------------------------------------------------------------------

    def snapshot(self, folder: Any) -> dict[str, Any]:
        """Regressor, measurements and pictures of the running average."""
        from facerecon.perception.regressor import save_regressor

        t, c = self.training, self.config
        name = f"{t.images / 1000:08.1f}"
        row = {"images": t.images, "step": t.step_number, "snapshot": True} | self.measure()
        about = {
            "trained": "train/regressor.py",
            "kimg": t.images / 1000,
            "batch": c.batch,
            "weak_share": c.weak.share,
            "weak_data": "open" if c.weak.data == "open" else "photos",
            "synthetic_faces": c.synthetic.cached or t.images,
            "texture_maps": 0 if self.faces.maps is None else len(self.faces.maps),
            "seed": c.seed,
            "mean_of": 1 if c.init is None or isinstance(c.init, str) else len(c.init),
            "figures": {key: value for key, value in row.items() if isinstance(value, float)},
        }
        if self.residual and all(map(math.isfinite, self.residual["identity"] + self.residual["expression"])):
            about["residual"] = self.residual  # what stage 1 may change of what the network says
        save_regressor(folder.path / "regressor.safetensors", t.average, about, c.file)
        self.show(folder.path, name)
        return row

    def measure(self) -> dict[str, float]:
        """Errors on held-out faces, worn once, beside those of the mean face; weak losses of held-out photos."""
        import torch

        from facerecon.training.crops import photo_batch

        c, t = self.config, self.training
        self.residual: dict[str, list[float]] = {}
        if not c.measure:
            return {}
        sums: dict[str, Any] = {}
        squares: dict[str, Any] = {"identity": 0.0, "expression": 0.0}
        identities = []
        for start in range(0, c.measure, 64):
            numbers = range(start, min(start + 64, c.measure))
            images, truth, landmarks = _batch_of(
                _rows_of(self.unseen(numbers)), list(range(len(numbers))), t.network.config
            )
            images, truth, landmarks = (x.to(t.device) for x in (self.wear(images, numbers), truth, landmarks))
            with torch.no_grad():
                found = t.predict(images, average=True)
                identities.append(found.identity)
                zero = truth.map(torch.zeros_like)
                for prefix, values in (("", found), ("mean_face_", zero)):
                    for key, value in t.losses(values, truth, landmarks).items():
                        sums[f"held_out_{prefix}{key}"] = sums.get(f"held_out_{prefix}{key}", 0.0) + float(value.sum())
                yaw = torch.rad2deg((found.angles - truth.angles)[:, 1].abs()).sum()
                sums["held_out_yaw"] = sums.get("held_out_yaw", 0.0) + float(yaw)
                for name in squares:
                    squares[name] += (getattr(found, name) - getattr(truth, name)).double().square().sum(0).cpu()
        self.residual = {
            name: [round(max(v, 1e-3), 4) for v in (total / c.measure).sqrt().tolist()]
            for name, total in squares.items()
        }
        figures = {key: round(value / c.measure, 5) for key, value in sums.items()}
        if self.pictures > 1:
            whole = c.measure // self.pictures * self.pictures
            spread = t.losses.spread(torch.cat(identities)[:whole])
            figures["held_out_spread"] = round(float(spread), 5)
        chosen, weak = self.unseen_photos[: c.measure], {}
        for start in range(0, len(chosen), 32):
            photos = photo_batch(self.photos, chosen[start : start + 32]).to(t.device)
            with torch.no_grad():
                for key, value in t.weak(t.predict(photos.image, average=True), photos)[0].items():
                    weak[key] = weak.get(key, 0.0) + float(value.sum())
        return figures | {f"held_out_weak_{key}": round(value / len(chosen), 5) for key, value in weak.items()}

    def show(self, path: Path, name: str) -> None:
        """Grids: input, rendering of what the average says, rendering of the truth; of photos the composite."""
        import torch

        from facerecon.imaging.files import contact_sheet, write_png
        from facerecon.training.crops import photo_batch

        c, t = self.config, self.training
        numbers = range(c.grid)
        images, truth, _ = _batch_of(_rows_of(self.unseen(numbers)), list(numbers), t.network.config)
        images = self.wear(images, numbers)
        with torch.no_grad():
            found = t.predict(images.to(t.device), average=True).to("cpu")
            rows = [images, self.render(found), self.render(truth)]
            write_png(path / f"faces-{name}.png", contact_sheet(torch.cat(rows), c.grid, size=max(c.size, 112)))
            if self.photos is not None:
                chosen = (self.unseen_photos or self.seen_photos)[: c.grid]
                photos = photo_batch(self.photos, chosen)
                found = t.predict(photos.image.to(t.device), average=True).to("cpu")
                over = self.render(found, photos.image)
                sheet = contact_sheet(
                    torch.cat([photos.image, self.render(found), over]), len(chosen), size=max(c.size, 112)
                )
                write_png(path / f"photos-{name}.png", sheet)

    def render(self, found: Any, behind: Any = None) -> Any:
        """Heads of coefficients, on gray or on given pictures (of which only the face is covered)."""
        import torch

        from facerecon.fitting import coefficients_to_params
        from facerecon.render import Renderer
        from facerecon.types import Camera

        f = self.faces
        params = coefficients_to_params(found, self.model)
        texture = (f.mean.flatten() + found.texture @ f.basis.flatten(1)).view(-1, *f.mean.shape).clamp(0, 1)
        renderer = Renderer(f.size, antialias=True)
        region = None if behind is None else "face"
        drawn = renderer(
            self.model(params), texture, self.model.topology, Camera.deep3d(224, len(texture)), params.light, region
        )
        under = torch.full_like(drawn.image, 0.5) if behind is None else behind
        return (drawn.image + under * (1 - drawn.mask)).clamp(0, 1)


def _rows_of(batch: Any) -> dict[str, Any]:
    """A rendered batch as a shard keeps it: pictures as bytes."""
    import torch

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


def _batch_of(rows: dict[str, Any], chosen: list[int], sizes: Any) -> tuple[Any, Any, Any]:
    """Pictures in [0, 1], coefficients and landmarks of chosen rows."""
    import torch

    from facerecon.fitting import params_to_coefficients
    from facerecon.types import FaceParams, SHLight

    at = torch.as_tensor(chosen)
    row = {key: value[at] for key, value in rows.items() if key != "number"}
    params = FaceParams(
        row["identity"],
        row["expression"],
        row["identity"].new_zeros(len(at), 0),
        row["rotation"],
        row["translation"],
        SHLight(row["light"]),
    )
    return row["image"].float() / 255, params_to_coefficients(params, sizes, row["texture"]), row["landmarks68"]


def _order(count: int, seed: int, what: str, numbers: list[int], together: int = 1) -> list[int]:
    """Which row the n-th sample of a run shows: every epoch all of them, in an order of its own; rows ``together`` stay
    side by side."""
    import torch

    from facerecon.run import item_generator

    orders, chosen = {}, []
    for number in numbers:
        epoch, place = divmod(number, count)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count // together, generator=item_generator(seed, what, epoch)).tolist()
        chosen.append(orders[epoch][place // together] * together + place % together)
    return chosen


def _power_below(folder: str, most: int) -> int:
    """Px a side at which texture maps are kept: ``most``, or their own, if that is less."""
    from PIL import Image

    from facerecon.errors import InputError
    from facerecon.training.uv_maps import UVMaps

    path = UVMaps(folder).paths[0]
    try:
        with Image.open(path) as image:
            return min(most, *image.size)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); mend or remove it.") from None


def _pictures(paths: list[Path], size: int) -> Any:
    """(N, 3, size, size) uint8: the middle squares of pictures; those that cannot be read are left out."""
    import warnings

    import torch
    import torch.nn.functional as F

    from facerecon.errors import InputError
    from facerecon.imaging.files import read_image

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


def _imagenet(network: Any) -> str:
    """torchvision's ImageNet weights, if they lie in torch's hub cache; says what was done."""
    import torch

    c = network.config
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(folder.glob(f"{c.backbone}-*.pth")) if folder.is_dir() else []
    if c.width != 1.0 or not files:
        why = "width is not 1" if c.width != 1.0 else f"no {c.backbone}-*.pth in {folder}"
        return f"at random ({why})"
    from facerecon.errors import AssetError

    try:
        state = torch.load(files[-1], map_location="cpu", weights_only=True)
        own = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        # they were trained on (x - mean) / std: the first kernel takes the scale; its offset is the normalization's
        scale = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        own["conv1.weight"] = own["conv1.weight"] / scale
        network.backbone.load_state_dict(own)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise AssetError(
            f"{files[-1]} is not torchvision's {c.backbone} ({reason}); remove it from the cache."
        ) from None
    middle = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    network.backbone.bn1.running_mean += (network.backbone.conv1.weight * middle).sum((1, 2, 3))
    return f"from {files[-1].name}"


def report(bar: Any, row: dict[str, Any]) -> None:
    """Losses beside the progress bar; where there is none, a line."""
    units = {"shape": "mm", "landmarks": "px", "angles": "deg", "weak_photometric": "", "weak_landmarks": "px2"}
    text = ", ".join(f"{key} {row[key]:.3g} {unit}".strip() for key, unit in units.items() if key in row)
    if not bar.disable:
        bar.set_postfix_str(text)
        return
    print(
        f"{row['images'] / 1000:.1f} kimg, {row['images_per_second']:.1f} img/s, {row['eta_minutes']:.0f} min left; "
        f"loss {row['loss']:.4g}, {text}",
        flush=True,
    )


def describe(row: dict[str, Any]) -> str:
    """A snapshot's figures, one line."""
    shown = ("held_out_shape", "held_out_landmarks", "held_out_yaw")
    means = {"held_out_shape": "held_out_mean_face_shape", "held_out_landmarks": "held_out_mean_face_landmarks"}
    shown = (*shown, "held_out_weak_photometric", "held_out_weak_landmarks", "held_out_weak_features")
    text = ", ".join(
        f"{key} {row[key]:.3f}" + (f" (mean face {row[means[key]]:.3f})" if key in means else "")
        for key in shown
        if key in row
    )
    return f"snapshot at {row['images'] / 1000:.1f} kimg" + (f": {text}" if text else "")


if __name__ == "__main__":
    sys.exit(run(main, "regressor", __doc__))
