import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.camera import camera_in_photo
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.render import Renderer, bake, pad_islands, sample_texture, uv_raster
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import mirrored
from facerecon.types import Camera, SHLight


def smooth_texture(size: int, batch: int = 1) -> torch.Tensor:
    rough = torch.rand(batch, 3, 8, 8)
    return F.interpolate(rough, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def texel_centers(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    step = (torch.arange(size) + 0.5) / size
    return torch.meshgrid(1 - step, step, indexing="ij")  # v of the row, u of the column


def test_texel_convention_of_the_raster_and_of_sampling(quad):
    _, topology = quad()
    found = uv_raster(topology, 20)
    assert (found.face_index >= 0).all()
    v, u = texel_centers(20)
    at_texels = interpolate(found, topology.uvs[None], topology.uv_faces)[0]
    torch.testing.assert_close(at_texels, torch.stack([u, v], -1), atol=1e-6, rtol=0)
    texture = torch.rand(2, 3, 20, 20)
    sampled = sample_texture(texture, torch.stack([u, v], -1)[None])
    torch.testing.assert_close(sampled.permute(0, 3, 1, 2), texture, atol=1e-5, rtol=0)
    between = torch.tensor([[[2 / 20, 1 - 1.5 / 20]]])  # between columns 1 and 2 of row 1
    torch.testing.assert_close(
        sample_texture(texture, between)[:, 0], texture[:, :, 1, 1:3].mean(-1), atol=1e-5, rtol=0
    )
    corner = torch.tensor([[[0.0, 1.0]]])  # beyond the outermost centers: the border is extended
    torch.testing.assert_close(sample_texture(texture, corner)[:, 0], texture[:, :, 0, 0])


def test_raster_is_cached_and_follows_changes(quad):
    _, topology = quad()
    first = uv_raster(topology, 16)
    assert uv_raster(topology, 16) is first
    assert uv_raster(topology, 8).face_index.shape == (1, 8, 8)
    topology.uvs.mul_(0.5)
    assert (uv_raster(topology, 16).face_index >= 0).float().mean() < 0.3
    half = topology.replace(uv_faces=topology.uv_faces[:1], faces=topology.faces[:1])
    assert (uv_raster(half, 16).face_index == 0).any()
    fewer = topology.replace(uvs=topology.uvs * 0.5)  # the same faces on other coordinates
    assert (uv_raster(fewer, 16).face_index >= 0).float().mean() < 0.1


def test_mirrored_islands_are_drawn_too(topology_of):
    uvs = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [1.0, 0.0], [1.0, 1.0]])
    faces = torch.tensor([[0, 1, 2], [1, 2, 3]])  # one of each winding
    found = uv_raster(topology_of(faces, uvs), 32)
    assert set(found.face_index.unique().tolist()) == {-1, 0, 1}


def test_bake_after_render_returns_the_texture_where_it_was_seen(sphere):
    vertices, topology = sphere(60, 90)
    texture, size = smooth_texture(128), 400
    camera = Camera.deep3d(size)
    image = Renderer(size)(vertices, texture, topology, camera, None).image
    baked, seen = bake(image, vertices, topology, camera, 128)
    certain = seen[0, 0] > 0.99
    assert certain.float().mean() > 0.15
    assert psnr(baked[0][:, certain], texture[0][:, certain]) > 42
    v, u = texel_centers(128)
    polar, turn = torch.pi * (1 - v), 2 * torch.pi * (u - 0.5)
    normal = torch.stack([polar.sin() * turn.sin(), polar.cos(), polar.sin() * turn.cos()], -1)
    cosine = (normal * F.normalize(torch.tensor([0.0, 0.0, 10.0]) - normal, dim=-1)).sum(-1)
    assert certain[cosine > 0.43].all()
    assert (seen[0, 0][cosine < 0.07] == 0).all()


def test_bake_in_a_photo_camera_equals_baking_the_crop(sphere):
    vertices, topology = sphere(40, 60)
    to_photo = torch.tensor([[[2.0, 0.0, 30.0], [0.0, 2.0, 50.0]]])
    crop_camera = Camera.deep3d(200)
    photo_camera = camera_in_photo(crop_camera, to_photo, (520, 480))
    texture = smooth_texture(96)
    baked = []
    for camera in (crop_camera, photo_camera):
        image = Renderer(None)(vertices, texture, topology, camera, None).image
        baked.append(bake(image, vertices, topology, camera, 96))
    both = (baked[0][1] > 0.9) & (baked[1][1] > 0.9)
    assert both.float().mean() > 0.2
    assert (baked[0][1] - baked[1][1]).abs().mean() < 0.02
    both = both.expand(-1, 3, -1, -1)
    assert psnr(baked[0][0][both], baked[1][0][both]) > 38


