"""A run of pseudo-labels over a folder of photos: resumable, and a COCO file at its end.

Each labelled photo is a line on disk before the next one is begun. The COCO file, and a sheet of
photos to look at, are made of the lines. It knows no model and no command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixellm.data.json_values import text_fault
from pixellm.data.rows import read_rows
from pixellm.engine.run_folder import open_run
from pixellm.files import LineLog, check_file, locked, parse_json, read_lines, write_files
from pixellm.image_files import load_image
from pixellm.labelling.pseudo_labels import LabelRules, Proposal, PseudoLabeler, read_proposals
from pixellm.masks import decode_mask
from pixellm.scenes.photo_knowledge import load_photo_knowledge
from pixellm.visualize import draw_contact_sheet, draw_overlay, encode_image

if TYPE_CHECKING:
    from pixellm.engine.dialogues import Predictor

LOG_FILE = "labels.jsonl"
COCO_FILE = "instances.json"
SHEET_FILE = "look.jpg"
_MADE = ("images", "annotations", "categories", "pseudo_labels")
_OF_LABEL = ("name", "score", "iscrowd", "segmentation")
_SHEET_SIDE = 320


Progress = Callable[["LabelState"], None]


@dataclass(frozen=True, slots=True)
class LabelState:
    """How far a run is: photos done, of all; sure labels, doubts and bad photos among them.

    ``reason`` is why the first of the bad ones has no labels.
    """

    done: int
    total: int
    masks: int
    doubts: int
    bad: int
    reason: str = ""


class LabelRun:
    """What is to be labelled.

    Args:
        images: folder of photos; those in folders below it count too.
        out: folder for the run's files.
        model: as the user called it.
        rules: which masks are kept.
        boxes: COCO file of proposals; None to look for everything.
        names: categories to look for; those of the boxes, or all that are known, where empty.
        limit: the first photos only; all where 0.

    Raises:
        ValueError: the file of boxes is damaged, or proposes nothing of a name; or a name that
            can't be asked for.
    """

    def __init__(
        self,
        images: Path,
        out: Path,
        model: str,
        rules: LabelRules,
        boxes: Path | None = None,
        names: Sequence[str] = (),
        limit: int = 0,
    ) -> None:
        self.images, self.out, self.model, self.rules = images, out, model, rules
        self.limit = limit
        for fault in filter(None, (text_fault(name, "class") for name in names)):
            raise ValueError(fault)
        self.boxes: Mapping[str, Sequence[Proposal]] | None = None
        self.boxes_name = "" if boxes is None else str(boxes.resolve())
        if boxes is None:
            chosen = names or [one.name for one in load_photo_knowledge().concepts.values()]
            self.categories = {name: n for n, name in enumerate(dict.fromkeys(chosen), start=1)}
            return
        proposals = read_proposals(boxes)
        unknown = [name for name in names if name not in proposals.categories]
        if unknown:
            raise ValueError(f"{boxes} has no category {unknown[0]!r}.")
        known = proposals.categories.items()
        self.categories = {name: number for name, number in known if not names or name in names}
        self.boxes = {
            photo: [one for one in found if one.name in self.categories]
            for photo, found in proposals.boxes.items()
        }

    def photos(self) -> list[str]:
        """Names of the photos below the folder, with boxes where known; or FileNotFoundError."""
        names = [row.image for row in read_rows(self.images, "label")]
        names = [name for name in names if self.boxes is None or name in self.boxes]
        if not names:
            of_boxes = "" if self.boxes is None else " that the file of boxes lists"
            raise FileNotFoundError(f"{self.images} holds no photo{of_boxes}.")
        return names[: self.limit] if self.limit else names

    def settings(self) -> dict[str, Any]:
        """What decides the labels, as values that JSON knows."""
        return {
            "model": self.model,
            "images": str(self.images.resolve()),
            "boxes": self.boxes_name,
            "categories": self.categories,
            **asdict(self.rules),
        }


def run_labels(
    run: LabelRun,
    load: Callable[[], Predictor],
    batch_size: int,
    progress: Progress = lambda state: None,
    num_shown: int = 24,
) -> LabelState:
    """Label the photos that the run's folder lacks, then write the COCO file and the sheet.

    ``load`` makes the model, where a photo is left; ``progress`` is told before the first photo and
    after every one; the sheet shows ``num_shown`` photos. ValueError where the folder holds another
    run, or a damaged log, OSError where it can't be written, or another process writes there.
    """
    names = run.photos()
    check_file(run.out / COCO_FILE, keys=_MADE)
    check_file(run.out / SHEET_FILE)
    open_run(run.out, run.settings())
    with locked(run.out), LineLog(run.out / LOG_FILE) as log:
        lines = _read_log(run.out / LOG_FILE)
        progress(_state(lines, names))
        todo = [name for name in names if name not in lines]
        labeler = PseudoLabeler(load(), run.rules, batch_size) if todo else None
        for name in todo:
            assert labeler is not None
            lines[name] = _label_photo(run, labeler, name)
            log.append((json.dumps(lines[name]) + "\n").encode("ascii"))
            progress(_state(lines, names))
        chosen = [lines[name] for name in names]
        files = {run.out / COCO_FILE: json.dumps(_to_coco(run, chosen)).encode("ascii")}
        sheet = _draw_sheet(run.images, chosen, num_shown)
        write_files(files | ({run.out / SHEET_FILE: sheet} if sheet else {}))
    return _state(lines, names)


def _label_photo(run: LabelRun, labeler: PseudoLabeler, name: str) -> dict[str, Any]:
    """A photo's line: its labels, or why it has none."""
    from pixellm.engine.questions import describe_bad_input, is_bad_input

    try:
        image = np.asarray(load_image(run.images / name))
        if run.boxes is None:
            labels = labeler.label_all(image, list(run.categories))
        else:
            labels = labeler.label_boxes(image, run.boxes[name])
    except Exception as error:
        if not is_bad_input(error):
            raise
        return {"image": name, "error": describe_bad_input(error)}
    size = [int(side) for side in image.shape[:2]]
    return {"image": name, "size": size, "labels": labels}


