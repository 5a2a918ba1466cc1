"""CLIP: captions become z_txt, text states and a mask; pictures become z_img.

Shapes: B batch, L tokens of a caption, W width of its states, D embedding, S pixels a side.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedConfig,
    VisionTextDualEncoderModel,
)

OPENAI_MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # pixel statistics that OpenAI's CLIP was trained with
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
DUAL_ENCODER = "vision-text-dual-encoder"  # the model_type of a VisionTextDualEncoderModel
TEXT_ONLY = "clip_text_model"  # that of a CLIPTextModelWithProjection
NO_PICTURES = "this model's CLIP reads captions only: load it with a CLIP that has both towers"


class TextEncoding(NamedTuple):
    """All that the other networks may want to know about a batch of captions."""

    z_txt: Tensor  # [B, D] caption embedding
    text_states: Tensor  # [B, L, W] last hidden states of the text transformer
    text_mask: Tensor  # [B, L] True where a token is real, False where it pads
    tokens: Tensor  # [B, L] vocabulary numbers

    def to(self, *args, **kwargs) -> TextEncoding:
        """Move every member to a device; floating members to a dtype as well."""
        floating = [member.to(*args, **kwargs) for member in self[:2]]
        device = floating[0].device
        return TextEncoding(*floating, *(member.to(device) for member in self[2:]))

    def select(self, index: Tensor | slice) -> TextEncoding:
        """Take rows of the batch."""
        return TextEncoding(*(member[index] for member in self))

    def repeat_interleave(self, repeats: int) -> TextEncoding:
        """Repeat each caption for as many pictures as are drawn of it."""
        return TextEncoding(*(member.repeat_interleave(repeats, dim=0) for member in self))

    def expand(self, batch_size: int) -> TextEncoding:
        """Repeat a single caption (the empty one, say) over a batch."""
        return TextEncoding(*(member.expand(batch_size, *member.shape[1:]) for member in self))

    @staticmethod
    def cat(encodings: list[TextEncoding]) -> TextEncoding:
        """Join batches along their first axis."""
        return TextEncoding(*(torch.cat(members) for members in zip(*encodings, strict=True)))


class CLIP(nn.Module):
    """Any Hugging Face CLIP, behind the two functions that unCLIP needs of it.

    Args:
        model: the two towers; a CLIPModel, or a VisionTextDualEncoderModel whose text tower is
            CLIP's and whose vision config names image_size. A CLIPTextModelWithProjection has no
            tower for pictures and reads captions only.
        tokenizer: its byte-pair tokenizer; its vocabulary must fit the model's.
        image_mean, image_std: statistics of pixels in [0, 1] that the image tower expects.
        normalize: whether embeddings are brought to length 1 (the paper) or left raw (Karlo).

    Raises:
        ValueError: when the model would pool another token than the tokenizer's end of text, which
            gives every caption the same z_txt.
    """

    def __init__(
        self,
        model: CLIPModel | VisionTextDualEncoderModel | CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        image_mean: tuple[float, ...] = OPENAI_MEAN,
        image_std: tuple[float, ...] = OPENAI_STD,
        normalize: bool = True,
    ):
        super().__init__()
        text = text_config_of(model)
        pooled = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
        if pooled != tokenizer.eos_token_id:
            raise ValueError(
                f"the CLIP model pools token {pooled} but its tokenizer ends a caption with "
                f"{tokenizer.eos_token_id}: set the text config's eos_token_id to that"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.normalize = normalize
        self.register_buffer("image_mean", torch.tensor(image_mean).view(1, 3, 1, 1), False)
        self.register_buffer("image_std", torch.tensor(image_std).view(1, 3, 1, 1), False)

    @property
    def embedding_dim(self) -> int:
        """D, the length of z_img and z_txt."""
        return self.model.config.projection_dim

    @property
    def context(self) -> int:
        """L, the tokens that a caption is padded or cut to."""
        return text_config_of(self.model).max_position_embeddings

    @property
    def sees_pictures(self) -> bool:
        """Whether there is a tower for pictures."""
        return hasattr(self.model, "vision_model")

    def placed(self, device: torch.device) -> CLIP:
        """This CLIP, run on a device to which offloading brings its model."""
        self.image_mean, self.image_std = self.image_mean.to(device), self.image_std.to(device)
        return self

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions as vocabulary numbers [B, L] and mask [B, L]; what does not fit is cut.

        "<|endoftext|>" within a caption is text like any other.
        """
        encoded = self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
            split_special_tokens=True,
        )
        return encoded.input_ids, encoded.attention_mask.bool()

    def encode_text(self, captions: list[str]) -> TextEncoding:
        """Captions to z_txt [B, D], text states [B, L, W], mask and tokens [B, L]."""
        device = self.image_mean.device
        tokens, mask = (tensor.to(device) for tensor in self.tokenize(captions))
        seen = None if mask.is_meta else mask.long()  # the library asks whether any place pads
        hidden = self.model.text_model(input_ids=tokens, attention_mask=seen)
        z_txt = self.model.text_projection(hidden.pooler_output)  # [B, D]
        return TextEncoding(self._embedding(z_txt), hidden.last_hidden_state, mask, tokens)

    def encode_image(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] in [-1, 1], of any size, to z_img [B, D].

        Raises:
            ValueError: when there is no tower for pictures.
        """
        if not self.sees_pictures:
            raise ValueError(f"image: {NO_PICTURES}")
        size = self.model.config.vision_config.image_size
        if x.shape[-2:] != (size, size):  # antialiasing has no half-precision kernel on a CPU
            x = F.interpolate(
                x.float(), (size, size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(-1, 1)
        pixels = ((x + 1) / 2 - self.image_mean) / self.image_std
        weight = self.model.visual_projection.weight
        hidden = self.model.vision_model(pixel_values=pixels.to(weight.dtype))
        pooled = hidden.pooler_output.flatten(1)  # convolutional towers keep axes of length 1
        return self._embedding(self.model.visual_projection(pooled))

    def _embedding(self, z: Tensor) -> Tensor:
        return F.normalize(z.float(), dim=-1) if self.normalize else z.float()

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        """Write model, tokenizer and pixel statistics as a Hugging Face CLIP folder."""
        folder = Path(folder)
        self.model.save_pretrained(folder, **kwargs)
        self.tokenizer.save_pretrained(folder)
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write what is expected of pixels, and whether embeddings are brought to length 1."""
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "image_mean": self.image_mean.flatten().tolist(),
            "image_std": self.image_std.flatten().tolist(),
            "unclip_normalize": self.normalize,
        }
        if self.sees_pictures:
            size = self.model.config.vision_config.image_size
            processor["size"] = {"shortest_edge": size}
            processor["crop_size"] = {"height": size, "width": size}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> CLIP:
        """Read a Hugging Face CLIP folder: ours, OpenAI's, or any of that layout.

        A VisionTextDualEncoderModel of a CLIP text tower and any picture tower will do as well.

        Raises:
            FileNotFoundError: when the folder holds no CLIP.
            OSError: when its weights are broken or do not fit its config.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no CLIP in {folder}: it has no config.json")
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        others = {DUAL_ENCODER: VisionTextDualEncoderModel, TEXT_ONLY: CLIPTextModelWithProjection}
        model_class = others.get(kind, CLIPModel)
        try:
            model, facts = model_class.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **kwargs
            )
        except (SafetensorError, RuntimeError) as error:
            raise OSError(f"cannot read the CLIP in {folder}: {error}") from error
        for kind in ("missing_keys", "mismatched_keys"):
            if facts[kind]:
                raise OSError(f"the CLIP in {folder} has {kind.replace('_', ' ')}: {facts[kind]}")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), tokenizer, **read_pixel_statistics(folder))


def text_config_of(model: nn.Module) -> PreTrainedConfig:
    """The settings of a CLIP's text tower, which may be all there is."""
    return getattr(model.config, "text_config", model.config)


def read_pixel_statistics(folder: Path) -> dict:
    """The image_mean, image_std and normalize of a CLIP folder; OpenAI's where it names none."""
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "image_mean": tuple(processor.get("image_mean", OPENAI_MEAN)),
        "image_std": tuple(processor.get("image_std", OPENAI_STD)),
        "normalize": processor.get("unclip_normalize", True),
    }
