"""Mixtures of Gaussians against scipy and known clusters; the random walk against a dense linear solve."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from facerecon.perception.segmentation import GaussianMixture, fit_mixture, random_walk


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_log_density_is_that_of_scipy(random) -> None:
    weights, means = np.array([0.2, 0.5, 0.3]), random.normal(size=(3, 4)) * 3
    roots = random.normal(size=(3, 4, 4))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(4)
    x = random.normal(size=(50, 4)) * 4
    mixture = GaussianMixture(weights, means, np.linalg.inv(covariances))
    parts = [np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in zip(weights, means, covariances)]
    np.testing.assert_allclose(mixture.log_parts(x), parts, atol=1e-8)
    np.testing.assert_allclose(mixture.log_density(x), logsumexp(parts, axis=0), atol=1e-8)


def test_one_component_is_the_sample_mean_and_covariance(random) -> None:
    x, floor = random.normal(size=(300, 3)) @ random.normal(size=(3, 3)), np.array([0.1, 0.2, 0.3])
    mixture = fit_mixture(x, 1, floor)
    np.testing.assert_allclose(mixture.means[0], x.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.linalg.inv(mixture.precisions[0]), np.cov(x.T, bias=True) + np.diag(floor), atol=1e-6)


def test_separate_clusters_are_found(random) -> None:
    centers, counts = np.array([[0.0, 0.0], [10.0, 2.0], [4.0, 9.0]]), (400, 200, 200)
    x = np.concatenate([random.normal(size=(n, 2)) + c for n, c in zip(counts, centers)])
    mixture = fit_mixture(random.permutation(x), 3, np.full(2, 1e-3), rounds=40)
    order = [np.linalg.norm(mixture.means - c, axis=1).argmin() for c in centers]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(mixture.means[order], centers, atol=0.25)
    np.testing.assert_allclose(mixture.weights[order], np.array(counts) / 800, atol=0.02)


def test_every_round_of_em_makes_the_samples_likelier(random) -> None:
    x = random.exponential(size=(500, 3)) ** 1.5
    likelihoods = [fit_mixture(x, 3, np.full(3, 1e-9), rounds=n).log_density(x).mean() for n in range(8)]
    assert all(b >= a - 1e-9 for a, b in pairwise(likelihoods))
    assert likelihoods[-1] > likelihoods[0] + 0.01


def test_few_samples_get_few_components(random) -> None:
    assert len(fit_mixture(random.normal(size=(45, 2)), 3, np.ones(2)).weights) == 2
    assert len(fit_mixture(random.normal(size=(5, 2)), 3, np.ones(2)).weights) == 1


def test_random_walk_solves_its_linear_system(random) -> None:
    shape = (6, 7)
    target, confidence = random.random(shape), random.random(shape) + 0.05
    right, down = random.random((6, 6)), random.random((5, 7))
    index = np.arange(42).reshape(shape)
    matrix = np.diag(confidence.ravel())
    for weights, a, b in ((right, index[:, :-1], index[:, 1:]), (down, index[:-1], index[1:])):
        for w, i, j in zip(weights.ravel(), a.ravel(), b.ravel()):
            matrix[i, i] += w
            matrix[j, j] += w
            matrix[i, j] -= w
            matrix[j, i] -= w
    expected = np.linalg.solve(matrix, (confidence * target).ravel()).reshape(shape)
    np.testing.assert_allclose(random_walk(target, confidence, right, down, 1e-7), expected, atol=1e-5)


def test_labels_spread_up_to_an_edge_and_not_across_it() -> None:
    target = np.full((20, 30), 0.5)
    target[10, 3], target[10, 26] = 1.0, 0.0
    confidence = np.full_like(target, 1e-6)
    confidence[10, [3, 26]] = 10
    right, down = np.ones((20, 29)), np.ones((19, 30))
    right[:, 17] = 1e-6  # the edge, nearer to the second seed
    label = random_walk(target, confidence, right, down, 1e-6)
    assert (label[:, :18] > 0.9).all() and (label[:, 18:] < 0.1).all()
