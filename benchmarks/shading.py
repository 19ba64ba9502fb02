"""What does our renderer gain over the release's shading? Heads with known truth, fitted by both in the same steps.

    python -m benchmarks.shading --n 8

Release: nearest-texel look-up, spherical harmonics at vertices, hard silhouettes. Ours: bilinear look-up (mip-mapped
where texels are finer than pixels), spherical harmonics at pixels, antialiased silhouettes. The photo of each random
head is its 8x supersampled render. Identity, expression, pose, light and texture code start from the mean face with a
disturbed pose and follow the photometric error alone (with the same weak priors). Errors against the truth: texels of
the face (0..255), vertices of the face after similarity alignment (mm), and the photometric error (0..255).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import losses
from facerecon.geometry.alignment import apply_similarity, similarity_transform
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.render import Renderer, uv_raster
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.stylegan.load import load_decoder
from facerecon.types import Camera, FaceParams, Latent, SHLight

SIZE = 224
RENDERERS: dict[str, dict[str, Any]] = {
    "release (nearest, vertex light, hard)": {"filter": "nearest", "shading": "vertex"},
    "+ bilinear": {"shading": "vertex"},
    "+ light at pixels": {},
    "+ antialiased silhouettes": {"antialias": True},
    "+ mip maps (ours)": {"antialias": True, "texture_level": "auto"},
}


def random_head(model: MorphableModel, decoder: TextureDecoder, seed: int) -> tuple[FaceParams, Tensor]:
    """Parameters with pose and light, and a texture code (1, N, C)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    params = model.sample(generator, 1)
    turn = torch.tensor([[0.15, 0.5, 0.05]]) * (2 * torch.rand(1, 3, generator=generator) - 1)
    light = torch.zeros(1, 9, 3)
    light[:, 0], light[:, 2] = 0.75, 0.15
    light[:, 1:4] += 0.15 * normal(1, 3, 1)
    light[:, 4:] += 0.05 * normal(1, 5, 1)
    params = params.replace(rotation=turn, translation=0.03 * normal(1, 3), light=SHLight(light))
    return params, 0.8 * normal(1, decoder.rows, decoder.dim)


@torch.no_grad()
def photograph(model: MorphableModel, params: FaceParams, texture: Tensor) -> tuple[Tensor, Tensor]:
    """The 8x supersampled render (1, 3, S, S) and its coverage (1, 1, S, S)."""
    fine = Renderer(8 * SIZE)(
        model(params), texture, model.topology, Camera.deep3d(SIZE), params.light, face_region="face"
    )
    return F.avg_pool2d(fine.image, 8), F.avg_pool2d(fine.mask, 8)


