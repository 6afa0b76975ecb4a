"""Data sets by name as jobs: what is asked, what is bad, and the same file after a stop."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prediction_jobs import Stub
from typer.testing import CliRunner, Result

from pixellm.cli.main import app
from pixellm.cli.options import ModelOptions
from pixellm.data.registry import READERS, open_reader, reader_class
from pixellm.data.rows import JobRow, rows_of_samples
from pixellm.engine.answer_file import AnswerFile
from pixellm.engine.jobs import JobState, answer_here
from pixellm.engine.questions import RowWorker, answer_rows, lines_of
from pixellm.evaluation.benchmarks import SET_NAMES, open_rows, usual_split
from pixellm.scenes.dataset import ScenesDataset
from pixellm.types import Prediction, Request, Sample, Turn

BATCH_SIZE = 3
PHOTOS = Path("refer_seg/images/mscoco/images/train2014")
BOX = [4, 4, 20, 4, 20, 18, 4, 18]


class HistoryStub(Stub):
    """Puts what was said before into its answer."""

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        answers = super().predict_batch(requests)
        told = [json.dumps(request.history) for request in requests]
        return [
            Prediction(f"{one.text} {said}", one.segments, one.question, one.size)
            for one, said in zip(answers, told, strict=True)
        ]


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_refcoco(root: Path, count: int = 4) -> Path:
    """A refCOCO of two expressions an image, in its true layout; the first image is missing."""
    images, annotations, refs = [], [], []
    for number in range(count):
        name = f"COCO_train2014_{number:012d}.jpg"
        draw(root / PHOTOS / name, number)
        images.append({"id": number, "file_name": name, "height": 24, "width": 32})
        shape = {"id": number, "image_id": number, "category_id": 1, "segmentation": [BOX]}
        annotations.append(shape)
        texts = [f"thing {number}", f"object {number}"]
        ref = {"ref_id": number, "ann_id": number, "image_id": number, "category_id": 1}
        said = [{"sent": t, "raw": t, "tokens": t.split(), "sent_id": 0} for t in texts]
        refs.append({**ref, "file_name": name, "split": "val", "sentences": said})
    (root / PHOTOS / "COCO_train2014_000000000000.jpg").unlink()
    folder = root / "refer_seg" / "refcoco"
    folder.mkdir()
    values = {"images": images, "annotations": annotations}
    values["categories"] = [{"id": 1, "name": "cup"}]
    (folder / "instances.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def write_dialogues(root: Path) -> Path:
    """A JSONL set: dialogues of one to three turns, a line that is none, an image that is none."""
    lines = []
    for number in range(4):
        draw(root / f"{number}.png", number)
        turns = [
            {"question": f"What is {number}, {n}?", "answer": f"It {{seg}}, {n}."}
            | {"targets": [{"name": "it", "segmentation": [BOX]}]}
            for n in range(1 + number % 3)
        ]
        lines.append(json.dumps({"image": f"{number}.png", "turns": turns}))
    (root / "1.png").unlink()
    lines.insert(2, '{"image": "2.png", "turn')
    (root / "val.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def refcoco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data sets with a refCOCO; don't write into it."""
    return write_refcoco(tmp_path_factory.mktemp("refcoco"))


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with val.jsonl; don't write into it."""
    return write_dialogues(tmp_path_factory.mktemp("dialogues"))


def answer(rows: Sequence[JobRow], path: Path, stub: Stub | None = None) -> JobState:
    stub = stub or HistoryStub()
    spread = answer_here(lambda: RowWorker(lambda: stub, "stub"))
    return answer_rows(rows, path, "stub", spread, BATCH_SIZE)


def values_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_reader_is_asked_its_benchmark_questions_and_missing_images_are_told(
    refcoco: Path, tmp_path: Path
) -> None:
    state = answer(open_rows("refcoco", refcoco, "val"), tmp_path / "a.jsonl")
    lines = values_of(tmp_path / "a.jsonl")
    samples = open_reader("refcoco", refcoco, "val").evaluation_samples()
    assert [line["row"] for line in lines] == list(range(8))
    assert [line["question"] for line in lines] == [one.turns[0].question for one in samples]
    assert [line["id"] for line in lines] == [f"{one.id}/0" for one in samples]
    assert lines[2]["image"] == (PHOTOS / "COCO_train2014_000000000001.jpg").as_posix()
    assert [line["row"] for line in lines if "error" in line] == [0, 1]
    assert "COCO_train2014_000000000000.jpg" in lines[0]["error"]
    assert str(refcoco) not in lines[0]["error"]
    assert lines[2]["segments"][0]["segmentation"]["size"] == [24, 32]
    assert state == JobState(8, 2, 8, images=4)  # 1, 2 and 2, 3: an image once a batch


def test_dialogues_are_asked_turn_by_turn_and_bad_lines_come_last(
    dialogues: Path, tmp_path: Path
) -> None:
    rows = open_rows("jsonl", dialogues, "val")
    answer(rows, tmp_path / "a.jsonl")
    lines = values_of(tmp_path / "a.jsonl")
    asked = ["What is 0, 0?", "", "What is 2, 0?", "What is 2, 1?", "What is 2, 2?"]
    assert [line["question"] for line in lines] == [*asked, "What is 3, 0?", ""]
    said = [["What is 2, 0?", "It {seg}, 0."], ["What is 2, 1?", "It {seg}, 1."]]
    assert lines[4]["answer"].endswith(json.dumps(said))
    assert lines[4]["id"] == "jsonl-val-4/2"
    assert (lines[4]["image"], lines[1]["image"]) == ("2.png", "")
    bad = {line["row"]: line["error"] for line in lines if "error" in line}
    assert bad.keys() == {1, 6}
    assert "1.png" in bad[1]
    assert "line 2" in bad[1]
    assert "line 3" in bad[6]


