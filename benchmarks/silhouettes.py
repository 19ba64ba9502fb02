"""How good are antialiased silhouettes? A head against its own 8x supersampled render, and slopes of the mask's area.

    python -m benchmarks.silhouettes

Mask and image errors are sums over the picture (a mask error of 1 is one pixel). The slopes are the mask's area, or
that of its left half, as the head grows or moves to the right: the gradient of the antialiased render at 224 px against
finite differences of the supersampled one.
"""

from __future__ import annotations

import argparse
import math
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.run.signals import exit_status
from facerecon.types import Camera, SHLight

FINER = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="px")
    parser.add_argument("--yaws", type=float, nargs="+", default=[0, 20, 40], help="degrees")
    arguments = parser.parse_args()
    size = arguments.size
    torch.manual_seed(0)
    model = load_face_model("makehuman")
    head, topology = model(model.neutral()).detach(), model.topology
    rough = torch.rand(1, 3, 16, 16)
    texture = F.interpolate(rough, size=(512, 512), mode="bicubic").clamp(0, 1)
    camera, light = Camera.deep3d(size), SHLight.ambient()
    left = torch.zeros(1, 1, size, size)
    left[..., : size // 2] = 1

    def render(vertices: Tensor, finer: int = 1, antialias: bool = False):
        return Renderer(size * finer, antialias=antialias)(vertices, texture, topology, camera, light)

    def area(vertices: Tensor, weight: Tensor, finer: int, antialias: bool) -> Tensor:
        mask = render(vertices, finer, antialias).mask
        return (mask * F.interpolate(weight, size=mask.shape[-2:])).sum() / finer**2

    print(f"MakeHuman head at {size} px, {FINER}x supersampling as the truth\n")
    print(
        "| yaw | mask error, px: hard, antialiased | image error: hard, antialiased | slopes over finite differences |"
    )
    print("|---|---|---|---|")
    for yaw in arguments.yaws:
        posed = head @ euler_to_matrix(torch.tensor([[0.1, math.radians(yaw), 0.05]])).mT
        fine = render(posed, FINER)
        truth = F.avg_pool2d(fine.mask, FINER), F.avg_pool2d(fine.image, FINER)
        errors = []
        for flag in (False, True):
            out = render(posed, antialias=flag)
            errors.append([(a - b).abs().mean(1).sum().item() for a, b in zip((out.mask, out.image), truth)])
        ratios = []
        changes = ((posed, torch.ones_like(left), 0.01), (torch.tensor([1.0, 0.0, 0.0]), left, 0.02))
        for change, weight, step in changes:
            amount = torch.zeros((), requires_grad=True)
            (slope,) = torch.autograd.grad(area(posed + amount * change, weight, 1, True), amount)
            above, below = (area(posed + d * change, weight, FINER, False) for d in (step, -step))
            ratios.append((slope / ((above - below) / (2 * step))).item())
        print(
            f"| {yaw:.0f} | {errors[0][0]:.0f}, {errors[1][0]:.0f} | {errors[0][1]:.0f}, {errors[1][1]:.0f} "
            f"| grow {ratios[0]:.3f}, move {ratios[1]:.3f} |"
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
