"""Losses against closed forms and hand-computed values."""

import math

import pytest
import torch

from facerecon import losses
from facerecon.errors import ConfigError, InputError, ShapeError
from facerecon.geometry.rotation import euler_to_matrix
from facerecon.morphable import load_face_model


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


def test_nme_is_relative_to_the_outer_eye_corners() -> None:
    target = torch.zeros(1, 68, 2)
    target[0, 45, 0] = 50.0
    assert losses.normalized_mean_error(target + torch.tensor([1.0, 0.0]), target).item() == pytest.approx(0.02)


def test_radius_loss_vanishes_on_the_sphere_only() -> None:
    codes = torch.randn(3, 1, 512)
    codes = codes * (math.sqrt(512) / codes.norm(dim=-1, keepdim=True))
    assert losses.radius_loss(codes).max() < 1e-10
    assert losses.radius_loss(2 * codes)[0].item() == pytest.approx(9.0, rel=1e-5)


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


def test_face_features_is_zero_on_itself_and_grows_with_change() -> None:
    def features(image, landmarks):
        return [
            image,
            image.mean(1, keepdim=True).expand(-1, 2, -1, -1) + torch.tensor([0.0, 1.0])[:, None, None],
        ]

    torch.manual_seed(0)
    distance = losses.FaceFeatureDistance(features)
    photo = torch.rand(2, 3, 8, 8)
    prepared = distance.prepare(photo, torch.zeros(2, 68, 2))
    assert distance(photo, prepared).abs().max() < 1e-6
    near, far = photo + 0.02 * torch.randn_like(photo), photo + 0.3 * torch.randn_like(photo)
    assert (distance(near, prepared) < distance(far, prepared)).all()


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


def test_landmarks_that_turn_away_count_less(asset) -> None:
    """A frontal head: all count. A turned one: the far side less than the near one, as its mirror image would."""
    asset("makehuman")
    model = load_face_model(num_identity=1)
    points = model.landmarks3d(model.mean[None])[0]
    turns = torch.deg2rad(torch.tensor([[0.0, 0, 0], [0, 40, 0], [0, -40, 0], [0, 0, 20], [30, 0, 0]]))
    weights = losses.facing_weights(points, turns)
    assert torch.allclose(weights[0], torch.ones(68))
    assert torch.equal(weights[:, :17], torch.ones(5, 17))
    left, right = [36, 41, 48, 60, 31], [45, 46, 54, 64, 35]
    assert (weights[1, left] - weights[1, right]).abs().min() > 0.2
    away = weights[1].argsort()[:10]
    turned = points @ euler_to_matrix(turns[1:2])[0].mT
    assert (turned[away, 0].sign() == turned[away[0], 0].sign()).all()  # all on one side, the one that is further
    assert turned[away, 2].mean() < turned[17:, 2].mean()
    assert torch.allclose(weights[1, left], weights[2, right], atol=0.02)
    assert torch.allclose(weights[3], weights[0], atol=1e-5)  # turned in the picture: seen as well as before
    assert weights.min() >= 0.05 and weights.max() <= 1
    assert losses.facing_weights(points, turns[1:2] * 2.2).min() == pytest.approx(0.05)
