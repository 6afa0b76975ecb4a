"""Images from standard input and from a URL that is typed; nothing else fetches anything."""

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from conftest import RECIPE_WITHOUT_MODEL, TINY_QUESTION, square_image
from conftest import run_command as run
from pixellm.cli import images

pytestmark = pytest.mark.usefixtures("loaded_once", "own_folder")


class _Server(BaseHTTPRequestHandler):
    """Answers by path: an image, a page, a redirect, or far too much."""

    def __init__(self, asked: list[str], *args: object) -> None:
        self.asked = asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = "text/html" if self.path == "/page.png" else "image/png"
        self.send_response(302 if self.path == "/moved.png" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Location", "/squares.png")
        self.end_headers()
        self.wfile.write(squares() if self.path != "/large.png" else bytes(9000))

    def log_message(self, format: str, *args: object) -> None: ...


def squares() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(square_image((2, 3))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def address(asked: list[str]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_image_comes_from_and_goes_to_standard_streams(tiny_model_dir: Path) -> None:
    model = ("--model", tiny_model_dir)
    answered = run("segment", "-", TINY_QUESTION, "--json", "-", *model, text=squares())
    assert answered.exit_code == 0, answered.output
    values = json.loads(answered.stdout)
    assert values["image"] == "-" and len(values["segments"]) == 2
    drawn = run("segment", "-", TINY_QUESTION, "--out", "-", *model, text=squares())
    assert drawn.exit_code == 0, drawn.output
    shown = Image.open(io.BytesIO(drawn.stdout_bytes))
    assert shown.size == (values["width"], values["height"]) and shown.format == "PNG"
    assert "red square" in drawn.stderr
    assert run("segment", "-", TINY_QUESTION, *model, text=squares()).exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["standard_input_pixellm.png"]


def test_answers_go_from_one_command_into_the_next(tiny_model_dir: Path) -> None:
    Path("a.png").write_bytes(squares())
    model = ("--model", tiny_model_dir)
    one = run("segment", "a.png", TINY_QUESTION, "--json", "-", *model).stdout
    Path("asked.jsonl").write_text(json.dumps({"image": "a.png", "question": TINY_QUESTION}))
    many = run("segment", "--batch", "asked.jsonl", "--json", "-", *model).stdout
    for number, answers in enumerate((one, many)):
        exported = run("export", "-", "--to", "coco", "--out", f"new/{number}", text=answers)
        assert exported.exit_code == 0, exported.output
        assert "2 objects" in exported.stdout


def test_a_recipe_comes_from_standard_input() -> None:
    planned = run("train", "-", "--dry-run", text=RECIPE_WITHOUT_MODEL)
    assert "no-such-model" in planned.output and "Traceback" not in planned.output
    named = run(
        "train", "-", "--dry-run", text=RECIPE_WITHOUT_MODEL.replace("steps: 1", "steps: x")
    )
    assert named.exit_code == 2 and "steps" in named.stderr


def test_bad_rows_go_to_standard_output() -> None:
    bad = {"image": "none.png", "turns": [{"question": "Q?", "answer": "A."}]}
    Path("bad.jsonl").write_text(json.dumps(bad))
    checked = run("data", "check", "bad.jsonl", "--report", "-")
    assert checked.exit_code == 1
    assert checked.stdout.startswith("set,file,row,reason\n") and "none.png" in checked.stdout
    assert "1 bad rows" in checked.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("chat", "-"), "name the file of an image"),
        (("data", "check", "-"), "save standard input as a file"),
        (("segment", "-", "What?", "--out", "-", "--json", "-"), "can't both go"),
        (("segment", "-", "What?", "--export", "coco"), "save it as one first"),
        (("segment", "-", "What?"), "The image from standard input is empty"),
        (("segment", "http://127.0.0.1:1/a.png", "What?"), "does not answer"),
        (("segment", "https://", "What?"), "https://: An image's URL"),
        (("predict", "https://example.org/a.jsonl"), "There is no file or folder"),
    ],
)
def test_what_can_not_be_streamed_is_told_before_a_model_is_looked_for(
    arguments: tuple[str, ...], sentence: str
) -> None:
    model = () if arguments[0] == "data" else ("--model", "no-such-model")
    result = run(*arguments, *model, text="")
    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.stderr.split())
    assert list(Path().iterdir()) == []


def test_a_url_that_is_typed_is_fetched(address: str, tiny_model_dir: Path) -> None:
    model = ("--model", tiny_model_dir)
    answered = run("segment", f"{address}/squares.png?size=2", TINY_QUESTION, *model)
    assert answered.exit_code == 0, answered.output
    assert Path("squares_pixellm.png").is_file()
    url = f"{address}/moved.png"
    talked = run("chat", url, *model, text=f"{TINY_QUESTION}\n/image {url}\n/save\n/image -\n")
    assert talked.exit_code == 0, talked.output
    assert "red square" in talked.stdout
    assert "ask something first" in talked.stderr and "name the file" in talked.stderr


def test_a_url_has_limits(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 4000)
    for name, sentence in {"page.png": "is no image", "large.png": "larger than 4,000"}.items():
        result = run("segment", f"{address}/{name}", "What?", "--model", "no-such-model")
        assert result.exit_code == 2 and sentence in result.stderr, result.output


def test_a_url_in_a_list_is_not_fetched(
    address: str, asked: list[str], tiny_model_dir: Path
) -> None:
    line = json.dumps({"image": f"{address}/squares.png", "question": TINY_QUESTION})
    result = run("predict", "-", "--out", "-", "--model", tiny_model_dir, text=line)
    assert result.exit_code == 1
    assert "is a URL" in json.loads(result.stdout)["error"]
    assert asked == []
