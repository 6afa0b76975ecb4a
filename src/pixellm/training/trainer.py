"""The training loop: stages, steps, checkpoints, log. It reads from top to bottom.

Reports through events and a log file and never prints. How parameters are grouped, what is
minimised, where data come from and how state is stored live in the modules next to it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pixellm.data.collate import Collator
from pixellm.training import checkpoints
from pixellm.training.auxiliary import PatchClassHead, TargetClassHead
from pixellm.training.checkpoints import TrainState
from pixellm.training.config import EvaluationConfig, RunConfig, Stage, differences
from pixellm.training.distribution import (
    agreed,
    build_accelerator,
    clip_gradients,
    is_sharded,
    micro_batch,
    prepare,
    restore_optimizer,
    unsharded,
    whole_optimizer_state,
    whole_state,
)
from pixellm.training.objective import Objective, count_batch, normalisers_of
from pixellm.training.optim import (
    StageOptimizer,
    WeightAverage,
    group_parameters,
    learning_rate_factor,
)
from pixellm.training.progress import EventCallback, Meter, RunLog, TrainEvent, peak_memory
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
    question_texts,
)
from pixellm.training.validation import evaluate_run
from pixellm.training.zero import uses_zero


class NonFiniteLossError(RuntimeError):
    """A loss or gradient was not finite; raised before the optimizer moved anything."""


Evaluate = Callable[[Any, Any, EvaluationConfig], Mapping[str, float]]


def train(
    config: RunConfig,
    on_event: EventCallback | None = None,
    resume: bool | Path = False,
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
            path from that one. One process continues to the bit.
        evaluate: (model, processor, settings) -> scores, called as `config.evaluation` says.

    Returns:
        The run folder.

    Raises:
        ValueError: the run folder holds a run and `resume` is False, or the recipe does not fit.
        NonFiniteLossError: with the ids of the samples of the step.
    """
    run = _Run(config, on_event or (lambda event: None), evaluate)
    run.set_up(_checkpoint_to_resume(config, resume))
    while run.state.stage < len(config.stages):
        run.train_stage()
        run.state.enter_next_stage()
    run.save_result()
    for tracker in getattr(run.accelerator, "trackers", ()):
        tracker.finish()
    return config.run_folder


def _checkpoint_to_resume(config: RunConfig, resume: bool | Path) -> Path | None:
    if not isinstance(resume, bool):
        return Path(resume)
    if resume:
        found = checkpoints.list_checkpoints(config.run_folder / "checkpoints")
        return found[-1] if found else None
    if (config.run_folder / "train_log.jsonl").exists():
        raise ValueError(
            f"{config.run_folder} already holds a run; resume it, or choose another name."
        )
    return None


def _class_names(config: RunConfig, sources: Sequence[Any]) -> tuple[str, ...]:
    """Names behind the dense class maps, where some stage asks for them."""
    if not any(stage.loss.needs_classes for stage in config.stages):
        return ()
    named = [source.class_names for source in sources if hasattr(source, "class_names")]
    if not named:
        raise ValueError("A stage weighs classes, but no data set has class names.")
    return tuple(dict.fromkeys(itertools.chain.from_iterable(named)))


