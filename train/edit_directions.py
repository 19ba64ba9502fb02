"""Planes in W for editing, and the classifier of accessories: sample, measure, fit, validate (Sec. 3.1.1).

    python train/edit_directions.py                               files like the shipped ones, half an hour on a core
    python train/edit_directions.py n=10000 labels=mine.csv out=directions

The shipped files were fitted on the same 4800 faces, whose light and colors were read off 256 px thumbnails.

Writes samples/ (what each face shows; a run that was stopped goes on with them), latent_directions.safetensors and
worn.safetensors (copy both to facerecon/data and run `python -m facerecon.assets seal` to ship them), report.json and
report.md with figures out of fold, and mistakes_CLASS.jpg, the faces that W or image got wrong, to look at.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import run
from facerecon.run.signals import check_stop, names_kept

PRECISIONS = ("bfloat16", "float32")
WHOLE = ("n", "folds", "block", "batch", "mistakes")


def main(config: Any) -> int:
    from facerecon.assets import shipped, status
    from facerecon.assets.release import require
    from facerecon.editing.directions import read_labels
    from facerecon.errors import ConfigError, check_number, nearest_name
    from facerecon.run import RunDirectory

    for key in WHOLE:
        check_number(key, config[key], 2 if key == "folds" else 1, whole=True)
    check_number("first_seed", config.first_seed, 0, 2**63 - 1, whole=True)
    check_number("truncation", config.truncation, 0, 1.5)
    if config.precision not in PRECISIONS:
        raise ConfigError(nearest_name(str(config.precision), PRECISIONS, "precision"))
    labels = read_labels(config.labels or shipped("attribute_labels.csv"))
    keys = ("first_seed", "truncation", "block", "precision")  # what the measured files depend on
    settings = {"script": "edit_directions"} | {key: config[key] for key in keys}
    if config.generator != "mobile_stylegan":
        settings["generator"] = config.generator
        if config.generator == "stylegan2_ffhq" and status("e4e_generator").state != "ready":
            require({"stylegan2_ffhq": "generator=mobile_stylegan"})
    config_there = (Path(config.out) / "config.json").exists()
    again = {"resume": True} if config.resume and config_there else {"overwrite": config_there}
    with RunDirectory(config.out, settings, **again).alone() as folder:
        samples = folder.path / "samples"
        with names_kept(lambda: f"{len(list(samples.glob('*.safetensors')))} block(s) are measured in {folder.path}"):
            return build(config, folder.path, labels)


def build(config: Any, out: Path, labels: dict[str, dict[int, int]]) -> int:
    """Measure what is not measured, fit, write."""
    import torch

    from facerecon.editing.accessories import ACCESSORIES, fit_accessories
    from facerecon.editing.directions import fit_directions
    from facerecon.errors import InputError, nearest_name
    from facerecon.run import choose_device, set_threads
    from facerecon.storage import write_whole
    from facerecon.stylegan.load import load_face_generator

    for name in labels:
        if name not in ACCESSORIES:
            raise InputError(nearest_name(name, ACCESSORIES, "class of the labels"))
    set_threads(config.threads)
    generator = load_face_generator(config.generator, choose_device(config.device), getattr(torch, config.precision))
    started = time.perf_counter()
    samples, features = measure(config, out, generator)
    seeds = torch.arange(config.first_seed, config.first_seed + config.n)
    print(f"{config.n} faces measured, {time.perf_counter() - started:.0f} s")

    codes = torch.cat([generator.sample(part.tolist(), config.truncation).cpu() for part in seeds.split(500)])
    known = {}
    for name in ACCESSORIES:
        rows = {s - config.first_seed: there for s, there in labels.get(name, {}).items()}
        rows = {row: there for row, there in rows.items() if 0 <= row < config.n}
        known[name] = torch.tensor(list(rows), dtype=torch.long), torch.tensor(list(rows.values()), dtype=torch.long)
    classifier, seen = fit_accessories(features, known, config.folds)
    check_stop()
    samples = samples.replace(accessories=features @ classifier.weight.T + classifier.bias)
    directions, read = fit_directions(codes, samples, known, config.folds)
    directions.save(out / "latent_directions.safetensors")
    classifier.save(out / "worn.safetensors")

    report = {"faces": config.n, "truncation": config.truncation, "directions": directions.metrics}
    report |= {"image": classifier.metrics}
    write_whole(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_whole(out / "report.md", describe(report).encode())
    for name in ACCESSORIES:
        index, there = known[name]
        wrong = [
            (int(seeds[index[i]]), int(there[i]), float(read[name][i]), float(seen[name][i]))
            for i in range(len(index))
            if (read[name][i] > 0) != (there[i] > 0) or (seen[name][i] > 0) != (there[i] > 0)
        ]
        wrong.sort(key=lambda row: min(row[2:]) if row[1] else -max(row[2:]))  # the surest errors first
        show_mistakes(config, out / f"mistakes_{name}.jpg", generator, wrong[: config.mistakes])
    print((out / "report.md").read_text(encoding="utf-8"))
    print(f"written to {out}; {time.perf_counter() - started:.0f} s in all")
    return 0


def measure(config: Any, out: Path, generator: Any) -> tuple[Any, Any]:
    """Attributes and upper-face features (n, 1584) of all faces; blocks that are on the disk are read."""
    import torch
    from tqdm import tqdm

    from facerecon.editing.accessories import upper_face, upper_face_features
    from facerecon.editing.attributes import AttributeMeter, Attributes
    from facerecon.errors import AssetError, InputError
    from facerecon.perception.facemesh import aligned_look
    from facerecon.storage import read_safetensors, safetensors_bytes, write_whole

    meter = AttributeMeter()
    kept, crops = [], []
    starts = range(config.first_seed, config.first_seed + config.n, config.block)
    for start in tqdm(starts, unit="block", disable=None):
        check_stop()
        path = out / "samples" / f"{start:07d}.safetensors"
        extra = path.with_name(f"{start:07d}_features.safetensors")
        try:
            found = Attributes.load(path) if path.exists() and extra.exists() else None
            if found is not None:
                tensors, _ = read_safetensors(extra, "features of faces", "remove it and start again", ("features",))
        except (InputError, AssetError):  # of another version, or damaged: measured again
            found = None
        if found is None:
            images, codes = [], generator.sample(range(start, start + config.block), config.truncation)
            with torch.no_grad():
                for part in codes.split(config.batch):
                    image = generator(part).cpu()
                    images.append(aligned_look(image)[0])
            image = torch.cat(images)
            found = meter(image)
            crop = upper_face(image, found.mesh468)
            both = 0.5 * (upper_face_features(crop) + upper_face_features(crop.flip(3)))
            tensors = {"features": both.half()}
            write_whole(extra, safetensors_bytes(tensors))
            found.save(path)
        kept.append(found)
        crops.append(tensors["features"].float())
    return Attributes.cat(kept)[: config.n], torch.cat(crops)[: config.n]


def describe(report: dict[str, Any]) -> str:
    """The figures as two tables."""
    lines = [f"{report['faces']} faces at truncation {report['truncation']}; all figures out of fold.", ""]
    lines += ["| read off W | R2 | error | std |", "|---|---|---|---|"]
    for name, row in report["directions"].items():
        if "r2" in row:
            lines.append(f"| {name} | {row['r2']:.3f} | {row['error']:.3g} | {row['std']:.3g} |")
    lines += [
        "",
        "| class | read off | accuracy | AUC | found | false alarms | there / labeled |",
        "|---|" + "---|" * 6,
    ]
    for where, rows in (("W", report["directions"]), ("image", report["image"])):
        for name, row in rows.items():
            if "accuracy" in row:
                shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("accuracy", "auc", "found", "false"))
                lines.append(f"| {name} | {where} | {shares} | {row['positive']} / {row['samples']} |")
    return "\n".join(lines) + "\n"


def show_mistakes(config: Any, path: Path, generator: Any, wrong: list[tuple[int, int, float, float]]) -> None:
    """A contact sheet: seed, label, log odds by W and by the image."""
    import torch

    from facerecon.imaging.files import contact_sheet, write_jpg

    if not wrong:
        path.unlink(missing_ok=True)
        return
    pictures = []
    for seed, *_ in wrong:
        check_stop()
        with torch.no_grad():
            image = generator(generator.sample(seed, config.truncation)).cpu()
        pictures.append(torch.nn.functional.interpolate(image, (192, 192), mode="area")[0])
    captions = [f"{seed}: {'yes' if there else 'no'}; W {w:+.1f}, image {i:+.1f}" for seed, there, w, i in wrong]
    write_jpg(path, contact_sheet(pictures, labels=captions, size=192))


command = partial(run, main, "edit_directions", __doc__)

if __name__ == "__main__":
    sys.exit(command())
