"""The loop with tiny parts: exact resume, what moves, schedules, scores, log and figures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from pixellm.cli.display import TrainDisplay
from pixellm.training import stream, trainer
from pixellm.training.trainer import NonFiniteLossError, TrainEvent, train
from pixellm.types import Sample

sys.path.insert(0, str(Path(__file__).parent))
from tiny_training import TinyCollator, TinyRun, assert_same_weights, tiny_config

EVALUATED = [4, 6, 8, 12, 14]
"""Every fourth step, and the end of each stage."""


@pytest.fixture(scope="module", autouse=True)
def tiny_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stream.DATASETS, "tiny", "tiny_training:TinyDataset")
        patch.setattr(trainer, "Run", TinyRun)
        yield


class StoppedError(Exception):
    pass


def run_and_collect(config: Any, stop_at: int = 0, **options: Any) -> list[TrainEvent]:
    """The events of a run that is cut after a step, where one is given."""
    events: list[TrainEvent] = []

    def on_event(event: TrainEvent) -> None:
        events.append(event)
        if event.kind == "step" and event.step == stop_at:
            raise StoppedError

    if stop_at:
        with pytest.raises(StoppedError):
            train(config, on_event, **options)
    else:
        train(config, on_event, **options)
    return events


def values_of(events: list[TrainEvent], kind: str, name: str) -> dict[int, Any]:
    return {event.step: event.values[name] for event in events if event.kind == kind}


def log_of(config: Any) -> list[dict[str, Any]]:
    lines = (config.run_folder / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def joint(folder: Path, stage: dict[str, Any], **changes: Any) -> Any:
    """The second stage alone, changed."""
    stages = [tiny_config(folder).stages[1].model_dump() | stage]
    return tiny_config(folder, stages=stages, **changes)


class Choosy(TinyCollator):
    """Leaves out every third image with its one turn."""

    every = 3

    def __call__(self, rows: list[tuple[Sample, ...]]) -> dict[str, Any]:
        kept = [row for row in rows if int(row[0].id.split("-")[1]) % self.every]
        batch = super().__call__(kept or rows[:1])
        if not kept:
            batch |= {"labels": torch.full_like(batch["labels"], -100)}
            batch |= {name: batch[name][:0] for name in ("target_masks", "target_rows")}
        dropped = len(rows) - len(kept)
        return {**batch, "num_dropped_turns": dropped, "num_dropped_rows": dropped}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, type], Any]:
    """Finished runs by optimizer and collator, each made once: their recipes and events."""

    @cache
    def run(kind: str, collator: type) -> tuple[Any, list[TrainEvent]]:
        config = tiny_config(tmp_path_factory.mktemp("whole"), optimizer={"kind": kind})
        return config, run_and_collect(config)

    return run


@pytest.mark.parametrize(
    ("step", "kind", "collator"),
    [
        *((2, "muon", TinyCollator), (5, "adamw", TinyCollator), (7, "muon", TinyCollator)),
        *((11, "adamw", TinyCollator), (8, "adamw", Choosy)),
    ],
)
def test_resume_equals_uninterrupted_to_the_bit(
    tmp_path: Path,
    step: int,
    kind: str,
    collator: type,
    monkeypatch: pytest.MonkeyPatch,
    whole_runs: Callable[[str, type], Any],
) -> None:
    monkeypatch.setattr(TinyRun, "_collator", lambda run: collator())
    (whole, events), broken = (
        whole_runs(kind, collator),
        tiny_config(tmp_path, optimizer={"kind": kind}),
    )
    expected = values_of(events, "step", "total")
    run_and_collect(broken, stop_at=step)
    with (broken.run_folder / "train_log.jsonl").open("a") as file:
        file.write('{"event": "st')  # as a kill leaves it
    torch.manual_seed(123)
    later = values_of(run_and_collect(broken, resume=True), "step", "total")
    assert later == {when: loss for when, loss in expected.items() if when in later}
    assert max(later) == 14
    assert_same_weights(whole.run_folder, broken.run_folder)
    assert log_of(whole)[-1] == log_of(broken)[-1]
    with pytest.raises(ValueError, match="already holds a run"):
        train(whole)


def test_what_is_left_out_is_counted_in_the_log_and_told_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRun, "_collator", lambda run: Choosy())
    config, shown = tiny_config(tmp_path, log_every=3), io.StringIO()
    with TrainDisplay(Console(file=shown, width=200)) as display:
        train(config, on_event=display)
    lines = log_of(config)
    counts = {line["step"]: line["dropped_rows"] for line in lines if line["event"] == "step"}
    assert counts == {3: 4, 6: 4, 9: 8, 12: 8, 14: 6}  # of 12, 12, 24, 24 and 16 images
    assert (lines[-1]["event"], lines[-1]["samples"]) == ("end", 88)
    assert lines[-1]["dropped_rows"] == lines[-1]["dropped_turns"] == 30
    assert shown.getvalue().count("Left out") == 1
    assert "collate.max_length: 30 turns, among them all of 30 of 88 images." in shown.getvalue()
    monkeypatch.setattr(Choosy, "every", 1)
    with pytest.raises(ValueError, match=r"None of the 4 samples of step 1 .*collate\.max_length"):
        train(tiny_config(tmp_path / "nothing fits"))


def test_frozen_and_idle_parts_do_not_move_and_the_last_checkpoints_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = [stage.model_dump() for stage in tiny_config(tmp_path).stages]
    stages[1]["freeze"] = ["*vision_tower"]
    config = tiny_config(
        tmp_path,
        stages=stages,
        ema_decay=0.0,
        checkpoint={"every_steps": 1, "keep_last": 14},
        optimizer={"rules": [{"pattern": "*pixel_decoder", "frozen": True}]},
    )
    paths = sorted((train(config) / "checkpoints").iterdir())
    assert [path.name for path in paths] == [f"step_{step:08d}" for step in range(1, 15)]
    assert (paths[3] / "config.yaml").read_text() == config.to_yaml()
    assert (config.run_folder / "config.yaml").read_text() == config.to_yaml()
    first, encoded, last = (
        torch.load(paths[index] / "model" / "weights.pt", weights_only=True) for index in (0, 5, 13)
    )
    tower, table = "model.vision_tower.conv.weight", "embed.weight"
    assert not torch.equal(first[tower], encoded[tower])
    assert torch.equal(encoded[tower], last[tower])
    assert torch.equal(first[table], encoded[table])
    assert not torch.equal(encoded[table], last[table])
    assert torch.equal(first["model.pixel_decoder.weight"], last["model.pixel_decoder.weight"])


def test_non_finite_loss_stops_before_the_optimizer_and_names_samples(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data=[{"name": "tiny", "args": {"poison": 14}}])
    with pytest.raises(NonFiniteLossError, match=r"step 4 .*'tiny-14-poison'"):
        train(config)
    saved = list((tmp_path / "tiny" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step_00000003"]


def test_steps_may_change_on_resume_and_the_log_says_so(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run_and_collect(config, stop_at=11)
    stages = [stage.model_dump() for stage in config.stages]
    stages[1]["steps"] = 5
    events = run_and_collect(tiny_config(tmp_path, stages=stages), resume=True)
    assert events[0].values["changes"] == {"stages.1.steps": [8, 5]}
    assert (events[-1].kind, events[-1].step) == ("end", 11)
    with pytest.raises(ValueError, match="cannot change 'seed'"):
        train(tiny_config(tmp_path, seed=3), resume=True)


@pytest.mark.parametrize(("decay", "end"), [(0.5, 2), (1.0, 20)])
def test_a_time_limit_brings_the_decay_forward(tmp_path: Path, decay: float, end: int) -> None:
    stage = {"steps": 100_000, "max_minutes": 1e-9, "decay_fraction": decay, "warmup_steps": 0}
    events = run_and_collect(joint(tmp_path, stage))
    told = [event.values for event in events if event.kind == "time_limit"]
    assert told == [{"minutes": 1e-9, "stage_ends_after": end}]
    rates = [*values_of(events, "step", "learning_rate").values()]
    assert len(rates) == events[-1].step == end
    assert [event.total_steps for event in events if event.kind == "step"][-1] == end
    assert rates == sorted(rates, reverse=True)
    assert decay < 1 or rates[-1] <= rates[0] / 10


class Scorer:
    """A score that follows from the weights, and neither rises nor falls; may stop the run."""

    def __init__(self, calls: int = 100) -> None:
        self.calls = calls

    def __call__(self, model: Any, processor: Any, settings: Any) -> dict[str, float]:
        assert not model.training
        self.calls -= 1
        if not self.calls:
            raise StoppedError
        torch.rand(())  # evaluations may draw
        weights = [value.detach().double().sum() for value in model.parameters()]
        return {"giou": float((1e4 * torch.stack(weights).sum()).sin())}


def scored(folder: Path, **data: Any) -> Any:
    settings = {"every_steps": 4, "data": {"name": "tiny"}, **data}
    return tiny_config(folder, evaluation=settings, checkpoint={"every_steps": 3, "keep_last": 9})


@pytest.mark.parametrize(
    "data",
    [
        {"data": {"name": "coco", "args": {"root": "no/photos", "split": "val"}}},
        {"data": None, "split": "vall"},
    ],
)
def test_missing_evaluation_data_stop_a_run_before_it_starts(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    config = scored(tmp_path, **data)
    with pytest.raises((FileNotFoundError, ValueError), match=r"photos|no split 'vall'"):
        train(config, evaluate=Scorer())
    assert not config.run_folder.exists()


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[int, float]]:
    """A finished run with evaluations, and its scores by step."""
    config = scored(tmp_path_factory.mktemp("scored"))
    return config, values_of(run_and_collect(config, evaluate=Scorer()), "evaluation", "giou")


def test_evaluations_change_nothing_and_checkpoints_know_them(
    tmp_path: Path, scored_run: Any, whole_runs: Callable[[str, type], Any]
) -> None:
    whole, scores = scored_run
    assert list(scores) == EVALUATED
    assert_same_weights(whole_runs("adamw", TinyCollator)[0].run_folder, whole.run_folder)
    for when in (12, 14):
        path = whole.run_folder / "checkpoints" / f"step_{when:08d}" / "state.json"
        state = json.loads(path.read_text())
        assert state["evaluated_step"] == when
        assert state["best_score"] == max(s for done, s in scores.items() if done <= when)
    again = run_and_collect(whole, evaluate=Scorer(), resume=True)
    assert not values_of(again, "evaluation", "giou")


@pytest.mark.parametrize(("call", "step"), [(2, 6), (4, 12)])
def test_an_evaluation_that_fails_is_made_again(
    tmp_path: Path, call: int, step: int, scored_run: Any
) -> None:
    (whole, scores), broken = scored_run, scored(tmp_path)
    with pytest.raises(StoppedError):
        train(broken, evaluate=Scorer(call))
    kept = sorted(path.name for path in (broken.run_folder / "checkpoints").iterdir())
    assert kept[-1] == f"step_{step:08d}"
    later = run_and_collect(broken, evaluate=Scorer(), resume=True)
    assert values_of(later, "evaluation", "giou") == {w: s for w, s in scores.items() if w >= step}
    assert_same_weights(whole.run_folder, broken.run_folder, "best")


def test_tensorboard_gets_the_figures_of_a_run(tmp_path: Path) -> None:
    run = train(tiny_config(tmp_path, trackers=["tensorboard"]))
    written = b"".join(path.read_bytes() for path in (run / "trackers").rglob("events.out.*"))
    for figure in (b"step/total", b"step/images_per_second", b"step/learning_rate"):
        assert figure in written, figure
