"""A benchmark from its name to its report: opens questions, answers what is missing, reports.

The one place where benchmarks, models and reports meet. It prints nothing and chooses no device;
the model is loaded only if a question is left to answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixellm.engine.dialogues import Predictor
from pixellm.engine.jobs import ALONE, ProcessGroup
from pixellm.evaluation.baselines import GUESSES, ObjectGuesser, guess_scenes
from pixellm.evaluation.benchmarks import (
    Benchmark,
    SceneQuestions,
    find_benchmark,
    open_questions,
)
from pixellm.evaluation.evaluate import (
    Answer,
    Progress,
    answer_freely,
    answer_missing,
    answer_with_texts,
    missing_questions,
)
from pixellm.evaluation.metrics import Protocol
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report import check_report, write_report
from pixellm.evaluation.report.gallery import FetchImage, read_image
from pixellm.evaluation.run_folder import open_run, read_answers, read_settings
from pixellm.evaluation.scores import Mode, Rules
from pixellm.evaluation.summary import Summary, summarize
from pixellm.files import locked
from pixellm.types import Sample

if TYPE_CHECKING:
    from PIL import Image

    from pixellm.engine import Engine

LoadEngine = Callable[[], "Engine | Predictor"]

_GUESSABLE = ("scenes", "free", "strict")
"""Name, mode and protocol of what guesses can answer: they write no given texts and no logits."""


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """What is to be evaluated, checked as far as it can be without files.

    Attributes:
        name: of the benchmark.
        model: as the user called it; on drawn scenes also a guess that needs no model, one of
            :data:`~pixellm.evaluation.baselines.GUESSES`.
        split: of the data set; the benchmark's usual one where "".
        data: folder that holds the data sets, or a file, see
            :func:`~pixellm.evaluation.benchmarks.open_questions`; not used by drawn scenes.
        images: folder of MUSE's photos, where they do not lie as usual or beside the file.
        mode: "free" or "forced"; the benchmark's usual one where None.
        protocol: "strict" or "released".
        limit: the first dialogues only; all where 0.
        seed: of drawn scenes.
        num_scenes: of drawn scenes.
        dialogues_per_image: of drawn scenes.
        dtype: floating type of the model in memory, such as "float32"; "" where it is not said.
        max_new_tokens: longest answer in tokens; None where it is not said.

    Raises:
        ValueError: no such benchmark, mode or protocol, or a guess where it can't answer.
    """

    name: str
    model: str
    split: str = ""
    data: Path = Path("data")
    images: Path | None = None
    mode: Mode | None = None
    protocol: Protocol = "strict"
    limit: int = 0
    seed: int = 0
    num_scenes: int = 500
    dialogues_per_image: int = 4
    dtype: str = ""
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        rules = self.benchmark.rules(self.mode, self.protocol)
        if self.model in GUESSES and (self.name, rules.mode, self.protocol) != _GUESSABLE:
            raise ValueError(
                f"The guess {self.model} answers scenes alone, in --mode free under --protocol "
                "strict; name a model."
            )
        if self.images is not None and self.name != "muse":
            raise ValueError(f"--images is for muse; {self.name} finds its images itself.")

    @property
    def benchmark(self) -> Benchmark:
        """Its row of the table."""
        return find_benchmark(self.name)

    @property
    def rules(self) -> Rules:
        """How it is scored."""
        return self.benchmark.rules(self.mode, self.protocol)

    def open(self) -> Sequence[Sample]:
        """The questions.

        Raises:
            ValueError, FileNotFoundError, ImportError: as the data sets' readers.
        """
        split = self.split or self.benchmark.split
        questions: Sequence[Sample]
        if self.name == "scenes":
            questions = SceneQuestions(split, self.seed, self.num_scenes, self.dialogues_per_image)
        else:
            questions = open_questions(self.name, split, self.data, self.images)
        return _First(questions, self.limit) if self.limit else questions

    def guesser(self) -> ObjectGuesser:
        """What answers in place of a model, where :attr:`model` is a guess.

        Raises:
            ValueError: it is none, or an unknown split.
            ImportError: the extra ``scenes`` is not installed.
        """
        split = self.split or self.benchmark.split
        drawn = {"seed": self.seed, "dialogues_per_image": self.dialogues_per_image}
        return guess_scenes(self.model, split, self.num_scenes, **drawn)

    @property
    def headline(self) -> tuple[str, ...]:
        """The scores that the benchmark is judged by, less those that given texts decide."""
        given = ("n_acc", "t_acc", "text_accuracy") if self.rules.mode == "forced" else ()
        return tuple(name for name in self.benchmark.headline if name not in given)

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
            "rules": asdict(self.rules),
        }
        if self.name == "scenes":
            names = ("seed", "num_scenes", "dialogues_per_image")
            return values | {name: getattr(self, name) for name in names}
        images = {} if self.images is None else {"images": str(self.images.resolve())}
        return values | {"data": str(self.data.resolve())} | images

    def folder_name(self) -> str:
        """A name for the run's folder."""
        parts = [self.name, self.split or self.benchmark.split, Path(self.model).name]
        parts += [self.rules.mode, self.protocol]
        if self.limit:
            parts.append(f"first{self.limit}")
        return re.sub(r"[^\w.+-]+", "-", "_".join(parts))


