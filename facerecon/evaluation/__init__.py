"""Measurements of results; nothing here is ever optimized (Sec. 4.3)."""

from facerecon.evaluation.reconstruction import reconstruction_metrics
from facerecon.evaluation.regions import face_regions, region_errors

__all__ = ["face_regions", "reconstruction_metrics", "region_errors"]
