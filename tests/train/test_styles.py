"""More of an artist's style, and what an artist never drew, as embeddings that a prior learns."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image, ImageOps

from unclip.diffusion.noise import child_generators
from unclip_train.cli import make_stage
from unclip_train.data.drawings import FAMILY_OF_STYLE, Drawing
from unclip_train.data.loader import collate
from unclip_train.identity import config_hash
from unclip_train.styles import Analogies, Styles

STYLES = ("flat", "noto", "twemoji")
CONCEPTS = ("apple", "boat", "cat", "drum")
NEVER_DRAWN = ("flat", "cat")


@pytest.fixture
def additive():
    """Eleven drawings, their embeddings (concept plus style), and that of a twelfth."""
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
    ((drawing, z),) = Styles(drawings, z_img).missing()
    assert (drawing.concept, drawing.style) == ("cat", "flat")
    others = torch.cosine_similarity(z_img, left_out[None])
    assert torch.cosine_similarity(z, left_out, dim=0) > max(0.95, others.max())
    assert torch.isclose(z.norm(), z_img.norm(dim=-1).mean())


def test_strength_1_leaves_drawings_as_they_are(additive):
    drawings, z_img, _ = additive
    same = Styles(drawings, z_img).strengthen(z_img, [d.style for d in drawings])
    assert torch.allclose(same, z_img, atol=1e-6)


def test_strength_moves_towards_the_own_style_alone(additive):
    drawings, z_img, _ = additive
    styles = Styles(drawings, z_img, strength=2.0)
    moved = styles.strengthen(z_img, [d.style for d in drawings])
    assert torch.allclose(moved.norm(dim=-1), z_img.norm(dim=-1), rtol=1e-5)
    for before, after, drawing in zip(z_img, moved, drawings, strict=True):
        own = styles.means[drawing.style] - styles.mean
        assert torch.cosine_similarity(after, own, dim=0) > torch.cosine_similarity(
            before, own, dim=0
        )
        plain = after * (before + own).norm() / before.norm()  # before the length was restored
        assert torch.allclose(plain, before + own, atol=1e-5)


def test_strength_is_that_of_what_is_missing_too(additive):
    drawings, z_img, _ = additive
    weak, strong = (Styles(drawings, z_img, k) for k in (1.0, 2.0))
    toward = weak.means["flat"] - weak.mean
    assert strong.missing()[0][1] @ toward > weak.missing()[0][1] @ toward


def test_a_share_of_a_batch_gives_its_place(additive):
    drawings, z_img, _ = additive
    analogies = Analogies(Styles(drawings, z_img).missing(), share=0.25)
    captions, seeds = ["a boat, noto style"] * 200, child_generators(list(range(200)), "test")
    mixed, z = analogies.mix_in(captions, torch.zeros(200, 8), seeds)
    changed = [row for row in range(200) if mixed[row] != captions[row]]
    assert 30 < len(changed) < 70
    assert all("cat" in mixed[row] for row in changed)
    assert not any(style in mixed[row] for row in changed for style in ("noto", "twemoji"))
    assert torch.equal(z[changed], analogies.z_img.expand(len(changed), -1))
    kept = [row for row in range(200) if row not in changed]
    assert not z[kept].any()
    again, _ = analogies.mix_in(captions, torch.zeros(200, 8), child_generators([9], "test"))
    assert again[0] == mixed[9]  # a function of the sample's own position


def test_a_prior_learns_them(tiny_config, tiny_clip, monkeypatch, additive):
    """In its loss the captions and embeddings are the mixed ones."""
    stage, dataset = make_stage("prior", tiny_config("prior", f"clip={tiny_clip}"))
    drawings, z_img, _ = additive
    z_img = torch.nn.functional.pad(z_img, (0, stage.clip.embedding_dim - 8))
    stage.analogies = Analogies(Styles(drawings, z_img).missing(), share=1.0)
    read, learned = [], []
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


def test_a_prior_learns_strengthened_embeddings(two_styles, tiny_config, tiny_clip):
    words = (f"clip={tiny_clip}", f"data.source={two_styles}", "data.styles=[noto,twemoji]")
    batches = []
    for strength in (1.0, 3.0):
        config = tiny_config("prior", *words, f"style_strength={strength}")
        stage, dataset = make_stage("prior", config)
        batch = collate([dataset[position] for position in range(6)])
        batches.append(stage._z_img(stage.network, batch))
    styles = Styles(stage.kept.drawings.drawings, stage.styles.z_img, 3.0)
    assert torch.equal(batches[1], styles.strengthen(batches[0], batch["style"]))
    assert not torch.allclose(*batches, atol=1e-3)


@pytest.fixture
def two_styles(drawings_folder, tmp_path):
    """The drawings of the tests, by two artists."""
    folder = tmp_path / "two"
    shutil.copytree(drawings_folder, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in list(rows):
        other = {"style": "twemoji", "family": "twemoji", "held_out": False}
        named = {key: row[key].replace("noto", "twemoji") for key in ("id", "file_name")}
        rows.append(row | other | named)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for size in (16, 64, 256):
        twin = folder / str(size) / "twemoji"
        shutil.copytree(folder / str(size) / "noto", twin)
        for path in twin.glob("*.png"):
            with Image.open(path) as picture:
                flipped = ImageOps.flip(picture)
            flipped.save(path)
    return folder


def test_where_nothing_is_missing_it_is_said(tiny_config, tiny_clip):
    config = tiny_config("prior", f"clip={tiny_clip}", "analogies=0.1")
    with pytest.warns(UserWarning, match=r"analogies: none, every concept is drawn in every style"):
        stage, _ = make_stage("prior", config)
    assert stage.analogies is None


def test_the_share_belongs_to_what_a_run_learns(tiny_config, tiny_clip):
    config = tiny_config("prior", f"clip={tiny_clip}")
    other = dataclasses.replace(config, analogies=0.1)
    assert config_hash(config) != config_hash(other)
