"""Sockets, signals and the end of a server."""

from __future__ import annotations

import signal
import socket
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pixellm.serving.settings import Settings

MAX_CONNECTIONS = 512
"""Open connections; more are told to come again."""


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address of this machine; nobody can connect before :func:`run`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:  # a name that can't be one
        bound.close()
        raise _refused((host, port), error) from None
    return bound


def _refused(address: tuple[str, int], error: OSError | UnicodeError) -> OSError:
    reason = getattr(error, "strerror", None) or error
    return OSError(f"Can't serve at {address[0]}:{address[1]}: {reason}.")


def run(
    app: ASGIApp,
    bound: socket.socket,
    settings: Settings,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what was taken by then is finished, a second Ctrl-C stops all.

    For the main thread alone. SIGTERM ends in SystemExit with code 0, Ctrl-C in KeyboardInterrupt.
    ``on_ready`` is called once clients can connect.
    """
    try:
        bound.listen()
    except OSError as error:
        raise _refused(bound.getsockname()[:2], error) from None
    # When all is finished uvicorn raises the signal again: unhandled it would look like a failure.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        build_server(app, settings, on_ready).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def build_server(
    app: ASGIApp, settings: Settings, on_ready: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Build uvicorn with our limits; see :func:`run`."""
    config = uvicorn.Config(
        app,
        http=_protocol(settings.upload_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.timeout + settings.upload_timeout) + 1,
    )
    return _Server(config, on_ready)


def _protocol(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol, which lets a client take any time for its first line and headers."""

    class Impatient(H11Protocol):
        _timer: TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            self._timer = None
            is_idle = self.cycle is None or self.cycle.response_complete
            # Between two requests uvicorn's own timer runs.
            if is_idle and self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.transport.close()

    return Impatient
