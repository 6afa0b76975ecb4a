"""HTML and Markdown of plain values, by the templates beside this module.

Pages are one file each and load nothing. Whatever a template prints is escaped for its format, so
text of a data set or a model stays text. Depends on: ``files``, ``visualize``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pixellm.files import (
    LOCK_NAME,
    MARKED_PAGE,
    MARKED_TEXT,
    check_file,
    check_folder,
    json_bytes,
    locked,
    write_files,
)
from pixellm.visualize import css_color

if TYPE_CHECKING:
    from jinja2 import Environment

Row = tuple[str, ...]

WORDY_COLUMNS = frozenset({"meaning", "question", "claim"})
"""Columns whose cells are sentences, which may wrap."""

_MARKDOWN_SIGNS = re.compile(r"[\\|`*]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""Between letters an underscore is one; a bracket makes a link only with what follows it."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text, for a terminal, Markdown and HTML alike.

    Attributes:
        rows: of cells, the header first; all of one length.
        name: short and fixed, for anchors.
    """

    title: str
    rows: list[Row]
    name: str


@dataclass(frozen=True, slots=True)
class Card:
    """One answer to look at.

    Attributes:
        sort: why it is shown, such as "worst".
        title: its score, in words.
        kind: of the question; "" where there are none.
        count: group by number of targets.
        fields: name -> text, below the images.
        panels: caption and ``data:`` URL of images side by side.
    """

    sort: str
    title: str
    kind: str
    count: str
    fields: dict[str, str]
    panels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says, ready to be written in every format.

    Attributes:
        title: heading, and title of the window.
        lead: what was run, below the heading.
        tables: the first comes before the plots, the others behind them.
        figures: caption -> SVG; in the page alone.
        cards: answers to look at; in the page alone.
        values: all numbers, as values that JSON knows.
    """

    title: str
    lead: str
    tables: Sequence[Table]
    figures: Mapping[str, Markup]
    cards: Sequence[Card]
    values: Mapping[str, Any]


def check_report(folder: Path, name: str, keys: Iterable[str]) -> None:
    """Refuse a folder whose files a report would replace though they are not of a report.

    The files are called ``name`` with an ending each; the JSON of such a report has ``keys``.
    OSError for such files, and for a folder that can't be written.
    """
    check_folder(folder)
    for suffix, wanted in ((".json", keys), (".md", ()), (".html", ())):
        check_file(folder / f"{name}{suffix}", keys=wanted)


def write_report(folder: Path, name: str, report: Report) -> list[Path]:
    """Write a report as JSON, Markdown and one HTML page that loads nothing: all or none.

    The folder is made where missing, but not those above it. The files are called ``name`` with an
    ending each; their paths come back. OSError where they can't be written, or another process
    writes there.
    """
    shown = {
        "title": report.title,
        "lead": report.lead,
        "tables": report.tables,
        "figures": report.figures,
        "cards": report.cards,
        "words": WORDY_COLUMNS,
    }
    content = {
        folder / f"{name}.json": json_bytes(report.values),
        folder / f"{name}.md": render_page("report.md", shown),
        folder / f"{name}.html": render_page("report.html", shown),
    }
    # A run's folder is locked by whoever answers there; a folder of a report alone is not.
    with locked(folder) if (folder / LOCK_NAME).is_file() else nullcontext():
        write_files(content, folder=folder)
    return [*content]


def render_page(template: str, values: Mapping[str, Any]) -> bytes:
    """A page or Markdown document in UTF-8, by a file below ``templates/``."""
    environment = _environment(Path(template).suffix)
    return environment.get_template(template).render(values).encode("utf-8")


def plain_markdown(value: object) -> str:
    """Text on one line that neither breaks a Markdown table nor turns into markup."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN_SIGNS.sub(lambda sign: "\\" + sign.group(), line)


@cache
def _environment(suffix: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown is escaped when a value is printed; what has gone through a macro is Markup by then.
    finalize = None if suffix == ".html" else _finalize_markdown
    environment = Environment(
        loader=PackageLoader("pixellm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    environment.globals["marked"] = Markup(MARKED_PAGE if suffix == ".html" else MARKED_TEXT)
    environment.filters["color"] = css_color
    return environment


def _finalize_markdown(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(plain_markdown(value))
