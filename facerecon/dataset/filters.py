"""Which maps are kept, and why the others are not (Sec. 3.1.3, item 4).

The paper drops occluded faces by parsing and then lets a person look through the rest. Here every limit is a number
that the manifest records for each item, so that anybody can draw the lines elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from facerecon.errors import ConfigError

__all__ = ["FilterSettings", "reason_counts", "refusals"]


@dataclass(frozen=True)
class FilterSettings:
    """Limits; null switches one off.

    Args:
        glasses: highest probability of glasses in the edited front view.
        fringe: highest probability of hair over the forehead.
        occluder: of a hat or a hand.
        happy: highest probability of a smile in any view.
        opening: widest gap between the lips, in mouth widths.
        front_yaw, front_pitch: degrees that the front view may be off.
        side_yaw: least angle to its side of each side view, degrees.
        score: least score of the face mesh in any view: below it the picture has fallen apart.
        evenness: highest energy of SH bands 1-8 over band 0 in the front view.
        identity: largest distance of identity embeddings between source and front view (others: 0.57 to 1.14).
        side_identity: the same between the front view and each side view; profiles of one person are further apart.
        inversion: least CSIM of a photo and its inversion.
        covered_glasses, covered_hat, covered_hair: largest share of the face's outline in the front view that it
            covers, by parsing; hair covers up to 0.16 of a bare face.
        bs_error: highest BS Error over observed texels, of 255.
        observed: least share of the face's texels that some view shows.
        residual: highest disagreement of the views where they overlap, mean absolute, of 255.
    """

    glasses: float | None = 0.5
    fringe: float | None = 0.8
    occluder: float | None = 0.5
    happy: float | None = 0.5
    opening: float | None = 0.07
    front_yaw: float | None = 5.0
    front_pitch: float | None = 10.0
    side_yaw: float | None = 20.0
    score: float | None = 0.9
    evenness: float | None = 0.15
    identity: float | None = 0.75
    side_identity: float | None = 0.85
    inversion: float | None = 0.6
    covered_glasses: float | None = 0.02
    covered_hat: float | None = 0.02
    covered_hair: float | None = 0.2
    bs_error: float | None = 9.0
    observed: float | None = 0.6
    residual: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, int | float):
                raise ConfigError(f"filters.{field.name} must be a number or null; got {value!r}.")


_TEXT = {
    "glasses": ("glasses", "glasses are left: probability {:.2f}, at most {:.2f}"),
    "fringe": ("occlusion", "hair over the forehead: probability {:.2f}, at most {:.2f}"),
    "occluder": ("occlusion", "a hat or a hand: probability {:.2f}, at most {:.2f}"),
    "happy": ("expression", "a smile is left: probability {:.2f}, at most {:.2f}"),
    "opening": ("expression", "the mouth is open by {:.2f} of its width, at most {:.2f}"),
    "front_yaw": ("yaw", "the front view is turned by {:.1f} degrees, at most {:.1f}"),
    "front_pitch": ("yaw", "the front view is tilted by {:.1f} degrees, at most {:.1f}"),
    "side_yaw": ("yaw", "a side view reaches {:.1f} degrees only, at least {:.1f}"),
    "score": ("broken", "a view shows a face with a score of {:.2f} only, at least {:.2f}"),
    "evenness": ("light", "bands 1-8 are {:.2f} of band 0, at most {:.2f}"),
    "identity": ("identity", "the edited face is {:.2f} from its source, at most {:.2f}"),
    "side_identity": ("identity", "a side view is {:.2f} from the front view, at most {:.2f}"),
    "inversion": ("inversion", "the inversion has a CSIM of {:.2f}, at least {:.2f}"),
    "covered_glasses": ("glasses", "glasses cover {:.2f} of the face, at most {:.2f}"),
    "covered_hat": ("occlusion", "a hat covers {:.2f} of the face, at most {:.2f}"),
    "covered_hair": ("occlusion", "hair covers {:.2f} of the face, at most {:.2f}"),
    "bs_error": ("brightness", "BS Error over observed texels is {:.1f}, at most {:.1f}"),
    "observed": ("observed", "{:.2f} of the face's texels are observed, at least {:.2f}"),
    "residual": ("agreement", "the views differ by {:.1f} of 255 where they overlap, at most {:.1f}"),
}
_LEAST = {"side_yaw", "score", "inversion", "observed"}  # these must be reached, the others must not be passed
STEPS = {
    "search": ("inversion", "glasses", "fringe", "occluder", "happy", "opening", "front_yaw", "front_pitch", "side_yaw",
               "score", "evenness", "identity", "side_identity"),
    "map": ("covered_glasses", "covered_hat", "covered_hair", "bs_error", "observed", "residual"),
}  # fmt: skip


def refusals(figures: Mapping[str, Any], settings: FilterSettings, step: str) -> list[str]:
    """Reasons against one item, as ``"kind: measured, limit"``; empty where nothing speaks against it.

    Args:
        figures: {filter: what was measured}; a filter whose figure is missing does not apply (a photo has no seed).
        settings: the limits.
        step: "search" or "map", whose filters are asked.
    """
    reasons = []
    for name in STEPS[step]:
        limit, value = getattr(settings, name), figures.get(name)
        if limit is None or value is None:
            continue
        if not (value >= limit if name in _LEAST else value <= limit):  # NaN fails either way
            kind, text = _TEXT[name]
            reasons.append(f"{kind}: {text.format(value, limit)}")
    return reasons


def reason_counts(reasons: Iterable[Iterable[str]]) -> dict[str, int]:
    """How many items each kind of reason speaks against, most frequent first; an item may have several."""
    counts = Counter(kind for item in reasons for kind in {line.partition(":")[0] for line in item})
    return dict(counts.most_common())
