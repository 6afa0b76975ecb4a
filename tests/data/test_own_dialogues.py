"""Dialogues of one's own (JSONL) and LLaVA's conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, expand_runs, fill_polygon, rectangle, write_json

from pixellm.data.dataset import Dataset
from pixellm.data.dialogues import JsonlSamples, LlavaInstruct
from pixellm.evaluation.benchmarks import open_rows
from pixellm.masks import decode_mask, encode_mask

SIZE = (30, 40)
CUP, SPOON = rectangle(3, 4, 13, 20), rectangle(20, 1, 25, 29)
RUNS = {"size": list(SIZE), "counts": [60, 45, 1095]}
HALF = "half \ud83d emoji"


def line(*turns: Any, **changes: Any) -> dict[str, Any]:
    """A row in the documented form."""
    use = {
        "question": "What could I stir with?",
        "answer": "With the spoon {seg} in the cup {seg}.",
        "targets": [
            {"name": "spoon", "segmentation": [SPOON]},
            {"name": "cup", "segmentation": RUNS},
        ],
        "kind": "use",
    }
    fork = {"question": "And the fork?", "answer": "There is no fork."}
    return {"image": "photos/1.jpg", "turns": list(turns) or [use, fork], **changes}


def said(question: Any, answer: Any, **more: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, **more}


def target(**changes: Any) -> dict[str, Any]:
    return line(said("q", "a {seg}", targets=[{"name": "x", **changes}]))


def read(root: Path, *rows: Any) -> JsonlSamples:
    draw_photo(root / "photos/1.jpg", SIZE)
    draw_photo(root / "photos/3.jpg", SIZE[::-1])
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "train.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return JsonlSamples(root)


def test_a_line_is_a_dialogue(tmp_path: Path) -> None:
    known = [{"name": "table", "segmentation": encode_mask(np.ones(SIZE, dtype=bool))}]
    reader = read(tmp_path, line(id="mine", size=list(SIZE), objects=known), "", line())
    assert reader.counts() == {"images": 2, "questions": 4, "targets": 4}
    (sample,), (other,) = reader.item(0), reader.item(1)
    assert (sample.id, other.id) == ("mine", "jsonl-train-3")
    assert sample.turns == other.turns and other.size == SIZE
    assert sample.turns[0].question == "What could I stir with?"
    spoon, cup = sample.turns[0].targets
    assert np.array_equal(decode_mask(spoon.mask), fill_polygon(SPOON, SIZE))
    assert np.array_equal(decode_mask(cup.mask), expand_runs(RUNS))
    assert decode_mask(sample.objects[0].mask).all()
    assert [len(one.turns) for one in reader.evaluation_samples()] == [1, 1]
    assert not list(reader.check())


def test_null_in_an_optional_key_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    cup = {"name": "cup", "segmentation": [CUP], "ignore": None}
    nothing = said("What?", "This.", targets=None, kind=None)
    reader = read(
        tmp_path,
        line(nothing, size=None, id=None, objects=None),
        line(said("What?", "{seg}", targets=[cup], kind=None)),
        line(nothing, size=[30.0, "40"], id=7),
    )
    assert list(reader.check()) == [] and reader.counts()["questions"] == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{broken", "no JSON"),
        ([1], "A line is a JSON object"),
        ("null", "JSON object"),
        ({"image": "photos/1.jpg"}, "lacks 'turns'"),
        (line(image=None), "lacks 'image'"),
        (line(imge="x"), "unknown key 'imge'"),
        (line(size=[1]), "[height, width]"),
        (line(size=[-1, 5]), "[height, width]"),
        (line(size=[1e30, 5]), "[height, width]"),
        (line(id=[]), "Its id is"),
        (line(objects={}), "list"),
        (line(turns=[]), "no turns"),
        (line(None), "JSON object"),
        (line(said("q", "a {seg}")), "1 {seg} marks but 0 targets"),
        (line(said(HALF, "x")), "half a character"),
        (line(said("x", HALF)), "half a character"),
        (line(said(7, "x")), "no text but 7"),
        (target(mask=[]), "lacks 'segmentation'"),
        (target(segmentation=[[1, 2, 3]]), "even length"),
        (target(segmentation=[]), "covers no pixel"),
        (target(segmentation={"size": [2, 2], "counts": [4]}), "(2, 2)"),
        (line(image="photos/2.jpg"), "There is no image"),
        (line(image="photos/3.jpg", size=list(SIZE)), "The image is (40, 30)"),
    ],
)
def test_a_bad_line_is_listed_with_its_number_and_reason(
    tmp_path: Path, bad: Any, words: str
) -> None:
    reader = read(tmp_path, line(id=7), bad)
    (found,) = reader.check()
    assert words in found.reason
    assert found.row == "line 2" or found.file.name == "3.jpg"
    assert reader.item(0)[0].id == "7"


@pytest.mark.parametrize("name", ["jsonl", "llava"])
def test_dialogues_of_one_id_are_all_asked_and_told_apart(tmp_path: Path, name: str) -> None:
    ids = (7, "7", 8, 7)
    if name == "jsonl":
        reader: Dataset = read(tmp_path, *(line(id=one) for one in ids))
        names = ["7", "7 (line 2)", "8", "7 (line 4)"]
    else:
        draw_photo(tmp_path / "coco/train2017/a.jpg", SIZE)
        rows = [talk("a.jpg", "What?", "A cup.", id=one) for one in ids]
        write_json(tmp_path / "llava_dataset/llava_instruct_150k.json", rows)
        reader = LlavaInstruct(tmp_path)
        names = ["llava-train-7", "llava-train-7 (entry 1)", "llava-train-8"]
        names.append("llava-train-7 (entry 3)")
    assert [one.id for one in reader.evaluation_samples()] == names
    assert not list(reader.check())
    asked = open_rows(name, tmp_path, "train")
    assert len({row.id for row in asked}) == len(asked)


def test_a_file_without_a_good_line_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl holds no line.*line 1.*no JSON"):
        read(tmp_path, "{")


def talk(image: Any, *texts: Any, **more: Any) -> dict[str, Any]:
    """A conversation; without an image where that is None."""
    speakers = ("human", "gpt") * len(texts)
    pairs = [{"from": s, "value": t} for s, t in zip(speakers, texts, strict=False)]
    return {"conversations": pairs, **({} if image is None else {"image": image}), **more}


BAD_TALKS = [
    (talk(None, "Hello", "Hi"), "text alone"),
    (talk("1.jpg", "Hello"), "alternate"),
    (talk("1.jpg", "Where?", "Here {seg}."), "{seg}"),
    (talk("../1.jpg", "Where?", "Here."), "leads out"),
    (talk("2.jpg", "Where?\n<image>", "Here."), "There is no image"),
    (talk(["1.jpg", "b.jpg"], "What?", "This."), "2 images"),
    (talk("1.jpg", None, "This."), "lacks 'question'"),
    (talk("1.jpg", "What?", None), "lacks 'answer'"),
    (talk("1.jpg", "What?", " "), "The answer is empty"),
    (talk("1.jpg", HALF, "This."), "half a character"),
    (None, "text alone"),
]


def test_llava_conversations_keep_their_turns_and_lose_the_image_mark(tmp_path: Path) -> None:
    draw_photo(tmp_path / "coco/train2017/1.jpg", SIZE)
    good = [
        talk("1.jpg", "<image>\nWho?", "A man.", "Why?", "Fun", id="7"),
        talk(["1.jpg"], "What?", "This."),
        talk(None, "What?", "This.", images=["1.jpg"]),
    ]
    rows = good + [row for row, _ in BAD_TALKS]
    write_json(tmp_path / "llava_dataset/llava_instruct_150k.json", rows)
    reader = LlavaInstruct(tmp_path)
    assert reader.counts() == {"images": 4, "questions": 5, "targets": 0}
    (sample,) = reader.item(0)
    told = [(turn.question, turn.answer) for turn in sample.turns]
    assert told == [("Who?", "A man."), ("Why?", "Fun")]
    assert sample.size == SIZE
    assert [one.id for one in (sample, *reader.item(1))] == ["llava-train-7", "llava-train-1"]
    found = {bad.row: bad.reason for bad in reader.check()}
    for number, (_, words) in enumerate(BAD_TALKS, start=3):
        assert words in found.pop(f"entry {number}")
    assert found == {}
