"""Build what the scripts of fit/ share from their configuration."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

from facerecon.errors import ConfigError, nearest_name
from facerecon.fitting import DetailSettings, Fitter, LandmarkStart, OcclusionSettings
from facerecon.morphable import load_face_model
from facerecon.perception import load_identity
from facerecon.render import Renderer
from facerecon.run import choose_device, seed_everything, set_threads
from facerecon.stylegan.decoder import load_decoder

FITTER_KEYS = ("photometric", "landmark_weighting", "latent_prior", "identity_alignment")


def prepare(config: Any) -> torch.device:
    """Device, threads and seed of a run."""
    set_threads(config.threads)
    seed_everything(config.seed)
    return choose_device(config.device)


def build_fitter(config: Any, device: torch.device) -> Fitter:
    """The fitter that a configuration describes, on its device.

    Raises:
        ConfigError: an unknown key or name. AssetError: a model is missing; the message says how to fetch it.
    """
    fitting = OmegaConf.to_container(config.fitting, resolve=True)
    known = ("preset", "start", "stages", "detail", "occlusion", *FITTER_KEYS)
    for key in fitting:
        if key not in known:
            raise ConfigError(nearest_name(key, known, "key of 'fitting'"))
    model = load_face_model(config.face_model, num_identity=config.pack.num_identity).to(device)
    return Fitter(
        model=model,
        decoder=load_decoder(config.decoder).to(device),
        renderer=Renderer(size=224),
        identity=load_identity().to(device),
        perceptual=config.perceptual,
        stages=fitting["stages"],
        start=_settings(LandmarkStart, fitting["start"], "fitting.start"),
        detail=_settings(DetailSettings, fitting["detail"], "fitting.detail"),
        occlusion=_settings(OcclusionSettings, fitting["occlusion"], "fitting.occlusion"),
        **{key: fitting[key] for key in FITTER_KEYS},
    )


def _settings(kind: type, values: dict, where: str) -> Any:
    names = list(kind.__dataclass_fields__)
    for key in values:
        if key not in names:
            raise ConfigError(nearest_name(key, names, f"key of '{where}'"))
    return kind(**values)
