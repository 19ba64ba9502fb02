"""What leaves the library: meshes (OBJ, GLB), pictures (panel, turntable, relit strip), one-file reports."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_HOMES = {
    "save_glb": "mesh",
    "save_obj": "mesh",
    "captioned_sheet": "views",
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

_RENAMED = {"Subject": "ReportEntry", "contact_sheet": "captioned_sheet"}
_FILES = ("chart", "gltf", "mesh", "report", "views")

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        text = f"facerecon.export.{name} is {_RENAMED[name]} now; the old name goes in version 0.3.0."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _FILES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_FILES})
