"""Models by name, downloaded from a hub on this machine that holds small ones in their place."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from checkpoint.released_models import write_released, write_tower
from pixellm.cli.main import app
from pixellm.models import CLIP_TOWER, PUBLISHED, find_published, near_names

LARGE = "large.json"
HUB_ID = "maverickrzw/PixelLM-7B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as a download needs; may cut a file's first sending."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.asked: list[tuple[str, str, str]] = []
        self.cut = ""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        for hub_id, folder in self.server.repositories.items():
            if path.startswith(f"/api/models/{hub_id}"):
                paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
                files = [p.relative_to(folder).as_posix() for p in paths]
                if "/tree/" in path:
                    listed = [
                        {"type": "file", "path": name, "size": p.stat().st_size, "oid": "0" * 40}
                        for name, p in zip(files, paths, strict=True)
                    ]
                    content = json.dumps(listed).encode()
                    return self._send(content, with_body, {"Content-Type": "application/json"})
                content = json.dumps(
                    {"id": hub_id, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                ).encode()
                return self._send(content, with_body, {"Content-Type": "application/json"})
            found = re.fullmatch(rf"/{re.escape(hub_id)}/resolve/[^/]+/(.+)", path)
            if found and (folder / found[1]).is_file():
                content = (folder / found[1]).read_bytes()
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self._send(content, with_body, {"ETag": etag, "X-Repo-Commit": COMMIT})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, content: bytes, with_body: bool, headers: dict[str, str]) -> None:
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])  # type: ignore[index]
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not with_body:
            return
        if self.server.cut and self.path.partition("?")[0].endswith(self.server.cut):
            self.server.cut = ""
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Small models under the names of PixelLM-7B and its tower."""
    tower = write_tower(tmp_path / "hub/tower")
    released = write_released(tmp_path / "hub/7b/hf_model", tower)
    config = json.loads((released / "config.json").read_text())
    key = "vision_tower" if "vision_tower" in config else "mm_vision_tower"
    (released / "config.json").write_text(json.dumps(config | {key: CLIP_TOWER}))
    (tmp_path / "hub/7b/README.md").write_text("Not wanted.")
    (tmp_path / "hub/7b/hf_model/optimizer.pt").write_text("Not wanted.")
    (released / LARGE).write_bytes(b" " * 24_000_000)  # more than the client reads at once
    server = Hub({HUB_ID: tmp_path / "hub/7b", CLIP_TOWER: tower})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pixellm(home: Path, *arguments: object, hub: Hub | None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; without a hub nothing listens at its address."""
    port = 9 if hub is None else hub.server_port
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "80",
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "pixellm", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
    )


def test_a_model_is_downloaded_by_name_and_goes_on_after_a_cut(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    hub.cut = LARGE
    for _ in range(3):  # the hub's client may try again by itself
        done = pixellm(home, "download", "pixellm-7b", hub=hub)
        if done.returncode == 0:
            break
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "LLaMA" in done.stdout and "pixellm-7b is here" in done.stdout
    assert any(asked_range for _, _, asked_range in hub.asked), "nothing was resumed"
    fetched = {path for command, path, _ in hub.asked if command == "GET"}
    assert not any("README" in path or "optimizer" in path for path in fetched)

    asked = len(hub.asked)
    Image.new("RGB", (24, 16), "red").save(home / "a.png")
    question = ("segment", "a.png", "the a", "--json", "-", "--out", "seen.png")
    answered = pixellm(home, *question, "--model", "pixellm-7b", hub=None)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["model"] == "pixellm-7b", "JSON is all there is"
    assert answered.stderr == "Wrote seen.png\n" and (home / "seen.png").is_file()
    assert len(hub.asked) == asked
    listed = pixellm(home, "models", hub=None)
    assert re.search(r"pixellm-7b .* yes", listed.stdout)
    assert re.search(r"pixellm-13b .* no", listed.stdout)


def test_without_network_one_sentence_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), "red").save(tmp_path / "a.png")
    done = pixellm(tmp_path, "segment", "a.png", "What?", "--model", "pixellm-13b", hub=None)
    assert done.returncode == 2, done.stderr
    assert "the hub cannot be reached; check the network" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*_pixellm*"))


def test_the_table_fits_a_terminal_and_names_what_is_needed() -> None:
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines() if not line.startswith(("Sizes", "fetch"))]
    for model in PUBLISHED:
        (row,) = [line for line in table if line.strip().startswith(f"{model.name} ")]
        assert len(row) <= 80
        assert " MB" in row or " GB" in row
        assert model.knows in result.stdout and model.licence in result.stdout


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("pixelm-7b", "pixellm-7b"), ("PixelLM-13B", "pixellm-13b"), ("nano_scenes", "nano-scenes")],
)
def test_a_wrong_name_lists_the_near_ones(wrong: str, near: str) -> None:
    assert near_names(wrong)[0] == near
    result = CliRunner().invoke(app, ["download", wrong])
    assert result.exit_code == 2
    assert near in result.stderr and "pixellm models" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("familiarity", "is_told"), [(0.49, True), (0.5, False)])
def test_a_guess_about_the_unfamiliar_names_the_full_size_models(
    familiarity: float, is_told: bool
) -> None:
    from rich.console import Console

    from pixellm.cli.display import print_answer
    from pixellm.types import Prediction

    console = Console(record=True, width=200)
    print_answer(console, Prediction("A cat.", (), "?", (4, 5), {"familiarity": familiarity}))
    assert ("may be a guess" in (shown := console.export_text())) == is_told
    assert ("--model pixellm-7b" in shown) == is_told


def test_embedded_models_need_no_download() -> None:
    result = CliRunner().invoke(app, ["download", "nano"])
    assert result.exit_code == 0
    assert "part of the package" in result.stdout


def test_counts_are_those_of_the_weights_and_of_the_documented_memory() -> None:
    from safetensors import safe_open

    from pixellm.checkpoint.sources import EMBEDDED_DIR

    for name in ("nano", "nano-scenes"):
        with safe_open(EMBEDDED_DIR / name / "model.safetensors", "np") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        counts = {key: math.prod(shape) for key, shape in shapes.items()}
        model = find_published(name)
        assert model is not None and model.parameters == sum(counts.values())
        linear = [n for key, n in counts.items() if "language_model.layers" in key]
        assert model.linear <= sum(linear) <= 1.01 * model.linear
    page = Path(__file__).parents[2] / "docs/released-weights.md"
    rows = re.findall(
        r"\| (PixelLM-\d+B) \| ([\d.]+) G \| ([\d.]+) G \| ([\d.]+) GB \| ([\d.]+) GB \|",
        page.read_text(encoding="utf-8"),
    )
    assert len(rows) == 2
    for name, count, always, full, half in rows:
        model = find_published(name.lower())
        assert model is not None
        assert (model.parameters, model.always_float32) == (
            round(float(count) * 1e9),
            round(float(always) * 1e9),
        )
        assert abs(model.memory("32 bit") / 1e9 - float(full)) <= 0.06
        assert abs(model.memory("16 bit") / 1e9 - float(half)) <= 0.06
        assert model.memory("4 bit") < model.memory("8 bit") < model.memory("16 bit")
