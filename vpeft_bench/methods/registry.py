"""Finding methods by name: every module of this package that defines one is found by existing.

Those of other packages are found where a plug-in adds them (:mod:`vpeft_bench.plugins`).
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vpeft_bench.errors import MethodOptionError, Problem, nearest
from vpeft_bench.methods.base import Method, default_options
from vpeft_bench.methods.names import METHODS


@dataclass(frozen=True)
class MethodSource:
    """Methods of another library, found under a prefix of their names.

    Attributes:
        prefix: ends in a slash, ``hf/``.
        names: gives all names, with the prefix; does not import the library.
        method_class: gives the class for a name without the prefix.
    """

    prefix: str
    names: Callable[[], list[str]]
    method_class: Callable[[str], type[Method]]


_SOURCES: dict[str, MethodSource] = {}
_OWN = "vpeft_bench."

M = TypeVar("M", bound=type[Method])


def register(method_class: M) -> M:
    """Class decorator: make a method known under its ``name``."""
    METHODS.add(method_class.name, method_class)
    return method_class


def register_source(source: MethodSource) -> None:
    """Make the methods of another library known under their prefix."""
    _SOURCES[source.prefix] = source


@functools.cache
def _import_all() -> None:
    import vpeft_bench.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def list_methods(prefix: str = "") -> list[str]:
    """Names of every method, sorted.

    Args:
        prefix: of a library that methods are taken from (``hf/``); by default the methods of this
            package and of all plug-ins.
    """
    _import_all()
    return _SOURCES[prefix].names() if prefix else sorted(METHODS.names())


def own_methods() -> list[str]:
    """Names of the methods of this package, sorted."""
    return [n for n in list_methods() if METHODS.get(n).__module__.startswith(_OWN)]


def method_class(name: str) -> type[Method]:
    """The class of the method called ``name``.

    Raises:
        MethodOptionError: there is none; names the nearest.
        MissingExtraError: it is one of a library that is not installed.
        ConfigError: a plug-in cannot be imported.
    """
    _import_all()
    prefix, slash, rest = name.rpartition("/")
    if (source := _SOURCES.get(prefix + slash)) is not None:
        return source.method_class(rest)
    if name not in METHODS.names():
        raise MethodOptionError([METHODS.unknown(name)])
    found = METHODS.get(name)
    if found.name != name:
        what = f"{found.__module__}.{found.__qualname__} calls itself {found.name}"
        fix = "add it to METHODS under its own name"
        raise MethodOptionError([Problem(f"method={name}", what, fix)])
    return found


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method ``name`` with its hyper-parameters.

    Raises:
        MethodOptionError: unknown method or option, wrong type, value out of range, options that
            make no sense together; all at once.
    """
    return _built(method_class(name), options)


def checked(method: Method) -> Method:
    """``method``, its hyper-parameters checked as those of one that is built by name.

    Raises:
        MethodOptionError: all that is wrong with them.
    """
    return _built(type(method), method.options())


def _built(found: type[Method], options: Mapping[str, Any]) -> Method:
    if problems := _option_problems(found, options):
        raise MethodOptionError(problems)
    hints = get_type_hints(found)
    # A whole number given for a real one is stored as such: alpha=8 and alpha=8.0 are one method.
    method = found(**{key: _plain(value, hints[key]) for key, value in options.items()})
    if problems := list(method.conflicts()):
        raise MethodOptionError(problems)
    return method


def option_problems(name: str, options: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with ``options`` of the method ``name``."""
    return _option_problems(method_class(name), options)


def _option_problems(found: type[Method], options: Mapping[str, Any]) -> list[Problem]:
    name = found.name
    hints = get_type_hints(found)
    known = {f.name: f for f in fields(found)}
    defaults = default_options(found)
    problems = []
    for key, value in options.items():
        where = f"method.{key}"
        if key not in known:
            close = nearest(key, known)
            fix = [f"did you mean method.{close}=..."] if close else []
            fix.append(f"options: {', '.join(known) or 'none'}")
            problems.append(Problem(where, f"{name} has no such option", "\n".join(fix)))
            continue
        what = _wrong(value, hints[key], known[key].metadata)
        if what:
            default = f"default: {where}={defaults[key]}"
            problems.append(Problem(f"{where}={value}", what, default))
    return problems


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
    choices = metadata["choices"]
    if get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            return "must be a non-empty list"
        (item_kind,) = get_args(kind)
        if any(type(item) is not item_kind for item in value):
            return f"must hold items of type {item_kind.__name__}"
        wrong = [item for item in value if item not in choices] if choices else []
        if wrong:
            return f"{wrong} not in {list(choices)}"
        if len(set(value)) < len(value) and (metadata["distinct"] or item_kind is str):
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
    low, high = metadata["minimum"], metadata["maximum"]
    if (low is not None and value < low) or (high is not None and value > high):
        if high is None:
            return f"must be at least {low:g}"
        return f"must be between {low:g} and {high:g}"
    return None
