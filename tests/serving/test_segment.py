"""``POST /v1/segment``: one form in, an answer in three forms out."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from scripted_engine import ScriptedEngine

from pixellm.masks import decode_mask
from pixellm.serving.errors import RefusedError
from pixellm.serving.segmenting import choose_form

from .conftest import png


def post(url: str, accept: str | None = None, **fields: Any) -> requests.Response:
    files = {"image": ("folder/photo.png", png((40, 30)), "image/png")}
    headers = {} if accept is None else {"Accept": accept}
    data = {"question": "the cup", **fields}
    return requests.post(f"{url}/v1/segment", files=files, data=data, headers=headers, timeout=30)


def test_an_answer_comes_in_three_forms(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine()).url
    values = post(url).json()
    assert values["answer"] == "the cup" and values["image"] == "photo.png"
    (segment,) = values["segments"]
    mask = decode_mask(segment["segmentation"])
    overlay = post(url, "image/png")
    assert overlay.headers["Content-Type"] == "image/png"
    drawn = np.asarray(Image.open(io.BytesIO(overlay.content)))
    assert drawn.shape == (30, 40, 3)
    changed = (drawn != (200, 30, 40)).any(-1)
    assert changed[mask].all() and not changed[:, 24:].any()
    masks = post(url, "application/zip")
    with zipfile.ZipFile(io.BytesIO(masks.content)) as archive:
        assert archive.namelist() == ["01_the.png", "answer.json"]
        stored = np.asarray(Image.open(io.BytesIO(archive.read("01_the.png"))))
        assert json.loads(archive.read("answer.json")) == values
    assert (stored == mask * 255).all()


def test_fields_are_checked_and_reach_the_engine(serve: Callable[..., Any]) -> None:
    engine = ScriptedEngine()
    url = serve(engine).url
    assert post(url, max_tokens=1, temperature=0.3, seed=4).json()["answer"] == "the"
    options = engine.seen[-1][1]
    assert (options.max_new_tokens, options.temperature, options.seed) == (1, 0.3, 4)
    for wrong in ({"question": " "}, {"max_tokens": 0}, {"top_p": 2}, {"seed": "x"}):
        answer = post(url, **wrong)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    for missing in ({"data": {"question": "a"}}, {"files": {"image": png()}}, {"data": {}}):
        answer = requests.post(f"{url}/v1/segment", timeout=30, **missing)
        assert answer.status_code == 400
    assert post(url, "text/html").status_code == 406


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("application/*", "application/json"),
        ("application/zip, application/json;q=0.5", "application/zip"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("IMAGE/PNG ; Q=1", "image/png"),
    ],
)
def test_the_form_that_a_client_likes_best(accept: str, form: str) -> None:
    assert choose_form(accept) == form


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/jpeg", "", "*/*;q=x"])
def test_a_form_that_there_is_not(accept: str) -> None:
    with pytest.raises(RefusedError) as refused:
        choose_form(accept)
    assert refused.value.status == 406
