"""All that can be said against a configuration before torch is imported or a weight is read.

Every fault is a ConfigError or a FileNotFoundError whose message begins with the key.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from unclip_train.config import (
    ClipConfig,
    ConfigError,
    DataConfig,
    DecoderConfig,
    StageConfig,
    UpsamplerConfig,
)
from unclip_train.data.drawings import STYLES, files_present
from unclip_train.data.embeddings import clip_folder, read_manifest
from unclip_train.data.sources.opening import HUB, kind_of
from unclip_train.networks import (
    CLASSES,
    TOWERS,
    arguments_of,
    check_network,
    check_towers,
    typed,
)

INDEX = "model_index.json"  # of a model in anybody's layout
UPSAMPLERS = ("upsampler_256", "upsampler_1024")
CHAIN = ("decoder", *UPSAMPLERS)  # each draws four times the side of the one before
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


def check_config(stage: str, config: StageConfig, towers: Towers | None = None) -> None:
    """Refuse a configuration that cannot be run.

    towers: of a CLIP that is yet to be trained; of what lies in its folder unless given.

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
    if hasattr(config, "clip"):
        towers = towers or check_clip(config.clip)
    check_embeddings(stage, config, towers)
    made_with = check_init(stage, config) if config.init else None
    if stage == "clip":
        check_towers(config.network)
    elif config.init and made_with is None:  # in somebody's layout, read later
        typed("network", arguments_of(stage), config.network)
    elif made_with is not None:
        typed("network", arguments_of(stage), config.network)
        check_fit(config, made_with, towers)
        if stage == "upsampler":
            check_noise_level(config, made_with.get("noise_conditioning"), config.init)
    else:
        check_sizes(stage, config, towers)
    if has_lora(config) and not config.init:
        raise ConfigError("lora.rank: LoRA changes trained weights; give init=")
    if stage == "decoder" and config.prior_share and not config.prior:
        raise ConfigError("prior_share: it takes a trained prior to lead samples; give prior=")
    if stage == "decoder" and config.distill.teacher:
        check_distillation(config)
    check_rendered(config.data)
    check_output(config.output)


def check_distillation(config: DecoderConfig) -> None:
    """Refuse what decoders learn by and a student, who learns what its teacher does, does not."""
    for key in ("prior_share", "z_img_noise", "drop_z_img", "min_snr_gamma", "timestep_std"):
        default = getattr(DecoderConfig, key)
        if getattr(config, key) not in (0, default):
            raise ConfigError(
                f"{key}: distillation shows the pictures' own z_img, at the timesteps of the "
                f"student's steps, which weigh the same; leave it at {default:g}"
            )


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
    if data.validation and kind == "drawings":
        raise ConfigError(
            "data.validation: drawings are measured on those that are held out; leave it out"
        )
    if data.validation and kind_of(data.validation, "data.validation") == "drawings":
        raise ConfigError(
            f"data.validation: {data.validation} holds drawings, which have no captions of theirs"
        )
    for key, default in (("analogies", 0), ("style_strength", 1)):
        if kind != "drawings" and getattr(config, key, default) != default:
            raise ConfigError(
                f"{key}: only drawings, as unclip-data emoji makes them, have styles; give "
                f"{key}={default}"
            )


def check_rendered(data: DataConfig) -> None:
    """Refuse drawings that nobody has rendered at the size that is asked for."""
    if kind_of(data.source) == "drawings" and not files_present(data.source, data.size):
        raise ConfigError(
            f"data.size: {data.source} holds no drawing of {data.size} pixels; render them by "
            f"`unclip-data emoji --output {data.source} --sizes {data.size}`"
        )


def check_embeddings(stage: str, config: StageConfig, towers: Towers | None) -> None:
    """Refuse embeddings that a stage cannot learn from, or another CLIP's."""
    data = config.data
    if not data.embeddings:
        return
    if stage in ("clip", "upsampler"):
        raise ConfigError(f"data.embeddings: {stage} learns from pictures; leave it out")
    if kind_of(data.source) == "drawings":
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
    if towers and towers.embedding_dim != dim:
        raise ConfigError(
            f"data.embeddings: they have {dim} numbers, but those of clip={config.clip} have "
            f"{towers.embedding_dim}; run unclip-data embed with this CLIP"
        )


def towers_of(config: ClipConfig) -> Towers | None:
    """The sizes of the CLIP that a config trains; None where weights in another layout decide."""
    if config.init:
        return check_clip(config.init, "init")
    text = config.network.get("text") or {}
    return Towers(
        config.network.get("projection_dim", 512),
        text.get("max_position_embeddings", 77),
        text.get("hidden_size", 512),
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
        if check_clip(config.init, "init"):
            path = clip_folder(config.init) / "config.json"
            check_clip_fit(config, read_object("init", path))
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


def check_clip_fit(config: ClipConfig, made_with: dict[str, Any]) -> None:
    """Hold a CLIP that is begun from against the config; what it does not tell is passed over.

    made_with: a CLIP's config.json. Captions of few words make a smaller vocabulary than allowed.
    """
    told = {"network": ({k: v for k, v in config.network.items() if k not in TOWERS}, made_with)}
    for tower, kind in TOWERS.items():
        if given := config.network.get(tower):
            known = made_with.get(f"{tower}_config", {})
            told[f"network.{tower}"] = ({"model_type": kind, **given}, known)
    for key, (given, known) in told.items():
        for name in [name for name in given if name in known and given[name] != known[name]]:
            raise ConfigError(
                f"{key}.{name} is {given[name]}, but the weights of init={config.init} have "
                f"{known[name]}"
            )
    num_tokens = made_with.get("text_config", {}).get("vocab_size", 0)
    if num_tokens > config.vocab_size:
        raise ConfigError(
            f"vocab_size is {config.vocab_size}, but the weights of init={config.init} have "
            f"{num_tokens} tokens; use vocab_size={num_tokens}"
        )


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
        if name in WEIGHTLESS or (grows(name, value, known) and not has_lora(config)):
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


def has_lora(config: StageConfig) -> bool:
    """Whether small changes are trained alone; further weights, kept as they begin, do nothing."""
    return hasattr(config, "lora") and config.lora.rank > 0


def grows(name: str, value: Any, known: Any) -> bool:
    """Whether weights of a network with `known` are added to for an argument's value."""
    if name == "num_layers":  # of a prior: further blocks behind those that it has
        return known is not None and value > known
    return name in GROWN and bool(value) and not known


def check_chain(sizes: dict[str, int]) -> None:
    """Refuse stages of which one does not draw what the next enlarges.

    sizes: data.size of decoder and upsamplers; stages that stand apart are not compared.
    """
    for first, second in pairwise(CHAIN):
        if {first, second} <= set(sizes) and sizes[second] != 4 * sizes[first]:
            raise ConfigError(
                f"data.size: {second} draws {sizes[second]} pixels, but must draw four times the "
                f"side of {first}, {sizes[first]}"
            )


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


def check_upsampler(config: UpsamplerConfig, settings: Any) -> None:
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
    check_noise_level(config, settings.noise_conditioning)


def check_noise_level(config: UpsamplerConfig, is_told: bool, init: str | None = None) -> None:
    """Refuse noise on the small pictures of an upsampler that is not told of it.

    init: the weights that decide it.
    """
    if not config.max_noise_level or is_told:
        return
    hint = "leave it at 0" if init else "set network.noise_conditioning=true"
    what = f"the weights of init={init} are" if init else "the network is"
    raise ConfigError(
        f"max_noise_level is {config.max_noise_level}, but {what} not told of it; {hint}"
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
