"""Seconds of the engine: against the released procedure, in other ways, and as requests grow.

Every answer is scripted (:mod:`measuring.workload`), so that length and targets are chosen and
both sides write the same. Images are new to the engine in every run: nothing is kept from one
to the next. Seconds are medians of repeated runs.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from measuring.flops import pixellm_flops
from measuring.machine import measure_limits, median_seconds, wait_for
from measuring.phases import PHASES, PhaseClock
from measuring.released import answer_as_released
from measuring.workload import (
    QUESTION,
    ScriptedEngine,
    random_images,
    requests_about,
    scripted_answer,
)
from pixellm.checkpoint.quantize import quantize_model
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Prediction, Request

Row = dict[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """A model to measure.

    Attributes:
        model: in evaluation mode, on its device.
        processor: the model's own.
        repeats: runs of the engine that a median is taken of.
        report: told what is being measured.
    """

    model: PixelLMForConditionalGeneration
    processor: PixelLMProcessor
    repeats: int = 5
    report: Report = lambda text: None

    def answer(
        self, requests: Sequence[Request], script: Sequence[int], max_batch: int = 16
    ) -> list[Prediction]:
        """Answer requests with an engine that knows no image yet."""
        engine = ScriptedEngine(self.model, self.processor, len(script), max_batch=max_batch)
        engine.script = script
        return engine.predict_batch(requests)

    def write_script(self, length: int, targets: int) -> list[int]:
        """See :func:`scripted_answer`."""
        return scripted_answer(self.model, self.processor, length, targets)

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of the repeated runs."""
        return median_seconds(work, self.model.device, self.repeats)

    def fits(self, length: int, targets: int) -> bool:
        """Whether each target has a word to stand behind."""
        return length - 1 - targets * self.model.config.group_size >= max(targets, 1)


def compare_with_released(
    bench: Bench, lengths: Sequence[int], targets: Sequence[int], released_repeats: int = 1
) -> list[Row]:
    """The engine against the stand-in, for each length and number of targets that fits.

    Returns:
        Rows with the seconds of both, their ratio, and the engine's seconds by phase.
    """
    rows = []
    (request,) = requests_about(random_images(1))
    for length in lengths:
        for count in (t for t in targets if bench.fits(length, t)):
            bench.report(f"{length} tokens, {count} targets")
            script = bench.write_script(length, count)
            work = partial(bench.answer, [request], script)
            seconds = bench.seconds(work)
            as_released = partial(answer_as_released, bench.model, bench.processor, request, script)
            released = median_seconds(as_released, bench.model.device, released_repeats, 0)
            rows.append(
                {
                    "tokens": length,
                    "targets": count,
                    "released_s": released,
                    "engine_s": seconds,
                    "ratio": released / seconds,
                    **phases_of(bench, work),
                }
            )
    return rows


WAYS = ("as it is", "int8", "compiled steps", "compiled")
"""Of answering: rounded weights of the language model, its steps compiled for fixed shapes, and
the vision tower, the projections and the pixel decoder beside these."""


def compare_ways(bench: Bench, ways: Sequence[str], length: int, targets: int) -> list[Row]:
    """The engine as it is and otherwise, which take turns, so that all meet the same machine.

    Returns:
        Rows with the seconds until the first answer is there, rounding and compiling included;
        medians of a later answer, of one word alone and of a step between, by the clock and, as
        ``cpu``, of the process and its compilers; and how many answers, in processor
        seconds, pay for what the first one takes longer.
    """
    scripts = {
        "answer": bench.write_script(length, targets),
        "words": bench.write_script(length, 0),
        "word": bench.write_script(1, 0),
    }
    requests = requests_about(random_images(1))
    engines, taken = dict[str, ScriptedEngine](), dict[tuple[str, str], list[_Times]]()

    def answer(way: str, kind: str) -> None:
        engines[way].script = scripts[kind]
        engines[way].predict_batch(requests)

    for way in ways:
        bench.report(way)
        begun = _now(bench)
        engines[way] = _engine_of(bench, way, length)
        answer(way, "answer")
        taken[way, "first"] = [_since(begun, bench)]
    for turn, kind, way in product(range(bench.repeats + 1), scripts, ways):
        begun = _now(bench)
        answer(way, kind)
        if turn:  # shapes that the first answer had not are compiled in the first turn
            taken.setdefault((way, kind), []).append(_since(begun, bench))
    medians = {
        key: _Times(*map(statistics.median, zip(*runs, strict=True))) for key, runs in taken.items()
    }
    return [_row_of(way, medians, ways[0], length) for way in ways]


