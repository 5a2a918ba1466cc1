"""What a client may say: OpenAI's fields, those that unCLIP adds, and the limit of every number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_PICTURES = 10
MAX_PROMPT = 4000
MAX_STEPS = 250
MAX_GUIDANCE = 50.0
MAX_FRAMES = 9
MAX_SEED = 2**62
SIZES = ("auto", "64x64", "256x256", "512x512", "1024x1024")


def whole_characters(text: str) -> str:
    """Refuse a text that holds half a character, which no UTF-8 can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    return text


def not_blank(text: str) -> str:
    """Refuse a text that says nothing."""
    if not text.strip():
        raise ValueError("it is empty: say what to draw")
    return text


def none_if_empty(value: Any) -> Any:
    """A form's empty field is one that was left out."""
    return None if value == "" else value


Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(whole_characters)]
Words = Annotated[Text, AfterValidator(not_blank)]
Steps = Annotated[Annotated[int, Field(ge=1, le=MAX_STEPS)] | None, BeforeValidator(none_if_empty)]
Guidance = Annotated[
    Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] | None,
    BeforeValidator(none_if_empty),
]
Seed = Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, BeforeValidator(none_if_empty)]
Quality = Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"]


class Fields(BaseModel):
    """What all requests share. Fields of OpenAI's that mean nothing here are taken and ignored."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] | None = 1
    size: Literal["auto", "64x64", "256x256", "512x512", "1024x1024"] | None = None
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    user: Annotated[str, Field(max_length=1000)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1000)] | None = None
    quality: Quality | None = None
    background: Literal["auto", "opaque"] | None = None

    # What unCLIP adds.
    seed: Seed = Field(None, description="Picture i is drawn with seed + i; drawn unless given.")
    guidance: Guidance = Field(None, description="Of the decoder; 1 does not guide.")
    steps: Steps = Field(None, description="Of the decoder.")
    upsampler_256_steps: Steps = None
    upsampler_1024_steps: Steps = None
    negative_prompt: Text | None = Field(None, description="What guidance leads away from.")
    progress: bool | None = Field(False, description="Stream an event for every step, too.")


class Captioned(Fields):
    """A caption of which the prior draws z_img."""

    prompt: Words
    prior_guidance: Guidance = Field(None, description="Of the prior; 1 does not guide.")
    prior_steps: Steps = None


class Generation(Captioned):
    """A caption to draw."""

    style: Annotated[str, Field(max_length=100)] | None = None
    moderation: Literal["auto", "low"] | None = None


class Edit(Captioned):
    """A picture to paint anew where a mask, or the picture itself, is transparent."""

    image: UploadFile
    mask: UploadFile | None = None
    input_fidelity: Literal["high", "low"] | None = None


class Variation(Fields):
    """A picture to draw others like it."""

    image: UploadFile
    prompt: Text | None = Field(None, description="Words for the decoder beside the picture.")


class Interpolation(Fields):
    """Two pictures to draw the way between."""

    image: UploadFile
    image_to: UploadFile
    frames: Annotated[int, Field(ge=2, le=MAX_FRAMES)] = 5


class TextDiff(Fields):
    """A picture to lead from what one text says to what another says."""

    image: UploadFile
    target: Words
    base: Words = "a photo"
    frames: Annotated[int, Field(ge=2, le=MAX_FRAMES)] = 5
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.4
