"""Files that are written whole or not at all, and damaged ones that are set aside, not lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = "tmp"
"""The suffix of what is not finished yet: whoever owns the folder may remove it."""
DAMAGED = "damaged"
"""What is added to the name of a file that could not be read."""


def typed_path(text: str) -> Path:
    """A path as typed; shells leave the ``~`` of ``--out=~/x`` to the program."""
    if not text.strip():  # of a shell's variable that is not set; "." is another folder
        raise ArgumentTypeError("is empty: name a place")
    return Path(text).expanduser()


def in_the_way(folder: Path) -> Path | None:
    """What stands where ``folder`` or one above it should be and is none; None if nothing does."""
    path = folder.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    return None if there.is_dir() else there


def cache_folder() -> Path:
    """Where what can be made again is kept between calls, for all projects of a user."""
    if chosen := os.environ.get("VPEFT_BENCH_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "vpeft_bench"


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A file beside ``path`` to be written; at the end it gets that name.

    ``path`` is at any moment absent, the old file or the whole new one.
    Missing folders are created.

    Args:
        path: the file to be replaced.
        durable: wait until it is on the disk, so that a power cut does not take it back. What is
            rewritten again and again, and is worth little alone, can do without.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.{TEMPORARY}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary)):
            error.filename, error.filename2 = str(path), None  # the one that the user knows
        raise
    if durable:
        sync(path.parent)  # the new name is an entry of the folder, which needs its own


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` to be filled; at the end it gets that name.

    ``path`` is at any moment absent, the old folder or the whole new one.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        path.with_name(f".{path.name}.{uuid.uuid4().hex}.{TEMPORARY}") for _ in range(2)
    )
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write ``content`` as :func:`replacing` does.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporary(folder: Path) -> None:
    """Remove what writers that were killed have left in ``folder``; its owner alone may call it."""
    for left in folder.glob(f"*.{TEMPORARY}"):  # those without a dot are of earlier versions
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be read, so that a new one may take its place; its new path."""
    number, aside = 1, path.with_name(f"{path.name}.{DAMAGED}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{DAMAGED}{number}")
    os.replace(path, aside)
    return aside


def sha256(path: Path) -> str:
    """``sha256:`` and the digest of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
