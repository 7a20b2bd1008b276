"""Dataclasses as JSON files: written whole or not at all, read strictly."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
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


MOST_BYTES = 32 * 2**20
"""Of a file; the curves of 100,000 epochs fit."""
DEEPEST = 64
"""Levels of lists and objects within each other."""
LARGEST_INTEGER = 2**63 - 1
"""A count of anything: bytes, parameters, operations."""

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
        RecordError: it is no regular file, too large, or not UTF-8.
        OSError: the file cannot be opened.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise RecordError(path, "not a file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecordError(path, f"larger than {MOST_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(path, f"not UTF-8 text: {error}") from error


def parse(kind: type[T], text: str, path: Path, upgrades: Sequence[Upgrade] = ()) -> T:
    """``text`` as a ``kind``: every field present, none unknown, all of the declared types.

    Args:
        upgrades: one for each older version that is still read.

    Raises:
        RecordError: the text is truncated, of another schema version, holds anything else, or
            numbers and nesting beyond all bounds.
    """
    newest = len(upgrades) + 1
    try:
        raw = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_members,
        )
        _require_shallow(raw)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if type(version) is not int or not 1 <= version <= newest:
            raise ValueError(f"schema version {version!r}; this code reads 1 to {newest}")
        for upgrade in upgrades[version - 1 :]:
            raw = upgrade(raw)
        value: T = _decode(kind, raw, "")
    except json.JSONDecodeError as error:
        raise RecordError(path, f"not a whole JSON file: {error}") from error
    except RecursionError as error:
        raise RecordError(path, _TOO_DEEP) from error
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
            is_file = directory.exists()
            what = "is a file: name a directory above it" if is_file else "no such directory"
            problems.append(Problem(str(directory), what))
    found: list[tuple[Path, V]] = []
    for path in sorted(paths):
        try:
            found.append((path, read(path)))
        except RecordError as error:
            problems.append(Problem(str(path), error.what))
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be opened: {error.strerror}"))
        except Exception as error:  # whatever a damaged file raises costs only itself
            problems.append(Problem(str(path), f"{type(error).__name__}: {error}"))
    return found, problems


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed; what was not measured is null")


def _integer(digits: str) -> int:
    """A whole number within bounds; Python itself refuses only some thousand digits."""
    if len(digits) > len(str(LARGEST_INTEGER)) + 1 or abs(int(digits)) > LARGEST_INTEGER:
        raise ValueError(f"{digits[:12]}... of {len(digits)} digits is beyond any count")
    return int(digits)


def _finite(digits: str) -> float:
    """A number that float64 holds: ``1e999`` would be read as infinity."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two members of one name, readers disagree which one counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return members


_TOO_DEEP = f"lists and objects are nested more than {DEEPEST} levels deep"


def _require_shallow(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        level = [
            member
            for node in level
            if isinstance(node, dict | list)
            for member in (node.values() if isinstance(node, dict) else node)
        ]


def require_no_negative(value: Any, *names: str) -> None:
    """Raise ValueError where a count, a size or a time in a dataclass is below 0.

    Args:
        value: the dataclass; a field may also hold a list.
        names: the fields that are looked at; all of them where none is named.
    """
    for name in names or [field.name for field in dataclasses.fields(value)]:
        held = getattr(value, name)
        for number in held if isinstance(held, list) else [held]:
            if type(number) in (int, float) and number < 0:
                raise ValueError(f"{name} is {number}, which must not be negative")


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
