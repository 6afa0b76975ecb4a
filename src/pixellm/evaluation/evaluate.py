"""A benchmark's questions through a job to records and a summary: every evaluation goes this way.

Benchmarks and models meet here alone. A stopped run goes on where it stopped, and the model is
loaded only if a question is left to answer. It writes no report, prints nothing and chooses no
device.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pixellm.data.lazy import Lazy
from pixellm.data.rows import name_of_image
from pixellm.engine.answer_file import Check, find_batches, is_bad
from pixellm.engine.dialogues import AnsweredDialogue, Predictor, answer_dialogues, answer_given
from pixellm.engine.jobs import ALONE, BatchAnswers, ProcessGroup, answer_here, run_job
from pixellm.engine.run_folder import ANSWERS_FILE, open_run, read_settings
from pixellm.evaluation.baselines import GUESSES, ObjectGuesser
from pixellm.evaluation.benchmarks import Benchmark, find_benchmark, open_questions
from pixellm.evaluation.left_out import (
    NothingAnsweredError,
    decoding_fault,
    describe_bad_rows,
    describe_left_out,
    forget_mended,
    open_question,
)
from pixellm.evaluation.metrics import Protocol
from pixellm.evaluation.records import (
    AnswerRecord,
    LeftOut,
    RunAnswers,
    build_record,
    read_run,
    record_to_json,
)
from pixellm.evaluation.scores import Mode, Rules, question_giou
from pixellm.evaluation.summary import Summary, summarize
from pixellm.files import locked
from pixellm.types import Sample

if TYPE_CHECKING:
    from pixellm.engine import Engine

Progress = Callable[[int, int, float | None], None]
"""Called with dialogues done, dialogues in all, and the mean of the questions' gIoU so far."""

Answer = Callable[[Sequence[Sample]], list[AnsweredDialogue]]
"""Answers the dialogues of a batch, in order."""

LoadEngine = Callable[[], "Engine | Predictor"]

_GUESSABLE = ("scenes", "free", "strict")
"""Name, mode and protocol of what guesses can answer: they write no given texts and no logits."""


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """What is to be evaluated, checked as far as it can be without files.

    Attributes:
        model: as the user called it; on drawn scenes also a guess that needs no model, one of
            :data:`~pixellm.evaluation.baselines.GUESSES`.
        split: of the data set; the benchmark's usual one where "".
        data: folder that holds the data sets, or a file, see
            :func:`~pixellm.evaluation.benchmarks.open_questions`; not used by drawn scenes.
        images: folder of the images, where they do not lie as usual or beside the file.
        mode: "free" or "forced"; the benchmark's usual one where None.
        limit: the first dialogues only; all where 0.
        dtype: floating type of the model in memory, such as "float32"; "" where it is not said.
        quantize: "int8", "int4" or "nf4" where the language model's weights are rounded.
        max_new_tokens: longest answer in tokens; None where it is not said.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.

    Raises:
        ValueError: no such benchmark, mode or protocol, or a guess where it can't answer.
    """

    name: str
    model: str
    split: str = ""
    data: Path = Path("data")
    images: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode | None = None
    protocol: Protocol = "strict"
    limit: int = 0
    seed: int = 0
    num_scenes: int = 500
    dialogues_per_image: int = 4
    dtype: str = ""
    quantize: str = ""
    max_new_tokens: int | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        rules = self.benchmark.rules(self.mode, self.protocol)
        if self.model in GUESSES and (self.name, rules.mode, self.protocol) != _GUESSABLE:
            raise ValueError(
                f"The guess {self.model} answers scenes alone, in --mode free under --protocol "
                "strict; name a model."
            )
        if self.temperature and rules.mode == "forced":
            raise ValueError("With --mode forced the texts are given; leave out --temperature.")

    @property
    def benchmark(self) -> Benchmark:
        """Its row of the table."""
        return find_benchmark(self.name)

    @property
    def rules(self) -> Rules:
        """How it is scored."""
        return self.benchmark.rules(self.mode, self.protocol)

    @property
    def headline(self) -> tuple[str, ...]:
        """The scores that the benchmark is judged by, less those that given texts decide."""
        said = ("n_acc", "t_acc", "text_accuracy", "named_set_accuracy")
        is_given = self.rules.mode == "forced"
        return tuple(one for one in self.benchmark.headline if not (is_given and one in said))

    def open(self) -> Lazy[Sample]:
        """The questions."""
        if self.name == "scenes":
            numbers = {"num": self.num_scenes, "dialogues": self.dialogues_per_image}
            options: dict[str, Any] = {**numbers, "seed": self.seed}
        else:
            images = {} if self.images is None else {"images": self.images.resolve()}
            options = {**self.options, **images}
        split = self.split or self.benchmark.split
        questions = open_questions(self.name, split, self.data, options)
        return questions[: self.limit] if self.limit else questions

    def summarize(self, records: Sequence[AnswerRecord], rules: Rules | None = None) -> Summary:
        """All scores of answers, by the run's own rules where none are given."""
        by_kind = self.benchmark.classes_are_kinds
        return summarize(records, rules or self.rules, classes_are_kinds=by_kind)

    def settings(self) -> dict[str, Any]:
        """What decides the answers and their scores, the model's contents apart."""
        values: dict[str, Any] = {
            "benchmark": self.name,
            "title": self.benchmark.title,
            "split": self.split or self.benchmark.split,
            "model": self.model,
            "dtype": self.dtype,
            "max_new_tokens": self.max_new_tokens,
            "mode": self.rules.mode,
            "protocol": self.protocol,
            "limit": self.limit,
            "rules": self.rules.to_dict(),
        }
        values |= {name: getattr(self, name) for name in _RARE if getattr(self, name)}
        if self.name == "scenes":
            names = ("seed", "num_scenes", "dialogues_per_image")
            return values | {name: getattr(self, name) for name in names}
        images = {} if self.images is None else {"images": str(self.images.resolve())}
        options = {"options": dict(self.options)} if self.options else {}
        return values | {"data": str(self.data.resolve())} | images | options

    def folder_name(self) -> str:
        """A name for the run's folder."""
        parts = [self.name, self.split or self.benchmark.split, Path(self.model).name]
        parts += [self.rules.mode, self.protocol]
        if self.name == "scenes":
            parts.append(f"{self.num_scenes}x{self.dialogues_per_image}")
            parts += [f"seed{self.seed}"] if self.seed else []
        if self.limit:
            parts.append(f"first{self.limit}")
        parts += [f"{name}{getattr(self, name)}" for name in _RARE if getattr(self, name)]
        return re.sub(r"[^\w.+-]+", "-", "_".join(parts))


