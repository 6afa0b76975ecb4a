"""Standard input and output, pipes, and answers that go from one command into the next."""

import json
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from conftest import TINY_QUESTION, square_image
from conftest import run_command as run
from pixellm.cli.console import printable
from pixellm.data.check import CSV_HEADER
from pixellm.files import plain_cell

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(autouse=True)
def _folder(own_folder: Path) -> None:
    Image.fromarray(square_image((2, 3))).save("a.png")


def question(**values: object) -> str:
    return json.dumps({"id": "mine/0", "image": "a.png", "question": TINY_QUESTION, **values})


def test_questions_come_from_and_answers_go_to_standard_streams(tiny_model_dir: Path) -> None:
    asked = "\ufeff" + question() + "\n" + question(id="mine/1", image="none.png") + "\n"
    result = run("predict", "-", "--out", "-", "--model", tiny_model_dir, text=asked)
    assert result.exit_code == 0, result.output
    good, bad = (json.loads(line) for line in result.stdout.splitlines())
    assert good["id"] == "mine/0" and len(good["segments"]) == 2
    assert bad["id"] == "mine/1" and "none.png" in bad["error"]
    assert "1 answers. 1 failed, 0 skipped as done before" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_answers_go_into_a_pipe(tiny_model_dir: Path) -> None:
    Path("asked.jsonl").write_text(question())
    os.mkfifo("pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    reader.start()
    result = run("predict", "asked.jsonl", "--out", "pipe", "--model", tiny_model_dir)
    reader.join(30)
    assert result.exit_code == 0, result.output
    assert json.loads(read[0])["id"] == "mine/0"


def test_a_pipe_that_nobody_reads_ends_in_a_sentence(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixellm.files.open_stream.__defaults__", (0.1,))
    Path("asked.jsonl").write_text(question())
    os.mkfifo("pipe")
    for words in (
        ("predict", "asked.jsonl", "--out", "pipe", "--model", tiny_model_dir),
        ("segment", "a.png", TINY_QUESTION, "--json", "pipe", "--model", tiny_model_dir),
        ("data", "check", "asked.jsonl", "--report", "pipe"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert "nobody reads it" in result.stderr
        assert Path("pipe").is_fifo()


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout"])
def test_devices_are_written_and_stay_what_they_are(tiny_model_dir: Path, name: str) -> None:
    Path("asked.jsonl").write_text(question() + "\n" + question(image="none.png"))
    model = ("--model", tiny_model_dir)
    answered = run("predict", "asked.jsonl", "--out", name, *model)
    assert answered.exit_code == 0, answered.output
    assert "1 answers. 1 failed" in answered.output
    shown = run("segment", "a.png", TINY_QUESTION, f"--json={name}", *model)
    assert shown.exit_code == 0, shown.output
    for result in (answered, shown):
        assert ('"model": ' in result.stdout) == (name == "/dev/stdout")
    assert Path("/dev/null").is_char_device() and Path("/dev/stdout").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "asked.jsonl"]


@pytest.mark.parametrize("out", ["", ".", "a.png/x.jsonl"])
def test_answers_need_a_place_for_a_file(out: str) -> None:
    Path("asked.jsonl").write_text(question())
    result = run("predict", "asked.jsonl", "--out", out, "--model", "no-such-model")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_is_no_standard_output() -> None:
    for words in (
        ("data", "questions", "--num", "1", "--out", "-"),
        ("eval", "scenes", "--num", "1", "--model", "all_objects", "--out", "-"),
        ("data", "questions", "--num", "1", "--out", "/dev/null"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert "folder" in result.stderr or "/dev/null is a file" in result.stderr
        assert not Path("-").exists()


def test_no_answer_at_all_is_exit_code_1(tiny_model_dir: Path) -> None:
    Path("asked.jsonl").write_text(question(image="none.png"))
    result = run("predict", "asked.jsonl", "--out", "new/a.jsonl", "--model", tiny_model_dir)
    assert result.exit_code == 1, result.output
    assert "0 answers. 1 failed" in result.stdout
    again = run("predict", "asked.jsonl", "--out", "new/a.jsonl", "--model", tiny_model_dir)
    assert again.exit_code == 1
    assert "1 skipped as done before" in again.stdout


def test_a_single_image_says_what_to_type() -> None:
    result = run("predict", "a.png", "Which?")
    assert result.exit_code == 2
    assert "pixellm segment a.png Which?" in " ".join(result.stderr.replace("'", "").split())


def test_answers_of_predict_can_be_scored(tiny_model_dir: Path) -> None:
    chosen = ("--split", "test", "--num", "2", "--dialogues", "1")
    assert run("data", "questions", "--out", "asked", *chosen).exit_code == 0
    model = ("--model", tiny_model_dir)
    answered = run("predict", "asked/questions.jsonl", "--out", "answers.jsonl", *model)
    assert answered.exit_code == 0, answered.output
    lines = Path("answers.jsonl").read_bytes()
    scored = run("score", "answers.jsonl", "--json", "scores.json", *chosen)
    assert scored.exit_code == 0, scored.output
    piped = run("score", "-", "--json", "piped.json", *chosen, text=b"\xef\xbb\xbf" + lines)
    assert piped.exit_code == 0, piped.output
    first, second = (json.loads(Path(n).read_text()) for n in ("scores.json", "piped.json"))
    assert first["without_judge"] == second["without_judge"]


def test_names_can_neither_steer_a_terminal_nor_compute_in_a_table() -> None:
    assert printable("a\x1b[2J\u202eb\n") == "a\ufffd[2J\ufffdb\n"
    result = run("segment", "no\x1b[2J[bold].png", "What?")
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr and "[bold]" in result.stderr
    assert [plain_cell(text) for text in ("=1+1", "@a", "cup", 3)] == ["'=1+1", "'@a", "cup", "3"]
    bad = {"image": "none.png", "turns": [{"question": "Q?", "answer": "A."}], "id": "=1+1"}
    Path("=bad.jsonl").write_text(json.dumps(bad) + "\n")
    checked = run("data", "check", "=bad.jsonl", "--report", "rows.csv")
    assert checked.exit_code == 1, checked.output
    table = Path("rows.csv").read_bytes()
    assert table.startswith(CSV_HEADER)
    assert b"\r\n=" not in table and b",=" not in table
