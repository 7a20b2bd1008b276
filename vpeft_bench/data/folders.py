"""Finding a data set on disk, and saying what is wrong with what was found there."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vpeft_bench.data.schema import DataConfig
from vpeft_bench.errors import MissingDataError, Problem

NOT_DATA = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What file managers leave, in lower case; so is every name that begins with a dot."""
SHOWN = 5
"""How many problems of one kind in one file are spelled out before the rest are only counted."""


def candidate_folders(config: DataConfig) -> list[Path]:
    """Where the data set may lie: ``root`` itself or its folders below ``root``, likeliest first.

    ``root`` may also be the data set folder of a benchmark, where it has one of its names: another
    task's folder must not be read in its place.
    """
    if not config.root:
        return []
    root = Path(config.root).expanduser()
    if not config.folders:
        return [root]
    named = [root / folder for folder in config.folders]
    return [*named, root] if root.absolute().name in config.folders else named


def find_folder(config: DataConfig) -> Path:
    """The data set folder; raises MissingDataError, with directions, where there is none."""
    candidates = candidate_folders(config)
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked_at = ", ".join(str(folder.absolute()) for folder in candidates)
    what = f"no such folder: {looked_at}" if candidates else "its folder was not given"
    root = Path(config.root).expanduser()
    if config.root and root.exists() and not root.is_dir():
        what = f"data.root={config.root} is a file, not a folder"
    raise missing_data(config, [Problem(f"data={config.name}", what)])


def missing_data(config: DataConfig, problems: Sequence[Problem]) -> MissingDataError:
    """The error for ``problems``, the last of which also says how to get the data set in place."""
    *others, last = problems
    fix = f"{last.fix}\n{directions(config)}".strip()
    return MissingDataError([*others, replace(last, fix=fix)])


def directions(config: DataConfig) -> str:
    """Where to get the data set, where to put it and what to type."""
    lines = [f"{config.name} is {config.title}"]
    if config.source:
        lines.append(f"get it from {config.source}")
    if config.folders:
        place = Path(config.root).expanduser().absolute() / config.folders[0]
        elsewhere = " or ".join(f"DIR/{folder}" for folder in config.folders)
        lines.append(f"put it at {place}, or type data.root=DIR where it lies at {elsewhere}")
    else:
        lines.append("type data.root=DIR where DIR is the data set folder")
    return "\n".join(lines)


def is_left_over(name: str) -> bool:
    """Whether a file or folder of this name was left by a file manager, and is no data."""
    return name.startswith(".") or name.lower() in NOT_DATA


def read_text(file: Path) -> str:
    """The text of a list or of a table of names, without a byte order mark.

    Raises ValueError, with what is wrong, where it cannot be read or is not UTF-8.
    """
    try:
        return decoded(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def decoded(content: bytes) -> str:
    """The text of a file's content; raises ValueError, as :func:`read_text` does."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 (line {line}): save it as UTF-8"
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            what = "is UTF-16, as Windows PowerShell writes it: save it as UTF-8"
        raise ValueError(what) from error


def filled_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, without blanks around them, and their numbers from 1."""
    # Not splitlines(): a name may hold what Unicode counts as the end of a line.
    lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def missing_lists(folder: Path, files: Iterable[str]) -> list[Problem]:
    """One problem that names all of ``files`` that are not in ``folder``, or none."""
    missing = [file for file in files if not (folder / file).is_file()]
    return [Problem(str(folder), f"no {', '.join(missing)} in it")] if missing else []


class Folders:
    """The files in folders, each of which is listed once.

    Asking for every file instead takes long: test sets have 70,000 of them.
    """

    def __init__(self) -> None:
        """Nothing is listed yet."""
        self._listings: dict[str, tuple[str, dict[str, bool]]] = {}

    def has(self, path: str) -> bool:
        """Whether ``path`` is a file, or a link that leads to one."""
        folder, name = os.path.split(path)
        return name in self._listing(folder)[1]

    def file(self, path: str) -> str:
        """The file that ``path`` leads to: the same for all paths that lead to it."""
        folder, name = os.path.split(path)
        real_folder, files = self._listing(folder)
        return os.path.realpath(path) if files.get(name, True) else f"{real_folder}{os.sep}{name}"

    def _listing(self, folder: str) -> tuple[str, dict[str, bool]]:
        """Where the folder is, and for each file in it whether it is a link."""
        if folder not in self._listings:
            files = {}
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    files = {e.name: e.is_symlink() for e in entries if e.is_file()}
            self._listings[folder] = os.path.realpath(folder), files
        return self._listings[folder]


def missing_images(where: Path, paths: Iterable[str]) -> list[Problem]:
    """One problem that counts the ``paths`` listed by the file ``where`` that lead nowhere."""
    folders = Folders()
    missing = [path for path in paths if not folders.has(path)]
    if not missing:
        return []
    count = f"{len(missing)} of the pictures it lists are not there"
    lines = shortened(missing)
    if os.sep != "\\" and any("\\" in path for path in missing):
        lines.append("folders are separated by / in it, not by \\")
    return [Problem(str(where), f"{count}:", "\n".join(lines))]


def shortened(lines: Sequence[str]) -> list[str]:
    """The first few of ``lines``, and how many more there are."""
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], f"... and {more} more"] if more > 0 else list(lines)


def fingerprint(parts: Iterable[bytes]) -> str:
    """The sha256 of ``parts``, each preceded by its length so that no two sequences collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()
