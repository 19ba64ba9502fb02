import importlib.util
import multiprocessing
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from facerecon.errors import ConfigError, ShapeError
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.render.rasterize import ENVIRONMENT, choose_backend, rasterize, to_screen
from facerecon.types import Camera

needs_pytorch3d = pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is None, reason="pytorch3d is not installed")


def turned(vertices: torch.Tensor, *angles: float) -> torch.Tensor:
    return vertices @ euler_to_matrix(torch.tensor([angles], dtype=vertices.dtype)).mT


def naive_ids(clip: torch.Tensor, faces: torch.Tensor, size: tuple[int, int], cull: bool) -> torch.Tensor:
    """Every pixel against every face, by solving for barycentrics in float64."""
    height, width = size
    ids = torch.full((height, width), -1)
    ndc = (clip[:, :3] / clip[:, 3:]).double()
    for row in range(height):
        for column in range(width):
            point = torch.tensor([(column + 0.5) * 2 / width - 1, 1 - (row + 0.5) * 2 / height, 1.0]).double()
            corners = ndc[faces]
            system = torch.stack([corners[..., 0], corners[..., 1], torch.ones_like(corners[..., 0])], 1)
            determinant = torch.linalg.det(system)
            usable = determinant > 0 if cull else determinant != 0
            system[~usable] = torch.eye(3, dtype=torch.float64)
            weights = torch.linalg.solve(system, point.expand(len(faces), 3))
            depth = (weights * corners[..., 2]).sum(-1)
            inside = usable & (weights >= 0).all(-1) & (depth.abs() <= 1)
            depth[~inside] = torch.inf
            if inside.any():
                ids[row, column] = depth.argmin()
    return ids


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_agrees_with_a_loop_over_pixels_and_faces(sphere, backend, cull):
    vertices, topology = sphere(6, 8)
    clip = clip_coordinates(Camera.deep3d(32).replace(size=(24, 36)), turned(vertices, 0.31, 0.47, 0.12) * 0.9)
    if not cull:  # cut the front off, so that the inside of the back shows
        front = turned(vertices, 0.31, 0.47, 0.12)[0, topology.faces].mean(1)[:, 2] > 0.3
        faces = topology.faces[~front]
    else:
        faces = topology.faces
    expected = naive_ids(clip[0], faces, (24, 36), cull)
    assert (expected >= 0).float().mean() > 0.3
    assert torch.equal(rasterize(clip, faces, (24, 36), backend, cull)[0], expected)


@pytest.mark.parametrize("size", [(224, 224), (150, 333)])
def test_numba_and_torch_give_identical_ids(sphere, size):
    vertices, topology = sphere(60, 90)
    both = torch.cat([turned(vertices, 0.2, 0.5, 0.1), turned(vertices, -0.4, 1.2, 0.0) * 0.7])
    clip = clip_coordinates(Camera.deep3d(224), both)
    for cull in (True, False):
        numba, torch_ids = (rasterize(clip, topology.faces, size, b, cull) for b in ("numba", "torch"))
        assert torch.equal(numba, torch_ids)
    assert torch.equal(numba[1:], rasterize(clip[1:], topology.faces, size, "numba", False))


def test_numba_and_torch_give_identical_ids_on_a_real_head(real_head):
    vertices, topology, _ = real_head
    clip = clip_coordinates(Camera.deep3d(224), turned(vertices, 0.1, 0.4, 0.0))
    ids = [rasterize(clip, topology.faces, (300, 300), backend) for backend in ("numba", "torch")]
    assert torch.equal(*ids)
    assert 0.3 < (ids[0] >= 0).float().mean() < 0.9


@needs_pytorch3d
@pytest.mark.parametrize("cull", [True, False])
def test_pytorch3d_agrees_but_for_rounding_at_edges(sphere, cull):
    vertices, topology = sphere(16, 24)
    both = torch.cat([turned(vertices, 0.2, 0.5, 0.1), turned(vertices, -0.4, 1.2, 0.0) * 0.7])
    clip = clip_coordinates(Camera.deep3d(224), both)
    ours, theirs = (rasterize(clip, topology.faces, (48, 72), b, cull) for b in ("numba", "pytorch3d"))
    assert (ours != theirs).float().mean() < 1e-3  # it works in float32; ours in float64
    assert (ours >= 0).float().mean() > 0.2


