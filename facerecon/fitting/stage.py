"""A fitting stage as data: what is optimized, how long, with which weights (Sec. 4.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from facerecon.errors import ConfigError, check_number
from facerecon.losses import smoothness_loss
from facerecon.settings import check_keys
from facerecon.types import FaceParams

__all__ = [
    "TERMS",
    "VARIABLES",
    "DetailSettings",
    "SmoothnessSettings",
    "Stage",
    "default_stages",
    "stages_from_config",
]

VARIABLES = ("latent", "identity", "expression", "pose", "light")
"""What a stage may optimize; "pose" is rotation and translation."""

TERMS = {
    "lpips": "perceptual distance of photo and render (Eq. 4); which one is the fitter's `perceptual`",
    "pix": "photometric error over the face mask (Eqs. 4, 5)",
    "id": "distance of identity embeddings (Eqs. 4, 5)",
    "reg_z": "regularizer of the latent (Eqs. 4, 5)",
    "lm": "68 landmarks in the image plane (Eq. 5); see `landmark_weighting`",
    "silhouette": "the face's antialiased outline against the photo's face mask (ours)",
    "reg_id": "|p_id|^2 (Eq. 5), or from stage 1's prior in its deviations; see `shape_prior`",
    "reg_exp": "|p_exp|^2 (Eq. 5), likewise",
    "exp_scores": "expression against what the face landmarker's scores ask for, in their noise (ours)",
    "light": "variance of the light between color channels (release)",
}
"""Loss terms by their config names."""


def _checked(name: str, values: Mapping[str, Any], known: Any, kind: str) -> dict[str, float]:
    check_keys(values, known, kind)
    result = {}
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{name}.{key} must be a number >= 0; got {value!r}.")
        result[key] = float(value)
    return result


@dataclass(frozen=True)
class Stage:
    """One stage of the fit.

    Args:
        name: what history, logs and reports call it.
        steps: Adam steps.
        learning_rate: learning rate of Adam.
        optimize: which of :data:`VARIABLES` move; the rest stay fixed (and what they imply is computed once).
        weights: {term: weight} of :data:`TERMS`; a term left out, or None, is not computed.
        sphere: keep the latent on its hypersphere after every step (stage 2).
        rampdown: share of the steps, at the end, over which the rate falls to 0 along a cosine.
        epsilon: epsilon of Adam. Far above its usual 1e-8 it keeps coefficients that hardly matter from following
            rounding noise.
        rate_scale: {variable: factor} on the learning rate, 1 where left out.
        latent: what moves of the latent: its ``code``, or ``w`` itself (release, stage 3), where the decoder has one.
        every: {term: k}, 1 where left out. ``texture``: the decoder runs, and the latent moves, at each k-th step only;
            in between the last texture stands. ``lpips`` and ``id``, the terms of networks, are computed at each k-th
            of those steps, in turn, with k times their gradient; in between their last value counts.
        coarse_steps: first steps, for which the decoder stops at ``coarse_size`` texels.
        coarse_size: texels a side in these steps, a power of two.

    Raises:
        ConfigError: an unknown variable or term (names the nearest), or a value out of range.
    """

    name: str
    steps: int
    learning_rate: float
    optimize: tuple[str, ...]
    weights: dict[str, float]
    sphere: bool = False
    rampdown: float = 0.0
    epsilon: float = 1e-8
    rate_scale: dict[str, float] = field(default_factory=dict)
    latent: str = "code"
    every: dict[str, int] = field(default_factory=dict)
    coarse_steps: int = 0
    coarse_size: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimize", tuple(self.optimize))
        check_keys(self.optimize, VARIABLES, "variable to optimize")
        object.__setattr__(self, "weights", _checked(f"{self.name}.weights", self.weights, TERMS, "loss term"))
        scales = _checked(f"{self.name}.rate_scale", self.rate_scale, VARIABLES, "variable")
        object.__setattr__(self, "rate_scale", dict.fromkeys(VARIABLES, 1.0) | scales)
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"stage {self.name}: steps must be an integer >= 0; got {self.steps!r}.")
        check_keys([self.latent], ("code", "w"), f"latent of stage '{self.name}'")
        if self.latent == "w" and self.sphere and "latent" in self.optimize:
            raise ConfigError(f"stage {self.name}: the sphere is one of codes; set sphere: false, or latent: code.")
        check_keys(self.every, ("lpips", "id", "texture"), f"term of {self.name}.every")
        for term, steps in self.every.items():
            check_number(f"stage {self.name}: every.{term}", steps, 1, whole=True, unit="steps")
        object.__setattr__(self, "every", {term: steps for term, steps in self.every.items() if steps > 1})
        if set(self.every) - {"texture"} and not set(self.weights) - set(self.every):
            raise ConfigError(f"stage {self.name}: leave a term out of every: each step needs one to follow.")
        if "texture" in self.every and not set(self.optimize) - {"latent"}:
            raise ConfigError(
                f"stage {self.name}: every.texture needs a variable beside the latent, to move in between."
            )
        for key, least in (("coarse_steps", 0), ("coarse_size", 8)):
            check_number(f"stage {self.name}: {key}", getattr(self, key), least, whole=True)
        check_number(f"stage {self.name}: learning_rate", self.learning_rate, 0)
        check_number(f"stage {self.name}: epsilon", self.epsilon, 0)
        if self.coarse_size & (self.coarse_size - 1):
            raise ConfigError(f"stage {self.name}: coarse_size must be a power of two; got {self.coarse_size}.")
        if not 0 <= self.rampdown <= 1:
            raise ConfigError(f"stage {self.name}: rampdown must lie in [0, 1]; got {self.rampdown!r}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step: constant, then a cosine to 0 over the last ``rampdown`` share."""
        left = (self.steps - step) / max(1.0, self.rampdown * self.steps)
        return self.learning_rate * (0.5 - 0.5 * math.cos(math.pi * left) if left < 1 else 1.0)

    def decodes(self, step: int) -> bool:
        """Whether the texture is decoded anew at a step."""
        return step % self.every.get("texture", 1) == 0

    def gradient_scale(self, term: str, step: int) -> int:
        """How much the gradient of a network's term counts at a step: its ``every`` where it is computed, else 0."""
        if not self.decodes(step):
            return 0
        every, turn = self.every.get(term, 1), step // self.every.get("texture", 1)
        if turn == 0 or every == 1:
            return 1
        return every if (turn + list(self.every).index(term)) % every == 0 else 0

    def texture_size(self, step: int) -> int | None:
        """Texels a side of the decoder's texture at a step; None: all it has."""
        return self.coarse_size if step < self.coarse_steps else None


