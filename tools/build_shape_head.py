"""Solve the shape head of N_enc's weights: what a fit to detected landmarks says of a head, learned on rendered ones.

    python tools/build_shape_head.py run/regressor.safetensors --ict ICT-FaceKit --out regressor_makehuman.safetensors
    python tools/build_shape_head.py run/regressor.safetensors --ict ICT-FaceKit --face-model ict --out ict.safetensors

Heads are rendered as for train/regressor.py (half of them of ICT-FaceKit's people, which is what --ict is for), in 224
px, with textures of decoder=open; blur, noise and JPEG are added, and landmarks and face mesh detected as in a photo.
Each is fitted to its points from the mean face (facerecon.fitting.fit_landmarks). A ridge regression then gives the
true identity from the fitted one and its product with |yaw|; its strength is the best one on every sixth person, who is
left out. What it misses on those becomes the covariance that later stages start from. With weights of another head
(--face-model) the network's other outputs are solved first, by ridge on its features of the same pictures.

About 10 minutes for 4,000 pictures on one idle core. Writes the file in 8 bits a weight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from facerecon.correspond.resample import decoder_for, retarget
from facerecon.evaluation import head_region_forms
from facerecon.fitting import LandmarkStart, fit_landmarks, params_to_coefficients
from facerecon.geometry.alignment import deep3d_crop_transform, invert_affine
from facerecon.imaging.warp import crop_affine
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.perception.facemesh import fused_landmarks, load_facemesh
from facerecon.perception.identity import landmark_box
from facerecon.perception.landmarks import load_landmarks68, map_points
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.perception.regressor import Regressor, read_regressor, save_regressor
from facerecon.synthetic.faces import SyntheticFaces
from facerecon.synthetic.ict_heads import degrade
from facerecon.synthetic.population import population_of
from facerecon.synthetic.settings import SyntheticSettings
from facerecon.training.regressor import network_sizes
from facerecon.training.regressor_data import decoded_maps
from facerecon.types import Camera, FaceParams

SIZE = 224
SETTINGS = {"shape_residual": 1.0, "hair": 0.5, "occluded": 0.1, "yaw": 16.0, "wide": 0.25, "yaw_limit": 50.0}
SETTINGS |= {"activity": 0.2, "scale": 0.02, "shift": 2.0, "pictures": 2}
STRENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0)
_MESH_SCORE = 0.5
"""A mesh below it has not found the face; as in observe."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of train/regressor.py")
    parser.add_argument("--ict", required=True, help="ICT-FaceKit: its clone, or one npz file")
    parser.add_argument("--face-model", choices=("makehuman", "ict"), default="makehuman")
    parser.add_argument("--count", type=int, default=4000, help="pictures, two of each person")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    ict = load_face_model("ict", path=args.ict)
    model = load_face_model("makehuman") if args.face_model == "makehuman" else retarget(ict).model
    network = read_regressor(args.weights)
    with torch.no_grad():
        rows = detected(model, ict, args.count, args.seed)
        if network.config.face_model != model.name:
            network = solved_heads(network, model, rows)
        solve_shape(network, model, rows)
    save_regressor(args.out, network, dtype="int8")
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


def detected(model: MorphableModel, ict: MorphableModel, count: int, seed: int) -> dict[str, Tensor]:
    """Rendered heads as a photo shows them: crops, detected points in their pixels, and the truth."""
    shared = model.name == "makehuman"
    faces = SyntheticFaces(
        model, decoder_for(model, "linear", 40), SyntheticSettings(mirror=shared, **SETTINGS), seed, SIZE, 40,
        decoded_maps(model, 200, seed), None, population_of(ict, model) if shared else None,
    )  # fmt: skip
    rng, kept, mesh_net, points_net = np.random.default_rng(seed), [], load_facemesh(), load_landmarks68()
    for start in tqdm(range(0, count, 16), desc="rendering and detecting"):
        batch = faces(range(start, min(start + 16, count)))
        for i in range(len(batch.image)):
            photo = degrade(batch.image[i : i + 1], rng)[None]
            box = landmark_box(batch.landmarks68[i : i + 1])
            box = box + torch.from_numpy(rng.normal(size=(1, 4))).float() * 0.03 * (box[0, 2] - box[0, 0])
            mesh, score = mesh_net(photo, box)
            if score.item() < _MESH_SCORE:
                continue
            points = fused_landmarks(points_net(photo, box), mesh)
            to_photo = deep3d_crop_transform(points, MEAN_FIVE_POINTS, SIZE)
            into = invert_affine(to_photo.double()).float()
            crop = F.interpolate(crop_affine(photo, to_photo, SIZE), (112, 112), mode="bilinear", antialias=True)
            row = {"image": crop, "landmarks": map_points(into, points), "mesh": map_points(into, mesh[..., :2])}
            kept.append(
                row
                | {
                    "at": torch.tensor([start + i]),
                    "params": batch.params[i : i + 1],
                    "texture": batch.texture[i : i + 1],
                }
            )
    rows = {key: torch.cat([row[key] for row in kept]) for key in ("image", "landmarks", "mesh", "at", "texture")}
    return rows | {"params": FaceParams.cat([row["params"] for row in kept])}


