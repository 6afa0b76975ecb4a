"""Figures with what they were measured on: JSON, and tables to read.

Knows numbers and names; what they mean is told by whoever measured.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def make_report(
    command: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """A report as values that JSON knows.

    Args:
        command: that measures it again.
        machine: see :func:`measuring.machine.describe_machine`.
        settings: model, floating type, repeats and the like.
        tables: rows by the name of their table.
    """
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": dict(machine),
        "settings": dict(settings),
        "tables": {name: [dict(row) for row in rows] for name, rows in tables.items()},
    }


def make_tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report for a terminal."""
    made = []
    for name, rows in report["tables"].items():
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(_shown(row.get(column)) for column in columns))
        made.append(table)
    return made


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