@dataclass(frozen=True)
class DetailSettings:
    """The optional last step ``detail`` (ours, not the paper's): the photo's own texels where it shows them.

    Args:
        enabled: off gives the decoder's texture alone.
        size: texels a side of the final texture.
        strength: 1 takes the photo fully where it is seen, 0 not at all.
        levels: of the Laplacian pyramid that joins photo and decoder.
        mirror: how much unseen texels may take from their seen mirror image, in [0, 1].
        eyes: turn the eyeballs and part the lids as the photo shows them, and draw the eyeballs clean in the photo's
            colors; False leaves them to the fit and unwraps the photo onto them, with lashes and glints.
        mouth: draw its inside, with teeth; False unwraps the photo onto it.

    Raises:
        ConfigError: a value out of range.
    """

    enabled: bool = True
    size: int = 1024
    strength: float = 1.0
    levels: int = 6
    mirror: float = 0.7
    eyes: bool = True
    mouth: bool = True

    def __post_init__(self) -> None:
        check_number("detail.size", self.size, 8, 8192, whole=True, unit="texels")
        check_number("detail.levels", self.levels, 1, 16, whole=True)
        check_number("detail.strength", self.strength, 0, 1)
        check_number("detail.mirror", self.mirror, 0, 1)


@dataclass(frozen=True)
class SmoothnessSettings:
    """Weights of the squared second differences along a video (:func:`~facerecon.losses.smoothness_loss`), ours.

    Measured on 3 tracks of 12 frames that turn and talk about once (landmarks with 1 px of noise; landmark and prior
    terms alone): ``expression`` 1 takes the error of expressions from 4.4 to 3.8 %, that of the shape from 1.32 to
    1.23 mm, and the bending from 1.8 times the truth's to 0.8; 10 is too much. Poses bend no more than the truth with
    no weight, and ``rotation`` of 1 raises their error from 0.50 to 0.56 degrees (10: 1.2), so pose is hardly held.
    ``translation`` and ``light`` were not measured. Frames that are closer in time bear more.

    Args:
        expression: on the expression weights.
        rotation: on Euler angles in radians.
        translation: on world units.
        light: on the 27 coefficients of light.

    Raises:
        ConfigError: a weight that is no number >= 0.
    """

    expression: float = 1.0
    rotation: float = 0.1
    translation: float = 0.1
    light: float = 1.0

    def __post_init__(self) -> None:
        _checked("smoothness", self.__dict__, self.__dict__, "weight of smoothness")

    def terms(self, params: FaceParams, times: Tensor | None = None) -> dict[str, Tensor]:
        """{"smooth_expression", ...: (T,)} of T frames, unweighted; a weight of 0 is not computed."""
        tracks = {
            "expression": params.expression,
            "rotation": params.rotation,
            "translation": params.translation,
            "light": params.light.coefficients,
        }
        return {
            f"smooth_{name}": smoothness_loss(track, times) for name, track in tracks.items() if getattr(self, name)
        }

    @property
    def weights(self) -> dict[str, float]:
        """{name of a term: its weight}."""
        return {f"smooth_{name}": value for name, value in self.__dict__.items()}


