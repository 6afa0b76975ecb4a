"""Evaluations during a run: their data come first, their step's checkpoint before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TinyRun, tiny_config

from pixellm.training import stream, trainer
from pixellm.training.trainer import TrainEvent, train

WHEN = {"every_steps": 4}
STEPS = [4, 6, 8, 12, 14]
"""Every fourth, and the end of each stage."""


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.DATASETS, "tiny", "tiny_training:TinyDataset")
    monkeypatch.setattr(trainer, "Run", TinyRun)


class StoppedError(Exception):
    pass


class Scorer:
    """A score that follows from the weights, and neither rises nor falls; may stop the run."""

    def __init__(self, calls: int = 100) -> None:
        self.calls = calls

    def __call__(self, model: Any, processor: Any, settings: Any) -> dict[str, float]:
        self.calls -= 1
        if not self.calls:
            raise StoppedError
        weights = [value.detach().double().sum() for value in model.parameters()]
        return {"giou": float((1e4 * torch.stack(weights).sum()).sin())}


def evaluations(config: Any, **options: Any) -> dict[int, float]:
    """Scores by step."""
    events: list[TrainEvent] = []
    train(config, on_event=events.append, **options)
    return {event.step: event.values["giou"] for event in events if event.kind == "evaluation"}


@pytest.mark.parametrize("split", ["val", "vall"])
def test_missing_evaluation_data_stop_a_run_before_it_starts(tmp_path: Path, split: str) -> None:
    data = {"name": "coco", "args": {"root": str(tmp_path / "photos"), "split": split}}
    config = tiny_config(tmp_path, evaluation={**WHEN, "data": data})
    with pytest.raises((FileNotFoundError, ValueError), match=r"photos|no split 'vall'"):
        train(config, evaluate=Scorer())
    assert not config.run_folder.exists()
    unused = tiny_config(tmp_path, evaluation={"every_steps": 0, "data": data})
    assert evaluations(unused) == {}


def test_an_unknown_split_of_the_scenes_stops_a_run_before_it_starts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={**WHEN, "split": "vall"})
    with pytest.raises(ValueError, match="no split 'vall' of the scenes"):
        train(config)
    assert not config.run_folder.exists()


@pytest.mark.parametrize(("call", "step"), [(2, 6), (4, 12)])
def test_a_failing_evaluation_loses_no_step_and_is_made_again(
    tmp_path: Path, call: int, step: int
) -> None:
    data = {"data": {"name": "tiny"}}
    whole = tiny_config(tmp_path / "whole", evaluation={**WHEN, **data})
    broken = tiny_config(tmp_path / "broken", evaluation={**WHEN, **data})
    expected = evaluations(whole, evaluate=Scorer())
    assert list(expected) == STEPS
    with pytest.raises(StoppedError):
        train(broken, evaluate=Scorer(call))
    kept = sorted(path.name for path in (broken.run_folder / "checkpoints").iterdir())
    assert kept[-1] == f"step_{step:08d}"
    later = evaluations(broken, evaluate=Scorer(), resume=True)
    assert later == {when: score for when, score in expected.items() if when >= step}
    best = [torch.load(one.run_folder / "best" / "weights.pt") for one in (whole, broken)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


def test_a_checkpoint_knows_the_scores_of_its_step(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, evaluation={**WHEN, "data": {"name": "tiny"}})
    scores = evaluations(config, evaluate=Scorer())
    for step in (12, 14):
        path = config.run_folder / "checkpoints" / f"step_{step:08d}" / "state.json"
        state = json.loads(path.read_text())
        assert state["evaluated_step"] == step
        assert state["best_score"] == max(scores[when] for when in STEPS if when <= step)
    assert evaluations(config, evaluate=Scorer(), resume=True) == {}
