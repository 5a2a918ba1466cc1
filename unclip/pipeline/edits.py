"""What an edit hands to the stages: pictures, masks and how to use them, checked and resized.

A mask says what is painted anew: white, as in diffusers. Inside, it is 1 there and 0 where the
picture is known.

Shapes: N subjects, B pictures, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion.editing import check_scheduler, denoise_from, repaint
from unclip.diffusion.noise import child_generators
from unclip.models.decoder import known_part
from unclip.models.upsampler import resize
from unclip.pictures import decode, in_8_bits, upright
from unclip.pipeline.arguments import central_square, check_whole_pictures, short

MAX_JUMPS = 1000
MAX_CANVAS = 8192
# Of repainting by a decoder that was not trained for it: most of what more jumps would bring.
NUM_RESAMPLES = 4
JUMP_LENGTH = 10  # RePaint, section 5


@dataclass(frozen=True)
class Edit:
    """Pictures to begin from, or to keep where a mask is 0.

    strength is that of denoise_from(), for pictures without masks; num_resamples and jump_length
    are the decoder's in repaint(). The upsamplers follow a small picture that agrees with itself
    by then, and never jump back.
    """

    pictures: list[Tensor]  # [N] of [1, 3, S, S] in [-1, 1]
    masks: list[Tensor]  # [N] of [1, 1, S, S], 1 where to paint; or empty
    strength: float = 1.0
    num_resamples: int = 1
    jump_length: int = 1

    def select(self, subjects: Sequence[int]) -> Edit:
        """The edit of pictures that are drawn of these subjects, one after another."""
        masks = [self.masks[n] for n in subjects] if self.masks else []
        return replace(self, pictures=[self.pictures[n] for n in subjects], masks=masks)

    def check(self, schedulers: Mapping[str, SchedulerMixin]) -> None:
        """Refuse schedulers, by stage, that cannot do what the edit asks for."""
        for stage, scheduler in schedulers.items():
            try:
                if self.masks:
                    check_scheduler(scheduler)
            except ValueError as error:
                raise ValueError(f"{stage}_{error}") from None

    def beginning(
        self, stage: str, network: nn.Module, side: int, seeds: Sequence[int]
    ) -> dict[str, Any]:
        """The loop of a stage that draws [B, 3, side, side], and what its network is told."""
        x_0 = rows(self.pictures, side, len(seeds))
        if not self.masks:
            if stage != "decoder":
                return {}
            return {"loop": partial(denoise_from, x_0=x_0, strength=self.strength)}
        mask = rows(self.masks, side, len(seeds))
        jumps = {"num_resamples": self.num_resamples, "jump_length": self.jump_length}
        loop = partial(
            repaint,
            x_0=x_0,
            mask=mask,
            noise_generators=child_generators(list(seeds), f"{stage} known"),
            **(jumps if stage == "decoder" else {}),
        )
        told = {"known": known_part(x_0, mask)} if is_for_inpainting(network) else {}
        return {"loop": loop, **told}

    def kept(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] with the known pixels in their place, as they are at this size."""
        if not self.masks:
            return x
        x_0, mask = (rows(each, x.shape[-1], len(x)).to(x) for each in (self.pictures, self.masks))
        return torch.where(mask > 0.5, x, x_0)


def is_for_inpainting(network: nn.Module) -> bool:
    """Whether a network has channels for the known part of a picture."""
    return bool(network.config.get("inpainting", False))


