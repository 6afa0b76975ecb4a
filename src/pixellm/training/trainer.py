"""The training loop: stages, steps, checkpoints, log. It reads from top to bottom.

Reports through events and a log file and never prints. What a run is made of, how parameters are
grouped, what is minimised, where data come from and how state is stored live in the modules next
to it.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixellm.training import checkpoints
from pixellm.training.config import RunConfig
from pixellm.training.distribution import (
    agreed,
    clip_gradients,
    is_sharded,
    micro_batch,
    prepare,
    restore_optimizer,
    unsharded,
    whole_optimizer_state,
    whole_state,
)
from pixellm.training.objective import (
    Normalisers,
    count_batch,
    count_left_out,
    normalisers_of,
)
from pixellm.training.optim import StageOptimizer, group_parameters, learning_rate_factor
from pixellm.training.progress import EventCallback, Meter, peak_memory
from pixellm.training.run import Evaluate, Run
from pixellm.training.stream import Batch, Mixture, batch_stream, build_sources
from pixellm.training.validation import evaluate_run
from pixellm.training.zero import uses_zero

SHARE_TIMED = 0.05
"""Least share of a stage's time after which its length in steps is planned."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was not finite; raised before the optimizer moved anything."""


def train(
    config: RunConfig,
    on_event: EventCallback | None = None,
    resume: bool | int | Path = False,
    evaluate: Evaluate = evaluate_run,
) -> Path:
    """Runs a recipe to its end.

    The result is in `<run>/model` in the standard format (averaged weights where the recipe asks
    for an average; adapters alone where it trains these), next to `best/` where it evaluates,
    `config.yaml`, `train_log.jsonl` and `checkpoints/`.

    Args:
        config: the recipe.
        on_event: called on the main process, about every `log_every` steps.
        resume: True continues from the newest checkpoint (or starts, where there is none), a
            number from that of this step, a path from that one. One process continues to the
            bit.
        evaluate: (model, processor, settings) -> scores, called as `config.evaluation` says.

    Returns:
        The run folder.

    Raises:
        ValueError: the run folder holds something and `resume` is False, there is no checkpoint
            to resume, or the recipe does not fit.
        KeyboardInterrupt: SIGINT was sent; the step was finished and a checkpoint written first.
            A second one stops at once.
        ValueError, OSError: data that cannot be used, or a step of which no sample fits.
        NonFiniteLossError: with the ids of the samples of the step.
    """
    is_main = os.environ.get("RANK", "0") == "0"  # others may come when it has begun to write
    if is_main:  # before the folder is touched, and below when no other process may write there
        checkpoints.checkpoint_to_resume(config.run_folder, resume)
    with checkpoints.own_run_folder(config.run_folder) if is_main else nullcontext():
        checkpoint = None
        if is_main or resume is not False:
            checkpoint = checkpoints.checkpoint_to_resume(config.run_folder, resume)
        run = _Run(config, on_event or (lambda event: None), evaluate)
        try:
            run.set_up(checkpoint)
            with run.stop_at_interrupt():
                while run.state.stage < len(config.stages):
                    run.train_stage()
                    run.state.enter_next_stage()
            run.save_result()
        finally:
            run.log.close()
        for tracker in getattr(run.accelerator, "trackers", ()):
            tracker.finish()
    return config.run_folder


