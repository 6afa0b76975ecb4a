"""Images from elsewhere: fetched from public addresses alone, within limits of size and time.

A name is looked up once, every address that it has must be public, and the connection goes to the
address that was checked, so that a second look-up can't lead elsewhere. Redirects are checked like
the first address. No proxy, no cookie and no credential takes part.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urljoin, urlsplit

import h11

from pixellm.serving.errors import RefusedError, invalid

MAX_REDIRECTS = 3
SECONDS = 15.0
"""For look-up, connection, redirects and the whole image together."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 1 << 16

Lookup = Callable[[str, int], Awaitable[list[str]]]
Connect = Callable[[str, SplitResult], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    IPv6 forms that carry an IPv4 address are as public as that one.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = _carried(found)
        if inner is not None:
            return is_public(str(inner))
        if found in _SITE_LOCAL:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
_LOW_32_BITS = (
    ipaddress.ip_network("::/96"),  # IPv4-compatible, given up long ago
    ipaddress.ip_network("64:ff9b::/96"),  # NAT64
    ipaddress.ip_network("::ffff:0:0:0/96"),  # IPv4-translated
)


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to, or None."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _LOW_32_BITS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


async def look_up(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def connect(
    address: str, url: SplitResult
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to an address; certificates are checked for the name in the URL."""
    secure = url.scheme == "https"
    return await asyncio.open_connection(
        address,
        url.port or _PORTS[url.scheme],
        ssl=ssl.create_default_context() if secure else None,
        server_hostname=url.hostname if secure else None,
    )


async def fetch_image(
    url: str,
    max_bytes: int,
    *,
    typed: bool = False,
    look_up: Lookup = look_up,
    connect: Connect = connect,
) -> bytes:
    """The bytes of an image at a public address.

    Args:
        url: of http or https, on the usual port.
        max_bytes: largest image.
        typed: the user of this machine has typed the URL: any port goes, and an address that is
            not public, from which redirects may lead to others of that kind.
        look_up: finds the addresses of a host.
        connect: connects to one of them.

    Raises:
        RefusedError: no such URL, an address that is not public, no image, or one too large.
    """
    try:
        async with asyncio.timeout(SECONDS):
            for _ in range(MAX_REDIRECTS + 1):
                target = _checked_url(url, any_port=typed)
                address = await _checked_address(target, look_up, inside=typed)
                typed = typed and not is_public(address)
                status, headers, body = await _get(target, address, max_bytes, connect)
                if status not in _REDIRECTS:
                    return _checked_body(status, headers, body)
                url = urljoin(url, headers.get("location", ""))
    except TimeoutError:
        raise invalid(f"The image did not come within {SECONDS:.0f} s.", "image_url") from None
    except (OSError, h11.ProtocolError, UnicodeError, ValueError):
        raise invalid("The image's address does not answer as it should.", "image_url") from None
    raise invalid(f"The image is redirected more than {MAX_REDIRECTS} times.", "image_url")


def _checked_url(url: str, *, any_port: bool) -> SplitResult:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise invalid("The image's URL can't be read.", "image_url") from None
    if parts.scheme not in _PORTS or not host:
        raise invalid("An image's URL is a data URL, or begins with https://.", "image_url")
    if not (any_port or port in (None, _PORTS[parts.scheme])) or "@" in parts.netloc:
        raise invalid("An image's URL names no user, and no port but the usual one.", "image_url")
    if not url.isascii() or any(ord(one) <= 32 or ord(one) == 127 for one in url):
        raise invalid("An image's URL is ASCII without spaces; encode the rest.", "image_url")
    return parts


async def _checked_address(url: SplitResult, look_up: Lookup, *, inside: bool) -> str:
    """An address of the URL's host, where all of them are public or others may be asked."""
    addresses = await look_up(url.hostname or "", url.port or _PORTS[url.scheme])
    if not addresses or not (inside or all(is_public(address) for address in addresses)):
        raise invalid("The image's address is not on the public internet.", "image_url")
    return min(addresses, key=lambda one: ":" in one) if inside else addresses[0]


async def _get(
    url: SplitResult, address: str, max_bytes: int, connect: Connect
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request to a checked address."""
    reader, writer = await connect(address, url)
    try:
        client = h11.Connection(h11.CLIENT)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        host = url.netloc.partition("@")[2] or url.netloc
        headers = [("Host", host), ("Accept", "image/*"), ("Connection", "close")]
        for event in (
            h11.Request(method="GET", target=target, headers=headers),
            h11.EndOfMessage(),
        ):
            writer.write(client.send(event) or b"")
        await writer.drain()
        return await _read(client, reader, max_bytes)
    finally:
        writer.close()


async def _read(
    client: h11.Connection, reader: asyncio.StreamReader, max_bytes: int
) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = 0, dict[str, str](), bytearray()
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await reader.read(_PIECE))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            if status in _REDIRECTS:
                return status, headers, b""
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                sentence = f"The image is larger than {max_bytes:,} bytes."
                raise RefusedError(413, sentence, "too_large")
        elif isinstance(event, h11.EndOfMessage):
            return status, headers, bytes(body)
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("The server hung up.")


def _checked_body(status: int, headers: dict[str, str], body: bytes) -> bytes:
    if status != 200:
        raise invalid(f"The image's address answers with status {status}.", "image_url")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/"):
        raise invalid("What lies at the image's address is no image.", "image_url")
    return body
