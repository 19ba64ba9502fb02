"""Region-wise error of a head's shape against a true surface, in millimeters (Sec. 4.3, as in REALY).

REALY (Chai et al., ECCV 2022) asks of four regions of the true face how far the prediction is from them, each after
an alignment of its own, so that a wrong chin does not count as a wrong nose:

1. the prediction is brought onto the truth by a similarity of seven landmarks
   (:data:`~facerecon.correspond.regions.ALIGNMENT_LANDMARKS`);
2. for each region, a rigid iterative-closest-point alignment (no scale) of true points to the nearest points of the
   predicted surface, in which the region's landmarks together weigh as much as its points (a quarter for the cheek);
3. the mean distance from the true points to the aligned predicted surface.

Unlike REALY: distances are to the nearest point of the surface, without its non-rigid search for correspondences; and
points count by the area around them, so that the density of the true mesh does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerecon.correspond.regions import (
    ALIGNMENT_LANDMARKS,
    KEYPOINT_WEIGHT,
    MILLIMETERS,
    REGION_LANDMARKS,
    vertex_areas,
)
from facerecon.errors import InputError, ShapeError
from facerecon.geometry.alignment import fit_similarity
from facerecon.geometry.surface import Surface, as_array

__all__ = ["align_region", "region_errors"]


def align_region(
    surface: Surface,
    points: NDArray,
    weights: NDArray,
    predicted_keypoints: NDArray,
    true_keypoints: NDArray,
    keypoint_weight: float,
    iterations: int = 60,
    tolerance: float = 1e-6,
    most_points: int = 800,
) -> tuple[NDArray, NDArray]:
    """Rigid ICP: the motion ``points @ rotation.T + translation`` of true points onto a predicted surface (the inverse
    of moving the prediction).

    Args:
        surface: the predicted one.
        points: (N, 3) of the true region.
        weights: (N,), areas.
        predicted_keypoints, true_keypoints: (K, 3); K may be 0.
        keypoint_weight: of all of them, relative to points.
        iterations: at most so many.
        tolerance: stop when the root mean square gains less, world units.
        most_points: so many of the points, chosen at random, drive the alignment.
    """
    if len(points) > most_points:
        some = np.random.default_rng(0).choice(len(points), most_points, replace=False)
        points, weights = points[some], weights[some]
    weights = weights / weights.sum()
    count = len(true_keypoints)
    if count and keypoint_weight:
        weights = np.concatenate([weights, np.full(count, keypoint_weight / count)])
    else:
        predicted_keypoints = true_keypoints = np.zeros((0, 3))
    source = np.concatenate([points, true_keypoints])
    rotation, translation, before = np.eye(3), np.zeros(3), np.inf
    for _ in range(iterations):
        moved = source @ rotation.T + translation
        goal = np.concatenate([surface.near(moved[: len(points)]), predicted_keypoints])
        error = np.sqrt(weights @ ((goal - moved) ** 2).sum(1) / weights.sum())
        if before - error < tolerance:
            break
        before = error
        _, rotation, translation = fit_similarity(source, goal, weights, with_scale=False)
    return rotation, translation


def region_errors(
    predicted_vertices: ArrayLike,
    predicted_faces: ArrayLike,
    predicted_landmarks: ArrayLike,
    true_vertices: ArrayLike,
    true_faces: ArrayLike,
    true_landmarks: ArrayLike,
    true_regions: dict[str, ArrayLike],
    iterations: int = 60,
) -> dict[str, float]:
    """{region: mm}: mean distance of each region of the true head to the predicted surface, after alignment.

    Args:
        predicted_vertices: (V, 3), any similarity of the world's frame.
        predicted_faces: (F, 3).
        predicted_landmarks: (68, 3), on the prediction.
        true_vertices: (W, 3), world units (0.1 m).
        true_faces: (G, 3).
        true_landmarks: (68, 3).
        true_regions: {name: (W,) bool}, vertices of the true head, as
            :func:`~facerecon.correspond.regions.face_regions` gives them. Landmarks hold a region of
            :data:`~facerecon.correspond.regions.REGION_LANDMARKS` in place; others are aligned by their surface only.
        iterations: of the region-wise alignment, at most.

    Raises:
        ShapeError: arrays do not fit.
        InputError: an empty region, or numbers that are not finite.
    """
    predicted = as_array("predicted_vertices", predicted_vertices, "V 3")
    predicted_points = as_array("predicted_landmarks", predicted_landmarks, "68 3")
    truth, true_faces = as_array("true_vertices", true_vertices, "W 3"), as_array("true_faces", true_faces, "G 3")
    true_points = as_array("true_landmarks", true_landmarks, "68 3")
    for name, array in (("predicted", predicted_points), ("true", true_points), ("true", truth)):
        if not np.isfinite(array).all():
            raise InputError(f"the {name} head has points that are not finite. Check the fit that made them.")

    seven = list(ALIGNMENT_LANDMARKS)
    scale, rotation, translation = fit_similarity(predicted_points[seven], true_points[seven])
    predicted, predicted_points = (scale * x @ rotation.T + translation for x in (predicted, predicted_points))
    surface = Surface(predicted, predicted_faces)
    areas = vertex_areas(truth, true_faces)

    errors = {}
    for name, mask in true_regions.items():
        mask = mask.detach().cpu().numpy() if hasattr(mask, "detach") else np.asarray(mask)
        if mask.shape != (len(truth),) or mask.dtype != bool:
            raise ShapeError(f"region '{name}' must be ({len(truth)},) bool, one a true vertex; got {mask.shape}.")
        mask = mask & (areas > 0)
        if not mask.any():
            raise InputError(f"region '{name}' has no vertex with a face around it; choose it on the true head.")
        points, weights = truth[mask], areas[mask] / areas[mask].sum()
        keys = list(REGION_LANDMARKS.get(name, ()))
        held = predicted_points[keys], true_points[keys], KEYPOINT_WEIGHT.get(name, 1.0)
        turn, shift = align_region(surface, points, weights, *held, iterations)
        errors[name] = float(weights @ surface.distance(points @ turn.T + shift)) * MILLIMETERS
    return errors
