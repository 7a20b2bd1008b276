"""What a search tries: the space of a method, and its points in an order that is the same for all.

Every method is searched over its learning rate and weight decay, and over the options that it
declares beside them (``option(..., search=...)``), at most two. Point 0 is the default
configuration. Point k is the k-th of a Sobol sequence of a fixed seed, whose first two coordinates
are the learning rate and the weight decay of every method: the k-th point is the same for everyone,
and a budget is the beginning of each larger one. (With ``tune.sampler=tpe`` points follow from
scores, :mod:`vpeft_bench.tuning.tpe`.) Importing this module imports neither torch nor
scipy.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vpeft_bench.catalogue import facts
from vpeft_bench.config.schema import RunConfig
from vpeft_bench.errors import ConfigError, Problem, nearest

SOBOL, TPE = "sobol", "tpe"
SEED = 0
"""Of the scrambled sequence: no setting, so that nobody's points are luckier than others'."""
OWN = 2
"""Options of its own that a method may search."""
DIGITS = 3
"""Significant digits of a searched number."""

Settings = dict[str, Any]
"""Values by key, as typed on the command line."""
Coordinates = tuple[float, ...]
"""Where a point lies in [0, 1)^4: learning rate, weight decay, options of the method's own."""


@dataclass(frozen=True)
class Factor:
    """A number around its default: log-uniform from ``low`` to ``high`` times it.

    Attributes:
        key: as typed on the command line.
        instead: takes the place of a default of 0, which has no neighbourhood.
    """

    key: str
    low: float
    high: float
    instead: float = 1.0

    def value(self, u: float, default: Any) -> float:
        """The value at ``u`` in [0, 1)."""
        factor = self.low * (self.high / self.low) ** u
        return float(f"{(default or self.instead) * factor:.{DIGITS}g}")

    def position(self, value: Any, default: Any) -> float:
        """Where a value lies: 0 at the lower end, 1 at the upper."""
        centre = default or self.instead
        return math.log((value or centre) / centre / self.low) / math.log(self.high / self.low)

    def described(self) -> list[Any]:
        """What belongs to the identity of the space."""
        return [self.key, self.low, self.high, self.instead]


@dataclass(frozen=True)
class Values:
    """An option with the values that its method declares, in order."""

    key: str
    values: tuple[Any, ...]

    def value(self, u: float, default: Any) -> Any:
        """The value at ``u`` in [0, 1)."""
        return self.values[int(u * len(self.values))]

    def position(self, value: Any, default: Any) -> float:
        """Where a value lies: 0 at the first, 1 at the last."""
        return self.values.index(value) / max(1, len(self.values) - 1)

    def described(self) -> list[Any]:
        """What belongs to the identity of the space."""
        return [self.key, list(self.values)]


Dimension = Factor | Values

# A decade on either side of the default: the grids of Mai et al. (arXiv 2409.16434) span one decade
# of each, VPT's (arXiv 2203.12119) two of the weight decay, of which ours is the lower end.
EVERYONES = (
    Factor("train.lr", 0.1, 10.0),
    Factor("train.weight_decay", 0.1, 100.0, instead=1e-4),
)


