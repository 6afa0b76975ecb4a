"""What a server allows, decided once at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of a server.

    Attributes:
        queue: requests that may wait while others are answered; more get status 429.
        timeout: seconds from a request's arrival to the end of its answer, waiting included.
        upload_timeout: seconds in which a request's headers, and then its body, must have come.
        max_body: bytes of a request.
        max_bytes: bytes of all requests that are held at the same time.
        max_pixels: of an image, height times width.
        max_question: characters of all texts of a request.
        max_answer: tokens of an answer.
        api_keys: who has none of them is refused; () asks for none. Not shown.
        remote_images: fetch images from public addresses where a request names one.
        page: serve the page at /.
    """

    queue: int = 64
    timeout: float = 120.0
    upload_timeout: float = 30.0
    max_body: int = 16 * MEBIBYTE
    max_bytes: int = 512 * MEBIBYTE
    max_pixels: int = 25_000_000
    max_question: int = 8_000
    max_answer: int = 512
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    remote_images: bool = False
    page: bool = True

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise ValueError(f"The queue has {self.queue} places; it must have 0 or more.")
        positive = (
            "timeout",
            "upload_timeout",
            "max_body",
            "max_bytes",
            "max_pixels",
            "max_question",
            "max_answer",
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be above 0, and finite."
                )
        if any(not key or not key.isascii() or key.split() != [key] for key in self.api_keys):
            raise ValueError("An API key is ASCII text without spaces, and not empty.")
