"""How much of unseen maps can a texture decoder express? Table 6's experiment.

    python benchmarks/expressiveness.py SET --decoders all=a/decoder.safetensors third=b/decoder.safetensors

Each method is inverted (:func:`facerecon.fitting.invert_texture`) onto the same held-out maps of a set (every tenth),
with the same objective, steps and optimizer: decoders in W (also in a few directions of it) and in W+, and linear bases
learnt from the same training maps. Spaces are nested, and each starts where the smaller one ended; a linear basis
starts at its least squares. Figures, smaller is better but for the judge's:

* L1: mean absolute difference of the whole map, and of the texels of the face;
* face features: the open pack's stand-in for LPIPS, of the map on the mean head (not LPIPS; the objective has it);
* judge: cosine of the 1024-d network's embeddings of those renders, which nothing optimizes;
* LPIPS of the map, where its backbone can be had.

Writes expressiveness.md, expressiveness.json and panels.jpg (target beside each method). A method that is in the JSON
with the same settings is not run again. Means are over maps, with bootstrap intervals of 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
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
from torch import Tensor

from facerecon import load_face_model
from facerecon.dataset import UVMaps, face_layout
from facerecon.errors import FaceReconError
from facerecon.evaluation import MapMetrics, bootstrap_interval
from facerecon.fitting import MapFeatures, TextureInversionSettings, invert_texture
from facerecon.imaging.files import contact_sheet, write_jpg
from facerecon.run import set_threads
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.decoder import LinearDecoder, TextureDecoder
from facerecon.stylegan.linear_basis import principal_components
from facerecon.stylegan.load import read_decoder
from facerecon.stylegan.texture_decoder import StyleGANDecoder
from facerecon.training.uv_maps import held_out, share_of
from facerecon.types import Latent


@dataclass
class Method:
    """A way to express maps by numbers.

    Args:
        name: of its row.
        family: rows of one family start from one another.
        decoder: that is inverted.
        start: (targets, w (B, N, C) of the family's last row or None) -> where the inversion begins, or None.
        settings: what a result depends on.
    """

    name: str
    family: str
    decoder: TextureDecoder
    start: Callable[[Tensor, Tensor | None], Latent | None]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many numbers."""
        return self.decoder.rows * self.decoder.dim

    @property
    def file(self) -> str:
        """Of its fitted maps."""
        return self.name.replace(" ", "_").replace(",", "").replace("/", "-") + ".safetensors"


# -- methods ---------------------------------------------------------------------------------------------------


def linear_methods(textures: Tensor, counts: Sequence[int], label: str) -> list[Method]:
    """Principal components of training maps; K of them at most one less than there are maps."""
    counts = sorted({min(k, len(textures) - 1) for k in counts})
    mean, basis, _ = principal_components(textures, counts[-1])
    found = []
    for k in counts:
        rows = basis[:k].flatten(1)
        normal = torch.linalg.inv((rows @ rows.T).double() + 1e-9 * torch.eye(k)).float()

        def start(targets: Tensor, _: Tensor | None, rows: Tensor = rows, normal: Tensor = normal) -> Latent:
            return Latent((((targets - mean).flatten(1) @ rows.T) @ normal)[:, None], "linear")

        settings = {"kind": "linear", "maps": len(textures), "components": k}
        found.append(Method(f"linear {k}, {label}", f"linear {label}", LinearDecoder(mean, basis[:k]), start, settings))
    return found


def decoder_methods(path: Path, counts: Sequence[int], label: str, precision: str, plus: bool) -> list[Method]:
    """Directions of W that change the texture most, W, and W+."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    width = read_decoder(path, "w", precision).dim
    found = []
    for space in [*[f"w/{k}" for k in sorted(counts) if k < width], "w", *(["w+"] if plus else [])]:
        decoder = read_decoder(path, space, precision)

        def start(targets: Tensor, w: Tensor | None, decoder: StyleGANDecoder = decoder) -> Latent | None:
            if w is None:
                return None
            return Latent(decoder.from_w(w).expand(-1, decoder.rows, -1).contiguous(), decoder.space)

        name = {"w": "W", "w+": "W+"}.get(space, f"W, {space[2:]} directions")
        settings = {"kind": "decoder", "file": digest, "space": space, "precision": precision}
        found.append(Method(f"{name}, {label}", label, decoder, start, settings))
    return found


# -- running ---------------------------------------------------------------------------------------------------


def read_maps(maps: UVMaps, indices: Sequence[int]) -> Tensor:
    return torch.stack([maps[i]["texture"] for i in indices])


def run(options: argparse.Namespace) -> None:
    set_threads(options.threads)
    maps = UVMaps(options.folder, size=options.size)
    unseen = held_out(len(maps))
    if options.maps and options.maps < len(unseen):  # spread over the set
        unseen = [unseen[i * len(unseen) // options.maps] for i in range(options.maps)]
    targets = read_maps(maps, unseen)
    measured = MapMetrics(face_layout(load_face_model("makehuman"), 512).face)
    if measured.missing:
        print(f"note: no LPIPS, {measured.missing}")
    inversion = TextureInversionSettings(steps=options.steps)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "expressiveness.json"
    done = json.loads(journal.read_text())["methods"] if journal.is_file() else {}
    numbers = [maps.paths[i].stem for i in unseen]
    common = {"numbers": numbers, "size": options.size, "inversion": dataclasses.asdict(inversion)}

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
        file = out / "fits" / method.file
        if method.name in done and done[method.name]["settings"] == settings and file.is_file():
            stored, _ = read_safetensors(file, "fitted maps", "remove the folder")
            results[method.name] = done[method.name]
            if "w" in stored:
                before[method.family] = stored["w"]
            continue
        clock, parts = time.process_time(), []
        for k in range(0, len(targets), options.batch):
            some = slice(k, k + options.batch)
            w = before[method.family][some] if method.family in before else None
            start = method.start(targets[some], w)
            parts.append(invert_texture(targets[some], method.decoder, measured.features, inversion, start=start))
        fitted = torch.cat([part.texture for part in parts])
        stored = {"maps": fitted.half()}
        if isinstance(method.decoder, StyleGANDecoder):
            with torch.no_grad():
                stored["w"] = torch.cat([method.decoder.to_w(part.latent.codes) for part in parts])
            before[method.family] = stored["w"]
        figures = measured(fitted, targets)
        seconds = (time.process_time() - clock) / len(targets)
        write_whole(file, safetensors_bytes(stored))
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
    panels(out, targets[: options.panels], methods, measured.features)


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
            mean, low, high = (scale * v for v in bootstrap_interval(torch.tensor(row["figures"][key])))
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {name} | {row['parameters']} | " + " | ".join(cells) + " |")
    count = len(next(iter(first.values())))
    return "\n".join([*lines, "", f"Means of {count} held-out maps, with bootstrap intervals of 95 %.", ""])


def panels(out: Path, targets: Tensor, methods: Sequence[Method], features: MapFeatures) -> None:
    """Two rows a map, on the atlas and on the mean head: the target, then every method."""
    fits = [read_safetensors(out / "fits" / m.file, "fitted maps", "remove the folder")[0]["maps"] for m in methods]
    pictures, labels = [], []
    for k, target in enumerate(targets):
        row = torch.stack([target, *[maps[k].float() for maps in fits]])
        with torch.no_grad():
            pictures += [*row, *features.look(row)]
        labels += ["target", *[m.name for m in methods]] + [""] * len(row)
    write_jpg(out / "panels.jpg", contact_sheet(pictures, 1 + len(methods), labels, size=256))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set of UV maps")
    parser.add_argument("--decoders", nargs="*", default=[], metavar="[NAME=]FILE", help="decoder.safetensors files")
    parser.add_argument("--components", type=int, nargs="*", default=[32, 64], help="directions of W")
    parser.add_argument("--linear", type=int, nargs="*", default=[32, 64, 128], help="components of linear bases")
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
