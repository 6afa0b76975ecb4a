"""HTML and Markdown of plain values, by the templates beside this module.

Pages are one file each and load nothing. Whatever a template prints is escaped for its format, so
text of a data set or a model stays text. Depends on: ``files``, ``visualize``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pixellm.files import MARKED_PAGE, MARKED_TEXT
from pixellm.visualize import segment_color

Row = tuple[str, ...]

_MARKDOWN_SIGNS = re.compile(r"[\\|`*\[\]]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text, for a terminal, Markdown and HTML alike.

    Attributes:
        title: of the table.
        rows: of cells, the header first; all of one length.
        name: short and fixed, for anchors.
    """

    title: str
    rows: list[Row]
    name: str


def html_page(template: str, values: Mapping[str, Any]) -> bytes:
    """A page in UTF-8.

    Args:
        template: name of a file below ``templates/``.
        values: what the template prints.
    """
    return _environment(template).get_template(template).render(values).encode("utf-8")


def markdown_text(template: str, values: Mapping[str, Any]) -> bytes:
    """A Markdown document in UTF-8; see :func:`html_page`."""
    return html_page(template, values)


def plain_markdown(value: object) -> str:
    """Text on one line that neither breaks a Markdown table nor turns into markup."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN_SIGNS.sub(lambda sign: "\\" + sign.group(), line)


@cache
def _environment_of(suffix: str) -> Environment:
    # Markdown is escaped when a value is printed; what has gone through a macro is Markup by then.
    finalize = None if suffix == "html" else _finalize_markdown
    environment = Environment(
        loader=PackageLoader("pixellm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    environment.globals["marked"] = Markup(MARKED_PAGE if suffix == "html" else MARKED_TEXT)
    environment.filters["color"] = _css_color
    return environment


def _environment(template: str) -> Environment:
    return _environment_of(template.rpartition(".")[2])


def _finalize_markdown(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(plain_markdown(value))


def _css_color(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*segment_color(index))
