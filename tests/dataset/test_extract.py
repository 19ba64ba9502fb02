"""Extraction and completion: a known texture on a known head, rendered from three sides, comes back."""

import pytest
import torch

from facerecon.dataset.complete import CompleteSettings, complete, load_template, paint_eyes
from facerecon.dataset.extract import AlignedViews, ExtractSettings, extract, measure_views
from facerecon.dataset.layout import face_layout
from facerecon.errors import ConfigError, InputError, NoFaceError, ShapeError
from facerecon.evaluation.texture import brightness_symmetry_error
from facerecon.imaging.color import luma
from facerecon.imaging.files import read_image
from facerecon.imaging.masks import gaussian_blur
from facerecon.morphable import load_face_model

SIZE = 256


@pytest.fixture(scope="module")
def model(asset):
    for name in ("makehuman", "facemesh478", "landmarks68", "bisenet"):
        asset(name)
    return load_face_model("makehuman")


@pytest.fixture(scope="module")
def released(reference) -> torch.Tensor:
    """The released normalized views of subject 01223: front, left, right."""
    folder = reference / "ffhq_uv"
    return torch.stack([read_image(folder / f"01223_{name}.jpg") for name in ("front", "left", "right")])


@pytest.fixture(scope="module")
def views(model, released) -> AlignedViews:
    return measure_views(released)


@pytest.fixture(scope="module")
def extraction(model, views):
    return extract(views, model, ExtractSettings(size=SIZE))


def test_layout_is_mirror_symmetric_and_covers_what_it_should(model) -> None:
    layout = face_layout(model, SIZE)
    for name in ("skin", "face", "plain", "front", "corrected"):
        mask = getattr(layout, name)
        assert (mask - mask.flip(-1)).abs().mean() < 0.01, name
    assert 0.005 < layout.corrected.mean() < 0.05
    assert (layout.corrected * (1 - layout.skin)).sum() == 0
    assert (layout.face * layout.ears).sum() == 0
    assert face_layout(model, SIZE) is layout


def test_views_share_a_head_and_are_turned_as_they_should(model, extraction) -> None:
    yaw = torch.rad2deg(extraction.params.rotation[:, 1])
    assert abs(yaw[0]) < 8
    assert 12 < yaw[1] < 40
    assert -40 < yaw[2] < -12
    assert torch.equal(extraction.params.identity[0], extraction.params.identity[2])


def test_side_views_show_more_and_delight_evens(model, views, extraction) -> None:
    layout = face_layout(model, SIZE)
    front = extract(views, model, ExtractSettings(size=SIZE, multi_view=False))
    assert (extraction.observed * layout.face).sum() > 1.1 * (front.observed * layout.face).sum()
    lit = extract(views, model, ExtractSettings(size=SIZE, delight=False))
    mask = torch.minimum(extraction.observed, lit.observed)
    assert brightness_symmetry_error(extraction.texture, mask) < brightness_symmetry_error(lit.texture, mask)


def test_whole_map_keeps_what_was_seen_and_fills_the_rest(model, extraction) -> None:
    template = load_template(model, SIZE)
    layout = template.layout
    found = complete(extraction, template, CompleteSettings(tone="off", even_light=False))
    assert found.texture.shape == (1, 3, SIZE, SIZE)
    assert found.texture.min() >= 0
    assert found.texture.max() <= 1
    sure = (found.observed > 0.999) & (layout.corrected == 0)
    change = (found.texture - extraction.texture).abs().mean(1, keepdim=True)[sure]
    assert change.mean() < 0.01
    assert 0.5 < found.observed_share.item() < 0.95
    assert (found.observed * layout.corrected).sum() == 0
    naive = complete(extraction, template, CompleteSettings(blending="naive"))
    assert not torch.equal(naive.texture, found.texture)


def test_a_map_is_as_sharp_as_what_was_seen(model, extraction) -> None:
    made = complete(extraction, load_template(model, SIZE))

    def fine(texture):  # periods up to about 8 texels
        value = luma(texture).clamp(min=0.02).log()
        return (value - gaussian_blur(value, 9))[made.observed > 0.5]

    ours, seen = fine(made.texture), fine(extraction.texture)
    assert (made.observed > 0.5).sum() > 0.6 * (extraction.observed * face_layout(model, SIZE).face > 0.5).sum()
    assert 0.85 < ours.std() / seen.std() < 1.15
    assert torch.corrcoef(torch.stack([ours, seen]))[0, 1] > 0.9