class _Run:
    """All state of a run in one object."""

    def __init__(self, config: RunConfig, on_event: EventCallback, evaluate: Evaluate) -> None:
        self.config = config
        self.on_event = on_event
        self.evaluate = evaluate
        self.state = TrainState()
        self.folder = config.run_folder
        self.log = RunLog(self.folder / "train_log.jsonl")
        self.accelerator = build_accelerator(config)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.config.stages[self.state.stage]

    @property
    def stage_end(self) -> int:
        """Steps that the present stage will have at its end."""
        return self.state.stage_end or self.stage.steps

    # Once, before the first step: model, processor, head, average; state of a checkpoint.

    def set_up(self, checkpoint: Path | None) -> None:
        """Builds or loads everything that lives as long as the run."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        checkpoints.seed_everything(self.config.seed)
        sources = build_sources(self.config.data, self.config.stages[0])
        self.restored: dict[str, Any] | None = None
        if checkpoint is not None:
            self.state, self.restored = checkpoints.read_checkpoint(checkpoint)
        self.run_model = self._set_up_model(checkpoint, sources)
        self.model, self.processor = self.run_model.model, self.run_model.processor
        self.class_names = _class_names(self.config, sources)
        heads = self._build_heads(sources[0]) if self.class_names else (None, None)
        distributed = self.accelerator.num_processes > 1
        self.objective = Objective(self.model, *heads, keep_decoder_busy=distributed)
        self._choose_what_trains()
        if not self.accelerator.is_fsdp2:  # which places each shard by itself
            self.objective.to(self.accelerator.device)
        if self.config.channels_last:
            self.model.model.vision_tower.to(memory_format=torch.channels_last)
        if self.restored is not None:
            self._restore_weights(self.restored["weights"])
        decay = self.config.ema_decay
        self.average = WeightAverage(self.model, decay, self.fixed) if decay > 0 else None
        if self.average and self.restored and self.restored["average"] is not None:
            self.average.load_state_dict(self.restored["average"])
        self._open_run_folder(checkpoint)

    def _set_up_model(self, checkpoint: Path | None, sources: Sequence[SampleDataset]) -> RunModel:
        texts = question_texts(sources, self.config.vocabulary_samples)
        is_main = self.accelerator.is_main_process
        return set_up_model(self.config, checkpoint, texts, is_main=is_main)

    def _choose_what_trains(self) -> None:
        """Names of what never moves and of what does, and the types of both."""
        self.fixed = fixed_names(self.model, self.config)
        parameters = self.objective.parameters_by_name()
        self.trained = names_that_train(parameters, self.config, self.fixed)
        set_types(parameters, self.trained, self.config)

    def _restore_weights(self, weights: dict[str, Tensor]) -> None:
        """Fills in a checkpoint's weights; those under adapters are the base model's."""
        missing, unexpected = self.objective.load_state_dict(weights, strict=False)
        lost = [n for n in missing if n.removeprefix("model.") not in self.fixed]
        if lost or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the recipe: {[*lost, *unexpected][0]!r} is in one "
                "of them only."
            )

    def _build_heads(self, source: SampleDataset) -> tuple[PatchClassHead, TargetClassHead | None]:
        """Heads of the auxiliary losses; the deepest map's width is read off one sample."""
        probe = self._collator()([source[0]])
        tower = self.model.model.vision_tower.eval()
        device = next(tower.parameters()).device
        with torch.no_grad():
            deepest = tower(probe["pixel_values"].to(device), probe["pixel_mask"].to(device))[0]
        num_classes = len(self.class_names) + 1
        target_head = None
        if any(stage.loss.target_class > 0 for stage in self.config.stages):
            sizes = self.model.config
            target_head = TargetClassHead(sizes.num_scales, sizes.decoder_size, num_classes)
        return PatchClassHead(deepest.shape[1], num_classes), target_head

    def _collator(self) -> Collator:
        sizes = self.config.collate
        return Collator(self.processor, sizes.mask_size, self.class_names, sizes.max_length)

    def _open_run_folder(self, checkpoint: Path | None) -> None:
        """Writes the resolved recipe; a resume records what differs from the saved one."""
        resolved = self.config.to_yaml()
        if checkpoint is not None:
            saved = yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8"))
            changes = differences(saved, yaml.safe_load(resolved))
            fixed = [key for key in changes if key.split(".")[0] in ("model", "seed")]
            if fixed:
                raise ValueError(f"A resumed run cannot change {fixed[0]!r}; start a new run.")
            self._report("resume", {"checkpoint": checkpoint.name, "changes": changes})
        if self.config.trackers:
            self.accelerator.init_trackers(self.config.name, _flat(yaml.safe_load(resolved)))
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(resolved, encoding="utf-8")

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
            restore_optimizer(*parts, with_state=begun)
            checkpoints.restore_random_states(self.restored["random"])
            self.restored = None
        rows = list(itertools.chain.from_iterable(group.rows() for group in groups))
        self._report("stage", {"steps": self.stage_end, "groups": rows})
        self.objective.train()
        self.meter = Meter()
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
        local = torch.stack([count_batch(batch) for batch in batches]).sum(0)
        counts = normalisers_of(accelerator.reduce(local.to(accelerator.device), "sum"))
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
        images = sum(len(batch["pixel_values"]) for batch in batches) * accelerator.num_processes
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        values = {**sums, "grad_norm": norm / accelerator.num_processes}
        self.meter.add(values, images, tokens)
        self.state.step += 1
        self.state.stage_step += 1
        self.state.samples += images

    def _to_device(self, batch: Batch) -> dict[str, Tensor]:
        device = self.accelerator.device
        moved = {key: value.to(device) for key, value in batch.items() if key != "sample_ids"}
        if self.config.channels_last:
            pixels = moved["pixel_values"]
            moved["pixel_values"] = pixels.contiguous(memory_format=torch.channels_last)
        return moved

    def _learning_rate_factor(self) -> float:
        stage = self.stage
        return learning_rate_factor(
            self.state.stage_step, self.stage_end, stage.warmup_steps, stage.decay_fraction
        )

    # After each step: time, log, evaluation, checkpoint; each when its turn comes.

    def _after_step(self) -> None:
        state, config = self.state, self.config
        now = time.monotonic()
        state.stage_seconds += now - self.clock
        self.clock = now
        self._plan_end()
        ends = state.stage_step >= self.stage_end
        if ends or state.step % config.log_every == 0:
            self._report_step()
        every = config.evaluation.every_steps
        if every and (ends or state.step % every == 0):
            self._evaluate()
        if ends or state.step % config.checkpoint.every_steps == 0:
            self._write_checkpoint()

    def _plan_end(self) -> None:
        """Brings the decay forward when the stage's time runs out; later steps follow from it."""
        limit, state = self.stage.max_minutes, self.state
        if limit is None or state.stage_end is not None:
            return
        constant = 1 - self.stage.decay_fraction
        if state.stage_seconds < limit * 60 * (constant or 1):
            return
        end = math.ceil(state.stage_step / constant) if constant else state.stage_step
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
        left = (self.stage_end - state.stage_step) * seconds / meter.steps
        values["seconds_left"] = round(left, 1)
        self._report("step", values)
        self.meter = Meter()

    def _evaluate(self) -> None:
        """Scores the (averaged) weights and keeps the best; random states stay as they were."""
        together = is_sharded(self.accelerator)
        if not (self.accelerator.is_main_process or together):
            self.accelerator.wait_for_everyone()
            return
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
        self._keep_best(agreed(score) if together else score)
        self.accelerator.wait_for_everyone()

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

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The model holds the average inside, where the run keeps one."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _model_writer(self) -> Callable[[Path], None]:
        """What writes the (averaged) model into a folder; every process must ask for it."""
        state = whole_state(self.accelerator, self.model)

        def write(folder: Path) -> None:
            with self._averaged_weights():  # swapped in place, so `state` holds the average too
                self._save_model(folder, state)

        return write

    def _save_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        merged = self.config.checkpoint.merged
        save_run_model(folder, self.run_model, state, self.trained, merged=merged)

    def _write_model(self, folder: Path) -> None:
        """Writes the model into a folder of the run, aside and renamed."""
        write = self._model_writer()
        if self.accelerator.is_main_process:
            checkpoints.replace_folder(folder, write)

    # Once, after the last step.

    def save_result(self) -> None:
        """Writes `<run>/model`."""
        self._write_model(self.folder / "model")
        self.state.stage -= 1
        self._report("end", {"samples": self.state.samples})
        self.accelerator.wait_for_everyone()

    def _report(self, kind: str, values: dict[str, Any]) -> None:
        """Log line and event, on the main process."""
        if not self.accelerator.is_main_process:
            return
        state = self.state
        later = self.config.stages[state.stage + 1 :]
        planned = sum(stage.steps for stage in later)
        total = state.step - state.stage_step + self.stage_end + planned
        event = TrainEvent(kind, state.step, total, self.stage.name, values)
        self.log.write({"event": kind, "step": state.step, "stage": event.stage, **values})
        if self.config.trackers and kind in ("step", "evaluation"):
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self.accelerator.log(named, step=state.step)
        self.on_event(event)


def _refuse_non_finite(value: Tensor, what: str, step: int, batches: Sequence[Batch]) -> None:
    """Raises where `value` is NaN or infinite, naming the samples that led to it."""
    if not bool(torch.isfinite(value).all()):
        ids = ", ".join(repr(name) for batch in batches for name in batch["sample_ids"])
        raise NonFiniteLossError(
            f"The {what} of step {step + 1} is not finite ({value.item()}); no weight was moved. "
            f"Samples: {ids}."
        )


def _flat(settings: Any, path: str = "") -> dict[str, Any]:
    """{dotted key: plain value} of nested settings, as trackers show them."""
    if isinstance(settings, (dict, list)):
        items = settings.items() if isinstance(settings, dict) else enumerate(settings)
        flat: dict[str, Any] = {}
        for key, value in items:
            flat |= _flat(value, f"{path}.{key}".lstrip("."))
        return flat
    return {path: settings if isinstance(settings, (bool, int, float)) else str(settings)}
