"""The stages of a pipeline, one function each: captions, z_img, a small picture, larger ones.

Shapes: B pictures, D CLIP embedding, K candidates of the prior, S pixels a side.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from unclip.diffusion.analytic import estimate_score_norms
from unclip.diffusion.guidance import guide, guide_twice, in_interval, rescale
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.prediction import Predict
from unclip.diffusion.sampling import denoise
from unclip.diffusion.tiles import tile_starts, tiled
from unclip.diffusion.timesteps import Steps
from unclip.models.clip import CLIP, TextEncoding
from unclip.models.decoder import Context
from unclip.models.prior_transformer import Prefix

MAX_CHARACTERS_PER_TOKEN = 100  # of a caption too long to be counted to its end
TOKENIZING = threading.Lock()  # a tokenizer keeps what it was last asked for

# Pixels of a stage that are drawn at a time; more would need memory without being quicker, on a CPU
# sooner: its caches are small, and its allocator asks the system for every large block anew.
PIXELS_AT_ONCE = 4 * 1024**2
PIXELS_AT_ONCE_ON_CPU = 1024**2

logger = logging.getLogger("unclip")


@dataclass(frozen=True)
class Stage:
    """A network and how it is sampled.

    eta, on_step and progress are those of denoise(); name is the stream of noise, and the stage
    that errors name. x_T [B, ...] is where sampling begins, in place of fresh noise. loop takes
    the place of denoise() where a picture is begun from or kept in part (unclip.diffusion.editing),
    and known [B, 4, S, S] is that part for a decoder that was trained to see it. Guidance is used
    within guidance_interval and rescaled by guidance_rescale; image_guidance is the decoder's scale
    of z_img, that of the caption unless given; see unclip.diffusion.guidance. reuse is that of
    unclip.models.decoder.Context.
    """

    name: str
    network: nn.Module
    scheduler: SchedulerMixin
    steps: Steps
    on_step: Callable[[int, int, Tensor], Tensor | None] | None = None
    progress: Callable[[Sequence[int]], Iterable[int]] | None = None
    x_T: Tensor | None = None
    eta: float = 0.0
    loop: Callable[..., Tensor] = denoise
    known: Tensor | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    image_guidance: float | None = None
    reuse: int = 1

    @property
    def device(self) -> torch.device:
        """Where the network computes, which under offloading is not where its weights rest."""
        return execution_device(self.network)

    @property
    def learned_variance(self) -> bool:
        """Whether the network's output has a second half, the variance."""
        return bool(self.network.config.get("learned_variance", False))


def encode(clip: CLIP, captions: Sequence[str]) -> TextEncoding:
    """Captions to their embeddings, states, mask and tokens, in float32.

    What does not fit CLIP's context is cut, with a warning that counts the tokens.
    """
    limit = clip.context * MAX_CHARACTERS_PER_TOKEN
    shortened = [caption[:limit] for caption in captions]
    with TOKENIZING:
        whole = clip.tokenizer(shortened, verbose=False, split_special_tokens=True).input_ids
        lengths = [len(ids) for ids in whole]
        text = clip.encode_text(shortened)
    num_dropped = sum(max(0, length - clip.context) for length in lengths)
    if num_dropped:
        logger.warning(
            "the end of a caption is ignored: %s%d tokens too many for the %d that CLIP reads",
            "more than " if shortened != list(captions) else "",
            num_dropped,
            clip.context,
        )
    check_finite("clip", "the embedding of a caption", text.z_txt, text.text_states)
    return text


def encode_images(clip: CLIP, pictures: Iterable[Tensor]) -> Tensor:
    """Pictures, each [1, 3, S, S] in [-1, 1] of any S, to z_img [B, D]."""
    z_img = torch.cat([clip.encode_image(x.to(clip.image_mean.device)) for x in pictures])
    check_finite("clip", "the embedding of a picture", z_img)
    return z_img


