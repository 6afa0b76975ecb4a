"""Samples that do not fit into a row: counted in the log, told at the end, never a stop."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_training import TinyCollator, TinyRun, final_weights, tiny_config

from pixellm.cli.display import TrainDisplay
from pixellm.training import stream, trainer
from pixellm.training.trainer import train
from pixellm.types import Sample


class Choosy(TinyCollator):
    """Leaves out every third image with its one turn."""

    step = 3

    def __call__(self, rows: list[tuple[Sample, ...]]) -> dict[str, Any]:
        kept = [row for row in rows if int(row[0].id.split("-")[1]) % self.step]
        batch = super().__call__(kept or rows[:1])
        if not kept:
            batch |= {"labels": torch.full_like(batch["labels"], -100)}
            batch |= {name: batch[name][:0] for name in ("target_masks", "target_rows")}
        if len(kept) < len(rows):
            batch |= {"num_dropped_turns": len(rows) - len(kept)}
            batch |= {"num_dropped_rows": len(rows) - len(kept)}
        return batch


class NothingFits(Choosy):
    step = 1


@pytest.fixture(autouse=True)
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.DATASETS, "tiny", "tiny_training:TinyDataset")
    monkeypatch.setattr(trainer, "Run", TinyRun)
    monkeypatch.setattr(TinyRun, "_collator", lambda run: Choosy())


class StoppedError(Exception):
    pass


def stop_at_eight(event: Any) -> None:
    if event.kind == "step" and event.step == 8:
        raise StoppedError


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


def test_what_is_left_out_is_counted_in_the_log_and_told_once_at_the_end(tmp_path: Path) -> None:
    shown = io.StringIO()
    with TrainDisplay(Console(file=shown, width=200)) as display:
        run = train(tiny_config(tmp_path, log_every=3), on_event=display)
    lines = log_of(run)
    counts = {line["step"]: line["dropped_rows"] for line in lines if line["event"] == "step"}
    assert counts == {3: 4, 6: 4, 9: 8, 12: 8, 14: 6}  # of 12, 12, 24, 24 and 16 images
    end = lines[-1]
    assert (end["event"], end["samples"]) == ("end", 88)
    assert end["dropped_rows"] == end["dropped_turns"] == sum(counts.values()) == 30
    told = [line for line in shown.getvalue().splitlines() if "Left out" in line]
    assert told == [
        "Left out because they do not fit into collate.max_length: 30 turns, among them all of 30 "
        "of 88 images."
    ]
    assert "dropped" not in shown.getvalue()


def test_a_run_with_samples_left_out_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = train(tiny_config(tmp_path / "whole"))
    broken = tiny_config(tmp_path / "broken")
    with pytest.raises(StoppedError):
        train(broken, on_event=stop_at_eight)
    train(broken, resume=True)
    for name, value in final_weights(whole).items():
        assert torch.equal(value, final_weights(broken.run_folder)[name]), name
    ends = [log_of(run)[-1] for run in (whole, broken.run_folder)]
    assert ends[0] == ends[1]


def test_a_step_of_which_nothing_fits_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRun, "_collator", lambda run: NothingFits())
    with pytest.raises(ValueError, match=r"None of the 4 samples of step 1 .*collate\.max_length"):
        train(tiny_config(tmp_path))
