"""Files on disk: whole or not at all, never over what someone else wrote, one writer at a time.

Files and folders are written under another name and renamed; logs of JSON lines grow at their end
and survive a kill. A file that pixellm wrote can be told by the name of its maker, which images
and pages carry, by the keys of its JSON, or by its folder's list of files; nothing else is ever
replaced. What can't be written is refused with an OSError.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

MAKER = "pixellm"
"""Who wrote a file: ``generator`` in pages, ``Software`` or a comment in images."""

STANDARD = "-"
"""Stands for standard input or output wherever a file is named."""

MARKED_PAGE = f'<meta name="generator" content="{MAKER}">'
MARKED_TEXT = f"<!-- generator: {MAKER} -->"

_MARK = re.compile(rb'(?:generator|Software)["\s:=\x00]{1,4}(?:content=")?' + MAKER.encode())
_MARKED_BYTES = 1 << 16
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
_DISK_WORDS = re.compile(
    r"No space left|quota exceeded|File too large|inline_container\.cc|iostream error", re.I
)
"""What torch and safetensors say, in errors of their own, when a disk takes no more."""

_LIST_NAME = ".pixellm.json"
_ASIDE = ".writing-"

STANDARD_OUTPUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
"""Other names of what :data:`STANDARD` stands for; commands take them alike."""

PIPE_PATIENCE = 10.0
"""Seconds that a pipe's reader may take to come."""

LOCK_NAME = ".lock"
"""Lies in a folder that one process at a time writes."""


class OccupiedError(FileExistsError, ValueError):
    """Something lies where pixellm is to write, and is not its own."""


# Files.


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """A JSON document with a line break at its end, in ASCII: readable in any locale."""
    return (json.dumps(values, indent=2) + "\n").encode("ascii")


def parse_json(content: bytes | str) -> Any:
    """Values of a JSON document in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no JSON, holds NaN or infinity, or is nested too deep.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def user_cache() -> Path:
    """Where things are kept that can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / MAKER


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """A file to read, or standard input for "-"."""
    if str(path) == STANDARD:
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


def read_input(path: Path) -> bytes:
    """The content of a file, or of standard input for "-"."""
    with open_input(path) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or in standard input for "-".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds no object.
    """
    try:
        values = parse_json(read_input(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object).")
    return values


def plain_cell(value: object) -> str:
    """A cell of a CSV file that a spreadsheet shows as text and never computes."""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def is_stream(path: Path) -> bool:
    """Whether a name stands for standard output, a pipe or a device: nothing is kept there."""
    return str(path) == STANDARD or (path.exists() and not path.is_file() and not path.is_dir())


def open_stream(path: Path, patience: float = PIPE_PATIENCE) -> IO[bytes]:
    """Open a pipe or device for writing, no disk; somebody has to come and read a pipe."""
    if path.is_block_device():
        raise OSError(errno.EINVAL, "it is a disk", str(path))
    until = time.monotonic() + patience
    while True:
        try:
            number = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= until:
                raise OSError(errno.ENXIO, "nobody reads it", str(path)) from None
            time.sleep(0.05)
        else:
            os.set_blocking(number, True)
            return os.fdopen(number, "wb")


def write_files(files: Mapping[Path, bytes], folder: Path | None = None) -> None:
    """Write all files or none: each is written aside in its folder, then all are renamed.

    Existing files are replaced (see :func:`check_file`); a link's target is, not the link. What is
    no regular file, such as a pipe, is written to directly. Folders are made where missing, also
    ``folder`` where no file lies in it, and removed again on failure.
    """
    aside: dict[Path, Path] = {}
    made: list[Path] = []
    path = folder
    try:
        if folder is not None:
            _make_folder(folder, made)
        for path, content in files.items():
            if is_stream(path):
                with open_stream(path) as stream:
                    stream.write(content)
                continue
            final = path.resolve()
            _make_folder(final.parent, made)
            target = _place_aside(final)
            aside[target] = final
            _write_synced(target, content)
        for target, path in aside.items():
            target.replace(path)
    except BaseException as error:
        for target in aside:
            target.unlink(missing_ok=True)
        for parent in reversed(made):
            with suppress(OSError):  # someone else has written there
                parent.rmdir()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise type(error)(f"{path} cannot be written ({reason}); choose another place.") from error


def check_file(path: Path, keys: Iterable[str] = (), start: bytes = b"") -> None:
    """Refuse a place where no file can be written, or where one lies that is not ours.

    Called before the work whose result is to be written; makes nothing. An empty file may be
    replaced, one that names its maker, a JSON document with all of ``keys``, and one that begins
    with ``start``.
    """
    if is_stream(path):
        if path.is_block_device():
            raise OccupiedError(f"{path} cannot be written: it is a disk; name a file.")
        return
    check_place(path)
    final = path.resolve()
    if final.is_file() and final.stat().st_size and not _is_ours(final, frozenset(keys), start):
        raise OccupiedError(
            f"{path} exists and was not written by {MAKER}; name another file or move it away."
        )


def check_place(path: Path) -> None:
    """Refuse a folder, and a file below a file or in a folder that is closed to writing."""
    final = path.resolve()
    if final.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder; name a file.")
    _check_parent(final, path)


def is_same_file(path: Path, other: Path) -> bool:
    """Whether both names lead to one file, through links too; neither need exist."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


