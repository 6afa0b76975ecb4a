"""The ledger: one SQLite file with every photo, task, request and reply of a run.

It remembers and counts; it decides nothing. Every change is one transaction in a write-ahead log,
so a run may be killed at any point and loses only what was in flight; a power cut may also take
the last moments, never the consistency. Only :mod:`~pixellm.curation.proposal` knows what the
replies mean.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pixellm.curation.client import Reply, Request
from pixellm.curation.photos import Photo
from pixellm.curation.proposal import Task, Verdict
from pixellm.curation.rules import Row
from pixellm.files import locked

LEDGER_NAME = "ledger.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS photos (
    id TEXT PRIMARY KEY, position INTEGER UNIQUE, reason TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, photo TEXT NOT NULL REFERENCES photos, number INTEGER NOT NULL,
    style TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'open', first_faults TEXT, faults TEXT,
    "row" TEXT, UNIQUE (photo, number));
CREATE INDEX IF NOT EXISTS open_tasks ON tasks (status, id);
CREATE TABLE IF NOT EXISTS prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS exchanges (
    id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks, kind TEXT NOT NULL,
    model TEXT NOT NULL, system INTEGER REFERENCES prompts, turns TEXT NOT NULL,
    crops TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'sent', reply TEXT, finish TEXT,
    input_tokens INTEGER, output_tokens INTEGER, cost REAL, error TEXT);
CREATE INDEX IF NOT EXISTS answered ON exchanges (task, status);
"""


class CostCapError(Exception):
    """The cost cap leaves no room for a further request."""


