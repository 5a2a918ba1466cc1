"""Stage clip: captions and pictures meet in one space, by contrast with the rest of the batch.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig as HFClipConfig
from transformers import (
    CLIPModel,
    CLIPTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from unclip.diffusion.losses import contrastive_loss
from unclip.metrics.similarity import ranks_among, recall_at
from unclip.models.clip import CLIP
from unclip_train.checks import check_clip_fit
from unclip_train.config import ClipConfig
from unclip_train.data.loader import to_unit_range
from unclip_train.draws import draw_noise_like
from unclip_train.networks import check_towers
from unclip_train.weights import load_clip

CENTRED = (0.5, 0.5, 0.5)  # pixels in [0, 1] become [-1, 1]
MAX_LOG_SCALE = 4.6052  # ln 100 (CLIP, section 2.5)


class ClipStage:
    """Contrastive training (CLIP, section 2.3) of transformers' CLIPModel."""

    name = "clip"

    def __init__(self, network: ClipTrainer, augment: bool = False):
        self.network, self.augment = network, augment

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Cross entropy over the pairs of all processes, and how often the nearest is right."""
        device = next(network.parameters()).device
        x = to_unit_range(batch["image"], device)
        x = augmented(x, generators) if self.augment else x
        z_img, z_txt, logit_scale = network(x, batch["caption"])
        whole, first = (
            {"all_z_img": gathered(z_img), "all_z_txt": gathered(z_txt)},
            first_row(z_img),
        )
        nearest = (z_img @ whole["all_z_txt"].T).argmax(1)  # [B]
        right = nearest == first + torch.arange(len(z_img), device=device)
        return {
            "loss": contrastive_loss(z_img, z_txt, logit_scale, first=first, **whole).mean(),
            "accuracy": right.float().mean(),
            "logit_scale": logit_scale,
        }

    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Loss over all held-out pairs at once, and how often the nearest of them is right.

        recall_image: a picture finds its own caption first (R@1); recall_text: a caption its
        picture. Guessing reaches 1 / N; equal captions of two pictures count against both.
        """
        device = next(network.parameters()).device
        parts = [
            network(to_unit_range(batch["image"], device), batch["caption"]) for batch in batches
        ]
        z_img, z_txt = (torch.cat([part[number].float() for part in parts]) for number in (0, 1))
        own = torch.arange(len(z_img), device=device)
        others = (own[:, None] + own[1:]) % len(own)  # [N, N - 1], all but the own one
        return {
            "loss": float(contrastive_loss(z_img, z_txt, parts[0][2]).mean()),
            "recall_image": recall_at(ranks_among(z_img, z_txt, own, others), 1),
            "recall_text": recall_at(ranks_among(z_txt, z_img, own, others), 1),
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


def gathered(z: Tensor) -> Tensor:
    """The rows [B, D] of all processes one after another, [W B, D]."""
    return Gathered.apply(z) if dist.is_initialized() and dist.get_world_size() > 1 else z


class Gathered(torch.autograd.Function):
    """Rows of all processes, whose gradients find their way back to each.

    A row's gradient is the sum over the processes' losses; averaged over processes, as DDP does
    with the gradients of weights, it becomes the gradient of the mean loss.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        """[B, D] of each process -> [W B, D]."""
        rows = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, z.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """[W B, D] of each process -> the sum of those of this process's rows, [B, D]."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def first_row(z: Tensor) -> int:
    """Where the rows [B, D] of this process begin among those of all."""
    return dist.get_rank() * len(z) if dist.is_initialized() else 0


def augmented(x: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Pictures [B, 3, S, S] in [-1, 1] moved, turned, scaled, tinted, softened and patched.

    Each by its own generator, and so little that captions stay true. It keeps the picture tower
    from learning drawings by heart, and from minding the faults of generated ones: soft edges,
    grain, colours a little off.
    """
    draws = torch.stack([torch.rand(14, generator=g) for g in generators]).to(x)  # [B, 14]
    grain = draw_noise_like(x, generators)
    x = moved(x, 0.8 + 0.35 * draws[:, 0], 0.35 * (draws[:, 1] - 0.5), 0.2 * (draws[:, 2:4] - 0.5))
    draws = draws[:, 4:, None, None, None]  # [B, 10, 1, 1, 1]
    x = x * (0.85 + 0.3 * draws[:, 0:3, 0]) + 0.2 * (draws[:, 3] - 0.5)
    soft = F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.where(draws[:, 4] < 0.25, soft, x)
    x = x + 0.5 * (draws[:, 5] - 0.7).clamp(min=0) * grain
    places = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]  # [S]
    top, left, side = draws[:, 6], draws[:, 7], 0.3 * (draws[:, 8] < 0.3)
    rows = (places[:, None] - top).abs() < side / 2  # [B, 1, S, 1]
    columns = (places - left).abs() < side / 2  # [B, 1, 1, S]
    return torch.where(rows & columns, 2 * draws[:, 9] - 1, x).clamp(-1, 1)


def moved(x: Tensor, scale: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] enlarged 1 / scale [B] times, turned by angle [B] in radians, shifted.

    shift [B, 2] is in halves of the side; what comes into view repeats the border.
    """
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def make_stage(config: ClipConfig, captions: list[str]) -> ClipStage:
    """A CLIP as the config describes it, with a tokenizer trained on the captions.

    network.vision.model_type names another picture tower than CLIP's own (resnet, say); the two
    are then joined as a VisionTextDualEncoderModel.
    """
    if config.init:
        clip = load_clip(config.init, "init")
        check_clip_fit(config, clip.model.config.to_dict())
        return ClipStage(ClipTrainer(clip), config.augment)
    check_towers(config.network)
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
    clip = CLIP(make_model(text, vision, arguments), tokenizer, CENTRED, CENTRED)
    return ClipStage(ClipTrainer(clip), config.augment)


def make_model(text: dict, vision: dict, more: dict) -> CLIPModel | VisionTextDualEncoderModel:
    """Two towers from random weights."""
    kind = vision.get("model_type")
    if kind in (None, "clip_vision_model"):
        return CLIPModel(HFClipConfig(text_config=text, vision_config=vision, **more))
    text = {"model_type": "clip_text_model", **text}
    config = VisionTextDualEncoderConfig(text_config=text, vision_config=vision, **more)
    return VisionTextDualEncoderModel(config)


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
    alphabet = symbols + [symbol + "</w>" for symbol in symbols]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        # Numbered here, or each process would number some its own way and break ties by that.
        special_tokens=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = _merges(learner)[: vocab_size - len(alphabet) - 2]
    merged = list(dict.fromkeys("".join(pair) for pair in merges))
    words = alphabet + [word for word in merged if word not in set(alphabet)]
    words = [*words, "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges)


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
