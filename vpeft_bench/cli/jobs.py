"""The jobs that a command line asks for: every combination of its values, composed and checked.

A single run is the sweep of one job.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vpeft_bench.config.choices import GROUPS
from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.errors import ConfigError, Problem, nearest

MOST_JOBS = 100_000
SHOWN = 3
"""Combinations that a message spells out before the rest are only counted."""

Combination = Mapping[str, str]
"""The value of each axis, by its key, in Hydra's grammar."""


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes, in Hydra's grammar.

    Attributes:
        key: with its prefix, if any: ``+backbone.model_args.depths``.
        values: one, or several of a sweep; equal ones are there once.
    """

    key: str
    values: tuple[str, ...]

    @property
    def is_group(self) -> bool:
        """Whether its values are choices of a config group."""
        return self.key in GROUPS

    def override(self, value: str) -> str:
        """The override for one of its values; what is taken out has none."""
        return self.key if self.key.startswith("~") else f"{self.key}={value}"


@dataclass(frozen=True)
class Job:
    """One combination, and the config that it gives."""

    combination: Combination
    config: RunConfig


@dataclass
class Jobs:
    """All jobs of a command line.

    Attributes:
        axes: what was typed, and what an experiment sweeps by itself.
        valid: those that could be composed, without the overrides that are wrong.
        first: the composed config of the first.
        problems: everything wrong with the overrides.
    """

    axes: Sequence[Axis]
    valid: list[Job] = field(default_factory=list)
    first: DictConfig | None = None
    problems: list[Problem] = field(default_factory=list)


def compose_jobs(axes: Sequence[Axis], fixed: Sequence[str]) -> Jobs:
    """Every combination of the values of ``axes``, composed and converted to the schema's types.

    Args:
        axes: valid keys of groups, any other key, valid or not.
        fixed: overrides of Hydra's own config, for all jobs.
    """
    jobs = Jobs(axes)
    if (count := prod(len(axis.values) for axis in axes)) > MOST_JOBS:
        sweep = " ".join(f"{axis.key}=..." for axis in axes if len(axis.values) > 1)
        what = f"asks for {count:,} runs, and a sweep has at most {MOST_JOBS:,}"
        jobs.problems.append(Problem(sweep, what, "sweep over fewer values at a time"))
        return jobs
    found: list[tuple[Combination, list[Problem]]] = []
    groups = [axis for axis in axes if axis.is_group]
    others = [axis for axis in axes if not axis.is_group]
    for choices in _combinations(groups):
        try:
            base = compose("config", [*fixed, *(f"{k}={v}" for k, v in choices.items())])
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            where = " ".join(f"{key}={value}" for key, value in choices.items())
            found.append((choices, [Problem(where or "config", one_line(error))]))
            continue
        setters = {axis.key: _Setter(base, axis) for axis in others}
        for values in _combinations(others):
            combination = {axis.key: {**choices, **values}[axis.key] for axis in axes}
            config = base.copy()
            wrong = [p for k, value in values.items() for p in setters[k].put(value, config)]
            missing = list(_missing(OmegaConf.to_container(config, resolve=False)))
            wrong += [Problem(key, "has no value", f"type {key}=...") for key in missing]
            if not missing:
                try:
                    jobs.valid.append(Job(combination, typed(config)))
                except OmegaConfBaseException as error:
                    wrong += _unfit(error)
                else:
                    jobs.first = config if jobs.first is None else jobs.first
            found.append((combination, wrong))
    jobs.problems += gathered(found, axes)
    return jobs


def _unfit(error: OmegaConfBaseException) -> list[Problem]:
    """What is wrong with a value that does not fit its type, or that could not be looked up."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return list(cause.problems)
    return [Problem(str(getattr(error, "full_key", None) or "config"), one_line(error))]


