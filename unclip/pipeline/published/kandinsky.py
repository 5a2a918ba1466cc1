"""The priors of Kandinsky 2.1 and 2.2 in diffusers' layout; their decoders are latent ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unclip.pipeline.folder import INDEX_NAME
from unclip.pipeline.loading import read_json, read_scheduler
from unclip.pipeline.published.encoders import read_pixels, read_towers
from unclip.pipeline.published.karlo import PICTURES, SCHEDULER, read_prior
from unclip.pipeline.published.settings import read_entries

PIPELINES = ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline")
STEPS, GUIDANCE = 25, 4.0
COMPONENTS = {
    "prior": [("diffusers", "PriorTransformer")],
    "scheduler": SCHEDULER,
    "text_encoder": [("transformers", "CLIPTextModelWithProjection")],
    "tokenizer": [("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")],
    "image_encoder": PICTURES["image_encoder"],
    "image_processor": PICTURES["feature_extractor"],
}


def read_kandinsky_prior(folder: Path, root: Path, variant: str | None) -> dict[str, Any]:
    """The prior, in float32, and its scheduler."""
    path = folder / INDEX_NAME
    classes = read_entries(path, read_json(path, root), COMPONENTS)
    scheduler = read_scheduler(folder / "scheduler", classes["scheduler"], root)
    clip_range = scheduler.config.get("clip_sample_range", 1.0)
    prior = read_prior(folder / "prior", root, variant, clip_range)
    return {"prior": prior, "prior_scheduler": scheduler}


def read_kandinsky_clip(folder: Path, root: Path, variant: str | None) -> dict[str, Any]:
    """The CLIP that the prior was trained with: both towers, tokenizer and pixel statistics."""
    clip, tokenizer = read_towers(folder, root, variant, with_pictures=True)
    processor = folder / "image_processor" / "preprocessor_config.json"
    return {"clip": clip, "tokenizer": tokenizer, **read_pixels(processor, root, normalize=False)}
