"""Benchmarks: data sets that are shown together. Each is a file ``benchmark/NAME.yaml``.

The files lie in ``configs/``, in the folders of configs of plug-ins and in ``--config-dir``. What
sweeps a benchmark, lists its data sets or averages over them reads them from here.

Importing this module does not import Hydra.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpeft_bench.config.choices import config_folders
from vpeft_bench.errors import ConfigError, Problem, nearest, unknown_name

FOLDER = "benchmark"
ONE_GROUP = "all"
"""The group of a benchmark that has no groups."""
CUSTOM = "custom"
"""What data sets say that are of no benchmark."""


@dataclass(frozen=True)
class Benchmark:
    """Data sets that are shown together.

    Attributes:
        name: that of its file.
        title: the name people know it by.
        members: the column of each data set (``data.name``), group after group.
        groups: columns by group, in the order in which they are shown.
        averaged: whether a mean over its data sets says something; not where one is an average
            precision and another an intersection over union.
        demo: whether its results show that the pipeline works, and not how good a method is.
    """

    name: str
    title: str
    members: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]
    averaged: bool = True
    demo: bool = False
    _known_as: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def datasets(self) -> tuple[str, ...]:
        """All columns, group after group."""
        return tuple(self.members.values())

    def member(self, data: str) -> str | None:
        """The column of the data set ``data``; with or without the folder of its name."""
        return self._known_as.get(data)

    def group_of(self, data: str) -> str:
        """The group of a data set; empty where there are no groups, or it is not of them."""
        column = self.member(data)
        names = (name for name, columns in self.groups.items() if column in columns)
        return "" if list(self.groups) == [ONE_GROUP] else next(names, "")


def known() -> dict[str, Benchmark]:
    """All benchmarks by name.

    Raises:
        ConfigError: with everything wrong with their files, two of the same name included.
    """
    paths = [path for place in config_folders() for path in sorted((place / FOLDER).glob("*.yaml"))]
    files: dict[str, Path] = {}
    twins = [
        (path, files[path.stem]) for path in paths if files.setdefault(path.stem, path) != path
    ]
    problems = [Problem(str(p), f"{other} has this name", "rename it") for p, other in twins]
    found = {}
    for name, path in files.items():
        found[name], wrong = _read(path, path.stat().st_mtime_ns)
        problems += wrong
    if problems:
        raise ConfigError(problems)
    return {name: one for name, one in found.items() if one is not None}


def find(name: str) -> Benchmark | None:
    """The benchmark called ``name``, if there is one."""
    return known().get(name)


def swept(name: str) -> str:
    """``${members:NAME}`` in a config file: the data sets of a benchmark, to be swept over.

    Raises:
        ConfigError: there is no such benchmark.
    """
    every = known()
    if name not in every:
        raise ConfigError([unknown_name("benchmark", name, every)])
    return ",".join(every[name].members)


def group_of(benchmark: str, data: str) -> str:
    """``${group_of:BENCHMARK,DATA}`` in a config file: see :meth:`Benchmark.group_of`."""
    found = find(benchmark)
    return "" if found is None else found.group_of(data)


# ---- reading -------------------------------------------------------------------------------------


@functools.cache
def _read(path: Path, changed: int) -> tuple[Benchmark | None, tuple[Problem, ...]]:
    """The benchmark of a file, or what is wrong with it; ``changed`` is when it was written."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return None, (Problem(str(path), f"cannot be read: {' '.join(str(error).split())}"),)
    if problems := tuple(_problems(raw)):
        return None, tuple(Problem(f"{path}{where}", what, fix) for where, what, fix in problems)
    groups = raw.get("groups") or {ONE_GROUP: raw["datasets"]}
    data = [name for members in groups.values() for name in members]
    columns = raw.get("columns") or {}
    short = Counter(_short(name) for name in data)
    members = {n: columns.get(n, _short(n) if short[_short(n)] == 1 else n) for n in data}
    return (
        Benchmark(
            name=path.stem,
            title=str(raw.get("title") or path.stem),
            members=members,
            groups={g: tuple(members[name] for name in names) for g, names in groups.items()},
            averaged=raw.get("averaged", True),
            demo=raw.get("demo", False),
            _known_as=_known_as(members),
        ),
        (),
    )


def _short(data: str) -> str:
    return data.rpartition("/")[2]


def _known_as(members: Mapping[str, str]) -> dict[str, str]:
    """The column of every name that a data set may have; a name of two of them has none."""
    found: dict[str, set[str]] = {}
    for name, column in members.items():
        folder, slash, short = name.rpartition("/")
        for alias in {name, short, column, f"{folder}{slash}{column}"}:
            found.setdefault(alias, set()).add(column)
    return {alias: next(iter(columns)) for alias, columns in found.items() if len(columns) == 1}


_KEYS: dict[str, type] = {
    "title": str,
    "datasets": list,
    "groups": dict,
    "columns": dict,
    "averaged": bool,
    "demo": bool,
}


def _problems(raw: Any) -> Iterator[tuple[str, str, str]]:
    """Where in a file something is wrong, what, and what to write instead."""
    if not isinstance(raw, dict):
        yield "", "is no benchmark", "datasets: [DATA, DATA]"
        return
    for key, value in raw.items():
        if key not in _KEYS:
            close = nearest(str(key), _KEYS)
            fix = f"did you mean {close}:" if close else f"there are: {', '.join(_KEYS)}"
            yield f", {key}", "no such key", fix
        elif not isinstance(value, _KEYS[key]):
            yield f", {key}", f"must be of type {_KEYS[key].__name__}", ""
    if ("datasets" in raw) == ("groups" in raw):
        fix = "datasets: [DATA, DATA], or groups: {NAME: [DATA, DATA]}"
        yield "", "names its data sets once: as datasets, or as groups", fix
        return
    groups = raw.get("groups", {ONE_GROUP: raw.get("datasets")})
    if not isinstance(groups, dict):
        return
    names = []
    for group, members in groups.items():
        where = ", datasets" if "datasets" in raw else f", groups.{group}"
        if not isinstance(members, list) or not members:
            yield where, "must be a list of data sets", "[DATA, DATA]"
        elif wrong := [name for name in members if not isinstance(name, str)]:
            yield where, f"{wrong[0]!r} is no name of a data set", "as in data=NAME"
        else:
            names += members
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        yield "", f"names {', '.join(twice)} more than once", ""
    columns = raw.get("columns")
    if isinstance(columns, dict) and (others := [n for n in columns if n not in names]):
        yield ", columns", f"{others[0]} is none of its data sets", f"there are: {', '.join(names)}"
    if isinstance(columns, dict) and len(set(columns.values())) < len(columns):
        yield ", columns", "names two data sets alike", ""


def columns_of(benchmark: str, data: str, every: Mapping[str, Benchmark]) -> dict[str, str]:
    """The benchmarks that a data set is part of, and its column in each.

    That is the one that it says it belongs to, where that one names it; and all that name it word
    for word, such as a user's own choice of data sets.
    """
    found = {n: b.members[data] for n, b in every.items() if data in b.members}
    own = every.get(benchmark)
    if own is not None and (column := own.member(data)) is not None:
        found[benchmark] = column
    return found
