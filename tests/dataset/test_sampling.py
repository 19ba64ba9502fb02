"""The draw of seeds: what is drawn depends on each seed alone, and the share is what was asked for."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from facerecon.dataset import dark_skin_score, draw_seeds
from facerecon.dataset import sampling as module
from facerecon.dataset.sampling import FIRST_HELD_OUT, held_out_faces
from facerecon.errors import ConfigError, NoFaceError
from facerecon.stylegan.face_generator import load_generator


@pytest.fixture(scope="module")
def generator(asset):
    asset("mobile_stylegan")
    return load_generator()


def test_every_seed_where_no_share_is_asked_for(generator):
    assert list(islice(draw_seeds(generator, 7), 4)) == [7, 8, 9, 10]


def test_the_share_is_reached_and_seeds_do_not_depend_on_where_the_draw_began(generator):
    drawn = list(islice(draw_seeds(generator, 0, dark_share=0.3), 150))
    dark = (dark_skin_score(generator.sample(drawn, 0.7)) > 0).float().mean()
    assert 0.2 < dark < 0.4
    assert drawn == sorted(set(drawn))
    middle = drawn[40]
    assert list(islice(draw_seeds(generator, middle, dark_share=0.3), 20)) == drawn[40:60]
    assert list(islice(draw_seeds(generator, 0, dark_share=0.3, seed=1), 20)) != drawn[:20]


def test_the_classifier_knows_the_faces_it_was_labeled_on(generator):
    dark, other = [109859, 129652, 118027, 74726, 46361], [44254, 52954, 59733, 95296, 73434]  # skin_tone_labels.json
    score = dark_skin_score(generator.sample([*dark, *other], 0.7))
    assert (score[:5] > 0).sum() >= 4 and (score[5:] > 0).sum() <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -1])
def test_an_impossible_share_is_named(generator, share):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        next(draw_seeds(generator, dark_share=share))


def test_rare_faces_are_rare(generator):
    w = generator.sample(range(3_000_000, 3_001_000), 0.7)
    assert (dark_skin_score(w) > 0).float().mean() < 0.03
    assert torch.equal(dark_skin_score(w[:3]), dark_skin_score(w)[:3]) or torch.allclose(
        dark_skin_score(w[:3]), dark_skin_score(w)[:3], atol=1e-4
    )


def test_held_out_faces_are_those_in_which_a_face_is_found(monkeypatch):
    class Numbers:
        """A picture of a seed is that number."""

        def sample(self, seed, truncation):
            return torch.tensor([[seed - FIRST_HELD_OUT]])

        def __call__(self, w):
            return w.view(1, 1, 1, 1).expand(1, 3, 4, 4) / 10

    def look(image):
        if round(float(image[0, 0, 0]) * 10) % 2:
            raise NoFaceError("none")

    monkeypatch.setattr("facerecon.stylegan.face_generator.load_generator", lambda **_: Numbers())
    monkeypatch.setattr(module, "observe", look)
    found = list(held_out_faces(3, dark_share=None))
    assert [seed - FIRST_HELD_OUT for seed, _ in found] == [0, 2, 4]
    assert [round(float(image[0, 0, 0]) * 10) for _, image in found] == [0, 2, 4]
    assert [seed for seed, _ in held_out_faces(2, dark_share=None)] == [seed for seed, _ in found[:2]]
