"""A run loses nothing: interrupts, older checkpoints, damage, full disks, foreign files, locks."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from tiny_training import assert_same_weights, tiny_config, use_tiny_parts

from pixellm.files import locked
from pixellm.training import trainer
from pixellm.training.checkpoints import list_checkpoints
from pixellm.training.config import RunConfig
from pixellm.training.trainer import TrainEvent, train

KEEP_ALL = {"every_steps": 3, "keep_last": 9}


@pytest.fixture(scope="module", autouse=True)
def _tiny_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Run", trainer.Run)
        use_tiny_parts()
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all its checkpoints; don't write into it."""
    return train(tiny_config(tmp_path_factory.mktemp("whole"), checkpoint=KEEP_ALL))


@pytest.fixture
def finished(tmp_path: Path, whole: Path) -> RunConfig:
    """The recipe of a copy of that run."""
    shutil.copytree(whole, tmp_path / "tiny")
    return tiny_config(tmp_path, checkpoint=KEEP_ALL)


def steps_of(config: RunConfig) -> list[int]:
    found = list_checkpoints(config.run_folder / "checkpoints")
    return [int(path.name.removeprefix("step_")) for path in found]


def test_an_interrupt_saves_the_step_first(tmp_path: Path, whole: Path) -> None:
    def interrupt(event: TrainEvent) -> None:
        if event.kind == "step" and event.step == 7:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 7, which is saved"):
        train(tiny_config(tmp_path), interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert steps_of(tiny_config(tmp_path))[-1] == 7
    train(tiny_config(tmp_path), resume=True)
    assert_same_weights(tmp_path / "tiny", whole)


def test_a_run_goes_back_to_an_older_checkpoint(finished: RunConfig, whole: Path) -> None:
    copy = finished.run_folder / "checkpoints" / "step_00000014_copy"
    shutil.copytree(copy.with_name("step_00000014"), copy)
    assert steps_of(finished) == [3, 6, 9, 12, 14], "a copy is not the run's"
    with pytest.raises(ValueError, match="no checkpoint of step 5; there is 3, 6, 9, 12, 14"):
        train(finished, resume=5)
    events: list[Any] = []
    train(finished, resume=6, on_event=events.append)
    assert events[0].values["checkpoint"] == "step_00000006"
    assert [e.step for e in events if e.kind == "step"] == list(range(7, 15))
    assert steps_of(finished) == [3, 6, 9, 12, 14]
    assert_same_weights(finished.run_folder, whole)
    left = sorted(path.name for path in (finished.run_folder / "checkpoints").glob("abandoned*"))
    assert left == [f"abandoned_step_{step:08d}" for step in (9, 12, 14)]


@pytest.mark.parametrize("name", ["state.json", "config.yaml", "trainer.pt"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"PK\x03\x04 cut", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_one_sentence(
    finished: RunConfig, name: str, content: bytes
) -> None:
    newest = list_checkpoints(finished.run_folder / "checkpoints")[-1]
    (newest / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged \({name} can't be read\); .* --resume 12\."):
        train(finished, resume=True)


def test_a_state_that_no_run_was_in_is_refused(finished: RunConfig) -> None:
    path = list_checkpoints(finished.run_folder / "checkpoints")[-1] / "state.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"samples": "many"}))
    with pytest.raises(ValueError, match=r"state\.json can't be read"):
        train(finished, resume=True)
    path.write_text(json.dumps(values))
    fewer = finished.model_copy(update={"stages": finished.stages[:1]})
    with pytest.raises(
        ValueError, match=r"lies in stage 2, and the recipe has 1; resume with the f"
    ):
        train(fewer, resume=True)
    assert steps_of(finished) == [3, 6, 9, 12, 14]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits on the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written.*make room") as told:
            train(tiny_config(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "tiny" / "checkpoints").glob(".step*"))


def test_foreign_files_in_the_folder_of_a_run_are_left_alone(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    model = config.run_folder / "model"
    model.mkdir(parents=True)
    (model / "weights.pt").write_bytes(b"foreign")
    with pytest.raises(ValueError, match="holds model and no run"):
        train(config)
    (config.run_folder / "train_log.jsonl").write_text(json.dumps({"event": "stage"}) + "\n")
    with pytest.raises(ValueError, match="model was not written by this run"):
        train(config, resume=True)
    assert (model / "weights.pt").read_bytes() == b"foreign"


@pytest.mark.parametrize("line", ["?", "3", '{"path": []}'])
def test_a_damaged_log_is_told_with_its_place(tmp_path: Path, line: str) -> None:
    config = tiny_config(tmp_path)
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "train_log.jsonl").write_text('{"event": "stage"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*train_log\.jsonl is damaged"):
        train(config, resume=True)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.run_folder.mkdir(parents=True)
    with locked(config.run_folder), pytest.raises(OSError, match="Another process is writing"):
        train(config)


def test_another_model_or_freeze_does_not_fit(
    finished: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, joint = (stage.model_dump() for stage in finished.stages)
    joint |= {"steps": 20}

    def changed(**stage: Any) -> RunConfig:
        return tiny_config(finished.output_dir, stages=[first, joint | stage])

    with pytest.raises(ValueError, match="The checkpoint does not fit the recipe"):
        train(changed(freeze=["*vision_tower"]), resume=True)
    wide = torch.nn.Embedding(17, 8)

    class WideModel(tiny_training.TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.embed = wide

    monkeypatch.setattr(tiny_training, "TinyModel", WideModel)
    with pytest.raises(ValueError, match=r"The checkpoint does not fit the recipe: .*size"):
        train(changed(), resume=True)
