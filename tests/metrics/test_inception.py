"""Inception Score: its bounds, a direct loop, and degradations."""

import math

import pytest
import torch

from unclip.metrics.inception import inception_score


def test_the_bounds_are_reached():
    sure_and_varied = torch.eye(10).repeat(20, 1)
    assert inception_score(sure_and_varied, splits=1).mean == pytest.approx(10)
    unsure = torch.full((200, 10), 0.1)
    one_class = torch.eye(10)[:1].expand(200, -1)
    for worst in (unsure, one_class):
        assert inception_score(worst) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_against_a_direct_loop():
    rows = (3 * torch.randn(60, 7)).softmax(dim=1)
    scores = []
    for start in range(0, 60, 20):
        part = rows[start : start + 20].double().tolist()
        mean = [sum(column) / 20 for column in zip(*part, strict=True)]
        divergences = [
            sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True)) for row in part
        ]
        scores.append(math.exp(sum(divergences) / 20))
    average = sum(scores) / 3
    spread = math.sqrt(sum((score - average) ** 2 for score in scores) / 3)
    assert inception_score(rows, splits=3) == pytest.approx((average, spread), rel=1e-6)


def test_doubt_and_sameness_lower_it():
    logits = 6 * torch.eye(9)[torch.arange(180) % 9]
    clear = inception_score(logits.softmax(dim=1)).mean
    assert inception_score((logits / 6).softmax(dim=1)).mean < clear / 2
    assert inception_score(logits[::3].softmax(dim=1), splits=2).mean < clear / 2


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="^probabilities: each row must .* give a softmax"):
        inception_score(torch.randn(20, 5))
    with pytest.raises(ValueError, match="^splits: give 1 to 4"):
        inception_score(torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="^probabilities: give floating features"):
        inception_score(torch.zeros(4))
