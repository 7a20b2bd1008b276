"""What a field of a configuration says of itself, where it is defined.

A field says whether it belongs to a run's identity and to what a cost card measures, at which value
it changes nothing, and which values are valid. Whatever follows from that (hashes, comparisons,
checks) is derived from the fields and kept in no list. Options of methods do the same by
:func:`vpeft_bench.methods.base.option`.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from enum import Enum
from typing import Any, get_args, get_type_hints

DEFAULT = MISSING
"""As a neutral value: the default is it."""


class Measured(Enum):
    """Whether a key changes what a cost card measures."""

    YES = "yes"
    NO = "no"
    BY_DEVICE = "by device"
    """It chooses the device, which counts by its name."""


def setting(
    default: Any,
    *,
    identity: bool = True,
    measured: Measured = Measured.YES,
    neutral: Any = DEFAULT,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str] = (),
) -> Any:
    """A field of a configuration.

    Args:
        default: value, or a class or function that makes one.
        identity: whether it belongs to a run's identity. What does not says where and how
            conveniently: the same experiment elsewhere has the same identity.
        measured: whether a cost card depends on it.
        neutral: the value at which everything is what it was before the field existed; there it is
            no part of any identity. Needed only where the default is, or has become, another one.
        minimum, maximum: inclusive range of a number.
        choices: valid values of a text.
    """
    metadata = {
        "identity": identity,
        "measured": measured,
        "neutral": neutral,
        "minimum": minimum,
        "maximum": maximum,
        "choices": tuple(choices),
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """What one key of a configuration says of itself; see :func:`setting`.

    Attributes:
        section: whether further keys lie below it.
    """

    identity: bool
    measured: Measured
    neutral: Any
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    section: bool


@functools.cache
def settings(config_class: type) -> dict[str, Setting]:
    """Every key of a configuration and its sections, dotted, by its dataclasses' fields."""
    return dict(_settings(config_class, ""))


def _settings(config_class: type, prefix: str) -> Iterator[tuple[str, Setting]]:
    hints = get_type_hints(config_class)
    for one in dataclasses.fields(config_class):
        kinds = [k for k in (hints[one.name], *get_args(hints[one.name])) if isinstance(k, type)]
        sections = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        said = one.metadata
        yield (
            f"{prefix}{one.name}",
            Setting(
                identity=said.get("identity", True),
                measured=said.get("measured", Measured.YES),
                neutral=_plain(neutral(one)),
                minimum=said.get("minimum"),
                maximum=said.get("maximum"),
                choices=said.get("choices", ()),
                section=bool(sections),
            ),
        )
        for section in sections:
            yield from _settings(section, f"{prefix}{one.name}.")


def neutral(one: dataclasses.Field[Any]) -> Any:
    """The value at which a field changes nothing; MISSING where it has none."""
    value = one.metadata.get("neutral", DEFAULT)
    if value is not DEFAULT:
        return value
    return one.default if one.default_factory is MISSING else one.default_factory()


def _plain(value: Any) -> Any:
    """As a record keeps it."""
    return value.name if isinstance(value, Enum) else value
