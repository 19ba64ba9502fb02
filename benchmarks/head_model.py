"""What can a head model be at best? Generalization, specificity and compactness (Davies et al. 2002), and its floor.

    python -m benchmarks.head_model --ict ICT-FaceKit --heads 20
    python -m benchmarks.head_model --ict ICT-FaceKit --models makehuman makehuman_artist --components 80 160

Truth: heads drawn from ICT-FaceKit (seed 5; the statistics of the makehuman head were chosen on seed 105). Each model
is fitted to their true surface in 3D (facerecon.correspond.dense_fit: noise of 0.4 mm, standard normal prior), so that
what is left is the model's own: no fit of a photo comes nearer. Errors as in fit/evaluate.py parts=[shape], mm, means
of four regions: of region_errors, and by REALY's protocol.

* floor: of fits with the leading components (generalization), of the model's mean face, and of ICT's own mean face.
* coefficients: root mean square of those of the fits; about 1 where the prior fits people, above it elsewhere.
* specificity: distance of drawn heads to the nearest of the heads fitted, root mean square over the face.
* compactness: components that keep 90, 95 and 98 % of the model's variance over the face.

Prints tables in Markdown, and writes them and head_model.json to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from facerecon.correspond.dense_fit import DenseFit
from facerecon.evaluation import head_regions, region_errors
from facerecon.evaluation.realy import realy_errors, scan_of_head
from facerecon.morphable import MorphableModel, load_face_model

REGIONS = ("nose", "mouth", "forehead", "cheek")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ict", required=True, help="ICT-FaceKit: its clone, or one npz file")
    parser.add_argument("--models", nargs="+", default=["makehuman_artist", "makehuman"])
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--components", type=int, nargs="+", default=[80, 160])
    parser.add_argument("--draws", type=int, default=100, help="heads drawn for the specificity")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/head_model"))
    args = parser.parse_args()
    ict = load_face_model("ict", path=args.ict)
    heads = _Heads(ict, args.heads, args.seed)
    rows = [{"head": "ict", "what": "mean face", **heads.errors(ict, [ict.mean] * args.heads)}]
    for name in args.models:
        rows += _measured(load_face_model(name), heads, args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "head_model.json").write_text(json.dumps({"seed": args.seed, "heads": args.heads, "rows": rows}))
    text = _table(rows)
    (args.out / "head_model.md").write_text(text)
    print(text)
    return 0


class _Heads:
    """Heads of ICT-FaceKit as truth."""

    def __init__(self, ict: MorphableModel, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        draws = torch.from_numpy(rng.standard_normal((count, ict.num_identity)).astype(np.float32))
        self.faces, self.regions = ict.topology.faces, head_regions(ict)
        self.skin = self.faces[ict.topology.regions["skin"]]
        self.vertices = torch.cat([ict.shape(ict.neutral(1).replace(identity=x[None])) for x in draws])
        self.landmarks = ict.landmarks3d(self.vertices)
        parts = zip(self.vertices.numpy(), self.landmarks.numpy(), strict=True)
        self.scans = [scan_of_head(v, self.faces.numpy(), points, self.regions) for v, points in parts]

    def errors(self, model: MorphableModel, shapes: list[torch.Tensor]) -> dict[str, list[float]]:
        """{"regions", "realy": means over heads, by region}, mm, of one shape (V, 3) a head."""
        found: dict[str, list] = {"regions": [], "realy": []}
        for shape, true, points, scan in zip(shapes, self.vertices, self.landmarks, self.scans, strict=True):
            faces, keys = model.topology.faces, model.landmarks3d(shape[None])[0]
            by_region = region_errors(shape, faces, keys, true, self.faces, points, self.regions)
            found["regions"].append([by_region[name] for name in REGIONS])
            by_region = realy_errors(shape.numpy(), faces.numpy(), keys.numpy(), scan).errors
            found["realy"].append([by_region[name] for name in REGIONS])
        return {key: np.mean(values, 0).tolist() for key, values in found.items()}


def _measured(model: MorphableModel, heads: _Heads, args: argparse.Namespace) -> list[dict]:
    count = len(heads.vertices)
    rows = [{"head": model.name, "what": "mean face", **heads.errors(model, [model.mean] * count)}]
    face = model.topology.faces[model.topology.regions["face"] & ~model.topology.regions["eyes"]].unique()
    for components in args.components:
        part = load_face_model(model.name, components)
        fit = DenseFit(part)
        pairs = list(zip(heads.vertices, heads.landmarks, strict=True))
        found = [
            fit(v, heads.skin, points) for v, points in tqdm(pairs, desc=f"{model.name} {components}", disable=None)
        ]
        fitted = torch.from_numpy(np.array(found)).float()
        shapes = part.shape(part.neutral(count).replace(identity=fitted))
        row = {"head": model.name, "what": f"{components} components in 3D", **heads.errors(part, list(shapes))}
        row["coefficients"] = float(fitted.square().mean().sqrt())
        drawn = part.shape(part.sample(torch.Generator().manual_seed(args.seed), args.draws))
        apart = torch.cdist(drawn[:, face].flatten(1), shapes[:, face].flatten(1)) / len(face) ** 0.5 * 100
        row["specificity"] = float(apart.min(1).values.mean())
        variance = part.identity_basis[:, face].square().sum((1, 2))
        share = variance.sort(descending=True).values.cumsum(0) / variance.sum()
        row["compactness"] = [int((share < level).sum()) + 1 for level in (0.9, 0.95, 0.98)]
        rows.append(row)
    return rows


def _table(rows: list[dict]) -> str:
    head = ("head", "", *REGIONS, "mean", "REALY", "coefficients", "specificity, mm", "90 / 95 / 98 % in")
    cells = []
    for row in rows:
        numbers = [f"{x:.2f}" for x in (*row["regions"], np.mean(row["regions"]), np.mean(row["realy"]))]
        extra = [f"{row[key]:.2f}" if key in row else "" for key in ("coefficients", "specificity")]
        kept = " / ".join(map(str, row.get("compactness", ())))
        cells.append((row["head"], row["what"], *numbers, *extra, kept))
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *cells)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
