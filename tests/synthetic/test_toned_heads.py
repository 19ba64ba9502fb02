"""Portraits of known albedo: the picture is that albedo, lit, exposed and encoded; what the camera does is known."""

import pytest
import torch

from facerecon.dataset import face_layout
from facerecon.errors import ShapeError
from facerecon.geometry.lighting import linear_intensity
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import skin_color, skin_tone
from facerecon.render import Renderer
from facerecon.synthetic.exposure import exposed, random_exposure
from facerecon.synthetic.scene import Draws
from facerecon.synthetic.toned_heads import FRAME, TonedHeads

SIZE = 128


@pytest.fixture(scope="module")
def heads(asset) -> TonedHeads:
    """Of two people, one of each color."""
    asset("makehuman")
    model = load_face_model(num_identity=12)
    colors = torch.tensor([[0.80, 0.64, 0.55], [0.38, 0.25, 0.19]])
    maps = (colors[:, :, None, None].expand(2, 3, 128, 128) * 255).round().to(torch.uint8)
    return TonedHeads(model, maps, face_layout(model, 128).plain, seed=5, size=SIZE)


@pytest.fixture(scope="module")
def portraits(heads):
    return heads(range(6))


def test_exposure_and_white_balance_are_factors_of_intensities() -> None:
    image = torch.full((2, 3, 4, 4), 0.5)
    balance = torch.tensor([1.25, 1.0, 0.8])
    seen = linear_intensity(exposed(image, torch.tensor([0.5, 1.6]), balance)) / linear_intensity(image)
    expected = torch.tensor([0.5, 1.6])[:, None] * balance
    torch.testing.assert_close(seen.amax((2, 3)), expected)
    torch.testing.assert_close(seen.amin((2, 3)), expected)


def test_exposed_clips_and_is_undone_where_it_does_not() -> None:
    image = torch.linspace(0, 1, 48).reshape(1, 3, 4, 4)
    exposure, balance = torch.tensor([1.7]), torch.tensor([[0.8, 1.0, 1.2]])
    bright = exposed(image, exposure, balance)
    assert bright.max() == 1
    back = exposed(bright, 1 / exposure, 1 / balance)
    inside = bright < 1
    torch.testing.assert_close(back[inside], image[inside])
    assert bool((back[~inside] < image[~inside]).any())


def test_gamma_leaves_black_and_white() -> None:
    image = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)
    torch.testing.assert_close(exposed(image, gamma=1.2)[0, 0, 0], torch.tensor([0.0, 0.5**1.2, 1.0]))


def test_drawn_exposures_fill_their_range() -> None:
    exposure, balance = random_exposure(Draws(0, range(400)))
    assert 0.5 <= exposure.min() < 0.52 and 1.7 < exposure.max() <= 1.8
    assert abs(exposure.log().mean() - torch.tensor([0.5, 1.8]).log().mean()) < 0.06  # evenly in the log
    assert bool((balance[:, 1] == 1).all())
    assert 0.75 <= balance.min() < 0.77 and 1.23 < balance.max() <= 1.25


def test_truth_is_what_was_rendered(heads, portraits) -> None:
    """The head under the returned light, encoded, is the face in the picture."""
    batch = portraits
    drawn = Renderer(SIZE)(
        heads.model(batch.params), batch.texture, heads.model.topology, heads.camera(6), batch.params.light
    )
    face = torch.cat([heads.model.topology.regions["face"], torch.zeros(1, dtype=torch.bool)])
    inside = face[drawn.fragments.face_index][:, None] & (drawn.mask > 0)
    inside = -torch.nn.functional.max_pool2d(-inside.float(), 5, 1, 2) > 0  # away from outlines, which are antialiased
    apart = (drawn.image.clamp(0, 1) - batch.image).abs().amax(1, keepdim=True)
    assert inside.float().mean() > 0.05
    assert (apart[inside] < 0.01).float().mean() > 0.9  # hair hides the rest


def test_truth_names_the_albedo_of_each_person(portraits) -> None:
    batch = portraits
    assert batch.person.tolist() == [0, 1, 0, 1, 0, 1]
    colors = torch.tensor([[204, 163, 140], [97, 64, 48]]) / 255
    torch.testing.assert_close(batch.log_color, colors.log()[batch.person], atol=0.01, rtol=0)
    torch.testing.assert_close(batch.ita, skin_tone(colors)[batch.person], atol=0.7, rtol=0)


def test_all_of_the_picture_is_exposed_alike(heads, portraits) -> None:
    """Eyes, hair, clothes and room: each intensity that is not clipped is that of exposure 1, times one factor."""
    plain = heads(range(6), as_exposed=False)
    bright = (portraits.image < 0.999) & (plain.image < 0.999) & (plain.image > 0.05)
    ratio = linear_intensity(portraits.image) / linear_intensity(plain.image).clamp(min=1e-6)
    expected = (portraits.exposure[:, None] * portraits.white_balance)[:, :, None, None].expand_as(ratio)
    assert bright.float().mean() > 0.5
    torch.testing.assert_close(ratio[bright], expected[bright], rtol=1e-3, atol=1e-3)
    undone = (portraits.undone - plain.image).abs()
    assert undone[portraits.image < 0.999].max() < 1e-4


def test_a_portrait_is_the_same_in_any_batch(heads, portraits) -> None:
    alone = heads([4], persons=[0])
    assert (alone.image - portraits.image[4:5]).abs().mean() < 1e-4
    torch.testing.assert_close(alone.params.identity, portraits.params.identity[4:5])
    assert torch.equal(portraits.params.identity[0], portraits.params.identity[2])  # one person
    assert not torch.equal(portraits.params.rotation[0], portraits.params.rotation[2])


def test_faces_are_as_bright_as_in_photos(heads) -> None:
    """At exposure 1 the front of a face is shaded by about 1.1 (encoded), whatever the lamps; the nose lies in the
    middle of the picture."""
    batch = heads(range(12), persons=[0] * 12, as_exposed=False)
    middle = slice(round(SIZE * (0.5 - 0.12 / FRAME)), round(SIZE * (0.5 + 0.12 / FRAME)))
    shaded = (batch.image[:, :, middle, middle] / torch.tensor([204, 163, 140.0]).view(3, 1, 1) * 255).mean((1, 2, 3))
    assert 0.95 < shaded.mean() < 1.25 and shaded.std() < 0.2


def test_pictures_hang_behind_half_of_the_heads(heads) -> None:
    pictures = torch.tensor([0, 255, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    model, maps, plain = heads.model, heads.maps, torch.ones(1, 1, 128, 128)
    batch = TonedHeads(model, maps, plain, seed=5, size=SIZE, backgrounds=pictures)(range(6), as_exposed=False)
    green = (batch.image[:, :, :3] == torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)).all(1).all((1, 2))
    assert 0 < green.sum() < 6


def test_wrong_input_says_what_is_wrong(heads) -> None:
    with pytest.raises(ShapeError, match="persons"):
        heads([0], persons=[2])
    with pytest.raises(ShapeError, match="uint8"):
        TonedHeads(heads.model, heads.maps.float(), torch.ones(1, 1, 128, 128))
    with pytest.raises(ShapeError, match="identity"):
        TonedHeads(heads.model, heads.maps, torch.ones(1, 1, 128, 128), identity=torch.zeros(3, 12))


def test_skin_color_of_the_map_is_its_color(heads) -> None:
    plain = face_layout(heads.model, 128).plain
    torch.testing.assert_close(skin_color(heads.maps.float() / 255, plain)[1] * 255, torch.tensor([97.0, 64.0, 48.0]))
