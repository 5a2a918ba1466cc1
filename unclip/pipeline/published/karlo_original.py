"""Karlo's original checkpoints: pickled .ckpt files of a prior, a decoder and both upsamplers.

Its CLIP is a program in a file (TorchScript) and cannot be read as weights; Hugging Face's
openai/clip-vit-large-patch14 holds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UnCLIPScheduler
from torch import Tensor

from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline.loading import (
    ModelFileError,
    build_empty,
    check_tensor,
    fill,
    inside,
    unpickled_tensors,
)
from unclip.pipeline.pickles import PickleError, read_pickle
from unclip.pipeline.published.karlo import GUIDANCE, check_statistics
from unclip.pipeline.published.packed_unet import shape_of, unpack, unpacked_unet

FILES = {
    "prior": "prior-ckpt*.ckpt",
    "statistics": "*stats.th",
    "decoder": "decoder-ckpt*.ckpt",
    "upsampler": "improved-sr-ckpt*.ckpt",
}
CLIP_RANGE = 10.0
STEPS = {"prior": 25, "decoder": 50, "upsampler_256": 7}

PRIOR = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "positional_embedding": "positional_embedding",
    "prd_emb": "prd_embedding",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
PRIOR_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm3",
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}
PROJECTION = {
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "text_feat_proj": "embedding_proj",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
    "cf_param": "learned_classifier_free_guidance_embeddings",
}


@dataclass(frozen=True)
class Sizes:
    """What Karlo's config files say and its weights do not."""

    head_dim: int = 64
    context: int = 77
    decoder: int = 64  # pixels a side
    upsampler: int = 256


SIZES = Sizes()


def is_karlo_original(folder: Path) -> bool:
    """Whether a folder holds Karlo's own files."""
    return folder.is_dir() and any(folder.glob(FILES["decoder"]))


def read_karlo_original(folder: Path, dtype: torch.dtype, root: Path) -> dict[str, Any]:
    """All of our UnCLIPPipeline but CLIP; the decoder and the upsampler in dtype."""
    files = {part: only_file(folder, pattern, root) for part, pattern in FILES.items()}
    return {
        "prior": read_prior(files["prior"], files["statistics"]),
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=CLIP_RANGE),
        "decoder": read_decoder(files["decoder"], dtype),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "upsampler_256": read_upsampler(files["upsampler"], dtype),
        "upsampler_256_scheduler": UnCLIPScheduler(),
        "normalize": False,
        "default_steps": STEPS,
        "default_guidance": GUIDANCE,
    }


def only_file(folder: Path, pattern: str, root: Path) -> Path:
    """The one file that fits a pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise ModelFileError(f"{folder}: holds {len(found)} files {pattern}, not one")
    return inside(found[0] if found else folder / pattern, root)


def weights_under(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, their names without the prefix that all must have."""
    weights = {}
    for name, tensor in unpickled_tensors(path, "state_dict"):
        if not name.startswith(prefix):
            raise ModelFileError(f"{path}: the network has no weight {name}")
        weights[name.removeprefix(prefix)] = tensor
    return weights


def sized(path: Path, weights: Mapping[str, Tensor], name: str, axis: int) -> int:
    """A size that is read off a weight."""
    if name not in weights or weights[name].ndim <= axis:
        raise ModelFileError(f"{path}: {name} is missing")
    return weights[name].shape[axis]


def read_prior(path: Path, statistics: Path) -> Prior:
    """The prior, in float32, and the statistics of embeddings that lie beside it."""
    weights = weights_under(path, "model.")
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")}
    width = sized(path, weights, "time_embed.0.weight", 0)
    embedding_dim = sized(path, weights, "out_proj.weight", 0)
    prior = build_empty(
        path,
        lambda: Prior(
            embedding_dim=embedding_dim,
            context=sized(path, weights, "positional_embedding", 1) - 4,
            num_layers=len(blocks),
            num_heads=width // SIZES.head_dim,
            head_dim=SIZES.head_dim,
            clip_range=CLIP_RANGE,
        ),
    )
    tensors = [*prior_weights(path, weights), *read_statistics(statistics, embedding_dim)]
    fill(prior.transformer, path, iter(tensors), torch.float32)
    check_statistics(statistics, prior)
    return prior.eval()


