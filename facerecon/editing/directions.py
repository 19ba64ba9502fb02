"""Linear readings of W and the steps that change them (InterFaceGAN, Sec. 3.1.1).

An attribute is read off a code by a hyperplane: ridge regression for what is measured in degrees or coefficients, a
linear support vector machine (expression) or logistic regression (glasses, fringe, headwear) for what is there or
not. InterFaceGAN moves along the plane's normal and projects other normals out of it. Here all attributes are moved
by one step, the shortest one in the metric C^-1,

    dw = C A_s^T (A_s C A_s^T + ridge)^-1 d ,

whose rows A_s are the planes to move *and* those to keep (d = 0): each edit is conditioned on all others. With C = 1
and one plane to keep it is InterFaceGAN's projection. With the covariance of the codes it is their likeliest change,
which stays where the generator was trained but follows what goes together there (soft light comes with gray hair and
hats); C is the covariance plus 0.3, several times its mean eigenvalue, which was best for the person.

Unlike FFHQ-UV: the release edits light, glasses, pose and hair by StyleFlow. A flow, or any other editor, plugs into
:class:`facerecon.editing.latent_traversal.AttributeNormalizer` instead of a :class:`Directions` if it has the ``step``
of :class:`Editor`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from facerecon import assets
from facerecon.editing.accessories import ACCESSORIES
from facerecon.editing.attributes import Attributes
from facerecon.editing.linear import cross_validate_ridge, fit_class, logistic, ridge, support_vectors
from facerecon.errors import AssetError, ConfigError, InputError, ShapeError, nearest_name
from facerecon.modes import in_own_modes
from facerecon.storage import parse_json, read_safetensors, safetensors_bytes, write_whole
from facerecon.types import TensorStruct, _struct

__all__ = [
    "CLASSES",
    "MEASURED",
    "STEADY",
    "Directions",
    "Editor",
    "fit_directions",
    "load_directions",
    "measured_values",
    "read_labels",
    "steady_values",
]

LIGHT = tuple(f"light{band}" for band in range(1, 9))
MEASURED = ("yaw", "pitch", *LIGHT, "smile", "opening", "age", "male")
"""What :func:`measured_values` gives: attributes by whose measured values a traversal is steered."""
CLASSES = ("happy", *ACCESSORIES)
"""What is there or not: margins, in units of the classifier (positive: there)."""
STEADY_PARTS = {"identity": 16, "shape": 12, "skin": 3, "hair": 3}
STEADY = ("age", "male", *(f"{part}{k}" for part, count in STEADY_PARTS.items() for k in range(count)))
"""What makes the person, kept while the rest is edited."""

SPREAD = 0.3
"""Added to the covariance of the codes in the metric of a step."""
RIDGE = 0.02
"""Of a step: share of an attribute's own scale that is not trusted."""

_TENSORS = ("weight", "bias", "mean", "response")


def measured_values(attributes: Attributes) -> dict[str, Tensor]:
    """{name: (B,)} of every name in ``MEASURED``.

    Angles in degrees; ``lightK`` the luma coefficient K over that of band 0; ``smile`` and ``opening`` as measured;
    age in years; ``male`` the log odds, clamped to +-6.
    """
    luma = attributes.light.mean(2)
    light = luma[:, 1:] / luma[:, :1].clamp(min=1e-3)
    values = {
        "yaw": attributes.yaw,
        "pitch": attributes.pitch,
        "smile": attributes.smile,
        "opening": attributes.opening,
        "age": attributes.age,
        "male": attributes.male.clamp(2.5e-3, 1 - 2.5e-3).logit(),
    }
    return {name: values[name] if name in values else light[:, LIGHT.index(name)] for name in MEASURED}