def run_benchmark(
    run: BenchmarkRun,
    folder: Path,
    load_engine: LoadEngine,
    *,
    batch_size: int = 16,
    group: ProcessGroup = ALONE,
    progress: Progress | None = None,
) -> tuple[Summary, list[AnswerRecord]]:
    """Answer, score and report a benchmark; go on where an earlier call stopped.

    Args:
        run: what to evaluate.
        folder: of the run; holds the answers, and the report at the end.
        load_engine: gives the model, or in free mode under the strict protocol anything with
            ``predict_batch``; called only if something is left to answer.
        batch_size: dialogues answered together; the same for all of a run.
        group: all of its processes must call this; the first one writes the report.
        progress: told after every dialogue.

    Returns:
        The scores, and all answers.

    Raises:
        ValueError: bad settings, damaged files, a folder with another run or with answers of
            other weights, or a model that is not as the run says.
        FileNotFoundError: files of the data set are missing.
        OSError: the folder can't be written, or another process writes there.
        ImportError: an extra is not installed.
    """
    if group.number == 0:
        check_report(folder)
    questions = run.open()
    named = {**run.settings(), "weights": _name_weights(run.model)}
    if group.number == 0:
        open_run(folder, named, {"left_out": len(getattr(questions, "bad_rows", ()))})
    # The group's first process keeps every other job out, and lets its own processes in.
    with locked(folder) if group.number == 0 else nullcontext():
        group.wait()
        if missing_questions(questions, folder):
            engine = load_engine()
            _check_engine(run, engine)
            if questions[0].turns[0].takes_suffix:
                suffix = _check_suffix(engine, folder)
                group.wait()  # all must have seen what an earlier call noted
                if group.number == 0:
                    open_run(folder, named, {"suffix": suffix})
            answer = _answer(run.rules, engine)
            records = answer_missing(
                answer, questions, run.rules, folder, batch_size, group=group, progress=progress
            )
        else:
            records = read_answers(folder)
        by_kind = run.benchmark.classes_are_kinds
        summary = summarize(records, run.rules, classes_are_kinds=by_kind)
        if group.number == 0:
            settings, source = read_settings(folder), image_source(questions)
            write_report(folder, settings, summary, records, run.headline, source)
    return summary, records


def image_source(questions: Sequence[Sample] | None) -> FetchImage:
    """Images from their files, and drawn ones from the questions, where there are any."""

    def fetch(record: AnswerRecord) -> Image.Image | None:
        from PIL import Image

        if record.path or questions is None:
            return read_image(record)
        image = questions[record.index].image
        return None if isinstance(image, Path) else Image.fromarray(image)

    return fetch


def run_of_folder(folder: Path) -> BenchmarkRun:
    """The run that a folder holds, to open its questions again.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings are damaged.
    """
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
    """What an engine puts behind questions; "" where nothing, or a predictor does not tell.

    Raises:
        ValueError: the folder's answers were given to questions with another suffix.
    """
    suffix = str(getattr(getattr(engine, "processor", None), "reasoning_suffix", ""))
    noted = str(read_settings(folder).get("suffix", ""))
    if suffix != noted and read_answers(folder):
        raise ValueError(
            f"{folder} holds answers to questions with the suffix {noted!r}, but the model now "
            f"asks with {suffix!r}; choose another folder for --out, or remove this one."
        )
    return suffix


def _answer(rules: Rules, engine: Any) -> Answer:
    if rules.mode == "forced":
        return answer_with_texts(engine)
    return answer_freely(engine, keep_logits=rules.protocol == "released")


class _First(Sequence[Sample]):
    """The first questions of a sequence."""

    def __init__(self, questions: Sequence[Sample], limit: int) -> None:
        self._questions = questions
        self._length = min(limit, len(questions))
        self.bad_rows = getattr(questions, "bad_rows", ())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:  # a sample; for a slice, several
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(f"Question {index} of {self._length}.")
        return self._questions[index]
