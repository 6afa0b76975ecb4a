"""One run of the library on one damaged image or data set, and how it ended."""

from __future__ import annotations

import io
import pickle
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import stated
import typer
from file_damage import mutate_bytes, mutate_values, to_json
from numpy.typing import NDArray
from PIL import Image
from stated import SIDE, AcceptedError, Reading, Statement, compare

from pixellm.data.check import find_sets
from pixellm.image_files import load_annotated
from pixellm.masks import areas_of
from pixellm.types import Sample

SECONDS = 60
"""Of computing, after which a case counts as hanging."""

WAITING = 10
"""As many times longer it may take where others compute, too."""

SQUARE = [8.0, 8.0, 24.0, 8.0, 24.0, 24.0, 8.0, 24.0]
CUP_TURN = {
    "question": "Where is the cup?",
    "answer": "The cup {seg}.",
    "targets": [{"name": "cup", "segmentation": [SQUARE]}],
}


def shifted(by: int) -> list[float]:
    """The square that many columns further right."""
    return [value + by * (at % 2 == 0) for at, value in enumerate(SQUARE)]


NO_WORDS = {"none", "nan", "inf", "null", "true", "false"}
"""What values that are no text look like, where they were taken for one."""


Pixels = NDArray[np.uint8]
FAR_OFF = 8.0
"""Mean difference of two decoders, in grey values, from which they read different images."""

COMPARED: Counter[str] = Counter()
"""How many masks and images were compared with what their files hold."""


class HangError(BaseException):
    """A case took too long; no except clause of the library may swallow it."""


class SpeechError(AssertionError):
    """A refusal that is no sentence for a user."""


