"""Stage 1's regressor N_enc (Sec. 4.2), for any head model: from rendered faces with truth, and photos without.

    python train/regressor.py face_model=makehuman synthetic.maps=uv synthetic.mirror=true        ResNet-18, 224 px
    python train/regressor.py backbone=resnet50 num_identity=null weak.share=0.5 weak.data=photos    Deep3D's way
    python train/regressor.py width=0.7 size=112 kimg=500 synthetic.maps=uv weak.share=0.25     on a CPU
    python train/regressor.py ... prepare=true                              only make the cache, which runs may share
    torchrun --nproc-per-node 8 train/regressor.py batch=512 kimg=20000 synthetic.cached=200000

Writes regressor.safetensors (the running average), checkpoints/, metrics.jsonl, and at each snapshot grids of fits:
what the network sees, the rendering of its prediction, the rendering of the truth (of a photo: what is compared).
Ctrl-C and SIGTERM end the step and write a checkpoint; a second one does not wait. The same command goes on from the
last checkpoint, and ends as a run that was not stopped; with another learning rate, say, resume=force goes on.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import aliases, run

STRUCTURE = (
    *("face_model", "face_model_path", "num_identity", "decoder", "texture", "backbone", "width", "size", "init"),
    *("seed", "synthetic", "weak.count", "weak.truncation", "weak.generator", "weak.identity"),
)
"""Keys that a run keeps for good, beside what its files are; the others change with resume=force, but for
``facerecon.run.directory.FREE_TO_CHANGE``."""

MAPS = 400
"""Textures that ``synthetic.maps=open`` decodes."""

OPEN = {"generator": "mobile_stylegan", "identity": "identity128"}
"""Parts of the open pack; caches of faces without truth name only what differs from them."""


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.run import choose_device, set_threads
    from facerecon.run.processes import Processes
    from facerecon.run.training_loop import training_folder

    set_threads(config.threads)
    values = OmegaConf.to_container(config, resolve=True)
    check_settings(config)
    cache = Path(config.cache or Path(config.out) / "cache")
    with Processes(choose_device(config.device)) as processes:
        data, decoder, files = load_data(config, values, processes, cache)  # an error here costs nothing
        training = build_training(config, values, data, decoder)
        if config.prepare:
            data.prepare()
            if processes.first:
                print(f"the cache in {cache} is whole.")
            return 0
        settings = {"script": "regressor"} | values | {"files": files}
        with training_folder(settings, processes, ("script", *STRUCTURE, "files"), aliases("regressor")) as folder:
            data.prepare()
            return train(config, values, data, training, folder)


def train(config: Any, values: dict, data: Any, training: Any, folder: Any) -> int:
    """The loop; ``folder`` is None on ranks that do not write."""
    from facerecon.run import drop_after
    from facerecon.run.training_loop import TrainingLoop
    from facerecon.training.snapshots import RegressorSnapshots

    c, t = config, training
    about = {"trained": "train/regressor.py", "batch": c.batch, "weak_share": c.weak.share, "seed": c.seed}
    about |= {"weak_data": "open" if c.weak.data == "open" else "photos", "synthetic_faces": c.synthetic.cached}
    about["texture_maps"] = 0 if data.faces.maps is None else len(data.faces.maps)
    about["mean_of"] = 1 if c.init is None or isinstance(c.init, str) else len(c.init)
    snapshots = folder and RegressorSnapshots(folder.path, t, data, about, c.measure, c.grid, c.file)
    loop = TrainingLoop(t, folder, values, snapshots, mean=True)
    loop.resume()
    total = round(c.kimg * 1000)
    if total and loop.nothing_to_do(total):
        return 0
    with loop.until(total):
        if total == 0 and folder is not None:  # what it starts from, measured; anew, if it was before
            drop_after(folder.metrics.path, -1, "images")
            loop.snapshot(final=True)
        while loop.running():
            batch = data.next_batch(t.steps, t.device)
            loss, metrics = t.loss(*batch)
            metrics |= t.descend(loss)  # backward, gradients of all ranks, AdamW
            t.finish_step(c.batch)  # running average
            loop.end_step(metrics)
    return 0


def check_settings(c: Any) -> None:
    """What a setting may be that the library does not look at itself."""
    from facerecon.assets import status
    from facerecon.assets.release import require
    from facerecon.errors import ConfigError, check_number

    for key, least in (("batch", 1), ("keep", 1), ("measure", 0), ("grid", 1), ("size", 32)):
        check_number(key, c[key], least, whole=True)
    check_number("synthetic.cached", c.synthetic.cached, 0, whole=True)
    check_number("weak.count", c.weak.count, 1, whole=True)
    if not 0 <= c.weak.share <= 1:
        raise ConfigError(f"weak.share must be 0 to 1; got {c.weak.share!r}.")
    if c.file not in ("float32", "float16", "int8"):
        raise ConfigError(f"file must be float32, float16 or int8; got {c.file!r}.")
    if c.kimg < 0 or (c.kimg == 0 and not c.init):
        raise ConfigError(f"kimg must be above 0 (or 0, to measure and save the mean of init=); got {c.kimg!r}.")
    needed = {}  # of the FFHQ-UV release: {asset: the setting that does without it}
    if c.face_model == "hifi3dpp" and not c.face_model_path:
        needed["hifi3dpp"] = "face_model=makehuman decoder=linear"
    if c.weak.share > 0:
        if c.weak.identity == "arcface":
            needed["arcface"] = "weak.identity=sface"
        if c.weak.data == "open" and c.weak.generator == "stylegan2_ffhq" and status("e4e_generator").state != "ready":
            needed["stylegan2_ffhq"] = "weak.generator=mobile_stylegan"
    require(needed)


def load_data(c: Any, v: dict, processes: Any, cache: Path) -> tuple[Any, Any, dict]:
    """Crops to learn from, the head's linear texture, and what tells their files; nothing is rendered yet."""
    from facerecon.errors import ConfigError
    from facerecon.imaging.files import list_images
    from facerecon.morphable import load_face_model
    from facerecon.run import item_seed
    from facerecon.settings import build_settings
    from facerecon.synthetic.faces import SyntheticFaces
    from facerecon.synthetic.population import population_of
    from facerecon.synthetic.settings import SyntheticSettings
    from facerecon.training.crops import PhotometricAugmentation, PhotometricSettings
    from facerecon.training.regressor import network_sizes
    from facerecon.training.regressor_data import RegressorData, decoded_maps, square_pictures, texture_maps
    from facerecon.training.uv_maps import UVMaps, identity_of

    augment = build_settings(PhotometricSettings, v["augment"], "augment")
    chosen = {
        key: value for key, value in v["synthetic"].items() if key not in ("cached", "maps", "backgrounds", "scans")
    }
    settings = build_settings(SyntheticSettings, chosen, "synthetic")
    photos_a_step = round(c.batch * c.weak.share)
    for count, several in ((photos_a_step, 1), (c.batch - photos_a_step, settings.pictures)):
        processes.part(count, math.lcm(augment.group, several) if processes.count > 1 else several)
    if c.synthetic.cached % settings.pictures:
        raise ConfigError(
            f"synthetic.cached={c.synthetic.cached} is not a multiple of synthetic.pictures={settings.pictures}."
        )
    model, decoder = load_head(c)
    maps, backgrounds, sources = None, None, {}
    if c.synthetic.maps == "open":
        maps = decoded_maps(model, MAPS, item_seed(c.seed, "maps"))
        sources["maps"] = ["decoder=open", MAPS]
    elif c.synthetic.maps:
        maps, sources["maps"] = texture_maps(c.synthetic.maps)
    population = None
    if c.synthetic.scans:
        scans = load_face_model("ict", None, c.synthetic.scans)
        population, sources["scans"] = population_of(scans, model), [scans.name, scans.num_identity]
    paths = list_images(c.synthetic.backgrounds) if c.synthetic.backgrounds else []
    if paths:
        backgrounds, sources["backgrounds"] = square_pictures(paths, c.size), [len(paths), paths[0].name]
    files = {"maps": identity_of(UVMaps(c.synthetic.maps).paths if c.synthetic.maps not in (None, "open") else ())}
    files["backgrounds"] = identity_of(paths)
    seed = item_seed(c.seed, "faces")
    faces = SyntheticFaces(model, decoder, settings, seed, c.size, c.texture, maps, backgrounds, population)
    facts = {key: v[key] for key in ("num_identity", "decoder", "texture", "seed")}
    facts |= {"settings": chosen, "sources": sources}
    facts |= {"face_model": model.name, "version": model.version, "size": c.size}
    shards, photos = open_shards(c, cache, facts, photos_a_step)
    photo_paths = photos.pop("paths", None)
    if photo_paths is not None:
        files["photos"] = identity_of(photo_paths)
    sizes = network_sizes(model, c.backbone, c.width, c.size, c.decoder, len(faces.basis))
    data = RegressorData(
        faces, sizes, PhotometricAugmentation(augment, c.seed), processes, c.seed, c.batch - photos_a_step,
        photos_a_step, shards, identity=c.weak.identity, **photos,
    )  # fmt: skip
    return data, decoder, files


