"""Rendering and unwrapping: one rasterizer for images, UV maps and visibility."""

from facerecon.render.rasterize import choose_backend, rasterize
from facerecon.render.renderer import FusedView, PreparedView, Renderer
from facerecon.render.uv import bake, pad_islands, sample_texture, uv_raster

__all__ = [
    "FusedView",
    "PreparedView",
    "Renderer",
    "bake",
    "choose_backend",
    "pad_islands",
    "rasterize",
    "sample_texture",
    "uv_raster",
]