def test_a_plane_behind_a_sphere_is_hidden_in_its_shadow_only(sphere, quad, topology_of):
    ball, ball_topology = sphere(40, 60, radius=0.4)
    wall, wall_topology = quad(0.9)
    vertices = torch.cat([wall - torch.tensor([0.0, 0.0, 1.0]), ball], 1)
    faces = torch.cat([wall_topology.faces, ball_topology.faces + 4])
    uvs = torch.cat([wall_topology.uvs, ball_topology.uvs * 0 - 1])  # the ball has no place on the map
    topology = topology_of(faces, uvs)
    camera = Camera.deep3d(224)
    image = Renderer(224)(vertices, torch.rand(1, 3, 8, 8), topology, camera, None).image
    _, seen = bake(image, vertices, topology, camera, 200, padding=0)
    # A point of the wall (depth 11) is hidden where its ray passes the ball: sin(angle) < 0.4 / 10.
    v, u = texel_centers(200)
    x, y = (u * 2 - 1) * 0.9, (v * 2 - 1) * 0.9
    radius = (x.square() + y.square()).sqrt()
    edge = 11 * 0.04 / (1 - 0.04**2) ** 0.5
    assert (seen[0, 0][radius < edge - 0.03] == 0).all()
    clear = (radius > edge + 0.06) & (x.abs() < 0.87) & (y.abs() < 0.87)
    assert (seen[0, 0][clear] > 0.99).all()


def test_grazing_and_averted_surfaces_are_not_seen(quad):
    vertices, topology = quad(0.8)
    camera = Camera.deep3d(128)
    image = torch.rand(1, 3, 128, 128)
    mean = []
    for degrees in (0, 60, 80, 87, 120, 180):
        angle = torch.tensor([[0.0, torch.pi * degrees / 180, 0.0]])
        _, seen = bake(image, vertices @ euler_to_matrix(angle).mT, topology, camera, 64)
        mean.append(seen.mean().item())
    assert mean[0] > 0.9
    assert mean[1] > 0.8
    assert 0.01 < mean[2] < 0.6
    assert mean[3] < 0.02
    assert mean[4] == mean[5] == 0


def test_outside_the_image_and_outside_the_mask_is_not_seen(quad):
    vertices, topology = quad(0.8)
    camera = Camera.deep3d(100)
    image, mask = torch.rand(1, 3, 100, 100), torch.zeros(1, 1, 100, 100)
    mask[..., 50:] = 1
    _, seen = bake(image, vertices, topology, camera, 64, mask=mask)
    assert seen[0, 0, :, 34:].mean() > 0.9
    assert (seen[0, 0, :, :30] == 0).all()
    shifted = vertices + torch.tensor([0.8, 0.0, 0.0])
    _, seen = bake(image, shifted, topology, camera, 64)
    limit = int(64 * (1.1 - 0.0) / 1.6)  # the image ends at x = 1.103
    assert (seen[0, 0, :, limit + 2 :] == 0).all()
    assert seen[0, 0, 8:-8, 8 : limit - 4].mean() > 0.95


def test_batch_of_bakes_equals_singles_and_gradients_reach_the_image(sphere):
    vertices, topology = sphere(20, 30)
    both = torch.cat([vertices, vertices * 0.6])
    camera = Camera.deep3d(64, batch=2)
    image = torch.rand(2, 4, 64, 64, requires_grad=True)
    texture, seen = bake(image, both, topology, camera, 48, padding=0)
    for b in range(2):
        one = bake(image[b : b + 1], both[b : b + 1], topology, camera[b], 48, padding=0)
        assert (one[0][0] - texture[b]).abs().mean() < 1e-4
        assert (one[1][0] - seen[b]).abs().mean() < 1e-4
    (texture * seen).sum().backward()
    torch.testing.assert_close(image.grad.sum((2, 3)), seen.sum((2, 3)).expand(2, 4))  # weights sum to 1
    assert not seen.requires_grad


def test_padding_continues_islands_and_keeps_them(topology_of):
    uvs = torch.tensor([[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]])
    topology = topology_of(torch.tensor([[0, 1, 2], [0, 2, 3]]), uvs)
    size = 40
    inside = uv_raster(topology, size).face_index[0] >= 0
    texture = torch.where(inside, torch.rand(3, 1, 1), torch.full((), 9.0))[None].expand(1, 3, -1, -1)
    padded = pad_islands(texture, topology, 3)
    torch.testing.assert_close(padded[0][:, inside], texture[0][:, inside])
    grown = F.max_pool2d(inside[None].float(), 7, 1, 3)[0] > 0
    plus = torch.zeros_like(inside)
    for step in range(-3, 4):
        plus |= inside.roll(step, 0) | inside.roll(step, 1)
    for channel in range(3):
        assert (padded[0, channel][plus] == texture[0, channel][20, 20]).all()
    assert (padded[0][:, ~grown] == 9).all()
    assert (pad_islands(texture, topology, None)[0, 0] == texture[0, 0, 20, 20]).all()


