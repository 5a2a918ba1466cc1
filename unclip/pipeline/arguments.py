"""Values that a call of the pipeline is given, checked before any network runs.

Every fault is a ValueError that begins with the name of the argument and says what to give.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.diffusion.timesteps import Steps, timesteps_for
from unclip.models.clip import TextEncoding, text_config_of
from unclip.pictures import to_rgb
from unclip.pipeline.schedulers import check_scheduler

STAGES = ("prior", "decoder", "upsampler_256", "upsampler_1024")
GUIDED = ("prior", "decoder")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_GUIDANCE = 100.0
MAX_COUNT = 1000  # of pictures of a caption, and of candidates of the prior
NUM_SEEDS = 2**63

# Of a model that names nothing else: Karlo's steps, GLIDE's guidance, the paper's lists for DDIM.
DEFAULT_STEPS: dict[str, Steps] = {
    "prior": 25,
    "decoder": 25,
    "upsampler_256": "ddim27",
    "upsampler_1024": "ddim15",
}
DEFAULT_GUIDANCE = {"prior": 1.0, "decoder": 3.0}
DEFAULT_CANDIDATES = 2  # section 2.2


def check_texts(argument: str, value: Any) -> list[str]:
    """A caption or a list of captions as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError(f"{argument}: give a text or a list of texts, not {short(value)}")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{argument}: give texts only, not {short(text)}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{argument}: {short(text)} holds half a character") from None
    return list(texts)


def check_text_embeds(value: Any, dim: int) -> TextEncoding | None:
    """Captions as unclip.TextEncoding, which encode() gives."""
    if value is None:
        return None
    if not isinstance(value, TextEncoding) or value.z_txt.shape[-1] != dim:
        raise ValueError(f"text_embeds: give what encode() returns, of {dim} dimensions")
    if not all(torch.isfinite(member).all() for member in value[:2]):
        raise ValueError("text_embeds: all values must be finite")
    return value


def spread_text(text: TextEncoding, num_subjects: int) -> TextEncoding:
    """A caption for each subject: a single one serves all."""
    if len(text.z_txt) not in (1, num_subjects):
        raise ValueError(f"text_embeds: {len(text.z_txt)} are given where 1 or {num_subjects} fit")
    return text if len(text.z_txt) == num_subjects else text.expand(num_subjects)


def spread(argument: str, values: Any, num_subjects: int) -> Any:
    """One value for each subject: a single one serves all."""
    if values is None or len(values) == num_subjects:
        return values
    if len(values) != 1:
        raise ValueError(f"{argument}: {len(values)} are given where 1 or {num_subjects} fit")
    return values.expand(num_subjects, -1) if isinstance(values, Tensor) else values * num_subjects


def check_count(argument: str, value: Any) -> int:
    """A number of things, from 1 to 1000."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise ValueError(f"{argument}: give a number from 1 to {MAX_COUNT}, not {short(value)}")
    return value


def check_candidates(
    value: Any, config: Mapping[str, Any], argument: str = "num_prior_candidates"
) -> int:
    """The embeddings that the prior draws of each subject; None leaves that to the model."""
    return config["default_candidates"] if value is None else check_count(argument, value)


def check_batch_size(value: Any) -> int | None:
    """The pictures to draw at a time; None leaves that to the stages."""
    return None if value is None else check_count("max_batch_size", value)


def check_guidance(argument: str, value: Any) -> float:
    """A guidance scale from 0 (the caption has no say) over 1 (no guidance) to 100."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_GUIDANCE:  # nan compares false
        raise ValueError(
            f"{argument}: give a number from 0 to {MAX_GUIDANCE:g}, not {short(value)}"
        )
    return float(value)


def check_steps(argument: str, value: Any, components: Mapping[str, Any], stage: str) -> Steps:
    """Steps that the stage's scheduler can take, which must suit the stage's network."""
    scheduler = components[f"{stage}_scheduler"]
    check_scheduler(stage, components[stage], scheduler)
    try:
        timesteps_for(value, scheduler)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None
    return value


