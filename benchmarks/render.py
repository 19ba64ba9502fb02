"""How fast is the renderer? Forward, and forward + backward to vertices, texture and light, in one run.

Compares the default (numba rasterizer and fused kernels) with the torch path on covered pixels, with plain torch on
all pixels, and with PyTorch3D where it is installed (small images only: on a CPU it tests every pixel against every
face). Prints a Markdown table; every method renders the same head, and the images are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy import REFERENCE
from facerecon.correspond.obj import read_head
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.lighting import shade
from facerecon.geometry.mesh import vertex_normals
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import load_face_model
from facerecon.render import Renderer, rasterize
from facerecon.render.interpolate import barycentrics
from facerecon.render.uv import sampling_grid
from facerecon.types import Camera, MeshTopology, SHLight

HIFI3DPP = REFERENCE / "teaser1_hifi3dpp_head.obj"
"""The head (20,481 vertices, 40,832 faces) that other rasterizers were timed with."""
Render = Callable[[Tensor, Tensor, Tensor], Tensor]  # vertices, texture, light coefficients -> image


def all_pixels_torch(topology: MeshTopology, camera: Camera, size: int) -> Render:
    """Deferred shading in plain torch on every pixel, background included; no numba anywhere."""
    corner_uv = topology.uvs[topology.uv_faces]
    center = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(-center, center, indexing="ij")
    x, y = x.reshape(-1), y.reshape(-1)

    def render(vertices: Tensor, texture: Tensor, light: Tensor) -> Tensor:
        clip = clip_coordinates(camera, vertices)
        batch = len(clip)
        index = rasterize(clip, topology.faces, (size, size), "torch").view(batch, -1)
        normals = vertex_normals(vertices, topology.faces)
        images = []
        for b in range(batch):
            face = index[b].clamp(min=0)
            mask = (index[b] >= 0)[:, None]
            corners = torch.cat([clip[b], normals[b]], -1)[topology.faces[face]]
            weights = torch.where(mask, barycentrics(corners[..., :4], x, y), 0.0)[..., None]
            uv = (weights * corner_uv[face]).sum(1)
            normal = F.normalize((weights * corners[..., 4:]).sum(1), dim=-1)
            grid = sampling_grid(uv)[None, None]
            albedo = F.grid_sample(texture[b : b + 1], grid, padding_mode="border", align_corners=False)
            shading = shade(normal[None], SHLight(light[b : b + 1]))[0]
            color = torch.where(mask, albedo[0, :, 0].T * shading, 0.0)
            images.append(color.T.view(3, size, size))
        return torch.stack(images)

    return render


def pytorch3d(topology: MeshTopology, camera: Camera, size: int) -> Render:
    """The same picture by PyTorch3D's rasterizer and attribute interpolation."""
    from pytorch3d.ops import interpolate_face_attributes
    from pytorch3d.renderer.mesh import rasterize_meshes
    from pytorch3d.structures import Meshes

    corner_uv = topology.uvs[topology.uv_faces]

    def render(vertices: Tensor, texture: Tensor, light: Tensor) -> Tensor:
        clip = clip_coordinates(camera, vertices)
        batch = len(clip)
        w = clip[..., 3:]
        points = torch.cat([-clip[..., :1] / w, clip[..., 1:2] / w, w], -1)
        meshes = Meshes(points, topology.faces[None].expand(batch, -1, -1))
        index, _, weights, _ = rasterize_meshes(
            meshes, size, 0.0, 1, bin_size=0, perspective_correct=True, cull_backfaces=True
        )
        normals = vertex_normals(vertices, topology.faces)
        attributes = torch.cat([normals[:, topology.faces], corner_uv.expand(batch, -1, -1, -1)], -1)
        found = interpolate_face_attributes(index, weights, attributes.flatten(0, 1))[..., 0, :]
        mask = index[..., 0] >= 0
        grid = sampling_grid(torch.where(mask[..., None], found[..., 3:], 0.0))
        albedo = F.grid_sample(texture, grid, padding_mode="border", align_corners=False)
        shading = shade(F.normalize(found[..., :3], dim=-1), SHLight(light)).permute(0, 3, 1, 2)
        return torch.where(mask[:, None], albedo * shading, 0.0)

    return render


def ours(topology: MeshTopology, camera: Camera, size: int, **options: object) -> Render:
    renderer = Renderer(size, **options)
    return lambda vertices, texture, light: renderer(vertices, texture, topology, camera, SHLight(light)).image


