"""Requests that no client would send, 10,000 of them against a server of its own process.

    python benchmarks/malformed_requests.py --out benchmarks/results/malformed_requests.json

Random bytes, truncated images, images of huge sizes, deep and wrong JSON, torn forms, lying
headers. Counts what comes back: a status below 500, or a closed connection, and nothing of the
server's inside. `tests/serving` runs a few hundred of the same.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

INSIDE = re.compile(
    rb'Traceback|File "|\.py\b|site-packages|object at 0x|/(home|work|usr|tmp|root)/'
)
SECONDS = 30.0
MODEL = "nano"
"""What the server calls its model: requests get past the name, to images and texts."""


@dataclass(frozen=True)
class Malformed:
    """A request's bytes, which kind of damage it has, and whether it says truly where it ends."""

    name: str
    data: bytes
    is_whole: bool = True


def malformed_requests(rng: random.Random, count: int) -> Iterator[Malformed]:
    """Requests of all kinds in turn."""
    kinds = [
        random_bytes, random_body, wrong_json, deep_json, cut_json, cut_image, noisy_image,
        bomb_image, torn_form, wrong_form, lying_length, odd_path, odd_url, huge_numbers,
    ]  # fmt: skip
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield Malformed(kind.__name__, kind(rng), kind not in (random_bytes, lying_length))


def send(port: int, request: Malformed) -> tuple[int, bytes]:
    """Status (0 where the connection was closed without one) and all that came back."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        try:
            connection.sendall(request.data)
            if not request.is_whole:  # the server would wait for the rest
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except TimeoutError:  # it hangs
            raise
        except OSError:  # it hung up, in any of the ways that systems tell
            pass
    found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return (int(found[1]) if found else 0), answer


def http(path: str, body: bytes, kind: str = "application/json", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


def chat(values: Any) -> bytes:
    return http("/v1/chat/completions", json.dumps(values).encode())


def question(url: Any) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "What?"}, image]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]}


def form(fields: list[tuple[str, bytes]], boundary: bytes = b"XXBOUNDARYXX") -> bytes:
    body = b""
    for head, data in fields:
        body += b"--" + boundary + b"\r\nContent-Disposition: form-data; "
        body += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    body += b"--" + boundary + b"--\r\n"
    return http("/v1/segment", body, f"multipart/form-data; boundary={boundary.decode()}")


def picture(rng: random.Random, name: str = "") -> bytes:
    buffer = io.BytesIO()
    size = (rng.randint(1, 40), rng.randint(1, 40))
    pixels = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    pixels.save(buffer, name or rng.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]))
    return buffer.getvalue()


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n"


def random_body(rng: random.Random) -> bytes:
    kind = rng.choice(["application/json", "multipart/form-data; boundary=a", "text/plain", ""])
    path = rng.choice(["/v1/chat/completions", "/v1/segment", "/v1/export"])
    return http(path, rng.randbytes(rng.randint(0, 3000)), kind)


def wrong_json(rng: random.Random) -> bytes:
    def value(depth: int) -> Any:
        kind = rng.randrange(9 if depth else 6)
        if kind == 6:
            return [value(depth - 1) for _ in range(rng.randint(0, 4))]
        if kind > 6:
            names = ["role", "content", "type", "text", "image_url", "url", "x", "user", ""]
            return {rng.choice(names): value(depth - 1) for _ in range(rng.randint(0, 4))}
        return [None, True, -1, 1e308, "user", "\ud800\x00{seg}<image>[SEG0]"][kind]

    fields = ["model", "messages", "stream", "max_tokens", "temperature", "seed", "n", "tools"]
    body = {"model": MODEL, **{name: value(4) for name in rng.sample(fields, 4)}}
    return chat(body if rng.random() < 0.9 else value(4))


def deep_json(rng: random.Random) -> bytes:
    depth = rng.choice([50, 500, 5_000, 50_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"messages":[', "]}")])
    inner = opening * depth + "1" + (closing * depth if rng.random() < 0.7 else "")
    body = inner if rng.random() < 0.5 else f'{{"model": "{MODEL}", "messages": {inner}}}'
    return http("/v1/chat/completions", body.encode())


def cut_json(rng: random.Random) -> bytes:
    whole = json.dumps(question("data:image/png;base64,aaaa")).encode()
    return http("/v1/chat/completions", whole[: rng.randrange(len(whole))])


def as_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def cut_image(rng: random.Random) -> bytes:
    data = picture(rng)
    return chat(question(as_url(data[: rng.randrange(len(data))])))


def noisy_image(rng: random.Random) -> bytes:
    data = bytearray(picture(rng))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.5:
        return form([('name="image"; filename="a"', bytes(data)), ('name="question"', b"What?")])
    return chat(question(as_url(bytes(data))))


def bomb_image(rng: random.Random) -> bytes:
    """A PNG of billions of pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    side = rng.choice([6_000, 60_000, 2**31 - 1, 0])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(bytes(50_000))) + chunk(b"IEND", b"")
    return chat(question(as_url(data)))