def _combinations(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    keys = [axis.key for axis in axes]
    for values in product(*(axis.values for axis in axes)):
        yield dict(zip(keys, values, strict=True))


def gathered(
    found: Iterable[tuple[Combination, Iterable[Problem]]], axes: Sequence[Axis]
) -> list[Problem]:
    """Each problem once; where only some combinations have it, it says which."""
    hits: dict[Problem, list[Combination]] = {}
    for combination, problems in found:
        for problem in problems:
            hits.setdefault(problem, []).append(combination)
    told = []
    for problem, combinations in hits.items():
        which = _which(combinations, axes, problem.where)
        where = f"{problem.where} with {which}" if which else problem.where
        told.append(type(problem)(where, problem.what, problem.fix))
    return told


def _which(hits: Sequence[Combination], axes: Sequence[Axis], where: str) -> str:
    """What combinations have in common that others have not, as short as it can be said."""
    told = [axis for axis in axes if len(axis.values) > 1 and axis.key in hits[0]]
    values = {axis.key: list(dict.fromkeys(hit[axis.key] for hit in hits)) for axis in told}
    partial = [axis for axis in told if len(values[axis.key]) < len(axis.values)]
    if len(hits) == prod(len(found) for found in values.values()):
        return " ".join(
            f"{axis.key}={','.join(values[axis.key])}"
            for axis in partial
            if not where.startswith(f"{axis.key}=")
        )
    some = [" ".join(f"{axis.key}={hit[axis.key]}" for axis in told) for hit in hits[:SHOWN]]
    more = len(hits) - len(some)
    return "; ".join(some) + (f"; and {more} more combinations" if more else "")


def once_each(
    jobs: Jobs, identity: Callable[[RunConfig], Hashable]
) -> tuple[list[Axis], list[Problem]]:
    """The axes without values that ask for the very runs of an earlier value, and which those are.

    Args:
        identity: equal for configs that are the same run.
    """
    same = {tuple(job.combination.values()): identity(job.config) for job in jobs.valid}
    kept, told = [], []
    axes = list(jobs.axes)
    for position, axis in enumerate(axes):
        others = [other.values for other in axes if other is not axis]
        first: dict[Hashable, str] = {}
        for value in axis.values:
            runs = tuple(
                same[(*rest[:position], value, *rest[position:])] for rest in product(*others)
            )
            if (earlier := first.setdefault(runs, value)) != value:
                what = f"asks for the same runs as {axis.key}={earlier}; they are run once"
                told.append(Problem(f"{axis.key}={value}", what))
        axes[position] = Axis(axis.key, tuple(first.values()))
        kept.append(axes[position])
    return kept, told


class _Setter:
    """Puts values of a key into copies of one composed config; each value is looked at once."""

    def __init__(self, base: DictConfig, axis: Axis) -> None:
        self._base, self._axis = base, axis
        self._overrides: dict[str, Override] = {}
        self._problems: dict[str, list[Problem]] = {}

    def put(self, value: str, config: DictConfig) -> list[Problem]:
        """Change ``config``; everything that is wrong with that."""
        if value not in self._problems:
            text = self._axis.override(value)
            override = self._overrides[value] = OverridesParser.create().parse_override(text)
            self._problems[value] = list(_problems(override, text, self._base))
        if not self._problems[value]:
            ConfigLoaderImpl._apply_overrides_to_config([self._overrides[value]], config)
        return self._problems[value]


def _problems(override: Override, text: str, config: DictConfig) -> Iterator[Problem]:
    """What is wrong with one override of one config: its key, or its value."""
    key = override.key_or_group
    if wrong := _key_problem(override, config):
        yield wrong
        return
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], config.copy())
    except (HydraException, OmegaConfBaseException) as error:
        now = OmegaConf.select(config, key, default=None, throw_on_missing=False)
        fix = _one_by_one(override, config) or f"now: {key}={_typed(now)}"
        yield Problem(text, one_line(error.__cause__ or error), fix)


def _typed(value: Any) -> str:
    """A value as it is typed: nothing is ``null``."""
    return "null" if value is None else str(getattr(value, "name", value))


def _one_by_one(override: Override, config: DictConfig) -> str:
    """How several keys are added to a group that takes any; empty where that is not asked for."""
    key, value = override.key_or_group, override.value()
    if not isinstance(value, dict) or not value or not _takes_any_key(config, key):
        return ""
    return " ".join(f"+{key}.{name}={each}" for name, each in value.items())


def _key_problem(override: Override, config: DictConfig) -> Problem | None:
    """A key that does not exist, cannot be added to, or cannot be taken out."""
    key = override.key_or_group
    known = [*keys_of(config), *GROUPS]
    exists = key in known or any(k.startswith(f"{key}.") for k in known)
    adds = override.is_add() or override.is_force_add()
    free = _takes_any_key(config, key.rpartition(".")[0])
    if not exists and not (adds and free):
        unknown = unknown_key(key, known)
        own = free and not key.startswith("method.")
        plus = f"a key of your own is typed with a plus: +{key}=..." if own else ""
        return replace(unknown, fix=f"{unknown.fix}\n{plus}".strip())
    if override.is_delete() and not free:
        now = OmegaConf.select(config, key, throw_on_missing=False)
        fix = f"now: {key}={_typed(now)}; {key}=VALUE changes it"
        return Problem(key, "cannot be taken out: every run has it", fix)
    if override.is_add() and exists:
        fix = _one_by_one(override, config) or f"without the +: {key}=..."
        return Problem(f"+{key}", "is there already", fix)
    return None


def unknown_key(key: str, known: Sequence[str]) -> Problem:
    """The problem that there is no ``key``, with the nearest, and those beside it."""
    close = nearest(key, known)
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    fix = [f"did you mean {close}=..."] if close else []
    if siblings and parent:
        fix.append(f"keys there: {', '.join(siblings)}")
    return Problem(
        key, "no such key", "\n".join(fix) or "python -m vpeft_bench --cfg job lists all"
    )


def _takes_any_key(config: DictConfig, path: str) -> bool:
    """Whether a mapping has keys of the user's own, as ``backbone.model_args`` has."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            return False
        node = node._get_node(name)
        if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
            return True
    return False


def keys_of(config: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of ``config``, leaves and nodes that hold nothing yet."""
    keys = []
    for name in map(str, config):
        path = f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and len(node) and not node._is_none():
            keys += keys_of(node, f"{path}.")
        else:
            keys.append(path)
    return keys


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Keys that hold ``???``; OmegaConf's own search fails at interpolations of such keys."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{path}.{name}" if path else str(name))
    elif node == "???":
        yield path


def one_line(error: BaseException) -> str:
    """The first line of what Hydra or OmegaConf says, and what caused it."""
    said = [line for e in (error, error.__cause__) if e for line in str(e).splitlines()[:1] if line]
    return ": ".join(dict.fromkeys(line.rstrip(".:") for line in said)) or type(error).__name__
