"""Records of JSON files are found where they lie, whatever the file looks like."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data.readers import json_index
from pixellm.data.readers.instances import InstanceFile
from pixellm.data.readers.json_index import JsonRecords, SpanList, scan_json
from pixellm.data.readers.text_table import TextTable

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
    monkeypatch.setattr(json_index, "_CHUNK", 3)
    yield


def _scan(path: Path) -> dict[str, Any]:
    """The file's content, put together again; each list's entries are read by their spans."""
    found: dict[str, Any] = {}
    spans: dict[str, SpanList] = {}
    for key, start, end, value in scan_json(path):
        spans.setdefault(key, SpanList()).append(start, end)
        found.setdefault(key, []).append(value)
    for key, values in found.items():
        records = spans[key].records(path)
        assert [records[i] for i in range(len(records))] == values
    return found


@settings(max_examples=60, deadline=None)
@given(
    content=st.dictionaries(st.text(), st.lists(_VALUES, min_size=1, max_size=4), max_size=3),
    indent=st.sampled_from([None, 1]),
    as_ascii=st.booleans(),
)
def test_entries_and_their_places_are_those_of_json(
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
        (b"", "ends in the middle"),
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


def test_records_travel_to_other_processes_without_the_file(path: Path) -> None:
    path.write_text(json.dumps([{"number": i} for i in range(1000)]))
    spans = SpanList()
    for _, start, end, _ in scan_json(path):
        spans.append(start, end)
    records = spans.records(path)
    assert records[7] == {"number": 7}
    packed = pickle.dumps(records)
    assert len(packed) < 1000 * 16 + 1000
    assert pickle.loads(packed)[999] == {"number": 999}


def test_a_file_that_changed_meanwhile_is_named(path: Path) -> None:
    path.write_text(json.dumps([{"a": "long enough"}] * 9))
    spans = SpanList()
    for _, start, end, _ in scan_json(path):
        spans.append(start, end)
    stale = JsonRecords(path, spans.records(path).spans + 3)
    with pytest.raises(ValueError, match=r"file.json has changed"):
        stale[2]


def test_an_instances_file_stays_on_disk(path: Path) -> None:
    polygon = [[round(0.37 * k, 2) for k in range(60)]]
    annotations = [
        {"id": 3 * i, "image_id": i % 500, "category_id": 1, "segmentation": polygon}
        for i in range(20_000)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in range(500)]
    categories = [{"id": 1, "name": "cup"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    del content, annotations, images
    tracemalloc.start()
    try:
        index = InstanceFile(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 30 * 20_500, "24 bytes an entry, and a little"
    assert peak < path.stat().st_size, "never the whole file"
    assert index.annotation(3 * 17_001)["image_id"] == 1
    assert index.image(499).file_name == "499.jpg"
    assert not index.has_annotation(4)


def test_instances_files_name_their_bad_entries(path: Path) -> None:
    good = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}
    images = [good, {**good, "id": 2, "height": "tall"}, {**good, "id": "x"}]
    images += [{**good, "id": 4, "file_name": "/etc/passwd"}, {**good, "id": 5, "width": True}]
    content = {"images": images, "annotations": [{"id": 1}, None], "categories": [{"id": 1}]}
    path.write_text(json.dumps(content))
    index = InstanceFile(path)
    assert [row for row, _ in index.problems] == [
        *("images 1", "images 2", "images 3", "images 4", "annotations 0", "annotations 1")
    ]
    assert [index.has_image(i) for i in (1, 2, 3, 4, 5)] == [True, *[False] * 4]
    path.write_text(json.dumps({"images": images}))
    with pytest.raises(ValueError, match="no annotations and no categories"):
        InstanceFile(path)


@given(st.lists(st.text()))
def test_a_text_table_gives_back_its_texts(texts: list[str]) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    table = TextTable(iter(texts))
    assert list(table) == texts
    assert len(table) == len(texts)
    with pytest.raises(IndexError):
        table[len(texts)]
