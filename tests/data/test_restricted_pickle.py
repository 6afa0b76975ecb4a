"""Hostile pickles are refused, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pixellm.data.restricted_pickle import load_plain_pickle


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _hostile(mark: Path) -> dict[str, bytes]:
    path = str(mark)
    touch = f"open({path!r}, 'w').close()"
    shell = f"touch '{path}'".encode()
    return {
        "system": pickle.dumps([{"ref_id": _Call(os.system, f"touch '{path}'")}], protocol=2),
        "eval": pickle.dumps(_Call(eval, touch), protocol=0),
        "exec protocol 5": pickle.dumps({"a": _Call(exec, touch)}, protocol=5),
        "mkdir": pickle.dumps(_Call(os.mkdir, path)),
        "global": b"cposix\nsystem\n(S'" + shell.replace(b"'", b'"') + b"'\ntR.",
        "instance": b"(S'" + shell.replace(b"'", b'"') + b"'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'" + shell.replace(b"'", b'"') + b"'\no.",
        "nested name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.",
        "class": pickle.dumps(OrderedDict(a=1)),
        "function": pickle.dumps([os.getcwd]),
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "behind a plain list": pickle.dumps([1, 2])[:-1] + b"cos\ngetcwd\n)R.",
    }


@pytest.mark.parametrize("kind", list(_hostile(Path("mark"))))
def test_a_pickle_that_names_code_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "refs(unc).p"
    path.write_bytes(_hostile(mark)[kind])
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p (is refused|is no readable pickle)"):
        load_plain_pickle(path)
    assert not mark.exists()


def test_the_hostile_files_of_these_tests_would_run(tmp_path: Path) -> None:
    for kind in ("system", "eval", "global", "instance", "object", "mkdir"):
        mark = tmp_path / kind
        pickle.loads(_hostile(mark)[kind])
        assert mark.exists(), kind


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    value = [{"ref_id": 1, "sent": "café", "box": [0.5, -2], "ids": (1, None, True)}, 2**70]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_plain_pickle(path) == value


def test_texts_of_python_2_are_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\nS'left caf\\xc3\\xa9'\np1\naS'\\xff'\np2\naVman\np3\na.")
    assert load_plain_pickle(path) == ["left café", "\ufffd", "man"]


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-3], b"\x80\x99.", b"]u.", b"0."]
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\.p is (no readable pickle|refused)"):
        load_plain_pickle(path)
    with pytest.raises(FileNotFoundError):
        load_plain_pickle(tmp_path / "other.p")


@pytest.mark.parametrize(
    "content",
    [
        b"]r\xff\xff\xff\x0f.",  # remembers the list under the number 2**28
        b"\x80\x05\x96" + (1 << 30).to_bytes(8, "little") + b".",
        b"\x80\x05\x8e" + (1 << 30).to_bytes(8, "little") + b".",
    ],
)
def test_a_few_bytes_ask_for_no_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with suppress(ValueError):
            load_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
