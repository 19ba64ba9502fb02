"""What a fit moves: leaf tensors, their learning rates, and where they must stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facerecon.errors import ConfigError
from facerecon.fitting.initialize import ShapePrior
from facerecon.fitting.stage import Stage
from facerecon.stylegan.decoder import TextureDecoder, retract_to_sphere
from facerecon.types import FaceParams, Latent

__all__ = ["SHARED", "Variables", "chosen_rows"]

SHARED = ("latent", "identity")
"""Leaves that photos of one person have in common."""

_TENSORS = {
    "latent": ("latent",),
    "identity": ("identity",),
    "expression": ("expression",),
    "pose": ("rotation", "translation"),
    "light": ("light",),
}


@dataclass
class Variables:
    """Parameters and latent of B faces, as leaves of the autograd graph.

    Args:
        params: start of the coefficients.
        latent: start of the texture code.
        expression_bounds: (low, high), or None where expressions are free.
        decoder: whose codes they are; needed where a stage moves w itself.
        one_person: the B rows are photos of one person: identity and latent are one leaf each, of batch 1 (the mean of
            the rows given), which all photos move.
        prior: what holds the shape; None: the start, with standard deviations of 1.
    """

    params: FaceParams
    latent: Latent
    expression_bounds: tuple[float, float] | None = None
    decoder: TextureDecoder | None = None
    one_person: bool = False
    prior: ShapePrior | None = None

    def __post_init__(self) -> None:
        p = self.params
        self.tensors: dict[str, Tensor] = {
            "latent": self.latent.codes,
            "identity": p.identity,
            "expression": p.expression,
            "rotation": p.rotation,
            "translation": p.translation,
            "light": p.light.coefficients,
        }
        self.tensors = {name: t.detach().clone() for name, t in self.tensors.items()}
        if self.one_person and self.photos > 1:
            for name in SHARED:
                self.tensors[name] = self.tensors[name].mean(0, keepdim=True)
        self.moves_w = False

    @property
    def photos(self) -> int:
        """B."""
        return len(self.tensors["rotation"])

    def groups(self, stage: Stage) -> list[dict]:
        """Adam parameter groups of a stage; marks what it optimizes and nothing else as requiring a gradient."""
        self.forget_gradients()
        for tensor in self.tensors.values():
            tensor.requires_grad_(False)
        return [
            {
                "name": variable,
                "params": [self.tensors[name].requires_grad_(True) for name in _TENSORS[variable]],
                "scale": stage.rate_scale.get(variable, 1.0),
                "lr": stage.rate(0) * stage.rate_scale.get(variable, 1.0),
            }
            for variable in stage.optimize
        ]

    def to_sphere(self) -> None:
        """Bring the latent to its hypersphere, radius sqrt(d), before a stage that keeps it there."""
        with torch.no_grad():
            codes = self.tensors["latent"]
            codes.copy_(retract_to_sphere(codes) if self.decoder is None else self.decoder.to_sphere(codes))

    def hold_latent(self, as_w: bool) -> None:
        """Let the leaf of the latent be w itself, which the release optimizes in stage 3, or the code."""
        if as_w and self.decoder is None:
            raise ConfigError("a stage that moves w needs a decoder of space w or w+; use latent: code.")
        if as_w != self.moves_w:
            convert = self.decoder.to_w if as_w else self.decoder.from_w
            with torch.no_grad():
                self.tensors["latent"] = convert(self.tensors["latent"]).clone()
            self.moves_w = as_w

    def clip_expression(self, stage: Stage) -> None:
        """Bring the expression back into its bounds, after a step."""
        if self.expression_bounds is not None and "expression" in stage.optimize:
            with torch.no_grad():
                self.tensors["expression"].clamp_(*self.expression_bounds)

    @property
    def current(self) -> FaceParams:
        """The parameters as they stand; gradients flow back to the leaves."""
        t = self.tensors
        return self.params.replace(
            identity=t["identity"].expand(self.photos, -1),
            expression=t["expression"],
            rotation=t["rotation"],
            translation=t["translation"],
            light=self.params.light.replace(coefficients=t["light"]),
        )

    @property
    def code(self) -> Latent:
        """The latent as it stands, as a code of the decoder; of batch 1 for photos of one person."""
        return self.code_of(self.tensors["latent"])

    def code_of(self, leaf: Tensor) -> Latent:
        """What a leaf of the latent stands for, as a code of the decoder."""
        return self.latent.replace(codes=self.decoder.from_w(leaf) if self.moves_w else leaf)

    def copy(self) -> tuple[FaceParams, Latent]:
        """Parameters and latent as they stand, free of what later steps do to the leaves."""
        latent = self.code.replace(codes=self.code.codes.expand(self.photos, -1, -1))
        return tuple(record.map(lambda t: t.detach().clone()) for record in (self.current, latent))

    def keep(self, moving: Tensor, instead: dict[str, Tensor]) -> None:
        """Give the faces that are not ``moving``, (B,) bool, the values of ``instead``."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(chosen_rows(moving[: len(tensor)], tensor, instead[name]))

    def forget_gradients(self) -> None:
        """Let the next backward pass begin anew."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def still(self, moving: Tensor) -> None:
        """Take away the gradients of the faces that are not ``moving``, (B,) bool."""
        for tensor in self.tensors.values():
            if tensor.grad is not None:
                tensor.grad = chosen_rows(moving[: len(tensor)], tensor.grad, torch.zeros_like(tensor.grad))

    def average(self) -> None:
        """Of a sum of losses over photos of one person: make the gradients of what they share those of the mean.

        What each photo has for itself keeps the gradient of its own loss, as in a fit of that photo alone.
        """
        if self.one_person:
            for name in SHARED:
                if self.tensors[name].grad is not None:
                    self.tensors[name].grad /= self.photos

    def finite(self) -> Tensor:
        """(B,) bool: all numbers of a face are finite; of one person, those of all photos."""
        rows = [t.detach().flatten(1).isfinite().all(1).expand(self.photos) for t in self.tensors.values()]
        found = torch.stack(rows).all(0)
        return found.all().expand(self.photos) if self.one_person else found

    def snapshot(self) -> dict[str, Tensor]:
        """Detached copies of every leaf."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def chosen_rows(which: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows of ``first`` where ``which``, (B,) bool, else of ``second``; NaN of the other does not leak in."""
    return torch.where(which.view(-1, *[1] * (first.dim() - 1)), first, second)
