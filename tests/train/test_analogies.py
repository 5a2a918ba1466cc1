"""Captions of what no artist drew get embeddings by analogy with what others drew."""

import dataclasses

import pytest
import torch

from unclip.diffusion.noise import child_generators
from unclip_train.analogies import STRENGTH, Analogies, missing_pairs
from unclip_train.cli import make_stage
from unclip_train.config import ConfigError
from unclip_train.data.drawings import FAMILY_OF_STYLE, Drawing
from unclip_train.data.loader import collate
from unclip_train.identity import config_hash

STYLES = ("flat", "noto", "twemoji")
CONCEPTS = ("apple", "boat", "cat", "drum")
NEVER_DRAWN = ("flat", "cat")


@pytest.fixture
def additive():
    """Eleven drawings whose embeddings are that of the concept plus that of the style."""
    generator = torch.Generator().manual_seed(0)
    concepts, styles = torch.randn(2, 4, 8, generator=generator)
    drawings, z_img, left_out = [], [], None
    for i, style in enumerate(STYLES):
        for k, concept in enumerate(CONCEPTS):
            z = concepts[k] + styles[i]
            if (style, concept) == NEVER_DRAWN:
                left_out = z
                continue
            name = f"{style}/{concept}"
            words = (name, f"16/{name}.png", concept, concept, (concept,), style)
            drawings.append(Drawing(*words, FAMILY_OF_STYLE[style], "Objects", True, False))
            z_img.append(z)
    return drawings, torch.stack(z_img), left_out


def test_a_missing_drawing_is_found_by_analogy(additive):
    drawings, z_img, left_out = additive
    ((drawing, style, z),) = missing_pairs(drawings, z_img, strength=1.0)
    assert (drawing.concept, style) == ("cat", "flat")
    others = torch.cosine_similarity(z_img, left_out[None])
    assert torch.cosine_similarity(z, left_out, dim=0) > max(0.95, others.max())
    assert torch.isclose(z.norm(), z_img.norm(dim=-1).mean())


def test_strength_brings_more_of_the_style(additive):
    drawings, z_img, _ = additive
    means = [
        z_img[[row for row, d in enumerate(drawings) if d.style == style]].mean(0)
        for style in STYLES
    ]
    direction = means[0] - torch.stack(means).mean(0)
    weak, strong = (missing_pairs(drawings, z_img, k)[0][2] @ direction for k in (1.0, STRENGTH))
    assert strong > weak


def test_a_share_of_a_batch_gives_its_place(additive):
    drawings, z_img, _ = additive
    analogies = Analogies(drawings, z_img)
    captions, seeds = ["a boat, noto style"] * 200, child_generators(list(range(200)), "test")
    mixed, z = analogies.mix_in(captions, torch.zeros(200, 8), 0.25, seeds)
    changed = [row for row in range(200) if mixed[row] != captions[row]]
    assert 30 < len(changed) < 70
    assert all("cat" in mixed[row] for row in changed)
    assert not any(style in mixed[row] for row in changed for style in ("noto", "twemoji"))
    assert torch.equal(z[changed], analogies.z_img.expand(len(changed), -1))
    kept = [row for row in range(200) if row not in changed]
    assert not z[kept].any()
    again, _ = analogies.mix_in(captions, torch.zeros(200, 8), 0.25, child_generators([9], "test"))
    assert again[0] == mixed[9]  # a function of the sample's own position


def test_a_prior_learns_them(tiny_config, tiny_clip, monkeypatch, additive):
    """In its loss the captions and embeddings are the mixed ones."""
    stage, dataset = make_stage("prior", tiny_config("prior", f"clip={tiny_clip}"))
    drawings, z_img, _ = additive
    width = stage.clip.embedding_dim
    stage.analogies = Analogies(drawings, torch.nn.functional.pad(z_img, (0, width - 8)))
    stage.analogies_share, read, learned = 1.0, [], []
    encode, predict = stage.clip.encode_text, stage._predict
    monkeypatch.setattr(stage.clip, "encode_text", lambda c: read.extend(c) or encode(c))

    def watched(network, z, *rest):
        learned.append(z)
        return predict(network, z, *rest)

    monkeypatch.setattr(stage, "_predict", watched)
    batch = collate([dataset[position] for position in range(4)])
    stage.loss(stage.network, batch, child_generators([0, 1, 2, 3], "train"))
    assert any("cat" in caption for caption in read)
    assert all("cat" in caption or not caption for caption in read)
    assert torch.allclose(learned[0], stage.analogies.z_img.expand_as(learned[0]))


def test_where_nothing_is_missing_it_is_said(tiny_config, tiny_clip):
    config = tiny_config("prior", f"clip={tiny_clip}", "analogies=0.1")
    with pytest.raises(ConfigError, match=r"analogies: every concept is drawn in every style"):
        make_stage("prior", config)


def test_the_share_belongs_to_what_a_run_learns(tiny_config, tiny_clip):
    config = tiny_config("prior", f"clip={tiny_clip}")
    other = dataclasses.replace(config, analogies=0.1)
    assert config_hash(config) != config_hash(other)
