"""Several processes that train one network: gradients and figures averaged over ranks (started by ``torchrun``).

Every rank holds the whole network and computes a part of each batch; what is drawn at random is drawn per sample, so a
step of N ranks is the step of one (up to rounding).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from facerecon.errors import ConfigError

__all__ = ["Processes"]


class Processes:
    """The ranks of a run; one process alone unless ``torchrun`` started it.

    Args:
        device: where each rank computes; of ``cuda``, each takes the one of its own number.

    Attributes:
        rank: number of this process, 0 to count - 1.
        count: how many.
        device: of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        if self.count > 1 and device.type == "cuda" and device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))

    def __enter__(self) -> Processes:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.count > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *raised: object) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    def part(self, total: int, group: int = 1) -> range:
        """This rank's samples of a batch: consecutive ones, in whole groups.

        Args:
            total: samples of the batch.
            group: samples that belong together.

        Raises:
            ConfigError: the batch does not divide so.
        """
        if total % (self.count * group):
            of = f" in groups of {group}" if group > 1 else ""
            raise ConfigError(
                f"a batch of {total} cannot be shared by {self.count} processes{of}; "
                f"choose a multiple of {self.count * group}."
            )
        share = total // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def average(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the ranks; no gradient flows through it."""
        value = value.detach()
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the ranks, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so: what all of them must decide alike."""
        if self.count == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)
