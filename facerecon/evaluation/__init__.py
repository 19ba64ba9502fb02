"""Measurements of results; nothing here is ever optimized (Sec. 4.3)."""

from facerecon.evaluation.reconstruction import reconstruction_metrics

__all__ = ["reconstruction_metrics"]
