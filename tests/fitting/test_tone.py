"""The tone of a fit: what it changes of a texture, what it leaves, and that light takes the rest."""

import pytest
import torch

from facerecon.errors import ConfigError
from facerecon.fitting import Fitter, fit_light, fit_light_and_texture
from facerecon.fitting.stage import DetailSettings
from facerecon.fitting.tone import plain_texels, shared_tone, skin_texels, tone_derivative, tone_of, toned
from facerecon.geometry.lighting import encoded_shading, sh_basis, shade
from facerecon.morphable import load_face_model
from facerecon.perception.skin_tone import skin_tone
from facerecon.render import Renderer
from facerecon.stylegan.decoder import LinearDecoder
from facerecon.types import SHLight, ToneBelief


@pytest.fixture(scope="module")
def topology(request):
    from facerecon import assets
    from facerecon.errors import AssetError

    try:
        assets.locate("makehuman")
    except AssetError as error:
        pytest.skip(str(error))
    return load_face_model("makehuman", num_identity=4).topology


def test_skin_gets_the_tone_and_eyes_and_teeth_stay(topology):
    texture = torch.rand(2, 3, 64, 64) * 0.5 + 0.2
    tone = torch.tensor([[0.8, 0.6, 0.5], [0.3, 0.2, 0.15]]).log()
    made = toned(texture, tone, topology)
    torch.testing.assert_close(tone_of(made, topology), tone, atol=1e-3, rtol=0)
    skin = skin_texels(topology, 64)
    assert torch.equal(made * (1 - skin), texture * (1 - skin))
    ratio = (made / texture)[:, :, skin[0, 0] > 0]  # one factor a channel: contrasts stay
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4)
    assert toned(texture, None, topology) is texture
    assert plain_texels(topology, 64).sum() < skin.sum()


def test_a_head_without_regions_has_no_tone(topology):
    with pytest.raises(ConfigError, match="tone=off"):
        toned(torch.rand(1, 3, 8, 8), torch.zeros(1, 3), topology.replace(regions={}))


def test_the_derivative_is_that_of_the_tone(topology):
    mean, components = torch.rand(3, 32, 32).double() * 0.5 + 0.3, torch.randn(2, 3, 32, 32).double() * 0.1
    tone, derivative = tone_derivative(mean, components, topology)
    code = torch.tensor([1e-4, -2e-4]).double()
    moved = tone_of((mean + torch.einsum("k,kchw->chw", code, components))[None], topology)[0]
    torch.testing.assert_close(moved - tone, code @ derivative, atol=1e-7, rtol=1e-2)


def test_photos_of_one_person_share_one_tone_and_are_not_surer_together():
    covariance = torch.diag_embed(torch.tensor([[0.01, 0.01, 0.01], [0.04, 0.04, 0.04]]))
    belief = ToneBelief(torch.tensor([[-0.5, -0.8, -1.0], [-1.0, -1.3, -1.5]]), covariance)
    both = shared_tone(belief)
    expected = (belief.mean[0] * 100 + belief.mean[1] * 25) / 125
    torch.testing.assert_close(both.mean, expected.expand(2, 3))
    assert (torch.diagonal(both.covariance, dim1=1, dim2=2) >= 0.01).all()
    one = shared_tone(ToneBelief(belief.mean[:1], covariance[:1]))
    torch.testing.assert_close(one.mean, belief.mean[:1])
    torch.testing.assert_close(one.covariance, covariance[:1])


def test_linear_light_is_recovered_in_closed_form():
    normals = torch.nn.functional.normalize(torch.randn(4000, 3) + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    true = SHLight.ambient(1, space="linear")
    true = true.replace(coefficients=true.coefficients + 0.05 * torch.randn(1, 9, 1) + 0.01 * torch.randn(1, 9, 3))
    albedo = torch.rand(4000, 3) * 0.3 + 0.5
    shading = shade(normals[None], true)[0]
    image = albedo * shading
    image[:200] = 0.0  # a hair, a shadow
    found = fit_light(image, albedo, normals, prior=1e-4, color_prior=1e-3, space="linear")
    assert (encoded_shading(sh_basis(normals) @ found, true) - shading).abs().mean() < 0.02
    assert encoded_shading(torch.tensor(0.5), true).item() == pytest.approx(0.5 ** (1 / 2.2))
    assert encoded_shading(torch.tensor(0.5), SHLight.ambient()).item() == 0.5


def test_exposure_and_white_balance_go_into_the_light(topology, observe_models):
    """The same face in a dimmer, warmer light, with the same belief, has the same texture."""
    from facerecon.perception import observe
    from facerecon.synthetic.exposure import exposed

    model, size = load_face_model("makehuman", num_identity=4), 64
    texture = torch.rand(3, size, size) * 0.02 + torch.tensor([0.6, 0.45, 0.38])[:, None, None]
    decoder = LinearDecoder(texture, 0.01 * torch.randn(2, 3, size, size))
    photo = observe("samples/astronaut.jpg")
    tone = torch.tensor([[0.7, 0.5, 0.42]]).log()
    renderer = Renderer(224)
    params = model.neutral(1)
    vertices = model(params)
    view = renderer.prepare(vertices, model.topology, photo.camera, params.light, face_region="face")
    made = {}
    for name, exposure, balance in (("usual", 1.0, (1, 1, 1)), ("dim", 0.5, (1.2, 1, 0.8))):
        image = exposed(photo.image, exposure, torch.tensor(balance).float())
        changed = photo.replace(fit=photo.fit.replace(image=image))
        light, latent = fit_light_and_texture(
            changed, decoder, view, vertices, model.topology, tone=tone, space="linear"
        )
        made[name] = light.coefficients[0, 0], toned(decoder(latent), tone, model.topology)
    torch.testing.assert_close(made["dim"][0] / made["usual"][0], torch.tensor([0.6, 0.5, 0.4]), rtol=0.05, atol=0)
    assert (made["dim"][1] - made["usual"][1]).abs().mean() < 0.01


def test_a_fit_has_the_tone_of_the_belief_and_off_is_the_decoders(topology, observe_models, asset):
    from facerecon.perception import observe
    from facerecon.stylegan.load import load_decoder

    asset("makehuman")
    model = load_face_model("makehuman", num_identity=4)
    stages = {"texture": {"steps": 2}, "joint": {"steps": 2}}
    options = {"stages": stages, "detail": DetailSettings(size=128)}
    fitters = [Fitter(model, load_decoder("linear"), Renderer(224), tone=tone, **options) for tone in ("belief", "off")]
    photo = observe("samples/astronaut.jpg")
    dark = torch.tensor([[0.36, 0.24, 0.18]]).log()
    believed = photo.replace(tone=photo.tone.replace(mean=dark))
    face, other = (fitter(believed).face for fitter in fitters)
    torch.testing.assert_close(tone_of(face.decoded, model.topology), dark, atol=0.02, rtol=0)
    assert skin_tone(tone_of(face.texture, model.topology).exp()).item() == pytest.approx(
        skin_tone(dark.exp()).item(), abs=4
    )
    assert torch.equal(face.params.tone, dark) and other.params.tone is None
    assert skin_tone(tone_of(other.decoded, model.topology).exp()).item() > 10
