"""The ledger: one SQLite file with every photo and task of a run, beside its requests and replies.

Requests and replies are those of :class:`~pixellm.llm.store.RequestStore`; the photos and tasks
that they belong to share its file, so that one transaction and one lock hold for all. It remembers
and counts; only :mod:`~pixellm.curation.proposal` knows what the replies mean.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pixellm.curation.photos import Photo
from pixellm.curation.proposal import KINDS, Task, Verdict, request_key
from pixellm.curation.rules import Row
from pixellm.files import locked, remove_unused
from pixellm.llm.client import Reply
from pixellm.llm.store import RequestStore

LEDGER_NAME = "ledger.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS photos (
    id TEXT PRIMARY KEY, position INTEGER UNIQUE, reason TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, photo TEXT NOT NULL REFERENCES photos, number INTEGER NOT NULL,
    style TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'open', first_faults TEXT, faults TEXT,
    "row" TEXT, UNIQUE (photo, number));
CREATE INDEX IF NOT EXISTS open_tasks ON tasks (status, id);
"""
"""A task's requests are those whose keys :func:`~pixellm.curation.proposal.request_key` gives."""


class Ledger(RequestStore):
    """A run's memory in a folder. Safe to use from many threads; one process at a time may write.

    ``create`` begins one where there is none, FileNotFoundError otherwise; ``writing`` takes the
    right to write, and keeps it until :meth:`close`. OSError where another process is writing, the
    file is no ledger, or the disk is full.
    """

    def __init__(self, folder: Path, create: bool = False, writing: bool = True) -> None:
        path = folder / LEDGER_NAME
        if not create and not path.is_file():
            raise FileNotFoundError(
                f"There is no {LEDGER_NAME} in {folder}; `pixellm curate run --out` makes one."
            )
        self._is_new, self._made_folder = not path.is_file(), not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as guard:
            if writing:
                guard.enter_context(locked(folder))
            super().__init__(path, writing, _SCHEMA)
            self._guard = guard.pop_all()

    def close(self) -> None:
        """Close the file and give up the right to write; one that holds no photo yet goes."""
        is_void = False
        with suppress(OSError):  # a full disk has been told
            is_void = self._is_new and not self.get("selected")
        super().close()
        if is_void:
            for end in ("", "-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
        self._guard.close()
        if is_void and self._made_folder:
            remove_unused(self.path.parent)

    # -- the run -----------------------------------------------------------------------------

    def bind(self, identity: Mapping[str, Any]) -> None:
        """Tie the ledger to what a run's output depends on, or check that it is the same run."""
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

    # -- photos and tasks --------------------------------------------------------------------

    def add_photos(
        self,
        rows: Iterable[tuple[Photo, str]],
        order: Callable[[list[tuple[str, frozenset[str]]]], list[str]],
    ) -> None:
        """Enter all photos, each with the reason that it can't be used or "", in one transaction.

        ``order`` puts the usable ones, as (id, categories), best first.
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

    def photo(self, photo_id: str) -> Photo:
        """A photo by its id."""
        return Photo.from_json(self._all("SELECT data FROM photos WHERE id = ?", photo_id)[0][0])

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

    # -- replies and reports -----------------------------------------------------------------

    def replies(self, task: int) -> dict[str, Reply]:
        """The replies to a task so far by kind of request."""
        found = {kind: self.reply(request_key(task, kind)) for kind in KINDS}
        return {kind: reply for kind, reply in found.items() if reply is not None}

    def failures(self) -> tuple[int, str]:
        """How many tasks got no reply in the last run, and what the first of them says of it."""
        rows = self._all("SELECT faults FROM tasks WHERE status = 'failed' ORDER BY id")
        return len(rows), json.loads(rows[0][0])[0][1] if rows and rows[0][0] else ""

    def counts(self) -> dict[str, dict[str, int]]:
        """Counters of a run.

        Returns:
            ``photos`` by the reason they can't be used ("usable" for the good ones), ``tasks`` by
            status, ``first`` and ``final``: how often each rule was broken in first drafts and in
            those rejected at the end, ``requests`` by kind and status ("sent" ones were lost in
            flight), ``styles`` of the accepted questions.
        """
        rules = "SELECT json_extract(f.value, '$[0]'), COUNT(*) FROM tasks, json_each(tasks.{}) f"
        queries = {
            "photos": "SELECT CASE reason WHEN '' THEN 'usable' ELSE reason END, COUNT(*) "
            "FROM photos GROUP BY 1",
            "tasks": "SELECT status, COUNT(*) FROM tasks GROUP BY 1",
            "first": rules.format("first_faults") + " GROUP BY 1",
            "final": rules.format("faults") + " WHERE status = 'rejected' GROUP BY 1",
            "styles": "SELECT style, COUNT(*) FROM tasks WHERE status = 'accepted' GROUP BY 1",
        }
        counts = {name: dict(sorted(self._all(sql))) for name, sql in queries.items()}
        return {**counts, "requests": self.request_counts()}


class ShardLedgers:
    """The ledgers of all shards of one run, given in any order, read as one."""

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        runs = [dict(ledger.get("run") or {}) for ledger in ledgers]
        shards = [str(run.pop("shard", "1/1")) for run in runs]
        for ledger, run in zip(ledgers, runs, strict=True):
            if run != runs[0]:
                raise ValueError(
                    f"{ledger.path.parent} is of another run than {ledgers[0].path.parent}; only "
                    "shards of one run, with the same settings, are written together."
                )
        wanted = [f"{number + 1}/{len(ledgers)}" for number in range(len(ledgers))]
        if sorted(shards) != sorted(wanted):
            raise ValueError(
                f"The folders hold the shards {', '.join(sorted(shards))}, not each of "
                f"{', '.join(wanted)}."
            )
        self._run = runs[0]
        self._ledgers = [ledgers[shards.index(shard)] for shard in wanted]

    def get(self, key: str) -> Any:
        """A value that the shards have in common."""
        return self._run if key == "run" else self._ledgers[0].get(key)

    def accepted(self) -> Iterator[tuple[Task, Row]]:
        """The accepted questions in a fixed order, shard after shard."""
        for ledger in self._ledgers:
            yield from ledger.accepted()

    def counts(self) -> dict[str, dict[str, int]]:
        """The sums of all counters."""
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for ledger in self._ledgers:
            for name, counts in ledger.counts().items():
                sums[name].update(counts)
        return {name: dict(sorted(counts.items())) for name, counts in sums.items()}

    def models(self) -> list[tuple[str, str, int, int, int, float]]:
        """The sums by model and kind of request."""
        sums: dict[tuple[str, str], list[float]] = {}
        for ledger in self._ledgers:
            for model, kind, *numbers in ledger.models():
                known = sums.setdefault((model, kind), [0] * len(numbers))
                sums[model, kind] = [a + b for a, b in zip(known, numbers, strict=True)]
        return [
            (model, kind, int(replies), int(tokens_in), int(tokens_out), usd)
            for (model, kind), (replies, tokens_in, tokens_out, usd) in sorted(sums.items())
        ]


FinishedRun = Ledger | ShardLedgers
"""What a set is written from."""