def milliseconds(work: Callable[[], object], seconds: float) -> float:
    """Median time of a call; at least three calls, or one if it alone takes longer than ``seconds``."""
    times = []
    for _ in range(2):  # the first may compile kernels
        start = time.perf_counter()
        work()
        times = [time.perf_counter() - start]
        if times[0] > 10 * seconds:
            break
    if times[0] < seconds:
        times.clear()  # that was the warm-up
        stop = time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < stop and len(times) < 200):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def measure(render: Render, inputs: list[Tensor], seconds: float) -> tuple[Tensor, float, float]:
    """The image, and milliseconds of forward alone and of forward + backward."""
    with torch.no_grad():
        image = render(*inputs)
        forward = milliseconds(lambda: render(*inputs), seconds)
    leaves = [t.clone().requires_grad_() for t in inputs]
    weight = torch.rand_like(image)
    both = milliseconds(lambda: torch.autograd.grad((render(*leaves) * weight).sum(), leaves), seconds)
    return image, forward, both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="1x224,1x512,4x224", help="batch x size, comma-separated")
    parser.add_argument("--head", default="makehuman", choices=("makehuman", "hifi3dpp"), help="mesh to render")
    parser.add_argument("--texture", type=int, default=1024, help="side of the texture in texels")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (numba uses as many)")
    parser.add_argument("--seconds", type=float, default=1.5, help="time to spend on each figure")
    parser.add_argument("--pytorch3d-max", type=int, default=224, help="largest image PyTorch3D renders; 0: none")
    parser.add_argument("--pytorch3d-batch", type=int, default=1, help="largest batch PyTorch3D renders")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = read_head(HIFI3DPP) if args.head == "hifi3dpp" else load_face_model("makehuman")
    vertices, topology = model.mean[None], model.topology
    has_pytorch3d = importlib.util.find_spec("pytorch3d") is not None
    print(
        f"{topology.name}: {vertices.shape[1]:,} vertices, {len(topology.faces):,} faces; texture "
        f"{args.texture} px; {args.threads} threads of {os.cpu_count()} cores ({platform.machine()}); "
        f"torch {torch.__version__}. Milliseconds, median; forward / forward + backward."
    )
    if not has_pytorch3d:
        print("PyTorch3D is not installed: its rows are left out.")
    print(
        "\n| batch x size | method | forward | forward + backward | times the default | difference (99.9 % of values) |"
    )
    print("|---|---|---|---|---|---|")
    for case in args.cases.split(","):
        batch, size = (int(n) for n in case.lower().split("x"))
        yaw = torch.tensor([0.0, 0.35, -0.35, 0.7])[torch.arange(batch) % 4]
        angles = torch.stack([torch.zeros(batch), yaw, torch.zeros(batch)], 1)
        light = SHLight.ambient(batch).coefficients + 0.1 * torch.randn(batch, 9, 3)
        rough = torch.rand(batch, 3, args.texture // 16, args.texture // 16)
        texture = F.interpolate(rough, size=(args.texture,) * 2, mode="bilinear")
        inputs = [vertices @ euler_to_matrix(angles).mT, texture, light]
        scene = (topology, Camera.deep3d(size, batch), size)
        methods = {
            "default (numba, fused)": ours(*scene),
            "default with antialiased silhouettes": ours(*scene, antialias=True),
            "default with mip maps": ours(*scene, texture_level="auto"),
            "numba ids, torch on covered pixels": ours(*scene, fused=False),
            "torch ids, torch on covered pixels": ours(*scene, backend="torch", fused=False),
            "plain torch, all pixels": all_pixels_torch(*scene),
        }
        if has_pytorch3d and size <= args.pytorch3d_max and batch <= args.pytorch3d_batch:
            methods["PyTorch3D"] = pytorch3d(*scene)
        first = None
        for name, render in methods.items():
            image, forward, both = measure(render, inputs, args.seconds)
            first = first or (image, forward, both)
            # A face id that rounding decides changes one pixel; 99.9 % of them must agree.
            difference = (image - first[0]).abs().flatten().kthvalue(int(0.999 * image.numel())).values
            same = "" if "with" in name else f"{difference:.0e}"
            print(
                f"| {batch} x {size} | {name} | {forward:.1f} | {both:.1f} "
                f"| {forward / first[1]:.1f} / {both / first[2]:.1f} | {same} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
