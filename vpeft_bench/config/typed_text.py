"""Values that are text, such as paths and names: as people type them, and as Hydra reads them.

Hydra's grammar gives ``= ( ) [ ] { } : ' ,`` and more a meaning of their own. Where the schema says
that a key holds text, a value that Hydra would not read as that very text is quoted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from vpeft_bench.config.choices import GROUPS
from vpeft_bench.config.schema import RunConfig

_OVERRIDE = re.compile(r"(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)
_HYDRAS_OWN = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
SHARED_PLACES = ("results_dir", "cost.results_dir")
"""All jobs of a sweep share them: a comma is a part of the text even there."""
# One value of a sweep: quoted as a whole, or all up to the next comma that has no backslash.
_VALUE = re.compile(
    r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s*(?=,|$)|(?:\\.|[^,\\]|\\$)*""", re.DOTALL
)


def in_hydras_grammar(typed: str, sweep: bool) -> str:
    """An override with its value quoted where it is text that Hydra would read as something else.

    Args:
        typed: ``KEY=VALUE`` as it reached the program.
        sweep: whether a comma separates values (``-m``); else it is a part of the text.
    """
    found = _OVERRIDE.fullmatch(typed)
    if found is None or _is_call(found["value"]):
        return typed
    name, value = found["key"].lstrip("+~"), found["value"]
    if name in GROUPS:  # a choice is the name of a file; a comma without -m is a mistake to tell
        return typed if _read(value) else f"{found['key']}={_as_text(value, sweep)}"
    if not holds_text(name) or (value.lower() == "null" and may_be_null(name)):
        return typed
    several = sweep and name not in (*_HYDRAS_OWN, *SHARED_PLACES)
    return f"{found['key']}={_as_text(value, several)}"


def holds_text(key: str) -> bool:
    """Whether the schema says that ``key`` holds text."""
    return key in _text_keys() or f"{key.rpartition('.')[0]}.*" in _text_keys()


def may_be_null(key: str) -> bool:
    """Whether a key that holds text may hold nothing as well."""
    return _text_keys().get(key, False)


def quoted(text: str) -> str:
    """``text`` as Hydra reads it, whatever its characters."""
    return str(QuotedString(text, Quote.single).with_quotes())


def in_a_shell(text: str) -> str:
    """``text`` as one word of a shell, as readable as it can be."""
    plain = not any(character in text for character in '"$`\\!')
    return f'"{text}"' if "'" in text and plain else shlex.quote(text)


def _as_text(value: str, sweep: bool) -> str:
    if not sweep:
        return literal(value)
    values, start = [], 0
    while start <= len(value):
        found = _VALUE.match(value, start)
        assert found is not None
        values.append(literal(found[0]))
        start = found.end() + 1
    return ",".join(values)


def literal(value: str) -> str:
    """One value as text: what is quoted or escaped for Hydra stays, what it misreads is quoted."""
    override = _read(value)
    read = override._value if override else None
    if isinstance(read, QuotedString) or (isinstance(read, str) and "\\" in value):
        return value
    return value if read == value else quoted(value)


def _read(value: str) -> Override | None:
    """What Hydra makes of a value, or None where it cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _is_call(value: str) -> bool:
    """Whether it is a function of Hydra's grammar, such as ``choice(a,b)`` or ``glob(*)``."""
    name, bracket, _ = value.partition("(")
    return bool(bracket) and value.endswith(")") and name.strip() in _functions()


@cache
def _functions() -> frozenset[str]:
    return frozenset(OverridesParser.create().functions.definitions)


@cache
def _text_keys() -> dict[str, bool]:
    """Keys that hold text, and whether they may be null; ``KEY.*`` for the items of a mapping."""
    return {**dict(_texts(RunConfig, "")), **dict.fromkeys(_HYDRAS_OWN, False)}


def _texts(kind: Any, prefix: str) -> Iterator[tuple[str, bool]]:
    for name, hint in get_type_hints(kind).items():
        members = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        for member in members:
            if member is str:
                yield f"{prefix}{name}", NoneType in members
            elif is_dataclass(member):
                yield from _texts(member, f"{prefix}{name}.")
            elif member == dict[str, str]:
                yield f"{prefix}{name}.*", False