def solved_heads(other: Regressor, model: MorphableModel, rows: dict[str, Tensor]) -> Regressor:
    """A network for ``model`` with another's backbone; its outputs are solved on its features."""
    c = other.config
    network = Regressor(network_sizes(model, c.backbone, c.width, c.size, c.decoder, c.texture)).eval()
    network.backbone.load_state_dict(other.backbone.state_dict())
    features = torch.cat([other.pooled(other.sized(part)).float() for part in rows["image"].split(128)])
    truth = params_to_coefficients(rows["params"], network.config, rows["texture"])
    goals = {"shift": truth.translation[:, :2], "depth": truth.translation[:, 2:]}
    residual = {}
    for name, head in network.heads.items():
        goal = goals.get(name, getattr(truth, name, None))
        solution, missed = ridge(features, goal, rows["at"] // 2, lambda x: x.square().mean())
        head.weight.copy_(solution[:, :-1, None, None])
        head.bias.copy_(solution[:, -1])
        if name in ("identity", "expression"):
            residual[name] = [round(float(x), 4) for x in missed.square().mean(0).sqrt().clamp(min=0.01)]
    network.about = {
        "backbone": f"of the regressor of {c.face_model}; outputs solved in closed form",
        "residual": residual,
    }
    return network


def solve_shape(network: Regressor, model: MorphableModel, rows: dict[str, Tensor]) -> None:
    """Give the network its shape head and the covariance of what that misses."""
    fits = []
    for points, mesh in zip(rows["landmarks"].split(32), rows["mesh"].split(32), strict=True):
        fits.append(fit_landmarks(model, points, Camera.deep3d(SIZE, len(points)), mesh, LandmarkStart()))
    fit = FaceParams.cat(fits)
    identity, count = rows["params"].identity, model.num_identity
    forms = torch.stack([torch.from_numpy(form[:count, :count]).float() for form in head_region_forms(model).values()])

    def error(missed: Tensor) -> Tensor:
        """Root mean square over each region of the face, mm; mean over regions and heads."""
        return torch.einsum("bi,rij,bj->rb", missed, forms, missed).clamp(min=0).sqrt().mean()

    inputs = torch.cat([fit.identity, fit.identity * fit.rotation[:, 1:2].abs()], 1)
    network.shape_head, missed = ridge(inputs, identity, rows["at"] // 2, error)
    covariance = missed.T @ missed / len(missed)
    network.covariance = 0.9 * covariance + 0.1 * torch.diag(covariance.diagonal())
    print(f"regions, mm: mean face {error(identity):.3f}, landmark fit {error(fit.identity - identity):.3f}, "
          f"shape head {error(missed):.3f} on people left out")  # fmt: skip


def ridge(inputs: Tensor, goals: Tensor, people: Tensor, error: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Linear map (G, I + 1), the last column its constant, and what it misses on every sixth person, left out."""
    held = people % 6 == 5
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-6
    design = torch.cat([(inputs - mean) / spread, torch.ones(len(inputs), 1)], 1).double()

    def solved(rows: Tensor, strength: float) -> Tensor:
        penalty = torch.full((design.shape[1],), strength, dtype=torch.float64)
        penalty[-1] = 1e-3
        chosen = design[rows]
        return torch.linalg.solve(chosen.T @ chosen + torch.diag(penalty), chosen.T @ goals[rows].double())

    tried = {s: goals[held] - (design[held] @ solved(~held, s)).float() for s in STRENGTHS}
    best = min(tried, key=lambda s: float(error(tried[s])))
    solution = solved(torch.ones_like(held), best)
    weight = solution[:-1] / spread[:, None].double()
    constant = solution[-1] - mean.double() @ weight
    return torch.cat([weight, constant[None]]).T.float(), tried[best]


if __name__ == "__main__":
    sys.exit(main())
