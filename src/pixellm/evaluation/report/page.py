"""The HTML page of a report: one file, no network, all text escaped.

Takes tables, plots and cards that are ready and puts them together; the style sheet and the
script of the filters lie beside this module. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from pixellm.evaluation.report.gallery import Card, Panel
from pixellm.evaluation.report.tables import TextTable
from pixellm.files import MARKED_PAGE

_WORDY = frozenset({"meaning", "question"})


def build_page(
    title: str,
    lead: str,
    tables: Sequence[TextTable],
    plots: Mapping[str, str],
    cards: Sequence[Card],
) -> str:
    """The whole page.

    Args:
        title: heading, and title of the window.
        lead: what was run, below the heading.
        tables: the first comes before the plots, the others behind them.
        plots: caption -> SVG.
        cards: the gallery; () for none.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>',
        *(_table(table) for table in tables[:1]),
        _plots(plots),
        *(_table(table) for table in tables[1:]),
        _gallery(cards),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARKED_PAGE}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_resource('page.css')}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _table(table: TextTable) -> str:
    header, *rows = table.rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, header, row))}</tr>" for row in rows)
    return (
        f'<h2 id="{escape(table.name)}">{escape(table.title)}</h2><div class="scroll">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: str, text: str) -> str:
    words = ' class="words"' if column in _WORDY else ""
    return f"<td{words}>{escape(text)}</td>"


def _plots(plots: Mapping[str, str]) -> str:
    figures = (
        f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
        for caption, svg in plots.items()
    )
    return f'<h2 id="plots">Plots</h2><div class="plots">{"".join(figures)}</div>' if plots else ""


def _gallery(cards: Sequence[Card]) -> str:
    if not cards:
        return ""
    fields = {
        "sort": ("Shown as", (card.sort for card in cards)),
        "count": ("Targets", (card.count for card in cards)),
        "kind": ("Kind", (card.record.kind for card in cards if card.record.kind)),
    }
    selects = "".join(_select(name, *field) for name, field in fields.items())
    return (
        f'<h2 id="gallery">Answers</h2><form id="filters">{selects}'
        '<label>Text<input name="text" type="search"></label><output id="shown"></output></form>'
        f'<div class="cards">{"".join(map(_card, cards))}</div>'
        f"<script>{_resource('page.js')}</script>"
    )


def _select(name: str, label: str, values: Iterable[str]) -> str:
    options = "".join(
        f'<option value="{escape(value)}">{escape(value)}</option>'
        for value in dict.fromkeys(values)
    )
    return (
        f'<label>{escape(label)}<select name="{name}"><option value="">all</option>{options}'
        "</select></label>"
    )


def _card(card: Card) -> str:
    record = card.record
    fields = {
        "question": record.question,
        "answer": record.answer or "(nothing)",
        "expected": record.expected,
        "masks": f"{len(record.shown)} shown, {len(record.targets)} asked for",
        **({"judge": card.note} if card.note else {}),
        "sample": record.key,
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in fields.items())
    return (
        f'<article class="card" data-sort="{escape(card.sort)}" data-count="{card.count}" '
        f'data-kind="{escape(record.kind)}"><h3>{escape(card.title)}'
        f"<span>{escape(' · '.join(filter(None, (card.sort, record.kind))))}</span></h3>"
        f'<div class="panels">{"".join(map(_panel, card.panels))}</div><dl>{rows}</dl></article>'
    )


def _panel(panel: Panel) -> str:
    return (
        f'<figure><img src="{panel.jpeg}" alt="{escape(panel.caption)} masks">'
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
    )
