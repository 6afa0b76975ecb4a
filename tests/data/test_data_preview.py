"""`pixellm data preview`: a page and a sheet whose images carry the masks of the answers."""

from __future__ import annotations

import html
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from drawn_photos import draw_photo, rectangle
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app

SIZE = (60, 80)
ANSWER = "The cup {seg} & <b>the spoon</b> {seg}."


@pytest.fixture
def lines(tmp_path):
    """Three dialogues: two masks, a follow-up, and one whose image is missing."""
    Image.new("RGB", SIZE[::-1], "white").save(tmp_path / "1.png")
    draw_photo(tmp_path / "2.jpg", SIZE)
    targets = [
        {"name": "cup", "segmentation": [rectangle(0, 0, 40, 60)]},
        {"name": "spoon", "segmentation": [rectangle(50, 0, 80, 30)]},
    ]
    rows = [
        {"image": "1.png", "turns": [{"question": "What?", "answer": ANSWER, "targets": targets}]},
        {
            "image": "2.jpg",
            "turns": [
                {"question": "Who?", "answer": "It {seg}.", "targets": targets[:1]},
                {"question": "And then?", "answer": "That {seg}.", "targets": targets[1:]},
            ],
        },
        {"image": "gone.jpg", "size": [9, 9], "turns": [{"question": "q", "answer": "a"}]},
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_preview_shows_questions_answers_and_masks(lines, tmp_path):
    out = tmp_path / "look"
    result = CliRunner().invoke(app, ["data", "preview", str(lines), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "gone.jpg" in result.output
    page = (out / "index.html").read_text(encoding="utf-8")
    images = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "index.html"]
    assert len(images) == page.count("<img ") == 2
    assert "<b>" not in page
    text = html.unescape(re.sub(r"<[^>]+>", "", page.partition("<main")[2]))
    assert "The cup [1] & <b>the spoon</b> [2]." in text
    assert re.search(r"And then\?\s+That \[2\]\.", text)
    first = page.index("What?") < page.index("Who?")
    drawn = np.asarray(Image.open(BytesIO(b64decode(images[0 if first else 1])))).astype(int)
    inside, outside = drawn[30, 20], drawn[50, 70]
    assert abs(outside - 255).max() < 12
    assert abs(inside - 255).max() > 40


def test_a_set_is_previewed_by_name_with_its_options(tmp_path):
    draw_photo(tmp_path / "mine" / "1.jpg", SIZE)
    shape = {"label": "cup", "points": [[1, 1], [30, 30]], "shape_type": "rectangle"}
    content = {"shapes": [shape], "imagePath": "1.jpg", "imageData": None}
    (tmp_path / "mine" / "1.json").write_text(json.dumps(content))
    command = ["data", "preview", "labelme", "--root", str(tmp_path), "--with", "folder=mine"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "look"), "--num", "5"])
    assert result.exit_code == 0, result.output
    assert "cup" in (tmp_path / "look" / "index.html").read_text(encoding="utf-8")


def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path):
    out = tmp_path / "look"
    command = ["data", "preview", "ade20k", "--split", "dev", "--root", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 2
    assert "no split 'dev'" in result.output
    assert not out.exists()
