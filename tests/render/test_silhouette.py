"""Antialiased silhouettes against closed forms, finite differences and 8x supersampling."""

import math

import pytest
import torch
import torch.nn.functional as F

from facerecon.geometry.rotation import euler_to_matrix
from facerecon.render import Renderer
from facerecon.render.silhouette import find_outline, opposite_faces
from facerecon.types import Camera, SHLight

SIZE = 96


def smooth_texture(size: int = 64) -> torch.Tensor:
    return F.interpolate(torch.rand(1, 3, 6, 6), size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def render(vertices, topology, texture, size=SIZE, **options):
    return Renderer(size, **options)(vertices, texture, topology, Camera.deep3d(size), SHLight.ambient())


@pytest.mark.parametrize("fused", [True, False])
def test_mask_of_a_sphere_has_the_circle_s_area_and_its_derivative(sphere, fused):
    """The outline of a sphere of radius r seen from distance 10 is a circle: tan^2 = r^2 / (100 - r^2)."""
    vertices, topology = sphere(200, 300)
    focal = 1015 * SIZE / 224

    def area(r):
        return math.pi * focal**2 * r**2 / (100 - r**2)

    for radius in (0.71, 0.9):
        scale = torch.tensor(radius, requires_grad=True)
        mask = render(vertices * scale, topology, smooth_texture(), antialias=True, fused=fused).mask
        hard = render(vertices * radius, topology, smooth_texture(), fused=fused).mask
        total = mask.sum()
        total.backward()
        assert total.item() == pytest.approx(area(radius), rel=1.5e-3)
        slope = (area(radius + 1e-3) - area(radius - 1e-3)) / 2e-3
        assert scale.grad.item() == pytest.approx(slope, rel=0.03)
        assert ((mask > 0) & (mask < 1)).sum() > 100
        assert (mask - hard).abs().max() <= 0.5 + 1e-5


def test_edges_of_a_square_give_exact_coverage(quad):
    """An upright square: every border pixel's mask is the part of it that the square covers."""
    vertices, topology = quad(0.5)
    moved = vertices + torch.tensor([0.013, -0.027, 0.0])
    mask = render(moved, topology, smooth_texture(), antialias=True).mask[0, 0]
    focal, center = 1015 * SIZE / 224 / 10, SIZE / 2
    pixels = torch.arange(SIZE + 1.0)

    def cover(low, high):
        return (pixels[1:].clamp(max=high) - pixels[:-1].clamp(min=low)).clamp(min=0)

    x = cover(center + focal * (-0.5 + 0.013), center + focal * (0.5 + 0.013))
    y = cover(center - focal * (0.5 - 0.027), center - focal * (-0.5 - 0.027))
    expected = y[:, None] * x
    inner = torch.ones_like(mask, dtype=torch.bool)  # the corners alone are not a crossing of one edge
    for row in (y.nonzero().min(), y.nonzero().max()):
        for column in (x.nonzero().min(), x.nonzero().max()):
            inner[row - 1 : row + 2, column - 1 : column + 2] = False
    torch.testing.assert_close(mask[inner], expected[inner], atol=2e-4, rtol=0)


def test_supersampling_agrees_on_a_head(real_head):
    """Mask and image come several times closer to an 8x supersampled render than with hard edges."""
    vertices, topology, _ = real_head
    texture = smooth_texture(256)
    for yaw in (0.0, 0.6):
        posed = vertices @ euler_to_matrix(torch.tensor([[0.1, yaw, 0.05]])).mT
        fine = render(posed, topology, texture, 8 * SIZE)
        truth = F.avg_pool2d(fine.mask, 8), F.avg_pool2d(fine.image, 8)
        hard, soft = (render(posed, topology, texture, antialias=flag) for flag in (False, True))
        assert (soft.mask - truth[0]).abs().sum() < 0.3 * (hard.mask - truth[0]).abs().sum()
        assert (soft.image - truth[1]).abs().sum() < 0.6 * (hard.image - truth[1]).abs().sum()


def test_outline_gradients_agree_with_supersampled_finite_differences(real_head):
    vertices, topology, _ = real_head
    texture = smooth_texture(64)
    left = torch.zeros(1, 1, SIZE, SIZE)
    left[..., : SIZE // 2] = 1

    def area(points, size, weight, antialias):
        mask = render(points, topology, texture, size, antialias=antialias).mask
        return (mask * F.interpolate(weight, size=(size, size))).sum() * (SIZE / size) ** 2

    posed = vertices @ euler_to_matrix(torch.tensor([[0.1, 0.3, 0.0]])).mT * 0.6  # all of it in the picture
    grow, shift = posed * 1.0, torch.tensor([1.0, 0.0, 0.0])
    for change, weight in ((grow, torch.ones_like(left)), (shift, left), (shift.roll(1), left.mT)):
        amount = torch.zeros((), requires_grad=True)
        (slope,) = torch.autograd.grad(area(posed + amount * change, SIZE, weight, True), amount)
        step = 0.01
        above, below = (area(posed + d * change, 8 * SIZE, weight, False) for d in (step, -step))
        assert slope.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=0.04)


def test_gradcheck_of_the_blend(sphere):
    """The image is piecewise smooth in the vertices: autograd equals finite differences of itself."""
    vertices, topology = sphere(6, 8)
    posed = (vertices @ euler_to_matrix(torch.tensor([[0.3, 0.4, 0.1]])).mT * 0.6).double().requires_grad_()
    weight = torch.rand(1, 3, 16, 16, dtype=torch.float64)

    def run(points):
        out = Renderer(16, antialias=True)(
            points, texture, topology, Camera.deep3d(16).to(torch.float64), SHLight.ambient().to(torch.float64)
        )
        return (out.image * weight).sum() + out.mask.square().sum()

    texture = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)  # flat: only light and outline depend on vertices
    # The share of an axis is held fixed in the gradient: vary along a direction that keeps every edge's direction.
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: run(posed.detach() * s), scale, eps=1e-7, atol=1e-4, rtol=2e-2)


