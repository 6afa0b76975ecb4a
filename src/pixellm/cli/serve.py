"""The command ``pixellm serve``: reads options, binds the address, loads the model and serves."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pixellm.cli.console import say
from pixellm.cli.options import LoadOptions, MinScore, number, spread

KEYS_VARIABLE = "PIXELLM_API_KEYS"


app = typer.Typer()


@app.command(
    epilog="Examples:\n\n    pixellm serve"
    "\n\n    pixellm serve --host 0.0.0.0 --port 80 --api-keys keys.txt"
)
@spread
def serve(
    options: LoadOptions,
    host: Annotated[
        str, Option(help="Address to listen at; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_keys: Annotated[
        Path | None,
        Option(
            help="File of keys, one a line (- for standard input); or "
            f"{KEYS_VARIABLE}, with commas between."
        ),
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Questions answered side by side.")] = 16,
    queue: Annotated[int, Option(min=0, help="More that may wait; others get 429.")] = 64,
    timeout: Annotated[float, number("Seconds for an answer, waiting included.")] = 120,
    max_megabytes: Annotated[float, number("Largest request.", max=1e6)] = 16,
    max_megapixels: Annotated[float, number("Largest image.", max=1e6)] = 25,
    max_question: Annotated[int, Option(help="Characters of all texts of a request.")] = 8000,
    max_answer: Annotated[int, Option(help="Tokens of an answer.")] = 512,
    remote_images: Annotated[
        bool, Option("--remote-images", help="Fetch images from public addresses.")
    ] = False,
    page: Annotated[bool, Option("--page/--no-page", help="The page at /.")] = True,
    min_score: MinScore = None,
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to try it on; Ctrl-C ends it."""
    from pixellm.serving.server import bind, run
    from pixellm.serving.settings import MEBIBYTE, Settings

    settings = Settings(
        queue=queue,
        timeout=timeout,
        max_body=int(max_megabytes * MEBIBYTE),
        max_pixels=int(max_megapixels * 1e6),
        max_question=max_question,
        max_answer=max_answer,
        api_keys=_read_keys(api_keys),
        remote_images=remote_images,
        page=page,
    )
    bound = bind(host, port)
    engine = options.load(max_batch=batch_size, min_mask_score=min_score)
    engine.warm_up()
    from pixellm.serving.app import create_app

    shown = f"[{host}]" if ":" in host else host
    if not settings.api_keys and not _is_loopback(host):
        say("Anyone who reaches this address may ask; --api-keys would ask for a key.", err=True)
    address = f"http://{shown}:{bound.getsockname()[1]}"
    run(
        create_app(engine, options.model, settings),
        bound,
        settings,
        on_ready=lambda: say(f"Serving {options.model} at {address} (Ctrl-C ends it)", err=True),
    )


def _read_keys(file: Path | None) -> tuple[str, ...]:
    from pixellm.files import read_input

    named = os.environ.get(KEYS_VARIABLE, "").split(",")
    try:
        lines = read_input(file).decode("utf-8").splitlines() if file is not None else []
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no UTF-8 text; write one key a line.") from None
    keys = tuple(key.strip() for key in (*lines, *named) if key.strip())
    if file is not None and not keys:
        raise ValueError(f"{file} holds no key; write one a line.")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
