"""Steps of training a texture decoder: supervised on pairs, and adversarial as in StyleGAN2 (arXiv:1912.04958).

``train/texture_gan.py`` holds the loop; here is what one turn of it does. Nothing is drawn from a global random state:
every number is drawn for one sample, by the run's seed, what it is for, and the sample's number. So a run that was
stopped goes on bit by bit, and a step of several processes is the step of one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.errors import ConfigError, InputError, check_number
from facerecon.run.processes import Processes
from facerecon.run.training_loop import diverged, fits_run
from facerecon.stylegan.discriminator import Discriminator
from facerecon.stylegan.generator import Generator
from facerecon.training.ada import Augment, draws_of

__all__ = [
    "AdversarialSettings",
    "CollapseWatch",
    "Latents",
    "PairWeights",
    "PretrainSettings",
    "TextureNetworks",
    "TextureTraining",
    "average_weight",
    "cosine_rampdown",
    "discriminator_loss",
    "generator_loss",
    "invert_maps",
    "resume_optimizer",
    "pair_loss",
    "path_length",
    "r1_penalty",
    "update_average",
]


@dataclass(frozen=True)
class PairWeights:
    """Weights of the terms that hold a synthesized map against the true one (values in [-1, 1]).

    Args:
        l1: mean absolute difference.
        pyramid: the same, averaged over the halved images down to 8 px.
        gradient: mean absolute difference of horizontal and vertical differences between neighbors.
        skip: finest levels of the pyramid that no term looks at (0: all count); for a pair loss beside an
            adversarial one, which is to decide on details.
    """

    l1: float = 1.0
    pyramid: float = 1.0
    gradient: float = 1.0
    skip: int = 0


@dataclass(frozen=True)
class PretrainSettings:
    """The supervised phase.

    Args:
        lr: learning rate of Adam; ten times the adversarial one, since equalized weights move by about that much a
            step, and a supervised loss is steady.
        batch: images a step.
        betas: of Adam.
        rampup, rampdown: shares of the phase in which the learning rate rises linearly and falls as a cosine.
        noise: per-pixel noise of the synthesis, ``"none"``, ``"const"`` or ``"random"``.
        code_lr: learning rate of a table of learned codes, in standard deviations of W.
        code_prior: weight of their mean square.
        coarse: share of the phase that is trained at a quarter of the size, and then again at half of it, for a
            sixteenth and a quarter of the time: the skip architecture gives the coarse image without the fine layers.
        lpips: weight of LPIPS on AlexNet beside the pair loss, on values in [0, 1], wherever 64 px or more are trained;
            VGG-16's is left for measurements.
        lpips_size: px a side of the random square of each step that it looks at.
        lpips_box: part of the map in which these squares lie: first and last row, first and last column, in shares of
            the side.
    """

    lr: float = 0.02
    batch: int = 8
    coarse: float = 0.3
    code_lr: float = 0.002
    code_prior: float = 0.001
    betas: tuple[float, float] = (0.9, 0.99)
    rampup: float = 0.02
    rampdown: float = 0.3
    noise: str = "none"
    lpips: float = 0.0
    lpips_size: int = 256
    lpips_box: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        check_number("pretrain.lpips_size", self.lpips_size, 32, whole=True)
        top, bottom, left, right = self.lpips_box
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise ConfigError(f"pretrain.lpips_box must be rows and columns within 0 and 1; got {self.lpips_box}.")

    def window(self, size: int, draw: Sequence[float]) -> tuple[slice, slice]:
        """Rows and columns of the square that LPIPS looks at, of a map of ``size`` px, by two draws in [0, 1)."""
        top, bottom, left, right = (round(share * size) for share in self.lpips_box)
        side = min(self.lpips_size, bottom - top, right - left)
        row = top + int(draw[0] * (bottom - top - side + 1))
        column = left + int(draw[1] * (right - left - side + 1))
        return slice(row, row + side), slice(column, column + side)

    def size(self, size: int, done: float) -> int:
        """Size to train at, of a network of ``size`` px, at a share ``done`` in [0, 1) of the phase."""
        halvings = (done < self.coarse) + (done < 2 * self.coarse)
        return max(size >> halvings, 8)


@dataclass(frozen=True)
class AdversarialSettings:
    """The adversarial phase; defaults are config F's, gamma by size and batch (ADA, Table 6).

    Args:
        lr: learning rate of Adam, with betas (0, 0.99).
        r1_gamma: weight of R1; None: 0.0002 size^2 / batch.
        r1_every: steps between two of it.
        path_weight: of the path length's variance.
        path_every: steps.
        path_share: of the batch that it takes.
        path_decay: how fast the mean length follows.
        mixing: probability of style mixing.
        delay_kimg: thousands of images in which only the discriminator learns, after the pretraining.
        noise: as in :class:`PretrainSettings`.
        pairs: share of the generated images whose code is a pair's; the rest is mapped from z.
        pair_weight: of the pair loss on those images.
    """

    lr: float = 2e-3
    r1_gamma: float | None = None
    r1_every: int = 16
    path_weight: float = 2.0
    path_every: int = 4
    path_share: float = 0.5
    path_decay: float = 0.01
    mixing: float = 0.9
    delay_kimg: float = 0.0
    noise: str = "random"
    pairs: float = 0.0
    pair_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("r1_every", "path_every"):
            check_number(f"adversarial.{name}", getattr(self, name), 1, whole=True)
        for name in ("path_share", "path_decay", "mixing", "pairs"):
            check_number(f"adversarial.{name}", getattr(self, name), 0, 1)

    def gamma(self, size: int, batch: int) -> float:
        """Weight of R1."""
        return 0.0002 * size**2 / batch if self.r1_gamma is None else self.r1_gamma


def pair_loss(image: Tensor, target: Tensor, weights: PairWeights) -> Tensor:
    """Difference of synthesized and true maps.

    Args:
        image, target: (B, 3, S, S) in [-1, 1].

    Returns:
        (B,).
    """
    for _ in range(weights.skip):
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    difference = image - target  # every term is linear in it

    def size_of(x: Tensor) -> Tensor:
        return x.abs().flatten(1).mean(1)

    total = weights.l1 * size_of(difference)
    if weights.gradient:
        across, down = difference.diff(dim=-1), difference.diff(dim=-2)
        total = total + weights.gradient * (size_of(across) + size_of(down))
    levels = []
    while weights.pyramid and difference.shape[-1] >= 16:
        difference = F.avg_pool2d(difference, 2)
        levels.append(size_of(difference))
    if levels:
        total = total + weights.pyramid * torch.stack(levels).mean(0)
    return total


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating logistic loss, ``softplus(-D(G(z)))``: (B, 1) logits -> (B,)."""
    return F.softplus(-fake).flatten()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss, ``softplus(-D(x)) + softplus(D(G(z)))``: (B, 1) logits each -> (B,)."""
    return (F.softplus(-real) + F.softplus(fake)).flatten()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared gradient norm at real images, ``|dD/dx|^2`` (arXiv:1801.04406); its weight is gamma / 2.

    Args:
        logits: (B, 1) of D.
        images: (B, C, H, W) that they were computed from, requiring a gradient.

    Returns:
        (B,), differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def path_length(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of ``J_w^T y`` for random images y (Eq. 4): what the path-length penalty keeps constant.

    Args:
        images: (B, C, H, W) synthesized from ``ws``.
        ws: (B, rows, w_dim), requiring a gradient.
        noise: (B, C, H, W), N(0, 1); divided here by sqrt(H W).

    Returns:
        (B,), root of the mean over rows of the squared norms; differentiable.
    """
    scale = 1 / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum() * scale, ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def cosine_rampdown(done: float, rampup: float, rampdown: float) -> float:
    """Factor of a learning rate at a share ``done`` in [0, 1] of a phase: linear rise, 1, cosine fall to 0."""
    rise = min(1.0, done / rampup) if rampup > 0 else 1.0
    rest = min(1.0, (1 - done) / rampdown) if rampdown > 0 else 1.0
    return rise * (0.5 - 0.5 * math.cos(math.pi * max(rest, 0.0)))


