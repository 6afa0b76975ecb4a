"""A server under load: many clients, each answer checked against its own question.

    python benchmarks/serve_load.py --out benchmarks/results/serve_load.json

Starts `pixellm serve` in a process of its own. First one client asks, one question after the other;
then 32 clients ask for three minutes, half of them by streams, while others leave in the middle of
their answers; then the load goes on until ten minutes are over, for the memory. Expected answers
are the engine's own, asked one by one in this process before.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixellm.image_files import example_image, load_image
from pixellm.masks import decode_mask, mask_iou

QUESTIONS = (
    "Where are the table and the cup?",
    "Is there a cat?",
    "Where is the person?",
    "What can I drink from?",
    "What animals are there?",
    "Is there a dog or a spoon?",
)
LEAST_IOU = 0.98
"""Rows of a batch are summed in another order than a single one: a border may move by a pixel."""


@dataclass(frozen=True)
class Case:
    """A question with the answer that it must get."""

    body: bytes
    stream: bytes
    text: str
    masks: tuple[np.ndarray, ...]


@dataclass
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: int = 0
    elapsed: float = 0.0


def photos() -> list[Image.Image]:
    """The bundled photos, each as it is, mirrored, and its middle."""
    found = []
    for name in ("astronaut", "chelsea", "coffee"):
        whole = load_image(example_image(name))
        width, height = whole.size
        middle = (width // 8, height // 8, width - width // 8, height - height // 8)
        found += [whole, whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT), whole.crop(middle)]
    return found


def build_cases(model: str) -> list[Case]:
    """Every photo with every question, answered one by one."""
    import pixellm

    engine = pixellm.load(model, device="cpu")
    cases = []
    for photo in photos():
        buffer = io.BytesIO()
        photo.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        image = {"type": "image_url", "image_url": {"url": url}}
        for question in QUESTIONS:
            answer = engine.predict(photo, question)
            content = [{"type": "text", "text": question}, image]
            values = {"model": model, "messages": [{"role": "user", "content": content}]}
            masks = tuple(segment.mask for segment in answer.segments)
            bodies = (json.dumps({**values, "stream": s}).encode() for s in (False, True))
            cases.append(Case(*bodies, answer.text, masks))
    return cases


def ask(port: int, case: Case, stream: bool, tally: Tally, lock: threading.Lock) -> None:
    """One question; its answer is checked."""
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    head = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", case.stream if stream else case.body, head)
    response = connection.getresponse()
    first = None
    if stream and response.status == 200:
        text, segments = "", []
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            delta = json.loads(line[6:])["choices"][0]["delta"]
            if delta.get("content"):
                first = first or time.monotonic() - started
                text += delta["content"]
            segments += delta.get("segments", [])
    else:
        values = json.loads(response.read())
        message = values["choices"][0]["message"] if response.status == 200 else {}
        text, segments = message.get("content", ""), message.get("segments", [])
    connection.close()
    seconds = time.monotonic() - started
    fault = check(case, text, segments) if response.status == 200 else ""
    with lock:
        tally.statuses[str(response.status)] += 1
        if response.status == 200:
            tally.seconds.append(seconds)
            tally.first += [first] if first is not None else []
        if fault:
            tally.wrong.append(fault)
    if response.status == 429:
        time.sleep(float(response.headers.get("Retry-After", 1)))


def check(case: Case, text: str, segments: list[dict[str, Any]]) -> str:
    """What is wrong with an answer; "" where nothing is."""
    if text != case.text:
        return f"{text!r} in place of {case.text!r}"
    if len(segments) != len(case.masks):
        return f"{len(segments)} masks in place of {len(case.masks)}"
    for segment, wanted in zip(segments, case.masks, strict=True):
        iou = mask_iou(decode_mask(segment["segmentation"]), wanted)
        if iou < LEAST_IOU:
            return f"a mask with IoU {iou:.3f}"
    return ""


def vanish(port: int, case: Case, rng: random.Random) -> None:
    """Ask and leave, before the answer or in the middle of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        body = case.stream
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        connection.sendall(head.encode() + body[: rng.choice([len(body), len(body) // 2])])
        time.sleep(rng.uniform(0, 0.5))


def run_clients(
    port: int, cases: list[Case], clients: int, leavers: int, seconds: float, seed: int
) -> Tally:
    """Let clients ask until the time is over; answers on their way are waited for."""
    tally, lock, began = Tally(), threading.Lock(), time.monotonic()
    end = began + seconds

    def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while time.monotonic() < end:
            ask(port, rng.choice(cases), number % 2 == 1, tally, lock)

    def leaver(number: int) -> None:
        rng = random.Random(f"{seed} leaver {number}")
        while time.monotonic() < end:
            vanish(port, rng.choice(cases), rng)
            with lock:
                tally.left += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    threads += [threading.Thread(target=leaver, args=(n,)) for n in range(leavers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.elapsed = time.monotonic() - began
    return tally


def summary(tally: Tally) -> dict[str, Any]:
    cuts = statistics.quantiles(tally.seconds, n=100)
    first = sorted(tally.first)
    return {
        "answers": len(tally.seconds),
        "answers_per_second": round(len(tally.seconds) / tally.elapsed, 3),
        "seconds_p50": round(cuts[49], 3),
        "seconds_p95": round(cuts[94], 3),
        "seconds_p99": round(cuts[98], 3),
        "first_piece_p50": round(first[len(first) // 2], 3) if first else None,
        "statuses": dict(tally.statuses),
        "wrong_answers": len(tally.wrong),
        "first_wrong": tally.wrong[:3],
        "clients_that_left": tally.left,
    }


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise OSError("the process has no resident memory")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.25)
    raise SystemExit("the server ended before it was ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--leavers", type=int, default=2)
    parser.add_argument("--warm", type=float, default=45, help="seconds before all is measured")
    parser.add_argument("--alone", type=float, default=60, help="seconds of one client")
    parser.add_argument("--seconds", type=float, default=180, help="seconds of all clients")
    parser.add_argument("--total", type=float, default=600, help="seconds of all phases together")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases = build_cases(args.model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pixellm", "serve", "--model", args.model, "--port", str(port)]
    with subprocess.Popen([*command, "--device", "cpu"]) as server:
        try:
            report = run(port, cases, args, server)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(120)
    report["exit_code"] = code
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def run(
    port: int, cases: list[Case], args: argparse.Namespace, server: subprocess.Popen[bytes]
) -> dict[str, Any]:
    wait_for(port, server)
    pid = server.pid
    idle = resident_mib(pid)
    # All clients for a while, so that caches and buffers hold what they will hold.
    run_clients(port, cases, args.clients, args.leavers, args.warm, 3)
    began, start = time.monotonic(), resident_mib(pid)
    alone = run_clients(port, cases, 1, 0, args.alone, 0)
    together = run_clients(port, cases, args.clients, args.leavers, args.seconds, 1)
    memory = [start, resident_mib(pid)]
    rest = args.total - (time.monotonic() - began)
    later = run_clients(port, cases, args.clients, args.leavers, rest, 2) if rest > 0 else None
    memory.append(resident_mib(pid))
    found = {
        "command": f"python benchmarks/serve_load.py --clients {args.clients}",
        "model": args.model,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions(),
        "note": args.note,
        "cases": len(cases),
        "one_client": summary(alone),
        f"{args.clients}_clients": summary(together),
    }
    if later is not None:
        found["going_on"] = summary(later)
    one, many = (
        found[key]["answers_per_second"] for key in ("one_client", f"{args.clients}_clients")
    )
    found["throughput_ratio"] = round(many / one, 2)
    found["resident_mib"] = {
        "before_the_first_request": idle,
        "start": memory[0],
        "after_the_clients": memory[1],
        f"after_{args.total:.0f}_s": memory[2],
        "growth": round(memory[2] / memory[0] - 1, 3),
    }
    return found


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("pixellm", "torch", "fastapi", "starlette", "uvicorn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


if __name__ == "__main__":
    main()