def steady_values(attributes: Attributes) -> dict[str, Tensor]:
    """{name: (B,)} of the names in ``STEADY`` that ``measured_values`` lacks: relative to the other faces of the batch.

    ``identityK`` and ``shapeK`` are principal components, in standard deviations, of the identity embedding and of the
    face mesh without its pose, both without what pose and expression explain of them; ``skinK`` and ``hairK``
    logarithms of red, green and blue.
    """
    pose = torch.stack([attributes.yaw, attributes.pitch], 1).double() / 10
    expression = torch.stack([attributes.smile * 10, attributes.opening * 10, attributes.happy], 1).double()
    passing = torch.cat([pose, pose.square(), expression, expression.square()], 1)
    parts = {
        "identity": _principal(_without(attributes.identity, passing), STEADY_PARTS["identity"]),
        "shape": _principal(_without(_unposed(attributes.mesh468).flatten(1), passing), STEADY_PARTS["shape"]),
        "skin": attributes.skin.clamp(min=0.01).log().double(),
        "hair": attributes.hair.clamp(min=0.01).log().double(),
    }
    return {f"{part}{k}": value for part, values in parts.items() for k, value in enumerate(values.unbind(1))}


def _without(x: Tensor, causes: Tensor) -> Tensor:
    """x (N, D) less what a linear regression on ``causes`` (N, C) explains."""
    weight, bias = ridge(causes, x, 1e-3 * len(x))
    return x.double() - (causes @ weight + bias)


def _principal(x: Tensor, count: int) -> Tensor:
    """(N, count) leading principal components, each of unit variance."""
    x = x.double() - x.double().mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)
    parts = x @ vectors.flip(1)[:, :count]
    return parts / parts.std(0).clamp(min=1e-9)


