"""No command removes or replaces a file that pixellm did not write, and says so at once.

No model is there under the name that the commands are given: what is refused is refused before a
model is looked for.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import RECIPE_WITHOUT_MODEL, TINY_QUESTION, square_image
from conftest import run_command as run
from curation.curation_runs import make_photos

pytestmark = pytest.mark.usefixtures("loaded_once")

RECIPES = Path(__file__).parents[2] / "src/pixellm/recipes"

LETTER = b"Dear reader, this is no file of pixellm."
NO_MODEL = ("--model", "no-such-model")
CURATE = ("--annotations", "instances.json", "--images", "images", "--model", "template")

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "segment --out": (("segment", "a.png", "What?", "--out", "b.png", *NO_MODEL), "b.png"),
    "segment": (("segment", "a.png", "What?", *NO_MODEL), "a_pixellm.png"),
    "segment --json": (("segment", "a.png", "What?", "--json", "b.json", *NO_MODEL), "b.json"),
    "segment --masks": (("segment", "a.png", "What?", "--masks", "m", *NO_MODEL), "m/01_cup.png"),
    "segment --batch": (
        ("segment", "--batch", "asked.jsonl", "--json", "b.jsonl", *NO_MODEL),
        "b.jsonl",
    ),
    "predict --out": (("predict", "asked.jsonl", "--out", "notes", *NO_MODEL), "notes"),
    "predict": (("predict", "asked.jsonl", *NO_MODEL), "asked_pixellm.jsonl"),
    "predict --export": (
        ("predict", "asked.jsonl", "--out", "b.jsonl", "--export", "coco", *NO_MODEL),
        "b_coco/letter",
    ),
    "segment --export": (
        ("segment", "a.png", "What?", "--json", "-", "--export", "yolo", *NO_MODEL),
        "a_pixellm_yolo/letter",
    ),
    "export": (("export", "asked.jsonl", "--to", "coco", "--out", "out"), "out/letter"),
    "predict onto its questions": (
        ("predict", "asked.jsonl", "--out", "asked.jsonl", *NO_MODEL),
        "asked.jsonl",
    ),
    "eval --json": (("eval", "scenes", "--json", "b.json", *NO_MODEL), "b.json"),
    "eval --out": (
        ("eval", "scenes", "--num", "2", "--out", "report", *NO_MODEL),
        "report/report.html",
    ),
    "score --json": (("score", "asked.jsonl", "--json", "b.json"), "b.json"),
    "score --out": (("score", "asked.jsonl", "--out", "report"), "report/letter"),
    "compare --out": (("compare", "a", "b", "--out", "c"), "c/compare.html"),
    "train": (("train", "recipe.yaml"), "runs/mine/model/config.json"),
    "train into the parent": (("train", "recipe.yaml", "--set", "name=.."), "model/config.json"),
    "ablate": (
        ("ablate", str(RECIPES / "ablation" / "base.yaml"), "--out", "runs"),
        "runs/ablation.md",
    ),
    "convert": (("convert", "no-such-model", "--out", "out"), "out/letter"),
    "init": (("init", "--llava", "no-such-model", "--out", "out"), "out/letter"),
    "merge": (("merge", "no-such-model", "--out", "out"), "out/letter"),
    "export-lm": (("export-lm", "no-such-model", "--out", "out"), "out/letter"),
    "data questions": (("data", "questions", "--num", "1", "--out", "out"), "out/letter"),
    "data scenes": (("data", "scenes", "--num", "1", "--out", "out"), "out/letter"),
    "data scenes --overwrite": (
        ("data", "scenes", "--num", "1", "--out", "out", "--overwrite"),
        "out/muse_test.json",
    ),
    "data preview": (
        ("data", "preview", "scenes-not-used.jsonl", "--out", "out"),
        "out/index.html",
    ),
    "data check --report": (("data", "check", "asked.jsonl", "--report", "b.csv"), "b.csv"),
    "curate run": (("curate", "run", *CURATE, "--out", "out"), "out/muse_val.json"),
    "curate run, card": (("curate", "run", *CURATE, "--out", "out"), "out/README.md"),
    "curate write": (("curate", "write", "out"), "out/README.md"),
    "curate stats": (("curate", "stats", "out"), "out/plots/targets.png"),
    "curate view": (("curate", "view", "out", "--images", "images"), "out/gallery.html"),
}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def _folder(own_folder: Path) -> None:
    make_photos(own_folder, 1)
    Image.fromarray(square_image((2, 3))).save("a.png")
    asked = json.dumps({"image": "a.png", "question": "What?"})
    Path("asked.jsonl").write_text(asked + "\n")
    dialogue = {"image": "a.png", "turns": [{"question": "What?", "answer": "Nothing."}]}
    Path("scenes-not-used.jsonl").write_text(json.dumps(dialogue) + "\n")
    Path("recipe.yaml").write_text(RECIPE_WITHOUT_MODEL)


@pytest.mark.parametrize("case", CASES)
def test_foreign_files_are_left_alone(case: str, tmp_path: Path) -> None:
    command, name = CASES[case]
    foreign = Path(name)
    foreign.parent.mkdir(parents=True, exist_ok=True)
    if not foreign.exists():
        foreign.write_bytes(LETTER)
    before = content_of(tmp_path)
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert "no-such-model" not in result.stderr
    assert content_of(tmp_path) == before


def test_our_own_files_are_replaced(tmp_path: Path, tiny_model_dir: Path) -> None:
    files = ("--out", "seen.jpg", "--json", "new/answer.json", "--masks", "new/masks")
    command = ("segment", "a.png", TINY_QUESTION, "--model", tiny_model_dir, *files)
    first = run(*command)
    assert first.exit_code == 0, first.output
    before = content_of(tmp_path)
    second = run(*command)
    assert second.exit_code == 0, second.output
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tiff"])
def test_images_name_their_maker(suffix: str) -> None:
    from pixellm.files import OccupiedError, check_file
    from pixellm.visualize import encode_image

    image = Image.new("RGB", (900, 700), (200, 120, 40))
    path = Path(f"ours{suffix}")
    path.write_bytes(encode_image(image, suffix))
    check_file(path)
    image.save(path)
    with pytest.raises(OccupiedError, match="was not written by pixellm"):
        check_file(path)


def test_the_offload_folder_is_new_or_our_own() -> None:
    from pixellm.files import OccupiedError, claim_folder

    claim_folder(Path("offload"))
    Path("offload/layer.dat").write_bytes(b"weights")
    claim_folder(Path("offload"))
    with pytest.raises(OccupiedError, match="not empty"):
        claim_folder(Path("images"))
