"""Measurements of results; nothing here is ever optimized (Sec. 4.3)."""

from facerecon.correspond.regions import head_region_forms, head_regions, region_forms
from facerecon.evaluation.albedo import (
    SeamContrast,
    ToneErrors,
    fine_detail,
    ita_errors,
    person_spread,
    rank_correlation,
    seam_contrast,
    texture_errors,
)
from facerecon.evaluation.consistency import shape_distances, within_between
from facerecon.evaluation.realy import RealyFolder, head_errors, realy_errors, scan_of_head
from facerecon.evaluation.reconstruction import (
    fit_metrics,
    identity_vectors,
    lpips_metrics,
    reconstruction_metrics,
    stage1_heads,
    stage_metrics,
)
from facerecon.evaluation.regions import region_errors
from facerecon.evaluation.tables import Metric, Row, Summary, Table, bootstrap_interval, bootstrap_summary
from facerecon.evaluation.texture import MapMetrics, brightness_symmetry_error, identity_std_ratio, octave_sharpness

__all__ = [
    "MapMetrics",
    "Metric",
    "RealyFolder",
    "Row",
    "SeamContrast",
    "Summary",
    "Table",
    "ToneErrors",
    "bootstrap_interval",
    "bootstrap_summary",
    "brightness_symmetry_error",
    "fine_detail",
    "fit_metrics",
    "head_errors",
    "head_region_forms",
    "head_regions",
    "identity_std_ratio",
    "identity_vectors",
    "ita_errors",
    "lpips_metrics",
    "octave_sharpness",
    "person_spread",
    "rank_correlation",
    "realy_errors",
    "reconstruction_metrics",
    "region_errors",
    "region_forms",
    "scan_of_head",
    "seam_contrast",
    "shape_distances",
    "stage1_heads",
    "stage_metrics",
    "texture_errors",
    "within_between",
]
