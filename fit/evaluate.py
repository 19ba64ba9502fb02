"""The numbers of the paper in one sweep: shape, reconstruction, UV maps, decoders, and ablations (Sec. 3.2, 4.3).

    python fit/evaluate.py                                        # a few items a row: about half an hour on 2 cores
    python fit/evaluate.py full=true ict=ICT-FaceKit              # 100 items a row
    python fit/evaluate.py parts=[shape] heads=20 decoders.part=small/decoder.safetensors
    python fit/evaluate.py parts=[] realy_dir=REALY realy_keypoints=data/HIFI3D.txt

* shape: REALY's protocol on held-out synthetic heads, on ICT-FaceKit's (ict=), and on REALY itself (realy_dir=), for
  the mean face, the starts, and full fits with every decoder of decoders= (Table 5).
* reconstruction: photometric error, the judge's identity, landmarks, of photos and held-out faces, by preset and
  decoder; BS Error and identity of the fitted textures.
* maps: BS Error and identity of held-out subjects' maps, and without editing, without multi-view, blended naively
  (Tables 2 and 4).
* expressiveness: those maps, expressed by each decoder (Table 6).

Writes evaluate.md, results.csv (every cell, with bootstrap intervals and published numbers), items.csv (every
measurement) and charts. A run that was stopped goes on with the same command; an item that fails is a line of the
report, and is tried again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from configs.compose import compose, run
from facerecon.run.signals import Stopped, check_stop

PARTS = ("shape", "reconstruction", "maps", "expressiveness")
FULL = 100
HELD_OUT_HEADS = 90_001
"""Seed of the synthetic heads; training draws from its own, small numbers."""
VERSION = 1
"""Of what is measured: items of another one are measured again."""


def main(config: Any) -> int:
    from facerecon.errors import ConfigError, OutputError, check_number, nearest_name
    from facerecon.run import RunDirectory
    from fit.evaluation_report import write_report

    for part in config.parts:
        if part not in PARTS:
            raise ConfigError(nearest_name(str(part), PARTS, "part"))
    for key in ("heads", "faces", "subjects", "inversion_steps"):
        check_number(key, config[key], 0, whole=True)
    if not config.decoders.get("ours"):
        raise ConfigError("decoders.ours is not set; it is the decoder that everything is measured with.")
    try:
        shlex.split(config.set or "")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"set={config.set!r} is not a list of keys ({error}); e.g. set='face_model=ict'.") from None
    if not config.presets:
        raise ConfigError("presets is empty; name at least one, e.g. presets=[default].")
    if config.readme and not Path(config.readme).is_file():
        raise ConfigError(f"readme={config.readme} does not exist; give a Markdown file with the two marks, or null.")
    with RunDirectory(config.out, {"script": "evaluate"}, resume=True).alone() as folder:
        sweep = Sweep(config, folder)
        sweep.check()
        try:
            sweep.run()
        except (KeyboardInterrupt, Stopped, OutputError) as stop:
            kept = f"{len(folder.completed())} item(s) are finished in {folder.path}"
            if isinstance(stop, OutputError):
                raise OutputError(f"{stop} {kept[0].upper()}{kept[1:]}; the same command goes on.") from None
            raise type(stop)(kept) from None
        return write_report(sweep)


class Sweep:
    """What is measured, item by item, and what came of it.

    Attributes:
        done: {item: facts} with the settings of this run. failed: {item: why}. skipped: sentences on what was not run.
    """

    def __init__(self, config: Any, folder: Any) -> None:
        from fit.models import prepare

        self.config, self.folder = config, folder
        self.device = prepare(config)
        count = {key: max(config[key], FULL) if config.full else config[key] for key in ("heads", "faces", "subjects")}
        self.heads, self.faces, self.people = count["heads"], count["faces"], count["subjects"]
        self.preset = str(config.presets[0])
        self.decoders = {str(key): str(value) for key, value in config.decoders.items() if value}
        self.kept = folder.completed() if config.resume else {}
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.skipped: list[str] = []
        self._fits: dict[tuple[str, str], Any] = {}
        self._fitters: dict[tuple[str, str], Any] = {}

    def check(self) -> None:
        """Whether all that is asked for has a meaning, before anything is measured.

        Raises:
            ConfigError: an unknown preset, decoder, or key of set=.
            AssetError: a decoder's file is missing.
        """
        from facerecon.errors import AssetError, ConfigError, nearest_name
        from facerecon.stylegan.load import DECODERS, is_decoder_file

        for key, name in self.decoders.items():
            if is_decoder_file(name) and not Path(name).expanduser().is_file():
                raise AssetError(f"decoders.{key}={name} does not exist; give a file of train/texture_gan.py, or null.")
            if not is_decoder_file(name) and name not in (*DECODERS, "albedo"):
                raise ConfigError(nearest_name(name, DECODERS, f"decoder of decoders.{key}"))
        for preset in self.config.presets:
            self.fit_config(str(preset), self.decoders["ours"])

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Measure what is not there yet."""
        from tqdm import tqdm

        self.folder.forget_failures(self.folder.failures())  # they are tried again
        self.bar = tqdm(total=self._expected(), unit="item", disable=None)
        parts = {
            "shape": self.measure_shape, "reconstruction": self.measure_reconstruction, "maps": self.measure_maps,
            "expressiveness": self.measure_expressiveness,
        }  # fmt: skip
        wanted = [(part, parts[part]) for part in PARTS if part in self.config.parts]
        if self.config.realy_dir:
            wanted.append(("realy", self.measure_realy))
        for name, measure in wanted:
            try:
                measure()
            except Exception as error:  # a part that cannot begin (a missing model) leaves the others be
                self._fail(name, error)
        self.bar.close()

    def _expected(self) -> int:
        """Items, about: those of REALY are not counted."""
        heads = self.heads * 2 * (1 + len(self.decoders))
        fits = len(self.config.presets) + len(self.decoders) - 1
        counts = {"shape": heads, "reconstruction": (self.faces + 1) * fits, "maps": self.people * 6,
                  "expressiveness": self.people * len(self.decoders)}  # fmt: skip
        return sum(counts[part] for part in self.config.parts)

    def item(self, name: str, settings: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Facts of an item: kept ones, or new ones; None if it failed, which is noted."""
        check_stop()
        digest = _hash(VERSION, settings)
        facts = self.kept.get(name)
        if facts is None or facts.get("settings") != digest:
            clock = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of faces that N_enc cannot read, which are counted
                    facts = work()
            except Exception as error:  # whatever is wrong with one item, the rest goes on
                self._fail(name, error)
                self.bar.update(1)
                return None
            facts |= {"settings": digest, "seconds": round(time.process_time() - clock, 2)}
            self.folder.complete(name, **facts)
            facts = self.folder.completed()[name]  # as a resumed run will read it
        self.done[name] = facts
        self.bar.update(1)
        self.bar.set_postfix_str(name)
        return facts

    def _fail(self, name: str, error: Exception) -> None:
        from facerecon.errors import FaceReconError, OutputError

        if isinstance(error, OutputError):
            raise error
        text = " ".join(str(error).split())
        self.failed[name] = text if isinstance(error, FaceReconError) else f"{type(error).__name__}: {text}"
        self.folder.fail(name, error)
        self.bar.write(f"failed: {name}: {self.failed[name]}", file=sys.stderr)

    # -- fits --------------------------------------------------------------------------------------------

    def fit_config(self, preset: str, decoder: str) -> tuple[Any, str]:
        """Configuration of a fit, and its digest."""
        from fit.models import fit_digest

        key = (preset, decoder)
        if key not in self._fits:
            config = self.config
            overrides = [f"pack={config.pack.name}", f"fitting={preset}", f"decoder={decoder}", "img=none"]
            overrides += [f"device={config.device}", *shlex.split(config.set or "")]
            made = compose("reconstruct", overrides)
            self._fits[key] = made, fit_digest(made)
        return self._fits[key]

    def fitter(self, preset: str, decoder: str) -> Any:
        """Its fitter; loaded when first asked for."""
        from fit.models import build_fitter

        key = (preset, decoder)
        if key not in self._fitters:
            self._fitters[key] = build_fitter(self.fit_config(*key)[0], self.device)
        return self._fitters[key]

    @property
    def main(self) -> tuple[str, str]:
        """Preset and decoder of what is ours."""
        return self.preset, self.decoders["ours"]

    @property
    def model(self) -> Any:
        """The head model that is fitted."""
        return self.fitter(*self.main).model

    @cached_property
    def judge(self) -> Any:
        from facerecon.perception import load_eval_identity

        return load_eval_identity().to(self.device)

    def observed(self, image: Any) -> Any:
        """A photo as the fits see it."""
        from facerecon.perception import load_parser, observe

        parser = load_parser(self.fit_config(*self.main)[0].parsing)
        return observe(image, parser=parser).to(self.device)

    def fitted(self, photo: Any, preset: str, decoder: str) -> tuple[dict[str, Any], Any]:
        """Figures of one fit, and the face."""
        import torch

        from facerecon.evaluation import brightness_symmetry_error, evenly_lit, stage_figures
        from facerecon.perception import load_identity

        fitter = self.fitter(preset, decoder)
        face = fitter(photo, callback=lambda _: check_stop())
        stages, _ = stage_figures(fitter, photo, face, self.judge)
        last = next(name for name in reversed(stages) if name != "detail")
        final = stages[list(stages)[-1]]
        figures = dict(stages[last]) | {f"{key}_final": final[key] for key in ("photometric", "identity", "nme")}
        params = face.params
        still = params.replace(
            expression=torch.zeros_like(params.expression),
            rotation=torch.zeros_like(params.rotation),
            translation=torch.zeros_like(params.translation),
        )
        with torch.no_grad():
            figures["bs"] = brightness_symmetry_error(face.decoded).item()
            figures["bs_final"] = brightness_symmetry_error(face.texture).item()
            identity = load_identity().to(self.device)
            vectors = {
                "photo": identity(photo.image, photo.landmarks68)[0],
                "render": identity(*evenly_lit(fitter.model, still, face.decoded))[0],
            }
        facts = {
            "figures": _rounded(figures),
            "about": self._person(photo, face),
            "vectors": {key: [round(v, 5) for v in value.tolist()] for key, value in vectors.items()},
        }
        if fitter.regressor is not None:
            facts["stage1"] = f"landmarks: {fitter.fallbacks[0]}" if fitter.fallbacks else "regressor"
        if fitter.diverged:
            facts["diverged"] = next(iter(fitter.diverged.values()))
        return facts, face

    def _person(self, photo: Any, face: Any) -> dict[str, float]:
        """Age in years and probability of male, of the photo; tone (ITA, degrees) of the fitted albedo's skin."""
        from facerecon.dataset import face_layout
        from facerecon.errors import ConfigError
        from facerecon.perception import load_age_gender
        from facerecon.perception.skin_tone import skin_color, skin_tone

        age, male = load_age_gender()(photo.image.cpu(), photo.landmarks68.cpu())
        about = {"age": float(age), "male": float(male)}
        try:
            plain = face_layout(self.model, face.decoded.shape[-1]).plain
        except ConfigError:  # a head without the regions for it
            return _rounded(about)
        about["tone"] = float(skin_tone(skin_color(face.decoded.cpu(), plain.cpu()))[0])
        return _rounded(about)

    # -- shape -------------------------------------------------------------------------------------------

    def measure_shape(self) -> None:
        """Heads whose shape is known, by REALY's protocol."""
        for kind in ("synthetic", "ict"):
            try:
                make = getattr(self, f"_{kind}_heads")()
            except Exception as error:
                self.skipped.append(f"Shape on {kind} heads was not measured: {' '.join(str(error).split())}")
                self.bar.update(self.heads * (1 + len(self.decoders)))
                continue
            source = [kind, self.config.seed, HELD_OUT_HEADS if kind == "synthetic" else self._ict_digest]
            number = good = 0
            while good < self.heads and number < 2 * self.heads + 4:
                good += self._measure_head(f"shape/{kind}/{number}", source, lambda n=number, make=make: make(n))
                number += 1

    def _measure_head(self, name: str, source: list, make: Callable[[], tuple[Any, Any, Any]]) -> bool:
        """All rows of one head; False where it is no use (no face is found in its photo)."""
        from facerecon.errors import NoFaceError

        kept: list[Any] = []

        def head() -> tuple[Any, Any, Any]:
            if not kept:
                kept.append(make())
            return kept[0]

        def starts() -> dict[str, Any]:
            try:
                photo, scan, _ = head()
            except NoFaceError as error:
                return {"skipped": str(error)}
            return self._starts(photo, scan)

        facts = self.item(f"{name}/starts", [source, self.fit_config(*self.main)[1]], starts)
        if facts is None or "skipped" in facts:
            return False

        def full(key: str) -> dict[str, Any]:
            photo, scan, landmarks = head()
            facts, face = self.fitted(photo, self.preset, self.decoders[key])
            facts["errors"] = self._errors(face.params, scan, landmarks)
            return facts

        for key in self.decoders:
            digest = self.fit_config(self.preset, self.decoders[key])[1]
            self.item(f"{name}/{key}", [source, digest], lambda key=key: full(key))
        return True

    def _starts(self, photo: Any, scan: Any, landmarks: Any = None) -> dict[str, Any]:
        """Errors of the mean face and of every start: from landmarks, by N_enc as it is, and refined."""
        from facerecon.fitting import fit_landmarks, start_from_regressor
        from facerecon.types import Camera

        fitter = self.fitter(*self.main)
        camera = Camera.deep3d(photo.image.shape[-1], 1, photo.image.device)
        heads = {
            "mean face": fitter.model.neutral(1).to(self.device),
            "landmarks": fit_landmarks(fitter.model, photo.landmarks68, camera, photo.mesh468, fitter.start),
        }
        facts: dict[str, Any] = {}
        if fitter.regressor is not None:
            (said, _, reasons), (refined, _, _) = (
                start_from_regressor(fitter.model, fitter.regressor, photo, camera, start, fitter.regressor_start)
                for start in (replace(fitter.start, refine=0), fitter.start)
            )
            heads |= {"regressor": said, "refined": refined}
            if reasons:
                facts["stage1"] = f"landmarks: {reasons[0]}"
        facts["errors"] = {name: self._errors(params, scan, landmarks) for name, params in heads.items()}
        return facts

    def _errors(self, params: Any, scan: Any, places: Any = None) -> dict[str, float]:
        """{region: mm} of a head; ``places`` of its 85 keypoints, or its 68 landmarks."""
        return _rounded(self._compared(params, scan, places)[0].errors)

    def _compared(self, params: Any, scan: Any, places: Any = None) -> tuple[Any, Any]:
        """The comparison with a scan, and the head's shape (V, 3)."""
        import torch

        from facerecon.evaluation.realy import keypoints_of, realy_errors

        with torch.no_grad():
            shape = self.model.shape(params)
            keys = self.model.landmarks3d(shape)[0]
        faces = self.model.topology.faces
        if places is not None:
            keys = keypoints_of(shape[0].double(), faces, places)
        return realy_errors(shape[0], faces, keys, scan), shape[0]

    def _synthetic_heads(self) -> Callable[[int], tuple[Any, Any, Any]]:
        """Heads of the fit's own model."""
        import numpy as np

        from facerecon.errors import ConfigError
        from facerecon.evaluation import head_regions, scan_of_head
        from facerecon.stylegan.load import load_decoder
        from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
        from facerecon.synthetic.ict_heads import degrade

        if self.model.name != "makehuman":
            raise ConfigError(
                f"they are drawn of makehuman with its linear texture; the fits are of {self.model.name}."
            )
        model = self.model.to("cpu")
        settings = replace(WITHIN_MODEL, yaw_limit=45.0)
        faces = SyntheticFaces(model, load_decoder("linear"), settings, HELD_OUT_HEADS + self.config.seed, size=448)
        regions = head_regions(model)

        def make(number: int) -> tuple[Any, Any, Any]:
            batch = faces([number])
            photo = self.observed(degrade(batch.image, np.random.default_rng([self.config.seed, number])))
            shape = model.shape(batch.params)
            points = model.landmarks3d(shape)[0]
            return photo, scan_of_head(shape[0], model.topology.faces, points, regions), None

        return make

    def _ict_heads(self) -> Callable[[int], tuple[Any, Any, Any]]:
        """Heads of another model, from light-stage scans."""
        from facerecon.evaluation import head_regions, scan_of_head
        from facerecon.morphable import load_face_model
        from facerecon.synthetic.ict_heads import SyntheticHeads

        ict = load_face_model("ict", num_identity=None, path=self.config.ict or None)
        self._ict_digest = _hash([float(ict.mean.double().sum()), ict.num_identity, ict.num_vertices])
        regions = head_regions(ict)
        heads = SyntheticHeads(ict, self.config.seed)

        def make(number: int) -> tuple[Any, Any, Any]:
            subject = heads.sample(number)
            scan = scan_of_head(subject.vertices, ict.topology.faces, subject.landmarks, regions)
            return self.observed(subject.photo), scan, None

        return make

    def measure_realy(self) -> None:
        """The benchmark itself; meshes and REALY_error.txt are written as its own evaluation reads and writes them."""
        from facerecon.evaluation.realy import (
            KEYPOINTS,
            RealyFolder,
            read_keypoint_places,
            write_mesh,
            write_realy_errors,
        )

        benchmark = RealyFolder(self.config.realy_dir)
        given = self.config.realy_keypoints
        places = read_keypoint_places(given) if given else None
        images = list(benchmark.images.items())
        images = images if self.config.full else images[: max(self.heads, 1)]
        keys = f"{KEYPOINTS} keypoints of {Path(given).name}" if given else "the 68 landmarks of the head"
        self.skipped.append(f"REALY: {len(images)} of {len(benchmark.images)} photos, aligned by {keys}.")
        for name, path in images:
            kept: list[Any] = []

            def head(path: Path = path, name: str = name, kept: list = kept) -> tuple[Any, Any]:
                if not kept:
                    kept.append((self.observed(path), benchmark.scan(name)))
                return kept[0]

            source = ["realy", _hash(path.read_bytes().hex()), _hash(str(places))]
            digest = self.fit_config(*self.main)[1]
            self.item(f"realy/{name}/starts", [source, digest], lambda head=head: self._starts(*head(), places))
            for key, decoder in self.decoders.items():

                def full(key: str = key, decoder: str = decoder, head: Callable = head, name: str = name) -> dict:
                    photo, scan = head()
                    facts, face = self.fitted(photo, self.preset, decoder)
                    result, shape = self._compared(face.params, scan, places)
                    where, faces = self.folder.path / "realy" / key, self.model.topology.faces
                    write_mesh(where / "prediction" / f"{name}.obj", shape, faces)
                    aligned = where / "region_align_save" / name
                    write_mesh(aligned / "at_global.obj", result.coarse, faces)
                    for region, vertices in result.aligned.items():
                        write_mesh(aligned / f"at_{region}.obj", vertices, faces)
                    return facts | {"errors": _rounded(result.errors)}

                self.item(f"realy/{name}/{key}", [source, self.fit_config(self.preset, decoder)[1]], full)
        for key in self.decoders:
            found = [(name, self.done.get(f"realy/{name}/{key}")) for name, _ in images]
            rows = [(name, facts["errors"]) for name, facts in found if facts]
            if rows:
                write_realy_errors(self.folder.path / "realy" / key / "REALY_error.txt", rows)

    # -- reconstruction ----------------------------------------------------------------------------------

    def photos(self) -> Iterator[tuple[str, Any, str]]:
        """(name, path or image, what it is) of the photos, then of held-out faces."""
        from facerecon.dataset.sampling import held_out_faces
        from facerecon.errors import InputError
        from facerecon.imaging.files import list_images
        from facerecon.run.directory import file_digest, folder_names

        if self.config.photos:
            source = Path(str(self.config.photos)).expanduser()
            if not source.is_absolute() and not source.exists():
                source = Path(__file__).resolve().parents[1] / source
            try:
                paths = list_images(source)
            except InputError as error:
                self._fail("photos", error)
                paths = []
            contents = {path: file_digest(path) for path in paths}
            for path, name in folder_names(contents).items():
                yield f"photo_{name}", path, contents[path]
        if self.faces:
            for seed, image in held_out_faces(self.faces):
                yield f"seed_{seed}", image, f"seed {seed}"

    def measure_reconstruction(self) -> None:
        """Photos and held-out faces, by preset with our decoder, and by decoder with the first preset."""
        columns = [(str(preset), "ours") for preset in self.config.presets]
        columns += [(self.preset, key) for key in self.decoders if key != "ours"]
        for name, source, what in self.photos():
            kept: list[Any] = []

            def photo(source: Any = source, kept: list = kept) -> Any:
                if not kept:
                    kept.append(self.observed(source))
                return kept[0]

            for preset, key in columns:
                decoder = self.decoders[key]
                self.item(
                    f"reconstruction/{name}/{preset}/{key}",
                    [what, self.fit_config(preset, decoder)[1]],
                    lambda preset=preset, decoder=decoder, photo=photo: self.fitted(photo(), preset, decoder)[0],
                )

    # -- UV maps -----------------------------------------------------------------------------------------

    @cached_property
    def map_settings(self) -> Any:
        """How maps are made: as train/uv_dataset.py makes them with this pack."""
        from dataclasses import fields

        from omegaconf import OmegaConf

        from facerecon.dataset import PipelineSettings
        from facerecon.settings import build_settings

        values = OmegaConf.to_container(compose("uv_dataset", [f"pack={self.config.pack.name}"]), resolve=True)
        return build_settings(PipelineSettings, {field.name: values[field.name] for field in fields(PipelineSettings)})

    @cached_property
    def pipeline(self) -> Any:
        from facerecon.dataset import UVPipeline

        return UVPipeline(self.map_settings)

    def subjects(self) -> Iterator[str]:
        """Seeds of held-out subjects whose maps the filters accept, as text; made when they are not there yet."""
        from facerecon.dataset import draw_seeds
        from facerecon.dataset.sampling import FIRST_HELD_OUT
        from facerecon.stylegan.load import load_face_generator

        settings = self.map_settings
        digest = _hash(str(settings))
        generator = load_face_generator(settings.generator)
        seeds = draw_seeds(generator, FIRST_HELD_OUT, settings.truncation, dark_share=0.15)
        found = tried = 0
        while found < self.people and tried < 3 * self.people + 10:
            seed = next(seeds)
            tried += 1
            files = [self._map_file(seed, kind) for kind in ("png", "safetensors")]
            if "refused" not in self.kept.get(f"maps/{seed}/full", {}) and not all(path.is_file() for path in files):
                self.kept.pop(f"maps/{seed}/full", None)  # removed by hand
            facts = self.item(f"maps/{seed}/full", digest, lambda seed=seed: self._make_map(seed))
            if facts is not None and "refused" not in facts:
                found += 1
                yield str(seed)

    def _map_file(self, seed: int | str, kind: str) -> Path:
        """A subject's map (png), or its search (safetensors)."""
        return self.folder.path / "maps" / f"{int(seed):06d}.{kind}"

    def _make_map(self, seed: int) -> dict[str, Any]:
        """A subject through the whole pipeline of Sec. 3.1; its map and its search are kept as files."""
        from safetensors.torch import load

        from facerecon.dataset import Item
        from facerecon.errors import InputError
        from facerecon.imaging.files import write_bytes

        outcome = self.pipeline(Item(seed, seed=seed))
        if outcome.error:
            raise InputError(outcome.error)
        if not outcome.accepted:
            return {"refused": "; ".join(outcome.reasons), "figures": _rounded(_numbers(outcome.figures))}
        name = f"{seed:06d}"
        write_bytes(self._map_file(seed, "png"), outcome.files[f"uv-maps/{name}.png"])
        write_bytes(self._map_file(seed, "safetensors"), outcome.files[f"search/{name}.safetensors"])
        fit = load(outcome.files[f"fit/{name}.safetensors"])
        figures = _numbers(outcome.figures)
        return {
            "figures": _rounded(figures),
            "about": _rounded({"age": figures["age"], "male": figures["male"], "tone": figures["skin_tone"]}),
            "vectors": {
                key: [round(v, 5) for v in fit[f"descriptor_{key}"].float().tolist()]
                for key in ("source", "front", "map")
            },
        }

    def measure_maps(self) -> None:
        """Maps of held-out subjects, and the same with one thing changed (Table 4)."""
        from dataclasses import replace

        from facerecon.dataset import Item
        from facerecon.dataset.pipeline import ABLATIONS
        from facerecon.errors import InputError

        plain = self.map_settings
        for seed in self.subjects():
            for name, row in ABLATIONS.items():
                if not row:
                    continue
                changes = {k: replace(getattr(plain, k), **v) if isinstance(v, dict) else v for k, v in row.items()}

                def made(seed: str = seed, changes: dict = changes) -> dict[str, Any]:
                    search = self._map_file(seed, "safetensors").read_bytes()
                    pipeline = self.pipeline.changed(check=False, **changes)
                    outcome = pipeline(Item(int(seed), seed=int(seed), search=search))
                    if outcome.error:
                        raise InputError(outcome.error)
                    return {"figures": _rounded(_numbers(outcome.figures))}

                self.item(f"maps/{seed}/{name}", str(replace(plain, check=False, **changes)), made)

    def measure_expressiveness(self) -> None:
        """The maps of those subjects, as each decoder expresses them (Table 6)."""
        import torch

        from facerecon.errors import ConfigError
        from facerecon.evaluation import MapMetrics
        from facerecon.fitting import MapFeatures, TextureInversionSettings, invert_texture
        from facerecon.imaging.files import read_image
        from facerecon.stylegan.load import load_decoder
        from fit.models import decoder_content

        settings = TextureInversionSettings(steps=self.config.inversion_steps)
        atlas = self.map_settings.face_model
        tools: dict[str, Any] = {}

        def tool(name: str, build: Callable[[], Any]) -> Any:
            if name not in tools:
                tools[name] = build()
            return tools[name]

        for seed in self.subjects():
            for key, decoder in self.decoders.items():

                def express(seed: str = seed, decoder: str = decoder) -> dict[str, Any]:
                    net = tool(decoder, lambda: load_decoder(decoder))
                    if net.atlas != atlas:
                        raise ConfigError(f"decoder {decoder} makes maps of {net.atlas}, not of {atlas} as these are.")
                    target = read_image(self._map_file(seed, "png"))[None]
                    features = tool("features", lambda: MapFeatures("face_features", atlas))
                    measure = tool("measure", lambda: MapMetrics(self.pipeline.template.layout.face, atlas))
                    found = invert_texture(target, net, features, settings, lambda *_: check_stop())
                    side = (target.shape[-1],) * 2
                    fitted = torch.nn.functional.interpolate(found.texture, side, mode="bilinear").clamp(0, 1)
                    figures = {name: value.item() for name, value in measure(fitted, target).items()}
                    return {"figures": _rounded(figures), "numbers": net.rows * net.dim}

                content = decoder_content(decoder) or decoder
                made = self.done[f"maps/{seed}/full"]["settings"]
                self.item(f"expressiveness/{seed}/{key}", [str(settings), content, made], express)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: round(float(value), 5) for key, value in figures.items()}


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    sys.exit(run(main, "evaluate", __doc__))
