"""One subject of the released set beside the same subject through our extraction and completion.

    python benchmarks/subject.py REFERENCE --hifi3dpp hifi3dpp_model_info.mat --out subject.jpg

Two maps of ours are shown: from the released views, and from the photo alone (inversion, editing, extraction).

REFERENCE holds ``01223_photo.jpg``, its released normalized views (``_front``, ``_left``, ``_right``) and map
(``_final_uv.png``). The released map is carried over to our head by dense correspondence, so that both are drawn on
the same head, in the pose fitted to the photo, under the light solved for each, with the same eyes. The judge, which
nothing was optimized for, compares each render (pasted into the photo) with the photo.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import Renderer, load_face_model
from facerecon.correspond.resample import retarget
from facerecon.dataset import Item, PipelineSettings, UVPipeline
from facerecon.dataset.complete import complete, load_template
from facerecon.dataset.extract import ExtractSettings, extract
from facerecon.evaluation.reconstruction import reconstruction_metrics
from facerecon.evaluation.texture import brightness_symmetry_error
from facerecon.fitting import fit_landmarks, fit_light_and_texture
from facerecon.imaging.files import contact_sheet, read_image, write_jpg
from facerecon.morphable import MorphableModel
from facerecon.perception import observe
from facerecon.perception.identity import load_eval_identity
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.types import Camera, Observation, SHLight


def rendered(texture: Tensor, photo: Observation, model: MorphableModel) -> tuple[Tensor, float]:
    """The texture on the head fitted to a photo, pasted into it (3, 224, 224), and the judge's cosine to the photo."""
    renderer = Renderer(size=photo.image.shape[-1])
    params = fit_landmarks(model, photo.landmarks68, mesh_points=photo.mesh468)
    vertices = model(params)
    view = renderer.prepare(vertices, model.topology, Camera.deep3d(), SHLight.ambient(1), face_region="face")
    fixed = LinearDecoder(texture[0], torch.zeros(1, *texture.shape[1:]))
    light, _ = fit_light_and_texture(photo, fixed, view, vertices, model.topology.faces)
    figures, image = reconstruction_metrics(
        photo, params.replace(light=light), texture, model, renderer, load_eval_identity()
    )
    return image[0], figures["identity"].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--subject", default="01223")
    parser.add_argument("--hifi3dpp", type=Path, required=True, help="the released head model's .mat file")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("subject.jpg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def path(name: str) -> Path:
        return arguments.reference / f"{arguments.subject}_{name}"

    size = (arguments.size, arguments.size)
    model, head = load_face_model("makehuman"), load_face_model("hifi3dpp", num_identity=0, path=arguments.hifi3dpp)
    template = load_template(model, arguments.size)
    views = torch.stack([read_image(path(f"{side}.jpg")) for side in ("front", "left", "right")])
    found = extract(views, model, ExtractSettings(size=arguments.size))
    ours = complete(found, template)
    alone = UVPipeline(PipelineSettings(size=arguments.size, check=False))(Item(0, path=str(path("photo.jpg"))))
    if alone.error:
        raise SystemExit(f"error: {alone.error}")
    alone_map = read_image(alone.files["uv-maps/000000.png"])[None]
    released = read_image(path("final_uv.png"))[None]
    carried = retarget(model, source=head).texture(released, head)
    carried = F.interpolate(carried, size, mode="bilinear", antialias=True)
    carried = torch.where(template.layout.skin > 0, carried, ours.texture)

    photo = observe(path("photo.jpg"))
    pictures, labels = [photo.image[0]], ["photo"]
    figures = {
        "BS Error, released": brightness_symmetry_error(released).item(),
        "BS Error, ours": brightness_symmetry_error(ours.texture).item(),
        "BS Error, ours, observed texels": brightness_symmetry_error(ours.texture, ours.observed).item(),
        "observed share": ours.observed_share.item(),
        "BS Error, ours from the photo, observed texels": alone.figures["bs_error"],
        "judge, inversion": alone.figures["inversion"],
    }
    maps = {
        "released": carried,
        "ours from the released views": ours.texture,
        "ours from the photo": alone_map,
        "template": template.texture,
    }
    for name, texture in maps.items():
        picture, cosine = rendered(texture, photo, model)
        figures[f"identity, {name}"] = cosine
        if name != "template":  # the floor: a map of nobody
            pictures.append(picture)
            labels.append(f"{name} {cosine:.3f}")
    pictures += [views[0], carried[0], ours.texture[0], alone_map[0]]
    labels += ["released front view", "released map on our atlas", *list(maps)[1:3]]
    same = [F.interpolate(p[None], (448, 448), mode="bilinear", antialias=True)[0] for p in pictures]
    write_jpg(arguments.out, contact_sheet(torch.stack(same), 4, labels, size=448))
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