def sample_prior(
    stage: Stage,
    text: TextEncoding,
    negative: TextEncoding,
    seeds: Sequence[int],
    guidance_scale: float,
    num_candidates: int,
) -> Tensor:
    """Captions to z_img [B, D], as CLIP would give it of a fitting picture; in float32.

    Of K candidates the one with the largest z_img . z_txt is kept (DALL-E 2, section 2.2).
    """
    prior = stage.network
    text, negative = (t.to(stage.device, torch.float32) for t in (text, negative))
    negative = prior.unconditional(negative)
    streams = candidate_streams(stage.name, num_candidates)
    generators = [g for stream in streams for g in child_generators(list(seeds), stream)]
    captions = branches((text, None, negative), guidance_weights(guidance_scale))
    every = torch.arange(len(captions) * len(seeds)).view(len(captions), len(seeds))
    prefix = Prefix(every.repeat(1, num_candidates).flatten())  # candidates share their caption's
    both, alone = TextEncoding.cat(captions), Prefix(every[0].repeat(num_candidates))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        if len(x_t) < len(prefix.rows):  # outside of the guidance's interval
            return prior(x_t, t, captions[0], alone)
        return prior(x_t, t, both, prefix)

    with torch.autocast(stage.device.type, enabled=False):
        predict = guided(stage, predict, guidance_scale)
        z = sample(stage, predict, (prior.config.embedding_dim,), generators)
        z = prior.denormalize(z)
    check_finite(stage.name, "the embedding it ends with", z)
    z = z.reshape(num_candidates, len(seeds), -1)  # [K, B, D]
    best = (z * text.z_txt).sum(dim=-1).argmax(dim=0)  # [B]
    return z[best, torch.arange(len(seeds), device=z.device)]


def score_norms(
    stage: Stage, text: TextEncoding, z_img: Tensor, seeds: Sequence[int], num_timesteps: int
) -> list[float]:
    """E ||eps_hat||^2 / d of the prior at even timesteps, over captions and their z_img [N, D]."""
    prior, scheduler = stage.network, stage.scheduler
    last = scheduler.config.num_train_timesteps - 1
    timesteps = [round(last * k / (num_timesteps - 1)) for k in range(num_timesteps)]
    abar = scheduler.alphas_cumprod.double().cpu()
    text = text.to(stage.device, torch.float32)

    def eps_hat(x_t: Tensor, t: Tensor) -> Tensor:
        level = abar[int(t[0])].item()
        return (x_t - level**0.5 * prior(x_t, t, text)) / (1 - level) ** 0.5

    x_0 = prior.normalize(z_img.to(stage.device).float())
    generators = child_generators(list(seeds), "score norms")
    return estimate_score_norms(eps_hat, x_0, abar, timesteps, generators)


def sample_decoder(
    stage: Stage,
    z_img: Tensor,
    text: TextEncoding,
    negative: TextEncoding,
    seeds: Sequence[int],
    guidance_scale: float,
) -> Tensor:
    """z_img [B, D] and captions to the smallest pictures [B, 3, S, S] in [-1, 1].

    Guidance leads away from the negative caption (the empty text) without an embedding; with the
    stage's image_guidance the two have scales of their own.
    """
    size = stage.network.config.size
    predict = decoder_predictor(stage, z_img, text, negative, guidance_scale)
    generators = child_generators(list(seeds), stage.name)
    return sample(stage, predict, (3, size, size), generators).clamp(-1, 1)


def decoder_predictor(
    stage: Stage,
    z_img: Tensor,
    text: TextEncoding,
    negative: TextEncoding,
    guidance_scale: float,
) -> Predict:
    """The decoder's guided prediction of (x_t [B, 3, S, S], t [B]) for z_img and captions."""
    decoder = stage.network
    place = {"device": stage.device, "dtype": decoder.dtype}
    text, negative = text.to(**place), negative.to(**place)
    z_img, null = z_img.to(**place), decoder.null_z_img(len(z_img)).to(**place)
    weights = guidance_weights(guidance_scale, stage.image_guidance)
    embeddings = torch.cat(branches((z_img, z_img, null), weights))
    rows = TextEncoding.cat(branches((text, negative, negative), weights))

    known = None
    if stage.known is not None:
        known = torch.cat(branches([stage.known.to(**place)] * 3, weights))
    contexts: dict[int, Context] = {}  # by the number of rows: one branch, or all

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        used = slice(len(x_t))  # without guidance, the first branch alone
        told = None if known is None else known[used]
        context = contexts.setdefault(len(x_t), Context(stage.reuse))
        now = x_t.to(decoder.dtype)
        return decoder(now, t, embeddings[used], rows.select(used), told, None, context)

    return guided(stage, predict, guidance_scale)


