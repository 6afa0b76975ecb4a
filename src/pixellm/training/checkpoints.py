"""Checkpoints of a run: written aside and renamed, the last few kept, read without unpickling code.

A checkpoint folder `step_00001000` holds `model/` (the standard format, usable on its own),
`trainer.pt` (exact weights, optimizer, average and random states; tensors and plain values
only), `state.json` (position in the run) and `config.yaml`.
"""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from pixellm.files import (
    LOCK_NAME,
    check_folder,
    json_bytes,
    locked,
    parse_json,
    read_json,
    read_lines,
    remove_folder,
    remove_unused,
    replace_folder,
    write_files,
)

_NAME = re.compile(r"step_[0-9]+")
_PARTS = frozenset({"weights", "optimizer", "average", "random"})
_DAMAGE = (
    *(TypeError, ValueError, RuntimeError, EOFError, LookupError, AttributeError, OSError),
    pickle.UnpicklingError,
)
"""What reading a file of a checkpoint raises, whatever has happened to it."""


@dataclass(slots=True)
class TrainState:
    """Where a run is; together with the recipe this decides all that follows.

    Attributes:
        samples: images seen in the run, over all processes; position in the data.
        dropped_turns: turns left out because they do not fit into a row.
        dropped_rows: of the samples, those of which no turn fits.
        stage_end: its last step where `max_minutes` has brought the end forward.
    """

    step: int = 0
    samples: int = 0
    dropped_turns: int = 0
    dropped_rows: int = 0
    stage: int = 0
    stage_step: int = 0
    stage_end: int | None = None
    stage_seconds: float = 0.0
    best_score: float | None = None
    evaluated_step: int = 0

    def enter_next_stage(self) -> None:
        """Move to the start of the next stage."""
        self.stage += 1
        self.stage_step = 0
        self.stage_end = None
        self.stage_seconds = 0.0


def random_states() -> dict[str, Any]:
    """States of all random generators, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy_state,
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put all random generators back to what :func:`random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    random.setstate(states["python"])


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def write_checkpoint(
    folder: Path,
    state: TrainState,
    trainer: dict[str, Any],
    config_yaml: str,
    save_model: Callable[[Path], None],
    keep_last: int,
) -> Path:
    """Write one checkpoint into the run's `checkpoints`, and remove those that are too old."""
    final = folder / _name_of(state)

    def write(partial: Path) -> None:
        save_model(partial / "model")
        torch.save(trainer, partial / "trainer.pt")
        (partial / "config.yaml").write_text(config_yaml, encoding="utf-8")
        _write_state(partial, state)

    replace_folder(final, write)
    for old in list_checkpoints(folder)[:-keep_last]:
        remove_folder(old)
    return final


def update_state(folder: Path, state: TrainState) -> None:
    """Bring the checkpoint of the present step up to date, where there is one.

    An evaluation follows the checkpoint of its step and changes what is known of the run alone.
    """
    checkpoint = folder / _name_of(state)
    if (checkpoint / "state.json").is_file():
        _write_state(checkpoint, state)


def _name_of(state: TrainState) -> str:
    return f"step_{state.step:08d}"


def _write_state(checkpoint: Path, state: TrainState) -> None:
    write_files({checkpoint / "state.json": json_bytes(asdict(state))})


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; copies under other names are none of the run's."""
    named = (path for path in folder.glob("step_*") if _NAME.fullmatch(path.name))
    return sorted(path for path in named if (path / "state.json").is_file())


def checkpoint_to_resume(run_folder: Path, resume: bool | int | Path) -> Path | None:
    """The checkpoint that a run starts from; None where it starts anew.

    Resumed is from the newest one, if there is one, where ``resume`` is True, from the one of a
    step, or from that of a path.
    """
    if resume is False and (run_folder / "train_log.jsonl").exists():
        raise ValueError(f"{run_folder} already holds a run; resume it, or choose another name.")
    if resume is False or not (run_folder / "train_log.jsonl").exists():
        _check_new_run(run_folder)
        return resume if isinstance(resume, Path) else None
    _check_results(run_folder)
    if isinstance(resume, Path):
        return resume
    found = list_checkpoints(run_folder / "checkpoints")
    if resume is True:
        return found[-1] if found else None
    steps = [_step_of(path) for path in found]
    if resume not in steps:
        raise ValueError(
            f"{run_folder} has no checkpoint of step {resume}; there is "
            f"{', '.join(map(str, steps)) or 'none'}."
        )
    return found[steps.index(resume)]


def set_aside_newer(checkpoint: Path) -> list[str]:
    """Rename the checkpoints behind one that a run goes back to; returns their names.

    They stay as `abandoned_step_...`, which nothing resumes or counts.
    """
    newer = [other for other in list_checkpoints(checkpoint.parent) if other.name > checkpoint.name]
    for path in newer:
        aside = path.with_name(f"abandoned_{path.name}")
        if aside.exists():
            remove_folder(aside)
        path.replace(aside)
    return [path.name for path in newer]


@contextmanager
def own_run_folder(run_folder: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other processes out of it; one without files goes."""
    check_folder(run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run_folder):
            yield
    finally:
        remove_unused(run_folder)


def _check_new_run(run_folder: Path) -> None:
    found = [path.name for path in run_folder.glob("*") if path.name != LOCK_NAME]
    if found:
        raise ValueError(
            f"{run_folder} holds {min(found)} and no run; choose another name, or move it away."
        )


def _check_results(run_folder: Path) -> None:
    """Refuse a run with results that its log knows nothing of: a new one would replace them."""
    told: set[Any] = set()
    log = run_folder / "train_log.jsonl"
    for number, line in read_lines(log):
        try:
            told.add(parse_json(line).get("path"))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Line {number} of {log} is damaged ({error}); delete that line."
            ) from error
    for name in ("model", "best"):
        if (run_folder / name).exists() and name not in told:
            raise ValueError(
                f"{run_folder / name} was not written by this run; move it away, or choose another "
                "name for the run."
            )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def read_checkpoint(path: Path) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_checkpoint` wrote, save the model folder: state, tensors, settings."""
    import yaml

    if not (path / "state.json").is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: it has no state.json.")
    name = "state.json"
    try:
        values = read_json(path / name)
        if "step" not in values:
            raise ValueError("it says no step")
        state = TypeAdapter(TrainState).validate_python(values)
        name = "config.yaml"
        settings = yaml.safe_load((path / name).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not settings:
            raise ValueError("it holds no settings")
        name = "trainer.pt"
        trainer = torch.load(path / name, map_location="cpu", weights_only=True)
        if not isinstance(trainer, dict) or not trainer.keys() >= _PARTS:
            raise ValueError("parts are missing")
    except (*_DAMAGE, yaml.YAMLError) as error:
        older = [other.name for other in list_checkpoints(path.parent) if other.name < path.name]
        number = _step_of(path.with_name(older[-1])) if older else 0
        way = f"resume from an older one: --resume {number}" if older else "start the run anew"
        raise ValueError(f"Checkpoint {path} is damaged ({name} can't be read); {way}.") from error
    return state, trainer, settings