def test_no_seam_after_padding(sphere):
    """A constant sphere rendered with a baked and padded map stays constant across the seam and at the poles."""
    vertices, topology = sphere(20, 30)
    raster = uv_raster(topology, 64).face_index >= 0
    texture = torch.where(raster[:, None], torch.ones(()), torch.zeros(())).expand(1, 3, -1, -1)
    turned = vertices @ euler_to_matrix(torch.tensor([[0.6, torch.pi, 0.0]])).mT
    image = Renderer(100)(turned, pad_islands(texture, topology), topology, Camera.deep3d(100), None).image
    mask = image.amax(1) > 0
    torch.testing.assert_close(image.permute(0, 2, 3, 1)[mask], torch.ones(int(mask.sum()), 3), atol=1e-5, rtol=0)


def test_bake_of_a_real_head_round_trip(real_head):
    vertices, topology, texture = real_head
    camera = Camera.deep3d(512)
    image = Renderer(512)(vertices, texture, topology, camera, SHLight.ambient()).image
    baked, seen = bake(image, vertices, topology, camera, 512)
    target = F.avg_pool2d(texture, 2) * (0.8 * torch.pi**0.5 / 2)
    certain = seen[0, 0] > 0.99
    assert certain.float().mean() > 0.2
    assert psnr(baked[0][:, certain], target[0][:, certain]) > 32


def test_wrong_sizes_and_names_are_explained(quad):
    vertices, topology = quad()
    with pytest.raises(ShapeError, match=r"image must be \(B, C, 224, 224\).*scale_camera"):
        bake(torch.zeros(1, 3, 100, 100), vertices, topology, Camera.deep3d(224))
    with pytest.raises(ConfigError, match="did you mean 'nearest'"):
        sample_texture(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2), "nearst")
    with pytest.raises(ShapeError, match="uv must be"):
        sample_texture(torch.zeros(2, 3, 4, 4), torch.zeros(3, 5, 2))


@pytest.mark.parametrize("name", ["makehuman", "ict"])
def test_mirrored_follows_the_head_to_its_other_side(name, asset, request) -> None:
    """A map of positions, mirrored, holds the mirrored positions, in a symmetric atlas and in another."""
    from facerecon.morphable import load_face_model

    path = None
    if name == "makehuman":
        asset("makehuman")
    else:
        path = request.getfixturevalue("reference") / "ict" / "ict_facekit_light.npz"
    model = load_face_model(name, num_identity=0, path=path)
    raster = uv_raster(model.topology, 256)
    positions = interpolate(raster, model.mean[None], model.topology.faces).permute(0, 3, 1, 2)
    other, valid = mirrored(pad_islands(positions, model.topology), model.topology)
    flags = torch.cat([model.topology.regions["face"] & model.topology.regions["skin"], torch.zeros(1, dtype=bool)])
    face = (flags[raster.face_index] & (valid[:, 0] > 0))[0]
    error = (other[0] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None] - positions[0]).norm(dim=0)[face]
    assert face.sum() > 0.9 * flags[raster.face_index].sum()
    assert error.median() < 0.005 and error.quantile(0.98) < 0.05
    flip = (positions.flip(-1)[0] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None] - positions[0]).norm(dim=0)[face]
    assert (flip.median() < 0.005) == (name == "makehuman")


def test_bake_of_some_texels_and_with_an_offset(quad):
    vertices, topology = quad(0.8)
    camera = Camera.deep3d(100)
    image = smooth_texture(100)
    whole, seen = bake(image, vertices, topology, camera, 64, padding=0)
    wanted = torch.zeros(64, 64, dtype=torch.bool)
    wanted[20:40, 10:50] = True
    part, part_seen = bake(image, vertices, topology, camera, 64, padding=0, texels=wanted, shadow=200)
    assert torch.allclose(part[..., wanted], whole[..., wanted], atol=1e-4)
    assert torch.allclose(part_seen[..., wanted], seen[..., wanted], atol=1e-4)
    assert part[..., ~wanted].abs().max() == 0
    # three pixels to the right and two down: the image moved the other way
    offset = torch.tensor([3.0, 2.0]).expand(1, vertices.shape[1], 2)
    moved, _ = bake(image, vertices, topology, camera, 64, padding=0, offset=offset)
    shifted, _ = bake(image.roll((-2, -3), (2, 3)), vertices, topology, camera, 64, padding=0)
    assert (moved - shifted)[..., 8:-8, 8:-8].abs().max() < 1e-3
