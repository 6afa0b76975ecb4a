"""Work for a client is done while the client is there.

Starlette tells of a client that left in some responses and not in others; here it is one rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


class ClientLeftError(Exception):
    """Nobody waits for this answer any more."""


async def while_present(receive: Receive, work: Awaitable[Result]) -> Result:
    """Do something for a client whose whole request has been read, or raise ClientLeftError."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, whole ones as text; their source is closed when the client leaves.

    A client that reads too slowly is left after ``seconds``.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], seconds: float) -> None:
        # Proxies that gather what they pass on would undo the streaming.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        with suppress(ClientLeftError, TimeoutError):
            async with asyncio.timeout(self.seconds):
                await while_present(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.events) as events:
            async for event in events:
                body = event.encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