# -- averages of weights -----------------------------------------------------------------------------------


def average_weight(batch: int, images: float, half_life: float, rampup: float | None = 0.05) -> float:
    """Weight beta that the average keeps at one step: ``0.5 ** (batch / half_life)``.

    Args:
        batch: images a step.
        images: seen so far.
        half_life: images after which a weight counts half.
        rampup: at first the half-life is at most this share of ``images``; None: never.
    """
    if rampup is not None:
        half_life = min(half_life, images * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """``average = weight average + (1 - weight) model``, parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - weight)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def resume_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state; learning rate, betas and weight decay stay those of this run's settings."""
    own = [{key: group[key] for key in ("lr", "betas", "weight_decay")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


# -- the run -----------------------------------------------------------------------------------------------


@dataclass
class Latents:
    """Where generated images take their codes from.

    Args:
        codes: (N, w_dim) of the pairs, or None.
        rows: of the table of learned codes that they are, if any.
        maps: function from rows of ``codes`` to their maps (B, 3, S, S) in [-1, 1].
    """

    codes: Tensor | None = None
    maps: Any = None
    rows: Tensor | None = None


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for a network's parameters meanwhile: it passes them on only."""
    wanted = nn.ParameterList(p for p in network.parameters() if p.requires_grad).requires_grad_(False)
    try:
        yield
    finally:
        wanted.requires_grad_(True)


@contextmanager
def _precision(precision: torch.dtype, *networks: nn.Module) -> Iterator[None]:
    before = [network.precision for network in networks]
    for network in networks:
        network.precision = precision
    try:
        yield
    finally:
        for network, old in zip(networks, before, strict=True):
            network.precision = old


class TextureNetworks:
    """Networks, optimizers and counters of one run: what a checkpoint holds.

    Args:
        generator: is trained.
        discriminator: of the same size, or None for a run that is only supervised.
        batch: images a step of the adversarial phase, over all processes.
        seed: of everything that is drawn.
        pretrain, adversarial: settings of the two phases.
        pair_weights, adversarial_pair_weights: of the pair loss in each.
        augment: of what the discriminator sees.
        train_mapping: whether the mapping network learns in the adversarial phase; it never does in the pretraining.
        precision, regularizer_precision: of the networks; of R1 and path length.
        processes: the ranks.
        latents: codes and maps of pairs.
        perceptual: LPIPS of images and targets (B, 3, H, W) in [0, 1] -> (B,), where ``pretrain.lpips`` asks for it.
        table: (M, w_dim) codes that the supervised phase learns along with the network, as they begin.

    Attributes:
        average: running average of the generator, which is what is used afterwards.
        batch: images a step of the phase it is in.
        steps: turns of the loop so far.
        images: seen so far.
        pretrain_images: of them in the pretraining.
    """

    remedy = "a smaller adversarial.lr or a greater adversarial.r1_gamma"
    shown = dict.fromkeys(("l1", "lpips", "pair", "generator", "discriminator", "r1", "length", "p"), "")

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator | None,
        *,
        batch: int,
        seed: int = 0,
        pretrain: PretrainSettings | None = None,
        adversarial: AdversarialSettings | None = None,
        pair_weights: PairWeights | None = None,
        adversarial_pair_weights: PairWeights | None = None,
        augment: Augment | None = None,
        train_mapping: bool = True,
        precision: torch.dtype = torch.float32,
        regularizer_precision: torch.dtype = torch.float32,
        processes: Processes | None = None,
        latents: Latents | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        table: Tensor | None = None,
    ) -> None:
        self.processes = processes or Processes(torch.device("cpu"))
        self.device = self.processes.device
        self.generator = generator.to(self.device).train()
        self.discriminator = None if discriminator is None else discriminator.to(self.device).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.seed = seed
        self.pretrain, self.adversarial = pretrain or PretrainSettings(), adversarial or AdversarialSettings()
        group = 1 if discriminator is None else min(discriminator.group, batch)
        self._batches = {"pretrain": (self.pretrain.batch, 1), "adversarial": (batch, group)}
        self.pair_weights = pair_weights or PairWeights()
        self.adversarial_pair_weights = adversarial_pair_weights or self.pair_weights
        self.augment = augment or Augment()
        self.train_mapping = train_mapping
        self.regularizer_precision = regularizer_precision
        self.latents = latents or Latents()
        self.perceptual = perceptual
        self.table = None if table is None else nn.Parameter(table.to(self.device))
        for network in self.networks():
            network.precision = precision
            self.processes.copy_from_first(network.state_dict().values())
        self.steps = self.images = self.pretrain_images = 0
        self.path_mean = torch.zeros([], device=self.device)
        self.signs: list[Tensor] = []
        self.phase = ""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    # -- phases ------------------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Begin a phase, ``"pretrain"`` or ``"adversarial"``, with optimizers of its own; nothing if it goes on.

        Raises:
            ConfigError: adversarial without a discriminator.
        """
        if phase == self.phase:
            return
        batch, group = self._batches[phase]
        self.part = self.processes.part(batch, group)
        self.phase, self.batch = phase, batch
        learn = phase == "adversarial" and self.train_mapping
        self.generator.requires_grad_(True)
        self.generator.mapping.requires_grad_(learn)
        adam = partial(torch.optim.Adam, eps=1e-8, fused=self.device.type in ("cpu", "cuda"))
        learning = [p for p in self.generator.parameters() if p.requires_grad]
        if phase == "pretrain":
            self.optimizers = {"generator": adam(learning, self.pretrain.lr, self.pretrain.betas)}
            if self.table is not None:
                self.optimizers["codes"] = adam([self.table], self.pretrain.code_lr, self.pretrain.betas)
            return
        if self.table is not None and self.latents.rows is not None:
            self.latents.codes = self.table.detach()[self.latents.rows.to(self.device)]
        if self.discriminator is None:
            raise ConfigError("the adversarial phase needs a discriminator; got none.")
        self.optimizers = {}
        s = self.adversarial
        for name, parameters, every in (
            ("generator", learning, s.path_every if s.path_weight else 0),
            ("discriminator", list(self.discriminator.parameters()), s.r1_every if s.gamma(1, 1) else 0),
        ):
            share = every / (every + 1) if every else 1.0  # lazy regularization: Sec. 3.1 and App. B
            self.optimizers[name] = adam(parameters, s.lr * share, (0.0, 0.99**share))

    def numbers(self, count: int | None = None) -> list[int]:
        """Numbers of this rank's samples of the step: what their draws depend on.

        Args:
            count: samples over all ranks, if not the whole batch.
        """
        part = self.part if count is None else self.processes.part(count)
        return [self.images + i for i in part]

    def finish_step(self, half_life: float, rampup: float | None = 0.05) -> dict[str, Tensor]:
        """Count the step, move the average, adapt the augmentation.

        Args:
            half_life: images of the average of weights.
            rampup: see :func:`average_weight`.

        Returns:
            The probability p of the augmentation, a metric.
        """
        self.steps += 1
        self.images += self.batch
        if self.phase == "pretrain":
            self.pretrain_images = self.images
        update_average(self.average, self.generator, average_weight(self.batch, self.images, half_life, rampup))
        if len(self.signs) >= self.augment.settings.every:
            sign = float(self.processes.average(torch.stack(self.signs).mean()))
            self.augment.adapt(sign, len(self.signs) * self.batch)
            self.signs = []
        return {"p": torch.tensor(self.augment.p, device=self.device)}

    # -- small parts -------------------------------------------------------------------------------------

    def noise(self, kind: str, name: str, numbers: Sequence[int]) -> str | list[Tensor]:
        """Per-pixel noise for the synthesis: random noise is drawn sample by sample."""
        if name != "random":
            return name
        layers = [layer for b in self.generator.synthesis.blocks for layer in (b.up, b.conv) if layer is not None]
        counts = [layer.size**2 for layer in layers]
        flat = draws_of(self.seed, f"{kind} noise", numbers, sum(counts)).to(self.device)
        return [part.view(-1, 1, of.size, of.size) for part, of in zip(flat.split(counts, 1), layers, strict=True)]

    def _optimizer(self, name: str, rate: float | None = None) -> torch.optim.Optimizer:
        optimizer = self.optimizers[name]
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    def _descend(self, loss: Tensor, name: str, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        network = self.generator if name == "generator" else self.discriminator
        if network.precision == torch.float16:  # as ADA's training does: no loss scaling, but no infinities either
            for parameter in network.parameters():
                if parameter.grad is not None:
                    torch.nan_to_num(parameter.grad, 0.0, 1e5, -1e5, out=parameter.grad)
        self.processes.average_gradients(network.parameters())
        optimizer.step()

    # -- keeping -----------------------------------------------------------------------------------------

    @property
    def progress(self) -> dict[str, Any]:
        """What begins a row of metrics."""
        return {"images": self.images, "step": self.steps, "phase": self.phase}

    def networks(self) -> list[nn.Module]:
        """Those whose weights must be finite."""
        return [network for network in (self.generator, self.average, self.discriminator) if network is not None]

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on, for :class:`facerecon.run.Checkpoints`."""
        return {
            "size": self.generator.size,
            "phase": self.phase,
            "step": self.steps,
            "images": self.images,
            "pretrain_images": self.pretrain_images,
            "path_mean": self.path_mean,
            "signs": [self.processes.average(sign) for sign in self.signs],
            "p": self.augment.p,
            "table": None if self.table is None else self.table.detach(),
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": None if self.discriminator is None else self.discriminator.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state(self, state: Mapping[str, Any], name: str = "the checkpoint") -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            InputError: it is of another resolution, or of other networks; ``name`` says which file.
        """
        if state.get("size") != self.generator.size:
            raise InputError(
                f"{name} is of a {state.get('size')} px network, this run's has {self.generator.size} px; set "
                f"size={state.get('size')}, or start another out= with init= the decoder of that run."
            )
        with fits_run(name):
            self.generator.load_state_dict(state["generator"])
            self.average.load_state_dict(state["average"])
            if self.discriminator is not None and state["discriminator"] is not None:
                self.discriminator.load_state_dict(state["discriminator"])
            if self.table is not None:
                with torch.no_grad():
                    self.table.copy_(state["table"])
            self.phase = ""
            self.enter("adversarial" if state["phase"] == "adversarial" else "pretrain")  # once called "warm"
            for key, optimizer in self.optimizers.items():
                resume_optimizer(optimizer, state["optimizers"][key])
            self.steps, self.images = int(state["step"]), int(state["images"])
            self.pretrain_images = int(state["pretrain_images" if "pretrain_images" in state else "warm_images"])
            self.path_mean = state["path_mean"].to(self.device)
            self.signs, self.augment.p = [sign.to(self.device) for sign in state["signs"]], float(state["p"])


class TextureTraining(TextureNetworks):
    """What a step does to the networks; arguments as for :class:`TextureNetworks`."""

    # -- supervised --------------------------------------------------------------------------------------

    def pretrain_step(
        self, codes: Tensor, maps: Tensor, done: float = 0.5, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One supervised step.

        Args:
            codes: (b, w_dim) of this rank.
            maps: (b, 3, S, S) in [-1, 1].
            done: share of the phase, in [0, 1); learning rate and size depend on it.
            rows: (b,) of the learned table that the codes are of.
        """
        rate = cosine_rampdown(done, self.pretrain.rampup, self.pretrain.rampdown)
        size = self.pretrain.size(self.generator.size, done)
        optimizer = self._optimizer("generator", self.pretrain.lr * rate)
        noise = self.noise("warm", self.pretrain.noise, self.numbers())
        if size < maps.shape[-1]:
            maps = F.avg_pool2d(maps, maps.shape[-1] // size)
        loss = 0.0
        if rows is not None:
            learner = self._optimizer("codes", self.pretrain.code_lr * rate)
            learned = self.table[rows.to(self.device)]
            codes = codes + (learned - learned.detach())
            loss = self.pretrain.code_prior * learned.square().mean()
        image = self.generator.synthesis(self.generator.rows_of(codes), noise=noise, size=size)
        loss = loss + pair_loss(image, maps, self.pair_weights).mean()
        losses = {}
        if self.perceptual is not None and self.pretrain.lpips and size >= 64:  # its network needs some 32 px
            draw = draws_of(self.seed, "lpips", [self.images], 2, normal=False)[0].tolist()  # one for all ranks
            window = self.pretrain.window(size, draw)
            seen, wanted = (x[..., *window] * 0.5 + 0.5 for x in (image, maps))
            distance = self.perceptual(seen, wanted).mean()
            loss = loss + self.pretrain.lpips * distance
            losses["lpips"] = distance.detach()
        self._descend(loss, "generator", optimizer)
        if rows is not None:
            self.processes.average_gradients([self.table])
            learner.step()
        with torch.no_grad():
            l1 = (image.detach() - maps).abs().mean() / 2  # of [0, 1]
        return {"pair": loss.detach(), "l1": l1} | losses

    # -- adversarial -------------------------------------------------------------------------------------

    def codes(self, kind: str, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """W+ codes of the images to generate: mixed ones of random z, and single ones of pairs.

        Returns:
            (b, rows, w_dim); the positions that are pairs' (k,), and the rows of :class:`Latents` they show.
        """
        g, pairs = self.generator, self._paired(numbers)
        z = draws_of(self.seed, f"{kind} z", numbers, 2, g.config.z_dim).to(g.w_mean)
        coins = draws_of(self.seed, f"{kind} mixing", numbers, 3, normal=False).to(self.device)
        first, second = g.map(z[:, 0]), g.map(z[:, 1])
        if self.train_mapping and kind == "generator":  # the mean of W follows the mapping, over all ranks
            g.track(self.processes.average(first.mean(0, keepdim=True)))
        at = 1 + (coins[:, 1] * (g.rows - 1)).long()
        crossover = torch.where(coins[:, 0] < self.adversarial.mixing, at, torch.full_like(at, g.rows))
        ws = g.mix(first, second, crossover)
        if not len(pairs):
            return ws, pairs, None
        chosen = (coins[pairs, 2] * len(self.latents.codes)).long().clamp(max=len(self.latents.codes) - 1)
        known = self.latents.codes.to(self.device)[chosen]
        return ws.index_copy(0, pairs, g.rows_of(known).to(ws.dtype)), pairs, chosen

    def _paired(self, numbers: Sequence[int]) -> Tensor:
        """Positions of this rank's samples that take a pair's code: the last of each batch."""
        first = self.batch - (0 if self.latents.codes is None else self._pair_count())
        positions = [k for k, n in enumerate(numbers) if n - self.images >= first]
        return torch.tensor(positions, dtype=torch.long, device=self.device)

    def _pair_count(self) -> int:
        return round(self.adversarial.pairs * self.batch)

    def generator_step(self) -> dict[str, Tensor]:
        """Make the discriminator take generated images for real."""
        g, d, numbers = self.generator, self.discriminator, self.numbers()
        optimizer = self._optimizer("generator")
        with _frozen(d):
            ws, pairs, chosen = self.codes("generator", numbers)
            image = g.synthesis(ws, noise=self.noise("generator", self.adversarial.noise, numbers))
            logits = d(self.augment(image, self.seed, "generator", numbers))
            loss = generator_loss(logits).mean()
            metrics = {"generator": loss.detach(), "fake": logits.detach().mean(), "sample_std": _sample_std(image)}
            if chosen is not None and self.adversarial.pair_weight:
                truth = self.latents.maps(chosen)
                each = pair_loss(image[pairs], truth, self.adversarial_pair_weights)
                supervised = each.sum() * (self.processes.count / self._pair_count())  # ranks hold unequal shares
                metrics["pair"] = supervised.detach()
                loss = loss + self.adversarial.pair_weight * supervised
            self._descend(loss, "generator", optimizer)
        return metrics

    def path_step(self) -> dict[str, Tensor]:
        """Path-length regularization (Eq. 4) on a part of a batch."""
        s, g = self.adversarial, self.generator
        count = max(1, int(self.batch * s.path_share) // self.processes.count) * self.processes.count
        numbers = self.numbers(count)
        optimizer = self._optimizer("generator")
        with _precision(self.regularizer_precision, g):
            ws, *_ = self.codes("path", numbers)
            ws = ws if ws.requires_grad else ws.detach().requires_grad_(True)
            image = g.synthesis(ws, noise=self.noise("path", s.noise, numbers))
            direction = draws_of(self.seed, "path direction", numbers, *image.shape[1:]).to(image)
            lengths = path_length(image, ws, direction)
            self.path_mean = torch.lerp(self.path_mean, self.processes.average(lengths.mean()).float(), s.path_decay)
            penalty = (lengths - self.path_mean).square().mean()
            self._descend(penalty * (s.path_weight * s.path_every), "generator", optimizer)
        return {"path": penalty.detach(), "length": self.path_mean}

    def discriminator_step(self, real: Tensor) -> dict[str, Tensor]:
        """Tell real maps from generated ones.

        Args:
            real: (b, 3, S, S) in [-1, 1] of this rank.
        """
        d, numbers = self.discriminator, self.numbers()
        optimizer = self._optimizer("discriminator")
        with torch.no_grad():
            ws, *_ = self.codes("discriminator", numbers)
            fake = self.generator.synthesis(ws, noise=self.noise("discriminator", self.adversarial.noise, numbers))
        real_logits = d(self.augment(real, self.seed, "real", numbers))
        fake_logits = d(self.augment(fake, self.seed, "fake", numbers))
        loss = discriminator_loss(real_logits, fake_logits).mean()
        self._descend(loss, "discriminator", optimizer)
        self.signs.append(real_logits.detach().sign().mean())
        return {"discriminator": loss.detach(), "real": real_logits.detach().mean()}

    def r1_step(self, real: Tensor) -> dict[str, Tensor]:
        """R1 regularization at augmented real maps, (b, 3, S, S) in [-1, 1]."""
        s, d, numbers = self.adversarial, self.discriminator, self.numbers()
        optimizer = self._optimizer("discriminator")
        with _precision(self.regularizer_precision, d):
            with torch.no_grad():
                images = self.augment(real, self.seed, "real", numbers)
            images = images.detach().requires_grad_(True)
            logits = d(images)
            penalty = r1_penalty(logits, images).mean()
            weight = s.gamma(real.shape[-1], self.batch) / 2 * s.r1_every
            # the logits' zero keeps parameters in the graph that the penalty does not reach
            self._descend(penalty * weight + 0 * logits.sum(), "discriminator", optimizer)
        return {"r1": penalty.detach()}


class CollapseWatch:
    """Stops a run whose discriminator or generated images were beyond limits for many steps.

    Args:
        logits: largest mean logit.
        sample_std: least standard deviation over generated images.
        patience: steps in a row.
    """

    def __init__(self, logits: float = 1000.0, sample_std: float = 0.0005, patience: int = 20) -> None:
        self.logits, self.sample_std, self.patience = logits, sample_std, patience
        self.flat = self.wild = 0

    def __call__(self, metrics: Mapping[str, Tensor], training: TextureTraining) -> None:
        """Look at the metrics of a step.

        Raises:
            FitError: the generated images have long been alike, or logits were too large.
        """
        if training.device.type != "cpu" and training.steps % 8:
            return  # to look is to wait for the device
        if "sample_std" in metrics and training.batch // training.processes.count > 1:
            self.flat = self.flat + 1 if float(metrics["sample_std"]) < self.sample_std else 0
        if "real" in metrics:
            most = max(abs(float(metrics[key])) for key in ("real", "fake") if key in metrics)
            self.wild = self.wild + 1 if most > self.logits else 0
        if self.flat >= self.patience:
            raise diverged(training, "the generated images are all alike (collapse)")
        if self.wild >= self.patience:
            raise diverged(training, f"the discriminator's logits passed {self.logits:g}")


def invert_maps(generator: Generator, maps: Tensor, steps: int, rate: float = 0.05) -> tuple[Tensor, Tensor]:
    """Fit one w to each map: what a decoder cannot show, whoever's code it is given.

    Adam from the mean of W, by the pair loss; the rate falls as a cosine.

    Args:
        generator: frozen.
        maps: (B, 3, S, S) in [-1, 1].
        steps: of Adam.
        rate: at first.

    Returns:
        Codes (B, w_dim) and images (B, 3, S, S), both of the last step.
    """
    weights = PairWeights()
    w = generator.w_mean.detach().expand(len(maps), -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], rate, (0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * cosine_rampdown(step / steps, 0.05, 0.5)
        optimizer.zero_grad(set_to_none=True)
        image = generator.synthesis(generator.rows_of(w))
        pair_loss(image, maps, weights).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return w.detach(), generator.synthesis(generator.rows_of(w))


def _sample_std(image: Tensor) -> Tensor:
    """Standard deviation over the images of a batch, averaged; 0 is collapse."""
    with torch.no_grad():
        return F.adaptive_avg_pool2d(image.detach().float(), 8).std(0, unbiased=False).mean()
