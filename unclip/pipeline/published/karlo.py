"""Karlo in diffusers' layout: a folder of UnCLIPPipeline or of UnCLIPImageVariationPipeline.

Karlo (kakaobrain, 2022) is unCLIP with CLIP's own text states, an upsampler whose last step a
second network takes, and embeddings that are not brought to length 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel

from unclip.models.clip import text_config_of
from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.models.text_proj import UnCLIPTextProjModel
from unclip.models.upsampler import Upsampler
from unclip.pipeline.folder import INDEX_NAME
from unclip.pipeline.loading import (
    NETWORK_STEM,
    SCHEDULERS,
    ModelFileError,
    build_empty,
    fill,
    read_json,
    read_scheduler,
    stored_tensors,
)
from unclip.pipeline.published.encoders import read_pixels, read_towers
from unclip.pipeline.published.settings import check_same, read_entries, read_settings

TEXT_TO_IMAGE, VARIATIONS = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
PICKLED = "diffusion_pytorch_model.bin"
# As published: 6 steps of the first network for 256 pixels and one of the second.
STEPS = {"prior": 25, "decoder": 25, "upsampler_256": 7}
GUIDANCE = {"prior": 4.0, "decoder": 8.0}

SCHEDULER = [("diffusers", cls.__name__) for cls in SCHEDULERS]
COMPONENTS = {
    "decoder": [("diffusers", "UNet2DConditionModel")],
    "text_proj": [("unclip", "UnCLIPTextProjModel")],
    "super_res_first": [("diffusers", "UNet2DModel")],
    "super_res_last": [("diffusers", "UNet2DModel")],
    "text_encoder": [("transformers", "CLIPTextModelWithProjection")],
    "tokenizer": [("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")],
    "decoder_scheduler": SCHEDULER,
    "super_res_scheduler": SCHEDULER,
}
PRIOR = {"prior": [("diffusers", "PriorTransformer")], "prior_scheduler": SCHEDULER}
PICTURES = {
    "image_encoder": [("transformers", "CLIPVisionModelWithProjection")],
    "feature_extractor": [
        ("transformers", "CLIPImageProcessor"),
        ("transformers", "CLIPFeatureExtractor"),
        ("transformers", "CLIPImageProcessorFast"),
        ("transformers", "CLIPImageProcessorPil"),
    ],
}


def read_karlo(folder: Path, dtype: torch.dtype, root: Path, variant: str | None) -> dict[str, Any]:
    """Everything that our UnCLIPPipeline is made of; the decoder and the upsampler in dtype.

    A folder for variations has no prior. One for text has no tower for pictures, unless it is of
    our own making (published/diffusers_export.py), which holds both.
    """
    path = folder / INDEX_NAME
    index = read_json(path, root)
    of_text = index.get("_class_name") == TEXT_TO_IMAGE
    pictures = not of_text or "image_encoder" in index
    allowed = COMPONENTS | (PRIOR if of_text else {}) | (PICTURES if pictures else {})
    classes = read_entries(path, index, allowed)
    clip, tokenizer = read_towers(folder, root, variant, pictures)
    processor = folder / "feature_extractor" / "preprocessor_config.json"
    parts = {"clip": clip, "tokenizer": tokenizer, **read_pixels(processor, root, normalize=False)}
    schedulers = {
        name.replace("super_res", "upsampler_256"): read_scheduler(folder / name, cls, root)
        for name, cls in classes.items()
        if name.endswith("scheduler")
    }
    if of_text:
        clip_range = schedulers["prior_scheduler"].config.get("clip_sample_range", 1.0)
        parts["prior"] = read_prior(folder / "prior", root, variant, clip_range)
    context = text_config_of(clip).max_position_embeddings
    parts["decoder"] = read_decoder(folder, dtype, root, variant, context)
    parts["upsampler_256"] = read_upsampler(folder, dtype, root, variant)
    return parts | schedulers | {"default_steps": STEPS, "default_guidance": GUIDANCE}


def read_prior(folder: Path, root: Path, variant: str | None, clip_range: float) -> Prior:
    """A PriorTransformer's folder as our Prior, always in float32."""
    given = read_settings(folder, root, PriorTransformer)
    path = folder / "config.json"
    prior = build_empty(
        path,
        lambda: Prior(
            embedding_dim=given["embedding_dim"],
            context=given["num_embeddings"],
            num_layers=given["num_layers"],
            num_heads=given["num_attention_heads"],
            head_dim=given["attention_head_dim"],
            dropout=given["dropout"],
            clip_range=clip_range,
        ),
    )
    check_same(path, given, prior.transformer.config, set())
    tensors = stored_tensors(folder, NETWORK_STEM, root, variant, PICKLED)
    fill(prior.transformer, folder, tensors, torch.float32)
    check_statistics(folder, prior)
    return prior.eval()


