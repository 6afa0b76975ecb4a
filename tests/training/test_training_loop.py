import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pixellm.training import stream, trainer
from pixellm.training.trainer import NonFiniteLossError, TrainEvent, train
from pixellm.training.validation import evaluate_run

sys.path.insert(0, str(Path(__file__).parent))
import tiny_training
from tiny_training import TinyRun, final_weights, tiny_config


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.DATASETS, "tiny", "tiny_training:TinyDataset")
    monkeypatch.setattr(trainer, "Run", TinyRun)


def run_and_collect(config: Any, **options: Any) -> tuple[Path, list[TrainEvent]]:
    events: list[TrainEvent] = []
    return train(config, on_event=events.append, **options), events


def losses_of(events: list[TrainEvent]) -> dict[int, float]:
    return {event.step: event.values["total"] for event in events if event.kind == "step"}


def assert_same_weights(one: Path, other: Path) -> None:
    for name, value in final_weights(one).items():
        assert torch.equal(value, final_weights(other)[name]), name


class StoppedError(Exception):
    pass


def stop_at(step: int) -> Any:
    def on_event(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == step:
            raise StoppedError

    return on_event


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("step", [2, 5, 7, 11])
def test_resume_equals_uninterrupted_to_the_bit(tmp_path: Path, step: int, kind: str) -> None:
    changes = {"optimizer": {"kind": kind}}
    whole, events = run_and_collect(tiny_config(tmp_path / "whole", **changes))
    broken = tiny_config(tmp_path / "broken", **changes)
    with pytest.raises(StoppedError):
        train(broken, on_event=stop_at(step))
    torch.manual_seed(123)
    resumed, later = run_and_collect(broken, resume=True)
    assert_same_weights(whole, resumed)
    expected = losses_of(events)
    assert all(expected[step] == loss for step, loss in losses_of(later).items())
    assert max(losses_of(later)) == 14


def test_killed_process_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train(tiny_config(tmp_path / "whole"))
    script = [sys.executable, tiny_training.__file__, str(tmp_path / "killed")]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 8:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    log = tmp_path / "killed" / "tiny" / "train_log.jsonl"
    with log.open("a") as file:
        file.write('{"event": "st')
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    assert_same_weights(whole, tmp_path / "killed" / "tiny")
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "end"


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def joint(batch_size: int, accumulation: int) -> Any:
        stage = tiny_config(tmp_path).stages[1].model_dump()
        stage |= {"batch_size": batch_size, "accumulation": accumulation, "steps": 3}
        return tiny_config(tmp_path / f"{batch_size}", stages=[stage], ema_decay=0.0)

    class WithoutDropout(TinyRun):
        def _set_up_model(self, *args: Any) -> Any:
            run_model = super()._set_up_model(*args)
            run_model.model.dropout.p = 0.0
            return run_model

    trainer.Run = WithoutDropout  # type: ignore[misc]
    large, large_events = run_and_collect(joint(8, 1))
    small, small_events = run_and_collect(joint(2, 4))
    for step, loss in losses_of(large_events).items():
        assert losses_of(small_events)[step] == pytest.approx(loss, abs=1e-5)
    for name, value in final_weights(large).items():
        torch.testing.assert_close(final_weights(small)[name], value, atol=1e-5, rtol=1e-4)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    stage = tiny_config(tmp_path).stages[1].model_dump()
    stage |= {"steps": 30, "warmup_steps": 0, "data_args": {"length": 8}, "accumulation": 2}
    _, events = run_and_collect(tiny_config(tmp_path, stages=[stage]))
    losses = losses_of(events)
    assert losses[30] < losses[1] - 0.1


def test_frozen_and_idle_parts_do_not_move(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = [stage.model_dump() for stage in tiny_config(tmp_path).stages]
    stages[1]["freeze"] = ["*vision_tower"]
    config = tiny_config(
        tmp_path,
        stages=stages,
        ema_decay=0.0,
        checkpoint={"every_steps": 1, "keep_last": 20},
        optimizer={"rules": [{"pattern": "*pixel_decoder", "frozen": True}]},
    )
    run = train(config)
    weights = [
        torch.load(path / "model" / "weights.pt", weights_only=True)
        for path in sorted((run / "checkpoints").iterdir())
    ]
    first, stage_one, last = weights[0], weights[5], weights[-1]
    tower = "model.vision_tower.conv.weight"
    assert not torch.equal(first[tower], stage_one[tower])
    assert torch.equal(stage_one[tower], last[tower])
    assert torch.equal(first["embed.weight"], stage_one["embed.weight"])
    assert not torch.equal(stage_one["embed.weight"], last["embed.weight"])
    assert torch.equal(first["model.pixel_decoder.weight"], last["model.pixel_decoder.weight"])


def test_non_finite_loss_stops_before_the_optimizer_and_names_samples(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data=[{"name": "tiny", "args": {"poison": 14}}])
    with pytest.raises(NonFiniteLossError, match=r"step 4 .*'tiny-14-poison'"):
        train(config)
    saved = list((tmp_path / "tiny" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step_00000003"]


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tiny_config(tmp_path))
    with pytest.raises(ValueError, match="already holds a run"):
        train(tiny_config(tmp_path))


def test_steps_may_change_on_resume_and_the_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tiny_config(tmp_path), on_event=stop_at(11))
    config = tiny_config(tmp_path)
    stages = [stage.model_dump() for stage in config.stages]
    stages[1]["steps"] = 5
    _, events = run_and_collect(tiny_config(tmp_path, stages=stages), resume=True)
    assert events[0].values["changes"] == {"stages.1.steps": [8, 5]}
    assert events[-1].kind == "end"
    assert events[-1].step == 11
    with pytest.raises(ValueError, match="cannot change 'seed'"):
        train(tiny_config(tmp_path, seed=3), resume=True)


def test_keeps_the_last_checkpoints_and_the_resolved_config(tmp_path: Path) -> None:
    run = train(tiny_config(tmp_path))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_00000012", "step_00000014"]
    saved = (run / "checkpoints" / names[0] / "config.yaml").read_text()
    assert saved == (run / "config.yaml").read_text() == tiny_config(tmp_path).to_yaml()


def test_time_limit_brings_the_decay_forward(tmp_path: Path) -> None:
    stage = tiny_config(tmp_path).stages[1].model_dump()
    stage |= {"steps": 100_000, "max_minutes": 1e-9, "decay_fraction": 0.5, "warmup_steps": 0}
    _, events = run_and_collect(tiny_config(tmp_path, stages=[stage]))
    assert [event.values for event in events if event.kind == "time_limit"] == [
        {"minutes": 1e-9, "stage_ends_after": 2}
    ]
    assert events[-1].step == 2


def test_a_rate_that_falls_from_the_start_falls_within_a_time_limit_too(tmp_path: Path) -> None:
    stage = tiny_config(tmp_path).stages[1].model_dump()
    stage |= {"steps": 100_000, "max_minutes": 1e-9, "decay_fraction": 1.0, "warmup_steps": 0}
    _, events = run_and_collect(tiny_config(tmp_path, stages=[stage], log_every=1))
    rates = [event.values["learning_rate"] for event in events if event.kind == "step"]
    assert len(rates) == 20
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] <= rates[0] / 10


def test_steps_ahead_are_told_by_the_pace_where_time_limits_them(tmp_path: Path) -> None:
    stage = tiny_config(tmp_path).stages[1].model_dump()
    timed = stage | {"name": "timed", "steps": 100_000, "max_minutes": 5}
    events: list[TrainEvent] = []
    run = trainer.Run(
        tiny_config(tmp_path, stages=[timed, stage, timed | {"name": "later"}]),
        events.append,
        evaluate_run,
    )
    assert run.likely_end() == 100_000  # nothing is known yet
    run.state.step = run.state.stage_step = 30
    run.state.stage_seconds = 60.0
    assert run.likely_end() == 150
    run._report("step", {})
    assert events[-1].total_steps == 150 + stage["steps"] + 150
    run.state.stage_end = 40
    assert run.likely_end() == 40


def test_evaluation_is_called_and_changes_nothing(tmp_path: Path) -> None:
    def evaluate(model: Any, processor: Any, settings: Any) -> dict[str, float]:
        assert settings.num_scenes == 100
        assert not model.training
        return {"giou": float(torch.rand(()))}

    plain = train(tiny_config(tmp_path / "plain"))
    evaluated, events = run_and_collect(
        tiny_config(tmp_path / "evaluated", evaluation={"every_steps": 4}), evaluate=evaluate
    )
    assert_same_weights(plain, evaluated)
    assert [e.step for e in events if e.kind == "evaluation"] == [4, 6, 8, 12, 14]