def load_head(c: Any) -> tuple[Any, Any]:
    """Head model and its linear texture."""
    from facerecon.correspond.resample import decoder_for, retarget
    from facerecon.morphable import load_face_model

    model = load_face_model(c.face_model, c.num_identity, c.face_model_path)
    resampled = None if model.topology.name == "makehuman" else retarget(model)
    model = model if resampled is None else resampled.model
    return model, decoder_for(model, c.decoder, c.texture if c.decoder == "albedo" else None, resampled)


def open_shards(c: Any, cache: Path, facts: dict, photos_a_step: int) -> tuple[Any, dict]:
    """Where rendered faces are kept, which depend on ``facts``, or None; and shards, pictures and paths of photos."""
    from facerecon.training.crops import CropShards, photo_sources
    from facerecon.training.regressor_data import generated_faces

    shards = None
    if c.synthetic.cached:
        shards = CropShards(cache / "synthetic", c.synthetic.cached, facts, aliases=aliases("regressor"))
    if not photos_a_step:
        return shards, {}
    if c.weak.data == "open":
        paths, count, picture = None, c.weak.count, generated_faces(c.weak.generator, c.seed, c.weak.truncation)
        source = {"data": "open", "truncation": c.weak.truncation, "seed": c.seed}
    else:
        paths, source = photo_sources(c.weak.data)
        count, picture = len(paths), lambda number: (str(paths[number]), paths[number])
    names = ("generator", "identity") if paths is None else ("identity",)
    source |= {name: c.weak[name] for name in names if c.weak[name] != OPEN[name]}
    source |= {key: facts[key] for key in ("face_model", "size")}
    photo_shards = CropShards(cache / "photos", count, source, each=32)
    return shards, {"photo_shards": photo_shards, "picture": picture, "paths": paths}