def test_inner_silhouettes_blend_near_and_far_colors(topology_of):
    """A near square over a far one: the border is a mixture of their colors, by coverage."""
    near = torch.tensor([[-0.31, -0.31, 1.0], [0.33, -0.31, 1.0], [0.33, 0.33, 1.0], [-0.31, 0.33, 1.0]])
    far = torch.tensor([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    uvs = torch.cat([torch.full((4, 2), 0.25), torch.full((4, 2), 0.75)])
    topology = topology_of(faces, uvs)
    texture = torch.zeros(1, 3, 4, 4)
    texture[:, 0, 2:, :2] = 1  # near: red (lower left of the map)
    texture[:, 2, :2, 2:] = 1  # far: blue
    renderer = Renderer(SIZE, antialias=True)
    image = renderer(torch.cat([near, far])[None], texture, topology, Camera.deep3d(SIZE), None).image[0]
    focal = 1015 * SIZE / 224
    border = SIZE / 2 + focal * 0.33 / 9
    row, column = SIZE // 2, int(border)
    assert image[0, row, column].item() == pytest.approx(border - column, abs=2e-3)
    apart = (image[0] + image[2] - (image.amax(0) > 0).float()).abs()
    assert (apart > 0.51).float().mean() < 1e-3  # but for pixels whose center lies on a corner
    assert image[0, row, column - 1] > 0.999
    assert image[2, row, column + 1] > 0.999
    assert image[1].abs().max() == 0


def test_region_borders_are_outlines_and_far_sides_are_not(sphere, topology_of):
    vertices, topology = sphere(40, 60)
    upper = vertices[0, topology.faces].mean(1)[:, 1] > 0
    topology = topology_of(topology.faces, topology.uvs, upper=upper)
    texture, camera = smooth_texture(), Camera.deep3d(SIZE)
    tilted = vertices @ euler_to_matrix(torch.tensor([[0.02, 0.0, 0.0]])).mT * 0.9
    renderer = Renderer(SIZE, antialias=True)
    part = renderer(tilted, texture, topology, camera, None, face_region="upper").mask[0, 0]
    fine = Renderer(8 * SIZE)(tilted, texture, topology, Camera.deep3d(8 * SIZE), None, face_region="upper").mask
    truth = F.avg_pool2d(fine, 8)[0, 0]
    hard = Renderer(SIZE)(tilted, texture, topology, camera, None, face_region="upper").mask[0, 0]
    assert (part - truth).abs().sum() < 0.3 * (hard - truth).abs().sum()


def test_opposite_faces_against_a_search(sphere):
    _, topology = sphere(5, 7)
    faces = topology.faces.tolist()
    found = opposite_faces(topology.faces)
    for f, face in enumerate(faces):
        for k in range(3):
            edge = (face[(k + 1) % 3], face[k])
            twins = [
                g for g, other in enumerate(faces)
                if any((other[j], other[(j + 1) % 3]) == edge for j in range(3))
            ]  # fmt: skip
            assert found[f, k] == (twins[0] if twins else -1)


def test_an_empty_view_and_a_shared_view(sphere):
    vertices, topology = sphere(8, 12)
    away = (vertices + torch.tensor([50.0, 0.0, 0.0])).requires_grad_()
    out = render(away, topology, smooth_texture(), antialias=True)
    assert out.mask.abs().max() == 0
    (out.image.sum() + out.mask.sum()).backward()
    assert torch.equal(away.grad, torch.zeros_like(away))
    textures = torch.cat([smooth_texture(), smooth_texture()])
    many = render(vertices, topology, textures, antialias=True)
    for b in range(2):
        single = render(vertices, topology, textures[b : b + 1], antialias=True)
        assert (many.image[b] - single.image[0]).abs().mean() < 1e-5
    batch = torch.cat([vertices, vertices * 0.7])
    together = render(batch, topology, textures, antialias=True)
    for b in range(2):
        single = render(batch[b : b + 1], topology, textures[b : b + 1], antialias=True)
        assert (together.image[b] - single.image[0]).abs().mean() < 1e-5
        assert (together.mask[b] - single.mask[0]).abs().mean() < 1e-5


def test_outline_moves_a_head_to_its_place(sphere):
    """What a hard mask cannot do: find size and place from an outline alone."""
    vertices, topology = sphere(60, 90)
    camera, texture = Camera.deep3d(SIZE), smooth_texture()
    renderer = Renderer(SIZE, antialias=True)
    wanted = renderer(vertices * 0.8 + torch.tensor([0.1, -0.05, 0.0]), texture, topology, camera, None).mask
    scale, offset = torch.tensor(0.7, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([scale, offset], lr=0.01)
    for _ in range(60):
        mask = renderer(vertices * scale + offset, texture, topology, camera, None).mask
        loss = (mask - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        offset.grad[2] = 0
        optimizer.step()
    assert scale.item() == pytest.approx(0.8, abs=0.01)
    torch.testing.assert_close(offset.detach()[:2], torch.tensor([0.1, -0.05]), atol=0.01, rtol=0)


def test_outline_of_a_hidden_edge_is_left_out(quad, topology_of):
    """A small square behind a large one has no crossing at all."""
    large, _ = quad(0.8)
    small, _ = quad(0.3)
    points = torch.cat([large + torch.tensor([0, 0, 0.5]), small], 1)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    topology = topology_of(faces, torch.rand(8, 2))
    out = Renderer(SIZE)(points, smooth_texture(), topology, Camera.deep3d(SIZE), None)
    from facerecon.geometry.camera import clip_coordinates

    clip = clip_coordinates(Camera.deep3d(SIZE), points)
    outline = find_outline(clip, faces, out.fragments.face_index, out.depth[:, 0])
    columns = outline.near % SIZE
    assert len(columns) > 100
    middle = (columns - SIZE // 2).abs() < 1015 * SIZE / 224 / 9.5 * 0.5
    rows = (torch.div(outline.near, SIZE, rounding_mode="floor") - SIZE // 2).abs() < 1015 * SIZE / 224 / 9.5 * 0.5
    assert not (middle & rows).any()


def test_surface_is_the_color_without_the_background_s_share(sphere):
    """A head of one color has it up to its outline, and its outer outline no gradient there."""
    vertices, topology = sphere(60, 90)
    vertices = (vertices * 0.8).requires_grad_()
    out = render(vertices, topology, torch.full((1, 3, 4, 4), 0.5), antialias=True)
    color = 0.5 * 0.8 * math.sqrt(math.pi) / 2
    clear = (out.mask > 0.05).expand_as(out.surface)
    border = clear & (out.mask < 0.95)
    assert border.sum() > 300
    torch.testing.assert_close(out.surface[clear], torch.full_like(out.surface[clear], color), atol=1e-5, rtol=0)
    assert out.image[border].max() < 0.96 * color
    (slope,) = torch.autograd.grad((out.surface * clear).sum(), vertices, retain_graph=True)
    (moved,) = torch.autograd.grad(out.image.sum(), vertices)
    assert slope.norm() < 1e-3 * moved.norm()
