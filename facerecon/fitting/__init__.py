"""The three stages of Sec. 4.2: linear start, texture latent on a hypersphere, joint refinement; then detail."""

from facerecon.fitting.coefficients import coefficients_to_latent, coefficients_to_params, params_to_coefficients
from facerecon.fitting.detail import add_detail, add_shared_detail
from facerecon.fitting.fitter import Fitter
from facerecon.fitting.initialize import (
    LandmarkStart,
    RegressorStart,
    fit_landmarks,
    fit_light,
    fit_light_and_texture,
    start_from_regressor,
)
from facerecon.fitting.invert import MapFeatures, TextureInversionSettings, invert_texture, load_map_features
from facerecon.fitting.occlusion import OcclusionSettings, find_occlusion, mask_occluders, photometric_residual
from facerecon.fitting.optimize import run_stage
from facerecon.fitting.result import FitResult
from facerecon.fitting.stage import (
    TERMS,
    DetailSettings,
    SmoothnessSettings,
    Stage,
    default_stages,
    stages_from_config,
)
from facerecon.fitting.variables import Variables

__all__ = [
    "TERMS",
    "DetailSettings",
    "FitResult",
    "Fitter",
    "LandmarkStart",
    "MapFeatures",
    "OcclusionSettings",
    "RegressorStart",
    "SmoothnessSettings",
    "Stage",
    "TextureInversionSettings",
    "Variables",
    "add_detail",
    "add_shared_detail",
    "coefficients_to_latent",
    "coefficients_to_params",
    "default_stages",
    "find_occlusion",
    "fit_landmarks",
    "fit_light",
    "fit_light_and_texture",
    "mask_occluders",
    "invert_texture",
    "load_map_features",
    "params_to_coefficients",
    "run_stage",
    "stages_from_config",
    "start_from_regressor",
    "photometric_residual",
]
