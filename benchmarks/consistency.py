"""Does a reconstructed shape know who it looks at? Neutral shapes of one person in many pictures, and of other people.

    python -m benchmarks.consistency --out outputs/consistency                     # 8 generated people
    python -m benchmarks.consistency --out outputs/consistency --photos PEOPLE     # and photos, a subfolder a person
    python -m benchmarks.consistency --out outputs/consistency --name ict --set face_model=ict

Of every picture, the neutral shape by N_enc alone ("regressor"), refined on landmarks ("refined"), by the start from
landmarks, and by the full fit. The distance of two shapes is the root mean square distance of corresponding points, in
mm, over REALY's four regions of the head, after a similarity of these regions onto the head model's mean
(:func:`facerecon.evaluation.shape_distances`). Reported: its mean over pairs of pictures of one person ("within"), over
pairs of two people ("between"), and their ratio, with bootstrap intervals of 95 % over people. A constant shape would
be consistent, too: the between-people distance is also given as a share of that of random heads of ICT-FaceKit.

Generated people are faces of the open generator whose seeds are in no set, as they are and with edits of yaw,
expression and light: steps in its latent space that keep who it is. Edits after which the eval identity (cosine of a
1024-d network that is never optimized) to the unedited picture is below 0.6 are left out and counted. The pictures are
kept in OUT/pictures, so that other heads and fits are measured on the same ones.

Writes OUT/NAME.json, NAME.md and NAME.jpg (pictures, clay renders of the full fits). It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F

from benchmarks.accuracy import ICT_FILE
from facerecon.configs.compose import compose
from facerecon.dataset.sampling import FIRST_HELD_OUT, draw_seeds
from facerecon.editing.directions import CLASSES, load_directions
from facerecon.errors import FaceReconError, InputError, NoFaceError
from facerecon.evaluation import Summary, shape_distances, stage1_heads, within_between
from facerecon.export.views import head_views
from facerecon.fit.models import build_fitter, fit_digest, prepare
from facerecon.imaging.files import contact_sheet, list_images, read_image, write_jpg, write_png
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception import observe
from facerecon.run.signals import exit_status
from facerecon.storage import file_sha256, write_whole
from facerecon.stylegan.face_generator import load_generator
from facerecon.types import MeshTopology

METHODS = {
    "landmarks": "start from landmarks",
    "regressor": "N_enc alone",
    "refined": "N_enc, refined on landmarks",
    "fit": "full fit",
}
EDITS: dict[str, dict[str, float]] = {
    "yaw left": {"yaw": 30.0, "pitch": 0.0},
    "yaw right": {"yaw": -30.0, "pitch": 0.0},
    "smile": {"smile": 0.12},
    "open mouth": {"opening": 0.35},
    "light left": {"light3": -0.6},
    "light right": {"light3": 0.6},
}
"""What each edit asks for, in units of the attributes (:mod:`facerecon.editing.directions`)."""
PLAIN = "plain"
LEAST_CSIM = 0.6
TRUNCATION = 0.7
SIZE = 512
TRUE_HEADS = 64
TILE = 168


# -- pictures ----------------------------------------------------------------------------------------------------


def generated_people(folder: Path, count: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """{person: {picture: {"csim": cosine to the plain one, None without a face}}}; pictures are PERSON/PICTURE.png."""
    index, settings = folder / "pictures.json", {"edits": EDITS, "truncation": TRUNCATION, "size": SIZE}
    kept = json.loads(index.read_text()) if index.is_file() else {}
    people = kept["people"] if kept.get("settings") == settings else {}
    if len(people) >= count:
        return dict(list(people.items())[:count])
    generator, directions = load_generator(dtype=dtype), load_directions()
    for seed in draw_seeds(generator, FIRST_HELD_OUT, TRUNCATION, dark_share=0.15):
        if len(people) >= count:
            return people
        if str(seed) in people:
            continue
        w = generator.sample(seed, TRUNCATION)
        now = directions.read(w)
        codes, found, plain = {PLAIN: w}, {}, None
        for name, edit in EDITS.items():
            wanted = {key: torch.full((1,), value) for key, value in edit.items()}
            keep = [key for key in directions.names if key not in (*CLASSES, *wanted)]
            codes[name] = directions.step(w, now, wanted, keep)
        for name, code in codes.items():
            with torch.no_grad():
                image = F.interpolate(generator(code).float(), (SIZE, SIZE), mode="area")[0].clamp(0, 1)
            write_png(folder / str(seed) / f"{name}.png", image)
            try:
                vector = observe(folder / str(seed) / f"{name}.png").eval_identity[0]
            except NoFaceError:
                found[name] = {"csim": None}
                continue
            plain = vector if name == PLAIN else plain
            if plain is None:
                break
            found[name] = {"csim": round(float(F.cosine_similarity(vector, plain, dim=0)), 4)}
        if plain is None:
            continue
        people[str(seed)] = found
        write_whole(index, json.dumps({"settings": settings, "people": people}, indent=1).encode())
    return people


def person_folders(folder: Path) -> dict[str, dict[str, Path]]:
    """{person: {photo: path}} of a folder with one subfolder a person."""
    people = {}
    for path in sorted(p for p in folder.expanduser().iterdir() if p.is_dir()):
        people[path.name] = {photo.stem: photo for photo in list_images(path)}
    if len(people) < 2:
        raise InputError(
            f"{folder} has {len(people)} subfolder(s); expected one for each person, of two or more people."
        )
    return people


# -- shapes ------------------------------------------------------------------------------------------------------


def model_digest(model: MorphableModel) -> str:
    """Of a head model's mean and bases."""
    digest = hashlib.sha256()
    for tensor in (model.mean, model.identity_basis, model.expression_basis):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class Bench:
    """The fitter, and the journal of what has been measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        overrides = [f"fitting={options.preset}", "img=none", "fitting.detail.enabled=false"]
        self.config = compose("reconstruct", [*overrides, *shlex.split(" ".join(options.set))])
        self.fitter = build_fitter(self.config, prepare(self.config))
        self.model = self.fitter.model
        self.digest = f"{fit_digest(self.config)}-{model_digest(self.model)}"
        self.fits = not options.starts
        self.journal = options.out / f"{options.name}.json"
        self.rows = json.loads(self.journal.read_text())["items"] if self.journal.is_file() else {}

    def identities(self, key: str, path: Path) -> dict[str, Any]:
        """Row of a picture: {"identity": {method: coefficients}}, or {"skipped": why}; kept ones are not made again."""
        settings = f"{self.digest}-{file_sha256(path)[:12]}"
        row = self.rows.get(key)
        if row is not None and row["settings"] == settings and self.complete(row):
            return row
        clock = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of faces outside the valid range, which are counted
                photo = observe(path).to(self.fitter.model.mean.device)
                heads, reason = stage1_heads(self.fitter, photo)
                heads |= {"fit": self.fitter(photo).face.params} if self.fits else {}
            found = {name: [round(v, 5) for v in params.identity[0].tolist()] for name, params in heads.items()}
            row = {"identity": found, "fallback": reason}
        except FaceReconError as error:
            row = {"skipped": str(error)}
        self.rows[key] = row | {"settings": settings, "seconds": round(time.perf_counter() - clock, 1)}
        content = {"command": " ".join(sys.argv), "items": self.rows}
        write_whole(self.journal, (json.dumps(content) + "\n").encode())
        print(f"{key}: {row.get('skipped') or 'measured'} ({time.perf_counter() - clock:.1f} s)", flush=True)
        return self.rows[key]

    def complete(self, row: dict[str, Any]) -> bool:
        """Whether a kept row has all that is asked for."""
        return not self.fits or "skipped" in row or "fit" in row["identity"]

    def shapes(self, rows: list[dict[str, Any]], method: str) -> torch.Tensor:
        """(N, V, 3), neutral."""
        identity = torch.tensor([row["identity"][method] for row in rows])
        return self.model.neutral_shape(self.model.neutral(len(rows)).replace(identity=identity))


def random_heads(model: MorphableModel, count: int = TRUE_HEADS) -> Summary:
    """Mean distance of random heads of a model, with its interval."""
    identity = torch.randn(count, model.num_identity, generator=torch.Generator().manual_seed(0))
    shapes = model.neutral_shape(model.neutral(count).replace(identity=identity))
    return within_between(shape_distances(shapes, model)["face"], range(count))["between"]


# -- tables ------------------------------------------------------------------------------------------------------


def text(cell: Summary | None, scale: float = 1.0, digits: int = 2) -> str:
    if cell is None:
        return ""
    shown = f"{scale * cell.value:.{digits}f}"
    return shown if cell.low is None else f"{shown} ({scale * cell.low:.{digits}f} to {scale * cell.high:.{digits}f})"


def table(
    bench: Bench, title: str, rows: dict[tuple[str, str], dict[str, Any]], truth: Summary | None
) -> tuple[list[str], dict[str, Any]]:
    """Markdown and figures of one set of people; ``rows`` {(person, picture): row}."""
    keys = [key for key, row in rows.items() if "skipped" not in row]
    if len({person for person, _ in keys}) < 2:
        return [f"## {title}", "", "Faces were found of fewer than two people."], {}
    persons, kept = [person for person, _ in keys], [rows[key] for key in keys]
    methods = [method for method in METHODS if all(method in row["identity"] for row in kept)]
    head = "| shape by | within, mm | between, mm | within / between | between, % of ICT heads' | "
    lines, by_edit, metrics = [], [], {}
    regions: list[str] = []
    for method in methods:
        distances = shape_distances(bench.shapes(kept, method), bench.model)
        found = within_between(distances["face"], persons)
        regions = [name for name in distances if name != "face"]
        parts = {name: within_between(distances[name], persons) for name in regions}
        share = "" if truth is None else f"{100 * found['between'].value / truth.value:.0f}"
        cells = [text(found.get(key)) for key in ("within", "between", "ratio")]
        cells += [share, *[f"{parts[r]['ratio'].value:.2f}" if "ratio" in parts[r] else "" for r in regions]]
        lines.append(f"| {METHODS[method]} | " + " | ".join(cells) + " |")
        moved = {
            edit: [float(distances["face"][keys.index((p, PLAIN)), i]) for i, (p, e) in enumerate(keys) if e == edit
                   and (p, PLAIN) in keys]
            for edit in EDITS
        }  # fmt: skip
        if any(moved.values()):
            cells = [f"{sum(v) / len(v):.2f}" if v else "" for v in moved.values()]
            by_edit.append(f"| {METHODS[method]} | " + " | ".join(cells) + " |")
        metrics[method] = {
            "face": {key: vars(cell) for key, cell in found.items()},
            "regions": {name: {key: round(cell.value, 4) for key, cell in of.items()} for name, of in parts.items()},
            "moved by": {edit: round(sum(v) / len(v), 4) for edit, v in moved.items() if v},
        }
    fallen = sum(bool(row.get("fallback")) for row in kept)
    note = (
        f"{len(kept)} pictures of {len(set(persons))} people; without a face: {len(rows) - len(kept)}; outside N_enc's "
    )
    note += f"valid range, so started from landmarks: {fallen}. Columns by region: within / between there."
    head += " | ".join(regions) + " |"
    made = [f"## {title}", "", head, "|---" * (5 + len(regions)) + "|", *lines, "", note]
    if by_edit:
        made += ["", "Distance to the shape of the plain picture, mm:", ""]
        made += ["| shape by | " + " | ".join(EDITS) + " |", "|---" * (1 + len(EDITS)) + "|", *by_edit]
    return made, metrics


def face_clay(vertices: torch.Tensor, topology: MeshTopology, yaw: float = 20.0) -> torch.Tensor:
    """(3, TILE, TILE), the face of a head (V, 3) as clay."""
    head, top, left = head_views(vertices[None], None, topology, (yaw,), 8 * TILE // 5)[0], TILE // 2, TILE // 2
    return head[:, top : top + TILE, left : left + TILE]


def sheet(bench: Bench, sets: dict[str, dict[tuple[str, str], dict[str, Any]]], paths: dict[tuple, Path]) -> Any:
    """A row of pictures for each person, and the clay renders of their full fits (or starts) below."""
    columns = max(len([k for k in rows if k[0] == person]) for rows in sets.values() for person, _ in rows)
    tiles, labels = [], []
    for name, rows in sets.items():
        for person in dict.fromkeys(p for p, _ in rows):
            keys = [key for key in rows if key[0] == person and "skipped" not in rows[key]]
            if not keys:
                continue
            blank = [torch.ones(3, TILE, TILE)] * (columns - len(keys))
            pictures = [read_image(paths[name, *key], max_side=512) for key in keys]
            shown = next(m for m in reversed(METHODS) if all(m in rows[key]["identity"] for key in keys))
            shapes = bench.shapes([rows[key] for key in keys], shown)
            clay = [face_clay(one, bench.model.topology) for one in shapes]
            tiles += [*pictures, *blank, *clay, *blank]
            labels += [f"{person} {picture}" for _, picture in keys] + [""] * (len(blank) + columns)
    return contact_sheet(tiles, columns=columns, labels=labels, size=TILE)


def run(options: argparse.Namespace) -> None:
    paths: dict[tuple, Path] = {}
    left_out, notes = [], []
    if options.people:
        folder = options.out / "pictures"
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.precision]
        for person, pictures in generated_people(folder, options.people, dtype).items():
            for picture, facts in pictures.items():
                if facts["csim"] is None or facts["csim"] < LEAST_CSIM:
                    left_out.append(f"{person} {picture}")
                else:
                    paths["generated people", person, picture] = folder / person / f"{picture}.png"
        notes.append(f"Edits left out, eval identity below {LEAST_CSIM}: {len(left_out)} of "
                     f"{options.people * len(EDITS)}{': ' if left_out else ''}{', '.join(left_out)}.")  # fmt: skip
    if options.photos:
        for person, photos in person_folders(options.photos).items():
            paths |= {("photos", person, photo): path for photo, path in photos.items()}
    if not paths:
        raise InputError("there is nobody to look at; give --people 2 or more, or --photos FOLDER.")
    bench = Bench(options)
    sets: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for (name, person, picture), path in paths.items():
        sets.setdefault(name, {})[person, picture] = bench.identities(f"{name}/{person}/{picture}", path)
    bench.model.to("cpu")
    truth = None
    if options.ict.exists():
        truth = random_heads(load_face_model("ict", num_identity=None, path=options.ict))
        notes.append(f"Random heads of ICT-FaceKit are {text(truth)} mm from one another,")
    notes.append(f"those of the fit's own model {text(random_heads(bench.model))} mm.")
    lines = [
        f"# Consistency of shapes ({bench.model.name}, preset {options.preset}{''.join(f', {s}' for s in options.set)})"
    ]
    figures = {}
    for name, rows in sets.items():
        made, figures[name] = table(bench, name.capitalize(), rows, truth)
        lines += ["", *made]
    lines += ["", " ".join(notes), "", f"Head model {model_digest(bench.model)}, fit {fit_digest(bench.config)}."]
    page = "\n".join(lines) + "\n"
    write_whole(options.out / f"{options.name}.md", page.encode())
    content = {"command": " ".join(sys.argv), "metrics": figures, "left out": left_out, "items": bench.rows}
    write_whole(bench.journal, (json.dumps(content) + "\n").encode())
    write_jpg(options.out / f"{options.name}.jpg", sheet(bench, sets, paths))
    print("\n" + page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=8, help="generated ones; 0: none")
    parser.add_argument("--photos", type=Path, help="a folder with one subfolder of photos a person")
    parser.add_argument("--starts", action="store_true", help="no full fits, which take most of the time")
    parser.add_argument("--preset", default="default", help="configs/fitting/PRESET.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, as in fit/reconstruct.py")
    parser.add_argument(
        "--ict", type=Path, default=ICT_FILE, help="npz file or clone of ICT-FaceKit, for the last share"
    )
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the generator")
    parser.add_argument("--name", default="consistency", help="of the files, where several heads share one --out")
    parser.add_argument("--out", type=Path, default=Path("outputs/consistency"))
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
