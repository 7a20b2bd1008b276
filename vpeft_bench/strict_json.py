"""Dataclasses as JSON files: written whole or not at all, read strictly."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vpeft_bench.errors import Problem, RecordError
from vpeft_bench.files import write_atomically


class Versioned(Protocol):
    """A dataclass that knows the version of its structure."""

    __dataclass_fields__: typing.ClassVar[dict[str, Any]]

    @property
    def schema_version(self) -> int:
        """1, 2, ..."""


T = TypeVar("T", bound=Versioned)
V = TypeVar("V")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""From the JSON of one version to that of the next; the first one upgrades version 1."""


def write(value: Versioned, path: Path, parse: Callable[[str, Path], object]) -> None:
    """Write ``value`` so that ``path`` is at any moment absent, the old file or the new one.

    The same value always gives the same bytes. Missing directories are created.

    Args:
        parse: reads the text back before it is written, as :func:`parse` would.

    Raises:
        RecordError: ``parse`` would refuse the file, or some value is not JSON.
        OSError: the file cannot be written.
    """
    try:
        raw = dataclasses.asdict(value)
        text = json.dumps(raw, allow_nan=False, indent=1, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RecordError(path, f"not written, a value is not JSON: {error}") from error
    parse(text, path)

    write_atomically(path, f"{text}\n".encode())


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        RecordError: it is not UTF-8.
        OSError: the file cannot be opened.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(path, f"not UTF-8 text: {error}") from error


def parse(kind: type[T], text: str, path: Path, upgrades: Sequence[Upgrade] = ()) -> T:
    """``text`` as a ``kind``: every field present, none unknown, all of the declared types.

    Args:
        upgrades: one for each older version that is still read.

    Raises:
        RecordError: the text is truncated, of another schema version, or holds anything else.
    """
    newest = len(upgrades) + 1
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if type(version) is not int or not 1 <= version <= newest:
            raise ValueError(f"schema version {version!r}; this code reads 1 to {newest}")
        for upgrade in upgrades[version - 1 :]:
            raw = upgrade(raw)
        value: T = _decode(kind, raw, "")
    except json.JSONDecodeError as error:
        raise RecordError(path, f"not a whole JSON file: {error}") from error
    except ValueError as error:
        raise RecordError(path, str(error)) from error
    return value


def find(
    directories: Iterable[Path], name: str, read: Callable[[Path], V]
) -> tuple[list[tuple[Path, V]], list[Problem]]:
    """Read every file called ``name`` below ``directories``; damage is returned, not raised.

    A file that two of the directories reach is read once.

    Returns:
        What could be read, sorted by path; and every file or directory that could not.
    """
    paths: set[Path] = set()
    problems: list[Problem] = []
    for directory in sorted(set(directories)):
        if directory.is_dir():
            paths.update(path.resolve() for path in directory.rglob(name))
        else:
            problems.append(Problem(str(directory), "no such directory"))
    found: list[tuple[Path, V]] = []
    for path in sorted(paths):
        try:
            found.append((path, read(path)))
        except RecordError as error:
            problems.append(Problem(str(path), error.what))
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be opened: {error.strerror}"))
    return found, problems


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed; what was not measured is null")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(expected: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as the type ``expected``; ValueError naming the field otherwise."""
    if expected is Any:
        return value
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if dataclasses.is_dataclass(expected) and isinstance(value, dict):
        hints = _hints(typing.cast(type, expected))
        if value.keys() != hints.keys():
            names = ", ".join(sorted(value.keys() ^ hints.keys()))
            raise ValueError(f"{where or 'record'}: missing or unknown: {names}")
        members = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in hints}
        return typing.cast(type, expected)(**members)
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if expected is float and type(value) in (int, float):
        return float(value)
    if isinstance(expected, type) and issubclass(expected, StrEnum) and isinstance(value, str):
        return expected(value)
    if type(value) is expected:
        return value
    name = getattr(expected, "__name__", str(expected))
    raise ValueError(f"{where.lstrip('.')} should be {name}, not {json.dumps(value)[:60]}")