def fit(
    model: MorphableModel, decoder: TextureDecoder, renderer: Renderer, photo: Tensor, coverage: Tensor,
    start: FaceParams, steps: int,
) -> tuple[FaceParams, Tensor]:  # fmt: skip
    """Adam on everything from the start; the photometric error over what both the photo and the head cover."""
    camera = Camera.deep3d(SIZE)
    leaves = {
        "identity": start.identity, "expression": start.expression, "rotation": start.rotation,
        "translation": start.translation, "light": start.light.coefficients,
        "code": torch.zeros(1, decoder.rows, decoder.dim),
    }  # fmt: skip
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    rates = {"identity": 0.03, "expression": 0.01, "rotation": 0.003, "translation": 0.003, "light": 0.01, "code": 0.05}
    optimizer = torch.optim.Adam([{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()])

    def current() -> FaceParams:
        given = {name: leaves[name] for name in ("identity", "expression", "rotation", "translation")}
        return start.replace(**given, light=SHLight(leaves["light"]))

    for step in range(steps):
        for group, name in zip(optimizer.param_groups, leaves, strict=True):
            group["lr"] = rates[name] * min(1.0, 2 * (1 - step / steps))
        texture = decoder(Latent(leaves["code"], "linear"))
        out = renderer(model(current()), texture, model.topology, camera, current().light, face_region="face")
        # Where one of the two shows no face both are black: a hard outline simply has no gradient there.
        loss = losses.pixel_loss(out.image, photo, torch.maximum(out.mask.detach(), coverage), "l1").sum()
        loss = loss + 1e-3 * leaves["identity"].square().mean() + 1e-2 * leaves["expression"].square().mean()
        loss = loss + 1e-3 * leaves["code"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if model.expression_bounds is not None:
            with torch.no_grad():
                leaves["expression"].clamp_(*model.expression_bounds)
    return current().detach(), leaves["code"].detach()


@torch.no_grad()
def errors(
    model: MorphableModel, decoder: TextureDecoder, truth: tuple[FaceParams, Tensor], found: tuple[FaceParams, Tensor]
) -> dict[str, float]:
    """Texture (0..255 over the face's texels), shape (mm, after similarity alignment)."""
    textures = [decoder(Latent(code, "linear")).clamp(0, 1) for _, code in (truth, found)]
    face = model.topology.regions["face"]
    index = uv_raster(model.topology, textures[0].shape[-1]).face_index[0]
    texels = (index >= 0) & face[index.clamp(min=0)]
    vertices = model.topology.faces[face].unique()
    target, source = (model.shape(params)[:, vertices] for params, _ in (truth, found))
    moved = apply_similarity(similarity_transform(source, target), source)
    return {
        "texture": 255 * (textures[0] - textures[1]).abs().mean(1)[0][texels].mean().item(),
        "shape": 100 * (moved - target).norm(dim=-1).mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8, help="heads")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON with every metric")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model, decoder = load_face_model("makehuman", num_identity=80), load_decoder("linear")
    rows: dict[str, list[dict[str, float]]] = {"start": []} | {name: [] for name in RENDERERS}
    for head in range(arguments.n):
        truth = random_head(model, decoder, arguments.seed + head)
        texture = decoder(Latent(truth[1], "linear")).clamp(0, 1)
        photo, coverage = photograph(model, truth[0], texture)
        generator = torch.Generator().manual_seed(1000 + arguments.seed + head)
        start = model.neutral(1).replace(
            rotation=truth[0].rotation + 0.05 * torch.randn(1, 3, generator=generator),
            translation=truth[0].translation + 0.03 * torch.randn(1, 3, generator=generator),
            light=SHLight.ambient(),
        )
        zero = torch.zeros_like(truth[1])
        rows["start"].append(errors(model, decoder, truth, (start, zero)))
        for name, options in RENDERERS.items():
            renderer = Renderer(SIZE, **options)
            clock = time.perf_counter()
            found = fit(model, decoder, renderer, photo, coverage, start, arguments.steps)
            seconds = time.perf_counter() - clock
            shown = photograph(model, found[0], decoder(Latent(found[1], "linear")).clamp(0, 1))[0]
            photometric = 255 * ((shown - photo).abs().mean(1, keepdim=True) * coverage).sum() / coverage.sum()
            rows[name].append(
                errors(model, decoder, truth, found)
                | {"photometric": photometric.item(), "ms a step": 1e3 * seconds / arguments.steps}
            )
        print(f"head {head + 1} of {arguments.n}", file=sys.stderr)
    columns = list(rows["+ bilinear"][0])
    print(f"{arguments.n} heads, {arguments.steps} steps, seed {arguments.seed}; mean ± standard error\n")
    print("| renderer | texture error, 0..255 | shape error, mm | photometric, 0..255 | ms a step |")
    print("|---|---|---|---|---|")
    for name, values in rows.items():
        cells = []
        for column in columns:
            of = [row[column] for row in values if column in row]
            cells.append(f"{statistics.mean(of):.2f} ± {statistics.pstdev(of) / len(of) ** 0.5:.2f}" if of else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if arguments.out:
        write_whole(arguments.out, json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    sys.exit(exit_status(main))
