"""The example that writes a detector's boxes: cells become boxes in pixels of the photo."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixellm.labelling.pseudo_labels import read_proposals

pytest.importorskip("onnxruntime", reason="the example runs a detector with onnxruntime")
PATH = Path(__file__).parents[2] / "examples" / "detector_boxes.py"
SIDE = 64
DOG, CAT = 16, 15


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detector_boxes", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Detector:
    """Sees one dog twice, with two sizes of cells, and an unsure cat."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="images", shape=[1, 3, SIDE, SIDE])]

    def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.seen.append(given["images"])
        output = np.zeros((1, 64 + 16 + 4, 85), np.float32)
        # Row 1, column 2 of the cells of 8 pixels: middle (20, 12), 16 wide and 8 high.
        output[0, 10] = cell((0.5, 0.5), (16 / 8, 8 / 8), 1.0, DOG, 0.9)
        # The same box from row 0, column 1 of the cells of 16 pixels.
        output[0, 64 + 1] = cell((0.25, 0.75), (16 / 16, 8 / 16), 1.0, DOG, 0.5)
        output[0, 0] = cell((0.5, 0.5), (1, 1), 0.2, CAT, 0.2)
        return [output]


def cell(
    middle: tuple[float, float], size: tuple[float, float], sure: float, kind: int, score: float
) -> np.ndarray:
    values = np.zeros(85, np.float32)
    values[:5] = (*middle, *np.log(size), sure)
    values[5 + kind] = score
    return values


def test_boxes_of_a_photo(example, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (128, 96), (255, 0, 0)).save(tmp_path / "photos" / "a.png")
    detector, out = Detector(), tmp_path / "boxes.json"
    monkeypatch.setattr(example.onnxruntime, "InferenceSession", lambda *args: detector)
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "photos"), "weights.onnx", str(out)])
    out.write_text("someone's notes")
    with pytest.raises(SystemExit) as refused:
        example.main()
    assert refused.value.code == 2 and out.read_text() == "someone's notes"
    out.unlink()
    example.main()
    example.main()  # its own file may be replaced
    detector.seen = detector.seen[-1:]
    values: dict[str, Any] = json.loads(out.read_text())
    assert values["images"] == [{"id": 1, "file_name": "a.png", "height": 96, "width": 128}]
    (dog,) = values["annotations"]  # the same dog once, and no cat: 0.2 x 0.2 is too little
    assert dog["bbox"] == pytest.approx([24, 16, 32, 16], abs=0.1)
    assert dog["score"] == pytest.approx(0.9, abs=1e-3)
    (found,) = read_proposals(out).boxes["a.png"]
    assert found.name == "dog"
    assert read_proposals(out).categories["toothbrush"] == 80
    pixels = detector.seen[0][0]
    assert pixels[:, 0, 0].tolist() == [0, 0, 255]  # blue, green, red
    assert (pixels[:, 48:] == 114).all()
