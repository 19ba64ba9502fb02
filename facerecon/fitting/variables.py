"""What a fit moves: leaf tensors, their learning rates, and where they must stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facerecon.errors import ConfigError
from facerecon.fitting.stage import Stage
from facerecon.stylegan.decoder import TextureDecoder, retract_to_sphere
from facerecon.types import FaceParams, Latent, SHLight

__all__ = ["Variables", "chosen_rows"]

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
        params: start of the coefficients. latent: start of the texture code.
        expression_bounds: (low, high), or None where expressions are free.
        decoder: whose codes they are; needed where a stage moves w itself.
    """

    params: FaceParams
    latent: Latent
    expression_bounds: tuple[float, float] | None = None
    decoder: TextureDecoder | None = None

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
        self.moves_w = False

    def groups(self, stage: Stage) -> list[dict]:
        """Adam parameter groups of a stage; marks what it optimizes and nothing else as requiring a gradient."""
        for tensor in self.tensors.values():
            tensor.requires_grad_(False)
            tensor.grad = None
        return [
            {
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

    def retract(self, stage: Stage) -> None:
        """Undo what a step did to the constraints: the latent's sphere, the expression's bounds."""
        with torch.no_grad():
            if stage.sphere and "latent" in stage.optimize:
                self.tensors["latent"].copy_(retract_to_sphere(self.tensors["latent"]))
            if self.expression_bounds is not None and "expression" in stage.optimize:
                self.tensors["expression"].clamp_(*self.expression_bounds)

    @property
    def current(self) -> FaceParams:
        """The parameters as they stand; gradients flow back to the leaves."""
        t = self.tensors
        return self.params.replace(
            identity=t["identity"],
            expression=t["expression"],
            rotation=t["rotation"],
            translation=t["translation"],
            light=SHLight(t["light"]),
        )

    @property
    def code(self) -> Latent:
        """The latent as it stands, as a code of the decoder."""
        leaf = self.tensors["latent"]
        return self.latent.replace(codes=self.decoder.from_w(leaf) if self.moves_w else leaf)

    def copy(self) -> tuple[FaceParams, Latent]:
        """Parameters and latent as they stand, free of what later steps do to the leaves."""

        def clone(t: Tensor) -> Tensor:
            return t.detach().clone()

        return self.current.map(clone), self.code.map(clone)

    def keep(self, moving: Tensor, instead: dict[str, Tensor]) -> None:
        """Give the faces that are not ``moving``, (B,) bool, the values of ``instead``."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(chosen_rows(moving, tensor, instead[name]))

    def still(self, moving: Tensor) -> None:
        """Take away the gradients of the faces that are not ``moving``, (B,) bool."""
        for tensor in self.tensors.values():
            if tensor.grad is not None:
                tensor.grad = chosen_rows(moving, tensor.grad, torch.zeros_like(tensor.grad))

    def finite(self) -> Tensor:
        """(B,) bool: all numbers of a face are finite."""
        return torch.stack([t.detach().flatten(1).isfinite().all(1) for t in self.tensors.values()]).all(0)

    def snapshot(self) -> dict[str, Tensor]:
        """Detached copies of every leaf."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def chosen_rows(which: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows of ``first`` where ``which``, (B,) bool, else of ``second``; NaN of the other does not leak in."""
    return torch.where(which.view(-1, *[1] * (first.dim() - 1)), first, second)
