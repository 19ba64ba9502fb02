import math

import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.camera import camera_in_photo, project
from facerecon.geometry.lighting import sh_basis, shade
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.render import Renderer
from facerecon.types import Camera, SHLight


def random_light(batch: int = 1) -> SHLight:
    coefficients = torch.randn(batch, 9, 3) * 0.1
    coefficients[:, 0] += 0.8
    return SHLight(coefficients)


def smooth_texture(size: int = 64, batch: int = 1) -> torch.Tensor:
    rough = torch.rand(batch, 3, 6, 6)
    return F.interpolate(rough, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def turned(vertices: torch.Tensor, *angles: float) -> torch.Tensor:
    return vertices @ euler_to_matrix(torch.tensor([angles], dtype=vertices.dtype)).mT


def test_a_lit_sphere_closed_form(sphere):
    """Each pixel's color is its albedo times the SH shading of the true sphere normal there."""
    vertices, topology = sphere(120, 180)
    light, size = random_light(), 96
    out = Renderer(size)(vertices, torch.full((1, 3, 8, 8), 0.5), topology, Camera.deep3d(size), light)
    # Ray p = (x, y, 10) t - (0, 0, 10) in camera axes; the nearer root on the unit sphere.
    grid = (torch.arange(size) + 0.5 - size / 2) / (1015 * size / 224)
    y, x = torch.meshgrid(-grid, grid, indexing="ij")
    ray = torch.stack([x, y, -torch.ones_like(x)], -1).double()
    eye = torch.tensor([0.0, 0.0, 10.0], dtype=torch.float64)
    a, b, c = (ray * ray).sum(-1), (ray * eye).sum(-1), 99.0
    root = b * b - a * c
    t = (-b - root.clamp(min=0).sqrt()) / a
    normal = F.normalize(eye + t[..., None] * ray, dim=-1)
    mask = root > 0.02
    expected = 0.5 * shade(normal[None].float(), light)[0]
    actual = out.image[0].permute(1, 2, 0)
    assert (out.mask[0, 0] - (root > 0).float()).abs().mean() < 0.01
    torch.testing.assert_close(actual[mask], expected[mask], atol=4e-3, rtol=0)
    torch.testing.assert_close(out.depth[0, 0][mask], t[mask].float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(out.shading[0].permute(1, 2, 0)[mask] * 0.5, actual[mask], atol=1e-6, rtol=0)


def test_texture_is_upright_and_texel_centers_are_where_the_convention_says(quad):
    """A quad that covers a 16 x 16 image exactly shows a 16 x 16 texture unchanged."""
    vertices, topology = quad(1.0)
    camera = Camera.deep3d(16)
    camera = camera.replace(focal=torch.tensor([80.0]))  # half width 1 at depth 10 -> 8 px
    texture = torch.rand(1, 3, 16, 16)
    for filter in ("bilinear", "nearest"):
        out = Renderer(16, filter=filter)(vertices, texture, topology, camera, None)
        assert (out.mask == 1).all()
        torch.testing.assert_close(out.image, texture, atol=1e-4, rtol=0)


def test_fused_kernels_agree_with_the_torch_path_in_float64(sphere):
    vertices, topology = sphere(30, 44)
    posed = torch.cat([turned(vertices, 0.2, 0.5, 0.1), turned(vertices, -0.3, 0.2, 0.4) * 0.8])
    texture, light = smooth_texture(64, 2), random_light(2)
    weights = [torch.rand(2, c, 80, 80) for c in (3, 3, 1, 3)]

    def run(dtype, fused):
        leaves = [t.to(dtype).clone().requires_grad_() for t in (posed, texture, light.coefficients)]
        renderer = Renderer(80, fused=fused)
        camera = Camera.deep3d(80).to(dtype)
        out = renderer(leaves[0], leaves[1], topology, camera, SHLight(leaves[2]))
        parts = (out.image, out.shading, out.depth, out.fragments.barycentric.permute(0, 3, 1, 2))
        sum((w.to(dtype) * p).sum() for w, p in zip(weights, parts, strict=True)).backward()
        return [p.detach().double() for p in parts], [leaf.grad.double() for leaf in leaves]

    exact, single, fused = run(torch.float64, False), run(torch.float32, False), run(torch.float32, True)
    for values, reference in zip(fused[0], exact[0], strict=True):
        torch.testing.assert_close(values, reference, atol=5e-4, rtol=0)
    for name, gradient, twin, reference in zip(
        ("vertices", "texture", "light"), fused[1], single[1], exact[1], strict=True
    ):
        error = ((gradient - reference).norm() / reference.norm()).item()
        assert error < max(2e-3, 2 * ((twin - reference).norm() / reference.norm()).item()), name


def test_gradcheck_through_camera_barycentrics_texture_and_light(sphere):
    vertices, topology = sphere(4, 6)
    posed = (turned(vertices, 0.3, 0.4, 0.1) * 0.6).double()
    camera = Camera.deep3d(10).to(torch.float64)
    leaves = (
        posed.requires_grad_(),
        smooth_texture(5).double().requires_grad_(),
        random_light().coefficients.double().requires_grad_(),
        camera.focal.clone().requires_grad_(),
        camera.translation.clone().requires_grad_(),
    )
    for shading in ("pixel", "vertex"):
        renderer = Renderer(10, shading=shading)

        def run(points, texture, coefficients, focal, translation, renderer=renderer):
            moved = camera.replace(focal=focal, translation=translation)
            out = renderer(points, texture, topology, moved, SHLight(coefficients))
            return out.image, out.depth

        assert torch.autograd.gradcheck(run, leaves, atol=1e-6, rtol=1e-3, fast_mode=True)


def test_per_vertex_shading_interpolates_vertex_light(sphere):
    vertices, topology = sphere(12, 16)
    light = random_light()
    white = torch.ones(1, 3, 4, 4)
    coarse = Renderer(64, shading="vertex")(vertices, white, topology, Camera.deep3d(64), light)
    fine = Renderer(64, shading="pixel")(vertices, white, topology, Camera.deep3d(64), light)
    assert 1e-4 < (coarse.image - fine.image).abs().max() < 0.1
    facing = F.normalize(vertices, dim=-1)
    found = coarse.fragments
    face = found.face_index[0, 32, 32]
    expected = (found.barycentric[0, 32, 32][:, None] * shade(facing, light)[0, topology.faces[face]]).sum(0)
    torch.testing.assert_close(coarse.image[0, :, 32, 32], expected, atol=2e-2, rtol=0)


def check_alike(image, other) -> None:
    """But for single pixels of the outline, which rounding can move from one side of an edge to the other."""
    assert ((image - other).abs() > 1e-4).float().mean() < 2e-3


def test_a_batch_equals_its_singles_and_prepared_views_equal_renders(sphere):
    vertices, topology = sphere(20, 30)
    posed = torch.cat([turned(vertices, 0.2, 0.5, 0.1), turned(vertices, 0.0, -0.4, 0.0) * 0.7, vertices * 0.5])
    texture, light, camera = smooth_texture(32, 3), random_light(3), Camera.deep3d(64, batch=3)
    for options in ({"fused": True}, {"fused": False}, {"texture_level": "auto"}, {"shading": "vertex"}):
        renderer = Renderer(64, **options)
        together = renderer(posed, texture, topology, camera, light)
        view = renderer.prepare(posed, topology, camera, light).detach()
        check_alike(view.shade(texture).image, together.image)
        for b in range(3):
            one = slice(b, b + 1)
            single = renderer(posed[one], texture[one], topology, camera[b], light[b])
            check_alike(single.image[0], together.image[b])
            check_alike(single.depth[0], together.depth[b])


def test_shared_texture_and_shared_view(sphere):
    vertices, topology = sphere(12, 16)
    textures, light = smooth_texture(32, 3), random_light()
    renderer = Renderer(48)
    heads = torch.cat([vertices, vertices * 0.7, vertices * 0.5])
    shared = renderer(heads, textures[:1], topology, Camera.deep3d(48), light)
    many = renderer(vertices, textures, topology, Camera.deep3d(48), light)
    assert many.image.shape == shared.image.shape == (3, 3, 48, 48)
    assert many.mask.shape == (3, 1, 48, 48)
    for b in range(3):
        one = renderer(heads[b : b + 1], textures[:1], topology, Camera.deep3d(48), light)
        check_alike(one.image[0], shared.image[b])
        one = renderer(vertices, textures[b : b + 1], topology, Camera.deep3d(48), light)
        check_alike(one.image[0], many.image[b])
    with pytest.raises(ShapeError, match="batch 1 or 3"):
        renderer(heads, textures[:2], topology, Camera.deep3d(48), light)


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_cached_in_inference_mode_serves_autograd(sphere, fused):
    vertices, topology = sphere(6, 8)
    renderer, texture = Renderer(32, fused=fused), torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        renderer(vertices, texture, topology, Camera.deep3d(32), SHLight.ambient())
    vertices = vertices.clone().requires_grad_()
    renderer(vertices, texture, topology, Camera.deep3d(32), SHLight.ambient()).image.sum().backward()
    assert vertices.grad.abs().max() > 0


@pytest.mark.parametrize("fused", [True, False])
def test_an_empty_image_has_zero_gradients_and_no_crash(sphere, fused):
    vertices, topology = sphere(6, 8)
    away = (vertices + torch.tensor([100.0, 0.0, 0.0])).requires_grad_()
    texture = torch.rand(1, 3, 8, 8, requires_grad=True)
    coefficients = random_light().coefficients.requires_grad_()
    renderer = Renderer(32, fused=fused, texture_level="auto")
    out = renderer(away, texture, topology, Camera.deep3d(32), SHLight(coefficients))
    assert (out.mask == 0).all()
    assert (out.image == 0).all()
    out.image.sum().backward()
    for leaf in (away, texture, coefficients):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_region_draws_only_its_faces_with_the_ids_of_the_whole_mesh(sphere, topology_of):
    vertices, topology = sphere(12, 16)
    upper = vertices[0, topology.faces].mean(1)[:, 1] > 0
    topology = topology_of(topology.faces, topology.uvs, upper=upper)
    renderer = Renderer(48)
    args = (vertices, torch.ones(1, 3, 4, 4), topology, Camera.deep3d(48), random_light())
    part, whole = renderer(*args, face_region="upper"), renderer(*args)
    ids = part.fragments.face_index
    assert (ids >= 0).any()
    assert upper[ids[ids >= 0]].all()
    same = ids >= 0
    assert torch.equal(ids[same], whole.fragments.face_index[same])
    with pytest.raises(ConfigError, match=r"unknown face region 'uper'; did you mean 'upper'\?"):
        renderer(*args, face_region="uper")


def test_any_size_shows_the_camera_s_whole_view(sphere):
    vertices, topology = sphere(24, 32)
    points = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    args = (vertices, torch.ones(1, 3, 4, 4), topology)
    photo = camera_in_photo(Camera.deep3d(224), torch.tensor([[[1.0, 0.0, 40.0], [0.0, 1.0, 10.0]]]), (240, 480))
    full = Renderer(None)(*args, photo, None, landmarks3d=points)
    half = Renderer(240)(*args, photo, None, landmarks3d=points)
    assert full.image.shape[2:] == (240, 480)
    assert half.image.shape[2:] == (120, 240)
    shrunk = F.avg_pool2d(full.mask, 2)
    assert (shrunk - half.mask).abs().mean() < 0.01
    torch.testing.assert_close(full.landmarks, project(photo, points)[..., :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(half.landmarks * 2, full.landmarks, atol=1e-3, rtol=0)


def test_auto_level_averages_a_texture_that_is_too_fine(quad):
    """A checkerboard of single texels, 8 texels a pixel: point samples alias, the right level is flat gray."""
    vertices, topology = quad(1.0)
    camera = Camera.deep3d(32).replace(focal=torch.tensor([160.0]))  # the quad fills the image
    board = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 3, 256, 256)
    out = Renderer(32, texture_level="auto")(vertices, board, topology, camera, None)
    torch.testing.assert_close(out.image, torch.full_like(out.image, 0.5), atol=1e-5, rtol=0)
    same = Renderer(32, texture_level="auto")(vertices, board[..., :32, :32], topology, camera, None)
    torch.testing.assert_close(same.image, board[..., :32, :32], atol=1e-4, rtol=0)  # no blur where none is due
    odd = Renderer(32, texture_level="auto")(vertices, board[..., :250, :250], topology, camera, None)
    assert odd.image.shape == (1, 3, 32, 32)  # 250 halves once only


def test_mip_maps_of_the_fused_kernels_are_those_of_the_torch_path(sphere):
    """Both with a texture so fine that its own texels are never looked at."""
    vertices, topology = sphere(24, 32)
    texture, light = torch.rand(1, 3, 1024, 1024), random_light()
    args = (vertices, texture, topology, Camera.deep3d(48), light)
    fused, listed = (Renderer(48, texture_level="auto", fused=flag)(*args).image for flag in (True, False))
    torch.testing.assert_close(fused, listed, atol=1e-4, rtol=0)
    blurred = F.avg_pool2d(texture, 4)
    coarse = Renderer(48, texture_level="auto")(args[0], blurred, *args[2:]).image
    torch.testing.assert_close(fused, coarse, atol=1e-4, rtol=0)  # levels 0 and 1 did not take part


def test_light_recovered_from_a_render_by_least_squares(sphere):
    vertices, topology = sphere(60, 80)
    light = random_light()
    out = Renderer(64)(vertices, torch.ones(1, 3, 4, 4), topology, Camera.deep3d(64), light)
    mask = out.mask[0, 0] > 0
    found = out.fragments
    points = F.normalize(
        (found.barycentric[..., None] * vertices[0][topology.faces[found.face_index.clamp(min=0)]]).sum(-2), dim=-1
    )[0][mask]
    solution = torch.linalg.lstsq(sh_basis(points), out.image[0].permute(1, 2, 0)[mask]).solution
    torch.testing.assert_close(solution, light.coefficients[0], atol=2e-2, rtol=0)


def test_unknown_options_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'bilinear'"):
        Renderer(filter="biliner")
    with pytest.raises(ConfigError, match="did you mean 'vertex'"):
        Renderer(shading="vertx")
    with pytest.raises(ConfigError, match="texture_level"):
        Renderer(texture_level="full")
    with pytest.raises(ConfigError, match="unknown rasterizer backend"):
        Renderer(backend="opengl")


def test_a_real_head_looks_like_its_texture(real_head):
    """From the front: skin on the forehead, left like right, not upside down; turned: the nose on the proper side."""
    vertices, topology, texture = real_head
    out = Renderer(224, texture_level="auto")(vertices, texture, topology, Camera.deep3d(224), None)
    image, mask = out.image[0], out.mask[0, 0]
    column = int((mask.sum(0) * torch.arange(224)).sum() / mask.sum())
    head = mask[:, column].nonzero()[:, 0]
    assert head[0] < 40
    forehead = image[:, 25:45, column - 8 : column + 8].mean((1, 2))
    assert forehead[0] > forehead[1] > forehead[2] > 0.2
    middle = image[:, 30:140, 60:164]
    assert (middle - middle.flip(2)).abs().mean() < 0.5 * (middle - middle.flip(1)).abs().mean()
    tip = vertices[:, vertices[0, :, 2].argmax()][:, None]
    for yaw in (0.5, -0.5):  # positive yaw turns the nose to the right of the picture, and the ear away
        view = Renderer(224)(
            turned(vertices, 0, yaw, 0), texture, topology, Camera.deep3d(224), None, None, turned(tip, 0, yaw, 0)
        )
        assert (view.landmarks[0, 0, 0] - 112) * yaw > 10
        x, y = view.landmarks[0, 0].int().tolist()
        depth = view.depth[0, 0]
        assert depth[y, x] < depth[depth > 0].quantile(0.2)


def test_shading_constant_of_the_ambient_light(quad):
    vertices, topology = quad(0.5)
    out = Renderer(32)(vertices, torch.ones(1, 3, 4, 4), topology, Camera.deep3d(32), SHLight.ambient())
    assert math.isclose(out.image.max().item(), 0.8 * math.sqrt(math.pi) / 2, rel_tol=1e-5)
