"""Requests and replies in one SQLite file: what was asked, what came back, what it cost.

Every change is one transaction in a write-ahead log, so a run may be killed at any point and loses
only what was in flight; a power cut may also take the last moments, never the consistency. It
remembers and counts; what replies mean is decided by those who ask.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pixellm.llm.client import Reply, Request

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL,
    system INTEGER REFERENCES prompts, turns TEXT NOT NULL, images TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'sent', reply TEXT, finish TEXT,
    input_tokens INTEGER, output_tokens INTEGER, cost REAL, error TEXT);
CREATE INDEX IF NOT EXISTS requests_by_key ON requests (key, status);
"""


class RequestStore:
    """Requests, replies and money in one file; safe to use from many threads.

    The file is created where missing, in a folder that exists, with further tables of whoever
    shares it, where it is for writing. OSError where it can't be opened, or is no such store.
    """

    def __init__(self, path: Path, writing: bool = True, schema: str = "") -> None:
        self.path = path
        self._mutex = threading.RLock()
        with self._explain():
            self._db = sqlite3.connect(
                path, timeout=30, check_same_thread=False, isolation_level=None
            )
            if writing:
                self._db.execute("PRAGMA journal_mode=WAL")
                # A sync per reply would make a slow disk the limit of the whole run.
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(schema + _SCHEMA)
        self._spent, self._version = 0.0, -1

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, key: str) -> Any:
        """A value kept with :meth:`put`, or None."""
        found = self._all("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, json.dumps(value))

    def begin(self, request: Request, model: str) -> int:
        """Record that a request is about to be sent; returns its number."""
        images = [asdict(part) for part in request.images]
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO prompts (text) VALUES (?)", (request.system,))
            cursor = self._db.execute(
                "INSERT INTO requests (key, kind, model, system, turns, images) VALUES "
                "(?, ?, ?, (SELECT id FROM prompts WHERE text = ?), ?, ?)",
                (
                    request.key,
                    request.kind,
                    model,
                    request.system,
                    json.dumps(request.turns, ensure_ascii=False),
                    json.dumps(images),
                ),
            )
            return int(cursor.lastrowid or 0)

    def answer(self, number: int, reply: Reply, cost: float) -> None:
        """Record the reply to a request and its cost in USD; a second reply changes nothing."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE requests SET status = 'answered', reply = ?, finish = ?, input_tokens = ?, "
                "output_tokens = ?, cost = ? WHERE id = ? AND status = 'sent'",
                (reply.text, reply.finish, reply.input_tokens, reply.output_tokens, cost, number),
            )
            self._spent += cost * changed.rowcount

    def fail(self, number: int, error: str) -> None:
        """Record that a request brought no reply."""
        sql = "UPDATE requests SET status = 'error', error = ? WHERE id = ? AND status = 'sent'"
        self._write(sql, error, number)

    def reply(self, key: str) -> Reply | None:
        """The last reply to the requests of a key, or None."""
        rows = self._all(
            "SELECT reply, finish, input_tokens, output_tokens FROM requests "
            "WHERE key = ? AND status = 'answered' ORDER BY id DESC LIMIT 1",
            key,
        )
        return Reply(*rows[0]) if rows else None

    def key_of(self, number: int) -> str:
        """The key of a request by its number; "" for none."""
        rows = self._all("SELECT key FROM requests WHERE id = ?", number)
        return rows[0][0] if rows else ""

    def is_empty(self) -> bool:
        """Whether it holds no reply yet."""
        return not self._all("SELECT 1 FROM requests WHERE status = 'answered' LIMIT 1")

    def spent(self) -> float:
        """USD of all replies, over all runs; added up anew when another process has written."""
        with self._mutex:
            version = self._all("PRAGMA data_version")[0][0]
            if version != self._version:
                self._version = version
                self._spent = self._all("SELECT COALESCE(SUM(cost), 0) FROM requests")[0][0]
            return float(self._spent)

    def request_counts(self) -> dict[str, int]:
        """Requests by kind and status; those "sent" were lost in flight."""
        sql = "SELECT kind || ' ' || status, COUNT(*) FROM requests GROUP BY 1 ORDER BY 1"
        return dict(self._all(sql))

    def models(self) -> list[tuple[str, str, int, int, int, float]]:
        """(model, kind, replies, input tokens, output tokens, USD) of all replies."""
        return self._all(
            "SELECT model, kind, COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cost) FROM "
            "requests WHERE status = 'answered' GROUP BY 1, 2 ORDER BY 1, 2"
        )

    # -- SQLite ------------------------------------------------------------------------------

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._explain(), self._mutex:
            return self._db.execute(sql, values).fetchall()

    def _write(self, sql: str, *values: Any) -> None:
        with self._transaction():
            self._db.execute(sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explain(), self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(
                f"The file of requests {self.path} can't be used ({error}); nothing recorded is "
                "lost: mend it and run the same command again, or name another file."
            ) from None