def test_ties_go_to_the_smaller_id_and_shared_edges_leave_no_hole(quad):
    vertices, topology = quad(0.8)
    faces = torch.cat([topology.faces, topology.faces])
    clip = clip_coordinates(Camera.deep3d(64), vertices)
    for backend in ("numba", "torch"):
        ids = rasterize(clip, faces, (64, 64), backend)[0]
        rows = (ids >= 0).any(1)
        assert ids.max() <= 1
        assert (ids[rows][:, (ids >= 0).any(0)] >= 0).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_faces_behind_the_camera_empty_meshes_and_nan_draw_nothing(sphere, backend):
    vertices, topology = sphere(6, 8)
    clip = clip_coordinates(Camera.deep3d(32), vertices + torch.tensor([0.0, 0.0, 30.0]))
    assert (rasterize(clip, topology.faces, (32, 32), backend) == -1).all()
    assert (rasterize(clip, topology.faces[:0], (32, 32), backend) == -1).all()
    clip = clip_coordinates(Camera.deep3d(32), vertices.clone().fill_(torch.nan))
    assert (rasterize(clip, topology.faces, (32, 32), backend) == -1).all()


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_slanted_wall_is_cut_where_it_crosses_the_near_and_the_far_plane(backend):
    """Depth is 10 - 4 x, so x = 0.25 lies 9 and x = -1.25 lies 15 away: at column 4 + 36.25 x / depth."""
    corners = torch.tensor([[-8.0, -20.0, -32.0], [2.0, -20.0, 8.0], [2.0, 20.0, 8.0], [-8.0, 20.0, -32.0]])
    camera, faces = Camera.deep3d(8), torch.tensor([[0, 1, 2], [0, 2, 3]])
    for near, far, first, last in ((9.0, 15.0, 1, 4), (4.0, 15.0, 1, 7), (9.0, 30.0, 0, 4), (9.4, 10.5, 4, 4)):
        clip = clip_coordinates(camera.replace(near=near, far=far), corners[None])
        ends = [4 + 36.25 * x / depth for x, depth in (((10 - d) / 4, d) for d in (far, near))]
        assert [c for c in range(8) if ends[0] <= c + 0.5 <= ends[1]] == list(range(first, last + 1))
        drawn = rasterize(clip, faces, (8, 8), backend)[0] >= 0
        assert drawn.any(0).tolist() == drawn.all(0).tolist() == [first <= column <= last for column in range(8)]


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_what_lies_behind_shows_where_a_triangle_is_cut(backend):
    """z / w = 2 x / w of the first, whatever the w of its corners: within -1 to 1 in columns 2 to 5. The second is even
    behind it. A third with a corner at or behind the camera is not drawn, though it would be nearest."""
    w = torch.tensor([1.0, 3.0, 0.5])
    points = torch.tensor([[-1.0, -1.0], [3.0, -1.0], [-1.0, 3.0]])
    first = torch.cat([points, 2 * points[:, :1], torch.ones(3, 1)], 1) * w[:, None]
    second = torch.cat([points, torch.full((3, 1), 0.95), torch.ones(3, 1)], 1)
    third = torch.cat([points, torch.full((3, 1), -0.9), torch.ones(3, 1)], 1)
    for behind in (0.0, -1.0):
        third[0, 3] = behind
        clip = torch.cat([first, second, third])[None]
        ids = rasterize(clip, torch.arange(9).view(3, 3), (8, 8), backend, cull=False)[0]
        assert ids.tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]] * 8


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_huge_triangles_are_cut_to_the_image(backend):
    clip = torch.tensor([[[-4e6, -4e6, 0, 1.0], [8e6, -4e6, 0, 1.0], [-4e6, 8e6, 0, 1.0]]])
    assert (rasterize(clip, torch.tensor([[0, 1, 2]]), (16, 16), backend) == 0).all()


