"""How varied synthetic faces are."""

from __future__ import annotations

from dataclasses import dataclass

from facerecon.errors import ConfigError, check_number

__all__ = ["WITHIN_MODEL", "SyntheticSettings"]

_SHARES = ("scanned", "smile", "activity", "wide", "hair", "shoulders", "glasses", "occluded")


@dataclass(frozen=True)
class SyntheticSettings:
    """How varied the faces are. Angles in degrees, lengths in px of a 224 px crop, shares and probabilities in [0, 1].

    The defaults are what ``train/regressor.py`` trains on.

    Args:
        identity: standard deviation of the identity coefficients.
        scanned: share of people that are drawn from scanned people's statistics, where there are any.
        smile: share of smiling faces, where the model has such expressions.
        activity: share of the other expression coefficients that are not 0.
        yaw: standard deviation, degrees.
        pitch: standard deviation, degrees.
        roll: standard deviation, degrees.
        wide: share of faces whose yaw is drawn evenly instead.
        yaw_limit: largest yaw, degrees.
        pitch_limit: largest pitch, degrees.
        roll_limit: largest roll, degrees.
        scale: standard deviation of the log of the crop's scale.
        shift: standard deviation of the crop's place, px.
        texture: standard deviation of the texture code (of what is added to it, where there are texture maps).
        mirror: whether half of the texture maps are flipped; only right for a mirror-symmetric atlas (makehuman's is).
        p_directional: probability that a face is lit by lamps; the others are lit like fitted photos.
        p_full_sphere_lights: probability that a lamp stands anywhere before the head, below it too; the other lamps are
            mostly above it.
        exposure: standard deviation of the log of the brightness.
        hair: share of faces with hair.
        shoulders: share of faces with shoulders.
        glasses: share of faces with glasses.
        occluded: share of faces with something before them.
        shape_residual: mm, root mean square over the face and the people of shapes that the model lacks
            (:class:`~facerecon.synthetic.shape_residual.ShapeResidual`); the truth is the nearest head of the model.
        perspective: standard deviation of the log of the camera's distance over the one that fits take, 10 units; the
            truth is the head's place before the fits' camera that the same crop would be cut out for.
        uv_jitter: standard deviation by which the texture lies off its place, smoothly over the atlas, in its sides.
        pictures: pictures of each person; as many numbers one after the other show one person. With more than one,
            ``loss.intra_inter_ratio`` asks for one identity.

    Raises:
        ConfigError: a value out of range.
    """

    identity: float = 1.0
    scanned: float = 0.5
    smile: float = 0.4
    activity: float = 0.25
    yaw: float = 18.0
    pitch: float = 8.0
    roll: float = 6.0
    wide: float = 0.3
    yaw_limit: float = 60.0
    pitch_limit: float = 30.0
    roll_limit: float = 25.0
    scale: float = 0.04
    shift: float = 4.0
    texture: float = 1.0
    mirror: bool = False
    p_directional: float = 0.7
    p_full_sphere_lights: float = 0.5
    exposure: float = 0.15
    hair: float = 0.75
    shoulders: float = 0.7
    glasses: float = 0.15
    occluded: float = 0.3
    shape_residual: float = 2.0
    perspective: float = 0.25
    uv_jitter: float = 0.006
    pictures: int = 2

    def __post_init__(self) -> None:
        check_number("synthetic.pictures", self.pictures, 1, whole=True)
        for name, value in self.__dict__.items():
            if name != "mirror":
                share = name in _SHARES or name.startswith("p_")
                check_number(f"synthetic.{name}", value, 0, 1 if share else float("inf"))
        if self.yaw_limit > 85 or self.pitch_limit > 60:
            raise ConfigError("synthetic.yaw_limit is at most 85 and synthetic.pitch_limit 60 degrees.")


WITHIN_MODEL = SyntheticSettings(
    p_directional=0.5, p_full_sphere_lights=0.0, shape_residual=0.0, perspective=0.0, uv_jitter=0.0, pictures=1
)
"""Heads that the model can have exactly, before the fits' camera, one picture each: what fits are measured on."""
