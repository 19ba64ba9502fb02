"""Move a UV map to another head: another topology, another atlas.

    python fit/transfer.py texture=outputs/reconstruct/astronaut/texture.png target=ict size=1024
    python fit/transfer.py texture=uv.png source=head.obj target=makehuman
    python fit/transfer.py texture=uv.png target=flame.obj landmarks=flame_landmarks.csv out=flame

Writes into a folder: texture.png, the map in the target's atlas; known.png, white where a color comes from the source,
black where it is filled; landmarks.csv, the source's 68 landmarks on the target (face, three weights, x, y, z);
regions.json, the source's regions as rows of the target's faces; preview.png, both heads. An OBJ stands upright (y up)
and looks at +z. The correspondence of two heads is computed once and kept in the cache.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import run


def main(config: Any) -> int:
    import torch
    from omegaconf import OmegaConf

    from facerecon.correspond import transfer
    from facerecon.errors import ConfigError, check_number
    from facerecon.export import views
    from facerecon.imaging.files import read_image, write_bytes, write_png
    from facerecon.run import set_threads

    for key, example in (("texture", "uv.png"), ("target", "ict")):
        if OmegaConf.is_missing(config, key) or config[key] is None:
            raise ConfigError(f"{key} is not set; for example: {key}={example}")
    if config.size is not None:
        check_number("size", config.size, 8, 8192, whole=True, unit="texels")
    set_threads(config.threads)
    image = read_image(config.texture)[None]
    if image.shape[-1] != image.shape[-2]:
        raise ConfigError(
            f"texture must be a square UV map; {config.texture} is {image.shape[-1]} x {image.shape[-2]}."
        )
    link = transfer.link(_head(config, "source"), _head(config, "target"), config.landmarks)
    moved = link.texture(image, config.size)

    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_png(out / "known.png", moved.known[0])
    faces, weights, _ = link.landmarks()
    target = link.target
    points = (target.mean[target.topology.faces[faces]] * weights[..., None]).sum(1)
    rows = ["# face,weight 0,weight 1,weight 2,x,y,z (0.1 m)"]
    for face, weight, point in zip(faces.tolist(), weights.tolist(), points.tolist(), strict=True):
        rows.append(",".join([str(face), *(f"{x:.6g}" for x in (*weight, *point))]))
    write_bytes(out / "landmarks.csv", ("\n".join(rows) + "\n").encode())
    regions = {name: flags.nonzero()[:, 0].tolist() for name, flags in link.regions().items()}
    write_bytes(out / "regions.json", json.dumps(regions).encode())
    heads = [views.head_views(model.mean[None], picture, model.topology) for model, picture in
             ((link.source, image), (target, moved.texture))]  # fmt: skip
    write_png(out / "preview.png", torch.cat(heads, 2))
    write_png(out / "texture.png", moved.texture)
    skin = transfer.skin_texels(target, moved.texture.shape[-1])
    share = float((moved.known * skin).sum() / skin.sum())
    print(f"{out / 'texture.png'} written: {target.topology.name}, {moved.texture.shape[-1]} px; "
          f"{100 * share:.1f} % of its skin comes from the source")  # fmt: skip
    return 0


def _head(config: Any, which: str) -> Any:
    """The head of ``source`` or ``target``: a model of its own file, or what the library makes of the name."""
    from facerecon.errors import ConfigError
    from facerecon.morphable import load_face_model

    name, path = str(config[which]), config[f"{which}_path"]
    if path is None:
        return name
    if name.lower().endswith(".obj"):
        raise ConfigError(f"{which}_path belongs to a head model; got {which}={name}, a file. Leave {which}_path out.")
    return load_face_model(name, num_identity=0, path=path)


command = partial(run, main, "transfer", __doc__)

if __name__ == "__main__":
    sys.exit(command())
