"""Two-class segmentation by color: mixtures of Gaussians fitted to samples, smoothed by a random walk.

Plain numpy on small images (a face about 130 px tall), so that a photo costs a fraction of a second on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["GaussianMixture", "fit_mixture", "random_walk"]


@dataclass(frozen=True)
class GaussianMixture:
    """A density of D features.

    Args:
        weights: (K,), sum 1.
        means: (K, D).
        precisions: (K, D, D), inverse covariances.
    """

    weights: np.ndarray
    means: np.ndarray
    precisions: np.ndarray

    def squared_distances(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (K, N): squared Mahalanobis distances from the components."""
        found = []
        for mean, precision in zip(self.means, self.precisions, strict=True):
            whitened = (x - mean) @ np.linalg.cholesky(precision)
            found.append(np.einsum("nd,nd->n", whitened, whitened))
        return np.stack(found)

    def log_parts(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (K, N): log of each weighted Gaussian."""
        constant = np.linalg.slogdet(self.precisions)[1] - x.shape[1] * np.log(2 * np.pi)
        return (np.log(self.weights + 1e-12) + 0.5 * constant)[:, None] - 0.5 * self.squared_distances(x)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,)."""
        return _log_sum(self.log_parts(x))


def _log_sum(parts: np.ndarray) -> np.ndarray:
    """(K, N) -> (N,): log of the sum of exponentials."""
    top = parts.max(0)
    return top + np.log(np.exp(parts - top).sum(0))


def fit_mixture(x: np.ndarray, components: int, floor: np.ndarray, rounds: int = 8) -> GaussianMixture:
    """Maximum-likelihood mixture (EM), started from slices along the direction of most variance; deterministic.

    Args:
        x: (N, D) samples.
        components: K; fewer are used where there are under 20 samples for each.
        floor: (D,) added to the diagonal of every covariance.
        rounds: of EM.
    """
    x = x.astype(np.float64)
    components = int(np.clip(len(x) // 20, 1, components))
    _, vectors = np.linalg.eigh(np.cov(x.T) + np.diag(floor))
    order = np.argsort((x - x.mean(0)) @ vectors[:, -1], kind="stable")
    share = np.zeros((components, len(x)))
    for k, part in enumerate(np.array_split(order, components)):
        share[k, part] = 1
    mixture = _maximized(x, share, floor)
    for _ in range(rounds if components > 1 else 0):
        parts = mixture.log_parts(x)
        mixture = _maximized(x, np.exp(parts - _log_sum(parts)), floor)
    return mixture


def _maximized(x: np.ndarray, share: np.ndarray, floor: np.ndarray) -> GaussianMixture:
    """The mixture of samples (N, D) that belong to components by shares (K, N)."""
    total = share.sum(1) + 1e-9
    means = (share @ x) / total[:, None]
    covariances = [((x - m) * s[:, None]).T @ (x - m) / t for m, s, t in zip(means, share, total, strict=True)]
    return GaussianMixture(total / total.sum(), means, np.linalg.inv(np.stack(covariances) + np.diag(floor)))


def random_walk(
    target: np.ndarray, confidence: np.ndarray, right: np.ndarray, down: np.ndarray, tolerance: float = 1e-3
) -> np.ndarray:
    """Smooth a soft label along edges of an image (random walker with priors, Grady 2005).

    Minimizes ``sum c (x - t)^2 + sum_right w (x - x_right)^2 + sum_down w (x - x_down)^2`` by conjugate gradients.

    Args:
        target: (H, W) t.
        confidence: (H, W) c > 0.
        right: (H, W - 1) and down: (H - 1, W) weights of neighbors, > 0.
        tolerance: residual at which to stop, relative to the right-hand side.

    Returns:
        (H, W) x; between the least and the greatest t, up to the tolerance.
    """
    confidence, right, down = (np.asarray(a, np.float32) for a in (confidence, right, down))
    diagonal = confidence.copy()
    diagonal[:, :-1] += right
    diagonal[:, 1:] += right
    diagonal[:-1] += down
    diagonal[1:] += down

    def apply(x: np.ndarray) -> np.ndarray:
        y = diagonal * x
        y[:, :-1] -= right * x[:, 1:]
        y[:, 1:] -= right * x[:, :-1]
        y[:-1] -= down * x[1:]
        y[1:] -= down * x[:-1]
        return y

    x = target.astype(np.float32)
    goal = confidence * x
    residual = goal - apply(x)
    scaled = residual / diagonal
    direction = scaled.copy()
    product = float((residual * scaled).sum(dtype=np.float64))
    stop = tolerance * float(np.sqrt((goal.astype(np.float64) ** 2).sum()))
    for _ in range(500):
        if product <= 0 or float(np.sqrt((residual.astype(np.float64) ** 2).sum())) <= stop:
            break
        moved = apply(direction)
        step = product / max(float((direction * moved).sum(dtype=np.float64)), 1e-30)
        x += np.float32(step) * direction
        residual -= np.float32(step) * moved
        scaled = residual / diagonal
        previous, product = product, float((residual * scaled).sum(dtype=np.float64))
        direction = scaled + np.float32(product / previous) * direction
    return x
