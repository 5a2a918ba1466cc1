"""Errors as OpenAI's clients read them; nothing of the server's insides is in them."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

logger = logging.getLogger("unclip.serve")

# Arguments of the pipeline that a client knows by another name.
PARAMS = {
    "guidance_scale": "guidance",
    "prior_guidance_scale": "prior_guidance",
    "decoder_num_inference_steps": "steps",
    "prior_num_inference_steps": "prior_steps",
    "upsampler_256_num_inference_steps": "upsampler_256_steps",
    "upsampler_1024_num_inference_steps": "upsampler_1024_steps",
    "seeds": "seed",
    **{
        name: name
        for name in ("prompt", "negative_prompt", "size", "image", "mask", "base", "target")
    },
}


class ApiError(Exception):
    """What a client is told went wrong, with the status of HTTP that says so.

    kind, param and code are OpenAI's: its type, the field at fault, a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """The client's fault, in a field."""
    return ApiError(400, message, param=param, code=code)


def failure() -> ApiError:
    """The server's fault."""
    return ApiError(500, "The server failed to draw this.", kind="server_error")


def stopping() -> ApiError:
    """The server ends before the answer is there."""
    message = "The server is shutting down; ask again."
    return ApiError(503, message, kind="server_error", headers={"Retry-After": "1"})


def error_of(error: Exception) -> ApiError:
    """What a client is told of an error; what is not its own fault is logged.

    The pipeline's own refusals begin with the name of the argument.
    """
    if isinstance(error, ApiError):
        return error
    named = re.match(r"(\w+): ", str(error)) if isinstance(error, ValueError) else None
    if named and named[1] in PARAMS:
        param = PARAMS[named[1]]
        return invalid(param, f"{param}: {str(error)[named.end() :]}")
    log_failure(error)
    if isinstance(error, FloatingPointError):
        return ApiError(500, "The model gave values that are not finite.", kind="server_error")
    if isinstance(error, MemoryError) or "memory" in type(error).__name__.lower():
        return ApiError(503, "No memory is left for this; ask for less.", kind="server_error")
    return failure()


def log_failure(error: BaseException) -> None:
    """Where an error arose; not its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    facts = {"error": type(error).__name__, "where": where}
    logger.error("failed", extra={"facts": facts})
