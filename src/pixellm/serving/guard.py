"""What surrounds every request: limits of size and time, keys, headers, figures.

A request's body is read here, whole, before anything else looks at it: so it is bounded, in time
too, and all bodies together are. Plain ASGI, since frameworks' own middleware hides from a handler
that its client left.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixellm.serving.errors import RefusedError
from pixellm.serving.metrics import Metrics
from pixellm.serving.settings import Settings

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
"""Sent with every answer."""

_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_GUARDED = ("/v1/", "/metrics")


class Guard:
    """Wraps a server's routes."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self._keys = [_digest(key) for key in settings.api_keys]
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":  # there are none here
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), [0]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        finally:
            # The route as it is written, never what a client sent: figures stay few.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status[0] or 499).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        held = 0
        try:
            try:
                self._check(scope, headers)
                if scope["method"] in ("POST", "PUT", "PATCH"):
                    body = await self._read_body(headers, receive)
                    held = len(body)
                    receive = _replay(body, receive)
                    del body  # who reads it decides how long it lives
            except RefusedError as error:
                await send_error(send, error)
                return
            await self.app(scope, receive, send)
        finally:
            self._held -= held

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse pages of other sites, which a browser would let write here, and missing keys."""
        origin = headers.get(b"origin")
        if origin and scope["method"] not in ("GET", "HEAD"):
            site = urlsplit(origin.decode("latin-1")).netloc
            if site != headers.get(b"host", b"").decode("latin-1"):
                raise RefusedError(403, "Pages of other sites may not ask here.", "origin")
        if self._keys and scope["path"].startswith(_GUARDED):
            scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            given = _digest(key.strip())
            # All are compared, each in constant time: how long it takes tells nothing.
            matches = [hmac.compare_digest(given, known) for known in self._keys]
            if scheme.lower() != "bearer" or not any(matches):
                sentence = "This server asks for an API key: Authorization: Bearer KEY."
                headers_out = {"WWW-Authenticate": "Bearer"}
                raise RefusedError(401, sentence, "invalid_api_key", headers_out)

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; its bytes count as held until the request is over."""
        limit = self.settings.max_body
        too_large = RefusedError(413, f"A request has at most {limit:,} bytes.", "too_large")
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.upload_timeout):
                announced = headers.get(b"content-length", b"0")
                if announced.isdigit() and int(announced) > limit:
                    await _discard(receive, 2 * limit)
                    raise too_large
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "The request ended early.", "incomplete")
                    piece = message.get("body", b"")
                    self._held += len(piece)
                    body += piece
                    if len(body) > limit:
                        raise too_large
                    if self._held > self.settings.max_bytes:
                        sentence = "The server holds too many large requests; try again."
                        raise RefusedError(503, sentence, "busy", {"Retry-After": "2"})
                    if not message.get("more_body", False):
                        return bytes(body)
        except BaseException as error:
            self._held -= len(body)
            if isinstance(error, TimeoutError):
                seconds = self.settings.upload_timeout
                sentence = f"The request did not come within {seconds:g} s."
                raise RefusedError(408, sentence, "slow_upload") from None
            raise


async def send_error(send: Send, error: RefusedError) -> None:
    """Answer with a refusal, from outside of any framework."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"connection", b"close")]  # the rest of the request may never come
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _discard(receive: Receive, most: int) -> None:
    """Read on for a while: a client that is still sending would not see the answer."""
    while most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body read before, then whatever else comes: that the client leaves."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
