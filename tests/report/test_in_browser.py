"""The pages in Chromium: light and dark, wide and on a phone, without an error or a request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixellm.report.figures import score_bars, to_svg
from pixellm.report.gallery import data_url, mask_layer
from pixellm.report.page import Card, Report, Table, render_page, write_report

playwright = pytest.importorskip("playwright.sync_api")

LONG = "Wherever_the_" + 12 * "longest_word_"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no Chromium here to show pages in")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a page from its bytes; at the end nothing has gone wrong and nothing was asked for."""
    opened, complaints = [], []

    def open_page(content: bytes, scheme: str = "light", width: int = 1200) -> Any:
        path = tmp_path / f"{len(opened)}.html"
        path.write_bytes(content)
        page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    own = ("data:", "blob:", tmp_path.as_uri())
    assert [text for text in complaints if not text.startswith(own)] == []


def preview(folder: Path) -> bytes:
    turn = {"question": LONG, "parts": (("The ", None), ("cup", 0), (f" is {LONG}", None))}
    entry = {"name": LONG, "image": data_url(Image.new("RGB", (900, 60))), "turns": [turn]}
    return render_page("preview.html", {"title": LONG, "entries": 3 * [entry]})


def review(folder: Path) -> bytes:
    mask = np.zeros((60, 90), bool)
    mask[10:40, 10:40] = True
    cards = [
        {
            "key": f"key{number}",
            "photo": LONG,
            "image": data_url(Image.new("RGB", (90, 60), "white")),
            "question": f"Question {number}",
            "parts": [("The ", None), ("cup", 0), (" and ", None), ("the spoon", 1)],
            "categories": ["cup", "kettle" if number else "spoon"],
            "layers": [mask_layer(mask, index, 480) for index in range(2)],
        }
        for number in range(3)
    ]
    values = {"title": "MUSE gallery", "cards": cards, "marks": {"key2": "accept"}, "save_at": ""}
    return render_page("review.html", values)


def report(folder: Path) -> bytes:
    image = data_url(Image.new("RGB", (90, 60), "white"))
    card = Card("worst", "IoU 0.20", "half", "1", {"question": LONG}, (("predicted", image),))
    header = ("score", "value", "meaning", *(f"column {number}" for number in range(12)))
    rows = [header, (LONG, "0.5", 30 * "words ", *(12 * ["0.123 [0.100, 0.200]"]))]
    table = Table("Headline", rows, "headline")
    bars = to_svg(score_bars({"1": (0.5, 0.4, 0.6), LONG: (0.2, 0.1, 0.9)}, "targets"), "bars")
    cards = [card, replace(card, sort="best", kind="", count="2")]
    (_, _, page) = write_report(
        folder, "report", Report(LONG, LONG, [table, table], {"Bars": bars}, cards, {})
    )
    return page.read_bytes()


PAGES = {"preview": preview, "review": review, "report": report}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_pages_are_light_or_dark_and_fit_their_window(visit, tmp_path, name, scheme, width):
    page = visit(PAGES[name](tmp_path), scheme, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shades = [
        int(part)
        for part in page.evaluate("getComputedStyle(document.body).backgroundColor")[4:-1].split(
            ","
        )
    ]
    assert (min(shades) > 200) if scheme == "light" else (max(shades) < 60)


def test_a_review_searches_shows_one_mask_and_keeps_marks(visit, tmp_path):
    page = visit(review(tmp_path))
    assert page.inner_text("#count") == "3 of 3"
    page.fill("#search", "kettle question")
    assert page.inner_text("#count") == "2 of 3"
    page.fill("#search", "")
    page.locator("mark").nth(1).focus()
    card = page.locator("article").first
    shown = [
        layer.evaluate("e => getComputedStyle(e).opacity") for layer in card.locator(".layer").all()
    ]
    assert float(shown[0]) == 0 < float(shown[1])
    card.locator("button", has_text="Reject").click()
    page.select_option("#show", "reject")
    assert page.inner_text("#count") == "1 of 3"
    with page.expect_download() as download:
        page.click("#save")
    marks = download.value.path().read_text()
    assert marks == '{\n "key0": "reject",\n "key2": "accept"\n}'
    page.reload()
    assert page.locator("article[data-mark=reject]").count() == 1
    page.locator("article").first.locator("button", has_text="Reject").click()
    assert page.locator("article[data-mark=reject]").count() == 0


def test_a_report_shows_the_answers_that_fit_every_filter(visit, tmp_path):
    page = visit(report(tmp_path))
    assert page.inner_text("#shown") == "2 of 2 answers"
    options = page.locator("select[name=kind] option").all_inner_texts()
    assert options == ["all", "half"]
    page.select_option("select[name=sort]", "worst")
    assert page.inner_text("#shown") == "1 of 2 answers"
    page.fill("input[name=text]", "no such words")
    assert page.inner_text("#shown") == "0 of 2 answers"
    assert page.locator("svg text", has_text="targets").is_visible()
