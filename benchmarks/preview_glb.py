"""What a GLB looks like under a studio light: its own materials, shaded as glTF 2.0 says.

    python -m benchmarks.preview_glb outputs/reconstruct/astronaut/head.glb --out preview.jpg
    python -m benchmarks.preview_glb head.glb --weights eyeLookInLeft=1,eyeLookOutRight=1 --close

Reads the file alone, draws each primitive with this library's rasterizer, and shades with the metallic-roughness model
(Lambert and GGX, F0 of KHR_materials_specular) in linear light: three lamps with shadows and a sky.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from facerecon.export.views import portrait_camera
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.imaging.files import write_jpg
from facerecon.render.interpolate import fragments, interpolate

_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_DTYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}

LAMPS = (((-0.75, 0.6, 0.65), 2.3), ((0.9, 0.15, 0.6), 0.9), ((0.3, 0.9, -0.9), 1.6))
"""Direction towards each lamp, and its irradiance over pi."""
SKY, GROUND = 0.42, 0.16


class Glb:
    """The parts of a GLB that a picture needs."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack_from("<I", data, 12)[0]
        self.document = json.loads(data[20 : 20 + length])
        self.blob = data[28 + length :]

    def view(self, index: int) -> bytes:
        view = self.document["bufferViews"][index]
        start = view.get("byteOffset", 0)
        return self.blob[start : start + view["byteLength"]]

    def accessor(self, index: int) -> np.ndarray:
        """(count, components), sparse accessors included, integers normalized where the file says so."""
        entry = self.document["accessors"][index]
        shape, kind = (entry["count"], _TYPES[entry["type"]]), _DTYPES[entry["componentType"]]
        values = np.zeros(shape, kind)
        if "bufferView" in entry:
            stride = self.document["bufferViews"][entry["bufferView"]].get("byteStride")
            columns = stride // np.dtype(kind).itemsize if stride else shape[1]
            stored = np.frombuffer(self.view(entry["bufferView"]), kind)[: shape[0] * columns]
            values = stored.reshape(shape[0], columns)[:, : shape[1]].copy()
        if "sparse" in entry:
            part = entry["sparse"]
            rows = np.frombuffer(self.view(part["indices"]["bufferView"]), _DTYPES[part["indices"]["componentType"]])
            new = np.frombuffer(self.view(part["values"]["bufferView"]), kind).reshape(-1, shape[1])
            values[rows[: part["count"]]] = new[: part["count"]]
        return np.maximum(values / np.float32(np.iinfo(kind).max), -1) if entry.get("normalized") else values

    def primitives(self, weights: dict[str, float] | None) -> list[dict]:
        """Positions (meters), normals, UVs, triangles and material of each, the morph targets added."""
        mesh = self.document["meshes"][0]
        names = mesh.get("extras", {}).get("targetNames", [])
        amounts = mesh.get("weights", []) if weights is None else [weights.get(name, 0.0) for name in names]
        found, scale = [], self.document["nodes"][0].get("scale", [1.0])[0]
        for part in mesh["primitives"]:
            position, normal = (self.accessor(part["attributes"][key]) for key in ("POSITION", "NORMAL"))
            for amount, target in zip(amounts, part.get("targets", []), strict=True):
                if amount:
                    position = position + amount * self.accessor(target["POSITION"])
                    normal = normal + amount * self.accessor(target["NORMAL"])
            material = self.document["materials"][part["material"]]
            pbr = material["pbrMetallicRoughness"]
            texture = self.document["textures"][pbr["baseColorTexture"]["index"]]
            image = self.document["images"][texture["source"]]
            pixels = Image.open(io.BytesIO(self.view(image["bufferView"]))).convert("RGB")
            specular = material.get("extensions", {}).get("KHR_materials_specular", {})
            found.append(
                {
                    "position": torch.from_numpy(position * scale).float()[None],
                    "normal": torch.from_numpy(normal).float()[None],
                    "uv": torch.from_numpy(self.accessor(part["attributes"]["TEXCOORD_0"])).float()[None],
                    "faces": torch.from_numpy(self.accessor(part["indices"]).astype(np.int64).reshape(-1, 3)),
                    "texture": torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1).float()[None] / 255,
                    "roughness": pbr["roughnessFactor"],
                    "f0": 0.04 * specular.get("specularColorFactor", [1.0])[0] * specular.get("specularFactor", 1.0),
                }
            )
        return found


def linear(color: Tensor) -> Tensor:
    return torch.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def encoded(light: Tensor) -> Tensor:
    light = light / (1 + 0.18 * light) * 1.05  # a soft shoulder
    curve = 1.055 * light.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve).clamp(0, 1)


def lit(points: Tensor, parts: list[tuple[Tensor, Tensor]], direction: tuple, size: int = 1024) -> Tensor:
    """(N, 1) in [0, 1], how much of a far lamp's light reaches points (N, 3): a shadow map of parts, soft borders."""
    ahead = F.normalize(torch.tensor(direction), dim=0)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), ahead), dim=0)
    frame = torch.stack([right, torch.linalg.cross(ahead, right), ahead])
    reach = max(float(vertices.norm(dim=-1).max()) for vertices, _ in parts)
    nearest = torch.full((size, size), -torch.inf)
    for vertices, faces in parts:
        seen = vertices @ frame.T / reach
        clip = torch.cat([seen[..., :2], -0.9 * seen[..., 2:], torch.ones_like(seen[..., :1])], -1)
        found = fragments(clip, faces, (size, size))
        height = interpolate(found, seen[..., 2:], faces)[0, ..., 0]
        nearest = torch.where((found.face_index[0] >= 0) & (height > nearest), height, nearest)
    place = points @ frame.T / reach
    free = torch.zeros(len(points))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            column = ((place[:, 0] + 1) * (size / 2) + 2 * dx).long().clamp(0, size - 1)
            row = ((1 - place[:, 1]) * (size / 2) + 2 * dy).long().clamp(0, size - 1)
            free += (place[:, 2] > nearest[row, column] - 0.02).float() / 25
    return free[:, None]


