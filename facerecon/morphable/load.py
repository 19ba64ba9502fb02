"""Head models by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from facerecon import assets
from facerecon.assets.registry import function_at
from facerecon.errors import AssetError, ConfigError, nearest_name
from facerecon.modes import in_own_modes
from facerecon.morphable.model import MorphableModel

__all__ = ["FACE_MODELS", "asset_of", "load_face_model"]

FACE_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "makehuman": "facerecon.correspond.scanned_head:read_makehuman",
        "makehuman_artist": "facerecon.morphable.teeth:read_first_edition",
        "ict": "facerecon.morphable.ict:load_ict",
        "gnm": "facerecon.morphable.gnm:load_gnm",
        "hifi3dpp": "facerecon.morphable.hifi3dpp:load_hifi3dpp",
    }
)
"""Readers by name, "module:function" (path, num_identity) -> MorphableModel, each imported when it is asked for."""

_FILES = {"makehuman_artist": "makehuman"}
"""The asset in the cache that a model is read from, where its name is another."""


def asset_of(name: str) -> str:
    """Name of the asset that a head model is read from."""
    return _FILES.get(name, name)


@in_own_modes
def load_face_model(
    name: str = "makehuman", num_identity: int | None = None, path: str | Path | None = None
) -> MorphableModel:
    """A head model from the cache, frozen, in eval mode.

    Args:
        name: key of :data:`FACE_MODELS`.
        num_identity: leading identity components to keep; None keeps all.
        path: the model's own file or folder, where it is not in the cache.

    Raises:
        ConfigError: no model of that name, or more components than it has.
        AssetError: its file is not there yet.
    """
    if name not in FACE_MODELS:
        raise ConfigError(nearest_name(name, FACE_MODELS, "face model"))
    read = function_at(FACE_MODELS[name])
    file = assets.locate(asset_of(name)) if path is None else Path(path)
    model = read(file, num_identity).eval().requires_grad_(False)
    if model.name != name:
        raise AssetError(f"{path} holds the head model '{model.name}', not '{name}'; set face_model={model.name}.")
    return model
