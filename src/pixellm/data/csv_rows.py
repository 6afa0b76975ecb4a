"""The lines of a CSV table as rows of a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pixellm.data.dataset import BadRow, Entry


def csv_rows(path: Path) -> Iterator[Entry | BadRow]:
    """The lines below the header of a table in UTF-8, with or without the mark of spreadsheets.

    Rows go by the number of their last line in the file, values by the names of the columns; an
    empty cell is None. A line with more cells than the header is bad; ValueError for no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for values in reader:
                row = f"line {reader.line_num}"
                if None in values:
                    reason = "It has more cells than the header; quote a text that has a comma."
                    yield BadRow(path, row, reason)
                    continue
                yield Entry(path, row, {name: cell or None for name, cell in values.items()})
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV table in UTF-8 ({error}); save it again.") from None
