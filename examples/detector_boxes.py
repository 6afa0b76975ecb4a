"""Boxes of a YOLOX detector as a COCO file, for `pixellm data pseudo-label --boxes`.

    python examples/detector_boxes.py PHOTOS yolox_nano.onnx boxes.json

Needs `pip install onnxruntime` and weights as YOLOX's own export makes them (Apache-2.0; 80 COCO
classes): input 1 x 3 x S x S, BGR in 0..255, padded with 114 at the right and the bottom; output
1 x cells x 85 at strides 8, 16 and 32, not yet decoded. Any other detector will do as well, as long
as it writes `bbox` and `score`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from pixellm.data.rows import read_rows
from pixellm.files import MAKER, check_file, write_files
from pixellm.processing.image import load_image
from pixellm.scenes.photo_knowledge import load_photo_knowledge

LEAST_SCORE = 0.1
SAME_OBJECT = 0.5


def read_boxes(output: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners (N, 4) in pixels of the input, scores (N,) and classes (N,) above the least score."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        rows, columns = np.indices((side // stride, side // stride)).reshape(2, -1)
        grids.append(np.stack((columns, rows), axis=1))
        strides.append(np.full((len(rows), 1), stride))
    stride = np.concatenate(strides)
    middle = (output[:, :2] + np.concatenate(grids)) * stride
    half = np.exp(output[:, 2:4]) * stride / 2
    scores = output[:, 5:] * output[:, 4:5]
    cells, classes = np.nonzero(scores >= LEAST_SCORE)
    corners = np.concatenate((middle - half, middle + half), axis=1)
    return corners[cells], scores[cells, classes], classes


def keep_best(corners: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Greedy suppression within each class: places of the boxes that stay, the surest first."""
    kept: list[int] = []
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    for place in np.argsort(-scores):
        others = [one for one in kept if classes[one] == classes[place]]
        low = np.maximum(corners[others, :2], corners[place, :2])
        high = np.minimum(corners[others, 2:], corners[place, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        if not (common > SAME_OBJECT * (area[others] + area[place] - common)).any():
            kept.append(int(place))
    return kept


def detect(session: onnxruntime.InferenceSession, image: Image.Image) -> list[dict[str, object]]:
    """The annotations of a photo, less their ids; boxes lie inside of it."""
    (given,) = session.get_inputs()
    side = int(given.shape[-1])
    scale = side / max(image.size)
    small = image.resize([max(1, round(one * scale)) for one in image.size])
    padded = np.full((side, side, 3), 114, np.float32)
    padded[: small.height, : small.width] = np.asarray(small)[..., ::-1]
    output = session.run(None, {given.name: padded.transpose(2, 0, 1)[None]})[0][0]
    corners, scores, classes = read_boxes(output, side)
    found = []
    for place in keep_best(corners, scores, classes):
        ends = np.tile(image.size, 2)
        left, top, right, bottom = np.clip(corners[place] / scale, 0, ends).round(2).tolist()
        box = [left, top, round(right - left, 2), round(bottom - top, 2)]
        score = round(float(scores[place]), 4)
        found.append({"category_id": int(classes[place]) + 1, "bbox": box, "score": score})
    return found


def main() -> None:
    """Read the command line, detect, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    try:
        check_file(args.out)
    except OSError as error:
        parser.error(str(error))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(args.weights), options)
    images, annotations = [], []
    for row in read_rows(args.photos, "boxes"):
        image = load_image(args.photos / row.image)
        number = len(images) + 1
        size = {"height": image.height, "width": image.width}
        images.append({"id": number, "file_name": row.image, **size})
        for one in detect(session, image):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
    # The tables hold COCO's 80 categories in COCO's order.
    names = [key.replace("_", " ") for key in load_photo_knowledge().concepts]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    values = {
        "info": {"generator": MAKER},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_files({args.out: json.dumps(values).encode("ascii")})
    print(f"Wrote {args.out}: {len(annotations)} boxes in {len(images)} photos.")


if __name__ == "__main__":
    main()
