"""A run, from its recipe to its model: set-up, stages, steps, scores, files. Read it downwards.

Reports through events and a log file and never prints. How a model is built, parameters are
grouped, losses computed, data drawn and checkpoints stored lies in the modules next to it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pixellm.data.collate import Collator
from pixellm.files import LineLog, finish_exchange, replace_folder, write_files
from pixellm.threads import choose_threads
from pixellm.training import checkpoints
from pixellm.training.auxiliary import build_heads
from pixellm.training.config import EvaluationConfig, RunConfig, Stage
from pixellm.training.distribution import agreed, build_accelerator, gather, prepare, unsharded
from pixellm.training.dotted_keys import differences, flatten
from pixellm.training.objective import (
    Normalisers,
    Objective,
    count_batch,
    normalisers_of,
)
from pixellm.training.optim import (
    StageOptimizer,
    average_weights,
    group_parameters,
    learning_rate_factor,
    swap_weights,
)
from pixellm.training.setup import (
    RunModel,
    fixed_names,
    names_that_train,
    save_run_model,
    set_types,
    set_up_model,
)
from pixellm.training.stream import (
    Batch,
    Mixture,
    SampleDataset,
    batch_stream,
    build_sources,
    check_sources,
    question_texts,
)
from pixellm.training.validation import evaluate_run, open_evaluation_data

SHARE_TIMED = 0.05
"""Least share of a stage's time after which its length in steps is planned."""

_MISFIT = "The checkpoint does not fit the recipe"

Evaluate = Callable[[Any, Any, EvaluationConfig], Mapping[str, float]]
"""(model, processor, settings) -> scores."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was not finite; raised before the optimizer moved anything."""


@dataclass(frozen=True, slots=True)
class TrainEvent:
    """What happened, for a progress display.

    Attributes:
        kind: "resume", "stage" (values: its steps and minutes at most, `groups`, what trains),
            "step" (losses, rates, time left in the stage), "time_limit", "evaluation",
            "checkpoint" or "end".
        total_steps: of the whole run, as now planned; where stages are limited by time, what the
            pace so far makes likely.
        values: figures of the event; losses are means over the steps since the last one.
    """

    kind: str
    step: int
    total_steps: int
    stage: str
    values: Mapping[str, Any]


EventCallback = Callable[[TrainEvent], None]