def _unposed(mesh: Tensor, rounds: int = 2) -> Tensor:
    """(B, N, 3) points brought onto their mean shape by a similarity each."""
    x = mesh.double()
    x = x - x.mean(1, keepdim=True)
    x = x / x.square().sum((1, 2), keepdim=True).sqrt()
    mean = x[x[:, :, 2].std(1).argsort()[: max(1, len(x) // 2)]].mean(0)
    for _ in range(rounds):
        left, _, right = torch.linalg.svd(x.mT @ mean)
        sign = torch.ones(len(x), 3, dtype=x.dtype)
        sign[:, 2] = torch.det(left @ right).sign()
        x = x @ (left * sign[:, None] @ right)
        mean = x.mean(0)
    return x


class Editor(Protocol):
    """What :class:`~facerecon.editing.latent_traversal.AttributeNormalizer` needs of whatever moves codes."""

    def step(
        self, codes: Tensor, current: Mapping[str, Tensor], targets: Mapping[str, Tensor], keep: Sequence[str] = ()
    ) -> Tensor:
        """Codes (B, 512) moved so that attributes go from ``current`` to ``targets``, each {name: (B,)}, while
        those named in ``keep`` stay."""
        ...

    def read(self, codes: Tensor) -> dict[str, Tensor]:
        """{name: (B,)}, each attribute as predicted from codes (B, 512) or (B, L, 512) alone."""
        ...


@_struct
class Directions(TensorStruct):
    """Planes in W: ``weight @ (w - mean) + bias`` predicts an attribute.

    Args:
        weight: (K, 512).
        bias: (K,).
        mean: (512,), mean of the samples they were fitted on.
        response: (K, 512), C weight^T, the shortest change of w with each attribute.
        names: K attributes, of ``MEASURED``, ``STEADY`` and ``CLASSES``.
        metrics: {name: {metric: number}} of the cross-validation, and how the planes came about.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    response: Tensor
    names: tuple = ()
    metrics: dict | None = None

    SHARED = ("weight", "bias", "mean", "response", "names", "metrics")

    def index(self, names: Iterable[str]) -> list[int]:
        """Rows of attributes; an unknown name is a ConfigError with the nearest one."""
        names = list(names)
        if unknown := [name for name in names if name not in self.names]:
            raise ConfigError(nearest_name(unknown[0], self.names, "attribute"))
        return [self.names.index(name) for name in names]

    def read(self, codes: Tensor) -> dict[str, Tensor]:
        """Prediction of each attribute from codes: {name: (B,)}, the measured ones in their units, classes as margins.

        Args:
            codes: (B, 512), or (B, L, 512), whose rows are averaged.
        """
        w = codes.mean(1) if codes.dim() == 3 else codes
        values = (w.double() - self.mean) @ self.weight.T.double() + self.bias
        return dict(zip(self.names, values.to(w.dtype).unbind(1), strict=True))

    def probability(self, name: str, codes: Tensor) -> Tensor:
        """(B,) probability of a class, by the sigmoid of its margin."""
        if name not in CLASSES:
            raise ConfigError(nearest_name(name, CLASSES, "class"))
        return self.read(codes)[name].sigmoid()

    def direction(self, name: str, keep: Sequence[str] = ()) -> Tensor:
        """(512,), the change of w that raises an attribute by 1 and leaves those in ``keep`` alone."""
        one = torch.ones(1)
        return self._shift({name: one}, tuple(k for k in keep if k != name), ridge=0.0)[0]

    def step(
        self, codes: Tensor, current: Mapping[str, Tensor], targets: Mapping[str, Tensor], keep: Sequence[str] = ()
    ) -> Tensor:
        """Move codes (B, 512) so that attributes change from what was measured to what is wanted.

        Args:
            codes: (B, 512).
            current, targets: {name: (B,)}; only names in ``targets`` are moved.
            keep: attributes that shall not change.
        """
        if codes.dim() != 2:
            raise ShapeError(f"codes must be (B, 512); got {tuple(codes.shape)}. Add a step to every row of a W+ code.")
        wanted = {name: target - current[name] for name, target in targets.items()}
        return codes + self._shift(wanted, tuple(k for k in keep if k not in wanted)).to(codes)

    def _shift(self, wanted: Mapping[str, Tensor], keep: Sequence[str], ridge: float = RIDGE) -> Tensor:
        """(B, 512): the shortest shift with the changes ``wanted`` and none in ``keep``.

        ``ridge`` is a share of each attribute's own scale: the planes are not known better than that.
        """
        rows = self.index((*wanted, *keep))
        some = next(iter(wanted.values()))
        change = torch.stack([*wanted.values(), *[torch.zeros_like(some)] * len(keep)], 1).double()  # (B, n)
        weight, response = self.weight[rows].double(), self.response[rows].double()
        system = weight @ response.T
        variance = system.diagonal()
        system = system + torch.diag(ridge * variance)
        scale = variance.rsqrt()
        system = system * scale[:, None] * scale
        solved = torch.linalg.solve_ex(system, (change * scale).T)[0].T * scale
        return (solved @ response).to(some.dtype)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        metadata = {"names": json.dumps(self.names), "metrics": json.dumps(self.metrics or {}, sort_keys=True)}
        write_whole(path, safetensors_bytes(tensors, {"format": "facerecon directions 1", **metadata}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Directions:
        """Read what :meth:`save` wrote; anything else is an AssetError."""
        advice = "run train/edit_directions.py to make one"
        tensors, metadata = read_safetensors(path, "a file of latent directions", advice, _TENSORS)
        try:
            names = tuple(parse_json(metadata["names"]))
            metrics = parse_json(metadata["metrics"] if "metrics" in metadata else metadata["figures"])
            k, width = len(names), tensors["mean"].shape[0]
            expected = {"weight": (k, width), "bias": (k,), "mean": (width,), "response": (k, width)}
            if any(tuple(tensors[key].shape) != shape for key, shape in expected.items()):
                raise ValueError("shapes that do not fit each other")
        except (LookupError, ValueError, TypeError) as problem:
            raise AssetError(f"{path} is not a file of latent directions ({problem}); {advice}.") from None
        return cls(**tensors, names=names, metrics=metrics)


@in_own_modes
def load_directions(path: str | os.PathLike | None = None) -> Directions:
    """The planes shipped for the open generator, or those of a file that ``train/edit_directions.py`` wrote."""
    return Directions.load(assets.shipped("latent_directions.safetensors") if path is None else path)


# -- labels ----------------------------------------------------------------------------------------------


def read_labels(path: str | os.PathLike) -> dict[str, dict[int, int]]:
    """{class: {seed: 0 or 1}} of a table made by looking.

    The file is comma-separated: a header ``seed,CLASS,...``, then a line a seed; an empty cell is a face that
    nobody could decide on. Lines that start with ``#`` are comments.

    Raises:
        InputError: it cannot be read, or a cell is neither empty, 0 nor 1 (names the line).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a table 'seed,glasses,...' of 0 and 1.") from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    header = rows[0][1].split(",") if rows else []
    if header[:1] != ["seed"] or len(header) < 2:
        raise InputError(f"{path} has no header 'seed,CLASS,...'; got '{rows[0][1][:60] if rows else ''}'.")
    labels: dict[str, dict[int, int]] = {name: {} for name in header[1:]}
    for number, line in rows[1:]:
        cells = line.split(",")
        whole = len(cells) == len(header) and re.fullmatch(r"[0-9]{1,18}", cells[0])
        if not whole or any(c not in ("", "0", "1") for c in cells[1:]):
            raise InputError(f"{path}, line {number}: expected a seed and {len(labels)} cells of 0, 1 or nothing.")
        for name, cell in zip(header[1:], cells[1:], strict=True):
            if cell:
                labels[name][int(cells[0])] = int(cell)
    return labels


# -- fitting ---------------------------------------------------------------------------------------------

RIDGE_GRID = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
CLASS_GRID = (0.3, 1.0, 3.0, 10.0)
CLEAR = 0.7  # probability from which an expression is a clear case


def _ridges(x: Tensor, y: Tensor, folds: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Squared error (K,) out of fold, index (K,) of the strength that has it, and the planes of each strength."""
    guesses = cross_validate_ridge(x, y, RIDGE_GRID, folds)
    squared, best = (guesses - y).square().mean(1).min(0)
    return squared, best, [ridge(x, y, strength) for strength in RIDGE_GRID]


def fit_directions(
    codes: Tensor, attributes: Attributes, labels: Mapping[str, tuple[Tensor, Tensor]], folds: int = 5
) -> tuple[Directions, dict[str, Tensor]]:
    """Planes for everything that was measured or labeled; strengths are chosen out of fold.

    Args:
        codes: (N, 512).
        attributes: of the N images.
        labels: {class: (index (M,), there (M,) of 0 and 1)} for ``glasses``, ``fringe``, ``headwear``.
        folds: of the cross-validation.

    Returns:
        Directions, and {class: (M,) margins out of fold} for looking at the mistakes.

    Raises:
        InputError: too few samples, or a class of which one side has fewer than ``folds`` members.
    """
    if len(codes) < 4 * folds:
        raise InputError(f"directions need at least {4 * folds} samples; got {len(codes)}. Raise n=.")
    x = codes.double()
    mean = x.mean(0)
    x = x - mean
    covariance = x.T @ x / (len(x) - 1)
    values = measured_values(attributes) | steady_values(attributes)
    y = torch.stack([value.double() for value in values.values()], 1)
    bare = attributes.accessories[:, ACCESSORIES.index("headwear")] < 0  # whose hair is seen
    squared, best, fitted = _ridges(x, y, folds)
    hair = [k for k, name in enumerate(values) if name.startswith("hair")]
    if int(bare.sum()) >= 4 * folds:
        squared[hair], best[hair], of_bare = _ridges(x[bare], y[bare][:, hair], folds)
        for (weight, bias), (w, b) in zip(fitted, of_bare, strict=True):
            weight[:, hair], bias[hair] = w, b
    rows, metrics, margins = {}, {}, {}
    for k, name in enumerate(values):
        weight, bias = fitted[best[k]]
        rows[name] = (weight[:, k], bias[k])
        variance, error = float(y[:, k].var(unbiased=False)), float(squared[k])
        metrics[name] = {"r2": round(1 - error / max(variance, 1e-12), 4), "error": round(error**0.5, 4)}
        metrics[name] |= {"std": round(variance**0.5, 4), "strength": RIDGE_GRID[best[k]], "samples": len(y)}
    where = ((attributes.happy > CLEAR) | (attributes.neutral > CLEAR)).nonzero()[:, 0]
    for name, (index, there) in {"happy": (where, (attributes.happy[where] > CLEAR).long()), **labels}.items():
        fit = support_vectors if name == "happy" else logistic
        rows[name], margins[name], metrics[name] = fit_class(name, fit, x[index], there, CLASS_GRID, folds)
    weight = torch.stack([row[0] for row in rows.values()])
    directions = Directions(
        weight=weight.float(),
        bias=torch.stack([row[1] for row in rows.values()]).float(),
        mean=mean.float(),
        response=(weight @ (covariance + SPREAD * torch.eye(len(covariance), dtype=x.dtype))).float(),
        names=tuple(rows),
        metrics=metrics,
    )
    return directions, margins
