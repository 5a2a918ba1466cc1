"""A share of a decoder's samples is led by what a trained prior draws of their captions."""

import pytest
import torch

from unclip.diffusion.noise import child_generators
from unclip_train.checks import check_config
from unclip_train.cli import make_stage
from unclip_train.conditions import image_embeddings
from unclip_train.config import ConfigError
from unclip_train.data.loader import collate
from unclip_train.dry_run import dry_run
from unclip_train.identity import config_hash
from unclip_train.leading import draw_embeddings, led_by_prior

CPU = torch.device("cpu")
CAPTIONS = [f"a {colour} ring" for colour in ("red", "green", "blue", "black")] * 8


@pytest.fixture
def prior(tiny_config, tiny_clip, tmp_path):
    """The folder of a tiny prior of this CLIP, which knows nothing yet."""
    stage, _ = make_stage("prior", tiny_config("prior", f"clip={tiny_clip}"))
    stage.network.save_pretrained(tmp_path / "its model")
    return tmp_path / "its model"


@pytest.fixture
def led(tiny_config, tiny_clip, prior):
    """A decoder's stage, all of whose samples a prior leads, and its data."""
    words = [f"clip={tiny_clip}", f"prior={prior}", "prior_share=1.0", "drop_z_img=0.0"]
    return make_stage(
        "decoder", tiny_config("decoder", *words, "z_img_noise=0.0", "data.plain_share=0.0")
    )


def test_a_share_is_drawn_of_the_captions(led):
    stage, _ = led
    z_img = torch.randn(32, stage.clip.embedding_dim)

    def lead(share, rows=slice(None), **more):
        generators = child_generators(list(range(32)), "led")[rows]
        batch = {"caption": CAPTIONS[rows], **more}
        return led_by_prior(stage.prior, stage.clip, z_img[rows], batch, share, generators)

    assert torch.equal(lead(0.0), z_img)
    half, every = lead(0.5), lead(1.0)
    changed = (half != z_img).any(dim=1)
    assert 8 < changed.sum() < 24 and (every != z_img).any(dim=1).all()
    assert torch.allclose(half[changed], every[changed], atol=1e-5)
    assert torch.allclose(lead(1.0, slice(5, 7)), every[5:7], atol=1e-5)  # of any batch
    single = lead(1.0, slice(0, 4), plain=["", "noto/ring", "", "flat/ring"])
    assert [bool((a != b).any()) for a, b in zip(single, z_img[:4], strict=True)] == [1, 0, 1, 0]


def test_the_decoder_is_led_by_the_prior_and_not_by_the_picture(led, monkeypatch):
    stage, dataset = led
    batch = collate([dataset[position] for position in range(6)])
    assert not any(batch["plain"])
    generators = child_generators(batch["position"], "told")
    told = []
    forward = stage.network.forward
    monkeypatch.setattr(
        stage.network, "forward", lambda *words: told.append(words[2]) or forward(*words)
    )
    stage.loss(stage.network, batch, generators)["loss"].backward()
    assert all(weight.grad is None for weight in stage.prior.parameters())
    own = image_embeddings(stage.clip, batch, CPU)
    assert told[0].shape == own.shape and (told[0] != own).any(dim=1).all()
    text = stage.clip.encode_text(batch["caption"])
    again = draw_embeddings(stage.prior, text, list(range(6)))
    of_prior = torch.nn.functional.cosine_similarity(told[0].mean(0), again.mean(0), dim=0)
    of_pictures = torch.nn.functional.cosine_similarity(told[0].mean(0), own.mean(0), dim=0)
    assert of_prior > of_pictures


def test_faults_name_the_key(tiny_config, tiny_clip, prior, tmp_path):
    words = [f"clip={tiny_clip}", "prior_share=0.5"]
    with pytest.raises(ConfigError, match="prior_share: .*give prior="):
        check_config("decoder", tiny_config("decoder", *words))
    more = [*words, f"prior={prior}"]
    check_config("decoder", tiny_config("decoder", *more))
    with pytest.raises(ConfigError, match="prior_share: distillation"):
        check_config("decoder", tiny_config("decoder", *more, "distill.teacher=somewhere"))
    with pytest.raises(ConfigError, match="prior_share must lie between 0 and 1"):
        tiny_config("decoder", f"clip={tiny_clip}", "prior_share=1.5")
    with pytest.raises(ConfigError, match="prior: cannot read"):
        make_stage("decoder", tiny_config("decoder", *words, f"prior={tmp_path / 'none'}"))


def test_a_dry_run_reads_the_prior(tiny_config, tiny_clip, prior, tmp_path, recwarn):
    stage, dataset = make_stage("decoder", tiny_config("decoder", f"clip={tiny_clip}"))
    stage.network.save_pretrained(tmp_path / "before")
    words = [f"clip={tiny_clip}", f"init={tmp_path / 'before'}", "network.dropout=0.5"]
    words += [f"prior={prior}", "prior_share=0.5"]
    found = dry_run("decoder", tiny_config("decoder", *words))
    assert any(line.startswith("memory: about") for line in found)
    assert not [w for w in recwarn if "no-op" in str(w.message)]  # weights read into nothing
    with pytest.raises(ConfigError, match="prior: cannot read"):
        dry_run("decoder", tiny_config("decoder", *words, f"prior={tmp_path / 'none'}"))


def test_a_prior_of_another_clip_is_refused(tiny_config, tiny_clip, prior):
    from unclip.models.prior import Prior

    other = Prior.from_pretrained(prior)
    Prior(**{**arguments_of(other), "context": other.config.context + 1}).save_pretrained(prior)
    words = [f"clip={tiny_clip}", f"prior={prior}", "prior_share=0.5"]
    with pytest.raises(ConfigError, match=r"prior: .* has context \d+, but the CLIP has \d+"):
        make_stage("decoder", tiny_config("decoder", *words))


def arguments_of(network) -> dict:
    return {name: value for name, value in network.config.items() if name[0] != "_"}


def test_the_prior_makes_another_run_only_where_it_leads(tiny_config, tiny_clip):
    def name(*words):
        return config_hash(tiny_config("decoder", f"clip={tiny_clip}", *words))

    assert name() == name("prior=a") == name("prior_share=0.0")
    led = [name("prior_share=0.5", f"prior={prior}") for prior in "ab"]
    assert len({name(), *led}) == 3
