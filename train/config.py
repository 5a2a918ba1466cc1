"""What a training run may be told: typed schemas, merged strictly with YAML and key=value words.

Defaults live here and nowhere else; the YAML files of configs/ state only what differs.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and what to do."""


@dataclass
class DataConfig:
    """Which pictures a stage sees, and how they are shown.

    Drawings are composed from what unclip-data emoji or icons wrote; any other source shows
    pictures with captions of their own.
    """

    source: str = "data/emoji"  # a folder, .tar or .parquet files (braces: many), hub:owner/name
    size: int = 64  # pixels a side of the pictures
    crop: int = 0  # pixels a side of the crops that an upsampler learns from; 0: a quarter of size
    # Of drawings only.
    shared_only: bool = False  # only concepts that every family of artists has drawn
    styles: list[str] | None = None  # all when not given
    plain_share: float = 0.5  # share of single drawings on white; the rest are composed
    pair_share: float = 0.25  # of the composed pictures: two things, beside or above each other
    beside_share: float = 0.5  # of the pairs: beside each other, the rest one above another
    jitter: float = 1.0  # how far what is composed strays from its places; captions do not tell
    loose_share: float = 0.0  # of captions that name a thing by a keyword, in the plural, loosely
    balance: str = "concept"  # an epoch holds each "concept", or "drawing", or "pair" of a concept
    cache_gb: float = 8.0  # decoded pictures kept in memory
    workers: int = 1  # processes that prepare batches
    # Of other sources only.
    framing: str = "centre"  # largest square in the middle, at a "random" place, or "pad"
    flip: float = 0.0  # share shown mirrored
    validation: str | None = None  # another source, to measure on
    validation_share: float = 0.0  # or a share of this one, set aside by a hash of the paths
    embeddings: str | None = None  # folder that unclip-data embed wrote, of this source
    image_column: str = ""  # of a table; the usual names when empty
    caption_column: str = ""
    split: str = "train"  # of a Hugging Face dataset, as are the three below
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False  # read forward, keep nothing on disk
    shuffle_window: int = 0  # shuffle within runs of so many neighbours; 0: all; a stream: 1024
    min_side: int = 0  # pictures with a shorter side are left out
    max_pixels: int = 64_000_000  # pictures with more are left out
    max_bad_share: float = 0.05  # of the samples; more stops the run
    leave_out: str | None = None  # file that unclip-data check --bad wrote
    index: str | None = None  # folder for indices of shards; the user's cache when not given


@dataclass
class OptimizerConfig:
    """Decay is not applied to biases, gains and other vectors."""

    algorithm: str = "adamw"  # or "muon": for the weights of layers, and adamw for the rest
    lr: float = 1.2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: str = "constant"  # or "cosine", "linear", "cooldown": to 0 at the last step
    clip_norm: float = 1.0  # gradients longer than this are shortened to it; 0 leaves them


@dataclass
class RunConfig:
    """Length, precision and bookkeeping of a run."""

    steps: int = 1000
    batch_size: int = 64  # samples of one update, over all processes and micro-batches
    gradient_accumulation: int = 1  # micro-batches of an update
    precision: str = "no"  # or "bf16", "fp16"; "auto": bf16 where the device is quicker in it
    ema_decay: Any = 0.9999  # or several in a list; the first is looked at
    export_ema: float | None = None  # which of them model/ gets; the first when not given
    compile: bool = False
    gradient_checkpointing: bool = False  # less memory for activations, a third more time
    halve_on_oom: bool = False  # out of memory: go on with micro-batches of half the size
    seed: int = 0
    log_every: int = 20  # updates
    save_every: int = 500
    preview_every: int = 0  # 0: no previews
    validate_every: int = 500  # on what is held out, where anything is; 0: never
    validation_samples: int = 256  # at most
    tracker: str | None = "tensorboard"  # or wandb, ... of accelerate's; several by commas; or none
    measure_flops: bool = True  # count the work of an update and time the device, at the start
    peak_tflops: float = 0.0  # of the device, to be held against; 0: that of a timed matmul
    keep_checkpoints: int = 2


