"""What every request passes before it is read: the key, the room in the queue, the body's limit.

It also numbers, times, counts and logs requests, and makes an answer of whatever goes wrong inside.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from unclip_sample.serve.answers import as_event
from unclip_sample.serve.engine import Engine
from unclip_sample.serve.errors import ApiError, failure, log_failure, stopping
from unclip_sample.serve.jobs import ClientGone
from unclip_sample.serve.telemetry import Metrics, log_request

CLIENT_GONE = 499  # in logs and metrics; nobody reads it
SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; form-action 'none'"
    ),
}


class Gateway:
    """ASGI middleware around the whole server."""

    def __init__(
        self, app: Any, engine: Engine, metrics: Metrics, api_key: str | None, max_body_bytes: int
    ):
        self.app, self.engine, self.metrics = app, engine, metrics
        self.api_key, self.max_body_bytes = api_key, max_body_bytes

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # that is GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        start, answer = time.perf_counter(), Answer(send, secrets.token_hex(8))
        try:
            self.check(scope)
            await self.app(scope, limited(receive, self.max_body_bytes), answer.send)
        except ClientGone:
            answer.status = CLIENT_GONE
        except asyncio.CancelledError:  # over is the time that a server which stops still gives
            if answer.is_stream:
                await answer.end(as_event("error", stopping().body))
            elif answer.status:
                raise
            else:
                await error_response(stopping())(scope, receive, answer.send)
        except Exception as error:
            if not isinstance(error, ApiError):
                log_failure(error)
            told = error if isinstance(error, ApiError) else failure()
            if not answer.status:
                await error_response(told)(scope, receive, answer.send)
        finally:
            self.note(scope, answer, time.perf_counter() - start)

    def check(self, scope: dict) -> None:
        """Refuse a request by its head alone.

        Raises:
            ApiError: 401, 403, 413 or 429.
        """
        headers, path = Headers(scope=scope), scope["path"]
        if path.startswith("/v1/"):
            self.check_key(headers)
        if scope["method"] != "POST":
            return
        if headers.get("sec-fetch-site") == "cross-site":
            raise ApiError(403, "Pages of other sites may not draw here.", kind="permission_error")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise ApiError(413, too_large(self.max_body_bytes))
        if path.startswith("/v1/images/"):
            self.engine.check_room()

    def check_key(self, headers: Headers) -> None:
        """Refuse a request that does not bring the key."""
        if self.api_key is None:
            return
        brought = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(brought.encode(), self.api_key.encode()):
            message = "Incorrect API key provided." if brought else "You didn't provide an API key."
            raise ApiError(
                401,
                message,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def note(self, scope: dict, answer: Answer, seconds: float) -> None:
        """Count and log an answer. The path is that of the route, so that no client makes words."""
        path = getattr(scope.get("route"), "path", "other")
        status = answer.status or CLIENT_GONE
        self.metrics.requests.labels(path, status).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        if path not in ("/health", "/metrics"):
            facts = {"id": answer.id, "method": scope["method"], "path": path, "status": status}
            log_request({**facts, "seconds": round(seconds, 4), **scope.get("facts", {})})


class Answer:
    """Sends an answer on, with its number, and remembers its status."""

    def __init__(self, send: Callable, id: str):
        self._send, self.id, self.status, self.is_stream = send, id, 0, False

    async def send(self, message: dict) -> None:
        """Pass a message of ASGI on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            self.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def end(self, event: str) -> None:
        """Send the last event of a stream."""
        await self._send({"type": "http.response.body", "body": event.encode()})


def limited(receive: Callable, max_bytes: int) -> Callable:
    """receive() that stops at a body of too many bytes, whatever its head said."""
    seen = 0

    async def counted() -> dict:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise HTTPException(413, too_large(max_bytes))
        return message

    return counted


def too_large(max_bytes: int) -> str:
    """What is said of a body of too many bytes."""
    return f"The body is larger than the {max_bytes >> 20} MiB that the server takes."


def error_response(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse(error.body, error.status, headers=error.headers)
