"""Every benchmark of the paper as a small fixture of photos in its true layout, and its scores.

    python benchmarks/benchmark_fixtures.py --model nano-scenes --photos photos --num 40 \
        --out out/fixtures --json benchmarks/results/benchmark_fixtures.json

These are NOT the benchmarks. Their photos are the val split of a small COCO subset, and what is
asked is composed from its annotations by fixed rules (fixture_questions.py): a category with what
tells its instance from all others ("left dog", "largest car"), the purpose of a category
("something to drink from"), what a caption names. No annotator wrote an expression. The figures
show that the path from a benchmark's files to its report works, and compare models roughly; never
set them beside published numbers.

Each fixture lies in OUT/data/NAME as the benchmark's authors lay theirs out, images being links;
OUT/NAME is what `pixellm eval NAME --model MODEL --data OUT/data/NAME --out OUT/NAME` writes. Where
that gives the answers, OUT/NAME-free has the same with `--mode free`; where the released protocol
counts otherwise, OUT/NAME-released has it with `--protocol released`. The reports show photos that
may not be redistributed: keep OUT to yourself. Stopped, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from dataclasses import asdict, replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fixture_questions import (
    MOST,
    SMALLEST,
    SPLIT,
    Asked,
    Instance,
    Photo,
    read_photos,
    reason_about,
    reason_about_several,
    refer,
    refer_generally,
    spread,
    word_long,
    word_short,
    word_without_position,
)

if TYPE_CHECKING:
    from pixellm.engine import Engine
    from pixellm.evaluation.evaluate import BenchmarkRun

REFERRING = ("refcoco", "refcoco+", "refcocog", "multi-refcoco", "grefcoco")
NAMES = (*REFERRING, "reasonseg", "muse", "coco")
SHOWN = ("giou", "ciou", "n_acc", "t_acc")
HEAD = (
    "| benchmark | mode | photos | questions | gIoU strict | gIoU released | cIoU | N-acc | T-acc "
    "| s/answer |\n|---|---|--:|--:|---|---|---|---|---|--:|"
)


def write_json(path: Path, values: Any) -> None:
    """A JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def link(photo: Photo, path: Path) -> None:
    """The photo under another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(photo.path.resolve())


def write_refer(root: Path, name: str, asked: list[Asked], categories: list[Any]) -> None:
    """The refer family: instances.json, and refs as a pickle, of gRefCOCO as JSON."""
    photos = {one.photo.entry["id"]: one.photo for one in asked}
    files = {identity: f"COCO_train2014_{identity:012d}.jpg" for identity in photos}
    for identity, photo in photos.items():
        link(photo, root / "refer_seg/images/mscoco/images/train2014" / files[identity])
    folder = root / "refer_seg" / name
    content = {
        "images": [{**p.entry, "file_name": files[i]} for i, p in photos.items()],
        "annotations": [row for photo in photos.values() for row in photo.rows],
        "categories": categories,
    }
    write_json(folder / "instances.json", content)
    refs = [to_ref(number, one, name == "grefcoco") for number, one in enumerate(asked)]
    if name == "grefcoco":
        write_json(folder / "grefs(unc).json", refs)
    else:
        partition = "umd" if name == "refcocog" else "unc"
        (folder / f"refs({partition}).p").write_bytes(pickle.dumps(refs, protocol=2))


def to_ref(number: int, asked: Asked, several: bool) -> dict[str, Any]:
    """An entry of the refs; of gRefCOCO it lists its annotations, [-1] for none."""
    image = asked.photo.entry["id"]
    annotations = [one.row["id"] for one in asked.instances] or [-1]
    categories = [one.row["category_id"] for one in asked.instances] or [-1]
    sentence = {"sent_id": number, "sent": asked.text, "raw": asked.text}
    ref = {
        "ref_id": number,
        "image_id": image,
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
        "split": SPLIT,
        "sent_ids": [number],
        "sentences": [{**sentence, "tokens": asked.text.split()}],
        "ann_id": annotations if several else annotations[0],
        "category_id": categories if several else categories[0],
    }
    return {**ref, "no_target": not asked.instances} if several else ref


def write_reasonseg(root: Path, asked: list[Asked]) -> None:
    """ReasonSeg: next to each image its polygons and text, every other one a whole question."""
    folder = root / "reason_seg/ReasonSeg" / SPLIT
    for number, one in enumerate(asked):
        name = one.photo.path.stem
        shapes = [
            {"label": label, "points": list(zip(ring[::2], ring[1::2], strict=True))}
            for instance in one.instances
            for label in ["target" if instance.share >= SMALLEST else "ignore"]
            for ring in instance.row["segmentation"]
        ]
        is_sentence = number % 2 == 0
        text = f"I am looking for {one.text}. Where is it?" if is_sentence else one.text
        link(one.photo, folder / f"{name}.jpg")
        values = {"text": [text], "is_sentence": is_sentence, "shapes": shapes}
        write_json(folder / f"{name}.json", values)


def write_muse(root: Path, asked: list[Asked]) -> None:
    """MUSE: an entry for each photo with its questions; photos by their address at COCO."""
    entries = []
    for photo in {one.photo: 0 for one in asked}:
        own = [one for one in asked if one.photo is photo]
        answers = [[to_instance(photo, instance) for instance in one.instances] for one in own]
        entry = {key: photo.entry[key] for key in ("coco_url", "height", "width")}
        entry["ann_list"] = [to_instance(photo, instance) for instance in photo.instances]
        entry["questions"] = [one.text for one in own]
        entry["answers"] = answers
        entry["text_answers"] = [
            "This is " + " and ".join(f"{it['rephrased_name']} {{seg}}" for it in answer) + "."
            for answer in answers
        ]
        entries.append(entry)
        link(photo, root / "coco" / "/".join(photo.entry["coco_url"].split("/")[-2:]))
    write_json(root / f"muse/muse_{SPLIT}.json", entries)


def to_instance(photo: Photo, instance: Instance) -> dict[str, Any]:
    """An instance of MUSE, called as it would be referred to."""
    kept = {key: instance.row[key] for key in ("category_id", "bbox", "segmentation")}
    name = [*word_short(photo, instance), instance.name][0]
    return {**kept, "category_name": instance.name, "rephrased_name": f"the {name}"}


def write_coco(root: Path, photos: list[Photo], num: int, categories: list[Any]) -> None:
    """COCO itself: so many photos that their categories, each a question, come to the number."""
    kept: list[Photo] = []
    for photo in photos:
        if sum(len({instance.name for instance in one.instances}) for one in kept) < num:
            kept.append(photo)
            link(photo, root / f"{SPLIT}2017" / photo.path.name)
    content = {
        "images": [photo.entry for photo in kept],
        "annotations": [row for photo in kept for row in photo.rows],
        "categories": categories,
    }
    write_json(root / f"annotations/instances_{SPLIT}2017.json", content)


def write_fixture(
    name: str, root: Path, photos: list[Photo], categories: list[Any], num: int
) -> None:
    """A benchmark with about so many questions, in its true layout."""
    turns = list(enumerate(photos))
    words = {"refcoco+": word_without_position, "refcocog": word_long}
    if name == "coco":
        write_coco(root, photos, num, categories)
    elif name == "muse":
        write_muse(root, spread((reason_about_several(p, n) for n, p in turns), num))
    elif name == "reasonseg":  # one file, so one question, for each photo
        write_reasonseg(root, spread((reason_about(p, n)[:1] for n, p in turns), num))
    elif name == "grefcoco":
        asked = spread((refer_generally(p, n, categories) for n, p in turns), num)
        write_refer(root, name, asked, categories)
    elif name == "multi-refcoco":  # refCOCO's files; a photo's expressions are one question
        groups = [refer(p, n, word_short)[:MOST] for n, p in turns]
        groups = [group for group in groups if len(group) > 1]
        write_refer(root, "refcoco", list(chain(*groups[:num])), categories)
    else:
        word = words.get(name, word_short)
        write_refer(root, name, spread((refer(p, n, word) for n, p in turns), num), categories)


def evaluate(run: BenchmarkRun, engine: Engine, folder: Path) -> dict[str, Any]:
    """What `pixellm eval` says of a fixture, under both protocols where they differ."""
    from pixellm.evaluation import evaluate as evaluate_run
    from pixellm.evaluation.report import report_of
    from pixellm.report.page import write_report

    evaluation = evaluate_run(run, folder, lambda: engine)
    write_report(folder, "report", report_of(evaluation))
    summary = evaluation.summary
    released = None
    if run.benchmark.released == "same" and run.rules.mode == "forced":
        released = summary
    elif run.benchmark.released == "muse":
        other = replace(run, protocol="released")
        released = evaluate_run(other, Path(f"{folder}-released"), lambda: engine).summary
    shown = [score for score in SHOWN if score in run.benchmark.headline]
    return {
        "benchmark": run.name,
        "mode": run.rules.mode,
        "pictures": summary.num_images,
        "questions": summary.num_questions,
        "targets": summary.num_targets,
        "masks": summary.num_masks,
        "strict": {score: asdict(summary.score(score)) for score in shown},
        "released": released and {s: asdict(released.score(s)) for s in ("giou", "ciou")},
        "seconds_per_answer": summary.score("seconds").value,
    }


def runs_of(name: str, model: str, out: Path) -> dict[str, BenchmarkRun]:
    """By folder: the usual run of a benchmark, and a free one where answers are usually given."""
    from pixellm.evaluation.evaluate import BenchmarkRun

    run = BenchmarkRun(name, model, SPLIT, out / "data" / name)
    free = {f"{name}-free": replace(run, mode="free")} if run.rules.mode == "forced" else {}
    return {name: run, **free}


def show(row: dict[str, Any]) -> str:
    """A row of the table."""
    strict, released = row["strict"], row["released"] or {}
    cells = [row["benchmark"], row["mode"], row["pictures"], row["questions"]]
    cells += [show_estimate(strict.get("giou")), show_estimate(released.get("giou"))]
    cells += [show_estimate(strict.get(score)) for score in ("ciou", "n_acc", "t_acc")]
    return "| " + " | ".join(map(str, cells)) + f" | {row['seconds_per_answer']:.2f} |"


def show_estimate(values: dict[str, Any] | None) -> str:
    """A score with its interval; "-" where the benchmark has none."""
    from pixellm.evaluation.intervals import Estimate

    return "-" if values is None else str(Estimate(**values))


def build_fixtures(out: Path, photos: Path, num: int) -> None:
    """Write all fixtures, or find those that the same settings wrote before.

    Raises:
        FileExistsError: the folder holds something else.
    """
    settings, note = {"photos": str(photos.resolve()), "num": num}, out / "fixtures.json"
    if note.is_file() and json.loads(note.read_bytes()) == settings:
        return
    if out.exists():
        raise FileExistsError(f"{out} holds something else; give --out a new folder.")
    images, categories = read_photos(photos)
    for name in NAMES:
        write_fixture(name, out / "data" / name, images, categories, num)
    write_json(note, settings)


def main() -> None:
    """Build the fixtures, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="as for pixellm eval")
    parser.add_argument("--photos", type=Path, required=True, help="folder of COCO photos")
    parser.add_argument("--num", type=int, default=40, help="questions of each, about")
    parser.add_argument("--out", type=Path, required=True, help="folder for fixtures and reports")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if options.num < 1:
        parser.error("--num is at least 1.")
    import pixellm
    from pixellm.checkpoint.fingerprint import fingerprint_model
    from pixellm.evaluation.report import installed_versions

    build_fixtures(options.out, options.photos, options.num)
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/benchmark_fixtures.py", *sys.argv[1:]]),
        "note": "composed from annotations of COCO photos; not the benchmarks",
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "versions": installed_versions(),
        "model": options.model,
        "weights": fingerprint_model(options.model),
        "rows": [],
    }
    engine = pixellm.load(options.model)
    print(HEAD)
    for name in NAMES:
        for folder, run in runs_of(name, options.model, options.out).items():
            report["rows"].append(evaluate(run, engine, options.out / folder))
            print(show(report["rows"][-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
