"""benchmarks/film.py: jitter, angles, and a short film end to end."""

from __future__ import annotations

import argparse
import math

import pytest
import torch

from benchmarks.film import jitter, paths, rendered_film, run, yaw_pitch
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.types import SavedTrack


def test_jitter_is_zero_along_a_line_and_grows_with_noise() -> None:
    line = torch.linspace(0, 5, 9)[:, None].expand(9, 3)
    noise = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    assert jitter(line) < 1e-6
    assert jitter(line + 0.2 * noise) == pytest.approx(2 * jitter(line + 0.1 * noise), rel=1e-4)


def test_paths_are_smooth_and_end_where_they_began() -> None:
    along = paths(48)
    assert set(along) == {"yaw", "pitch", "smile", "gaze"}
    assert all(jitter(values) < 0.06 for values in along.values())
    assert all(abs(float(along[name][0] - along[name][-1])) < 1e-5 for name in ("yaw", "pitch", "smile"))


@pytest.fixture(scope="module")
def model(asset) -> MorphableModel:
    asset("makehuman")
    return load_face_model("makehuman")


def test_a_rendered_film_has_the_angles_it_says(model) -> None:
    frames, truth = rendered_film(5, 3, model)
    assert len(frames) == 5 and frames[0].shape == (3, 448, 448)
    angles = yaw_pitch(truth)
    assert angles[1, 0] == pytest.approx(20, abs=0.5) and angles[3, 0] == pytest.approx(-20, abs=0.5)
    assert math.isclose(float(angles[0].abs().max()), 0, abs_tol=1e-4)
    assert (frames[1] - frames[3]).abs().mean() > 0.02


@pytest.mark.slow
def test_a_short_film_is_followed(model, observe_models, fit_models, tmp_path) -> None:
    """The fit turns as the frames do; along the film it jitters less than fits of each frame."""
    pytest.importorskip("av", reason="PyAV is not installed")
    options = argparse.Namespace(
        kind="rendered", frames=8, seed=5003, preset="fast", set=["decoder=linear"], out=tmp_path
    )
    text = run(options)
    found = SavedTrack.load(tmp_path / "film" / "track.safetensors").face.params
    _, truth = rendered_film(8, 5003, model)
    off = (yaw_pitch(found) - yaw_pitch(truth))[:, 0].abs()
    assert off.mean() < 6
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("|")}
    assert float(rows["along the film"][-2]) < float(rows["each frame alone"][-2])
