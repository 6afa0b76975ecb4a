"""Label Studio's backend: routes over HTTP, masks read back by Label Studio's own code."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import uvicorn
from label_studio_converter import brush
from PIL import Image

from conftest import square_image
from pixellm.engine import Engine
from pixellm.masks import decode_mask, mask_iou, segmentation_to_rle

PATH = Path(__file__).parents[1] / "examples" / "label_studio" / "backend.py"
CONFIG = """<View><Image name="img" value="$photo"/><TextArea name="ask" toName="img"/>
<{kind} name="tag" toName="img"><Label value="red square"/><Label value="blue square"/></{kind}>
</View>"""


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("label_studio_backend", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studio() -> Iterator[str]:
    """Stands for Label Studio: gives one image, to those who show the key."""
    buffer = io.BytesIO()
    Image.fromarray(square_image((2, 3))).save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            away = self.path == "/away"
            known = self.headers["Authorization"] == "Token key" and self.path == "/data/a.png"
            self.send_response(302 if away else 200 if known else 404)
            if away:
                self.send_header("Location", "http://127.0.0.1:9/secret")
            self.end_headers()
            self.wfile.write(buffer.getvalue() if known else b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(backend: ModuleType, studio: str, tiny_engine: Engine) -> Iterator[str]:
    """The backend, served."""
    app = backend.make_app(tiny_engine, backend.LabelStudioImages(studio, "key"), "pixellm-tiny")
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def post(address: str, values: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        address, json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def asked(kind: str, text: str = "Which squares are there?", photo: str = "/data/a.png") -> Any:
    """What Label Studio sends when an annotator has typed a question."""
    typed = {"from_name": "ask", "to_name": "img", "type": "textarea", "value": {"text": [text]}}
    return {
        "tasks": [{"id": 1, "data": {"photo": photo}}],
        "project": "1.1700000000",
        "label_config": CONFIG.format(kind=kind),
        "params": {"context": {"result": [typed] if text else []}},
    }


def test_it_tells_that_it_is_up_and_takes_a_configuration(address: str) -> None:
    with urllib.request.urlopen(f"{address}/health") as answer:
        assert json.load(answer)["status"] == "UP"
    schema = CONFIG.format(kind="BrushLabels")
    assert post(f"{address}/setup", {"project": "1", "schema": schema}) == (
        200,
        {"model_version": "pixellm-tiny"},
    )
    code, told = post(f"{address}/setup", {"schema": "<View/>"})
    assert code == 422 and "no BrushLabels or PolygonLabels" in told["detail"]


def test_a_typed_question_gets_masks_in_both_forms(address: str, tiny_engine: Engine) -> None:
    expected = tiny_engine.predict(square_image((2, 3)), "Which squares are there?").segments
    size = expected[0].mask.shape
    code, told = post(f"{address}/predict", asked("BrushLabels"))
    assert code == 200, told
    (prediction,) = told["results"]
    assert prediction["model_version"] == "pixellm-tiny" and 0 < prediction["score"] <= 1
    for result, segment in zip(prediction["result"], expected, strict=True):
        (name,) = result["value"]["brushlabels"]
        painted = brush.decode_rle(result["value"]["rle"]).reshape(*size, 4)[:, :, 3]
        assert segment.label.removeprefix("a ") == name
        assert np.array_equal(painted > 0, segment.mask)
    code, told = post(f"{address}/predict", asked("PolygonLabels"))
    assert code == 200, told
    results = told["results"][0]["result"]
    assert {one["value"]["polygonlabels"][0] for one in results} == {"red square", "blue square"}
    for segment in expected:
        name = segment.label.removeprefix("a ")
        own = [one["value"]["points"] for one in results if name in one["value"]["polygonlabels"]]
        points = [(np.array(p) / 100 * size[::-1]).ravel().tolist() for p in own]
        assert mask_iou(decode_mask(segmentation_to_rle(points, size)), segment.mask) >= 0.97


def test_without_a_question_each_label_is_asked_for(
    backend: ModuleType, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    answer = tiny_engine.predict_batch

    def listen(requests: Any, **options: Any) -> Any:
        questions.extend(one.question for one in requests)
        return answer(requests, **options)

    monkeypatch.setattr(tiny_engine, "predict_batch", listen)
    values = asked("BrushLabels", "")
    image = Image.fromarray(square_image((2, 3)))
    (prediction,) = backend.predict_tasks(
        tiny_engine, values["tasks"], values["label_config"], None, lambda name: image, "1"
    )
    assert questions == ["Segment every red square.", "Segment every blue square."]
    assert isinstance(prediction["result"], list)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("http://169.254.169.254/latest", "no address of"),
        ("file:///etc/passwd", "no address of"),
        ("//127.0.0.1:9/x", "no address of"),
        ("/data/missing.png", "404"),
        ("/away", "302"),
    ],
)
def test_images_come_from_label_studio_alone(address: str, photo: str, message: str) -> None:
    code, told = post(f"{address}/predict", asked("BrushLabels", photo=photo))
    assert code == 422
    assert message in told["detail"]
