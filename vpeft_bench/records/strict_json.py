"""Dataclasses as JSON files: written whole or not at all, read strictly.

msgspec decodes them. It lets pass four things that no record may hold: a name given twice, whole
numbers beyond 63 bits, deep nesting, and fields that are unknown or missing where there is a
default. Each of them is looked for, at the speed of what msgspec does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import stat
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

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
P = TypeVar("P", Path, str)
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""From the JSON of one version to that of the next; the first one upgrades version 1."""


def write(value: Versioned, path: Path, parse: Callable[[bytes, Path], object]) -> None:
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
    content = f"{text}\n".encode()
    parse(content, path)
    write_atomically(path, content)


def read_bytes(path: Path | str) -> bytes:
    """The content of a file.

    Raises:
        RecordError: it is no regular file, or too large.
        OSError: the file cannot be opened.
    """
    # A pipe is opened without waiting for who writes to it, which may be never.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RecordError(path, "not a file")
        # Of exactly its size, as a larger buffer costs more than the reading.
        content = file.read() if found.st_size <= MOST_BYTES else None
    if content is None or len(content) > MOST_BYTES:
        raise RecordError(path, f"larger than {MOST_BYTES >> 20} MiB")
    return content


def parse(kind: type[T], content: bytes, path: Path | str, upgrades: Sequence[Upgrade] = ()) -> T:
    """``content`` as a ``kind``: every field present, none unknown, all of the declared types.

    Args:
        upgrades: one for each older version that is still read.

    Raises:
        RecordError: the text is truncated, of another schema version, holds anything else, or
            numbers and nesting beyond all bounds.
    """
    newest = len(upgrades) + 1
    try:
        raw = _json(content)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if type(version) is not int or not 1 <= version <= newest:
            raise ValueError(f"schema version {version!r}; this code reads 1 to {newest}")
        for upgrade in upgrades[version - 1 :]:
            raw = upgrade(raw)
        return _typed(kind, raw)
    except UnicodeDecodeError as error:
        raise RecordError(path, f"not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(path, f"not a whole JSON file: {error}") from error
    except RecursionError as error:
        raise RecordError(path, _TOO_DEEP) from error
    except ValueError as error:
        raise RecordError(path, str(error)) from error


class Place(NamedTuple):
    """A file that was found, and what changes when it does.

    Attributes:
        path: without links.
        size: bytes.
        changed: when it was last written, nanoseconds.
    """

    path: str
    size: int
    changed: int


def below(directories: Iterable[Path], name: str) -> tuple[list[Place], list[Problem]]:
    """Every file called ``name`` below ``directories``, once and sorted by path; and what is wrong.

    Links to directories are not followed.
    """
    places: dict[str, Place] = {}
    problems: list[Problem] = []
    for directory in sorted(set(directories)):
        if directory.is_dir():
            try:
                places.update((place.path, place) for place in _walk(directory, name, problems))
            except OSError as error:  # a directory that goes while it is read
                problems.append(Problem(str(directory), f"cannot be read: {error.strerror}"))
        else:
            is_file = directory.exists()
            what = "is a file: name a directory above it" if is_file else "no such directory"
            problems.append(Problem(str(directory), what))
    return [places[path] for path in sorted(places, key=_by_parts)], problems


def _by_parts(path: str) -> str:
    """As paths compare: ``a/b`` stands before ``a-b``."""
    return path.replace(os.sep, "\0")


def _walk(directory: Path, name: str, problems: list[Problem]) -> Iterator[Place]:
    waiting = [str(directory.resolve())]
    while waiting:
        folder = waiting.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            problems.append(Problem(folder, f"cannot be opened: {error.strerror}"))
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                if entry.name == name:
                    path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    try:
                        found = entry.stat()
                    except FileNotFoundError:  # removed a moment ago
                        continue
                    yield Place(path, found.st_size, found.st_mtime_ns)


def find(
    directories: Iterable[Path], name: str, read: Callable[[Path], V]
) -> tuple[list[tuple[Path, V]], list[Problem]]:
    """Read every file called ``name`` below ``directories``; damage is returned, not raised.

    A file that two of the directories reach is read once.

    Returns:
        What could be read, sorted by path; and every file or directory that could not.
    """
    places, problems = below(directories, name)
    found: list[tuple[Path, V]] = []
    for place in places:
        path = Path(place.path)
        value = read_or_say(path, read)
        if isinstance(value, Problem):
            problems.append(value)
        else:
            found.append((path, value))
    return found, problems


def read_or_say(path: P, read: Callable[[P], V]) -> V | Problem:
    """What ``read`` makes of a file, or why it cannot."""
    try:
        return read(path)
    except RecordError as error:
        return Problem(str(path), error.what)
    except OSError as error:
        return Problem(str(path), f"cannot be opened: {error.strerror}")
    except Exception as error:  # whatever a damaged file raises costs only itself
        return Problem(str(path), f"{type(error).__name__}: {error}")


# ---- JSON ----------------------------------------------------------------------------------------


def _json(content: bytes) -> Any:
    """The value that ``content`` is.

    The careful reader says what is wrong where the fast one refuses, and decides where that may
    have been lenient; it alone reads halves of characters, which stand in names of files.
    """
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = msgspec.json.decode(content)
        if _as_it_stands(raw, content):
            return raw
    raw = json.loads(
        content.decode("utf-8"),
        parse_constant=_refuse_constant,
        parse_int=_integer,
        parse_float=_finite,
        object_pairs_hook=_members,
    )
    _require_shallow(raw)
    return raw


def _as_it_stands(raw: Any, content: bytes) -> bool:
    """Whether ``raw`` is certainly all that ``content`` says, within all bounds."""
    # Every member has a colon, so that of one that was given twice there is one too many; unless
    # one within a text is spelled otherwise, as 003a.
    again = msgspec.json.encode(raw)
    if content.count(b":") != again.count(b":") or b"\\u003" in content:
        return False
    # The lines of the deepest members begin with as many spaces as there are levels.
    shallow = b"\n" + b" " * DEEPEST not in msgspec.json.format(again, indent=1)
    return shallow and _MANY_DIGITS not in content.translate(_DIGITS)


_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * len(str(LARGEST_INTEGER))


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


# ---- types ---------------------------------------------------------------------------------------


def _typed(kind: type[T], raw: dict[str, Any]) -> T:
    """A dataclass of JSON values; ValueError naming the field that is wrong."""
    try:
        value = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_told(kind, raw, str(error))) from error
    if names := _other_names(value, raw, ""):
        raise ValueError(names)
    return value


