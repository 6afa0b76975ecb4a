"""The server put together: engine, routes, limits and page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from pixellm import __version__
from pixellm.engine import Engine
from pixellm.serving.chat import chat_routes
from pixellm.serving.errors import RefusedError, invalid
from pixellm.serving.exporting import export_routes
from pixellm.serving.guard import Guard
from pixellm.serving.metrics import CONTENT_TYPE, Metrics
from pixellm.serving.page import page_routes
from pixellm.serving.presence import ClientLeftError
from pixellm.serving.segmenting import segment_routes
from pixellm.serving.service import Service
from pixellm.serving.settings import Settings
from pixellm.serving.worker import Worker

CLIENT_LEFT = 499
_LOG = logging.getLogger(__name__)


def create_app(engine: Engine, name: str, settings: Settings | None = None) -> ASGIApp:
    """A server around an engine, its alone while it runs, as an ASGI application."""
    settings = settings or Settings()
    worker = Worker(engine, settings.queue)
    metrics = Metrics(worker)
    service = Service(worker, name, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="pixellm",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(chat_routes(service))
    app.include_router(segment_routes(service))
    if settings.page:
        app.include_router(export_routes(service))
        app.include_router(page_routes(service))
    _add_probes(app, worker, metrics)
    _add_refusals(app)
    return Guard(app, settings, metrics)


def _add_probes(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """Whether the process works; one that does not should be started anew."""
        good = worker.is_healthy
        return PlainTextResponse("ok" if good else "the engine fails", 200 if good else 503)

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        """Whether a request would be answered."""
        good = worker.is_ready
        return PlainTextResponse("ready" if good else "not ready", 200 if good else 503)

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_refusals(app: FastAPI) -> None:
    """Every error in one form, and nothing of the inside of the server in any."""

    @app.exception_handler(RefusedError)
    async def refused(_: HttpRequest, error: RefusedError) -> Response:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> Response:
        return _response(invalid(_first_fault(error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(_: HttpRequest, error: HTTPException) -> Response:
        status = error.status_code
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
        return _response(RefusedError(status, str(error.detail), code, error.headers))

    @app.exception_handler(ClientLeftError)
    async def left(_: HttpRequest, __: ClientLeftError) -> Response:
        return _response(RefusedError(CLIENT_LEFT, "The client left.", "left"))

    @app.exception_handler(Exception)
    async def unforeseen(_: HttpRequest, error: Exception) -> Response:
        _LOG.error("A request failed.", exc_info=error)
        sentence = "The server failed on this request; it was logged."
        return _response(RefusedError(500, sentence, "server_error"))


def _response(error: RefusedError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def _first_fault(faults: Any) -> str:
    """The first fault in a sentence; never what was sent, which may be large or secret."""
    if not faults:
        return "The request can't be read."
    place = ".".join(str(part)[:40] for part in faults[0].get("loc", ())[1:])
    said = str(faults[0].get("msg", "can't be read"))[:200]
    return f"{place}: {said}" if place else said
