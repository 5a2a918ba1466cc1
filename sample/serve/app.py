"""The server: its routes, and what each of them does with a request."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from unclip import __version__
from unclip.pipeline.edits import check_region
from unclip_sample.serve import fields, pictures
from unclip_sample.serve.answers import Writer
from unclip_sample.serve.bodies import ErrorBody, ImagesBody
from unclip_sample.serve.drawing import Easel
from unclip_sample.serve.engine import Engine
from unclip_sample.serve.errors import ApiError, error_of, invalid
from unclip_sample.serve.gateway import Gateway, error_response
from unclip_sample.serve.jobs import Job
from unclip_sample.serve.links import Links
from unclip_sample.serve.telemetry import Metrics

FAMILIES = ("dall-e-", "gpt-image-", "chatgpt-image")  # models that clients name by habit
CODING_THREADS = 2  # for opening and encoding pictures
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "history.js": "text/javascript; charset=utf-8",
    "brush.js": "text/javascript; charset=utf-8",
    "png.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Settings:
    """What an operator decides."""

    model: str = "unclip"
    api_key: str | None = None
    timeout_s: float = 600.0
    max_body_bytes: int = 20 << 20
    link_lifetime_s: float = 3600.0
    metadata: bool = True
    styles: tuple[str, ...] = ()


@dataclass
class Server:
    """All that the routes work with."""

    easel: Easel
    engine: Engine
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    links: Links = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self):
        self.links = Links(self.settings.link_lifetime_s)
        self.pool = ThreadPoolExecutor(CODING_THREADS, "unclip-coding")
        self.metrics.watch(self.engine)

    async def run(self, function: Callable, *arguments: Any) -> Any:
        """Run a function in a thread for opening and encoding pictures."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    @asynccontextmanager
    async def life(self, app: FastAPI) -> AsyncIterator[None]:
        """Draw as long as the server runs, and leave nothing behind."""
        self.engine.start()
        yield
        await asyncio.to_thread(self.engine.stop)
        self.pool.shutdown()
        self.links.close()

    async def answer(self, request: Request, asked: fields.Fields, event: str) -> Response:
        """Draw what is asked for."""
        self.check_model(asked.model)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        uploads = {
            name: await value.read() for name, value in asked if isinstance(value, UploadFile)
        }
        try:
            orders = await self.run(self._orders, asked, uploads, seed)
        except ValueError as error:
            raise error_of(error) from None
        request.scope["facts"] = {"pictures": sum(order.num_pictures for order in orders)}
        job = Job(self.engine, orders, self.settings.timeout_s)
        writer = Writer(request, asked, event, self.run, self.links, self.settings.metadata)
        if asked.stream:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(
                writer.stream(job), media_type="text/event-stream", headers=headers
            )
        return JSONResponse(await writer.body(job))

    def _orders(self, asked: fields.Fields, uploads: dict[str, bytes], seed: int) -> list:
        """The calls of the pipeline that a request comes to, checked."""
        opened = {name: pictures.opened(content, name) for name, content in uploads.items()}
        if isinstance(asked, fields.Edit):
            check_region(opened["image"], opened.get("mask"))
        return self.easel.orders(asked, opened, seed)

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served."""
        own = (None, self.settings.model)
        if name not in own and not name.startswith(FAMILIES):
            raise ApiError(
                404,
                f"The model {name[:60]!r} does not exist; this server has {self.settings.model!r}.",
                param="model",
                code="model_not_found",
            )

    @property
    def model_card(self) -> dict[str, Any]:
        """The model in OpenAI's words."""
        name = self.settings.model
        return {"id": name, "object": "model", "created": START, "owned_by": "unclip"}

    @property
    def page_settings(self) -> dict[str, Any]:
        """What the page wants to know of the model and the server."""
        config = self.easel.pipe.config
        return {
            "model": self.settings.model,
            "version": __version__,
            "sizes": self.easel.sizes,
            "styles": list(self.settings.styles),
            "key_required": self.settings.api_key is not None,
            "steps": config.default_steps["decoder"],
            "guidance": config.default_guidance["decoder"],
            "max_steps": fields.MAX_STEPS,
            "max_guidance": fields.MAX_GUIDANCE,
            "max_pictures": fields.MAX_PICTURES,
        }


START = int(time.time())


