"""Is a head from three photos of a person nearer to the truth than one from a single photo? Region errors in mm.

    python -m benchmarks.several_photos --n 10 --preset fast --set decoder=linear stage1=landmarks --out several
    python -m benchmarks.several_photos --n 8 --heads ict --set decoder=linear --out several_ict

Truth: random heads, each seen in several photos with expressions, poses, lights and surroundings of their own; blurred,
with noise, JPEG-compressed. ``synthetic``: of the head model that fits them (:mod:`facerecon.synthetic.faces`, with
hair and shoulders), so that the basis can express them exactly. ``ict``: of ICT-FaceKit, with its
own camera for every photo. The fit knows nothing of how they were made.

Compared, by the person's neutral shape (Sec. 4.3, as in REALY): the head model's mean face; each photo fitted alone
(the mean of the errors of the three); the average of those three heads, which needs no joint fit; one fit to all three
(``Fitter.multiview``). A head is kept in ``OUT/heads.jsonl`` when it is done, and the same command goes on from there.
Differences are paired by head, with bootstrap intervals of 95 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import ICT_FILE
from facerecon.errors import InputError
from facerecon.evaluation import bootstrap_interval, head_regions, region_errors
from facerecon.export.views import head_views
from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.run import MetricsWriter
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
from facerecon.synthetic.ict_heads import SKINS, degrade, make_head, sample_textures
from facerecon.types import Observation

METHODS = ("mean face", "one photo", "three fits, averaged", "three together")
PICTURE = 448
VARIED = replace(WITHIN_MODEL, yaw=20, wide=0.0, yaw_limit=40, glasses=0.0, occluded=0.0)


class Heads:
    """True heads, "synthetic" (of ``model``) or "ict", with so many photos of each."""

    def __init__(self, kind: str, model: MorphableModel, count: int, photos: int, seed: int, ict: Path) -> None:
        self.kind, self.seed, self.photos, self.count = kind, seed, photos, count
        self.model = model if kind == "synthetic" else load_face_model("ict", num_identity=None, path=ict)
        self.regions = head_regions(self.model)

    def __iter__(self) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """(number, neutral vertices (V, 3), photos (3, H, W)) of each head."""
        yield from (self._synthetic() if self.kind == "synthetic" else self._of_ict())

    def _synthetic(self) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        faces = SyntheticFaces(self.model, load_decoder("linear"), VARIED, seed=self.seed, size=PICTURE)
        for head in range(self.count):
            numbers = range(head * self.photos, (head + 1) * self.photos)
            made = faces(list(numbers), persons=[numbers[0]] * self.photos)
            rng = np.random.default_rng([self.seed, head])
            yield head, self.model.neutral_shape(made.params)[0], [degrade(image[None], rng) for image in made.image]

    def _of_ict(self) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        order = np.random.default_rng(self.seed).permutation(SKINS)[np.arange(self.count) % len(SKINS)]
        for head, (texture, picture) in enumerate(sample_textures(self.model, order)):
            rng = np.random.default_rng([self.seed, head])
            identity = torch.from_numpy(rng.normal(size=(1, self.model.num_identity)).astype(np.float32))
            taken = [
                make_head(self.model, texture, picture.flip(-1), rng, identity=identity) for _ in range(self.photos)
            ]
            neutral = self.model.neutral(1).replace(identity=identity)
            yield head, self.model.shape(neutral)[0], [subject.photo for subject in taken]

    def errors(self, true: Tensor, found: Tensor, model: MorphableModel) -> dict[str, float]:
        """{region: mm} of a neutral head (V, 3) of a model."""
        return region_errors(
            found, model.topology.faces, model.landmarks3d(found[None])[0],
            true, self.model.topology.faces, self.model.landmarks3d(true[None])[0], self.regions,
        )  # fmt: skip


def measure(fitter: Any, heads: Heads, true: Tensor, photo: Observation) -> tuple[dict[str, Any], list[Tensor]]:
    """Errors of every method on one head; and the neutral vertices of photo 0 alone and of the joint fit."""
    model, row = fitter.model, {}
    clock = time.process_time()
    alone = fitter(photo).face
    row["cpu_alone"] = time.process_time() - clock
    clock = time.process_time()
    together = fitter.multiview(photo).face
    row["cpu_together"] = time.process_time() - clock
    mean = model.shape(model.neutral(1))[0]
    each = [heads.errors(true, shape, model) for shape in alone.neutral_vertices]
    row["one photo, each"] = each
    row["errors"] = {
        "mean face": heads.errors(true, mean, model),
        "one photo": {region: float(np.mean([of[region] for of in each])) for region in each[0]},
        "three fits, averaged": heads.errors(true, alone.neutral_vertices.mean(0), model),
        "three together": heads.errors(true, together.neutral_vertices[0], model),
    }
    return row, [alone.neutral_vertices[0], together.neutral_vertices[0]]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over heads by region, and what the joint fit gains, with its interval."""
    regions = list(rows[0]["errors"]["one photo"])

    def column(method: str, region: str | None) -> Tensor:
        of = [row["errors"][method] for row in rows]
        return torch.tensor([np.mean(list(e.values())) if region is None else e[region] for e in of])

    lines = ["| mm | " + " | ".join([*regions, "mean"]) + " |", "|---|" + "---|" * (len(regions) + 1)]
    for method in METHODS:
        lines.append(f"| {method} | " + " | ".join(f"{column(method, r).mean():.2f}" for r in (*regions, None)) + " |")
    for other in METHODS[1:3]:
        cells = []
        for region in (*regions, None):
            gain = column("three together", region) - column(other, region)
            mean, low, high = bootstrap_interval(gain)
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], better on {int((gain < 0).sum())} of {len(gain)}")
        lines.append(f"| together against {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="heads")
    parser.add_argument("--photos", type=int, default=3, help="of each head")
    parser.add_argument("--heads", choices=("synthetic", "ict"), default="synthetic")
    parser.add_argument("--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--out", type=Path, required=True, help="folder: heads.jsonl, table.md, heads.jpg")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    from facerecon.configs.compose import compose
    from facerecon.fit.models import build_fitter, prepare

    overrides = [f"fitting={options.preset}", "img=none", "fitting.detail.enabled=false"]
    config = compose("reconstruct", [*overrides, *options.set])
    fitter = build_fitter(config, prepare(config))
    heads = Heads(options.heads, fitter.model, options.n, options.photos, options.seed, options.ict)
    journal = MetricsWriter(options.out / "heads.jsonl")
    settings = {"preset": options.preset, "set": options.set, "seed": options.seed, "photos": options.photos}
    settings["heads"] = options.heads
    done = {row["head"]: row for row in journal.read() if row["settings"] == settings}
    rows, tiles, labels = [], [], []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for head, true, pictures in heads:
            if head not in done:
                try:
                    photo = Observation.cat([observe(picture) for picture in pictures])
                except InputError as error:
                    print(f"note: head {head} is left out: {error}")
                    continue
                with torch.enable_grad():
                    row, shapes = measure(fitter, heads, true, photo)
                row = {"head": head, "settings": settings, **row}
                journal.write(row)
                done[head] = row
                shown = [(true, heads.model), *((shape, fitter.model) for shape in shapes)]
                tiles += pictures
                tiles += [head_views(one[None], None, of.topology, (20,), 224)[0] for one, of in shown]
                errors = [np.mean(list(of.values())) for of in (row["one photo, each"][0], row["errors"][METHODS[-1]])]
                labels += [f"photo {i}" for i in range(len(pictures))]
                labels += ["truth", f"photo 0 alone, {errors[0]:.2f} mm", f"together, {errors[1]:.2f} mm"]
            rows.append(done[head])
            means = {m: np.mean(list(done[head]["errors"][m].values())) for m in METHODS}
            print(f"head {head}: " + ", ".join(f"{m} {value:.2f}" for m, value in means.items()), flush=True)
    if not rows:
        raise InputError("no head could be observed; change --seed.")
    text = table(rows)
    note = (
        f"{len(rows)} heads ({options.heads}) with {options.photos} photos each, seed {options.seed}, preset "
        f"{options.preset} {' '.join(options.set)}; CPU seconds of the separate fits and of the joint one: "
        f"{np.mean([row['cpu_alone'] for row in rows]):.0f} and {np.mean([row['cpu_together'] for row in rows]):.0f}."
    )
    print(f"\n{note}\n\n{text}")
    write_whole(options.out / "table.md", f"{note}\n\n{text}\n".encode())
    if tiles:
        sheet = contact_sheet(tiles, columns=options.photos + 3, labels=labels, size=224)
        write_jpg(options.out / "heads.jpg", sheet)


if __name__ == "__main__":
    sys.exit(exit_status(main))
