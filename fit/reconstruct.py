"""Photo -> textured 3D head: the three stages of FFHQ-UV (Sec. 4.2), and files to look at.

    python fit/reconstruct.py img=face.jpg
    python fit/reconstruct.py img=folder/ out=heads fitting=fast
    python fit/reconstruct.py img='photos/*.jpg' face=all batch=8
    python fit/reconstruct.py img=face.jpg landmarks=points.csv mask=face.png

Writes a folder a face: panel.png, texture.png, seen.png, head.obj (+ mtl, png), head.glb, params.safetensors,
report.html; and for the run metrics.jsonl, failures.jsonl and index.html. Presets: fitting=default, paper, release,
fast, smoke.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from configs.compose import run

EXPORTS = ("panel", "texture", "obj", "glb", "report")


def main(config: Any) -> int:
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from facerecon.errors import ConfigError, FaceReconError, InputError, nearest_name
    from facerecon.imaging.files import list_images
    from facerecon.perception import load_judge, observe
    from facerecon.run import RunDirectory
    from fit.corrections import find_corrections
    from fit.models import build_fitter, prepare

    for name in config.export:
        if name not in EXPORTS:
            raise ConfigError(nearest_name(name, EXPORTS, "export"))
    if OmegaConf.is_missing(config, "img"):
        raise ConfigError("img is not set; for example: python fit/reconstruct.py img=face.jpg")
    paths = list_images(config.img)
    face = config.face if isinstance(config.face, int) else str(config.face)
    face = int(face) if isinstance(face, str) and face.lstrip("-").isdigit() else face
    folder = RunDirectory(config.out, {"script": "reconstruct"}, resume=True)
    given = find_corrections(config, paths)
    settings = {path: given[path].digest(_digest(config)) for path in paths}
    names = _names(paths)
    done = folder.completed()
    pending = [
        path for path in paths
        if not (config.resume and done.get(names[path], {}).get("settings") == settings[path])
    ]  # fmt: skip
    if not pending:
        print(f"nothing to do: {len(paths)} photo(s) are finished in {folder.path}; resume=false does them again.")
        return 0

    started = time.perf_counter()
    device = prepare(config)
    fitter = build_fitter(config, device)
    judge = load_judge().to(device)
    logger = _logger(config)
    print(
        f"{len(pending)} photo(s), face model {config.face_model}, decoder {config.decoder}, "
        f"preset {config.fitting.preset}, perceptual loss {config.perceptual}, {device}; "
        f"models loaded in {time.perf_counter() - started:.1f} s"
    )
    if config.perceptual == "face_features":
        print("note: the perceptual loss is face_features, not the paper's LPIPS (perceptual=lpips_vgg).")

    failed: dict[str, str] = {}
    written = 0
    bar = tqdm(total=len(pending), unit="photo", disable=None)
    for at in range(0, len(pending), config.batch):
        photos, items = [], []
        observing = time.perf_counter()
        for path in pending[at : at + config.batch]:
            try:
                photo = observe(path, face=face, landmarks=given[path].landmarks, mask=given[path].mask)
                for i in range(photo.batch):
                    photos.append(photo[i])
                    items.append((path, names[path] + (f"_{i}" if photo.batch > 1 else "")))
            except FaceReconError as error:
                failed[path] = str(error)
                folder.fail(names[path], error)
                bar.update(1)
        observing = (time.perf_counter() - observing) / max(1, len(photos))
        # `face=all` can give more faces than fit at once
        for start in range(0, len(photos), config.batch):
            chunk, chunk_items = photos[start : start + config.batch], items[start : start + config.batch]
            try:
                rows = reconstruct(fitter, judge, chunk, chunk_items, folder, config, settings, observing, bar, logger)
            except FaceReconError as error:
                for path, item in chunk_items:
                    failed[path] = str(error)
                    folder.fail(item, error)
                continue
            written += len(rows)
        for path in dict.fromkeys(path for path, _ in items if path not in failed):
            folder.complete(names[path], settings=settings[path], path=str(path))
            bar.update(1)
    bar.close()

    if len(paths) > 1:
        from facerecon.export.report import write_index

        panels = [
            (item, f"{item}/panel.png") for item in sorted(p.parent.name for p in folder.path.glob("*/panel.png"))
        ]
        write_index(folder.path / "index.html", panels, folder.failures())
    for path, message in failed.items():
        print(f"error: {message}" if len(paths) == 1 else f"failed: {path}: {message}", file=sys.stderr)
    seconds = time.perf_counter() - started
    print(f"{written} face(s) written to {folder.path}, {len(failed)} photo(s) failed, {seconds:.1f} s")
    if failed and len(paths) == 1:
        return 2
    if failed and not written:
        raise InputError(f"none of the {len(paths)} photos could be used; see {folder.path / 'failures.jsonl'}.")
    return 1 if failed else 0


def reconstruct(
    fitter: Any, judge: Any, photos: list, items: list, folder: Any, config: Any, settings: dict,
    observing: float, bar: Any, logger: Any,
) -> list[dict]:  # fmt: skip
    """Fit one batch and write every face; returns the rows of metrics.jsonl."""
    from facerecon.evaluation import reconstruction_metrics
    from facerecon.types import Observation

    device = fitter.model.mean.device
    photo = Observation.cat(photos).to(device)

    def show(report: Any) -> None:
        if report.step % 5 == 0 or report.step == report.steps - 1:
            bar.set_postfix_str(f"{report.stage} {report.step + 1}/{report.steps}, loss {report.total.mean():.3f}")

    face = fitter(photo, callback=show)
    # figures after each stage, of the decoder's texture; then of the final one
    stages = {
        name: (params, fitter.decoder(latent).clamp(0, 1)) for name, (params, latent) in fitter.stage_params.items()
    }
    if fitter.detail.enabled:
        stages["detail"] = (face.params, face.texture)
    figures = {}
    for name, (params, texture) in stages.items():
        values, image = reconstruction_metrics(photo, params, texture, fitter.model, fitter.renderer, judge)
        figures[name] = {key: value.tolist() for key, value in values.items()}
    rows = []
    for i, (path, item) in enumerate(items):
        metrics = {stage: {key: round(values[i], 5) for key, values in of.items()} for stage, of in figures.items()}
        seconds = {"observe": observing} | {k: v / len(items) for k, v in fitter.seconds.items()}
        clock = time.perf_counter()
        write_face(face[i], photo[i], image[i : i + 1], fitter, folder.path / item, config, metrics, seconds, path)
        seconds["export"] = time.perf_counter() - clock
        row = {
            "item": item, "path": str(path), "settings": settings[path], "metrics": metrics,
            "seconds": {key: round(value, 3) for key, value in seconds.items()}, "batch": len(items),
        }  # fmt: skip
        folder.metrics.write(row)
        logger(row)
        rows.append(row)
        last = metrics[list(metrics)[-1]]
        bar.write(
            f"{item}: photometric {last['photometric']:.4f}, identity {last.get('identity', float('nan')):.3f}, "
            f"landmarks {100 * last['nme']:.2f} %, {sum(seconds.values()):.1f} s"
        )
    return rows


def write_face(
    face: Any, photo: Any, composite: Any, fitter: Any, folder: Path, config: Any,
    metrics: dict, seconds: dict, path: str,
) -> None:  # fmt: skip
    """All files of one face; each is written whole or not at all."""
    from omegaconf import OmegaConf

    from facerecon.export.mesh import save_glb, save_obj
    from facerecon.export.report import write_report
    from facerecon.export.views import panel
    from facerecon.imaging.files import read_image, write_bytes, write_png
    from facerecon.types import SavedFace

    folder.mkdir(parents=True, exist_ok=True)
    settings = OmegaConf.to_container(config, resolve=True)
    SavedFace(
        params=face.params, latent=face.latent, camera=face.camera, face_model=config.face_model,
        decoder=config.decoder, num_identity=fitter.model.num_identity, path=(Path(path).name,),
        face_model_path=str(Path(config.face_model_path).absolute()) if config.face_model_path else "",
    ).save(folder / "params.safetensors")  # fmt: skip
    if "texture" in config.export:
        write_png(folder / "texture.png", face.texture)
        write_png(folder / "seen.png", face.seen)
    picture = None
    if "panel" in config.export or "report" in config.export:
        picture = panel(face, photo, fitter.renderer, fitter.model)
        write_png(folder / "panel.png", read_image(picture))
    if "obj" in config.export:
        save_obj(face, folder)
    if "glb" in config.export:
        save_glb(face, folder / "head.glb")
    if "report" in config.export:
        write_report(
            folder / "report.html", face, panel=picture, metrics=metrics, seconds=seconds, config=settings,
            command=f"python fit/reconstruct.py img={Path(path).name} fitting={config.fitting.preset}",
        )  # fmt: skip
    write_bytes(folder / "metrics.json", json.dumps({"metrics": metrics, "seconds": seconds}, indent=2).encode())


def _digest(config: Any) -> str:
    """Short hash of everything that changes the result."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    for key in ("img", "out", "resume", "threads", "device", "logger", "landmarks", "mask"):
        plain.pop(key, None)
    plain["resolved"] = {key: config[key] for key in ("face_model", "decoder", "perceptual")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _names(paths: list) -> dict:
    """{path: unique folder name}, the stem, with the extension where two stems are equal."""
    stems = [Path(path).stem for path in paths]
    names: dict = {}
    for path, stem in zip(paths, stems):
        name = stem if stems.count(stem) == 1 else Path(path).name
        while name in names.values():
            name += "_"
        names[path] = name
    return names


def _logger(config: Any) -> Any:
    """A function that takes one row; wandb only if asked for, offline unless WANDB_MODE says otherwise."""
    from facerecon.errors import ConfigError, nearest_name

    if config.logger == "none":
        return lambda row: None
    if config.logger != "wandb":
        raise ConfigError(nearest_name(config.logger, ("none", "wandb"), "logger"))
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb
    from omegaconf import OmegaConf

    wandb_run = wandb.init(
        project="facerecon", dir=str(config.out), config=OmegaConf.to_container(config, resolve=True)
    )
    return lambda row: wandb_run.log({f"{s}/{k}": v for s, of in row["metrics"].items() for k, v in of.items()})


if __name__ == "__main__":
    sys.exit(run(main, "reconstruct", __doc__))
