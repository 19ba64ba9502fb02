"""facerecon: textured 3D heads from photos, and the normalized UV textures they learn from (FFHQ-UV, CVPR 2023).

    import facerecon as fr

    model = fr.load_face_model("makehuman")
    decoder = fr.load_decoder("open")
    fitter = fr.Fitter(model, decoder, fr.Renderer(size=224, antialias=True))
    result = fitter(fr.observe("face.jpg"))
    fr.export.save_glb(result.face, "face.glb")

The names below are imported on first use: ``import facerecon`` alone loads neither torch nor any model, and never
touches a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Camera": "types",
    "FaceParams": "types",
    "FaceReconError": "errors",
    "Fitter": "fitting.fitter",
    "Latent": "types",
    "MeshTopology": "types",
    "Observation": "types",
    "ReconstructedFace": "types",
    "Renderer": "render.renderer",
    "SHLight": "types",
    "load_decoder": "stylegan.load",
    "load_face_model": "morphable",
    "load_regressor": "perception",
    "observe": "perception",
    "read_image": "imaging.files",
}

__all__ = [
    "Camera",
    "FaceParams",
    "FaceReconError",
    "Fitter",
    "Latent",
    "MeshTopology",
    "Observation",
    "ReconstructedFace",
    "Renderer",
    "SHLight",
    "assets",
    "correspond",
    "dataset",
    "editing",
    "errors",
    "evaluation",
    "export",
    "fitting",
    "geometry",
    "imaging",
    "load_decoder",
    "load_face_model",
    "load_regressor",
    "losses",
    "morphable",
    "observe",
    "perception",
    "read_image",
    "render",
    "run",
    "stylegan",
    "synthetic",
    "training",
    "types",
]

if TYPE_CHECKING:
    from facerecon import (
        assets,
        correspond,
        dataset,
        editing,
        errors,
        evaluation,
        export,
        fitting,
        geometry,
        imaging,
        losses,
        morphable,
        perception,
        render,
        run,
        stylegan,
        synthetic,
        training,
        types,
    )
    from facerecon.errors import FaceReconError
    from facerecon.fitting.fitter import Fitter
    from facerecon.imaging.files import read_image
    from facerecon.morphable import load_face_model
    from facerecon.perception import load_regressor, observe
    from facerecon.render.renderer import Renderer
    from facerecon.stylegan.load import load_decoder
    from facerecon.types import (
        Camera,
        FaceParams,
        Latent,
        MeshTopology,
        Observation,
        ReconstructedFace,
        SHLight,
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("facerecon")
        except PackageNotFoundError:
            value = "0+unknown"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
