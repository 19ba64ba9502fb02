"""Identity and judge: same and different people, invariance, and a gradient that finite differences confirm."""

import copy

import pytest
import torch
import torch.nn.functional as F

from facerecon.configs.compose import compose
from facerecon.errors import ConfigError, ShapeError
from facerecon.fit.models import check_pack
from facerecon.perception import load_eval_identity, load_identity, observe
from facerecon.perception.identity import EVAL_IDENTITIES, IDENTITIES, identity_box, landmark_box


@pytest.fixture(scope="module")
def people(reference, observed):
    """One man (two croppings) and four pictures of one woman, observed."""
    folder = reference / "ffhq_uv"
    return {
        "man": observed["fitting_000007"],
        "man in the photo": observe(folder / "fitting_000007.jpg"),
        **{view: observed[view] for view in ("front", "left", "right")},
        "woman in the photo": observe(folder / "01223_photo.jpg"),
    }


def test_identity_tells_people_apart(people) -> None:
    vectors = {name: seen.identity[0] for name, seen in people.items()}
    apart = {(a, b): (vectors[a] - vectors[b]).norm().item() for a in vectors for b in vectors if a < b}
    same = {pair: d for pair, d in apart.items() if pair[0].startswith("man") == pair[1].startswith("man")}
    different = {pair: d for pair, d in apart.items() if pair not in same}
    assert load_identity().metric == "euclidean"
    assert max(same.values()) < 0.55, same
    assert min(different.values()) > 0.7, different


def test_the_judge_tells_people_apart(people) -> None:
    vectors = torch.cat([seen.eval_identity for seen in people.values()])
    names = list(people)
    cosines = vectors @ vectors.T
    women = [i for i, name in enumerate(names) if not name.startswith("man")]
    men = [i for i in range(len(names)) if i not in women]
    same = min(cosines[women][:, women].min(), cosines[men][:, men].min())
    assert load_eval_identity().metric == "cosine"
    assert same > 0.6
    assert cosines[women][:, men].max() < same


def test_embeddings_do_not_depend_on_the_photos_size(seen, photo) -> None:
    double = observe(F.interpolate(photo[None], scale_factor=2, mode="bicubic").clamp(0, 1))
    assert (double.identity - seen.identity).norm() < 0.1
    assert F.cosine_similarity(double.eval_identity, seen.eval_identity).item() > 0.98


def test_gradient_of_identity_agrees_with_finite_differences(seen) -> None:
    net = copy.deepcopy(load_identity()).double()
    image = F.interpolate(seen.fit.image, (96, 96), mode="area").double().requires_grad_()
    landmarks = seen.landmarks68.double() * (96 / 224)
    direction = torch.randn(1, 128, dtype=torch.float64)
    value = (net(image, landmarks) * direction).sum()
    (gradient,) = torch.autograd.grad(value, image)
    assert gradient.abs().max() > 1e-3
    for _ in range(3):
        step = torch.randn_like(image)
        with torch.no_grad():
            ahead, behind = ((net(image + s * 1e-8 * step, landmarks) * direction).sum() for s in (1, -1))
        expected = (ahead - behind).item() / 2e-8  # so small that no ReLU switches
        assert (gradient * step).sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_features_reach_the_image_and_agree_with_one_pass(seen) -> None:
    net = load_identity()
    image = seen.fit.image.clone().requires_grad_()
    features = net.features(image, seen.landmarks68)
    together, embedding = net.embed_with_features(image, seen.landmarks68)
    torch.testing.assert_close(embedding, net(image, seen.landmarks68), atol=1e-4, rtol=1e-4)
    for a, b in zip(features, together, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        (gradient,) = torch.autograd.grad(a.square().mean(), image, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert [f.shape[1] for f in features] == [32, 64, 128]


def test_identity_runs_in_bfloat16_and_channels_last(seen) -> None:
    net = copy.deepcopy(load_identity()).to(torch.bfloat16)
    image = seen.fit.image.bfloat16().to(memory_format=torch.channels_last)
    found = net(image, seen.landmarks68)
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), seen.identity).item() > 0.995


def test_boxes_follow_the_points() -> None:
    points = torch.rand(3, 68, 2) * 100
    shift = torch.tensor([7.0, -3.0])
    for box in (identity_box, landmark_box):
        moved = box(points * 2 + shift)
        torch.testing.assert_close(moved, box(points) * 2 + shift.repeat(2), atol=1e-3, rtol=1e-4)
    square = identity_box(points)
    torch.testing.assert_close(square[:, 2] - square[:, 0], square[:, 3] - square[:, 1], atol=1e-3, rtol=1e-4)


def test_landmarks_must_match_the_batch(seen) -> None:
    with pytest.raises(ShapeError, match="landmarks"):
        load_identity()(seen.fit.image.expand(2, -1, -1, -1), seen.landmarks68)


@pytest.mark.parametrize("override", ["identity=faceres1024", "pack.eval_identity=sface", "pack.eval_identity=new"])
def test_what_judges_is_never_optimized(override: str) -> None:
    assert not set(IDENTITIES) & set(EVAL_IDENTITIES)
    with pytest.raises(ConfigError, match=r"optimized and .* judges"):
        check_pack(compose("reconstruct", ["img=a.jpg", override]))
    with pytest.raises(ConfigError, match="faceres1024"):
        load_identity("faceres1024")
    check_pack(compose("reconstruct", ["img=a.jpg", "identity=sface"]))
