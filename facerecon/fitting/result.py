"""What a fit returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facerecon.fitting.initialize import ShapePrior
from facerecon.fitting.tone import toned
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import FaceParams, Latent, Observation, ReconstructedFace, TensorStruct

__all__ = ["FitResult", "Start"]


@dataclass(frozen=True)
class Start:
    """What stage 1 found.

    Args:
        params: start of the coefficients, of batch B.
        latent: start of the texture code.
        fallbacks: {index: why} of the faces outside the valid range of N_enc, which start from their landmarks.
        suspect: {index: why} of the faces that may be none.
        prior: what the shapes were held to beside the landmarks, of batch B.
    """

    params: FaceParams
    latent: Latent
    fallbacks: dict[int, str]
    suspect: dict[int, str]
    prior: ShapePrior


@dataclass(frozen=True)
class FitResult:
    """The result of a fit of B faces, and how it came about.

    A face that cannot be fitted (its observation, or its first loss, is not finite) is NaN throughout and named in
    ``failed``; one that diverged later is kept at its best state and named in ``diverged``.

    Args:
        face: B reconstructed faces; ``face.history`` holds every loss of every step.
        stages: {stage: (params, latent)} after each stage, "start" first.
        observed: the observation without what was found to hide the faces; the last stages' masks.
        failed: {index: why} of the faces that could not be fitted.
        diverged: {index: why} of those that went back to an earlier state.
        fallbacks: {index: why} of those that started from landmarks where the fitter has a regressor.
        suspect: {index: why} of those that may be no face.
        seconds: {stage: wall time}.
        used: numbers of the photos in the result; :meth:`~facerecon.fitting.Fitter.multiview` leaves out those whose
            measurements are not finite. All other indices count these.
    """

    face: ReconstructedFace
    stages: dict[str, tuple[FaceParams, Latent]]
    observed: Observation
    failed: dict[int, str] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)
    fallbacks: dict[int, str] = field(default_factory=dict)
    suspect: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    used: tuple[int, ...] = ()

    def heads(self, decoder: TextureDecoder, rows: Sequence[int] | None = None) -> dict[str, tuple[FaceParams, Tensor]]:
        """{stage: (params, texture (B, 3, S, S))}, what each stage made of the faces.

        Args:
            decoder: of the fit; its texture goes with every stage but "detail", which has the final one as
                it is in the photo (:meth:`~facerecon.types.ReconstructedFace.texture_in_photo`).
            rows: numbers of the faces; all if left out.
        """
        chosen = slice(None) if rows is None else list(rows)
        with torch.no_grad():
            heads = {
                name: (
                    params[chosen],
                    toned(decoder(latent[chosen]), params[chosen].tone, self.face.topology).clamp(0, 1),
                )
                for name, (params, latent) in self.stages.items()
            }
        if "detail" in self.seconds:
            heads["detail"] = self.face.params[chosen], self.face.texture_in_photo()[chosen]
        return heads


def finite_rows(record: TensorStruct) -> Tensor:
    """(B,) bool: every batched number of a record is finite; losses of the past may be anything."""
    rows: list[Tensor] = []

    def check(item: TensorStruct) -> None:
        for f in dataclasses.fields(item):
            value = None if f.name in item.SHARED else getattr(item, f.name)
            if isinstance(value, TensorStruct):
                check(value)
            elif isinstance(value, Tensor) and value.is_floating_point():
                rows.append(value.isfinite() if value.dim() == 1 else value.flatten(1).isfinite().all(1))

    check(record)
    return torch.stack(rows).all(0)


def emptied(face: ReconstructedFace, failed: list[int]) -> ReconstructedFace:
    """NaN in all that the failed faces have: nobody takes it for a result."""
    if not failed:
        return face

    def empty(item: Any) -> Any:
        if isinstance(item, TensorStruct):
            names = [f.name for f in dataclasses.fields(item) if f.name not in item.SHARED]
            return item.replace(**{name: empty(getattr(item, name)) for name in names})
        if isinstance(item, Tensor) and item.is_floating_point():
            item = item.clone()
            item[failed] = torch.nan
        return item

    return empty(face)
