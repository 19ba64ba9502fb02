"""Coefficients of N_enc (:mod:`facerecon.perception.regressor`) as parameters of a head model, and back (Sec. 4.2).

Both directions are linear and share one table: angles are FaceParams.rotation, gamma is the light without its ambient
0.8, the texture is the code of a linear decoder. Coefficients that one side lacks are zero there, the mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from facerecon.errors import ShapeError
from facerecon.geometry.lighting import gamma_to_light, light_to_gamma
from facerecon.morphable import MorphableModel
from facerecon.perception.regressor import Coefficients, RegressorConfig
from facerecon.stylegan.decoder import TextureDecoder
from facerecon.types import FaceParams, Latent

__all__ = ["coefficients_to_latent", "coefficients_to_params", "params_to_coefficients"]


def _resized(values: Tensor, count: int) -> Tensor:
    """(B, K) with zeros added, or the last ones cut off: (B, count)."""
    return F.pad(values, (0, count - values.shape[1]))


def coefficients_to_params(coefficients: Coefficients, model: MorphableModel) -> FaceParams:
    """Parameters of a head model, seen by ``Camera.deep3d``.

    Args:
        coefficients: of N_enc, batch B.
        model: their head model; loaded with fewer identity components than there are coefficients the last ones are cut
            off, with more they are zero.

    Returns:
        FaceParams; ``albedo`` is the texture where the model has a linear albedo of its own.

    Raises:
        ShapeError: expression coefficients of another model.
    """
    if coefficients.expression.shape[1] != model.num_expression:
        raise ShapeError(
            f"expression coefficients must be (B, {model.num_expression}) for face model '{model.name}'; got "
            f"{tuple(coefficients.expression.shape)}. Use a regressor of that model."
        )
    return FaceParams(
        identity=_resized(coefficients.identity, model.num_identity),
        expression=model.bound_expression(coefficients.expression),
        albedo=_resized(coefficients.texture, model.num_albedo),
        rotation=coefficients.angles,
        translation=coefficients.translation,
        light=gamma_to_light(coefficients.light),
    )


def coefficients_to_latent(coefficients: Coefficients, decoder: TextureDecoder) -> Latent | None:
    """The texture coefficients as the code of a linear decoder; None for any other kind."""
    if decoder.space != "linear" or decoder.rows != 1:
        return None
    return Latent(_resized(coefficients.texture, decoder.dim)[:, None], "linear")


def params_to_coefficients(
    params: FaceParams, config: RegressorConfig, latent: Latent | Tensor | None = None
) -> Coefficients:
    """The coefficients that a regressor should predict of a head: the inverse of the two functions above.

    Args:
        params: of batch B, as ``Camera.deep3d`` sees them.
        config: how many coefficients of each there are.
        latent: code of a linear decoder, (B, 1, K) or (B, K); ``params.albedo`` if left out.

    Raises:
        ShapeError: the expression is of another model.
    """
    if params.expression.shape[1] != config.expression:
        raise ShapeError(
            f"expression must be (B, {config.expression}) for this regressor; got {tuple(params.expression.shape)}."
        )
    texture = params.albedo if latent is None else getattr(latent, "codes", latent)
    return Coefficients(
        identity=_resized(params.identity, config.identity),
        expression=params.expression,
        texture=_resized(texture.flatten(1), config.texture),
        angles=params.rotation,
        light=light_to_gamma(params.light),
        translation=params.translation,
    )
