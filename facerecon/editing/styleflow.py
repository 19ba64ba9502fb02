"""StyleFlow (Abdal et al. 2021, arXiv:2008.02401): a conditional continuous normalizing flow over W of StyleGAN2-FFHQ.

A row w of a code and 17 attributes belong to a point of a Gaussian space by an ordinary differential equation,
``dw/dt = f(w, t, attributes)``, between two normalizations (Sec. 4 there; FFJORD, arXiv:1810.01367). An edit goes there
with the attributes as they are, and back with the wanted ones (Sec. 3.1.1 of FFHQ-UV).

f is six layers of gated linear maps, ``(W x + b) * sigmoid(G c + g) + H c`` of the time and the attributes c, with tanh
between them. The equation is integrated here by Runge-Kutta's fourth order in fixed steps; ``solver="dopri5"`` takes
torchdiffeq's adaptive one, as the release does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.assets.foreign import load_converted, read_checkpoint, read_released, tensors_of
from facerecon.errors import AssetError, ConfigError, check_shape, nearest_name
from facerecon.modes import in_own_modes, kept
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole

__all__ = [
    "CONDITIONS",
    "EDITED_ROWS",
    "ConditionalFlow",
    "convert",
    "convert_expression_direction",
    "integrate",
    "load_expression_direction",
    "load_styleflow",
]

CONDITIONS: dict[str, slice] = {
    "light": slice(0, 9), "gender": slice(9, 10), "glasses": slice(10, 11), "yaw": slice(11, 12),
    "pitch": slice(12, 13), "baldness": slice(13, 14), "beard": slice(14, 15), "age": slice(15, 16),
    "expression": slice(16, 17),
}  # fmt: skip
"""Places of the attributes in a condition of 17 numbers, in the release's order."""

EDITED_ROWS: dict[str, slice] = {
    "light": slice(7, 12), "glasses": slice(2, 4), "yaw": slice(0, 4), "pitch": slice(0, 4), "baldness": slice(0, 6),
    "expression": slice(0, 18),
}  # fmt: skip
"""Rows of W+ that the release replaces by the edited ones, of each attribute."""

SOLVERS = ("rk4", "dopri5")
_WIDTH, _LAYERS = 512, 6
_CONDITION = 17
_EPSILON = 1e-4  # of the normalizations, as in the released flow


