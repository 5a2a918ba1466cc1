"""CLIP: captions have embeddings of their own, padding and saving change nothing."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from unclip import CLIP
from unclip_train.clip import train_tokenizer

CAPTIONS = ["a red apple, noto style", "two green pears", "flat emoji of a dog face", "apples"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS * 3, vocab_size=560)


def make_clip(tokenizer, **text):
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower["num_attention_heads"] = 2
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
        **text,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


@pytest.fixture(scope="module")
def clip(tokenizer):
    return CLIP(make_clip(tokenizer), tokenizer)


def test_tokenizer_round_trip(tokenizer):
    assert len(tokenizer) <= 560
    for caption in CAPTIONS:
        numbers = tokenizer(caption).input_ids
        assert numbers[0] == tokenizer.bos_token_id and numbers[-1] == tokenizer.eos_token_id
        decoded = tokenizer.decode(numbers, skip_special_tokens=True)
        assert decoded.replace(" ,", ",") == caption


def test_unseen_letters_are_spelt_in_bytes(tokenizer):
    numbers = tokenizer("\u00fcmlaut \u4e2d").input_ids
    assert len(numbers) > 4 and tokenizer.eos_token_id not in numbers[1:-1]


def test_different_captions_have_different_embeddings(clip):
    z_txt = clip.encode_text([*CAPTIONS, ""]).z_txt
    distances = torch.cdist(z_txt, z_txt) + torch.eye(len(z_txt))
    assert distances.min() > 1e-3
    assert torch.allclose(z_txt.norm(dim=1), torch.ones(len(z_txt)))


def test_wrong_end_of_text_token_is_refused(tokenizer):
    with pytest.raises(ValueError, match="eos_token_id"):
        CLIP(make_clip(tokenizer, eos_token_id=5), tokenizer)


def test_a_caption_does_not_depend_on_its_batch(clip):
    alone = clip.encode_text(CAPTIONS[1:2])
    among = clip.encode_text(CAPTIONS)
    assert torch.allclose(alone.z_txt[0], among.z_txt[1], atol=1e-6)
    assert torch.equal(alone.text_mask[0], among.text_mask[1])


def test_text_encoder_is_causal(clip):
    one = clip.encode_text(["two green pears"])
    other = clip.encode_text(["two green apples"])
    same = (one.tokens == other.tokens)[0].long().cumprod(0).sum()
    assert 3 <= same < 8
    assert torch.allclose(one.text_states[0, :same], other.text_states[0, :same], atol=1e-6)
    assert not torch.allclose(one.text_states[0, same], other.text_states[0, same], atol=1e-4)


def test_long_captions_are_cut_and_still_end(clip):
    text = clip.encode_text(["apple " * 100])
    assert text.tokens.shape == (1, 16) and text.tokens[0, -1] == clip.tokenizer.eos_token_id


def test_pictures_of_any_size(clip):
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    assert clip.encode_image(x).shape == (2, 24)
    flat = torch.full((1, 3, 128, 128), 0.3)
    small = torch.full((1, 3, 32, 32), 0.3)
    assert torch.allclose(clip.encode_image(flat), clip.encode_image(small), atol=1e-5)


def test_save_and_load(clip, tmp_path):
    clip.normalize = False
    clip.save_pretrained(tmp_path)
    clip.normalize = True
    loaded = CLIP.from_pretrained(tmp_path)
    assert loaded.normalize is False
    loaded.normalize = True
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(loaded.encode_image(x), clip.encode_image(x))
    assert torch.equal(loaded.encode_text(CAPTIONS).z_txt, clip.encode_text(CAPTIONS).z_txt)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        CLIP.from_pretrained(tmp_path / "nothing-here")


def test_encoding_members_travel_together(clip):
    text = clip.encode_text(CAPTIONS)
    assert text.select(slice(1, 3)).tokens.shape == (2, 16)
    repeated = text.repeat_interleave(2)
    assert torch.equal(repeated.z_txt[1], repeated.z_txt[0])
    assert clip.encode_text([""]).expand(3).text_mask.shape == (3, 16)
    half = text.to(torch.bfloat16)
    assert half.text_states.dtype == torch.bfloat16 and half.tokens.dtype == torch.long