@contextmanager
def time_limit() -> Iterator[None]:
    """End what runs longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"ran longer than {SECONDS} s")

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))
    before = [signal.signal(number, stop) for _, number in clocks]
    for (clock, _), times in zip(clocks, (1, WAITING), strict=True):
        signal.setitimer(clock, SECONDS * times)
    try:
        yield
    finally:
        for (clock, number), earlier in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, earlier)


def outcome_of(run: Callable[[], None]) -> str:
    """ "used", or "refused" where it ended in an error that the command line tells in a sentence.

    Everything else is raised on: a traceback for the user.
    """
    try:
        with time_limit():
            run()
    except (ValueError, OSError) as error:
        if not str(error).strip():
            raise SpeechError(f"{type(error).__name__} without a word") from error
        return "refused"
    return "used"


def command(*words: str) -> str:
    """Run the command line; "used", "bad rows" or "refused" by its exit code."""
    said, code = io.StringIO(), 0
    with time_limit(), redirect_stdout(said), redirect_stderr(said):
        try:
            command_line()(list(words), prog_name="pixellm")
        except SystemExit as left:
            code = int(left.code or 0)
    if "Traceback" in said.getvalue():
        raise SpeechError(said.getvalue())
    if code == 2 and not said.getvalue().strip():
        raise SpeechError("exit code 2 without a word")
    return {0: "used", 1: "bad rows", 2: "refused"}[code]


@cache
def command_line() -> Callable[..., None]:
    """The command line, put together once: that takes longer than most of the files."""
    from pixellm.cli.main import app

    return typer.main.get_command(app)


def check(root: Path, *options: str, reading: Reading) -> str:
    """`data check` on a data set; what is then left to ask about has to be what its files state.

    Args:
        root, options: of the command.
        reading: reads the same files without the library.
    """
    ended = command("data", "check", str(root), *options)
    if ended == "refused":
        return ended
    named = dict(zip(options[::2], options[1::2], strict=True))
    given: dict[str, Any] = {}
    if "--with" in named:
        given["folder"] = named["--with"].removeprefix("folder=")
    if "--images" in named:
        given["images"] = named["--images"]
    read_once = cache(partial(statement_of, reading))
    names, splits = ([named[key]] if key in named else [] for key in ("--set", "--split"))
    for found in find_sets(root, names, splits, given):
        with told_by(ended):
            reader = found.open()
            for number in range(len(reader)):
                with told_by(ended):
                    for sample in reader.item(number):
                        load_annotated(sample.image, sample.size, "")
                        look_at(sample, root if root.is_dir() else root.parent, read_once())
    return ended


@contextmanager
def told_by(ended: str) -> Iterator[None]:
    """Faults of rows are no fault of the library where the check has named bad rows."""
    try:
        yield
    except (OSError, ValueError) as error:
        if ended == "used":
            raise AcceptedError(f"The check named nothing, and then: {error}") from error


def statement_of(reading: Reading) -> Statement:
    """What the files state; files of which something is used have to be readable."""
    try:
        return reading()
    except Exception as error:
        raise AcceptedError(f"Used, and {type(error).__name__}: {error}") from error


def look_at(sample: Sample, folder: Path, statement: Statement) -> None:
    """Whether a sample is what its files say.

    Raises:
        AcceptedError: an image from elsewhere or of another size, an empty mask, one that no file
            has, or a text that nobody has written.
    """
    if isinstance(sample.image, Path) and not sample.image.resolve().is_relative_to(folder):
        raise AcceptedError(f"{sample.image} lies outside")
    if isinstance(sample.image, Path):
        with Image.open(sample.image) as stored:
            if stored.size != sample.size[::-1]:
                raise AcceptedError(f"{sample.image} is {stored.size}, not {sample.size[::-1]}")
    COMPARED["masks"] += compare(sample, statement)
    COMPARED["questions"] += len(sample.turns)
    for turn in sample.turns:
        if not all(areas_of([target.mask])[0] for target in turn.targets):
            raise AcceptedError(f"{turn.question!r} has an empty mask")
        words = re.findall(r"[a-z]+", f"{turn.question} {turn.answer}".lower())
        for word in NO_WORDS & set(words):
            if not any(is_text_in(path, word) for path in folder.rglob("*") if path.is_file()):
                raise AcceptedError(f"{word!r} in {turn.question!r}, {turn.answer!r}")


def is_text_in(path: Path, word: str) -> bool:
    """Whether a file of annotations holds a word as text, so that it may be asked for."""
    content = path.read_bytes().lower()
    if path.suffix in (".json", ".jsonl"):  # null and NaN stand there without quotation marks
        return bool(re.search(rf'"[^"]*\b{word}\b[^"]*"'.encode(), content))
    return path.suffix in (".p", ".csv") and word.encode() in content


def image(folder: Path, rng: random.Random) -> str:
    """An image file of each format with broken bytes."""
    from pixellm.image_files import load_image, probe_image

    form = rng.choice(("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"))
    pixels = Image.effect_noise((SIDE[1], SIDE[0]), 60).convert(rng.choice(("RGB", "L")))
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 6, 8))
    buffer = io.BytesIO()
    options = {"exif": exif.tobytes()} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    pixels.save(buffer, form, **options)
    path = folder / f"image.{rng.choice(('jpg', 'png', 'tif'))}"
    path.write_bytes(mutate_bytes(buffer.getvalue(), rng))

    def read() -> None:
        size = probe_image(path)
        loaded = load_image(path)
        if loaded.mode != "RGB" or size != (loaded.height, loaded.width):
            raise AcceptedError(f"{loaded.mode} of {loaded.size} and {size}")
        compare_pixels(np.array(loaded), path, np.array(pixels.convert("RGB")), form)

    return outcome_of(read)


def compare_pixels(found: Pixels, path: Path, drawn: Pixels, form: str) -> None:
    """Whether pixels are those that were drawn, or that another decoder finds in the file.

    A PNG has check sums, so that what is read of it is what was saved. In other formats a changed
    byte may be a changed pixel: OpenCV, where it reads the file, has to see the same.
    """
    turns = [np.rot90(found, times) for times in range(4)]
    if form == "PNG":
        COMPARED["images"] += 1
        if not any(np.array_equal(turn, drawn) for turn in turns):
            raise AcceptedError("a damaged PNG with other pixels than it was saved with")
        return
    plain = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        other = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), plain)
    except cv2.error as error:
        raise AcceptedError(f"a damaged {form} that is too large for OpenCV") from error
    if other is None:
        return
    COMPARED["images"] += 1
    other = other[..., ::-1].astype(int)
    alike = [turn for turn in turns if turn.shape == other.shape]
    if not any(np.abs(turn - other).mean() < FAR_OFF for turn in alike):
        raise AcceptedError(f"a damaged {form} in which OpenCV sees other pixels")


def draw(path: Path) -> None:
    """A plain image at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE[1], SIDE[0]), (90, 120, 90)).save(path)


def coco_values() -> dict[str, Any]:
    """A COCO file of two images."""
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": SIDE[0], "width": SIDE[1]} for n in (1, 2)
        ],
        "categories": [
            {"id": 1, "name": "cup", "supercategory": "kitchen"},
            {"id": 2, "name": "dog", "supercategory": "animal"},
        ],
        "annotations": [
            {
                "id": n,
                "image_id": (n - 1) // 2 + 1,
                "category_id": (n - 1) % 2 + 1,
                "bbox": [8 + 8 * n, 8, 16, 16],
                "area": 256,
                "iscrowd": 0,
                "segmentation": [shifted(8 * n)],
            }
            for n in (1, 2, 3, 4)
        ],
    }


def coco(folder: Path, rng: random.Random) -> str:
    """A COCO export beside its images."""
    for number in (1, 2):
        draw(folder / f"{number}.jpg")
    (folder / "export.json").write_bytes(to_json(mutate_values(coco_values(), rng), rng))
    path = folder / "export.json"
    return check(path, "--images", str(folder), reading=partial(stated.coco, path))


