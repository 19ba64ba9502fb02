"""Objectives of the three stages (Sec. 4.2). Every loss returns (B,), unreduced."""

from facerecon.losses.identity import identity_loss, identity_similarity
from facerecon.losses.image import (
    PERCEPTUAL,
    FaceFeatureDistance,
    LPIPSDistance,
    composite,
    eval_lpips,
    load_perceptual,
    masked_mean_error,
    pixel_loss,
    silhouette_loss,
)
from facerecon.losses.landmark import facing_weights, landmark_loss, landmark_weights, normalized_mean_error
from facerecon.losses.priors import (
    coefficient_loss,
    gaussian_loss,
    geocross_loss,
    light_color_loss,
    radius_loss,
    smoothness_loss,
)

__all__ = [
    "PERCEPTUAL",
    "FaceFeatureDistance",
    "LPIPSDistance",
    "coefficient_loss",
    "composite",
    "eval_lpips",
    "facing_weights",
    "gaussian_loss",
    "geocross_loss",
    "identity_loss",
    "identity_similarity",
    "landmark_loss",
    "landmark_weights",
    "light_color_loss",
    "load_perceptual",
    "masked_mean_error",
    "normalized_mean_error",
    "pixel_loss",
    "radius_loss",
    "silhouette_loss",
    "smoothness_loss",
]
