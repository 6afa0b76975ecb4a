"""Which families of language models and vision encoders PixelLM works with, tried one by one.

    python benchmarks/families.py                       # the whole table, on the screen
    python benchmarks/families.py --out docs/families.md
    python benchmarks/families.py gemma2 swin           # these alone

Random weights, tiny sizes, no download. Exit code 1 where a family fails without a sentence, or a
difference is larger than rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

from measuring.families import Outcome, check_text_family, check_vision_family, try_family
from measuring.family_configs import TEXT_FAMILIES, VISION_FAMILIES

LARGEST_ROUNDING = 2e-3
"""Of logits of masks and words in float32, whose values lie around 1 to 10."""

TEXT_COLUMNS = ("logits", "packed", "trains", "loaded", "masks", "LoRA attached", "LoRA merged")
VISION_COLUMNS = ("features", "normalised", "padding", "trains", "loaded", "masks")
HEAD = """# Families of language models and vision encoders

Written by `python benchmarks/families.py --out docs/families.md` with torch {torch} and
transformers {transformers}: tiny random models of each family, in float32 on a CPU, without a
download. Each is written by its own class, made into a PixelLM as `pixellm init` does it, and
compared. Figures are largest absolute differences.

- **logits**: on text, to the family's own model for causal language modelling;
- **packed**: last states of dialogues that share a row in training, to those of dialogues alone;
- **features**: the encoder's hidden states as PixelLM reads them, to the family's own class;
- **normalised**: images get the mean, deviation and filter of the encoder's
  `preprocessor_config.json`;
- **padding**: visible features where the canvas's padding changes; "-" where the encoder can't
  leave padding out (it then sees grey there, as in training);
- **trains**: eight steps lower the loss; **loaded**: losses and mask logits after saving and
  loading; **masks**: mask logits of an answer written step by step, to one pass over all of it;
- **LoRA attached**: logits before and after attaching LoRA and token rows; **LoRA merged**: with
  trained adapters attached and folded in.

A family that can't work says so in one sentence when the model is made.
"""


def main() -> int:
    """Try families and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types; all where none is named")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    known = {*TEXT_FAMILIES, *VISION_FAMILIES}
    if unknown := [name for name in options.families if name not in known]:
        parser.error(f"no configuration of {', '.join(unknown)}; known are {', '.join(known)}")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    wanted = options.families or known
    text, vision = [], []
    for name in [n for n in (*TEXT_FAMILIES, *VISION_FAMILIES) if n in wanted]:
        is_text = name in TEXT_FAMILIES
        with tempfile.TemporaryDirectory() as folder:
            check = check_text_family if is_text else check_vision_family
            outcome = try_family(check, name, Path(folder))
        (text if is_text else vision).append(outcome)
        print(name, outcome.findings, outcome.refusal or outcome.failure, file=sys.stderr)
    tables = [
        _table("Language models", text, TEXT_COLUMNS),
        _table("Vision encoders", vision, VISION_COLUMNS),
    ]
    head = HEAD.format(torch=torch.__version__, transformers=transformers.__version__)
    page = "\n".join([head, *(table for table in tables if table)])
    if options.out is None:
        print(page)
    else:
        options.out.write_text(page, encoding="utf-8")
    return int(any(not holds(outcome) for outcome in (*text, *vision)))


def holds(outcome: Outcome) -> bool:
    """Whether a family works to rounding, or is refused in a sentence."""
    if outcome.failure:
        return False
    values = outcome.findings.values()
    return bool(outcome.refusal) or all(
        value if isinstance(value, bool) else isinstance(value, str) or value <= LARGEST_ROUNDING
        for value in values
    )


def _table(title: str, outcomes: Sequence[Outcome], columns: Sequence[str]) -> str:
    if not outcomes:
        return ""
    lines = [
        f"## {title}",
        "",
        f"| family | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    refused = []
    for outcome in outcomes:
        if sentence := outcome.refusal or outcome.failure:
            refused.append(f"- `{outcome.family}`: {sentence}")
            continue
        parts = outcome.findings.items()
        refused += [f"- `{outcome.family}`, {n}: {v}" for n, v in parts if isinstance(v, str)]
        cells = (_cell(outcome.findings.get(column)) for column in columns)
        lines.append(f"| `{outcome.family}` | {' | '.join(cells)} |")
    if refused:
        lines += ["", "Refused:", "", *refused]
    return "\n".join([*lines, ""])


def _cell(value: float | bool | str | None) -> str:
    if isinstance(value, str):
        return "refused"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}"


if __name__ == "__main__":
    sys.exit(main())
