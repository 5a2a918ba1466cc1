"""Stage clip: captions and pictures meet in one space, by contrast with the rest of the batch.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig as HFClipConfig
from transformers import CLIPModel, CLIPTokenizer

from unclip.diffusion.losses import contrastive_loss
from unclip.models.clip import CLIP
from unclip_train.config import ClipConfig, ConfigError
from unclip_train.data.loader import to_unit_range

CENTRED = (0.5, 0.5, 0.5)  # pixels in [0, 1] become [-1, 1]
MAX_LOG_SCALE = 4.6052  # ln 100 (CLIP, section 2.5)


class ClipStage:
    """Contrastive training (CLIP, section 2.3) of transformers' CLIPModel."""

    name = "clip"

    def __init__(self, network: CLIP):
        self.network = network

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Cross entropy over the batch's pairs, both ways, and how often the nearest is right."""
        device = next(network.parameters()).device
        z_img, z_txt, logit_scale = network(to_unit_range(batch["image"], device), batch["caption"])
        logits = z_img @ z_txt.T  # [B, B]
        right = logits.argmax(1) == torch.arange(len(logits), device=device)
        return {
            "loss": contrastive_loss(z_img, z_txt, logit_scale).mean(),
            "accuracy": right.float().mean(),
            "logit_scale": logit_scale,
        }

    def save(self, network: nn.Module, folder: Path) -> None:
        """A Hugging Face CLIP folder."""
        network.clip.save_pretrained(folder)

    def preview(self, network: nn.Module) -> Image.Image | None:
        """CLIP draws nothing."""
        return None


class ClipTrainer(nn.Module):
    """Both towers behind one forward, so that wrappers of modules see the whole computation."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """z_img [B, D], z_txt [B, D] and the factor on their products."""
        z_img = self.clip.encode_image(images)
        z_txt = self.clip.encode_text(captions).z_txt
        return z_img, z_txt, self.clip.model.logit_scale.clamp(max=MAX_LOG_SCALE).exp()


def make_stage(config: ClipConfig, captions: list[str]) -> ClipStage:
    """A CLIP as the config describes it, with a tokenizer trained on the captions."""
    if config.init:
        return ClipStage(ClipTrainer(CLIP.from_pretrained(config.init)))
    tokenizer = train_tokenizer(captions, config.vocab_size)
    arguments = dict(config.network)
    text = {
        **arguments.pop("text", {}),
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = arguments.pop("vision", {})
    known = {"projection_dim", "logit_scale_init_value"}
    if set(arguments) - known:
        raise ConfigError(
            f"network.{min(set(arguments) - known)} is unknown to a CLIP "
            f"(known: text, vision, {', '.join(sorted(known))})"
        )
    hf_config = HFClipConfig(text_config=text, vision_config=vision, **arguments)
    clip = CLIP(CLIPModel(hf_config), tokenizer, CENTRED, CENTRED)
    return ClipStage(ClipTrainer(clip))


def train_tokenizer(captions: list[str], vocab_size: int) -> CLIPTokenizer:
    """Byte-pair merges learned from captions, as a tokenizer of CLIP's kind and file format.

    As in CLIP's own vocabulary, the 256 bytes come first, then the bytes that end a word, then the
    merges, then the two tokens that begin and end a caption.
    """
    blank = CLIPTokenizer()  # lends its normaliser and its way of cutting words
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # the 256 characters for bytes
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=symbols,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = _merges(learner)[: vocab_size - 2 * len(symbols) - 2]
    alphabet = symbols + [symbol + "</w>" for symbol in symbols]
    merged = list(dict.fromkeys("".join(pair) for pair in merges))
    words = alphabet + [word for word in merged if word not in set(alphabet)]
    words = [*words, "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges)


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
