"""A PNG mask of each object and a table of sentences, with all that can be wrong in them."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import draw_photo
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.data.dataset import UnusableDataError
from pixellm.data.png_masks import PngMasks
from pixellm.evaluation.benchmarks import open_rows
from pixellm.masks import decode_mask

SIZE = (30, 40)
HEADER = "image,object,sentence\n"


def draw_mask(path: Path, left: int, mode: str = "L", size: tuple[int, int] = SIZE) -> np.ndarray:
    """Save a mask of the pixels [left, left + 9) x [3, 12) and give it."""
    mask = np.zeros(size, dtype=bool)
    mask[3:12, left : left + 9] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A split of two images, one in a folder, with masks in three modes; its table is to come."""
    draw_photo(tmp_path / "train/images/a.jpg", SIZE)
    draw_photo(tmp_path / "train/images/sub/b.jpg", SIZE)
    draw_mask(tmp_path / "train/masks/a/cup.png", 2)
    draw_mask(tmp_path / "train/masks/a/cup 2.png", 20, "RGB")
    draw_mask(tmp_path / "train/masks/sub/b/dog.png", 8, "1")
    return tmp_path


def write_table(root: Path, *lines: str, encoding: str = "utf-8") -> PngMasks:
    text = HEADER + "\n".join(lines) + "\n"
    (root / "train/sentences.csv").write_bytes(text.encode(encoding))
    return PngMasks(root)


SOUND = ('a.jpg,cup,"the cup, on the left"', "a.jpg,cup; cup 2,every cup", "sub/b.jpg,dog,the dog")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_line_is_a_question_with_the_masks_of_its_objects(root: Path, encoding: str) -> None:
    reader = write_table(root, *SOUND, encoding=encoding)
    assert reader.counts() == {"images": 2, "questions": 3, "targets": 4}
    assert list(reader.check()) == []
    (both,) = reader.item(1)
    (dog,) = reader.item(2)
    assert both.image == root / "train/images/a.jpg" and both.size == SIZE
    assert "every cup" in both.turns[0].question
    assert [target.name for target in both.turns[0].targets] == ["cup", "cup 2"]
    masks = [decode_mask(t.mask) for t in (*both.turns[0].targets, *dog.turns[0].targets)]
    for mask, left in zip(masks, (2, 20, 8), strict=True):
        assert np.array_equal(mask, draw_mask(root / "again.png", left))
    assert len({sample.id for samples in reader for sample in samples}) == 3


BAD = {
    "a.jpg,cup,": "A line lacks 'sentence'; its keys are image, object, sentence.",
    "a.jpg,cup,the {seg}": "The sentence holds {seg}, which marks masks in answers.",
    "a.jpg,,a mug": "A line lacks 'object'; its keys are image, object, sentence.",
    "a.jpg,cup,a mug, blue": "It has more cells than the header; quote a text that has a comma.",
    "a.jpg,cup 2,EVERY cup": "It repeats line 3; name all objects in one line, with ; between.",
    "a.jpg,pot,the pot": "There is no image at {root}/train/masks/a/pot.png.",
    "a.jpg,cup;,mugs": "There is no image at {root}/train/masks/a/.png.",
    "c.jpg,cup,the cup": "There is no image at {root}/train/images/c.jpg.",
    "../a.jpg,cup,the cup": "'../a.jpg' leads out of the folder of images",
    "a.jpg,../a/cup,the pan": "'../a/cup.png' leads out of the folder of images",
    "a.jpg,none,nothing": "{root}/train/masks/a/none.png is a mask without a pixel that is not 0.",
    "a.jpg,clear,glass": "{root}/train/masks/a/clear.png can't be read as a mask: its mode is "
    "RGBA; use grey.",
    "a.jpg,small,the toy": "{root}/train/masks/a/small.png does not fit. The image is (30, 40), "
    "its annotation says (30, 20) (height, width).",
}


def test_each_bad_line_is_told_with_its_number(root: Path) -> None:
    folder = root / "train/masks/a"
    Image.new("L", SIZE[::-1]).save(folder / "none.png")
    draw_mask(folder / "clear.png", 2, "RGBA")
    draw_mask(folder / "small.png", 2, size=(30, 20))
    reader = write_table(root, *SOUND, *BAD)
    found = {(bad.file, bad.row): bad.reason for bad in reader.check()}
    table = root / "train/sentences.csv"
    assert found == {
        (table, f"line {number}"): reason.replace("{root}", str(root))
        for number, reason in enumerate(BAD.values(), start=5)
    }


def test_a_table_that_is_none_says_so(root: Path) -> None:
    with pytest.raises(UnusableDataError, match="holds no line that can be used"):
        write_table(root)
    with pytest.raises(ValueError, match=r"sentences\.csv is no CSV table in UTF-8"):
        write_table(root, "a.jpg,cup,the café", encoding="latin-1")
    with pytest.raises(ValueError, match=r"sentences\.csv is no CSV table in UTF-8"):
        write_table(root, f"a.jpg,cup,{'x' * 200_000}")


def test_commands_know_the_set(root: Path) -> None:
    write_table(root, *SOUND, encoding="utf-8-sig")
    assert (root / "train/sentences.csv").read_bytes().startswith(codecs.BOM_UTF8)
    run = CliRunner()
    checked = run.invoke(app, ["data", "check", str(root)])
    assert checked.exit_code == 0 and "png-masks train" in checked.stdout
    assert "Not there" not in checked.stdout
    command = ["data", "preview", "png-masks", "--data", str(root), "--out", str(root / "look")]
    assert run.invoke(app, command).exit_code == 0
    assert (root / "look/index.html").is_file()
    assert len(open_rows("png-masks", root, "train")) == 3
    write_table(root, *SOUND, "a.jpg,cup,")
    assert run.invoke(app, ["data", "check", str(root)]).exit_code == 1
