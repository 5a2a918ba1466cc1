"""Any Hugging Face CLIP as the encoder, those of years ago included."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from unclip import UnCLIPPipeline
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.published.sources import read_encoder, read_last_upsampler

OLD = {"bad_words_ids": None, "torchscript": False, "typical_p": 1.0, "_commit_hash": None}


@pytest.fixture
def old_clip(karlo, tmp_path):
    """The tiny Karlo's CLIP as of 2022: old settings, counters of positions, vocab.json."""
    text, image = karlo.text.text_encoder, karlo.variations.image_encoder
    config = CLIPConfig(
        text_config=text.config.to_dict(), vision_config=image.config.to_dict(), projection_dim=32
    )
    model = CLIPModel(config)
    state = {**text.state_dict(), **image.state_dict(), "logit_scale": torch.tensor(2.0)}
    model.load_state_dict(state)
    folder = tmp_path / "clip"
    model.save_pretrained(folder)
    karlo.text.tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(karlo.text.tokenizer.get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for section in ("text_config", "vision_config"):
        config[section] |= OLD
        config[f"{section}_dict"] = None
    path.write_text(json.dumps(config))
    counters = {"text_model.embeddings.position_ids": torch.arange(14)[None]}
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), **counters}, weights)
    return folder


def test_an_old_clip_is_read(karlo, old_clip):
    found = read_encoder(old_clip)
    assert found["normalize"] and found["clip"].logit_scale == 2
    pipe = UnCLIPPipeline.from_pretrained(karlo.text_folder, clip=old_clip)
    own = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    assert not pipe.config.normalize  # the decoder was trained with embeddings as they are
    one, other = (p.encode(["a red apple", ""]) for p in (pipe, own))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.allclose(one.z_txt, other.z_txt, atol=1e-6)
    pictures = [torch.rand(1, 3, 16, 16)]
    theirs = UnCLIPPipeline.from_pretrained(karlo.variations_folder)
    a, b = pipe.encode_images(pictures), theirs.encode_images(pictures)
    assert torch.allclose(a, b, atol=1e-5)


def test_what_is_new_in_an_old_clip_is_refused(old_clip):
    path = old_clip / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["auto_map"] = {"AutoModel": "evil.Model"}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="config.json: unknown setting 'auto_map'"):
        read_encoder(old_clip)


def test_the_embedded_upsampler_goes_on_from_256():
    parts = read_last_upsampler("embedded", torch.float32)
    assert parts["upsampler_1024"].config.size == 1024


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_agree_in_half_precision(karlo, dtype):
    """The same inputs through our networks and diffusers' in float32 and bfloat16."""
    ours = UnCLIPPipeline.from_pretrained(karlo.text_folder, dtype=dtype)
    for network in (ours.decoder, ours.upsampler_256):  # laid out as theirs: sums round alike
        network.to(memory_format=torch.contiguous_format)
    text = ours.encode(["a red apple", "two dogs"]).to(dtype=dtype)
    t = torch.tensor([700, 20])
    x_t, z_img = torch.randn(2, 3, 8, 8).to(dtype), torch.randn(2, 32).to(dtype)
    project, unet, first = (
        type(part).from_pretrained(karlo.text_folder / name, torch_dtype=dtype)
        for name, part in (
            ("text_proj", karlo.text.text_proj),
            ("decoder", karlo.text.decoder),
            ("super_res_first", karlo.text.super_res_first),
        )
    )
    context, time = project(
        image_embeddings=z_img,
        prompt_embeds=text.z_txt,
        text_encoder_hidden_states=text.text_states,
        do_classifier_free_guidance=False,
    )
    mask = torch.nn.functional.pad(text.text_mask, (4, 0), value=True)
    theirs = unet(
        x_t, t, encoder_hidden_states=context, class_labels=time, attention_mask=mask
    ).sample
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2  # bfloat16 rounds by 4e-3, in each layer
    difference = ours.decoder(x_t, t, z_img, text) - theirs
    assert difference.abs().max() < tolerance * theirs.abs().max()
    x_large = torch.randn(2, 3, 32, 32).to(dtype)
    resized = torch.nn.functional.interpolate(
        x_t.float(), (32, 32), mode="bicubic", antialias=True, align_corners=False
    ).to(dtype)
    theirs = first(torch.cat([x_large, resized], dim=1), t).sample
    assert (
        ours.upsampler_256(x_large, t, x_t) - theirs
    ).abs().max() < tolerance * theirs.abs().max()
