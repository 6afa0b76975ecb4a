"""Files from outside, damaged by a seed: used, listed as bad rows or refused, and nothing else.

`make fuzz` runs more of them, `PIXELLM_FUZZ_CASES` says how many of each kind, `PIXELLM_FUZZ_SEED`
where their seeds begin, `PIXELLM_FUZZ_COUNTS` a folder where each kind's counts are added up.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import damaged_files
import damaged_jobs
import damaged_layouts
import pytest
from damaged_files import COMPARED
from damaged_files import KINDS as FILES
from damaged_jobs import KINDS as JOBS
from damaged_layouts import LAYOUTS

KINDS = {**FILES, **JOBS, **LAYOUTS}
CASES = int(os.environ.get("PIXELLM_FUZZ_CASES", "12"))
SEED = int(os.environ.get("PIXELLM_FUZZ_SEED", "0"))
COUNTS = os.environ.get("PIXELLM_FUZZ_COUNTS", "")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_without_damage_are_used(
    kind: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (damaged_files, damaged_jobs, damaged_layouts):
        monkeypatch.setattr(module, "mutate_values", lambda values, rng: values)
        monkeypatch.setattr(module, "mutate_bytes", lambda data, rng: data)
        monkeypatch.setattr(module, "to_json", lambda values, rng: json.dumps(values).encode())
    arguments = (tiny_model_dir,) if kind == "checkpoint" else ()
    before = COMPARED.total()
    assert KINDS[kind](tmp_path, random.Random(kind), *arguments) == "used"
    assert COMPARED.total() > before


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_an_answer_or_a_sentence(
    kind: str, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    faults = []
    COMPARED.clear()
    for number in range(SEED, SEED + CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = (tiny_model_dir,) if kind == "checkpoint" else ()
        try:
            counts[KINDS[kind](folder, random.Random(f"{kind} {number}"), *arguments)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts[type(error).__name__] += 1
            faults.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(folder, ignore_errors=True)
    with capsys.disabled():
        print(f"\n{kind:12} " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    if COUNTS:
        keep_counts(Path(COUNTS) / f"{kind}.json", counts, COMPARED)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("kind", "number"), [("photos", 60027)])
def test_what_was_found_once_stays_mended(kind: str, number: int, tmp_path: Path) -> None:
    ended = KINDS[kind](tmp_path, random.Random(f"{kind} {number}"))
    assert ended in ("used", "bad rows", "refused")


def keep_counts(path: Path, counts: Counter[str], compared: Counter[str]) -> None:
    """Add to what earlier seeds came to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    kept = {"seeds": [*known.get("seeds", ()), [SEED, SEED + CASES]]}
    for name, numbers in (("counts", counts), ("compared", compared)):
        kept[name] = dict(sorted((Counter(known.get(name, {})) + numbers).items()))
    path.write_text(json.dumps(kept))
