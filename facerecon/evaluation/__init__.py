"""Measurements of results; nothing here is ever optimized (Sec. 4.3)."""

from facerecon.correspond.regions import face_regions, head_region_forms, head_regions, region_forms
from facerecon.evaluation.expressiveness import MapMetrics
from facerecon.evaluation.realy import RealyFolder, Scan, realy_errors, scan_of_head
from facerecon.evaluation.reconstruction import reconstruction_metrics, stage_figures
from facerecon.evaluation.regions import region_errors
from facerecon.evaluation.tables import Figure, Row, Summary, Table, bootstrap_interval, summarize
from facerecon.evaluation.texture import (
    brightness_symmetry_error,
    evenly_lit,
    identity_std_ratio,
    observed_share,
)

__all__ = [
    "Figure",
    "MapMetrics",
    "RealyFolder",
    "Row",
    "Scan",
    "Summary",
    "Table",
    "bootstrap_interval",
    "brightness_symmetry_error",
    "evenly_lit",
    "face_regions",
    "head_region_forms",
    "head_regions",
    "identity_std_ratio",
    "observed_share",
    "realy_errors",
    "reconstruction_metrics",
    "region_errors",
    "region_forms",
    "scan_of_head",
    "stage_figures",
    "summarize",
]
