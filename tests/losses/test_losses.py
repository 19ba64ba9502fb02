"""Losses against closed forms and hand-computed values."""

import math

import pytest
import torch

from facerecon import losses
from facerecon.errors import ConfigError, InputError, ShapeError


def test_pixel_loss_l1_is_the_release_formula() -> None:
    image, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    image[0, :, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 0, :2] = 1
    value = losses.pixel_loss(image, target, mask, "l1")
    # (0.1 + 0.2 + 0.3) summed over channels, over two masked pixels: 3 x a mean
    assert torch.allclose(value, torch.tensor([0.3, 0.0]))


def test_pixel_loss_l2_is_the_mean_euclidean_distance() -> None:
    image = torch.full((1, 3, 2, 2), 0.5)
    target = torch.full((1, 3, 2, 2), 0.2)
    assert losses.pixel_loss(image, target, norm="l2").item() == pytest.approx(0.3 * math.sqrt(3), abs=2e-4)
    assert losses.pixel_loss(target, target, norm="l2").item() == pytest.approx(0.0, abs=1e-6)


def test_silhouette_loss_counts_the_area_that_one_of_the_two_has() -> None:
    face, mask = torch.zeros(2, 1, 10, 10), torch.zeros(2, 1, 10, 10)
    face[..., :5] = 1  # 50 px
    mask[0, ..., 1:6] = 1  # 10 px missed, 10 px too many
    mask[1, ..., :4] = 1
    mask[1, ..., 4] = 0.25  # 7.5 px missed
    weight = torch.ones_like(face)
    assert torch.allclose(losses.silhouette_loss(mask, face, weight), torch.tensor([20 / 50, 7.5 / 50]))
    weight[..., 5:] = 0
    assert torch.allclose(losses.silhouette_loss(mask, face, weight), torch.tensor([10 / 50, 7.5 / 50]))
    assert torch.equal(losses.silhouette_loss(mask, 0 * face, 0 * weight), torch.zeros(2))
    with pytest.raises(ShapeError):
        losses.silhouette_loss(mask, face[:1], weight)


def test_pixel_loss_ignores_what_is_outside_the_mask() -> None:
    torch.manual_seed(0)
    image, target = torch.rand(1, 3, 8, 8, requires_grad=True), torch.rand(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    losses.pixel_loss(image, target, mask, "l1").sum().backward()
    assert image.grad[..., 4:].abs().max() == 0
    assert image.grad[..., :4].abs().min() > 0


def test_an_empty_mask_gives_zero_and_a_finite_gradient() -> None:
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    value = losses.pixel_loss(image, torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))
    value.sum().backward()
    assert value.item() == 0
    assert torch.isfinite(image.grad).all()


def test_composite_keeps_the_photo_outside_and_detaches_the_mask() -> None:
    render, photo = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 0.25], [0.0, 0.0]]]], requires_grad=True)
    image = losses.composite(render.requires_grad_(), mask, photo)
    assert image[0, 0].tolist() == [[1.0, 0.25], [0.0, 0.0]]
    image.sum().backward()
    assert mask.grad is None


def test_landmark_weights_are_the_releases() -> None:
    weights = losses.landmark_weights("release")
    assert weights[[28, 29, 30, *range(60, 68)]].tolist() == [20.0] * 11
    assert weights.sum() == 20 * 11 + 57
    points = torch.zeros(1, 68, 2)
    target = points.clone()
    target[0, 30] = torch.tensor([3.0, 4.0])
    assert losses.landmark_loss(points, target, weights).item() == pytest.approx(20 * 25 / 68)


def test_nme_is_relative_to_the_outer_eye_corners_of_the_truth() -> None:
    target = torch.zeros(2, 68, 2)
    target[:, 45] = torch.tensor([30.0, 40.0])  # 50 px from point 36
    target[1, 45] *= 2
    points = target + torch.tensor([3.0, -4.0])  # each 5 px off
    points[:, 45] = target[:, 45] * 2 + torch.tensor([3.0, -4.0])  # its own eye corners are 100 and 200 px apart
    off = torch.tensor([(67 * 5 + math.hypot(33, 36)) / 68 / 50, (67 * 5 + math.hypot(63, 76)) / 68 / 100])
    torch.testing.assert_close(losses.normalized_mean_error(points, target), off)


