"""Options that several commands share, each written once, alone or in groups.

A command takes a group as one argument: :func:`spread` puts the group's options into the command's
signature and hands it the group. Light to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer import Option

from pixellm.cli.console import import_quietly, open_console, printable

if TYPE_CHECKING:
    from pixellm.engine import Engine
    from pixellm.evaluation.judge import Judge


def number(help: str, **bounds: Any) -> Any:
    """An option that takes a number, but neither nan nor inf: as limits, they limit nothing."""

    def check(value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise typer.BadParameter(f"{value} is no finite number.")
        return value

    return Option(help=help, callback=check, **bounds)


Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16, float16.")]
Json = Annotated[str, Option(help="JSON file; - for standard output.")]
Images = Annotated[
    Path | None, Option(help="Folder of the photos, where they do not lie as usual.")
]
With = Annotated[
    list[str] | None,
    Option(
        "--with",
        metavar="NAME=VALUE",
        help="An option of the data set's reader; of scenes num, dialogues or seed; repeatable.",
    ),
]
MinScore = Annotated[
    float | None,
    number("Withhold masks of a lower score; the model's own limit if not given.", min=0, max=1),
]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Which model answers and where it runs; small enough to be sent elsewhere."""

    model: Annotated[
        str, Option(help="A name of `pixellm models`, a folder, a run's folder, or a hub id.")
    ] = "nano"
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantize: Annotated[
        str | None,
        Option(help="int8, int4 or nf4 (NVIDIA): the language model's weights in so few bits."),
    ] = None
    offload: Annotated[
        Path | None,
        Option(help="Folder for weights that fit neither the GPU nor memory; spreads the model."),
    ] = None

    def load(self, **options: Any) -> Engine:
        """The engine, quietly; ``options`` are its own."""
        from rich.markup import escape

        from pixellm.checkpoint.sources import resolve_source

        resolve_source(self.model)  # a wrong name is told at once
        library = import_quietly("pixellm.engine.loading")
        with open_console(stderr=True).status(escape(printable(f"Loading {self.model}"))):
            _check_device(library.pick_device(self.device))
            engine: Engine = library.load(
                self.model,
                device=self.device,
                dtype=self.dtype,
                quantize=self.quantize,
                offload_folder=self.offload,
                **options,
            )
        return engine


