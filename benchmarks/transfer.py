"""Textures moved between topologies: what is left after there and back, and how they look.

    python -m benchmarks.transfer uv/uv-maps --ict ICT-FaceKit --head hifi3dpp_head.obj --texture hifi3dpp_texture.png
    python -m benchmarks.transfer uv/uv-maps --n 16 --figure docs/transfer.jpg ...

PSNR (dB) over the makehuman face of maps moved to another head and back (HiFi3D++ has no eyes to show: see the figure
without lids and eyes); the intermediate map has ``--size`` texels a
side. The figure shows the first map and the head's own texture on each of the three heads, with eyeballs, as their GLB
files look.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.preview_glb import picture
from facerecon.correspond import transfer
from facerecon.correspond.obj import read_head
from facerecon.export import save_glb
from facerecon.imaging.files import list_images, read_image, to_pil
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.render.uv import region_texels
from facerecon.types import Camera, Latent, ReconstructedFace


def psnr(one: Tensor, two: Tensor, mask: Tensor) -> float:
    """dB over the texels of a mask (1, 1, S, S)."""
    error = ((one - two).square() * mask).sum() / (mask.sum() * one.shape[1])
    return float(-10 * torch.log10(error))


def worn(model: MorphableModel, texture: Tensor) -> ReconstructedFace:
    """The mean head of a model with a texture."""
    vertices = model.mean[None]
    return ReconstructedFace(
        params=model.neutral(),
        latent=Latent(torch.zeros(1, 1, 1)),
        texture=texture,
        decoded=texture,
        visibility=torch.ones_like(texture[:, :1]),
        vertices=vertices,
        neutral_vertices=vertices,
        camera=Camera.deep3d(),
        topology=model.topology,
        expression_basis=model.expression_basis,
        expression_names=model.expression_names,
    )


def there_and_back(source: MorphableModel, target: MorphableModel, maps: list[Path], size: int) -> None:
    """Print the PSNR of maps that were moved to the target and back."""
    link = transfer.link(source, target)
    start = time.process_time()
    side = read_image(maps[0]).shape[-1]
    link.places(size), link.back.places(side)
    seconds = time.process_time() - start
    face = region_texels(source.topology, "face", side)
    bare = (face - region_texels(source.topology, ("lids", "eyes"), side)).clamp(0, 1)
    back, start, values = link.back, time.process_time(), []
    for path in maps:
        image = read_image(path)[None]
        again = back.texture(link.texture(image, size).texture, side).texture
        values.append((psnr(again, image, face), psnr(again, image, bare)))
    table = torch.tensor(values)
    print(
        f"{source.topology.name} {side} px -> {target.topology.name} {size} px -> back, {len(maps)} maps: "
        f"PSNR over the face {table[:, 0].mean():.1f} dB (worst {table[:, 0].min():.1f}), without lids and eyes "
        f"{table[:, 1].mean():.1f} (worst {table[:, 1].min():.1f}); {(time.process_time() - start) / len(maps):.1f} s "
        f"of CPU a map, {seconds:.0f} s once"
    )


def figure(rows: list[list[tuple[str, MorphableModel, Tensor]]], path: Path, side: int = 330) -> None:
    """Heads from in front and from the side, one row a texture."""
    font = ImageFont.load_default(17)
    sheet = Image.new("RGB", (2 * side * len(rows[0]), len(rows) * (side + 30)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as folder:
        for i, row in enumerate(rows):
            for k, (caption, model, texture) in enumerate(row):
                file = save_glb(worn(model, texture), Path(folder) / "head.glb", targets=())
                views = torch.cat([picture(file, yaw, side, head=True) for yaw in (0.0, 35.0)], 3)
                sheet.paste(to_pil(views[0]), (2 * side * k, i * (side + 30) + 30))
                draw.text((2 * side * k + 10, i * (side + 30) + 5), caption, (40, 44, 50), font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=84)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", help="UV maps of the makehuman head: a picture, a folder, a pattern")
    parser.add_argument("--ict", type=Path, help="ICT-FaceKit's clone or npz; the cache's if left out")
    parser.add_argument("--head", type=Path, help="a head of another topology, e.g. HiFi3D++'s: OBJ with UVs")
    parser.add_argument("--texture", type=Path, help="its texture")
    parser.add_argument("--n", type=int, default=8, help="maps to move there and back")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="of the intermediate map")
    parser.add_argument("--figure", type=Path, help="draw the heads")
    options = parser.parse_args()
    maps = list_images(options.maps)
    maps = maps[:: max(1, len(maps) // options.n)][: options.n]
    makehuman = load_face_model("makehuman", num_identity=0)
    ict = load_face_model("ict", num_identity=0, path=options.ict)
    heads = [ict] + ([read_head(options.head)] if options.head else [])
    for head in heads:
        for size in options.size:
            there_and_back(makehuman, head, maps, size)
    if options.figure:
        image = read_image(maps[0])[None]
        names = {id(makehuman): "makehuman", id(ict): "ICT-FaceKit"} | {id(h): "HiFi3D++" for h in heads[1:]}
        rows = [[("a makehuman map, on its own head", makehuman, image)]]
        rows[0] += [(f"moved to {names[id(h)]}", h, transfer.texture(image, makehuman, h, 1024).texture) for h in heads]
        if options.head and options.texture:
            image, head = read_image(options.texture)[None], heads[1]
            moved = [
                (f"moved to {names[id(h)]}", h, transfer.texture(image, head, h, 1024).texture)
                for h in (ict, makehuman)
            ]
            rows.append([("a HiFi3D++ map, on its own head", head, image), *moved[::-1]])
        figure(rows, options.figure)


if __name__ == "__main__":
    main()
