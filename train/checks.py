"""All that can be said against a configuration before torch is imported or a weight is read.

Every fault is a ConfigError or a FileNotFoundError whose message begins with the key.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip_train.config import ConfigError, DecoderConfig, StageConfig
from unclip_train.data.drawings import STYLES
from unclip_train.data.embeddings import clip_folder, read_manifest
from unclip_train.data.sources.opening import HUB, kind_of
from unclip_train.networks import CLASSES, arguments_of, check_network, check_towers, typed

INDEX = "model_index.json"  # of a model in anybody's layout
UPSAMPLERS = ("upsampler_256", "upsampler_1024")
WEIGHTLESS = ("dropout", "shock_passes")  # arguments of networks that no weight depends on
GROWN = ("inpainting", "readout")  # what weights without them are given more weights for
# Networks of published layouts, and one whose settings are its own.
FOREIGN = ("LaionPrior", "PriorTransformer", "UNet2DConditionModel", "UNet2DModel")


@dataclass(frozen=True)
class Towers:
    """What the other networks must fit: the sizes of a CLIP, from its config.json."""

    embedding_dim: int
    context: int
    text_width: int


def check_config(stage: str, config: StageConfig) -> None:
    """Refuse a configuration that cannot be run.

    Raises:
        ConfigError, FileNotFoundError: naming the key.
    """
    run = config.run
    if run.batch_size % run.gradient_accumulation:
        raise ConfigError(
            f"run.batch_size {run.batch_size} must be a multiple of run.gradient_accumulation "
            f"{run.gradient_accumulation}"
        )
    check_data(stage, config)
    towers = check_clip(config.clip) if hasattr(config, "clip") else None
    made_with = check_init(stage, config) if config.init else None
    if stage == "clip":
        check_towers(config.network)
    elif config.init and made_with is None:  # in somebody's layout, read later
        typed("network", arguments_of(stage), config.network)
    elif made_with is not None:
        typed("network", arguments_of(stage), config.network)
        check_fit(config, made_with, towers)
    else:
        check_sizes(stage, config, towers)
    if hasattr(config, "lora") and config.lora.rank and not config.init:
        raise ConfigError("lora.rank: LoRA changes trained weights; give init=")
    if stage == "decoder" and config.prior_share:
        check_prior_share(config)
    check_output(config.output)


def check_prior_share(config: DecoderConfig) -> None:
    """Refuse samples led by a prior where there is none, or where no sample is led by it."""
    if not config.prior:
        raise ConfigError("prior_share: it takes a trained prior to lead samples; give prior=")
    if config.distill.teacher:
        raise ConfigError("prior_share: distillation shows the pictures' own z_img; leave it at 0")


def check_data(stage: str, config: StageConfig) -> None:
    """Refuse data keys that contradict each other, and sources that are not there."""
    data = config.data
    kind = kind_of(data.source)
    unknown = sorted(set(data.styles or ()) - set(STYLES))
    if unknown:
        raise ConfigError(f"data.styles: {unknown[0]!r} is unknown; use {', '.join(STYLES)}")
    if stage == "upsampler":
        crop = data.crop or data.size // 4
        if crop > data.size or crop % 4:
            raise ConfigError(
                f"data.crop must be a multiple of 4 and at most data.size {data.size}, not {crop}"
            )
    if data.validation and data.validation_share:
        raise ConfigError("data.validation and data.validation_share: give one of them")
    if data.validation:
        kind_of(data.validation)
    for key, default in (("analogies", 0), ("style_strength", 1)):
        if kind != "drawings" and getattr(config, key, default) != default:
            raise ConfigError(
                f"{key}: only drawings, as unclip-data emoji makes them, have styles; give "
                f"{key}={default}"
            )
    if not data.embeddings:
        return
    if stage in ("clip", "upsampler"):
        raise ConfigError(f"data.embeddings: {stage} learns from pictures; leave it out")
    if kind == "drawings":
        raise ConfigError("data.embeddings: drawings are composed anew; leave it out")
    for key, wanted in (("framing", "centre"), ("flip", 0)):
        if getattr(data, key) != wanted:
            raise ConfigError(
                f"data.{key}: the embeddings are of central squares, not mirrored; "
                f"use data.{key}={wanted}"
            )
    try:
        dim = read_manifest(Path(data.embeddings))["dim"]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    towers = check_clip(config.clip)
    if towers and towers.embedding_dim != dim:
        raise ConfigError(
            f"data.embeddings: they have {dim} numbers, but those of clip={config.clip} have "
            f"{towers.embedding_dim}; run unclip-data embed with this CLIP"
        )


def check_clip(source: str, key: str = "clip") -> Towers | None:
    """The sizes of a CLIP; None for one in another layout, which is read later."""
    path = clip_folder(source) / "config.json"
    if not path.is_file():
        if source.startswith(HUB) or (Path(source) / INDEX).is_file():
            return None
        raise FileNotFoundError(f"{key}: no trained network in {source} (no config.json)")
    facts = read_object(key, path)
    text = facts.get("text_config", facts)
    if "vocab_size" not in text:
        raise ConfigError(f"{key}: {path} is no CLIP's")
    return Towers(
        facts.get("projection_dim", 512),
        text.get("max_position_embeddings", 77),
        text.get("hidden_size", 512),
    )


def check_init(stage: str, config: StageConfig) -> dict[str, Any] | None:
    """What the weights to begin from were made with; None where their layout is read later."""
    if stage == "clip":
        check_clip(config.init, "init")
        return None
    source = Path(config.init)
    for path in settings_files(stage, source, config.data.size):
        facts = read_object("init", path)
        found = facts.get("_class_name")
        if found in FOREIGN:
            return None
        if found != CLASSES[stage]:
            raise ConfigError(f"init: {path.parent} holds a {found}, but this stage is a {stage}")
        return facts
    if not source.exists() and not config.init.startswith(HUB):
        raise FileNotFoundError(f"init: no trained network in {source} (no config.json)")
    return None


def settings_files(stage: str, source: Path, size: int) -> list[Path]:
    """The config.json of a network's own folder, a run or a model of ours, the best first."""
    names = UPSAMPLERS if stage == "upsampler" else (stage,)
    folders = (source, source / "model", *(source / name for name in names))
    paths = [folder / "config.json" for folder in folders]
    found = [path for path in paths if path.is_file()]
    return sorted(found, key=lambda path: read_object("init", path).get("size") != size)


