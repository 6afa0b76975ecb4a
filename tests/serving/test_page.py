"""The page in a real browser: what a person does with it, and what a screen reader is told."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted_engine import ScriptedEngine

from .conftest import png, wait_until

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
SECONDS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream",
                     "--use-fake-ui-for-media-stream"]  # fmt: skip
        started = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, serve: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server around an engine; fails on any error in its console."""
    faults: list[str] = []
    contexts = []

    def open_(engine: Any = None, *, allow: str = "", view: Any = None, **limits: Any) -> Any:
        running = serve(engine or ScriptedEngine(0.01), **limits)
        options = view or {"viewport": {"width": 1200, "height": 800}}
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda told: (
                faults.append(told.text)
                if told.type == "error" and not (allow and allow in told.text)
                else None
            ),
        )
        page.running = running
        page.goto(running.url)
        page.locator("#examples img").first.wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


def upload(page: Any, data: bytes | None = None, name: str = "photo.png") -> None:
    data = png((64, 40), (90, 90, 90)) if data is None else data
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    page.locator('#stage[data-state="filled"]').wait_for()


def ask(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.click("#ask")


def masks_shown(page: Any, count: int) -> None:
    page.locator(f'#canvas[data-masks="{count}"]').wait_for()


def holds(page: Any, script: str) -> None:
    """Wait for something; the page forbids the evaluation that playwright's own waiting needs."""
    wait_until(lambda: page.evaluate(script), SECONDS / 1000)


def canvas(page: Any) -> np.ndarray:
    """(H, W, 3) of what is painted."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    url = page.evaluate("() => document.getElementById('canvas').toDataURL()")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    )


def test_ask_see_hover_isolate_and_download(open_page: Callable[..., Any]) -> None:
    page = open_page()
    upload(page)
    before = canvas(page)
    ask(page, "the cup")
    phrase = page.locator("button.phrase")
    phrase.wait_for()
    masks_shown(page, 1)
    assert phrase.inner_text() == "the"
    assert "the cup" in page.locator(".answered").inner_text()
    holds(page, "document.getElementById('status').textContent.startsWith('Answer:')")
    page.uncheck("#labels")
    painted = canvas(page)
    assert (painted != before)[:, :32].any(-1).mean() > 0.95
    assert (painted == before)[:, 34:].all()
    color = phrase.evaluate("one => getComputedStyle(one).borderBottomColor")
    rim = tuple(int(part) for part in color[4:-1].split(","))
    assert tuple(painted[20, 0]) == rim, "outline and phrase have one colour"
    page.mouse.move(0, 0)
    phrase.hover()
    lit = canvas(page)
    assert lit[:, 40:].mean() < painted[:, 40:].mean(), "the rest steps back"
    page.mouse.move(0, 0)
    assert (canvas(page) == painted).all()
    phrase.click()
    assert phrase.get_attribute("aria-pressed") == "true"
    page.click("#show-all")
    assert phrase.get_attribute("aria-pressed") == "false"
    page.mouse.move(0, 0)
    page.fill("#opacity", "0")
    page.uncheck("#outlines")
    assert (canvas(page) == before).all()
    page.fill("#opacity", "60")
    files = {}
    for name in ("overlay", "masks", "coco", "labelme"):
        with page.expect_download() as waiting:
            page.click(f'[data-format="{name}"]')
        files[name] = Path(waiting.value.path()).read_bytes(), waiting.value.suggested_filename
    coco, labelme = (json.loads(files[name][0]) for name in ("coco", "labelme"))
    assert coco["images"][0]["file_name"] == labelme["imagePath"] == "photo.png"
    assert coco["annotations"][0]["bbox"] == [0, 0, 32, 40]
    assert labelme["shapes"][0]["description"] == "the"
    overlay = np.asarray(Image.open(io.BytesIO(files["overlay"][0])).convert("RGB"))
    assert overlay.shape == (40, 64, 3) and files["overlay"][1] == "photo_pixellm.png"
    assert (overlay[:, :30] != 90).any() and (overlay[:, 34:] == 90).all()
    with zipfile.ZipFile(io.BytesIO(files["masks"][0])) as archive:
        (stored,) = [name for name in archive.namelist() if name.endswith(".png")]
        mask = np.asarray(Image.open(io.BytesIO(archive.read(stored))))
    assert mask.shape == (40, 64) and (mask[:, :32] == 255).all() and not mask[:, 32:].any()


def test_turns_and_a_new_dialogue(open_page: Callable[..., Any]) -> None:
    engine = ScriptedEngine(0.01)
    page = open_page(engine)
    upload(page)
    ask(page, "first cup")
    page.locator("#ask:enabled").wait_for()
    page.fill("#question", "second \U0001f9c1 spoon")
    page.press("#question", "Enter")
    page.locator("button.phrase", has_text="second").wait_for()
    page.locator("#ask:enabled").wait_for()
    assert engine.seen[-1][0].history == (("first cup", "first {seg} cup"),)
    assert "second \U0001f9c1 spoon" in page.locator(".answered").nth(1).inner_text()
    page.locator("button.phrase", has_text="first").click()
    assert page.locator(".answered.shown").inner_text().startswith("first")
    page.click("#again")
    assert page.locator("#turns li").count() == 0
    ask(page, "anew")
    page.locator("button.phrase", has_text="anew").wait_for()
    assert engine.seen[-1][0].history == ()


def test_text_comes_before_the_end_and_can_be_stopped(open_page: Callable[..., Any]) -> None:
    engine = ScriptedEngine(0.05)
    page = open_page(engine)
    upload(page)
    ask(page, "see long")
    masks_shown(page, 1)
    holds(page, "document.querySelector('.answered').textContent.includes('on on')")
    page.click("#stop")
    page.locator("text=Stopped.").wait_for()
    wait_until(lambda: engine.cancelled == 1)
    assert page.input_value("#question") == "see long"


def test_examples_paste_drop_and_camera(open_page: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    page = open_page(engine)
    page.locator("#examples button").first.click()
    page.locator('#stage[data-state="filled"]').wait_for()
    holds(page, "document.getElementById('question').value")
    assert page.input_value("#question") == "Where are the table and the cup?"
    page.click("#ask")
    masks_shown(page, 1)
    assert engine.seen[-1][0].image.shape == (400, 600, 3)
    hand_over = """([name, data]) => {
      const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
      const list = new DataTransfer();
      list.items.add(new File([bytes], "a.png", { type: "image/png" }));
      const event = name === "paste"
        ? new ClipboardEvent("paste", { clipboardData: list, bubbles: true })
        : new DragEvent("drop", { dataTransfer: list, bubbles: true });
      document.body.dispatchEvent(event);
    }"""
    for name, width in (("paste", 30), ("drop", 50)):
        page.evaluate(hand_over, [name, base64.b64encode(png((width, 20))).decode()])
        page.locator(f'#canvas[width="{width}"]').wait_for()
    page.click("#camera")
    holds(page, "document.getElementById('video').videoWidth > 0")
    page.click("#shoot")
    holds(page, "document.getElementById('canvas').width > 50")
    ask(page, "what is there")
    masks_shown(page, 1)


def test_large_images_are_made_smaller(open_page: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    page = open_page(engine, max_pixels=5000)
    upload(page, png((200, 100)))
    assert "100 \u00d7 50" in page.locator("#note").inner_text()
    ask(page, "fits")
    masks_shown(page, 1)
    assert engine.seen[-1][0].image.shape == (50, 100, 3)


def test_errors_are_kind_and_nothing_is_lost(open_page: Callable[..., Any]) -> None:
    page = open_page(ScriptedEngine(0.02, max_batch=1), allow="Failed to load", queue=0, timeout=30)
    error = page.locator("#error-text")
    page.click("#ask")
    assert "Choose an image first" in error.inner_text()
    upload(page)
    page.click("#ask")
    assert "Type a question" in error.inner_text()
    ask(page, "unanswerable question")
    error.filter(has_text="too many tokens").wait_for()
    assert page.input_value("#question") == "unanswerable question"
    assert page.locator("#turns li").count() == 0
    page.click("#error-close")
    assert page.locator("#error").is_hidden()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    error.filter(has_text="show that file").wait_for()
    with page.running.service.worker.place():
        ask(page, "anyone there")
        error.filter(has_text="try again in").wait_for()
    page.running.stop()
    ask(page, "anyone there")
    error.filter(has_text="reached").wait_for()


def test_a_server_with_keys_asks_for_one(open_page: Callable[..., Any]) -> None:
    page = open_page(api_keys=("open-sesame",), allow="401")
    upload(page)
    ask(page, "the cup")
    page.locator("#key-dialog[open]").wait_for()
    page.fill("#key", "open-sesame")
    page.press("#key", "Enter")
    page.click("#ask")
    masks_shown(page, 1)


def test_everything_can_be_done_with_the_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#examples button").nth(1).focus()
    page.keyboard.press("Enter")
    holds(page, "document.activeElement.id === 'question'")
    page.keyboard.press("Enter")
    masks_shown(page, 1)
    page.locator("#ask:enabled").wait_for()
    before = canvas(page)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className").startswith("phrase")
    assert (canvas(page) != before).any(), "focus lights the mask"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert "Only the mask of" in page.locator("#status").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 375), ("dark", 1200)])
def test_no_serious_finding_and_no_sideways_scrolling(
    open_page: Callable[..., Any], scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    page = open_page(view=view)
    found = [axe.Axe().run(page)]
    upload(page)
    ask(page, "the cup and a_word_that_is_much_longer_than_a_narrow_page_could_ever_be_wide_at_all")
    masks_shown(page, 1)
    page.locator("#ask:enabled").wait_for()
    page.click("summary")
    page.click("button.phrase")
    found.append(axe.Axe().run(page))
    page.evaluate("document.getElementById('error').hidden = false")
    found.append(axe.Axe().run(page))
    for one in found:
        serious = [v for v in one.response["violations"] if v["impact"] in ("serious", "critical")]
        assert not serious, json.dumps(serious, indent=1)[:3000]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("#ask", "#choose", "#camera", "#question"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 40
