"""Does a reconstructed shape know who it shows? Distances of neutral shapes within people over between people.

All shapes of one head model are brought onto its mean by a similarity of the face (Procrustes), so that size and pose
do not count; the distance of two is the root mean square distance of corresponding points in millimeters, points
counted by the area around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from facerecon.correspond.regions import MILLIMETERS, head_regions, vertex_areas
from facerecon.errors import InputError, ShapeError, check_shape
from facerecon.evaluation.tables import BOOTSTRAP, LEAST, Summary
from facerecon.geometry.alignment import umeyama
from facerecon.morphable import MorphableModel

__all__ = ["shape_distances", "within_between"]


def shape_distances(
    shapes: Tensor, model: MorphableModel, regions: Mapping[str, ArrayLike] | None = None
) -> dict[str, Tensor]:
    """Distances of all pairs of neutral shapes, over the face and over each region.

    Args:
        shapes: (N, V, 3), neutral, of the model's topology, world units.
        model: head model, whose mean all shapes are brought onto.
        regions: {name: (V,) bool}; REALY's four (:func:`~facerecon.correspond.regions.head_regions`) if left out.

    Returns:
        {"face": (N, N), region: (N, N)}, float64, mm. "face" are all regions together; they also align the shapes, for
        every region alike.
    """
    check_shape("shapes", shapes, f"N {model.num_vertices} 3")
    given = head_regions(model) if regions is None else regions
    masks = {name: torch.as_tensor(np.asarray(mask, dtype=bool)) for name, mask in given.items()}
    face = torch.stack(list(masks.values())).any(0)
    mean = model.mean.detach().cpu().double()
    area = torch.from_numpy(vertex_areas(mean.numpy(), model.topology.faces.cpu().numpy()))[face]
    target, points = mean[face], shapes.detach().cpu().double()[:, face]
    scale, rotation, translation = umeyama(points, target.expand_as(points), area)
    points = scale[:, None, None] * points @ rotation.mT + translation[:, None]
    result = {}
    for name, mask in {"face": face, **masks}.items():
        weight = area * mask[face]
        rows = (points * (weight / weight.sum()).sqrt()[:, None]).flatten(1)
        result[name] = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * MILLIMETERS
    return result


def within_between(distances: Tensor, persons: Sequence[object]) -> dict[str, Summary]:
    """Mean distance of pairs of one person and of pairs of two people, and their ratio.

    Intervals of 95 % are of the bootstrap over people: a person that is drawn twice makes no pair with itself.

    Args:
        distances: (N, N), symmetric.
        persons: N, who is shown.

    Returns:
        {"within", "between", "ratio"}; what has no pair is left out, and so are intervals of fewer than three people.

    Raises:
        ShapeError: not one person a row.
        InputError: no pair at all.
    """
    check_shape("distances", distances, "N N")
    if len(persons) != len(distances):
        raise ShapeError(f"persons must be {len(distances)}, one a row of distances; got {len(persons)}.")
    names = list(dict.fromkeys(persons))
    member = torch.tensor([[person == name for name in names] for person in persons], dtype=torch.float64)
    apart = ~torch.eye(len(persons), dtype=torch.bool)
    total, count = (member.T @ x.double() @ member for x in (distances * apart, apart))  # (P, P), of ordered pairs

    def means(draws: Tensor) -> dict[str, Tensor]:
        """Of draws (D, P), how often each person is drawn."""
        pairs = draws[:, :, None] * draws[:, None]
        alone = torch.eye(len(names), dtype=torch.bool)
        within = (draws @ total.diagonal()) / (draws @ count.diagonal())
        pairs = pairs.masked_fill(alone, 0)
        between = (pairs * total).sum((1, 2)) / (pairs * count).sum((1, 2))
        return {"within": within, "between": between, "ratio": within / between}

    values = means(torch.ones(1, len(names), dtype=torch.float64))
    drawn = torch.randint(len(names), (BOOTSTRAP, len(names)), generator=torch.Generator().manual_seed(0))
    samples = means(torch.nn.functional.one_hot(drawn, len(names)).sum(1).double())
    several = (count.diagonal() > 0).sum()
    found = {}
    for key, value in values.items():
        people = len(names) if key == "between" else int(several)
        low = high = None
        if people >= LEAST:
            low, high = samples[key][samples[key].isfinite()].quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        if value.isfinite():
            found[key] = Summary(float(value), people, low, high)
    if not found:
        raise InputError("distances within and between people need at least one pair of shapes; got one shape.")
    return found
