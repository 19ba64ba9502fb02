"""Photo -> textured 3D head: the three stages of FFHQ-UV (Sec. 4.2), and files to look at.

    python fit/reconstruct.py img=face.jpg
    python fit/reconstruct.py img=folder/ out=heads fitting=fast
    python fit/reconstruct.py img='photos/*.jpg' face=all batch=8
    python fit/reconstruct.py img=face.jpg landmarks=points.csv mask=face.png
    python fit/reconstruct.py img=folder/ person=true
    python fit/reconstruct.py img=clip.mp4 frames=24

Writes a folder a face: panel.png, texture.png, visibility.png, head.obj (+ mtl, pngs), head.glb, viewer.html,
params.safetensors, report.html; and for the run metrics.jsonl, failures.jsonl and index.html. Presets:
fitting=default, paper, release, fast, smoke.

person=true makes one head from all the photos: a folder with that head, neutral, and photos/NAME/ with panel.png and
params.safetensors of each. A video (a film, or video=true and a folder of frames) is fitted so too, smoothly over time:
track.safetensors holds the parameters of every frame, overlay.mp4 (or .gif) shows them, head.glb plays them.

A run that was stopped, by Ctrl-C or in any other way, goes on with the same command and ends with the files of one that
was not; with threads=1 they are the same to the last byte (but for the seconds in metrics.jsonl).
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import run
from facerecon.run.signals import check_stop, names_kept


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.run.device import import_torch

    import_torch()
    from facerecon.errors import ConfigError, check_number
    from facerecon.fit.models import fit_digest, run_folder
    from facerecon.fit.person import is_video, reconstruct_person
    from facerecon.fit.photos import face_choice, find_corrections, is_finished
    from facerecon.fit.write import EXPORTS
    from facerecon.run.directory import folder_names
    from facerecon.settings import check_keys

    check_keys(config.export, EXPORTS, "export")
    if OmegaConf.is_missing(config, "img"):
        raise ConfigError("img is not set; for example: python fit/reconstruct.py img=face.jpg")
    if config.person or is_video(config):
        return reconstruct_person(config, fit_digest(config))
    contents = _photos(config.img)
    paths = list(contents)
    face = face_choice(config.face)
    check_number("batch", config.batch, 1, whole=True)
    given = find_corrections(config, paths)
    digest = fit_digest(config)
    settings = {path: given[path].digest(digest) for path in paths}
    with run_folder(config, "reconstruct").alone() as folder:
        done = folder.completed()
        names = folder_names(contents, done, numbered=face == "all")

        def finished(done: dict) -> set[Path]:
            return {p for p in paths if is_finished(done.get(names[p], {}), settings[p], contents[p])}

        kept = finished(done) if config.resume else set()
        pending = [path for path in paths if path not in kept]
        if not pending:
            _finish(folder, paths, names)
            print(f"nothing to do: {len(paths)} photo(s) are finished in {folder.path}; resume=false does them again.")
            doubtful = _suspects(folder, paths, names)
            print(_page(folder, paths, names))
            return 1 if doubtful else 0
        # faces that could not be fitted go last: the others make the same batches as in a run that meets them first
        kinds = folder.failure_kinds()
        pending.sort(key=lambda path: kinds.get(names[path]) == "FitError")
        folder.forget_failures(names[path] for path in pending)
        _say_where(folder, pending, names, contents, done)
        with names_kept(
            lambda: f"{len(finished(folder.completed()))} of {len(paths)} photo(s) are finished in {folder.path}"
        ):
            return _Job(config, folder, paths, pending, names, settings, given, contents).run()


@dataclass
class _Job:
    """The photos of one run that are not finished yet."""

    config: Any
    folder: Any
    paths: list
    pending: list
    names: dict
    settings: dict
    given: dict
    contents: dict
    failed: dict[Any, str] = field(default_factory=dict)
    written: int = 0
    diverged: int = 0
    bar: Any = None
    noting: Any = field(default_factory=threading.RLock)  # the next group is observed while one is fitted

    def run(self) -> int:
        """Do them; returns the exit status."""
        from tqdm import tqdm

        from facerecon.errors import InputError
        from facerecon.fit.models import load_tools, prepare
        from facerecon.run.thread_pool import ahead

        def figures(row: dict) -> dict[str, float]:
            return {f"{stage}/{key}": value for stage, of in row["metrics"].items() for key, value in of.items()}

        started = time.perf_counter()
        prepare(self.config)  # the number of threads
        groups = ahead(self.groups())  # observed while the tools are loaded
        tools = load_tools(self.config, f"{len(self.pending)} photo(s)", figures)
        self.fitter, self.eval_identity, self.distance, self.logger, self.parts = tools
        if self.config.perceptual == "face_features":
            print("note: the perceptual loss is face_features, not the paper's LPIPS (perceptual=lpips_vgg).")
        with self.noting:
            self.bar = tqdm(total=len(self.pending), initial=len(self.failed), unit="photo", disable=None)
        try:
            for group in groups:
                self.do(group)
        finally:
            self.bar.close()
        _finish(self.folder, self.paths, self.names)

        for path, message in self.failed.items():
            print(f"error: {message}" if len(self.paths) == 1 else f"failed: {path}: {message}", file=sys.stderr)
        seconds = time.perf_counter() - started
        print(
            f"{self.written} face(s) written to {self.folder.path}, {len(self.failed)} photo(s) failed, {seconds:.1f} s"
        )
        if self.diverged:
            print(f"{self.diverged} face(s) diverged and are kept at an earlier state: 'diverged' in metrics.jsonl")
        suspects = _suspects(self.folder, self.paths, self.names)
        if len(self.failed) < len(self.paths):
            print(_page(self.folder, self.paths, self.names))
        if self.failed and len(self.paths) == 1:
            return 2
        if len(self.failed) == len(self.paths):
            where = self.folder.path / "failures.jsonl"
            raise InputError(f"none of the {len(self.paths)} photos could be used; see {where}.")
        return 1 if self.failed or self.diverged or suspects else 0

    def groups(self) -> Iterator[list[tuple[Any, Any, float]]]:
        """(path, observation, seconds) of whole photos that together fill a batch, or of one that has more faces.

        Where a group ends depends on the photos before it only, and a group is marked as done as a whole: so a run
        that was stopped goes on with the groups of one that was not, whose faces are the same to the last bit.
        """
        from facerecon.fit.photos import Source, observe_sources

        sources = [Source(path, str(path), self.names[path], self.given[path]) for path in self.pending]
        group: list[tuple[Any, Any, float]] = []
        faces = 0
        for source, photo, seconds in observe_sources(
            sources, self.config, lambda source, error: self.fail(source.image, error)
        ):
            if group and faces + photo.batch > self.config.batch:
                yield group
                group, faces = [], 0
            group.append((source.image, photo, seconds / photo.batch))
            faces += photo.batch
            if faces >= self.config.batch:
                yield group
                group, faces = [], 0
        if group:
            yield group

    def do(self, group: list[tuple[Any, Any, float]]) -> None:
        """Fit a group, write its faces, and mark its photos as done, all at once.

        On a CPU each thread has its own share of the group: to do one photo with two threads is hardly faster than with
        one.
        """
        import torch

        from facerecon.errors import FitError
        from facerecon.run import choose_device
        from facerecon.run.thread_pool import beside_each_other

        photos, items = [], []
        for path, photo, seconds in group:
            for i in range(photo.batch):
                photos.append(photo[i])
                items.append(_Item(path, self.names[path] + (f"_{i}" if photo.batch > 1 else ""), seconds))

        def share(part: slice) -> tuple[list[dict], dict[Any, str]]:
            try:
                return reconstruct(self, photos[part], items[part])
            except FitError as error:
                return [], {item.path: str(error) for item in items[part]}

        threads = torch.get_num_threads() if choose_device(self.config.device).type == "cpu" else 1
        rows, failures = [], {}
        for start in range(0, len(photos), self.config.batch):  # `face=all` can give more faces than fit at once
            stop = min(start + self.config.batch, len(photos))
            size = -(-(stop - start) // threads)
            parts = [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
            for made, bad in beside_each_other([partial(share, part) for part in parts]):
                rows += made
                failures |= bad
        with self.noting:
            self.note(group, items, rows, failures)

    def note(self, group: list, items: list[_Item], rows: list[dict], failures: dict[Any, str]) -> None:
        """Mark the photos of a group as done or failed."""
        from facerecon.errors import FitError

        for path, message in failures.items():
            self.fail(path, FitError(message))
        self.folder.metrics.write_rows(rows)
        self.written += len(rows)
        self.diverged += sum("diverged" in row for row in rows)
        doubts: dict[Any, list[str]] = {}
        for row in rows:
            if "suspect" in row:
                doubts.setdefault(row["path"], []).append(f"{row['item']} is suspect: {row['suspect']}")
        facts = {}
        for path, photo, _ in group:
            if path not in failures:
                facts[self.names[path]] = {
                    "settings": self.settings[path], "content": self.contents[path], "path": str(path),
                }  # fmt: skip
                if str(path) in doubts:
                    self.folder.doubt(self.names[path], "; ".join(doubts[str(path)]))
                if photo.batch > 1:
                    facts[self.names[path]]["parts"] = [item.name for item in items if item.path == path]
        self.folder.complete_all(facts)
        self.bar.update(len(facts))

    def fail(self, path: Any, error: Exception) -> None:
        """Note that a photo failed."""
        with self.noting:
            self.failed[path] = str(error)
            self.folder.fail(self.names[path], error)
            if self.bar is not None:
                self.bar.update(1)


@dataclass(frozen=True)
class _Item:
    """One face: its photo, the name of its folder, the seconds it took to observe."""

    path: Any
    name: str
    seconds: float


def _suspects(folder: Any, paths: list, names: dict) -> bool:
    """Whether results are not to be trusted; prints which."""
    found = {name: why for name, why in folder.suspects().items() if name in {names[path] for path in paths}}
    for why in found.values():
        print(f"suspect: {why}", file=sys.stderr)
    return bool(found)


def _page(folder: Any, paths: list, names: dict) -> str:
    """The line on what to open: the head of the one face there is, or the page of all."""
    from facerecon.fit.write import page_to_open

    done = folder.completed()
    return page_to_open(folder.path, [part for p in paths for part in done.get(names[p], {}).get("parts", [names[p]])])


def _finish(folder: Any, paths: list, names: dict) -> None:
    """The records in order, and for several photos a page that shows them."""
    from facerecon.export.report import IndexEntry, write_index

    folder.tidy(names[path] for path in paths)
    if len(paths) > 1:
        items = sorted(panel.parent.name for panel in folder.path.glob("*/panel.png"))
        write_index(
            folder.path / "index.html",
            [IndexEntry.of_folder(folder.path, item) for item in items],
            folder.failures() | folder.suspects(),
        )


def reconstruct(job: _Job, photos: list, items: list[_Item]) -> tuple[list[dict], dict[Any, str]]:
    """Fit and write the faces of a batch: their rows of metrics.jsonl, and {path: why} of photos with a failed one."""
    from facerecon.evaluation import lpips_metrics, reconstruction_metrics
    from facerecon.types import Observation

    fitter, bar = job.fitter, job.bar
    photo = Observation.cat(photos).to(fitter.model.mean.device)

    def show(report: Any) -> None:
        check_stop()
        if report.step % 5 == 0 or report.step == report.steps - 1:
            bar.set_postfix_str(f"{report.stage} {report.step + 1}/{report.steps}, loss {report.total.nanmean():.3f}")

    result = fitter(photo, callback=show)
    fine = [i for i in range(len(items)) if i not in result.failed]
    photo, observed, face = photo[fine], result.observed[fine], result.face[fine]
    figures, images = {}, {}
    for name, (params, texture) in result.heads(fitter.decoder, fine).items():
        values, images[name] = reconstruction_metrics(
            observed, params, texture, fitter.model, fitter.renderer, job.eval_identity
        )
        figures[name] = {key: value.tolist() for key, value in values.items()}
    ends = {name: images[name] for name in list(images)[-2:]}  # the decoder's texture, and the photo's own texels
    for name, values in lpips_metrics(ends, observed.image, [job.distance]).items():
        figures[name] |= values
    rows = []
    for k, i in enumerate(fine):
        check_stop()
        item = items[i]
        metrics = {stage: {key: round(values[k], 5) for key, values in of.items()} for stage, of in figures.items()}
        row = {"item": item.name, "path": str(item.path), "settings": job.settings[item.path], "metrics": metrics}
        if fitter.regressor is not None:
            row["stage1"] = f"landmarks: {result.fallbacks[i]}" if i in result.fallbacks else "regressor"
        if i in result.diverged:
            row["diverged"] = result.diverged[i]
        if i in result.suspect:
            row["suspect"] = result.suspect[i]
        if photo.turned[k]:
            row["turned"] = photo.turned[k]
        clock = time.perf_counter()
        write_face(job, face[k], photo[k], job.folder.path / item.name, row)
        seconds = {"observe": item.seconds} | {name: value / len(items) for name, value in result.seconds.items()}
        seconds["export"] = time.perf_counter() - clock
        row |= {"seconds": {key: round(value, 3) for key, value in seconds.items()}, "batch": len(items)}
        with job.noting:
            job.logger(row)
        rows.append(row)
        last = metrics[list(metrics)[-1]]
        bar.write(
            f"{item.name}: photometric {last['photometric']:.4f}, identity {last.get('identity', float('nan')):.3f}, "
            f"landmarks {100 * last['nme']:.2f} %, {sum(seconds.values()):.1f} s"
        )
    failed = {items[i].path: f"{items[i].name} could not be fitted: {why}" for i, why in result.failed.items()}
    return rows, failed


def write_face(job: _Job, face: Any, photo: Any, folder: Path, row: dict) -> None:
    """All files of one face."""
    from facerecon.export.report import ReportEntry
    from facerecon.export.views import panel
    from facerecon.fit.write import write_head

    name = Path(row["path"]).name
    told = {
        "suspect": "Suspect, this may be no face: {}.",
        "diverged": "The fit diverged: {}.",
        "turned": "The photo was turned by {} degrees clockwise to have the face upright.",
    }
    notes = [text.format(row[key]) for key, text in told.items() if key in row]
    if row.get("stage1", "").startswith("landmarks: "):
        notes.append(f"Stage 1 starts from landmarks, not by the regressor: {row['stage1'][11:]}.")
    result = {key: row[key] for key in ("metrics", "stage1", "diverged", "suspect", "turned") if key in row}
    write_head(
        folder, face, name, job.fitter, job.config, result | {"parts": job.parts},
        draw=lambda: panel(face, photo, job.fitter.renderer, job.fitter.model),
        describe=lambda picture: ReportEntry.from_face(face, panel=picture, metrics=row["metrics"], notes=notes),
        arguments=f"img={shlex.quote(name)}", shown=(face, photo), lead="3D head from one photo",
    )  # fmt: skip


def _photos(source: Any) -> dict[Path, str]:
    """{photo: digest of its content}, copies of one name once."""
    from facerecon.imaging.files import list_images
    from facerecon.run.directory import file_digest, folder_name

    contents, first, copies = {}, {}, []
    for path in list_images(source):
        key = folder_name(path.stem), file_digest(path)
        if first.setdefault(key, path) is path:
            contents[path] = key[1]
        else:
            copies.append(f"{path} of {first[key]}")
    if copies:
        print(f"note: {len(copies)} photo(s) are copies, and fitted once: {copies[0]}{', ...' if copies[1:] else ''}")
    return contents


def _say_where(folder: Any, pending: list, names: dict, contents: dict, done: dict) -> None:
    """Which photos replace a head that is there, and which have a folder of another name."""
    from facerecon.run.directory import folder_name

    changed = [path for path in pending if done.get(names[path], {}).get("content", contents[path]) != contents[path]]
    moved = [path for path in pending if names[path] != folder_name(path.stem)]
    for paths, what in ((changed, "has changed; its head is made again in"), (moved, "shares its name; its folder is")):
        if paths:
            more = f" (and {len(paths) - 1} more)" if paths[1:] else ""
            print(f"note: {paths[0]} {what} {folder.path / names[paths[0]]}{more}")


command = partial(run, main, "reconstruct", __doc__)

if __name__ == "__main__":
    sys.exit(command())
