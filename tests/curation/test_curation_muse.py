"""The MUSE format: what is written, what the validator finds, what the gallery shows."""

from __future__ import annotations

import copy
import csv
import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from curation_runs import CATEGORIES, make_photos, run_all, source_of
from PIL import Image

from chat_server import ChatServer
from pixellm.curation.deduplicate import near_duplicates
from pixellm.curation.ledger import Ledger
from pixellm.curation.photos import AnnotationFile, order_by_balance
from pixellm.curation.review import ReviewServer, review_page, write_gallery
from pixellm.curation.statistics import gather, plot
from pixellm.curation.template import TemplateWriter
from pixellm.curation.write import WriteSettings, change_marks, read_marks, write_set
from pixellm.data.json_stream import scan_list
from pixellm.data.muse import rows_of, validate
from pixellm.masks import decode_mask, mask_to_box
from pixellm.types import SEG_MARK, Sample, Target, Turn

PHOTOS = 12


@pytest.fixture(scope="module")
def muse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 24 questions by the test server."""
    folder = tmp_path_factory.mktemp("muse")
    make_photos(folder, PHOTOS)
    with ChatServer() as server:
        run_all(source_of(folder, questions=2), folder / "out", server.url)
    return folder / "out"


def entries_of(folder: Path) -> list[dict[str, Any]]:
    return [e for path in sorted(folder.glob("muse*.json")) for e in json.loads(path.read_text())]


def test_every_row_fits_the_format_and_the_sample_contract(muse: Path) -> None:
    entries = entries_of(muse)
    assert sum(len(entry["questions"]) for entry in entries) == 2 * PHOTOS
    for entry in entries:
        assert set(entry) == {
            *("file_name", "height", "width", "ann_list", "questions", "answers", "text_answers")
        }
        turns = []
        for question, targets, text in zip(
            entry["questions"], entry["answers"], entry["text_answers"], strict=True
        ):
            assert text.count(SEG_MARK) == len(targets) >= 2
            for target in targets:
                assert set(target) == {
                    *("category_id", "category_name", "rephrased_name", "bbox", "segmentation")
                }
                assert mask_to_box(decode_mask(target["segmentation"])) == tuple(target["bbox"])
            named = tuple(Target(t["rephrased_name"], t["segmentation"]) for t in targets)
            turns.append(Turn(question, text, named))
        Sample(Path(entry["file_name"]), (entry["height"], entry["width"]), tuple(turns))


def test_photos_are_never_in_two_splits_and_test_is_parted_by_targets(muse: Path) -> None:
    split_of: dict[str, str] = {}
    for path in muse.glob("muse_*.json"):
        split = path.stem.split("-")[0].removeprefix("muse_").split("_")[0]
        for entry in json.loads(path.read_text()):
            assert split_of.setdefault(entry["file_name"], split) == split
            if "test_" in path.name:
                few = [len(targets) <= 3 for targets in entry["answers"]]
                assert all(few) if "less" in path.name else not any(few)
    assert set(split_of.values()) == {"train", "val", "test"}


def test_json_parquet_licences_and_card_tell_the_same(muse: Path) -> None:
    rows = [
        r for path in muse.glob("parquet/*") for r in pyarrow.parquet.read_table(path).to_pylist()
    ]
    questions = Counter(q for entry in entries_of(muse) for q in entry["questions"])
    assert Counter(row["question"] for row in rows) == questions
    assert {row["license"] for row in rows} == {"Attribution License"}
    with (muse / "licenses.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["file_name"] for row in table} == {e["file_name"] for e in entries_of(muse)}
    assert {row["license_url"] for row in table} == {"http://example.org/by"}
    card = (muse / "README.md").read_text()
    assert f"| usable | {PHOTOS} |" in card
    assert f"| accepted | {2 * PHOTOS} |" in card
    assert f"| Attribution License | {PHOTOS} |" in card
    assert "You write training questions" in card


def test_large_sets_are_sharded_and_shards_of_an_earlier_set_disappear(muse: Path) -> None:
    names = {path.name for path in muse.glob("muse_train*.json")}
    ledger = Ledger(muse)
    write_set(ledger, muse, WriteSettings(train=1.0, val=0.0, shard_photos=5))
    shards = sorted(path.name for path in muse.glob("muse_*.json"))
    assert shards == [f"muse_train-{n:05d}-of-00003.json" for n in range(3)]
    assert sum(len(json.loads((muse / name).read_text())) for name in shards) == PHOTOS
    write_set(ledger, muse, WriteSettings(train=0.6, val=0.2, shard_photos=8))
    ledger.close()
    assert {path.name for path in muse.glob("muse_train*.json")} == names


def test_marks_are_respected_by_write(muse: Path) -> None:
    rows = [row for entry in entries_of(muse) for row in rows_of(entry)]
    change_marks(muse, {rows[0].key: "reject", rows[1].key: "accept"})
    ledger = Ledger(muse)
    summary = write_set(ledger, muse, WriteSettings(train=0.6, val=0.2, shard_photos=8))
    left = {row.key for entry in entries_of(muse) for row in rows_of(entry)}
    assert {row.key for row in rows} - left == {rows[0].key}
    assert summary["dropped"] == {"rejected by a reviewer": 1}
    change_marks(muse, {rows[0].key: "", rows[1].key: ""})
    write_set(ledger, muse, WriteSettings(train=0.6, val=0.2, shard_photos=8))
    ledger.close()
    assert {row.key for entry in entries_of(muse) for row in rows_of(entry)} >= {rows[0].key}


def test_a_damaged_file_of_marks_is_refused(muse: Path) -> None:
    (muse / "marks.json").write_text('{"a": "maybe"}')
    with pytest.raises(ValueError, match=r"marks.json can't be read"):
        read_marks(muse)
    (muse / "marks.json").unlink()


def delete(*path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(entry: dict[str, Any]) -> None:
        for step in path[:-1]:
            entry = entry[step]
        del entry[path[-1]]  # type: ignore[arg-type]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(entry: dict[str, Any]) -> None:
        for step in path[:-1]:
            entry = entry[step]
        entry[path[-1]] = value  # type: ignore[index]

    return change


def one_target(entry: dict[str, Any]) -> None:
    entry["answers"][0] = entry["answers"][0][:1]
    entry["text_answers"][0] = "The one{seg}."


def same_target_twice(entry: dict[str, Any]) -> None:
    entry["answers"][0][0] = {**entry["answers"][0][1], "rephrased_name": "another one"}


TARGET = ("answers", 0, 0)
PLANTED = [
    ("size", put(0, "height")),
    ("photo", delete("file_name")),
    ("ann_list", put([], "ann_list")),
    ("counts", lambda e: e["questions"].append("What else would one need at this place?")),
    ("question", put("  ", "questions", 0)),
    ("few_targets", one_target),
    ("seg_count", put("The one {seg} only.", "text_answers", 0)),
    ("bbox", put([50, 10, 400, 20], *TARGET, "bbox")),
    ("bbox_mask", put([70, 30, 20, 20], *TARGET, "bbox")),
    ("segmentation", put({"size": [64, 96], "counts": "oops"}, *TARGET, "segmentation")),
    ("category", put("submarine", *TARGET, "category_name")),
    ("repeated_target", same_target_twice),
]


def test_the_validator_finds_all_of_twelve_planted_faults(muse: Path, tmp_path: Path) -> None:
    entries = copy.deepcopy(entries_of(muse))[: len(PLANTED)]
    clean, planted = tmp_path / "muse_clean.json", tmp_path / "muse_planted.json"
    names = Counter(e["file_name"] for e in entries)
    assert len(PLANTED) == 12 and names.most_common(1)[0][1] == 1
    clean.write_text(json.dumps(entries))
    assert list(validate(clean)) == []
    known = {  # so that the wrong category is met after the right one
        **entries[0],
        "file_name": "first.jpg",
        "questions": ["What are all of these?"],
        "answers": [[target for entry in entries for target in entry["answers"][0]][:8]],
        "text_answers": ["{seg}" * 8],
    }
    known = copy.deepcopy(known)
    for entry, (_, change) in zip(entries, PLANTED, strict=True):
        change(entry)
    planted.write_text(json.dumps([known, *entries]))
    problems = [p for p in validate(planted) if "entry 0" not in p.where]
    found = {(int(p.where.split("entry ")[1].split()[0].rstrip(",:")), p.check) for p in problems}
    assert found == {(number, check) for number, (check, _) in enumerate(PLANTED, start=1)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{}, {", "muse_x.json, after entry 0: file: .* damaged or ends"),
        ('[{"a": 1}', "ends in the middle"),
        ("[3] [4]", "goes on behind its end"),
        ("[3]", "no JSON object"),
        (
            '[{"questions": [], "answers": [], "file_name": "a.jpg", "height": 1, "width": 1}]',
            "no q",
        ),
    ],
)
def test_the_validator_names_what_is_damaged(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "muse_x.json").write_text(content)
    assert any(re.search(says, str(problem)) for problem in validate(tmp_path))
    (tmp_path / "muse_x.json").write_text("")
    (tmp_path / "muse_y.json").write_text(content)
    assert next(validate(tmp_path)).where == "muse_x.json", "the other file is checked all the same"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("[]", "holds no entry"),
        ('{"images": []}', "no JSON list"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "no JSON list"),
    ],
)
def test_the_validator_refuses_what_holds_no_entry(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "muse_x.json").write_text(content)
    for path in (tmp_path, tmp_path / "muse_x.json"):
        with pytest.raises(ValueError, match=says):
            list(validate(path))


def test_files_are_read_as_a_stream_whatever_the_size_of_an_entry(tmp_path: Path) -> None:
    entries = [
        {"n": n, "text": "ä" * length} for n, length in enumerate((1, 3_000_000, 5, 700_000))
    ]
    path = tmp_path / "muse_big.json"
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1))
    assert list(scan_list(path)) == entries


def test_released_rows_without_text_are_composed_from_names() -> None:
    entry = {
        "coco_url": "http://host/train2017/0001.jpg", "height": 4, "width": 4,
        "questions": ["q1", "q2"], "text_answers": ["a{seg} b{seg}", None],
        "answers": [
            [{"rephrased_name": name, "segmentation": [[0, 0, 2, 0, 2, 2]]} for name in "ab"]
        ] * 2,
    }  # fmt: skip
    rows = list(rows_of(entry))
    assert [row.answer for row in rows] == ["a{seg} b{seg}", "A {seg} and b {seg}."]
    assert rows[0].photo == "train2017/0001.jpg"


def test_statistics_count_and_plots_are_images(muse: Path, tmp_path: Path) -> None:
    figures = gather(muse)
    assert figures.summary()["questions"] == 2 * PHOTOS
    assert figures.summary()["targets per question, mean"] == 3
    assert set(figures.categories) == set(CATEGORIES)
    for image in plot(figures, tmp_path):
        with Image.open(image) as opened:
            assert min(opened.size) > 400


def test_the_gallery_holds_everything_and_runs_nothing_foreign(muse: Path, tmp_path: Path) -> None:
    path = tmp_path / "gallery.html"
    assert write_gallery(muse, muse.parent / "images", path, num=10) == 10
    html = path.read_text()
    assert "http://" not in html and "https://" not in html
    assert html.count("data:image/jpeg") == 10
    text = "</script><script>alert(1)</script>\"'"
    card = dict.fromkeys(("key", "photo", "image", "question"), text)
    card |= {"parts": [(text, 0), (text, None)], "categories": [text], "layers": [text]}
    hostile = review_page([card], {text: text}, text).decode()
    assert "<script>alert" not in hostile and hostile.count("&lt;script&gt;alert") == 11
    with pytest.raises(FileNotFoundError, match="check --images"):
        write_gallery(muse, tmp_path, path, num=3)


def test_the_review_saves_every_mark_and_only_for_its_own_page(muse: Path) -> None:
    server = ReviewServer(muse, muse.parent / "images", num=5)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    key = server.cards[0]["key"]

    def post(url: str, **mark: str) -> int:
        request = urllib.request.Request(url, json.dumps(mark).encode(), method="POST")
        try:
            with urllib.request.urlopen(request) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        assert post(server.url, key=key, mark="reject") == 200
        assert read_marks(muse) == {key: "reject"}
        assert post(server.url.rsplit("/", 1)[0] + "/guess", key=key, mark="accept") == 404
        assert post(server.url, key="unknown", mark="accept") == 400
        assert post(server.url, key=key, mark="nonsense") == 400
        assert read_marks(muse) == {key: "reject"}
        with urllib.request.urlopen(server.url) as reply:
            assert f'data-key="{key}" data-mark="reject"' in reply.read().decode()
        assert post(server.url, key=key, mark="") == 200
        assert read_marks(muse) == {}
    finally:
        server.shutdown()
        server.server_close()


def test_two_reviews_at_once_lose_no_mark(muse: Path) -> None:
    servers = [ReviewServer(muse, muse.parent / "images", num=2 * PHOTOS) for _ in range(2)]
    marks = {
        card["key"]: "reject" if n % 3 else "accept" for n, card in enumerate(servers[0].cards)
    }
    with ThreadPoolExecutor(8) as clients:
        saved = [
            clients.submit(servers[number % 2].mark, *mark)
            for number, mark in enumerate(marks.items())
        ]
    assert [done.result() for done in saved] == [None] * 2 * PHOTOS
    assert read_marks(muse) == marks
    change_marks(muse, dict.fromkeys(marks, ""))
    for server in servers:
        server.server_close()


def test_near_equal_questions_are_dropped_per_photo_and_over_the_set() -> None:
    asked = [
        ("a", "What would one use to cut the long rope here?"),
        ("a", "What would one use to cut the long rope?"),
        ("a", "Where could a tired visitor sit down here?"),
        *((str(n), "What would one use to cut the long rope here?") for n in range(5)),
    ]
    assert near_duplicates(asked, max_repeats=3) == {1, 5, 6, 7}
    assert near_duplicates(asked, max_repeats=99) == {1}


def test_near_duplicates_equal_a_comparison_of_all_pairs() -> None:
    import random

    rng = random.Random(1)
    asked = [(str(n), " ".join(rng.choices("abcdefg", k=rng.randint(1, 9)))) for n in range(300)]
    kept: list[set[str]] = []
    expected = set()
    for position, (_, text) in enumerate(asked):
        words = set(text.split())
        if any(len(words & other) / len(words | other) >= 0.8 for other in kept):
            expected.add(position)
        else:
            kept.append(words)
    assert near_duplicates(asked, max_repeats=1) == expected


def test_selection_says_why_a_photo_is_left_out(tmp_path: Path) -> None:
    annotations, images = make_photos(tmp_path, 7)
    data = json.loads(annotations.read_text())
    (images / "0000.jpg").unlink()
    (images / "0001.jpg").write_bytes((images / "0001.jpg").read_bytes()[:400])
    Image.new("RGB", (9, 9)).save(images / "0002.jpg")
    for row in data["annotations"]:
        row["iscrowd"] = int(row["image_id"] == 3)
    data["images"][4]["file_name"] = "../secret.jpg"
    data["images"][5]["id"] = 6
    annotations.write_text(json.dumps(data))
    reasons = [why for _, why in AnnotationFile(annotations).photos(images)]
    assert reasons[:4] == ["missing_file", "unreadable", "size_differs", "too_few_instances"]
    assert reasons[4:] == ["bad_entry", "", "bad_entry"]


def test_the_order_of_photos_balances_the_categories() -> None:
    common = [(f"c{n}", frozenset({"person"})) for n in range(50)]
    rare = [(f"r{n}", frozenset({f"rare{n}"})) for n in range(5)]
    order = order_by_balance([*common, *rare], seed=0)
    assert {f"r{n}" for n in range(5)} <= set(order[:6])
    assert order == order_by_balance([*common, *rare], seed=0)
    assert order != order_by_balance([*common, *rare], seed=1)


def test_the_template_writer_is_honest_about_what_it_can_not_see(tmp_path: Path) -> None:
    make_photos(tmp_path, 12)
    source = source_of(tmp_path, model="template", questions=6)
    run_all(source, tmp_path / "out", {"": TemplateWriter()})
    rows = [row for entry in entries_of(tmp_path / "out") for row in rows_of(entry)]
    assert len(rows) >= 12
    assert list(validate(tmp_path / "out", tmp_path / "images")) == []
    annotations = json.loads((tmp_path / "instances.json").read_text())
    for row in annotations["annotations"][::4]:
        row["iscrowd"] = 1  # now a category of every photo is incomplete
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    run_all(source, tmp_path / "crowds", {"": TemplateWriter()})
    crowd = {
        (f"{row['image_id']:04d}.jpg", row["category_id"])
        for row in annotations["annotations"][::4]
    }
    for entry in entries_of(tmp_path / "crowds"):
        for targets in entry["answers"]:
            assert not {(entry["file_name"], t["category_id"]) for t in targets} & crowd
