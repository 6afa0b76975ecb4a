from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
    pytest.importorskip(package)


def png(size: tuple[int, int] = (8, 6), color: Any = (200, 30, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes | None = None) -> str:
    return "data:image/png;base64," + base64.b64encode(png() if data is None else data).decode()


def asked(question: str, url: str | None = None) -> list[dict[str, Any]]:
    """OpenAI's messages of one question about one image."""
    image = {"type": "image_url", "image_url": {"url": url or data_url()}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, image]}]


class Running:
    """A server in a thread of this process."""

    def __init__(self, app: Any, settings: Any) -> None:
        from pixellm.serving.server import bind, build_server

        self.app = app
        self.service = app.app.state.service
        bound = bind("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = build_server(app, settings)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [bound]})
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def _servers() -> Iterator[Callable[..., Running]]:
    """Starts servers around engines; they end with the fixture."""
    from pixellm.serving.app import create_app
    from pixellm.serving.settings import Settings

    running: list[Running] = []

    def start(engine: Any, name: str = "scripted", **limits: Any) -> Running:
        settings = Settings(**limits)
        running.append(Running(create_app(engine, name, settings), settings))
        return running[-1]

    yield start
    for one in running:
        one.stop()


serve = pytest.fixture(_servers, name="serve")
serve_module = pytest.fixture(_servers, scope="module", name="serve_module")


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
