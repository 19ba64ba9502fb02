"""UV map -> latent code: how much of unseen maps a texture decoder can express (Table 6 of FFHQ-UV).

    python fit/invert_texture.py maps=SET
    python fit/invert_texture.py maps=SET decoder=decoder.safetensors decoder_space=w+ out=wplus
    python fit/invert_texture.py maps='maps/*.png' decoder=linear decoder_components=32 out=linear32

Writes a folder a map (fitted.png, latent.safetensors, panel.png: target, fit and three times their difference), and for
the run results.csv and results.json (of each map L1, the feature distance that was optimized, and the LPIPS that was
not, at 512 texels at most; and their means), overview.jpg, failures.jsonl. A
map that cannot be read is named and left out; a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from facerecon.configs.compose import run
from facerecon.run.signals import check_stop, names_kept

OVERVIEW = 12  # maps on the overview
GAIN = 3.0  # of the difference in a panel


def main(config: Any) -> int:
    from omegaconf import OmegaConf

    from facerecon.errors import ConfigError, check_number
    from facerecon.fit.models import run_folder
    from facerecon.fit.photos import is_finished
    from facerecon.imaging.files import list_images
    from facerecon.run.directory import file_digest, folder_names

    if OmegaConf.is_missing(config, "maps"):
        raise ConfigError("maps is not set; for example: python fit/invert_texture.py maps=outputs/uv_dataset")
    for key in ("batch", "first"):
        if config[key] is not None or key == "batch":
            check_number(key, config[key], 1, whole=True)
    source = Path(str(config.maps)).expanduser()
    paths = list_images(source / "uv-maps" if (source / "uv-maps").is_dir() else config.maps)[: config.first]
    contents = {path: file_digest(path) for path in paths}
    digest = _digest(config)
    with run_folder(config, "invert_texture").alone() as folder:
        done = folder.completed()
        names = folder_names(contents, done)
        paths = list({name: path for path, name in reversed(names.items())}.values())[::-1]  # copies once
        kept = {p for p in paths if config.resume and is_finished(done.get(names[p], {}), digest, contents[p])}
        pending = [path for path in paths if path not in kept]
        folder.forget_failures(names[p] for p in pending)

        def finished() -> str:
            count = sum(row.get("settings") == digest for row in folder.completed().values())
            return f"{count} of {len(paths)} map(s) are finished in {folder.path}"

        with names_kept(finished):
            failed = _invert(config, folder, pending, names, digest, contents) if pending else {}
        return _finish(folder, paths, names, digest, failed)


def _invert(config: Any, folder: Any, pending: list[Path], names: dict, digest: str, contents: dict) -> dict[Path, str]:
    """Invert what is pending; returns {path: why} of the maps that could not be."""
    import torch
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from facerecon.errors import FaceReconError, InputError
    from facerecon.fit.models import prepare
    from facerecon.fitting import TextureInversionSettings, invert_texture, load_map_features
    from facerecon.imaging.files import read_image, write_png
    from facerecon.losses import eval_lpips, load_perceptual
    from facerecon.settings import build_settings
    from facerecon.storage import safetensors_bytes, write_whole
    from facerecon.stylegan.load import load_decoder

    device = prepare(config)
    settings = build_settings(TextureInversionSettings, OmegaConf.to_container(config.inversion), "inversion")
    space = None if config.decoder_space is None else str(config.decoder_space)
    decoder = load_decoder(config.decoder, config.decoder_components, space, config.decoder_precision).to(device)
    features = load_map_features(config.perceptual, decoder.atlas, device)
    distance = None if features is None else load_perceptual(eval_lpips(features.name), size=512).to(device)
    looked = "no feature distance" if features is None else f"feature distance {features.name}"
    numbers = decoder.rows * decoder.dim
    print(
        f"{len(pending)} map(s), decoder {config.decoder} (space {decoder.space}, {numbers} numbers, "
        f"{decoder.size} px), {looked}, {device}"
    )
    if config.perceptual == "auto" and features is not None and not features.name.startswith("lpips"):
        print("note: LPIPS is not in the cache; face_features, of the map on the mean head, is not LPIPS.")
    failed: dict[Path, str] = {}
    bar = tqdm(total=len(pending), unit="map", disable=None)

    def show(step: int, steps: int, loss: Any) -> None:
        check_stop()
        if step % 10 == 0 or step == steps - 1:
            bar.set_postfix_str(f"{step + 1}/{steps}, loss {loss.mean():.4f}")

    group: list[tuple[Path, Any]] = []
    for i, path in enumerate(pending):
        check_stop()
        try:
            image = read_image(path)
            if image.shape[1] != image.shape[2]:
                raise InputError(f"{path} is {image.shape[2]} x {image.shape[1]} px; a UV map is square.")
            side = (decoder.size, decoder.size)
            if image.shape[1:] != side:
                image = torch.nn.functional.interpolate(image[None], side, mode="bilinear", antialias=True)[0]
            group.append((path, image.clamp(0, 1)))
        except FaceReconError as error:
            failed[path] = str(error)
            folder.fail(names[path], error)
            bar.update(1)
        if group and (len(group) == config.batch or i == len(pending) - 1):
            clock = time.perf_counter()
            maps = torch.stack([image for _, image in group]).to(device)
            found = invert_texture(maps, decoder, features, settings, show)
            seconds = (time.perf_counter() - clock) / len(group)
            facts = {}
            for k, (one, _) in enumerate(group):
                where = folder.path / names[one]
                fit, target = found.texture[k].cpu(), found.target[k].cpu()
                write_png(where / "fitted.png", fit)
                note = {"space": decoder.space, "decoder": str(config.decoder)}
                code = safetensors_bytes({"codes": found.latent.codes[k : k + 1]}, note)
                write_whole(where / "latent.safetensors", code)
                if config.panels:
                    difference = (GAIN * (fit - target).abs()).clamp(0, 1)
                    write_png(where / "panel.png", torch.cat([target, fit, difference], 2))
                row = {"l1": round(found.l1[k].item(), 6), "seconds": round(seconds, 3)}
                if features is not None:
                    row[f"{features.name} (optimized)"] = round(found.features[k].item(), 6)
                    with torch.no_grad():
                        apart = distance(found.texture[k : k + 1], found.target[k : k + 1])
                    row[distance.name] = round(apart.item(), 6)
                facts[names[one]] = {"settings": digest, "content": contents[one], "path": str(one), **row}
                bar.write(f"{names[one]}: " + ", ".join(f"{key} {row[key]:.4f}" for key in _measured(row)))
            folder.complete_all(facts)
            bar.update(len(group))
            group = []
    bar.close()
    return failed


def _finish(folder: Any, paths: list[Path], names: dict, digest: str, failed: dict[Path, str]) -> int:
    """Tables and overview of all that is done; the exit status."""
    from facerecon.errors import InputError
    from facerecon.imaging.files import contact_sheet, read_image, write_jpg
    from facerecon.storage import csv_bytes, write_whole

    folder.tidy(names[path] for path in paths)
    done = folder.completed()
    rows = [{"map": names[p], **done[names[p]]} for p in paths if done.get(names[p], {}).get("settings") == digest]
    for path, message in failed.items():
        print(f"failed: {path}: {message}", file=sys.stderr)
    if not rows:
        raise InputError(f"none of the {len(paths)} maps could be used; see {folder.path / 'failures.jsonl'}.")
    keys = _measured(rows[0])
    means = {key: sum(row[key] for row in rows) / len(rows) for key in keys}
    plain = [{key: row[key] for key in ("map", *keys)} for row in rows]
    write_whole(folder.path / "results.csv", csv_bytes([plain[0], *(row.values() for row in plain)]))
    text = json.dumps({"maps": len(rows), "mean": means, "each": plain}, indent=2, allow_nan=False)
    write_whole(folder.path / "results.json", (text + "\n").encode())
    panels = [folder.path / row["map"] / "panel.png" for row in rows][:OVERVIEW]
    shown = [(p, row) for p, row in zip(panels, rows) if p.is_file()]
    if shown:
        labels, pictures = [], []
        for path, row in shown:
            labels += [row["map"], ", ".join(f"{key} {row[key]:.4f}" for key in keys), f"difference x {GAIN:.0f}"]
            pictures += read_image(path).chunk(3, 2)
        write_jpg(folder.path / "overview.jpg", contact_sheet(pictures, columns=6, labels=labels, size=224))
    means_text = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
    print(f"{len(rows)} map(s) in {folder.path}: mean {means_text}; {len(failed)} failed")
    return 1 if failed else 0


def _measured(row: dict) -> list[str]:
    """Keys of the metrics in a row."""
    return [key for key in row if key == "l1" or key.startswith(("face_features", "lpips"))]


def _digest(config: Any) -> str:
    """Short hash of everything that changes the result."""
    from omegaconf import OmegaConf

    from facerecon.stylegan.load import is_decoder_file

    plain = OmegaConf.to_container(config, resolve=False)
    for key in ("maps", "first", "out", "resume", "threads", "device", "pack"):
        plain.pop(key, None)
    plain["decoder"], plain["metrics"] = str(config.decoder), "lpips"
    if is_decoder_file(config.decoder) and Path(config.decoder).is_file():
        plain["decoder_content"] = hashlib.sha256(Path(config.decoder).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


command = partial(run, main, "invert_texture", __doc__)

if __name__ == "__main__":
    sys.exit(command())
