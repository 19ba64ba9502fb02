"""What leaves the library: meshes (OBJ, GLB), pictures (panel, turntable, relit strip), one-file reports."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "save_glb": "mesh",
    "save_obj": "mesh",
    "contact_sheet": "views",
    "Bar": "chart",
    "bar_chart": "chart",
    "live_panel": "views",
    "panel": "views",
    "relit_strip": "views",
    "save_animation": "views",
    "turntable": "views",
    "IndexEntry": "report",
    "ReportEntry": "report",
    "write_index": "report",
    "write_report": "report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in ("chart", "gltf", "mesh", "report", "views"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "chart", "gltf", "mesh", "report", "views"})
