"""Trackers beside the log, where their package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import TinyRun, tiny_config

from pixellm.training import stream, trainer


def test_tensorboard_gets_the_figures_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stream.DATASETS, "tiny", "tiny_training:TinyDataset")
    monkeypatch.setattr(trainer, "Run", TinyRun)
    run = trainer.train(tiny_config(tmp_path, trackers=["tensorboard"]))
    written = b"".join(path.read_bytes() for path in (run / "trackers").rglob("events.out.*"))
    for figure in (b"step/total", b"step/images_per_second", b"step/learning_rate"):
        assert figure in written, figure
