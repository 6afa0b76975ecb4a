"""A gallery of a set: one HTML file with photos, masks, search, and marks to accept or reject.

Opened as a file it keeps marks in the browser and hands them out as ``marks.json``; opened through
:class:`ReviewServer` every click is saved into the set's folder at once.
"""

from __future__ import annotations

import heapq
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path
from typing import Any

from pixellm.curation.ledger import LEDGER_NAME, Ledger
from pixellm.curation.photos import jpeg_data_url, seeded_fraction
from pixellm.curation.write import change_marks, read_marks
from pixellm.data.json_stream import scan_list
from pixellm.data.muse import MuseRow, muse_files, rows_of
from pixellm.files import check_file, write_files
from pixellm.masks import decode_mask, segmentation_to_rle
from pixellm.report.gallery import Part, mask_layer
from pixellm.report.page import render_page
from pixellm.types import split_marks

SIDE = 480
"""Long side of the images in the page, in pixels."""


def review_rows(folder: Path) -> Iterator[MuseRow]:
    """The rows to look at: all accepted ones of a ledger, else those of the MUSE files."""
    if not (folder / LEDGER_NAME).is_file():
        for file in muse_files(folder):
            for entry in scan_list(file):
                yield from rows_of(entry)
        return
    with closing(Ledger(folder, writing=False)) as ledger:
        for task, row in ledger.accepted():
            photo, known = task.photo, task.photo.by_id()
            targets = tuple(known[number].entry(text) for number, text in row.targets)
            said: dict[str, Any] = {"question": row.question, "text": row.answer}
            yield MuseRow(photo=photo.file_name, size=photo.size, targets=targets, **said)


def write_gallery(folder: Path, images: Path, path: Path, num: int, seed: int = 0) -> int:
    """Write the page of a set with ``num`` rows at most, a seeded choice; returns how many."""
    check_file(path)
    cards = [_card(row, images) for row in _choose(review_rows(folder), num, seed)]
    write_files({path: review_page(cards, read_marks(folder))})
    return len(cards)


def review_page(cards: list[dict[str, Any]], marks: Mapping[str, str], save_at: str = "") -> bytes:
    """The HTML of a gallery; ``save_at`` is where a click is posted, "" for a plain file."""
    values = {"title": "MUSE gallery", "cards": cards, "marks": marks, "save_at": save_at}
    return render_page("review.html", values)


class ReviewServer(ThreadingHTTPServer):
    """Serves a gallery of a set on this machine only, and saves marks as they are set.

    Marks go to the set's ``marks.json``. ``url`` is the address to open; its token keeps other
    pages in the browser from posting marks.
    """

    daemon_threads = True

    def __init__(self, folder: Path, images: Path, num: int, seed: int = 0) -> None:
        self.cards = [_card(row, images) for row in _choose(review_rows(folder), num, seed)]
        self.keys = {card["key"] for card in self.cards}
        self.folder = folder
        self.token = secrets.token_urlsafe(16)
        super().__init__(("127.0.0.1", 0), _ReviewHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{self.token}"

    def mark(self, key: str, mark: str) -> None:
        """Save one mark; "" takes it back; ValueError for an unknown row or mark."""
        if key not in self.keys or mark not in ("accept", "reject", ""):
            raise ValueError("Unknown row or mark.")
        change_marks(self.folder, {key: mark})


class _ReviewHandler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        if not self._allowed():
            return
        marks = read_marks(self.server.folder)
        page = review_page(self.server.cards, marks, f"/{self.server.token}")
        self._reply(200, "text/html; charset=utf-8", page)

    def do_POST(self) -> None:
        """One mark, as JSON ``{"key": ..., "mark": ...}``."""
        if not self._allowed():
            return
        try:
            length = min(int(self.headers.get("Content-Length", 0)), 10_000)
            wanted = json.loads(self.rfile.read(length))
            self.server.mark(str(wanted["key"]), str(wanted["mark"]))
        except (KeyError, TypeError, ValueError):
            self._reply(400, "text/plain", b"bad mark")
        else:
            self._reply(200, "text/plain", b"saved")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: only the command line prints."""

    def _allowed(self) -> bool:
        known = self.path == f"/{self.server.token}"
        if not known:
            self._reply(404, "text/plain", b"not here")
        return known

    def _reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _choose(rows: Iterable[MuseRow], num: int, seed: int) -> list[MuseRow]:
    """A seeded choice of at most ``num`` rows, in their own order; holds no more."""
    ranked = ((seeded_fraction(seed, row.key), position, row) for position, row in enumerate(rows))
    chosen = heapq.nsmallest(num, ranked, key=itemgetter(0, 1))
    return [row for _, _, row in sorted(chosen, key=itemgetter(1))]


def _card(row: MuseRow, images: Path) -> dict[str, Any]:
    try:
        photo = jpeg_data_url(images / row.photo, SIDE)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The photo {row.photo} can't be read below {images} ({error}); check --images."
        ) from None
    return {
        "key": row.key,
        "photo": row.photo,
        "image": photo,
        "question": row.question,
        "parts": list(_parts(row)),
        "categories": [str(target.get("category_name", "")) for target in row.targets],
        "layers": [
            mask_layer(decode_mask(segmentation_to_rle(t["segmentation"], row.size)), n, SIDE)
            for n, t in enumerate(row.targets)
        ],
    }


def _parts(row: MuseRow) -> Iterator[Part]:
    """The answer; a phrase that carries a mask is what the target is called, where it ends so."""
    text, spans = split_marks(row.answer)
    begun = 0
    for number, ((_, end), target) in enumerate(zip(spans, row.targets, strict=True)):
        piece = text[begun:end]
        name = str(target.get("rephrased_name", ""))
        called = bool(name) and piece.casefold().endswith(name.casefold())
        cut = len(piece) - len(name if called else piece.lstrip())
        yield piece[:cut], None
        yield piece[cut:], number
        begun = end
    yield text[begun:], None
