"""A tiny random Karlo: diffusers' own pipelines for text and for variations, and their folders."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip import (
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPTextProjModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unclip import Decoder, Prior, Upsampler
from unclip import UnCLIPPipeline as UnclipPipeline

CONTEXT = 14
WIDTH = 32
CONTEXT_DIM = 48
RESNET_LEVELS = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
ATTENTION_LEVELS = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")
PREPROCESSOR = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def byte_vocabulary() -> dict[str, int]:
    """CLIP's vocabulary without merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


def randomize(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights in which every path shows: those that begin at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise = noise / parameter[0].numel() ** 0.5
        elif name.endswith("weight"):
            noise = 1 + 0.1 * noise
        elif name.endswith("bias"):
            noise = 0.1 * noise
        parameter.data.copy_(noise)
    return network.eval()


def quieten(network: torch.nn.Module) -> torch.nn.Module:
    """Let a U-Net predict little noise: its rounding, times 20,000 at t = 999, must stay small."""
    network.conv_out.weight.data.mul_(0.02)
    network.conv_out.bias.data.mul_(0.02)
    return network


def make_prior() -> PriorTransformer:
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=WIDTH,
        num_embeddings=CONTEXT,
    )
    randomize(prior, 1)
    prior.clip_mean.data.mul_(0.1)
    prior.clip_std.data.abs_().add_(0.2)
    return prior


def make_unet(out_channels: int, seed: int, size: int | None = 32) -> UNet2DModel:
    down, up = RESNET_LEVELS
    network = UNet2DModel(
        sample_size=size,
        layers_per_block=1,
        down_block_types=(down, down),
        up_block_types=(up, up),
        block_out_channels=(32, 32),
        in_channels=6,
        out_channels=out_channels,
        add_attention=False,
    )
    return quieten(randomize(network, seed))


def make_parts() -> dict:
    """Karlo's components, as in its conversion, at widths that a test can afford."""
    (down, up), (down_attention, up_attention) = RESNET_LEVELS, ATTENTION_LEVELS
    decoder = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=(down, down_attention),
        up_block_types=(up_attention, up),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=CONTEXT_DIM,
        class_embed_type="identity",
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
    )
    text_proj = UnCLIPTextProjModel(
        clip_embeddings_dim=WIDTH, time_embed_dim=128, cross_attention_dim=CONTEXT_DIM
    )
    vocabulary = byte_vocabulary()
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "projection_dim": WIDTH}
    text = CLIPTextConfig(
        **tower,
        vocab_size=len(vocabulary),
        max_position_embeddings=CONTEXT,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    return {
        "prior": make_prior(),
        "decoder": quieten(randomize(decoder, 2)),
        "text_proj": randomize(text_proj, 3),
        "text_encoder": randomize(CLIPTextModelWithProjection(text), 4),
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT),
        "super_res_first": make_unet(3, 5),
        "super_res_last": make_unet(3, 6, size=None),
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log"),
    }


def save(pipeline, folder):
    """Save as Karlo's repositories are: text_proj belongs to the library "unclip"."""
    pipeline.save_pretrained(folder)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
    path.write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def karlo(tmp_path_factory):
    """diffusers' pipelines text and variations with the same weights, and folders of both."""
    parts = make_parts()
    text = UnCLIPPipeline(**parts)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        image_size=16,
        patch_size=8,
    )
    shared = {name: part for name, part in parts.items() if not name.startswith("prior")}
    variations = UnCLIPImageVariationPipeline(
        **shared,
        image_encoder=randomize(CLIPVisionModelWithProjection(vision), 7),
        feature_extractor=CLIPImageProcessorPil(**PREPROCESSOR),
    )
    for pipeline in (text, variations):
        pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("karlo")
    return SimpleNamespace(
        text=text,
        variations=variations,
        text_folder=save(text, folder / "text"),
        variations_folder=save(variations, folder / "variations"),
    )


@pytest.fixture(scope="session")
def karlo_networks():
    """Our networks at Karlo's full size, without values."""
    with torch.device("meta"):
        return {
            "prior": Prior(),
            "decoder": Decoder(),
            "upsampler": Upsampler(clamp_resized=False, separate_last_step=True),
        }


@pytest.fixture(scope="session")
def own_model(karlo, tmp_path_factory):
    """A model of ours with the tiny Karlo's CLIP, whose embeddings have length 1."""
    pipe = UnclipPipeline.from_pretrained(karlo.text_folder)
    pipe.register_to_config(normalize=True)
    folder = tmp_path_factory.mktemp("own") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def kandinsky_folder(karlo, tmp_path_factory):
    """A folder of KandinskyV22PriorPipeline with the tiny Karlo's prior and CLIP."""
    pipe = KandinskyV22PriorPipeline(
        prior=karlo.text.prior,
        image_encoder=karlo.variations.image_encoder,
        text_encoder=karlo.text.text_encoder,
        tokenizer=karlo.text.tokenizer,
        scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
        image_processor=karlo.variations.feature_extractor,
    )
    folder = tmp_path_factory.mktemp("kandinsky") / "prior"
    pipe.save_pretrained(folder)
    return folder
