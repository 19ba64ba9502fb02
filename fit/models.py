"""Build what the scripts of fit/ share from their configuration."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from facerecon import perception
from facerecon.assets import ASSETS, PACKAGES, shipped, status
from facerecon.assets.release import require
from facerecon.correspond.resample import ResampledDecoder, decoder_for, retarget
from facerecon.errors import ConfigError, InputError
from facerecon.export.bundle import why_no_viewer
from facerecon.fitting import DetailSettings, Fitter, LandmarkStart, OcclusionSettings, RegressorStart
from facerecon.losses import LPIPSDistance, eval_lpips, load_perceptual
from facerecon.losses.lpips_network import BACKBONES, VERSION
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.hifi3dpp import fill_sockets
from facerecon.morphable.load import asset_of
from facerecon.perception import Regressor, load_identity, load_regressor
from facerecon.perception.identity import EVAL_IDENTITIES, IDENTITIES
from facerecon.perception.regressor import trained_regressor
from facerecon.render import Renderer
from facerecon.run import RunDirectory, choose_device, seed_everything, set_threads
from facerecon.run.wandb_logger import row_logger
from facerecon.settings import build_settings, check_keys
from facerecon.storage import file_sha256
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.stylegan.load import DECODER_VERSIONS, DECODERS, decoder_kind, is_decoder_file
from facerecon.types import HEAD_VERSIONS, SavedFace

GROUPS = (
    "preset", "perceptual", "latent_space", "start", "regressor", "stages", "detail", "occlusion", "smoothness",
    "renderer",
)  # fmt: skip
FITTER_KEYS = (
    "photometric", "landmark_weighting", "latent_prior", "shape_prior", "identity_alignment", "tone", "light_space",
)  # fmt: skip


def load_tools(
    config: Any, what: str, numbers: Callable[[dict], dict[str, float]]
) -> tuple[Fitter, torch.nn.Module, LPIPSDistance, Callable[[dict], None], dict[str, str]]:
    """Fitter, network of CSIM, the LPIPS that is not optimized, logger of rows (of which it logs the ``numbers``), and
    :func:`used_parts`.

    Prints ``what`` is fitted, and with which parts.
    """
    started = time.perf_counter()
    device = prepare(config)
    fitter, eval_identity = build_fitter(config, device), perception.load_eval_identity().to(device)
    distance = load_perceptual(eval_lpips(config.perceptual)).to(device)
    logger = row_logger(OmegaConf.to_container(config, resolve=True), numbers)
    parts = used_parts(config)
    print(
        f"{what}, face model {config.face_model}, decoder {config.decoder} (space {fitter.decoder.space}), "
        f"preset {config.fitting.preset}, perceptual loss {config.perceptual}, {device}; "
        f"models loaded in {time.perf_counter() - started:.1f} s"
    )
    print("parts: " + "; ".join(f"{part}: {version}" for part, version in parts.items()))
    if {"glb", "viewer"} <= set(config.get("export", ())) and (missing := why_no_viewer()):
        print(f"note: heads come without viewer.html: {missing}")
    return fitter, eval_identity, distance, logger, parts


def prepare(config: Any) -> torch.device:
    """Device, threads and, where the script has one, seed of a run."""
    set_threads(config.threads)
    try:
        seed_everything(config.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    return choose_device(config.device)


def build_fitter(config: Any, device: torch.device) -> Fitter:
    """The fitter that a configuration describes, on its device."""
    fitting = OmegaConf.to_container(config.fitting, resolve=True)
    check_keys(fitting, GROUPS + FITTER_KEYS, "key of 'fitting'")
    check_keys(fitting["renderer"], ("filter", "shading", "texture_level", "antialias"), "key of 'fitting.renderer'")
    check_pack(config)
    model, decoder = build_head(
        config.face_model, config.face_model_path, config.pack.num_identity, config.decoder, latent_space(config),
        config.decoder_precision,
    )  # fmt: skip
    regressor = build_regressor(config, model, fitting["regressor"])
    return Fitter(
        model=model.to(device),
        decoder=decoder.to(device),
        renderer=Renderer(size=224, **fitting["renderer"]),
        identity=load_identity(config.identity).to(device),
        perceptual=config.perceptual,
        stages=fitting["stages"],
        start=build_settings(LandmarkStart, fitting["start"], "fitting.start"),
        detail=build_settings(DetailSettings, fitting["detail"], "fitting.detail"),
        occlusion=build_settings(OcclusionSettings, fitting["occlusion"], "fitting.occlusion"),
        regressor=None if regressor is None else regressor.to(device),
        regressor_start=build_settings(RegressorStart, fitting["regressor"], "fitting.regressor"),
        **{key: fitting[key] for key in FITTER_KEYS},
    )


def check_pack(config: Any) -> None:
    """Refuse a configuration that would optimize what judges, or that needs parts of the FFHQ-UV release that are not
    there; one line names them all.
    """
    judge = config.pack.eval_identity
    if judge not in EVAL_IDENTITIES or config.identity == judge:
        raise ConfigError(
            f"identity={config.identity} is optimized and pack.eval_identity={judge} judges: they must differ; take "
            f"identity of {', '.join(IDENTITIES)} and pack.eval_identity={EVAL_IDENTITIES[0]}."
        )
    decoder, released = _released_decoder(config), config.face_model == "hifi3dpp"
    parts = (
        ("hifi3dpp", "face_model=makehuman decoder=open", released and not config.face_model_path),
        (decoder, "decoder=open", decoder),
        ("arcface", "identity=sface", config.identity == "arcface"),
        ("ffhq_uv_regressor", "stage1=landmarks", released and config.stage1 == "regressor" and not config.regressor),
        ("ffhq_uv_topology", "decoder=open", config.decoder == "ffhq_uv_cropface"),
    )
    require({name: instead for name, instead, used in parts if used})


def _released_decoder(config: Any) -> str | None:
    """Name of the asset that the decoder of a configuration comes from."""
    return (DECODERS[config.decoder].asset or None) if config.decoder in DECODERS else None


def converted_files(config: Any) -> list[str]:
    """Names, which follow the content, of the files of the release that a configuration uses."""
    names = (_released_decoder(config), config.identity if config.identity == "arcface" else None)
    return [status(name).path.name for name in names if name]


def decoder_content(name: str) -> str | None:
    """Digest of a decoder's file, of one's own or shipped; None for one that its name tells (of the release)."""
    own = DECODERS[name].shipped if name in DECODERS else ""
    path = Path(name).expanduser() if is_decoder_file(name) else shipped(own) if own else None
    return file_sha256(path) if path is not None and path.is_file() else None


def fit_digest(config: Any) -> str:
    """Short hash of everything in a configuration of ``reconstruct`` that changes a fit."""
    plain = OmegaConf.to_container(config, resolve=False)
    for key in ("img", "out", "resume", "threads", "device", "logger", "landmarks", "mask"):
        plain.pop(key, None)
    plain["pack"]["judge"] = plain["pack"].pop("eval_identity", None)  # as it was called when the first fits were made
    plain["resolved"] = {key: config[key] for key in ("face_model", "decoder", "identity", "perceptual")}
    plain["converted"] = converted_files(config)
    plain["decoder_content"] = decoder_content(config.decoder)
    plain["resolved"]["stage1"] = stage1_of(config)
    weights = regressor_file(config)
    if weights is not None and weights.is_file():
        plain["regressor_content"] = file_sha256(weights)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def used_parts(config: Any) -> dict[str, str]:
    """{part: its name and version} of all that a fit is made with, for log, metrics.json and report.

    A version is the package that a model comes from, and the first digits of the sha256 of its file.
    """
    weights, content = regressor_file(config), decoder_content(config.decoder)
    identity = _asset_version(config.identity)
    released = next((name for name in converted_files(config) if "decoder" in name), "of the head model")
    return {
        "face_model": _head_version(config.face_model, config.face_model_path),
        "decoder": f"{Path(config.decoder).name} ({content[:12] if content else released})",
        "stage1": "landmarks" if weights is None else _version(weights),
        "landmarks": f"{_asset_version('landmarks68')}, {_asset_version('facemesh478')}",
        "parsing": _asset_version("bisenet"),
        "tone": _version(shipped("tone.safetensors")) if config.fitting.tone == "belief" else "off",
        "light": f"spherical harmonics of order 2 on {config.fitting.light_space} values",
        "perceptual": _perceptual_version(config.perceptual, identity),
        "identity": identity,
        "eval_identity": _asset_version("faceres1024"),
        "eval_lpips": _perceptual_version(eval_lpips(config.perceptual), identity),
    }


def _perceptual_version(name: str, identity: str) -> str:
    """A perceptual loss and the versions of what it is made with."""
    if name == "face_features":
        return f"{name} of {identity}"
    return f"LPIPS {VERSION} of {_asset_version(BACKBONES[name.removeprefix('lpips_')])}"


def _version(path: str | Path) -> str:
    """A file's name and the first digits of its content's sha256; of a folder the name."""
    path = Path(path).expanduser()
    return f"{path.name} ({file_sha256(path)[:12]})" if path.is_file() else path.name


def _head_version(name: str, path: str | None) -> str:
    """The file that a head model is read from, and its edition where it has had others."""
    told = _version(path) if path else _asset_version(asset_of(name))
    edition = HEAD_VERSIONS.get(name)
    return told if edition is None else f"{told}, edition {edition}"


def _asset_version(name: str) -> str:
    """An asset's name, package and content; its converted file is named after the latter."""
    digest = status(name).path.stem.removeprefix(f"{name}-")
    return f"{name} ({PACKAGES[ASSETS[name].package].label}, {digest})" if name in ASSETS else f"{name} ({digest})"