class Ledger:
    """A run's memory. Safe to use from many threads; one process at a time may write.

    Args:
        folder: the run's folder; created with the ledger where ``create`` says so.
        create: begin a ledger where there is none.
        writing: take the right to write, and keep it until :meth:`close`.

    Raises:
        FileNotFoundError: there is no ledger and ``create`` is False.
        OSError: another process is writing, the file is no ledger, or the disk is full.
    """

    def __init__(self, folder: Path, create: bool = False, writing: bool = True) -> None:
        self.path = folder / LEDGER_NAME
        if not create and not self.path.is_file():
            raise FileNotFoundError(
                f"There is no {LEDGER_NAME} in {folder}; `pixellm curate run --out` makes one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._mutex = threading.RLock()
        self._guard = ExitStack()
        if writing:
            self._guard.enter_context(locked(folder))
        with self._explain():
            self._db = sqlite3.connect(
                self.path, timeout=30, check_same_thread=False, isolation_level=None
            )
            if writing:
                self._db.execute("PRAGMA journal_mode=WAL")
                # A sync per reply would make a slow disk the limit of the whole run.
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
            self._spent = self._one("SELECT COALESCE(SUM(cost), 0) FROM exchanges")

    def close(self) -> None:
        """Close the file and give up the right to write."""
        self._db.close()
        self._guard.close()

    # -- the run -----------------------------------------------------------------------------

    def bind(self, identity: Mapping[str, Any]) -> None:
        """Tie the ledger to what a run's output depends on, or check that it is the same run.

        Raises:
            ValueError: the ledger was begun with something else; names the first difference.
        """
        known = self.get("identity")
        if known is None:
            self.put("identity", dict(identity))
            return
        for key in {**known, **identity}:
            if known.get(key) != identity.get(key):
                raise ValueError(
                    f"{self.path.parent} was begun with {key} {known.get(key)!r}, now it is "
                    f"{identity.get(key)!r}; use the same settings, or another --out."
                )

    def get(self, key: str) -> Any:
        """A value kept with :meth:`put`, or None."""
        found = self._all("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under a key."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, json.dumps(value))

    # -- photos and tasks --------------------------------------------------------------------

    def add_photos(
        self,
        rows: Iterable[tuple[Photo, str]],
        order: Callable[[list[tuple[str, frozenset[str]]]], list[str]],
    ) -> None:
        """Enter all photos of the source, usable or not, in one transaction.

        Args:
            rows: (photo, reason it can't be used or "").
            order: puts the usable ones, as (id, categories), best first.
        """
        usable: list[tuple[str, frozenset[str]]] = []
        with self._transaction():
            for photo, reason in rows:
                insert = "INSERT INTO photos (id, reason, data) VALUES (?, ?, ?)"
                self._db.execute(insert, (photo.id, reason, photo.to_json()))
                if not reason:
                    usable.append((photo.id, frozenset(i.category for i in photo.instances)))
            update = "UPDATE photos SET position = ? WHERE id = ?"
            self._db.executemany(update, enumerate(order(usable)))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('selected', 'true')")

    def add_tasks(self, rows: Iterable[tuple[str, int, str]]) -> None:
        """Enter tasks (photo id, number, style); those already known stay as they are."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO tasks (photo, number, style) VALUES (?, ?, ?)", rows
            )

    def usable_photos(self, limit: int | None = None) -> list[str]:
        """Ids of the usable photos, best first."""
        sql = "SELECT id FROM photos WHERE position IS NOT NULL ORDER BY position LIMIT ?"
        return [row[0] for row in self._all(sql, -1 if limit is None else limit)]

    def reopen_failed(self) -> None:
        """Open the tasks again that got no reply last time."""
        self._write("UPDATE tasks SET status = 'open', faults = NULL WHERE status = 'failed'")

    def open_tasks(self) -> list[int]:
        """Numbers of the tasks without a verdict."""
        return [row[0] for row in self._all("SELECT id FROM tasks WHERE status = 'open'")]

    def task(self, number: int) -> Task:
        """One task with its photo."""
        sql = "SELECT p.data, t.style, t.number FROM tasks t JOIN photos p ON p.id = t.photo"
        data, style, rank = self._all(f"{sql} WHERE t.id = ?", number)[0]
        return Task(number, Photo.from_json(data), style, rank)

    def settle(self, task: int, verdict: Verdict) -> None:
        """Record the end of a task."""
        row = verdict.row
        first, last = (
            json.dumps([[one.rule, one.says] for one in violations])
            for violations in (verdict.first_violations, verdict.violations)
        )
        self._write(
            "UPDATE tasks SET status = ?, first_faults = ?, faults = ?, row = ? WHERE id = ?",
            verdict.status,
            first,
            last,
            json.dumps([row.question, row.answer, row.targets]) if row else None,
            task,
        )

    def accepted(self) -> Iterator[tuple[Task, Row]]:
        """The accepted questions in a fixed order: by photo as selected, then by number."""
        sql = (
            "SELECT t.id, p.data, t.style, t.number, t.row FROM tasks t JOIN photos p "
            "ON p.id = t.photo WHERE t.status = 'accepted' ORDER BY p.position, t.number"
        )
        with self._explain():
            for number, data, style, rank, row in self._db.execute(sql):
                question, answer, targets = json.loads(row)
                yield (
                    Task(number, Photo.from_json(data), style, rank),
                    Row(question, answer, tuple((i, text) for i, text in targets)),
                )

    # -- requests and replies ----------------------------------------------------------------

    def spent(self) -> float:
        """USD so far, over all sessions."""
        return self._spent

    def begin(self, request: Request, model: str, max_cost: float | None = None) -> int:
        """Record that a request is about to be sent.

        Returns:
            The number of the exchange.

        Raises:
            CostCapError: the money is spent; the request must not be sent.
        """
        with self._transaction():
            if max_cost is not None and self._spent >= max_cost:
                raise CostCapError
            self._db.execute("INSERT OR IGNORE INTO prompts (text) VALUES (?)", (request.system,))
            cursor = self._db.execute(
                "INSERT INTO exchanges (task, kind, model, system, turns, crops) VALUES "
                "(?, ?, ?, (SELECT id FROM prompts WHERE text = ?), ?, ?)",
                (
                    request.task,
                    request.kind,
                    model,
                    request.system,
                    json.dumps(request.turns, ensure_ascii=False),
                    json.dumps(request.crops),
                ),
            )
            return int(cursor.lastrowid or 0)

    def answer(self, exchange: int, reply: Reply, cost: float) -> None:
        """Record the reply to an exchange and its cost in USD; a second reply changes nothing."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE exchanges SET status = 'answered', reply = ?, finish = ?, "
                "input_tokens = ?, output_tokens = ?, cost = ? WHERE id = ? AND status = 'sent'",
                (reply.text, reply.finish, reply.input_tokens, reply.output_tokens, cost, exchange),
            )
            self._spent += cost * changed.rowcount

    def fail(self, exchange: int, error: str) -> None:
        """Record that an exchange brought no reply."""
        sql = "UPDATE exchanges SET status = 'error', error = ? WHERE id = ? AND status = 'sent'"
        self._write(sql, error, exchange)

    def replies(self, task: int) -> dict[str, Reply]:
        """The replies to a task so far by kind of request."""
        rows = self._all(
            "SELECT kind, reply, finish, input_tokens, output_tokens FROM exchanges "
            "WHERE task = ? AND status = 'answered' ORDER BY id DESC",
            task,
        )
        return {kind: Reply(*rest) for kind, *rest in rows}

    # -- reports -----------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """Counters of a run.

        Returns:
            ``photos`` by the reason they can't be used ("usable" for the good ones), ``tasks`` by
            status, ``first`` and ``final``: how often each rule was broken in first drafts and in
            those rejected at the end, ``exchanges`` by kind and status ("sent" ones were lost in
            flight), ``styles`` of the accepted questions.
        """
        rules = "SELECT json_extract(f.value, '$[0]'), COUNT(*) FROM tasks, json_each(tasks.{}) f"
        queries = {
            "photos": "SELECT CASE reason WHEN '' THEN 'usable' ELSE reason END, COUNT(*) "
            "FROM photos GROUP BY 1",
            "tasks": "SELECT status, COUNT(*) FROM tasks GROUP BY 1",
            "first": rules.format("first_faults") + " GROUP BY 1",
            "final": rules.format("faults") + " WHERE status = 'rejected' GROUP BY 1",
            "exchanges": "SELECT kind || ' ' || status, COUNT(*) FROM exchanges GROUP BY 1",
            "styles": "SELECT style, COUNT(*) FROM tasks WHERE status = 'accepted' GROUP BY 1",
        }
        return {name: dict(sorted(self._all(sql))) for name, sql in queries.items()}

    def models(self) -> list[tuple[str, str, int, int, int, float]]:
        """(model, kind, replies, input tokens, output tokens, USD) of all replies."""
        return self._all(
            "SELECT model, kind, COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cost) FROM "
            "exchanges WHERE status = 'answered' GROUP BY 1, 2 ORDER BY 1, 2"
        )

    # -- SQLite ------------------------------------------------------------------------------

    def _one(self, sql: str, *values: Any) -> Any:
        return self._all(sql, *values)[0][0]

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
                f"The ledger {self.path} can't be used ({error}); nothing recorded is lost, mend "
                "it and run the same command again."
            ) from None