def check_size(size: Any, components: Mapping[str, Any]) -> dict[str, int]:
    """The stages that draw, each with its side, up to the first that reaches the size asked for."""
    sides = {
        stage: components[stage].config.size
        for stage in STAGES[1:]
        if components[stage] is not None
    }
    halves = {side // 2 for stage, side in sides.items() if stage != "decoder"}
    available = sorted({*sides.values(), *halves})
    if size is None:
        return sides
    if isinstance(size, bool) or not isinstance(size, int) or size not in available:
        listing = ", ".join(map(str, available))
        raise ValueError(f"size: this model draws {listing} pixels a side, not {short(size)}")
    stages = {}
    for stage, side in sides.items():
        stages[stage] = side
        if side >= size:
            break
    return stages


def image_seeds(generator: Any, seeds: Any, num_images: int) -> list[int]:
    """A seed for each picture.

    seeds: a list, or a number n that stands for n, n+1, n+2, ... generator: one that draws a seed
    for each picture, or a list with one for each. Neither: seeds that the system draws; no
    generator of the process is touched.
    """
    if generator is not None and seeds is not None:
        raise ValueError("seeds: give seeds or generator, not both")
    if generator is None and seeds is None:
        return [secrets.randbits(32) for _ in range(num_images)]
    if generator is not None:
        return [draw_seed(one) for one in check_generators(generator, num_images)]
    if isinstance(seeds, list | tuple):
        if len(seeds) != num_images:
            raise ValueError(f"seeds: {len(seeds)} are given for {num_images} pictures")
        return [check_seed(seed) for seed in seeds]
    first = check_seed(seeds)
    return [check_seed(first + index) for index in range(num_images)]


def check_seed(seed: Any) -> int:
    """A whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < NUM_SEEDS:
        raise ValueError(f"seeds: give whole numbers from 0 to 2^63 - 1, not {short(seed)}")
    return seed


def check_generators(generator: Any, num_images: int) -> list[torch.Generator]:
    """The generator that each picture draws its seed from."""
    generators = generator if isinstance(generator, list | tuple) else [generator] * num_images
    if len(generators) != num_images:
        raise ValueError(f"generator: {len(generators)} are given for {num_images} pictures")
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"generator: give a torch.Generator or a list, not {short(generator)}")
    return list(generators)


def draw_seed(generator: torch.Generator) -> int:
    """The next 63 bits of a generator."""
    drawn = torch.randint(NUM_SEEDS - 1, (), generator=generator, device=generator.device)
    return int(drawn)


def check_embeddings(value: Any, dim: int) -> Tensor | None:
    """Embeddings z_img [N, D]; a single one may be [D]."""
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (1, 2):
        raise ValueError(f"image_embeds: give a float tensor [N, {dim}], not {short(value)}")
    value = value.reshape(-1, value.shape[-1]).float()
    if value.shape[1] != dim or not len(value):
        raise ValueError(f"image_embeds: the shape must be [N, {dim}], not {list(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError("image_embeds: all values must be finite")
    return value


def check_pictures(value: Any) -> list[Tensor]:
    """The middle squares [1, 3, S, S] of pictures, which is what CLIP sees of them."""
    return [central_square(x) for x in check_whole_pictures(value)]


def check_whole_pictures(value: Any) -> list[Tensor]:
    """Pictures as tensors [1, 3, H, W] in [-1, 1]: Pillow images, or a tensor in [0, 1]."""
    if isinstance(value, Tensor):
        batch = value[None] if value.ndim == 3 else value
        if batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
            raise ValueError(f"image: the shape must be [N, 3, H, W], not {list(value.shape)}")
        if not batch.is_floating_point() or not ((batch >= 0) & (batch <= 1)).all():
            raise ValueError("image: a tensor must hold floats from 0 to 1")
        return [picture[None].float() * 2 - 1 for picture in batch]
    pictures = value if isinstance(value, list | tuple) else [value]
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(f"image: give Pillow images or a tensor [N, 3, H, W], not {short(value)}")
    return [pixels_of(picture) for picture in pictures]


def pixels_of(picture: Image.Image) -> Tensor:
    """A Pillow image as [1, 3, H, W] in [-1, 1], upright, transparency over white."""
    pixels = torch.tensor(np.asarray(to_rgb(picture)))  # [H, W, 3]
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def central_square(x: Tensor) -> Tensor:
    """The middle of a picture [1, 3, H, W] or of a mask [1, 1, H, W]."""
    side = min(x.shape[-2:])
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    return x[..., top : top + side, left : left + side]


def resolve_steps(argument: str, given: Mapping[str, Any] | None) -> dict[str, Steps]:
    """A model's default steps: what it names, and the usual ones for other stages."""
    unknown = set(given or {}) - set(STAGES)
    if unknown:
        raise ValueError(f"{argument}: {sorted(unknown)[0]!r} is none of {', '.join(STAGES)}")
    return DEFAULT_STEPS | dict(given or {})


def resolve_guidance(given: Mapping[str, Any] | float | None) -> dict[str, float]:
    """A model's default guidance; a single number is the decoder's, "image" that of z_img alone."""
    given = given if isinstance(given, Mapping) else {} if given is None else {"decoder": given}
    known = (*GUIDED, "image")
    unknown = set(given) - set(known)
    if unknown:
        raise ValueError(f"default_guidance: {sorted(unknown)[0]!r} is none of {', '.join(known)}")
    scales = {stage: check_guidance("default_guidance", scale) for stage, scale in given.items()}
    return DEFAULT_GUIDANCE | scales


def check_interval(argument: str, value: Any) -> tuple[float, float] | None:
    """Two timesteps (low, high) of guidance; None leaves that to the model."""
    if value is None:
        return None
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(isinstance(t, int | float) for t in value):
        raise ValueError(f"{argument}: give (low, high) timesteps, not {short(value)}")
    low, high = value
    if not 0 <= low <= high <= 1e6:
        raise ValueError(f"{argument}: give 0 <= low <= high, not {short(value)}")
    return low, high


def check_fit(components: Mapping[str, Any]) -> None:
    """Refuse networks that were not trained for each other."""
    check_conditions(components)
    low = components["decoder"].config.size
    if components["upsampler_1024"] is not None and components["upsampler_256"] is None:
        raise ValueError("upsampler_1024: it needs an upsampler_256 before it")
    for stage in STAGES[2:]:
        if components[stage] is not None:
            if components[stage].config.size != 4 * low:
                raise ValueError(
                    f"{stage}: it draws {components[stage].config.size} pixels a side, but the "
                    f"stage before it gives {low}, a quarter of {4 * low}"
                )
            low *= 4
    for stage in STAGES:
        if components[stage] is not None:
            check_scheduler(stage, components[stage], components[f"{stage}_scheduler"])


def check_conditions(components: Mapping[str, Any]) -> None:
    """Refuse a prior or a decoder that was trained with another CLIP."""
    clip = components["clip"].config
    text = text_config_of(components["clip"])
    fits = {}
    for stage in GUIDED:
        if components[stage] is not None:
            config = components[stage].config
            fits[stage, "embedding_dim"] = (config.embedding_dim, clip.projection_dim)
            fits[stage, "context"] = (config.context, text.max_position_embeddings)
            width = config.get("text_states_dim") or config.embedding_dim
            if not config.get("text_encoder"):
                fits[stage, "width of text states"] = (width, text.hidden_size)
    for (stage, what), (own, clips) in fits.items():
        if own != clips:
            raise ValueError(f"{stage}: its {what} is {own}, but clip's is {clips}")


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices, and name the nearest."""
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"{argument}: give one of {', '.join(choices)}, not {short(value)}{hint}")


def short(value: Any, length: int = 60) -> str:
    """What was given, in few characters."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = ascii(value)
    return text if len(text) <= length else text[: length - 3] + "..."
