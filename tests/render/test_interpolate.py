import torch

from facerecon.geometry.camera import clip_coordinates, project
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.render.interpolate import fragments, interpolate
from facerecon.types import Camera


def test_interpolated_positions_project_back_to_their_pixels(sphere):
    """Perspective-correct weights: the interpolated 3D point of a pixel lies on that pixel's ray."""
    vertices, topology = sphere(10, 14)
    camera = Camera.deep3d(100)
    close = camera.replace(focal=camera.focal * 0.2, translation=torch.tensor([[0.0, 0.0, 2.2]]), near=0.5)
    found = fragments(clip_coordinates(close, vertices), topology.faces, (100, 100))
    points = interpolate(found, vertices, topology.faces)
    mask = found.face_index[0] >= 0
    assert mask.float().mean() > 0.5
    pixels = project(close, points.view(1, -1, 3)).view(100, 100, 3)
    rows, columns = torch.meshgrid(torch.arange(100) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels[..., 0][mask], columns[mask], atol=2e-3, rtol=0)
    torch.testing.assert_close(pixels[..., 1][mask], rows[mask], atol=2e-3, rtol=0)
    torch.testing.assert_close(pixels[..., 2][mask], found.depth[0][mask])


def test_depth_of_a_slanted_plane_closed_form():
    """1 / z of a plane is affine on the screen; z itself is not."""
    vertices = torch.tensor([[[-1.0, -1.0, 2.0], [1.0, -1.0, -2.0], [1.0, 1.0, -2.0], [-1.0, 1.0, 2.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    camera = Camera.deep3d(224)
    found = fragments(clip_coordinates(camera, vertices), faces, (224, 224))
    # x = -z_world / 2 and depth = 10 - z_world, so depth = 10 + 2 x and x = (column - 112) depth / 1015.
    column = torch.arange(224) + 0.5
    expected = 10 / (1 - 2 * (column - 112) / 1015)
    row = found.depth[0, 112]
    inside = found.face_index[0, 112] >= 0
    assert inside.sum() > 150
    torch.testing.assert_close(row[inside], expected[inside], atol=1e-4, rtol=0)


def test_barycentrics_sum_to_one_and_are_zero_outside(sphere):
    vertices, topology = sphere()
    found = fragments(clip_coordinates(Camera.deep3d(64), vertices * 0.8), topology.faces, (64, 64))
    mask = found.face_index >= 0
    torch.testing.assert_close(found.barycentric.sum(-1), mask.float(), atol=1e-5, rtol=0)
    assert found.barycentric[mask].min() > -1e-3
    assert (found.depth[~mask] == 0).all()


def test_gradcheck_from_vertices_to_fragments(sphere):
    vertices, topology = sphere(4, 6)
    angles = torch.tensor([[0.3, 0.4, 0.1]], dtype=torch.float64)
    vertices = (vertices.double() @ euler_to_matrix(angles).mT * 0.7).requires_grad_()
    camera = Camera.deep3d(12).to(torch.float64)

    def run(points):
        found = fragments(clip_coordinates(camera, points), topology.faces, (12, 12))
        return found.barycentric, found.depth, interpolate(found, points, topology.faces)

    assert torch.autograd.gradcheck(run, vertices, atol=1e-6, fast_mode=True)


def test_edge_on_faces_and_empty_images_have_finite_gradients():
    flat = torch.tensor([[[-1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, -1.0]]], requires_grad=True)
    found = fragments(clip_coordinates(Camera.deep3d(32), flat), torch.tensor([[0, 1, 2]]), (32, 32))
    found.barycentric.sum().backward()
    assert torch.isfinite(flat.grad).all()
    away = (torch.randn(1, 3, 3) + 100).requires_grad_()
    found = fragments(clip_coordinates(Camera.deep3d(32), away), torch.tensor([[0, 1, 2]]), (32, 32))
    assert (found.face_index == -1).all()
    (found.barycentric.sum() + found.depth.sum()).backward()
    assert torch.equal(away.grad, torch.zeros_like(away))
