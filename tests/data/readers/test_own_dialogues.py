"""Dialogues of one's own (JSONL), LabelMe folders and LLaVA's conversations."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from drawn_photos import draw_photo, expand_runs, fill_polygon, rectangle, write_json
from PIL import Image

from pixellm.data.dialogues import JsonlSamples, LlavaInstruct
from pixellm.data.labelme import LabelMe
from pixellm.masks import decode_mask, encode_mask

SIZE = (30, 40)
CUP, SPOON = rectangle(3, 4, 13, 20), rectangle(20, 1, 25, 29)
RUNS = {"size": list(SIZE), "counts": [60, 45, 1095]}


def line(**changes):
    """A row in the documented form."""
    row = {
        "image": "photos/1.jpg",
        "turns": [
            {
                "question": "What could I stir with?",
                "answer": "With the spoon {seg} in the cup {seg}.",
                "targets": [
                    {"name": "spoon", "segmentation": [SPOON]},
                    {"name": "cup", "segmentation": RUNS},
                ],
                "kind": "use",
            },
            {"question": "And the fork?", "answer": "There is no fork."},
        ],
    }
    return {**row, **changes}


def write_lines(root, *rows):
    draw_photo(root / "photos" / "1.jpg", SIZE)
    draw_photo(root / "photos" / "3.jpg", SIZE[::-1])
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "train.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return root


def test_a_line_is_a_dialogue(tmp_path):
    known = [{"name": "table", "segmentation": encode_mask(np.ones(SIZE, dtype=bool))}]
    write_lines(tmp_path, line(id="mine", size=list(SIZE), objects=known), "", line())
    reader = JsonlSamples(tmp_path)
    assert reader.counts() == {"images": 2, "questions": 4, "targets": 4}
    (sample,) = reader.item(0)
    (other,) = reader.item(1)
    assert (sample.id, other.id) == ("mine", "jsonl-train-3")
    assert sample.turns == other.turns
    assert other.size == SIZE
    assert sample.turns[0].question == "What could I stir with?"
    spoon, cup = sample.turns[0].targets
    assert np.array_equal(decode_mask(spoon.mask), fill_polygon(SPOON, SIZE))
    assert np.array_equal(decode_mask(cup.mask), expand_runs(RUNS))
    assert decode_mask(sample.objects[0].mask).all()
    assert [len(one.turns) for one in reader.evaluation_samples()] == [1, 1]
    assert not list(reader.check())


def target(**changes):
    return {"question": "q", "answer": "a {seg}", "targets": [{"name": "x", **changes}]}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{broken", "no JSON"),
        ([1], "A line is a JSON object"),
        ({"image": "photos/1.jpg"}, "lacks 'turns'"),
        (line(imge="x"), "unknown key 'imge'"),
        (line(size=[1]), "[height, width]"),
        (line(turns=[{"question": "q", "answer": "a {seg}"}]), "1 {seg} marks but 0 targets"),
        (line(turns=[target(mask=[])]), "lacks 'segmentation'"),
        (line(turns=[target(segmentation=[[1, 2, 3]])]), "even length"),
        (line(turns=[target(segmentation=[])]), "covers no pixel"),
        (line(turns=[target(segmentation={"size": [2, 2], "counts": [4]})]), "(2, 2)"),
        (line(image="photos/2.jpg"), "There is no image"),
        (line(turns=[]), "no turns"),
        (line(image="photos/3.jpg", size=list(SIZE)), "The image is (40, 30)"),
    ],
)
def test_a_bad_line_is_listed_with_its_number_and_reason(tmp_path, bad, words):
    reader = JsonlSamples(write_lines(tmp_path, line(), bad))
    (found,) = reader.check()
    assert words in found.reason
    assert found.row == "line 2" or found.file.name == "3.jpg"
    assert reader[0] or reader[1]


def test_a_file_without_a_good_line_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"train\.jsonl holds no line.*line 1.*no JSON"):
        JsonlSamples(write_lines(tmp_path, "{"))
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl, which is missing"):
        JsonlSamples(tmp_path, "val")


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme(path, shapes, image="1.jpg", data=None):
    keys = {"group_id": None, "flags": {}}
    return write_json(
        path,
        {
            "version": "5.4.1",
            "flags": {},
            "shapes": [{**keys, **shape} for shape in shapes],
            "imagePath": image,
            "imageData": data,
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
        },
    )


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def corners(flat):
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


def test_labelme_shapes_of_every_kind_are_masks(tmp_path):
    painted = np.array([[1, 0, 1], [0, 1, 1]], dtype=bool)
    draw_photo(tmp_path / "train" / "1.jpg", SIZE)
    labelme(
        tmp_path / "train" / "1.json",
        [
            shape("cup", corners(CUP)),
            shape("big_spoon", [[25, 29], [20, 1]], "rectangle"),
            shape("ball", [[30, 10], [30, 14]], "circle"),
            shape("stain", [[1, 2], [3, 3]], "mask", mask=png(painted)),
            shape("dog", corners(rectangle(0, 0, 5, 5)), group_id=1),
            shape("dog", corners(rectangle(8, 0, 12, 5)), group_id=1),
            shape("dog", corners(rectangle(14, 0, 18, 5))),
        ],
    )
    reader = LabelMe(tmp_path)
    found = {}
    for sample in reader[0]:
        for one in sample.turns[0].targets:
            found.setdefault(one.name, []).append(decode_mask(one.mask))
    assert np.array_equal(found["cup"][0], fill_polygon(CUP, SIZE))
    assert np.array_equal(found["big spoon"][0], fill_polygon(SPOON, SIZE))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    assert np.array_equal(found["ball"][0], (columns - 30) ** 2 + (rows - 10) ** 2 <= 16)
    stain = np.zeros(SIZE, dtype=bool)
    stain[2:4, 1:4] = painted
    assert np.array_equal(found["stain"][0], stain)
    assert [mask.sum() for mask in found["dog"]] == [45, 20]
    assert not list(reader.check())


def test_labelme_images_inside_the_json_and_windows_paths(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    labelme(tmp_path / "train" / "a.json", [shape("cup", corners(CUP))], "gone.png", png(pixels))
    draw_photo(tmp_path / "photos" / "b.jpg", SIZE)
    labelme(tmp_path / "train" / "b.json", [shape("cup", corners(CUP))], "..\\photos\\b.jpg")
    reader = LabelMe(tmp_path)
    images = [reader.item(item)[0].image for item in range(2)]
    assert np.array_equal(images[0], pixels)
    assert images[1].samefile(tmp_path / "photos" / "b.jpg")


def test_labelme_faults_are_listed_and_their_class_is_not_asked_for(tmp_path):
    draw_photo(tmp_path / "train" / "1.jpg", SIZE)
    labelme(
        tmp_path / "train" / "1.json",
        [
            shape("cup", corners(CUP)),
            shape("dog", corners(SPOON)),
            shape("dog", [[1, 1]], "point"),
            shape("", corners(CUP)),
            shape("__ignore__", corners(CUP)),
            shape("far", corners(rectangle(90, 90, 95, 95))),
        ],
    )
    (tmp_path / "train" / "2.json").write_text("{")
    reader = LabelMe(tmp_path)
    found = {(bad.file.name, bad.row) for bad in reader.check()}
    assert found == {("2.json", "")} | {("1.json", f"shape {n}") for n in (2, 3, 4, 5)}
    assert {t.name for s in reader[0] for t in s.turns[0].targets} == {"cup"}


def test_labelme_images_with_too_many_of_everything_are_left_out(tmp_path):
    for number in (1, 2):
        draw_photo(tmp_path / "train" / f"{number}.jpg", SIZE)
    peas = [shape("pea", corners(rectangle(n, 0, n + 1, 5))) for n in range(21)]
    labelme(tmp_path / "train" / "1.json", peas)
    labelme(tmp_path / "train" / "2.json", [shape("cup", corners(CUP), group_id=0)], "2.jpg")
    assert len(LabelMe(tmp_path)) == 1
    assert len(LabelMe(tmp_path, max_instances=21)) == 2
    assert len(LabelMe(tmp_path, targets="regions")) == 2


def said(*texts):
    return [
        {"from": speaker, "value": text}
        for speaker, text in zip(("human", "gpt") * len(texts), texts, strict=False)
    ]


def test_llava_conversations_keep_their_turns_and_lose_the_image_mark(tmp_path):
    draw_photo(tmp_path / "coco" / "train2017" / "1.jpg", SIZE)
    rows = [
        {
            "id": "7",
            "image": "1.jpg",
            "conversations": said("<image>\nWho?", "A man.", "Why?", "Fun"),
        },
        {"id": "8", "conversations": said("Hello", "Hi")},
        {"id": "9", "image": "1.jpg", "conversations": said("Hello")},
        {"id": "10", "image": "1.jpg", "conversations": said("Where?", "Here {seg}.")},
        {"id": "11", "image": "../1.jpg", "conversations": said("Where?", "Here.")},
        {"id": "12", "image": "2.jpg", "conversations": said("Where?\n<image>", "Here.")},
    ]
    write_json(tmp_path / "llava_dataset" / "llava_instruct_150k.json", rows)
    reader = LlavaInstruct(tmp_path)
    assert reader.counts() == {"images": 2, "questions": 3, "targets": 0}
    (sample,) = reader.item(0)
    assert [(turn.question, turn.answer) for turn in sample.turns] == [
        ("Who?", "A man."),
        ("Why?", "Fun"),
    ]
    assert sample.size == SIZE
    found = {bad.row: bad.reason for bad in reader.check()}
    assert set(found) == {f"entry {n}" for n in range(1, 6)}
    assert "text alone" in found["entry 1"]
    assert "alternate" in found["entry 2"]
    assert "{seg}" in found["entry 3"]
    assert "There is no image" in found["entry 5"]
