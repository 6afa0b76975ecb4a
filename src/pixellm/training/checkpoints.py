"""Checkpoints of a run: written aside and renamed, the last few kept, read without unpickling code.

A checkpoint folder `step_00001000` holds `model/` (the standard format, usable on its own),
`trainer.pt` (exact weights, optimizer, average and random states; tensors and plain values
only), `state.json` (position in the run) and `config.yaml`. Knows nothing of how a step is made.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixellm.files import json_bytes, read_json, remove_folder, replace_folder, write_files

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
        step: optimizer steps done in the run.
        samples: pictures seen in the run, over all processes; position in the data.
        dropped_turns: turns left out because they do not fit into a row.
        dropped_rows: of the samples, those of which no turn fits.
        stage: index of the current stage.
        stage_step: optimizer steps done in it.
        stage_end: its last step where `max_minutes` has brought the end forward.
        stage_seconds: time spent in it.
        best_score: the highest score of an evaluation; None before the first.
        evaluated_step: the step of the last evaluation.
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
        """Moves to the start of the next stage."""
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
    """Puts all random generators back to what :func:`random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    random.setstate(states["python"])


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), NumPy and Python."""
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
    """Writes one checkpoint and removes those that are too old.

    Args:
        folder: the run's `checkpoints` folder.
        state: position in the run.
        trainer: weights, optimizer, average and random states.
        config_yaml: resolved recipe.
        save_model: writes the model in the standard format into a folder.
        keep_last: how many checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
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
    """Brings the checkpoint of the present step up to date, where there is one.

    An evaluation follows the checkpoint of its step and changes what is known of the run alone.

    Args:
        folder: the run's `checkpoints` folder.
        state: position in the run.
    """
    checkpoint = folder / _name_of(state)
    if (checkpoint / "state.json").is_file():
        _write_state(checkpoint, state)


def _name_of(state: TrainState) -> str:
    return f"step_{state.step:08d}"


def _write_state(checkpoint: Path, state: TrainState) -> None:
    write_files({checkpoint / "state.json": json_bytes(asdict(state))})


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "state.json").is_file())


def checkpoint_to_resume(run_folder: Path, resume: bool | Path) -> Path | None:
    """The checkpoint that a run starts from; None where it starts anew.

    Args:
        run_folder: the run's folder, there or not.
        resume: True for the newest checkpoint, if there is one; a path for that one.

    Raises:
        ValueError: the folder holds a run and `resume` is False.
    """
    if not isinstance(resume, bool):
        return Path(resume)
    if resume:
        found = list_checkpoints(run_folder / "checkpoints")
        return found[-1] if found else None
    if (run_folder / "train_log.jsonl").exists():
        raise ValueError(f"{run_folder} already holds a run; resume it, or choose another name.")
    return None


def read_checkpoint(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """Reads what :func:`write_checkpoint` wrote, save the model folder.

    Raises:
        FileNotFoundError: not a checkpoint.
        ValueError: a file of it is damaged.
    """
    if not (path / "state.json").is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: it has no state.json.")
    name = "state.json"
    try:
        state = TrainState(**read_json(path / name))
        name = "trainer.pt"
        trainer = torch.load(path / name, map_location="cpu", weights_only=True)
        if not isinstance(trainer, dict) or not trainer.keys() >= _PARTS:
            raise ValueError("parts are missing")
    except _DAMAGE as error:
        older = [other.name for other in list_checkpoints(path.parent) if other.name < path.name]
        number = int(older[-1].removeprefix("step_")) if older else 0
        way = f"resume from an older one: --resume {number}" if older else "start the run anew"
        raise ValueError(f"Checkpoint {path} is damaged ({name} can't be read); {way}.") from error
    return state, trainer
