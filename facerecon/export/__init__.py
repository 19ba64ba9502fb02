"""What leaves the library: meshes (OBJ, GLB), pictures (panel, turntable, relit strip), one-file reports."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_FILES = {
    "chart": ("Bar", "bar_chart"),
    "gltf": (),
    "mesh": ("save_glb", "save_obj"),
    "report": ("IndexEntry", "ReportEntry", "write_index", "write_report"),
    "viewer": ("write_viewer",),
    "views": ("captioned_sheet", "live_panel", "panel", "relit_strip", "save_animation", "turntable"),
}
_HOMES = {name: file for file, names in _FILES.items() for name in names}
_RENAMED = {"Subject": "ReportEntry", "contact_sheet": "captioned_sheet"}

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
