"""Re-render a saved head: another view, light or expression.

    python fit/render.py params=outputs/reconstruct/astronaut/params.safetensors yaw=30
    python fit/render.py params=.../params.safetensors light=left expression=jawOpen:0.6,mouthSmileLeft:1 out=smile.png

Angles are in degrees: yaw turns the face to the image's right, pitch up, roll clockwise. The light is `fitted`,
`studio`, `left`, `right`, `top` or `ambient`. The expression is `fitted`, `neutral`, or weights in [0, 1] by unit name.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import run


def main(config: Any) -> int:
    import torch
    from omegaconf import OmegaConf

    from facerecon.errors import ConfigError, InputError, check_number
    from facerecon.export import views
    from facerecon.fit.models import decoder_of, prepare
    from facerecon.fitting.tone import toned
    from facerecon.geometry.rotation import euler_to_matrix
    from facerecon.imaging.files import read_image, write_png
    from facerecon.morphable import load_face_model
    from facerecon.morphable.hifi3dpp import fill_sockets
    from facerecon.settings import check_keys
    from facerecon.types import SavedFace, SHLight, saved_head

    if OmegaConf.is_missing(config, "params"):
        raise ConfigError("params is not set; for example: params=outputs/reconstruct/astronaut/params.safetensors")
    for key in ("yaw", "pitch", "roll"):
        check_number(key, config[key])
    check_number("size", config.size, 1, 4096, whole=True, unit="px")
    check_number("background", config.background, 0, 1)
    device = prepare(config)
    saved = SavedFace.load(config.params)
    source = config.face_model_path or saved.face_model_path or None
    name = saved_head(saved.face_model, saved.face_model_version)
    model = load_face_model(name, num_identity=saved.num_identity, path=source)
    model = (fill_sockets(model) if saved.face_model == "hifi3dpp" else model).to(device)
    params = saved.params.to(device)
    texture_path = Path(config.texture) if config.texture else Path(config.params).with_name("texture.png")
    if texture_path.is_file():
        texture = read_image(texture_path)[None].to(device)
    elif config.texture:
        raise InputError(f"{texture_path} does not exist; leave texture= out to decode the saved latent.")
    else:
        texture = decoder_of(model, saved).to(device)(saved.latent.to(device))
        texture = toned(texture, params.tone, model.topology).clamp(0, 1)

    params = params.replace(expression=_expression(str(config.expression), params.expression, model.expression_names))
    lights = {
        "studio": views.studio_light(),
        "left": views.sh_directional_light((-1.0, 0.3, 0.5), ambient=0.26),
        "right": views.sh_directional_light((1.0, 0.3, 0.5), ambient=0.26),
        "top": views.sh_directional_light((0.0, 1.0, 0.7), ambient=0.26),
        "ambient": SHLight.ambient(),
        "fitted": params.light,
    }
    check_keys([config.light], lights, "light")
    light = lights[config.light].to(device)

    vertices = model.shape(params)
    camera, pivot = views.portrait_camera(vertices)
    turn = [math.radians(float(v)) for v in (-config.pitch, config.yaw, -config.roll)]
    rotation = euler_to_matrix(params.rotation.new_tensor([turn]))
    if config.keep_pose:
        rotation = rotation @ euler_to_matrix(params.rotation)
    shot = views.shoot((vertices - pivot) @ rotation.mT, texture, model.topology, camera, 2 * config.size)
    image = views.textured(shot, light) + float(config.background) * (1 - shot.mask)
    image = torch.nn.functional.avg_pool2d(image, 2).clamp(0, 1)
    write_png(config.out, image)
    print(f"{config.out} written")
    return 0


def _expression(text: str, fitted: Any, names: tuple) -> Any:
    """Expression weights (1, E) from 'fitted', 'neutral' or 'name:weight,name:weight'."""
    import torch

    from facerecon.errors import ConfigError, check_number, nearest_name

    if text == "fitted":
        return fitted
    weights = torch.zeros_like(fitted)
    if text == "neutral":
        return weights
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        if name not in names:
            raise ConfigError(nearest_name(name, ("fitted", "neutral", *names), "expression"))
        try:
            weight = float(value or 1)
        except ValueError:
            weight = value
        check_number(f"the weight of {name}", weight)
        weights[0, names.index(name)] = weight
    return weights


command = partial(run, main, "render", __doc__)

if __name__ == "__main__":
    sys.exit(command())
