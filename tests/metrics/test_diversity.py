"""Diversity: the mean over pairs, from 0 for one picture again and again."""

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity

from unclip.metrics.diversity import mean_pairwise_distance


def test_against_all_pairs():
    z = torch.randn(9, 5)
    pairs = itertools.combinations(z.double(), 2)
    expected = sum(float(1 - cosine_similarity(a, b, dim=0)) for a, b in pairs) / 36
    assert mean_pairwise_distance(z) == pytest.approx(expected)


def test_the_same_picture_has_none_and_orthogonal_ones_have_one():
    assert mean_pairwise_distance(torch.randn(1, 8).expand(6, -1)) == pytest.approx(0, abs=1e-12)
    assert mean_pairwise_distance(torch.eye(4) * 3) == pytest.approx(1)
    assert mean_pairwise_distance(torch.tensor([[1.0, 0], [-2, 0]])) == pytest.approx(2)


def test_one_picture_has_no_diversity():
    with pytest.raises(ValueError, match="^z: give at least 2 rows, not 1"):
        mean_pairwise_distance(torch.randn(1, 8))
