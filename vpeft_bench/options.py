"""Options whose names, types and values a dataclass says: those of methods and of tasks.

Importing this module does not import torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vpeft_bench.errors import Problem, nearest


def typed(described: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with a whole number that is given for a real one as such.

    ``alpha=8`` and ``alpha=8.0`` are one method. What has no such name stays as it is.
    """
    hints = _hints(described)
    return {k: _plain(v, hints[k]) if k in hints else v for k, v in options.items()}


def wrong_options(
    described: type,
    options: Mapping[str, Any],
    section: str,
    owner: str,
    defaults: Mapping[str, Any],
) -> list[Problem]:
    """Everything wrong with names and values of options.

    Args:
        described: the dataclass.
        options: as they were asked for.
        section: of the config that they are in: ``method``.
        owner: whose options they are, for messages.
        defaults: of all options.
    """
    hints = _hints(described)
    known = {one.name: one for one in fields(described)}
    problems = []
    for key, value in options.items():
        where = f"{section}.{key}"
        if key not in known:
            close = nearest(key, known)
            fix = [f"did you mean {section}.{close}=..."] if close else []
            fix.append(f"options: {', '.join(known) or 'none'}")
            problems.append(Problem(where, f"{owner} has no such option", "\n".join(fix)))
            continue
        what = _wrong(value, hints[key], known[key].metadata)
        if what:
            default = f"default: {where}={defaults[key]}"
            problems.append(Problem(f"{where}={value}", what, default))
    return problems


@functools.cache
def _hints(described: type) -> dict[str, Any]:
    return get_type_hints(described)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) is UnionType else (hint,)


def _plain(value: Any, hint: Any) -> Any:
    return float(value) if type(value) is int and float in _kinds(hint) else value


def _wrong(value: Any, hint: Any, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with an option's value, or None."""
    kinds = _kinds(hint)
    if value is None:
        return None if NoneType in kinds else "must not be null"
    kind = next(k for k in kinds if k is not NoneType)
    if type(value) is bool and bool in kinds:
        return None
    if kinds[:2] == (bool, str):  # a switch that also takes names
        kind = str
    choices = metadata.get("choices", ())
    if get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            return "must be a non-empty list"
        (item_kind,) = get_args(kind)
        if any(type(item) is not item_kind for item in value):
            return f"must hold items of type {item_kind.__name__}"
        wrong = [item for item in value if item not in choices] if choices else []
        if wrong:
            return f"{wrong} not in {list(choices)}"
        if len(set(value)) < len(value) and (metadata.get("distinct") or item_kind is str):
            return "names something twice"
        return next((p for item in value if (p := _out_of_range(item, metadata))), None)
    value = _plain(value, kind)
    if type(value) is not kind:
        return f"must be {'a number' if kind is float else f'of type {kind.__name__}'}"
    if choices and value not in choices:
        close = nearest(value, choices)
        hint_text = f" (did you mean {close}?)" if close else ""
        return f"must be one of {', '.join(choices)}{hint_text}"
    if kind is float and not math.isfinite(value):
        return "must be finite"
    return _out_of_range(value, metadata)


def _out_of_range(value: Any, metadata: Mapping[str, Any]) -> str | None:
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        if high is None:
            return f"must be at least {low:g}"
        return f"must be between {low:g} and {high:g}"
    return None