@dataclass
class LoraConfig:
    """Small changes beside frozen weights, in place of all weights; asks for init (extra lora)."""

    rank: int = 0  # of the changes; 0: all weights learn
    alpha: float = 0.0  # alpha / rank is a factor on them; 0: as large as the rank
    targets: list[str] | None = None  # how the names of layers end; those of attention if not given
    dropout: float = 0.0


@dataclass
class StageConfig:
    """What every stage has."""

    output: str = MISSING  # folder of the run: model/, checkpoints/, previews/, log.jsonl
    init: str | None = None  # folder of a trained network to begin from
    data: DataConfig = field(default_factory=DataConfig)
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the network's class
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class ClipConfig(StageConfig):
    """unclip-train clip. network: text, vision and projection_dim as transformers names them."""

    vocab_size: int = 4096  # at most, of the byte-pair tokenizer trained on the captions
    augment: bool = False  # pictures moved, turned, tinted, softened and patched a little


@dataclass
class PriorConfig(StageConfig):
    """unclip-train prior."""

    clip: str = MISSING  # folder of the CLIP whose embeddings it learns
    drop_text: float = 0.1  # share of captions emptied, for guidance (DALL-E 2, section 2.2)
    statistics_samples: int = 4096  # pictures from which mean and std are measured
    lora: LoraConfig = field(default_factory=LoraConfig)
    style_strength: float = 1.0  # of drawings' embeddings, see unclip_train.styles; 1: as drawn
    analogies: float = 0.0  # share of captions of what no artist drew, in place of others
    noise_levels: int = 1  # timesteps that a caption is learned at in one pass over its text
    prompts: list[str] | None = None  # drawn in previews
    decoder: str | None = None  # trained, to draw them; without it the nearest held-out pictures


@dataclass
class DistillConfig:
    """A decoder that learns from another to draw in few steps and without guidance."""

    teacher: str | None = None  # a trained decoder; without it nothing is distilled
    steps: int = 4  # of the student
    substeps: int = 4  # of the teacher in each of them
    guidance: float = 3.0  # of the teacher


@dataclass
class DecoderConfig(StageConfig):
    """unclip-train decoder."""

    clip: str = MISSING
    lora: LoraConfig = field(default_factory=LoraConfig)
    drop_text: float = 0.5  # DALL-E 2, section 2.1
    drop_z_img: float = 0.1  # DALL-E 2, section 2.1
    z_img_noise: float = 0.0  # largest length of the noise added to z_img, itself of length 1
    prior_share: float = 0.0  # of samples, not of single drawings, led by what prior= draws
    vlb_weight: float = 0.001  # of L_vlb where the variance is learned
    max_loss_weight: float = 400.0  # of an x_0 prediction at little noise, in x_0_loss_as_v
    min_snr_gamma: float = 0.0  # 0: every timestep weighs the same
    timestep_std: float = 0.0  # of logit-normal timesteps; 0: all are equally frequent
    timestep_mean: float = 0.0  # of the same; above 0 prefers much noise
    prompts: list[str] | None = None  # drawn in previews
    prior: str | None = None  # trained, to lead these and prior_share; else captions do alone
    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass
class UpsamplerConfig(StageConfig):
    """unclip-train upsampler."""

    degradation: str = "blur"  # of the small picture, see degrade() in data/dataset.py
    loss_power: int = 2  # 1: the absolute error in place of the squared one
    timestep_std: float = 0.0  # of logit-normal timesteps; 0: all are equally frequent
    timestep_mean: float = 0.0  # of the same; above 0 prefers much noise
    max_loss_weight: float = 400.0  # of an x_0 prediction at little noise, in x_0_loss_as_v
    max_noise_level: int = 0  # noise added to the small picture, where the network is told of it


@dataclass
class AssemblyConfig:
    """unclip-train assemble: how the finished model is sampled where a call does not say."""

    steps: dict[str, Any] = field(default_factory=dict)  # by stage: a number or a named list
    guidance: dict[str, float] = field(default_factory=dict)  # prior, decoder, image (z_img)
    guidance_interval: list[float] | None = None  # (low, high) timesteps of the decoder's guidance
    candidates: int = 2  # of the prior, of which the nearest to the caption is kept
    samplers: dict[str, str] = field(default_factory=dict)  # by stage: ddpm, ddim or dpm++


