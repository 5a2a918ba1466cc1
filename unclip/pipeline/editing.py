"""Pictures changed in part, made from others, and made larger, as methods of UnCLIPPipeline.

Masks: white is painted anew, as in diffusers; in masks and pictures with transparency, what is
transparent.

Shapes: N subjects, B pictures, S pixels a side.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unclip.diffusion.timesteps import Steps
from unclip.pipeline import arguments, edits, enlarging, stages
from unclip.pipeline.advice import refuse_unknown
from unclip.pipeline.call import Report, check_report, with_advice
from unclip.pipeline.edits import Edit
from unclip.pipeline.enlarging import Pass
from unclip.pipeline.memory import in_turn
from unclip.pipeline.output import UnCLIPOutput, finished

Pictures = Image.Image | list[Image.Image] | Tensor


class Editing:
    """Inpainting, outpainting, image-to-image and upscaling.

    Keywords that a method does not name itself are those of a call of the pipeline. Where neither
    a caption nor an embedding is given, the z_img of the picture itself leads. Pictures are cut to
    their middle square, but for outpaint().
    """

    def inpaint(
        self,
        image: Pictures,
        mask: Pictures | None = None,
        prompt: str | list[str] | None = None,
        size: int | None = None,
        num_resamples: int | None = None,
        jump_length: int | None = None,
        **settings: Any,
    ) -> UnCLIPOutput | tuple:
        """Paint what is white in the mask; every other pixel stays as it is, to the bit.

        A decoder trained for inpainting sees the known part; any other is brought to agree with
        it by resampling (RePaint). The upsamplers keep the known pixels of their own size.

        image: as in a call of the pipeline; Pillow images may be transparent.
        mask: Pillow images of the picture's size, white (or transparent) where to paint, or a
            tensor [H, W] or [N, H, W], True where to paint. Without it, the transparency of image.
        prompt: what the whole picture shows afterwards.
        size: the largest that the model draws within the picture's own, unless given; pictures of
            which that is not the same need it. Known pixels are those of the picture at this size:
            the picture's own where the sides are equal.
        num_resamples, jump_length: every jump_length steps the decoder goes back as many, until
            they were run num_resamples times; 10 and 4, but 1 time by an inpainting decoder.

        Raises:
            ValueError: for a bad argument, by name, before anything runs.
        """
        pictures, masks = edits.check_region(image, mask)
        edit = self._repainting(pictures, masks, num_resamples, jump_length)
        output = self._edited(edit, image, prompt, size, settings)
        return self._noted(output, edit, settings, kind="inpaint")

    def outpaint(
        self,
        image: Pictures,
        prompt: str | list[str] | None = None,
        canvas: int | None = None,
        offset: Sequence[int] | None = None,
        size: int | None = None,
        num_resamples: int | None = None,
        jump_length: int | None = None,
        **settings: Any,
    ) -> UnCLIPOutput | tuple:
        """Put a picture of any proportions on a square canvas and paint what it does not cover.

        canvas: pixels a side, in the picture's own; its longer side unless given, or half as much
            again of a square picture.
        offset: pixels (left, above) of the picture; it stands in the middle unless given.

        The other arguments, and the errors, are those of inpaint().
        """
        whole = arguments.check_whole_pictures(image)
        pictures, masks = zip(*(edits.placed(x, canvas, offset) for x in whole), strict=True)
        edit = self._repainting(list(pictures), list(masks), num_resamples, jump_length)
        output = self._edited(edit, image, prompt, size, settings)
        return self._noted(output, edit, settings, kind="outpaint")

    def image_to_image(
        self,
        image: Pictures,
        prompt: str | list[str] | None = None,
        strength: float = 0.5,
        size: int | None = None,
        **settings: Any,
    ) -> UnCLIPOutput | tuple:
        """Draw from a picture with noise on it rather than from noise alone (SDEdit).

        strength: above 0 and up to 1, the share of the decoder's steps that are run: the more, the
            less of the picture is left. The upsamplers follow what the decoder has drawn.

        The other arguments, and the errors, are those of inpaint().
        """
        strength = edits.check_strength(strength)
        edit = Edit(arguments.check_pictures(image), [], strength)
        output = self._edited(edit, image, prompt, size, settings)
        return self._noted(output, edit, settings, kind="image_to_image")

    def _repainting(
        self,
        pictures: list[Tensor],
        masks: list[Tensor],
        num_resamples: int | None,
        jump_length: int | None,
    ) -> Edit:
        """The edit that keeps what the masks leave, by a decoder of either kind."""
        usual = 1 if edits.is_for_inpainting(self.decoder) else edits.NUM_RESAMPLES
        num_resamples = edits.check_jumps("num_resamples", num_resamples, usual)
        jump_length = edits.check_jumps("jump_length", jump_length, edits.JUMP_LENGTH)
        return Edit(pictures, masks, num_resamples=num_resamples, jump_length=jump_length)

    def _edited(
        self, edit: Edit, image: Pictures, prompt: Any, size: int | None, settings: dict[str, Any]
    ) -> UnCLIPOutput:
        """What a call of the pipeline makes of an edit."""
        if size is None:
            size = common_size(self.components, edit.pictures)
        prompt = None if prompt is None else arguments.check_texts("prompt", prompt)
        dim = self.decoder.config.embedding_dim
        embeddings = arguments.check_embeddings(settings.get("image_embeds"), dim)
        text = arguments.check_text_embeds(settings.get("text_embeds"), dim)
        given = (edit.pictures, prompt, embeddings, None if text is None else text.z_txt)
        num_subjects = max(len(values) for values in given if values is not None)
        edit = replace(
            edit,
            pictures=arguments.spread("image", edit.pictures, num_subjects),
            masks=edit.masks and arguments.spread("mask", edit.masks, num_subjects),
        )
        led = any(values is not None for values in (prompt, embeddings, text))
        prompt = arguments.spread("prompt", prompt, num_subjects)
        embeddings = arguments.spread("image_embeds", embeddings, num_subjects)
        text = text and arguments.spread_text(text, num_subjects)
        settings = {**settings, "return_dict": True, "size": size, "edit": edit}
        settings |= {"image_embeds": embeddings, "text_embeds": text}
        return self(prompt, image=None if led else image, **settings)

    def _noted(
        self, output: UnCLIPOutput, edit: Edit, settings: dict[str, Any], kind: str
    ) -> UnCLIPOutput | tuple:
        """The output with what the edit did in its settings, in the form that was asked for."""
        output.settings["edit"] = {"kind": kind}
        if edit.masks:
            jumps = {"num_resamples": edit.num_resamples, "jump_length": edit.jump_length}
            output.settings["edit"] |= jumps
        else:
            output.settings["edit"]["strength"] = edit.strength
        return output if settings.get("return_dict", True) else output.to_tuple()

    @torch.no_grad()
    @in_turn
    def upscale(
        self,
        image: Pictures,
        size: int | None = None,
        upsampler_256_num_inference_steps: Steps | None = None,
        upsampler_1024_num_inference_steps: Steps | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: int | list[int] | None = None,
        max_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t",),
        interrupt: threading.Event | None = None,
        **unknown: Any,
    ) -> UnCLIPOutput | tuple:
        """Make pictures larger by the upsamplers alone: 64 -> 256 -> 1024 -> 2048 or 4096.

        size: pixels a side; the last upsampler's unless given, or twice or four times as many.
            Then it is run again, tile by tile. Every pass begins with a quarter of its side, to
            which the picture is reduced; where it is smaller, earlier passes enlarge it first. A
            picture that needs none of these, beside others that do, is in low_res as it was given.
        tile_size: pixels a side of what an upsampler draws at once; its own size unless given.
        tile_overlap: pixels that tiles share at least; a quarter of a tile unless given.

        The other arguments, and the errors, are those of a call of the pipeline.
        """
        refuse_unknown(unknown, inspect.signature(self.upscale).parameters)
        arguments.check_choice("output_type", output_type, arguments.OUTPUT_TYPES)
        inputs = callback_on_step_end_tensor_inputs
        report = check_report(callback_on_step_end, inputs, interrupt)
        pictures = arguments.check_pictures(image)
        sides = [picture.shape[-1] for picture in pictures]
        size = enlarging.check_larger(size, max(sides), self.components)
        at_once = arguments.check_batch_size(max_batch_size)
        asked = (upsampler_256_num_inference_steps, upsampler_1024_num_inference_steps)
        default = self.config.default_steps
        steps = {
            name: default[name] if own is None else own
            for name, own in zip(arguments.STAGES[2:], asked, strict=True)
        }
        passes = enlarging.check_passes(
            self.components, steps, size, min(sides), tile_size, tile_overlap
        )
        seeds = arguments.image_seeds(generator, seeds, len(pictures))
        report.check()
        *earlier, x = self._passed(pictures, passes, seeds, report, at_once)
        self.maybe_free_model_hooks()
        output = UnCLIPOutput(
            finished(edits.resized_picture(x, size), output_type),
            None,
            seeds,
            {x_low.shape[-1]: finished(x_low, output_type) for x_low in earlier},
            self._passes_noted(passes, size),
        )
        return output if return_dict else output.to_tuple()

    def _passed(
        self,
        pictures: list[Tensor],
        passes: list[Pass],
        seeds: list[int],
        report: Report,
        max_batch_size: int | None,
    ) -> list[Tensor]:
        """Pictures [B, 3, S, S] after every pass, on the CPU; resized where one is not needed."""
        begins = [enlarging.first_needed(passes, picture.shape[-1]) for picture in pictures]
        x, made = list(pictures), []
        for number, each in enumerate(passes):
            network = self.components[each.stage]
            at_once = max_batch_size or stages.pictures_at_once(network, each.side)
            rows = [row for row, begin in enumerate(begins) if begin <= number]
            for part in stages.batches(len(rows), at_once):
                lows = [edits.resized_picture(x[row], each.side // 4) for row in rows[part]]
                drawn = self._pass(
                    each, torch.cat(lows), [seeds[row] for row in rows[part]], report
                )
                for row, one in zip(rows[part], drawn.split(1), strict=True):
                    x[row] = one
            made.append(torch.cat([edits.resized_picture(one, each.side) for one in x]))
        return made

    def _pass(self, each: Pass, x_low: Tensor, seeds: list[int], report: Report) -> Tensor:
        """What a pass makes of a batch, on the CPU; with advice where memory runs out."""
        tiles = {"tile_size": each.tile_size, "tile_overlap": each.tile_overlap}
        on_step = report.on_step(x_low=x_low)

        def draw() -> Tensor:
            x = self.upsample(x_low, seeds, each.stage, each.steps, on_step, **tiles)
            return x.float().cpu()

        return with_advice(draw, each.stage, len(seeds), self.components[each.stage].dtype)

    def _passes_noted(self, passes: list[Pass], size: int) -> dict[str, Any]:
        """What upscale did, in words that JSON can hold."""
        return {
            "stages": [each.stage for each in passes],
            "steps": {each.stage: each.steps for each in passes},
            "sampler": {each.stage: self.sampler(each.stage) for each in passes},
            "size": size,
            "edit": {
                "kind": "upscale",
                "tile_size": passes[-1].tile_size,
                "tile_overlap": passes[-1].tile_overlap,
            },
        }


def fitting_size(components: dict[str, Any], side: int) -> int:
    """The largest size of a model's stages within a side, or else the smallest."""
    sides = list(arguments.check_size(None, components).values())
    return max((each for each in sides if each <= side), default=min(sides))


def common_size(components: dict[str, Any], pictures: Sequence[Tensor]) -> int:
    """The size that fits pictures [1, 3, S, S], all of them.

    Raises:
        ValueError: where they fit different sizes, of which none is to be preferred.
    """
    sizes = sorted({fitting_size(components, picture.shape[-1]) for picture in pictures})
    if len(sizes) > 1:
        listing = ", ".join(map(str, sizes))
        raise ValueError(f"size: the pictures fit {listing} pixels a side; give one size for all")
    return sizes[0]
