"""One run on one damaged recipe, model, file of answers or reply of a language model."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from damaged_files import COMPARED, CUP_TURN, SQUARE, command, draw, outcome_of, shifted
from file_damage import mutate_bytes, mutate_values, to_json
from PIL import Image
from stated import SIDE, AcceptedError, Mask, coco, is_same, labelme, segmentation

from conftest import TINY_QUESTION, square_image, tiny_parts
from pixellm.masks import segmentation_to_rle

# Recipes.

TINY_RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "output_dir": "runs",
    "model": tiny_parts(),
    "data": [{"name": "jsonl", "weight": 1.0, "args": {"root": ".", "split": "train"}}],
    "collate": {"mask_size": 16, "max_length": 128},
    "optimizer": {"kind": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.01},
    "stages": [
        {
            "name": "joint",
            "steps": 2,
            "batch_size": 2,
            "accumulation": 1,
            "warmup_steps": 0,
            "learning_rate": 0.003,
            "freeze": ["*vision_tower*"],
            "loss": {"text": 1.0, "mask": 2.0, "dice": 0.5, "patch_class": 0.1},
        }
    ],
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]},
    "checkpoint": {"every_steps": 1, "keep_last": 1},
    "evaluation": {"every_steps": 0},
    "ema_decay": 0.5,
    "log_every": 1,
    "threads": 1,
    "precision": "no",
    "vocabulary_samples": 2,
}
SHIPPED_SHARE = 0.1
"""Share of the recipes that ship with the library; their plans take seconds."""


def recipe(folder: Path, rng: random.Random) -> str:
    """A training recipe; a small one is trained, too."""
    from pixellm.training.config import find_recipes

    shipped = rng.random() < SHIPPED_SHARE
    original = TINY_RECIPE
    if shipped:
        path = find_recipes(rng.choice(("nano_scenes", "finetune_coco", "pixellm_7b")))[0]
        original = yaml.safe_load(path.read_text("utf-8"))
    values = mutate_values(original, rng)
    text = yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "replace")
    mine = folder / "recipe.yaml"
    mine.write_bytes(mutate_bytes(text, rng) if rng.random() < 0.2 else text)
    draw(folder / "a.jpg")
    line = {"id": "one", "image": "a.jpg", "turns": [CUP_TURN]}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    ended = command("train", str(mine), "--dry-run", "--set", f"output_dir={folder}/runs")
    if ended == "used":
        COMPARED["recipes"] += 1
        check_recipe(yaml.safe_load(mine.read_text("utf-8")), original)
    return ended


def check_recipe(values: Any, original: Any, where: str = "") -> None:
    """What a plan has accepted says nothing that the recipe it was made of could not say.

    Raises:
        AcceptedError: a key that nobody knows, a value of another type, no number.
    """
    if isinstance(original, dict) and isinstance(values, dict):
        for key, value in values.items():
            if key in original:
                check_recipe(value, original[key], f"{where}.{key}")
            elif str(key).removesuffix("_2") in original or str(key)[:-1] in original:
                raise AcceptedError(f"{where}.{key} is no setting")
    elif isinstance(original, list) and isinstance(values, list):
        for value in values:
            check_recipe(value, original[0], f"{where}[]") if original else None
    elif not fits(values, original):
        raise AcceptedError(f"{where} is {values!r:.80}, and was {original!r:.80}")


def fits(value: Any, original: Any) -> bool:
    """Whether a value is one of the original's type; null leaves it to the default."""
    if value is None or original is None:
        return True
    if isinstance(original, bool):
        return value in (False, True)
    if isinstance(value, bool):
        return False
    if isinstance(original, int | float):
        try:
            return math.isfinite(float(value))
        except (TypeError, ValueError):
            return False
    return type(value) is type(original)


# Models.