def test_backend_choice(monkeypatch):
    assert choose_backend("auto", "cpu") == "numba"
    assert choose_backend("auto", "cuda") == "torch"
    monkeypatch.setenv(ENVIRONMENT, "torch")
    assert choose_backend("auto", "cpu") == "torch"
    assert choose_backend("numba", "cpu") == "numba"
    with pytest.raises(ConfigError, match=r"unknown rasterizer backend 'numbra'; did you mean 'numba'\?"):
        choose_backend("numbra")
    with pytest.raises(ConfigError, match="CPU tensors"):
        choose_backend("numba", "cuda")
    monkeypatch.setenv(ENVIRONMENT, "tourch")
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        choose_backend("auto")


def test_wrong_shape_says_what_to_do():
    with pytest.raises(ShapeError, match=r"clip must be \(B, V, 4\); got \(5, 4\).*clip\[None\]"):
        rasterize(torch.zeros(5, 4), torch.zeros(1, 3, dtype=torch.int64), (8, 8))


class _Renderings(Dataset):
    def __init__(self, clip, faces):
        self.clip, self.faces = clip, faces

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)  # a worker starts with one thread; two make it use the pool
        return rasterize(self.clip, self.faces, (64, 64), "numba")[0]


def test_forked_workers_and_concurrent_threads_can_rasterize(sphere):
    vertices, topology = sphere(12, 16)
    clip = clip_coordinates(Camera.deep3d(64), turned(vertices, 0.2, 0.5, 0.1))
    expected = rasterize(clip, topology.faces, (64, 64), "numba")[0]  # starts the pool before the fork
    loader = DataLoader(
        _Renderings(clip, topology.faces),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context("fork"),
        timeout=60,
    )
    assert all(torch.equal(ids, expected) for ids in loader)
    results = []

    def work():
        results.extend(rasterize(clip, topology.faces, (64, 64), "numba")[0] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 80
    assert all(torch.equal(ids, expected) for ids in results)


def test_the_nvdiffrast_adapter_follows_its_documented_interface(sphere, monkeypatch):
    """Against a stand-in: ids count from 1, rows from the bottom, both sides are drawn, z / w is -1 at the near plane.

    The package itself needs CUDA and has not been run.
    """
    import sys
    import types

    from facerecon.render.backends import nvdiffrast_raster, torch_scatter

    def stand_in(context, points, triangles, resolution, grad_db=True):
        assert context == "context"
        assert points.dtype == torch.float32
        assert triangles.dtype == torch.int32
        height, width = resolution
        x, y, z, w = points.double().unbind(-1)
        screen = torch.stack([(x / w + 1) * width / 2, (1 - y / w) * height / 2, 0.5 - 0.5 * z / w, w], -1)
        ids = torch_scatter.face_ids(screen, triangles.long(), (height, width), cull=False)
        out = torch.zeros(*ids.shape, 4)
        out[..., 3] = (ids + 1).flip(1)
        return out, None

    module = types.ModuleType("nvdiffrast.torch")
    module.rasterize, module.RasterizeCudaContext = stand_in, lambda device: "context"
    package = types.ModuleType("nvdiffrast")
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    monkeypatch.setattr(nvdiffrast_raster, "_contexts", {})
    vertices, topology = sphere(20, 30)
    clip = clip_coordinates(Camera.deep3d(64, 2), torch.cat([vertices, vertices * 0.5 + 0.1]))
    for cull in (True, False):
        expected = rasterize(clip, topology.faces, (48, 64), "torch", cull)
        found = nvdiffrast_raster.face_ids(to_screen(clip, (48, 64)), topology.faces, (48, 64), cull)
        assert (found == expected).float().mean() > 0.999
    away = nvdiffrast_raster.face_ids(to_screen(clip, (48, 64)) - 1e4, topology.faces, (48, 64), True)
    assert (away == -1).all()
    with pytest.raises(ConfigError, match="needs CUDA tensors"):
        rasterize(clip, topology.faces, (48, 64), "nvdiffrast")