def rows(tensors: list[Tensor], side: int, num_rows: int) -> Tensor:
    """Pictures or masks of N subjects at one side, one for each of the pictures to draw."""
    resized = resized_mask if tensors[0].shape[1] == 1 else resized_picture
    every = torch.cat([resized(x, side) for x in tensors])
    return every.repeat_interleave(num_rows // len(every), dim=0)


def resized_picture(x: Tensor, side: int) -> Tensor:
    """[1, 3, S, S] in [-1, 1] to another side: means of areas down, bicubic up."""
    if x.shape[-1] > side:
        return F.interpolate(x, (side, side), mode="area")
    return x if x.shape[-1] == side else resize(x, side)


def resized_mask(mask: Tensor, side: int) -> Tensor:
    """[1, 1, S, S] to another side; a pixel is known where all that it covers is known."""
    if mask.shape[-1] > side:
        return F.adaptive_max_pool2d(mask, (side, side))
    return mask if mask.shape[-1] == side else F.interpolate(mask, (side, side))


def check_region(image: Any, mask: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures [N] of [1, 3, S, S] and a mask [1, 1, S, S] of each, cut to the middle square."""
    pictures = check_whole_pictures(image)
    masks = own_masks(image) if mask is None else check_masks(mask)
    if len(masks) not in (1, len(pictures)):
        raise ValueError(f"mask: {len(masks)} are given for {len(pictures)} pictures")
    masks = masks * (len(pictures) // len(masks))
    for picture, one in zip(pictures, masks, strict=True):
        (height, width), (mask_height, mask_width) = picture.shape[-2:], one.shape[-2:]
        if (height, width) != (mask_height, mask_width):
            raise ValueError(
                f"mask: it has {mask_width} x {mask_height} pixels where the picture has "
                f"{width} x {height}"
            )
    masks = [central_square(one) for one in masks]
    if not all(one.any() for one in masks):
        raise ValueError("mask: nothing in the picture's middle square is white, to be painted")
    return [central_square(picture) for picture in pictures], masks


def own_masks(image: Any) -> list[Tensor]:
    """The masks that pictures bring with them: what is transparent is painted."""
    images = image if isinstance(image, list | tuple) else [image]
    if not all(isinstance(one, Image.Image) and is_see_through(one) for one in images):
        raise ValueError("mask: give a mask, or a picture that is transparent where to paint")
    return [mask_of(one) for one in images]


def check_masks(mask: Any) -> list[Tensor]:
    """Masks [1, 1, H, W], 1 where to paint.

    Of a Pillow image that is what is transparent, or in one that hides nothing what is white
    (128 and more of 255, or as much of 16 bits; colours by their lightness); of a tensor [H, W]
    or [N, H, W] what is True, or 0.5 and more.
    """
    if isinstance(mask, Tensor):
        return [one[None, None] for one in check_mask_tensor(mask)]
    masks = mask if isinstance(mask, list | tuple) else [mask]
    if not masks or not all(isinstance(one, Image.Image) for one in masks):
        raise ValueError(f"mask: give Pillow images or a tensor [H, W], not {short(mask)}")
    return [mask_of(one) for one in masks]


def check_mask_tensor(mask: Tensor) -> Tensor:
    """A mask [H, W], or several [N, H, W], as [N, H, W] of 0 and 1."""
    if mask.ndim not in (2, 3) or not mask.numel():
        raise ValueError(f"mask: the shape must be [H, W] or [N, H, W], not {list(mask.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("mask: a tensor must hold True and False, or numbers from 0 to 1")
    return (mask.float() >= 0.5).float().reshape(-1, *mask.shape[-2:])


def mask_of(picture: Image.Image) -> Tensor:
    """A Pillow image as a mask [1, 1, H, W]: 1 where it is transparent, else where it is light."""
    picture = in_8_bits(upright(decode(picture)))
    if is_see_through(picture):
        painted = picture.convert("RGBA").getchannel("A").point(lambda level: 255 - level)
    else:
        painted = picture.convert("RGB").convert("L")
    levels = torch.frombuffer(bytearray(painted.tobytes()), dtype=torch.uint8)
    return (levels.reshape(1, 1, picture.height, picture.width) >= 128).float()


def is_see_through(picture: Image.Image) -> bool:
    """Whether half of a pixel's colour or more is missing anywhere."""
    if not picture.has_transparency_data:
        return False
    return picture.convert("RGBA").getchannel("A").getextrema()[0] < 128


def placed(
    picture: Tensor, canvas: int | None, offset: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """A picture [1, 3, H, W] on a canvas, and the mask of what is empty there.

    canvas: pixels a side, in the picture's own; unless given its longer side, and half as much
    again of a square. offset: columns to its left and rows above it; the middle unless given.
    """
    height, width = picture.shape[-2:]
    if canvas is None:
        canvas = round(1.5 * width) if height == width else max(height, width)
    if not is_whole(canvas) or not max(height, width) <= canvas <= MAX_CANVAS:
        raise ValueError(
            f"canvas: give pixels a side from {max(height, width)}, the picture's, to "
            f"{MAX_CANVAS}, not {short(canvas)}"
        )
    room = (canvas - width, canvas - height)
    middle = [each // 2 for each in room]
    left, top = middle if offset is None else check_offset(offset, room)
    if not any(room):
        raise ValueError(f"canvas: the picture fills {canvas} pixels a side; give more")
    x = torch.zeros(1, 3, canvas, canvas)
    mask = torch.ones(1, 1, canvas, canvas)
    x[..., top : top + height, left : left + width] = picture
    mask[..., top : top + height, left : left + width] = 0
    return x, mask


def check_offset(offset: Any, room: Sequence[int]) -> list[int]:
    """Columns and rows before a picture, within the room that the canvas leaves."""
    fits = isinstance(offset, list | tuple) and len(offset) == 2 and all(map(is_whole, offset))
    if not fits or not all(0 <= each <= most for each, most in zip(offset, room, strict=True)):
        raise ValueError(
            f"offset: give (columns, rows) from (0, 0) to ({room[0]}, {room[1]}), "
            f"not {short(offset)}"
        )
    return list(offset)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_jumps(argument: str, value: Any, default: int) -> int:
    """How often, or how far, sampling goes back; the default unless given."""
    if value is None:
        return default
    if not is_whole(value) or not 1 <= value <= MAX_JUMPS:
        raise ValueError(f"{argument}: give a number from 1 to {MAX_JUMPS}, not {short(value)}")
    return value


def check_strength(value: Any) -> float:
    """The share of the steps that are run, above 0 and up to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # nan compares false
        raise ValueError(f"strength: give a number above 0 and up to 1, not {short(value)}")
    return float(value)
