"""From a loss back to shape, pose, expression, texture and light: analytic against finite differences."""

import pytest
import torch

from facerecon.geometry.camera import project
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.types import Camera, FaceParams, SHLight


@pytest.fixture(scope="module")
def scene(request):
    from facerecon import assets
    from facerecon.errors import AssetError

    try:
        assets.locate("makehuman")
    except AssetError as error:
        pytest.skip(str(error))
    model = load_face_model("makehuman", num_identity=3).double()
    return model, model.topology, Camera.deep3d(20).to(torch.float64)


def test_gradcheck_model_camera_barycentrics_texture_light(scene) -> None:
    model, topology, camera = scene
    renderer = Renderer(size=20, backend="torch")
    torch.manual_seed(3)
    texture = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    weight = torch.rand(1, 3, 20, 20, dtype=torch.float64)

    def image(identity, expression, rotation, translation, light, texture):
        weights = torch.zeros(1, model.num_expression, dtype=torch.float64)
        weights = torch.cat([weights[:, :20], expression, weights[:, 22:]], 1)
        albedo = torch.zeros(1, model.num_albedo, dtype=torch.float64)
        params = FaceParams(identity, weights, albedo, rotation, translation, SHLight(light))
        vertices = model(params)
        out = renderer(vertices, texture, topology, camera, params.light)
        points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
        return (out.image * weight).sum(), points[:, 17::9]  # the sliding jaw chooses, and choices have no gradient

    inputs = (
        0.5 * torch.randn(1, 3),
        torch.tensor([[0.3, 0.6]]),
        torch.tensor([[0.1, -0.2, 0.05]]),
        torch.tensor([[0.02, -0.03, 0.1]]),
        SHLight.ambient().coefficients + 0.1 * torch.randn(1, 9, 3),
    )
    inputs = tuple(t.double().requires_grad_() for t in inputs) + (texture.requires_grad_(),)
    assert torch.autograd.gradcheck(image, inputs, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_every_variable_receives_a_gradient_in_float32(scene) -> None:
    model = load_face_model("makehuman", num_identity=10)
    params = model.neutral(2)
    leaves = [params.identity, params.expression, params.rotation, params.translation, params.light.coefficients]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    texture = torch.rand(2, 3, 32, 32, requires_grad=True)
    params = FaceParams(leaves[0], leaves[1], params.albedo, leaves[2], leaves[3], SHLight(leaves[4]))
    out = Renderer(size=64)(model(params), texture, model.topology, Camera.deep3d(64, 2), params.light)
    out.image.square().mean().backward()
    for tensor in (*leaves, texture):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0
