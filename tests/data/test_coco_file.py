"""A COCO-style file stays on disk, and every entry that can't be used has its reason."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pixellm.data.coco import CocoFile

GOOD = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}


def test_annotations_are_found_by_image_and_by_id_and_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "file.json"
    polygon = [[round(0.37 * k, 2) for k in range(60)]]
    annotations = [
        {"id": 3 * i, "image_id": i % 500, "category_id": 1, "segmentation": polygon}
        for i in range(20_000)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in range(500)]
    categories = [{"id": 1, "name": "cup"}]
    content = {"annotations": annotations, "images": images, "categories": categories}
    path.write_text(json.dumps(content))
    del content, annotations, images
    CocoFile(path)
    tracemalloc.start()
    try:
        coco = CocoFile(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * 20_500, "some numbers an entry"
    assert peak < path.stat().st_size / 2
    for one in (coco, pickle.loads(pickle.dumps(coco))):
        assert one.annotation(one.find_annotation(3 * 17_001))["image_id"] == 1
        assert one.image(one.find_image(499))["file_name"] == "499.jpg"
        assert one.find_annotation(4) == one.find_image(500) == -1
        assert one.rows_of(7).tolist() == list(range(7, 20_000, 500))
        assert np.array_equal(one.items_of_sorted_rows, np.repeat(np.arange(500), 40))


def test_bad_entries_are_named(tmp_path: Path) -> None:
    images = [GOOD, {**GOOD, "id": 2, "height": "tall"}, {**GOOD, "id": None}]
    images += [{**GOOD, "id": 4, "file_name": "/etc/passwd"}, {**GOOD, "id": 5, "width": True}]
    image = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    annotations = [{"id": 1}, None, image, {**image, "image_id": 2}, {**image, "category_id": 9}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    coco = CocoFile(path)
    assert {bad.row for bad in coco.bad_rows} == {
        "category 1",
        *(f"image {place}" for place in (1, 2, 3, 4)),
        *(f"annotation {place}" for place in range(5)),
    }
    assert coco.image_indices.tolist() == [0] and coco.num_images == 5
    path.write_text(json.dumps({"annotations": annotations}))
    with pytest.raises(ValueError, match="no images and no categories"):
        CocoFile(path)