def test_radius_loss_is_of_each_row_of_a_code() -> None:
    # |row|^2 / 2 is 1, 4 and 0, 2: off the sphere by 0 and 3, by 1 and 1. The squares of all rows together would be
    # 2.5 and 1
    codes = torch.tensor([[[1.0, 1.0], [2.0, -2.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert losses.radius_loss(codes).tolist() == [4.5, 1.0]
    assert losses.radius_loss(codes[:, :1]).tolist() == [0.0, 1.0]


def test_geocross_of_two_orthogonal_rows() -> None:
    codes = torch.zeros(1, 2, 512)
    codes[0, 0, 0] = codes[0, 1, 1] = 22.0
    # angles 0, 90, 90, 0 degrees; a quarter of the pairs each: 512 * mean(angle^2) / 8
    expected = 512 * (2 * (math.pi / 2) ** 2 / 4) / 8
    assert losses.geocross_loss(codes).item() == pytest.approx(expected, rel=1e-4)
    assert losses.geocross_loss(codes[:, :1]).item() == 0


def test_gaussian_loss_of_shared_and_opposite_rows() -> None:
    shared = torch.full((1, 4, 8), 2.0)
    assert losses.gaussian_loss(shared).item() == pytest.approx(4.0)
    assert losses.gaussian_loss(shared[:, :1]).item() == pytest.approx(4.0)
    opposite = torch.tensor([1.0, -1.0]).view(1, 2, 1).expand(1, 2, 8)
    assert losses.gaussian_loss(opposite, spread=0.5).item() == pytest.approx(4.0)


def test_light_color_loss_is_zero_for_white_light() -> None:
    light = torch.randn(2, 9, 1).expand(2, 9, 3)
    assert losses.light_color_loss(light).abs().max() < 1e-12
    colored = torch.zeros(1, 9, 3)
    colored[0, 0] = torch.tensor([1.0, 0.0, -1.0])
    assert losses.light_color_loss(colored).item() == pytest.approx(2 / 27)


def test_identity_loss_follows_the_networks_metric() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert losses.identity_loss(a, b, "cosine").item() == pytest.approx(1.0)
    assert losses.identity_loss(a, b, "euclidean").item() == pytest.approx(5.0)
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        losses.identity_loss(a, b, "cosin")


def test_face_features_are_averaged_over_pixels_and_summed_over_layers() -> None:
    seen = []

    def features(image, landmarks):  # the image, and its left column
        seen.append(landmarks)
        return [image, image[..., :1]]

    distance = losses.FaceFeatureDistance(features)
    photo = torch.tensor([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0]]).view(1, 2, 1, 3)  # 2 channels, 3 px
    image = torch.tensor([[4.0, 0.0, 7.0], [-3.0, 5.0, 0.0]]).view(1, 2, 1, 3)
    prepared = distance.prepare(photo, torch.full((1, 68, 2), 7.0))
    # (3, 4) / 5 and (4, -3) / 5 are orthogonal, squared distance 2; at the other two pixels only lengths differ
    assert distance(torch.cat([image, photo]), prepared).tolist() == pytest.approx([2 / 3 + 2, 0], abs=1e-6)
    assert distance.distance([image], prepared).item() == pytest.approx(2 / 3)
    assert all(bool((landmarks == 7).all()) for landmarks in seen) and len(seen) == 2  # the photo's, for both sides


def test_unknown_perceptual_loss_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lpips_vgg'"):
        losses.load_perceptual("lpips_vg")


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="Add a batch axis"):
        losses.pixel_loss(torch.rand(3, 4, 4), torch.rand(3, 4, 4))


def test_smoothness_is_zero_on_an_even_track_and_known_on_a_parabola() -> None:
    t = torch.arange(6, dtype=torch.float64)
    even = torch.stack([3 * t - 1, -t], 1)
    assert losses.smoothness_loss(even).abs().max() < 1e-24
    bent = torch.stack([0.5 * t**2, 2 * t**2], 1)  # second differences 1 and 4
    expected = torch.tensor([0.0, 17, 17, 17, 17, 0], dtype=torch.float64)
    assert torch.allclose(losses.smoothness_loss(bent), expected)
    assert torch.equal(losses.smoothness_loss(bent[:2]), torch.zeros(2, dtype=torch.float64))
    # uneven moments: the same second derivative wherever they lie, whatever the unit
    uneven = torch.tensor([0.0, 1, 3, 4, 4.5, 6], dtype=torch.float64)
    curve = (0.5 * uneven**2)[:, None, None]
    step = uneven.diff().mean()
    for unit in (1.0, 40.0):
        found = losses.smoothness_loss(curve, uneven * unit)
        assert torch.allclose(found[1:-1], (step**4).expand(4))
        assert found[0] == found[-1] == 0
    with pytest.raises(InputError, match="increase"):
        losses.smoothness_loss(bent, torch.tensor([0.0, 1, 1, 2, 3, 4]))
    with pytest.raises(ShapeError):
        losses.smoothness_loss(bent, t[:3])


def test_landmarks_that_turn_away_count_less() -> None:
    """cos^2 of the angle to the camera over that of a frontal head, around the axis of the jaw, in [0.05, 1]."""
    points = torch.zeros(68, 3)
    points[:17] = torch.tensor([3.0, 2.0, -1.0])  # the axis is at its depth, and nowhere else
    points[17:20] = torch.tensor([[-1.0, 5.0, 0.0], [0.0, -7.0, 3.0], [1.0, 0.0, 0.0]])  # 45 degrees, 0, 45
    points[20] = torch.tensor([1.0, 0.0, -0.99])  # seen from the side: 90 degrees
    points[21:] = torch.tensor([0.0, 0.0, 1.0])
    turns = torch.deg2rad(torch.tensor([[0.0, 0, 0], [0, 30, 0], [0, -30, 0], [0, 80, 0], [60, 0, 0], [0, 0, 50]]))
    weights = losses.facing_weights(points, turns)
    near, far = 1.0, (math.cos(math.radians(75)) / math.cos(math.radians(45))) ** 2
    expected = [[1, 1, 1, 0.05], [near, 0.75, far, 0.05], [far, 0.75, near, 1]]  # of the last, the cosine is cut at 0.2
    assert torch.equal(weights[:, :17], torch.ones(6, 17))
    torch.testing.assert_close(weights[:3, 17:21], torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert weights[3, 18:20].tolist() == pytest.approx([0.05, 0.05])
    assert weights[4, 17:20].tolist() == pytest.approx([0.25, 0.25, 0.25], abs=1e-6)  # nodding
    assert weights[5, 17:20].tolist() == pytest.approx([1, 1, 1], abs=1e-6)  # turned in the picture: seen as well
    assert losses.facing_weights(points, turns[3:4], least=0.2)[0, 18].item() == pytest.approx(0.2)