SCHEMAS: dict[str, type] = {
    "clip": ClipConfig,
    "prior": PriorConfig,
    "decoder": DecoderConfig,
    "upsampler": UpsamplerConfig,
    "assemble": AssemblyConfig,
}

# (smallest, largest) of every bounded key, by its last name
RANGES: dict[str, tuple[float, float]] = {
    "lr": (0, 10),
    "beta1": (0, 1),
    "beta2": (0, 1),
    "eps": (0, 1),
    "weight_decay": (0, 10),
    "warmup_steps": (0, math.inf),
    "clip_norm": (0, math.inf),
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "gradient_accumulation": (1, math.inf),
    "ema_decay": (0, 1),
    "log_every": (1, math.inf),
    "save_every": (1, math.inf),
    "preview_every": (0, math.inf),
    "validate_every": (0, math.inf),
    "validation_samples": (2, 2**20),
    "validation_share": (0, 0.9),
    "peak_tflops": (0, 1e6),
    "noise_levels": (1, 1024),
    "analogies": (0, 1),
    "style_strength": (0, 10),
    "rank": (0, 1024),
    "alpha": (0, 1e4),
    "dropout": (0, 1),
    "keep_checkpoints": (1, math.inf),
    "seed": (0, 2**31 - 1),
    "plain_share": (0, 1),
    "pair_share": (0, 1),
    "beside_share": (0, 1),
    "jitter": (0, 1),
    "loose_share": (0, 1),
    "cache_gb": (0, math.inf),
    "workers": (0, 256),
    "size": (4, 2**14),
    "crop": (0, 2**14),
    "flip": (0, 1),
    "shuffle_window": (0, math.inf),
    "min_side": (0, math.inf),
    "max_pixels": (1, 178_000_000),
    "max_bad_share": (0, 1),
    "vocab_size": (514, 2**20),
    "drop_text": (0, 1),
    "drop_z_img": (0, 1),
    "z_img_noise": (0, 10),
    "prior_share": (0, 1),
    "candidates": (1, 1000),
    "substeps": (1, 999),
    "guidance": (0, 100),
    "vlb_weight": (0, math.inf),
    "min_snr_gamma": (0, math.inf),
    "timestep_std": (0, 10),
    "timestep_mean": (-10, 10),
    "max_noise_level": (0, 999),
    "max_loss_weight": (1, math.inf),
    "loss_power": (1, 2),
    "statistics_samples": (2, math.inf),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm": ("adamw", "muon"),
    "decay": ("constant", "cosine", "linear", "cooldown"),
    "precision": ("auto", "no", "bf16", "fp16"),
    "degradation": ("blur", "blur_light", "blur_noise", "bsr_light", "bsr"),
    "balance": ("concept", "drawing", "pair"),
    "framing": ("centre", "random", "pad"),
}
MAX_SAID = 200  # characters of what a library says
SECRET = re.compile(r"\$\{oc\.env:[^}]*(TOKEN|KEY|SECRET|PASSWORD)", re.IGNORECASE)


def load_config(stage: str, path: str | Path, overrides: list[str] = ()) -> Any:
    """Read a stage's YAML file, apply key=value overrides, and check every value.

    Args:
        stage: "clip", "prior", "decoder", "upsampler" or "assemble".
        path: a file, or a name within the installed configs such as "emoji/decoder".
        overrides: words such as "run.steps=100".

    Raises:
        ConfigError: naming the key that is unknown, of the wrong type or out of range.
    """
    schema = SCHEMAS[stage]
    text = config_path(path).read_text()
    for source in (text, *overrides):
        if SECRET.search(source):
            raise ConfigError("configs are saved beside the weights: they must not name secrets")
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"{word!r} is no key=value")
    try:
        given = [OmegaConf.create(text), OmegaConf.from_dotlist([*map(quote_range, overrides)])]
        for source in given:
            check_kinds(schema, source, path)
        merged = OmegaConf.merge(OmegaConf.structured(schema), *given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema, path)) from error
    except (ValueError, YAMLError) as error:  # YAML that does not parse
        *words, why = (" ".join(part.split()) for part in (*overrides, str(error)))
        raise ConfigError(f"{', '.join([str(path), *words])}: {why[:200]}") from error
    if stage != "assemble" and config.run.precision == "False":
        config.run.precision = "no"  # which YAML takes for a truth value
    check_values(config)
    return config


