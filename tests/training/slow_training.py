"""A step of StyleGAN2's training by its formulas, as an oracle: one term after the other, Adam written out.

Karras et al. 2020 (arXiv 1912.04958): Sec. 3.1 (lazy regularization), Sec. 3.2 and Appendix B (path length, R1, the
average of weights); Karras et al. 2020 (arXiv 2006.06676), Sec. 3.1 (p follows the mean sign of D(real)), Appendix C
(gamma, half-life of the average). Of the library run the networks (slow_stylegan.py holds them to their definition),
the random draws, the transforms of ADA and a pair's loss.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facerecon.training.ada import Augment, draws_of
from facerecon.training.texture_gan import AdversarialSettings, PairWeights, pair_loss


class Adam:
    """Kingma and Ba's Algorithm 1 without a first moment (beta1 = 0); a weight that no loss reaches is left alone."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self.second = [torch.zeros_like(p) for p in self.weights]
        self.times = [0] * len(self.weights)

    def step(self, loss: Tensor, rate: float, beta: float, all_count: bool = False) -> None:
        """``all_count``: a weight that the loss does not reach has a gradient of 0."""
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True, materialize_grads=all_count)
        for i, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            if gradient is not None:
                self.times[i] += 1
                self.second[i] = beta * self.second[i] + (1 - beta) * gradient**2
                mean = self.second[i] / (1 - beta ** self.times[i])
                with torch.no_grad():
                    weight -= rate * gradient / (mean.sqrt() + 1e-8)


