"""A real HTTP server on the loopback that speaks the chat-completions protocol, badly on demand."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OBJECT_LINE = re.compile(r'^\{"id": .*\}$', re.MULTILINE)


@dataclass
class Answer:
    """What the server does with one request."""

    content: str = ""
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    reset: bool = False
    tokens: tuple[int, int] = (1000, 100)


Behaviour = Callable[[int, dict[str, Any]], Answer]


def user_text(body: dict[str, Any]) -> str:
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def listed(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that the prompt offers."""
    return [json.loads(line) for line in OBJECT_LINE.findall(user_text(body))]


def fingerprint(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def proposal(body: dict[str, Any], num: int = 3) -> dict[str, Any]:
    """A good proposal, the same for the same prompt, and unlike those for other prompts."""
    words = re.findall("...", hashlib.sha256(user_text(body).encode()).hexdigest())
    chosen = listed(body)[:num]
    texts = [f"the {o['class']} by the {words[n]} wall" for n, o in enumerate(chosen)]
    marks = [f"{text} {{seg:{o['id']}}}" for text, o in zip(texts, chosen, strict=True)]
    return {
        "question": f"What would the {words[9]} {words[8]} need for the {words[7]} {words[6]}?",
        "answer": f"That would be {', '.join(marks[:-1])} and {marks[-1]}.",
        "objects": [
            {"id": o["id"], "description": text} for o, text in zip(chosen, texts, strict=True)
        ],
    }


def good(number: int, body: dict[str, Any]) -> Answer:
    return Answer(json.dumps(proposal(body)))


class ChatServer(ThreadingHTTPServer):
    """Counts what it sees; ``behave`` decides on each answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave: Behaviour = good) -> None:
        self.behave = behave
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.mutex = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self._thread = threading.Thread(target=lambda: self.serve_forever(0.02), daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.shutdown()
        self.server_close()

    def repeats(self) -> int:
        """How many requests came more than once."""
        return sum(n - 1 for n in Counter(map(fingerprint, self.bodies)).values())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed hang up in the middle; that is the point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ChatServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        payload = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/files"):
            self._upload(payload)
        elif self.path.endswith("/batches"):
            self._start_batch(json.loads(payload))
        else:
            self._complete(json.loads(payload))

    def _complete(self, body: dict[str, Any]) -> None:
        with self.server.mutex:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            self._play(self.server.behave(number, body))
        finally:
            with self.server.mutex:
                self.server.in_flight -= 1

    def do_GET(self) -> None:
        name = self.path.split("?")[0].split("/")
        if name[-1] == "content":
            self._send(200, self.server.files[name[-2]])
            return
        if name[-1] == "batches":
            found = {
                "object": "list",
                "data": list(self.server.batches.values()),
                "has_more": False,
            }
        else:
            found = self.server.batches[name[-1]]
            found["status"] = "completed"
        self._send(200, json.dumps(found).encode())

    def _play(self, answer: Answer) -> None:
        time.sleep(answer.delay)
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if answer.raw is not None:
            self._send(answer.status, answer.raw, answer.headers)
        elif answer.status != 200:
            error = {"error": {"message": answer.content, "type": "error", "code": None}}
            self._send(answer.status, json.dumps(error).encode(), answer.headers)
        else:
            self._send(200, json.dumps(completion(answer)).encode(), answer.headers)

    def _upload(self, payload: bytes) -> None:
        content = next(
            part.split(b"\r\n\r\n", 1)[1].rstrip(b"\r\n-")
            for part in payload.split(b"--" + payload[2 : payload.index(b"\r\n")])
            if b"filename=" in part
        )
        name = f"file-{len(self.server.files)}"
        self.server.files[name] = content
        file = {"id": name, "object": "file", "bytes": len(content), "created_at": 0}
        self._send(200, json.dumps({**file, "filename": name, "purpose": "batch"}).encode())

    def _start_batch(self, body: dict[str, Any]) -> None:
        lines = []
        for line in self.server.files[body["input_file_id"]].splitlines():
            request = json.loads(line)
            answer = self.server.behave(len(self.server.bodies), request["body"])
            self.server.bodies.append(request["body"])
            status = {"status_code": answer.status, "body": completion(answer)}
            if answer.raw is not None:
                status["body"] = json.loads(answer.raw)
            lines.append(json.dumps({"custom_id": request["custom_id"], "response": status}))
        number = len(self.server.batches)
        self.server.files[f"out-{number}"] = "\n".join(reversed(lines)).encode()
        batch = {
            "id": f"batch-{number}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "created_at": 0,
            "status": "in_progress",
            "metadata": body.get("metadata"),
            "output_file_id": f"out-{number}",
        }
        self.server.batches[batch["id"]] = batch
        self._send(200, json.dumps(batch).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def completion(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.content, **answer.message}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
        "usage": {
            "prompt_tokens": answer.tokens[0],
            "completion_tokens": answer.tokens[1],
            "total_tokens": sum(answer.tokens),
        },
    }