def shaded(albedo: Tensor, normal: Tensor, view: Tensor, roughness: float, f0: float, free: list[Tensor]) -> Tensor:
    """glTF's metallic-roughness model of a dielectric, (N, 3) linear light; ``free``: of each lamp's shadows."""
    alpha = roughness**2
    facing = (normal * view).sum(-1, keepdim=True).clamp(min=1e-3)
    up = 0.5 + 0.5 * normal[:, 1:2]
    light = albedo * (1 - f0) * (GROUND + (SKY - GROUND) * up)
    mirrored = 2 * facing * normal - view
    sky = GROUND + (SKY - GROUND) * torch.sigmoid(mirrored[:, 1:2] * (3 / max(roughness, 0.1)))
    edge = f0 + (max(1 - roughness, f0) - f0) * (1 - facing) ** 5
    light = light + edge * sky * (1 - 0.5 * roughness)
    open_sky = 0.35 + 0.65 * (sum(free) / len(free))
    light = light * open_sky
    for (direction, power), reaches in zip(LAMPS, free, strict=True):
        lamp = F.normalize(torch.tensor(direction), dim=0)
        half = F.normalize(view + lamp, dim=-1)
        n_l, n_h = ((normal * x).sum(-1, keepdim=True).clamp(min=0) for x in (lamp, half))
        fresnel = f0 + (1 - f0) * (1 - (half * view).sum(-1, keepdim=True).clamp(0, 1)) ** 5
        spread = alpha**2 / (math.pi * ((n_h**2) * (alpha**2 - 1) + 1) ** 2)
        mask = 0.5 / (n_l * (facing**2 * (1 - alpha**2) + alpha**2).sqrt()
                      + facing * (n_l**2 * (1 - alpha**2) + alpha**2).sqrt()).clamp(min=1e-4)  # fmt: skip
        light = light + reaches * power * n_l * ((1 - fresnel) * albedo * 0.5 + fresnel * (spread * mask).clamp(max=60))
    return light


def picture(
    path: Path, yaw: float, size: int, weights: dict[str, float] | None = None, close: bool = False, head: bool = False
) -> Tensor:
    """(1, 3, size, size) of the head turned by ``yaw`` degrees; ``close`` frames the eyes, ``head`` the head alone."""
    parts = Glb(path).primitives(weights)
    everything = torch.cat([part["position"] for part in parts], 1) * 10
    camera, pivot = portrait_camera(everything)
    if (close or head) and len(parts) > 1:
        low, high = (getattr(parts[1]["position"][0] * 10, name)(0) for name in ("amin", "amax"))
        width = (high - low)[:1]
        pivot = (low + high) / 2 - (0 if close else torch.tensor([0.0, 0.08, 0.7]) * width)
        camera = camera.replace(focal=12.0 / (width * (1.25 if close else 2.75)))
    turn = euler_to_matrix(torch.tensor([[0.0, math.radians(yaw), 0.0]]))
    side = 3 * size
    light, nearest = torch.full((side * side, 3), 0.55), torch.full((side * side,), torch.inf)
    solids = [((part["position"] * 10 - pivot) @ turn.mT, part["faces"]) for part in parts]
    for part, (placed, _) in zip(parts, solids, strict=True):
        found = fragments(clip_coordinates(camera, placed), part["faces"], (side, side))
        normal = F.normalize(interpolate(found, part["normal"] @ turn.mT, part["faces"]), dim=-1).reshape(-1, 3)
        uv, point = (interpolate(found, x, part["faces"]) for x in (part["uv"], placed))
        color = F.grid_sample(part["texture"], uv * 2 - 1, padding_mode="border", align_corners=False)
        color = linear(color[0].permute(1, 2, 0).reshape(-1, 3))
        eye = torch.tensor([0.0, 0.0, 12.0])
        view = F.normalize(eye - point.reshape(-1, 3), dim=-1)
        depth = found.depth[0].flatten()
        front = (found.face_index[0].flatten() >= 0) & (depth < nearest)
        places = point.reshape(-1, 3)[front]
        free = [lit(places, solids, direction) for direction, _ in LAMPS]
        light[front] = shaded(color[front], normal[front], view[front], part["roughness"], part["f0"], free)
        nearest[front] = depth[front]
    image = encoded(light).view(1, side, side, 3).permute(0, 3, 1, 2)
    return F.avg_pool2d(image, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glb", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("outputs/preview.jpg"))
    parser.add_argument("--size", type=int, default=420)
    parser.add_argument("--yaw", type=float, nargs="+", default=[-30.0, 0.0, 30.0])
    parser.add_argument("--weights", help="morph weights, name=value,...; the file's own if left out")
    parser.add_argument("--close", action="store_true", help="frame the eyes")
    options = parser.parse_args()
    weights = None
    if options.weights is not None:
        weights = {n: float(v) for n, v in (item.split("=") for item in options.weights.split(",") if item)}
    rows = [
        torch.cat([picture(path, yaw, options.size, weights, options.close) for yaw in options.yaw], 3)
        for path in options.glb
    ]
    write_jpg(options.out, torch.cat(rows, 2), 88)
    print(options.out)


if __name__ == "__main__":
    main()
