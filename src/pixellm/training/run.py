"""A run as a whole: what is made from its recipe before the first step, and saved behind the last.

Model, processor, auxiliary heads, averaged weights, run folder, reports. How it trains in between
is :mod:`~pixellm.training.trainer`'s business.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pixellm.data.collate import Collator
from pixellm.files import finish_exchange, replace_folder, write_files
from pixellm.threads import choose_threads
from pixellm.training import checkpoints
from pixellm.training.auxiliary import FeatureClassHead, PatchBoxHead, PatchClassHead
from pixellm.training.checkpoints import TrainState
from pixellm.training.config import EvaluationConfig, RunConfig, Stage
from pixellm.training.distribution import build_accelerator, whole_state
from pixellm.training.dotted_keys import differences, flatten
from pixellm.training.objective import Objective
from pixellm.training.optim import WeightAverage
from pixellm.training.progress import EventCallback, RunLog, TrainEvent
from pixellm.training.setup import (
    RunModel,
    fixed_names,
    names_that_train,
    save_run_model,
    set_types,
    set_up_model,
)
from pixellm.training.stream import SampleDataset, build_sources, check_sources, question_texts
from pixellm.training.validation import open_evaluation_data

Evaluate = Callable[[Any, Any, EvaluationConfig], Mapping[str, float]]
"""(model, processor, settings) -> scores."""


class Run:
    """All state of a run in one object.

    Args:
        config: the recipe.
        on_event: called on the main process.
        evaluate: scores a model during the run.
    """

    def __init__(self, config: RunConfig, on_event: EventCallback, evaluate: Evaluate) -> None:
        self.config = config
        self.on_event = on_event
        self.evaluate = evaluate
        self.state = TrainState()
        self.folder = config.run_folder
        self.log = RunLog(self.folder / "train_log.jsonl")
        self.accelerator = build_accelerator(config)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.config.stages[self.state.stage]

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

    # Once, before the first step: model, processor, head, average; state of a checkpoint.

    def set_up(self, checkpoint: Path | None) -> None:
        """Builds or loads everything that lives as long as the run."""
        checkpoints.seed_everything(self.config.seed)
        if self.accelerator.is_main_process:
            for name in ("best", "model"):
                finish_exchange(self.folder / name)
        sources = build_sources(self.config.data, self.config.stages[0])
        check_sources(self.config.data, self.config.stages)
        if self.config.evaluation.every_steps:
            open_evaluation_data(self.config.evaluation)
        self.restored: dict[str, Any] | None = None
        if checkpoint is not None:
            self.state, self.restored = checkpoints.read_checkpoint(checkpoint)
        self.run_model = self._set_up_model(checkpoint, sources)
        self.model, self.processor = self.run_model.model, self.run_model.processor
        size = sum(weight.numel() for weight in self.model.parameters())
        if count := choose_threads(size, self.config.threads, self.config.num_workers):
            torch.set_num_threads(count)
        self.class_names = _class_names(self.config, sources)
        heads = self._build_heads() if self.class_names else {}
        distributed = self.accelerator.num_processes > 1
        self.objective = Objective(self.model, heads, keep_decoder_busy=distributed)
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
            try:
                self.average.load_state_dict(self.restored["average"])
            except (KeyError, RuntimeError) as error:
                raise ValueError(
                    "The checkpoint does not fit the recipe: its average is of other weights; "
                    "resume with the former settings."
                ) from error
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
        try:
            missing, unexpected = self.objective.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # the size of a tensor
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"The checkpoint does not fit the recipe: {reason}") from error
        lost = [n for n in missing if n.removeprefix("model.") not in self.fixed]
        if lost or unexpected:
            raise ValueError(
                f"The checkpoint does not fit the recipe: {[*lost, *unexpected][0]!r} is in one "
                "of them only."
            )

    def _build_heads(self) -> dict[str, nn.Module]:
        """Heads of the auxiliary losses that any stage has."""
        sizes, num_classes = self.model.config, len(self.class_names) + 1
        channels = sizes.vision_channels[str(sizes.vision_depths[0])]
        weighed = {
            name
            for stage in self.config.stages
            for name, weight in stage.loss.model_dump().items()
            if weight > 0
        }
        heads: dict[str, nn.Module] = {}
        if "patch_class" in weighed:
            heads["patch_class_head"] = PatchClassHead(channels, num_classes)
        if "patch_box" in weighed:
            heads["patch_box_head"] = PatchBoxHead(channels)
        if weighed & {"feature_class", "target_class"}:
            heads["feature_class_head"] = FeatureClassHead(
                sizes.num_scales, sizes.decoder_size, num_classes
            )
        return heads

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

    def _open_run_folder(self, checkpoint: Path | None) -> None:
        """Writes the resolved recipe; a resume records what differs from the saved one."""
        resolved = self.config.to_yaml()
        if checkpoint is not None:
            saved = yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8"))
            changes = differences(saved, yaml.safe_load(resolved))
            fixed = [key for key in changes if key.split(".")[0] in ("model", "seed")]
            if fixed:
                raise ValueError(f"A resumed run cannot change {fixed[0]!r}; start a new run.")
            left = self._set_aside_newer(checkpoint)
            abandoned = {"abandoned": left} if left else {}
            self._report("resume", {"checkpoint": checkpoint.name, "changes": changes, **abandoned})
        if self.config.trackers:
            self.accelerator.init_trackers(self.config.name, flatten(yaml.safe_load(resolved)))
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_files({self.folder / "config.yaml": resolved.encode("utf-8")})

    def _set_aside_newer(self, checkpoint: Path) -> list[str]:
        """Checkpoints of this run behind the one that it goes back to; nothing resumes them."""
        is_own = checkpoint.parent.resolve() == (self.folder / "checkpoints").resolve()
        return checkpoints.set_aside_newer(checkpoint) if self.is_main and is_own else []

    # Once, after the last step.

    def save_result(self) -> None:
        """Writes `<run>/model`."""
        self._write_model(self.folder / "model")
        self.state.stage -= 1
        names = ("samples", "dropped_turns", "dropped_rows")
        self._report("end", {name: getattr(self.state, name) for name in names})
        self.log.close()
        self.accelerator.wait_for_everyone()

    # Whenever weights are written or looked at.

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
            self.log.write({"event": "writing", "step": self.state.step, "path": folder.name})
            replace_folder(folder, write)

    def _report(self, kind: str, values: dict[str, Any]) -> None:
        """Log line and event, on the main process."""
        if not self.accelerator.is_main_process:
            return
        state = self.state
        later = self.config.stages[state.stage + 1 :]
        planned = sum(self._steps_in_time(stage) for stage in later)
        total = state.step - state.stage_step + self.likely_end() + planned
        event = TrainEvent(kind, state.step, total, self.stage.name, values)
        self.log.write({"event": kind, "step": state.step, "stage": event.stage, **values})
        if self.config.trackers and kind in ("step", "evaluation"):
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self.accelerator.log(named, step=state.step)
        self.on_event(event)


def _class_names(config: RunConfig, sources: Sequence[Any]) -> tuple[str, ...]:
    """Names behind the dense class maps, where some stage asks for them."""
    if not any(stage.loss.needs_classes for stage in config.stages):
        return ()
    named = [source.class_names for source in sources if hasattr(source, "class_names")]
    if not named:
        raise ValueError("A stage weighs classes, but no data set has class names.")
    return tuple(dict.fromkeys(itertools.chain.from_iterable(named)))
