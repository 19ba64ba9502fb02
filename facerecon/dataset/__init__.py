"""Normalized UV textures from faces: extraction, completion, filters, and the set they make (Sec. 3.1)."""

from facerecon.dataset.complete import CompleteSettings, complete
from facerecon.dataset.engines import ENGINES, Item, run_items
from facerecon.dataset.extract import ExtractSettings, extract
from facerecon.dataset.filters import FilterSettings, refusals
from facerecon.dataset.layout import face_layout
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import PipelineSettings, UVPipeline, make_worker
from facerecon.dataset.report import write_overview
from facerecon.dataset.sampling import dark_skin_score, draw_balanced_seeds, draw_seeds
from facerecon.dataset.tone_subjects import ToneSubjects, held_out_tones, load_tone_subjects
from facerecon.training.uv_maps import UVMaps

__all__ = [
    "ENGINES",
    "CompleteSettings",
    "ExtractSettings",
    "FilterSettings",
    "Item",
    "Manifest",
    "PipelineSettings",
    "ToneSubjects",
    "UVMaps",
    "UVPipeline",
    "complete",
    "dark_skin_score",
    "draw_balanced_seeds",
    "draw_seeds",
    "extract",
    "face_layout",
    "held_out_tones",
    "load_tone_subjects",
    "make_worker",
    "refusals",
    "run_items",
    "write_overview",
]