def regressor_file(config: Any) -> Path | None:
    """The weights of N_enc that stage 1 uses; None where it starts from landmarks."""
    if stage1_of(config) == "landmarks":
        return None
    return Path(config.regressor).expanduser() if config.regressor else trained_regressor(config.face_model)


def run_folder(config: Any, script: str) -> RunDirectory:
    """The folder of a run whose items know their own settings; config.json holds the composed configuration.

    Left out are ``out`` and ``resume``: a stopped run, wherever it is, ends with the bytes of one that was not.
    """
    settings = {"script": script} | OmegaConf.to_container(config, resolve=True)
    for key in ("out", "resume"):
        settings.pop(key)
    return RunDirectory(config.out, settings, resume="items", fixed=("script",))


def stage1_of(config: Any) -> str:
    """What stage 1 is: "regressor" or "landmarks"; auto is the former where weights for the head model are at hand.

    Raises:
        ConfigError: an unknown value, or a regressor given that stage 1 would not use.
    """
    check_keys([config.stage1], ("auto", "regressor", "landmarks"), "stage1")
    if config.stage1 == "landmarks" and config.regressor:
        raise ConfigError("stage1=landmarks uses no regressor, but regressor= is given; leave one of them out.")
    if config.stage1 != "auto":
        return str(config.stage1)
    return "regressor" if config.regressor or trained_regressor(config.face_model) else "landmarks"


