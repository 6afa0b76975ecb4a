"""Folders that replace older ones, killed at every point of the exchange."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pixellm.files import finish_exchange, replace_folder


class Killed(BaseException):
    pass


def write(text: str) -> Any:
    def into(folder: Path) -> None:
        (folder / "one.txt").write_text(text)
        (folder / "two.txt").write_text(text)

    return into


def content(folder: Path) -> str | None:
    """What a folder holds; None where it is not whole."""
    texts = {path.read_text() for path in folder.glob("*.txt")}
    whole = len(texts) == 1 and len(list(folder.iterdir())) == 2
    return texts.pop() if whole else None


def kill_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the process, so to speak, before and after every change of the folders, in turn."""
    seen = 0

    def point() -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            raise Killed

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            point()
            result = original(*args, **options)
            point()
            return result

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((Path, "replace"), (Path, "write_text"), (shutil, "rmtree")):
        watch(owner, name)


def is_finished(best: Path, count: int) -> bool:
    """Whether an exchange that is killed at a point never gets there."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(count, patch)
        try:
            replace_folder(best, write("new"))
        except Killed:
            return False
        return True


@pytest.mark.parametrize("before", ["old", None])
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, before: str | None
) -> None:
    seen = []
    for count in range(1, 40):
        best = tmp_path / str(count) / "best"
        if before:
            replace_folder(best, write(before))
        if is_finished(best, count):
            break
        if before:
            around = [content(path) for path in best.parent.iterdir()]
            assert {before, "new"} & set(around), count
        finish_exchange(best)
        seen.append(content(best) if best.exists() else None)
        replace_folder(best, write("newest"))
        assert content(best) == "newest"
        assert [path.name for path in best.parent.iterdir()] == ["best"], count
    assert content(best) == "new"
    assert {*seen} == {before, "new"}
    assert seen == sorted(seen, key=lambda text: text == "new")
