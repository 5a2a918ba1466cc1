"""CLIP as Hugging Face's folders hold it: whole, or a tower of it in a folder of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from unclip.models.clip import OPENAI_MEAN, OPENAI_STD
from unclip.pipeline.loading import (
    CLIP_REMARKS,
    CLIP_STEM,
    ModelFileError,
    Stored,
    build_empty,
    check_vocabulary,
    clip_settings,
    fill,
    inside,
    one_line,
    read_json,
    refuse_unknown,
    stored_tensors,
)

PICKLED = "pytorch_model.bin"
# Settings of all of transformers' models that old config files carry and CLIP does not read.
OBSOLETE = frozenset(
    """
    _commit_hash add_cross_attention architectures bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dropout early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torchscript
    transformers_version typical_p use_bfloat16 use_cache
    """.split()
)
COPIES = {"text_config_dict", "vision_config_dict"}  # of text_config and vision_config
# Numbers 0, 1, 2, ... that old files keep beside the weights.
COUNTERS = {f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")}


def read_towers(
    folder: Path, root: Path, variant: str | None, with_pictures: bool
) -> tuple[CLIPModel | CLIPTextModelWithProjection, CLIPTokenizer]:
    """CLIP in float32 from text_encoder/, image_encoder/ where asked for, and tokenizer/."""
    places = {"text_encoder": CLIPTextConfig}
    if with_pictures:
        places["image_encoder"] = CLIPVisionConfig
    settings = {
        name: settings_of(folder / name / "config.json", root, cls) for name, cls in places.items()
    }
    path = folder / "text_encoder" / "config.json"
    text = settings["text_encoder"]
    tensors = stored_tensors(folder / "text_encoder", CLIP_STEM, root, variant, PICKLED)
    if with_pictures:
        make = whole_clip(path, text, settings["image_encoder"], text.get("projection_dim", 512))
        pictures = stored_tensors(folder / "image_encoder", CLIP_STEM, root, variant, PICKLED)
        scale = (path, "logit_scale", torch.tensor(math.log(1 / 0.07)))  # is in neither tower
        tensors = chain(tensors, pictures, [scale])
    else:
        make = build_empty(path, lambda: CLIPTextModelWithProjection(CLIPTextConfig(**text)))
    fill(make, folder / "text_encoder", without_counters(tensors), torch.float32)
    tokenizer = read_foreign_tokenizer(folder / "tokenizer", root)
    check_vocabulary(folder / "tokenizer", tokenizer, make)
    return make.eval(), tokenizer


def read_whole(folder: Path, root: Path, variant: str | None) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP in float32 from a folder of a CLIPModel as Hugging Face's hub has them."""
    path = folder / "config.json"
    config = read_json(path, root)
    if config.get("model_type") != CLIPConfig.model_type:
        raise ModelFileError(f"{path}: model_type {config.get('model_type')!r} is no CLIP")
    refuse_unknown(path, config, clip_settings(CLIPConfig) | CLIP_REMARKS | OBSOLETE | COPIES)
    towers = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
    text, vision = (
        known_settings(path, config.get(section) or {}, cls) for section, cls in towers.items()
    )
    model = whole_clip(path, text, vision, config.get("projection_dim", 512))
    tensors = stored_tensors(folder, CLIP_STEM, root, variant, PICKLED)
    fill(model, folder, without_counters(tensors), torch.float32)
    tokenizer = read_foreign_tokenizer(folder, root)
    check_vocabulary(folder, tokenizer, model)
    return model.eval(), tokenizer


def whole_clip(path: Path, text: dict, vision: dict, projection_dim: int) -> CLIPModel:
    """A CLIPModel of both towers, its weights still without values."""

    def make() -> CLIPModel:
        return CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
        )

    return build_empty(path, make)


def settings_of(path: Path, root: Path, cls: type) -> dict[str, Any]:
    """The settings of a tower that has a config.json of its own."""
    config = read_json(path, root)
    if config.get("model_type") != cls.model_type:
        raise ModelFileError(f"{path}: model_type must be {cls.model_type}")
    return known_settings(path, config, cls)


def known_settings(path: Path, config: Any, cls: type) -> dict[str, Any]:
    """What the class reads of a config; what it does not must at least be known to be obsolete."""
    if not isinstance(config, dict):
        raise ModelFileError(f"{path}: the settings of a tower must be an object")
    known = clip_settings(cls)
    refuse_unknown(path, config, known | CLIP_REMARKS | OBSOLETE)
    unread = CLIP_REMARKS | {"dtype", "architectures", "transformers_version"}
    return {key: value for key, value in config.items() if key in known - unread}


def without_counters(tensors: Stored) -> Iterator[tuple[Path, str, Tensor]]:
    """The weights alone: transformers counts positions by itself today."""
    return (entry for entry in tensors if entry[1] not in COUNTERS)


def read_foreign_tokenizer(folder: Path, root: Path) -> CLIPTokenizer:
    """CLIP's tokenizer, from tokenizer.json or from vocab.json and merges.txt."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path, root)
    wanted = ("CLIPTokenizer", "CLIPTokenizerFast")
    if "auto_map" in settings or settings.get("tokenizer_class", wanted[0]) not in wanted:
        raise ModelFileError(f"{path}: only CLIPTokenizer can be read")
    if (folder / "tokenizer.json").exists():
        path = folder / "tokenizer.json"
        read_json(path, root)
    else:
        path = folder / "vocab.json"
        read_json(path, root)
        inside(folder / "merges.txt", root)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises bare exceptions
        raise ModelFileError(f"{path}: {one_line(error)}") from error


def read_pixels(path: Path, root: Path, normalize: bool) -> dict[str, Any]:
    """image_mean, image_std and normalize of a preprocessor_config.json, which may be absent."""
    processor = read_json(path, root) if path.exists() else {}
    values = {
        "image_mean": processor.get("image_mean", list(OPENAI_MEAN)),
        "image_std": processor.get("image_std", list(OPENAI_STD)),
        "normalize": processor.get("unclip_normalize", normalize),
    }
    for name in ("image_mean", "image_std"):
        numbers = values[name]
        fine = isinstance(numbers, list) and len(numbers) == 3
        if not fine or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ModelFileError(f"{path}: {name} must be three numbers")
    return values