@dataclass(frozen=True, slots=True)
class ModelOptions(LoadOptions):
    """Which model answers, where it runs, and how it writes."""

    max_new_tokens: Annotated[
        int | None, Option(min=1, help="Longest answer in tokens; the engine's limit if not given.")
    ] = None
    temperature: Annotated[
        float, number("0 takes the likeliest word each time; above, words are drawn.", min=0)
    ] = 0.0

    def of_answer(self) -> dict[str, Any]:
        """What a call of the engine is told beside its question; nothing where all is usual."""
        return {"temperature": self.temperature} if self.temperature else {}

    def load(self, **options: Any) -> Engine:
        """As :meth:`LoadOptions.load`, with the limit of tokens."""
        limit = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        return LoadOptions.load(self, **limit, **options)


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Which judge rates answers, and what it may cost."""

    judge: Annotated[
        str,
        Option(
            help="Rates whether each mask shows what the words in front of it say: none, "
            "similarity (compares words, offline and free), llm (asks a language model)."
        ),
    ] = "none"
    judge_model: Annotated[str, Option(help="Name of the llm judge at its server.")] = ""
    base_url: Annotated[
        str,
        Option(
            help="Address of the llm judge's server, any OpenAI-compatible one. Its key comes from "
            "the environment variable OPENAI_API_KEY; a server on the local network needs none."
        ),
    ] = ""
    judge_threshold: Annotated[
        float, number("Masks rated below it, 1 to 10, count with intersection 0.")
    ] = 3.0
    judge_cache: Annotated[
        Path, Option(help="SQLite file of the llm judge's ratings; none is paid for twice.")
    ] = Path("judge_cache.sqlite")
    max_cost: Annotated[
        float | None,
        number(
            "USD that all ratings in the cache may cost; 0 takes what the cache holds. No "
            "cap where not given."
        ),
    ] = None
    price: Annotated[
        str, Option(help="INPUT,OUTPUT in USD per million tokens, of a model not listed.")
    ] = ""

    def open(self) -> Judge | None:
        """The judge that the options describe; None for none."""
        from pixellm.evaluation.judge import LLMJudge, SimilarityJudge
        from pixellm.llm.prices import read_price

        kind, model, url = self.judge, self.judge_model, self.base_url
        if kind not in ("none", "similarity", "llm"):
            raise ValueError(f"The judge is none, similarity or llm, not {kind!r}.")
        if kind == "llm" and not (model and url):
            raise ValueError(
                "--judge llm needs --judge-model NAME and --base-url ADDRESS, such as "
                "https://api.openai.com/v1."
            )
        if kind != "llm" and (model or url or self.price or self.max_cost is not None):
            raise ValueError(
                "--judge-model, --base-url, --max-cost and --price are for --judge llm, not "
                f"--judge {kind}."
            )
        if kind == "none":
            return None
        if kind == "similarity":
            return SimilarityJudge(self.judge_threshold)
        price = read_price(self.price)
        limits: dict[str, Any] = {"max_cost": self.max_cost, "price": price}
        return LLMJudge(model, url, self.judge_cache, self.judge_threshold, **limits)


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """Which scenes are drawn."""

    num: Annotated[int, Option(min=1, help="Images, where scenes are drawn.")] = 500
    dialogues: Annotated[int, Option(min=1, help="Dialogues about each drawn image.")] = 4
    seed: Annotated[int, Option(help="Another seed gives other scenes.")] = 0

    def values(self) -> dict[str, int]:
        """By the names of a :class:`~pixellm.evaluation.evaluate.BenchmarkRun`."""
        return {"num_scenes": self.num, "dialogues_per_image": self.dialogues, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Where a data set's files lie."""

    data: Annotated[
        Path, Option(help="Folder that holds the data sets; for muse and jsonl also a file.")
    ] = Path("data")
    images: Images = None
    options: With = None

    def values(self) -> dict[str, Any]:
        """By the names of a :class:`~pixellm.evaluation.evaluate.BenchmarkRun`."""
        chosen = reader_options(self.options)
        return {"data": self.data, "images": self.images, "options": chosen}


def reader_options(options: Sequence[str] | None) -> dict[str, Any]:
    """Options of a data set's reader by name, from ``NAME=VALUE`` as typed.

    Values are JSON where they can be, and text elsewhere.
    """
    from pixellm.files import parse_json

    chosen: dict[str, Any] = {}
    for option in options or ():
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ValueError(f"--with takes NAME=VALUE, not {option!r}.")
        try:
            chosen[name] = parse_json(value)
        except ValueError:
            chosen[name] = value
    return chosen


def image_options(images: Path | None, options: Sequence[str] | None) -> dict[str, Any]:
    """All options of a reader by name; the folder of photos stays right in any other folder."""
    folder = {} if images is None else {"images": str(images.absolute())}
    return {**folder, **reader_options(options)}


def spread(command: Callable[..., None], **defaults: Any) -> Callable[..., None]:
    """The command with the options of its groups, arguments that are dataclasses, in their place.

    ``defaults`` are other values of options than those of the groups.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += _options_of(kind, defaults)
        else:
            chosen = parameter.replace(annotation=kind, kind=Parameter.KEYWORD_ONLY)
            parameters.append(chosen)

    @wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{one.name: values.pop(one.name) for one in fields(kind)})
        command(**values)

    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options_of(group: Any, defaults: Mapping[str, Any]) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            one.name,
            Parameter.KEYWORD_ONLY,
            default=defaults.get(one.name, one.default),
            annotation=hints[one.name],
        )
        for one in fields(group)
    ]


def _check_device(device: Any) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"This machine has no device {str(device)!r}; try auto or cpu.") from error
