"""The commands ``pixellm convert``, ``init`` and ``export-lm``: foreign weights in and out.

Reads options, shows a bar and calls :mod:`pixellm.checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pixellm.cli.console import import_quietly, open_console, say

_Out = Annotated[Path, Option(help="Folder to write; new or empty.")]
_Tower = Annotated[
    str | None, Option(help="Folder or hub id of the model's CLIP; by default as it names.")
]
_Revision = Annotated[str | None, Option(help="Commit, tag or branch on the hub.")]


app = typer.Typer()


@app.command(
    epilog="Examples:\n\n    pixellm convert PixelLM-7B --vision-tower "
    "openai/clip-vit-large-patch14-336 --out pixellm-7b"
    "\n\n    pixellm convert pixellm-7b --to released --out PixelLM-7B-again"
)
def convert(
    source: Annotated[str, Argument(help="Folder or hub id of a released PixelLM.")],
    out: _Out,
    vision_tower: _Tower = None,
    to: Annotated[str, Option(help="pixellm, or released for the way back.")] = "pixellm",
    revision: _Revision = None,
) -> None:
    """Turn released PixelLM weights into a checkpoint, or such a checkpoint back."""
    from pixellm.files import check_new_folder

    if to not in ("pixellm", "released"):
        raise ValueError(f"--to is pixellm or released, not {to!r}.")
    if to == "released" and (vision_tower or revision):
        raise ValueError(
            "--vision-tower and --revision are for released weights, not --to released."
        )
    check_new_folder(out)
    from pixellm.cli.display import counted_progress

    released = import_quietly("pixellm.checkpoint.released")
    with counted_progress(open_console(stderr=True), "MiB converted", transient=True) as show:

        def progress(done: int, total: int) -> None:
            show(done >> 20, total >> 20)

        if to == "released":
            released.convert_to_released(source, out, progress=progress)
        else:
            released.convert_released(
                source, out, vision_tower, revision=revision, progress=progress
            )
    say(f"Wrote {out}")


@app.command(
    epilog="Examples:\n\n    pixellm init --llava llava-hf/llava-1.5-7b-hf --out start"
    "\n\n    pixellm init --llm HuggingFaceTB/SmolLM2-135M --vision "
    "openai/clip-vit-base-patch16 --out start"
)
def init(
    out: _Out,
    llava: Annotated[str | None, Option(help="Folder or hub id of a LLaVA.")] = None,
    llm: Annotated[str | None, Option(help="Folder or hub id of a language model.")] = None,
    vision: Annotated[str | None, Option(help="Folder or hub id of a vision encoder.")] = None,
    vision_tower: _Tower = None,
    revision: _Revision = None,
    template: Annotated[
        str | None,
        Option(
            help="Of dialogues, with --llm: own, vicuna or compact; by default the language "
            "model's own chat template, or vicuna where it has none."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        Option(min=32, help="Side of the canvas in pixels, with --llm; 448 if not given."),
    ] = None,
    seed: Annotated[int, Option(help="Of the fresh parts.")] = 0,
) -> None:
    """Make an untrained PixelLM from a LLaVA, or from a language model and a vision encoder."""
    if (llava is None) == (llm is None) or (llm is None) != (vision is None):
        raise ValueError("Pass either --llava, or --llm together with --vision.")
    if llava is None and (vision_tower or revision):
        raise ValueError("--vision-tower and --revision go with --llava; leave them out.")
    if llava is not None and (template or image_size):
        raise ValueError("--template and --image-size go with --llm; a LLaVA brings its own.")
    if template not in (None, "own", "vicuna", "compact"):
        raise ValueError(f"--template is own, vicuna or compact, not {template!r}.")
    from pixellm.files import check_new_folder

    check_new_folder(out)
    from pixellm.checkpoint.convert_llava import init_from_llava
    from pixellm.checkpoint.init_parts import CANVAS, init_from_parts

    if llava is not None:
        init_from_llava(llava, out, vision_tower, revision=revision, seed=seed)
    else:
        init_from_parts(
            str(llm),
            str(vision),
            out,
            template=template,
            image_size=image_size or CANVAS,
            seed=seed,
        )
    say(f"Wrote {out}")


@app.command("export-lm", epilog="Example:\n\n    pixellm export-lm runs/mine --out mine-lm")
def export_lm(
    checkpoint: Annotated[
        str, Argument(help="A name of `pixellm models`, a folder, a run's folder, or a hub id.")
    ],
    out: Annotated[Path, Option(help="Folder to write; new or empty.")],
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a model's language model alone, for lm-evaluation-harness, VLMEvalKit and others."""
    from pixellm.files import check_new_folder

    check_new_folder(out)
    pick_dtype = import_quietly("pixellm.engine").pick_dtype
    library = import_quietly("pixellm.checkpoint.export")
    import torch

    chosen = pick_dtype(dtype, torch.device("cpu"))
    say(f"Wrote {library.export_language_model(checkpoint, out, dtype=chosen)}")
