"""Requests as calls of the pipeline: a call for each picture, or one for all frames of a way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from unclip.pipeline.arguments import check_size
from unclip.pipeline.output import finished
from unclip_sample.latents import recorded
from unclip_sample.records import record_of
from unclip_sample.serve import fields
from unclip_sample.serve.errors import invalid

Pictures = Mapping[str, Image.Image]  # what was uploaded, by field


class Step(NamedTuple):
    """A step that was taken; pictures where it ended a stage that others follow."""

    stage: str
    step: int  # from 1
    num_steps: int
    pictures: list[Image.Image]


class Drawn(NamedTuple):
    """A picture, its seed, and how it was made."""

    picture: Image.Image
    seed: int
    record: dict[str, Any]


Tell = Callable[[Step], None]


class Order(NamedTuple):
    """One call of the pipeline: what draws num_pictures, telling of its steps."""

    draw: Callable[[Tell], list[Drawn]]
    num_pictures: int


@dataclass(frozen=True)
class Easel:
    """A pipeline, and what every record says of its model."""

    pipe: Any
    facts: Mapping[str, Any]

    @property
    def sizes(self) -> list[int]:
        """Pixels a side that clients may ask for."""
        sides = list(check_size(None, self.pipe.components).values())
        return sorted({*sides, *(side // 2 for side in sides[1:] if side // 2 == 512)})

    def size_of(self, asked: fields.Fields) -> int | None:
        """The size that is asked for; None leaves it to the model, or to the picture."""
        if asked.size in (None, "auto"):
            return None
        size = int(asked.size.split("x")[0])
        if size not in self.sizes:
            listing = ", ".join(f"{side}x{side}" for side in self.sizes)
            raise invalid("size", f"size: this model draws {listing}, not {asked.size}")
        return size

    def orders(self, asked: fields.Fields, pictures: Pictures, seed: int) -> list[Order]:
        """The calls of the pipeline that a request comes to."""
        size = self.size_of(asked)
        if isinstance(asked, fields.Interpolation | fields.TextDiff):
            if asked.n not in (None, 1):
                raise invalid("n", "n: one way is drawn; frames says of how many pictures")
            return [Order(lambda tell: self._way(asked, pictures, seed, size, tell), asked.frames)]
        ways = {
            fields.Generation: self._generation,
            fields.Variation: self._generation,
            fields.Edit: self._edit,
        }
        way = ways[type(asked)]
        return [
            Order(lambda tell, own=seed + i: [way(asked, pictures, own, size, tell)], 1)
            for i in range(asked.n or 1)
        ]

    def _generation(
        self,
        asked: fields.Generation | fields.Variation,
        pictures: Pictures,
        seed: int,
        size: int | None,
        tell: Tell,
    ) -> Drawn:
        """A picture of a caption, or like another picture."""
        settings = {**settings_of(asked), "size": size, "callback_on_step_end": teller(tell, size)}
        prompt = asked.prompt or ""
        output = self.pipe(prompt, image=pictures.get("image"), seeds=[seed], **settings)
        own = {"prompt": prompt, "seed": seed, "negative_prompt": asked.negative_prompt}
        return Drawn(output.images[0], seed, record_of(output, 0, own, self.facts))

    def _edit(
        self, asked: fields.Edit, pictures: Pictures, seed: int, size: int | None, tell: Tell
    ) -> Drawn:
        """A picture that is painted anew in part."""
        settings = {**settings_of(asked), "size": size, "callback_on_step_end": teller(tell, size)}
        image, mask = pictures["image"], pictures.get("mask")
        output = self.pipe.inpaint(image, mask, asked.prompt, seeds=[seed], **settings)
        own = {"prompt": asked.prompt, "seed": seed, "negative_prompt": asked.negative_prompt}
        return Drawn(output.images[0], seed, {**own, **output.settings, **self.facts})

    def _way(
        self,
        asked: fields.Interpolation | fields.TextDiff,
        pictures: Pictures,
        seed: int,
        size: int | None,
        tell: Tell,
    ) -> list[Drawn]:
        """The frames of a way from a picture to another one, or to a text."""
        settings = {**settings_of(asked), "size": size, "callback_on_step_end": teller(tell, size)}
        settings = {"seeds": seed, **{k: v for k, v in settings.items() if v is not None}}
        if isinstance(asked, fields.Interpolation):
            made = {"operation": "interpolate", "subject_texts": ["image", "image_to"]}
            ends = [pictures["image"], pictures["image_to"]]
            output = self.pipe.interpolate(ends, asked.frames, **settings)
        else:
            made = {"operation": "text_diff", "text_diff": asked.target, "base_text": asked.base}
            made |= {"subject_texts": ["image"], "max_theta": asked.strength}
            output = self.pipe.text_diff(
                pictures["image"],
                asked.target,
                asked.base,
                asked.frames,
                asked.strength,
                **settings,
            )
        own = {"prompt": "", "negative_prompt": asked.negative_prompt, "made_by": made}
        return [
            Drawn(
                picture,
                seed,
                {
                    **own,
                    **output.settings,
                    **self.facts,
                    "seed": seed,
                    "latents": recorded(self.pipe, output, slice(row, row + 1)),
                },
            )
            for row, picture in enumerate(output.images)
        ]


def settings_of(asked: fields.Fields) -> dict[str, Any]:
    """What the pipeline's methods share, by their arguments' names."""
    prior = {}
    if isinstance(asked, fields.Captioned):
        prior = {
            "prior_guidance_scale": asked.prior_guidance,
            "prior_num_inference_steps": asked.prior_steps,
        }
    return prior | {
        "negative_prompt": asked.negative_prompt,
        "guidance_scale": asked.guidance,
        "decoder_num_inference_steps": asked.steps,
        "upsampler_256_num_inference_steps": asked.upsampler_256_steps,
        "upsampler_1024_num_inference_steps": asked.upsampler_1024_steps,
    }


def teller(tell: Tell, size: int | None) -> Callable[..., None]:
    """A callback of the pipeline that tells of every step, with pictures smaller than size."""

    def on_step(pipe: Any, step: int, t: float, values: Mapping[str, Any]) -> None:
        stage, num_steps, x_t = values["stage"], values["num_steps"], values["x_t"]
        pictures = []
        largest = list(check_size(size, pipe.components).values())[-1]
        if step == num_steps - 1 and stage != "prior" and x_t.shape[-1] < (size or largest):
            pictures = finished(x_t.clamp(-1, 1), "pil")
        tell(Step(stage, step + 1, num_steps, pictures))

    return on_step