def check_kinds(schema: type, given: Any, path: str | Path, prefix: str = "") -> None:
    """Refuse a list or a value where keys belong, and keys where none do.

    Raises:
        ConfigError: naming the key.
    """
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path}: {prefix.rstrip('.') or 'the file'} must hold keys and values")
    instance = schema()
    known = {entry.name: getattr(instance, entry.name) for entry in fields(schema)}
    for key, value in given.items_ex(resolve=False):
        if key not in known:
            continue  # told later, with the nearest that there is
        default = known[key]
        if is_dataclass(default):
            check_kinds(type(default), value, path, f"{prefix}{key}.")
        elif isinstance(value, DictConfig) and not isinstance(default, dict):
            raise ConfigError(f"{path}: {prefix}{key} must be a value, not keys and values")
        elif isinstance(value, ListConfig) and isinstance(default, dict):
            raise ConfigError(f"{path}: {prefix}{key} must hold keys and values, not a list")


def quote_range(word: str) -> str:
    """data.source={000..127}.tar as a text; YAML would take the braces for a mapping."""
    key, _, value = word.partition("=")
    is_range = value.startswith("{") and ".." in value and ":" not in value.partition("}")[0]
    return f"{key}='{value}'" if is_range and "'" not in value else word


def config_path(path: str | Path) -> Path:
    """A YAML file on disk, or one of those installed with the package, by name."""
    installed = Path(str(files("unclip_configs")))
    candidates = [Path(path), installed / path, installed / f"{path}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted(str(p.relative_to(installed).with_suffix("")) for p in installed.rglob("*.yaml"))
    raise ConfigError(f"--config: no file {path}; installed ones are {', '.join(names)}")


def explain(
    error: OmegaConfBaseException, schema: type, path: str | Path = "", prefix: str = ""
) -> str:
    """One line that names the key at fault and the nearest right one.

    path: of the file, where there is one; prefix: of the keys, where they lie deeper.
    """
    key = " ".join(str(getattr(error, "full_key", None) or "").split())
    said = str(error).partition("\n    full_key")[0].partition(". Did you mean")[0]
    first_line = " ".join(said.split())[:MAX_SAID]
    known = list(key_names(schema))
    near = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(
        key.rsplit(".", 1)[-1], [name.rsplit(".", 1)[-1] for name in known], 1
    )
    hint = f"; did you mean {prefix}{near[0]}?" if near and "not in" in first_line else ""
    where = f"{path}: " if path else ""
    return f"{where}{prefix}{key}: {first_line}{hint}"


def key_names(schema: type, prefix: str = ""):
    """All dotted keys of a schema."""
    instance = schema()
    for entry in fields(schema):
        value = getattr(instance, entry.name)
        yield prefix + entry.name
        if is_dataclass(value):
            yield from key_names(type(value), f"{prefix}{entry.name}.")


def check_values(config: Any, prefix: str = "") -> None:
    """Refuse values that no run can mean: not finite, out of range, or not among the choices."""
    for entry in fields(config):
        key, value = prefix + entry.name, getattr(config, entry.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        if entry.name in RANGES and isinstance(value, int | float):
            low, high = RANGES[entry.name]
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{key} must lie between {low} and {high}, not {value}")
        if entry.name in CHOICES and value not in CHOICES[entry.name]:
            choices = ", ".join(CHOICES[entry.name])
            raise ConfigError(f"{key} must be one of {choices}, not {value!r}")


def save_config(config: StageConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, so that a run can be repeated."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