class _Run(Run):
    """A run with its loop."""

    _is_stopping = False

    @contextmanager
    def stop_at_interrupt(self) -> Iterator[None]:
        """Inside, the first SIGINT lets the step end and a checkpoint be written; see `train`."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may take signals
            return

        def note(number: int, frame: object) -> None:
            self._is_stopping = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _must_stop(self) -> bool:
        """Whether any process was told to stop; all must ask."""
        if self.accelerator.num_processes == 1:
            return self._is_stopping
        told = torch.tensor(float(self._is_stopping), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    # Once per stage: what trains, a fresh optimizer, the stage's data.

    def train_stage(self) -> None:
        """Trains from the present step of the present stage to its end."""
        parameters = self.objective.parameters_by_name()
        groups = group_parameters(parameters, self.stage, self.config.optimizer, self.fixed)
        self.optimizer = StageOptimizer(parameters, groups, self.config.optimizer)
        batch_size = self.stage.batch_size
        module = prepare(self.accelerator, self.objective, self.optimizer, batch_size)
        if self.restored is not None:
            begun = self.state.stage_step > 0
            parts = (self.accelerator, self.objective, self.optimizer, self.restored)
            try:
                restore_optimizer(*parts, with_state=begun)
            except (IndexError, KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    "The checkpoint does not fit the recipe: its optimizer trains other parameters "
                    f"than stage {self.stage.name!r} does now; resume with the former settings."
                ) from error
            checkpoints.restore_random_states(self.restored["random"])
            self.restored = None
        rows = list(itertools.chain.from_iterable(group.rows() for group in groups))
        limit = self.stage.max_minutes
        self._report("stage", {"steps": self.stage_end, "max_minutes": limit, "groups": rows})
        self.objective.train()
        self.meter = Meter()
        if self._is_evaluation_due():  # the run was stopped between a checkpoint and its scores
            self._evaluate()
        self.clock = time.monotonic()
        for batches in self._steps():
            self._step(module, batches)
            self._after_step()
        self.accelerator.free_memory()

    def _steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each remaining optimizer step of the stage."""
        stage = self.stage
        sources = build_sources(self.config.data, stage)
        stream = batch_stream(
            Mixture(sources, [source.weight for source in self.config.data]),
            self._collator(),
            start=self.state.samples,
            batch_size=stage.batch_size,
            num_batches=max(0, self.stage_end - self.state.stage_step) * stage.accumulation,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=self.config.num_workers,
        )
        while self.state.stage_step < self.stage_end:
            yield list(itertools.islice(stream, stage.accumulation))

    # Every step: forward and backward over its micro-batches, then the optimizer.

    def _step(self, module: nn.Module, batches: list[Batch]) -> None:
        """One optimizer step; nothing moves where a loss or gradient is not finite."""
        accelerator = self.accelerator
        counts = self._count(batches)
        self.optimizer.set_learning_rates(self._learning_rate_factor())
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with micro_batch(accelerator, module, last=batch is batches[-1]):
                with accelerator.autocast():
                    losses = module(self._to_device(batch), self.stage.loss, counts)
                _refuse_non_finite(losses["total"], "loss", self.state.step, [batch])
                # Processes average their gradients, while each loss is a share of one sum.
                accelerator.backward(losses["total"] * accelerator.num_processes)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        norm = clip_gradients(accelerator, module, self.optimizer)
        _refuse_non_finite(norm, "gradient", self.state.step, batches)
        if not uses_zero(accelerator):
            self.optimizer.step()
        if self.average is not None:
            self.average.update()
        images = self._images_of(batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        values = {**sums, "grad_norm": norm / accelerator.num_processes}
        self.meter.add(values, images, tokens)
        self.state.step += 1
        self.state.stage_step += 1
        self.state.samples += images

    def _count(self, batches: list[Batch]) -> Normalisers:
        """What the step holds over all processes; what was left out goes into the log.

        Raises:
            ValueError: no sample fits; on every process, so that none waits for the others.
        """
        parts = [torch.cat([count_batch(batch), count_left_out(batch)]) for batch in batches]
        local = torch.stack(parts).sum(0).to(self.accelerator.device)
        total = self.accelerator.reduce(local, "sum")
        turns, rows = (int(value) for value in total[-2:])
        if rows == self._images_of(batches):
            raise ValueError(
                f"None of the {rows} samples of step {self.state.step + 1} fits into "
                f"{self.config.collate.max_length} tokens; raise collate.max_length."
            )
        self.state.dropped_turns += turns
        self.state.dropped_rows += rows
        self.meter.dropped_turns += turns
        self.meter.dropped_rows += rows
        return normalisers_of(total[:-2])

    def _images_of(self, batches: list[Batch]) -> int:
        """Images that a step takes from the data over all processes, kept or left out."""
        return self.stage.batch_size * len(batches) * self.accelerator.num_processes

    def _to_device(self, batch: Batch) -> dict[str, Tensor]:
        device = self.accelerator.device
        moved = {k: value.to(device) for k, value in batch.items() if isinstance(value, Tensor)}
        if self.config.channels_last:
            pixels = moved["pixel_values"]
            moved["pixel_values"] = pixels.contiguous(memory_format=torch.channels_last)
        return moved

    def _learning_rate_factor(self) -> float:
        stage = self.stage
        return learning_rate_factor(
            self.state.stage_step, self.stage_end, stage.warmup_steps, stage.decay_fraction
        )

    # After each step: time, log, checkpoint, evaluation; each when its turn comes.

    def _after_step(self) -> None:
        state, config = self.state, self.config
        now = time.monotonic()
        state.stage_seconds += now - self.clock
        self.clock = now
        self._plan_end()
        ends = state.stage_step >= self.stage_end
        if ends or state.step % config.log_every == 0:
            self._report_step()
        stops = self._must_stop()
        if ends or stops or state.step % config.checkpoint.every_steps == 0:
            self._write_checkpoint()
        if stops:
            raise KeyboardInterrupt(f"Stopped after step {state.step}, which is saved")
        if self._is_evaluation_due():
            self._evaluate()

    def _plan_end(self) -> None:
        """Brings the decay forward when the stage's time runs out; later steps follow from it.

        Before the rate falls the steps done so far tell how many the time allows; a rate that is
        to fall from the start stands still until they do.
        """
        limit, state = self.stage.max_minutes, self.state
        if limit is None or state.stage_end is not None:
            return
        constant = max(1 - self.stage.decay_fraction, SHARE_TIMED)
        if state.stage_seconds < limit * 60 * constant:
            return
        end = math.ceil(state.stage_step / constant)
        if end < self.stage.steps:
            state.stage_end = end
            self._report("time_limit", {"minutes": limit, "stage_ends_after": end})

    def _report_step(self) -> None:
        meter, state = self.meter, self.state
        seconds = meter.seconds()
        names, means = meter.means()
        tokens = means.new_tensor([meter.tokens / seconds])
        *means, rate = self.accelerator.reduce(torch.cat([means, tokens]), "sum").tolist()
        values: dict[str, Any] = dict(zip(names, means, strict=True))
        values["learning_rate"] = self.stage.learning_rate * self._learning_rate_factor()
        values["images_per_second"] = round(meter.images / seconds, 2)
        values["tokens_per_second"] = round(rate, 1)
        values["peak_memory_gb"] = round(peak_memory(self.accelerator.device) / 1e9, 3)
        left = (self.likely_end() - state.stage_step) * seconds / meter.steps
        values["seconds_left"] = round(left, 1)
        values["dropped_turns"], values["dropped_rows"] = meter.dropped_turns, meter.dropped_rows
        self._report("step", values)
        self.meter = Meter()

    def _is_evaluation_due(self) -> bool:
        state, every = self.state, self.config.evaluation.every_steps
        if not every or state.evaluated_step >= state.step:
            return False
        return state.stage_step >= self.stage_end or state.step % every == 0

    def _evaluate(self) -> None:
        """Scores the weights on the main process, or on all where each holds a part of them."""
        is_main = self.accelerator.is_main_process
        if is_main or is_sharded(self.accelerator):
            self._score()
        self.state.evaluated_step = self.state.step
        if is_main:
            checkpoints.update_state(self.folder / "checkpoints", self.state)
        self.accelerator.wait_for_everyone()

    def _score(self) -> None:
        """Scores the (averaged) weights and keeps the best; random states stay as they were."""
        states = checkpoints.random_states()
        self.objective.eval()
        with (
            self._averaged_weights(),
            unsharded(self.objective),
            self.accelerator.autocast(),
            torch.no_grad(),
        ):
            scores = self.evaluate(self.model, self.processor, self.config.evaluation)
        self.objective.train()
        checkpoints.restore_random_states(states)
        self._report("evaluation", dict(scores))
        score = scores.get(self.config.evaluation.best_by)
        self._keep_best(agreed(score) if is_sharded(self.accelerator) else score)

    def _keep_best(self, score: float | None) -> None:
        best = self.state.best_score
        if score is not None and (best is None or score > best):
            self.state.best_score = score
            self._write_model(self.folder / "best")

    def _write_checkpoint(self) -> None:
        is_main = self.accelerator.is_main_process
        weights = {
            name: value
            for name, value in whole_state(self.accelerator, self.objective).items()
            if name.removeprefix("model.") not in self.fixed
        }
        trainer = {
            "weights": weights,
            "optimizer": whole_optimizer_state(
                self.accelerator, self.objective, self.optimizer, self.state.stage_step
            ),
            "average": self.average.state_dict() if self.average else None,
            "random": checkpoints.random_states(),
        }
        write_model = self._model_writer()
        if is_main:
            path = checkpoints.write_checkpoint(
                self.folder / "checkpoints",
                self.state,
                trainer,
                self.config.to_yaml(),
                write_model,
                self.config.checkpoint.keep_last,
            )
            self._report("checkpoint", {"path": path.name})
        self.accelerator.wait_for_everyone()


def _refuse_non_finite(value: Tensor, what: str, step: int, batches: Sequence[Batch]) -> None:
    """Raises where `value` is NaN or infinite, naming the samples that led to it."""
    if not bool(torch.isfinite(value).all()):
        ids = ", ".join(repr(name) for batch in batches for name in batch["sample_ids"])
        raise NonFiniteLossError(
            f"The {what} of step {step + 1} is not finite ({value.item()}); no weight was moved. "
            f"Samples: {ids}."
        )
