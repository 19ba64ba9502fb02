"""Light that spherical harmonics cannot hold goes to the residual; what is the person's stays: against known truth."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from facerecon.fitting import DetailSettings, add_detail, add_shared_detail
from facerecon.fitting.residual_light import even_light, light_apart, plain_skin
from facerecon.imaging.masks import gaussian_blur
from facerecon.morphable import load_face_model
from facerecon.stylegan.load import load_decoder
from facerecon.types import Camera, Observation


def _loaded(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flat_head = _loaded(Path(__file__).parents[1] / "flat_head.py").flat_head
drawn = _loaded(Path(__file__).with_name("test_occlusion.py"))  # photos of rendered heads, made without any network

SIZE = 256
SKIN = torch.tensor([0.7, 0.5, 0.4]).view(1, 3, 1, 1)


def soft_box(left: int, right: int, top: int, bottom: int, blur: int) -> torch.Tensor:
    """(1, 1, SIZE, SIZE): 1 inside."""
    box = torch.zeros(1, 1, SIZE, SIZE)
    box[..., top:bottom, left:right] = 1
    return gaussian_blur(box, blur)


def mean_log(texture: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (texture.clamp(min=0.01).log() * where).sum((2, 3)) / where.sum((2, 3))


@pytest.fixture(scope="module")
def known():
    """Decoder's map, the person's albedo (grain, a mole, a scar, a beard on both sides), and a smooth shading."""
    grain = 1 + 0.04 * torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    mole, scar = soft_box(70, 74, 60, 64, 3), soft_box(160, 190, 90, 92, 3)
    chin = soft_box(60, 196, 150, 220, 15)
    albedo = SKIN * grain * (1 - 0.5 * mole) * (1 + 0.2 * scar) * torch.exp(-0.5 * chin)
    base = SKIN * torch.ones(1, 1, SIZE, SIZE)
    shading = torch.linspace(1.1, 0.8, SIZE).expand(1, 3, SIZE, SIZE)
    return base, albedo, shading, mole


def parted(photo, base, shading) -> tuple[torch.Tensor, torch.Tensor]:
    """Albedo and logarithm of the residual shading, where all is seen."""
    light = light_apart(photo, base, shading, torch.ones(1, 1, SIZE, SIZE), flat_head().topology)
    return photo / shading * torch.exp(-light), light


def test_shadows_and_lamps_are_light_and_moles_and_beards_are_not(known) -> None:
    base, albedo, shading, mole = known
    shadow = 1 - soft_box(0, 90, 30, 200, 3) * torch.tensor([0.7, 0.65, 0.6]).view(1, 3, 1, 1)  # with a sharp edge
    lamp = 1 + 0.5 * soft_box(190, 230, 40, 100, 21)
    found, light = parted(albedo * shading * shadow * lamp, base, shading)
    inner = F.pad(torch.ones(1, 1, SIZE - 40, SIZE - 40), (20,) * 4)

    def error(image: torch.Tensor) -> float:
        """Of broad colors, relative."""
        return float((gaussian_blur((image / albedo).log(), 21).abs() * inner).mean() / inner.mean())

    assert error(albedo * shadow * lamp) > 0.2
    assert error(found) < 0.04
    assert ((light - (shadow * lamp).log()).abs() * inner).mean() < 0.05
    # the mole's contrast, and the beard's, in the shadow and beside it
    ring = (gaussian_blur(mole, 15) > 0.001) & (mole < 0.001)
    contrast = found[:, :, 61:63, 71:73].mean() / found[ring.expand_as(found)].mean()
    assert contrast == pytest.approx(0.5, abs=0.04)
    for columns in (slice(80, 86), slice(170, 176)):
        beard = found[..., 170:190, columns].mean() / found[..., 100:120, columns].mean()
        assert beard == pytest.approx(torch.exp(torch.tensor(-0.5)).item(), abs=0.08)


def test_a_reflection_on_both_sides_is_light(known) -> None:
    """It adds the light's color, so that skin in it is pale; skin that is as bright in its own color stays more."""
    base, albedo, shading, _ = known
    spot = soft_box(100, 156, 50, 90, 31)
    shiny = (albedo**2.2 + 0.12 * spot) ** (1 / 2.2)
    remaining = []
    for picture in (shiny, albedo * (shiny / albedo).mean(1, keepdim=True)):
        found, _ = parted(picture * shading, base, shading)
        spots = [(image / albedo)[..., 60:80, 116:140].mean() for image in (picture, found)]
        around = (found / albedo)[..., 60:80, 40:60].mean()
        remaining.append(float((spots[1] / around - 1) / (spots[0] - 1)))
    assert remaining[0] < 0.4
    assert remaining[1] > 0.6


def test_what_is_as_the_decoder_says_stays(known) -> None:
    base, _, shading, _ = known
    grain = 1 + 0.04 * torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found, light = parted(base * grain * shading, base, shading)
    assert light.abs().max() < 0.03
    assert (found - base * grain).abs().mean() < 0.003