ERRORS = {
    400: "A field is wrong; param names it.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "There is no such thing.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to ask again.",
    500: "The server failed.",
    503: "The server cannot draw now.",
    504: "The time for drawing is over.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route for the server's OpenAPI description."""
    return {status: {"model": ErrorBody, "description": ERRORS[status]} for status in statuses}


OF_DRAWING = {
    200: {
        "model": ImagesBody,
        "description": "The pictures; with stream, events on the way to them.",
        "content": {"text/event-stream": {}},
    },
    **documented(*ERRORS),
}
OF_FILES = {
    200: {"content": {name: {} for name in pictures.MEDIA_TYPES.values()}},
    **documented(404),
}
OF_METRICS = {200: {"content": {"text/plain": {}}}}


def create_app(server: Server) -> FastAPI:
    """The ASGI application of a server."""
    app = FastAPI(
        title="unclip",
        version=__version__,
        description="unCLIP (DALL-E 2) by OpenAI's Images API.",
        lifespan=server.life,
        docs_url=None,  # they would be fetched from another server
        redoc_url=None,
    )
    settings = server.settings
    app.add_middleware(
        Gateway,
        engine=server.engine,
        metrics=server.metrics,
        api_key=settings.api_key,
        max_body_bytes=settings.max_body_bytes,
    )
    app.add_exception_handler(ApiError, lambda request, error: error_response(error))
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    add_drawing(app, server)
    add_models(app, server)
    add_operations(app, server)
    add_page(app, server)
    plain = app.openapi
    app.openapi = lambda: without_422(plain())
    return app


def add_drawing(app: FastAPI, server: Server) -> None:
    """Routes that draw."""

    @app.post("/v1/images/generations", responses=OF_DRAWING)
    async def generations(request: Request, asked: fields.Generation) -> Response:
        """Draw pictures of a caption."""
        return await server.answer(request, asked, "image_generation")

    @app.post("/v1/images/edits", responses=OF_DRAWING)
    async def edits(request: Request, asked: Annotated[fields.Edit, Form()]) -> Response:
        """Paint a part of a picture anew."""
        return await server.answer(request, asked, "image_edit")

    @app.post("/v1/images/variations", responses=OF_DRAWING)
    async def variations(request: Request, asked: Annotated[fields.Variation, Form()]) -> Response:
        """Draw pictures like another one."""
        return await server.answer(request, asked, "image_variation")

    @app.post("/v1/images/interpolations", responses=OF_DRAWING)
    async def interpolations(
        request: Request, asked: Annotated[fields.Interpolation, Form()]
    ) -> Response:
        """Draw the way from a picture to another."""
        return await server.answer(request, asked, "image_interpolation")

    @app.post("/v1/images/text_diffs", responses=OF_DRAWING)
    async def text_diffs(request: Request, asked: Annotated[fields.TextDiff, Form()]) -> Response:
        """Lead a picture from what one text says to what another says."""
        return await server.answer(request, asked, "image_text_diff")


def add_models(app: FastAPI, server: Server) -> None:
    """Routes that say which model is served."""

    @app.get("/v1/models", responses=documented(401))
    async def models() -> dict:
        """The models: one."""
        return {"object": "list", "data": [server.model_card]}

    @app.get("/v1/models/{name}", responses=documented(401, 404))
    async def model(name: str) -> dict:
        """One of the models."""
        server.check_model(name)
        return {**server.model_card, "id": name}


def add_operations(app: FastAPI, server: Server) -> None:
    """Routes for operators, and for pictures behind links."""

    @app.get("/health", responses=documented(503))
    async def health() -> Response:
        """Whether the server draws."""
        engine = server.engine
        told = {
            "status": "ok" if engine.is_alive else "failed",
            "waiting": engine.num_waiting,
            "running": len(engine.running),
        }
        return JSONResponse(told, 200 if engine.is_alive else 503)

    @app.get("/metrics", responses=OF_METRICS, response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/files/{name}", responses=OF_FILES, response_class=Response)
    async def file(name: str) -> Response:
        """A picture that an answer linked to."""
        found = await server.run(server.links.get, name)
        if found is None:
            raise ApiError(404, "This link is unknown, or has expired.", code="not_found")
        content, media_type = found
        return Response(content, media_type=media_type, headers={"cache-control": "private"})


def add_page(app: FastAPI, server: Server) -> None:
    """The page to draw on."""
    folder = files("unclip_sample.serve").joinpath("page")
    contents = {name: folder.joinpath(name).read_bytes() for name in PAGE}

    def page_file(name: str) -> Response:
        headers = {"cache-control": "no-cache"}
        return Response(contents[name], media_type=PAGE[name], headers=headers)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in contents:
            raise ApiError(404, "There is no such page.", code="not_found")
        return page_file(name)

    @app.get("/settings", include_in_schema=False)
    async def page_settings() -> dict:
        return server.page_settings


async def on_http_error(request: Request, error: HTTPException) -> Response:
    """Unknown paths, wrong methods, bodies that cannot be read."""
    told = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return error_response(told)


async def on_invalid(request: Request, error: RequestValidationError) -> Response:
    """The first field that is wrong, by its name."""
    first = error.errors()[0]
    names = [part for part in first["loc"][1:] if isinstance(part, str)]
    param = names[0][:100] if names else None
    unknown = first["type"] == "extra_forbidden"
    message = f"Unknown parameter: {param!r}." if unknown else first["msg"]
    if first["type"] == "model_attributes_type":
        message = "Send the fields as JSON, with the header Content-Type: application/json."
    if param and not unknown:
        message = f"{param}: {message}"
    return error_response(
        invalid(param, message, "unknown_parameter" if unknown else "invalid_value")
    )


def without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI description without FastAPI's own form of errors, which is not used here."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
