"""UV maps -> texture decoder: StyleGAN2 training (Sec. 4.1), from scratch or after a supervised start on pairs.

    python train/texture_gan.py data=uv size=256 batch=16 kimg=1000                      the paper's way
    python train/texture_gan.py data=uv size=256 base=linear codes=maps mirror=true channel_base=4096 channel_max=192 \\
        w_dim=128 linear_size=128 constant_size=128 pretrain.lr=0.006 pretrain.coarse=0 pretrain.rampdown=0.8 \\
        pretrain.kimg=28 kimg=0                                                          a small set, on a CPU
    torchrun --nproc-per-node 8 train/texture_gan.py data=uv size=1024 batch=32 kimg=25000
    python train/texture_gan.py data=uv size=512 init=small/decoder.safetensors out=large  finetune, or grow

Writes decoder.safetensors (the running average, for decoder=PATH), checkpoints/, metrics.jsonl, and at each snapshot
pictures: samples (fixed seeds), interpolations, held-out pairs beside the truth; real.png shows maps of the set.
Ctrl-C and SIGTERM end the step and write a checkpoint; a second one does not wait. The same command goes on from the
last checkpoint, and ends as a run that was not stopped; with another learning rate, say, resume=force goes on.
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

from facerecon.configs.compose import aliases, run

STRUCTURE = (
    *("codes", "mapping_layers", "constant_size", "linear_size", "size", "channel_base", "channel_max", "w_dim"),
    *("base", "mapping", "train_mapping", "share", "held_out", "seed", "init"),
)
"""Keys that a run keeps for good, beside what its maps are; the others change with resume=force, but for
``facerecon.run.directory.FREE_TO_CHANGE``."""


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.errors import ConfigError
    from facerecon.run import choose_device, set_threads
    from facerecon.run.processes import Processes
    from facerecon.run.training_loop import training_folder
    from facerecon.training.uv_maps import identity_of

    if OmegaConf.is_missing(config, "data"):
        raise ConfigError("data is not set; for example: python train/texture_gan.py data=uv size=256")
    set_threads(config.threads)
    check_settings(config)
    values = OmegaConf.to_container(config, resolve=True)
    with Processes(choose_device(config.device)) as processes:
        data, source = load_data(config, values)  # whatever is wrong with the data or the settings costs nothing
        training, distances = build_training(config, values, data, source, processes)
        manifest = [] if data.pairs is None else [Path(config.data) / "manifest.safetensors"]
        settings = {"script": "texture_gan"} | values | {"maps": identity_of([*data.memory.paths, *manifest])}
        fixed = ("script", *STRUCTURE, "maps")
        with training_folder(settings, processes, fixed, aliases("texture_gan")) as folder:
            return train(config, values, data, training, distances, folder)


def train(config: Any, values: dict, data: Any, training: Any, distances: dict, folder: Any) -> int:
    """The loop; ``folder`` is None on ranks that do not write."""
    from facerecon.run.training_loop import TrainingLoop
    from facerecon.training.snapshots import TextureSnapshots
    from facerecon.training.texture_gan import CollapseWatch

    c, t, s = config, training, training.adversarial
    about = {key: values[key] for key in ("atlas", "batch", "mapping", "base", "share", "seed")}
    about |= {"trained": "train/texture_gan.py", "maps": len(data.chosen), "codes": codes_kind(c)}
    about |= {} if data.pairs is None else {"pair_truncation": data.pairs.truncation}
    measure = {key: value for key, value in values["measure"].items() if key != "inception"}
    snapshots = folder and TextureSnapshots(
        folder.path, t, data, about, batch=c.batch, seed=c.seed, keep=c.keep_decoders, distances=distances,
        **values["grid"], **measure,
    )  # fmt: skip
    loop = TrainingLoop(t, folder, values, snapshots, longer="pretrain.kimg or kimg")
    loop.resume()
    pretrain_images = math.ceil(c.pretrain.kimg * 1000 / c.pretrain.batch) * c.pretrain.batch
    if t.phase == "adversarial":
        pretrain_images = t.pretrain_images
    total = pretrain_images + round(c.kimg * 1000)
    if loop.nothing_to_do(total):
        return 0
    watch = CollapseWatch(**values["collapse"])
    with loop.until(total):
        while loop.running():
            t.enter("pretrain" if t.images < pretrain_images else "adversarial")
            if t.phase == "pretrain":  # supervised: the map of a face, from the face's code
                maps, codes, rows = data.next_pairs(t.numbers(), t)
                losses = t.pretrain_step(codes, maps, t.images / pretrain_images, rows)
            else:  # adversarial: StyleGAN2
                maps, losses = data.next_maps(t.numbers(), t.device), {}
                if t.images - t.pretrain_images >= s.delay_kimg * 1000:
                    losses |= t.generator_step()
                    if s.path_weight and t.steps % s.path_every == 0:
                        losses |= t.path_step()
                losses |= t.discriminator_step(maps)
                if s.gamma(c.size, c.batch) and t.steps % s.r1_every == 0:
                    losses |= t.r1_step(maps)
            losses |= t.finish_step(c.average_kimg * 1000, c.average_rampup)  # running average, augmentation
            watch(losses, t)
            loop.end_step(losses)
    return 0


def check_settings(c: Any) -> None:
    """What a setting may be that the library does not look at itself."""
    from facerecon.errors import ConfigError, check_number, nearest_name
    from facerecon.morphable import FACE_MODELS
    from facerecon.stylegan.generator import NOISE

    sizes = {key: c[key] for key in ("batch", "keep", "linear_size")} | {"pretrain.batch": c.pretrain.batch}
    sizes |= {"grid.samples": c.grid.samples, "grid.cell": c.grid.cell, "collapse.patience": c.collapse.patience}
    for key, value in sizes.items():
        check_number(key, value, 1, whole=True)
    for key in ("pairs", "inversion", "inversion_steps", "features"):
        check_number(f"measure.{key}", c.measure[key], 0, whole=True)
    if c.recompute_from is not None and (not isinstance(c.recompute_from, int) or c.recompute_from < 4):
        raise ConfigError(f"recompute_from must be null or px, 4 or more; got {c.recompute_from!r}.")
    for key in ("pretrain", "adversarial"):
        if c[key].noise not in NOISE:
            raise ConfigError(nearest_name(c[key].noise, NOISE, f"{key}.noise"))
    known = {"atlas": FACE_MODELS, "mapping": ("auto", "open", "own"), "train_mapping": ("auto", True, False)}
    known |= {"base": ("none", "mean", "linear"), "codes": ("faces", "maps")}
    for key, names in known.items():
        if c[key] not in names:
            raise ConfigError(f"{key} must be one of {', '.join(map(str, names))}; got {c[key]!r}.")
    if c.pretrain.kimg <= 0 and c.kimg <= 0:
        raise ConfigError("pretrain.kimg and kimg are both 0: there is nothing to train.")


def codes_kind(c: Any) -> str:
    """Whose codes the run learns pairs of: "faces", "maps" or "none"."""
    return c.codes if c.pretrain.kimg > 0 or c.adversarial.pairs > 0 else "none"


def load_data(c: Any, values: dict) -> tuple[Any, Any]:
    """Maps and their codes, and the open face generator where its mapping network is to be the decoder's.

    Sets ``values["mapping"]`` to the kind that "auto" stands for.
    """
    from facerecon.dataset import Manifest
    from facerecon.errors import ConfigError, InputError
    from facerecon.stylegan.face_generator import load_generator
    from facerecon.training.texture_data import TextureData
    from facerecon.training.uv_maps import MapMemory, PairedCodes

    kind = codes_kind(c)
    data = TextureData(MapMemory(c.data, c.size, c.memory_gb), c.share, c.held_out, c.seed)
    values["mapping"] = ("open" if kind == "faces" else "own") if c.mapping == "auto" else c.mapping
    if values["mapping"] == "open" and kind == "maps":
        raise ConfigError("codes=maps has a W of its own; set mapping=own, or codes=faces.")
    if values["mapping"] == "own" and kind == "faces":
        raise ConfigError("pairs need the mapping network that drew their codes; set mapping=open.")
    source = load_generator() if values["mapping"] == "open" else None
    if kind == "maps":
        data.use_codes_of_maps(c.w_dim, c.mirror, c.linear_size, c.pretrain.code_noise)
    elif kind == "faces":
        path = Path(c.data) / "manifest.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path} does not exist; pairs need the manifest of a set that train/uv_dataset.py made of the open "
                "generator. Set pretrain.kimg=0 adversarial.pairs=0 to train without pairs."
            )
        pairs = PairedCodes(Manifest.load(path), data.memory.names, source.mean_w, c.pair_truncation)
        data.use_codes_of_faces(pairs, c.pretrain.code_noise)
    return data, source


def build_training(c: Any, v: dict, data: Any, source: Any, processes: Any) -> tuple[Any, dict]:
    """Networks, optimizers and settings put together, and the distances that are measured at snapshots."""
    import torch

    from facerecon.assets import locate
    from facerecon.evaluation.distribution import DistanceFrom, identity_features, inception_features
    from facerecon.losses import LPIPSDistance
    from facerecon.run import choose_training_precision, item_seed
    from facerecon.settings import build_settings
    from facerecon.stylegan.discriminator import Discriminator
    from facerecon.stylegan.generator import GeneratorConfig
    from facerecon.stylegan.load import DECODERS
    from facerecon.stylegan.weights import read_generator
    from facerecon.training.ada import ADASettings, Augment
    from facerecon.training.texture_gan import AdversarialSettings, PairWeights, PretrainSettings, TextureTraining
    from facerecon.training.texture_networks import build_generator

    precisions = [choose_training_precision(c[key], processes.device) for key in ("precision", "regularizer_precision")]
    layers = (0 if data.map_codes else 8) if c.mapping_layers == "auto" else c.mapping_layers
    sizes = GeneratorConfig(
        size=c.size,
        z_dim=512 if layers else c.w_dim,
        w_dim=c.w_dim,
        mapping_layers=layers,
        channel_base=c.channel_base,
        channel_max=c.channel_max,
        mapped_dim=0 if source is None or c.w_dim == len(source.mean_w) else len(source.mean_w),
        constant_size=c.constant_size,
    )
    released = DECODERS[c.init].asset if c.init in DECODERS else ""
    initial = read_generator(locate(released) if released else c.init)[0] if c.init else None
    generator, about = build_generator(
        sizes, data, source, initial, c.base, c.linear_size, c.pretrain.code_noise, c.pretrain.kimg > 0,
        item_seed(c.seed, "weights"),
    )  # fmt: skip
    torch.manual_seed(item_seed(c.seed, "discriminator"))
    discriminator = Discriminator(c.size, c.channel_base, c.channel_max) if c.kimg > 0 else None
    real = functools.partial(data.batches, processes.device)
    distances = {"identity": DistanceFrom(identity_features(), real)} if c.measure.features else {}
    if distances and c.measure.inception:
        distances["inception"] = DistanceFrom(inception_features(c.measure.inception), real)
    for network in filter(None, (generator.synthesis, discriminator)):
        network.recompute_from = c.recompute_from
    pretrain = {key: value for key, value in v["pretrain"].items() if key not in ("kimg", "code_noise")}
    perceptual = LPIPSDistance("alex").to(processes.device) if c.pretrain.kimg > 0 and c.pretrain.lpips else None
    strengths = {key: value for key, value in v["augment"].items() if key != "enabled"}
    if not c.augment.enabled:
        strengths["limit"] = 0.0
    training = TextureTraining(
        generator,
        discriminator,
        batch=c.batch,
        seed=c.seed,
        pretrain=build_settings(PretrainSettings, pretrain, "pretrain"),
        adversarial=build_settings(AdversarialSettings, v["adversarial"], "adversarial"),
        pair_weights=build_settings(PairWeights, v["pair_loss"], "pair_loss"),
        adversarial_pair_weights=build_settings(PairWeights, v["adversarial_pair_loss"], "adversarial_pair_loss"),
        augment=Augment(build_settings(ADASettings, strengths, "augment"), c.mirror),
        train_mapping=v["mapping"] == "own" if c.train_mapping == "auto" else c.train_mapping,
        precision=precisions[0],
        regularizer_precision=precisions[1],
        processes=processes,
        latents=data.latents(generator.projection, processes.device),
        perceptual=perceptual,
        table=None if data.map_codes is None else data.map_codes.table,
    )
    data.move_codes(processes.device, training.table)
    if processes.first:
        million = [sum(p.numel() for p in n.parameters()) / 1e6 for n in (generator, discriminator) if n is not None]
        print(
            f"{len(data.chosen)} maps of {data.memory.side} px to train on, {len(data.unseen)} held out, "
            f"{len(data.pair_rows)} with codes; generator {million[0]:.1f} M parameters at {c.size} px, started {about}"
            + (f"; discriminator {million[1]:.1f} M" if len(million) > 1 else "")
            + f"; {precisions[0]} on {training.device}, {processes.count} process(es)"
        )
    return training, distances


command = functools.partial(run, main, "texture_gan", __doc__)

if __name__ == "__main__":
    sys.exit(command())