class _Normalization(nn.Module):
    """A fixed affine map of each channel, learned as a moving batch normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) * (self.running_var + _EPSILON).rsqrt() * self.weight.exp() + self.bias

    def inverse(self, y: Tensor) -> Tensor:
        """What ``forward`` made y of."""
        return (y - self.bias) * (-self.weight).exp() * (self.running_var + _EPSILON).sqrt() + self.running_mean


class _Gated(nn.Module):
    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self._layer = nn.Linear(width, width)
        self._hyper_bias = nn.Linear(condition, width, bias=False)
        self._hyper_gate = nn.Linear(condition, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self._layer(x) * self._hyper_gate(condition).sigmoid() + self._hyper_bias(condition)


def integrate(
    slope: Callable[[Tensor, Tensor], Tensor], start: Tensor, begin: Tensor, end: Tensor, solver: str, steps: int
) -> Tensor:
    """x(end) of ``dx/dt = slope(t, x)`` with ``x(begin) = start``.

    Args:
        slope: of a scalar t and x.
        solver: one of :data:`SOLVERS`.
        steps: of "rk4"; the other one chooses its own.

    Raises:
        ConfigError: another solver, or no step.
        AssetError: torchdiffeq is not installed.
    """
    if solver not in SOLVERS:
        raise ConfigError(nearest_name(solver, SOLVERS, "solver"))
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more; got {steps}.")
    if solver == "dopri5":
        try:
            from torchdiffeq import odeint
        except ImportError:
            raise AssetError("solver 'dopri5' needs torchdiffeq. Run: pip install torchdiffeq; or use 'rk4'.") from None
        return odeint(slope, start, torch.stack([begin, end]), method="dopri5", rtol=1e-5, atol=1e-5)[-1]
    x, h = start, (end - begin) / steps
    for k in range(steps):
        t = begin + k * h
        first = slope(t, x)
        second = slope(t + h / 2, x + h / 2 * first)
        third = slope(t + h / 2, x + h / 2 * second)
        fourth = slope(t + h, x + h * third)
        x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
    return x


class ConditionalFlow(nn.Module):
    """Codes (B, N, 512) of W+ and conditions (B, 17) <-> points (B, N, 512) of a Gaussian space.

    Args:
        solver: one of :data:`SOLVERS`.
        steps: of "rk4".
    """

    def __init__(self, solver: str = "rk4", steps: int = 24) -> None:
        super().__init__()
        self.solver, self.steps = solver, steps
        self.before, self.after = _Normalization(_WIDTH), _Normalization(_WIDTH)
        self.sqrt_end_time = nn.Parameter(torch.ones([]))
        self.layers = nn.ModuleList(_Gated(_WIDTH, 1 + _CONDITION) for _ in range(_LAYERS))

    def slope(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """f: (B, N, 512) at a time, under (B, 17)."""
        known = torch.cat([t.expand(len(condition), 1).to(condition), condition], 1)[:, None]
        for i, layer in enumerate(self.layers):
            x = layer(x.tanh() if i else x, known)
        return x

    def _carried(self, x: Tensor, condition: Tensor, back: bool) -> Tensor:
        check_shape("condition", condition, f"{x.shape[0]} {_CONDITION}")
        times = [torch.zeros_like(self.sqrt_end_time), self.sqrt_end_time.square()]
        begin, end = times[::-1] if back else times
        return integrate(lambda t, y: self.slope(t, y, condition), x, begin, end, self.solver, self.steps)

    def to_gaussian(self, w: Tensor, condition: Tensor) -> Tensor:
        """(B, N, 512) of W+ and their attributes (B, 17) -> (B, N, 512)."""
        check_shape("w", w, f"B N {_WIDTH}")
        return self.after(self._carried(self.before(w), condition, back=False))

    def to_latent(self, z: Tensor, condition: Tensor) -> Tensor:
        """The inverse of :meth:`to_gaussian`."""
        check_shape("z", z, f"B N {_WIDTH}")
        return self.before.inverse(self._carried(self.after.inverse(z), condition, back=True))

    def edit(self, w: Tensor, condition: Tensor, attribute: str, value: Tensor | float) -> tuple[Tensor, Tensor]:
        """Change one attribute of codes, in the rows that the release changes.

        Args:
            w: (B, 18, 512).
            condition: (B, 17), the attributes that w has.
            attribute: key of :data:`EDITED_ROWS`.
            value: its new one: a number, or (9,) or (B, 9) for the light.

        Returns:
            The code (B, 18, 512) and its condition (B, 17).

        Raises:
            ConfigError: another attribute.
        """
        if attribute not in EDITED_ROWS:
            raise ConfigError(nearest_name(attribute, EDITED_ROWS, "attribute"))
        wanted = condition.clone()
        wanted[:, CONDITIONS[attribute]] = torch.as_tensor(value).to(condition)
        edited = self.to_latent(self.to_gaussian(w, condition), wanted)
        result, rows = w.clone(), EDITED_ROWS[attribute]
        result[:, rows] = edited[:, rows]
        return result, wanted


def _official(name: str) -> str:
    """Their name of a parameter of ours."""
    part, _, rest = name.partition(".")
    theirs = {"before": "chain.0", "after": "chain.2", "layers": "chain.1.odefunc.diffeq.layers"}.get(part)
    return f"{theirs}.{rest}" if theirs else f"chain.1.{name}"


def convert(source: Path, target: Path) -> None:
    """The released ``modellarge10k.pt`` to weights of :class:`ConditionalFlow`.

    Raises:
        AssetError: missing, damaged, or another network; one line.
    """
    unused = ("chain.0.step", "chain.2.step", "chain.1.odefunc._num_evals")
    what = "StyleFlow's flow"
    weights = read_released(ConditionalFlow, source, what, "state_dict", unused=unused, official=_official)
    write_whole(target, safetensors_bytes(weights, {"source": "StyleFlow"}))


def convert_expression_direction(source: Path, target: Path) -> None:
    """The direction of a smile in W+ (``expression_direction.pt``): (1 or 18, 512).

    Raises:
        AssetError: not one tensor of whole rows of 512 numbers.
    """
    found = list(tensors_of({"x": read_checkpoint(source)}).values())
    if len(found) != 1 or not found[0].numel() or found[0].numel() % 512 or not torch.isfinite(found[0].float()).all():
        raise AssetError(f"{source} is no direction of W or W+ (rows of 512 numbers); get the released file again.")
    rows = found[0].float().reshape(-1, 512).contiguous()
    write_whole(target, safetensors_bytes({"direction": rows}, {"source": "FFHQ-UV release"}))


@kept()
def load_styleflow() -> ConditionalFlow:
    """The released flow, frozen; until it is converted, an AssetError with the command."""
    return load_converted(ConditionalFlow, assets.locate("styleflow"))


@in_own_modes
def load_expression_direction() -> Tensor:
    """The released direction of a smile, (1 or 18, 512); until it is converted, an AssetError with the command."""
    path = assets.locate("expression_direction")
    tensors, _ = read_safetensors(path, "a direction of W+", "convert the released file again", ("direction",))
    return tensors["direction"].clone()
