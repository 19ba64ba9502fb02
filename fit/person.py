"""Several photos of one person, or the frames of a video, in one fit: what `person=true` and `video=true` do."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from facerecon.errors import ConfigError, FitError, InputError
from facerecon.evaluation import lpips_metrics, reconstruction_metrics
from facerecon.export.report import ReportEntry
from facerecon.export.views import overlays, panel, person_panel, relit_strip, save_animation
from facerecon.fit.models import load_tools, run_folder
from facerecon.fit.photos import Corrections, Source, find_corrections, is_finished, observe_sources
from facerecon.fit.write import page_to_open, saved_face, write_head
from facerecon.fitting import FitResult, SmoothnessSettings
from facerecon.imaging.files import list_images, read_image, write_png
from facerecon.imaging.video import film_reader, is_film, read_frames, write_film
from facerecon.run.directory import file_digest, folder_name, folder_names
from facerecon.run.signals import check_stop, names_kept
from facerecon.settings import build_settings
from facerecon.types import Observation, ReconstructedFace, SavedTrack


def is_video(config: Any) -> bool:
    """Whether ``img`` is taken for the frames of a video: ``video=true``, or null and a film file."""
    return is_film(config.img) if config.video is None else bool(config.video)


def reconstruct_person(config: Any, digest: str) -> int:
    """One head from all photos of ``config.img``; returns the exit status. ``digest``: of all that changes a result."""
    video = is_video(config)
    if str(config.face) == "all":
        raise ConfigError("one person has one face in each photo; got face=all. Use face=largest or an index.")
    if video and not (config.landmarks is None and config.mask is None):
        raise ConfigError("landmarks= and mask= belong to photos; leave them out for a video.")
    if video and (not isinstance(config.frames, int) or config.frames < 3):
        raise ConfigError(f"a video needs frames=3 or more, to be smooth along; got {config.frames}.")
    if video:
        read_frames(config.img, config.frames)  # an error at once where something is missing
    paths = [] if video else list_images(config.img)
    given = {} if video else find_corrections(config, paths)
    used = [f"{Path(config.img).name} {config.frames}"] if video else []
    used += [f"{path.name} {given[path].digest(digest)}" for path in paths]
    settings = hashlib.sha256(os.fsencode("".join([digest, *used]))).hexdigest()[:12]
    source = Path(str(config.img)).expanduser()
    files = paths or ([source] if source.is_file() else list_images(config.img))
    contents = {path: file_digest(path) for path in files}
    content = hashlib.sha256("".join(contents.values()).encode()).hexdigest()
    with run_folder(config, "reconstruct").alone() as folder:
        done, label = folder.completed(), _name(config, paths)
        name = folder_names({source: content}, done, label=label)[source]
        if config.resume and is_finished(done.get(name, {}), settings, content):
            print(f"nothing to do: {name} is finished in {folder.path}; resume=false does it again.")
            print(page_to_open(folder.path, [name]))
            return 1 if any(row.get("item") == name and "suspect" in row for row in folder.metrics.read()) else 0
        if done.get(name, {}).get("content", content) != content:
            print(f"note: {config.img} has changed; its head is made again in {folder.path / name}")
        elif name != folder_name(label):
            print(f"note: {folder.path / folder_name(label)} is of other photos; this head's folder is {name}")
        folder.forget_failures([*folder.failures()])
        with names_kept(lambda: f"nothing of {name} is kept"):
            job = _Person(config, folder, name, settings, content)
            return job.run(_sources(config, contents if paths else {}, given))


def _name(config: Any, paths: list) -> str:
    """What the person's folder is called: as the folder or film, else "person"."""
    path = Path(str(config.img)).expanduser()
    if path.is_dir():
        return path.resolve().name or "person"
    return path.stem if len(paths) <= 1 and path.is_file() else "person"


