"""Which decoder, and which preset, rebuilds faces best?

    python benchmarks/reconstruction.py --decoders linear linear_normalized open:w open:w+ open:z --presets default

Each photo is fitted by each preset with each decoder. Photos are faces of the open generator whose seeds lie beyond
those of any set (20, found by the detector, dark skin as often as in the set), and photos given. Of each fit:

* photometric error and the judge's cosine (1024-d, never optimized), of the decoder's texture and of the final one;
* landmark error in percent of the distance between the outer eye corners;
* BS Error (Sec. 3.2) of the decoder's texture and of the final one; and seconds.

Writes reconstruction.json, reconstruction.md (means with bootstrap intervals, and differences to the first decoder on
the same photos) and pictures by preset: photo, renders and textures by decoder. It goes on where it was stopped: a
fit that is in the JSON with the same settings is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy import REFERENCE, ROOT
from configs.compose import compose
from facerecon import assets
from facerecon.dataset.sampling import FIRST_HELD_OUT, held_out_faces
from facerecon.errors import FaceReconError, NoFaceError
from facerecon.evaluation import bootstrap_interval, brightness_symmetry_error, stage_metrics
from facerecon.imaging.files import contact_sheet, read_image, write_jpg
from facerecon.perception import load_eval_identity, observe
from facerecon.stylegan.load import DECODERS, is_decoder_file
from facerecon.types import Observation

FIGURES = {
    "photometric": ("photometric error x 1000", 1000, 1),
    "identity": ("judge's cosine", 1, 3),
    "photometric_final": ("final: photometric x 1000", 1000, 1),
    "identity_final": ("final: judge", 1, 3),
    "nme": ("landmarks, %", 100, 2),
    "bs": ("BS Error", 1, 2),
    "bs_final": ("final: BS Error", 1, 2),
    "seconds": ("CPU s", 1, 1),
}
"""Heading, scale and digits of each figure."""


def photos(options: argparse.Namespace) -> Iterator[tuple[str, Tensor | Path]]:
    """(name, image or path) of the generated faces that the detector finds, then of the photos."""
    faces = held_out_faces(options.faces, options.first_seed, options.truncation, options.dark_share)
    yield from ((f"seed_{seed}", image) for seed, image in faces)
    shared = [REFERENCE / name for name in ("fitting_000007.jpg", "01223_photo.jpg")]
    given = [ROOT / "samples" / "astronaut.jpg", *[p for p in shared if p.is_file()], *options.images]
    yield from {path.stem: path for path in given}.items()


def settings_of(preset: str, decoder: str, overrides: list[str]) -> tuple[Any, str]:
    """The configuration of one column of fits, and a digest of what changes its results."""
    from omegaconf import OmegaConf

    name, space = split(decoder)
    config = compose(
        "reconstruct",
        [f"fitting={preset}", f"decoder={name}", f"decoder_space={space or 'null'}", "img=none", *overrides],
    )
    shipped = DECODERS[name].shipped if name in DECODERS else ""
    path = Path(name) if is_decoder_file(name) else assets.shipped(shipped) if shipped else None
    content = path.read_bytes() if path is not None and path.is_file() else name.encode()
    plain = json.dumps(OmegaConf.to_container(config, resolve=True), sort_keys=True, default=str).encode()
    return config, hashlib.sha256(plain + content).hexdigest()[:16]


def split(decoder: str) -> tuple[str, str | None]:
    """``"path.safetensors:w+"`` or ``"open:w"`` -> name and space."""
    name, sign, space = decoder.rpartition(":")
    return (name, space) if sign else (decoder, None)


KINDS = ("render", "decoded", "texture")
"""Pictures of a fit: the decoder's texture on the head in the photo, that texture, and the final one."""


