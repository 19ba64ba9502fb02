"""Normalized UV textures from faces: extraction, completion, filters, and the set they make (Sec. 3.1)."""

from facerecon.dataset.complete import CompleteSettings, UVMap, complete
from facerecon.dataset.engines import ENGINES, Item, Outcome, run_items
from facerecon.dataset.extract import Extraction, ExtractSettings, extract
from facerecon.dataset.filters import FilterSettings, refusals
from facerecon.dataset.layout import Template, face_layout, load_template
from facerecon.dataset.manifest import Manifest
from facerecon.dataset.pipeline import PipelineSettings, Search, UVPipeline, make_worker
from facerecon.dataset.report import summarize, write_overview
from facerecon.dataset.sampling import dark_skin_score, draw_seeds
from facerecon.training.uv_maps import UVMaps

__all__ = [
    "ENGINES",
    "CompleteSettings",
    "ExtractSettings",
    "Extraction",
    "FilterSettings",
    "Item",
    "Manifest",
    "Outcome",
    "PipelineSettings",
    "Search",
    "Template",
    "UVMap",
    "UVMaps",
    "UVPipeline",
    "complete",
    "dark_skin_score",
    "draw_seeds",
    "extract",
    "face_layout",
    "load_template",
    "make_worker",
    "refusals",
    "run_items",
    "summarize",
    "write_overview",
]