def _sources(config: Any, contents: dict, given: dict) -> Iterator[Source]:
    if is_video(config):
        names: set[str] = set()
        for frame in read_frames(config.img, config.frames):
            name, key = frame.name, frame.name if " frame " in frame.name else Path(frame.name).stem
            if key in names:
                name = key = f"{frame.name} ({frame.number})"
            names.add(key)
            yield Source(frame.image, name, key, Corrections(), frame.time, frame.number)
    else:
        folders, files = folder_names(contents), [path.name for path in contents]
        for number, path in enumerate(contents):
            name = path.name if files.count(path.name) == 1 else str(path)
            yield Source(path, name, folders[path], given[path], float(number), number)


class _Person:
    """The one job of such a run."""

    def __init__(self, config: Any, folder: Any, name: str, settings: str, content: str) -> None:
        self.config, self.folder, self.name, self.settings, self.content = config, folder, name, settings, content
        self.video = is_video(config)
        self.failed: dict[str, str] = {}

    def run(self, sources: Iterator[Source]) -> int:
        """Observe, fit, write; returns the exit status."""
        config, started, kind = self.config, time.perf_counter(), "frame" if self.video else "photo"
        self.fitter, self.eval_identity, self.distance, logger, self.parts = load_tools(
            config, "one person", lambda row: {f"final/{key}": value for key, value in row["metrics"].items()}
        )
        clock, used, photos = time.perf_counter(), [], []
        for source, photo, _ in observe_sources(sources, config, lambda source, error: self._fail(source.name, error)):
            used.append(source)
            photos.append(photo.replace(path=(source.name,)))
        if not used:
            where = self.folder.path / "failures.jsonl"
            raise InputError(f"no {kind} of the {len(self.failed)} could be used; see {where}.")
        seconds = {"observe": time.perf_counter() - clock}
        photo = Observation.cat(photos).to(self.fitter.model.mean.device)
        result = self._fit(photo, used)
        for i in set(range(len(used))) - set(result.used):
            self._fail(used[i].name, FitError("what was measured on it is not finite"))
        used, photo = [used[i] for i in result.used], photo[list(result.used)]
        clock = time.perf_counter()
        row = self._write(result, photo, used)
        seconds |= result.seconds | {"export": time.perf_counter() - clock}
        row["seconds"] = {key: round(value, 3) for key, value in seconds.items()}
        logger(row)
        self.folder.metrics.write_rows([row])
        suspects = row.get("suspect", {})
        for name, why in suspects.items():
            self.folder.doubt(name, f"{name} is suspect: {why}")
            print(f"suspect: {name}: {why}", file=sys.stderr)
        self.folder.complete(self.name, settings=self.settings, content=self.content, path=str(config.img))
        self.folder.tidy([self.name, *(source.name for source in used), *self.failed])
        for name, message in self.failed.items():
            print(f"left out: {name}: {message}", file=sys.stderr)
        print(
            f"{self.name}: one head from {len(used)} {kind}s written to {self.folder.path / self.name}, "
            f"{len(self.failed)} left out, {time.perf_counter() - started:.1f} s"
        )
        if result.diverged:
            print("the fit diverged and is kept at an earlier state: 'diverged' in metrics.jsonl")
        print(page_to_open(self.folder.path, [self.name]))
        return 1 if self.failed or result.diverged or suspects else 0

    def _fit(self, photo: Observation, used: list[Source]) -> FitResult:
        """The shared fit; along a video it is smooth over time."""

        def show(report: Any) -> None:
            check_stop()
            if report.step % 10 == 0 or report.step == report.steps - 1:
                loss = float(report.total.mean())
                print(f"{report.stage} {report.step + 1}/{report.steps}, loss {loss:.3f}", file=sys.stderr)

        times = smoothness = None
        if self.video:
            times = torch.tensor([source.time for source in used])
            smoothness = build_settings(SmoothnessSettings, dict(self.config.fitting.smoothness), "fitting.smoothness")
        return self.fitter.multiview(photo, times, smoothness, callback=show)

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = str(error)
        self.folder.fail(name, error)

    def _write(self, fit: FitResult, photo: Observation, used: list[Source]) -> dict[str, Any]:
        """All files of the person; returns the row of metrics.jsonl."""
        config, fitter, face, folder = self.config, self.fitter, fit.face, self.folder.path / self.name
        values, image = reconstruction_metrics(
            fit.observed, face.params, face.texture, fitter.model, fitter.renderer, self.eval_identity
        )
        distances = [] if self.video else [self.distance]  # of many frames it takes too long
        found = lpips_metrics({"final": image}, fit.observed.image, distances)["final"]
        values |= {key: torch.tensor(of) for key, of in found.items()}
        each = [{key: round(float(value[i]), 5) for key, value in values.items()} for i in range(len(used))]
        mean = {key: round(float(value.mean()), 5) for key, value in values.items()}
        names = [source.folder for source in used]
        result = {"metrics": mean, "photos": dict(zip(names, each, strict=True)), "left_out": self.failed}
        if fit.diverged:
            result["diverged"] = fit.diverged[0]
        if fit.suspect:
            result["suspect"] = {used[i].name: why for i, why in fit.suspect.items()}
        if any(photo.turned):
            result["turned"] = {name: turn for name, turn in zip(names, photo.turned, strict=True) if turn}
        if self.video:
            self._write_track(face, photo, used, folder)
        for i, name in enumerate(names) if not self.video else ():
            place = folder / "photos" / name
            saved_face(face[i], [used[i].name], fitter, config).save(place / "params.safetensors")
            if "panel" in config.export:
                write_png(place / "panel.png", read_image(panel(face[i], photo[i], fitter.renderer, fitter.model)))
        person = face[0].replace(vertices=face.neutral_vertices[:1])
        person = person.replace(params=person.params.replace(expression=torch.zeros_like(person.params.expression)))
        notes = [f"The fit diverged: {result['diverged']}."] if fit.diverged else []
        notes += [f"Suspect, this may be no face: {name}: {why}." for name, why in result.get("suspect", {}).items()]
        notes += [f"Left out: {name}: {message}" for name, message in self.failed.items()]
        write_head(
            folder, person, self.name, fitter, config, result | {"parts": self.parts},
            draw=lambda: person_panel(face, photo, fitter.renderer, captions=[source.name for source in used]),
            describe=lambda picture: ReportEntry(
                name=self.name,
                pictures={"": picture, "one lamp, walking from left to right": relit_strip(person)},
                history={key: value.mean(0).cpu() for key, value in face.history.items()},
                metrics={"mean over photos": mean} | dict(zip(names, each, strict=True)),
                notes=notes,
            ),
            arguments=f"img={shlex.quote(Path(str(config.img)).name)} {'video' if self.video else 'person'}=true",
            shown=(face[0], photo[0]),
            lead=f"3D head from {len(used)} {'frames of a video' if self.video else 'photos'}",
            **({"track": face.params, "times": [source.time for source in used]} if self.video else {}),
        )  # fmt: skip
        return {"item": self.name, "path": str(config.img), "settings": self.settings, **result}

    def _write_track(self, face: ReconstructedFace, photo: Observation, used: list[Source], folder: Path) -> None:
        """Every frame's parameters, and the overlay along the video: overlay.mp4 with PyAV, overlay.gif without."""
        SavedTrack(
            face=saved_face(face, [source.name for source in used], self.fitter, self.config),
            times=torch.tensor([source.time for source in used], dtype=torch.float64),
            frames=torch.tensor([source.number for source in used]),
        ).save(folder / "track.safetensors")
        if "panel" not in self.config.export:
            return
        pictures = overlays(face, photo, self.fitter.renderer)
        lasts = (used[-1].time - used[0].time) / max(1, len(used) - 1)
        rate = min(25.0, 1 / lasts) if lasts > 0 else 10.0
        try:
            film_reader()
        except InputError:
            print("note: overlay.gif instead of overlay.mp4: PyAV is not installed (pip install 'facerecon[video]').")
            save_animation(folder / "overlay.gif", pictures, rate)
        else:
            write_film(folder / "overlay.mp4", pictures, rate)