def torn_form(rng: random.Random) -> bytes:
    whole = form([('name="image"; filename="a.png"', picture(rng)), ('name="question"', b"What?")])
    head, _, body = whole.partition(b"\r\n\r\n")
    body = body[: rng.randrange(len(body))]
    kind = re.search(rb"Content-Type: ([^\r]*)", head)
    return http("/v1/segment", body, kind[1].decode() if kind else "")


def wrong_form(rng: random.Random) -> bytes:
    names = ['name="image"', 'name="question"', 'name="image"; filename="../../etc/passwd"', "x",
             'name="max_tokens"', 'name=""; filename=""', 'name="segments"']  # fmt: skip
    fields = [
        (rng.choice(names), rng.randbytes(rng.randint(0, 200))) for _ in range(rng.randint(0, 9))
    ]
    return form(fields)


def lying_length(rng: random.Random) -> bytes:
    length = rng.choice([b"-1", b"1e3", b"99999999999999999999", b"300000", b"5", b"", b"\xff"])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: " + length
    extra = rng.choice([b"", b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: 7"])
    return head + extra + b"\r\n\r\n" + rng.randbytes(rng.randint(0, 300))


def odd_path(rng: random.Random) -> bytes:
    paths = ["/../../etc/passwd", "/page/..%2f..%2fetc/passwd", "/page/%00", "/%ff%fe", "//",
             "/v1/models/../..", "/page/config.json/x", "/examples/../page.js", "/v1"]  # fmt: skip
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"])
    return http(rng.choice(paths), b"", method=method)


def odd_url(rng: random.Random) -> bytes:
    urls = ["data:", "data:image/png;base64,=", "data:image/svg+xml;base64,PHN2Zz4=",
            "javascript:1", "file:///etc/passwd", "http://127.0.0.1/", "\x00", "", " ", None, 5, [],
            {}]  # fmt: skip
    return chat(question(rng.choice(urls)))


def huge_numbers(rng: random.Random) -> bytes:
    body = question(as_url(picture(rng, "PNG")))
    name = rng.choice(["seed", "max_tokens", "temperature", "top_p", "n", "max_completion_tokens"])
    value = rng.choice(["1" + "0" * 400, "1e999", "-0", "NaN", "Infinity", "1e-999", "1" * 5000])
    text = json.dumps(body)[:-1] + f', "{name}": {value}}}'
    return http("/v1/chat/completions", text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pixellm", "serve", "--port", str(port)]
    command += ["--model", MODEL, "--max-megabytes", "0.25", "--max-megapixels", "40"]
    command += ["--max-answer", "4"]
    with subprocess.Popen(command) as server:
        try:
            report = run(port, server, args.seed, args.count)
        finally:
            server.terminate()
            code = server.wait(60)
    report["exit_code"] = code
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def run(port: int, server: subprocess.Popen[bytes], seed: int, count: int) -> dict[str, Any]:
    wait_for(port, server)
    statuses, told, slowest = Counter[str](), 0, 0.0
    for request in malformed_requests(random.Random(seed), count):
        started = time.monotonic()
        status, body = send(port, request)
        slowest = max(slowest, time.monotonic() - started)
        statuses[str(status)] += 1
        told += bool(INSIDE.search(body))
    wait_for(port, server)
    return {
        "command": f"python benchmarks/malformed_requests.py --count {count} --seed {seed}",
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "answers_that_tell_of_the_inside": told,
        "slowest_answer_seconds": round(slowest, 2),
        "ready_at_the_end": True,
    }


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            status, _ = send(port, Malformed("ready", http("/readyz", b"", method="GET")))
            if status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server ended")


if __name__ == "__main__":
    main()