# Folders.


def check_folder(path: Path) -> None:
    """Refuse a folder that can't be made or written in."""
    if str(path) == STANDARD:
        raise OSError("A folder is written, which can't go to standard output; name one.")
    _check_parent(path.resolve() / _LIST_NAME, path)


def check_new_folder(path: Path) -> None:
    """Refuse a folder that can't be made, or that holds something."""
    check_folder(path)
    if path.exists() and any(path.iterdir()):
        raise OccupiedError(f"{path} exists already and is not empty; name another folder.")


def claim_folder(path: Path) -> None:
    """Make a new or empty folder ours, to write there what we like; one claimed before stays so."""
    if not (path / _LIST_NAME).is_file():
        check_new_folder(path)
        _write_list(path, {})


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell a full or lost disk in one sentence, whichever library has met it inside."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in _DISK_ERRORS
        if not (known or _DISK_WORDS.search(str(error))):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "disk full"
        raise OSError(
            f"{path} cannot be written ({reason}); make room and run the same again."
        ) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, new or empty, that becomes ``out`` when the block ends well."""
    out = out.absolute()
    check_new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(out)
    partial.mkdir(exist_ok=True)
    with locked(partial):
        try:
            _clear_folder(partial)  # of a process that was killed
            with explained(out):
                yield partial
            (partial / LOCK_NAME).unlink(missing_ok=True)
            if out.exists():
                out.rmdir()
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def replace_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Write a folder aside and exchange it for the old one, if there is one.

    The old folder stays until the new one has its name. A kill between the two renames leaves
    both under other names: :func:`finish_exchange`, at the next start or try, sets this right.
    """
    finish_exchange(final)
    partial = _partial_name(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with explained(final):
            write(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        final.replace(_old_name(final))
    partial.replace(final)
    finish_exchange(final)


def finish_exchange(final: Path) -> None:
    """Give the new folder its name, where a kill came in between, and remove the old one."""
    old = _old_name(final)
    if not old.exists():
        return
    if not final.exists():  # the new one is complete, or the old one would have its name
        partial = _partial_name(final)
        (partial if partial.exists() else old).replace(final)
    if old.exists():
        remove_folder(old)


def remove_folder(path: Path) -> None:
    """Rename before removing, so that a kill half-way leaves no half of a folder in sight."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def check_listed(folder: Path, patterns: Iterable[str]) -> None:
    """Refuse a folder with a file of these names that :func:`merged_folder` did not put there."""
    check_folder(folder)
    listed = _read_list(folder)
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or _digest(path) not in listed.get(name, ()):
            raise OccupiedError(
                f"{path} was not written by {MAKER}, or changed since; move it away, or name "
                "another folder."
            )


def check_merged(folder: Path) -> None:
    """Refuse a folder that holds something, unless it is of :func:`merged_folder` and unchanged.

    Files that others have put beside those of the last merge stay, and do no harm.
    """
    if not (folder / _LIST_NAME).is_file():
        check_new_folder(folder)
        return
    names = [name for name in _read_list(folder) if (folder / name).exists()]
    check_listed(folder, map(glob.escape, names))


@contextmanager
def merged_folder(folder: Path) -> Iterator[Path]:
    """A folder whose files take the place of those of the last such merge when the block ends well.

    Files of that merge that are not made again are removed, unless they changed since; all others
    in ``folder``, which must exist, stay. After a kill at any moment the same can be done again.

    Raises:
        OccupiedError: a file that is not ours would be replaced; nothing has been moved then.
    """
    for left_over in folder.glob(f"{_ASIDE}*"):  # of a process that was killed
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))
    try:
        yield aside
        _merge(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(aside: Path, folder: Path) -> None:
    paths = (path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    new = {path.as_posix(): _digest(aside / path) for path in sorted(paths)}
    listed = _read_list(folder)
    check_listed(folder, [glob.escape(name) for name in new if (folder / name).exists()])
    both = {**listed, **{name: [*listed.get(name, ()), digest] for name, digest in new.items()}}
    _write_list(folder, both)  # a kill from here on leaves old and new files, and all are listed
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(folder / name)
    for name in listed.keys() - new.keys():
        path = folder / name
        if path.is_file() and _digest(path) in listed[name]:
            path.unlink()
    _write_list(folder, {name: [digest] for name, digest in new.items()})


# Locks.


def remove_unused(folder: Path) -> None:
    """Remove a folder that holds nothing, or its lock alone."""
    # Some versions of filelock take the lock's file away themselves.
    if {path.name for path in folder.iterdir()} <= {LOCK_NAME}:
        (folder / LOCK_NAME).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Be the only process and thread inside for a file or folder; gives up the lock at the end.

    Args:
        path: what is written inside. The lock itself is ``.lock`` in the folder, or a hidden file
            beside the file; a process that was killed does not hold it any more.
        patience: seconds to wait for another process.

    Raises:
        OSError: another process is writing there.
    """
    is_folder = path.is_dir()
    place = path / LOCK_NAME if is_folder else path.with_name(f".{path.name}.lock")
    from filelock import FileLock, Timeout  # older versions bring asyncio along

    lock = FileLock(place, timeout=patience, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"Another process is writing {path}; wait for it or choose another place."
        ) from None
    try:
        yield
    finally:
        if not is_folder:  # nothing is left beside a user's file
            with suppress(OSError):  # Windows keeps an open file
                place.unlink()
        lock.release()


# Logs.


class LineLog:
    """A file of JSON lines that only grows; a context manager. See :func:`locked`.

    After a kill at any moment the file holds whole lines and perhaps a torn end, which is cut off
    when it is opened again; what can't be the beginning of our own line is refused instead, by a
    ValueError. The file is made where missing, with its folder; every line begins with ``start``.
    """

    def __init__(self, path: Path, start: str = "{") -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._is_new = not path.exists()
        whole = 0 if self._is_new else check_log(path, start)
        # Without a buffer: what a full disk has refused must not be written at the end after all.
        self._file = path.open("ab", buffering=0)
        self.cut(whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; an empty one that was made here goes."""
        self._file.close()
        if self._is_new and not self.end:
            self.path.unlink(missing_ok=True)

    def append(self, lines: bytes) -> None:
        """Put lines on disk, all or none."""
        try:
            left = memoryview(lines)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._file.truncate(self.end)
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or str(error)
            raise type(error)(
                f"{self.path} cannot be written ({reason}); make room and run the same again."
            ) from error
        self.end += len(lines)

    def cut(self, end: int) -> None:
        """Drop what lies behind the byte ``end``."""
        self._file.truncate(end)
        self.end = end


def check_log(path: Path, start: str = "{") -> int:
    """The byte behind the last whole line of a log; it is refused as by :class:`LineLog`."""
    begin = start.encode()
    with path.open("rb") as file:
        head = file.read(len(begin))
        whole = _end_of_lines(file)
        file.seek(whole)
        tail = file.read(len(begin))
    if not (begin.startswith(head) and begin.startswith(tail)):
        raise ValueError(
            f"{path} is no such file as {MAKER} writes here; choose another, or move it away."
        )
    return whole


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a log with their numbers, counted from 1; a torn end is passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


# Inside.


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON")


def _is_ours(path: Path, keys: frozenset[str], start: bytes) -> bool:
    """Whether a file names its maker at its beginning or end, or has our own format."""
    with path.open("rb") as file:
        head = file.read(_MARKED_BYTES)
        file.seek(max(0, path.stat().st_size - _MARKED_BYTES))
        if _MARK.search(head) or _MARK.search(file.read()):
            return True
    if start and head.startswith(start):
        return True
    try:
        return bool(keys) and head.startswith(b"{") and keys <= read_json(path).keys()
    except ValueError:
        return False


def _check_parent(final: Path, path: Path) -> None:
    """Refuse a place below a file, or in a folder that is closed to writing."""
    parent = next(p for p in final.parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: {parent} is closed to writing.")


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; notes which of them were not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _place_aside(final: Path) -> Path:
    """Where a file's content goes before it takes its place."""
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return final.with_name(f"{_ASIDE}{os.getpid()}-{secrets.token_hex(4)}")


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _partial_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _old_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _clear_folder(folder: Path) -> None:
    """Remove everything but the lock that the caller holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_list(folder: Path) -> dict[str, list[str]]:
    """Names of the files that were merged into a folder -> digests that they may have."""
    path = folder / _LIST_NAME
    if not path.is_file():
        return {}
    files = read_json(path).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{path} is damaged; move it and the files beside it away.")
    return files


def _write_list(folder: Path, files: Mapping[str, list[str]]) -> None:
    write_files({folder / _LIST_NAME: json_bytes({"files": dict(files)})})


def _end_of_lines(file: Any) -> int:
    """The byte behind the last line break of a file, 0 without one; reads from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _MARKED_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
