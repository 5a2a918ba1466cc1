"""The bodies of answers, for the server's OpenAPI description."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ImageItem(BaseModel):
    """A picture: its file, or a link to it; and its seed."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    revised_prompt: str | None


class ImagesBody(BaseModel):
    """Pictures, in OpenAI's words."""

    created: int
    background: str
    output_format: str
    size: str
    usage: dict
    data: list[ImageItem]
