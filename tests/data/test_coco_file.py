"""A COCO-style file stays on disk; its entries are found by image and by id."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import coco_values, write_json

from pixellm.data.coco import CocoFile


def test_annotations_are_found_by_image_and_by_id_and_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    points = [round(0.37 * k, 2) for k in range(58)]
    cups = [
        {"id": 3 * i, "image_id": i % 500, "name": "cup", "segmentation": [[i, i, *points]]}
        for i in range(6_000)
    ]
    values = coco_values((9, 9), ("cup",), *cups, images=range(500))
    path = write_json(tmp_path / "file.json", values)
    del cups, values
    CocoFile(path)
    tracemalloc.start()
    try:
        coco = CocoFile(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * 6_500, "some numbers an entry"
    assert peak < path.stat().st_size / 2
    for one in (coco, pickle.loads(pickle.dumps(coco))):
        assert one.annotation(one.find_annotation(3 * 5_001))["image_id"] == 1
        assert one.image(one.find_image(499))["file_name"] == "499.jpg"
        assert one.find_annotation(4) == one.find_image(500) == -1
        assert one.rows_of(7).tolist() == list(range(7, 6_000, 500))
        assert np.array_equal(one.items_of_sorted_rows, np.repeat(np.arange(500), 12))
