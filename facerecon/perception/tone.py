"""How light or dark a person's skin is, as a belief: from the face's other features and from the scene (ours).

The color of a face in a photo is its tone times the light. The light shows in what else the photo shows, and the tone
in the face itself, its descriptors, and how lips, brows, eyes, hair and highlights differ from the skin. A
regression, learned from generated portraits under random exposures, white balances and gammas (`tools/build_tone.py`),
reads both and says how the skin would be in a usual exposure, and how sure that is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon import assets
from facerecon.errors import check_shape
from facerecon.modes import kept
from facerecon.perception.identity import load_identity
from facerecon.storage import read_safetensors
from facerecon.types import Crop, ToneBelief

__all__ = ["COLORS", "ToneNet", "estimate_tone", "load_tone_net", "tone_features"]

COLORS = 122
"""How many of the features are differences of colors; the rest are descriptors of identity."""

_SIDE = 320  # px of the full crop in which colors are compared
_SCENE = 0.76  # of the full crop's side: the frame of an FFHQ portrait
_FEWEST = 60  # px of a class for its color to be known
_MOST = 8000  # px of a class that are looked at
_BLACK = 0.004  # added to values before logarithms
_LIGHTEST = math.log(0.82)  # of the red of skin: two thirds of the light; texels above the mean must not clip
_USUAL = (0.62, 0.46, 0.38)  # color of the skin that descriptors are computed for
_SKIN = (1, 10)  # classes skin and nose
_REGIONS = {
    "lips": (12, 13), "brows": (2, 3), "eyes": (4, 5), "hair": (17,), "background": (0,), "cloth": (16,),
    "neck": (14,), "nose": (10,), "ears": (7, 8),
}  # fmt: skip
_FARTHEST = 3.0  # standard deviations that a feature may be from the mean
_IDENTITIES = ("sface", "identity128")


def _quantiles(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """(C, N) -> (C * Q,)."""
    values = values[:, :: max(1, values.shape[1] // _MOST)]
    return torch.quantile(values, values.new_tensor(shares), dim=1).T.flatten()


def tone_features(full: Crop, fit: Crop, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """What speaks for the tone of B faces, and the color that their skin has in the photo.

    All colors but ``skin`` are relative to that of the skin, so that a factor on the light's intensity changes nothing;
    descriptors are computed on pictures whose skin was brought to one color.

    Args:
        full: full crops with classes.
        fit: fit crops.
        landmarks: (B, 68, 2), pixels of the fit crop.

    Returns:
        (B, N) numbers, NaN where a region does not show; and (B, 3), median log color of the skin.
    """
    check_shape("landmarks", landmarks, "B 68 2")
    rows, colors = [], []
    for b in range(len(landmarks)):
        row, color = _contrasts(full[b])
        rows.append(row)
        colors.append(color)
    skin = torch.stack(colors)
    usual = fit.image * (skin.new_tensor(_USUAL).log() - skin).exp()[:, :, None, None]
    for name in _IDENTITIES:
        descriptor = load_identity(name)(usual.clamp(0, 1), landmarks)
        rows = [torch.cat([row, d * math.sqrt(len(d))]) for row, d in zip(rows, F.normalize(descriptor), strict=True)]
    return torch.stack(rows), skin


def _contrasts(crop: Crop) -> tuple[Tensor, Tensor]:
    """Log colors of one face's surroundings relative to its skin, and the skin's."""
    image = F.interpolate(crop.image, (_SIDE, _SIDE), mode="area")[0].flatten(1)
    small = (F.interpolate(x.float(), (_SIDE, _SIDE), mode="nearest").flatten() for x in (crop.classes, crop.valid))
    classes, valid = small
    plain = F.interpolate(crop.skin_mask, (_SIDE, _SIDE), mode="area").flatten()
    inside = (plain > 0.9) & _any_of(classes, _SKIN)
    if inside.sum() < _FEWEST:
        inside = plain > 0.5
    if inside.sum() < _FEWEST:
        inside = classes == _SKIN[0]
    if inside.sum() < _FEWEST:
        inside = valid > 0.5  # no skin is found; the network was not trained on that, and the color is the photo's
    logs = (image + _BLACK).log()
    skin = logs[:, inside]
    color = skin.median(1).values
    bright = (image[:, inside] * image.new_tensor([[0.299], [0.587], [0.114]])).sum(0).add(_BLACK).log()
    low, high = torch.quantile(bright[:: max(1, len(bright) // _MOST)], bright.new_tensor([0.1, 0.9]))
    row = [
        _quantiles(bright[None], (0.02, 0.1, 0.25, 0.75, 0.9, 0.98)) - bright.median(),
        skin[:, bright >= high].mean(1) - color,
        skin[:, bright <= low].mean(1) - color,
    ]
    for numbers in _REGIONS.values():
        where = _any_of(classes, numbers) & (valid > 0.5)
        if where.sum() < _FEWEST:
            row.append(logs.new_full((9,), math.nan))
        else:
            row.append(_quantiles(logs[:, where], (0.1, 0.5, 0.9)) - color.repeat_interleave(3))
    axis = (torch.arange(_SIDE, device=image.device) + 0.5) / _SIDE - 0.5
    frame = axis.abs() < _SCENE / 2
    scene = (frame[:, None] & frame).flatten() & (valid > 0.5)
    mean = (image[:, scene].mean(1) + _BLACK).log()
    spread = _quantiles(logs[:, scene], (0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    clipped = torch.stack([(image[:, part].amax(0) > 0.99).float().mean() for part in (inside, scene)])
    row += [mean - color, logs[:, scene].mean(1) - color, spread - color.repeat_interleave(6), color, clipped]
    return torch.cat(row), color


def _any_of(classes: Tensor, numbers: tuple[int, ...]) -> Tensor:
    return torch.isin(classes, classes.new_tensor(numbers))


class ToneNet(nn.Module):
    """(B, N) features -> a belief over the mean log color of plain skin.

    Ridge regression on the standardized features and the squares of the color differences; what is not known counts as
    usual, and no skin is lighter than the lightest. The covariance is that of the errors on people left out.

    Args:
        inputs: N.
        squared: Q, how many of the first features enter squared, too.
    """

    def __init__(self, inputs: int, squared: int) -> None:
        super().__init__()
        shapes = {
            "center": (inputs,), "scale": (inputs,), "weight": (inputs + squared, 3), "bias": (3,),
            "covariance": (3, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def terms(self, features: Tensor) -> Tensor:
        """(B, N) -> (B, N + Q), what the regression is linear in."""
        x = ((features - self.center) / self.scale).nan_to_num(0.0).clamp(-_FARTHEST, _FARTHEST)
        squared = len(self.weight) - len(self.center)
        return torch.cat([x, x[:, :squared].square() - 1], 1)

    @torch.no_grad()
    def forward(self, features: Tensor) -> ToneBelief:
        check_shape("features", features, f"B {len(self.center)}")
        mean = self.terms(features) @ self.weight + self.bias
        mean = mean - (mean.amax(1, keepdim=True) - _LIGHTEST).clamp(min=0)
        return ToneBelief(mean, self.covariance.expand(len(mean), 3, 3))


@kept()
def load_tone_net() -> ToneNet:
    """The shipped regression, frozen."""
    tensors, _ = read_safetensors(
        assets.shipped("tone.safetensors"), "a regression of skin tones", "install facerecon again"
    )
    inputs, terms = len(tensors["center"]), len(tensors["weight"])
    net = ToneNet(inputs, terms - inputs)
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return net.eval()


def estimate_tone(full: Crop, fit: Crop, landmarks: Tensor) -> ToneBelief:
    """The belief over the tone of B faces; arguments as of :func:`tone_features`."""
    with torch.no_grad():
        features, _ = tone_features(full, fit, landmarks)
        return load_tone_net()(features)