class _Times(NamedTuple):
    """By the clock, and of the processor, both in seconds."""

    clock: float
    processor: float


def _now(bench: Bench) -> _Times:
    wait_for(bench.model.device)
    compilers = os.times()
    used = time.process_time() + compilers.children_user + compilers.children_system
    return _Times(time.perf_counter(), used)


def _since(begun: _Times, bench: Bench) -> _Times:
    now = _now(bench)
    return _Times(now.clock - begun.clock, now.processor - begun.processor)


def _row_of(way: str, medians: dict[tuple[str, str], _Times], plain: str, length: int) -> Row:
    row: Row = {"way": way}
    for clock, prefix in (("clock", ""), ("processor", "cpu_")):
        seconds = {
            kind: getattr(times, clock) for (one, kind), times in medians.items() if one == way
        }
        row[f"{prefix}first_s"] = seconds["first"]
        row[f"{prefix}answer_s"] = seconds["answer"]
        row[f"{prefix}word_s"] = seconds["word"]
        row[f"{prefix}step_ms"] = (seconds["words"] - seconds["word"]) / (length - 1) * 1e3
        row[f"{prefix}ratio"] = seconds["answer"] / getattr(medians[plain, "answer"], clock)
    gain = medians[plain, "answer"].processor - medians[way, "answer"].processor
    cost = medians[way, "first"].processor - medians[plain, "first"].processor
    return row | {"pays_after": cost / gain if gain > 0 else None}


def _engine_of(bench: Bench, way: str, length: int) -> ScriptedEngine:
    """An engine of its own model, which knows no image and no beginning of a prompt."""
    model = copy.deepcopy(bench.model)
    if way == "int8":
        quantize_model(model, "int8")
    if way == "compiled":
        parts = model.model
        for part in (parts.vision_tower, parts.image_projector, parts.feature_projector):
            part.compile(dynamic=False)
        parts.pixel_decoder.compile(dynamic=False)
    options = {"cached_images": 0, "prefix_bytes": 0, "compile": "compiled" in way}
    return ScriptedEngine(model, bench.processor, length, **options)