def upsample(
    stage: Stage,
    x_low: Tensor,
    seeds: Sequence[int],
    tile_size: int | None = None,
    tile_overlap: int = 0,
) -> Tensor:
    """Pictures [B, 3, S, S] in [-1, 1] to such of four times the side.

    tile_size: where given, every prediction is joined from tiles of so many pixels a side, which
    share tile_overlap pixels at least; the noise is that of the whole picture.
    """
    upsampler = stage.network
    x_low = x_low.to(stage.device, upsampler.dtype)
    height, width = (4 * side for side in x_low.shape[-2:])

    resized: dict[tuple[int, ...], Tensor] = {}  # by tile; the same at every step

    def predict_tile(x_t: Tensor, t: Tensor, tile: tuple[slice, ...]) -> Tensor:
        rows, columns = (slice(side.start // 4, side.stop // 4) for side in tile)
        part, place = x_low[..., rows, columns], (rows.start, columns.start)
        if place not in resized:
            resized[place] = upsampler.resized(part)
        return upsampler(x_t.to(upsampler.dtype), t, part, None, resized[place])

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return predict_tile(x_t, t, (slice(0, height), slice(0, width)))

    if tile_size is not None and tile_size < width:
        starts = tile_starts(width, tile_size, tile_overlap, math.lcm(4, upsampler.multiple))
        predict = tiled(predict_tile, starts, tile_size)
    # The same network may be run twice, on a picture and then on its own: with other noise.
    stream = stage.name if width == upsampler.config.size else f"{stage.name} {width}"
    generators = child_generators(list(seeds), stream)
    return sample(stage, predict, (3, height, width), generators).clamp(-1, 1)


def guided(stage: Stage, predict: Predict, scale: float) -> Predict:
    """A prediction with classifier-free guidance, where the scales and the interval ask for it.

    predict is given as many rows as branches() gives of the conditions, or those of the first
    branch where no other is needed.
    """
    weights = guidance_weights(scale, stage.image_guidance)
    num_branches = sum(weight != 0 for weight in weights)
    first_scale = next(weight for weight in weights if weight)  # guidance by two leaves it so

    def guided_predict(x_t: Tensor, t: Tensor) -> Tensor:
        if num_branches == 1 or not in_interval(t[0], stage.guidance_interval):
            return predict(x_t, t).to(x_t)
        output = predict(torch.cat([x_t] * num_branches), torch.cat([t] * num_branches)).to(x_t)
        cond, *others = output.chunk(num_branches)
        if len(others) == 1:
            output = guide(cond, *others, first_scale, stage.learned_variance)
        else:
            scales = (scale, stage.image_guidance)
            output = guide_twice(cond, *others, *scales, stage.learned_variance)
        return rescale(output, cond, stage.guidance_rescale, stage.learned_variance)

    return guided_predict


def sample(
    stage: Stage, predict: Predict, shape: tuple[int, ...], generators: list[torch.Generator]
) -> Tensor:
    """Sample [B, *shape] in float32 from the stage's x_T, or from noise of the generators."""
    # Drawn in any case, so that the noise of later steps is the same with an x_T that was given.
    x_T = randn_per_sample(shape, generators)
    x_T = x_T if stage.x_T is None else stage.x_T
    return stage.loop(
        predict,
        x_T.to(stage.device),
        stage.scheduler,
        stage.steps,
        generators,
        learned_variance=stage.learned_variance,
        on_step=stage.on_step,
        progress=stage.progress,
        stage=stage.name,
        eta=stage.eta,
    )


def initial_noise(name: str, shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """The x_T [B, *shape] from which a stage begins for these seeds."""
    return randn_per_sample(shape, child_generators(list(seeds), name))


def candidate_streams(name: str, num_candidates: int) -> list[str]:
    """The stream of noise of each candidate of the prior."""
    return [name, *(f"{name} {number}" for number in range(1, num_candidates))]


def pictures_at_once(network: nn.Module, side: int) -> int:
    """How many pictures of a side a stage draws at a time: as many as the bound on pixels holds."""
    on_cpu = execution_device(network).type == "cpu"
    return max(1, (PIXELS_AT_ONCE_ON_CPU if on_cpu else PIXELS_AT_ONCE) // side**2)


def batches(num_rows: int, at_once: int) -> list[slice]:
    """All rows, so many at a time."""
    return [slice(start, start + at_once) for start in range(0, num_rows, at_once)]


def execution_device(network: nn.Module) -> torch.device:
    """The device on which a network runs, wherever offloading keeps its weights."""
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            group = getattr(hook, "group", None)
            if group is not None:
                return torch.device(group.onload_device)
    return network.device


def guidance_weights(scale: float, image_scale: float | None = None) -> tuple[float, float, float]:
    """What guidance makes of the predictions with all conditions, z_img alone, none; adds up to 1.

    image_scale: of z_img alone; without it both are led by one scale (DALL-E 2, section 2.1).
    """
    image_scale = scale if image_scale is None else image_scale
    return scale, image_scale - scale, 1 - image_scale


def branches(conditions: Sequence[Any], weights: Sequence[float]) -> list:
    """The conditions whose predictions have a weight, and so must be made."""
    return [condition for condition, weight in zip(conditions, weights, strict=True) if weight]


def check_finite(stage: str, what: str, *tensors: Tensor) -> None:
    """Stop with the stage's name at values that are not finite."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise FloatingPointError(f"{stage}: {what} is not finite")