def test_even_light_takes_one_sided_light_and_nothing_else(known) -> None:
    _, albedo, _, _ = known
    topology = flat_head().topology
    ramp = torch.exp(torch.linspace(-0.3, 0.3, SIZE))
    where = torch.ones(1, 1, SIZE, SIZE)
    found = even_light(0.8 * albedo * ramp, topology)
    assert ((albedo * ramp - albedo).abs().mean()) > 0.06
    assert (gaussian_blur(found, 9) - gaussian_blur(0.8 * albedo, 9)).abs().mean() < 0.006
    assert torch.allclose(mean_log(found, where), mean_log(0.8 * albedo * ramp, where), atol=1e-3)
    fine = [(image / gaussian_blur(image, 15))[..., 55:70, 65:80] for image in (found, albedo)]
    assert (fine[0] - fine[1]).abs().max() < 0.02  # the mole
    even = (albedo + albedo.flip(-1)) / 2
    assert (even_light(even, topology) - even).abs().max() < 1e-4
    assert torch.allclose(even_light(even * ramp, topology, 0 * where), (even * ramp).clamp(max=1))


# -- on a head ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lit(asset):
    """A head, and two photos of it with a cast shadow: on the left, on the right."""
    asset("makehuman")
    model = load_face_model("makehuman", num_identity=20)
    decoder = load_decoder("linear")
    params = drawn.parameters(model, yaw=0.0)
    codes = 0.6 * torch.randn(1, decoder.rows, decoder.dim, generator=torch.Generator().manual_seed(5))
    texture = F.interpolate(even_light(decoder(codes).detach().clamp(0, 1), model.topology), (SIZE, SIZE), mode="area")
    edge = torch.sigmoid((torch.arange(SIZE) - 0.55 * SIZE) / 1.5)
    shadows = [1 - 0.6 * (1 - edge), 1 - 0.6 * (1 - edge).flip(0)]
    photos = [drawn.observation(model, params, texture * shadow) for shadow in shadows]
    return model, params, texture, shadows, photos


def rendered(model, params, texture, photo) -> torch.Tensor:
    return drawn.observation(model, params, texture).full.image * photo.full.face_mask


def test_a_head_in_a_cast_shadow(lit) -> None:
    """The texture is the person's, without a line at its border, the shadow is the residual's, all is the photo."""
    model, params, texture, shadows, (photo, _) = lit
    arguments = (model(params), texture, params.light, Camera.deep3d(), model.topology, DetailSettings(size=SIZE))
    found, seen, residual = add_detail(photo, *arguments)
    plain = plain_skin(model.topology, SIZE) * (seen > 0.9)
    assert torch.allclose(mean_log(found, plain), mean_log(texture, plain), atol=0.02)
    error = [((image - texture).abs() * plain).sum() / plain.sum() / 3 for image in (found, texture * shadows[0])]
    assert error[0] < 0.06 * error[1]
    unlike = (residual.log() - residual.log().mean() - shadows[0].log() + shadows[0].log().mean()).abs()
    assert (unlike * plain).sum() / plain.sum() / 3 < 0.05
    image = rendered(model, params, found * F.interpolate(residual, (SIZE, SIZE), mode="bilinear"), photo)
    target = photo.full.image * photo.full.face_mask
    assert (image - target).abs().sum() / 3 / photo.full.face_mask.sum() < 0.008
    # the border of what is seen, by the change from the true texture, which has none
    change = gaussian_blur((found / texture.clamp(min=0.01)).clamp(0.01, 10).log().mean(1, keepdim=True), 5)
    steep = F.pad(change.diff(dim=3).abs(), (0, 1)) + F.pad(change.diff(dim=2).abs(), (0, 0, 0, 1))
    border = (seen > 0.05) & (seen < 0.95) & (plain_skin(model.topology, SIZE) > 0.5)
    assert steep[border].quantile(0.95) < 0.03


def test_photos_of_one_person_each_have_their_own_light(lit) -> None:
    model, params, texture, shadows, photos = lit
    light = params.light.replace(coefficients=params.light.coefficients.expand(2, -1, -1))
    found, seen, residual = add_shared_detail(
        Observation.cat(photos), model(params).expand(2, -1, -1), texture, light, Camera.deep3d(batch=2),
        model.topology, DetailSettings(size=SIZE),
    )  # fmt: skip
    for shadow, photo, own in zip(shadows, photos, residual.split(1), strict=True):
        image = rendered(model, params, found * own, photo)
        target = photo.full.image * photo.full.face_mask
        assert (image - target).abs().sum() / 3 / photo.full.face_mask.sum() < 0.025
        dark, bright = own[..., shadow < 0.5], own[..., shadow > 0.9]
        assert dark.median() < 0.6 * bright.median()
    plain = plain_skin(model.topology, SIZE) * (seen > 0.9)
    assert ((found - texture).abs() * plain).sum() / plain.sum() / 3 < 0.02


def test_a_map_that_overshoots_black_is_evened_all_the_same(asset) -> None:
    asset("makehuman")
    topology = load_face_model("makehuman", num_identity=4).topology
    texture = torch.full((1, 3, 64, 64), 0.4)
    texture[..., 20:40, 20:40] = -0.1  # as gradients that are joined may
    made = even_light(texture, topology)
    assert made.isfinite().all() and made.min() >= 0