def _read_log(path: Path) -> dict[str, dict[str, Any]]:
    """Name of each photo that is done -> its line."""
    lines: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(path):
        try:
            values = parse_json(line)
            if "error" not in values:
                _height, _width = values["size"]
                _ = [[label[key] for key in _OF_LABEL] for label in values["labels"]]
            lines.setdefault(str(values["image"]), values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Line {number} of {path} is damaged; delete that line, and its photo is labelled "
                "again."
            ) from error
    return lines


def _state(lines: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> LabelState:
    done = [lines[name] for name in names if name in lines]
    labels = [label for line in done for label in line.get("labels", ())]
    doubts = sum(label["iscrowd"] for label in labels)
    reasons = [str(line["error"]) for line in done if "error" in line]
    counts = (len(done), len(names), len(labels) - doubts, doubts, len(reasons))
    return LabelState(*counts, next(iter(reasons), ""))


def _to_coco(run: LabelRun, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The run as a COCO instances file; photos that can't be read are left out."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for line in lines:
        if "error" in line:
            continue
        height, width = line["size"]
        number = len(images) + 1
        images.append({"id": number, "file_name": line["image"], "height": height, "width": width})
        for label in line["labels"]:
            values = {key: value for key, value in label.items() if key != "name"}
            category = run.categories[label["name"]]
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append(ids | values)
    categories = [{"id": number, "name": name} for name, number in run.categories.items()]
    return {
        "info": {"description": "Masks by a model, not by people; crowds are what it doubts."},
        "pseudo_labels": run.settings(),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _draw_sheet(images: Path, lines: Sequence[Mapping[str, Any]], number: int) -> bytes:
    """Photos spread over the run with their sure masks, as a JPEG; b"" for none."""
    shown = [line for line in lines if line.get("labels")]
    step = max(len(shown) // number, 1) if number else 1
    tiles, captions = [], []
    for line in shown[::step][:number]:
        sure = [label for label in line["labels"] if not label["iscrowd"]]
        photo = load_image(images / line["image"])
        masks = [decode_mask(label["segmentation"]) for label in sure]
        names = [f"{label['name']} {label['score']:.2f}" for label in sure]
        tiles.append(draw_overlay(photo, masks, names, numbered=False))
        doubts = sorted({label["name"] for label in line["labels"] if label["iscrowd"]})
        captions.append(f"{line['image']}\n" + (f"in doubt: {', '.join(doubts)}" if doubts else ""))
    if not tiles:
        return b""
    sheet = draw_contact_sheet(tiles, captions, tile_width=_SHEET_SIDE)
    return encode_image(sheet, ".jpg", quality=88)
