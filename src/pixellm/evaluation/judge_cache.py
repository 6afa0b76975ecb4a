"""The file that keeps a judge's verdicts and what they have cost.

Knows keys, ratings and money; what a key is made of and who rates is not its business.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class VerdictCache:
    """Ratings and money so far, in one SQLite file; safe to use from many threads.

    Args:
        path: created where missing, in a folder that exists.

    Raises:
        OSError: the file can't be opened or is no such cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        with self._explain():
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, ratings TEXT NOT NULL)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS costs (id INTEGER PRIMARY KEY, usd REAL NOT NULL)"
            )
            self._db.commit()

    def get(self, key: str) -> dict[int, float] | None:
        """Rating by number of object, or None."""
        with self._explain(), self._mutex:
            row = self._db.execute("SELECT ratings FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else {int(k): float(v) for k, v in json.loads(row[0]).items()}

    def put(self, key: str, ratings: dict[int, float]) -> None:
        """Keep a verdict; the first one under a key stays."""
        self._write("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", key, json.dumps(ratings))

    def is_empty(self) -> bool:
        """Whether it holds no verdict yet."""
        with self._explain(), self._mutex:
            return self._db.execute("SELECT 1 FROM verdicts LIMIT 1").fetchone() is None

    def add_cost(self, usd: float) -> None:
        """Count a reply's cost, whatever the reply was worth."""
        self._write("INSERT INTO costs (usd) VALUES (?)", usd)

    def spent(self) -> float:
        """USD of all replies, over all runs."""
        with self._explain(), self._mutex:
            total = self._db.execute("SELECT COALESCE(SUM(usd), 0) FROM costs").fetchone()[0]
        return float(total)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write(self, sql: str, *values: Any) -> None:
        with self._explain(), self._mutex, self._db:
            self._db.execute(sql, values)

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(
                f"The judge's cache {self.path} can't be used ({error}); name another file."
            ) from None