def check_statistics(where: Path, prior: Prior) -> None:
    """Refuse deviations that are not positive: what is multiplied by them says nothing."""
    if not (prior.transformer.clip_std > 0).all():
        raise ModelFileError(f"{where}: clip_std must be positive")


def read_decoder(
    folder: Path, dtype: torch.dtype, root: Path, variant: str | None, context: int
) -> Decoder:
    """The U-Net in decoder/ and the projections in text_proj/ as our Decoder."""
    unet = read_settings(folder / "decoder", root, UNet2DConditionModel)
    projection = read_settings(folder / "text_proj", root, UnCLIPTextProjModel)
    path = folder / "decoder" / "config.json"
    decoder = build_empty(path, lambda: make_decoder(unet, projection, context))
    check_same(path, unet, decoder.unet.config, set())
    path = folder / "text_proj" / "config.json"
    check_same(path, projection, decoder.text_proj.config, set())
    for name, network in {"decoder": decoder.unet, "text_proj": decoder.text_proj}.items():
        tensors = stored_tensors(folder / name, NETWORK_STEM, root, variant, PICKLED)
        fill(network, folder / name, tensors, dtype)
    return decoder.eval()


def make_decoder(unet: dict[str, Any], projection: dict[str, Any], context: int) -> Decoder:
    """Our Decoder with the sizes of a UNet2DConditionModel and a UnCLIPTextProjModel."""
    return Decoder(
        embedding_dim=projection["clip_embeddings_dim"],
        context=context,
        size=unet["sample_size"],
        channels=tuple(unet["block_out_channels"]),
        num_blocks=unet["layers_per_block"],
        attention_levels=tuple("CrossAttn" in kind for kind in unet["down_block_types"]),
        head_dim=unet["attention_head_dim"],
        context_dim=unet["cross_attention_dim"],
        dropout=unet["dropout"],
        learned_variance=unet["out_channels"] == 2 * unet["in_channels"],
        text_states_dim=projection["text_states_dim"],
        norm_groups=unet["norm_num_groups"],
    )


def read_upsampler(folder: Path, dtype: torch.dtype, root: Path, variant: str | None) -> Upsampler:
    """The U-Nets in super_res_first/ and super_res_last/ as one Upsampler; equal ones are one."""
    first, last = (folder / f"super_res_{which}" for which in ("first", "last"))
    given = read_settings(first, root, UNet2DModel)
    upsampler = build_empty(first / "config.json", lambda: make_upsampler(given))
    check_same(first / "config.json", given, upsampler.unet.config, set())
    other = read_settings(last, root, UNet2DModel)  # its sample_size is left open
    check_same(last / "config.json", other, upsampler.unet.config, {"sample_size"})
    for where, network in ((first, upsampler.unet), (last, upsampler.unet_last)):
        fill(network, where, stored_tensors(where, NETWORK_STEM, root, variant, PICKLED), dtype)
    pairs = zip(upsampler.unet.parameters(), upsampler.unet_last.parameters(), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        upsampler.unet_last = None
        upsampler.register_to_config(separate_last_step=False)
    return upsampler.eval()


def make_upsampler(unet: dict[str, Any]) -> Upsampler:
    """Our Upsampler with the sizes of a UNet2DModel, and a second network for the last step."""
    return Upsampler(
        size=unet["sample_size"],
        channels=tuple(unet["block_out_channels"]),
        num_blocks=unet["layers_per_block"],
        dropout=unet["dropout"],
        scale_shift=unet["resnet_time_scale_shift"] == "scale_shift",
        clamp_resized=False,
        separate_last_step=True,
        norm_groups=unet["norm_num_groups"],
    )
