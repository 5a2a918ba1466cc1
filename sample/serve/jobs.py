"""A request's pictures, from the side of the event loop: what the engine tells, until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request

from unclip_sample.serve.drawing import Order
from unclip_sample.serve.engine import Engine, Task
from unclip_sample.serve.errors import ApiError

QUIET_SECONDS = 15.0  # after which a stream is told that it still lives


class News(NamedTuple):
    """What happened to one of the orders: "step", "done", or "quiet" where nothing did."""

    kind: str
    order: int = 0
    value: Any = None


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Job:
    """The orders of one request, handed to the engine at once.

    Raises:
        QueueFull: when the engine takes no more.
    """

    def __init__(self, engine: Engine, orders: Sequence[Order], timeout_s: float):
        self.engine, self.timeout_s = engine, timeout_s
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._deadline = self._loop.time() + timeout_s
        self.tasks = [self._task(number, order) for number, order in enumerate(orders)]
        engine.submit(self.tasks)

    def _task(self, number: int, order: Order) -> Task:
        def tell(kind: str, value: Any) -> None:
            try:
                self._loop.call_soon_threadsafe(self._news.put_nowait, News(kind, number, value))
            except RuntimeError:  # the server's loop has ended
                pass

        return Task(lambda: order.draw(lambda step: tell("step", step)), tell, order.num_pictures)

    async def news(self, request: Request) -> AsyncIterator[News]:
        """All that happens until every order is done. In any case the engine is free afterwards.

        Raises:
            ApiError: of an order that failed; 504 when the time is over.
            ClientGone: when the client left.
        """
        left = asyncio.ensure_future(gone(request))
        missing = len(self.tasks)
        try:
            while missing:
                news = await self._next(left)
                if news.kind == "failed":
                    raise news.value
                missing -= news.kind == "done"
                yield news
        finally:
            left.cancel()
            self.engine.give_up(self.tasks)

    async def _next(self, left: asyncio.Future) -> News:
        """The next news, at the latest when it has been quiet for a while."""
        coming = asyncio.ensure_future(self._news.get())
        remaining = self._deadline - self._loop.time()
        try:
            await asyncio.wait(
                {coming, left},
                timeout=max(0, min(remaining, QUIET_SECONDS)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if coming.done():
                return coming.result()
        finally:
            coming.cancel()
        if left.done():
            raise ClientGone
        if self._loop.time() >= self._deadline:
            message = f"This took longer than the {self.timeout_s:g} s that the server allows."
            raise ApiError(504, message, kind="server_error", code="timeout")
        return News("quiet")


async def gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
