"""How much of unseen maps can a texture decoder express? Table 6's experiment.

    python benchmarks/expressiveness.py SET --decoders all=a/decoder.safetensors third=b/decoder.safetensors

Each method is inverted onto the same held-out maps of a set (every tenth), with the same objective, steps and
optimizer: decoders in W (also in a few directions of it) and in W+, and linear bases learnt from the
same training maps as the decoder that they stand beside. Spaces are nested, and each starts where the smaller one
ended; a linear basis starts at its least squares. Figures, smaller is better but for the judge's:

* L1: mean absolute difference of the whole map, and of the texels of the face;
* face features: the open pack's stand-in for LPIPS, of the map on the mean head (not LPIPS; the objective has it);
* judge: cosine of the 1024-d network's embeddings of those renders, which nothing optimizes;
* LPIPS of the map, where its backbone can be had.

Writes expressiveness.md, expressiveness.json and panels.jpg (target beside each method). A method that is in the JSON
with the same settings is not run again. Means are over maps, with bootstrap intervals of 95 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import Renderer, load_face_model, losses
from facerecon.dataset import UVMaps, face_layout
from facerecon.dataset.memory import held_out, share_of
from facerecon.errors import AssetError, FaceReconError
from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.perception import load_identity, load_judge
from facerecon.run import set_threads
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.linear_basis import principal_components
from facerecon.stylegan.texture import StyleGANDecoder, read_decoder
from facerecon.types import Camera, SHLight

FEATURES = 0.05
"""Weight of the face features beside L1, in the objective."""

RATE, RAMPDOWN = 0.05, 0.4
"""Of Adam on coordinates in standard deviations, and the share of the steps in which the rate falls as a cosine."""

BOOTSTRAP = 2000


@dataclass
class Method:
    """A way to express maps by numbers.

    Args:
        name: of its row. family: rows of one family start from one another. parameters: how many numbers.
        decode: coordinates (B, parameters) in standard deviations, size (or None) -> (B, 3, S, S).
        start: (targets, what the family's last row kept, or None) -> coordinates (B, parameters).
        keep: coordinates -> what the family's next row starts from.
        sizes: coarser sizes at which it can be decoded for less. settings: what a result depends on.
    """

    name: str
    family: str
    parameters: int
    decode: Callable[[Tensor, int | None], Tensor]
    start: Callable[[Tensor, Tensor | None], Tensor]
    keep: Callable[[Tensor], Tensor]
    sizes: Sequence[int] = ()
    settings: dict[str, Any] = field(default_factory=dict)


# -- what is measured ------------------------------------------------------------------------------------------


class Look:
    """Maps on the mean head, from the front under even light, and the figures of a pair of maps."""

    def __init__(self, size: int) -> None:
        model = load_face_model("makehuman")
        params = model.neutral()
        camera, light = Camera.deep3d(), SHLight.ambient()
        with torch.no_grad():
            view = Renderer(224).prepare(model(params), model.topology, camera, light, face_region="face").detach()
            self.gain = 0.9 / float(view.shade(torch.ones(1, 3, 8, 8)).image.amax())
        self.view, self.landmarks = view, view.rendering.landmarks
        self.face = F.interpolate(face_layout(model, 512).face, (size, size), mode="area")
        self.features = losses.load_perceptual("face_features", load_identity().features)
        self.judge = load_judge()
        self.lpips = None
        try:
            self.lpips = losses.load_perceptual("lpips_vgg")
        except (AssetError, ImportError) as error:
            print(f"note: no LPIPS, {error}")

    def render(self, maps: Tensor) -> Tensor:
        """(B, 3, 224, 224), before grey."""
        drawn = [self.view.shade(texture[None]) for texture in maps]  # one view serves them all
        mask = self.view.rendering.mask
        return torch.cat([picture.image * self.gain * mask + 0.5 * (1 - mask) for picture in drawn])

    def points(self, count: int) -> Tensor:
        return self.landmarks.expand(count, -1, -1)

    @torch.no_grad()
    def figures(self, maps: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """{figure: (B,)} of fitted maps and their targets, (B, 3, S, S) in [0, 1]."""
        points = self.points(len(maps))
        drawn, truth = self.render(maps), self.render(targets)
        found = {
            "l1": (maps - targets).abs().mean((1, 2, 3)),
            "l1_face": losses.masked_mean_error(maps, targets, self.face.expand(len(maps), -1, -1, -1)),
            "features": self.features(drawn, self.features.prepare(truth, points)),
            "judge": losses.identity_similarity(self.judge(drawn, points), self.judge(truth, points)),
        }
        if self.lpips is not None:
            found["lpips"] = self.lpips(maps, targets)
        return found


def invert(method: Method, targets: Tensor, start: Tensor, look: Look, steps: int) -> Tensor:
    """Coordinates (B, P) that minimize ``L1 + FEATURES * face features``; the first half of the steps is coarser."""
    coordinates = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([coordinates], betas=(0.9, 0.99))
    points = look.points(len(targets))
    prepared = look.features.prepare(look.render(targets), points)
    for step in range(steps):
        fall = min(1.0, (1 - step / steps) / RAMPDOWN)
        rise = min(1.0, 10 * (step + 1) / steps)
        optimizer.param_groups[0]["lr"] = RATE * rise * (0.5 - 0.5 * math.cos(fall * math.pi))
        coarse = [s for s in method.sizes if s <= 64]
        size = coarse[-1] if coarse and step < steps // 2 else None
        maps = method.decode(coordinates, size)
        goal = targets if size is None else F.interpolate(targets, (size, size), mode="area")
        loss = (maps - goal).abs().mean((1, 2, 3))
        if size is None:
            loss = loss + FEATURES * look.features(look.render(maps.clamp(0, 1)), prepared)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
    return coordinates.detach()


# -- methods ---------------------------------------------------------------------------------------------------


def linear_methods(textures: Tensor, counts: Sequence[int], label: str) -> list[Method]:
    """Principal components of training maps; K of them at most one less than there are maps."""
    counts = sorted({min(k, len(textures) - 1) for k in counts})
    mean, basis, _ = principal_components(textures, counts[-1])
    flat = basis.flatten(1)
    found = []
    for k in counts:
        rows = flat[:k]
        normal = torch.linalg.inv((rows @ rows.T).double() + 1e-9 * torch.eye(k)).float()

        def decode(codes: Tensor, size: int | None, rows: Tensor = rows) -> Tensor:
            return (mean.flatten() + codes @ rows).view(-1, *mean.shape)

        def start(targets: Tensor, _: Tensor | None, rows: Tensor = rows, normal: Tensor = normal) -> Tensor:
            return ((targets - mean).flatten(1) @ rows.T) @ normal

        settings = {"kind": "linear", "maps": len(textures), "components": k}
        found.append(Method(f"linear {k}, {label}", f"linear {label}", k, decode, start, torch.clone, (), settings))
    return found


def decoder_methods(path: Path, counts: Sequence[int], label: str, precision: str, plus: bool) -> list[Method]:
    """Directions of W that change the texture most, W, and W+; the first starts at a regression of small textures."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    found = []
    for space in [*[f"w/{k}" for k in sorted(counts)], "w", *(["w+"] if plus else [])]:
        decoder = read_decoder(path, space, precision)

        def decode(codes: Tensor, size: int | None, decoder: StyleGANDecoder = decoder) -> Tensor:
            return decoder.synthesis(codes.view(len(codes), decoder.rows, decoder.dim), size)

        def start(targets: Tensor, before: Tensor | None, decoder: StyleGANDecoder = decoder) -> Tensor:
            if before is None:
                mean, effect = decoder.start_basis()
                small = F.interpolate(targets, mean.shape[-2:], mode="area") - mean
                rows = effect.flatten(1)
                normal = rows @ rows.T + 1e-3 * (rows @ rows.T).diagonal().mean() * torch.eye(len(rows))
                return decoder.from_start(torch.linalg.solve(normal, rows @ small.flatten(1).T).T).flatten(1)
            w = before.view(len(before), -1, decoder.w_mean.shape[0])
            return decoder.from_w(w).expand(-1, decoder.rows, -1).flatten(1)

        def keep(codes: Tensor, decoder: StyleGANDecoder = decoder) -> Tensor:
            return decoder.to_w(codes.view(len(codes), decoder.rows, decoder.dim)).flatten(1)

        name = {"w": "W", "w+": "W+"}.get(space, f"W, {space[2:]} directions")
        settings = {"kind": "decoder", "file": digest, "space": space}
        sizes = [4 * 2**i for i in range(1, 9) if 4 * 2**i < decoder.size]
        numbers = decoder.rows * decoder.dim
        found.append(Method(f"{name}, {label}", label, numbers, decode, start, keep, sizes, settings))
    return found


# -- running ---------------------------------------------------------------------------------------------------


def read_maps(maps: UVMaps, indices: Sequence[int]) -> Tensor:
    return torch.stack([maps[i]["texture"] for i in indices])


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean, and the bootstrap's interval of 95 %."""
    draws = torch.randint(len(values), (BOOTSTRAP, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[draws].mean(1).sort().values
    return values.mean().item(), means[int(0.025 * BOOTSTRAP)].item(), means[int(0.975 * BOOTSTRAP)].item()


def run(options: argparse.Namespace) -> None:
    set_threads(options.threads)
    maps = UVMaps(options.folder, size=options.size)
    unseen = held_out(len(maps))
    if options.maps and options.maps < len(unseen):  # spread over the set
        unseen = [unseen[i * len(unseen) // options.maps] for i in range(options.maps)]
    targets = read_maps(maps, unseen)
    look = Look(options.size)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "expressiveness.json"
    done = json.loads(journal.read_text())["methods"] if journal.is_file() else {}
    numbers = [maps.paths[i].stem for i in unseen]
    common = {
        "numbers": numbers, "size": options.size, "steps": options.steps, "features": FEATURES, "rate": RATE,
        "precision": options.precision,
    }  # fmt: skip

    methods: list[Method] = []
    for share in options.shares:
        chosen = share_of(len(maps), share)
        label = f"{len(chosen)} maps"
        methods += linear_methods(read_maps(maps, chosen), options.linear, label)
    for text in options.decoders:
        label, _, path = text.rpartition("=")
        methods += decoder_methods(
            Path(path), options.components, label or Path(path).stem, options.precision, options.plus
        )

    results: dict[str, dict[str, Any]] = {}
    before: dict[str, Tensor] = {}
    for method in methods:
        settings = method.settings | common
        file = out / "fits" / f"{method.name.replace(' ', '_').replace(',', '')}.safetensors"
        if method.name in done and done[method.name]["settings"] == settings and file.is_file():
            stored, _ = read_safetensors(file, "fitted maps", "remove the folder")
            results[method.name] = done[method.name]
            before[method.family] = method.keep(stored["codes"])
            continue
        clock, parts = time.process_time(), []
        start = method.start(targets, before.get(method.family))
        for some, codes in zip(targets.split(options.batch), start.split(options.batch)):
            parts.append(invert(method, some, codes, look, options.steps))
        codes = torch.cat(parts)
        with torch.no_grad():
            fitted = torch.cat([method.decode(part, None).clamp(0, 1) for part in codes.split(options.batch)])
        figures = look.figures(fitted, targets)
        seconds = (time.process_time() - clock) / len(targets)
        write_whole(file, safetensors_bytes({"codes": codes, "maps": fitted.half()}))
        before[method.family] = method.keep(codes)
        results[method.name] = {
            "parameters": method.parameters, "family": method.family, "settings": settings,
            "figures": {key: value.tolist() for key, value in figures.items()}, "seconds": seconds,
        }  # fmt: skip
        text = ", ".join(f"{key} {value.mean():.4f}" for key, value in figures.items())
        print(f"{method.name}: {text}, {seconds:.1f} s of CPU a map", flush=True)
        report = {"set": str(options.folder), "methods": done | results}
        write_whole(journal, (json.dumps(report, indent=1) + "\n").encode())
    table = to_table(results)
    write_whole(out / "expressiveness.md", table.encode())
    print("\n" + table)
    panels(out, targets[: options.panels], list(results), look)


def to_table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, by number of free parameters."""
    heads = {
        "l1": "L1 x 1000", "l1_face": "L1 of the face x 1000", "features": "face features x 1000",
        "judge": "judge's cosine", "lpips": "LPIPS",
    }  # fmt: skip
    first = next(iter(results.values()))["figures"]
    shown = {key: text for key, text in heads.items() if key in first}
    lines = ["| method | numbers | " + " | ".join(shown.values()) + " |", "|---|---|" + "---|" * len(shown)]
    for name, row in sorted(results.items(), key=lambda item: item[1]["parameters"]):
        cells = []
        for key in shown:
            scale, digits = (1, 3) if key in ("judge", "lpips") else (1000, 2)
            mean, low, high = (scale * v for v in interval(torch.tensor(row["figures"][key])))
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {name} | {row['parameters']} | " + " | ".join(cells) + " |")
    count = len(next(iter(first.values())))
    return "\n".join([*lines, "", f"Means of {count} held-out maps, with bootstrap intervals of 95 %.", ""])


def panels(out: Path, targets: Tensor, names: list[str], look: Look) -> None:
    """One row a map: the target, then every method; below it the same on the mean head."""
    pictures, labels = [], []
    fits = []
    for name in names:
        file = out / "fits" / f"{name.replace(' ', '_').replace(',', '')}.safetensors"
        fits.append(read_safetensors(file, "fitted maps", "remove the folder")[0]["maps"].float())
    for k, target in enumerate(targets):
        row = torch.stack([target, *[maps[k] for maps in fits]])
        with torch.no_grad():
            drawn = look.render(row)
        pictures += [*row, *drawn]
        labels += ["target", *names] + [""] * (1 + len(names))
    write_jpg(out / "panels.jpg", contact_sheet(pictures, 1 + len(names), labels, size=256))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set of UV maps")
    parser.add_argument("--decoders", nargs="*", default=[], metavar="[NAME=]FILE", help="decoder.safetensors files")
    parser.add_argument("--components", type=int, nargs="*", default=[32, 64], help="directions of W")
    parser.add_argument("--linear", type=int, nargs="*", default=[32, 64, 512], help="components of linear bases")
    parser.add_argument("--shares", type=float, nargs="*", default=[1.0, 0.3], help="of the maps, for linear bases")
    parser.add_argument("--no-plus", dest="plus", action="store_false", help="leave W+ out")
    parser.add_argument("--maps", type=int, default=20, help="held-out maps; 0: all")
    parser.add_argument("--size", type=int, default=256, help="texels a side; that of the decoders")
    parser.add_argument("--steps", type=int, default=100, help="for each space")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", default="auto", help="of decoders: auto, bfloat16, float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--panels", type=int, default=4, help="maps on the picture")
    parser.add_argument("--out", type=Path, default=Path("outputs/expressiveness"))
    options = parser.parse_args()
    try:
        run(options)
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
