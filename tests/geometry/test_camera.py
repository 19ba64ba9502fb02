import torch

from facerecon.geometry.camera import camera_in_photo, clip_coordinates, project, scale_camera
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.types import Camera


def odd_camera() -> Camera:
    """Everything at once: rotation, two focal lengths, shear, an oblong image."""
    return Camera(
        focal=torch.tensor([[400.0, 420.0], [300.0, 310.0]]),
        center=torch.tensor([[110.0, 90.0], [160.0, 120.0]]),
        rotation=torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ euler_to_matrix(torch.randn(2, 3) * 0.2),
        translation=torch.tensor([[0.1, -0.2, 9.0], [0.3, 0.0, 11.0]]),
        warp=torch.tensor([[1.1, 0.05, 3.0], [-0.02, 0.9, -4.0]]).expand(2, 2, 3),
        size=(240, 320),
    )


def test_deep3d_literals():
    camera = Camera.deep3d(224)
    points = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, -0.5, -1]]], dtype=torch.float32)
    expected = [
        [112, 112, 10],
        [112 + 101.5, 112, 10],
        [112, 112 - 101.5, 10],  # world y is up, pixel y is down
        [112, 112, 9],  # towards the camera
        [112 + 507.5 / 11, 112 + 507.5 / 11, 11],
    ]
    torch.testing.assert_close(project(camera, points)[0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_another_size_is_the_same_view_scaled():
    points = torch.randn(1, 20, 3)
    small, large = (project(Camera.deep3d(size), points) for size in (224, 512))
    torch.testing.assert_close(small[..., :2] * 512 / 224, large[..., :2], atol=1e-3, rtol=0)
    scaled = scale_camera(Camera.deep3d(224), (512, 512))
    torch.testing.assert_close(project(scaled, points), large, atol=1e-3, rtol=0)


def test_clip_coordinates_are_the_projection_in_other_units():
    torch.manual_seed(0)
    camera, points = odd_camera(), torch.randn(2, 50, 3)
    pixels, clip = project(camera, points), clip_coordinates(camera, points)
    height, width = camera.size
    torch.testing.assert_close((clip[..., 0] / clip[..., 3] + 1) / 2 * width, pixels[..., 0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close((1 - clip[..., 1] / clip[..., 3]) / 2 * height, pixels[..., 1], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(clip[..., 3], pixels[..., 2])


def test_near_and_far_map_to_minus_one_and_one():
    camera = Camera.deep3d(224)
    points = torch.tensor([[[0.3, 0.2, 10 - camera.near], [0.3, 0.2, 10 - camera.far]]])
    clip = clip_coordinates(camera, points)[0]
    torch.testing.assert_close(clip[:, 2] / clip[:, 3], torch.tensor([-1.0, 1.0]), atol=1e-6, rtol=0)


def test_camera_in_photo_equals_mapping_the_crop_projection():
    torch.manual_seed(1)
    camera, points = odd_camera(), torch.randn(2, 30, 3)
    to_photo = torch.tensor([[[2.5, 0.3, 100.0], [-0.3, 2.5, 50.0]], [[1.5, 0.0, -10.0], [0.0, 1.5, 20.0]]])
    in_photo = camera_in_photo(camera, to_photo, (1000, 1500))
    pixels = project(camera, points)
    expected = pixels[..., :2] @ to_photo[:, :, :2].mT + to_photo[:, None, :, 2]
    actual = project(in_photo, points)
    torch.testing.assert_close(actual[..., :2], expected, atol=2e-3, rtol=1e-5)
    torch.testing.assert_close(actual[..., 2], pixels[..., 2])
    assert in_photo.size == (1000, 1500)


def test_one_camera_serves_many_heads_and_one_head_many_cameras():
    points = torch.randn(3, 10, 3)
    together = project(Camera.deep3d(224), points)
    for b in range(3):
        torch.testing.assert_close(project(Camera.deep3d(224), points[b : b + 1])[0], together[b], atol=1e-3, rtol=1e-5)
    assert project(Camera.deep3d(224, batch=4), points[:1]).shape == (4, 10, 3)


def test_gradients_reach_every_parameter():
    camera = odd_camera().to(torch.float64)
    points = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    leaves = [
        t.detach().clone().requires_grad_() for t in (camera.focal, camera.rotation, camera.translation, camera.warp)
    ]

    def run(points, focal, rotation, translation, warp):
        moved = camera.replace(focal=focal, rotation=rotation, translation=translation, warp=warp)
        return project(moved, points), clip_coordinates(moved, points)

    assert torch.autograd.gradcheck(run, (points, *leaves))
