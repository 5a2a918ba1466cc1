"""A model of ours as a folder that diffusers' own classes load, component by component.

The layout is that of diffusers' UnCLIPPipeline (Karlo), which published/karlo.py reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from transformers import CLIPModel, CLIPTextModelWithProjection

from unclip.models.clip import CLIP
from unclip.models.prior import Prior
from unclip.pipeline.arguments import STAGES
from unclip.pipeline.saving import (
    check_storable,
    forget_lengths,
    stored_state,
    write_folder,
    write_index,
    write_network,
    write_state,
)
from unclip.pipeline.stages import TOKENIZING

SHARD_SIZE = "5GB"
UNSHIPPED = "upsampler_1024: diffusers' pipeline has no place for it and it is left out"


def export_to_diffusers(
    pipe: Any, folder: str | Path, dtype: torch.dtype | None = None, overwrite: bool = False
) -> None:
    """Write a pipeline of ours in the layout of diffusers' UnCLIPPipeline.

    With a tower for pictures, image_encoder/ and feature_extractor/ are written as well; without a
    prior, the folder is one of UnCLIPImageVariationPipeline. The last upsampler is left out.

    Raises:
        ValueError: for a network that diffusers' classes cannot be, or whose weights are quantized
            or offloaded, by name; for a dtype that networks cannot be in.
        FileExistsError, FloatingPointError: as save_pretrained.
    """
    check_exportable(pipe, dtype)
    write_folder(Path(folder), overwrite, lambda new: write_components(pipe, new, dtype))


def check_exportable(pipe: Any, dtype: torch.dtype | None) -> None:
    """Refuse what diffusers' classes have no setting for, and weights that cannot be stored."""
    decoder, upsampler, prior = pipe.decoder.config, pipe.upsampler_256, pipe.prior
    if upsampler is None:
        raise ValueError("upsampler_256: diffusers' pipeline needs one")
    if not isinstance(pipe.clip, CLIPModel | CLIPTextModelWithProjection):
        raise ValueError(f"clip: {type(pipe.clip).__name__} has no place in diffusers' pipeline")
    if prior is None and isinstance(pipe.clip, CLIPTextModelWithProjection):
        raise ValueError("clip: without a prior, it needs a tower for pictures")
    if prior is not None and not isinstance(prior, Prior):
        raise ValueError(f"prior: {type(prior).__name__} is no PriorTransformer")
    for stage in STAGES[:3]:  # the flag is the network's, of which parts are written
        if pipe.components[stage] is not None:
            check_storable(pipe.components[stage], dtype, stage)
    plain = {"stem": 1, "prediction": "eps", "schedule": "cosine"}
    own_text = {"text_encoder": None, "inpainting": False, "z_img_scale": 1.0}
    own_layers = {"noise_conditioning": False, "readout": None}
    check_settings("decoder", decoder, {**plain, **own_text, "learned_variance": True})
    check_settings("upsampler_256", upsampler.config, {**plain, **own_layers})
    if prior is not None:
        check_settings("prior", prior.config, {"schedule": "cosine"})
    if decoder.text_states_dim not in (None, decoder.embedding_dim):
        raise ValueError("decoder: its text states are wider than embeddings")


def check_settings(name: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse the first setting that is not as wanted."""
    for key, value in wanted.items():
        if config[key] != value:
            raise ValueError(
                f"{name}: its {key} is {config[key]!r}; diffusers' classes know {value!r} alone"
            )


def write_components(pipe: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Every folder of the layout, and its model_index.json."""
    upsampler, text_proj = pipe.upsampler_256, pipe.decoder.text_proj
    networks = {"decoder": pipe.decoder.unet, "super_res_first": upsampler.unet}
    networks["super_res_last"] = upsampler.unet_last or upsampler.unet
    for name, network in networks.items():
        write_network(network, folder / name, dtype, SHARD_SIZE)
    write_network(text_proj, folder / "text_proj", dtype, SHARD_SIZE, left_out={"text_states_dim"})
    classes = {name: ("diffusers", type(network).__name__) for name, network in networks.items()}
    classes["text_proj"] = ("unclip", "UnCLIPTextProjModel")
    if pipe.prior is not None:
        transformer, name = pipe.prior.transformer, PriorTransformer.__name__
        write_network(transformer, folder / "prior", dtype, SHARD_SIZE, class_name=name)
        classes["prior"] = ("diffusers", name)
    with TOKENIZING:
        classes |= write_encoders(pipe.text_and_image_encoder(), folder, dtype)
    for name, scheduler in schedulers_of(pipe).items():
        scheduler.save_pretrained(folder / name)
        classes[name] = ("diffusers", "UnCLIPScheduler")
    kind = "UnCLIPImageVariationPipeline" if pipe.prior is None else "UnCLIPPipeline"
    write_index(folder, classes, {"_class_name": kind})


def schedulers_of(pipe: Any) -> dict[str, UnCLIPScheduler]:
    """The schedulers that diffusers' pipeline can step with, for our networks."""
    steps = {network.config.num_train_timesteps for network in (pipe.decoder, pipe.upsampler_256)}
    decoder = UnCLIPScheduler(max(steps), variance_type="learned_range")
    found = {"decoder_scheduler": decoder, "super_res_scheduler": UnCLIPScheduler(max(steps))}
    if pipe.prior is not None:
        found["prior_scheduler"] = UnCLIPScheduler(
            pipe.prior.config.num_train_timesteps,
            prediction_type="sample",
            clip_sample_range=pipe.prior.config.clip_range,
        )
    return found


def write_encoders(
    clip: CLIP, folder: Path, dtype: torch.dtype | None
) -> dict[str, tuple[str, str]]:
    """CLIP's towers, each a folder of its own, its tokenizer and what it expects of pixels."""
    model = clip.model
    whole = model.config
    towers = {"text_encoder": ("text", "CLIPTextModelWithProjection", "text_model", "text_proj")}
    if clip.sees_pictures:
        towers["image_encoder"] = (
            *("vision", "CLIPVisionModelWithProjection"),
            *("vision_model", "visual_proj"),
        )
    state = stored_state(model, dtype, "clip")
    classes = {}
    for name, (kind, class_name, *prefixes) in towers.items():
        config = getattr(whole, f"{kind}_config", whole)
        settings = json.loads(config.to_json_string(use_diff=False))
        settings |= {"projection_dim": whole.projection_dim, "architectures": [class_name]}
        settings.pop("_name_or_path", None)
        own = {key: w for key, w in state.items() if key.startswith(tuple(prefixes))}
        write_state(folder / name, "model", own, settings, SHARD_SIZE)
        classes[name] = ("transformers", class_name)
    forget_lengths(clip)
    clip.tokenizer.save_pretrained(folder / "tokenizer")
    classes["tokenizer"] = ("transformers", "CLIPTokenizer")
    if clip.sees_pictures:
        (folder / "feature_extractor").mkdir()
        clip.save_processor(folder / "feature_extractor")
        classes["feature_extractor"] = ("transformers", "CLIPImageProcessor")
    return classes