def phases_of(bench: Bench, work: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each phase, of what is left, and the steps of decoding."""
    runs, steps = [], 0
    for _ in range(bench.repeats):
        with PhaseClock(bench.model) as clock:
            whole = median_seconds(work, bench.model.device, 1, warm_ups=0)
        rest = whole - sum(clock.seconds.values())
        runs.append({**clock.seconds, "rest": rest})
        steps = clock.steps
    medians = {f"{p}_s": statistics.median(run[p] for run in runs) for p in (*PHASES, "rest")}
    return {**medians, "steps": steps}


def shares_of_limits(bench: Bench, rows: Sequence[Row]) -> list[Row]:
    """How near each phase comes to what plain products reach on this machine.

    Encoding, prefill and masks are held against a matrix product's FLOP/s, decoding against the
    bandwidth at which the language model's weights would be read once a step.
    """
    limits = measure_limits(bench.model.device, bench.model.dtype)
    messages = dialogue_messages((), QUESTION)
    ids = bench.processor.codec.encode(messages, add_generation_prompt=True).ids
    prompt_tokens = len(ids) - bench.model.config.num_image_tokens
    text = [*bench.model.model.language_model.parameters(), *bench.model.lm_head.parameters()]
    embeddings: Any = bench.model.get_input_embeddings()
    unread = 0 if bench.model.lm_head.weight is embeddings.weight else embeddings.weight.numel()
    weights = sum(p.numel() for p in {id(p): p for p in text}.values()) - unread
    read = weights * bench.model.dtype.itemsize
    shares = []
    for row in rows:
        words = row["tokens"] - row["targets"] * bench.model.config.group_size
        flops = pixellm_flops(bench.model.config, prompt_tokens, words, row["targets"])
        shares.append(
            {
                "tokens": row["tokens"],
                "targets": row["targets"],
                "encode_flops_share": flops.vision / row["encode_s"] / limits["flops"],
                "prefill_flops_share": flops.prefill / row["prefill_s"] / limits["flops"],
                "masks_flops_share": flops.masks / row["masks_s"] / limits["flops"],
                "decode_bandwidth_share": read
                * row["steps"]
                / row["decode_s"]
                / limits["bandwidth"],
                "machine_gflops": limits["flops"] / 1e9,
                "machine_gb_per_s": limits["bandwidth"] / 1e9,
            }
        )
    return shares


def grow_targets(bench: Bench, counts: Sequence[int], words: int = 32) -> list[Row]:
    """One image, the same number of words, more and more targets."""
    rows: list[Row] = []
    (request,) = requests_about(random_images(1))
    for count in counts:
        bench.report(f"{count} targets")
        script = bench.write_script(words + 1 + count * bench.model.config.group_size, count)
        work = partial(bench.answer, [request], script)
        row = {"targets": count, "engine_s": bench.seconds(work), **phases_of(bench, work)}
        if rows:
            first = rows[0]
            row |= _further_target(first, row)
        rows.append(row)
    return rows


def _further_target(first: Row, row: Row) -> dict[str, float]:
    """What each target beyond the first takes: reading its ids, which any answer pays, and ours."""
    more = row["targets"] - first["targets"]
    grown = {name: (row[name] - first[name]) / more for name in ("decode_s", "masks_s", "rest_s")}
    return {
        "further_target_s": (row["engine_s"] - first["engine_s"]) / more,
        "of_it_reading_its_ids_s": grown["decode_s"],
        "masks_over_encode": grown["masks_s"] / first["encode_s"],
        "masks_and_rest_over_encode": (grown["masks_s"] + grown["rest_s"]) / first["encode_s"],
    }


def grow_questions(bench: Bench, counts: Sequence[int], length: int, targets: int) -> list[Row]:
    """Questions about one image, asked together, against as many separate runs."""
    script, (request,) = bench.write_script(length, targets), requests_about(random_images(1))
    alone = bench.seconds(partial(bench.answer, [request], script))
    rows = []
    for count in counts:
        bench.report(f"{count} questions")
        together = bench.seconds(partial(bench.answer, [request] * count, script))
        row = {"questions": count, "together_s": together, "separate_s": alone * count}
        rows.append({**row, "share": together / row["separate_s"]})
    return rows


def grow_batch(bench: Bench, counts: Sequence[int], length: int, targets: int) -> list[Row]:
    """More and more images, each with its question, answered side by side."""
    script, rows = bench.write_script(length, targets), list[Row]()
    for count in counts:
        bench.report(f"batch of {count}")
        requests = requests_about(random_images(count))
        seconds = bench.seconds(partial(bench.answer, requests, script, max_batch=count))
        rate = count / seconds
        first = rows[0]["images_per_s"] if rows else rate
        rows.append(
            {"batch": count, "engine_s": seconds, "images_per_s": rate, "gain": rate / first}
        )
    return rows


def grow_length(bench: Bench, lengths: Sequence[int], targets: int) -> list[Row]:
    """Longer and longer answers with the same number of targets."""
    rows = []
    (request,) = requests_about(random_images(1))
    for length in (n for n in lengths if bench.fits(n, targets)):
        bench.report(f"{length} tokens")
        work = partial(bench.answer, [request], bench.write_script(length, targets))
        row = {"tokens": length, "engine_s": bench.seconds(work)}
        rows.append({**row, **phases_of(bench, work)})
    return rows
