"""The CLIP of the commands that look at files: where it is found, and what it says."""

import shutil

import pytest
import torch
from PIL import Image

from unclip import UnCLIPPipeline
from unclip.pipeline.folder import embedded_folder
from unclip_sample import encoder
from unclip_sample.request import RequestError


@pytest.fixture(scope="module")
def clip(tiny_model):
    return encoder.load_clip(encoder.find_clip(str(tiny_model)))


def test_a_clip_is_found_in_a_model_and_alone(tiny_model):
    assert encoder.find_clip(str(tiny_model)) == tiny_model / "clip"
    assert encoder.find_clip(str(tiny_model / "clip")) == tiny_model / "clip"
    assert encoder.find_clip(None) == embedded_folder() / "clip"


def test_embeddings_are_those_of_the_pipeline(clip, tiny_model):
    pipe = UnCLIPPipeline.from_pretrained(tiny_model)
    texts = [f"{number} red apples" for number in range(70)]
    z_txt = encoder.embed_texts(clip, texts)
    torch.testing.assert_close(z_txt, pipe.encode(texts).z_txt)
    wide = Image.effect_noise((90, 50), 80).convert("RGBA")
    z_img = encoder.embed_pictures(clip, [wide, wide.crop((20, 0, 70, 50))])
    torch.testing.assert_close(z_img[0], z_img[1])  # the middle square is what counts
    assert z_img.shape == (2, 32) and torch.isfinite(z_img).all()
    assert encoder.logit_scale(clip) == pytest.approx(float(clip.model.logit_scale.detach().exp()))


def test_what_is_no_clip_is_refused_in_one_line(tiny_model, tmp_path):
    with pytest.raises(RequestError, match="^--judge: no CLIP in .*nothing"):
        encoder.find_clip(str(tmp_path / "nothing"), "--judge")
    broken = tmp_path / "clip"
    shutil.copytree(tiny_model / "clip", broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="^--clip: cannot read the CLIP") as refusal:
        encoder.load_clip(broken)
    assert "\n" not in str(refusal.value)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(RequestError, match="^--clip: cannot read the CLIP"):
        encoder.load_clip(broken)
