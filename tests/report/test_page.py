"""Pages and texts from templates: text stays text, in HTML and in Markdown."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
from PIL import Image

from pixellm.curation.card import card_values
from pixellm.files import LOCK_NAME, OccupiedError, locked
from pixellm.report.gallery import PreviewEntry, PreviewTurn, write_preview
from pixellm.report.page import (
    Report,
    Table,
    check_report,
    plain_markdown,
    render_page,
    write_report,
)

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


def test_a_report_in_markdown_keeps_its_tables_whole(tmp_path):
    table = Table(
        "Scores | all", [("score", "value"), (HOSTILE + "\nsecond line", "0.5")], "scores"
    )
    report = Report(HOSTILE, HOSTILE, [table], {}, (), {"giou": 0.5})
    written = write_report(tmp_path / "out", "report", report)
    assert [path.name for path in written] == ["report.json", "report.md", "report.html"]
    text = written[1].read_text("utf-8")
    assert "<script" not in text and "](" not in text.replace("\\](", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3]
    assert rows[2].endswith("second line | 0.5 |")
    (tmp_path / "out" / "other.md").write_text("A letter.")
    with pytest.raises(OccupiedError):
        check_report(tmp_path / "out", "other", ("settings",))
    check_report(tmp_path / "out", "report", ("giou",))
    before = written[1].read_bytes()
    (tmp_path / "out" / LOCK_NAME).touch()
    if sys.platform != "win32":  # files are not locked there
        with locked(tmp_path / "out"), pytest.raises(OSError, match="Another process"):
            write_report(tmp_path / "out", "report", replace(report, title="other"))
    assert written[1].read_bytes() == before


def test_a_data_card_shows_licences_and_names_as_text():
    names = ("photos", "tasks", "dropped", "styles", "first", "final")
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    summary = {
        **counts,
        "splits": {"train": {"photos": 2, "questions": 3, "targets": 9}},
        "licenses": {HOSTILE: 2, "CC BY 4.0": 1},
        "models": [(HOSTILE, "propose", 3, 10, 20, 0.25)],
        "run": {"model": HOSTILE, "annotations": "secret/path", "seed": HOSTILE},
    }
    text = render_page("card.md", card_values(summary)).decode()
    assert "<script" not in text and "secret" not in text
    assert "| train | 2 | 3 | 9 | 3.00 |" in text and "Cost of the replies: 0.2500 USD." in text
    rows = text.partition("## Licences")[2].partition("##")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows if row.startswith("|")]
    assert [len(row) for row in cells] == [2] * 5
    assert [row[1].strip() for row in cells[2:]] == ["2", "1", "3"]
