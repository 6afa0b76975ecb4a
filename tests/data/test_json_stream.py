"""JSON files entry by entry, whatever the file looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data import json_stream
from pixellm.data.json_stream import scan_json, scan_list

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(json_stream, "_CHUNK", 3)
    yield


def _scan(path: Path) -> dict[str, Any]:
    """The file's content, put together again; the text of each value says the same."""
    found: dict[str, Any] = {}
    for key, value, text in scan_json(path):
        assert json.loads(text) == value
        found.setdefault(key, []).append(value)
    return found


@settings(max_examples=60, deadline=None)
@given(
    content=st.dictionaries(st.text(), st.lists(_VALUES, min_size=1, max_size=4), max_size=3),
    indent=st.sampled_from([None, 1]),
    as_ascii=st.booleans(),
)
def test_entries_are_those_of_json(
    path: Path, content: dict[str, Any], indent: int | None, as_ascii: bool
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=as_ascii)
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    assert _scan(path) == content


@pytest.mark.usefixtures("short_reads")
def test_values_that_span_many_reads_are_whole(path: Path) -> None:
    content = {"info": {"year": 2014}, "a": [12345, -1.5e10, "ça 🦊", [1, {"b": []}]], "b": []}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8-sig")
    assert _scan(path) == {"info": [{"year": 2014}], "a": content["a"]}
    path.write_text(" [1, 23 , 456]\n")
    assert _scan(path) == {"": [1, 23, 456]}


@pytest.mark.usefixtures("short_reads")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"[", "ends in the middle"),
        (b"[1] [2]", "goes on behind its end, at byte 4"),
        (b"17", "no JSON list or object"),
        (b'[{"a": 1}, {"a"', "damaged or ends"),
        (b'[{"a": 1} {"a": 2}]', "damaged at byte 10"),
        (b'{"images": [1, 2]', "ends in the middle"),
        (b'["\xff"]', "no UTF-8"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_damaged_files_say_where(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        list(scan_json(path))
    assert str(path) in str(caught.value)
    if content.startswith(b"["):
        with pytest.raises(ValueError, match=reason):
            list(scan_list(path))
