"""Similarity: cosines, ranks that cannot be won by ties, and the cosines of a prior."""

import math

import pytest
import torch

from unclip.metrics.similarity import (
    chosen_among,
    clip_score,
    prior_cosines,
    probabilities_among,
    ranks_among,
    recall_at,
    rescaled_clip_score,
)


@pytest.fixture
def pairs():
    """40 captions [40, 16] and pictures that lie near them, [40, 16]."""
    z_txt = torch.randn(40, 16)
    return z_txt + 0.5 * torch.randn(40, 16), z_txt


def all_others(num):
    """Every other row as a distractor of each, [num, num - 1]."""
    return torch.tensor([[j for j in range(num) if j != i] for i in range(num)])


def test_clip_score_is_the_cosine_of_each_pair(pairs):
    z_img, z_txt = pairs
    expected = [
        sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        for x, y in zip(z_img.tolist(), z_txt.tolist(), strict=True)
    ]
    assert clip_score(z_img, z_txt).tolist() == pytest.approx(expected, abs=1e-12)
    assert clip_score(z_img, -3 * z_img).tolist() == pytest.approx([-1.0] * 40)


def test_rescaled_score_is_never_negative():
    assert rescaled_clip_score(torch.tensor([-0.5, 0.0, 0.4])).tolist() == pytest.approx([0, 0, 1])


def test_ranks_against_a_sort(pairs):
    z_img, z_txt = pairs
    ranks = ranks_among(z_img, z_txt, torch.arange(40), all_others(40))
    scores = torch.nn.functional.normalize(z_img) @ torch.nn.functional.normalize(z_txt).T
    order = scores.argsort(dim=1, descending=True).tolist()
    assert ranks.tolist() == [row.index(i) for i, row in enumerate(order)]
    assert 0 < recall_at(ranks, 1) <= recall_at(ranks, 5) <= recall_at(ranks, 40) == 1.0
    assert recall_at(ranks, 1) == pytest.approx(sum(r == 0 for r in ranks.tolist()) / 40)


def test_swapped_captions_lower_score_and_recall(pairs):
    z_img, z_txt = pairs
    swapped = z_txt.roll(1, dims=0)
    assert clip_score(z_img, swapped).mean() < clip_score(z_img, z_txt).mean() - 0.5
    own = torch.arange(40)
    right = recall_at(ranks_among(z_img, z_txt, own, all_others(40)), 1)
    wrong = recall_at(ranks_among(z_img, swapped, own, all_others(40)), 1)
    assert right > 0.8 and wrong < 0.2


def test_one_embedding_for_all_captions_finds_none(pairs):
    same = torch.ones(40, 16)
    assert recall_at(ranks_among(pairs[0], same, torch.arange(40), all_others(40)), 5) == 0.0
    assert chosen_among(pairs[0], same[:, None].expand(-1, 3, -1)).tolist() == [-1] * 40


def test_prior_cosines_tell_a_prior_from_an_average():
    z_img = torch.randn(50, 32) + 1
    z_txt = z_img + torch.randn(50, 32)
    good = prior_cosines(z_img + 0.3 * torch.randn(50, 32), z_img, z_txt)
    average = prior_cosines(z_img.mean(dim=0).expand(50, -1), z_img, z_txt)
    assert good["image"].mean() > good["unrelated"].mean() + 0.3
    assert average["image"].mean() == pytest.approx(float(average["unrelated"].mean()), abs=1e-6)
    torch.testing.assert_close(good["truth"], clip_score(z_img, z_txt))
    shifted = torch.stack([good["unrelated"][i] for i in range(50)])
    direct = torch.nn.functional.cosine_similarity(z_img.double(), z_img.double().roll(-1, 0))
    exact = prior_cosines(z_img, z_img, z_txt)
    assert exact["image"].tolist() == pytest.approx([1.0] * 50) and len(shifted) == 50
    torch.testing.assert_close(exact["unrelated"], direct)


def test_probabilities_are_the_softmax_of_scaled_cosines(pairs):
    z_img, z_txt = pairs
    p = probabilities_among(z_img, z_txt[:3], 20.0)
    for i in range(40):
        weights = [math.exp(20 * float(clip_score(z_img[i : i + 1], z[None]))) for z in z_txt[:3]]
        assert p[i].tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_the_best_candidate_of_each_picture_is_chosen(pairs):
    z_img, _ = pairs
    right = torch.randint(0, 4, (40,))
    candidates = torch.randn(40, 4, 16)
    candidates[torch.arange(40), right] = z_img
    assert torch.equal(chosen_among(z_img, candidates), right)


def test_what_does_not_fit_is_refused_in_one_line(pairs):
    z_img, z_txt = pairs
    own, distractors = torch.arange(40), all_others(40)
    broken = z_img.clone()
    broken[3, 2] = math.nan
    for mistake, message in (
        (lambda: clip_score(z_img[:3], z_txt), "z_txt: 40 rows beside 3 of z_img"),
        (lambda: clip_score(z_img, z_txt[:, :8]), "z_txt: features of 8 numbers beside z_img"),
        (lambda: clip_score(broken, z_txt), "z_img: 1 of 40 rows are not finite"),
        (lambda: clip_score(z_img.long(), z_txt), "z_img: give floating features"),
        (lambda: ranks_among(z_img, z_txt, own[:3], distractors), r"own: give row numbers \[N\]"),
        (lambda: ranks_among(z_img, z_txt, own, distractors + 1), "distractors: rows must lie in"),
        (lambda: ranks_among(z_img, z_txt, own, own[:, None]), "distractors: a picture's own"),
        (lambda: recall_at(torch.zeros(3), 0), "k: give at least 1"),
        (lambda: recall_at(torch.zeros(0), 1), "ranks: give numbers"),
        (lambda: probabilities_among(z_img, z_txt, 0.0), "logit_scale: give a number above 0"),
        (lambda: chosen_among(z_img, z_txt), r"z_txt: give \[40, C, 16\]"),
        (lambda: prior_cosines(z_img[:1], z_img[:1], z_txt[:1]), "z_img: give at least 2 rows"),
    ):
        with pytest.raises(ValueError, match=f"^{message}") as refusal:
            mistake()
        assert "\n" not in str(refusal.value)
