"""Faces -> normalized UV textures: the data set pipeline of FFHQ-UV (Sec. 3.1).

    python train/uv_dataset.py n=1000 out=uv                          faces of the open generator, by seed
    python train/uv_dataset.py source=photos dir=portraits out=uv     a folder of portraits
    python train/uv_dataset.py source=manifest manifest=open out=uv    the shipped set again, without a search
    python train/uv_dataset.py source=manifest manifest=open n=60 editing=false check=false out=ablation

Writes uv-maps/, observed/, face-latents/, meta-info.json, manifest.safetensors (which builds the set again),
manifest.jsonl (every measurement of every subject, refused ones too), index.html and refused.html to look at,
and failures.jsonl. A run that was stopped goes on with the same command and ends with the same files; resume=force
goes on with other settings, by which finished subjects are made again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from facerecon.configs.compose import run
from facerecon.run.signals import check_stop, names_kept

SOURCES = {"generator": "n=100", "photos": "dir=portraits", "manifest": "manifest=set/manifest.safetensors"}
"""{source: an example of the key that it needs}"""
PARTS = ("generator", "encoder", "editor", "pose", "template")
PIPELINE = ("truncation", "precision", "device", "face_model", "face_model_path", *PARTS, "size", "editing",
            "multi_view", "blending", "residual", "check", "search", "inversion", "extract", "complete",
            "filters")  # fmt: skip
SEARCH = ("truncation", "precision", "face_model", "generator", "editor", "editing", "search")
HOPELESS = 100  # subjects refused one after another


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.assets.release import require
    from facerecon.dataset import ENGINES, PipelineSettings
    from facerecon.dataset.load import check_inversion, needed_assets
    from facerecon.errors import ConfigError, check_number, nearest_name
    from facerecon.run import RunDirectory, available_cores
    from facerecon.settings import build_settings

    for key, known in (("source", SOURCES), ("engine", ENGINES)):
        if str(config[key]) not in known:
            raise ConfigError(nearest_name(str(config[key]), known, key))
    for key in ("n", "workers", "threads"):
        if config[key] is not None:
            check_number(key, config[key], 1, whole=True)
    check_number("first_seed", config.first_seed, 0, whole=True)
    check_number("seed", config.seed, 0, whole=True)
    values = {key: OmegaConf.to_container(config, resolve=True)[key] for key in PIPELINE}
    settings = build_settings(PipelineSettings, values)  # an error here costs nothing
    if config.source == "photos":
        check_inversion(settings)
    require(needed_assets(settings, config.source == "photos"))
    example = SOURCES[config.source]
    key = example.partition("=")[0]
    if not config[key]:
        raise ConfigError(f"{key}= is not set; for example: source={config.source} {example}")
    job = _Job(config, values, settings, config.workers or available_cores())
    origin, fixed = {"script": "uv_dataset", "source": config.source, "from": str(config[key])}, ("script", "source")
    if config.source == "generator":
        drawn = "balance" if config.balance else config.dark_share
        origin["from"], fixed = [config.first_seed, drawn, config.seed], (*fixed, "from")
    again = {"resume": config.resume or "force", "fixed": fixed}  # resume=false makes all again
    with RunDirectory(config.out, origin | values, **again).alone() as folder:  # photos are known by their content
        job.open(folder)
        with names_kept(lambda: f"{len(job.records.accepted())} map(s) are finished in {folder.path}"):
            return job.run()


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class _Job:
    """One run: which subjects are left, and what came of the others."""

    def __init__(self, c: Any, values: dict[str, Any], settings: Any, workers: int) -> None:
        from facerecon.dataset.subjects import generated_subjects, manifest_subjects, photo_subjects
        from facerecon.types import HEAD_VERSIONS

        self.config, self.values, self.pipeline, self.workers = c, values, settings, workers
        keys = (*SEARCH, "encoder", "inversion", "residual") if c.source == "photos" else SEARCH
        self.searched = "manifest" if c.source == "manifest" else _hash({key: values[key] for key in keys})
        edition = {"head": HEAD_VERSIONS[settings.face_model]} if settings.face_model in HEAD_VERSIONS else {}
        self.settings = _hash({key: value for key, value in values.items() if key != "device"} | edition)
        if c.source == "generator":
            draw = (c.first_seed, c.truncation, c.balance, c.dark_share, c.seed)
            self.items, self.total = generated_subjects(c.generator, *draw)
        elif c.source == "photos":
            self.items, self.total = photo_subjects(c.dir)
        else:
            self.items, self.total = manifest_subjects(c.manifest, c.n)

    def open(self, folder: Any) -> None:
        """The folder of the run, held by this process; sort out what an earlier run left."""
        from facerecon.dataset.subjects import SetRecords

        facts = {"settings": self.settings, "searched": self.searched, "goal": self.config.n or 0}
        self.records = SetRecords(folder, facts, self.config.resume)

    def _pending(self) -> Iterator[Any]:
        """Items that are left, in order, for as long as maps are wanted."""
        records, position = self.records, 0
        while self.total is None or position < self.total:
            if self.config.source == "generator" and self.count >= self.config.n:
                return
            item = self.items(position)
            if item is None:
                self.used_up = True
                return
            position += 1
            self.order.append(item.name)
            records.note_source(item)
            if item.name in records.done:
                self.count += records.done[item.name]["accepted"]
                continue
            saved = records.folder.path / "search" / f"{item.name}.safetensors"
            if item.search is None and item.name in records.searched and saved.is_file():
                item = replace(item, search=saved.read_bytes())
            yield item

    def run(self) -> int:
        """Do what is left; returns the exit status."""
        from tqdm import tqdm

        from facerecon.dataset import make_worker, run_items, write_overview
        from facerecon.dataset.load import describe_parts
        from facerecon.dataset.sampling import FIRST_HELD_OUT
        from facerecon.errors import InputError

        config, folder, started = self.config, self.records.folder, time.perf_counter()
        self.order: list[str] = []
        self.count = refused_in_a_row = made = failed = 0
        self.used_up = False  # no seeds are left
        print(
            f"source {config.source}, {config.size} texels, editing {config.editing}, multi_view {config.multi_view}, "
            f"blending {config.blending}; engine {config.engine}, {self.workers} worker(s) of "
            f"{config.threads} thread(s)"
        )
        for line in describe_parts(self.pipeline):
            print(line)
        goal = config.n if self.total is None else self.total
        before = len(self.records.accepted() if self.total is None else self.records.done)
        unit = "map" if self.total is None else "subject"
        bar = tqdm(total=goal, initial=min(goal, before), unit=unit, disable=None)
        worker = functools.partial(make_worker, self.values)
        outcomes = run_items(self._pending(), worker, config.engine, self.workers, config.threads)
        with bar, contextlib.closing(outcomes):
            for outcome in outcomes:
                check_stop()
                made += 1
                self.records.write(outcome)
                if outcome.error is not None:
                    failed += 1
                    bar.write(f"failed: {outcome.origin}: {outcome.error}")
                refused_in_a_row = 0 if outcome.accepted else refused_in_a_row + 1
                bar.update(1 if self.total is not None else min(int(outcome.accepted), goal - bar.n))
                self.count += outcome.accepted
                bar.set_postfix_str(f"{made} done, {self.count} accepted")
                if refused_in_a_row >= HOPELESS and self.total is None:
                    raise InputError(
                        f"none of the last {HOPELESS} subjects was accepted; the last: {'; '.join(outcome.reasons)}. "
                        "Loosen filters.* or look at refused.html."
                    )
        if self.total is None:
            self.order = self.records.cut(self.order, config.n)
        elif config.source == "photos":  # of photos that are no longer there
            self.records.forget({*folder.completed(), *folder.failures()} - set(self.order))
        folder.tidy(self.order)
        rows = {row["item"]: row for row in folder.metrics.read() if "item" in row}
        rows = [rows[name] for name in self.order if name in rows]
        command = f"python train/uv_dataset.py source={config.source} size={config.size}"
        write_overview(folder.path, rows, folder.failures(), self.values, command)  # manifest, and pages to look at
        seconds = time.perf_counter() - started
        wanted = set(self.order)
        accepted = wanted.intersection(self.records.accepted())
        print(
            f"{len(accepted)} map(s) of {len(wanted)} subject(s) in {folder.path}, {failed} failed; "
            f"{made} subject(s) in {seconds:.1f} s" + (f", {seconds / made:.1f} s each" if made else "")
        )
        if not accepted:
            raise InputError(f"no subject gave a map; see refused.html and failures.jsonl in {folder.path}.")
        if self.used_up and len(accepted) < config.n:
            more = "; balance=false takes more of them" if config.balance else ""
            raise InputError(
                f"seeds from {config.first_seed} on are used up after {len(accepted)} of {config.n} map(s), since "
                f"those from {FIRST_HELD_OUT} on are held out{more}."
            )
        return 1 if failed and self.total is not None else 0


command = functools.partial(run, main, "uv_dataset", __doc__)

if __name__ == "__main__":
    sys.exit(command())
