"""Pages and texts from templates: text stays text, in HTML and in Markdown."""

from __future__ import annotations

import pytest
from PIL import Image

from pixellm.report.gallery import PreviewEntry, PreviewTurn, write_preview
from pixellm.report.page import plain_markdown

HOSTILE = "</p><script>alert(1)</script>\"'&|`*_[x](javascript:alert(1))"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("two\nlines\tand more", "two lines and more"),
        ("<b>bold</b>", "&lt;b>bold&lt;/b>"),
        ("&lt;b>", "&amp;lt;b>"),
        ("*a* _b_ `c`", "\\*a\\* \\_b\\_ \\`c\\`"),
        ("[x](javascript:y)", "[x\\](javascript:y)"),
        ("0.5 [0.4, 0.6] of set_accuracy", "0.5 [0.4, 0.6] of set_accuracy"),
        ("back\\slash", "back\\\\slash"),
        (0.5, "0.5"),
    ],
)
def test_markdown_cells_hold_text_on_one_line(text, shown):
    assert plain_markdown(text) == shown


def test_a_preview_escapes_everything_and_loads_nothing(tmp_path):
    turn = PreviewTurn(HOSTILE, HOSTILE, ((HOSTILE, 0), (HOSTILE, None)))
    entry = PreviewEntry(HOSTILE, Image.new("RGB", (60, 40)), (turn,))
    page, sheet = write_preview(tmp_path / "out", HOSTILE, [entry])
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 7  # name twice, title twice, question, both parts
    assert "://" not in text and 'src="data:' in text
    with Image.open(sheet) as opened:
        assert opened.width > 60
