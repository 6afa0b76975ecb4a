"""Where models come from: names resolve to the package's own, a directory, a run's, or a hub id.

Used by commands before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from pixellm.models import PublishedModel, find_published, is_hub_id, near_names

ADAPTER_CONFIG = "adapter_config.json"
"""What tells a folder of adapters from one of a whole model."""

EMBEDDED_DIR = Path(__file__).parent.parent / "weights"
"""Where the models that the package carries lie, one directory a name."""


def embedded_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(p.parent.name for p in EMBEDDED_DIR.glob("*/config.json"))


def is_here(model: PublishedModel) -> bool:
    """Whether a model can be loaded without the network."""
    if not model.hub_id:
        return model.name in embedded_models()
    from pixellm.checkpoint.hub import find_downloaded  # slow to import

    return find_downloaded(model) is not None


def resolve_source(source: str | Path) -> str:
    """Turn a name into a directory, or leave it as a hub id.

    A directory goes before a published model of its name, which is downloaded where it is not here.

    Raises:
        FileNotFoundError: neither the name of a model, a model directory, nor shaped like a hub id;
            or a published model that can't be downloaded.
        ValueError: a directory without a model.
    """
    name = str(source)
    if name in embedded_models():
        return str(EMBEDDED_DIR / name)
    path = Path(name).expanduser()
    if path.is_dir():
        for candidate in (path, path / "model"):
            if (candidate / "config.json").is_file() or is_adapter_folder(candidate):
                return str(candidate)
        steps = sorted(path.glob("checkpoints/step_*"))
        hint = (
            f" Its run goes on or was cut; {steps[-1]} is its newest checkpoint." if steps else ""
        )
        raise ValueError(f"{path} holds no model: config.json is missing.{hint}")
    published = find_published(name)
    if published is not None:
        from pixellm.checkpoint.hub import fetch_published  # slow to import

        return str(fetch_published(published))
    if not is_hub_id(name):
        raise FileNotFoundError(
            f"There is no model {name!r} and no directory, and it is no hub id of the form "
            f"owner/name; did you mean {' or '.join(near_names(name))}? See `pixellm models`."
        )
    return name


def is_adapter_folder(directory: Path) -> bool:
    """Whether a folder holds adapters rather than a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()