def checkpoint(folder: Path, rng: random.Random, model: Path) -> str:
    """A model's folder with one damaged file; one that loads has to answer."""
    copied = Path(shutil.copytree(model, folder / "model"))
    path = rng.choice(sorted(path for path in copied.iterdir() if path.is_file()))
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        values = json.loads(data)
        if path.name == "tokenizer.json":  # large; what matters is small
            values = {**values, "added_tokens": mutate_values(values["added_tokens"], rng)}
            path.write_bytes(json.dumps(values).encode("utf-8", "replace"))
        else:
            path.write_bytes(to_json(mutate_values(values, rng), rng))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        head = data[: 8 + int.from_bytes(data[:8], "little")]
        path.write_bytes(mutate_bytes(head, rng) + data[len(head) :])
    else:
        path.write_bytes(mutate_bytes(data, rng))

    def answer() -> None:
        found = answer_of(copied)
        COMPARED["answers"] += 1
        if found == sound_answer(model):
            return
        COMPARED["other answers"] += 1
        if path.suffix == ".json" and not are_other_numbers(path, data):
            raise AcceptedError(f"{path.name} is damaged, and the answer another")

    return outcome_of(answer)


def are_other_numbers(path: Path, data: bytes) -> bool:
    """Whether a file has other numbers than before, as another model's may, or other bytes."""

    def differ(one: Any, other: Any) -> bool:
        if isinstance(one, dict) and isinstance(other, dict):
            return any(differ(one[key], other[key]) for key in one.keys() & other.keys())
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and any(map(differ, one, other))
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and one != other

    try:
        return differ(json.loads(data), json.loads(path.read_bytes().decode("utf-8-sig")))
    except ValueError:
        return True


@cache
def sound_answer(model: Path) -> tuple[str, list[bytes]]:
    """What the undamaged model says."""
    return answer_of(model)


def answer_of(model: Path) -> tuple[str, list[bytes]]:
    """What a model says about the two squares."""
    from pixellm.engine import load

    engine = load(model, device="cpu", dtype="float32", max_new_tokens=48)
    found = engine.predict(square_image((2, 3)), TINY_QUESTION)
    return found.text, [np.packbits(one.mask).tobytes() for one in found.segments]


# Answers.

ANSWERED = shifted(8)


def prediction_line() -> dict[str, Any]:
    """An answer as another system writes it."""
    runs = segmentation_to_rle([ANSWERED], SIDE)
    return {"id": "one/0", "text": "The cup {seg}.", "masks": [runs], "scores": [0.9]}


def answer_line() -> dict[str, Any]:
    """An answer as `predict` writes it."""
    runs = segmentation_to_rle([ANSWERED], SIDE)
    return {
        "row": 0,
        "id": "one/0",
        "image": "a.jpg",
        "width": SIDE[1],
        "height": SIDE[0],
        "question": "Where is the cup?",
        "answer": "The cup.",
        "model": "other",
        "segments": [{"label": "The cup", "score": 0.9, "segmentation": runs, "span": [0, 7]}],
        "withheld": 0,
    }


def answers(folder: Path, rng: random.Random) -> str:
    """A file of predictions that is to be scored."""
    draw(folder / "a.jpg")
    asked = {"id": "one", "image": "a.jpg", "turns": [CUP_TURN]}
    (folder / "asked.jsonl").write_text(json.dumps(asked), "utf-8")
    path, scores = folder / "answers.jsonl", folder / "scores.json"
    line = prediction_line() if rng.random() < 0.3 else answer_line()
    path.write_bytes(to_json(mutate_values(line, rng), rng))
    data = ("--data", str(folder / "asked.jsonl"))
    ended = command("score", str(path), "--benchmark", "jsonl", *data, "--json", str(scores))
    if ended == "used":
        overall = json.loads(scores.read_text("utf-8"))["without_judge"]["groups"]["overall"]
        check_score(overall["scores"]["union_giou"]["value"], path)
    return ended


