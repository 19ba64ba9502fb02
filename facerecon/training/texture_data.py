"""The maps that a texture decoder learns, and their codes: of the faces they show, or of the maps themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from facerecon.errors import InputError
from facerecon.training.ada import draws_of
from facerecon.training.texture_gan import Latents, TextureTraining
from facerecon.training.uv_maps import MapCodes, MapMemory, PairedCodes, held_out, share_of

__all__ = ["TextureData"]


class TextureData:
    """Maps to train on and to measure on; after :meth:`use_codes_of_maps` or :meth:`use_codes_of_faces`, their codes.

    Args:
        memory: all maps.
        share: tenths of them to train on, see :func:`facerecon.training.uv_maps.share_of`.
        leave_out: leave every tenth map out of the training, and measure on it.
        seed: of orders and noise.

    Attributes:
        chosen: rows of the maps to train on.
        unseen: rows of those left out.
        known: (M, C) codes of the maps (then of their mirror images) before any projection, or None.
        coded: rows to train on that have a code.
        pair_rows: these, and their mirror images, rows N and more.
        unseen_pairs: rows left out that have a code.
        noise: standard deviations of the noise on codes in training.

    Raises:
        InputError: no map is left to train on.
    """

    def __init__(self, memory: MapMemory, share: float = 1.0, leave_out: bool = True, seed: int = 0) -> None:
        self.memory, self.seed = memory, seed
        self.chosen = memory.usable(share_of(len(memory), share, leave_out))
        self.unseen = memory.usable(held_out(len(memory))) if leave_out else []
        if not self.chosen:
            raise InputError(
                f"{memory.maps.folder} has {len(memory)} map(s); none is left to train on with share={share}."
            )
        self.map_codes: MapCodes | None = None
        self.pairs: PairedCodes | None = None
        self.known: Tensor | None = None
        self.coded: list[int] = []
        self.pair_rows: list[int] = []
        self.unseen_pairs: list[int] = []
        self.code_noise = 0.0
        self.noise: Tensor | float = 0.0

    def use_codes_of_maps(self, count: int, mirror: bool, side: int, noise: float) -> None:
        """Take whitened principal coordinates of the maps, which are learned along.

        Args:
            count: of components.
            mirror: give the maps' mirror images codes, too.
            side: px of the components.
            noise: on codes, in standard deviations.
        """
        self.map_codes = MapCodes(self.memory, self.chosen, count, mirror, side)
        self.known, self.coded, self.unseen_pairs = self.map_codes.table, self.chosen, self.unseen
        self.code_noise = self.noise = noise
        self.pair_rows = self.coded + ([i + len(self.memory) for i in self.coded] if mirror else [])

    def use_codes_of_faces(self, pairs: PairedCodes, noise: float) -> None:
        """Take the codes of the faces that the maps were made of.

        Args:
            pairs: these codes.
            noise: on codes, in standard deviations.

        Raises:
            InputError: no map to train on has one.
        """
        self.pairs, self.known, self.code_noise = pairs, pairs.codes, noise
        self.coded, self.unseen_pairs = ([i for i in maps if pairs.known[i]] for maps in (self.chosen, self.unseen))
        if not self.coded:
            raise InputError(f"the manifest knows none of the {len(self.chosen)} maps to train on.")
        self.pair_rows = self.coded
        if noise:
            self.noise = self.known[pairs.known].std(0) * noise

    def move_codes(self, device: torch.device, table: Tensor | None) -> None:
        """Keep the codes where the networks are.

        Args:
            device: of the networks.
            table: (M, C) codes that are learned along; they replace the first ones.
        """
        if self.known is not None:
            self.known = self.known.to(device) if table is None else table.detach()
            self.noise = torch.as_tensor(self.noise, device=device)

    def codes_of(
        self, rows: Sequence[int], projection: nn.Module | None, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """Codes of maps.

        Args:
            rows: of the maps.
            projection: of W onto the decoder's directions, or None.
            numbers: of samples, which take noise; None: without noise.

        Returns:
            (b, w_dim).
        """
        codes = self.known[torch.as_tensor(rows, device=self.known.device)]
        if numbers is not None and self.code_noise:
            draws = draws_of(self.seed, "code noise", numbers, codes.shape[1])
            codes = codes + self.noise * draws.to(codes.device)
        if projection is None:
            return codes
        with torch.no_grad():
            return projection(codes)

    def images(self, rows: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, list[int]]:
        """Maps by their rows, those from N on mirrored: (b, 3, S, S) in [-1, 1], and the rows that they are of."""
        count = len(self.memory)
        images, shown = self.memory.images([i % count for i in rows], device)
        for k, row in enumerate(rows):
            if row >= count:
                images[k] = images[k].flip(-1)
        return images, [i + count * (row >= count) for i, row in zip(shown, rows, strict=True)]

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """All maps to train on: (16, 3, S, S) in [0, 1]."""
        for start in range(0, len(self.chosen), 16):
            yield self.memory.images(self.chosen[start : start + 16], device)[0] * 0.5 + 0.5

    def latents(self, projection: nn.Module | None, device: torch.device) -> Latents:
        """The pairs from which the adversarial phase takes codes, on the networks' device."""
        if not self.pair_rows:
            return Latents()
        rows = torch.tensor(self.pair_rows)
        codes = self.codes_of(self.pair_rows, projection).to(device)
        return Latents(codes, lambda chosen: self.images(rows[chosen.cpu()].tolist(), device)[0], rows)

    def next_pairs(self, numbers: Sequence[int], training: TextureTraining) -> tuple[Tensor, Tensor, Tensor | None]:
        """The samples of these numbers in the supervised phase.

        Returns:
            Maps (b, 3, S, S) in [-1, 1], codes (b, w_dim), and their rows (b,) where codes are learned along.
        """
        rows = self.memory.order(self.pair_rows, self.seed, numbers)
        maps, shown = self.images(rows, training.device)
        codes = self.codes_of(shown, training.generator.projection, numbers)
        return maps, codes, None if training.table is None else torch.tensor(shown)

    def next_maps(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """The samples of these numbers in the adversarial phase: (b, 3, S, S) in [-1, 1]."""
        return self.memory.images(self.memory.order(self.chosen, self.seed, numbers), device)[0]
