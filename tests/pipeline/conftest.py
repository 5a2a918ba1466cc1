"""A tiny random pipeline with the sizes of the real one, and the folder it is saved in."""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from unclip import CLIP, Decoder, Prior, UnCLIPPipeline, Upsampler

CONTEXT = 16
WIDTH = 32
DECODER = {
    "stem": 2,
    "channels": (32, 32),
    "num_blocks": 1,
    "attention_levels": (False, True),
    "head_dim": 16,
    "context_dim": 32,
    "z_img_scale": WIDTH**0.5,
}
STEPS = {"prior": 3, "decoder": 3, "upsampler_256": 2, "upsampler_1024": 1}


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: a token for each byte, another where a word ends."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def make_clip(picture_tower: str = "vit") -> CLIP:
    """A random CLIP whose picture tower is a "vit" or a "resnet"."""
    tokenizer = byte_tokenizer()
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
    tower["num_attention_heads"] = 2
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if picture_tower == "resnet":
        text["model_type"] = "clip_text_model"
        widths = {"embedding_size": 8, "hidden_sizes": [8, 16], "hidden_size": 16, "depths": [1, 1]}
        vision = {"model_type": "resnet", "layer_type": "basic", "image_size": 32, **widths}
        model_class = VisionTextDualEncoderModel
        config = VisionTextDualEncoderConfig(
            text_config=text, vision_config=vision, projection_dim=WIDTH
        )
    else:
        vision = {**tower, "image_size": 32, "patch_size": 8}
        model_class = CLIPModel
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIP(model_class(config).eval(), tokenizer, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def make_stages(decoder: dict) -> dict:
    """Random networks of each stage, in which both the conditions and the noise show.

    decoder: arguments of the decoder that should be others.
    """
    common = {"num_blocks": 1, "dropout": 0.0, "prediction": "x_0"}
    stages = {
        "clip": make_clip(),
        "prior": Prior(WIDTH, CONTEXT, num_layers=2, num_heads=2, head_dim=16),
        "decoder": Decoder(WIDTH, CONTEXT, **{**DECODER, **decoder}),
        "upsampler_256": Upsampler(256, stem=8, channels=(16, 16), norm_groups=8, **common),
        "upsampler_1024": Upsampler(
            1024, stem=16, channels=(8, 8), norm_groups=8, schedule="linear", **common
        ),
    }
    stages["prior"].set_statistics(torch.randn(WIDTH) / 30, torch.rand(WIDTH) / 10 + 0.1)
    for name in ("upsampler_256", "upsampler_1024"):
        torch.nn.init.normal_(stages[name].unet.conv_out.weight, std=0.1)
    return stages


def new_pipe(decoder_config: dict | None = None, **overrides) -> UnCLIPPipeline:
    """A new tiny pipeline; overrides are arguments of from_stages, decoder_config of Decoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            **make_stages(decoder_config or {}),
            "default_steps": STEPS,
            "default_guidance": 2.0,
            **overrides,
        }
        pipe = UnCLIPPipeline.from_stages(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def make_pipe():
    """Make a new tiny pipeline; see new_pipe."""
    return new_pipe


@pytest.fixture(scope="session")
def pipe():
    """A tiny pipeline that no test changes."""
    return new_pipe()


@pytest.fixture(scope="session")
def make_resnet_clip():
    """Make a random CLIP whose picture tower is a ResNet."""
    return lambda: make_clip("resnet")


@pytest.fixture
def own_pipe():
    """A tiny pipeline, the same one, for a test to change."""
    return new_pipe()


@pytest.fixture(scope="session")
def model_folder(pipe, tmp_path_factory):
    """The tiny pipeline as a folder that no test changes."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipe.save_pretrained(folder, max_shard_size="100KB")
    return folder
