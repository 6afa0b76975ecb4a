"""``POST /v1/export``: an answer's segments as files, and what is no answer refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from scripted_engine import ScriptedEngine

from pixellm.masks import encode_mask

from .conftest import png


def post(url: str, segments: Any, format: str = "masks", image: bytes | None = None) -> Any:
    text = segments if isinstance(segments, str) else json.dumps(segments)
    files = {"image": ("photo.png", png((8, 6)) if image is None else image)}
    data = {"segments": text, "format": format}
    return requests.post(f"{url}/v1/export", files=files, data=data, timeout=30)


def segment(**changes: Any) -> dict[str, Any]:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    return {"label": "the cup", "score": 0.8, "segmentation": encode_mask(mask), **changes}


def test_segments_come_back_as_files(serve: Callable[..., Any]) -> None:
    url = serve(ScriptedEngine()).url
    coco = post(url, [segment(), segment(label="a spoon")], "coco").json()
    assert [one["name"] for one in coco["categories"]] == ["cup", "spoon"]
    assert coco["annotations"][0]["segmentation"] == segment()["segmentation"]
    labelme = post(url, [segment()], "labelme").json()
    assert labelme["shapes"][0]["label"] == "cup" and labelme["imageHeight"] == 6
    overlay = post(url, [segment()], "overlay")
    assert np.asarray(Image.open(io.BytesIO(overlay.content))).shape == (6, 8, 3)
    assert post(url, []).content[:2] == b"PK"


@pytest.mark.parametrize(
    "wrong",
    [
        "no json",
        "{}",
        [{"label": "x"}],
        [segment(score=2)],
        [segment(segmentation={"size": [6, 8], "counts": "#"})],
        [segment(segmentation={"size": [6, 8], "counts": "0" * 5000})],
        [segment(segmentation=encode_mask(np.ones((60, 80), bool)))],
        [segment(segmentation={"size": [6], "counts": "1"})],
        [segment(segmentation={"size": [6, 8], "counts": "oooooooooooooo0oooooooooooooo0"})],
        [segment()] * 300,
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(serve: Callable[..., Any], wrong: Any) -> None:
    url = serve(ScriptedEngine()).url
    for format in ("masks", "coco"):
        answer = post(url, wrong, format)
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_masks_too_many_for_their_image_are_refused(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixellm.serving import exporting

    monkeypatch.setattr(exporting, "MAX_MASK_PIXELS", 100)
    url = serve(ScriptedEngine()).url
    assert post(url, [segment()] * 2).status_code == 200
    assert "too many" in post(url, [segment()] * 3).json()["error"]["message"]
    assert post(url, [segment()], "other").status_code == 400
    assert post(url, [segment()], image=b"no image").status_code == 400
