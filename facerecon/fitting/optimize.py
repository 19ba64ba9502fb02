"""The loop of one stage: Adam on the variables that it names, and what becomes of a face that diverges (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from facerecon.fitting.adam import Adam
from facerecon.fitting.objective import Objective
from facerecon.fitting.stage import SmoothnessSettings, Stage
from facerecon.fitting.variables import Variables, chosen_rows
from facerecon.modes import in_own_modes
from facerecon.run.thread_pool import begin
from facerecon.stylegan.decoder import retract_to_sphere
from facerecon.types import FaceParams, Latent, Observation

__all__ = ["StageRun", "StepReport", "Track", "run_stage"]


@dataclass(frozen=True)
class StepReport:
    """What a callback is given after each step.

    Args:
        stage: name.
        step: from 0.
        steps: of this stage.
        losses: {term: (B,)}, unweighted.
        total: (B,), weighted.
        image: (B, 3, H, W), the composite of this step.
        params, latent: before the step.
    """

    stage: str
    step: int
    steps: int
    losses: dict[str, Tensor]
    total: Tensor
    image: Tensor
    params: FaceParams
    latent: Latent


@dataclass(frozen=True)
class Track:
    """The photos are frames of a video.

    Args:
        settings: weights of the smoothness over time.
        times: (B,) moments of the frames; None: evenly spaced.
    """

    settings: SmoothnessSettings
    times: Tensor | None


@dataclass(frozen=True)
class StageRun:
    """What a stage did.

    Args:
        losses: {term: (B, steps)}, unweighted, with "total".
        stopped: {index: (step, whether it has an earlier state)} of the faces whose loss is not finite, or far above
            its start; they went back to their best state.
    """

    losses: dict[str, Tensor]
    stopped: dict[int, tuple[int, bool]] = field(default_factory=dict)


@in_own_modes
def run_stage(
    objective: Objective,
    stage: Stage,
    photo: Observation,
    variables: Variables,
    callback: Callable[[StepReport], None] | None = None,
    track: Track | None = None,
    still: Collection[int] = (),
) -> StageRun:
    """One stage: Adam on the variables it names.

    A face whose loss is not finite, or far above its start, goes back to its best state and stays there until the
    stage ends; the others do not notice. Photos of one person (``variables.one_person``) do so together, by the mean
    of their losses.

    Args:
        objective: the losses.
        stage: what is optimized, how long, with which weights.
        photo: B observed faces.
        variables: moved in place.
        callback: called after every step.
        track: the photos are frames of a video, along which the variables are smooth.
        still: numbers of the faces that do not move.
    """
    variables.hold_latent(as_w=False)
    if stage.sphere:
        variables.to_sphere()
    variables.hold_latent(stage.latent == "w" and objective.decoder.space.startswith("w"))
    groups = {group["name"]: group for group in variables.groups(stage)}
    moving_shape = any(v in stage.optimize for v in ("identity", "expression", "pose", "light"))
    view = None if moving_shape else objective.prepare(variables.current, photo.camera)[0]
    targets = objective.targets(photo, stage, variables.params, variables.prior)
    weights = stage.weights | (track.settings.weights if track is not None else {})
    records: dict[str, list[Tensor]] = {}
    watch = DivergenceWatch(moving_rows(photo, still), variables)
    with _DecodedTexture(objective, stage, variables, groups.pop("latent", None)) as decoded:
        optimizer = Adam(list(groups.values()), eps=stage.epsilon)
        for step in range(stage.steps):
            _set_rates(optimizer, stage, step)
            if stage.decodes(step):
                texture = decoded.take(watch)
            params, latent = variables.current, variables.code
            before = variables.copy() if callback is not None else None
            if not stage.decodes(step):
                texture, latent = texture.detach(), latent.detach()
            scales = {name: stage.gradient_scale(name, step) for name in ("lpips", "id") if name in weights}
            skipped = [name for name, scale in scales.items() if scale == 0]
            terms, image = objective.terms(stage, photo, params, latent, targets, view, texture, skipped)
            if track is not None and moving_shape:
                terms |= track.settings.terms(params, track.times)
            if variables.one_person:  # one texture, one prior of it
                terms = {name: value.expand(photo.batch) for name, value in terms.items()}
            terms |= {name: records[name][-1] for name in skipped}
            total = sum(weights[name] * value for name, value in terms.items())
            watched = total.detach()
            for name, scale in scales.items():
                if scale > 1:  # the gradient of the steps in between, too
                    total = total + weights[name] * (scale - 1) * (terms[name] - terms[name].detach())
            watch.update(step, watched.mean().expand_as(watched) if variables.one_person else watched, variables)
            variables.forget_gradients()
            torch.where(watch.moving, total, torch.zeros_like(total)).sum().backward()
            variables.average()
            variables.still(watch.moving)
            optimizer.step()
            variables.clip_expression(stage)
            variables.keep(watch.moving, watch.best)
            if stage.decodes(step):
                decoded.move(step, texture.grad, watch.moving)
            terms = {name: value.detach() for name, value in terms.items()}
            for name, value in {**terms, "total": watched}.items():
                records.setdefault(name, []).append(value)
            if callback is not None:
                callback(StepReport(stage.name, step, stage.steps, terms, watched, image.detach(), *before))
        decoded.take(watch)
    stopped = watch.close(stage.steps, variables)
    return StageRun({name: torch.stack(values, 1) for name, values in records.items()}, stopped)


def _set_rates(optimizer: Adam, stage: Stage, step: int) -> None:
    """Give the groups of Adam the learning rates of a step."""
    for group in optimizer.param_groups:
        group["lr"] = stage.rate(step) * group["scale"]


class _DecodedTexture:
    """The texture of a stage, and the latent it is decoded from.

    The decoder's gradient, the latent's step and the next texture are computed in a thread while the steps that do not
    decode move all else. Nothing is late: these steps have the texture, and the latent, of the last that did.

    Args:
        objective: whose decoder.
        stage: when it decodes, and how large.
        variables: whose latent moves when the next texture is taken.
        group: Adam's of the latent; None where it stays.
    """

    def __init__(self, objective: Objective, stage: Stage, variables: Variables, group: dict | None) -> None:
        self.objective, self.stage, self.variables = objective, stage, variables
        self.leaf = variables.tensors["latent"].detach().clone().requires_grad_(group is not None)
        self.optimizer = Adam([] if group is None else [group | {"params": [self.leaf]}], eps=stage.epsilon)
        self.here = stage.decodes(1) or self.leaf.device.type != "cpu"  # no step in between; a GPU goes on by itself
        self.end = begin(partial(self._decode, 0), here=True)

    def __enter__(self) -> _DecodedTexture:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def take(self, watch: DivergenceWatch) -> Tensor | None:
        """(B, 3, S, S): the texture to go on with, a leaf, whose latent the variables now have; None at the end."""
        self.texture = self.end()
        with torch.no_grad():
            latent = self.variables.tensors["latent"]
            latent.copy_(chosen_rows(watch.moving[: len(latent)], self.leaf, latent))
        return None if self.texture is None else self.texture.detach().requires_grad_(self.leaf.requires_grad)

    def move(self, step: int, gradient: Tensor | None, moving: Tensor) -> None:
        """Begin to move the latent of the faces that are ``moving``, by the gradient of the texture and its own."""
        latent = self.variables.tensors["latent"]
        own, held, moving = latent.grad, latent.detach().clone(), moving[: len(latent)]
        _set_rates(self.optimizer, self.stage, step)

        def job() -> Tensor | None:
            if self.leaf.requires_grad:
                slope = torch.zeros_like(held) if own is None else own
                if gradient is not None:
                    # as a sum: for a gradient of its own torch would import sympy
                    (through,) = torch.autograd.grad((self.texture * gradient).sum(), self.leaf)
                    slope = slope + through / (self.variables.photos if self.variables.one_person else 1)
                self.leaf.grad = chosen_rows(moving, slope, torch.zeros_like(slope))
                self.optimizer.step()
                with torch.no_grad():
                    moved = retract_to_sphere(self.leaf) if self.stage.sphere else self.leaf
                    self.leaf.copy_(chosen_rows(moving, moved, held))
            return self._decode(step + self.stage.every.get("texture", 1))

        self.end = begin(job, here=self.here)

    def _decode(self, step: int) -> Tensor | None:
        if step >= self.stage.steps:
            return None
        with torch.enable_grad():
            latent = self.variables.code_of(self.leaf)
            return self.objective.albedo(self.variables.params, latent, self.stage.texture_size(step))


def moving_rows(photo: Observation, still: Collection[int]) -> Tensor:
    """(B,) bool: all faces but those that are ``still``."""
    moving = torch.ones(photo.batch, dtype=torch.bool, device=photo.image.device)
    moving[list(still)] = False
    return moving


_BLOWN = 10.0  # a loss this many times its first value, and 0.1 more, has diverged


class DivergenceWatch:
    """Faces of a stage: which still move, their best states, and when the others stopped. Nothing waits for a GPU."""

    def __init__(self, moving: Tensor, variables: Variables) -> None:
        self.moving = moving
        self.best = variables.snapshot()  # leaves that all photos share have one row
        self.lowest = torch.full(moving.shape, torch.inf, device=moving.device)
        self.first: Tensor | None = None
        self.stopped = torch.full(moving.shape, -1, device=moving.device)

    def update(self, step: int, total: Tensor, variables: Variables) -> None:
        """Take in the (B,) losses of the variables as they stand before a step."""
        if self.first is None:
            self.first = total
        self._stop(step, total.isfinite() & ~(total > _BLOWN * self.first.abs() + 0.1))
        better = self.moving & (total < self.lowest)
        self.lowest = torch.where(better, total, self.lowest)
        for name, tensor in variables.tensors.items():
            self.best[name] = chosen_rows(better[: len(tensor)], tensor.detach(), self.best[name])

    def close(self, steps: int, variables: Variables) -> dict[int, tuple[int, bool]]:
        """{face: (step at which it stopped, whether it has a good state)} of every face that did not finish."""
        self._stop(steps - 1, variables.finite())
        variables.keep(self.moving, self.best)
        good = self.lowest.isfinite().tolist()
        return {i: (step, good[i]) for i, step in enumerate(self.stopped.tolist()) if step >= 0}

    def _stop(self, step: int, good: Tensor) -> None:
        self.stopped = torch.where(self.moving & ~good, step, self.stopped)
        self.moving = self.moving & good
