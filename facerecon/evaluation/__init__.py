"""Measurements of results; nothing here is ever optimized (Sec. 4.3)."""

from facerecon.evaluation.reconstruction import reconstruction_metrics
from facerecon.evaluation.regions import face_regions, head_region_forms, head_regions, region_errors, region_forms
from facerecon.evaluation.texture import brightness_symmetry_error, identity_std_ratio, observed_share

__all__ = [
    "brightness_symmetry_error",
    "face_regions",
    "identity_std_ratio",
    "observed_share",
    "reconstruction_metrics",
    "head_region_forms",
    "head_regions",
    "region_errors",
    "region_forms",
]