def labelme(folder: Path, rng: random.Random) -> str:
    """A LabelMe file."""
    draw(folder / "a.jpg")
    shapes = [
        {"label": "cup", "shape_type": "polygon", "points": [[8, 8], [24, 8], [24, 24]]},
        {"label": "dog", "shape_type": "rectangle", "points": [[30, 8], [44, 24]]},
        {"label": "cat", "shape_type": "circle", "points": [[30, 30], [34, 34]]},
    ]
    values = {
        "imagePath": "a.jpg",
        "imageHeight": SIDE[0],
        "imageWidth": SIDE[1],
        "imageData": None,
        "shapes": shapes,
    }
    (folder / "a.json").write_bytes(to_json(mutate_values(values, rng), rng))
    reading = partial(stated.labelme, folder / "a.json")
    return check(folder, "--set", "labelme", "--with", "folder=.", reading=reading)


def jsonl(folder: Path, rng: random.Random) -> str:
    """The project's own dialogues."""
    draw(folder / "a.jpg")
    line = {
        "id": "one",
        "image": "a.jpg",
        "turns": [CUP_TURN, {"question": "Is it red?", "answer": "No."}],
    }
    lines = [to_json(mutate_values(line, rng), rng), to_json({**line, "id": "two"}, rng)]
    rng.shuffle(lines)
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    path = folder / "a.jsonl"
    return check(path, reading=partial(stated.jsonl, path))


def llava(folder: Path, rng: random.Random) -> str:
    """LLaVA's conversations."""
    draw(folder / "a.jpg")
    values = [
        {
            "id": "one",
            "image": "a.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": "A wall."},
            ],
        }
    ] * 2
    (folder / "a.json").write_bytes(to_json(mutate_values(values, rng), rng))
    path = folder / "a.json"
    return check(path, "--images", str(folder), reading=partial(stated.llava, path))


def muse(folder: Path, rng: random.Random) -> str:
    """A MUSE file."""
    draw(folder / "a.jpg")
    instances = [
        {
            "category_id": n,
            "category_name": name,
            "rephrased_name": f"the {name} on the {side}",
            "bbox": [8 + 4 * n, 8 + 4 * n, 16, 16],
            "segmentation": [[value + 4 * n for value in SQUARE]],
        }
        for n, (name, side) in enumerate((("cup", "left"), ("dog", "right")), 1)
    ]
    values = [
        {
            "file_name": "a.jpg",
            "height": SIDE[0],
            "width": SIDE[1],
            "ann_list": instances,
            "questions": ["What is there?"],
            "answers": [instances],
            "text_answers": ["There are the cup on the left {seg} and the dog on the right {seg}."],
        }
    ]
    path = folder / "muse_val.json"
    path.write_bytes(to_json(mutate_values(values, rng), rng))
    if rng.random() < 0.5:
        command("curate", "validate", str(path), "--images", str(folder))
    return check(path, "--images", str(folder), reading=partial(stated.muse, path))


def reasonseg(folder: Path, rng: random.Random) -> str:
    """ReasonSeg's files."""
    place = folder / "reason_seg/ReasonSeg/val"
    draw(place / "a.jpg")
    values = {
        "text": ["the thing to drink from"],
        "is_sentence": False,
        "shapes": [
            {"label": "target", "shape_type": "polygon", "points": [[8, 8], [24, 8], [24, 24]]},
            {"label": "ignore", "shape_type": "polygon", "points": [[30, 8], [40, 8], [40, 24]]},
        ],
    }
    (place / "a.json").write_bytes(to_json(mutate_values(values, rng), rng))
    reading = partial(stated.reasonseg, place / "a.json")
    return check(folder, "--set", "reasonseg", "--split", "val", reading=reading)


def refcoco(folder: Path, rng: random.Random) -> str:
    """refCOCO's pickle and its instances."""
    place = folder / "refer_seg/refcoco"
    draw(folder / "refer_seg/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg")
    coco = coco_values()
    coco["images"] = [{**coco["images"][0], "file_name": "COCO_train2014_000000000001.jpg"}]
    coco["annotations"] = coco["annotations"][:2]
    refs = [
        {
            "ref_id": 1,
            "ann_id": 1,
            "image_id": 1,
            "category_id": 1,
            "file_name": "COCO_train2014_000000000001_1.jpg",
            "split": "val",
            "sent_ids": [1],
            "sentences": [{"sent": "left cup", "raw": "left cup", "tokens": [], "sent_id": 1}],
        }
    ]
    place.mkdir(parents=True)
    if rng.random() < 0.3:
        coco = mutate_values(coco, rng)
    else:
        refs = mutate_values(refs, rng)
    (place / "instances.json").write_bytes(to_json(coco, rng))
    pickled = pickle.dumps(refs, protocol=rng.choice((0, 2, 4)))
    damaged = mutate_bytes(pickled, rng) if rng.random() < 0.4 else pickled
    (place / "refs(unc).p").write_bytes(damaged)
    reading = partial(stated.refer, place / "instances.json", place / "refs(unc).p")
    return check(folder, "--set", "refcoco", "--split", "val", reading=reading)


KINDS: dict[str, Callable[..., str]] = {
    one.__name__: one for one in (image, coco, labelme, jsonl, llava, muse, reasonseg, refcoco)
}
"""Images, and data sets that are written here."""