def build_regressor(config: Any, model: MorphableModel, settings: dict) -> Regressor | None:
    """N_enc of a head model, or None where stage 1 starts from landmarks; prints which."""
    if stage1_of(config) == "landmarks":
        why = "" if config.stage1 == "landmarks" else f" (no trained regressor for face model '{model.name}')"
        print(f"note: stage 1 starts from landmarks{why}.")
        return None
    regressor = load_regressor(model, config.regressor or None)
    if settings.get("appearance") == "regressor" and config.decoder != regressor.config.decoder:
        raise ConfigError(
            f"fitting.regressor.appearance=regressor needs decoder={regressor.config.decoder}, which the regressor was "
            f"trained with; got decoder={config.decoder}."
        )
    source = Path(config.regressor).name if config.regressor else regressor.about.get("source", "the weights at hand")
    print(
        f"note: stage 1 is the regressor ({source}, {regressor.config.backbone}) and {config.fitting.start.refine} "
        "Gauss-Newton steps on landmarks."
    )
    return regressor


def latent_space(config: Any) -> str | None:
    """Latent space of the decoder: ``decoder_space``, else the preset's; None for a linear one, which has no choice."""
    if config.decoder_space is not None:
        return str(config.decoder_space)
    linear = config.decoder == "albedo" or decoder_kind(config.decoder) == "linear"
    return None if linear else config.fitting.latent_space


def build_head(
    name: str, path: str | None, num_identity: int | None, decoder: str, space: str | None, precision: str
) -> tuple[MorphableModel, TextureDecoder]:
    """A head model with everything that a fit needs, and a texture decoder in its atlas.

    ``decoder``, ``space`` and ``precision`` are those of :func:`~facerecon.correspond.resample.decoder_for`.
    """
    model = load_face_model(name, num_identity=num_identity, path=path or None)
    if model.topology.name == "makehuman":
        return model, decoder_for(model, decoder, space=space, precision=precision)
    retargeted = retarget(model)
    if name == "hifi3dpp":
        retargeted = replace(retargeted, model=fill_sockets(retargeted.model))
    made = decoder_for(retargeted.model, decoder, retargeted=retargeted, space=space, precision=precision)
    texture = "its own decoder"
    if decoder == "albedo":
        texture = "its own linear albedo"
    elif isinstance(made, ResampledDecoder) or decoder_kind(decoder) == "linear":
        texture = "the decoder of makehuman, resampled"
    print(f"note: {name} takes jaw contour, face-mesh points and regions over from makehuman; texture: {texture}.")
    return retargeted.model, made


def decoder_of(model: MorphableModel, saved: SavedFace) -> TextureDecoder:
    """The decoder that made a saved face's latent.

    Raises:
        InputError: it was of another edition.
    """
    if saved.decoder_version != DECODER_VERSIONS.get(saved.decoder, ""):
        raise InputError(
            f"its texture is a code of another edition of decoder '{saved.decoder}'; give its texture.png as texture=, "
            "or fit the photo again."
        )
    if saved.latent.space == "linear":
        return decoder_for(model, saved.decoder, saved.latent.codes.shape[-1])
    return decoder_for(model, saved.decoder, space=saved.latent.space)