def train(
    config: RunConfig,
    on_event: EventCallback | None = None,
    resume: bool | int | Path = False,
    evaluate: Evaluate = evaluate_run,
) -> Path:
    """Run a recipe to its end.

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
        run = Run(config, on_event or (lambda event: None), evaluate)
        try:
            run.set_up(checkpoint)
            with run.stop_at_interrupt():
                while run.state.stage < len(config.stages):
                    run.train_stage()
                    run.state.enter_next_stage()
            run.save_result()
        finally:
            run.close_log()
        for tracker in getattr(run.accelerator, "trackers", ()):
            tracker.finish()
    return config.run_folder


@dataclass
class Meter:
    """Means of losses and speed since the last log line."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    tokens: int = 0
    dropped_turns: int = 0
    dropped_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, losses: Mapping[str, Tensor], images: int, tokens: int) -> None:
        """Count one step in: images of all processes, tokens of this one."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.steps += 1
        self.images += images
        self.tokens += tokens

    def means(self) -> tuple[list[str], Tensor]:
        """Names, and the mean of each over the steps, still on the device."""
        names = list(self.sums)
        return names, torch.stack([self.sums[name].float() for name in names]) / self.steps

    def seconds(self) -> float:
        """Time since the last log line."""
        return max(time.monotonic() - self.started, 1e-9)


class Run:
    """All state of a run, and what is done with it."""

    def __init__(self, config: RunConfig, on_event: EventCallback, evaluate: Evaluate) -> None:
        self.config = config
        self.on_event = on_event
        self.evaluate = evaluate
        self.state = checkpoints.TrainState()
        self.folder = config.run_folder
        self.accelerator = build_accelerator(config)
        self._log: LineLog | None = None
        self._is_stopping = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.config.stages[self.state.stage]

    # Once, before the first step: model, processor, heads, average; state of a checkpoint.

    def set_up(self, checkpoint: Path | None) -> None:
        """Build or load everything that lives as long as the run."""
        checkpoints.seed_everything(self.config.seed)
        if self.is_main:
            for name in ("best", "model"):
                finish_exchange(self.folder / name)
        sources = build_sources(self.config.data, self.config.stages[0])
        check_sources(self.config.data, self.config.stages)
        if self.config.evaluation.every_steps:
            open_evaluation_data(self.config.evaluation)
        self.restored: dict[str, Any] | None = None
        saved: dict[str, Any] = {}
        if checkpoint is not None:
            self.state, self.restored, saved = checkpoints.read_checkpoint(checkpoint)
            if self.state.stage >= len(self.config.stages):
                raise ValueError(
                    f"{_MISFIT}: it lies in stage {self.state.stage + 1}, and the recipe has "
                    f"{len(self.config.stages)}; resume with the former settings."
                )
        self.run_model = self._set_up_model(checkpoint, sources)
        self.model, self.processor = self.run_model.model, self.run_model.processor
        size = sum(weight.numel() for weight in self.model.parameters())
        if count := choose_threads(size, self.config.threads, self.config.num_workers):
            torch.set_num_threads(count)
        self.class_names = _class_names(self.config, sources)
        heads = build_heads(self.model.config, self.config.stages, len(self.class_names))
        distributed = self.accelerator.num_processes > 1
        self.objective = Objective(self.model, heads, keep_decoder_busy=distributed)
        self._choose_what_trains()
        if not self.accelerator.is_fsdp2:  # which places each shard by itself
            self.objective.to(self.accelerator.device)
        if self.config.channels_last:
            self.model.model.vision_tower.to(memory_format=torch.channels_last)
        if self.restored is not None:
            self._restore_weights(self.restored["weights"])
        self._set_up_average()
        self._open_run_folder(checkpoint, saved)

    def _set_up_model(self, checkpoint: Path | None, sources: Sequence[SampleDataset]) -> RunModel:
        texts = question_texts(sources, self.config.vocabulary_samples)
        return set_up_model(self.config, checkpoint, texts, is_main=self.is_main)

    def _choose_what_trains(self) -> None:
        """Names of what never moves and of what does, and the types of both."""
        self.fixed = fixed_names(self.model, self.config)
        parameters = self.objective.parameters_by_name()
        self.trained = names_that_train(parameters, self.config, self.fixed)
        set_types(parameters, self.trained, self.config)

    def _restore_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill in a checkpoint's weights; those under adapters are the base model's."""
        with _fitting("", RuntimeError):  # the size of a tensor
            missing, unexpected = self.objective.load_state_dict(weights, strict=False)
        lost = [n for n in missing if n.removeprefix("model.") not in self.fixed]
        if lost or unexpected:
            raise ValueError(f"{_MISFIT}: {[*lost, *unexpected][0]!r} is in one of them only.")

    def _set_up_average(self) -> None:
        self.average = None
        if self.config.ema_decay <= 0:
            return
        named = self.model.named_parameters()
        self.followed = nn.ParameterList(p for name, p in named if name not in self.fixed)
        self.average = average_weights(self.followed, self.config.ema_decay)
        if self.restored is None or self.restored["average"] is None:
            return
        with _fitting("its average is of other weights", KeyError, RuntimeError):
            self.average.load_state_dict(self.restored["average"])

    def _open_run_folder(self, checkpoint: Path | None, saved: Mapping[str, Any]) -> None:
        """Write the resolved recipe; a resume records what differs from the saved one."""
        resolved = self.config.to_yaml()
        if checkpoint is not None:
            changes = differences(saved, yaml.safe_load(resolved))
            fixed = [key for key in changes if key.split(".")[0] in ("model", "seed")]
            if fixed:
                raise ValueError(f"A resumed run cannot change {fixed[0]!r}; start a new run.")
            is_own = checkpoint.parent.resolve() == (self.folder / "checkpoints").resolve()
            left = checkpoints.set_aside_newer(checkpoint) if self.is_main and is_own else []
            abandoned = {"abandoned": left} if left else {}
            self._report("resume", {"checkpoint": checkpoint.name, "changes": changes, **abandoned})
        if self.config.trackers:
            settings = flatten(yaml.safe_load(resolved)).items()
            plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings}
            self.accelerator.init_trackers(self.config.name, plain)
        if self.is_main:
            write_files({self.folder / "config.yaml": resolved.encode("utf-8")})

    # Once per stage: what trains, a fresh optimizer, the stage's data.

    def train_stage(self) -> None:
        """Train from the present step of the present stage to its end."""
        parameters = self.objective.parameters_by_name()
        groups = group_parameters(parameters, self.stage, self.config.optimizer, self.fixed)
        self.optimizer = StageOptimizer(parameters, groups, self.config.optimizer)
        module = prepare(self.accelerator, self.objective, [*self.optimizer.optimizers.values()])
        if self.restored is not None:
            self._restore_optimizer(self.restored)
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

    def _restore_optimizer(self, restored: Mapping[str, Any]) -> None:
        """Fill in moments and random states; at the start of a stage the moments are fresh."""
        if self.state.stage_step > 0:
            reason = f"its optimizer trains other parameters than stage {self.stage.name!r} does"
            with _fitting(reason, LookupError, RuntimeError, ValueError):
                self.optimizer.load_state_dict(restored["optimizer"])
        checkpoints.restore_random_states(restored["random"])

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

    def _collator(self) -> Collator:
        sizes = self.config.collate
        return Collator(
            self.processor,
            sizes.mask_size,
            self.class_names,
            sizes.max_length,
            sizes.class_map_size,
            sizes.max_text_length,
            with_objects=self.stage.loss.needs_objects,
            encoder_classes=getattr(self.model.config.vision_config, "class_names", ()),
        )

    # Every step: forward and backward over its micro-batches, then the optimizer.

    def _step(self, module: nn.Module, batches: list[Batch]) -> None:
        """Make one optimizer step; nothing moves where a loss or gradient is not finite."""
        accelerator = self.accelerator
        counts = self._count(batches)
        self.optimizer.set_learning_rates(self._learning_rate_factor())
        sums: dict[str, Tensor] = {}
        for batch in batches:  # gradients are exchanged at the last one of a step alone
            with nullcontext() if batch is batches[-1] else accelerator.no_sync(module):
                with accelerator.autocast():
                    losses = module(self._to_device(batch), self.stage.loss, counts)
                _refuse_non_finite(losses["total"], "loss", self.state.step, [batch])
                # Processes average their gradients, while each loss is a share of one sum.
                accelerator.backward(losses["total"] * accelerator.num_processes)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        norm = self.optimizer.clip_gradients()
        _refuse_non_finite(norm, "gradient", self.state.step, batches)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.followed)
        images = self._images_of(batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        values = {**sums, "grad_norm": norm / accelerator.num_processes}
        self.meter.add(values, images, tokens)
        self.state.step += 1
        self.state.stage_step += 1
        self.state.samples += images

    def _count(self, batches: list[Batch]) -> Normalisers:
        """What the step holds over all processes; what was left out goes into the log.

        Where no sample fits it fails on every process, so that none waits for the others.
        """
        local = torch.stack([count_batch(batch) for batch in batches]).sum(0)
        total = self.accelerator.reduce(local.to(self.accelerator.device), "sum")
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

    # How long a stage is: its steps, or what its time allows.

    @property
    def stage_end(self) -> int:
        """Steps that the present stage will have at its end."""
        return self.state.stage_end or self.stage.steps

    def likely_end(self) -> int:
        """Steps that the present stage will have when its time runs out, at the pace so far."""
        state = self.state
        if state.stage_end is not None or self.stage.max_minutes is None or not state.stage_step:
            return self.stage_end
        return max(state.stage_step, self._steps_in_time(self.stage))

    def _steps_in_time(self, stage: Stage) -> int:
        """Steps of a stage that its time allows, each as long as one of the present stage."""
        state = self.state
        if stage.max_minutes is None or not state.stage_seconds:
            return stage.steps
        return min(
            stage.steps, round(stage.max_minutes * 60 * state.stage_step / state.stage_seconds)
        )

    def _plan_end(self) -> None:
        """Bring the decay forward when the stage's time runs out; later steps follow from it.

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

    # Scores during the run.

    def _is_evaluation_due(self) -> bool:
        state, every = self.state, self.config.evaluation.every_steps
        if not every or state.evaluated_step >= state.step:
            return False
        return state.stage_step >= self.stage_end or state.step % every == 0

    def _evaluate(self) -> None:
        """Score the weights on the main process, or on all where each holds a part of them."""
        if self.is_main or self.accelerator.is_fsdp2:
            self._score()
        self.state.evaluated_step = self.state.step
        if self.is_main:
            checkpoints.update_state(self.folder / "checkpoints", self.state)
        self.accelerator.wait_for_everyone()

    def _score(self) -> None:
        """Score the (averaged) weights and keep the best; random states stay as they were."""
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
        score = agreed(score) if self.accelerator.is_fsdp2 else score
        best = self.state.best_score
        if score is not None and (best is None or score > best):
            self.state.best_score = score
            self._write_model(self.folder / "best")

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The model holds the average inside, where the run keeps one."""
        if self.average is None:
            yield
            return
        swap_weights(self.average, self.followed)
        try:
            yield
        finally:
            swap_weights(self.average, self.followed)

    # What is written: checkpoints, the model, the log.

    def _write_checkpoint(self) -> None:
        weights = {
            name: value
            for name, value in gather(self.objective.state_dict(), keep=self.is_main).items()
            if name.removeprefix("model.") not in self.fixed
        }
        trainer = {
            "weights": weights,
            "optimizer": gather(self.optimizer.state_dict(), keep=self.is_main),
            "average": None if self.average is None else dict(self.average.state_dict()),
            "random": checkpoints.random_states(),
        }
        write_model = self._model_writer()
        if self.is_main:
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

    def _model_writer(self) -> Callable[[Path], None]:
        """What writes the (averaged) model into a folder; every process must ask for it."""
        state: dict[str, Tensor] = gather(self.model.state_dict(), keep=self.is_main)

        def write(folder: Path) -> None:
            with self._averaged_weights():  # swapped in place, so `state` holds the average too
                self._save_model(folder, state)

        return write

    def _save_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        merged = self.config.checkpoint.merged
        save_run_model(folder, self.run_model, state, self.trained, merged=merged)

    def _write_model(self, folder: Path) -> None:
        """Write the model into a folder of the run, aside and renamed."""
        write = self._model_writer()
        if self.is_main:
            self._write_log({"event": "writing", "step": self.state.step, "path": folder.name})
            replace_folder(folder, write)

    def save_result(self) -> None:
        """Write `<run>/model`."""
        self._write_model(self.folder / "model")
        self.state.stage -= 1
        names = ("samples", "dropped_turns", "dropped_rows")
        self._report("end", {name: getattr(self.state, name) for name in names})
        self.close_log()
        self.accelerator.wait_for_everyone()

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

    def _report(self, kind: str, values: dict[str, Any]) -> None:
        """Log line and event, on the main process."""
        if not self.is_main:
            return
        state = self.state
        later = self.config.stages[state.stage + 1 :]
        planned = sum(self._steps_in_time(stage) for stage in later)
        total = state.step - state.stage_step + self.likely_end() + planned
        event = TrainEvent(kind, state.step, total, self.stage.name, values)
        self._write_log({"event": kind, "step": state.step, "stage": event.stage, **values})
        if self.config.trackers and kind in ("step", "evaluation"):
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self.accelerator.log(named, step=state.step)
        self.on_event(event)

    def _write_log(self, entry: dict[str, Any]) -> None:
        """Append a line; where steps repeat after a resume, the later lines count."""
        if self._log is None:
            self._log = LineLog(self.folder / "train_log.jsonl")
        self._log.append((json.dumps(entry) + "\n").encode("ascii"))

    def close_log(self) -> None:
        """Close the log file, if it was opened."""
        if self._log is not None:
            self._log.close()
            self._log = None


@contextmanager
def _fitting(reason: str, *errors: type[Exception]) -> Iterator[None]:
    """Tell errors of loading a part of a checkpoint as one sentence; the last line where empty."""
    try:
        yield
    except errors as error:
        said = str(error).strip().splitlines()[-1:]
        told = f"{reason}; resume with the former settings." if reason else "".join(said).strip()
        raise ValueError(f"{_MISFIT}: {told}") from error


def peak_memory(device: torch.device) -> int:
    """Highest memory so far in bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _class_names(config: RunConfig, sources: Sequence[Any]) -> tuple[str, ...]:
    """Names behind the dense class maps, where some stage asks for them."""
    if not any(stage.loss.needs_classes for stage in config.stages):
        return ()
    named = [source.class_names for source in sources if hasattr(source, "class_names")]
    if not named:
        raise ValueError("A stage weighs classes, but no data set has class names.")
    return tuple(dict.fromkeys(itertools.chain.from_iterable(named)))


def _refuse_non_finite(value: Tensor, what: str, step: int, batches: Sequence[Batch]) -> None:
    """Raise where `value` is NaN or infinite, naming the samples that led to it."""
    if not bool(torch.isfinite(value).all()):
        ids = ", ".join(repr(name) for batch in batches for name in batch["sample_ids"])
        raise NonFiniteLossError(
            f"The {what} of step {step + 1} is not finite ({value.item()}); no weight was moved. "
            f"Samples: {ids}."
        )