def check_fit(config: StageConfig, made_with: dict[str, Any], towers: Towers | None) -> None:
    """Hold what is begun from against the config and the CLIP."""
    for name, value in config.network.items():
        known = made_with.get(name)
        if name in WEIGHTLESS or grows(name, value, known):
            continue
        if isinstance(value, dict) and isinstance(known, dict):
            known = {key: known.get(key) for key in value}
        if name in made_with and json.dumps(value) != json.dumps(known):
            raise ConfigError(
                f"network.{name} is {value}, but the weights of init={config.init} have {known}"
            )
    if "size" in made_with and made_with["size"] != config.data.size:
        raise ConfigError(
            f"data.size is {config.data.size}, but the weights of init={config.init} draw "
            f"{made_with['size']} pixels; use data.size={made_with['size']}"
        )
    if towers and made_with.get("embedding_dim", towers.embedding_dim) != towers.embedding_dim:
        raise ConfigError(
            f"clip: its embeddings have {towers.embedding_dim} numbers, but the weights of "
            f"init={config.init} want {made_with['embedding_dim']}; use the CLIP that they "
            "were trained with"
        )


def grows(name: str, value: Any, known: Any) -> bool:
    """Whether weights of a network with `known` are added to for an argument's value."""
    if name == "num_layers":  # of a prior: further blocks behind those that it has
        return known is not None and value > known
    return name in GROWN and bool(value) and not known


def check_sizes(stage: str, config: StageConfig, towers: Towers | None) -> None:
    """Hold a fresh network against the rules of its class, the data and the CLIP."""
    fixed: dict[str, Any] = {}
    if towers:
        fixed = {"embedding_dim": towers.embedding_dim, "context": towers.context}
    if stage == "prior" and towers and towers.text_width != towers.embedding_dim:
        raise ConfigError(
            "clip: the prior needs text states as wide as embeddings, but "
            f"{config.clip} has {towers.text_width} and {towers.embedding_dim}"
        )
    if stage == "decoder":
        fixed |= {"size": config.data.size}
        if towers:
            fixed["text_states_dim"] = towers.text_width
    settings = check_network(stage, config.network, **fixed)
    if stage == "upsampler":
        check_upsampler(config, settings)


def check_upsampler(config: Any, settings: Any) -> None:
    """Hold an upsampler's network against its pictures and crops."""
    data = config.data
    if settings.size != data.size:
        raise ConfigError(
            f"network.size is {settings.size}, but data.size is {data.size}: an upsampler draws "
            f"what it is shown; use network.size={data.size}"
        )
    multiple = settings.stem * 2 ** (len(settings.channels) - 1)
    crop = data.crop or data.size // 4
    if crop % multiple:
        raise ConfigError(
            f"data.crop {crop} must be a multiple of {multiple}, for network.stem "
            f"{settings.stem} and {len(settings.channels)} levels"
        )
    if config.max_noise_level and not settings.noise_conditioning:
        raise ConfigError(
            f"max_noise_level is {config.max_noise_level}, but the network is not told of it; "
            "set network.noise_conditioning=true"
        )


def check_output(output: str) -> None:
    """Refuse a folder that cannot be written."""
    existing = Path(output).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"output: cannot write to {output}")


def read_object(key: str, path: Path) -> dict[str, Any]:
    """The object of a JSON file; ConfigError where it holds none."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read {path}: {error}") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{key}: {path} holds no object")
    return facts
