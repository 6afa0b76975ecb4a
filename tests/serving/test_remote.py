"""Images from elsewhere: public addresses alone, whatever a URL, a name or a redirect says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult

import pytest
import requests
from scripted_engine import ScriptedEngine

from pixellm.serving import remote
from pixellm.serving.errors import RefusedError
from pixellm.serving.remote import fetch_image, is_public

from .conftest import asked, png

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1",
    "2001:db8::1", "2001::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "2002:c0a8:101::",
    "::ffff:0:127.0.0.1", "not an address", "",
]  # fmt: skip
PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_outside_are(address: str) -> None:
    assert is_public(address)


class Internet:
    """Names with addresses, and servers that answer with what is scripted."""

    def __init__(self, names: dict[str, list[str]], answers: dict[str, bytes]) -> None:
        self.names = names
        self.answers = answers
        self.connected: list[tuple[str, str]] = []
        self.sent: list[bytes] = []

    async def look_up(self, host: str, port: int) -> list[str]:
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    async def connect(self, address: str, url: SplitResult) -> Any:
        self.connected.append((address, url.geturl()))
        reader = asyncio.StreamReader()
        reader.feed_data(self.answers[url.geturl()])
        reader.feed_eof()
        return reader, _Writer(self.sent)

    def fetch(self, url: str, max_bytes: int = 10_000) -> bytes:
        return asyncio.run(fetch_image(url, max_bytes, look_up=self.look_up, connect=self.connect))


class _Writer:
    def __init__(self, sent: list[bytes]) -> None:
        self.write = sent.append

    async def drain(self) -> None: ...

    def close(self) -> None: ...


def response(
    body: bytes, kind: str = "image/png", status: str = "200 OK", extra: str = ""
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


def redirect(to: str) -> bytes:
    return response(b"", status="302 Found", extra=f"Location: {to}\r\n")


NAMES = {
    "good.example": ["93.184.215.14"],
    "inside.example": ["10.0.0.5"],
    "mixed.example": ["93.184.215.14", "127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nothing.example": [],
    "127.0.0.1": ["127.0.0.1"],
    "2130706433": ["127.0.0.1"],
    "0x7f.1": ["127.0.0.1"],
    "::1": ["::1"],
    "localhost": ["127.0.0.1", "::1"],
}


def test_an_image_at_a_public_address_is_fetched() -> None:
    net = Internet(NAMES, {"https://good.example/a.png?b=1": response(png())})
    assert net.fetch("https://good.example/a.png?b=1") == png()
    # The connection goes to the address that was checked, not to the name.
    assert net.connected[0][0] == "93.184.215.14"
    sent = b"".join(net.sent).lower()
    assert sent.startswith(b"get /a.png?b=1 http/1.1") and b"host: good.example\r\n" in sent
    assert b"cookie" not in sent and b"authorization" not in sent


@pytest.mark.parametrize(
    "url",
    [
        "http://inside.example/a.png", "http://mixed.example/a.png", "http://mapped.example/",
        "http://nothing.example/", "http://unknown.example/", "http://localhost/a.png",
        "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/",
        "https://good.example:8080/a.png", "http://good.example:22/", "http://me@good.example/",
        "http://good.example@127.0.0.1/", "ftp://good.example/a.png", "file:///etc/passwd",
        "gopher://good.example/", "//good.example/a.png", "http://", "http:///a.png",
        "http://good.example:x/", "http://[::1/", "http://good.example/\r\nX: y", "http://g\u00f6.example/",
        "data.png", "",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_without_a_connection(url: str) -> None:
    net = Internet(NAMES, {})
    with pytest.raises(RefusedError) as refused:
        net.fetch(url)
    assert refused.value.status == 400 and not net.connected
    assert "127.0.0.1" not in refused.value.message and "10.0.0.5" not in refused.value.message


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1/", "http://inside.example/", "http://[::1]/", "http://mixed.example/",
        "file:///etc/passwd", "https://good.example:22/", "//localhost/x",
    ],
)  # fmt: skip
def test_redirects_are_checked_like_the_first_address(to: str) -> None:
    net = Internet(NAMES, {"https://good.example/a": redirect(to)})
    with pytest.raises(RefusedError):
        net.fetch("https://good.example/a")
    assert len(net.connected) == 1


def test_a_redirect_to_a_public_address_is_followed_a_few_times() -> None:
    answers = {
        "https://good.example/a": redirect("/b"),
        "https://good.example/b": redirect("http://good.example/c"),
        "http://good.example/c": response(png()),
        "https://good.example/loop": redirect("/loop"),
    }
    net = Internet(NAMES, answers)
    assert net.fetch("https://good.example/a") == png()
    with pytest.raises(RefusedError, match="redirected more than 3"):
        net.fetch("https://good.example/loop")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(b"<html>", "text/html"), "no image"),
        (response(png(), status="404 Not Found"), "status 404"),
        (response(b"x" * 20_000), "larger than"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + b"x" * 20_000, "larger than"),
        (response(png())[:-5], "does not answer"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer"),
        (b"", "does not answer"),
        (redirect(""), "redirected more"),
        (redirect("http://[bad/"), "can't be read|does not answer"),
    ],
)
def test_what_is_no_image_is_said_so(answer: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        Internet(NAMES, {"https://good.example/a": answer}).fetch("https://good.example/a")


def test_a_slow_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 0.05)
    net = Internet(NAMES, {})

    async def connect(address: str, url: SplitResult) -> Any:
        return asyncio.StreamReader(), _Writer([])

    net.connect = connect  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="did not come"):
        net.fetch("https://good.example/a")


def test_the_server_fetches_only_where_it_is_told_to(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(ScriptedEngine(), remote_images=True)

    def ask(url: str) -> requests.Response:
        body = {"model": "scripted", "messages": asked("the cup", url)}
        return requests.post(f"{running.url}/v1/chat/completions", json=body, timeout=30)

    for url in (
        running.url,
        f"http://localhost:{running.port}/",
        "http://localhost/",
        "http://[::1]/",
    ):
        assert ask(url).status_code == 400
    net = Internet(NAMES, {"https://good.example/a": response(png((9, 5)))})

    async def fetch(url: str, most: int) -> bytes:
        return await fetch_image(url, most, look_up=net.look_up, connect=net.connect)

    monkeypatch.setattr("pixellm.serving.service.fetch_image", fetch)
    answer = ask("https://good.example/a").json()
    assert answer["choices"][0]["message"]["image_size"] == [5, 9]
