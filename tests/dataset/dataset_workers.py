"""Workers that other processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from facerecon.dataset.engines import Item, Outcome


class Square:
    """number -> its square and the process that computed it; item 3 is refused, item 5 fails."""

    def __call__(self, item: Item) -> Outcome:
        time.sleep(0.01 * (item.number % 3))
        outcome = Outcome(item.name, item.origin, figures={"square": item.number**2, "process": os.getpid()})
        outcome.kept = item.number != 3
        if item.number == 3:
            outcome.reasons = ["light: uneven"]
        if item.number == 5:
            outcome.error = "a corrupt photo"
        return outcome


def make_square() -> Square:
    return Square()


class Dies:
    def __call__(self, item: Item) -> Outcome:
        os._exit(3)


def make_dies() -> Dies:
    return Dies()


class Frail(Square):
    """Dies of item 4, but only once: the file at ``mark`` tells."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def __call__(self, item: Item) -> Outcome:
        if item.number == 4 and not self.mark.exists():
            self.mark.touch()
            os._exit(3)
        return super().__call__(item)


def make_frail(mark: str) -> Frail:
    return Frail(mark)
