"""Fixtures of the perception tests: the sample photo and the reference photos with their released landmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from facerecon.imaging.files import read_image
from facerecon.types import Observation

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
NETWORKS = (
    "face_detector", "landmarks68", "facemesh478", "expression52", "identity128", "faceres1024", "expression7",
    "age_gender", "bisenet",
)  # fmt: skip


@pytest.fixture
def networks(asset: Callable[[str], Path]) -> None:
    """Skips the test unless every perception network is in the cache."""
    for name in NETWORKS:
        asset(name)


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """(3, 512, 512) in [0, 1], the sample photo (public domain)."""
    return read_image(SAMPLE)


@pytest.fixture(scope="session")
def seen(asset: Callable[[str], Path], photo: Tensor) -> Observation:
    """The sample photo, observed."""
    from facerecon.perception import observe

    for name in NETWORKS:
        asset(name)
    return observe(photo, attributes=True)


class Reference(NamedTuple):
    """A photo with the 68 landmarks that the released preprocessing found, (68, 2) px."""

    name: str
    image: Tensor
    landmarks: Tensor


@pytest.fixture(scope="session")
def references(reference: Path) -> list[Reference]:
    """The 224 px crop of one man, and the front, left and right views of one woman at 1024 px."""
    folder = reference / "ffhq_uv"
    found = []
    with np.load(folder / "fitting_000007.npz") as arrays:
        image = torch.from_numpy(arrays["image"][0]).float() / 255
        found.append(("fitting_000007", image, arrays["landmarks_yup"][0]))
    with np.load(folder / "01223_lm68_2d.npz") as arrays:
        for view in ("front", "left", "right"):
            found.append((view, read_image(folder / f"01223_{view}.jpg"), arrays[view]))
    result = []
    for name, image, points in found:
        points = torch.from_numpy(points).float()
        points = torch.stack([points[:, 0], image.shape[-2] - 1 - points[:, 1]], -1)
        result.append(Reference(name, image, points))
    return result


@pytest.fixture(scope="session")
def observed(asset: Callable[[str], Path], references: list[Reference]) -> dict[str, Observation]:
    """Observations of the reference photos, by name."""
    from facerecon.perception import observe

    for name in NETWORKS:
        asset(name)
    return {reference.name: observe(reference.image) for reference in references}