@dataclass(frozen=True)
class Space:
    """The space of one method.

    Attributes:
        dimensions: what is searched; None where a coordinate of the sequence is not used, because
            the key is fixed or the method has fewer options.
        sampler: what chooses the points.
    """

    dimensions: tuple[Dimension | None, ...]
    sampler: str = SOBOL

    @property
    def searched(self) -> list[Dimension]:
        """The dimensions, without those that are not used."""
        return [dimension for dimension in self.dimensions if dimension is not None]

    @property
    def keys(self) -> list[str]:
        """What is searched, as typed on the command line."""
        return [dimension.key for dimension in self.searched]

    def point(self, number: int, defaults: Mapping[str, Any]) -> Settings:
        """The settings of a point whose number says where it lies.

        Args:
            number: of the point, from 0, the default configuration.
            defaults: the value of each key there.
        """
        if number == 0:
            return {key: defaults[key] for key in self.keys}
        return self.at(self.coordinates(number, defaults), defaults)

    def coordinates(self, number: int, defaults: Mapping[str, Any]) -> Coordinates:
        """Where a point of the sequence lies; the default lies where its values do."""
        if number:
            return sequence(number)[number - 1]
        return tuple(
            0.0 if d is None else d.position(defaults[d.key], defaults[d.key])
            for d in self.dimensions
        )

    def at(self, coordinates: Sequence[float], defaults: Mapping[str, Any]) -> Settings:
        """The settings at some coordinates."""
        return {
            dimension.key: dimension.value(u, defaults[dimension.key])
            for dimension, u in zip(self.dimensions, coordinates, strict=True)
            if dimension is not None
        }

    def distance(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> float:
        """How far a point is from the default: 0, and 1 where every setting is a range away.

        The root mean square over the settings, each in units of its range, on its own scale.
        """
        squares = [
            (d.position(settings[d.key], defaults[d.key]) - d.position(defaults[d.key], default))
            ** 2
            for d in self.searched
            for default in [defaults[d.key]]
        ]
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0

    @property
    def hash(self) -> str:
        """Eight hex digits naming the space and the order of its points."""
        said = {
            "dimensions": [None if d is None else d.described() for d in self.dimensions],
            "sampler": self.sampler,
            "points": [[round(u, 6) for u in point] for point in sequence(8)],
        }
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def sequence(count: int) -> tuple[Coordinates, ...]:
    """The first ``count`` points of the sequence in [0, 1)^4."""
    from scipy.stats import qmc  # takes a second

    size = 1 << max(0, count - 1).bit_length()  # Sobol sequences are balanced at powers of two
    sobol = qmc.Sobol(len(EVERYONES) + OWN, scramble=True, rng=SEED)
    return tuple(tuple(map(float, point)) for point in sobol.random(size)[:count])


def space_of(config: RunConfig) -> Space:
    """The space that a search of ``config`` has: without what ``tune.fixed`` names.

    Raises:
        ConfigError: nothing is left, or the method declares more than can be searched.
    """
    whole, fixed = _declared(str(config.method.get("name"))), config.tune.fixed
    kept = [None if d is None or _is_fixed(d, config) else d for d in whole.dimensions]
    if not any(kept):
        what = "leaves nothing to search"
        raise ConfigError([Problem(f"tune.fixed=[{','.join(fixed)}]", what, "fix fewer keys")])
    return replace(whole, dimensions=tuple(kept), sampler=config.tune.sampler)


def searchable(method: str) -> list[str]:
    """Every key that a search of a method tries unless it is fixed.

    Raises:
        ConfigError: the method declares more than can be searched.
    """
    return _declared(method).keys


def fixed_problems(fixed: Sequence[str], methods: Iterable[str]) -> Iterator[Problem]:
    """Keys that are to be fixed and that the search of none of ``methods`` tries."""
    names = list(dict.fromkeys(methods))
    keys = list(dict.fromkeys(key for name in names for key in searchable(name)))
    for key in fixed:
        if key not in keys:
            close = nearest(key, keys)
            fix = [f"did you mean tune.fixed=[{close}]"] if close else []
            fix.append(f"searched for {', '.join(names)}: {', '.join(keys)}")
            yield Problem(f"tune.fixed=[{key}]", "is not searched", "\n".join(fix))


def defaults_of(config: RunConfig, space: Space) -> Settings:
    """The values at point 0: what the config has without the search."""
    return {key: value_at(config, key) for key in space.keys}


def value_at(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    return node


def at_point(config: RunConfig, number: int) -> RunConfig:
    """The config of a point of the search of ``config``; of point 0 it is the config itself."""
    space = space_of(config)
    defaults, at = defaults_of(config, space), config.tune.at
    settings = space.point(number, defaults) if at is None else space.at(at, defaults)
    return with_settings(config, settings)


def with_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """``config`` with other values of keys of its method and of its training."""
    sections: dict[str, Settings] = {"method": dict(config.method), "train": {}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    train = replace(config.train, **sections["train"])
    return replace(config, method=sections["method"], train=train)


def _declared(method: str) -> Space:
    """The space of a method where nothing is fixed."""
    options = [one for one in facts.method(method).options if one.search]
    if len(options) > OWN:
        what = (
            f"declares {len(options)} options to search, and a search has {OWN} of a method's own"
        )
        names = ", ".join(one.name for one in options)
        raise ConfigError([Problem(f"method={method}", what, f"they are: {names}")])
    own = [Values(f"method.{one.name}", tuple(one.search)) for one in options]
    return Space((*EVERYONES, *own, *[None] * (OWN - len(own))))


def _is_fixed(dimension: Dimension, config: RunConfig) -> bool:
    """Whether it is named, or has a value that is none of the declared: the user's own file."""
    if dimension.key in config.tune.fixed:
        return True
    return isinstance(dimension, Values) and value_at(config, dimension.key) not in dimension.values
