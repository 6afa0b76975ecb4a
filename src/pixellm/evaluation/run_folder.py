"""The folder of an evaluation run: its settings, and its answers as records.

Answers are written by a job, see :mod:`pixellm.engine.jobs`; here they are read again. It knows
nothing of models and scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pixellm.evaluation.records import AnswerRecord, record_from_json, record_to_json
from pixellm.files import json_bytes, parse_json, read_json, read_lines, write_files

SETTINGS_FILE = "run.json"
FACTS = frozenset({"left_out", "suffix"})
"""Names in a run's settings that a report says and another call of the run need not repeat."""
ANSWERS_FILE = "answers.jsonl"
"""One line a question, see :mod:`pixellm.engine.jobs`."""


def read_answers(folder: Path) -> list[AnswerRecord]:
    """All complete dialogues of a run, in the order of the benchmark.

    A last line that was cut short and a dialogue that lacks a turn are passed over: they will be
    asked again. What processes of a killed run left in parts counts too.

    Raises:
        ValueError: a damaged line, or answers in another form.
    """
    if any(folder.glob("answers-*.jsonl")):
        raise ValueError(
            f"{folder} holds answers in an older form (answers-*.jsonl); name another folder, or "
            "remove this one."
        )
    dialogues: dict[int, dict[int, AnswerRecord]] = {}
    for path in (folder / ANSWERS_FILE, *sorted(folder.glob(f".{ANSWERS_FILE}.part*"))):
        for record in _read_file(path) if path.exists() else ():
            dialogues.setdefault(record.index, {}).setdefault(record.turn, record)
    return [
        turns[turn]
        for index, turns in sorted(dialogues.items())
        if len(turns) == next(iter(turns.values())).num_turns
        for turn in sorted(turns)
    ]


def write_answers(folder: Path, records: Iterable[AnswerRecord], model: str) -> None:
    """Write the answers of a whole run at once.

    Raises:
        OSError: the folder can't be written.
    """
    lines = [json.dumps(record_to_json(record, model)) + "\n" for record in records]
    write_files({folder / ANSWERS_FILE: "".join(lines).encode("ascii")})


def open_run(
    folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Start a run's folder, or make sure that the one there holds the same run.

    Args:
        folder: made where missing.
        settings: what decides the answers and their scores; values that JSON knows.
        facts: values by names of :data:`FACTS`.

    Raises:
        ValueError: the folder holds a run with other settings, or answers without settings.
    """
    path = folder / SETTINGS_FILE
    if path.exists():
        old = read_settings(folder)
        said = {name: value for name, value in old.items() if name not in FACTS}
        _compare(said, json.loads(json.dumps(settings)), folder)
        if {**old, **facts} != old:
            write_files({path: json_bytes({**old, **facts})})
        return
    if (folder / ANSWERS_FILE).exists():
        raise ValueError(f"{folder} holds answers without their {SETTINGS_FILE}; choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    write_files({path: json_bytes({**settings, **facts})})


def read_settings(folder: Path) -> dict[str, Any]:
    """What :func:`open_run` wrote.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is damaged.
    """
    path = folder / SETTINGS_FILE
    try:
        return read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no evaluation ({SETTINGS_FILE} is missing); make one with "
            "`pixellm eval ... --out`."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged; start anew in another folder.") from error


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    for name in dict.fromkeys((*old, *new)):
        if (old.get(name) or None) == (new.get(name) or None):  # "" and none at all: not said
            continue
        what = f"a run with {name} {old.get(name)!r}, not {new.get(name)!r}"
        if name == "weights":
            what = f"answers of other weights than {new.get('model')!r} has now"
        raise ValueError(
            f"{folder} holds {what}; choose another folder for --out, or remove this one."
        )


def _read_file(path: Path) -> Iterable[AnswerRecord]:
    for number, line in read_lines(path):
        try:
            yield record_from_json(parse_json(line))
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {path} is damaged; delete that line, and its question is "
                "asked again."
            ) from error