def fit(fitter: Any, photo: Observation, judge: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Figures of one fit, and {kind: (3, H, W)} pictures of :data:`KINDS`."""
    wall, cpu = time.perf_counter(), time.process_time()
    face = fitter(photo)
    seconds = {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    stages, images = stage_metrics(fitter, photo, face, judge)
    last = next(name for name in reversed(stages) if name != "detail")
    final = stages[list(stages)[-1]]
    with torch.no_grad():
        bs = {"bs": brightness_symmetry_error(face.decoded).item()}
        bs["bs_final"] = brightness_symmetry_error(face.texture).item()
    figures = stages[last] | {f"{key}_final": final[key] for key in ("photometric", "identity")} | bs | seconds
    figures["diverged"] = float(bool(fitter.diverged))
    return figures, dict(zip(KINDS, (images[last][0], face.decoded[0], face.texture[0])))


def run(options: argparse.Namespace) -> None:
    from fit.models import build_fitter, prepare

    out = options.out
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    journal = out / "reconstruction.json"
    rows: dict[str, dict[str, Any]] = json.loads(journal.read_text())["fits"] if journal.is_file() else {}
    threads = [f"threads={options.threads}"] if options.threads else []
    prepare(compose("reconstruct", ["img=none", *threads]))
    judge = load_eval_identity()
    seen: list[tuple[str, Tensor, Observation]] = []
    for name, source in photos(options):
        try:
            photo = observe(source)
        except NoFaceError as error:
            print(f"note: {name} is left out, {error}")
            continue
        write_jpg(out / "pictures" / f"{name}.jpg", photo.image[0])
        seen.append((name, photo.image[0], photo))
    names = [name for name, *_ in seen]
    keys: list[tuple[str, str]] = []
    total = len(options.presets) * len(options.decoders) * len(names)
    count = 0
    for preset in options.presets:
        for decoder in options.decoders:
            config, digest = settings_of(preset, decoder, [*options.set, *threads])
            keys.append((preset, decoder))
            fitter = None
            for name, _, photo in seen:
                key = f"{preset}/{decoder}/{name}"
                count += 1
                if rows.get(key, {}).get("settings") == digest:
                    continue
                if fitter is None:
                    fitter = build_fitter(config, prepare(config))
                figures, pictures = fit(fitter, photo, judge)
                stem = file_stem(preset, decoder, name)
                for kind, picture in pictures.items():
                    if picture.shape[-1] > 256:
                        picture = F.interpolate(picture[None], (256, 256), mode="area")[0]
                    write_jpg(out / "pictures" / f"{stem}_{kind}.jpg", picture)
                rows[key] = {
                    "preset": preset, "decoder": decoder, "photo": name, "settings": digest,
                    "generated": name.startswith("seed_"), **{k: round(v, 5) for k, v in figures.items()},
                }  # fmt: skip
                save(journal, {"command": " ".join(sys.argv), "fits": rows})
                print(
                    f"{count}/{total} {preset}, {decoder}, {name}: photometric {figures['photometric']:.4f}, identity "
                    f"{figures['identity']:.3f}, landmarks {100 * figures['nme']:.2f} %, BS {figures['bs']:.2f}, "
                    f"{figures['wall']:.1f} s",
                    flush=True,
                )
    table = to_markdown(rows, keys, names)
    (out / "reconstruction.md").write_text(table)
    print("\n" + table)
    for preset in options.presets:
        panels(out, preset, options.decoders, names)


def save(path: Path, content: dict[str, Any]) -> None:
    from facerecon.storage import write_whole

    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def file_stem(preset: str, decoder: str, name: str) -> str:
    """Of a fit's pictures."""
    column, space = split(decoder)
    label = Path(column).stem if is_decoder_file(column) else column
    label += hashlib.sha256(column.encode()).hexdigest()[:4] if is_decoder_file(column) else ""
    return f"{preset}_{label}{'_' + space.replace('/', '-') if space else ''}_{name}"


def label_of(decoder: str) -> str:
    """Of a column: paths by their last folder and name."""
    column, space = split(decoder)
    if is_decoder_file(column):
        column = "/".join(Path(column).with_suffix("").parts[-2:])
    return f"{column}, {space}" if space else column


def to_markdown(rows: dict[str, dict[str, Any]], keys: list[tuple[str, str]], names: list[str]) -> str:
    """Means of each preset and decoder, over all photos and over those that no generator made; and differences."""
    lines = []
    given = [n for n in names if not n.startswith("seed_")]
    groups = {"all photos": names, "generated faces": [n for n in names if n not in given], "photos": given}
    for title, group in groups.items():
        if not group or (title != "all photos" and len(group) == len(names)):
            continue
        lines += [f"### {title.capitalize()} ({len(group)})", ""]
        lines += ["| preset | decoder | " + " | ".join(text for text, *_ in FIGURES.values()) + " |"]
        lines += ["|---|---|" + "---|" * len(FIGURES)]
        for preset, decoder in keys:
            cells = []
            for figure, (_, scale, digits) in FIGURES.items():
                mean, low, high = bootstrap_interval(
                    torch.tensor([rows[f"{preset}/{decoder}/{n}"][figure] for n in group])
                )
                text = f"{scale * mean:.{digits}f}"
                cells.append(
                    text if figure == "seconds" else f"{text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
                )
            lines.append(f"| {preset} | {label_of(decoder)} | " + " | ".join(cells) + " |")
        first = {preset: next(d for p, d in keys if p == preset) for preset, _ in keys}
        lines += ["", "Minus the first decoder on the same photos:", ""]
        lines += ["| preset | decoder | photometric x 1000 | judge | final: photometric x 1000 | final: judge |"]
        lines += ["|---|---|---|---|---|---|"]
        for preset, decoder in keys:
            if decoder == first[preset]:
                continue
            cells = []
            for figure in ("photometric", "identity", "photometric_final", "identity_final"):
                _, scale, digits = FIGURES[figure]
                apart = [
                    rows[f"{preset}/{decoder}/{n}"][figure] - rows[f"{preset}/{first[preset]}/{n}"][figure]
                    for n in group
                ]
                mean, low, high = (scale * v for v in bootstrap_interval(torch.tensor(apart)))
                cells.append(f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")
            lines.append(f"| {preset} | {label_of(decoder)} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, "Means, with bootstrap intervals of 95 %.", ""])


def panels(out: Path, preset: str, decoders: list[str], names: list[str], rows: int = 12) -> None:
    """panels_PRESET_K.jpg, twelve photos each: photo, then each of :data:`KINDS` for every decoder."""
    labels = [label_of(decoder) for decoder in decoders]
    for page in range(0, len(names), rows):
        pictures, texts = [], []
        for name in names[page : page + rows]:
            pictures.append(read_image(out / "pictures" / f"{name}.jpg"))
            for kind in KINDS:
                for decoder in decoders:
                    pictures.append(read_image(out / "pictures" / f"{file_stem(preset, decoder, name)}_{kind}.jpg"))
            texts += [name, *[f"{label}: {kind}" for kind in KINDS for label in labels]]
        sheet = contact_sheet(pictures, 1 + len(KINDS) * len(decoders), texts, size=192)
        write_jpg(out / f"panels_{preset}_{page // rows + 1}.jpg", sheet)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--decoders", nargs="+", default=["linear", "linear_normalized", "open:w", "open:w+", "open:z"],
        metavar="NAME[:SPACE]", help="a name or a file, and for StyleGAN2 its latent space (the preset's if left out)",
    )  # fmt: skip
    parser.add_argument("--presets", nargs="+", default=["default", "paper", "release"])
    parser.add_argument("--faces", type=int, default=20, help="of the open generator")
    parser.add_argument("--first-seed", type=int, default=FIRST_HELD_OUT)
    parser.add_argument("--truncation", type=float, default=0.7, help="of the generator")
    parser.add_argument("--dark-share", type=float, default=0.15, help="of the generated faces with dark skin")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="more photos")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("outputs/reconstruction"))
    options = parser.parse_args()
    try:
        run(options)
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