def prior_weights(path: Path, weights: Mapping[str, Tensor]) -> Iterator[tuple[Path, str, Tensor]]:
    """The prior's weights in the names of diffusers' PriorTransformer."""
    for name, tensor in weights.items():
        layer, kind = name.rsplit(".", 1) if "." in name else (name, "")
        block, part = layer.split(".")[:3], ".".join(layer.split(".")[3:])
        home = f"transformer_blocks.{block[-1]}"
        if layer in PRIOR:
            yield path, ".".join(filter(None, (PRIOR[layer], kind))), tensor
        elif block[:2] == ["transformer", "resblocks"] and part in PRIOR_BLOCK:
            yield path, f"{home}.{PRIOR_BLOCK[part]}.{kind}", tensor
        elif block[:2] == ["transformer", "resblocks"] and part == "attn.c_qkv":
            for letter, piece in zip("qkv", checked_unpack(path, name, tensor, 3), strict=True):
                yield path, f"{home}.attn1.to_{letter}.{kind}", piece
        else:
            raise ModelFileError(f"{path}: the network has no weight {name}")


def checked_unpack(path: Path, name: str, tensor: Tensor, num_parts: int) -> Tensor:
    """See packed_unet.unpack."""
    if tensor.ndim == 0 or tensor.shape[0] % (num_parts * SIZES.head_dim):
        raise ModelFileError(f"{path}: {name} has the shape {tuple(tensor.shape)}")
    return unpack(tensor, num_parts, SIZES.head_dim)


def read_statistics(path: Path, dim: int) -> list[tuple[Path, str, Tensor]]:
    """clip_mean and clip_std [1, D]."""
    try:
        pair = read_pickle(path)
    except PickleError as error:
        raise ModelFileError(str(error)) from None
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ModelFileError(f"{path}: must hold a mean and a standard deviation")
    rows = []
    for name, value in zip(("clip_mean", "clip_std"), pair, strict=True):
        if not isinstance(value, Tensor):
            raise ModelFileError(f"{path}: {name} is no tensor")
        check_tensor(path, name, value, torch.empty(dim))
        rows.append((path, name, value[None]))
    return rows


def read_decoder(path: Path, dtype: torch.dtype) -> Decoder:
    """The decoder: its U-Net, and the projections that Karlo keeps within it."""
    weights = weights_under(path, "model.")
    projections = {name: w for name, w in weights.items() if projection_name(name)}
    unet = {name: w for name, w in weights.items() if name not in projections}
    width = sized(path, weights, "text_seq_proj.0.weight", 0)
    embedding_dim = sized(path, weights, "clip_tok_proj.weight", 1)
    shape = checked_shape(path, unet)
    decoder = build_empty(
        path,
        lambda: Decoder(
            embedding_dim=embedding_dim,
            context=SIZES.context,
            size=SIZES.decoder,
            channels=shape.channels,
            num_blocks=shape.num_blocks,
            attention_levels=shape.attention_levels,
            head_dim=SIZES.head_dim,
            context_dim=width,
        ),
    )
    fill(decoder.unet, path, unet_tensors(path, unet), dtype)
    named = ((path, projection_name(name), tensor) for name, tensor in projections.items())
    fill(decoder.text_proj, path, named, dtype)
    return decoder.eval()


def projection_name(name: str) -> str | None:
    """Our name of a weight of the projections, None for one of the U-Net."""
    if name in PROJECTION:
        return PROJECTION[name]
    layer, _, kind = name.rpartition(".")
    return f"{PROJECTION[layer]}.{kind}" if layer in PROJECTION else None


def read_upsampler(path: Path, dtype: torch.dtype) -> Upsampler:
    """Both networks for 256 pixels: that of the first steps and that of the last."""
    weights = weights_under(path, "model_")
    first, last = (
        {name.removeprefix(p): w for name, w in weights.items() if name.startswith(p)}
        for p in ("first_steps.", "last_step.")
    )
    if len(first) + len(last) != len(weights):
        raise ModelFileError(f"{path}: holds weights of neither model_first_steps nor _last_step")
    shape = checked_shape(path, first)
    upsampler = build_empty(
        path,
        lambda: Upsampler(
            size=SIZES.upsampler,
            channels=shape.channels,
            num_blocks=shape.num_blocks,
            dropout=0.0,
            clamp_resized=False,
            separate_last_step=True,
        ),
    )
    fill(upsampler.unet, path, unet_tensors(path, first), dtype)
    fill(upsampler.unet_last, path, unet_tensors(path, last), dtype)
    return upsampler.eval()


def checked_shape(path: Path, weights: Mapping[str, Tensor]):
    """See packed_unet.shape_of."""
    try:
        return shape_of(weights)
    except (KeyError, ValueError, IndexError) as error:
        raise ModelFileError(f"{path}: is no U-Net of this kind ({error})") from None


def unet_tensors(path: Path, weights: Mapping[str, Tensor]) -> Iterator[tuple[Path, str, Tensor]]:
    """See packed_unet.unpacked_unet."""
    try:
        for name, tensor in unpacked_unet(weights, SIZES.head_dim):
            yield path, name, tensor
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: the network has no weight {error}") from None
