import numpy as np
import torch

from facerecon.geometry.mesh import edges, laplacian, subdivision, vertex_normals

CUBE = torch.tensor([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
CUBE_VERTICES = torch.tensor(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1.0]]
) - 0.5  # fmt: skip
TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def triangles(quads: torch.Tensor) -> torch.Tensor:
    return quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def test_normals_of_a_sphere_point_outward():
    vertices, faces = CUBE_VERTICES.double(), CUBE
    for _ in range(4):
        matrix, faces = subdivision(faces, len(vertices))
        vertices = torch.from_numpy(matrix @ vertices.numpy())
    vertices = torch.nn.functional.normalize(vertices, dim=-1)
    normals = vertex_normals(vertices[None], triangles(faces))[0]
    assert (normals * vertices).sum(-1).min() > 0.9995


def test_vertex_normal_weighs_faces_by_area():
    # A fold of two triangles: one in the plane z = 0 of area 2, one in x = 0 of area 1/2.
    vertices = torch.tensor([[[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 0.5]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    expected = torch.nn.functional.normalize(torch.tensor([0.5, 0.0, 2.0]), dim=0)
    torch.testing.assert_close(vertex_normals(vertices, faces)[0, 0], expected)


def test_degenerate_and_unused_vertices_give_zero_normals_and_finite_gradients():
    vertices = torch.zeros(1, 5, 3, requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    assert torch.equal(normals, torch.zeros(1, 5, 3))
    normals.sum().backward()
    assert torch.isfinite(vertices.grad).all()


def test_normal_gradients():
    vertices = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, TETRAHEDRON), vertices)


def test_edges_satisfy_euler():
    faces = triangles(CUBE)
    pairs = edges(faces)
    assert len(pairs) == 8 + len(faces) - 2
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_laplacian_against_a_dense_loop():
    torch.manual_seed(0)
    faces, values = triangles(CUBE), torch.randn(2, 9, 3)  # vertex 8 is used by no face
    neighbors = {i: set() for i in range(9)}
    for face in faces.tolist():
        for i in face:
            neighbors[i] |= set(face) - {i}
    expected = torch.zeros_like(values)
    for i, near in neighbors.items():
        if near:
            expected[:, i] = values[:, sorted(near)].mean(1) - values[:, i]
    torch.testing.assert_close(laplacian(values, faces), expected)
    torch.testing.assert_close(laplacian(values, faces), expected)  # the cached edges


def test_catmull_clark_of_a_cube_literals():
    matrix, faces = subdivision(CUBE, 8)
    refined = matrix @ CUBE_VERTICES.double().numpy()
    assert matrix.shape == (8 + 12 + 6, 8)
    assert faces.shape == (24, 4)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(refined[0], [-5 / 18] * 3)
    np.testing.assert_allclose(np.abs(refined[8:20]).max(1), 3 / 8)
    np.testing.assert_allclose(np.abs(refined[20:]).max(1), 1 / 2)


def test_rim_follows_its_own_spline():
    matrix, _ = subdivision(torch.tensor([[0, 1, 2, 3]]), 4)
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    refined = matrix @ square
    np.testing.assert_allclose(refined[0], [1 / 8, 1 / 8])  # 1/8, 3/4, 1/8 along the rim
    np.testing.assert_allclose(sorted(refined[4:8].tolist()), sorted([[0.5, 0], [0, 0.5], [1, 0.5], [0.5, 1]]))


def test_children_keep_the_corners_of_their_parent():
    _, faces = subdivision(CUBE, 8)
    for parent, children in zip(CUBE, faces.view(6, 4, 4), strict=True):
        assert torch.equal(children[:, 0], parent)  # child k keeps corner k of its parent