def test_freckles_stay_and_strands_of_hair_go(model) -> None:
    layout = face_layout(model, SIZE)
    without_strangers = extract.__wrapped__.__globals__["_without_strangers"]
    rows = torch.nonzero((layout.forehead * layout.plain * layout.face)[0, 0].amax(1) > 0.5)[:, 0]
    top, bottom, middle = int(rows[0]), int(rows[-1]), SIZE // 2
    rgb = torch.tensor([0.7, 0.5, 0.4]).view(1, 3, 1, 1).repeat(1, 1, SIZE, SIZE)
    rgb += 0.01 * torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    weight = layout.face.clone()
    weight[:, :, : top + 6] = 0  # under the hair
    strand, freckle = slice(middle - 30, middle - 28), slice(middle + 20, middle + 23)
    rgb[:, :, top:bottom, strand] *= 0.2
    spot = slice((top + bottom) // 2 + 2, (top + bottom) // 2 + 5)
    rgb[:, :, spot, freckle] *= 0.3
    kept = without_strangers(rgb, weight, layout)
    assert kept[:, :, top + 8 : bottom - 4, strand].max() < 0.1
    assert kept[:, :, spot, freckle].min() > 0.9


def test_single_view_and_naive_blending_are_switches(model, views, extraction) -> None:
    front = extract(views, model, ExtractSettings(size=SIZE, multi_view=False))
    assert front.views.shape[0] == 1
    naive = extract(views, model, ExtractSettings(size=SIZE, blending="naive"))
    assert (naive.observed - extraction.observed).abs().mean() < 1e-4
    assert not torch.equal(naive.texture, extraction.texture)
    # pasted: where the front view is preferred and trusted, its own texels
    layout = face_layout(model, SIZE)
    sure = (naive.weights[:1] * layout.front > 0.99) & (layout.face > 0)
    assert torch.equal(naive.texture[:, :, sure[0, 0]], naive.views[:1, :, sure[0, 0]])


def test_known_texture_comes_back_from_renders_of_it(model) -> None:
    """Round trip: a map on a known head, drawn from three sides, is read back where it is seen."""
    from facerecon.dataset.extract import join_views
    from facerecon.geometry.rotation import euler_to_matrix
    from facerecon.render import Renderer
    from facerecon.render.uv import bake
    from facerecon.types import Camera

    template = load_template(model, SIZE)
    layout, camera = template.layout, Camera.deep3d(448, batch=3)
    turn = euler_to_matrix(torch.tensor([[0.0, yaw, 0.0] for yaw in (0.0, 0.5, -0.5)]))
    vertices = model.mean[None] @ turn.mT
    truth = template.texture.expand(3, -1, -1, -1)
    image = Renderer(448)(vertices, truth, model.topology, camera, None).image
    baked, seen = bake(image, vertices, model.topology, camera, SIZE, padding=0)
    baked[1] = baked[1] * 1.2 + 0.02  # the left view in other colors: Eq. 1 takes them off
    texture, observed = join_views(baked, seen * layout.face, layout)
    sure = (observed > 0.99) & (layout.plain > 0)
    error = (texture - template.texture).abs().mean(1, keepdim=True)[sure]
    assert sure.float().mean() > 0.15
    assert error.mean() < 0.01
    unmatched = (baked[1:2] - template.texture).abs().mean(1, keepdim=True)[sure]
    assert unmatched.mean() > 0.05


def test_extraction_does_not_change_from_run_to_run(model, views, extraction) -> None:
    again = extract(views, model, ExtractSettings(size=SIZE))
    assert (again.texture - extraction.texture).abs().mean() < 1e-4
    assert (again.observed - extraction.observed).abs().mean() < 1e-4


def test_eyes_are_painted_in_the_color_of_the_iris(model) -> None:
    layout = face_layout(model, SIZE)
    blue = torch.tensor([[0.2, 0.3, 0.5]])
    painted = paint_eyes(torch.zeros(1, 3, SIZE, SIZE), blue, torch.tensor([50.0]), layout)
    ring = (layout.gaze > 9) & (layout.gaze < 13)
    color = painted[0, :, ring].mean(1)
    assert color[2] > color[1] > color[0]
    assert (painted * (1 - layout.eyes)).sum() == 0


def test_bad_input_is_named(model, released, extraction) -> None:
    with pytest.raises(ConfigError, match="blending"):
        ExtractSettings(blending="none")
    with pytest.raises(InputError, match="square"):
        measure_views(released[:, :, :, :512])
    with pytest.raises(NoFaceError, match="view 0"):
        measure_views(torch.full((1, 3, 256, 256), 0.5))
    with pytest.raises(ShapeError, match="load_template"):
        complete(extraction, load_template(model, 128))
    other = model.with_topology(model.topology.replace(name="other"))
    with pytest.raises(ConfigError, match="template"):
        load_template(other, SIZE)