def build_training(c: Any, v: dict, data: Any, decoder: Any) -> Any:
    """Network, losses and optimizer put together."""
    from facerecon.evaluation import head_region_forms
    from facerecon.perception import load_identity
    from facerecon.run import choose_training_precision, item_seed
    from facerecon.settings import build_settings
    from facerecon.training import regressor

    model, sizes, processes = data.faces.model, data.sizes, data.processes
    network, about = regressor.start_network(sizes, c.init, item_seed(c.seed, "weights"))
    weak = None
    if data.photos_a_step:
        identity = load_identity(c.weak.identity) if c.weak.loss.features > 0 else None
        weak = regressor.WeakLosses(model, decoder, c.size, sizes.texture, identity)
    forms = head_region_forms(model)
    training = regressor.RegressorTraining(
        network,
        regressor.CoefficientLosses(model, decoder, sizes.texture, regions=forms, pictures=data.pictures),
        build_settings(regressor.SupervisedWeights, v["loss"], "loss", 0),
        weak,
        build_settings(regressor.WeakWeights, v["weak"]["loss"], "weak.loss", 0),
        c.weak.weight,
        build_settings(regressor.StepSettings, v["step"], "step", 0),
        c.kimg * 1000,
        choose_training_precision(c.precision, processes.device),
        processes,
    )
    if processes.first:
        million = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{c.backbone} x {c.width:g} at {c.size} px, {million:.1f} M parameters, started {about}; "
            f"{model.name}: {sizes.identity} identity, {sizes.expression} expression, {sizes.texture} "
            f"texture coefficients; {data.faces_a_step} rendered faces and {data.photos_a_step} without truth a step; "
            f"{training.precision} on {processes.device}, {processes.count} process(es)"
        )
    return training


command = partial(run, main, "regressor", __doc__)

if __name__ == "__main__":
    sys.exit(command())
