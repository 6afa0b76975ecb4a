"""Directories and hub ids to files on this disk, with every failure told in one sentence.

Knows the Hugging Face hub and its cache; it knows no model.
"""

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

MODEL_FILES = ("*.json", "*.model", "*.safetensors", "*.bin", "*.jinja")
"""What a model needs of a repository."""


def is_hub_id(name: str) -> bool:
    """Whether a name is shaped like ``owner/name`` rather than like a path."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


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
