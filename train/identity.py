"""What makes two runs the same, so that one is never resumed as another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from unclip_train.config import DecoderConfig, PriorConfig, StageConfig, UpsamplerConfig

# Lengths, bookkeeping, and what changes how fast a run learns but not what.
FREE_OF_RUN = (
    *("steps", "log_every", "save_every", "preview_every", "keep_checkpoints", "export_ema"),
    *("compile", "gradient_checkpointing", "halve_on_oom"),
    *("validate_every", "validation_samples", "tracker", "measure_flops", "peak_tflops"),
)
FREE_OF_DATA = ("workers", "cache_gb", "index", "max_bad_share", "validation")
FREE_OF_STAGE = ("output", "init", "prompts", "prior", "decoder")
# Keys younger than some runs: they count where they are not at their defaults.
YOUNG_OF_DATA = (
    *("loose_share", "pair_share", "beside_share", "jitter"),
    *("framing", "flip", "embeddings", "image_column", "caption_column", "split", "subset"),
    *("revision", "streaming", "shuffle_window", "min_side", "max_pixels", "leave_out"),
    "validation_share",
)
YOUNG_OF_STAGE: dict[type, tuple[str, ...]] = {
    DecoderConfig: ("prior_share",),
    PriorConfig: ("noise_levels", "analogies", "style_strength"),
    UpsamplerConfig: ("loss_power", "timestep_std", "timestep_mean"),
}


def config_hash(config: StageConfig) -> str:
    """A short name for all that decides what a run learns."""
    facts = asdict(config)
    for key in FREE_OF_STAGE:
        if key != "prior" or not facts.get("prior_share"):
            facts.pop(key, None)
    for key in YOUNG_OF_STAGE.get(type(config), ()):
        if facts[key] == getattr(type(config), key):
            facts.pop(key)
    if facts["optimizer"]["algorithm"] == "adamw":
        facts["optimizer"].pop("algorithm")
    if not facts.get("lora", {"rank": 0})["rank"]:
        facts.pop("lora", None)
    if facts.get("distill", {}).get("teacher") is None:
        facts.pop("distill", None)
    for key in FREE_OF_RUN:
        facts["run"].pop(key)
    for key in FREE_OF_DATA:
        facts["data"].pop(key)
    defaults = asdict(type(config.data)())
    for key in YOUNG_OF_DATA:
        if facts["data"][key] == defaults[key]:
            facts["data"].pop(key)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
