"""How near are the face mesh and the 68 landmarks to rendered truth? Random heads, turned, with expressions and lights.

    python -m benchmarks.face_mesh --heads 60 --out face_mesh.json

Errors in percent of the distance between the outer eye corners in space, mean over heads and points:

* mesh: the points that have a place on the head model (``topology.mesh_points``), where they are seen.
* jaw: from the mesh's jaw to the outline that was rendered, on the side that is near the camera and on the far one.
* eyes and mouth: 32 of the 68 landmarks, by the net of 68, by the mesh, and by both for several weights of the mesh.
* apart: the largest disagreement of the two nets, as the fit's mark of untrustworthy faces takes it.

And seconds per call of the mesh.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from facerecon import load_face_model
from facerecon.geometry.camera import project
from facerecon.geometry.mesh import vertex_normals
from facerecon.perception import load_facemesh, load_landmarks68
from facerecon.perception.corrections import _JAW as MESH_JAW
from facerecon.perception.facemesh import EYES_AND_MOUTH, disagreement, fused_landmarks
from facerecon.perception.identity import landmark_box
from facerecon.render.renderer import Renderer
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import SyntheticFaces, SyntheticSettings
from facerecon.synthetic.scene import Draws, random_lights
from facerecon.types import Camera, FaceParams

SIZE = 448
YAWS = (0, 30, 45, 60)
WEIGHTS = (0.0, 0.15, 0.3, 0.45, 0.6, 1.0)
SEED = 20


class Heads:
    """Rendered heads by number; each is shown once in every yaw."""

    def __init__(self) -> None:
        self.model, decoder = load_face_model("makehuman"), load_decoder("linear")
        self.faces = SyntheticFaces(self.model, decoder, SyntheticSettings(), SEED)
        self.renderer = Renderer(size=SIZE, texture_level="auto")
        camera = Camera.deep3d(SIZE)
        self.camera = camera.replace(focal=camera.focal * 0.8)

    def draw(self, number: int) -> tuple[FaceParams, Tensor]:
        """Parameters without yaw, and the texture, of one head; every second one is neutral."""
        draws, more = Draws(SEED, [number]), Draws(SEED, [number], "lamps")
        params = self.model.neutral(1)
        expression = self.faces.expressions(draws) * (number % 2)
        pitch = draws.uniform(low=-10, high=10)
        rotation = torch.deg2rad(torch.stack([pitch, 0 * pitch, 0 * pitch], 1))
        light = random_lights(self.faces.settings, draws, more)
        identity = 0.7 * draws.normal(self.model.num_identity)
        code = 0.7 * draws.normal(len(self.faces.basis))
        texture = (self.faces.mean + torch.einsum("bk,kchw->bchw", code, self.faces.basis)).clamp(0, 1)
        return params.replace(identity=identity, expression=expression, rotation=rotation, light=light), texture

    def render(self, params: FaceParams, texture: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (1, 3, S, S) and truth: landmarks68, mesh points and whether each is seen; unit px."""
        vertices, topology = self.model(params), self.model.topology
        shown = self.renderer(vertices, texture, topology, self.camera, params.light)
        image = shown.image.clamp(0, 1) + 0.35 * (1 - shown.mask)
        corners = topology.faces[topology.mesh_point_faces]
        weights = topology.mesh_point_barycentric[..., None]
        places = (vertices[:, corners] * weights).sum(-2)
        normals = (vertex_normals(vertices, topology.faces)[:, corners] * weights).sum(-2)
        rotation = self.camera.rotation[0]
        towards = -(places @ rotation.T + self.camera.translation[0])
        cosine = torch.cosine_similarity(normals @ rotation.T, towards, dim=-1)
        landmarks = self.model.landmarks3d(vertices, self.camera)
        depth = (landmarks @ rotation.T + self.camera.translation[0])[..., 2].mean()
        unit = (landmarks[0, 36] - landmarks[0, 45]).norm() * self.camera.focal[0] / depth
        truth = {
            "landmarks": project(self.camera, landmarks)[..., :2], "mesh": project(self.camera, places)[..., :2],
            "seen": cosine > 0.2, "unit": unit,
        }  # fmt: skip
        return image, truth


def to_line(points: Tensor, line: Tensor) -> Tensor:
    """(N,) distances of points (N, 2) to a polyline (M, 2)."""
    start, along = line[:-1], line[1:] - line[:-1]
    offset = points[:, None] - start
    share = ((offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    return (offset - share[..., None] * along).norm(dim=-1).amin(1)


@torch.no_grad()
def measure(heads: int) -> dict[str, dict[str, float]]:
    """{yaw: {figure: mean}}."""
    made, net, net68 = Heads(), load_facemesh(), load_landmarks68()
    rows: dict[int, list[dict[str, float]]] = {yaw: [] for yaw in YAWS}
    for number in range(heads):
        params, texture = made.draw(number)
        for yaw in YAWS:
            turn = params.rotation.clone()
            turn[:, 1] = torch.deg2rad(torch.tensor(float(yaw if number % 4 < 2 else -yaw)))
            image, truth = made.render(params.replace(rotation=turn), texture)
            box = landmark_box(truth["landmarks"])
            clock = time.perf_counter()
            mesh, score = net(image, box)
            seconds = time.perf_counter() - clock
            points, unit = net68(image, box), truth["unit"] / 100
            error = (mesh[0, made.model.topology.mesh_points, :2] - truth["mesh"][0]).norm(dim=-1) / unit
            outline, jaw = truth["landmarks"][0, :17], mesh[0, list(MESH_JAW), :2]
            off = to_line(jaw, outline) / unit
            sides = (off[1:8].mean().item(), off[9:16].mean().item())
            reach = (outline[8] - outline[2]).abs()[0], (outline[8] - outline[14]).abs()[0]
            near = 0 if reach[0] > reach[1] else 1
            row = {
                "mesh": error[truth["seen"][0]].mean().item(), "jaw near": sides[near], "jaw far": sides[1 - near],
                "score": score.item(), "seconds": seconds,
                "apart": 100 * disagreement(fused_landmarks(points, mesh), mesh).item(),
            }  # fmt: skip
            inner = truth["landmarks"][0, 36:]
            for weight in WEIGHTS:
                found = points[0, 36:] + weight * (mesh[0, list(EYES_AND_MOUTH), :2] - points[0, 36:])
                off = (found - inner).norm(dim=-1) / unit
                row |= {f"eyes {weight}": off[:12].mean().item(), f"mouth {weight}": off[12:].mean().item()}
            rows[yaw].append(row)
    result = {}
    for yaw, found in rows.items():
        table = torch.tensor([list(row.values()) for row in found])
        result[str(yaw)] = dict(zip(found[0], table.mean(0).tolist(), strict=True))
        result[str(yaw)] |= {"apart, most": table[:, list(found[0]).index("apart")].max().item(), "heads": len(found)}
        result[str(yaw)]["seconds"] = table[:, list(found[0]).index("seconds")].median().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=60)
    parser.add_argument("--out", type=Path, help="JSON with every figure")
    arguments = parser.parse_args()
    result = measure(arguments.heads)
    print("| % | " + " | ".join(f"yaw {yaw}" for yaw in result) + " |\n|---|" + "---|" * len(result))
    for name in next(iter(result.values())):
        print(f"| {name} | " + " | ".join(f"{row[name]:.3g}" for row in result.values()) + " |")
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    sys.exit(exit_status(main))
