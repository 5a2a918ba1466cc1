"""Answers in OpenAI's form: one body when all is drawn, or a stream of events on the way there."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.requests import Request

from unclip.pipeline.arguments import STAGES
from unclip_sample.serve import fields, pictures
from unclip_sample.serve.drawing import Drawn, Step
from unclip_sample.serve.errors import ApiError, error_of
from unclip_sample.serve.jobs import ClientGone, Job
from unclip_sample.serve.links import Links

NO_USAGE = {  # nothing is charged for
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


@dataclass(frozen=True)
class Writer:
    """Writes the answers to one request.

    event: the first half of its events' names ("image_generation"). run: runs a function beside the
    event loop. links: where pictures are kept that are asked for by url.
    """

    request: Request
    asked: fields.Fields
    event: str
    run: Callable[..., Awaitable[Any]]
    links: Links
    metadata: bool

    @property
    def form(self) -> str:
        """The format of the files."""
        return self.asked.output_format or "png"

    async def body(self, job: Job) -> dict[str, Any]:
        """The answer when all is drawn."""
        drawn: dict[int, list[Drawn]] = {}
        async for news in job.news(self.request):
            if news.kind == "done":
                drawn[news.order] = news.value
        every = [one for order in sorted(drawn) for one in drawn[order]]
        return {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": self.form,
            "size": size_word(every[0].picture),
            "usage": NO_USAGE,
            "data": [await self.item(one) for one in every],
        }

    async def item(self, drawn: Drawn) -> dict[str, Any]:
        """A picture of the answer."""
        content = await self.run(self._encoded, drawn)
        own = {"seed": drawn.seed, "revised_prompt": drawn.record.get("prompt") or None}
        if self.asked.response_format != "url":
            return {"b64_json": base64.b64encode(content).decode(), **own}
        name = await self.run(self.links.add, content, self.form, pictures.MEDIA_TYPES[self.form])
        return {"url": str(self.request.base_url.replace(path=f"/files/{name}")), **own}

    def _encoded(self, drawn: Drawn) -> bytes:
        return pictures.encoded(drawn, self.form, self.asked.output_compression, self.metadata)

    async def stream(self, job: Job) -> AsyncIterator[str]:
        """The answer as server-sent events; an error becomes the last of them."""
        try:
            async for news in job.news(self.request):
                if news.kind == "quiet":
                    yield ": still drawing\n\n"
                elif news.kind == "step":
                    async for event in self._step(news.order, news.value):
                        yield event
                else:
                    for index, drawn in enumerate(news.value, start=news.order):
                        yield await self._completed(index, drawn)
        except ClientGone:
            return
        except Exception as error:
            told = error if isinstance(error, ApiError) else error_of(error)
            yield as_event("error", told.body)

    async def _step(self, order: int, step: Step) -> AsyncIterator[str]:
        """A step's event, and those of the previews that it ended with."""
        if self.asked.progress:
            facts = {"stage": step.stage, "step": step.step, "num_steps": step.num_steps}
            yield as_event(f"{self.event}.progress", {**facts, "image_index": order})
        number = STAGES.index(step.stage) - 1  # the decoder's come first
        if number < (self.asked.partial_images or 0):
            for index, picture in enumerate(step.pictures, start=order):
                content = await self.run(pictures.preview, picture, self.form)
                facts = {"partial_image_index": number, "image_index": index}
                yield self._picture_event("partial_image", content, picture, facts)

    async def _completed(self, index: int, drawn: Drawn) -> str:
        content = await self.run(self._encoded, drawn)
        facts = {"image_index": index, "seed": drawn.seed, "usage": NO_USAGE}
        return self._picture_event("completed", content, drawn.picture, facts)

    def _picture_event(
        self, name: str, content: bytes, picture: Image.Image, facts: dict[str, Any]
    ) -> str:
        """An event that holds a picture."""
        told = {
            "b64_json": base64.b64encode(content).decode(),
            "created_at": int(time.time()),
            "size": size_word(picture),
            "quality": "auto",
            "background": "opaque",
            "output_format": self.form,
        }
        return as_event(f"{self.event}.{name}", {**told, **facts})


def as_event(name: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"


def size_word(picture: Image.Image) -> str:
    """A picture's size in OpenAI's words."""
    return f"{picture.width}x{picture.height}"