_RARE = ("quantize", "temperature")
"""Settings that are told only where they are not the usual ones."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A benchmark answered and scored; left out is what can't be asked.

    Attributes:
        settings: of the run, and what is known since it was answered.
    """

    run: BenchmarkRun
    settings: dict[str, Any]
    questions: Lazy[Sample]
    records: list[AnswerRecord]
    summary: Summary
    left_out: Sequence[LeftOut] = ()


def evaluate(
    run: BenchmarkRun,
    folder: Path,
    load_engine: LoadEngine,
    *,
    questions: Lazy[Sample] | None = None,
    batch_size: int = 16,
    group: ProcessGroup = ALONE,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer and score a benchmark; go on where an earlier call stopped.

    Questions whose data can't be used (an image that is missing, cut or of another size than its
    annotation says, a mask that can't be read) are left out and told. A later call asks those whose
    data are mended by then. So are questions longer than the model's context.

    Args:
        run: what to evaluate.
        folder: of the run; holds its settings and answers.
        load_engine: gives the model, or in free mode under the strict protocol anything with
            ``predict_batch``; called only if something is left to answer, and not by guesses.
        questions: of the run, where they are open already.
        batch_size: dialogues answered together; the same for all of a run.
        group: all of its processes must call this.
        progress: told after every batch.

    Raises:
        NothingAnsweredError: there is no question whose data can be used.
        ValueError: bad settings, damaged files, a folder with another run or with answers of
            other weights, or a model that is not as the run says.
        FileNotFoundError: files of the data set are missing.
        OSError: the folder can't be written, or another process writes there.
    """
    questions = run.open() if questions is None else questions
    named = {**run.settings(), "weights": _name_weights(run.model)}
    if group.number == 0:
        open_run(folder, named, {"left_out": len(questions.bad_rows)})
    # The group's first process keeps every other job out, and lets its own processes in.
    with locked(folder) if group.number == 0 else nullcontext():
        if group.number == 0:
            forget_mended(folder, questions)
        group.wait()
        answers = read_run(folder)
        done = {one.index for one in answers.records} | {one.index for one in answers.left_out}
        if done.issuperset(range(len(questions))):
            find_batches(folder / ANSWERS_FILE, len(questions), batch_size, _lines_of(questions))
        else:
            engine = None
            if first := _first_sound(questions):
                guess = GUESSES.get(run.model)
                engine = load_engine() if guess is None else ObjectGuesser(questions, guess)
                _check_engine(run, engine)
            if first and first.turns[0].takes_suffix:
                suffix = _check_suffix(engine, folder)
                group.wait()  # all must have seen what an earlier call noted
                if group.number == 0:
                    open_run(folder, named, {"suffix": suffix})
            answers = answer_questions(
                _how_to_answer(run, engine),
                questions,
                run.rules,
                folder,
                batch_size,
                model=run.model,
                root=Path(named.get("data", "")),
                group=group,
                progress=progress,
            )
        settings = read_settings(folder)
    if not answers.records:
        asked = f"{run.benchmark.title} {settings['split']}"
        told = describe_left_out(answers.left_out), describe_bad_rows(questions.bad_rows)
        why = " ".join(filter(None, told)) or "It has none that can be asked."
        raise NothingAnsweredError(f"No question of {asked} could be answered. {why}")
    scores = run.summarize(answers.records)
    return Evaluation(run, settings, questions, answers.records, scores, answers.left_out)


def answer_questions(
    answer: Answer,
    questions: Sequence[Sample],
    rules: Rules,
    folder: Path | None = None,
    batch_size: int = 16,
    *,
    model: str = "",
    root: Path = Path(),
    group: ProcessGroup = ALONE,
    progress: Progress | None = None,
) -> RunAnswers:
    """Answer and score what a folder has no answers to, and give back all of its records.

    Nothing is kept where ``folder`` is None. The answers call the model ``model`` and images by
    their path from ``root``. Each process of ``group`` answers its part, and all get what the
    questions came to in all of them.

    Raises:
        ValueError: answers that don't fit their questions, or a damaged file.
        OSError: the file can't be written, or another process is writing it.
    """
    if folder is None:
        with TemporaryDirectory() as made:
            kept = Path(made)
            return answer_questions(answer, questions, rules, kept, batch_size, progress=progress)
    worker = _DialogueWorker(answer, questions, rules, model, root)
    run_job(
        range(len(questions)),
        folder / ANSWERS_FILE,
        answer_here(lambda: worker),
        batch_size,
        check=_lines_of(questions),
        group=group,
        progress=lambda state: progress and progress(state.done, state.total, worker.giou),
    )
    return read_run(folder)


def run_of_folder(folder: Path) -> BenchmarkRun:
    """The run that a folder holds, to open its questions again; see :func:`read_settings`."""
    values = read_settings(folder)
    names = BenchmarkRun.__dataclass_fields__.keys() & values.keys()
    chosen = {name: values[name] for name in names}
    try:
        for name in ("data", "images"):
            if name in chosen:
                chosen[name] = Path(chosen[name])
        return BenchmarkRun(name=values["benchmark"], **chosen)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds damaged settings of a run ({error}).") from error


def with_numbers(
    run: BenchmarkRun, device: str, dtype: str, max_new_tokens: int | None = None
) -> BenchmarkRun:
    """The run with what decides its model's numbers: floating type and longest answer.

    Device and type are named as for :func:`pixellm.engine.load`; ``max_new_tokens`` is the engine's
    limit where None. A guess has neither.
    """
    if run.model in GUESSES:
        return run
    from pixellm.engine import MAX_NEW_TOKENS, model_dtype, pick_device

    floating = model_dtype(run.model, pick_device(device), dtype, quantize=run.quantize or None)
    name, longest = str(floating).removeprefix("torch."), max_new_tokens or MAX_NEW_TOKENS
    return replace(run, dtype=name, max_new_tokens=longest)


def answer_freely(predictor: Predictor, **options: Any) -> Answer:
    """By free generation, see :func:`~pixellm.engine.dialogues.answer_dialogues`."""
    return lambda questions: answer_dialogues(predictor, questions, **options)


def _how_to_answer(run: BenchmarkRun, engine: Any) -> Answer:
    if run.rules.mode == "forced":
        return lambda questions: answer_given(engine, questions)
    options = {"keep_logits": run.rules.protocol == "released", "temperature": run.temperature}
    return answer_freely(engine, **{name: value for name, value in options.items() if value})


@dataclass(slots=True)
class _DialogueWorker:
    """Answers and scores the dialogues of a batch of numbers."""

    answer: Answer
    questions: Sequence[Sample]
    rules: Rules
    model: str
    root: Path
    gious: list[float] = field(default_factory=list)

    @property
    def giou(self) -> float | None:
        """Mean over the questions so far; None before the first."""
        return sum(self.gious) / len(self.gious) if self.gious else None

    def __call__(self, batch: Sequence[int]) -> BatchAnswers:
        begun = time.monotonic()
        opened = {number: open_question(self.questions, number) for number in batch}
        samples = {n: one for n, one in opened.items() if isinstance(one, Sample)}
        left_out = [one for one in opened.values() if isinstance(one, LeftOut)]
        lines = {one.index: _lines_of_left_out(one) for one in left_out} | self._answer(samples)
        content = "".join(lines[number] for number in batch).encode("ascii")
        shown = (sample.image for sample in samples.values())
        images = len({str(one) if isinstance(one, Path) else id(one) for one in shown})
        return BatchAnswers(content, images, time.monotonic() - begun)

    def _answer(self, samples: dict[int, Sample]) -> dict[int, str]:
        """The lines of dialogues by their numbers; images are decoded only on the way."""
        if not samples:
            return {}
        numbers = list(samples)
        try:
            answers = list(self.answer([*samples.values()]))
        except (OSError, ValueError):
            faults = {number: decoding_fault(sample) for number, sample in samples.items()}
            if not any(faults.values()):
                raise
            lines = {}
            for number, sample in samples.items():
                if fault := faults[number]:
                    one = LeftOut(number, 0, len(sample.turns), fault, sample.id)
                    lines[number] = _lines_of_left_out(one)
            return lines | self._answer({n: s for n, s in samples.items() if n not in lines})
        return {numbers[one.index]: self._score(one, numbers[one.index]) for one in answers}

    def _score(self, answered: AnsweredDialogue, number: int) -> str:
        image = name_of_image(answered.sample, self.root)
        records = score_dialogue(answered, number, self.rules)
        self.gious += [question_giou(record, self.rules.unit) for record in records]
        values = [record_to_json(record, self.model, image) for record in records]
        lines = "".join(json.dumps(one) + "\n" for one in values)
        if answered.problem:
            lines += _lines_of_left_out(_too_long(answered, number))
        return lines


def _too_long(answered: AnsweredDialogue, number: int) -> LeftOut:
    """The first turn that is too long; nor can those behind it be asked."""
    sample, turn = answered.sample, len(answered.predictions)
    reason = f"{sample.id}/{turn}: {answered.problem}"
    return LeftOut(number, turn, len(sample.turns), reason, sample.id, too_long=True)


def _lines_of_left_out(dialogue: LeftOut) -> str:
    return "".join(json.dumps(one.to_json()) + "\n" for one in dialogue.all_turns())


def _first_sound(questions: Sequence[Sample]) -> Sample | None:
    """The first dialogue that can be asked, as far as headers of images show it."""
    opened = (open_question(questions, index) for index in range(len(questions)))
    return next((one for one in opened if isinstance(one, Sample)), None)


def _lines_of(questions: Sequence[Sample]) -> Check:
    """Whether a line answers the question of its number; looked up once a batch."""

    def check(values: dict[str, Any], is_first: bool) -> bool:
        if not is_first or is_bad(values):
            return True
        sample, turn = open_question(questions, values["row"]), values.get("turn", 0)
        if isinstance(sample, LeftOut):
            return True
        asked = [turn.question for turn in sample.turns[turn : turn + 1]]
        return values.get("id") == f"{sample.id}/{turn}" and [values.get("question")] == asked

    return check


def score_dialogue(answered: AnsweredDialogue, index: int, rules: Rules) -> list[AnswerRecord]:
    """One record for each turn of a dialogue that is answered.

    Given answers name their targets in order, so their masks are paired by position; free ones are
    matched.
    """
    records = []
    for number in range(len(answered.predictions)):
        turn = answered.sample.turns[number]
        pairs = [(i, i) for i in range(len(turn.targets))] if rules.mode == "forced" else None
        records.append(
            build_record(
                answered.sample,
                index,
                number,
                answered.predictions[number],
                answered.seconds[number],
                protocol=rules.protocol,
                pairs=pairs,
            )
        )
    return records


def _name_weights(model: str) -> str:
    """The model's fingerprint; "" where the name is only a label of what answers."""
    if model in GUESSES:
        return ""
    from pixellm.checkpoint.fingerprint import fingerprint_model

    try:
        return fingerprint_model(model)
    except (OSError, ValueError):  # if it is to be loaded, that says what is wrong
        return ""


def _check_engine(run: BenchmarkRun, engine: Any) -> None:
    """Refuse an engine that is not as the run says; other predictors don't tell."""
    model = getattr(engine, "model", None)
    found = {
        "dtype": "" if model is None else str(model.dtype).removeprefix("torch."),
        "max_new_tokens": getattr(engine, "max_new_tokens", None),
    }
    for name, value in found.items():
        said = getattr(run, name)
        if said and value and said != value:
            raise ValueError(f"The run says {name} {said}, but the model has {value}.")
    limit = getattr(engine, "min_mask_score", None)
    if model is not None and limit is not None and limit != model.config.min_mask_score:
        raise ValueError(
            f"The engine filters masks below {limit}, the model's own limit is "
            f"{model.config.min_mask_score}; a run is of a model as it is."
        )


def _check_suffix(engine: Any, folder: Path) -> str:
    """What an engine puts behind questions; "" where nothing, or a predictor does not tell."""
    suffix = str(getattr(getattr(engine, "processor", None), "reasoning_suffix", ""))
    noted = str(read_settings(folder).get("suffix", ""))
    if suffix != noted and read_run(folder).records:
        raise ValueError(
            f"{folder} holds answers to questions with the suffix {noted!r}, but the model now "
            f"asks with {suffix!r}; choose another folder for --out, or remove this one."
        )
    return suffix
