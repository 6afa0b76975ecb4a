"""The folder of a job: its settings beside its answers, so that no two jobs mix in one place.

Answers are written by :mod:`pixellm.engine.jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pixellm.files import json_bytes, read_json, write_files

SETTINGS_FILE = "run.json"
FACTS = frozenset({"left_out", "suffix"})
"""Names in a run's settings that a report says and another call of the run need not repeat."""
ANSWERS_FILE = "answers.jsonl"
"""One line a question, see :mod:`pixellm.engine.jobs`."""


def answer_paths(folder: Path) -> list[Path]:
    """The files with a job's answers, those in parts that a killed process left included."""
    paths = (folder / ANSWERS_FILE, *sorted(folder.glob(f".{ANSWERS_FILE}.part*")))
    return [path for path in paths if path.exists()]


def open_run(
    folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Start a run's folder, or make sure that the one there holds the same run.

    The settings, values that JSON knows, decide the answers and their scores; facts are called as
    in :data:`FACTS`.
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
    write_files({path: json_bytes({**settings, **facts})})


def read_settings(folder: Path) -> dict[str, Any]:
    """What :func:`open_run` wrote."""
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
