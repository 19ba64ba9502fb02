"""What does a change of a fit's settings gain or cost? Paired, on generated faces that nothing was trained on.

    python -m benchmarks.fit_settings --variant shorter fitting.stages.joint.steps=120 --faces 20
    python -m benchmarks.fit_settings --variant paper fitting=paper --variant fast fitting=fast --faces 6

Each face is fitted with the configuration as it is ("now"), and with that of every variant: its name, and keys of
fit/reconstruct.py. Of the decoder's texture after stage 3 and of the final one: LPIPS (VGG) and CSIM by the eval
identity, which no fit optimizes, and the photometric error; and the CPU seconds of the fit. A variant's differences to
"now" are in percent of its mean, with intervals of 95 % by the bootstrap over faces, and on how many it is better.

On a CPU each thread fits a face of its own. A fit is kept in OUT/rows.jsonl when it is done; the same command goes on
from there, and fits of other keys are made anew. The tables are printed and written to OUT/tables.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tqdm import tqdm

from facerecon.configs.compose import compose
from facerecon.dataset.sampling import FIRST_HELD_OUT
from facerecon.evaluation import Metric, Row, Table, bootstrap_summary, lpips_metrics, reconstruction_metrics
from facerecon.evaluation.tables import Summary
from facerecon.fit.models import build_fitter, prepare
from facerecon.fitting import Fitter
from facerecon.losses import load_perceptual
from facerecon.perception import load_eval_identity, observe
from facerecon.run import MetricsWriter, read_metrics
from facerecon.run.signals import check_stop, exit_status
from facerecon.run.thread_pool import beside_each_other
from facerecon.storage import write_whole
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import Observation

TEXTURES = {"joint": "decoder's texture", "detail": "final texture"}
FIGURES = {
    "lpips_vgg": ("LPIPS (VGG)", 1, 4),
    "identity": ("CSIM", 1, 3),
    "photometric": ("photometric x 1000", 1000, 1),
}
METRICS = [
    Metric(f"{texture}.{key}", f"{title}, {where}", scale, digits)
    for texture, where in TEXTURES.items()
    for key, (title, scale, digits) in FIGURES.items()
]


def faces(count: int) -> list[Observation]:
    """Held-out faces, as observed."""
    generator = load_generator()
    found = []
    for i in tqdm(range(count), desc="faces", disable=None):
        check_stop()
        with torch.no_grad():
            found.append(observe(generator(generator.sample(FIRST_HELD_OUT + 3 * i, 0.8))[0]))
    return found


def measured(photo: Observation, fitter: Fitter, identity: torch.nn.Module, lpips: torch.nn.Module) -> dict[str, float]:
    """The figures of one fit."""
    check_stop()
    began = time.thread_time()
    result = fitter(photo)
    row, images = {"seconds": time.thread_time() - began}, {}
    for texture, head in result.heads(fitter.decoder, [0]).items():
        if texture in TEXTURES:
            values, images[texture] = reconstruction_metrics(
                result.observed, *head, fitter.model, fitter.renderer, identity
            )
            row |= {f"{texture}.{key}": value.item() for key, value in values.items()}
    for texture, values in lpips_metrics(images, result.observed.image, [lpips]).items():
        row |= {f"{texture}.{key}": value[0] for key, value in values.items()}
    return row


def tables(found: dict[str, dict[int, dict[str, float]]]) -> list[Table]:
    """The figures of each set of keys, and the differences to the first one on the faces that both have."""
    seconds = Metric("seconds", "CPU s a fit", 1, 1, interval=False)
    means = Table("means", "Means", [*METRICS, seconds], first="keys")
    apart = [Metric(m.key, f"{m.title}, %", 100, 1, signed=True) for m in METRICS]
    differences = Table("differences", "Differences to now, on the same faces", apart, first="keys")
    reference = next(iter(found.values()))
    for name, rows in found.items():
        columns = {m.key: [row[m.key] for row in rows.values()] for m in means.metrics}
        means.rows.append(Row(name, {key: bootstrap_summary(column) for key, column in columns.items()}))
        both = [i for i in rows if i in reference]
        if rows is reference or not both:
            continue
        cells: dict[str, Summary] = {}
        better = []
        for m in METRICS:
            old, new = (torch.tensor([of[i][m.key] for i in both], dtype=torch.float64) for of in (reference, rows))
            cells[m.key] = bootstrap_summary((new - old) / old.mean())
            better.append(int(((new > old) if m.key.endswith("identity") else (new < old)).sum()))
        differences.rows.append(Row(f"{name} (better on {', '.join(map(str, better))} of {len(both)})", cells))
    return [means, differences] if differences.rows else [means]


def run(arguments: argparse.Namespace) -> None:
    variants = {"now": [], **{name: keys for name, *keys in arguments.variant}}
    configs = {name: compose("reconstruct", ["img=none", *keys]) for name, keys in variants.items()}
    device = prepare(configs["now"])
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    kept = {(tuple(row["keys"]), row["face"]): row for row in (read_metrics(path) if path.exists() else [])}
    photos = faces(arguments.faces)
    identity, lpips = load_eval_identity().to(device), load_perceptual("lpips_vgg").to(device)
    size = torch.get_num_threads() if device.type == "cpu" else 1
    writer, found = MetricsWriter(path), {}
    for name, keys in variants.items():
        fitter = build_fitter(configs[name], device)
        missing = [i for i in range(arguments.faces) if (tuple(keys), i) not in kept]

        def fit(face: int, keys: list[str] = keys, fitter: Fitter = fitter) -> None:
            row = {"keys": keys, "face": face, **measured(photos[face].to(device), fitter, identity, lpips)}
            writer.write(row)  # here, so that an error of the fit beside it does not lose this one
            kept[tuple(keys), face] = row

        for start in tqdm(range(0, len(missing), size), desc=name, disable=None):
            beside_each_other([partial(fit, face) for face in missing[start : start + size]])
        found[name] = {i: kept[tuple(keys), i] for i in range(arguments.faces)}
    text = "\n".join(table.to_markdown() for table in tables(found))
    write_whole(out / "tables.md", text.encode())
    print(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"), help="may be repeated"
    )
    parser.add_argument("--faces", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/fit_settings"), help="folder of the rows and tables")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(exit_status(main))
