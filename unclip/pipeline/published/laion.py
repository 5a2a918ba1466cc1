"""Checkpoints of LAION's prior, and of any other that DALLE2-pytorch's trainer wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unclip.models.laion_prior import LaionPrior
from unclip.pipeline.loading import ModelFileError, build_empty, fill, read_json
from unclip.pipeline.pickles import PickleError, read_pickle
from unclip.pipeline.schedulers import scheduler_for

SUFFIXES = (".pth", ".pt")
CONFIG_NAME = "prior_config.json"
STATES = ("ema_model", "model")  # of the trainer's file, the average first
SAMPLER = "ddim"
STEPS, GUIDANCE = 64, 1.0  # "cond_scale > 1 gave poor results" (LAION)
LAYER = re.compile(r"causal_transformer\.layers\.(\d+)\.")
# What the file says and its shapes do not: settings of the prior that are read, and as what.
READ_AS = {
    "timesteps": None,
    "loss_type": None,
    "cond_drop_prob": None,
    "image_size": None,
    "image_channels": None,
    "image_embed_dim": None,
    "sample_timesteps": None,
    "clip": None,
    "net": None,
    "image_embed_scale": None,
    "predict_x_start": None,
    "predict_v": None,
    "beta_schedule": "cosine",
    "condition_on_text_encodings": True,
    "sampling_clamp_l2norm": False,
    "sampling_final_clamp_l2norm": False,
    "init_image_embed_l2norm": False,
    "training_clamp_l2norm": None,
    "text_cond_drop_prob": None,
    "image_cond_drop_prob": None,
    "clip_adapter_overrides": None,
}


def read_laion_prior(path: Path, root: Path) -> dict[str, Any]:
    """The prior, in float32, and its scheduler, from a checkpoint or a folder that holds one.

    A prior_config.json beside it is heeded; sizes come from the weights.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) != 1:
            raise ModelFileError(f"{path}: holds {len(found)} files .pth or .pt, not one")
        path = found[0]
    settings = read_prior_config(path.parent / CONFIG_NAME, root)
    weights = prior_weights(path)
    prior = build_empty(path, lambda: LaionPrior(**sizes_of(path, weights), **settings))
    check_schedule(path, weights, prior)
    net = {n.removeprefix("net."): w for n, w in weights.items() if n.startswith("net.")}
    fill(prior, path, ((path, name, tensor) for name, tensor in net.items()), torch.float32)
    return {"prior": prior.eval(), "prior_scheduler": scheduler_for(prior, SAMPLER)}


def read_prior_config(path: Path, root: Path) -> dict[str, Any]:
    """What a prior_config.json says that the weights do not; nothing where there is none."""
    if not path.exists():
        return {}
    config = read_json(path, root)
    config = config.get("prior", config)
    if not isinstance(config, dict):
        raise ModelFileError(f"{path}: prior must be an object")
    for key, value in config.items():
        if key not in READ_AS:
            raise ModelFileError(f"{path}: unknown setting {key!r}")
        if READ_AS[key] is not None and value != READ_AS[key]:
            raise ModelFileError(f"{path}: {key} is {value!r}, but only {READ_AS[key]!r} is known")
    kind = "v" if config.get("predict_v") else "x_0" if config.get("predict_x_start", 1) else "eps"
    return {"prediction": kind, "z_img_scale": config.get("image_embed_scale")}


def prior_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of DiffusionPrior by name, those of the CLIP within left out."""
    try:
        state = read_pickle(path)
    except PickleError as error:
        raise ModelFileError(str(error)) from None
    for key in STATES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise ModelFileError(f"{path}: holds no weights by name")
    weights = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(f"{path}: {str(name)[:60]!r} is no tensor")
        if name.startswith(("net.", "noise_scheduler.")):
            weights[name] = tensor
        elif not name.startswith("clip."):
            raise ModelFileError(f"{path}: the network has no weight {name}")
    return weights


def sizes_of(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of a LaionPrior from the shapes of its weights."""
    net = {name.removeprefix("net."): w for name, w in weights.items() if name.startswith("net.")}
    layers = {match[1] for match in map(LAYER.match, net) if match}
    first = "causal_transformer.layers.0"

    def size(name: str, axis: int) -> int:
        if name not in net or net[name].ndim <= axis:
            raise ModelFileError(f"{path}: net.{name} is missing, or not as in a discrete prior")
        return net[name].shape[axis]

    dim, head_dim = size("learned_query", 0), size(f"{first}.0.null_kv", 1)
    return {
        "embedding_dim": dim,
        "context": size("null_text_encodings", 1),
        "num_layers": len(layers),
        "num_heads": size(f"{first}.0.to_q.weight", 0) // max(head_dim, 1),
        "head_dim": head_dim,
        "ff_mult": size(f"{first}.1.5.weight", 1) // max(dim, 1),
        "norm_in": "causal_transformer.init_norm.g" in net,
        "norm_out": "causal_transformer.norm.g" in net,
        "final_proj": "causal_transformer.project_out.weight" in net,
        "normformer": f"{first}.1.3.g" in net,
        "rotary": f"{first}.0.rotary_emb.freqs" in net,
        "num_train_timesteps": size("to_time_embeds.0.weight", 0),
    }


def check_schedule(path: Path, weights: Mapping[str, Tensor], prior: LaionPrior) -> None:
    """Refuse a noise schedule other than the one that the scheduler will have."""
    betas = weights.get("noise_scheduler.betas")
    expected = scheduler_for(prior, SAMPLER).betas
    if betas is None or betas.shape != expected.shape:
        raise ModelFileError(f"{path}: noise_scheduler.betas must hold {len(expected)} numbers")
    if not torch.allclose(betas.float(), expected, atol=1e-4):
        raise ModelFileError(f"{path}: noise_scheduler.betas is no cosine schedule")
