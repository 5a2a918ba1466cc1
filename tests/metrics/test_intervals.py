"""Intervals: they cover what they promise, narrow for pairs, and agree with printed figures."""

import pytest
import torch

from unclip.metrics.intervals import (
    bootstrap_interval,
    normal_half_width,
    paired_difference,
    paired_ratio,
    wilson_interval,
)


def test_bootstrap_of_many_values_nears_the_normal_interval():
    values = torch.randn(2000)
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 2000**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(float(values.mean()), abs=0.1 * half)
    wide = bootstrap_interval(values, level=0.99)
    assert wide.low < low < high < wide.high


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(torch.rand(40), num_draws=300)
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_bootstrap_repeats_itself_and_knows_constants():
    values = torch.rand(30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval(torch.full((30,), 0.25)) == (0.25, 0.25)


def test_pairs_narrow_the_interval():
    hardness = torch.randn(200)
    a, b = hardness + 0.1 + 0.1 * torch.randn(200), hardness + 0.1 * torch.randn(200)
    difference, low, high = paired_difference(a, b)
    assert difference == pytest.approx(float((a - b).double().mean()))
    assert 0 < low < 0.1 < high
    apart = bootstrap_interval(a)
    assert high - low < (apart.high - apart.low) / 3
    back = paired_difference(b, a)
    assert (back.low, back.high) == pytest.approx((-high, -low), abs=0.005)


def test_a_ratio_is_of_means_and_proportional_ones_are_certain():
    b = torch.rand(50) + 0.2
    assert paired_ratio(1.5 * b, b) == pytest.approx((1.5, 1.5, 1.5))
    a = b * (1 + 0.1 * torch.randn(50))
    ratio, low, high = paired_ratio(a, b)
    assert ratio == pytest.approx(float(a.double().mean() / b.double().mean()))
    assert 0.9 < low < ratio < high < 1.1
    spread = bootstrap_interval(a / b.mean())  # as if b were the same for all
    assert high - low < (spread.high - spread.low) / 2


def test_a_ratio_of_which_b_may_be_zero_has_an_infinite_end():
    rare = torch.tensor([1.0, 0, 0, 0])  # no one in 3 of 10 draws
    assert paired_ratio(rare, rare) == (1, 1, 1)
    ratio, low, high = paired_ratio(torch.ones(4), rare)
    assert (ratio, low, high) == (4, pytest.approx(4 / 3), torch.inf)
    assert paired_ratio(-torch.ones(4), rare).low == -torch.inf


def test_wilson_against_published_figures():
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_half_width_is_that_of_table_1():
    """unCLIP, table 1, n = 1000: 47.1 +- 3.1, 41.1 +- 3.0, 62.6 +- 3.0, 70.5 +- 2.8."""
    for percent, printed in ((47.1, 3.1), (41.1, 3.0), (62.6, 3.0), (70.5, 2.8), (45.3, 3.1)):
        assert round(100 * normal_half_width(10 * percent, 1000), 1) == printed


def test_what_does_not_fit_is_refused():
    for mistake, message in (
        (lambda: bootstrap_interval(torch.zeros(0)), "values: give numbers"),
        (lambda: bootstrap_interval(torch.tensor([1.0, torch.nan])), "values: 1 numbers are not"),
        (lambda: bootstrap_interval(torch.rand(5), level=95), "level: give a number between"),
        (lambda: bootstrap_interval(torch.rand(5), num_draws=0), "num_draws: give at least 1"),
        (lambda: paired_difference(torch.rand(5), torch.rand(4)), "b: 4 numbers beside 5 of a"),
        (lambda: paired_ratio(torch.rand(5), torch.rand(4)), "b: 4 numbers beside 5 of a"),
        (lambda: paired_ratio(torch.rand(5), torch.zeros(5)), "b: give numbers of a positive mean"),
        (lambda: wilson_interval(3, 2), "wins: give 0 <= wins <= total"),
        (lambda: wilson_interval(0, 0), "wins: give 0 <= wins <= total"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            mistake()