def check_score(found: float, path: Path) -> None:
    """A score is that of the masks in the file."""
    truth = segmentation([SQUARE])
    masks = [truth & False, *answered(path)]
    union = np.any(masks, axis=0)
    COMPARED["scores"] += 1
    expected = float((union & truth).sum() / (union | truth).sum())
    if abs(found - expected) > 0.01:
        raise AcceptedError(f"a score of {found} for masks of {expected}")


def answered(path: Path) -> list[Mask]:
    """The masks of a file of answers."""
    masks = []
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        values = json.loads(line) if line.strip() else {}
        own = values.get("masks") or [one["segmentation"] for one in values.get("segments") or ()]
        for runs in own:
            mask = np.zeros(SIDE, bool) if runs == [] else segmentation(runs)
            if mask is None:
                raise AcceptedError(f"{runs!r:.80} is no mask")
            masks.append(mask)
    return masks


def export(folder: Path, rng: random.Random) -> str:
    """A file of answers that is to be exported; what was written has the masks of the answers."""
    draw(folder / "a.jpg")
    path, out = folder / "answers.jsonl", folder / "out"
    path.write_bytes(to_json(mutate_values(answer_line(), rng), rng))
    form = rng.choice(tuple(EXPORTED))
    ended = command("export", str(path), "--to", form, "--out", str(out))
    if ended == "used":
        masks = answered(path)
        for written in EXPORTED[form](out):
            COMPARED["masks"] += 1
            if not any(is_same(written, mask) for mask in masks):
                raise AcceptedError("exported a mask that no answer has")
    return ended


EXPORTED: dict[str, Callable[[Path], list[Mask]]] = {
    "coco": lambda out: [shape.mask for shape in coco(out / "instances.json").shapes],
    "coco-polygons": lambda out: [shape.mask for shape in coco(out / "instances.json").shapes],
    "labelme": lambda out: [shape.mask for shape in labelme(out / "a.json").shapes],
    "png": lambda out: [np.array(Image.open(path)) > 0 for path in out.glob("objects/*/*.png")],
}
"""The masks that an export has written, by its format."""


# Replies.


def reply(folder: Path, rng: random.Random) -> str:
    """What a language model may say instead of the JSON that it was asked for."""
    from pixellm.curation.proposal import Draft, Reply, parse_draft

    values = {
        "question": "What could I drink from?",
        "answer": "The cup on the left {seg} and the dog {seg}.",
        "objects": [
            {"id": 1, "description": "the cup on the left"},
            {"id": 2, "description": "the dog"},
        ],
    }
    values = mutate_values(values, rng)
    text = to_json(values, rng).decode("utf-8", "replace")
    text = rng.choice(("{}", "```json\n{}\n```", "Sure, here it is: {} Anything else?")).replace(
        "{}", text
    )
    found = parse_draft(Reply(text, rng.choice(("stop", "stop", "length", "refusal"))))
    if not isinstance(found, Draft):
        return "refused"
    check_draft(found, text)
    return "used"


def check_draft(draft: Any, text: str) -> None:
    """A draft says what some JSON object in the reply says."""
    COMPARED["drafts"] += 1
    for values in _objects_in(text):
        try:
            said = [(one["id"], " ".join(one["description"].split())) for one in values["objects"]]
            texts = [" ".join(values[key].split()) for key in ("question", "answer")]
        except (AttributeError, KeyError, TypeError):
            continue
        ids = [str(number).lstrip("#") for number, _ in said]
        own = [str(number) for number, _ in draft.descriptions]
        same = [draft.question, draft.answer] == texts
        if (
            same
            and ids == own
            and [words for _, words in draft.descriptions] == [w for _, w in said]
        ):
            return
    raise AcceptedError(f"{draft} stands nowhere in the reply")


def _objects_in(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    for at, letter in enumerate(text):
        if letter == "{":
            try:
                found, _ = decoder.raw_decode(text[at:])
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


KINDS: dict[str, Callable[..., str]] = {
    one.__name__: one for one in (recipe, checkpoint, answers, export, reply)
}
"""What jobs read besides data sets."""
