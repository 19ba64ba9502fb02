"""The numbers of the paper in one sweep: shape, reconstruction, UV maps, decoders, and ablations (Sec. 3.2, 4.3).

    python fit/evaluate.py                                        # six items a row
    python fit/evaluate.py full=true ict=ICT-FaceKit              # at least 20 items a row
    python fit/evaluate.py full=true minutes=30                   # so long at most; the same command goes on
    python fit/evaluate.py parts=[shape] heads=20 decoder_fits=true decoders.part=small/decoder.safetensors
    python fit/evaluate.py parts=[maps] subjects=60
    python fit/evaluate.py parts=[reconstruction] faces=20 +decoders.w=open:w +decoders.z=open:z
    python fit/evaluate.py parts=[sheet] photos=null seeds=[40002,40018,40082]
    python fit/evaluate.py parts=[tone] tones=24 pictures=2 presets=[fast]
    python fit/evaluate.py parts=[] realy_dir=REALY realy_keypoints=data/HIFI3D.txt
    python fit/evaluate.py parts=[] fair_dir=FAIR

* reconstruction: photometric error, CSIM (cosine of a 1024-d identity network that is never optimized), landmarks,
  LPIPS (VGG and AlexNet; the one that a fit optimized is marked), of photos and held-out faces, by preset; BS Error and
  identity of the fitted textures.
* shape: REALY's protocol on held-out synthetic heads, on ICT-FaceKit's (ict=), on photos of one real scan (views=),
  and on REALY itself (realy_dir=), for the mean face, the starts, and full fits (Table 5). With decoder_fits=true both
  parts are fitted with every decoder of decoders=, too.
* maps: BS Error and identity of held-out subjects' maps, and without editing, without multi-view, blended naively
  (ablations=; Tables 2 and 4).
* expressiveness: those maps, expressed by each decoder (Table 6), by LPIPS, L1 and CSIM.
* tone: skin tones (ITA) of fits (tone_preset=) of rendered heads of known albedo and of generated portraits, each under
  several exposures and white balances, by groups of skin tone, and on FAIR (fair_dir=). Light left in textures, and
  seams, are measured on every fit with our decoder.
* released maps (released_dir=): of subjects of the authors' set beside ours.
* sheet: panels of the photos and held-out faces with the first preset, to look at.

Writes evaluate.md (a few tables, and charts), results.csv (every cell, with bootstrap intervals), items.csv (every
measurement) and sheets. A run that was stopped goes on with the same command; an item that fails is a line of the
report, and is tried again by the next run.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import compose, run
from facerecon.run.signals import check_stop, names_kept

PARTS = ("reconstruction", "shape", "tone", "maps", "expressiveness", "sheet")
"""In the order in which they are measured."""
FULL = 20
FULL_TONES, FULL_PICTURES = 24, 2
MOST_TONES, MOST_VIEWS = 60, 12
VERSION = 3
"""Of the measurements: items of another version are measured again."""


def main(config: Any) -> int:
    from facerecon.dataset.pipeline import ABLATIONS
    from facerecon.errors import ConfigError, check_number
    from facerecon.fit.evaluation_report import write_evaluation
    from facerecon.fit.models import run_folder
    from facerecon.settings import check_keys

    check_keys(config.parts, PARTS, "part")
    check_keys(config.ablations, [name for name, changes in ABLATIONS.items() if changes], "ablation")
    for key in ("heads", "faces", "subjects", "tones", "pictures", "views", "inversion_steps"):
        check_number(key, config[key], 0, whole=True)
    for seed in config.seeds:
        check_number("seeds", seed, 0, whole=True)
    if not config.decoders.get("ours"):
        raise ConfigError("decoders.ours is not set; it is the decoder that everything is measured with.")
    try:
        shlex.split(config.set or "")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"set={config.set!r} is not a list of keys ({error}); e.g. set='face_model=ict'.") from None
    if not config.presets:
        raise ConfigError("presets is empty; name at least one, e.g. presets=[default].")
    if config.minutes is not None:
        check_number("minutes", config.minutes, 0)
    if config.readme and not config.full:
        raise ConfigError("readme= takes figures of full=true only: add full=true, or leave readme= out.")
    if config.readme and not Path(config.readme).is_file():
        raise ConfigError(f"readme={config.readme} does not exist; give a Markdown file with the two marks, or null.")
    with run_folder(config, "evaluate").alone() as folder:
        sweep = Sweep(config, folder)
        sweep.check()
        with names_kept(lambda: f"{len(folder.completed())} item(s) are finished in {folder.path}"):
            sweep.run()
        return write_evaluation(sweep)


class Sweep:
    """The items of a run, kept or measured, and the fits that they share; ``fit/evaluation_parts.py`` measures."""

    def __init__(self, config: Any, folder: Any) -> None:
        from facerecon.assets.doctor import commit
        from facerecon.fit.models import prepare

        self.config, self.folder = config, folder
        self.device = prepare(config)
        count = {key: max(config[key], FULL) if config.full else config[key] for key in ("heads", "faces", "subjects")}
        self.heads, self.people = count["heads"], count["subjects"]
        self.faces = len(config.seeds) if config.seeds else count["faces"]
        self.tones = min(max(config.tones, FULL_TONES * config.full), MOST_TONES)
        self.pictures = max(config.pictures, FULL_PICTURES * config.full)
        self.views = MOST_VIEWS if config.full else min(config.views, MOST_VIEWS)
        self.preset, self.seed = str(config.presets[0]), config.seed
        self.tone_preset = str(config.tone_preset or self.preset)
        self.decoders = {str(key): str(value) for key, value in config.decoders.items() if value}
        self.fitted = self.decoders if config.decoder_fits else {"ours": self.decoders.get("ours", "")}
        self.commit = commit()
        self.stop = time.monotonic() + 60 * config.minutes if config.minutes is not None else math.inf
        self.kept = {name: _renamed(facts) for name, facts in folder.completed().items()} if config.resume else {}
        self.done: dict[str, dict[str, Any]] = {}  # {item: facts} with the settings of this run
        self.failed: dict[str, str] = {}  # {item: why}
        self.skipped: list[str] = []  # sentences on what was not run
        self.sheets: list[str] = []  # names of the pictures to look at
        self._fits: dict[tuple[str, str], Any] = {}
        self._fitters: dict[tuple[str, str], Any] = {}

    def check(self) -> None:
        """Check presets, decoders and set= before anything is measured."""
        from facerecon.errors import AssetError, ConfigError, nearest_name
        from facerecon.fit.evaluation_parts import split_space
        from facerecon.stylegan.load import DECODERS, is_decoder_file

        for key, value in self.decoders.items():
            name = split_space(value)[0]
            if is_decoder_file(name) and not Path(name).expanduser().is_file():
                raise AssetError(f"decoders.{key}={name} does not exist; give a file of train/texture_gan.py, or null.")
            if not is_decoder_file(name) and name not in (*DECODERS, "albedo"):
                raise ConfigError(nearest_name(name, DECODERS, f"decoder of decoders.{key}"))
        for preset in (*self.config.presets, self.tone_preset):
            self.fit_config(str(preset), self.decoders["ours"])

    # -- items -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Measure what is not there yet."""
        from tqdm import tqdm

        from facerecon.fit.evaluation_parts import MEASURES

        self.folder.forget_failures(self.folder.failures())  # they are tried again
        self.bar = tqdm(total=self._expected(), unit="item", disable=None)
        wanted = [part for part in PARTS if part in self.config.parts]
        wanted += [part for part in ("realy", "released", "fair") if self.config[f"{part}_dir"]]
        for measure in dict.fromkeys(MEASURES[part] for part in wanted):
            try:
                measure(self)
            except Exception as error:  # a part that cannot begin (a missing model) leaves the others be
                self.fail(next(part for part in wanted if MEASURES[part] is measure), error)
        self.bar.close()
        if time.monotonic() >= self.stop:
            told = f"minutes={self.config.minutes:g} were over; the same command goes on with what is left."
            self.skipped.append(told)

    def _expected(self) -> int:
        """Items, about: those of folders are not counted."""
        from facerecon.fit.evaluation_tones import PORTRAITS

        heads = (self.heads * 2 + self.views) * (1 + len(self.fitted))
        fits = len(self.config.presets) + len(self.fitted) - 1
        maps = self.people * (1 + len(self.config.ablations))
        counts = {"shape": heads, "reconstruction": (self.faces + 1) * fits, "maps": maps,
                  "expressiveness": self.people * len(self.decoders),
                  "tone": (self.tones + min(self.faces, PORTRAITS)) * (self.pictures + 1)}  # fmt: skip
        return sum(counts.get(part, 0) for part in self.config.parts)

    def item(self, name: str, settings: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Facts of an item: kept ones, or new ones; None if it failed, which is noted, or when the time is over."""
        from facerecon.fit.evaluation_parts import short_hash

        check_stop()
        digest = short_hash(VERSION, settings)
        facts = self.kept.get(name)
        if facts is None or facts.get("settings") != digest:
            if time.monotonic() >= self.stop:
                return None
            clock = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of faces outside the regressor's range, which are counted
                    facts = work()
            except Exception as error:  # whatever is wrong with one item, the rest goes on
                self.fail(name, error)
                self.bar.update(1)
                return None
            facts |= {"settings": digest, "seconds": round(time.process_time() - clock, 2), "commit": self.commit}
            self.folder.complete(name, **facts)
            facts = self.folder.completed()[name]  # as a resumed run will read it
        self.done[name] = facts
        self.bar.update(1)
        self.bar.set_postfix_str(name)
        return facts

    def fail(self, name: str, error: Exception) -> None:
        """Note that an item, or a part, failed; an OutputError is raised: nothing else could be written either."""
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
        from facerecon.fit.evaluation_parts import split_space
        from facerecon.fit.models import fit_digest

        key = (preset, decoder)
        if key not in self._fits:
            config, (name, space) = self.config, split_space(decoder)
            overrides = [f"pack={config.pack.name}", f"fitting={preset}", f"decoder={name}", "img=none"]
            overrides += [f"decoder_space={space}"] if space else []
            overrides += [f"device={config.device}", *shlex.split(config.set or "")]
            made = compose("reconstruct", overrides)
            self._fits[key] = made, fit_digest(made)
        return self._fits[key]

    def fitter(self, preset: str, decoder: str) -> Any:
        """Its fitter; loaded when first asked for."""
        from facerecon.fit.models import build_fitter

        key = (preset, decoder)
        if key not in self._fitters:
            self._fitters[key] = build_fitter(self.fit_config(*key)[0], self.device)
        return self._fitters[key]

    @property
    def main(self) -> tuple[str, str]:
        """Preset and decoder of the row "ours"."""
        return self.preset, self.decoders["ours"]

    @property
    def model(self) -> Any:
        """The head model that is fitted."""
        return self.fitter(*self.main).model

    @cached_property
    def eval_identity(self) -> Any:
        """The identity network of CSIM."""
        from facerecon.perception import load_eval_identity

        return load_eval_identity().to(self.device)

    @cached_property
    def distances(self) -> list[Any]:
        """Both LPIPS; one of them is what a fit optimizes, and marked in the tables."""
        from facerecon.losses import load_perceptual

        return [load_perceptual(name).to(self.device) for name in ("lpips_vgg", "lpips_alex")]

    def observed(self, image: Any) -> Any:
        """A photo as the fits see it."""
        from facerecon.perception import observe

        return observe(image).to(self.device)


def _renamed(facts: dict[str, Any]) -> dict[str, Any]:
    """An item as it is written today: files of version 0.1 have "figures", and "judge" for CSIM of maps."""
    if "figures" in facts:
        facts = {("metrics" if key == "figures" else key): value for key, value in facts.items()}
        facts["metrics"] = {("csim" if key == "judge" else key): v for key, v in facts["metrics"].items()}
    return facts


command = partial(run, main, "evaluate", __doc__)

if __name__ == "__main__":
    sys.exit(command())