def test_scenes_are_asked_without_files(tmp_path: Path) -> None:
    rows = open_rows("scenes", tmp_path / "nowhere", "test", {"num": 2, "dialogues": 2, "seed": 3})
    state = answer(rows, tmp_path / "a.jsonl")
    lines = values_of(tmp_path / "a.jsonl")
    scenes = ScenesDataset("test", 3, length=2, dialogues_per_image=2)
    turns = [
        (one.id, n, turn) for scene in scenes for one in scene for n, turn in enumerate(one.turns)
    ]
    assert [line["id"] for line in lines] == [f"{name}/{n}" for name, n, _ in turns]
    assert [line["question"] for line in lines] == [turn.question for _, _, turn in turns]
    assert state.bad == 0
    assert (lines[0]["height"], lines[0]["width"]) == scenes[0][0].size


@pytest.mark.parametrize("name", ["refcoco", "jsonl", "scenes"])
def test_a_stopped_job_gives_the_same_file(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fixtures = {"refcoco": "refcoco", "jsonl": "dialogues"}
    root = request.getfixturevalue(fixtures[name]) if name in fixtures else tmp_path
    split = "test" if name == "scenes" else "val"
    options = {"num": 2} if name == "scenes" else {}
    answer(open_rows(name, root, split, options), tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    ends = [0, *np.cumsum([len(line) for line in whole.splitlines(keepends=True)]).tolist()]
    path = tmp_path / "part.jsonl"
    for cut in (0, ends[1], ends[3], ends[4] + 9, ends[-1] - 1):
        path.write_bytes(whole[:cut])
        stub = HistoryStub()
        answer(open_rows(name, root, split, options), path, stub)
        assert path.read_bytes() == whole
        kept = sum(end <= cut for end in ends[1:])
        first = kept - kept % BATCH_SIZE
        left = [line for line in values_of(path)[first:] if "error" not in line]
        assert stub.asked == [line["question"] for line in left]


class Counted(Sequence[Sample]):
    """Many samples, and how often one was built."""

    def __init__(self) -> None:
        self.built = 0

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: Any) -> Any:
        self.built += 1
        return Sample(Path(f"{index}.png"), (2, 2), (Turn(f"What is {index}?", "It."),), str(index))


def test_a_large_set_is_never_built_as_a_whole(tmp_path: Path) -> None:
    samples = Counted()
    rows = rows_of_samples(samples, single_turns=True)
    assert (len(rows), samples.built) == (10**9, 0)
    batches = [rows[:650][n * 100 : (n + 1) * 100] for n in range(1, 7)]
    assert [len(batch) for batch in batches] == [*[100] * 5, 50]
    assert samples.built == 0
    assert [row.number for row in batches[0][:50]] == list(range(100, 150))
    assert samples.built == 50
    lines = [{"row": n, "image": f"{n}.png", "question": f"What is {n}?"} for n in range(250)]
    text = "".join(json.dumps(line | {"model": "m"}) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text, encoding="ascii")
    with AnswerFile(tmp_path / "a.jsonl", len(rows), 100, lines_of(rows, "m")) as answers:
        assert answers.done == {0, 1}
    assert samples.built == 53


@pytest.mark.parametrize("name", SET_NAMES)
def test_every_set_has_a_usual_split(name: str) -> None:
    known = ("test",) if name == "scenes" else reader_class(name).splits
    assert usual_split(name) in known


def test_the_command_asks_a_set_and_goes_on(
    refcoco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self, **_: HistoryStub())
    command = ("predict", "refcoco", "--data", refcoco, "--batch-size", BATCH_SIZE)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "Wrote refcoco_val_pixellm.jsonl: 6 answers." in result.stdout
    assert "Without an answer: 2;" in result.stderr
    path = Path("refcoco_val_pixellm.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert run(*command, "--split", "val").exit_code == 0
    assert path.read_bytes() == content


def test_a_folder_with_a_sets_name_is_asked_a_question_but_a_set_is_not(
    refcoco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self, **_: HistoryStub())
    draw(Path("refcoco/0.png"), 0)
    result = run("predict", "refcoco", "What?")
    assert result.exit_code == 0, result.output
    assert [line["image"] for line in values_of(Path("refcoco_pixellm.jsonl"))] == ["0.png"]
    Path("data").symlink_to(refcoco)
    result = run("predict", "refcoco")
    assert "Wrote refcoco_val_pixellm.jsonl: 6 answers." in result.stdout
    result = run("predict", "refcoco", "What?", "--data", refcoco)
    assert result.exit_code == 2
    assert "its own questions" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no data set of that name"),
        (["nowhere", "--data", "."], "no data set 'nowhere'"),
        (["nowhere", "--split", "val"], "no data set 'nowhere'"),
        (["refcoco", "--data", "."], "instances.json"),
        (["refcoco", "--split", "minival"], "no split 'minival'"),
        (["ade20k", "--with", "targets"], "--with takes NAME=VALUE"),
        (["jsonl", "--with", "fole=a"], "fole"),
        (["scenes", "--with", "num=many"], "num=many"),
    ],
)
def test_what_is_no_set_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("predict", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    if arguments[0] == "nowhere":
        assert all(name in result.stderr for name in (*READERS, "scenes"))
    assert not list(tmp_path.iterdir())
