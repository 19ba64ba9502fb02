"""Whether what stage 1 found is a face (ours, not the paper's).

A detector and landmark networks have an output for any picture. Their outputs for a face agree: two networks put eyes
and mouth in the same places, the head of stage 1 has its landmarks there, skin covers it, a mouth is seen, that skin is
shaded smoothly, and as the head is. The limits are far from what good faces have (`benchmarks/trust.py`); a suspect
face is fitted all the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facerecon.geometry.camera import project
from facerecon.imaging.color import rgb_to_yuv
from facerecon.morphable import MorphableModel
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.facemesh import MOST_APART, disagreement
from facerecon.types import Camera, FaceParams, Observation

__all__ = ["find_suspects", "flatness", "unlike"]

_MISSED = 5.0  # px of a 224 px crop by which the head of stage 1 may miss the inner landmarks
_LEAST_SKIN = 0.3  # share of the head's face that must be skin
_MOUTH = tuple(CLASSES.index(name) for name in ("mouth", "upper_lip", "lower_lip"))
_LEAST_MOUTH = 0.002  # share of the head's face that must be lips or mouth; faces have 0.03 to 0.1, masked ones none
_MOST_FLAT = 0.4  # of :func:`flatness`
_MOST_UNLIKE = 0.9  # of :func:`unlike`


def flatness(image: Tensor, skin: Tensor) -> Tensor:
    """Share of the skin where brightness changes by less than a tenth of the mean change.

    Skin is shaded everywhere; a drawing, or a picture of few colors, is flat between hard edges. (B,):
    below 0.1 in photos, whatever their light and size, up to 0.3 in strongly compressed ones.

    Args:
        image: (B, 3, H, W) in [0, 1].
        skin: (B, H, W) bool.
    """
    luma = rgb_to_yuv(image)[:, 0]
    corner = luma[:, :-1, :-1]
    change = ((luma[:, 1:, :-1] - corner).square() + (luma[:, :-1, 1:] - corner).square()).sqrt()
    inside = skin[:, :-1, :-1] & skin[:, 1:, :-1] & skin[:, :-1, 1:]
    found = [c[i] if bool(i.any()) else c.new_zeros(1) for c, i in zip(change, inside, strict=True)]
    return torch.stack([(values <= 0.1 * values.mean()).float().mean() for values in found])


def unlike(image: Tensor, render: Tensor, skin: Tensor) -> Tensor:
    """How much of the light and shade on the skin the head of stage 1, in its light and texture, does not have.

    Args:
        image, render: (B, 3, H, W) in [0, 1].
        skin: (B, H, W) bool.

    Returns:
        (B,): mean square of the difference of brightness over the variance of the image's: 0 where they are equal, 1
        where a plain color would do as well.
    """
    shares = []
    for shown, drawn, inside in zip(rgb_to_yuv(image)[:, 0], rgb_to_yuv(render)[:, 0], skin, strict=True):
        a, b = shown[inside], drawn[inside]
        shares.append((a - b).square().mean() / a.var(correction=0).clamp(min=1e-5) if len(a) else a.new_zeros(()))
    return torch.stack(shares)


def find_suspects(
    model: MorphableModel, photo: Observation, params: FaceParams, camera: Camera, render: Tensor, covered: Tensor
) -> dict[int, str]:
    """Faces that may be none: {index: why}; whether a face is among them depends on it alone.

    Args:
        model: head model.
        photo: B observed faces.
        params: of stage 1.
        camera: of the fit crop.
        render: (B, 3, H, W), the head of stage 1 there, in its light.
        covered: (B, 1, H, W), where that has its face.
    """
    with torch.no_grad():
        apart = disagreement(photo.landmarks68, photo.mesh468)
        points = project(camera, model.landmarks3d(model(params), camera))[..., :2]
        missed = (points - photo.landmarks68)[:, 17:].norm(dim=-1).mean(1) * (224 / photo.image.shape[-1])
        luma, head = rgb_to_yuv(photo.image)[:, 0], covered[:, 0] > 0.9
        skin = (photo.skin_mask[:, 0] > 0.9) & head & (luma > 0.015) & (luma < 0.985)  # not clipped
        share = skin.sum((1, 2)) / head.sum((1, 2)).clamp(min=1)
        mouth = torch.ones_like(share)
        if photo.fit.classes is not None:  # of an observation of before
            lips = torch.isin(photo.fit.classes[:, 0], torch.tensor(_MOUTH, device=luma.device))
            mouth = (lips & head).sum((1, 2)) / head.sum((1, 2)).clamp(min=1)
        flat, other = flatness(photo.image, skin), unlike(photo.image, render, skin)
    found: dict[int, str] = {}
    figures = torch.stack([apart, missed, share, mouth, flat, other], 1).tolist()
    for i, (a, m, s, seen, f, u) in enumerate(figures):
        given = i < len(photo.mask_given) and photo.mask_given[i]  # by a user, who may want a part of the face alone
        if a > MOST_APART:
            found[i] = f"two networks put eyes and mouth {100 * a:.1f} % of the face apart, over {100 * MOST_APART:g}"
        elif m > _MISSED:
            found[i] = f"the head of stage 1 misses its landmarks by {m:.1f} px, over {_MISSED:g}"
        elif s < _LEAST_SKIN and not given:
            found[i] = f"only {100 * s:.0f} % of the face is seen as skin, under {100 * _LEAST_SKIN:g}"
        elif seen < _LEAST_MOUTH:
            found[i] = "no mouth is seen: something covers it, or this is no face"
        elif f > _MOST_FLAT:
            found[i] = f"{100 * f:.0f} % of its skin is flat, as if drawn, over {100 * _MOST_FLAT:g}"
        elif u > _MOST_UNLIKE:
            found[i] = f"its light and shade are not a head's (left of their variance: {u:.2f}, over {_MOST_UNLIKE:g})"
    return found