class SlowTraining:
    """Copies of the networks and settings of a run in its adversarial phase, and what a step does to them.

    Args:
        run: a ``TextureTraining`` that has not learned yet. codes, maps: of its pairs, if any.
    """

    def __init__(self, run, codes: Tensor | None = None, maps: Tensor | None = None) -> None:
        self.settings: AdversarialSettings = run.adversarial
        self.batch, self.seed, self.codes, self.maps = run.batch, run.seed, codes, maps
        self.g, self.d = copy.deepcopy(run.generator), copy.deepcopy(run.discriminator)
        self.learns = any(p.requires_grad for p in self.g.mapping.parameters())
        self.average = copy.deepcopy(self.g)
        self.adam_g, self.adam_d = Adam(self.g), Adam(self.d)
        self.augment = Augment(run.augment.settings, run.augment.mirror)
        self.augment.p = run.augment.p
        self.path_mean, self.images, self.steps, self.signs = 0.0, 0, 0, []

    # -- what is drawn -----------------------------------------------------------------------------------

    def latents(self, kind: str, count: int) -> tuple[Tensor, list[int], list[int]]:
        """(count, rows, w_dim): z of each row by style mixing; the last ones are pairs' codes. Which, and whose."""
        numbers, rows = [self.images + i for i in range(count)], self.g.rows
        z = draws_of(self.seed, f"{kind} z", numbers, 2, self.g.config.z_dim).double()
        coins = draws_of(self.seed, f"{kind} mixing", numbers, 3, normal=False).tolist()
        w, other = self.g.mapping(z[:, 0]), self.g.mapping(z[:, 1])
        if kind == "generator" and self.learns:
            self.g.w_mean.copy_(0.995 * self.g.w_mean + 0.005 * w.detach().mean(0))
        pairs = round(self.settings.pairs * self.batch) if self.codes is not None else 0
        codes, places, shown = [], [], []
        for i, (mixes, where, which) in enumerate(coins):
            if i >= self.batch - pairs:
                places.append(i)
                shown.append(int(which * len(self.codes)))
                codes.append(self.codes[shown[-1]].expand(rows, -1))
                continue
            crossover = 1 + int(where * (rows - 1)) if mixes < self.settings.mixing else rows
            codes.append(torch.stack([w[i] if row < crossover else other[i] for row in range(rows)]))
        return torch.stack(codes), places, shown

    def pictures(self, kind: str, ws: Tensor) -> Tensor:
        """Synthesized, each with noise of its own."""
        if self.settings.noise == "none":
            return self.g.synthesis(ws, noise="none")
        numbers, sides = [self.images + i for i in range(len(ws))], [4] + [8, 8]
        flat = draws_of(self.seed, f"{kind} noise", numbers, sum(side**2 for side in sides)).double()
        planes = flat.split([side**2 for side in sides], 1)
        return self.g.synthesis(ws, [plane.view(-1, 1, s, s) for plane, s in zip(planes, sides, strict=True)])

    def seen(self, images: Tensor, kind: str) -> Tensor:
        """What the discriminator sees of them."""
        return self.augment(images, self.seed, kind, [self.images + i for i in range(len(images))])

    # -- a step ------------------------------------------------------------------------------------------

    def corrected(self, every: int) -> tuple[float, float]:
        """Rate and beta2 of an optimizer whose regularization comes every k-th step: c = k / (k + 1)."""
        share = every / (every + 1)
        return self.settings.lr * share, 0.99**share

    def step(self, real: Tensor, half_life: float, rampup: float) -> None:
        """Generator, path length if due, discriminator, R1 if due, average of weights, p of ADA; of 8 px."""
        s, size = self.settings, self.g.size
        of_g, of_d = self.corrected(s.path_every), self.corrected(s.r1_every)

        ws, places, shown = self.latents("generator", self.batch)
        images = self.pictures("generator", ws)
        loss = -F.logsigmoid(self.d(self.seen(images, "generator"))).mean()  # -log sigmoid(D(G(z)))
        if places and s.pair_weight:
            loss = loss + s.pair_weight * pair_loss(images[places], self.maps[shown], PairWeights()).mean()
        self.adam_g.step(loss, *of_g)

        if self.steps % s.path_every == 0:  # Eq. 4: (|J^T y| - a)^2
            ws, *_ = self.latents("path", int(self.batch * s.path_share))
            ws = ws if ws.requires_grad else ws.requires_grad_()
            numbers = [self.images + i for i in range(len(ws))]
            y = draws_of(self.seed, "path direction", numbers, 3, size, size).double() / size
            (slope,) = torch.autograd.grad((self.pictures("path", ws) * y).sum(), ws, create_graph=True)
            lengths = (slope**2).sum(2).mean(1).sqrt()
            self.path_mean += s.path_decay * (lengths.mean().item() - self.path_mean)
            self.adam_g.step(s.path_every * s.path_weight * ((lengths - self.path_mean) ** 2).mean(), *of_g)

        with torch.no_grad():
            fake = self.pictures("discriminator", self.latents("discriminator", self.batch)[0])
        of_real, of_fake = self.d(self.seen(real, "real")), self.d(self.seen(fake, "fake"))
        loss = -(F.logsigmoid(of_real) + F.logsigmoid(-of_fake)).mean()  # -log D(x) - log(1 - D(G(z)))
        self.adam_d.step(loss, *of_d)

        if self.steps % s.r1_every == 0:  # gamma / 2 |dD/dx|^2
            images = self.seen(real, "real").requires_grad_()
            (slope,) = torch.autograd.grad(self.d(images).sum(), images, create_graph=True)
            gamma = 0.0002 * size**2 / self.batch if s.r1_gamma is None else s.r1_gamma
            self.adam_d.step(s.r1_every * gamma / 2 * (slope**2).sum((1, 2, 3)).mean(), *of_d, all_count=True)

        self.steps += 1
        self.images += self.batch
        keep = 0.5 ** (self.batch / min(half_life, rampup * self.images))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.g.parameters(), strict=True):
                mean.copy_(keep * mean + (1 - keep) * now)
            self.average.w_mean.copy_(self.g.w_mean)

        self.signs.append(of_real.detach().sign().mean().item())
        a = self.augment.settings
        if len(self.signs) == a.every:
            mean = sum(self.signs) / a.every
            moved = math.copysign(a.every * self.batch / (1000 * a.speed_kimg), mean - a.target)
            self.augment.p = min(max(self.augment.p + moved, 0.0), a.limit)
            self.signs = []