def _other_names(value: Any, raw: dict[str, Any], where: str) -> str:
    """What ``raw`` lacks or has beside the fields of ``value``; empty where that is nothing."""
    fields, inner = _fields(value.__class__)
    if raw.keys() != fields:
        names = ", ".join(sorted(raw.keys() ^ fields))
        return f"{where or 'record'}: missing or unknown: {names}"
    for name in inner:
        member = getattr(value, name)
        if member is not None and (
            names := _other_names(member, raw[name], f"{where}.{name}" if where else name)
        ):
            return names
    return ""


@functools.cache
def _fields(kind: Hashable) -> tuple[frozenset[str], tuple[str, ...]]:
    """The fields of a dataclass, and those that hold dataclasses."""
    hints = typing.get_type_hints(kind)
    inner = tuple(
        name
        for name, hint in hints.items()
        if any(map(dataclasses.is_dataclass, (hint, *typing.get_args(hint))))
    )
    return frozenset(hints), inner


def _told(kind: type[T], raw: dict[str, Any], message: str) -> str:
    """msgspec's message with the field before what is wrong, each name of a dictionary included."""
    what, _, where = message.partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    expected = re.fullmatch(r"Expected `(.+)`, got `(.+)`", what)
    what = f"should be {expected[1]}, not {expected[2]}" if expected else what.replace("`", "")
    while "[...]" in where:
        place, _, rest = where.partition("[...]")
        node = raw
        for name in filter(None, place.split(".")):
            node = node[name]
        for name, member in list(node.items()):
            node.clear()
            node[name] = member
            if _refusal(kind, raw) == message:
                break
        where = f"{place}.{name}{rest}"
    return f"{where} {what}" if expected else f"{what} (at {where})" if where else what


def _refusal(kind: type[T], raw: dict[str, Any]) -> str:
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def require_no_negative(value: Any, *names: str) -> None:
    """Raise ValueError where a count, a size or a time in a dataclass is below 0.

    Args:
        value: the dataclass; a field may also hold a list.
        names: the fields that are looked at; all of them where none is named.
    """
    for name in names or _numbers(value.__class__):
        held = getattr(value, name)
        for number in held if type(held) is list else (held,):
            if type(number) in (int, float) and number < 0:
                raise ValueError(f"{name} is {number}, which must not be negative")


@functools.cache
def _numbers(kind: Hashable) -> tuple[str, ...]:
    """The fields of a dataclass that may hold a number, or a list of some."""
    hints = typing.get_type_hints(kind)
    return tuple(name for name, hint in hints.items() if {int, float} & _within(hint))


def _within(hint: Any) -> set[Any]:
    """The types of which a type is made."""
    parts = typing.get_args(hint)
    return set().union(*map(_within, parts)) if parts else {hint}
