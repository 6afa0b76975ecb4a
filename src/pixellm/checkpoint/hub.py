"""Directories and hub ids to files on this disk, with every failure told in one sentence."""

from __future__ import annotations

import errno
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from pixellm.files import read_json
from pixellm.models import PublishedModel, is_hub_id

MODEL_FILES = ("*.json", "*.model", "*.safetensors", "*.bin", "*.jinja")
"""What a model needs of a repository."""


def fetch_directory(
    source: str | Path, revision: str | None = None, patterns: tuple[str, ...] = MODEL_FILES
) -> Path:
    """A directory as it is, or a hub repository's files, downloaded once into the cache.

    Args:
        source: directory or hub id.
        revision: commit, tag or branch on the hub; ignored for a directory.
        patterns: files wanted of a repository.

    Raises:
        FileNotFoundError: no such directory, repository or revision, or not in the cache while
            the hub cannot be reached.
        PermissionError: the repository is gated.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name = str(source)
    if not is_hub_id(name):
        raise FileNotFoundError(
            f"There is no directory {name!r}, and it is no hub id of the form owner/name."
        )
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _explain(error, name, revision) from error
    return Path(found)


def fetch_published(model: PublishedModel) -> Path:
    """The directory of a published model, and its vision tower; what is missing is downloaded.

    A download that was cut off goes on where it was.
    """
    if not (directory := find_downloaded(model)):
        bars_were_off = are_progress_bars_disabled()
        enable_progress_bars()
        try:
            for hub_id, patterns in _parts(model).items():
                fetch_directory(hub_id, patterns=patterns)
        finally:
            if bars_were_off:
                disable_progress_bars()
        directory = find_downloaded(model)
    if not directory:
        raise FileNotFoundError(
            f"The hub's repository {model.hub_id} lacks files of {model.name} in {model.folder}."
        )
    return directory


def find_downloaded(model: PublishedModel) -> Path | None:
    """The directory of a published model in the hub's cache; None where a file is missing."""
    found = {}
    for hub_id, patterns in _parts(model).items():
        try:
            found[hub_id] = Path(
                snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=True)
            )
        except (LocalEntryNotFoundError, OSError):
            return None
    directory = found[model.hub_id] / model.folder
    towers = [found[model.tower]] if model.tower else []
    complete = _is_complete(directory) and all(map(_is_complete, towers))
    return directory if complete else None


def _parts(model: PublishedModel) -> dict[str, tuple[str, ...]]:
    """The repositories of a model, with the files wanted of each."""
    prefix = f"{model.folder}/" if model.folder else ""
    parts = {model.hub_id: tuple(prefix + pattern for pattern in MODEL_FILES)}
    return parts | ({model.tower: MODEL_FILES} if model.tower else {})


def _is_complete(directory: Path) -> bool:
    """Whether a configuration is there, and all weights, of an index where there is one."""
    if not (directory / "config.json").is_file():
        return False
    indices = list(directory.glob("*.index.json"))
    shards = {name for index in indices for name in read_json(index)["weight_map"].values()}
    weights = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    return bool(weights) and all((directory / name).is_file() for name in shards)


def _explain(error: Exception, name: str, revision: str | None) -> OSError:
    """The error of the hub as one sentence that says what to do."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OSError(f"The disk is full; {name} needs room in the hub's cache.")
    wanted = name if revision is None else f"{name} at revision {revision}"
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"The hub asks for permission to download {name}; accept its terms on the hub and log "
            "in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"The hub has no revision {revision!r} of {name}; check its name.")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"The hub has no repository {name}, or it is private; check the name or log in with "
            "`hf auth login`."
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(f"The hub's repository {wanted} lacks a file that is needed.")
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{wanted} is not in the cache and HF_HUB_OFFLINE forbids to download it; unset "
            "HF_HUB_OFFLINE or pass a directory."
        )
    return FileNotFoundError(
        f"{wanted} is not in the cache and the hub cannot be reached; check the network or pass "
        "a directory."
    )
