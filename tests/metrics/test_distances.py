"""Distances between sets of features: closed forms, direct loops, zero, and degradations."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from unclip.metrics import discrepancy, precision_recall
from unclip.metrics.cmmd import cmmd
from unclip.metrics.frechet import frechet_distance, frechet_of_moments, moments
from unclip.metrics.kid import kernel_distance, kernel_distance_of_subsets
from unclip.metrics.precision_recall import precision_recall as compute_precision_recall


def random_covariance(width: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(width, rank or 2 * width, dtype=torch.float64)
    return root @ root.T / root.shape[1]


# FID


def test_frechet_distance_of_gaussians_with_one_covariance_axis():
    """For commuting covariances it is |m_x - m_y|^2 + sum (s_x - s_y)^2."""
    axes = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    s_x, s_y = torch.rand(2, 6, dtype=torch.float64) + 0.1
    mean_x, mean_y = torch.randn(2, 6, dtype=torch.float64)
    cov_x, cov_y = (axes @ torch.diag(s**2) @ axes.T for s in (s_x, s_y))
    expected = (mean_x - mean_y).square().sum() + (s_x - s_y).square().sum()
    assert frechet_of_moments(mean_x, cov_x, mean_y, cov_y) == pytest.approx(float(expected))


def test_frechet_distance_of_samples_nears_that_of_their_gaussians():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.0])
    y = torch.randn(40_000, 4, generator=generator) + torch.tensor([1.0, 0.0, 0.0, -1.0])
    expected = 2.0 + (2 - 1) ** 2 + (0.5 - 1) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=0.02)


def test_frechet_distance_against_the_matrix_square_root_of_scipy(real, others, degraded):
    linalg = pytest.importorskip("scipy.linalg")
    for x, y in ((real, others), (real, degraded)):
        (mean_x, cov_x), (mean_y, cov_y) = (
            (f.double().numpy().mean(axis=0), np.cov(f.double().numpy(), rowvar=False))
            for f in (x, y)
        )
        root = linalg.sqrtm(cov_x @ cov_y).real
        direct = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
        assert frechet_distance(x, y) == pytest.approx(direct, abs=1e-3, rel=1e-3)
        assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), abs=1e-9)


def test_frechet_distance_survives_covariances_without_full_rank():
    """A feature that never changes, or repeats another, must not give complex numbers or NaN."""
    x = torch.randn(200, 8)
    x[:, 1], x[:, 2] = x[:, 0], 3.0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 1) == pytest.approx(8, rel=1e-4)
    zero = torch.zeros(8, dtype=torch.float64)
    thin, wide = random_covariance(8, rank=3), torch.eye(8, dtype=torch.float64)
    expected = thin.trace() + 8 - 2 * torch.linalg.eigvalsh(thin).clamp(min=0).sqrt().sum()
    assert frechet_of_moments(zero, thin, zero, wide) == pytest.approx(float(expected))


def test_moments_against_numpy(real):
    mean, covariance = moments(real)
    np.testing.assert_allclose(mean, real.double().numpy().mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(real.double().numpy(), rowvar=False), atol=1e-12)
    assert moments(torch.tensor([[1.0], [3.0]]))[1].tolist() == [[2.0]]


# CMMD and KID


def direct_mmd(x, y, kernel, unbiased):
    """The estimate as Gretton writes it, one pair after another."""

    def mean(a, b, skip):
        values = [
            kernel(a[i], b[j])
            for i in range(len(a))
            for j in range(len(b))
            if not (skip and i == j)
        ]
        return math.fsum(values) / len(values)

    x, y = x.double().tolist(), y.double().tolist()
    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cmmd_against_a_direct_double_loop(unbiased, real, degraded, monkeypatch):
    monkeypatch.setattr(discrepancy, "BLOCK_ROWS", 7)
    x, y = real[:20], degraded[:31]

    def gaussian(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / (2 * 10**2))

    unit_x, unit_y = normalize(x.double()), normalize(y.double())
    expected = 1000 * direct_mmd(unit_x, unit_y, gaussian, unbiased)
    assert cmmd(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-6)
    assert cmmd(5 * x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unbiased", [False, True])
def test_kid_against_a_direct_double_loop(unbiased, real, degraded, monkeypatch):
    monkeypatch.setattr(discrepancy, "BLOCK_ROWS", 7)
    x, y = real[:20], degraded[:31]

    def cubic(a, b):
        return (sum(i * j for i, j in zip(a, b, strict=True)) / len(a) + 1) ** 3

    expected = direct_mmd(x, y, cubic, unbiased)
    assert kernel_distance(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-6)


def test_kid_of_subsets_is_that_of_all_rows_when_they_hold_all(real, degraded):
    whole = kernel_distance_of_subsets(real, degraded, num_subsets=3, subset_size=180)
    assert whole.mean == pytest.approx(kernel_distance(real, degraded)) and whole.std < 1e-12
    parts = kernel_distance_of_subsets(real, degraded, num_subsets=40, subset_size=60, seed=3)
    assert parts == kernel_distance_of_subsets(real, degraded, 40, 60, seed=3)
    assert parts != kernel_distance_of_subsets(real, degraded, 40, 60, seed=4)
    assert parts.mean == pytest.approx(whole.mean, abs=4 * parts.std / 40**0.5)


def test_unbiased_estimates_have_no_bias_and_biased_ones_do():
    """Over many draws from one distribution the unbiased mean is 0, the biased one above."""
    estimates = {True: [], False: []}
    for _ in range(200):
        x, y = torch.randn(2, 12, 4)
        for unbiased, values in estimates.items():
            values.append(cmmd(x, y, sigma=1.0, unbiased=unbiased))
    means = {key: np.mean(values) for key, values in estimates.items()}
    error = np.std(estimates[True]) / 200**0.5
    assert abs(means[True]) < 3 * error < means[False]


# Precision and recall


def test_precision_and_recall_against_direct_loops(real, degraded, monkeypatch):
    monkeypatch.setattr(precision_recall, "BLOCK_ROWS", 11)
    real, fake, k = real[:40], degraded[:50], 3

    def share(points, centres):
        points, centres = points.double().tolist(), centres.double().tolist()
        radii = [sorted(math.dist(c, d) for d in centres)[k] for c in centres]
        within = [
            any(math.dist(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points
        ]
        return sum(within) / len(within)

    found = compute_precision_recall(real, fake, k)
    assert found.precision == pytest.approx(share(fake, real))
    assert found.recall == pytest.approx(share(real, fake))


def test_few_modes_have_precision_without_recall():
    """A generator that draws one of many clusters is precise and covers little."""
    centres = 20 * torch.eye(8)
    real = (centres[:, None] + torch.randn(8, 30, 8)).flatten(0, 1)
    collapsed = centres[0] + 0.3 * torch.randn(240, 8)
    found = compute_precision_recall(real, collapsed)
    assert found.precision > 0.95 and found.recall < 0.2
    spread = compute_precision_recall(real, 15 * torch.randn(240, 8))
    assert spread.precision < 0.2


def test_repeated_pictures_lie_within_their_own_balls():
    x = torch.randn(5, 7).repeat(6, 1) * 100
    assert compute_precision_recall(x, x.flip(0)) == (1.0, 1.0)


# What all of them must show


def test_identical_sets_are_at_distance_zero(real):
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(real, real, unbiased=False) == pytest.approx(0, abs=1e-12)
    assert compute_precision_recall(real, real) == (1.0, 1.0)


def test_a_degradation_moves_every_metric_the_right_way(real, others, degraded):
    for metric in (frechet_distance, cmmd, kernel_distance):
        assert metric(real, degraded) > 2 * max(metric(real, others), 0), metric.__name__
    clean, worse = (compute_precision_recall(real, x) for x in (others, degraded))
    assert worse.precision < clean.precision - 0.2 and worse.recall < clean.recall - 0.2


def test_what_does_not_fit_is_refused_in_one_line(real, others):
    broken = others.clone()
    broken[1, 1] = math.inf
    for mistake, message in (
        (lambda: frechet_distance(real[:20], others), "x: too few pictures for FID, 20 for 20"),
        (lambda: frechet_distance(real, others[:7]), "y: too few pictures for FID, 7 for 20"),
        (lambda: frechet_distance(real, others[:0]), "y: give at least 1 rows, not 0"),
        (lambda: frechet_distance(real, others[:, :5]), "y: features of 5 numbers beside x of 20"),
        (lambda: frechet_distance(real, broken), "y: 1 of 180 rows are not finite"),
        (
            lambda: frechet_of_moments(*moments(real), *moments(others[:, :5])),
            "mean_y, cov_y: .* use one extractor",
        ),
        (lambda: cmmd(real[:1], others), "x: give at least 2 rows, not 1"),
        (lambda: cmmd(real, others, sigma=0), "sigma, scale: give numbers above 0"),
        (lambda: cmmd(real[0], others), r"x: give floating features \[N, D\]"),
        (lambda: kernel_distance_of_subsets(real, others), "subset_size: give 2 to 180"),
        (lambda: kernel_distance_of_subsets(real, others, 0, 9), "num_subsets: give at least 1"),
        (lambda: compute_precision_recall(real, others[:3]), "k: give 1 to 2, below the smaller"),
        (lambda: compute_precision_recall(real, others[:0]), "generated: give at least 2 rows"),
    ):
        with pytest.raises(ValueError, match=f"^{message}") as refusal:
            mistake()
        assert "\n" not in str(refusal.value)