STAGES = {
    "texture": {
        "steps": 12, "learning_rate": 0.1, "rampdown": 0.25, "epsilon": 1e-4,
        "optimize": ["latent"], "every": {"lpips": 2, "id": 2},
        "weights": {"lpips": 25, "pix": 15, "id": 1.5, "reg_z": 0.025},
        "coarse_steps": 12, "coarse_size": 256,
    },
    "joint": {
        "steps": 150, "learning_rate": 0.01, "rampdown": 0.25, "epsilon": 1e-4,
        "optimize": ["latent", "identity", "expression", "pose", "light"], "rate_scale": {"latent": 48},
        "every": {"texture": 3, "lpips": 1, "id": 1},
        "weights": {
            "lpips": 0.85, "pix": 4, "id": 0.45, "reg_z": 0.01,
            "lm": 2e-3, "silhouette": 1, "reg_id": 2e-3, "reg_exp": 2e-3, "light": 10,
        },
        "coarse_steps": 120, "coarse_size": 256,
    },
}  # fmt: skip
"""Stages 2 and 3 as the product ships them; the presets in configs/fitting hold what differs. The weights follow the
release's reading of Eq. 5 (photometric 1.6, identity 0.2); those of LPIPS (AlexNet) and SFace were chosen by what no
fit optimizes, LPIPS (VGG) and the eval identity, on generated faces; so was the rate of the latent in stage 3. All
steps but the last decode 256 texels a side: in a crop of 224 px a face has hardly more.

Decoder and networks take nine tenths of a step. So stage 2 is short, and in stage 3 they take part in every third step
only: 62 textures in place of 180 leave LPIPS (VGG) and CSIM of the decoded texture within 1 % (docs/benchmarks.md).
What counts is how many they are: 50 in 100 or 200 steps are as good, 44 lose 0.8 % of the photometric error.

Terms of shape follow from noise. ``lm``, ``reg_id`` and ``reg_exp`` are -2 log probabilities in the noise and the
deviations of stage 1, so that they have one weight, which says how much an image tells beside them. Photometric
residuals after stage 2 have a mean absolute value b of 0.026 to 0.058 (7 to 15 gray levels, mostly the model's error),
and hang together over patches, so that the 19,000 pixels of a face tell as much as N = 16 to 140 independent ones
(middle of 8 faces: b = 0.05, N = 72). -2 log of their Laplace density is ``2 N / b * pix`` if the three colors err
apart, a third of it if they err as one: beside a weight of 4 on ``pix`` that of the others is ``2 b / N`` to
``6 b / N``, 1.4e-3 to 4.2e-3. It is 2e-3 (ICT-FaceKit's heads: 0.87 mm, and 0.95 at 1e-2)."""


def default_stages() -> dict[str, Stage]:
    """:data:`STAGES`, built."""
    return {name: Stage(name, **values) for name, values in STAGES.items()}


def stages_from_config(config: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Stage]:
    """Stages from nested mappings: keys given replace the default's, ``weights`` as a whole.

    Args:
        config: {stage: {field: value}}; a stage of null is left out.

    Raises:
        ConfigError: an unknown stage, field, variable or term; the nearest known one is named.
    """
    stages = default_stages()
    fields = [f.name for f in dataclasses.fields(Stage) if f.name != "name"]
    for name, changes in dict(config or {}).items():
        check_keys([name], stages, "fitting stage")
        if changes is None:
            del stages[name]
            continue
        check_keys(changes, fields, f"key of stage '{name}'")
        stages[name] = dataclasses.replace(stages[name], **dict(changes))
    return stages
