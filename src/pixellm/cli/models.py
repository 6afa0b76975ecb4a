"""The commands ``pixellm models`` and ``pixellm download``.

Shows :mod:`pixellm.models` and what of it lies in the cache.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument

from pixellm.cli.console import open_console, say

app = typer.Typer()


@app.command(epilog="Example:\n\n    pixellm models")
def models() -> None:
    """List the models that go by a name: size, memory, licence, what they know, whether here."""
    from pixellm.checkpoint.sources import is_here
    from pixellm.cli.display import print_table
    from pixellm.models import PRECISIONS, PUBLISHED, readable_size
    from pixellm.report.page import Table

    rows: list[tuple[str, ...]] = [("model", "weights", *PRECISIONS, "here")]
    for model in PUBLISHED:
        sizes = [readable_size(model.memory(precision)) for precision in PRECISIONS]
        count = f"{model.parameters / 1e6:,.1f} M"
        rows.append((model.name, count, *sizes, "yes" if is_here(model) else "no"))
    print_table(open_console(), Table("", rows, "models"))
    for model in PUBLISHED:
        say(f"{model.name}: {model.knows}. {model.licence}.")
    say(
        "Sizes are of the weights in memory; what is computed comes on top. Use one with --model, "
        "fetch it before with: pixellm download NAME"
    )


@app.command(epilog="Example:\n\n    pixellm download pixellm-7b")
def download(name: Annotated[str, Argument(help="Of `pixellm models`, or a hub id.")]) -> None:
    """Download a model into the hub's cache; goes on where a stopped download was."""
    from pixellm.checkpoint.sources import resolve_source
    from pixellm.models import find_published

    model = find_published(name)
    if model is not None and not model.hub_id:
        say(f"{name} is part of the package; there is nothing to download.")
        return
    if model is not None:
        say(f"{name} comes from {model.hub_id}. Licence: {model.licence}.")
        from pixellm.checkpoint.hub import fetch_published

        directory = fetch_published(model)
    else:
        resolve_source(name)  # a wrong name is told
        from pixellm.checkpoint.hub import fetch_directory

        directory = fetch_directory(name)
    say(f"{name} is here: {directory}")
